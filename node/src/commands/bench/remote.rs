//! Programs on another host, which is one of this machine, over loopback.

use super::guest::{GuestArgs, Loop, REPLY, REQUEST, timed};
use super::report::Outcome;
use super::setting::{Bench, printed};
use super::stats::pairs;
use crate::sandbox::Sandbox;
use anyhow::bail;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// Has the bench's host and a second one be a cluster; the second runs until it is dropped.
fn other_host(bench: &Bench) -> anyhow::Result<Sandbox> {
    let other = Sandbox::start()?;
    let listen = ["--listen", "127.0.0.1:0"];
    said(bench.sandbox.command("skein")?.args(["cluster", "init", "--host-name", "home"]).args(listen))?;
    let token = said(bench.sandbox.command("skein")?.args(["cluster", "invite"]))?;
    said(other.command("skein")?.args(["cluster", "join", token.trim(), "--host-name", "other"]).args(listen))?;
    Ok(other)
}

fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A call that home serves, from another host.
pub fn call(bench: &Bench) -> anyhow::Result<Outcome> {
    let _other = other_host(bench)?;
    let count = bench.pick(10_000, 3_000);
    let program = bench.loop_of(&GuestArgs::new(Loop::Getppid, count))?;
    let guest = || {
        let mut command = bench.sandbox.command("mosrun")?;
        command.args(["-r", "other"]).args(&program);
        printed(command)
    };
    let outcome = Outcome::of(&pairs(bench.pick(11, 3), || round_trip(bench, count), guest)?);
    Ok(outcome.with_note("the network is loopback, where nothing hides what encryption and an exit take".to_owned()))
}

/// Nanoseconds of a round trip over TCP to another process, with messages as long as a forwarded call's.
fn round_trip(bench: &Bench, count: u64) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    ours.set_nodelay(true)?;
    theirs.set_nodelay(true)?;
    let mut peer = bench.sandbox.command("skein")?;
    let mut peer = peer.args(["bench-guest", "echo"]).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    let mut reply = [0; REPLY];
    let nanos = timed(count, || ours.write_all(&[0; REQUEST]).and_then(|()| ours.read_exact(&mut reply)))?;
    drop(ours);
    peer.wait()?;
    Ok(nanos)
}
