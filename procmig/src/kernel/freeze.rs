//! Stopping all threads of a process where what they are can be written down.
//!
//! A thread stands still before it enters the guest, or in a system call that waits: what it waits for goes
//! on at home, or is waited for anew. Calls that do not wait are brought to their end.

use super::affinity::CpuSet;
use super::guest::GuestThread;
use super::lock;
use super::process::Process;
use super::thread::Thread;
use crate::migration::image::{CallImage, ThreadImage};
use nix::errno::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm::user_cpu::UserCpu;

/// Between the first two calls to threads that do not stand still yet: one that was about to wait at home when it was
/// called has not heard it.
const REPEAT: Duration = Duration::from_micros(300);
/// Between two later ones, at most: each breaks into what the thread does.
const SELDOM: Duration = Duration::from_millis(10);

/// Why a process could not be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// Somebody else is at it.
    #[error("the process is being migrated already")]
    Busy,
    /// It has ended.
    #[error("the process has ended")]
    Ended,
    /// A thread is where it cannot be stopped.
    #[error("thread {0} is in a system call that does not come to an end")]
    Late(i32),
}

/// Where the threads of one process stand still.
#[derive(Debug, Default)]
pub struct Freezer {
    wanted: AtomicBool,
    still: Mutex<Still>,
    changed: Condvar,
}

/// Who stands still.
#[derive(Debug, Default)]
struct Still {
    images: Vec<ThreadImage>,
    /// How often the threads were let go: one that has not woken up by the next time stands still anew.
    thaws: u64,
}

impl Freezer {
    /// Whether threads shall stand still.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Lets the threads go on.
    fn thaw(&self) {
        let mut still = lock(&self.still);
        still.images.clear();
        still.thaws += 1;
        self.wanted.store(false, Ordering::SeqCst);
        drop(still);
        self.changed.notify_all();
    }

    /// The process ends, or what it waits for has changed.
    pub fn wake(&self) {
        drop(lock(&self.still));
        self.changed.notify_all();
    }

    fn park(&self, image: ThreadImage, process: &Process) {
        let mut still = lock(&self.still);
        if !self.is_wanted() {
            return;
        }
        let (tid, thaws) = (image.tid, still.thaws);
        still.images.push(image);
        self.changed.notify_all();
        while still.thaws == thaws && !process.must_end(tid) {
            still = self.changed.wait(still).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A process whose threads stand still, until this is dropped.
pub struct Frozen<'a> {
    process: &'a Process,
    /// Its threads.
    pub threads: Vec<ThreadImage>,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.process.freezer.thaw();
    }
}

impl Process {
    /// Stops all threads; waits for them at most so long.
    ///
    /// # Errors
    /// See [`FreezeError`]; the threads go on then.
    pub fn freeze(&self, limit: Duration) -> Result<Frozen<'_>, FreezeError> {
        if self.freezer.wanted.swap(true, Ordering::SeqCst) {
            return Err(FreezeError::Busy);
        }
        let mut frozen = Frozen { process: self, threads: Vec::new() };
        let deadline = Instant::now() + limit;
        self.wake_stopped();
        let mut repeat = REPEAT;
        loop {
            let threads = self.threads();
            let still = lock(&self.freezer.still);
            if self.ending().is_some() {
                return Err(FreezeError::Ended);
            }
            let moving = threads.iter().find(|thread| !still.images.iter().any(|image| image.tid == thread.tid()));
            let Some(moving) = moving else {
                // In their own order: signals look for a thread in it.
                let image = |thread: &Arc<Thread>| still.images.iter().find(|image| image.tid == thread.tid()).cloned();
                frozen.threads = threads.iter().filter_map(image).collect();
                return Ok(frozen);
            };
            if Instant::now() >= deadline {
                return Err(FreezeError::Late(moving.tid()));
            }
            let missing: Vec<_> =
                threads.iter().filter(|thread| !still.images.iter().any(|image| image.tid == thread.tid())).collect();
            drop(still);
            for thread in missing {
                thread.call_to_freeze();
            }
            let until = Instant::now() + repeat;
            repeat = (repeat * 2).min(SELDOM);
            let mut still = lock(&self.freezer.still);
            while still.images.len() < threads.len() && self.ending().is_none() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                still = self.freezer.changed.wait_timeout(still, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl GuestThread {
    /// Whether the thread shall stand still, and nothing else is wanted of it first.
    pub fn shall_only_freeze(&self) -> bool {
        self.process.freezer.is_wanted() && !self.signal_waits() && !self.process.must_end(self.thread.tid())
    }

    /// Stands still for as long as it is wanted. `call` is the system call that the thread is in.
    pub fn stand_still(&mut self, cpu: &mut UserCpu, call: Option<CallImage>) {
        // The poller has nothing of this thread any more.
        self.leave_slot(cpu);
        self.count(cpu);
        match self.image(cpu, call) {
            Ok(image) => {
                let process = self.process.clone();
                process.freezer.park(image, &process);
            }
            Err(errno) => {
                tracing::error!(pid = self.process.pid, %errno, "a thread's state cannot be had");
                std::thread::sleep(REPEAT);
            }
        }
        // What came meanwhile is looked at.
        self.thread.notify_self();
    }

    /// Whether a call goes on in which the thread stood still: `false` if the thread is to end. What came
    /// meanwhile breaks it off at once.
    pub fn is_to_go_on(&self) -> bool {
        self.thread.take_attention();
        if self.process.must_end(self.thread.tid()) {
            return false;
        }
        if self.signal_waits() || self.process.is_stopped() {
            self.thread.notify();
        }
        true
    }

    fn image(&self, cpu: &UserCpu, call: Option<CallImage>) -> Result<ThreadImage, Errno> {
        let fpu = cpu.fpu().map_err(|_| Errno::EIO)?;
        let own = lock(&self.thread.signals).clone();
        Ok(ThreadImage {
            tid: self.thread.tid(),
            // A stub may have read what is another thread's at the target's place of that name.
            regs: self.space.visible_place(cpu.regs()).to_words(),
            bases: cpu.segment_bases(),
            fpu,
            mask: own.mask,
            saved_mask: own.saved_mask,
            pending: own.pending,
            chosen: own.chosen,
            altstack: own.altstack,
            clear_tid: self.thread.clear_tid.load(Ordering::Relaxed),
            robust_list: self.thread.robust_list.load(Ordering::Relaxed),
            last_fault: self.last_fault,
            usage: self.thread.usage(),
            charged: self.thread.charged.load(Ordering::Relaxed),
            affinity: self.thread.own_affinity(),
            at_home: self.thread.hidden_affinity().map(CpuSet::to_bytes),
            seq: lock(&self.channel).seq(),
            call,
        })
    }
}
