//! Calls on files that the deputy has handed over: the node performs them itself, on the guest's memory.

use super::forward::{self, Opened};
use super::{CallResult, Outcome};
use crate::kernel::deliver::RestartKind;
use crate::kernel::descriptors::{Change, Found, Ticket};
use crate::kernel::guest::{GuestThread, failure};
use crate::kernel::handed::HandedFile;
use crate::kernel::lock;
use crate::kernel::process::Process;
use crate::mm::{Access, Part};
use crate::signal::info;
use crate::usermem::UserMemory;
use crate::wire::file_kind::Kind;
use crate::wire::op::Op;
use nix::errno::Errno;
use std::sync::Arc;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Most bytes that one call moves, as on Linux.
const MOST: u64 = 0x7fff_f000;
/// Bytes read from a disk at a time.
const DISK: u64 = 1 << 20;

/// Serves a call on a file that is here; `None` if it is the deputy's to perform. `progress` bytes of it
/// are done already.
pub fn serve(guest: &mut GuestThread, cpu: &mut UserCpu, nr: i64, args: &[u64; 6], progress: u64) -> Option<Outcome> {
    let Some(file) = file(guest, args[0] as i32) else {
        return (progress > 0).then(|| forward_rest(guest, cpu, nr, args, progress));
    };
    serve_on(guest, cpu, nr, args, &file, progress)
}

/// Has home do the rest of a call of which `done` bytes are done: the process has migrated in it.
fn forward_rest(guest: &mut GuestThread, cpu: &mut UserCpu, nr: i64, args: &[u64; 6], done: u64) -> Outcome {
    /// As much is asked for at once.
    const CHUNK: u64 = 1 << 20;
    let mut parts = match nr {
        libc::SYS_readv | libc::SYS_writev => vector(guest, cpu, args),
        _ => part(args).map(|part| vec![part]),
    }
    .unwrap_or_default();
    advance(&mut parts, done);
    let mut done = done;
    while let Some(&Part { address, length }) = parts.first() {
        let length = length.min(CHUNK);
        let one = match nr {
            libc::SYS_readv => libc::SYS_read,
            libc::SYS_writev => libc::SYS_write,
            other => other,
        };
        let last = match nr {
            libc::SYS_pread64 | libc::SYS_pwrite64 => [args[3].wrapping_add(done), 0, 0],
            _ => [args[3], args[4], args[5]],
        };
        guest.again.progress = done;
        let [third, fourth, fifth] = last;
        let outcome = forward::forward(guest, cpu, one as u32, &[args[0], address, length, third, fourth, fifth]);
        match outcome {
            Outcome::Return(count) if count > 0 => {
                done += count as u64;
                advance(&mut parts, count as u64);
                if (count as u64) < length {
                    break;
                }
            }
            Outcome::Paused | Outcome::End => return outcome,
            Outcome::Restart(_) if guest.shall_only_freeze() => return Outcome::Paused,
            // What is done is done.
            _ => break,
        }
    }
    Outcome::Return(done as i64)
}

/// Goes on with a call that home has had a part of, where the thread stood still in it.
pub fn go_on(guest: &mut GuestThread, cpu: &mut UserCpu, nr: i64, args: &[u64; 6], done: u64) -> Outcome {
    let asked = lock(&guest.channel).pending_call().map_or(0, |(_, args, _)| args[2]);
    match forward::forward(guest, cpu, nr as u32, args) {
        Outcome::Return(count) if count > 0 => {
            let done = done + count as u64;
            if (count as u64) < asked {
                return Outcome::Return(done as i64);
            }
            forward_rest(guest, cpu, nr, args, done)
        }
        outcome @ (Outcome::Paused | Outcome::End) => outcome,
        _ => Outcome::Return(done as i64),
    }
}

/// In which manner bytes are to be moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// Where in the file; else at its offset.
    pub at: Option<i64>,
    /// Whatever the file's flags say, the call does not wait.
    pub never_waits: bool,
    /// No `SIGPIPE`.
    pub is_quiet: bool,
}

impl Manner {
    /// Of a call on a file that is here; `None` if that is home's to judge.
    pub fn of(file: &HandedFile, nr: i64, args: &[u64; 6]) -> Option<Self> {
        match nr {
            // They cannot say that they would have to wait, or cannot be read at all.
            _ if matches!(file.kind(), Kind::Event | Kind::Epoll) => None,
            libc::SYS_pread64 | libc::SYS_pwrite64 => {
                let at = i64::try_from(args[3]).ok()?;
                (file.kind() == Kind::Regular).then_some(Self { at: Some(at), ..Self::default() })
            }
            libc::SYS_recvfrom | libc::SYS_sendto => {
                let flags = args[3] as i32;
                let known = libc::MSG_DONTWAIT | if nr == libc::SYS_sendto { libc::MSG_NOSIGNAL } else { 0 };
                // With an address it is more than a read or write.
                let is_plain = file.kind() == Kind::Socket && args[4] == 0 && flags & !known == 0;
                is_plain.then_some(Self {
                    at: None,
                    never_waits: flags & libc::MSG_DONTWAIT != 0,
                    is_quiet: flags & libc::MSG_NOSIGNAL != 0,
                })
            }
            _ => Some(Self::default()),
        }
    }
}

/// The same on this file. So many bytes are done already.
fn serve_on(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    nr: i64,
    args: &[u64; 6],
    file: &HandedFile,
    progress: u64,
) -> Option<Outcome> {
    let manner = Manner::of(file, nr, args)?;
    match nr {
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_recvfrom => {
            read(guest, cpu, file, &[part(args)?], manner, progress)
        }
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_sendto => {
            write(guest, cpu, file, &[part(args)?], manner, progress)
        }
        libc::SYS_readv => {
            let parts = vector(guest, cpu, args)?;
            read(guest, cpu, file, &parts, manner, progress)
        }
        libc::SYS_writev => {
            let parts = vector(guest, cpu, args)?;
            write(guest, cpu, file, &parts, manner, progress)
        }
        libc::SYS_lseek => Some(file.seek(args[1] as i64, args[2] as i32).into()),
        libc::SYS_fstat => Some(status(guest, cpu, file, args[1]).into()),
        libc::SYS_ioctl => is_terminal_request(file, args[1]).then(|| Outcome::Return(failure(Errno::ENOTTY))),
        _ => None,
    }
}

/// `newfstatat` of a descriptor itself, as C libraries do for `fstat`.
pub fn serve_status(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Option<Outcome> {
    if args[3] != libc::AT_EMPTY_PATH as u64 {
        return None;
    }
    let mut first = [0];
    let is_empty = guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(args[1]), &mut first)).is_ok();
    if !is_empty || first != [0] {
        return None;
    }
    let file = guest.process.descriptors.file(args[0] as i32)?;
    Some(status(guest, cpu, &file, args[2]).into())
}

fn status(guest: &GuestThread, cpu: &mut UserCpu, file: &HandedFile, at: u64) -> CallResult {
    let bytes = file.status()?;
    guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(at), &bytes))?;
    Ok(0)
}

/// Requests by which programs ask whether a file is a terminal: those here never are.
fn is_terminal_request(file: &HandedFile, request: u64) -> bool {
    file.kind() != Kind::Socket && matches!(request, libc::TCGETS | libc::TIOCGWINSZ)
}

/// A call that changes what descriptors stand for: the node lets go of their files first, so that the
/// end of a pipe that nobody has any more is one.
pub fn change(guest: &mut GuestThread, cpu: &mut UserCpu, nr: i64, args: &[u64; 6]) -> Outcome {
    let change = match nr {
        libc::SYS_close => Change::One(args[0] as i32),
        libc::SYS_dup2 | libc::SYS_dup3 => Change::One(args[1] as i32),
        libc::SYS_close_range => Change::Range(args[0] as u32, args[1] as u32),
        _ => Change::All,
    };
    let process = guest.process.clone();
    let unseen = nr == libc::SYS_close && closes_unseen(&guest.process, args[0] as i32);
    let _changing = process.descriptors.change(change);
    if unseen {
        return forward::post_close(guest, args[0]);
    }
    forward::forward(guest, cpu, nr as u32, args)
}

/// Whether nobody can tell when exactly a descriptor is closed, nor whether that fails: no other thread
/// can see the number become free, and there is nothing written that the end could complain about.
pub fn closes_unseen(process: &Process, fd: i32) -> bool {
    !process.trace
        && process.descriptors.file(fd).is_some_and(|file| file.kind() == Kind::Regular && file.is_read_only())
        && process.is_single_threaded()
}

/// A call that makes a descriptor: its file is taken over with the reply, if it may be.
pub fn open(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Outcome {
    let process = guest.process.clone();
    let ticket = process.descriptors.ticket().filter(|_| may_take_over(&guest.process));
    let Some(ticket) = ticket else { return forward::forward(guest, cpu, nr, args) };
    let Opened { outcome, file } = forward::open(guest, cpu, nr, args);
    if let Outcome::Return(fd @ 0..) = outcome {
        process.descriptors.keep(ticket, fd as i32, file.and_then(HandedFile::new).map(Arc::new));
    }
    outcome
}

/// Whether the node may act for the process: it has the rights of the same user.
pub fn may_take_over(process: &Process) -> bool {
    let user = lock(&process.identity).ids.euid;
    !process.is_remote() && user == nix::unistd::geteuid().as_raw()
}

/// The file of a descriptor that is here, or that the deputy hands over.
pub fn file(guest: &mut GuestThread, fd: i32) -> Option<Arc<HandedFile>> {
    match guest.process.descriptors.find(fd) {
        Found::File(file) => Some(file),
        Found::Forward => None,
        Found::Ask(ticket) => hand_over(guest, ticket, fd),
    }
}

/// Has the deputy hand over the file of a descriptor that has not been used yet.
pub fn ask(guest: &mut GuestThread, fd: i32) -> Option<Arc<HandedFile>> {
    let ticket = guest.process.descriptors.ticket()?;
    hand_over(guest, ticket, fd)
}

fn hand_over(guest: &mut GuestThread, ticket: Ticket, fd: i32) -> Option<Arc<HandedFile>> {
    if !may_take_over(&guest.process) {
        return None;
    }
    let reply = guest.op(&Op::HandOver { fd }).ok()?;
    let passed = if reply.ret == 0 { reply.descriptors.into_iter().next() } else { None };
    // What is in a set is known only of those that were here from the start.
    let file = passed.and_then(HandedFile::new).filter(|file| file.kind() != Kind::Epoll).map(Arc::new);
    guest.process.descriptors.keep(ticket, fd, file.clone());
    file
}

fn part(args: &[u64; 6]) -> Option<Part> {
    let (address, length) = (args[1], args[2]);
    // What is nothing, or wrong, is home's to judge.
    (length > 0 && length <= i64::MAX as u64).then_some(Part { address, length: length.min(MOST) })
}

/// The parts of an `iovec` array, if it is a right one.
fn vector(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Option<Vec<Part>> {
    const MOST_PARTS: u64 = 1024;
    let (at, count) = (args[1], args[2]);
    if count == 0 || count > MOST_PARTS {
        return None;
    }
    let mut bytes = vec![0; count as usize * 16];
    guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(at), &mut bytes)).ok()?;
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| bytes[i * 8 + k]));
    let parts: Vec<Part> =
        (0..count as usize).map(|i| Part { address: word(i * 2), length: word(i * 2 + 1) }).collect();
    let total = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.length))?;
    let parts: Vec<Part> = parts.into_iter().filter(|part| part.length > 0).collect();
    (total > 0 && total <= MOST).then_some(parts)
}

/// Drops the first `count` bytes of `parts`.
fn advance(parts: &mut Vec<Part>, mut count: u64) {
    let mut whole = 0;
    for part in parts.iter_mut() {
        let taken = part.length.min(count);
        part.address += taken;
        part.length -= taken;
        count -= taken;
        if part.length > 0 {
            break;
        }
        whole += 1;
    }
    parts.drain(..whole);
}

fn read(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    file: &HandedFile,
    parts: &[Part],
    manner: Manner,
    mut done: u64,
) -> Option<Outcome> {
    let mut parts = parts.to_vec();
    advance(&mut parts, done);
    while !parts.is_empty() {
        let offset = manner.at.map(|at| at.saturating_add(done as i64));
        let got = guest.with_memory(cpu, |memory| {
            // SAFETY: the places are valid while the memory is held.
            memory.with_places(&parts, Access::Write, |places| unsafe { file.read(places, offset) })
        });
        let got = match got {
            Ok(Err(Errno::EAGAIN | Errno::EOPNOTSUPP)) if file.kind() == Kind::Regular => {
                read_from_disk(guest, cpu, file, parts[0], offset)
            }
            Ok(got) => got,
            // An address that is none: home says what becomes of the call.
            Err(_) if done == 0 => return None,
            Err(_) => break,
        };
        match got {
            Ok(0) => break,
            Ok(count) => {
                done += count as u64;
                advance(&mut parts, count as u64);
                if file.kind() != Kind::Regular && file.kind() != Kind::Device {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(Errno::EAGAIN) if manner.never_waits || file.is_nonblocking() => {
                return Some(Err(Errno::EAGAIN).into());
            }
            Err(Errno::EAGAIN) if file.waits_forever() => match guest.thread.wait_for(file, libc::POLLIN, None) {
                Ok(true) => {}
                Ok(false) => return Some(Outcome::Restart(RestartKind::IfAsked)),
                Err(_) => return None,
            },
            Err(Errno::EAGAIN | Errno::EOPNOTSUPP) => return None,
            Err(errno) => return Some(Err(errno).into()),
        }
    }
    Some(Outcome::Return(done as i64))
}

/// Reads what is not in memory, through a buffer: the guest's memory cannot be held for as long as that takes.
fn read_from_disk(
    guest: &GuestThread,
    cpu: &mut UserCpu,
    file: &HandedFile,
    part: Part,
    offset: Option<i64>,
) -> Result<usize, Errno> {
    let mut buffer = vec![0; part.length.min(DISK) as usize];
    let count = file.read_waiting(&mut buffer, offset)?;
    guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(part.address), &buffer[..count]))?;
    Ok(count)
}

fn write(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    file: &HandedFile,
    parts: &[Part],
    manner: Manner,
    mut done: u64,
) -> Option<Outcome> {
    let mut parts = parts.to_vec();
    advance(&mut parts, done);
    while !parts.is_empty() {
        let offset = manner.at.map(|at| at.saturating_add(done as i64));
        let put = guest.with_memory(cpu, |memory| {
            // SAFETY: the places are valid while their frames are pinned.
            memory.with_pinned(&parts, |places| unsafe { file.write(places, offset) })
        });
        match put {
            Err(_) if done == 0 => return None,
            Err(_) | Ok(Ok(0)) => break,
            Ok(Ok(count)) => {
                done += count as u64;
                advance(&mut parts, count as u64);
            }
            Ok(Err(Errno::EPIPE)) if !manner.is_quiet => {
                let user = lock(&guest.process.identity).ids.uid;
                let raised = info::kill(libc::SIGPIPE, guest.process.pid, user);
                guest.process.post_to(&guest.thread, raised);
                return Some(if done > 0 { Outcome::Return(done as i64) } else { Err(Errno::EPIPE).into() });
            }
            Ok(Err(Errno::EAGAIN)) if file.waits_forever() && !manner.never_waits && !file.is_nonblocking() => {
                match guest.thread.wait_for(file, libc::POLLOUT, None) {
                    Ok(true) => {}
                    Ok(false) if guest.shall_only_freeze() => {
                        guest.again.progress = done;
                        return Some(Outcome::Paused);
                    }
                    _ if done > 0 => break,
                    Ok(false) => return Some(Outcome::Restart(RestartKind::IfAsked)),
                    Err(_) => return None,
                }
            }
            Ok(Err(_)) if done > 0 => break,
            Ok(Err(Errno::EAGAIN | Errno::EOPNOTSUPP)) if !manner.never_waits && !file.is_nonblocking() => {
                return None;
            }
            Ok(Err(errno)) => return Some(Err(errno).into()),
        }
    }
    Some(Outcome::Return(done as i64))
}
