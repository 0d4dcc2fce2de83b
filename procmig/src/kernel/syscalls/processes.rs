//! Threads and processes: their making, their new programs, their end.

use super::{CallResult, Outcome};
use crate::channel::{CallChannel, OpReply};
use crate::kernel::deliver::RestartKind;
use crate::kernel::group::Permit;
use crate::kernel::guest::{GuestThread, Start, failure};
use crate::kernel::lock;
use crate::kernel::pool::Worker;
use crate::kernel::process::{Ending, Process, ProcessSignals};
use crate::kernel::thread::ThreadSignals;
use crate::signal::altstack::AltStack;
use crate::signal::pending::PendingSignals;
use crate::usermem::UserMemory;
use crate::wire::link::ConnectionId;
use crate::wire::op::Op;
use crate::wire::stream::Stream;
use nix::errno::Errno;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

const CLONE_VM: u64 = libc::CLONE_VM as u64;
const CLONE_FILES: u64 = libc::CLONE_FILES as u64;
const CLONE_SIGHAND: u64 = libc::CLONE_SIGHAND as u64;
const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
const CLONE_VFORK: u64 = libc::CLONE_VFORK as u64;
const CLONE_PARENT: u64 = libc::CLONE_PARENT as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const CLONE_SETTLS: u64 = libc::CLONE_SETTLS as u64;
const CLONE_PARENT_SETTID: u64 = libc::CLONE_PARENT_SETTID as u64;
const CLONE_CHILD_CLEARTID: u64 = libc::CLONE_CHILD_CLEARTID as u64;
const CLONE_CHILD_SETTID: u64 = libc::CLONE_CHILD_SETTID as u64;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Namespaces: for the privileged, at home.
const CLONE_NEW: u64 = 0x7e02_0080;

/// What `clone` and its kin ask for.
#[derive(Debug, Clone, Copy, Default)]
struct Request {
    flags: u64,
    exit_signal: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    pidfd: u64,
    tls: u64,
}

pub fn clone(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let [flags, stack, parent_tid, child_tid, tls, _] = *args;
    let request = Request {
        flags: flags & !0xff,
        exit_signal: flags & 0xff,
        stack,
        parent_tid,
        child_tid,
        pidfd: parent_tid,
        tls,
    };
    create(guest, cpu, request)
}

pub fn clone3(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    const MIN_SIZE: u64 = 64;
    const MAX_SIZE: u64 = 4096;
    let (at, size) = (args[0], args[1]);
    if size < MIN_SIZE {
        return Outcome::Return(failure(Errno::EINVAL));
    }
    if size > MAX_SIZE {
        return Outcome::Return(failure(Errno::E2BIG));
    }
    let mut bytes = vec![0; size as usize];
    if let Err(errno) = guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(at), &mut bytes)) {
        return Outcome::Return(failure(errno));
    }
    bytes.resize(bytes.len().max(88), 0);
    let word = |i: usize| u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().expect("8 bytes"));
    if bytes[88..].iter().any(|&byte| byte != 0) {
        return Outcome::Return(failure(Errno::E2BIG));
    }
    // A TID of one's choice is home's to give, and takes a privilege.
    if word(9) != 0 || word(0) & 0xff != 0 || word(4) > 64 || (word(5) == 0) != (word(6) == 0) {
        return Outcome::Return(failure(if word(9) != 0 { Errno::EPERM } else { Errno::EINVAL }));
    }
    let request = Request {
        flags: word(0),
        pidfd: word(1),
        child_tid: word(2),
        parent_tid: word(3),
        exit_signal: word(4),
        stack: if word(5) == 0 { 0 } else { word(5).wrapping_add(word(6)) },
        tls: word(7),
    };
    create(guest, cpu, request)
}

pub fn fork(guest: &mut GuestThread, cpu: &mut UserCpu) -> Outcome {
    create(guest, cpu, Request { exit_signal: libc::SIGCHLD as u64, ..Request::default() })
}

pub fn vfork(guest: &mut GuestThread, cpu: &mut UserCpu) -> Outcome {
    let request = Request { flags: CLONE_VM | CLONE_VFORK, exit_signal: libc::SIGCHLD as u64, ..Request::default() };
    create(guest, cpu, request)
}

fn create(guest: &mut GuestThread, cpu: &mut UserCpu, request: Request) -> Outcome {
    let flags = request.flags;
    if flags & CLONE_NEW != 0 {
        return Outcome::Return(failure(Errno::EPERM));
    }
    let invalid = flags & CLONE_SIGHAND != 0 && flags & CLONE_VM == 0
        || flags & CLONE_THREAD != 0 && flags & CLONE_SIGHAND == 0
        || flags & CLONE_THREAD != 0 && flags & CLONE_PIDFD != 0
        || flags & CLONE_PIDFD != 0 && flags & CLONE_PARENT_SETTID != 0 && request.pidfd == request.parent_tid
        || flags & CLONE_INTO_CGROUP != 0;
    // Processes that share descriptors or handlers but are not threads: one deputy cannot be two.
    let unserved = flags & CLONE_THREAD == 0
        && (flags & (CLONE_FILES | CLONE_SIGHAND | CLONE_PARENT) != 0
            || !matches!(request.exit_signal as i32, libc::SIGCHLD | 0));
    if invalid || unserved {
        return Outcome::Return(failure(Errno::EINVAL));
    }
    if guest.thread.has_attention() {
        // As Linux: what waits is seen to before anything is made.
        return Outcome::Restart(RestartKind::Always);
    }
    // Every way to fail gives it back.
    let Some(permit) = guest.process.group.admit() else { return Outcome::Return(failure(Errno::EAGAIN)) };
    let result = if flags & CLONE_THREAD != 0 {
        new_thread(guest, cpu, request, permit)
    } else {
        new_process(guest, cpu, request, permit)
    };
    result.into()
}

fn worker(guest: &GuestThread) -> Result<Worker, Errno> {
    guest.kernel().pool.acquire().map_err(|error| {
        // Once, since a guest may go on trying.
        if guest.kernel().first_refusal(b"", libc::SYS_clone as u32) {
            tracing::warn!(error = %crate::chain(&error), "no vCPU for a guest thread");
        }
        Errno::EAGAIN
    })
}

/// What the new thread goes on from: the caller's state, with 0 as the call's value.
fn start(cpu: &UserCpu, request: Request) -> Result<Start, Errno> {
    let mut regs = *cpu.regs();
    regs.rax = 0;
    if request.stack != 0 {
        regs.rsp = request.stack;
    }
    let (fs, gs) = cpu.segment_bases();
    let fs = if request.flags & CLONE_SETTLS != 0 { request.tls } else { fs };
    if fs >= vmm::shim_layout::USER_END {
        return Err(Errno::EPERM);
    }
    let fpu = cpu.fpu().map_err(|_| Errno::ENOMEM)?;
    let child_tid = (request.flags & CLONE_CHILD_SETTID != 0).then_some(request.child_tid);
    Ok(Start { regs, bases: (fs, gs), fpu, child_tid })
}

/// The connections that a reply brings: as descriptors, or by name where the deputy is at another host.
fn connections<const N: usize>(guest: &GuestThread, reply: OpReply) -> Option<[Stream; N]> {
    let streams: Vec<Stream> = match guest.process.group.link() {
        None => reply.descriptors.into_iter().map(|one| UnixStream::from(one).into()).collect(),
        Some(link) => {
            let names: Vec<ConnectionId> = postcard::from_bytes(&reply.payload).ok()?;
            names.iter().take(N).map(|name| link.take(name)).collect::<Option<_>>()?
        }
    };
    streams.iter().for_each(Stream::last);
    streams.try_into().ok()
}

fn new_thread(guest: &mut GuestThread, cpu: &mut UserCpu, request: Request, permit: Permit) -> CallResult {
    let start = start(cpu, request)?;
    let worker = worker(guest)?;
    let reply = guest.op(&Op::NewThread);
    let (tid, channel) = match reply {
        Ok(reply) if reply.ret > 0 => match (reply.ret as i32, connections(guest, reply)) {
            (tid, Some([call])) => (tid, CallChannel::over(call)),
            (_, None) => {
                guest.kernel().pool.release(worker);
                return Err(Errno::EAGAIN);
            }
        },
        other => {
            guest.kernel().pool.release(worker);
            return Err(other.map_or(Errno::EAGAIN, |reply| Errno::from_raw(-reply.ret as i32)));
        }
    };
    let mask = lock(&guest.thread.signals).mask;
    let signals = ThreadSignals { mask, ..ThreadSignals::default() };
    let entered = GuestThread::enter(&guest.process, tid, signals, &worker, channel, guest.space.clone(), permit);
    let Some(child) = entered else {
        guest.kernel().pool.release(worker);
        return Err(Errno::EAGAIN);
    };
    if request.flags & CLONE_CHILD_CLEARTID != 0 {
        child.thread.clear_tid.store(request.child_tid, Ordering::Relaxed);
    }
    child.thread.inherit_affinity(&guest.thread);
    write_parent_tid(guest, cpu, request, tid);
    worker.run(move |cpu| child.run(cpu, start));
    Ok(tid as u64)
}

/// As Linux, which ignores where it cannot be written.
fn write_parent_tid(guest: &GuestThread, cpu: &mut UserCpu, request: Request, tid: i32) {
    if request.flags & CLONE_PARENT_SETTID != 0 {
        let at = GuestVirtAddr(request.parent_tid);
        let _ = guest.with_memory(cpu, |memory| memory.write_u32(at, tid as u32));
    }
}

fn new_process(guest: &mut GuestThread, cpu: &mut UserCpu, request: Request, permit: Permit) -> CallResult {
    let start = start(cpu, request)?;
    let worker = worker(guest)?;
    let made = fork_process(guest, cpu, request, &worker, permit);
    let (child, thread) = match made {
        Ok(made) => made,
        Err(errno) => {
            guest.kernel().pool.release(worker);
            return Err(errno);
        }
    };
    write_parent_tid(guest, cpu, request, child.pid);
    let mut pidfd = Ok(());
    if request.flags & CLONE_PIDFD != 0 {
        pidfd = write_pidfd(guest, cpu, request, child.pid);
    }
    let waits = request.flags & CLONE_VFORK != 0;
    if waits {
        child.begin_vfork();
    }
    worker.run(move |cpu| thread.run(cpu, start));
    if waits {
        child.wait_for_vfork(&guest.process);
    }
    pidfd?;
    Ok(child.pid as u64)
}

fn write_pidfd(guest: &mut GuestThread, cpu: &mut UserCpu, request: Request, pid: i32) -> Result<(), Errno> {
    let fd = guest.forward_raw(libc::SYS_pidfd_open as u32, &[pid as u64, 0, 0, 0, 0, 0]).map_err(|_| Errno::EIO)?;
    if fd < 0 {
        return Err(Errno::from_raw(-fd as i32));
    }
    // A pidfd of clone is close-on-exec, as one of pidfd_open is.
    guest.with_memory(cpu, |memory| memory.write_u32(GuestVirtAddr(request.pidfd), fd as u32))
}

fn fork_process(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    request: Request,
    worker: &Worker,
    permit: Permit,
) -> Result<(Arc<Process>, GuestThread), Errno> {
    let shares_memory = request.flags & CLONE_VM != 0;
    let space = if shares_memory { guest.space.clone() } else { guest.space.fork(cpu)? };
    let ticket = guest.process.descriptors.ticket();
    let reply = guest.op(&Op::Fork).map_err(|_| Errno::EAGAIN)?;
    if reply.ret < 0 {
        return Err(Errno::from_raw(-reply.ret as i32));
    }
    let pid = reply.ret as i32;
    let [control, call] = connections(guest, reply).ok_or(Errno::EAGAIN)?;
    let parent = &guest.process;
    let signals = {
        let signals = lock(&parent.signals);
        let mut actions = signals.actions;
        if request.flags & CLONE_CLEAR_SIGHAND != 0 {
            for action in &mut actions {
                if action.handler != crate::kernel::process::IGNORE {
                    *action = Default::default();
                }
            }
        }
        ProcessSignals { pending: PendingSignals::new(), actions }
    };
    let identity = lock(&parent.identity).clone();
    let child = Process::new(
        guest.kernel().clone(),
        pid,
        parent.pid,
        Some(space.clone()),
        signals,
        identity,
        control,
        parent.descriptors.inherit(ticket),
        parent.trace,
        parent.group.clone(),
    );
    child.inherit_lent(parent);
    guest.kernel().enter(&child)?;
    if child.has_lost_link() {
        child.begin_exit(Ending::Lost);
    }
    if let Err(error) = guest.kernel().relay.add(&child) {
        tracing::error!(%error, "a deputy's control connection");
        guest.kernel().leave(&child);
        return Err(Errno::EAGAIN);
    }
    let own = lock(&guest.thread.signals).clone();
    // A vfork child keeps the alternate stack, any other that shares memory would collide on it.
    let altstack = if shares_memory && request.flags & CLONE_VFORK == 0 { AltStack::default() } else { own.altstack };
    // What came before there was a thread is for the first.
    let signals = ThreadSignals { mask: own.mask, altstack, chosen: true, ..ThreadSignals::default() };
    let channel = CallChannel::over(call);
    let thread = GuestThread::enter(&child, pid, signals, worker, channel, space, permit).ok_or(Errno::EAGAIN)?;
    if request.flags & CLONE_CHILD_CLEARTID != 0 {
        thread.thread.clear_tid.store(request.child_tid, Ordering::Relaxed);
    }
    thread.thread.inherit_affinity(&guest.thread);
    Ok((child, thread))
}

/// Most bytes of arguments and environment, as Linux's with an unlimited stack.
const MAX_STRINGS: usize = 6 << 20;
/// Most bytes of one of them.
const MAX_STRING: usize = 128 << 10;

fn read_strings(memory: &dyn UserMemory, at: u64, room: &mut usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    if at == 0 {
        return Ok(strings);
    }
    for index in 0.. {
        let place = at.checked_add(index * 8).ok_or(Errno::EFAULT)?;
        let string = memory.read_u64(GuestVirtAddr(place))?;
        if string == 0 {
            break;
        }
        let string = memory
            .read_string(GuestVirtAddr(string), MAX_STRING)
            .map_err(|errno| if errno == Errno::ENAMETOOLONG { Errno::E2BIG } else { errno })?;
        *room = room.checked_sub(string.len() + 9).ok_or(Errno::E2BIG)?;
        strings.push(string);
    }
    Ok(strings)
}

pub fn execve(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    execveat(guest, cpu, &[libc::AT_FDCWD as u64, args[0], args[1], args[2], 0, 0])
}

pub fn execveat(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let [dirfd, path, argv, environment, flags, _] = *args;
    let read = guest.with_memory(cpu, |memory| {
        let path = memory.read_string(GuestVirtAddr(path), 4096)?;
        let mut room = MAX_STRINGS;
        Ok((path, read_strings(memory, argv, &mut room)?, read_strings(memory, environment, &mut room)?))
    });
    let (path, argv, environment) = match read {
        Ok(read) => read,
        Err(errno) => return Outcome::Return(failure(errno)),
    };
    let path = crate::kernel::proc_files::own_executable(guest, cpu, &path).unwrap_or(path);
    match guest.exec(cpu, dirfd as i32, &path, argv, environment, flags as i32) {
        Ok(()) if guest.process.must_end(guest.thread.tid()) => Outcome::End,
        Ok(()) => Outcome::Replaced,
        Err(error) => Outcome::Return(failure(error.errno())),
    }
}

pub fn exit(guest: &mut GuestThread, args: &[u64; 6]) -> Outcome {
    if guest.thread.tid() == guest.process.pid || guest.process.threads().len() == 1 {
        guest.process.set_leader_status(args[0] as i32);
    }
    Outcome::End
}

pub fn exit_group(guest: &mut GuestThread, args: &[u64; 6]) -> Outcome {
    guest.process.begin_exit(Ending::Exit(args[0] as i32));
    Outcome::End
}
