//! Waiting for children, which are the deputy's, and telling what was used: at home and in the node.

use super::{CallResult, Outcome, forward};
use crate::kernel::guest::GuestThread;
use crate::kernel::lock;
use crate::kernel::process::{Ending, Presence};
use crate::usermem::UserMemory;
use crate::wire::usage::Usage;
use nix::errno::Errno;
use std::time::Duration;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Offsets in a `struct rusage`, whose user time is at 0: time in the kernel, most KiB resident, and
/// faults that needed no input, before those that did.
const SYSTEM: u64 = 16;
const MAX_RESIDENT: u64 = 32;
const MINOR_FAULTS: u64 = 64;
/// Offset of `si_code` in a `siginfo_t`.
const CODE: u64 = 8;
/// Offset of `si_pid` in a `siginfo_t`.
const CHILD: u64 = 12;

/// How long a killed child may take to end here: what it has used is lost else, on a machine however busy.
const LINGER: Duration = Duration::from_secs(10);

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
    let home = guest.process.home();
    let has_ended = has_ended(guest, cpu, nr, args);
    if let Some(process) = kernel.process_of(home, child)
        && process.presence() == Presence::Here
        && has_ended
    {
        // Its deputy was killed, and the news of that is still on its way here. What it had open must
        // be closed when its end is seen, and what it used be known.
        process.begin_exit(Ending::Lost);
        process.wait_until_left(LINGER);
    }
    let used = if reaps { kernel.take_usage(home, child) } else { kernel.usage(home, child) };
    // It may have ended in another node.
    let ask = || (home == 0 && has_ended).then(|| kernel.neighbours.usage(child, reaps)).flatten();
    let Some(used) = used.or_else(ask) else { return outcome };
    if reaps {
        lock(&guest.process.counters.children).add(&used);
    }
    if usage != 0
        && let Err(errno) = guest.with_memory(cpu, |memory| add_usage(memory, usage, &used))
    {
        return Err(errno).into();
    }
    outcome
}

/// Whether what was waited for is the child's end, and no stop.
fn has_ended(guest: &GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> bool {
    let stops = (libc::WUNTRACED | libc::WCONTINUED) as u64;
    if i64::from(nr) == libc::SYS_waitid {
        let code = guest.with_memory(cpu, |memory| memory.read_u32(GuestVirtAddr(args[2]) + CODE));
        return code.is_ok_and(|code| code <= libc::CLD_DUMPED as u32);
    }
    match guest.with_memory(cpu, |memory| memory.read_u32(GuestVirtAddr(args[1]))) {
        Ok(status) => libc::WIFEXITED(status as i32) || libc::WIFSIGNALED(status as i32),
        Err(_) => args[2] & stops == 0,
    }
}

/// Adds what was used in the node to home's `struct rusage`, which tells of deputies: their CPU time was
/// spent for the guests, but their memory and its faults are not the guests'.
fn add_usage(memory: &dyn UserMemory, at: u64, used: &Usage) -> Result<(), Errno> {
    let at = GuestVirtAddr(at);
    for (offset, nanos) in [(0, used.user_nanos()), (SYSTEM, used.system_nanos)] {
        let at = at + offset;
        let home = memory.read_u64(at)?.wrapping_mul(1_000_000).wrapping_add(memory.read_u64(at + 8)?);
        let micros = home.wrapping_add(nanos / 1000);
        memory.write_u64(at, micros / 1_000_000)?;
        memory.write_u64(at + 8, micros % 1_000_000)?;
    }
    memory.write_u64(at + MAX_RESIDENT, used.peak_resident >> 10)?;
    memory.write_u64(at + MINOR_FAULTS, used.faults)?;
    memory.write_u64(at + MINOR_FAULTS + 8, 0)
}

/// `getrusage`: what was used at home and in the node together.
pub fn getrusage(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let outcome = forward::forward(guest, cpu, libc::SYS_getrusage as u32, args);
    if outcome != Outcome::Return(0) {
        return outcome;
    }
    let used = match args[0] as i32 {
        libc::RUSAGE_CHILDREN => guest.process.children_usage(),
        libc::RUSAGE_THREAD => Usage { peak_resident: guest.process.usage().peak_resident, ..guest.thread.usage() },
        _ => guest.process.usage(),
    };
    let added: CallResult = guest.with_memory(cpu, |memory| add_usage(memory, args[1], &used)).map(|()| 0);
    added.into()
}

/// `times`: the same, in ticks.
pub fn times(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    const TICK: u64 = 10_000_000;
    match forward::forward(guest, cpu, libc::SYS_times as u32, args) {
        Outcome::Return(value) if value >= 0 => {}
        other => return other,
    }
    let result: CallResult = (|| {
        if args[0] != 0 {
            let (own, children) = (guest.process.usage(), guest.process.children_usage());
            let nanos = [own.user_nanos(), own.system_nanos, children.user_nanos(), children.system_nanos];
            guest.with_memory(cpu, |memory| {
                nanos.iter().zip(0..).try_for_each(|(nanos, index)| {
                    let at = GuestVirtAddr(args[0]) + index * 8;
                    memory.write_u64(at, memory.read_u64(at)?.wrapping_add(nanos / TICK))
                })
            })?;
        }
        Ok(guest.process.now(libc::CLOCK_MONOTONIC).unwrap_or(0) / TICK)
    })();
    result.into()
}
