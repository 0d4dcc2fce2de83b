//! Futexes: threads that wait until another says that a word of memory has changed.
//!
//! A waiter is in one queue at most, and only who holds the lock of that queue's bucket takes it
//! out. Who takes it out decides its fate: a waker (it was woken) or the waiter itself (it gave up:
//! deadline, signal, migration). So a wake is neither lost nor spent on a waiter that gave up.

use nix::errno::Errno;
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use vmm::addr::{Frame, GuestVirtAddr};

/// A bitset that matches every waiter (`FUTEX_BITSET_MATCH_ANY`).
pub const MATCH_ANY: u32 = !0;
/// Number of buckets; more threads than this share some.
const BUCKETS: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks protect is whole between two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which word threads wait on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A word of one address space (`FUTEX_PRIVATE_FLAG`, or in private memory).
    Private {
        /// The address space's number.
        space: u64,
        /// The word's address.
        address: GuestVirtAddr,
    },
    /// A word of memory that processes share.
    Shared {
        /// The frame that holds it.
        frame: Frame,
        /// The word's offset in the frame.
        offset: u32,
    },
}

/// Where one thread sleeps, whatever it waits for; others end the sleep.
#[derive(Debug, Default)]
pub struct Parker {
    interrupted: Mutex<bool>,
    changed: Condvar,
}

/// Why a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parked {
    /// What was waited for is there.
    Ready,
    /// The deadline passed.
    TimedOut,
    /// [`Parker::interrupt`] was called.
    Interrupted,
}

impl Parker {
    /// Nobody sleeps and nobody interrupted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the thread's sleep, or the next one if it does not sleep, until
    /// [`clear_interrupt`](Self::clear_interrupt).
    pub fn interrupt(&self) {
        *lock(&self.interrupted) = true;
        self.changed.notify_all();
    }

    /// Forgets interruptions; answers whether there was one. Whoever calls it must look for what it
    /// was interrupted for (signals, a freeze) afterwards.
    pub fn clear_interrupt(&self) -> bool {
        std::mem::take(&mut *lock(&self.interrupted))
    }

    /// Has the thread look again whether what it waits for is there.
    pub fn notify(&self) {
        // Taken so that a thread between its look and its sleep is not missed.
        drop(lock(&self.interrupted));
        self.changed.notify_all();
    }

    /// Sleeps until `ready`, the deadline or an interruption; of several the first named. `ready` is
    /// asked after each [`notify`](Self::notify) and must not call this parker.
    pub fn park(&self, deadline: Option<Instant>, ready: impl Fn() -> bool) -> Parked {
        let mut interrupted = lock(&self.interrupted);
        loop {
            if ready() {
                return Parked::Ready;
            }
            if *interrupted {
                return Parked::Interrupted;
            }
            interrupted = match deadline {
                None => self.changed.wait(interrupted).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Parked::TimedOut;
                    }
                    self.changed.wait_timeout(interrupted, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// A thread's wait on one word.
#[derive(Debug)]
pub struct Waiter {
    parker: Arc<Parker>,
    bitset: u32,
    /// Where it is queued; changes by requeueing, under the locks of both buckets.
    key: Mutex<Key>,
    /// Set once, under the bucket's lock, by the waker that took it out of the queue.
    woken: AtomicBool,
}

impl Waiter {
    /// Whether a wake was spent on it.
    pub fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    /// Sleeps until it is woken, the deadline passes or the thread's parker is interrupted. Unless
    /// [`Parked::Ready`] comes back, [`FutexTable::cancel`] must follow, and it has the last word.
    pub fn park(&self, deadline: Option<Instant>) -> Parked {
        self.parker.park(deadline, || self.is_woken())
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// By a wake: the call returns 0.
    Woken,
    /// By its deadline: `ETIMEDOUT`.
    TimedOut,
    /// By [`Parker::interrupt`]: `EINTR`, or it is restarted.
    Interrupted,
}

/// What a requeue did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requeued {
    /// Waiters woken.
    pub woken: usize,
    /// Waiters that wait on the other word now.
    pub moved: usize,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    waiter: Arc<Waiter>,
}

/// Oldest first.
type Bucket = VecDeque<Entry>;

/// All waits of a node.
#[derive(Debug)]
pub struct FutexTable {
    buckets: Box<[Mutex<Bucket>]>,
    hasher: RandomState,
}

impl Default for FutexTable {
    fn default() -> Self {
        Self::new()
    }
}

impl FutexTable {
    /// Nobody waits.
    pub fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    fn index(&self, key: &Key) -> usize {
        self.hasher.hash_one(key) as usize % self.buckets.len()
    }

    fn bucket(&self, key: &Key) -> MutexGuard<'_, Bucket> {
        lock(&self.buckets[self.index(key)])
    }

    /// Locks the buckets of two keys, always in the same order; one guard if it is the same bucket.
    fn two(&self, first: &Key, second: &Key) -> (MutexGuard<'_, Bucket>, Option<MutexGuard<'_, Bucket>>) {
        let (a, b) = (self.index(first), self.index(second));
        if a == b {
            return (lock(&self.buckets[a]), None);
        }
        let low = lock(&self.buckets[a.min(b)]);
        let high = lock(&self.buckets[a.max(b)]);
        if a < b { (low, Some(high)) } else { (high, Some(low)) }
    }

    /// Queues the thread of `parker` on `key` if `unchanged` says that the word still has the value
    /// that the thread saw. It is asked under the lock that every wake takes, so it must not call
    /// this table, and should read memory that is there already.
    ///
    /// # Errors
    /// `EINVAL` for an empty bitset, `EAGAIN` if the word has changed, or what `unchanged` says.
    pub fn enqueue(
        &self,
        key: Key,
        bitset: u32,
        parker: &Arc<Parker>,
        unchanged: impl FnOnce() -> Result<bool, Errno>,
    ) -> Result<Arc<Waiter>, Errno> {
        if bitset == 0 {
            return Err(Errno::EINVAL);
        }
        let waiter = Arc::new(Waiter {
            parker: Arc::clone(parker),
            bitset,
            key: Mutex::new(key),
            woken: AtomicBool::new(false),
        });
        let mut bucket = self.bucket(&key);
        if !unchanged()? {
            return Err(Errno::EAGAIN);
        }
        bucket.push_back(Entry { key, waiter: Arc::clone(&waiter) });
        Ok(waiter)
    }

    /// Ends a wait that was not woken. Answers whether it *was* woken: then the wait succeeded,
    /// whatever made the thread give up.
    pub fn cancel(&self, waiter: &Arc<Waiter>) -> bool {
        loop {
            let key = *lock(&waiter.key);
            let mut bucket = self.bucket(&key);
            if waiter.is_woken() {
                return true;
            }
            if *lock(&waiter.key) != key {
                // Requeued in between.
                continue;
            }
            bucket.retain(|entry| !Arc::ptr_eq(&entry.waiter, waiter));
            return false;
        }
    }

    /// Waits on `key`: [`enqueue`](Self::enqueue), [`Waiter::park`], [`cancel`](Self::cancel).
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue).
    pub fn wait(
        &self,
        key: Key,
        bitset: u32,
        parker: &Arc<Parker>,
        deadline: Option<Instant>,
        unchanged: impl FnOnce() -> Result<bool, Errno>,
    ) -> Result<Waited, Errno> {
        let waiter = self.enqueue(key, bitset, parker, unchanged)?;
        Ok(match waiter.park(deadline) {
            Parked::Ready => Waited::Woken,
            _ if self.cancel(&waiter) => Waited::Woken,
            Parked::TimedOut => Waited::TimedOut,
            Parked::Interrupted => Waited::Interrupted,
        })
    }

    /// Takes up to `count` waiters of `key` that share a bit with `bitset` out of the bucket, oldest first.
    fn take(bucket: &mut Bucket, key: &Key, count: usize, bitset: u32, woken: &mut Vec<Arc<Waiter>>) {
        let mut left = count;
        bucket.retain(|entry| {
            if left == 0 || entry.key != *key || entry.waiter.bitset & bitset == 0 {
                return true;
            }
            left -= 1;
            entry.waiter.woken.store(true, Ordering::Release);
            woken.push(Arc::clone(&entry.waiter));
            false
        });
    }

    fn unpark(woken: &[Arc<Waiter>]) {
        for waiter in woken {
            waiter.parker.notify();
        }
    }

    /// Wakes up to `count` waiters of `key` that share a bit with `bitset`, oldest first; answers how many.
    pub fn wake(&self, key: &Key, count: usize, bitset: u32) -> usize {
        let mut woken = Vec::new();
        Self::take(&mut self.bucket(key), key, count, bitset, &mut woken);
        Self::unpark(&woken);
        woken.len()
    }

    /// Wakes up to `wake` waiters of `from` and has up to `requeue` others wait on `to`, if
    /// `unchanged` (asked as in [`enqueue`](Self::enqueue)) says so.
    ///
    /// # Errors
    /// `EAGAIN` if the word has changed, or what `unchanged` says.
    pub fn requeue(
        &self,
        from: &Key,
        to: &Key,
        wake: usize,
        requeue: usize,
        unchanged: impl FnOnce() -> Result<bool, Errno>,
    ) -> Result<Requeued, Errno> {
        let mut woken = Vec::new();
        let mut moved = Vec::new();
        let count;
        {
            let (mut source, mut target) = self.two(from, to);
            if !unchanged()? {
                return Err(Errno::EAGAIN);
            }
            Self::take(&mut source, from, wake, MATCH_ANY, &mut woken);
            if from == to {
                let rest = source.iter().filter(|entry| entry.key == *from).count();
                drop((source, target));
                Self::unpark(&woken);
                return Ok(Requeued { woken: woken.len(), moved: rest.min(requeue) });
            }
            source.retain(|entry| {
                if moved.len() == requeue || entry.key != *from {
                    return true;
                }
                moved.push(Entry { key: *to, waiter: Arc::clone(&entry.waiter) });
                false
            });
            for entry in &moved {
                *lock(&entry.waiter.key) = *to;
            }
            count = moved.len();
            match &mut target {
                Some(target) => target.extend(moved),
                None => source.extend(moved),
            }
        }
        Self::unpark(&woken);
        Ok(Requeued { woken: woken.len(), moved: count })
    }

    /// `FUTEX_WAKE_OP`: `change` changes the word of `second` in one step and answers whether its
    /// old value passes the comparison. Then wakes up to `count` waiters of `first`, and of `second`
    /// up to `second_count` if it passed; answers how many in all.
    ///
    /// # Errors
    /// What `change` says; nobody is woken then.
    pub fn wake_op(
        &self,
        first: &Key,
        second: &Key,
        count: usize,
        second_count: usize,
        change: impl FnOnce() -> Result<bool, Errno>,
    ) -> Result<usize, Errno> {
        let mut woken = Vec::new();
        {
            let (mut bucket, mut other) = self.two(first, second);
            let passed = change()?;
            Self::take(&mut bucket, first, count, MATCH_ANY, &mut woken);
            if passed {
                let bucket = other.as_mut().unwrap_or(&mut bucket);
                Self::take(bucket, second, second_count, MATCH_ANY, &mut woken);
            }
        }
        Self::unpark(&woken);
        Ok(woken.len())
    }

    /// Number of waiters on `key`.
    pub fn waiters(&self, key: &Key) -> usize {
        self.bucket(key).iter().filter(|entry| entry.key == *key).count()
    }
}

/// The operation that `FUTEX_WAKE_OP` encodes in its last argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeOp {
    operation: u32,
    operand: u32,
    comparison: u32,
    against: i32,
}

impl WakeOp {
    /// Decodes it.
    ///
    /// # Errors
    /// `ENOSYS` for an unknown operation or comparison, as Linux answers.
    pub fn decode(encoded: u32) -> Result<Self, Errno> {
        let signed12 = |value: u32| ((value << 20) as i32) >> 20;
        let mut operand = signed12(encoded >> 12) as u32;
        if encoded & (8 << 28) != 0 {
            // Linux warns of shifts out of range and takes them modulo 32.
            operand = 1 << (operand & 31);
        }
        let op =
            Self { operation: encoded >> 28 & 7, operand, comparison: encoded >> 24 & 15, against: signed12(encoded) };
        if op.operation > 4 || op.comparison > 5 { Err(Errno::ENOSYS) } else { Ok(op) }
    }

    /// What the word becomes.
    pub fn apply(&self, old: u32) -> u32 {
        match self.operation {
            0 => self.operand,
            1 => old.wrapping_add(self.operand),
            2 => old | self.operand,
            3 => old & !self.operand,
            _ => old ^ self.operand,
        }
    }

    /// Whether the second word's waiters are woken.
    pub fn passes(&self, old: u32) -> bool {
        let old = old as i32;
        match self.comparison {
            0 => old == self.against,
            1 => old != self.against,
            2 => old < self.against,
            3 => old <= self.against,
            4 => old > self.against,
            _ => old >= self.against,
        }
    }
}

#[cfg(test)]
mod tests;
