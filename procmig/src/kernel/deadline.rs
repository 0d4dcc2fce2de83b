//! When a wait is over: a moment of its home's clock, which the program can look at, and not of this host's.

use super::process::Process;
use super::timers::monotonic;
use std::time::{Duration, Instant};

/// When a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// Nanoseconds of home's monotonic clock.
    pub home: u64,
    /// When that is here, or a little before.
    pub here: Instant,
}

impl Deadline {
    /// So many nanoseconds from now; `None` if that is beyond counting.
    pub fn after(process: &Process, nanos: u64) -> Option<Self> {
        let home = now(process).checked_add(nanos)?;
        let here = Instant::now().checked_add(Duration::from_nanos(nanos))?;
        Some(Self { home, here })
    }

    /// When home's clock shows so much; `None` if that is beyond counting.
    pub fn at(process: &Process, home: u64) -> Option<Self> {
        let here = Instant::now().checked_add(Duration::from_nanos(home.saturating_sub(now(process))))?;
        Some(Self { home, here })
    }

    /// The same when the wait that was to last until then is over here: later, if home's clock does not show it yet,
    /// which may be behind what was expected of it. `None` if it does.
    pub fn again(self, process: &Process) -> Option<Self> {
        (now(process) < self.home).then(|| Self::at(process, self.home)).flatten()
    }

    /// Waits until home's clock shows it too.
    pub fn await_home(self, process: &Process) {
        /// Whose clock is as far behind was set back.
        const MOST: Duration = Duration::from_millis(20);
        if let Some(later) = self.again(process) {
            std::thread::sleep(later.here.saturating_duration_since(Instant::now()).min(MOST));
        }
    }
}

fn now(process: &Process) -> u64 {
    process.now(libc::CLOCK_MONOTONIC).unwrap_or_else(monotonic)
}
