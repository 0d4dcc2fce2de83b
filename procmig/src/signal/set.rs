//! Sets of signals, and what a signal does to a process that has no handler for it.

use serde::{Deserialize, Serialize};
use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// Highest signal number.
pub const MAX_SIGNAL: i32 = 64;
/// First real-time signal of the kernel; the C library keeps the first two for itself.
pub const FIRST_REALTIME: i32 = 32;

/// A set of signals: bit `n - 1` is signal `n`, as in the kernel's `sigset_t`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: Self = Self(0);
    /// Every signal.
    pub const ALL: Self = Self(!0);
    /// Those that cannot be blocked, caught or ignored.
    pub const UNBLOCKABLE: Self = Self::of(&[libc::SIGKILL, libc::SIGSTOP]);
    /// Those that an instruction causes; they are delivered before others.
    pub const SYNCHRONOUS: Self =
        Self::of(&[libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE, libc::SIGSYS]);
    /// Those that stop a process by default.
    pub const STOPPING: Self = Self::of(&[libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]);

    /// The set of these signals; numbers that are none are left out.
    pub const fn of(signals: &[i32]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < signals.len() {
            bits |= Self::bit(signals[index]);
            index += 1;
        }
        Self(bits)
    }

    const fn bit(signal: i32) -> u64 {
        if signal >= 1 && signal <= MAX_SIGNAL { 1 << (signal - 1) } else { 0 }
    }

    /// Whether `signal` is in it.
    pub const fn contains(self, signal: i32) -> bool {
        self.0 & Self::bit(signal) != 0
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds `signal`.
    pub const fn insert(&mut self, signal: i32) {
        self.0 |= Self::bit(signal);
    }

    /// Takes `signal` out.
    pub const fn remove(&mut self, signal: i32) {
        self.0 &= !Self::bit(signal);
    }

    /// As a mask that a thread may have: without [`UNBLOCKABLE`](Self::UNBLOCKABLE).
    pub const fn blockable(self) -> Self {
        Self(self.0 & !Self::UNBLOCKABLE.0)
    }

    /// The mask while a handler of `signal` runs, for a thread with this mask: with `sa_mask`, and
    /// with the signal itself unless `sa_flags` has `SA_NODEFER`.
    pub const fn in_handler(self, signal: i32, sa_mask: Self, sa_flags: u64) -> Self {
        let own = if sa_flags & libc::SA_NODEFER as u64 == 0 { Self::bit(signal) } else { 0 };
        Self(self.0 | sa_mask.0 | own).blockable()
    }

    /// The signal to deliver next: the lowest of the synchronous ones, else the lowest.
    pub const fn next(self) -> Option<i32> {
        let first = self.0 & Self::SYNCHRONOUS.0;
        let bits = if first != 0 { first } else { self.0 };
        if bits == 0 { None } else { Some(bits.trailing_zeros() as i32 + 1) }
    }

    /// Its signals, lowest first.
    pub fn iter(self) -> impl Iterator<Item = i32> {
        (1..=MAX_SIGNAL).filter(move |&signal| self.contains(signal))
    }
}

impl BitOr for SignalSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for SignalSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for SignalSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for SignalSet {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a signal does to a process without a handler for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// The process ends.
    Terminate,
    /// The process ends and says that it dumped core, where limits allow it.
    Core,
    /// Nothing.
    Ignore,
    /// Every thread stops.
    Stop,
    /// A stopped process goes on (which it does whatever its handler is).
    Continue,
}

/// What `signal` does by default.
pub const fn default_action(signal: i32) -> DefaultAction {
    match signal {
        libc::SIGCONT => DefaultAction::Continue,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => DefaultAction::Stop,
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH => DefaultAction::Ignore,
        libc::SIGQUIT
        | libc::SIGILL
        | libc::SIGTRAP
        | libc::SIGABRT
        | libc::SIGBUS
        | libc::SIGFPE
        | libc::SIGSEGV
        | libc::SIGXCPU
        | libc::SIGXFSZ
        | libc::SIGSYS => DefaultAction::Core,
        _ => DefaultAction::Terminate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_comes_before_a_lower_signal() {
        let mut set = SignalSet::of(&[libc::SIGHUP, libc::SIGSEGV, 64]);
        assert_eq!(set.next(), Some(libc::SIGSEGV));
        set.remove(libc::SIGSEGV);
        assert_eq!(set.next(), Some(libc::SIGHUP));
        set.remove(libc::SIGHUP);
        assert_eq!(set.next(), Some(64));
        set.remove(64);
        assert_eq!(set.next(), None);
    }

    #[test]
    fn numbers_that_are_no_signals_are_in_no_set() {
        assert_eq!(SignalSet::of(&[0, -1, 65, i32::MAX, i32::MIN]), SignalSet::EMPTY);
        assert!(!SignalSet::ALL.contains(0) && !SignalSet::ALL.contains(65));
        assert!(!SignalSet::ALL.blockable().contains(libc::SIGKILL));
        assert_eq!(SignalSet::ALL.iter().count(), 64);
    }

    #[test]
    fn a_handler_is_not_interrupted_by_its_own_signal_unless_it_says_so() {
        let (mask, sa_mask) = (SignalSet::of(&[1]), SignalSet::of(&[2, libc::SIGKILL]));
        assert_eq!(mask.in_handler(3, sa_mask, 0), SignalSet::of(&[1, 2, 3]));
        assert_eq!(mask.in_handler(3, sa_mask, libc::SA_NODEFER as u64), SignalSet::of(&[1, 2]));
    }
}
