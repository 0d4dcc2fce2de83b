//! Files of `/proc` that must show the guest and not its deputy.

mod figures;
mod limits;
mod maps;
mod path;
mod tell;
mod texts;

pub(super) use tell::{Target, Viewer, strings, tell};

use super::guest::{GuestThread, Lost, failure};
use super::inquiries::Found;
use super::lock;
use super::syscalls::{Outcome, forward_with_path};
use crate::usermem::UserMemory;
use crate::wire::bytes::Bytes;
use crate::wire::inquiry::{Figures, File, Inquiry, Told};
use crate::wire::op::Op;
use nix::errno::Errno;
use path::{Meant, Whose};
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Longest path that is looked at.
const MAX_PATH: usize = 4096;
/// Most bytes of home's texts.
const MAX_TEXT: u32 = 64 << 10;
/// What a call wants of a path.
enum Wish {
    /// To open it with these flags.
    Open(u64),
    /// To read the link into this buffer of this size.
    ReadLink(u64, u64),
    /// To look at what a link leads to.
    Look,
}

/// The program's path, if `path` is the link to it of a process in a node of this host.
pub fn own_executable(guest: &mut GuestThread, cpu: &mut UserCpu, path: &[u8]) -> Option<Vec<u8>> {
    let meant = path::parse(path).filter(|meant| meant.file == File::Executable)?;
    match told(guest, cpu, meant)? {
        Told::Path(program) => Some(program),
        _ => None,
    }
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
    let meant = path::parse(&path)?;
    let wish = wish(guest, cpu, nr, args)?;
    let executable = meant.file == File::Executable;
    match wish {
        // A link to be opened as one, or what a text cannot be: home knows what to say.
        Wish::Open(flags) if flags & (libc::O_PATH | libc::O_DIRECTORY) as u64 != 0 && !executable => return None,
        Wish::Open(flags) if flags & libc::O_NOFOLLOW as u64 != 0 && executable => return None,
        Wish::ReadLink(..) | Wish::Look if !executable => return None,
        _ => {}
    }
    let told = match told(guest, cpu, meant)? {
        Told::Refused(errno) => return Some(Outcome::Return(failure(Errno::from_raw(errno)))),
        told => told,
    };
    if let Told::Path(program) = told {
        return Some(match wish {
            Wish::ReadLink(buffer, size) => read_link(guest, cpu, &program, buffer, size),
            _ => forward_with_path(guest, cpu, nr as u32, args, (at, program)),
        });
    }
    let Wish::Open(flags) = wish else { return None };
    Some(match open(guest, meant.file, told, &path, flags) {
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

/// What the node says of the process that a path means; `None` if no node of this host knows it.
fn told(guest: &mut GuestThread, cpu: &mut UserCpu, meant: Meant) -> Option<Told> {
    let Meant { whose, thread, file } = meant;
    let caller = guest.process.clone();
    let ids = lock(&caller.identity).ids;
    let process = match whose {
        Whose::Own | Whose::OwnThread => caller.clone(),
        Whose::Process(pid) if pid == caller.pid => caller.clone(),
        // Another host's processes are looked for where they would be asked about as own ones only.
        Whose::Process(pid) if caller.is_remote() => guest.kernel().process_of(caller.home(), pid)?,
        Whose::Process(pid) => match guest.kernel().find(pid, || Inquiry::File { pid, thread, file, caller: ids })? {
            Found::Here(process) => process,
            Found::There(told) => return Some(told),
        },
    };
    let thread = if whose == Whose::OwnThread { thread.or(Some(guest.thread.tid())) } else { thread };
    let target = Target::new(process.clone(), thread, file)?;
    let viewer = Viewer { ids, here: Some((&caller, &guest.thread)) };
    Some(tell(&target, &viewer, || Ok(Bytes(strings(cpu, &process, file)))))
}

/// Opens a file of the node's making.
fn open(guest: &mut GuestThread, file: File, told: Told, path: &[u8], flags: u64) -> Result<Result<i64, Errno>, Lost> {
    let content = match content(guest, file, told, path)? {
        // All of them are read-only.
        Ok(_) if flags & libc::O_ACCMODE as u64 != libc::O_RDONLY as u64 => return Ok(Err(Errno::EACCES)),
        Ok(content) => content,
        Err(errno) => return Ok(Err(errno)),
    };
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
    let reply = guest.op(&Op::MemoryFile { name, content, close_on_exec: flags & libc::O_CLOEXEC as u64 != 0 })?;
    Ok(Ok(reply.ret))
}

/// What a file holds: what the process's node says, in home's text where that knows the rest.
fn content(guest: &mut GuestThread, file: File, told: Told, path: &[u8]) -> Result<Result<Vec<u8>, Errno>, Lost> {
    let (figures, kept) = match told {
        Told::Bytes(bytes) => return Ok(Ok(bytes.0)),
        Told::Figures(figures) if file == File::StatM => return Ok(Ok(texts::statm(&figures))),
        Told::Figures(figures) => (*figures, Vec::new()),
        Told::Limits(kept) => (Figures::default(), kept),
        // Another node may say anything.
        _ => return Ok(Err(Errno::EIO)),
    };
    let reply = guest.op(&Op::ReadFile { path: path.to_vec(), limit: MAX_TEXT })?;
    if reply.ret < 0 {
        return Ok(Err(Errno::from_raw(-reply.ret as i32)));
    }
    Ok(Ok(match file {
        File::Status => texts::status(&reply.payload, &figures),
        File::Stat => texts::stat(&reply.payload, &figures),
        _ => limits::text(&reply.payload, |resource| {
            let limit = kept.iter().find(|&&(number, _, _)| number == resource);
            limit.map(|&(_, soft, hard)| (soft, hard))
        }),
    }))
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
