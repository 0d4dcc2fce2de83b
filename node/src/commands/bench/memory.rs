//! Memory, against native.

use super::guest::{GuestArgs, Loop, PAGE};
use super::report::Outcome;
use super::setting::{Bench, printed};

/// Accesses to places at random.
pub fn random(bench: &Bench) -> anyhow::Result<Outcome> {
    accesses(bench, Loop::MemoryRandom, bench.pick(5_000_000, 2_000_000))
}

/// Accesses one after the other.
pub fn stream(bench: &Bench) -> anyhow::Result<Outcome> {
    accesses(bench, Loop::MemoryStream, bench.pick(20, 10))
}

fn accesses(bench: &Bench, which: Loop, count: u64) -> anyhow::Result<Outcome> {
    let args = GuestArgs { bytes: bench.pick(1 << 30, 1 << 28), ..GuestArgs::new(which, count) };
    Ok(Outcome::of(&bench.both(bench.pick(11, 3), &bench.loop_of(&args)?, printed)?))
}

/// First writes to pages.
pub fn touch(bench: &Bench) -> anyhow::Result<Outcome> {
    let bytes = bench.pick(1 << 30, 1 << 28);
    let args = GuestArgs { bytes, ..GuestArgs::new(Loop::Touch, bench.pick(3, 2)) };
    let measured = bench.both(bench.pick(7, 3), &bench.loop_of(&args)?, printed)?;
    let outcome = Outcome::of(&measured);
    // The loop makes one round more than it is asked for.
    let counts = bench.counts(&bench.loop_of(&args)?, &[0])?.over((args.count + 1) as f64);
    let rate = |nanos: Option<f64>| nanos.map_or(0.0, |nanos| 1e9 / nanos / 1e6);
    let (native, node) = (rate(outcome.peer.map(|peer| peer.median)), rate(outcome.skein.map(|skein| skein.median)));
    Ok(outcome.with_note(format!(
        "million pages/s: {node:.2}, natively {native:.2}; {:.0} faults for {} pages",
        counts.faults,
        bytes / PAGE
    )))
}
