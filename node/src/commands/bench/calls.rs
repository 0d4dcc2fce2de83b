//! Calls that move nothing.

use super::guest::{GuestArgs, Loop, REPLY, REQUEST, timed};
use super::report::Outcome;
use super::setting::Bench;
use super::stats::pairs;
use crate::measured;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// A call that the node serves.
pub fn local_call(bench: &Bench) -> anyhow::Result<Outcome> {
    let count = bench.pick(20_000, 5_000);
    let pairs = pairs(bench.pick(11, 3), measured::bare_exit_nanos, || {
        bench.guest_nanos(&GuestArgs::new(Loop::Sigprocmask, count))
    })?;
    Ok(Outcome::of(&pairs))
}

/// A call that home serves.
pub fn forwarded_call(bench: &Bench) -> anyhow::Result<Outcome> {
    let count = bench.pick(10_000, 3_000);
    let parts = || Ok(measured::bare_exit_nanos()? + round_trip(bench, count)?);
    let pairs = pairs(bench.pick(11, 3), parts, || bench.guest_nanos(&GuestArgs::new(Loop::Getppid, count)))?;
    // The scheduler places the two processes of either side as it likes.
    Ok(Outcome::of(&pairs).with_note("nothing is pinned to a CPU".to_owned()))
}

/// Nanoseconds of a round trip over a Unix socket to another process, with messages as long as a
/// forwarded call's.
pub fn round_trip(bench: &Bench, count: u64) -> anyhow::Result<f64> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut peer = bench.sandbox.command("skein")?;
    let mut peer = peer.args(["bench-guest", "echo"]).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    let mut reply = [0; REPLY];
    let mut once = || (&ours).write_all(&[0; REQUEST]).and_then(|()| (&ours).read_exact(&mut reply));
    let nanos = timed(count, &mut once)?;
    drop(ours);
    peer.wait()?;
    Ok(nanos)
}

/// The same with both processes on one CPU.
pub fn near_trip(bench: &Bench, count: u64) -> anyhow::Result<f64> {
    let own = Pid::from_raw(0);
    let all = sched_getaffinity(own)?;
    let mut one = CpuSet::new();
    one.set(sched_getcpu()?)?;
    // The peer inherits it.
    sched_setaffinity(own, &one)?;
    let nanos = round_trip(bench, count);
    sched_setaffinity(own, &all)?;
    nanos
}

/// The clock.
pub fn clock(bench: &Bench) -> anyhow::Result<Outcome> {
    cheap(bench, Loop::Clock, bench.pick(1_000_000, 200_000))
}

/// The process's ID.
pub fn getpid(bench: &Bench) -> anyhow::Result<Outcome> {
    cheap(bench, Loop::Getpid, bench.pick(20_000, 5_000))
}

/// The thread's ID.
pub fn gettid(bench: &Bench) -> anyhow::Result<Outcome> {
    cheap(bench, Loop::Gettid, bench.pick(20_000, 5_000))
}

/// The same of one of several threads.
pub fn gettid_of_two(bench: &Bench) -> anyhow::Result<Outcome> {
    cheap(bench, Loop::GettidOfTwo, bench.pick(2_000_000, 500_000))
}

/// What is so cheap that an exit would be most of it.
fn cheap(bench: &Bench, which: Loop, count: u64) -> anyhow::Result<Outcome> {
    bench.beside(bench.pick(11, 3), 1.0, &GuestArgs::new(which, count), |_, _| None)
}
