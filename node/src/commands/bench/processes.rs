//! Processes that are made and end.

use super::guest::{GuestArgs, Loop};
use super::report::Outcome;
use super::setting::Bench;

/// Forks of a process that has memory.
pub fn fork(bench: &Bench) -> anyhow::Result<Outcome> {
    let args = GuestArgs { bytes: 100 << 20, ..GuestArgs::new(Loop::Fork, bench.pick(21, 5)) };
    bench.beside(bench.pick(11, 3), 1e6, &args, |_, _| None)
}

/// Starts of a program by a program.
pub fn spawn(bench: &Bench) -> anyhow::Result<Outcome> {
    bench.beside(bench.pick(11, 3), 1e6, &GuestArgs::new(Loop::Spawn, bench.pick(21, 5)), |_, _| None)
}
