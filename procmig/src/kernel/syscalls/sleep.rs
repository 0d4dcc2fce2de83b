//! Calls that sleep in the node.

use super::Outcome;
use super::masks::{replace_mask, restore_mask};
use crate::futex::Parked;
use crate::kernel::deadline::Deadline;
use crate::kernel::deliver::RestartKind;
use crate::kernel::guest::{GuestThread, failure};
use crate::kernel::lock;
use crate::signal::set::SignalSet;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use std::time::Instant;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Reads a `struct timespec` as nanoseconds.
pub fn read_time(guest: &GuestThread, cpu: &mut UserCpu, at: u64) -> Result<u64, Errno> {
    let (seconds, nanos) = guest.with_memory(cpu, |memory| {
        let at = GuestVirtAddr(at);
        Ok((memory.read_u64(at)? as i64, memory.read_u64(at + 8)? as i64))
    })?;
    if seconds < 0 || !(0..1_000_000_000).contains(&nanos) {
        return Err(Errno::EINVAL);
    }
    Ok((seconds as u64).saturating_mul(1_000_000_000).saturating_add(nanos as u64).min(i64::MAX as u64))
}

/// Writes nanoseconds as a `struct timespec`.
pub fn write_time(guest: &GuestThread, cpu: &mut UserCpu, at: u64, nanos: u64) -> Result<(), Errno> {
    guest.with_memory(cpu, |memory| {
        let at = GuestVirtAddr(at);
        memory.write_u64(at, nanos / 1_000_000_000)?;
        memory.write_u64(at + 8, nanos % 1_000_000_000)
    })
}

/// Whether a sleep that was broken off ends with `EINTR`: a handler will run. Else it goes on.
fn is_over(guest: &GuestThread) -> bool {
    if guest.process.must_end(guest.thread.tid()) {
        return true;
    }
    let signals = lock(&guest.process.signals);
    let own = lock(&guest.thread.signals);
    let acts = own.deliverable(signals.pending.set()).iter().any(|signal| !signals.ignores(signal));
    drop((own, signals));
    acts
}

/// When a call is over that waits for `nanos`, `None` for never: it may have begun before its thread stood still.
pub fn end_of_wait(guest: &mut GuestThread, nanos: Option<u64>) -> Option<Deadline> {
    let process = &guest.process;
    *guest.again.deadline.get_or_insert_with(|| nanos.and_then(|nanos| Deadline::after(process, nanos)))
}

/// How a sleep ends.
enum Slept {
    Over,
    /// By a signal; so many nanoseconds are left.
    BrokenOff(u64),
    /// The thread is to stand still.
    Paused,
}

/// Sleeps for a time, through what is no reason to end.
fn sleep_for(guest: &mut GuestThread, nanos: u64) -> Slept {
    let mut end = end_of_wait(guest, Some(nanos));
    loop {
        match guest.thread.parker.park(end.map(|end| end.here), || false) {
            Parked::Ready => return Slept::Over,
            Parked::TimedOut => match end.and_then(|end| end.again(&guest.process)) {
                Some(later) => {
                    end = Some(later);
                    continue;
                }
                None => return Slept::Over,
            },
            Parked::Interrupted => {}
        }
        guest.thread.take_attention();
        if guest.shall_only_freeze() {
            return Slept::Paused;
        }
        // A stop is slept through: the time goes on meanwhile.
        guest.process.wait_while_stopped();
        if is_over(guest) {
            guest.thread.notify();
            let left = end.map_or(nanos, |end| end.here.saturating_duration_since(Instant::now()).as_nanos() as u64);
            return Slept::BrokenOff(left);
        }
    }
}

pub fn nanosleep(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    match read_time(guest, cpu, args[0]) {
        Ok(nanos) => relative(guest, cpu, nanos, args[1]),
        Err(errno) => Outcome::Return(failure(errno)),
    }
}

fn relative(guest: &mut GuestThread, cpu: &mut UserCpu, nanos: u64, rest: u64) -> Outcome {
    match sleep_for(guest, nanos) {
        Slept::Over => Outcome::Return(0),
        Slept::Paused => Outcome::Paused,
        Slept::BrokenOff(left) => {
            if rest != 0
                && let Err(errno) = write_time(guest, cpu, rest, left)
            {
                return Outcome::Return(failure(errno));
            }
            Outcome::Return(failure(Errno::EINTR))
        }
    }
}

pub fn clock_nanosleep(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    const ABSOLUTE: u64 = libc::TIMER_ABSTIME as u64;
    let wanted = match read_time(guest, cpu, args[2]) {
        Ok(nanos) => nanos,
        Err(errno) => return Outcome::Return(failure(errno)),
    };
    let clock = args[0] as i32;
    let Some(now) = guest.process.now(clock) else {
        let errno = if clock == libc::CLOCK_THREAD_CPUTIME_ID { Errno::EINVAL } else { Errno::EOPNOTSUPP };
        return Outcome::Return(failure(errno));
    };
    if args[1] & ABSOLUTE == 0 {
        return relative(guest, cpu, wanted, args[3]);
    }
    match sleep_for(guest, wanted.saturating_sub(now)) {
        Slept::Over => Outcome::Return(0),
        Slept::Paused => Outcome::Paused,
        Slept::BrokenOff(_) => Outcome::Restart(RestartKind::WithoutHandler),
    }
}

pub fn pause(guest: &mut GuestThread) -> Outcome {
    guest.thread.parker.park(None, || false);
    Outcome::Restart(RestartKind::WithoutHandler)
}

pub fn sigsuspend(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    if args[1] != 8 {
        return Outcome::Return(failure(Errno::EINVAL));
    }
    match guest.with_memory(cpu, |memory| memory.read_u64(GuestVirtAddr(args[0]))) {
        Ok(mask) => replace_mask(guest, SignalSet(mask)),
        Err(errno) => return Outcome::Return(failure(errno)),
    }
    guest.thread.parker.park(None, || false);
    Outcome::Restart(RestartKind::WithoutHandler)
}

pub fn sigtimedwait(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    match wait_for_signal(guest, cpu, args) {
        Ok(Some(signal)) => Outcome::Return(signal as i64),
        Ok(None) => Outcome::Paused,
        Err(errno) => Outcome::Return(failure(errno)),
    }
}

/// The signal that came; `None` if the thread is to stand still.
fn wait_for_signal(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Result<Option<u64>, Errno> {
    if args[3] != 8 {
        return Err(Errno::EINVAL);
    }
    let set = guest.with_memory(cpu, |memory| memory.read_u64(GuestVirtAddr(args[0])))?;
    let set = SignalSet(set).blockable();
    let nanos = match args[2] {
        0 => None,
        at => Some(read_time(guest, cpu, at)?),
    };
    let end = end_of_wait(guest, nanos);
    let taken = loop {
        let taken = {
            let mut signals = lock(&guest.process.signals);
            let mut own = lock(&guest.thread.signals);
            let taken = own.pending.take(!set).or_else(|| signals.pending.take(!set));
            own.awaited = if taken.is_some() { SignalSet::EMPTY } else { set };
            taken
        };
        if let Some(info) = taken {
            break Ok(info);
        }
        let parked = guest.thread.parker.park(end.map(|end| end.here), || false);
        if parked == Parked::TimedOut {
            end.inspect(|end| end.await_home(&guest.process));
            break Err(Errno::EAGAIN);
        }
        guest.thread.take_attention();
        if guest.shall_only_freeze() {
            lock(&guest.thread.signals).awaited = SignalSet::EMPTY;
            return Ok(None);
        }
        let (arrived, other) = {
            let signals = lock(&guest.process.signals);
            let own = lock(&guest.thread.signals);
            let pending = own.pending.set() | signals.pending.set();
            (!(pending & set).is_empty(), !own.deliverable(signals.pending.set()).is_empty())
        };
        if !arrived && (other || guest.process.must_end(guest.thread.tid()) || guest.process.is_stopped()) {
            guest.thread.notify();
            break Err(Errno::EINTR);
        }
    };
    {
        let signals = lock(&guest.process.signals);
        let mut own = lock(&guest.thread.signals);
        own.awaited = SignalSet::EMPTY;
        own.choose_anew(signals.pending.set());
    }
    if taken.is_err() {
        guest.process.pass_on(set);
    }
    let info = taken?;
    if args[1] != 0 {
        guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(args[1]), &info.0))?;
    }
    restore_mask(guest);
    Ok(Some(info.signal() as u64))
}
