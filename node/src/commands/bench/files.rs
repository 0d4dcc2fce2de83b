//! Bytes that move: files at home, and a pipe.

use super::guest::{GuestArgs, Loop};
use super::report::Outcome;
use super::setting::Bench;

/// Bytes of the file.
const FILE: usize = 64 << 20;

/// Reads of a file that the host has in memory.
pub fn read(bench: &Bench, block: usize) -> anyhow::Result<Outcome> {
    through(bench, Loop::Read, block)
}

/// Writes to a file that the host has in memory, over what it has.
pub fn write(bench: &Bench, block: usize) -> anyhow::Result<Outcome> {
    through(bench, Loop::Write, block)
}

fn through(bench: &Bench, which: Loop, block: usize) -> anyhow::Result<Outcome> {
    let path = bench.sandbox.directory().join("file");
    if !path.exists() {
        std::fs::write(&path, vec![1; FILE])?;
    }
    let path = path.display().to_string();
    // At least twice the whole file with large blocks.
    let count = bench.pick((128 << 20) / block, (32 << 20) / block).clamp(64, bench.pick(8000, 2000)) as u64;
    let args = GuestArgs { bytes: block, path, ..GuestArgs::new(which, count) };
    bench.beside(bench.pick(11, 3), 1e3, &args, |native, node| Some(rates(block, native, node)))
}

/// Blocks of 64 KiB from one process to another.
pub fn pipe(bench: &Bench) -> anyhow::Result<Outcome> {
    const BLOCK: usize = 64 << 10;
    let args = GuestArgs { bytes: BLOCK, ..GuestArgs::new(Loop::Pipe, bench.pick(2000, 500)) };
    bench.beside(bench.pick(11, 3), 1e3, &args, |native, node| Some(rates(BLOCK, native, node)))
}

fn rates(block: usize, native: f64, node: f64) -> String {
    let rate = |nanos: f64| block as f64 / nanos * 1e3;
    format!("MB/s: {:.0}, natively {:.0}", rate(node), rate(native))
}
