//! Scheduling calls. The host's scheduler runs the threads; guests see its CPUs and one policy.

use super::{CallResult, Outcome};
use crate::kernel::guest::GuestThread;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

const SCHED_OTHER: u64 = 0;
const SCHED_BATCH: u64 = 3;
const SCHED_IDLE: u64 = 5;
const RESET_ON_FORK: u64 = 0x4000_0000;
/// Bytes of the masks that guests see, as a kernel for 1024 CPUs.
const MASK: usize = 128;

pub fn sched_yield() -> Outcome {
    std::thread::yield_now();
    Outcome::Return(0)
}

/// The CPUs that the node may use.
fn cpus() -> [u8; MASK] {
    let mut mask = [0; MASK];
    // SAFETY: the buffer is ours and as long as is said; the call fills it from its start.
    let filled = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, MASK, mask.as_mut_ptr()) };
    if filled <= 0 {
        mask[0] = 1;
    }
    mask
}

pub fn getaffinity(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let mask = cpus();
    let used = mask.iter().rposition(|&byte| byte != 0).map_or(8, |last| (last + 1).next_multiple_of(8));
    let length = args[1] as usize;
    if length < used || !length.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let known = length.min(MASK).min(used.max(8));
    guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(args[2]), &mask[..known]))?;
    Ok(known as u64)
}

/// The mask is checked and else left to the balancer: a process may move to a host with other CPUs.
pub fn setaffinity(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let mut wanted = [0; MASK];
    let length = (args[1] as usize).min(MASK);
    guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(args[2]), &mut wanted[..length]))?;
    if wanted.iter().zip(cpus()).any(|(wanted, have)| wanted & have != 0) { Ok(0) } else { Err(Errno::EINVAL) }
}

pub fn setscheduler(guest: &GuestThread, cpu: &mut UserCpu, policy: u64, parameter: u64) -> CallResult {
    let priority = guest.with_memory(cpu, |memory| memory.read_u32(GuestVirtAddr(parameter)))?;
    match policy & !RESET_ON_FORK {
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE if priority == 0 => Ok(0),
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE => Err(Errno::EINVAL),
        1 | 2 if (1..=99).contains(&priority) => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

pub fn getparam(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    guest.with_memory(cpu, |memory| memory.write_u32(GuestVirtAddr(args[1]), 0))?;
    Ok(0)
}

pub fn priority(args: &[u64; 6], highest: bool) -> CallResult {
    match args[0] {
        1 | 2 => Ok(if highest { 99 } else { 1 }),
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn rr_interval(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    super::sleep::write_time(guest, cpu, args[1], 4_000_000)?;
    Ok(0)
}
