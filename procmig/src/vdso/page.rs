//! The page that the vDSO reads: lines through time, by the ticks of the TSC.

use std::mem::offset_of;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

/// Layout of the time page; `vdso.c` has the same. It is all zeros before the first update, which
/// the vDSO takes as "ask the kernel".
///
/// A clock's time at TSC `t` is its base plus `(t - tsc_base) * multiplier >> 32` nanoseconds.
#[derive(Debug, Default)]
#[repr(C)]
pub struct TimePage {
    /// Odd while the rest is being changed.
    pub sequence: AtomicU32,
    /// 0: every clock is asked of the kernel.
    pub usable: AtomicU32,
    /// TSC at which the bases hold.
    pub tsc_base: AtomicU64,
    /// Nanoseconds for a tick in units of 2^-32, for all clocks but the raw one.
    pub multiplier: AtomicU64,
    /// The same for `CLOCK_MONOTONIC_RAW`.
    pub raw_multiplier: AtomicU64,
    /// `CLOCK_MONOTONIC` at the base, in nanoseconds.
    pub monotonic: AtomicU64,
    /// `CLOCK_REALTIME` at the base, in nanoseconds.
    pub realtime: AtomicU64,
    /// `CLOCK_BOOTTIME` at the base, in nanoseconds.
    pub boottime: AtomicU64,
    /// `CLOCK_MONOTONIC_RAW` at the base, in nanoseconds.
    pub raw: AtomicU64,
    /// `CLOCK_TAI` less `CLOCK_REALTIME`, in nanoseconds.
    pub tai_offset: AtomicI64,
    /// Number of CPUs that `getcpu` may name, by `TSC_AUX`; 0: it is asked of the kernel.
    pub cpus: AtomicU32,
    /// 0
    pub reserved: AtomicU32,
}

const _: () = {
    assert!(offset_of!(TimePage, sequence) == 0);
    assert!(offset_of!(TimePage, usable) == 4);
    assert!(offset_of!(TimePage, tsc_base) == 8);
    assert!(offset_of!(TimePage, multiplier) == 16);
    assert!(offset_of!(TimePage, raw_multiplier) == 24);
    assert!(offset_of!(TimePage, monotonic) == 32);
    assert!(offset_of!(TimePage, realtime) == 40);
    assert!(offset_of!(TimePage, boottime) == 48);
    assert!(offset_of!(TimePage, raw) == 56);
    assert!(offset_of!(TimePage, tai_offset) == 64);
    assert!(offset_of!(TimePage, cpus) == 72);
    assert!(size_of::<TimePage>() == 80);
};

/// What the page says, as plain numbers; the meaning is that of [`TimePage`]'s fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields are those of TimePage")]
pub struct Lines {
    pub tsc_base: u64,
    pub multiplier: u64,
    pub raw_multiplier: u64,
    pub monotonic: u64,
    pub realtime: u64,
    pub boottime: u64,
    pub raw: u64,
    pub tai_offset: i64,
}

impl Lines {
    /// Nanoseconds since the base at this TSC, not before the base.
    pub fn elapsed(&self, tsc: u64) -> u64 {
        scale(tsc.wrapping_sub(self.tsc_base), self.multiplier)
    }

    /// The same of `CLOCK_MONOTONIC_RAW`.
    pub fn raw_elapsed(&self, tsc: u64) -> u64 {
        scale(tsc.wrapping_sub(self.tsc_base), self.raw_multiplier)
    }
}

/// Nanoseconds of ticks, as the vDSO does it, so that both agree to the nanosecond.
pub(super) fn scale(ticks: u64, multiplier: u64) -> u64 {
    if (ticks as i64) < 0 { 0 } else { ((u128::from(ticks) * u128::from(multiplier)) >> 32) as u64 }
}

impl TimePage {
    /// Publishes what `lines` makes of the moment: it is called while readers are held off, so that
    /// none that still sees the old lines reads the TSC later than `lines` does. There must be one
    /// writer only.
    ///
    /// `sequence` is the writer's own copy, an even number; what is in the page is never read, since
    /// whoever could write to the page could lie. `None` makes the page unusable.
    pub fn publish(&self, sequence: &mut u32, lines: impl FnOnce() -> Option<Lines>) {
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // The odd number is seen before anything below, and is there before the TSC is read.
        fence(Ordering::SeqCst);
        let lines = lines();
        self.usable.store(lines.is_some().into(), Ordering::Relaxed);
        if let Some(lines) = lines {
            self.tsc_base.store(lines.tsc_base, Ordering::Relaxed);
            self.multiplier.store(lines.multiplier, Ordering::Relaxed);
            self.raw_multiplier.store(lines.raw_multiplier, Ordering::Relaxed);
            self.monotonic.store(lines.monotonic, Ordering::Relaxed);
            self.realtime.store(lines.realtime, Ordering::Relaxed);
            self.boottime.store(lines.boottime, Ordering::Relaxed);
            self.raw.store(lines.raw, Ordering::Relaxed);
            self.tai_offset.store(lines.tai_offset, Ordering::Relaxed);
        }
        *sequence = sequence.wrapping_add(2);
        self.sequence.store(*sequence, Ordering::Release);
    }
}
