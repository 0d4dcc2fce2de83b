//! A guest thread, as others see it.

use super::affinity::CpuSet;
use super::handed::HandedFile;
use super::host_thread::HostThread;
use super::lock;
use super::process::{Cancellation, Process};
use super::tally::Tally;
use super::waiter::Waiter;
use crate::futex::Parker;
use crate::mm::Gate;
use crate::signal::altstack::AltStack;
use crate::signal::pending::PendingSignals;
use crate::signal::set::SignalSet;
use crate::wire::usage::Usage;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

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

/// On which CPUs a thread's host thread runs.
#[derive(Debug, Default)]
enum Affinity {
    /// All that the node has.
    #[default]
    Node,
    /// Its own.
    Own(Box<CpuSet>),
    /// The host thread is no longer this thread's.
    Ended,
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
    /// Where it waits for a file of home.
    pub waiter: Waiter,
    /// Where it enters the guest.
    pub gate: Gate,
    /// Something is to be looked at before it goes back to the guest.
    attention: AtomicBool,
    /// The forwarded call that is under way, by its request's number, and whether it was cancelled.
    call: Mutex<Option<(u32, bool)>>,
    /// `CLONE_CHILD_CLEARTID`
    pub clear_tid: AtomicU64,
    /// `set_robust_list`
    pub robust_list: AtomicU64,
    /// Counts of what it did.
    pub tally: Tally,
    /// The host thread that runs it.
    host: HostThread,
    /// What it has used at nodes where it was before.
    before: OnceLock<Usage>,
    affinity: Mutex<Affinity>,
    /// CPU time in nanoseconds at its last turn to be told of the process's CPU time.
    pub charged: AtomicU64,
}

impl Thread {
    /// A thread that is about to run on the host thread `host`.
    pub fn new(tid: i32, process: Arc<Process>, signals: ThreadSignals, gate: Gate, host: HostThread) -> Arc<Self> {
        Arc::new(Self {
            tid: AtomicI32::new(tid),
            process,
            signals: Mutex::new(signals),
            parker: Arc::default(),
            waiter: Waiter::default(),
            gate,
            attention: AtomicBool::new(false),
            call: Mutex::new(None),
            clear_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            tally: Tally::default(),
            host,
            before: OnceLock::new(),
            affinity: Mutex::default(),
            charged: AtomicU64::new(0),
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
        self.before().cpu_nanos.saturating_add(self.host.cpu_time())
    }

    /// Goes on from what it had used where it was before; once.
    pub fn continue_from(&self, usage: Usage) {
        // Nobody else sets it.
        let _ = self.before.set(usage);
    }

    fn before(&self) -> Usage {
        self.before.get().copied().unwrap_or_default()
    }

    /// CPU time in nanoseconds that was spent in user mode.
    pub fn user_time(&self) -> u64 {
        self.before().user_nanos().saturating_add(self.host.cpu_time().saturating_sub(self.host.system_time()))
    }

    /// What it has used; no memory, which is the process's.
    pub fn usage(&self) -> Usage {
        let cpu_nanos = self.host.cpu_time();
        let mut usage = Usage { cpu_nanos, system_nanos: self.host.system_time().min(cpu_nanos), ..self.tally.usage() };
        usage.add(&self.before());
        usage
    }

    /// Has it run on these CPUs of the host, if the host has any of them.
    pub fn set_affinity(&self, cpus: CpuSet) {
        let mut affinity = lock(&self.affinity);
        if matches!(*affinity, Affinity::Ended) {
            return;
        }
        match cpus.apply(self.host.tid()) {
            Ok(()) => *affinity = Affinity::Own(Box::new(cpus)),
            Err(errno) => tracing::debug!(tid = self.tid(), %errno, "a thread's CPUs are not this host's"),
        }
    }

    /// A new thread runs where the one runs that made it.
    pub fn inherit_affinity(&self, maker: &Self) {
        let cpus = match &*lock(&maker.affinity) {
            Affinity::Own(cpus) => **cpus,
            Affinity::Node | Affinity::Ended => return,
        };
        self.set_affinity(cpus);
    }

    /// Gives the host thread back, with the node's own CPUs.
    pub fn leave_host_thread(&self) {
        let before = std::mem::replace(&mut *lock(&self.affinity), Affinity::Ended);
        if !matches!(before, Affinity::Own(_)) {
            return;
        }
        if let Some(all) = CpuSet::of(std::process::id() as i32)
            && let Err(errno) = all.apply(self.host.tid())
        {
            tracing::debug!(%errno, "a host thread keeps a guest thread's CPUs");
        }
    }

    /// Has it look for signals, or for its end: at once, wherever it is.
    pub fn notify(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.parker.interrupt();
        self.gate.interrupt();
        self.waiter.interrupt();
        // A call that is begun later sees the attention. One word is enough: the deputy keeps to it.
        if let Some((seq, cancelled)) = &mut *lock(&self.call)
            && !std::mem::replace(cancelled, true)
        {
            self.process.cancel(Cancellation { tid: self.tid(), seq: *seq });
        }
    }

    /// Has it stand still: at once, wherever it is. A call that waits at home goes on there.
    pub fn call_to_freeze(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.parker.interrupt();
        self.gate.kick();
        self.waiter.interrupt();
    }

    /// Has itself look for signals before it goes back to the guest.
    pub fn notify_self(&self) {
        self.attention.store(true, Ordering::SeqCst);
    }

    /// The CPUs that it has chosen.
    pub fn own_affinity(&self) -> Option<Vec<u8>> {
        match &*lock(&self.affinity) {
            Affinity::Own(cpus) => Some(cpus.to_bytes()),
            Affinity::Node | Affinity::Ended => None,
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

    /// Waits until `file` may be read or written, the time is over, or something is to be looked at; `false`
    /// if that.
    ///
    /// # Errors
    /// If no descriptor is left to wait with.
    pub fn wait_for(&self, file: &HandedFile, events: i16, timeout: Option<Duration>) -> io::Result<bool> {
        self.waiter.wait(|wake| file.wait(events, wake, timeout), || self.has_attention())
    }

    /// Declares that the call `seq` is about to be sent; `false` if something is to be looked at first.
    pub fn begin_call(&self, seq: u32) -> bool {
        let mut call = lock(&self.call);
        if self.has_attention() {
            return false;
        }
        *call = Some((seq, false));
        true
    }

    /// Declares that the call `seq` is under way already; it is broken off if something is to be looked at.
    pub fn resume_call(&self, seq: u32) {
        let mut call = lock(&self.call);
        let cancelled = self.has_attention();
        if cancelled {
            self.process.cancel(Cancellation { tid: self.tid(), seq });
        }
        *call = Some((seq, cancelled));
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
