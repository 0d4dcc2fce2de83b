//! Computing with some input or output in between, as programs do that run for hours.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Nanoseconds that so many steps take: each computes for as long as `each` takes on an idle machine, and then reads a
/// block of a file or writes one.
pub fn work(path: &Path, block: usize, steps: u64, each: Duration, writes: bool) -> io::Result<f64> {
    let mut file = if writes { File::create(path)? } else { File::open(path)? };
    let mut room = vec![1; block];
    // One takes about two nanoseconds; the same on both sides.
    let rounds = each.as_nanos() as u64 / 2;
    let mut state = 88_172_645_463_325_252u64;
    let started = Instant::now();
    for _ in 0..steps {
        for _ in 0..rounds {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        black_box(state);
        if writes { file.write_all(&room)? } else { file.read_exact(&mut room)? }
    }
    Ok(started.elapsed().as_nanos() as f64)
}
