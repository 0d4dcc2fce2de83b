//! The hidden `skein bench-guest`: one loop, run natively and in a node, that prints nanoseconds
//! per operation.

use super::stats::Spread;
use anyhow::Context;
use clap::{Args, ValueEnum};

use std::convert::Infallible;
use std::hint::black_box;
use std::io::{Read, Write};
use std::time::Instant;

/// Bytes of a forwarded call's request and reply without arguments.
pub const REQUEST: usize = procmig::wire::call::RequestHeader::SIZE;
/// See [`REQUEST`].
pub const REPLY: usize = procmig::wire::call::ReplyHeader::SIZE;

/// Which loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loop {
    /// Loads of 8 bytes at random places, each place known only from the load before
    MemoryRandom,
    /// Loads of 8 bytes one after the other
    MemoryStream,
    /// A system call that a node serves itself
    Sigprocmask,
    /// A system call that a node forwards
    Getppid,
    /// Answers requests on standard input, a socket, until it ends
    Echo,
}

/// Arguments of `skein bench-guest`.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// Which loop
    #[arg(value_enum)]
    which: Loop,
    /// Size of the memory; a power of two
    #[arg(long, default_value_t = 1 << 30)]
    bytes: usize,
    /// How many operations
    #[arg(long, default_value_t = 10_000)]
    count: u64,
}

/// Runs the loop.
pub fn main(args: GuestArgs) -> anyhow::Result<()> {
    let nanos = match args.which {
        Loop::MemoryRandom => random(&memory(args.bytes)?, args.count),
        Loop::MemoryStream => stream(&memory(args.bytes)?, args.count),
        Loop::Sigprocmask => always(args.count, || {
            let mut old = 0u64;
            // SAFETY: no new set is given, and `old` has the size that the last argument says.
            unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, 0usize, &raw mut old, 8usize) }
        }),
        // SAFETY: it takes no argument and cannot fail.
        Loop::Getppid => always(args.count, || unsafe { libc::syscall(libc::SYS_getppid) }),
        Loop::Echo => return echo(),
    };
    Ok(crate::output::print(&format!("{nanos}\n"))?)
}

/// Most batches that a loop is measured in.
const BATCHES: u64 = 51;

/// Nanoseconds of an operation: the median over batches, so that other programs of the machine,
/// which take the CPU away now and then, do not show.
pub fn timed<T, E>(count: u64, mut operation: impl FnMut() -> Result<T, E>) -> Result<f64, E> {
    // The first calls fill caches, and in a node its tables.
    for _ in 0..count / 20 + 1 {
        black_box(operation()?);
    }
    let batch = count.div_ceil(BATCHES).max(1);
    let mut times = Vec::new();
    for _ in 0..count.div_ceil(batch).max(1) {
        let started = Instant::now();
        for _ in 0..batch {
            black_box(operation()?);
        }
        times.push(started.elapsed().as_nanos() as f64 / batch as f64);
    }
    Ok(Spread::of(times).map_or(0.0, |spread| spread.median))
}

fn always<T>(count: u64, mut operation: impl FnMut() -> T) -> f64 {
    let Ok(nanos) = timed(count, || Ok::<T, Infallible>(operation()));
    nanos
}

/// Memory with a different number in each word, so that each page is its own.
fn memory(bytes: usize) -> anyhow::Result<Vec<u64>> {
    let words = bytes / 8;
    anyhow::ensure!(words.is_power_of_two(), "--bytes must be a power of two");
    let mut memory = Vec::new();
    memory.try_reserve_exact(words).context("too little memory; use a smaller --bytes")?;
    ask_for_huge_pages(memory.spare_capacity_mut());
    let mut state = 1u64;
    memory.extend((0..words).map(|_| step(&mut state)));
    Ok(memory)
}

/// A node gets huge pages from its host for large areas of its programs; a program by itself may
/// have to ask. With both on huge pages it is the access that is compared, not the page size.
fn ask_for_huge_pages<T>(memory: &mut [T]) {
    const PAGE: usize = 4096;
    let start = memory.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + size_of_val(memory)) & !(PAGE - 1));
    if first < end {
        // SAFETY: whole pages of memory that is ours; the advice changes nothing that is in them.
        // Where it is refused both sides do without.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

/// Knuth's MMIX generator.
fn step(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state
}

fn random(memory: &[u64], count: u64) -> f64 {
    let mask = memory.len() as u64 - 1;
    let mut state = 7u64;
    let mut last = 0u64;
    always(count, || {
        // The place depends on what was loaded last: no two loads overlap.
        let place = (step(&mut state) >> 20) ^ last;
        last = memory[(place & mask) as usize];
        last
    })
}

fn stream(memory: &[u64], rounds: u64) -> f64 {
    let sum = || memory.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
    always(rounds, || black_box(sum())) / memory.len() as f64
}

fn echo() -> anyhow::Result<()> {
    use std::os::fd::AsFd;
    let socket = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut request = [0; REQUEST];
    while (&socket).read_exact(&mut request).is_ok() {
        (&socket).write_all(&[0; REPLY])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loop_gives_a_time() {
        let memory = memory(1 << 16).unwrap();
        assert!(random(&memory, 1000) > 0.0);
        assert!(stream(&memory, 3) > 0.0);
        assert!(super::memory(1000).is_err());
    }
}
