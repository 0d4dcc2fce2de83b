//! Loops over memory.

use super::super::stats::Spread;
use super::at_best;
use anyhow::Context;
use std::hint::black_box;
use std::io;
use std::time::Instant;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Memory with a different number in each word, so that each page is its own.
pub fn filled(bytes: usize) -> anyhow::Result<Vec<u64>> {
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

pub fn random(memory: &[u64], count: u64) -> f64 {
    let mask = memory.len() as u64 - 1;
    let mut state = 7u64;
    let mut last = 0u64;
    at_best(count, || {
        // The place depends on what was loaded last: no two loads overlap.
        let place = (step(&mut state) >> 20) ^ last;
        last = memory[(place & mask) as usize];
        last
    })
}

pub fn stream(memory: &[u64], rounds: u64) -> f64 {
    let sum = || memory.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
    at_best(rounds, || black_box(sum())) / memory.len() as f64
}

/// Nanoseconds of the first write to a page of new memory, of which `bytes` are mapped, walked through and
/// unmapped again and again: the median over `rounds`. The round before them is not counted. What it takes
/// the host may have to fetch from below itself, where it is a virtual machine; what it gave back a moment
/// ago it has.
pub fn touch(bytes: usize, rounds: u64) -> anyhow::Result<f64> {
    anyhow::ensure!(bytes >= PAGE, "--bytes must be a page at least");
    let mut times = Vec::new();
    for _ in 0..=rounds {
        let mut area = Area::new(bytes).context("too little memory; use a smaller --bytes")?;
        let started = Instant::now();
        for page in area.bytes().chunks_mut(PAGE) {
            // Volatile, so that it is made although nobody looks.
            // SAFETY: a reference to a byte may be written through.
            unsafe { std::ptr::write_volatile(&mut page[0], 1) };
        }
        times.push(started.elapsed().as_nanos() as f64 / (bytes / PAGE) as f64);
    }
    Ok(Spread::of(times.split_off(1)).map_or(0.0, |spread| spread.median))
}

/// New anonymous memory as a program gets it that asks for nothing special; unmapped when dropped.
pub struct Area {
    start: *mut libc::c_void,
    length: usize,
}

impl Area {
    /// Maps it.
    pub fn new(length: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, length }) }
    }

    /// Asks for huge pages, as a node does for its RAM.
    pub fn ask_for_huge_pages(&mut self) {
        ask_for_huge_pages(self.bytes());
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours, readable, writable and as long; borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.length) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody holds references into it.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loop_gives_a_time() {
        let memory = filled(1 << 16).unwrap();
        assert!(random(&memory, 1000) > 0.0);
        assert!(stream(&memory, 3) > 0.0);
        assert!(filled(1000).is_err());
        assert!(touch(1 << 20, 2).unwrap() > 0.0);
        assert!(touch(1, 2).is_err());
    }
}
