//! The thread that looks for posted calls.

use super::super::affinity::has_one_cpu;
use super::super::{lock, priority};
use super::{Caller, files, home, signals};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use vmm::call_slot::{Answer, CallSlot, PostedCall};

/// How long the poller looks on after the last call. When it was asked for it may be awake just after its
/// thread has lost patience: it must outlast the call that this one then makes itself.
const LINGER: Duration = Duration::from_micros(200);
/// After so long without a call others are let run on the poller's CPU.
const YIELDING: Duration = Duration::from_micros(10);
/// Looks between two of the clock.
const LOOKS: u32 = 32;

/// A slot that is looked at, and whose it is.
#[derive(Debug)]
pub struct Polled {
    slot: Arc<CallSlot>,
    caller: Mutex<Option<Caller>>,
    served: AtomicU64,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "thread {}", self.thread.tid())
    }
}

impl Polled {
    /// A slot of this caller.
    pub(super) fn new(slot: Arc<CallSlot>, caller: Caller) -> Self {
        Self { slot, caller: Mutex::new(Some(caller)), served: AtomicU64::new(0) }
    }

    /// The slot.
    pub fn slot(&self) -> &CallSlot {
        &self.slot
    }

    /// Calls that were answered.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// No call is being served when this returns, and none will be.
    pub fn close(&self) {
        self.slot.close();
        // The address space goes when its last thread says so, not when the poller looks again.
        lock(&self.caller).take();
    }

    /// Serves the call that is posted, if one is; `alone`: nobody else waits for the poller.
    fn look(&self, alone: bool) -> bool {
        let Some(mut taken) = self.slot.take() else { return false };
        if files::is_long(taken.call()) {
            taken.ask_for_patience();
        }
        let mut caller = lock(&self.caller);
        // A slot is closed before its caller goes, so this one has it.
        let answer = caller.as_mut().and_then(|caller| serve(caller, taken.call(), alone));
        let answer = answer.unwrap_or(Answer::Exit { progress: 0 });
        if matches!(answer, Answer::Value(_)) {
            self.served.fetch_add(1, Ordering::Relaxed);
        }
        taken.answer(answer);
        true
    }
}

/// Keeps the calling thread on a CPU.
fn bind(cpu: usize) -> bool {
    let mut only = CpuSet::new();
    only.set(cpu).is_ok() && sched_setaffinity(Pid::from_raw(0), &only).is_ok()
}

/// Has the calling thread run wherever the node may.
fn unbind() {
    if let Ok(all) = sched_getaffinity(Pid::from_raw(std::process::id() as i32)) {
        // Where it is refused the poller runs where it is.
        let _ = sched_setaffinity(Pid::from_raw(0), &all);
    }
}

/// Serves a call; `None` if its thread must make it.
fn serve(caller: &mut Caller, call: &PostedCall, alone: bool) -> Option<Answer> {
    if caller.thread.has_attention() || caller.thread.process.ending().is_some() {
        return None;
    }
    match i64::from(call.number) {
        libc::SYS_rt_sigprocmask | libc::SYS_rt_sigaction => signals::serve(caller, call),
        _ => files::serve(&caller.thread, &caller.space, call).or_else(|| home::serve(caller, call, alone)),
    }
}

/// The poller: a thread that is made when it is asked for the first time, and sleeps when nobody posts.
#[derive(Debug, Default)]
pub struct Poller {
    shared: Arc<Shared>,
    started: AtomicBool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    asked: Condvar,
    /// Counts changes of the list.
    changes: AtomicU64,
    /// The poller's thread, and the CPU that it looked on last.
    tid: AtomicI32,
    cpu: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Arc<Polled>>,
    stop: bool,
}

impl Poller {
    /// Has a slot looked at from now on, until no calls come any more.
    pub fn ask(&self, polled: &Arc<Polled>) {
        // With one CPU it would take the time that it saves.
        if has_one_cpu() || !self.is_started() {
            return;
        }
        let mut state = lock(&self.shared.state);
        if !state.slots.iter().any(|other| Arc::ptr_eq(other, polled)) {
            state.slots.push(polled.clone());
            polled.slot.arm(true);
            self.shared.changes.fetch_add(1, Ordering::SeqCst);
            self.shared.leave_this_cpu();
            self.shared.asked.notify_one();
        }
    }

    /// Has a slot looked at no more.
    pub fn forget(&self, polled: &Arc<Polled>) {
        polled.slot.arm(false);
        let mut state = lock(&self.shared.state);
        state.slots.retain(|other| !Arc::ptr_eq(other, polled));
        self.shared.changes.fetch_add(1, Ordering::SeqCst);
    }

    fn is_started(&self) -> bool {
        if self.started.load(Ordering::Acquire) {
            return true;
        }
        let mut state = lock(&self.shared.state);
        if self.started.load(Ordering::Acquire) {
            return true;
        }
        let shared = self.shared.clone();
        match std::thread::Builder::new().name("poller".into()).spawn(move || {
            priority::take_turns();
            shared.run();
        }) {
            Ok(_) => {
                self.started.store(true, Ordering::Release);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "no thread to poll calls");
                state.slots.clear();
                false
            }
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changes.fetch_add(1, Ordering::SeqCst);
        self.shared.asked.notify_one();
    }
}

impl Shared {
    /// Has the poller run on another CPU than the calling thread: one that is woken on the thread's own
    /// looks for as long as the thread cannot post anything, and is woken there again the next time.
    fn leave_this_cpu(&self) {
        let Ok(own) = sched_getcpu() else { return };
        if own != self.cpu.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut cpus) = sched_getaffinity(Pid::from_raw(std::process::id() as i32)) else { return };
        let has_others = (0..CpuSet::count()).any(|cpu| cpu != own && cpus.is_set(cpu).unwrap_or(false));
        let poller = Pid::from_raw(self.tid.load(Ordering::Relaxed));
        if has_others && poller.as_raw() != 0 && cpus.unset(own).is_ok() {
            // Where it is refused the poller runs where it is put.
            let _ = sched_setaffinity(poller, &cpus);
        }
    }

    fn run(&self) {
        self.tid.store(gettid().as_raw(), Ordering::Relaxed);
        let mut last = Instant::now();
        loop {
            let (slots, changes) = {
                let mut state = lock(&self.state);
                if state.slots.is_empty() {
                    state = self
                        .asked
                        .wait_while(state, |state| state.slots.is_empty() && !state.stop)
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    last = Instant::now();
                }
                if state.stop {
                    return;
                }
                (state.slots.clone(), self.changes.load(Ordering::SeqCst))
            };
            // Who answers for home comes to this CPU.
            let bound = sched_getcpu().is_ok_and(bind);
            self.look_at(&slots, changes, &mut last);
            if bound {
                unbind();
            }
        }
    }

    /// Looks at these slots until others are to be looked at, or none.
    fn look_at(&self, slots: &[Arc<Polled>], changes: u64, last: &mut Instant) {
        let mut looks = 0;
        while self.changes.load(Ordering::Acquire) == changes {
            for polled in slots {
                if polled.look(slots.len() == 1) {
                    looks = 0;
                    *last = Instant::now();
                }
            }
            looks += 1;
            std::hint::spin_loop();
            if looks % LOOKS != 0 {
                continue;
            }
            let idle = last.elapsed();
            if idle > YIELDING {
                // Perhaps it is somebody on this very CPU who is to bring about the next call.
                std::thread::yield_now();
            }
            if idle > LINGER {
                self.cpu.store(sched_getcpu().unwrap_or(usize::MAX), Ordering::Relaxed);
                let mut state = lock(&self.state);
                for polled in state.slots.drain(..) {
                    polled.slot.arm(false);
                }
                return;
            }
        }
    }
}
