//! Scheduling calls. Policies and CPU sets are the deputy's, where home's kernel keeps its rules for
//! them; the host's scheduler runs the threads, and is told of the CPU sets.

use super::{CallResult, Outcome, forward};
use crate::kernel::affinity::{CpuSet, MASK};
use crate::kernel::guest::GuestThread;
use crate::kernel::thread::Thread;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use std::sync::Arc;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

const SCHED_OTHER: u64 = 0;
const SCHED_BATCH: u64 = 3;
const SCHED_IDLE: u64 = 5;
const RESET_ON_FORK: u64 = 0x4000_0000;

pub fn sched_yield() -> Outcome {
    std::thread::yield_now();
    Outcome::Return(0)
}

/// The call with its length cut to what there is at most, as the kernel cuts it.
fn cut(args: &[u64; 6]) -> [u64; 6] {
    let mut args = *args;
    args[1] = u64::from(args[1] as u32).min(MASK as u64);
    args
}

pub fn getaffinity(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let mut args = cut(args);
    // The deputy's thread of another may be bound at this moment.
    let hidden = target(guest, args[0] as i32)
        .filter(|other| !Arc::ptr_eq(other, &guest.thread))
        .and_then(|other| other.hidden_affinity());
    let Some(set) = hidden else { return forward::forward(guest, cpu, libc::SYS_sched_getaffinity as u32, &args) };
    args[0] = 0;
    let outcome = forward::forward(guest, cpu, libc::SYS_sched_getaffinity as u32, &args);
    if let Outcome::Return(length @ 1..) = outcome {
        let mut bytes = set.to_bytes();
        bytes.resize(length as usize, 0);
        if let Err(errno) = guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(args[2]), &bytes)) {
            return Err(errno).into();
        }
    }
    outcome
}

/// Home's kernel checks the set and keeps it; the threads' host threads run by it.
pub fn setaffinity(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let args = cut(args);
    let outcome = forward::forward(guest, cpu, libc::SYS_sched_setaffinity as u32, &args);
    // The CPUs of another host are others.
    if outcome == Outcome::Return(0) && !guest.process.is_remote() {
        let mut wanted = [0; MASK];
        let length = args[1] as usize;
        let read = guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(args[2]), &mut wanted[..length]));
        if let (Ok(()), Some(thread)) = (read, target(guest, args[0] as i32)) {
            thread.set_affinity(CpuSet::new(wanted));
        }
    }
    outcome
}

/// The guest thread that a call names, if it is one of this node.
fn target(guest: &GuestThread, tid: i32) -> Option<Arc<Thread>> {
    if tid == 0 {
        return Some(guest.thread.clone());
    }
    let home = guest.process.home();
    let others = || guest.kernel().processes().into_iter().filter(move |process| process.home() == home);
    guest.process.thread(tid).or_else(|| others().find_map(|process| process.thread(tid)))
}

/// Real-time policies are refused: what runs here is a share of a machine, not the machine.
pub fn setscheduler(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    match real_time(guest, cpu, args) {
        Ok(true) => Err(Errno::EPERM).into(),
        Ok(false) => forward::forward(guest, cpu, libc::SYS_sched_setscheduler as u32, args),
        Err(errno) => Err(errno).into(),
    }
}

fn real_time(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Result<bool, Errno> {
    if (args[0] as i32) < 0 || !matches!(args[1] as u32 as u64 & !RESET_ON_FORK, 1 | 2) {
        return Ok(false);
    }
    let priority = guest.with_memory(cpu, |memory| memory.read_u32(GuestVirtAddr(args[2])))?;
    Ok((1..=99).contains(&priority))
}

pub fn priority(args: &[u64; 6], highest: bool) -> CallResult {
    match args[0] {
        1 | 2 => Ok(if highest { 99 } else { 1 }),
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
