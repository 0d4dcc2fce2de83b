//! Calls that the process's own state answers.

use super::{CallResult, Outcome, forward};
use crate::kernel::descriptors::Change;
use crate::kernel::guest::GuestThread;
use crate::kernel::lock;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use std::sync::atomic::Ordering;
use vmm::addr::GuestVirtAddr;
use vmm::shim_layout::USER_END;
use vmm::user_cpu::UserCpu;

pub fn set_tid_address(guest: &GuestThread, args: &[u64; 6]) -> CallResult {
    guest.thread.clear_tid.store(args[0], Ordering::Relaxed);
    Ok(guest.thread.tid() as u64)
}

pub fn user(guest: &GuestThread, nr: i64) -> Outcome {
    let ids = lock(&guest.process.identity).ids;
    Outcome::Return(i64::from(match nr {
        libc::SYS_getuid => ids.uid,
        libc::SYS_geteuid => ids.euid,
        libc::SYS_getgid => ids.gid,
        _ => ids.egid,
    }))
}

/// The users are home's: it decides, and what is kept here is asked for anew.
pub fn change_user(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Outcome {
    let outcome = forward::forward(guest, cpu, nr, args);
    if outcome != Outcome::Return(0) {
        return outcome;
    }
    // The node acts for its own user alone.
    drop(guest.process.descriptors.change(Change::All));
    let mut ask = |nr: i64| guest.forward_raw(nr as u32, &[0; 6]).ok().map(|value| value as u32);
    let ids = (|| {
        Some(crate::wire::control::Ids {
            uid: ask(libc::SYS_getuid)?,
            euid: ask(libc::SYS_geteuid)?,
            gid: ask(libc::SYS_getgid)?,
            egid: ask(libc::SYS_getegid)?,
        })
    })();
    match ids {
        Some(ids) => {
            lock(&guest.process.identity).ids = ids;
            outcome
        }
        None => Outcome::End,
    }
}

pub fn arch_prctl(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    const SET_GS: u64 = 0x1001;
    const SET_FS: u64 = 0x1002;
    const GET_FS: u64 = 0x1003;
    const GET_GS: u64 = 0x1004;
    const GET_CPUID: u64 = 0x1011;
    const SET_CPUID: u64 = 0x1012;
    let (fs, gs) = cpu.segment_bases();
    match args[0] {
        SET_FS | SET_GS => {
            if args[1] >= USER_END {
                return Err(Errno::EPERM);
            }
            if args[0] == SET_FS {
                cpu.set_segment_bases(args[1], gs);
                guest.space.set_base(&guest.thread.gate, args[1]);
            } else {
                cpu.set_segment_bases(fs, args[1]);
            }
            Ok(0)
        }
        GET_FS | GET_GS => {
            let base = if args[0] == GET_FS { fs } else { gs };
            guest.with_memory(cpu, |memory| memory.write_u64(GuestVirtAddr(args[1]), base))?;
            Ok(0)
        }
        GET_CPUID => Ok(1),
        SET_CPUID => Err(Errno::ENODEV),
        _ => Err(Errno::EINVAL),
    }
}

pub fn getrandom(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    const KNOWN: u64 = (libc::GRND_NONBLOCK | libc::GRND_RANDOM | libc::GRND_INSECURE) as u64;
    /// Bytes at a time.
    const CHUNK: usize = 4096;
    if args[2] & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let length = args[1].min(1 << 20);
    let mut done = 0;
    while done < length {
        let mut bytes = [0; CHUNK];
        let count = ((length - done) as usize).min(CHUNK);
        random_bytes(&mut bytes[..count])?;
        let written =
            guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(args[0].wrapping_add(done)), &bytes[..count]));
        if let Err(errno) = written {
            return if done > 0 { Ok(done) } else { Err(errno) };
        }
        done += count as u64;
    }
    Ok(done)
}

/// Random bytes of the host.
pub fn random_bytes(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: the buffer is ours and as long as is said.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match got {
            got if got > 0 => done += got as usize,
            _ if Errno::last() == Errno::EINTR => {}
            _ => return Err(Errno::last()),
        }
    }
    Ok(())
}

pub fn getcpu(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    // SAFETY: asks on which CPU the caller runs.
    let current = unsafe { libc::sched_getcpu() }.max(0) as u32;
    guest.with_memory(cpu, |memory| {
        if args[0] != 0 {
            memory.write_u32(GuestVirtAddr(args[0]), current)?;
        }
        if args[1] != 0 {
            memory.write_u32(GuestVirtAddr(args[1]), 0)?;
        }
        Ok(0)
    })
}

/// Whether a thread that is its process's only one has nothing of what `unshare` names in common with another:
/// processes share neither memory, handlers, descriptors nor directories.
pub fn shares_nothing(guest: &GuestThread, flags: u64) -> bool {
    const OF_THREADS: i32 =
        libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    flags & !(OF_THREADS as u64) == 0 && guest.process.threads().len() == 1
}

pub fn membarrier(guest: &GuestThread, args: &[u64; 6]) -> CallResult {
    const QUERY: u64 = 0;
    const GLOBAL: u64 = 1;
    const PRIVATE_EXPEDITED: u64 = 8;
    const REGISTER_PRIVATE_EXPEDITED: u64 = 16;
    if args[1] != 0 {
        return Err(Errno::EINVAL);
    }
    match args[0] {
        QUERY => Ok(GLOBAL | PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED),
        REGISTER_PRIVATE_EXPEDITED => Ok(0),
        GLOBAL | PRIVATE_EXPEDITED => {
            // A thread that has been out of the guest has passed a barrier.
            for thread in guest.process.threads() {
                if !std::sync::Arc::ptr_eq(&thread, &guest.thread) {
                    thread.gate.close_and_wait();
                }
            }
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Options of `prctl` that are the personality's own.
pub fn is_local_prctl(option: u64) -> bool {
    matches!(
        option as i32,
        libc::PR_SET_NAME
            | libc::PR_GET_NAME
            | libc::PR_SET_DUMPABLE
            | libc::PR_GET_DUMPABLE
            | libc::PR_SET_TIMERSLACK
            | libc::PR_GET_TIMERSLACK
            | libc::PR_SET_THP_DISABLE
            | libc::PR_GET_THP_DISABLE
            | libc::PR_GET_TID_ADDRESS
            | libc::PR_GET_TSC
            | libc::PR_SET_TSC
            | PR_SET_VMA
    )
}

const PR_SET_VMA: i32 = 0x5356_4d41;

pub fn prctl(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    const NAME: usize = 16;
    match args[0] as i32 {
        libc::PR_SET_NAME => {
            let mut name = guest.with_memory(cpu, |memory| read_name(memory, args[1]))?;
            name.truncate(NAME - 1);
            if guest.thread.tid() == guest.process.pid {
                lock(&guest.process.identity).name = name;
            }
            // `ps` at home shows it.
            match forward::forward(guest, cpu, libc::SYS_prctl as u32, args) {
                Outcome::Return(value) if value < 0 => Err(Errno::from_raw(-value as i32)),
                _ => Ok(0),
            }
        }
        libc::PR_GET_NAME => match forward::forward(guest, cpu, libc::SYS_prctl as u32, args) {
            Outcome::Return(value) if value < 0 => Err(Errno::from_raw(-value as i32)),
            _ => Ok(0),
        },
        libc::PR_GET_DUMPABLE => Ok(1),
        libc::PR_GET_TIMERSLACK => Ok(50_000),
        libc::PR_GET_THP_DISABLE => Ok(0),
        libc::PR_GET_TSC => {
            guest.with_memory(cpu, |memory| memory.write_u32(GuestVirtAddr(args[1]), 1))?;
            Ok(0)
        }
        libc::PR_GET_TID_ADDRESS => {
            let address = guest.thread.clear_tid.load(Ordering::Relaxed);
            guest.with_memory(cpu, |memory| memory.write_u64(GuestVirtAddr(args[1]), address))?;
            Ok(0)
        }
        libc::PR_SET_TSC if args[1] != 1 => Err(Errno::EINVAL),
        libc::PR_SET_DUMPABLE if args[1] > 1 => Err(Errno::EINVAL),
        _ => Ok(0),
    }
}

/// Reads at most 16 bytes of a name, without the NUL.
fn read_name(memory: &dyn UserMemory, at: u64) -> Result<Vec<u8>, Errno> {
    let mut name = Vec::new();
    for i in 0..16 {
        let mut byte = [0];
        memory.read(GuestVirtAddr(at.wrapping_add(i)), &mut byte)?;
        if byte[0] == 0 {
            break;
        }
        name.push(byte[0]);
    }
    Ok(name)
}
