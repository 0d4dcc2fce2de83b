//! The personality: a node VM as the Linux kernel of its guest processes.
//!
//! Each guest thread is a host thread that runs a vCPU ([`guest`]): it leaves the guest for a system
//! call ([`syscalls`]), a fault or an interruption, and looks for signals ([`deliver`]) before it
//! goes back in. What a process or thread is lies in [`process`] and [`thread`], reached from the
//! one [`Kernel`]; a host thread's stack holds nothing that cannot be made again from there.

pub mod actions;
pub mod affinity;
pub mod deadline;
pub mod deliver;
pub mod descriptors;
mod doors;
mod exec;
pub mod exitless;
pub mod freeze;
pub mod group;
pub mod guest;
pub mod handed;
pub mod host_thread;
mod housekeeping;
pub mod inquiries;
pub mod links;
pub mod memory_short;
mod near;
pub mod neighbours;
pub mod pool;
pub mod priority;
mod proc_files;
pub mod process;
pub mod relay;
pub mod remote;
mod start;
pub mod syscalls;
pub mod tally;
pub mod thread;
pub mod time;
pub mod timers;
mod waiter;
pub mod ways;

use crate::futex::FutexTable;
use crate::migration::target::arrival::Arrivals;
use crate::migration::target::gathering::Gatherings;
use crate::mm::file::FileCache;
use crate::mm::segments::Segments;
use crate::signal::frame::FpuLayout;
use crate::wire::usage::Usage;
use nix::errno::Errno;
use process::{Presence, Process};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;
use time::Time;
use vmm::machine::Machine;

/// Locks, also where a thread has panicked while it held the lock: what it protects is whole
/// between two statements, and the other guests must go on.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Most refusals that are remembered; what comes after them is not logged: a guest must not fill the disk.
const MAX_REFUSALS: usize = 4096;

/// In `AT_HWCAP2`: programs may use `wrfsbase` and its kin.
pub(crate) const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Ended processes that are kept for their parents before it is looked whether those are still there, and at most.
const FEW_ENDED: usize = 1024;
const MAX_ENDED: usize = 64 << 10;

/// Why a node's kernel cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No memory for what every process maps.
    #[error("the node has too little memory")]
    Memory,
    /// The processor's vector state is not what the personality knows.
    #[error("the processor's vector state has an impossible size")]
    Fpu,
    /// A host thread or descriptor could not be had.
    #[error("the host has no resources left")]
    Host(#[from] std::io::Error),
    /// A vCPU could not be made.
    #[error(transparent)]
    Machine(#[from] vmm::machine::MachineError),
}

/// What a process has used that has ended and was not waited for yet.
#[derive(Debug, Clone, Copy)]
struct Ended {
    parent: i32,
    /// Its waited-for children's too.
    usage: Usage,
}

/// All state of a node.
pub struct Kernel {
    /// The node's name.
    pub name: String,
    /// The VM.
    pub machine: Arc<Machine>,
    /// Mapped files of home.
    pub files: FileCache,
    /// Attached System V segments of home.
    pub segments: Segments,
    /// Waits on words of memory.
    pub futexes: FutexTable,
    /// The clocks of this host's guests.
    pub time: Time,
    /// vCPUs with the host threads that run them.
    pub pool: pool::Pool,
    /// Who serves calls that come without an exit.
    pub poller: exitless::poller::Poller,
    /// Threads that run beside their deputies.
    near: near::Near,
    /// Deadlines.
    pub timers: timers::Timers,
    /// Control connections of deputies.
    pub relay: relay::Relay,
    /// Shape of the vector state in signal frames.
    pub fpu: FpuLayout,
    /// `AT_HWCAP`
    pub hwcap: u64,
    /// `AT_HWCAP2`
    pub hwcap2: u64,
    /// Links with other hosts.
    pub links: links::Links,
    /// Where connections from other hosts come.
    doors: doors::Doors,
    /// The other nodes of this host.
    pub neighbours: neighbours::Neighbours,
    /// By the number of their home, 0 for this host, and PID there.
    processes: Mutex<HashMap<(u32, i32), Arc<Process>>>,
    ended: Mutex<HashMap<(u32, i32), Ended>>,
    /// Processes that have arrived from other nodes and wait for their deputies.
    pub arrivals: Arrivals,
    /// Processes that arrive over several streams.
    pub gatherings: Gatherings,
    /// Processes that have left and whose memory not all has.
    pub owing: AtomicUsize,
    /// Processes whose memory is about to be free.
    pub leaving: memory_short::Leaving,
    /// Held while it is decided who is killed for its memory.
    choosing: Mutex<()>,
    /// Calls that were refused, by the program's name and the number, so that each is logged once.
    refused: Mutex<HashSet<(Vec<u8>, u32)>>,
    /// When the node was ready.
    pub ready: Instant,
    stopping: AtomicBool,
}

impl Kernel {
    /// The kernel of a machine, without processes.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn new(name: String, machine: Arc<Machine>) -> Result<Arc<Self>, KernelError> {
        let time = Time::new(&machine, None)?;
        let (features, size) = xsave_layout();
        // SAFETY: it reads what the kernel has told this process.
        let own_hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
        let fpu = FpuLayout::new(features, size).ok_or(KernelError::Fpu)?;
        Ok(Arc::new_cyclic(|kernel: &Weak<Self>| Self {
            name,
            files: FileCache::new(machine.clone()),
            segments: Segments::new(machine.clone()),
            futexes: FutexTable::new(),
            time,
            pool: pool::Pool::new(machine.clone()),
            poller: exitless::poller::Poller::default(),
            near: near::Near::default(),
            timers: timers::Timers::new(),
            relay: relay::Relay::new(kernel.clone()),
            fpu,
            hwcap: u64::from(std::arch::x86_64::__cpuid(1).edx),
            hwcap2: own_hwcap2 & HWCAP2_FSGSBASE,
            links: links::Links::default(),
            doors: doors::Doors::default(),
            neighbours: neighbours::Neighbours::default(),
            processes: Mutex::default(),
            ended: Mutex::default(),
            arrivals: Arrivals::default(),
            gatherings: Gatherings::default(),
            owing: AtomicUsize::new(0),
            leaving: memory_short::Leaving::default(),
            choosing: Mutex::default(),
            refused: Mutex::default(),
            ready: Instant::now(),
            stopping: AtomicBool::new(false),
            machine,
        }))
    }

    /// The process with this PID of the home with this number.
    pub fn process_of(&self, home: u32, pid: i32) -> Option<Arc<Process>> {
        lock(&self.processes).get(&(home, pid)).cloned()
    }

    /// All processes.
    pub fn processes(&self) -> Vec<Arc<Process>> {
        lock(&self.processes).values().cloned().collect()
    }

    /// Enters a process.
    ///
    /// # Errors
    /// `EAGAIN` if the node is stopping, `EEXIST` if its home has one with this PID.
    pub fn enter(&self, process: &Arc<Process>) -> Result<(), Errno> {
        let mut processes = lock(&self.processes);
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Errno::EAGAIN);
        }
        match processes.entry((process.home(), process.pid)) {
            std::collections::hash_map::Entry::Occupied(_) => Err(Errno::EEXIST),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(process.clone());
                if process.home() == 0 {
                    self.neighbours.note(process.pid);
                }
                Ok(())
            }
        }
    }

    /// Takes a process out, if it is this one that has the PID.
    pub fn leave(&self, process: &Process) {
        let mut processes = lock(&self.processes);
        let key = (process.home(), process.pid);
        if processes.get(&key).is_some_and(|other| std::ptr::eq(&**other, process)) {
            processes.remove(&key);
        }
    }

    /// Keeps what a process has used for its parent, if that is a guest that will wait, here or in another node of
    /// this host.
    pub fn keep_usage(&self, process: &Process) {
        if process.presence() != Presence::Here {
            // It goes on elsewhere.
            return;
        }
        let parent = process.parent;
        let home = process.home();
        let has_parent = match self.process_of(home, parent).filter(|parent| parent.presence() == Presence::Here) {
            Some(parent) => parent.waits_for_children(),
            // At another node, or on its way.
            None => home == 0 && self.neighbours.place_of(parent).is_some(),
        };
        let mut usage = process.usage();
        usage.add(&process.children_usage());
        let mut ended = lock(&self.ended);
        // Its own children have another parent now.
        ended.retain(|(of, _), child| (*of, child.parent) != (home, process.pid));
        if ended.len() >= FEW_ENDED {
            // Parents at other nodes may have ended without a word.
            let is_there = |pid: i32| home_has(pid);
            ended.retain(|(of, _), child| *of != 0 || is_there(child.parent));
        }
        if ended.len() >= MAX_ENDED {
            return;
        }
        if has_parent {
            ended.insert((home, process.pid), Ended { parent, usage });
        }
    }

    /// What a process has used that has ended.
    pub fn usage(&self, home: u32, pid: i32) -> Option<Usage> {
        lock(&self.ended).get(&(home, pid)).map(|ended| ended.usage)
    }

    /// The same, once.
    pub fn take_usage(&self, home: u32, pid: i32) -> Option<Usage> {
        lock(&self.ended).remove(&(home, pid)).map(|ended| ended.usage)
    }

    /// Whether a refusal of this call to this program is to be logged: the first time.
    pub fn first_refusal(&self, program: &[u8], nr: u32) -> bool {
        let mut refused = lock(&self.refused);
        refused.len() < MAX_REFUSALS && refused.insert((program.to_vec(), nr))
    }

    /// Lets no process in any more; returns whether there is none. With `force` all are killed.
    pub fn stop(&self, force: bool) -> bool {
        let processes = {
            let processes = lock(&self.processes);
            if !(processes.is_empty() && self.owing.load(Ordering::SeqCst) == 0 || force) {
                return false;
            }
            self.stopping.store(true, Ordering::SeqCst);
            processes.values().cloned().collect::<Vec<_>>()
        };
        for process in processes {
            process.begin_exit(process::Ending::Signal(libc::SIGKILL));
        }
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        while !lock(&self.processes).is_empty() && Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        true
    }
}

/// Whether this host has a process with this PID.
fn home_has(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// XCR0 as guests have it, and the bytes of its state in the standard format.
fn xsave_layout() -> (u64, usize) {
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    let features = (u64::from(leaf.eax) | u64::from(leaf.edx) << 32) & vmm::hypervisor::OFFERED_XCR0;
    // The end of the last offered component.
    let size = (2..63)
        .filter(|bit| features & 1 << bit != 0)
        .map(|bit| {
            let component = std::arch::x86_64::__cpuid_count(0xd, bit);
            (component.ebx + component.eax) as usize
        })
        .max()
        .unwrap_or(0)
        .max(576);
    (features, size)
}
