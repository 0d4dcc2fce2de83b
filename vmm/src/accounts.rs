//! How many frames may be taken by whom, where that is limited.

use crate::addr::Frame;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most accounts at a time.
const MOST: usize = 4096;

/// Whose a frame is; the default is nobody's, and has no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account(u16);

impl Account {
    /// Whether it is one at all.
    pub fn is_limited(self) -> bool {
        self.0 != 0
    }
}

#[derive(Debug, Default)]
struct Entry {
    used: AtomicU32,
    /// 0 while the account is closed.
    limit: AtomicU32,
}

/// All accounts, and the owner of each frame.
#[derive(Debug)]
pub(crate) struct Accounts {
    owners: Vec<AtomicU16>,
    entries: Vec<Entry>,
    opening: Mutex<()>,
}

impl Accounts {
    /// No account, and `frames` frames that are nobody's.
    pub(crate) fn new(frames: usize) -> Self {
        // The allocator hands out zeroed memory as the system gives it, untouched.
        let mut zeros = std::mem::ManuallyDrop::new(vec![0u16; frames]);
        // SAFETY: `AtomicU16` has the size, alignment and bit validity of `u16`, so that the parts are
        // those of a vector of either; the old one is not dropped.
        let owners = unsafe { Vec::from_raw_parts(zeros.as_mut_ptr().cast(), zeros.len(), zeros.capacity()) };
        let entries = std::iter::repeat_with(Entry::default).take(MOST).collect();
        Self { owners, entries, opening: Mutex::new(()) }
    }

    /// Opens an account; `None` if there are too many.
    pub(crate) fn open(&self, limit: u32) -> Option<Account> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        // One that still owns frames is not given to others.
        let is_free =
            |entry: &Entry| entry.limit.load(Ordering::Acquire) == 0 && entry.used.load(Ordering::Acquire) == 0;
        let index = (1..MOST).find(|&index| is_free(&self.entries[index]))?;
        self.entries[index].limit.store(limit.max(1), Ordering::Release);
        Some(Account(index as u16))
    }

    /// Closes an account; frames that it still owns are counted until they are free.
    pub(crate) fn close(&self, account: Account) {
        if account.is_limited() {
            self.entry(account).limit.store(0, Ordering::Release);
        }
    }

    fn entry(&self, account: Account) -> &Entry {
        &self.entries[usize::from(account.0)]
    }

    /// Frames used and the limit.
    pub(crate) fn state(&self, account: Account) -> (u32, u32) {
        if !account.is_limited() {
            return (0, u32::MAX);
        }
        let entry = self.entry(account);
        (entry.used.load(Ordering::Relaxed), entry.limit.load(Ordering::Relaxed))
    }

    /// Counts frames that are about to be taken; `false` if they are more than the limit leaves, unless
    /// that is to be passed.
    pub(crate) fn charge(&self, account: Account, frames: u32, beyond: bool) -> bool {
        if !account.is_limited() {
            return true;
        }
        let entry = self.entry(account);
        let limit = if beyond { u32::MAX } else { entry.limit.load(Ordering::Relaxed) };
        let charge = |used: u32| used.checked_add(frames).filter(|&used| used <= limit);
        entry.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge).is_ok()
    }

    /// Takes a charge back: the frames could not be had.
    pub(crate) fn refund(&self, account: Account, frames: u32) {
        if account.is_limited() {
            self.entry(account).used.fetch_sub(frames, Ordering::Release);
        }
    }

    /// Notes whose a frame is that was charged.
    pub(crate) fn own(&self, account: Account, frame: Frame) {
        if account.is_limited() {
            self.owners[frame.0 as usize].store(account.0, Ordering::Relaxed);
        }
    }

    /// Nobody uses a frame any more.
    pub(crate) fn disown(&self, frame: Frame) {
        let owner = &self.owners[frame.0 as usize];
        if owner.load(Ordering::Relaxed) != 0 {
            self.refund(Account(owner.swap(0, Ordering::Relaxed)), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_until_frames_are_free_again() {
        let accounts = Accounts::new(16);
        let account = accounts.open(3).unwrap();
        assert!(accounts.charge(account, 2, false));
        accounts.own(account, Frame(5));
        accounts.own(account, Frame(6));
        assert!(!accounts.charge(account, 2, false));
        assert!(accounts.charge(account, 2, true), "what must be may pass the limit");
        accounts.refund(account, 2);
        assert_eq!(accounts.state(account), (2, 3));
        accounts.disown(Frame(5));
        accounts.disown(Frame(5));
        assert_eq!(accounts.state(account), (1, 3));
        assert!(accounts.charge(Account::default(), u32::MAX, false), "nobody has no limit");
    }

    #[test]
    fn a_closed_account_is_opened_again_when_it_owns_nothing() {
        let accounts = Accounts::new(16);
        let first = accounts.open(1).unwrap();
        assert!(accounts.charge(first, 1, false));
        accounts.own(first, Frame(1));
        accounts.close(first);
        let second = accounts.open(1).unwrap();
        assert_ne!(first, second);
        accounts.disown(Frame(1));
        assert_eq!(accounts.open(1), Some(first));
        assert!((0..MOST).any(|_| accounts.open(1).is_none()), "there are more than {MOST}");
    }
}
