//! What is done when memory is used up: the process that has most of it is killed, as Linux does, and
//! whoever needed a page waits until that one's memory is free.

use super::process::{Ending, Process};
use super::{Kernel, lock};
use crate::mm::RESERVED_FRAMES;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long memory that is about to be free is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the memory of ended processes is waited for where it must not be seen, which takes some hundred
/// microseconds.
pub const LINGER: Duration = Duration::from_millis(50);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// Whose memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The node's.
    Node,
    /// That of a program with all that it has started, which may have only so much.
    Group,
}

/// Processes that have ended and whose memory is not free yet.
#[derive(Debug, Default)]
pub struct Leaving(Arc<AtomicUsize>);

/// One of them; until it is dropped.
#[derive(Debug)]
pub struct Leaver(Arc<AtomicUsize>);

impl Leaving {
    /// A process is about to give up its memory.
    pub fn begin(&self) -> Leaver {
        self.0.fetch_add(1, Ordering::SeqCst);
        Leaver(self.0.clone())
    }

    /// Waits until all that have ended have given up their memory, for this long at most.
    pub fn wait(&self, most: Duration) {
        let deadline = Instant::now() + most;
        while self.is_any() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn is_any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Kernel {
    /// There is no memory left for a page that `process` needs. Returns when there is some, or when the
    /// process itself must end; `false` if there will be none.
    pub fn relieve(&self, process: &Process, whose: Whose) -> bool {
        if whose == Whose::Node {
            self.files.shrink();
        }
        let deadline = Instant::now() + PATIENCE;
        while process.ending().is_none() {
            let is_enough = match whose {
                Whose::Node => self.machine.frames().free() >= RESERVED_FRAMES,
                Whose::Group => !process.group.is_full(),
            };
            if is_enough {
                return true;
            }
            {
                // One after the other: who comes second sees the end that the first began.
                let _choosing = lock(&self.choosing);
                let mut processes = self.processes();
                processes.retain(|other| whose == Whose::Node || Arc::ptr_eq(&other.group, &process.group));
                let ends = self.leaving.is_any() || processes.iter().any(|process| process.ending().is_some());
                if !ends && !kill_the_largest(processes, whose) {
                    return false;
                }
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

fn kill_the_largest(processes: Vec<Arc<Process>>, whose: Whose) -> bool {
    let resident = |process: &Arc<Process>| process.space().map_or(0, |space| space.resident());
    let Some((bytes, victim)) =
        processes.into_iter().map(|process| (resident(&process), process)).max_by_key(|(bytes, _)| *bytes)
    else {
        return false;
    };
    let why = match whose {
        Whose::Node => "the node's memory is used up; give the node more (skein node launch --memory)",
        Whose::Group => "its program has all the memory that it may have (mosrun -m)",
    };
    tracing::warn!(pid = victim.pid, mib = bytes >> 20, "killed: {why}");
    victim.begin_exit(Ending::Signal(libc::SIGKILL));
    true
}
