//! A guest thread, as others see it.

use super::lock;
use super::process::Process;
use crate::futex::Parker;
use crate::mm::Gate;
use crate::signal::altstack::AltStack;
use crate::signal::pending::PendingSignals;
use crate::signal::set::SignalSet;
use crate::wire::control::ToDeputy;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A thread's signal state.
#[derive(Debug, Clone, Default)]
pub struct ThreadSignals {
    /// Blocked.
    pub mask: SignalSet,
    /// The mask to go back to when the call that has replaced it is over (`sigsuspend`, `ppoll`).
    pub saved_mask: Option<SignalSet>,
    /// What `sigtimedwait` waits for; those are looked at though they are blocked.
    pub awaited: SignalSet,
    /// For this thread alone.
    pub pending: PendingSignals,
    /// `sigaltstack`
    pub altstack: AltStack,
}

/// A guest thread.
pub struct Thread {
    tid: AtomicI32,
    /// The process that it belongs to.
    pub process: Arc<Process>,
    /// Signals.
    pub signals: Mutex<ThreadSignals>,
    /// Where it sleeps in a local call.
    pub parker: Arc<Parker>,
    /// Where it enters the guest.
    pub gate: Gate,
    /// Something is to be looked at before it goes back to the guest.
    attention: AtomicBool,
    /// The forwarded call that is under way, by its request's number.
    call: Mutex<Option<u32>>,
    /// `CLONE_CHILD_CLEARTID`
    pub clear_tid: AtomicU64,
    /// `set_robust_list`
    pub robust_list: AtomicU64,
    /// The host thread that runs it.
    host_tid: i32,
    /// The host thread's CPU time when it began, in nanoseconds.
    cpu_before: u64,
}

impl Thread {
    /// A thread that is about to run on the host thread `host_tid`.
    pub fn new(tid: i32, process: Arc<Process>, signals: ThreadSignals, gate: Gate, host_tid: i32) -> Arc<Self> {
        Arc::new(Self {
            tid: AtomicI32::new(tid),
            process,
            signals: Mutex::new(signals),
            parker: Arc::default(),
            gate,
            attention: AtomicBool::new(false),
            call: Mutex::new(None),
            clear_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            host_tid,
            cpu_before: host_thread_time(host_tid),
        })
    }

    /// Its TID, at home and in the guest.
    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// The thread that called `exec` becomes the leader.
    pub fn become_leader(&self) {
        self.tid.store(self.process.pid, Ordering::Relaxed);
    }

    /// CPU time in nanoseconds that it has used, which the host has accounted to it.
    pub fn cpu_time(&self) -> u64 {
        host_thread_time(self.host_tid).saturating_sub(self.cpu_before)
    }

    /// Has it look for signals, or for its end: at once, wherever it is.
    pub fn notify(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.parker.interrupt();
        self.gate.interrupt();
        // A call that is begun later sees the attention.
        let call = *lock(&self.call);
        if let Some(seq) = call {
            self.process.send(&ToDeputy::Cancel { tid: self.tid(), seq });
        }
    }

    /// Takes the attention, once.
    pub fn take_attention(&self) -> bool {
        let taken = self.attention.swap(false, Ordering::SeqCst);
        if taken {
            self.parker.clear_interrupt();
        }
        taken
    }

    /// Whether something is to be looked at.
    pub fn has_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Declares that the call `seq` is about to be sent; `false` if something is to be looked at first.
    pub fn begin_call(&self, seq: u32) -> bool {
        let mut call = lock(&self.call);
        if self.has_attention() {
            return false;
        }
        *call = Some(seq);
        true
    }

    /// Declares that the call is over.
    pub fn end_call(&self) {
        *lock(&self.call) = None;
    }

    /// Whether it waits at home for a call.
    pub fn is_in_call(&self) -> bool {
        lock(&self.call).is_some()
    }
}

/// CPU time of a thread of this process in nanoseconds; 0 if it has ended.
fn host_thread_time(tid: i32) -> u64 {
    // The kernel's encoding of a thread's CPU clock.
    const PER_THREAD_SCHED: i32 = 6;
    let clock = (!tid << 3) | PER_THREAD_SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is the place that the call writes to.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return 0;
    }
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
