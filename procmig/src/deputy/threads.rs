//! The deputy's threads as cancellation sees them.
//!
//! A call is broken off by a signal to its thread. A signal that lands before the thread has entered
//! the kernel breaks nothing, so it is repeated until the call is left; and none may land in a later
//! call. For that a thread's state is one word: the control thread marks it while it sends, and the
//! serving thread does not leave a call while it is marked. A signal sent by then is taken at the
//! latest when the kernel returns from the write of the reply, which it does not break.
//!
//! A call that is cancelled before its request was read is begun all the same, and broken off if it
//! blocks: so a call that never blocks, as the read of a file, never says `EINTR`, as on Linux.

use super::connection::Connection;
use super::kernel;
use super::near::Near;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Breaks off calls. The C library keeps it for thread cancellation, which nothing here uses, and
/// guests cannot be sent it from outside for the same reason.
pub(super) const CANCEL_SIGNAL: i32 = 32;

const RUNNING: u64 = 1;
const MARKED: u64 = 2;

/// A cancellation is kept for a request that is at most so many requests away.
const AHEAD: i32 = 64;

/// One thread that serves a call connection.
#[derive(Debug)]
pub(super) struct Thread {
    /// Its kernel ID.
    pub tid: i32,
    /// Where it runs.
    pub near: Near,
    /// `seq << 2` of the last request, with `RUNNING` while it is a call that is under way, and with
    /// `MARKED` too while it is sent a signal.
    state: AtomicU64,
    /// What it serves.
    served: Mutex<Served>,
}

/// What a thread serves, and is to serve after it: the process may have gone on to further nodes before the thread
/// has come to look.
#[derive(Debug)]
struct Served {
    /// What it serves now.
    current: RawFd,
    /// Whether that goes to another host.
    is_remote: bool,
    next: VecDeque<NewConnection>,
}

/// What a thread is to serve when its process has migrated.
#[derive(Debug)]
pub(super) struct NewConnection {
    /// To the new node.
    pub connection: Connection,
    /// The last request on the old one.
    pub seq: u32,
    /// The old node has not read the reply to it.
    pub awaits: bool,
}

/// All of them.
pub(super) static THREADS: Mutex<Vec<Arc<Thread>>> = Mutex::new(Vec::new());

/// Locks a mutex; that a thread panicked with it does not matter here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Thread {
    /// Registers the calling thread.
    pub(super) fn register(connection: &Connection) -> Arc<Self> {
        let current = connection.as_raw_fd();
        let served = Served { current, is_remote: !connection.is_local(), next: VecDeque::new() };
        let (near, state, served) = (Near::default(), AtomicU64::new(0), Mutex::new(served));
        let thread = Arc::new(Self { tid: kernel::gettid(), near, state, served });
        lock(&THREADS).push(thread.clone());
        thread
    }

    /// From the control thread: has the thread serve another connection. What it has not read of the old one it
    /// still reads; what it writes to it is for nobody.
    pub(super) fn reconnect(&self, new: NewConnection) {
        // The node that had it come near does not say any more that it may go.
        self.near.part(self.tid);
        let served = &mut *lock(&self.served);
        if served.next.is_empty() {
            // Over a network a request may be on its way, and would be refused if both directions were shut.
            let how = if served.is_remote { libc::SHUT_RD } else { libc::SHUT_RDWR };
            // SAFETY: no pointers. The number is the thread's until it has taken the new one, which it does with the
            // lock held.
            unsafe { libc::shutdown(served.current, how) };
        }
        // A thread that is long in one call would hold them all. What no request was sent on is not needed.
        if served.next.back().is_some_and(|last| last.seq == new.seq) {
            served.next.pop_back();
        }
        served.next.push_back(new);
    }

    /// Takes the connection to serve from now on, in place of `old`, if there is another.
    pub(super) fn take_new_connection(&self, old: &mut Connection) -> Option<(u32, bool)> {
        let served = &mut *lock(&self.served);
        let NewConnection { connection: new, seq, awaits } = served.next.pop_front()?;
        (served.current, served.is_remote) = (new.as_raw_fd(), !new.is_local());
        *old = new;
        if !served.next.is_empty() {
            let how = if served.is_remote { libc::SHUT_RD } else { libc::SHUT_RDWR };
            // SAFETY: no pointers; the number is the new connection's.
            unsafe { libc::shutdown(served.current, how) };
        }
        Some((seq, awaits))
    }

    /// Whether there is a connection to go over to.
    pub(super) fn is_awaited(&self) -> bool {
        !lock(&self.served).next.is_empty()
    }

    /// Whether requests behind the one with this number, or the rest of one that has `begun` to come, are still on
    /// their way over a network.
    pub(super) fn is_behind(&self, last: u32, begun: bool) -> bool {
        let served = lock(&self.served);
        served.is_remote && served.next.front().is_some_and(|next| begun || next.seq != last)
    }

    /// Whether a request with this number was made after the process had left the node from which it comes: by threads
    /// that end there.
    pub(super) fn is_too_late(&self, seq: u32) -> bool {
        lock(&self.served).next.front().is_some_and(|next| seq.wrapping_sub(next.seq) as i32 > 0)
    }

    /// From the control thread, when the node that the process has left is long gone: nothing comes of it any more.
    pub(super) fn cut_old(&self) {
        let served = lock(&self.served);
        if !served.next.is_empty() {
            // SAFETY: no pointers; the number is the thread's as long as the lock is held.
            unsafe { libc::shutdown(served.current, libc::SHUT_RDWR) };
        }
    }

    /// Forgets a thread.
    pub(super) fn unregister(&self) {
        lock(&THREADS).retain(|thread| thread.tid != self.tid);
    }

    /// Request `seq` is none that can be broken off.
    pub(super) fn pass(&self, seq: u32) {
        self.state.store(u64::from(seq) << 2, SeqCst);
    }

    /// Enters call `seq`.
    pub(super) fn enter(&self, seq: u32) {
        self.state.store(u64::from(seq) << 2 | RUNNING, SeqCst);
    }

    /// Leaves call `seq`.
    pub(super) fn leave(&self, seq: u32) {
        let over = u64::from(seq) << 2;
        while self.state.compare_exchange(over | RUNNING, over, SeqCst, SeqCst).is_err() {
            std::hint::spin_loop();
            std::thread::yield_now();
        }
    }

    /// From the control thread: signals the thread if it is in call `seq`. Whether that is to be
    /// repeated: the call is under way or still to come.
    pub(super) fn poke(&self, seq: u32) -> bool {
        let running = u64::from(seq) << 2 | RUNNING;
        match self.state.compare_exchange(running, running | MARKED, SeqCst, SeqCst) {
            Ok(_) => {
                kernel::signal_thread(self.tid, CANCEL_SIGNAL);
                self.state.store(running, SeqCst);
                true
            }
            Err(state) => {
                let to_come = seq.wrapping_sub((state >> 2) as u32) as i32;
                (1..=AHEAD).contains(&to_come)
            }
        }
    }
}
