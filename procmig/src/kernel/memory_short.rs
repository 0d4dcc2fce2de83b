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
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

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
    /// The node has no memory left for a page that `process` needs. Returns when there is some, or when
    /// the process itself must end; `false` if there will be none.
    pub fn relieve(&self, process: &Process) -> bool {
        self.files.shrink();
        let deadline = Instant::now() + PATIENCE;
        while process.ending().is_none() {
            if self.machine.frames().free() >= RESERVED_FRAMES {
                return true;
            }
            {
                // One after the other: who comes second sees the end that the first began.
                let _choosing = lock(&self.choosing);
                let processes = self.processes();
                let ends = self.leaving.is_any() || processes.iter().any(|process| process.ending().is_some());
                if !ends && !kill_the_largest(processes) {
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

fn kill_the_largest(processes: Vec<Arc<Process>>) -> bool {
    let resident = |process: &Arc<Process>| process.space().map_or(0, |space| space.resident());
    let Some((bytes, victim)) =
        processes.into_iter().map(|process| (resident(&process), process)).max_by_key(|(bytes, _)| *bytes)
    else {
        return false;
    };
    tracing::warn!(
        pid = victim.pid,
        mib = bytes >> 20,
        "killed: the node's memory is used up; give the node more (skein node launch --memory)"
    );
    victim.begin_exit(Ending::Signal(libc::SIGKILL));
    true
}
