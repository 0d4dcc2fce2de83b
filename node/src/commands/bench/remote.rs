//! Programs on another host, which is one of this machine, over loopback.

use super::guest::{GuestArgs, Loop, REPLY, REQUEST, WORK_STEPS, timed};
use super::programs;
use super::report::Outcome;
use super::setting::{Bench, printed};
use super::stats::pairs;
use crate::sandbox::Sandbox;
use anyhow::bail;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Has the bench's host and a second one be a cluster; the second runs until it is dropped.
pub(super) fn other_host(bench: &Bench) -> anyhow::Result<Sandbox> {
    let other = Sandbox::start()?;
    // That of an earlier benchmark is gone.
    let _ = said(bench.sandbox.command("skein")?.args(["cluster", "leave", "--force"]));
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
    Ok(outcome.with_note("the network is loopback; without an exit where a CPU is free for the poller".to_owned()))
}

/// A program that runs elsewhere and does no more than a hundredth of its time for input and output, against itself
/// natively: as MOSIX's Table I has it. There each program ran for ten minutes; here each block is read or written
/// after as much computing as there, and there are fewer.
fn table(bench: &Bench, which: Loop, block: usize, between: Duration) -> anyhow::Result<Outcome> {
    let _other = other_host(bench)?;
    let path = bench.sandbox.directory().join("blocks");
    std::fs::write(&path, vec![1; block * WORK_STEPS as usize])?;
    let args = GuestArgs {
        bytes: block,
        path: path.display().to_string(),
        ..GuestArgs::new(which, between.as_micros() as u64)
    };
    let program = bench.loop_of(&args)?;
    let native = || {
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]);
        Ok(printed(command)? / 1e9)
    };
    let there = || {
        let mut command = bench.sandbox.command("mosrun")?;
        command.args(["-r", "other"]).args(&program);
        Ok(printed(command)? / 1e9)
    };
    let outcome = Outcome::of(&pairs(bench.pick(31, 3), native, there)?);
    let note =
        format!("{WORK_STEPS} blocks of {} KiB, one after each {:.0} ms", block >> 10, between.as_secs_f64() * 1e3);
    Ok(outcome.with_note(note))
}

/// Bytes that were moved in ten minutes, in blocks of so many: the time between two.
fn between(bytes: u64, block: usize) -> Duration {
    Duration::from_secs(600) / (bytes / block as u64) as u32
}

/// A search through 90 MB.
pub fn search(bench: &Bench) -> anyhow::Result<Outcome> {
    table(bench, Loop::WorkAndRead, 64 << 10, between(90_000_000, 64 << 10))
}

/// A simulation that writes 200 MB.
pub fn simulate(bench: &Bench) -> anyhow::Result<Outcome> {
    table(bench, Loop::WorkAndWrite, 32 << 10, between(200_000_000, 32 << 10))
}

/// An aligner that reads 480 MB.
pub fn align(bench: &Bench) -> anyhow::Result<Outcome> {
    table(bench, Loop::WorkAndRead, 64 << 10, between(480_000_000, 64 << 10))
}

/// A solver, which does nothing but compute.
pub fn solve(bench: &Bench) -> anyhow::Result<Outcome> {
    let _other = other_host(bench)?;
    /// Long enough that it does not count what the first touch of memory takes, as it does not in ten minutes.
    const INSTANCE: (u64, u64) = (300, 21);
    programs::solver(bench, &["-r", "other"], bench.pick(31, 3), INSTANCE)
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
