//! A guest thread, as others see it.

use super::affinity::CpuSet;
use super::handed::HandedFile;
use super::host_thread::HostThread;
use super::process::{Cancellation, Process};
use super::tally::Tally;
use super::waiter::Waiter;
use super::{lock, near};
use crate::futex::Parker;
use crate::mm::Gate;
use crate::signal::altstack::AltStack;
use crate::signal::pending::PendingSignals;
use crate::signal::set::SignalSet;
use crate::wire::control::ToDeputy;
use crate::wire::usage::Usage;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

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
    /// It was chosen for signals of the process, and has not looked for them since. Whoever was not leaves them to
    /// others, whatever else it is woken for.
    pub chosen: bool,
    /// `sigaltstack`
    pub altstack: AltStack,
}

impl ThreadSignals {
    /// Which signals it is to take now; `shared` are those that wait for any thread.
    pub fn deliverable(&self, shared: SignalSet) -> SignalSet {
        let shared = if self.chosen { shared } else { SignalSet::EMPTY };
        (self.pending.set() | shared) & !self.mask
    }

    /// Whether it takes `signal` if it is chosen for it.
    pub fn wants(&self, signal: i32) -> bool {
        self.awaited.contains(signal) || !self.mask.contains(signal)
    }

    /// Looks anew whether signals of the process are for it, as one that has taken a signal or changed its mask.
    pub fn choose_anew(&mut self, shared: SignalSet) {
        self.chosen = !(shared & !self.mask).is_empty();
    }
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

/// Where a thread's host thread runs, and why.
#[derive(Debug, Default)]
struct Cpus {
    affinity: Affinity,
    /// It is bound to this CPU, where its deputy's thread is too; and where it ran by rights.
    near: Option<(u16, Box<CpuSet>)>,
    /// When it forwarded a call last.
    asked: Option<Instant>,
    /// Where its deputy's thread may run by rights, once that was bound at some time: home's kernel may show less.
    at_home: Option<Box<CpuSet>>,
    /// Both are to be let go when the term is over.
    has_term: bool,
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
    cpus: Mutex<Cpus>,
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
            cpus: Mutex::default(),
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
    pub fn set_affinity(&self, set: CpuSet) {
        let mut cpus = lock(&self.cpus);
        if matches!(cpus.affinity, Affinity::Ended) {
            return;
        }
        match set.apply(self.host.tid()) {
            Ok(()) => {
                cpus.affinity = Affinity::Own(Box::new(set));
                cpus.near = None;
                // Without the CPUs that there are not.
                if cpus.at_home.is_some() {
                    cpus.at_home = CpuSet::of(self.host.tid()).map(Box::new);
                }
            }
            Err(errno) => tracing::debug!(tid = self.tid(), %errno, "a thread's CPUs are not this host's"),
        }
    }

    /// A new thread runs where the one runs that made it.
    pub fn inherit_affinity(&self, maker: &Self) {
        let set = match &lock(&maker.cpus).affinity {
            Affinity::Own(set) => **set,
            Affinity::Node | Affinity::Ended => return,
        };
        self.set_affinity(set);
    }

    /// Gives the host thread back, with the node's own CPUs.
    pub fn leave_host_thread(&self) {
        let cpus = &mut *lock(&self.cpus);
        let before = std::mem::replace(&mut cpus.affinity, Affinity::Ended);
        if (cpus.near.take().is_some() || matches!(before, Affinity::Own(_)))
            && let Some(all) = CpuSet::of(std::process::id() as i32)
        {
            self.run_on(&all);
        }
    }

    fn run_on(&self, set: &CpuSet) {
        if let Err(errno) = set.apply(self.host.tid()) {
            tracing::debug!(%errno, "a host thread keeps a guest thread's CPUs");
        }
    }

    /// From the thread itself, which is about to ask home: the CPU on which it stays until it is answered, if
    /// its deputy's thread is to come there.
    pub fn draw_near(self: &Arc<Self>) -> Option<u16> {
        let now = Instant::now();
        let cpus = &mut *lock(&self.cpus);
        let before = cpus.asked.replace(now);
        if cpus.near.is_none() && before.is_some_and(|before| now.duration_since(before) < near::DENSE) {
            let cpu = u16::try_from(nix::sched::sched_getcpu().ok()?).ok()?;
            let rights = CpuSet::of(self.host.tid())?;
            if self.begin_term(cpus) && near::only(cpu)?.apply(self.host.tid()).is_ok() {
                cpus.near = Some((cpu, Box::new(rights)));
            }
        }
        cpus.near.as_ref().map(|near| near.0)
    }

    /// From the poller, which is about to ask home in the thread's place, and stays on its CPU meanwhile: that CPU.
    pub fn call_near(self: &Arc<Self>) -> Option<u16> {
        let cpus = &mut *lock(&self.cpus);
        if !cpus.has_term && !self.begin_term(cpus) {
            return None;
        }
        nix::sched::sched_getcpu().ok().and_then(|cpu| u16::try_from(cpu).ok())
    }

    fn begin_term(self: &Arc<Self>, cpus: &mut Cpus) -> bool {
        // Nobody is nearer to a deputy on another host.
        if matches!(cpus.affinity, Affinity::Ended) || self.process.is_remote() {
            return false;
        }
        // Before it is bound for the first time.
        if cpus.at_home.is_none() {
            cpus.at_home = CpuSet::of(self.tid()).map(Box::new);
        }
        cpus.has_term = cpus.at_home.is_some() && self.process.kernel.near.enter(self);
        cpus.has_term
    }

    /// Lets it go from the CPU that it was bound to; whether its deputy's thread is to be let go too.
    pub(super) fn part(&self) -> bool {
        let cpus = &mut *lock(&self.cpus);
        cpus.has_term = false;
        if let Some((_, rights)) = cpus.near.take() {
            self.run_on(&rights);
        }
        !matches!(cpus.affinity, Affinity::Ended)
    }

    /// Whether the host thread is no longer this thread's.
    pub(super) fn has_left(&self) -> bool {
        matches!(lock(&self.cpus).affinity, Affinity::Ended)
    }

    /// The CPUs on which its deputy's thread may run by rights, if home's kernel may not tell.
    pub fn hidden_affinity(&self) -> Option<CpuSet> {
        lock(&self.cpus).at_home.as_deref().copied()
    }

    /// From another thread: has it run on the CPUs that are chosen, and returns its [`hidden_affinity`](Self::hidden_affinity).
    pub fn cpus(&self, chosen: Option<CpuSet>) -> Option<CpuSet> {
        if let Some(set) = chosen {
            self.set_affinity(set);
        }
        let at_home = self.hidden_affinity();
        if let (Some(_), Some(set)) = (chosen, at_home) {
            self.process.send(&ToDeputy::Part { tid: self.tid(), chosen: Some(set.to_bytes()) });
        }
        at_home
    }

    /// Goes on from what it was at the node where it was before; once.
    pub fn continue_hidden(&self, at_home: Option<CpuSet>) {
        lock(&self.cpus).at_home = at_home.map(Box::new);
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
        match &lock(&self.cpus).affinity {
            Affinity::Own(set) => Some(set.to_bytes()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_the_process_are_for_who_was_chosen() {
        let shared = SignalSet::of(&[libc::SIGPROF]);
        let mut own = ThreadSignals::default();
        assert!(own.deliverable(shared).is_empty());
        own.choose_anew(shared);
        assert_eq!(own.deliverable(shared), shared);
        own.mask = shared;
        assert!(own.deliverable(shared).is_empty());
        own.choose_anew(shared);
        assert!(!own.chosen && !own.wants(libc::SIGPROF));
        own.awaited = shared;
        assert!(own.wants(libc::SIGPROF));
    }
}
