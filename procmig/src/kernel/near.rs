//! Threads that keep asking home run beside who answers them.
//!
//! A forwarded call is two wake-ups, and each is cheap only where the woken thread goes on at the CPU of who wakes it,
//! who is about to wait anyway. The host's scheduler prefers a CPU that is idle, which must be woken first: where the
//! host is a virtual machine itself that takes longer than most calls (20 µs instead of 4). So a thread that makes one
//! forwarded call after the other is bound to the CPU that it is on, and says with each request which one that is:
//! its deputy's thread goes there too. After [`TERM`] both are let go, so that the scheduler may place them anew and
//! no thread stays bound that computes or waits.

use super::affinity::{CpuSet, has_one_cpu};
use super::thread::Thread;
use super::{lock, priority};
use crate::wire::control::ToDeputy;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Forwarded calls that are no further apart come one after the other.
pub(super) const DENSE: Duration = Duration::from_millis(1);
/// How long threads stay bound at most.
const TERM: Duration = Duration::from_millis(20);
/// Threads that are bound at a time: more than that many CPUs have no use for it.
const MOST: usize = 256;

/// Who is bound now.
#[derive(Default)]
pub struct Near {
    shared: Arc<Shared>,
    usable: OnceLock<bool>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bound: Vec<Weak<Thread>>,
    stop: bool,
}

impl Near {
    /// Notes a thread that is about to be bound; `false` if it had better not be.
    pub(super) fn enter(&self, thread: &Arc<Thread>) -> bool {
        if !*self.usable.get_or_init(|| self.start()) {
            return false;
        }
        let mut state = lock(&self.shared.state);
        if state.bound.len() >= MOST {
            return false;
        }
        state.bound.push(Arc::downgrade(thread));
        if state.bound.len() == 1 {
            self.shared.changed.notify_one();
        }
        true
    }

    /// Starts who lets them go; `false` if there is but one CPU.
    fn start(&self) -> bool {
        if has_one_cpu() {
            return false;
        }
        let shared = self.shared.clone();
        let started = std::thread::Builder::new().name("near".into()).stack_size(256 << 10);
        let run = move || {
            priority::take_turns();
            shared.run();
        };
        started.spawn(run).is_ok()
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        // Deputies that could not be told yet.
        let mut untold = Vec::new();
        loop {
            let state = lock(&self.state);
            let waits = |state: &mut State| state.bound.is_empty() && untold.is_empty() && !state.stop;
            let state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
            if state.stop {
                return;
            }
            drop(state);
            std::thread::sleep(TERM);
            let bound = std::mem::take(&mut lock(&self.state).bound);
            untold.extend(bound.iter().filter_map(Weak::upgrade).filter(|thread| thread.part()));
            untold.retain(|thread: &Arc<Thread>| {
                !thread.has_left() && !thread.process.try_say(&ToDeputy::Part { tid: thread.tid(), chosen: None })
            });
        }
    }
}

/// The set of this one CPU.
pub(super) fn only(cpu: u16) -> Option<CpuSet> {
    let cpu = usize::from(cpu);
    let mut bits = [0; super::affinity::MASK];
    *bits.get_mut(cpu / 8)? |= 1 << (cpu % 8);
    Some(CpuSet::new(bits))
}
