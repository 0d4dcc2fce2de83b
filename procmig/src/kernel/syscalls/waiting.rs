//! Waiting for children: they are the deputy's, and what they used was used in the node.

use super::{CallResult, Outcome, forward};
use crate::kernel::guest::GuestThread;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use std::sync::atomic::Ordering;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Offset of `ru_maxrss`, in KiB, in a `struct rusage`; the user time is at 0.
const MAX_RESIDENT: u64 = 32;
/// Offset of `si_pid` in a `siginfo_t`.
const CHILD: u64 = 12;

/// `wait4` and `waitid`.
pub fn wait(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Outcome {
    let outcome = forward::forward(guest, cpu, nr, args);
    let (child, usage, reaps) = match (i64::from(nr), outcome) {
        (libc::SYS_wait4, Outcome::Return(pid @ 1..)) => (pid as i32, args[3], true),
        (libc::SYS_waitid, Outcome::Return(0)) if args[2] != 0 => {
            let at = GuestVirtAddr(args[2]) + CHILD;
            let child = guest.with_memory(cpu, |memory| memory.read_u32(at)).unwrap_or(0);
            (child as i32, args[4], args[3] & libc::WNOWAIT as u64 == 0)
        }
        _ => return outcome,
    };
    let kernel = guest.kernel().clone();
    let Some(used) = (if reaps { kernel.take_usage(child) } else { kernel.usage(child) }) else { return outcome };
    if reaps {
        let counters = &guest.process.counters;
        counters.children_cpu.fetch_add(used.cpu, Ordering::Relaxed);
        counters.children_peak.fetch_max(used.peak_resident, Ordering::Relaxed);
    }
    if usage != 0
        && let Err(errno) = guest.with_memory(cpu, |memory| add_usage(memory, usage, used.cpu, used.peak_resident))
    {
        return Err(errno).into();
    }
    outcome
}

/// Adds to a `struct rusage`: user time in nanoseconds, and a size in bytes if it is larger.
fn add_usage(memory: &dyn UserMemory, at: u64, nanos: u64, resident: u64) -> Result<(), Errno> {
    let at = GuestVirtAddr(at);
    let micros = memory.read_u64(at)?.wrapping_mul(1_000_000).wrapping_add(memory.read_u64(at + 8)?) + nanos / 1000;
    memory.write_u64(at, micros / 1_000_000)?;
    memory.write_u64(at + 8, micros % 1_000_000)?;
    let peak = memory.read_u64(at + MAX_RESIDENT)?.max(resident >> 10);
    memory.write_u64(at + MAX_RESIDENT, peak)
}

/// `getrusage(RUSAGE_CHILDREN)`
pub fn children_usage(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let outcome = forward::forward(guest, cpu, libc::SYS_getrusage as u32, args);
    if outcome != Outcome::Return(0) {
        return outcome;
    }
    let counters = &guest.process.counters;
    let used = (counters.children_cpu.load(Ordering::Relaxed), counters.children_peak.load(Ordering::Relaxed));
    let added: CallResult = guest.with_memory(cpu, |memory| add_usage(memory, args[1], used.0, used.1)).map(|()| 0);
    added.into()
}
