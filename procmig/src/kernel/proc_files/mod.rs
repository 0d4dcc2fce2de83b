//! Files of `/proc` that must show the guest and not its deputy.

mod figures;
mod limits;
mod maps;
mod path;
mod texts;

use super::guest::{GuestThread, Lost, failure};
use super::lock;
use super::process::Process;
use super::syscalls::{Outcome, forward_with_path};
use super::thread::Thread;
use crate::mm::ProcessMemory;
use crate::usermem::UserMemory;
use crate::wire::op::Op;
use nix::errno::Errno;
use path::{File, Whose};
use std::sync::Arc;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Longest path that is looked at.
const MAX_PATH: usize = 4096;
/// Most bytes of home's texts.
const MAX_TEXT: u32 = 64 << 10;
/// Most bytes of arguments or environment that are shown, more than a program can be given.
const MAX_STRINGS: u64 = 8 << 20;

/// What a call wants of a path.
enum Wish {
    /// To open it with these flags.
    Open(u64),
    /// To read the link into this buffer of this size.
    ReadLink(u64, u64),
    /// To look at what a link leads to.
    Look,
}

/// A process's file that a path means.
struct Target {
    process: Arc<Process>,
    /// The thread that is asked about, unless it has ended.
    thread: Option<Arc<Thread>>,
    /// That thread alone is meant.
    alone: bool,
    file: File,
}

/// The program's path, if `path` is the link to it of a process in this node.
pub fn own_executable(guest: &GuestThread, path: &[u8]) -> Option<Vec<u8>> {
    let target = find(guest, path)?;
    let allowed = target.file == File::Executable && may_inspect(guest, &target.process);
    allowed.then(|| lock(&target.process.identity).executable.clone())
}

/// Serves a call with a path that means such a file; `None` for every other.
pub fn serve(guest: &mut GuestThread, cpu: &mut UserCpu, nr: i64, args: &[u64; 6]) -> Option<Outcome> {
    let at = match nr {
        libc::SYS_open | libc::SYS_readlink | libc::SYS_stat | libc::SYS_access => args[0],
        _ => args[1],
    };
    let path = guest.with_memory(cpu, |memory| {
        // Most paths are not of /proc: their first bytes tell.
        let mut head = [0; 6];
        memory.read(GuestVirtAddr(at), &mut head).ok()?;
        if head != *b"/proc/" {
            return None;
        }
        memory.read_string(GuestVirtAddr(at), MAX_PATH).ok()
    })?;
    let target = find(guest, &path)?;
    let wish = wish(guest, cpu, nr, args)?;
    let executable = target.file == File::Executable;
    match wish {
        // A link to be opened as one, or what a text cannot be: home knows what to say.
        Wish::Open(flags) if flags & (libc::O_PATH | libc::O_DIRECTORY) as u64 != 0 && !executable => return None,
        Wish::Open(flags) if flags & libc::O_NOFOLLOW as u64 != 0 && executable => return None,
        Wish::ReadLink(..) | Wish::Look if !executable => return None,
        _ => {}
    }
    let secret = matches!(target.file, File::Executable | File::Maps | File::Auxiliary | File::Environment);
    if secret && !may_inspect(guest, &target.process) {
        return Some(Outcome::Return(failure(Errno::EACCES)));
    }
    if executable {
        let program = lock(&target.process.identity).executable.clone();
        return Some(match wish {
            Wish::ReadLink(buffer, size) => read_link(guest, cpu, &program, buffer, size),
            _ => forward_with_path(guest, cpu, nr as u32, args, (at, program)),
        });
    }
    let Wish::Open(flags) = wish else { return None };
    Some(match open(guest, cpu, &target, &path, flags) {
        Ok(Ok(descriptor)) => Outcome::Return(descriptor),
        Ok(Err(errno)) => Outcome::Return(failure(errno)),
        Err(Lost) => Outcome::End,
    })
}

/// What a call wants; `None` if it can be nothing of ours.
fn wish(guest: &GuestThread, cpu: &mut UserCpu, nr: i64, args: &[u64; 6]) -> Option<Wish> {
    /// Bytes of an `open_how`.
    const OPEN_HOW: u64 = 24;
    let followed = |flags: u64| (flags & libc::AT_SYMLINK_NOFOLLOW as u64 == 0).then_some(Wish::Look);
    match nr {
        libc::SYS_open => Some(Wish::Open(args[1])),
        libc::SYS_openat => Some(Wish::Open(args[2])),
        libc::SYS_openat2 if args[3] >= OPEN_HOW => guest.with_memory(cpu, |memory| {
            let flags = memory.read_u64(GuestVirtAddr(args[2])).ok()?;
            // Restrictions of the look-up are home's to judge.
            let resolve = memory.read_u64(GuestVirtAddr(args[2].checked_add(16)?)).ok()?;
            (resolve == 0).then_some(Wish::Open(flags))
        }),
        libc::SYS_readlink => Some(Wish::ReadLink(args[1], args[2])),
        libc::SYS_readlinkat => Some(Wish::ReadLink(args[2], args[3])),
        libc::SYS_stat | libc::SYS_access | libc::SYS_faccessat => Some(Wish::Look),
        libc::SYS_newfstatat | libc::SYS_faccessat2 => followed(args[3]),
        libc::SYS_statx => followed(args[2]),
        _ => None,
    }
}

/// Finds the process and thread that a path means.
fn find(guest: &GuestThread, path: &[u8]) -> Option<Target> {
    let meant = path::parse(path)?;
    let process = match meant.whose {
        Whose::Own | Whose::OwnThread => guest.process.clone(),
        Whose::Process(pid) if pid == guest.process.pid => guest.process.clone(),
        Whose::Process(pid) => guest.kernel().process_of(guest.process.home(), pid)?,
    };
    let thread = match (meant.whose, meant.thread) {
        // A thread that is not there is not found at home either, or is none of the guest's.
        (_, Some(tid)) => Some(process.thread(tid)?),
        (Whose::OwnThread, None) => Some(guest.thread.clone()),
        (_, None) => process.thread(process.pid),
    };
    let alone = meant.thread.is_some() || meant.whose == Whose::OwnThread;
    Some(Target { process, thread, alone, file: meant.file })
}

/// Whether Linux would show the caller another process's addresses (`PTRACE_MODE_READ`).
fn may_inspect(guest: &GuestThread, process: &Arc<Process>) -> bool {
    if Arc::ptr_eq(&guest.process, process) {
        return true;
    }
    let caller = lock(&guest.process.identity).ids;
    let other = lock(&process.identity).ids;
    let same = [other.uid, other.euid] == [caller.uid; 2] && [other.gid, other.egid] == [caller.gid; 2];
    same || caller.euid == 0
}

/// Opens a file of the node's making.
fn open(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    target: &Target,
    path: &[u8],
    flags: u64,
) -> Result<Result<i64, Errno>, Lost> {
    let content = match content(guest, cpu, target, path)? {
        // All of them are read-only.
        Ok(_) if flags & libc::O_ACCMODE as u64 != libc::O_RDONLY as u64 => return Ok(Err(Errno::EACCES)),
        Ok(content) => content,
        Err(errno) => return Ok(Err(errno)),
    };
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
    let reply = guest.op(&Op::MemoryFile { name, content, close_on_exec: flags & libc::O_CLOEXEC as u64 != 0 })?;
    Ok(Ok(reply.ret))
}

fn content(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    target: &Target,
    path: &[u8],
) -> Result<Result<Vec<u8>, Errno>, Lost> {
    let process = &target.process;
    let places = lock(&process.identity).places;
    let figures = |guest: &GuestThread| figures::of(process, target.thread.as_deref(), target.alone, &guest.thread);
    Ok(Ok(match target.file {
        File::Maps => process.space().map_or(Vec::new(), |space| maps::maps(&space.regions())),
        File::Auxiliary => lock(&process.identity).auxiliary.clone(),
        File::Environment => strings(cpu, process, places.environment),
        File::CommandLine => command_line(cpu, process),
        File::StatM => texts::statm(&figures(guest)),
        File::Limits => {
            let reply = guest.op(&Op::ReadFile { path: path.to_vec(), limit: MAX_TEXT })?;
            if reply.ret < 0 {
                return Ok(Err(Errno::from_raw(-reply.ret as i32)));
            }
            let kept = lock(&process.identity).limits.clone();
            limits::text(&reply.payload, |resource| kept.get(&resource).copied())
        }
        File::Status | File::Stat => {
            let reply = guest.op(&Op::ReadFile { path: path.to_vec(), limit: MAX_TEXT })?;
            if reply.ret < 0 {
                return Ok(Err(Errno::from_raw(-reply.ret as i32)));
            }
            let figures = figures(guest);
            if target.file == File::Status {
                texts::status(&reply.payload, &figures)
            } else {
                texts::stat(&reply.payload, &figures, may_inspect(guest, process))
            }
        }
        // It would be the deputy's.
        File::Memory => return Ok(Err(Errno::EACCES)),
        File::Pages | File::Executable => return Ok(Err(Errno::ENOENT)),
    }))
}

/// Bytes of a process's stack; as many as there are.
fn strings(cpu: &mut UserCpu, process: &Process, (start, end): (u64, u64)) -> Vec<u8> {
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
    let arguments = strings(cpu, process, places.arguments);
    if arguments.last().is_none_or(|&last| last == 0) {
        return arguments;
    }
    let mut title = strings(cpu, process, (places.arguments.0, places.environment.1));
    if let Some(end) = title.iter().position(|&byte| byte == 0) {
        title.truncate(end + 1);
    }
    title
}

fn read_link(guest: &GuestThread, cpu: &mut UserCpu, target: &[u8], buffer: u64, size: u64) -> Outcome {
    if size as i32 <= 0 {
        return Outcome::Return(failure(Errno::EINVAL));
    }
    let shown = &target[..target.len().min(size as usize)];
    match guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(buffer), shown)) {
        Ok(()) => Outcome::Return(shown.len() as i64),
        Err(errno) => Outcome::Return(failure(errno)),
    }
}
