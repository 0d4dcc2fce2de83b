//! Signals that wait for delivery, of one thread or of the whole process.

use super::set::{FIRST_REALTIME, MAX_SIGNAL, SignalSet};
use crate::wire::control::SigInfo;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What became of a signal that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It waits.
    New,
    /// It already waits, and a standard signal waits only once.
    Merged,
}

/// Signals that wait, in the order in which they will be delivered: standard signals once each,
/// real-time signals as often as they were sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSignals {
    set: SignalSet,
    queue: VecDeque<SigInfo>,
}

impl PendingSignals {
    /// Nothing waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The signals that wait.
    pub fn set(&self) -> SignalSet {
        self.set
    }

    /// Number of entries, real-time signals counted each time.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Adds a signal; `limit` is the soft `RLIMIT_SIGPENDING`.
    ///
    /// # Errors
    /// `EINVAL` if its number is no signal's. `EAGAIN` if a real-time signal does not fit: `limit`
    /// or more wait. Standard signals always fit.
    pub fn push(&mut self, info: SigInfo, limit: usize) -> Result<Queued, Errno> {
        let signal = info.signal();
        if !(1..=MAX_SIGNAL).contains(&signal) {
            return Err(Errno::EINVAL);
        }
        if signal < FIRST_REALTIME {
            if self.set.contains(signal) {
                return Ok(Queued::Merged);
            }
        } else if self.queue.len() >= limit {
            return Err(Errno::EAGAIN);
        }
        self.set.insert(signal);
        self.queue.push_back(info);
        Ok(Queued::New)
    }

    /// The signal that [`take`](Self::take) would take.
    pub fn next(&self, blocked: SignalSet) -> Option<i32> {
        (self.set & !blocked).next()
    }

    /// Takes the next signal that is not in `blocked`: faults first, then the lowest number, and of
    /// one number the oldest.
    pub fn take(&mut self, blocked: SignalSet) -> Option<SigInfo> {
        let signal = self.next(blocked)?;
        let at = self.queue.iter().position(|info| info.signal() == signal)?;
        let info = self.queue.remove(at)?;
        if signal < FIRST_REALTIME || !self.queue.iter().any(|info| info.signal() == signal) {
            self.set.remove(signal);
        }
        Some(info)
    }

    /// Forgets every signal in `signals`: those that were set to be ignored, or stops when `SIGCONT`
    /// comes and the other way round.
    pub fn discard(&mut self, signals: SignalSet) {
        if (self.set & signals).is_empty() {
            return;
        }
        self.set = self.set & !signals;
        self.queue.retain(|info| !signals.contains(info.signal()));
    }
}

/// Takes the next signal of a thread: its own (a fault is always its own) before the process's.
pub fn take_next(thread: &mut PendingSignals, process: &mut PendingSignals, blocked: SignalSet) -> Option<SigInfo> {
    thread.take(blocked).or_else(|| process.take(blocked))
}

#[cfg(test)]
mod tests {
    use super::super::info;
    use super::*;

    #[test]
    fn standard_signals_merge_and_real_time_signals_queue_in_order() {
        let mut pending = PendingSignals::new();
        assert_eq!(pending.push(info::kill(10, 1, 0), 0), Ok(Queued::New));
        assert_eq!(pending.push(info::kill(10, 2, 0), 0), Ok(Queued::Merged));
        for value in 0..3 {
            assert_eq!(pending.push(info::queue(40, 1, 0, value), 4), Ok(Queued::New));
        }
        assert_eq!(pending.push(info::queue(40, 1, 0, 3), 4), Err(Errno::EAGAIN));
        assert_eq!(pending.push(info::kill(35, 1, 0), 5), Ok(Queued::New));
        assert_eq!(pending.take(SignalSet::of(&[35])), Some(info::kill(10, 1, 0)));
        assert_eq!(pending.take(SignalSet::of(&[35])), Some(info::queue(40, 1, 0, 0)));
        assert_eq!(pending.take(SignalSet::EMPTY), Some(info::kill(35, 1, 0)));
        assert_eq!(pending.take(SignalSet::EMPTY), Some(info::queue(40, 1, 0, 1)));
        assert!(pending.set().contains(40));
        assert_eq!(pending.take(SignalSet::EMPTY), Some(info::queue(40, 1, 0, 2)));
        assert!(pending.is_empty());
        assert_eq!(pending.take(SignalSet::EMPTY), None);
    }

    #[test]
    fn a_discarded_signal_is_forgotten() {
        let mut pending = PendingSignals::new();
        for signal in [libc::SIGTSTP, libc::SIGTERM, 40, 40] {
            pending.push(info::kill(signal, 1, 0), 10).unwrap();
        }
        pending.discard(SignalSet::STOPPING | SignalSet::of(&[40]));
        assert_eq!(pending.set(), SignalSet::of(&[libc::SIGTERM]));
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn a_signal_of_no_number_is_refused() {
        let mut pending = PendingSignals::new();
        assert_eq!(pending.push(info::kill(0, 1, 0), 10), Err(Errno::EINVAL));
        assert_eq!(pending.push(info::kill(65, 1, 0), 10), Err(Errno::EINVAL));
    }

    #[test]
    fn what_waits_survives_serialization() {
        let mut pending = PendingSignals::new();
        pending.push(info::queue(40, 1, 0, 9), 10).unwrap();
        let bytes = postcard::to_stdvec(&pending).unwrap();
        assert_eq!(postcard::from_bytes::<PendingSignals>(&bytes).unwrap(), pending);
    }
}
