//! Futexes.

use super::sleep::{end_of_wait, read_time};
use super::{CallResult, Outcome};
use crate::futex::{Key, MATCH_ANY, Waited, WakeOp};
use crate::kernel::deliver::RestartKind;
use crate::kernel::guest::{GuestThread, failure};
use crate::mm::ProcessMemory;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use std::sync::atomic::Ordering;
use vmm::addr::{Frame, GuestPhysAddr, GuestVirtAddr};
use vmm::user_cpu::UserCpu;

const WAIT: u32 = 0;
const WAKE: u32 = 1;
const REQUEUE: u32 = 3;
const CMP_REQUEUE: u32 = 4;
const WAKE_OP: u32 = 5;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
const PRIVATE: u32 = 128;
const CLOCK_REALTIME: u32 = 256;

/// Most futexes of a thread's robust list, as Linux's `ROBUST_LIST_LIMIT`.
const ROBUST_LIMIT: usize = 2048;
const OWNER_DIED: u32 = 0x4000_0000;
const WAITERS: u32 = 0x8000_0000;
const TID_MASK: u32 = 0x3fff_ffff;

fn key(memory: &ProcessMemory<'_>, address: u64, private: bool) -> Result<Key, Errno> {
    let (_, physical) = memory.load_word(address)?;
    Ok(key_at(memory, address, physical, private))
}

fn key_at(memory: &ProcessMemory<'_>, address: u64, physical: GuestPhysAddr, private: bool) -> Key {
    if private || !memory.space().is_shared_at(address) {
        Key::Private { space: memory.space().id(), address: GuestVirtAddr(address) }
    } else {
        Key::Shared { frame: Frame::containing(physical), offset: physical.page_offset() as u32 }
    }
}

/// `futex`
pub fn futex(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let [address, op, value, fourth, second, bits] = *args;
    let (op, value) = (op as u32, value as u32);
    let private = op & PRIVATE != 0;
    let result = match op & !(PRIVATE | CLOCK_REALTIME) {
        command @ (WAIT | WAIT_BITSET) => {
            let bitset = if command == WAIT { MATCH_ANY } else { bits as u32 };
            return wait(guest, cpu, address, private, value, bitset, fourth, op, command == WAIT);
        }
        WAKE => wake(guest, cpu, address, private, value, MATCH_ANY),
        WAKE_BITSET if bits as u32 == 0 => Err(Errno::EINVAL),
        WAKE_BITSET => wake(guest, cpu, address, private, value, bits as u32),
        REQUEUE => requeue(guest, cpu, address, second, private, value, fourth as u32, None),
        CMP_REQUEUE => requeue(guest, cpu, address, second, private, value, fourth as u32, Some(bits as u32)),
        WAKE_OP => wake_op(guest, cpu, address, second, private, value, fourth as u32, bits as u32),
        // Priority inheritance needs priorities, which guests do not have.
        _ => Err(Errno::ENOSYS),
    };
    result.into()
}

#[allow(clippy::too_many_arguments, reason = "the call's arguments")]
fn wait(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    address: u64,
    private: bool,
    value: u32,
    bitset: u32,
    timeout: u64,
    op: u32,
    relative: bool,
) -> Outcome {
    let nanos = match timeout {
        0 => None,
        at => match read_time(guest, cpu, at) {
            Ok(nanos) if relative => Some(nanos),
            Ok(nanos) => {
                let clock = if op & CLOCK_REALTIME != 0 { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
                let now = guest.process.now(clock).unwrap_or(0);
                Some(nanos.saturating_sub(now))
            }
            Err(errno) => return Outcome::Return(failure(errno)),
        },
    };
    // A deadline that cannot be counted to never comes.
    let end = end_of_wait(guest, nanos);
    let result = {
        let memory = ProcessMemory::new(&guest.space, cpu);
        key(&memory, address, private).and_then(|key| {
            guest.kernel().futexes.wait(key, bitset, &guest.thread.parker, end.map(|end| end.here), || {
                Ok(memory.load_word(address)?.0 == value)
            })
        })
    };
    match result {
        Ok(Waited::Woken) => Outcome::Return(0),
        Ok(Waited::TimedOut) => {
            end.inspect(|end| end.await_home(&guest.process));
            Outcome::Return(failure(Errno::ETIMEDOUT))
        }
        // With a deadline Linux restarts only if no handler runs.
        Ok(Waited::Interrupted) if timeout != 0 && relative => Outcome::Restart(RestartKind::WithoutHandler),
        Ok(Waited::Interrupted) => Outcome::Restart(RestartKind::IfAsked),
        Err(errno) => Outcome::Return(failure(errno)),
    }
}

fn wake(guest: &GuestThread, cpu: &mut UserCpu, address: u64, private: bool, count: u32, bitset: u32) -> CallResult {
    if !address.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    let memory = ProcessMemory::new(&guest.space, cpu);
    let key = if private {
        Key::Private { space: guest.space.id(), address: GuestVirtAddr(address) }
    } else {
        key(&memory, address, private)?
    };
    Ok(guest.kernel().futexes.wake(&key, count.max(1) as usize, bitset) as u64)
}

#[allow(clippy::too_many_arguments, reason = "the call's arguments")]
fn requeue(
    guest: &GuestThread,
    cpu: &mut UserCpu,
    address: u64,
    second: u64,
    private: bool,
    wake: u32,
    moved: u32,
    expected: Option<u32>,
) -> CallResult {
    if (wake as i32) < 0 || (moved as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let memory = ProcessMemory::new(&guest.space, cpu);
    let (from, to) = (key(&memory, address, private)?, key(&memory, second, private)?);
    let done = guest.kernel().futexes.requeue(&from, &to, wake as usize, moved as usize, || {
        Ok(match expected {
            Some(expected) => memory.load_word(address)?.0 == expected,
            None => true,
        })
    })?;
    Ok((done.woken + if expected.is_some() { done.moved } else { 0 }) as u64)
}

#[allow(clippy::too_many_arguments, reason = "the call's arguments")]
fn wake_op(
    guest: &GuestThread,
    cpu: &mut UserCpu,
    address: u64,
    second: u64,
    private: bool,
    count: u32,
    second_count: u32,
    encoded: u32,
) -> CallResult {
    let op = WakeOp::decode(encoded)?;
    let memory = ProcessMemory::new(&guest.space, cpu);
    let (first, other) = (key(&memory, address, private)?, key(&memory, second, private)?);
    let woken = guest.kernel().futexes.wake_op(&first, &other, count as usize, second_count as usize, || {
        Ok(op.passes(memory.change_word(second, |old| op.apply(old))?))
    })?;
    Ok(woken as u64)
}

/// Wakes waiters on a word of this process, whichever way they wait.
pub fn wake_at(guest: &GuestThread, cpu: &mut UserCpu, address: u64, count: u32) {
    for private in [true, false] {
        if let Err(error) = wake(guest, cpu, address, private, count, MATCH_ANY) {
            tracing::debug!(%error, address, "nobody can be woken there");
            return;
        }
        if !guest.space.is_shared_at(address) {
            return;
        }
    }
}

/// `set_robust_list`
pub fn set_robust_list(guest: &GuestThread, args: &[u64; 6]) -> CallResult {
    if args[1] != 24 {
        return Err(Errno::EINVAL);
    }
    guest.thread.robust_list.store(args[0], Ordering::Relaxed);
    Ok(0)
}

/// `get_robust_list`
pub fn get_robust_list(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let head = match args[0] as i32 {
        0 => guest.thread.robust_list.load(Ordering::Relaxed),
        tid => guest.process.thread(tid).ok_or(Errno::ESRCH)?.robust_list.load(Ordering::Relaxed),
    };
    guest.with_memory(cpu, |memory| {
        memory.write_u64(GuestVirtAddr(args[1]), head)?;
        memory.write_u64(GuestVirtAddr(args[2]), 24)
    })?;
    Ok(0)
}

/// The thread ends: marks the robust futexes that it holds, and wakes a waiter of each.
pub fn release_robust(guest: &GuestThread, cpu: &mut UserCpu) {
    let head = guest.thread.robust_list.swap(0, Ordering::Relaxed);
    if head == 0 {
        return;
    }
    if let Err(error) = walk_robust(guest, cpu, head) {
        tracing::debug!(%error, "a robust list is damaged");
    }
}

fn walk_robust(guest: &GuestThread, cpu: &mut UserCpu, head: u64) -> Result<(), Errno> {
    let read = |cpu: &mut UserCpu, at: u64| guest.with_memory(cpu, |memory| memory.read_u64(GuestVirtAddr(at)));
    let offset = read(cpu, head.wrapping_add(8))?;
    let pending = read(cpu, head.wrapping_add(16))?;
    let mut entry = read(cpu, head)?;
    for _ in 0..ROBUST_LIMIT {
        if entry & !1 == head {
            break;
        }
        let next = read(cpu, entry & !1);
        if entry != pending {
            release_one(guest, cpu, (entry & !1).wrapping_add(offset))?;
        }
        entry = next?;
    }
    if pending & !1 != 0 {
        release_one(guest, cpu, (pending & !1).wrapping_add(offset))?;
    }
    Ok(())
}

fn release_one(guest: &GuestThread, cpu: &mut UserCpu, address: u64) -> Result<(), Errno> {
    let tid = guest.thread.tid() as u32;
    let old = guest.with_memory(cpu, |memory| {
        memory.change_word(address, |word| if word & TID_MASK == tid { word & WAITERS | OWNER_DIED } else { word })
    })?;
    if old & TID_MASK == tid && old & WAITERS != 0 {
        wake_at(guest, cpu, address, 1);
    }
    Ok(())
}
