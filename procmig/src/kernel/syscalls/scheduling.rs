//! Scheduling calls. Policies and CPU sets are the deputy's, where home's kernel keeps its rules for
//! them; the host's scheduler runs the threads, and is told of the CPU sets.

use super::{CallResult, Outcome, forward};
use crate::kernel::affinity::{CpuSet, MASK};
use crate::kernel::guest::GuestThread;
use crate::usermem::UserMemory;
use nix::errno::Errno;
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
    let args = cut(args);
    let outcome = forward::forward(guest, cpu, libc::SYS_sched_getaffinity as u32, &args);
    let Outcome::Return(length @ 1..) = outcome else { return outcome };
    let tid = args[0] as i32;
    // Its own deputy's thread lets go before it tells.
    if tid == 0 || tid == guest.thread.tid() {
        return outcome;
    }
    // That of another may be bound to one CPU at this moment. Whether it ever was is asked after home was.
    let Some(rights) = cpus(guest, tid, None) else { return outcome };
    let mut bytes = rights.to_bytes();
    bytes.resize(length as usize, 0);
    match guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(args[2]), &bytes)) {
        Ok(()) => outcome,
        Err(errno) => Err(errno).into(),
    }
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
        if read.is_ok() {
            cpus(guest, args[0] as i32, Some(CpuSet::new(wanted)));
        }
    }
    outcome
}

/// Has the guest thread that a call names run on the CPUs that are chosen, and tells on which it may run by rights if
/// home's kernel may not: it may be in this node, or in another of its home.
fn cpus(guest: &GuestThread, tid: i32, chosen: Option<CpuSet>) -> Option<CpuSet> {
    if tid == 0 || tid == guest.thread.tid() {
        // Its own deputy's thread has let go before it was told.
        chosen.into_iter().for_each(|set| guest.thread.set_affinity(set));
        return guest.thread.hidden_affinity();
    }
    if let Some(thread) = guest.process.thread(tid) {
        return thread.cpus(chosen);
    }
    let (home, kernel) = (guest.process.home(), guest.kernel());
    if home != 0 {
        let others = kernel.processes().into_iter().filter(|process| process.home() == home);
        return others.into_iter().find_map(|process| process.thread(tid))?.cpus(chosen);
    }
    kernel.cpus(tid, chosen)
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
