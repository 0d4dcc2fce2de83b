//! What the node of a process says of it, to whoever may hear it.

use super::{figures, maps};
use crate::kernel::lock;
use crate::kernel::process::Process;
use crate::kernel::thread::Thread;
use crate::mm::ProcessMemory;
use crate::usermem::UserMemory;
use crate::wire::bytes::Bytes;
use crate::wire::control::Ids;
use crate::wire::inquiry::{File, Told};
use nix::errno::Errno;
use std::sync::Arc;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Most bytes of arguments or environment that are shown, more than a program can be given.
const MAX_STRINGS: u64 = 8 << 20;

/// A file of a process of this node.
pub struct Target {
    /// The process.
    pub process: Arc<Process>,
    /// The thread that is asked about, unless it has ended.
    thread: Option<Arc<Thread>>,
    /// That thread alone is meant.
    alone: bool,
    file: File,
}

impl Target {
    /// The file of the process, or of one of its threads. `None` if there is no such thread: it is not found at
    /// home either, or is none of the guest's.
    pub fn new(process: Arc<Process>, thread: Option<i32>, file: File) -> Option<Self> {
        let alone = thread.is_some();
        let thread = match thread {
            Some(tid) => Some(process.thread(tid)?),
            None => process.thread(process.pid),
        };
        Some(Self { process, thread, alone, file })
    }
}

/// Who looks.
pub struct Viewer<'a> {
    /// With the rights of these.
    pub ids: Ids,
    /// The process and its thread, if they are in this node.
    pub here: Option<(&'a Arc<Process>, &'a Thread)>,
}

impl Viewer<'_> {
    /// Whether Linux would show the viewer the process's addresses (`PTRACE_MODE_READ`).
    fn may_inspect(&self, process: &Arc<Process>) -> bool {
        if self.here.is_some_and(|(own, _)| Arc::ptr_eq(own, process)) {
            return true;
        }
        let (caller, other) = (self.ids, lock(&process.identity).ids);
        let same = [other.uid, other.euid] == [caller.uid; 2] && [other.gid, other.egid] == [caller.gid; 2];
        same || caller.euid == 0
    }
}

/// What goes into a file; `read` gives the [`strings`] of the process.
pub fn tell(target: &Target, viewer: &Viewer<'_>, read: impl FnOnce() -> Result<Bytes, Errno>) -> Told {
    let Target { process, thread, alone, file } = target;
    let shows_all = viewer.may_inspect(process);
    let secret = matches!(file, File::Executable | File::Maps | File::Auxiliary | File::Environment);
    if secret && !shows_all {
        return Told::Refused(libc::EACCES);
    }
    match file {
        File::Executable => Told::Path(lock(&process.identity).executable.clone()),
        File::Maps => Told::Bytes(Bytes(process.space().map_or(Vec::new(), |space| maps::maps(&space.regions())))),
        File::Auxiliary => Told::Bytes(Bytes(lock(&process.identity).auxiliary.clone())),
        File::Environment | File::CommandLine => read().map_or_else(|errno| Told::Refused(errno as i32), Told::Bytes),
        File::Limits => {
            let limits = &lock(&process.identity).limits;
            Told::Limits(limits.iter().map(|(&resource, &(soft, hard))| (resource, soft, hard)).collect())
        }
        File::StatM | File::Status | File::Stat => {
            let caller = viewer.here.map(|(_, thread)| thread);
            let mut figures = figures::of(process, thread.as_deref(), *alone, caller);
            if !shows_all {
                figures.hide_addresses();
            }
            Told::Figures(Box::new(figures))
        }
        // It would be the deputy's.
        File::Memory => Told::Refused(libc::EACCES),
        File::Pages => Told::Refused(libc::ENOENT),
    }
}

/// The arguments or the environment of a process, as its memory has them now.
pub fn strings(cpu: &mut UserCpu, process: &Process, file: File) -> Vec<u8> {
    if file == File::Environment {
        let places = lock(&process.identity).places;
        read(cpu, process, places.environment)
    } else {
        command_line(cpu, process)
    }
}

/// Bytes of a process's stack; as many as there are.
fn read(cpu: &mut UserCpu, process: &Process, (start, end): (u64, u64)) -> Vec<u8> {
    let Some(space) = process.space() else { return Vec::new() };
    let mut bytes = vec![0; end.saturating_sub(start).min(MAX_STRINGS) as usize];
    match ProcessMemory::new(&space, cpu).read(GuestVirtAddr(start), &mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// As Linux: the arguments as they are now. A program that wrote a title over them, beyond their end,
/// shows the title.
fn command_line(cpu: &mut UserCpu, process: &Process) -> Vec<u8> {
    let places = lock(&process.identity).places;
    let arguments = read(cpu, process, places.arguments);
    if arguments.last().is_none_or(|&last| last == 0) {
        return arguments;
    }
    let mut title = read(cpu, process, (places.arguments.0, places.environment.1));
    if let Some(end) = title.iter().position(|&byte| byte == 0) {
        title.truncate(end + 1);
    }
    title
}
