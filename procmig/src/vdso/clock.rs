//! Keeps the time page: lines through the host's clocks, by the ticks of the TSC.
//!
//! A guest reads the TSC itself (it counts as the host's does) and takes its time from a line. Each
//! update measures how far the line has gone from the host's clock and bends it, so that it meets
//! the host's clock soon: a line is only ever continued where it is, or from later, so
//! `CLOCK_MONOTONIC` never goes back. The real-time clock is that line plus an offset that changes
//! only when the host's clock is set.
//!
//! Guests of another home have that host's clocks: this host's, at the [`Distance`] that was measured.

use super::distance::{Asked, Clocks, Distance};
use super::page::{Lines, TimePage, scale};
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The line shall meet the host's clock after this many nanoseconds, or after twice the time since
/// the last update if that is longer: so noise is damped, and updates that come late do not overshoot.
const HORIZON: i64 = 500_000_000;
/// So far behind the host, the guest's clock is set forward at once.
const STEP: i64 = 1_000_000;
/// So far ahead of the host (its clock stood still while the machine slept), the guest's clock
/// stays ahead for good: it may not go back, and standing still for so long would be worse.
const MAX_AHEAD: i64 = 10_000_000;
/// A sample that took longer than this many nanoseconds says nothing.
const MAX_SAMPLE: u64 = 50_000;
/// Samples taken for one measurement; the quickest counts.
const TRIES: usize = 6;
/// Nanoseconds over which a rate must be measured to be believed.
const MIN_SPAN: u64 = 50_000_000;
/// Nanoseconds after which a measurement starts anew, so that the rate follows the host's.
const MAX_SPAN: u64 = 4_000_000_000;
/// Nanoseconds by which a measured offset may miss the one in use before that was changed.
const OFFSET_NOISE: i64 = 1000;

/// What another host has said of its clocks may be so old, until it is asked again.
const FRESH: Duration = Duration::from_secs(4);
/// Between two questions.
const AGAIN: Duration = Duration::from_secs(1);

/// A host clock in nanoseconds.
pub(super) fn host(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is the place that the call writes to.
    unsafe { libc::clock_gettime(clock, &mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// The TSC, not read before the instructions before it are done.
fn rdtsc() -> u64 {
    // SAFETY: both instructions are in every x86-64 CPU, and change no memory.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}

/// Whether the host's TSC runs at one rate on all its CPUs: the CPU says so, and the kernel has not
/// found otherwise.
pub fn tsc_is_usable() -> bool {
    #[allow(unused_unsafe, reason = "safe only in newer compilers")]
    // SAFETY: the instruction is in every x86-64 CPU.
    let invariant = unsafe {
        use std::arch::x86_64::__cpuid;
        __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
    };
    let directory = "/sys/devices/system/clocksource/clocksource0";
    let source = fs::read_to_string(format!("{directory}/current_clocksource")).unwrap_or_default();
    let available = fs::read_to_string(format!("{directory}/available_clocksource")).unwrap_or_default();
    // The kernel takes an unstable TSC off the list; a paravirtual clock reads the TSC itself.
    let trusted = |name: &str| name == "tsc" || name == "kvm-clock" || name.starts_with("hyperv");
    invariant && (trusted(source.trim()) || available.split_whitespace().any(|name| name == "tsc"))
}

/// A clock's time and the TSC at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    tsc: u64,
    time: u64,
}

/// Reads a host clock and the TSC together; the ticks that it took are the second value.
fn sample(clock: libc::clockid_t) -> (Sample, u64) {
    let mut best: Option<(Sample, u64)> = None;
    for _ in 0..TRIES {
        let before = rdtsc();
        let time = host(clock);
        let width = rdtsc().saturating_sub(before);
        if best.is_none_or(|(_, least)| width < least) {
            best = Some((Sample { tsc: before.wrapping_add(width / 2), time }, width));
        }
    }
    best.unwrap_or((Sample { tsc: 0, time: 0 }, u64::MAX))
}

/// How much `clock` is ahead of `CLOCK_MONOTONIC`: no less and no more than this.
pub(super) fn offset(clock: libc::clockid_t) -> (i64, i64) {
    let mut bounds = (i64::MIN, i64::MAX);
    for _ in 0..TRIES {
        let before = host(libc::CLOCK_MONOTONIC);
        let time = host(clock);
        let after = host(libc::CLOCK_MONOTONIC);
        let (low, high) = (time.wrapping_sub(after) as i64, time.wrapping_sub(before) as i64);
        if high.wrapping_sub(low) < bounds.1.saturating_sub(bounds.0) {
            bounds = (low, high);
        }
    }
    bounds
}

/// Half way between two bounds.
pub(super) fn middle((low, high): (i64, i64)) -> i64 {
    low.wrapping_add(high.wrapping_sub(low) / 2)
}

/// Changes an offset only if what was measured contradicts it.
pub(super) fn keep_offset(current: &mut i64, (low, high): (i64, i64)) {
    if *current < low.saturating_sub(OFFSET_NOISE) || *current > high.saturating_add(OFFSET_NOISE) {
        *current = middle((low, high));
    }
}

/// The rate of one host clock, in nanoseconds for a tick in units of 2^-32.
#[derive(Debug)]
struct Rate {
    multiplier: u64,
    oldest: Sample,
    newer: Sample,
}

impl Rate {
    fn between(from: Sample, to: Sample) -> Option<u64> {
        let ticks = to.tsc.checked_sub(from.tsc).filter(|&ticks| ticks > 0)?;
        let time = to.time.checked_sub(from.time)?;
        u64::try_from((u128::from(time) << 32) / u128::from(ticks)).ok().filter(|&rate| rate > 0)
    }

    fn measure(&mut self, now: Sample) {
        let span = now.time.saturating_sub(self.oldest.time);
        match Self::between(self.oldest, now) {
            // The TSC was reset, or it counted while the clock stood still.
            None => (self.oldest, self.newer) = (now, now),
            Some(measured) if measured.abs_diff(self.multiplier) > self.multiplier / 50 && span > MIN_SPAN => {
                (self.oldest, self.newer) = (now, now);
            }
            Some(measured) if span > MIN_SPAN => self.multiplier = measured,
            Some(_) => {}
        }
        if now.time.saturating_sub(self.newer.time) > MAX_SPAN {
            self.oldest = self.newer;
            self.newer = now;
        }
    }

    /// The multiplier of a line that is `error` nanoseconds behind the clock (negative: ahead),
    /// `since` nanoseconds after it was bent last, and the nanoseconds to set it forward at once.
    fn steer(&self, error: i64, since: u64) -> (u64, u64) {
        if error >= STEP {
            return (self.multiplier, error as u64);
        }
        let rate = i128::from(self.multiplier);
        let horizon = i128::from(HORIZON).max(2 * i128::from(since));
        let bent = rate + rate * i128::from(error) / horizon;
        (bent.clamp(rate / 2, rate * 2).max(1) as u64, 0)
    }
}

#[derive(Debug)]
struct State {
    sequence: u32,
    lines: Option<Lines>,
    rate: Rate,
    raw_rate: Rate,
    /// Nanoseconds by which the guest's `CLOCK_MONOTONIC` is ahead of the host's for good.
    ahead: i64,
    realtime: i64,
    boottime: i64,
    tai: i64,
    /// Another host, if its clocks are the guests'.
    followed: Option<Followed>,
    /// Without a TSC: what another host's `CLOCK_MONOTONIC` and `CLOCK_MONOTONIC_RAW` have shown already.
    floor: (u64, u64),
}

/// Another host's clocks.
#[derive(Debug)]
struct Followed {
    distance: Distance,
    /// When it has last said what they show.
    heard: Instant,
    /// When somebody was last to ask it.
    wanted: Instant,
}

impl State {
    /// A clock that is read without a TSC.
    fn read(&mut self, clock: libc::clockid_t) -> Option<u64> {
        let Some(Followed { distance, .. }) = self.followed else {
            return match clock {
                libc::CLOCK_REALTIME
                | libc::CLOCK_MONOTONIC
                | libc::CLOCK_MONOTONIC_RAW
                | libc::CLOCK_REALTIME_COARSE
                | libc::CLOCK_MONOTONIC_COARSE
                | libc::CLOCK_BOOTTIME
                | libc::CLOCK_TAI => Some(host(clock)),
                libc::CLOCK_REALTIME_ALARM => Some(host(libc::CLOCK_REALTIME)),
                libc::CLOCK_BOOTTIME_ALARM => Some(host(libc::CLOCK_BOOTTIME)),
                _ => None,
            };
        };
        if clock == libc::CLOCK_MONOTONIC_RAW {
            self.floor.1 = host(clock).wrapping_add(distance.raw as u64).max(self.floor.1);
            return Some(self.floor.1);
        }
        self.floor.0 = host(libc::CLOCK_MONOTONIC).wrapping_add(distance.monotonic as u64).max(self.floor.0);
        let ahead = |ahead: i64| self.floor.0.wrapping_add(ahead as u64);
        Some(match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_REALTIME_ALARM => ahead(distance.realtime),
            libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE => self.floor.0,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => ahead(distance.boottime),
            libc::CLOCK_TAI => ahead(distance.tai),
            _ => return None,
        })
    }
}

/// The clocks of a node's guests that have one home.
#[derive(Debug)]
pub struct Clock {
    page: NonNull<TimePage>,
    state: Mutex<State>,
}

// SAFETY: the page is only written through atomics, by whoever holds the lock of the state.
unsafe impl Send for Clock {}
// SAFETY: as above.
unsafe impl Sync for Clock {}

impl Clock {
    /// Starts the clocks and fills the page. `tsc_khz` is what the hypervisor says of the TSC
    /// (`KVM_GET_TSC_KHZ`); without it, or if it is wrong, the rate is measured, which takes 2 ms.
    /// Without a usable TSC (`usable`, see [`tsc_is_usable`]) the vDSO makes system calls.
    ///
    /// # Safety
    /// `page` must be valid for reads and writes, aligned, as long as the clock exists, and nobody
    /// else may write to it but guests.
    pub unsafe fn new(page: NonNull<TimePage>, tsc_khz: Option<u32>, usable: bool) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::at(page, tsc_khz, usable, None) }
    }

    /// The same with another host's clocks, which are so far from this one's.
    ///
    /// # Safety
    /// As of [`new`](Self::new).
    pub unsafe fn of_home(page: NonNull<TimePage>, usable: bool, distance: Distance) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::at(page, None, usable, Some(distance)) }
    }

    /// # Safety
    /// As of [`new`](Self::new).
    unsafe fn at(page: NonNull<TimePage>, tsc_khz: Option<u32>, usable: bool, distance: Option<Distance>) -> Self {
        let (first, raw_first) = (sample(libc::CLOCK_MONOTONIC).0, sample(libc::CLOCK_MONOTONIC_RAW).0);
        let mut multiplier = None;
        if usable {
            let told = tsc_khz.filter(|&khz| khz > 0).map(|khz| (1_000_000u64 << 32) / u64::from(khz));
            for (wait, told) in [(Duration::from_micros(300), told), (Duration::from_millis(2), None)] {
                if multiplier.is_some() || (wait < Duration::from_millis(1) && told.is_none()) {
                    continue;
                }
                std::thread::sleep(wait);
                multiplier = Rate::between(first, sample(libc::CLOCK_MONOTONIC).0).and_then(|measured| match told {
                    Some(told) => (measured.abs_diff(told) <= told / 1000).then_some(told),
                    None => Some(measured),
                });
            }
        }
        let rate = |first| Rate { multiplier: multiplier.unwrap_or(0), oldest: first, newer: first };
        let (ahead, raw_ahead) = distance.map_or((0, 0), |distance| (distance.monotonic, distance.raw));
        let raw = raw_first.time.wrapping_add(raw_ahead as u64);
        let lines = multiplier.map(|multiplier| Lines {
            tsc_base: first.tsc,
            multiplier,
            raw_multiplier: multiplier,
            monotonic: first.time.wrapping_add(ahead as u64),
            raw: raw.wrapping_sub(scale(raw_first.tsc.wrapping_sub(first.tsc), multiplier)),
            ..Lines::default()
        });
        let state = State {
            // Anywhere, and even. A thread may migrate in the middle of reading the page: that of its new node must not
            // look as if it was the same, unchanged.
            sequence: RandomState::new().build_hasher().finish() as u32 & !1,
            lines,
            rate: rate(first),
            raw_rate: rate(raw_first),
            ahead: 0,
            realtime: 0,
            boottime: 0,
            tai: 0,
            followed: distance.map(|distance| {
                let now = Instant::now();
                Followed { distance, heard: now, wanted: now }
            }),
            floor: (0, 0),
        };
        let clock = Self { page, state: Mutex::new(state) };
        clock.update();
        clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether guests read the TSC.
    pub fn is_usable(&self) -> bool {
        self.lock().lines.is_some()
    }

    /// Lets `getcpu` answer without a system call, if `TSC_AUX` holds the CPU's number in its low 12
    /// bits and the guests see `cpus` CPUs; 0 undoes it.
    pub fn set_cpus(&self, cpus: u32) {
        // SAFETY: the caller of `new` promised that the page is there; only atomics are in it.
        unsafe { self.page.as_ref() }.cpus.store(cpus, Ordering::Relaxed);
    }

    /// Another host, whose clocks these are, has answered what they show.
    pub fn hear(&self, asked: &Asked, told: &Clocks) {
        if let Some(followed) = &mut self.lock().followed {
            followed.distance.correct(asked, told);
            followed.heard = Instant::now();
        }
    }

    /// Whether these are another host's clocks, and the caller is to ask it what they show; seldom.
    pub fn wants_news(&self) -> bool {
        let state = &mut *self.lock();
        let Some(followed) = &mut state.followed else { return false };
        let wants = followed.heard.elapsed() > FRESH && followed.wanted.elapsed() > AGAIN;
        if wants {
            followed.wanted = Instant::now();
        }
        wants
    }

    /// Measures the host's clocks and bends the guests' towards them; to be called about four times
    /// a second. The clocks go on, if less exactly, when it is late.
    pub fn update(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        // SAFETY: the caller of `new` promised that the page is there; only atomics are in it.
        let page = unsafe { self.page.as_ref() };
        let (mut ahead, mut raw_ahead) = (state.ahead, 0);
        if let Some(Followed { distance, .. }) = state.followed {
            (state.realtime, state.boottime, state.tai) = (distance.realtime, distance.boottime, distance.tai);
            (ahead, raw_ahead) = (ahead.wrapping_add(distance.monotonic), distance.raw);
        } else {
            keep_offset(&mut state.realtime, offset(libc::CLOCK_REALTIME));
            keep_offset(&mut state.boottime, offset(libc::CLOCK_BOOTTIME));
            keep_offset(&mut state.tai, offset(libc::CLOCK_TAI));
        }
        let Some(old) = state.lines else {
            page.publish(&mut state.sequence, || None);
            return;
        };
        let (now, width) = sample(libc::CLOCK_MONOTONIC);
        let (raw, raw_width) = sample(libc::CLOCK_MONOTONIC_RAW);
        let widest = scale(width.max(raw_width).min(i64::MAX as u64), state.rate.multiplier);
        let (mut bent, mut raw_bent) = ((old.multiplier, 0), (old.raw_multiplier, 0));
        if widest <= MAX_SAMPLE {
            state.rate.measure(now);
            state.raw_rate.measure(raw);
            let target = now.time.wrapping_add(ahead as u64);
            let mut error = target.wrapping_sub(old.monotonic.wrapping_add(old.elapsed(now.tsc))) as i64;
            if error < -MAX_AHEAD {
                state.ahead = state.ahead.wrapping_sub(error);
                error = 0;
            }
            bent = state.rate.steer(error, old.elapsed(now.tsc));
            let target = raw.time.wrapping_add(raw_ahead as u64);
            let error = target.wrapping_sub(old.raw.wrapping_add(old.raw_elapsed(raw.tsc))) as i64;
            raw_bent = state.raw_rate.steer(error.max(-MAX_AHEAD), old.raw_elapsed(raw.tsc));
        }
        let (realtime, boottime) = (state.realtime.wrapping_sub(state.ahead), state.boottime);
        let tai_offset = state.tai.wrapping_sub(state.realtime);
        let lines = &mut state.lines;
        page.publish(&mut state.sequence, || {
            // Readers are held off: none reads a later TSC and still uses the old line.
            let tsc = rdtsc();
            let monotonic = old.monotonic.wrapping_add(old.elapsed(tsc)).wrapping_add(bent.1);
            *lines = Some(Lines {
                tsc_base: tsc,
                multiplier: bent.0,
                raw_multiplier: raw_bent.0,
                monotonic,
                realtime: monotonic.wrapping_add(realtime as u64),
                boottime: monotonic.wrapping_add(boottime as u64),
                raw: old.raw.wrapping_add(old.raw_elapsed(tsc)).wrapping_add(raw_bent.1),
                tai_offset,
            });
            *lines
        });
    }

    /// A guest's clock in nanoseconds, the same that the vDSO tells; `None` if it is none of those
    /// that are the same for every process.
    pub fn now(&self, clock: libc::clockid_t) -> Option<u64> {
        let mut state = self.lock();
        let Some(lines) = &state.lines else { return state.read(clock) };
        let tsc = rdtsc();
        let from = |base: u64| base.wrapping_add(lines.elapsed(tsc));
        let coarse = |time: u64| time - time % COARSE;
        Some(match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => from(lines.realtime),
            libc::CLOCK_MONOTONIC => from(lines.monotonic),
            libc::CLOCK_MONOTONIC_RAW => lines.raw.wrapping_add(lines.raw_elapsed(tsc)),
            libc::CLOCK_REALTIME_COARSE => coarse(from(lines.realtime)),
            libc::CLOCK_MONOTONIC_COARSE => coarse(from(lines.monotonic)),
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => from(lines.boottime),
            libc::CLOCK_TAI => from(lines.realtime).wrapping_add(lines.tai_offset as u64),
            _ => return None,
        })
    }
}

/// Resolution of the coarse clocks in nanoseconds; `vdso.c` has the same.
pub const COARSE: u64 = 4_000_000;

/// Resolution of a clock in nanoseconds; `None` as for [`Clock::now`].
pub fn resolution(clock: libc::clockid_t) -> Option<u64> {
    match clock {
        libc::CLOCK_REALTIME
        | libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_BOOTTIME
        | libc::CLOCK_REALTIME_ALARM
        | libc::CLOCK_BOOTTIME_ALARM
        | libc::CLOCK_TAI => Some(1),
        libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE => Some(COARSE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose clock runs at `rate` (units of 2^-32 ns a tick), and a guest's line.
    struct Simulation {
        rate: Rate,
        line: (u64, u64, u64),
        noise: u64,
    }

    impl Simulation {
        fn new(told: u64) -> Self {
            let first = Sample { tsc: 1 << 40, time: 5_000_000_000 };
            let rate = Rate { multiplier: told, oldest: first, newer: first };
            Self { rate, line: (first.tsc, first.time, told), noise: 1 }
        }

        fn guest(&self, tsc: u64) -> u64 {
            self.line.1 + scale(tsc - self.line.0, self.line.2)
        }

        /// An update with what the host's clock shows; answers how far the guest's was behind.
        fn update(&mut self, tsc: u64, host: u64) -> i64 {
            self.noise = self.noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let now = Sample { tsc, time: host + (self.noise >> 33) % 200 };
            self.rate.measure(now);
            let error = now.time.wrapping_sub(self.guest(tsc)) as i64;
            let (multiplier, step) = self.rate.steer(error, scale(tsc - self.line.0, self.line.2));
            self.line = (tsc + 100, self.guest(tsc + 100) + step, multiplier);
            error
        }
    }

    #[test]
    fn the_line_meets_the_clock_whatever_rate_was_told() {
        let real = (1u64 << 32) / 3;
        for told in [real, real + real / 2000, real - real / 2000, real + real / 100] {
            for interval in [250_000_000u64, 30_000_000, 3_000_000_000] {
                let mut simulation = Simulation::new(told);
                let mut last = 0;
                let mut error = 0;
                for step in 1..200 {
                    let ticks = step * interval * 3;
                    let (tsc, host) = ((1 << 40) + ticks, 5_000_000_000 + scale(ticks, real));
                    assert!(simulation.guest(tsc) >= last, "{told} {interval} {step}");
                    error = simulation.update(tsc, host);
                    last = simulation.guest(tsc + 100);
                }
                assert!(error.abs() < 1000, "{told} {interval}: {error}");
            }
        }
    }

    #[test]
    fn a_line_ahead_slows_down_and_one_far_behind_is_set_forward() {
        let simulation = Simulation::new(1 << 31);
        assert_eq!(simulation.rate.steer(0, 0), (1 << 31, 0));
        assert_eq!(simulation.rate.steer(STEP, 0), (1 << 31, STEP as u64));
        assert_eq!(simulation.rate.steer(i64::MIN, 0), (1 << 30, 0));
        let (slower, step) = simulation.rate.steer(-1000, 0);
        assert!(slower < 1 << 31 && slower > (1 << 31) - 10_000 && step == 0);
    }

    #[test]
    fn an_offset_changes_only_when_the_clock_was_set() {
        let mut offset = 500;
        keep_offset(&mut offset, (480, 520));
        keep_offset(&mut offset, (600, 700));
        assert_eq!(offset, 500);
        keep_offset(&mut offset, (1_000_000_000, 1_000_000_100));
        assert_eq!(offset, 1_000_000_050);
        keep_offset(&mut offset, (-100, 0));
        assert_eq!(offset, -50);
    }
}
