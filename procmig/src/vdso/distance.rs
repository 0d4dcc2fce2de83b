//! Clocks of another host: what it says that they show, and how far they are from this one's.

use super::clock::{host, keep_offset, middle, offset};
use serde::{Deserialize, Serialize};

/// No clock shows as many nanoseconds, or is so far from another.
const BEYOND: u64 = 1 << 62;

/// What a host's clocks show, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`
    pub monotonic: u64,
    /// `CLOCK_MONOTONIC_RAW`
    pub raw: u64,
    /// By how much `CLOCK_REALTIME` is ahead of `CLOCK_MONOTONIC`, at least and at most.
    pub realtime: (i64, i64),
    /// The same of `CLOCK_BOOTTIME`.
    pub boottime: (i64, i64),
    /// The same of `CLOCK_TAI`.
    pub tai: (i64, i64),
}

impl Clocks {
    /// Those of this host, now.
    pub fn now() -> Self {
        let [realtime, boottime, tai] = [libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI].map(offset);
        // Last: between these and the answer nothing shall lie.
        let Asked { monotonic, raw } = Asked::now();
        Self { monotonic, raw, realtime, boottime, tai }
    }

    /// Whether they can be any host's.
    fn can_be(&self) -> bool {
        let is_range =
            |&(low, high): &(i64, i64)| low <= high && low.unsigned_abs() < BEYOND && high.unsigned_abs() < BEYOND;
        [self.monotonic, self.raw].iter().all(|&time| time < BEYOND)
            && [self.realtime, self.boottime, self.tai].iter().all(is_range)
    }
}

/// What this host's clocks showed when another was asked for its own.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    monotonic: u64,
    raw: u64,
}

impl Asked {
    /// Now.
    pub fn now() -> Self {
        Self { monotonic: host(libc::CLOCK_MONOTONIC), raw: host(libc::CLOCK_MONOTONIC_RAW) }
    }
}

/// How far another host's clocks are ahead of this one's, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// `CLOCK_MONOTONIC`
    pub(super) monotonic: i64,
    /// `CLOCK_MONOTONIC_RAW`
    pub(super) raw: i64,
    /// How far its other clocks are ahead of its own `CLOCK_MONOTONIC`, as in [`Clocks`].
    pub(super) realtime: i64,
    pub(super) boottime: i64,
    pub(super) tai: i64,
}

/// The other host's clock showed `told` some time after this one's showed `asked`, and before `now`.
fn bounds(asked: u64, told: u64, now: u64) -> (i64, i64) {
    (told.wrapping_sub(now) as i64, told.wrapping_sub(asked) as i64)
}

impl Distance {
    /// By what the other host has just answered; `None` if it is nonsense. It is wrong by half of the time that the
    /// answer took, at most.
    pub fn measure(asked: &Asked, told: &Clocks) -> Option<Self> {
        let now = Asked::now();
        told.can_be().then(|| Self {
            monotonic: middle(bounds(asked.monotonic, told.monotonic, now.monotonic)),
            raw: middle(bounds(asked.raw, told.raw, now.raw)),
            realtime: middle(told.realtime),
            boottime: middle(told.boottime),
            tai: middle(told.tai),
        })
    }

    /// By how many nanoseconds its `CLOCK_MONOTONIC` is ahead.
    pub fn ahead(&self) -> i64 {
        self.monotonic
    }

    /// Takes another answer into account, if it is no nonsense: what it contradicts changes.
    pub fn correct(&mut self, asked: &Asked, told: &Clocks) {
        let now = Asked::now();
        if told.can_be() {
            keep_offset(&mut self.monotonic, bounds(asked.monotonic, told.monotonic, now.monotonic));
            keep_offset(&mut self.raw, bounds(asked.raw, told.raw, now.raw));
            keep_offset(&mut self.realtime, told.realtime);
            keep_offset(&mut self.boottime, told.boottime);
            keep_offset(&mut self.tai, told.tai);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000_000;

    /// Clocks of a host that was started a day before this one and is an hour fast.
    fn elsewhere() -> Clocks {
        let here = Clocks::now();
        let hour = DAY / 24;
        let (monotonic, raw) = (here.monotonic + DAY as u64, here.raw + 2 * DAY as u64);
        let (low, high) = here.realtime;
        Clocks { monotonic, raw, realtime: (low - DAY + hour, high - DAY + hour), ..here }
    }

    #[test]
    fn the_distance_lies_within_what_the_answer_allows() {
        let asked = Asked::now();
        let told = elsewhere();
        let distance = Distance::measure(&asked, &told).unwrap();
        let took = (host(libc::CLOCK_MONOTONIC) - asked.monotonic) as i64;
        assert!((distance.monotonic - DAY).abs() <= took && (distance.raw - 2 * DAY).abs() <= 2 * took + 10_000);
        assert_eq!(distance.realtime, middle(told.realtime));
    }

    #[test]
    fn an_answer_that_took_long_changes_nothing_and_one_that_contradicts_does() {
        let asked = Asked::now();
        let mut distance = Distance::measure(&asked, &elsewhere()).unwrap();
        let first = distance;
        let long_ago = Asked { monotonic: asked.monotonic - 1_000_000_000, raw: asked.raw - 1_000_000_000 };
        distance.correct(&long_ago, &elsewhere());
        assert_eq!((distance.monotonic, distance.raw), (first.monotonic, first.raw));
        let (asked, mut told) = (Asked::now(), elsewhere());
        told.monotonic += DAY as u64;
        told.realtime = (told.realtime.0 + DAY, told.realtime.1 + DAY);
        distance.correct(&asked, &told);
        assert!((distance.monotonic - 2 * DAY).abs() < DAY / 1000);
        assert_eq!(distance.realtime, middle(told.realtime));
    }

    #[test]
    fn nonsense_is_none() {
        let asked = Asked::now();
        let mut distance = Distance::measure(&asked, &elsewhere()).unwrap();
        let first = distance;
        for told in [
            Clocks { monotonic: u64::MAX, ..elsewhere() },
            Clocks { raw: 1 << 63, ..elsewhere() },
            Clocks { realtime: (i64::MIN, 0), ..elsewhere() },
            Clocks { boottime: (1, 0), ..elsewhere() },
            Clocks { tai: (0, i64::MAX), ..elsewhere() },
        ] {
            assert_eq!(Distance::measure(&asked, &told), None);
            distance.correct(&asked, &told);
            assert_eq!(distance, first);
        }
    }
}
