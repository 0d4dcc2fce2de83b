//! A guest process.

use super::descriptors::Descriptors;
use super::freeze::Freezer;
use super::group::Group;
use super::remote::Remote;
use super::thread::{Thread, ThreadSignals};
use super::{Kernel, lock};
use crate::channel::CallChannel;
use crate::mm::AddressSpace;
use crate::signal::pending::PendingSignals;
use crate::signal::set::{DefaultAction, FIRST_REALTIME, SignalSet, default_action};
use crate::wire::control::{Ids, ProcessStatus, SigInfo, ToDeputy};
use crate::wire::frame::{self, FrameError};
pub use crate::wire::inquiry::StackPlaces;
use crate::wire::lasting::Lasting;
use crate::wire::link::LinkId;
use crate::wire::stream::{Receiving, Sending, Stream};
use crate::wire::usage::Usage;
use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Most signals that wait for a process, whatever its limit is: 8 MiB of them.
const MAX_PENDING: u64 = 65_536;

/// How long who waits for a deputy does not look whether the process has ended.
const LOOK: Duration = Duration::from_millis(20);

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By `exit_group` with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// Its deputy is gone: there is nobody to tell.
    Lost,
}

/// Whether a process is a node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It runs here, or has ended here.
    Here,
    /// It may come here.
    Arriving,
    /// It has gone to another node.
    Gone,
}

/// A `struct kernel_sigaction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Action {
    /// `SIG_DFL` (0), `SIG_IGN` (1) or an address.
    pub handler: u64,
    /// `SA_*`
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: SignalSet,
}

/// `SIG_DFL`
pub const DEFAULT: u64 = 0;
/// `SIG_IGN`
pub const IGNORE: u64 = 1;

/// Signals of a process: what its threads share.
#[derive(Debug, Clone)]
pub struct ProcessSignals {
    /// For any thread.
    pub pending: PendingSignals,
    /// Index `n - 1` is for signal `n`.
    pub actions: [Action; 64],
}

impl ProcessSignals {
    /// What is done at `signal`.
    pub fn action(&self, signal: i32) -> Action {
        self.actions[(signal - 1) as usize]
    }

    /// Whether `signal` would do nothing.
    pub fn ignores(&self, signal: i32) -> bool {
        match self.action(signal).handler {
            IGNORE => true,
            DEFAULT => default_action(signal) == DefaultAction::Ignore,
            _ => false,
        }
    }
}

/// What a process is called and may use.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `comm`, at most 15 bytes.
    pub name: Vec<u8>,
    /// Arguments.
    pub argv: Vec<Vec<u8>>,
    /// The program's absolute path.
    pub executable: Vec<u8>,
    /// Users and groups.
    pub ids: Ids,
    /// The auxiliary vector as bytes.
    pub auxiliary: Vec<u8>,
    /// Where its strings are.
    pub places: StackPlaces,
    /// Limits that the personality keeps: `RLIMIT_*` number, soft and hard.
    pub limits: HashMap<u32, (u64, u64)>,
}

impl Identity {
    /// The soft limit of a resource; none is `RLIM_INFINITY`.
    pub fn limit(&self, resource: u32) -> u64 {
        self.limits.get(&resource).map_or(libc::RLIM_INFINITY, |&(soft, _)| soft)
    }
}

/// Counts of what a process did.
#[derive(Debug, Default)]
pub struct Counters {
    /// What threads that have ended have used.
    pub ended: Mutex<Usage>,
    /// Children that were waited for, and theirs.
    pub children: Mutex<Usage>,
    /// Most bytes resident that were seen.
    pub peak_resident: AtomicU64,
    /// Seconds of CPU time at which `SIGXCPU` was sent last.
    pub cpu_warned: AtomicU64,
}

/// The group's life.
#[derive(Debug, Default)]
struct Life {
    ending: Option<Ending>,
    /// The thread that replaces the program: all others end.
    replacing: Option<i32>,
    /// The leader's exit status, where it ended before the others.
    leader_status: i32,
}

/// What a deputy says of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It sends no more signals until the migration is decided.
    Held,
    /// The process is the target's.
    Moved,
    /// The process stays; why.
    Kept(String),
    /// There is a way to the target, over this link if that is at another host than home.
    Prepared(Option<LinkId>),
}

/// The connection for what is no call.
#[derive(Debug)]
pub struct Control {
    sending: Sending,
    receiving: Option<Receiving>,
}

impl Control {
    fn to_home(&self) -> Option<Arc<Lasting<TcpStream>>> {
        match &self.sending {
            Sending::Local(_) => None,
            Sending::Lasting(lasting) => Some(lasting.clone()),
        }
    }
}

impl From<Stream> for Control {
    fn from(stream: Stream) -> Self {
        let (sending, receiving) = stream.split();
        Self { sending, receiving: Some(receiving) }
    }
}

impl From<Arc<UnixStream>> for Control {
    fn from(stream: Arc<UnixStream>) -> Self {
        Self { sending: stream.into(), receiving: None }
    }
}

/// A forwarded call that is to be broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancellation {
    /// The thread.
    pub tid: i32,
    /// Its request.
    pub seq: u32,
}

/// A guest process.
pub struct Process {
    /// Its kernel.
    pub kernel: Arc<Kernel>,
    /// At home and in the guest.
    pub pid: i32,
    /// At home, when it started.
    pub parent: i32,
    /// The address space; `exec` replaces it.
    space: Mutex<Option<Arc<AddressSpace>>>,
    /// Signals.
    pub signals: Mutex<ProcessSignals>,
    /// Name and limits.
    pub identity: Mutex<Identity>,
    /// Counts.
    pub counters: Counters,
    /// Its descriptors, as far as the node knows their files.
    pub descriptors: Descriptors,
    /// With which it shares limits: what was started from home together.
    pub group: Arc<Group>,
    /// Timers.
    pub timers: Mutex<super::timers::ProcessTimers>,
    /// Each system call is told to the deputy.
    pub trace: bool,
    /// What it has used is told to the deputy when it ends.
    pub report: AtomicBool,
    control: Mutex<Control>,
    /// The same where it goes to another host; somebody who sends may have the other locked for long.
    to_home: Mutex<Option<Arc<Lasting<TcpStream>>>>,
    /// What it asks its deputy for on the control connection.
    pub remote: Remote,
    /// Cancellations that the deputy has not taken yet: at most one of each thread's call that waits.
    unsent: Mutex<Vec<Cancellation>>,
    threads: Mutex<Vec<Arc<Thread>>>,
    threads_changed: Condvar,
    life: Mutex<Life>,
    /// Set while the deputy is stopped; threads wait for the change.
    stopped: Mutex<bool>,
    stopped_changed: Condvar,
    /// Where its threads stand still.
    pub freezer: Freezer,
    /// The leader's connection, once the leader has ended.
    leader_channel: Mutex<Option<CallChannel>>,
    /// A parent waits in `vfork`.
    vforked: Mutex<bool>,
    vfork_over: Condvar,
    has_ended: AtomicBool,
    left: Mutex<bool>,
    left_changed: Condvar,
    /// Signals that descriptors of home (`signalfd`) wait for.
    home_signals: AtomicU64,
    /// Names its control connection to the relay.
    relay_token: AtomicU64,
    /// How often it has changed its node.
    pub epoch: AtomicU32,
    /// Attempts to migrate; changed with `verdict` locked.
    attempts: AtomicU32,
    presence: Mutex<Presence>,
    /// What the deputy has said of a migration, until somebody takes it.
    verdict: Mutex<Option<Verdict>>,
    verdict_changed: Condvar,
}

impl Process {
    /// A process without threads.
    #[allow(clippy::too_many_arguments, reason = "what a process is made of")]
    pub fn new(
        kernel: Arc<Kernel>,
        pid: i32,
        parent: i32,
        space: Option<Arc<AddressSpace>>,
        signals: ProcessSignals,
        identity: Identity,
        control: impl Into<Control>,
        descriptors: Descriptors,
        trace: bool,
        group: Arc<Group>,
    ) -> Arc<Self> {
        let control = control.into();
        Arc::new(Self {
            kernel,
            pid,
            parent,
            space: Mutex::new(space),
            signals: Mutex::new(signals),
            identity: Mutex::new(identity),
            counters: Counters::default(),
            descriptors,
            group,
            timers: Mutex::default(),
            trace,
            report: AtomicBool::new(false),
            to_home: Mutex::new(control.to_home()),
            control: Mutex::new(control),
            remote: Remote::default(),
            unsent: Mutex::default(),
            threads: Mutex::default(),
            threads_changed: Condvar::new(),
            life: Mutex::default(),
            stopped: Mutex::new(false),
            stopped_changed: Condvar::new(),
            freezer: Freezer::default(),
            leader_channel: Mutex::new(None),
            vforked: Mutex::new(false),
            vfork_over: Condvar::new(),
            has_ended: AtomicBool::new(false),
            left: Mutex::new(false),
            left_changed: Condvar::new(),
            home_signals: AtomicU64::new(0),
            relay_token: AtomicU64::new(u64::MAX),
            epoch: AtomicU32::new(0),
            attempts: AtomicU32::new(0),
            presence: Mutex::new(Presence::Here),
            verdict: Mutex::default(),
            verdict_changed: Condvar::new(),
        })
    }

    /// Whether it is this node's.
    pub fn presence(&self) -> Presence {
        *lock(&self.presence)
    }

    /// Sets it.
    pub fn set_presence(&self, presence: Presence) {
        *lock(&self.presence) = presence;
    }

    /// The address space, until the process has ended.
    pub fn space(&self) -> Option<Arc<AddressSpace>> {
        lock(&self.space).clone()
    }

    /// Sets the address space; returns the old one.
    pub fn set_space(&self, space: Option<Arc<AddressSpace>>) -> Option<Arc<AddressSpace>> {
        std::mem::replace(&mut *lock(&self.space), space)
    }

    /// Sends to the deputy. A connection that fails is noticed by the relay.
    pub fn send(&self, message: &ToDeputy) {
        let sent = frame::encode(message).and_then(|bytes| Ok(lock(&self.control).sending.send(&bytes)?));
        if let Err(error) = sent {
            tracing::debug!(pid = self.pid, error = %crate::chain(&error), "control connection");
        }
    }

    /// The same with descriptors, which only a deputy on this host can be passed.
    ///
    /// # Errors
    /// If the connection fails, or cannot pass them.
    pub fn send_with(&self, message: &ToDeputy, descriptors: &[RawFd]) -> Result<(), FrameError> {
        match &mut lock(&self.control).sending {
            Sending::Local(stream) => frame::send(stream, message, descriptors),
            Sending::Lasting(_) => Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into()),
        }
    }

    /// Has the deputy break off a call. Never waits: whoever has news for a thread, above all the node's
    /// own threads, is not to be held up by one deputy that is stopped and reads nothing.
    pub fn cancel(&self, cancellation: Cancellation) {
        let mut unsent = lock(&self.unsent);
        unsent.push(cancellation);
        self.try_send(&mut unsent);
    }

    /// Sends the cancellations that could not be sent, as far as the deputy takes them.
    pub fn send_cancellations(&self) {
        let mut unsent = lock(&self.unsent);
        if !unsent.is_empty() {
            self.try_send(&mut unsent);
        }
    }

    fn try_send(&self, unsent: &mut Vec<Cancellation>) {
        // Another thread may be writing, for as long as the deputy likes.
        let Ok(mut control) = self.control.try_lock() else { return };
        let sent = unsent.iter().position(|&Cancellation { tid, seq }| {
            let Ok(bytes) = frame::encode(&ToDeputy::Cancel { tid, seq }) else { return false };
            // A connection that fails is noticed by the relay.
            matches!(control.sending.try_send(&bytes), Ok(false))
        });
        unsent.drain(..sent.unwrap_or(unsent.len()));
    }

    /// Sends to the deputy if that needs no waiting; whether it was sent.
    pub fn try_say(&self, message: &ToDeputy) -> bool {
        let Ok(mut control) = self.control.try_lock() else { return false };
        frame::encode(message).is_ok_and(|bytes| control.sending.try_send(&bytes).unwrap_or(false))
    }

    /// The half of the control connection that the relay reads; once, where it is sealed.
    pub fn control(&self) -> Option<Receiving> {
        let control = &mut *lock(&self.control);
        match &control.sending {
            Sending::Local(stream) => Some(Receiving::Local(stream.clone())),
            Sending::Lasting(_) => control.receiving.take(),
        }
    }

    /// Which of its link's connections its deputy has, if that is at another host.
    pub fn way(&self) -> Option<u64> {
        lock(&self.to_home).as_ref().map(|lasting| lasting.tag())
    }

    /// Its control connection, if that goes to another host.
    pub fn to_home(&self) -> Option<Arc<Lasting<TcpStream>>> {
        lock(&self.to_home).clone()
    }

    /// Whether its connection with home is lost, and may be made again.
    pub fn has_lost_home(&self) -> bool {
        lock(&self.to_home).as_ref().is_some_and(|lasting| lasting.is_lost())
    }

    /// Sets the control connection: the process has come from another node.
    pub fn set_control(&self, control: impl Into<Control>) {
        let control = control.into();
        *lock(&self.to_home) = control.to_home();
        *lock(&self.control) = control;
    }

    /// All threads.
    pub fn threads(&self) -> Vec<Arc<Thread>> {
        lock(&self.threads).clone()
    }

    /// Whether it has one thread.
    pub fn is_single_threaded(&self) -> bool {
        lock(&self.threads).len() == 1
    }

    /// The thread with this TID.
    pub fn thread(&self, tid: i32) -> Option<Arc<Thread>> {
        lock(&self.threads).iter().find(|thread| thread.tid() == tid).cloned()
    }

    /// Enters a thread; `false` if the process is ending.
    pub fn add_thread(&self, thread: &Arc<Thread>) -> bool {
        let mut threads = lock(&self.threads);
        let life = lock(&self.life);
        if life.ending.is_some() || life.replacing.is_some() {
            return false;
        }
        threads.push(thread.clone());
        true
    }

    /// Takes a thread out, which keeps what it has used; `true` if it was the last.
    pub fn remove_thread(&self, thread: &Arc<Thread>) -> bool {
        let mut threads = lock(&self.threads);
        let before = threads.len();
        threads.retain(|other| !Arc::ptr_eq(other, thread));
        // Before anyone can sum up without it.
        lock(&self.counters.ended).add(&thread.usage());
        self.threads_changed.notify_all();
        before > 0 && threads.is_empty()
    }

    /// Keeps the connection of a leader that has ended, for a later `exec`.
    pub fn keep_leader_channel(&self, channel: CallChannel) {
        *lock(&self.leader_channel) = Some(channel);
    }

    /// The connection of a leader that has ended.
    pub fn take_leader_channel(&self) -> Option<CallChannel> {
        lock(&self.leader_channel).take()
    }

    /// Ends the process, once; later endings do not count.
    pub fn begin_exit(&self, ending: Ending) {
        {
            let mut life = lock(&self.life);
            if life.ending.is_some_and(|old| old == Ending::Lost || ending != Ending::Lost) {
                return;
            }
            life.ending = Some(ending);
        }
        self.resume();
        for thread in self.threads() {
            thread.notify();
        }
        self.freezer.wake();
        self.end_vfork();
    }

    /// How it ends, if it does.
    pub fn ending(&self) -> Option<Ending> {
        lock(&self.life).ending
    }

    /// The leader ends alone with this status.
    pub fn set_leader_status(&self, status: i32) {
        lock(&self.life).leader_status = status;
    }

    /// The status of a process whose threads all ended one by one.
    pub fn leader_status(&self) -> i32 {
        lock(&self.life).leader_status
    }

    /// Whether this thread must end, since the process does or another thread replaces the program.
    pub fn must_end(&self, tid: i32) -> bool {
        let life = lock(&self.life);
        life.ending.is_some() || life.replacing.is_some_and(|replacing| replacing != tid)
    }

    /// Ends all threads but `tid` and waits for it; `false` if the process is ending instead.
    pub fn end_other_threads(&self, tid: i32) -> bool {
        {
            let mut life = lock(&self.life);
            if life.ending.is_some() || life.replacing.is_some() {
                return false;
            }
            life.replacing = Some(tid);
        }
        for thread in self.threads().iter().filter(|thread| thread.tid() != tid) {
            thread.notify();
        }
        self.freezer.wake();
        let mut threads = lock(&self.threads);
        while threads.len() > 1 && lock(&self.life).ending.is_none() {
            threads = self.threads_changed.wait(threads).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        drop(threads);
        let mut life = lock(&self.life);
        life.replacing = None;
        life.ending.is_none()
    }

    /// Its deputy is stopped: the threads stop at their next clean point.
    pub fn stop(&self) {
        let mut stopped = lock(&self.stopped);
        if *stopped || self.ending().is_some() {
            return;
        }
        *stopped = true;
        drop(stopped);
        for thread in self.threads() {
            thread.notify();
        }
    }

    /// Its deputy goes on.
    pub fn resume(&self) {
        *lock(&self.stopped) = false;
        self.stopped_changed.notify_all();
    }

    /// Has threads that wait while it is stopped look what else is wanted of them.
    pub fn wake_stopped(&self) {
        drop(lock(&self.stopped));
        self.stopped_changed.notify_all();
    }

    /// Whether it is stopped.
    pub fn is_stopped(&self) -> bool {
        *lock(&self.stopped)
    }

    /// Waits while it is stopped.
    pub fn wait_while_stopped(&self) {
        let mut stopped = lock(&self.stopped);
        while *stopped && !self.freezer.is_wanted() {
            stopped = self.stopped_changed.wait(stopped).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Declares that a parent waits until this process has a program of its own.
    pub fn begin_vfork(&self) {
        *lock(&self.vforked) = true;
    }

    /// The process has a program of its own, or has ended.
    pub fn end_vfork(&self) {
        *lock(&self.vforked) = false;
        self.vfork_over.notify_all();
    }

    /// Waits until the process has a program of its own, or the waiting process ends.
    pub fn wait_for_vfork(&self, parent: &Process) {
        let mut vforked = lock(&self.vforked);
        while *vforked && parent.ending().is_none() {
            let wait = self.vfork_over.wait_timeout(vforked, std::time::Duration::from_millis(100));
            vforked = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Sends a signal to the process: any thread that does not block it gets it. `false` if too many wait.
    pub fn post(&self, info: SigInfo) -> bool {
        self.post_preferring(info, None)
    }

    /// As [`Process::post`]; `first` gets it unless it blocks it.
    pub fn post_preferring(&self, info: SigInfo, first: Option<&Arc<Thread>>) -> bool {
        let signal = info.signal();
        if signal == libc::SIGCONT {
            self.resume();
        }
        let threads = self.threads();
        let target = {
            let mut signals = lock(&self.signals);
            let blocked = |thread: &Arc<Thread>| lock(&thread.signals).mask.contains(signal);
            if signals.ignores(signal) && !threads.iter().any(blocked) {
                return true;
            }
            match signal {
                libc::SIGCONT => signals.pending.discard(SignalSet::STOPPING),
                _ if SignalSet::STOPPING.contains(signal) => {
                    signals.pending.discard(SignalSet::of(&[libc::SIGCONT]));
                }
                _ => {}
            }
            let others = queued(&threads, None, signal);
            if signals.pending.push(info, self.pending_limit().saturating_sub(others)).is_err() {
                return false;
            }
            choose(first.into_iter().chain(&threads), signal)
        };
        if let Some(thread) = target {
            thread.notify();
        }
        true
    }

    /// A thread that may have been chosen for signals of the process has come to block them, or has
    /// ended: another is to take those, one that takes others already if there is one.
    pub fn pass_on(&self, signals: SignalSet) {
        if (lock(&self.signals).pending.set() & signals).is_empty() {
            return;
        }
        let threads = self.threads();
        let chosen: Vec<_> = {
            let waiting = lock(&self.signals).pending.set() & signals;
            let chosen = threads.iter().filter(|thread| lock(&thread.signals).chosen).collect::<Vec<_>>();
            waiting.iter().filter_map(|signal| choose(chosen.iter().copied().chain(&threads), signal)).collect()
        };
        for thread in chosen {
            thread.notify();
        }
    }

    /// The thread whose turn it is to be told of the process's CPU time: the one that has used most
    /// of it since its last turn.
    pub fn charge(&self) -> Option<Arc<Thread>> {
        let timed = self.threads().into_iter().map(|thread| (thread.cpu_time(), thread));
        let (now, thread) =
            timed.max_by_key(|(now, thread)| now.saturating_sub(thread.charged.load(Ordering::Relaxed)))?;
        thread.charged.store(now, Ordering::Relaxed);
        Some(thread)
    }

    /// Sends a signal to one thread; `false` if too many wait.
    pub fn post_to(&self, thread: &Thread, info: SigInfo) -> bool {
        let signal = info.signal();
        let threads = self.threads();
        {
            let signals = lock(&self.signals);
            let others = signals.pending.len() + queued(&threads, Some(thread), signal);
            let mut own = lock(&thread.signals);
            if signals.ignores(signal) && !own.mask.contains(signal) {
                return true;
            }
            if own.pending.push(info, self.pending_limit().saturating_sub(others)).is_err() {
                return false;
            }
            if own.mask.contains(signal) && !own.awaited.contains(signal) {
                return true;
            }
        }
        thread.notify();
        true
    }

    /// Most signals that may wait, of the process and all its threads together.
    fn pending_limit(&self) -> usize {
        lock(&self.identity).limit(libc::RLIMIT_SIGPENDING).min(MAX_PENDING) as usize
    }

    /// Begins an attempt to migrate: what the deputy answers to an earlier one is of no interest from now on.
    pub fn begin_attempt(&self) -> u32 {
        let mut verdict = lock(&self.verdict);
        *verdict = None;
        self.attempts.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
    }

    /// Notes what the deputy has answered to an attempt to migrate to `epoch`, unless that was given up.
    pub fn note_answer(&self, epoch: u32, attempt: u32, answer: Verdict) {
        let mut verdict = lock(&self.verdict);
        let is_next = epoch == self.epoch.load(Ordering::SeqCst).wrapping_add(1);
        if is_next && attempt == self.attempts.load(Ordering::SeqCst) {
            *verdict = Some(answer);
            self.verdict_changed.notify_all();
        }
    }

    /// Notes what the deputy has said of the migration to `epoch`.
    pub fn note_verdict(&self, epoch: u32, verdict: Verdict) {
        if epoch == self.epoch.load(Ordering::SeqCst).wrapping_add(1) {
            if verdict == Verdict::Moved && self.freezer.is_wanted() {
                // What comes next is the end of the deputy's connection: it is not the process's.
                self.set_presence(Presence::Gone);
            }
            *lock(&self.verdict) = Some(verdict);
            self.verdict_changed.notify_all();
        }
    }

    /// Waits for what the deputy says, for so long at most; `None` if the process ends first.
    pub fn take_verdict(&self, limit: Option<Duration>) -> Option<Verdict> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut verdict = lock(&self.verdict);
        loop {
            if let Some(verdict) = verdict.take() {
                return Some(verdict);
            }
            let left = deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(Instant::now()).min(LOOK));
            if self.ending().is_some() || left.is_zero() {
                return None;
            }
            let wait = self.verdict_changed.wait_timeout(verdict, left);
            verdict = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Whether it shares its memory with a parent that waits for it, or waits for such a child.
    pub fn is_vforked(&self) -> bool {
        *lock(&self.vforked)
    }

    /// Number of the last request of a leader that has ended, if it has.
    pub fn leader_seq(&self) -> Option<u32> {
        lock(&self.leader_channel).as_ref().map(CallChannel::seq)
    }

    /// What names its control connection to the relay.
    pub fn relay_token(&self) -> u64 {
        self.relay_token.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_relay_token(&self, token: u64) {
        self.relay_token.store(token, Ordering::Relaxed);
    }

    /// Signals that descriptors of home (`signalfd`) wait for: they are left with home's kernel.
    pub fn home_signals(&self) -> SignalSet {
        SignalSet(self.home_signals.load(Ordering::Relaxed))
    }

    /// Sets them.
    pub fn set_home_signals(&self, signals: SignalSet) {
        self.home_signals.store(signals.0, Ordering::Relaxed);
    }

    /// CPU time in nanoseconds of all threads, ended ones too.
    pub fn cpu_time(&self) -> u64 {
        let threads = lock(&self.threads);
        let running: u64 = threads.iter().map(|thread| thread.cpu_time()).sum();
        running + lock(&self.counters.ended).cpu_nanos
    }

    /// Of [`cpu_time`](Self::cpu_time), what was spent in user mode.
    pub fn user_time(&self) -> u64 {
        let threads = lock(&self.threads);
        let running: u64 = threads.iter().map(|thread| thread.user_time()).sum();
        running + lock(&self.counters.ended).user_nanos()
    }

    /// What its threads have used, ended ones too; children not counted.
    pub fn usage(&self) -> Usage {
        let resident = self.space().map_or(0, |space| space.resident());
        let threads = lock(&self.threads);
        let mut usage = *lock(&self.counters.ended);
        for thread in threads.iter() {
            usage.add(&thread.usage());
        }
        usage.peak_resident = self.saw_resident(resident);
        usage
    }

    /// What the children have used that were waited for, and theirs.
    pub fn children_usage(&self) -> Usage {
        *lock(&self.counters.children)
    }

    /// Notes that so many bytes are resident; returns the most that were seen.
    pub fn saw_resident(&self, resident: u64) -> u64 {
        self.counters.peak_resident.fetch_max(resident, Ordering::Relaxed).max(resident)
    }

    /// Whether children that end wait to be waited for: home's kernel keeps none for who ignores them.
    pub fn waits_for_children(&self) -> bool {
        let action = lock(&self.signals).action(libc::SIGCHLD);
        action.handler != IGNORE && action.flags & libc::SA_NOCLDWAIT as u64 == 0
    }

    /// Declares that all is over; `true` the first time.
    pub fn end(&self) -> bool {
        !self.has_ended.swap(true, Ordering::SeqCst)
    }

    /// Whether the node knows it no more.
    pub fn has_left(&self) -> bool {
        *lock(&self.left)
    }

    /// Declares that the node knows it no more.
    pub fn note_left(&self) {
        *lock(&self.left) = true;
        self.left_changed.notify_all();
    }

    /// Waits until the node knows it no more; for so long at most.
    pub fn wait_until_left(&self, limit: Duration) {
        let left = lock(&self.left);
        let wait = self.left_changed.wait_timeout_while(left, limit, |left| !*left);
        drop(wait);
    }

    /// For `mosps`.
    pub fn status(&self) -> ProcessStatus {
        let identity = lock(&self.identity).clone();
        let threads = self.threads();
        let running = threads.iter().any(|thread| thread.gate.is_inside());
        let space = self.space();
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ProcessStatus {
            pid: self.pid,
            parent: self.parent,
            name: lossy(&identity.name),
            command: identity.argv.iter().map(|argument| lossy(argument)).collect::<Vec<_>>().join(" "),
            threads: threads.len() as u32,
            resident: space.as_ref().map_or(0, |space| space.resident()),
            virtual_size: space.as_ref().map_or(0, |space| space.virtual_size()),
            usage: self.usage(),
            children: self.children_usage(),
            state: if self.is_stopped() {
                'T'
            } else if running {
                'R'
            } else {
                'S'
            },
            uid: identity.ids.uid,
            home: self.group.link().map(|link| link.home.name.clone()),
            job: self.group.job(),
            arriving: self.presence() == Presence::Arriving,
        }
    }
}

/// Chooses the first thread that takes a signal of the process.
fn choose<'a>(threads: impl IntoIterator<Item = &'a Arc<Thread>>, signal: i32) -> Option<Arc<Thread>> {
    let takes = |thread: &&Arc<Thread>| {
        let own = &mut *lock(&thread.signals);
        own.chosen |= own.wants(signal);
        own.wants(signal)
    };
    threads.into_iter().find(takes).cloned()
}

/// Signals that wait for threads, but for one of them; only real-time signals are limited and counted.
fn queued(threads: &[Arc<Thread>], but: Option<&Thread>, signal: i32) -> usize {
    if signal < FIRST_REALTIME {
        return 0;
    }
    let others = threads.iter().filter(|thread| !but.is_some_and(|but| std::ptr::eq(but, &***thread)));
    others.map(|thread| lock(&thread.signals).pending.len()).sum()
}

/// Signal state of a new process whose deputy ignores `ignored`.
pub fn initial_signals(ignored: u64) -> ProcessSignals {
    let mut actions = [Action::default(); 64];
    for signal in SignalSet(ignored).blockable().iter() {
        actions[(signal - 1) as usize].handler = IGNORE;
    }
    ProcessSignals { pending: PendingSignals::new(), actions }
}

/// Signal state of the first thread of a process that blocks `mask`.
pub fn initial_thread_signals(mask: u64) -> ThreadSignals {
    // What came before there was a thread is for the first.
    ThreadSignals { mask: SignalSet(mask).blockable(), chosen: true, ..ThreadSignals::default() }
}
