//! Which frames are written, by the guest and by the VMM, while somebody wants to know.
//!
//! The hypervisor's log is one for the whole memory and is emptied when it is read; several may want to know at a
//! time, so each has a set of its own, and whoever looks shares out what the log has to all.
//!
//! The log goes on for a moment after the last has gone: to end it takes the hypervisor long where the guest is busy, so
//! nobody waits for that, and who comes meanwhile finds it on.

use crate::addr::{Frame, GuestPhysAddr, PAGE_SIZE};
use crate::hypervisor::HypervisorError;
use crate::machine::Machine;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// For so long nobody wants to know when the log is ended.
const REST: Duration = Duration::from_secs(1);

/// A set of frames.
#[derive(Debug, Clone, Default)]
pub struct FrameSet {
    words: Vec<u64>,
}

impl FrameSet {
    /// Whether a frame is in it.
    pub fn contains(&self, frame: Frame) -> bool {
        self.words.get(frame.0 as usize / 64).is_some_and(|word| word & 1 << (frame.0 % 64) != 0)
    }

    /// Adds another set.
    pub fn add(&mut self, other: &Self) {
        self.add_all(&other.words);
    }

    fn add_all(&mut self, words: &[u64]) {
        if self.words.len() < words.len() {
            self.words.resize(words.len(), 0);
        }
        for (own, more) in self.words.iter_mut().zip(words) {
            *own |= more;
        }
    }
}

/// What the VMM itself writes, noted while somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct OwnWrites {
    wanted: AtomicBool,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl OwnWrites {
    /// Notes that a range was written; after it was.
    pub(crate) fn note(&self, at: GuestPhysAddr, bytes: u64) {
        if self.wanted.load(Ordering::Relaxed) {
            self.set(at, bytes);
        }
    }

    #[cold]
    fn set(&self, at: GuestPhysAddr, bytes: u64) {
        let Some(words) = self.words.get() else { return };
        for frame in at.raw() / PAGE_SIZE..(at.raw() + bytes).div_ceil(PAGE_SIZE) {
            if let Some(word) = words.get(frame as usize / 64) {
                word.fetch_or(1 << (frame % 64), Ordering::SeqCst);
            }
        }
    }

    fn start(&self, bytes: u64) {
        let count = (bytes / PAGE_SIZE).div_ceil(64);
        self.words.get_or_init(|| (0..count).map(|_| AtomicU64::new(0)).collect());
        // What was noted when nobody wanted to know any more is of no interest.
        self.take();
        self.wanted.store(true, Ordering::SeqCst);
        barrier();
    }

    fn take(&self) -> Vec<u64> {
        let words = self.words.get().map_or(&[][..], |words| words);
        words
            .iter()
            .map(|word| if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::SeqCst) })
            .collect()
    }
}

/// When it returns every thread of this process has seen what this one has written before, and what it has
/// written itself can be seen: one that has written and then not seen that it is to note it has been early enough.
fn barrier() {
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers.
    unsafe {
        let command = |command: libc::c_int| libc::syscall(libc::SYS_membarrier, command, 0, 0);
        command(REGISTER_PRIVATE_EXPEDITED);
        if command(PRIVATE_EXPEDITED) != 0 {
            command(GLOBAL);
        }
    }
}

/// Who wants to know what is written.
#[derive(Debug, Default)]
pub(crate) struct Trackers(Mutex<Sets>);

#[derive(Debug, Default)]
struct Sets {
    next: u64,
    sets: Vec<(u64, FrameSet)>,
    log: Log,
    /// When the last has gone, if none has come since.
    idle_since: Option<Instant>,
}

/// The hypervisor's log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Log {
    #[default]
    Off,
    On,
    /// On, and a thread ends it when nobody has wanted it for a moment.
    Ending,
}

impl Sets {
    /// Ends the log.
    fn end(&mut self, machine: &Machine) {
        machine.ram().own_writes().wanted.store(false, Ordering::SeqCst);
        self.log = Log::Off;
        if let Err(error) = machine.vm().stop_dirty_log() {
            tracing::warn!(%error, "the dirty log goes on");
        }
    }
}

/// Ends the log of a machine when nobody has wanted it for a moment.
fn end_later(machine: &Arc<Machine>) {
    loop {
        let mut sets = machine.trackers().lock();
        match sets.idle_since.map(|since| since.elapsed()) {
            Some(idle) if idle >= REST => return sets.end(machine),
            // Whoever is last sees to it again.
            None => return sets.log = Log::On,
            Some(idle) => {
                drop(sets);
                std::thread::sleep(REST.saturating_sub(idle));
            }
        }
    }
}

impl Trackers {
    fn lock(&self) -> MutexGuard<'_, Sets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes what is written until it is dropped.
pub struct Tracker {
    machine: Arc<Machine>,
    id: u64,
}

impl Tracker {
    /// Begins to note.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    pub fn start(machine: &Arc<Machine>) -> Result<Self, HypervisorError> {
        let mut sets = machine.trackers().lock();
        if sets.log == Log::Off {
            machine.vm().start_dirty_log()?;
            machine.ram().own_writes().start(machine.ram().size());
            sets.log = Log::On;
        } else if sets.sets.is_empty() {
            // What was written before is of no interest.
            machine.vm().read_dirty_log()?;
            machine.ram().own_writes().take();
        }
        sets.idle_since = None;
        let id = sets.next;
        sets.next += 1;
        sets.sets.push((id, FrameSet::default()));
        drop(sets);
        Ok(Self { machine: machine.clone(), id })
    }

    /// The frames that were written since it was started or this was last asked, and perhaps others.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    pub fn take(&self) -> Result<FrameSet, HypervisorError> {
        let mut sets = self.machine.trackers().lock();
        let guests = self.machine.vm().read_dirty_log()?;
        let own = self.machine.ram().own_writes().take();
        for (_, set) in &mut sets.sets {
            set.add_all(&guests);
            set.add_all(&own);
        }
        let mine = sets.sets.iter_mut().find(|(id, _)| *id == self.id);
        Ok(mine.map(|(_, set)| std::mem::take(set)).unwrap_or_default())
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let mut sets = self.machine.trackers().lock();
        sets.sets.retain(|(id, _)| *id != self.id);
        if !sets.sets.is_empty() {
            return;
        }
        sets.idle_since = Some(Instant::now());
        if sets.log == Log::On {
            let machine = self.machine.clone();
            let thread = std::thread::Builder::new().name("dirty log".into()).stack_size(64 << 10);
            match thread.spawn(move || end_later(&machine)) {
                Ok(_) => sets.log = Log::Ending,
                Err(_) => sets.end(&self.machine),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::LARGE_PAGE_SIZE;
    use crate::ram::{Backing, GuestRam};

    #[test]
    fn what_the_vmm_writes_is_noted_only_while_it_is_wanted() {
        let ram = GuestRam::new(LARGE_PAGE_SIZE, Backing::Anonymous).unwrap();
        ram.write(GuestPhysAddr(4096), b"before");
        ram.own_writes().start(ram.size());
        ram.write(GuestPhysAddr(3 * 4096 - 2), b"four");
        ram.store(GuestPhysAddr(9 * 4096), 1);
        ram.copy_frame(Frame(1), Frame(70));
        let mut set = FrameSet::default();
        set.add_all(&ram.own_writes().take());
        let noted: Vec<u32> = (0..512).filter(|&frame| set.contains(Frame(frame))).collect();
        assert_eq!(noted, [2, 3, 9, 70]);
        assert!(ram.own_writes().take().iter().all(|&word| word == 0));
    }
}
