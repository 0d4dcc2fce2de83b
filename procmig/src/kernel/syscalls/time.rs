//! Clocks and timers.

use super::CallResult;
use super::sleep::{read_time, write_time};
use crate::kernel::guest::GuestThread;
use crate::kernel::lock;
use crate::kernel::timers::{Counts, Notice, Timer, count, interval, is_thread_of};
use crate::usermem::UserMemory;
use crate::vdso::clock::resolution;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Nanoseconds of a clock as this thread sees it.
fn read_clock(guest: &GuestThread, clock: i32) -> Result<u64, Errno> {
    if let Some(now) = guest.process.now(clock) {
        return Ok(now);
    }
    match clock {
        libc::CLOCK_PROCESS_CPUTIME_ID => Ok(guest.process.cpu_time()),
        libc::CLOCK_THREAD_CPUTIME_ID => Ok(guest.thread.cpu_time()),
        clock if clock < 0 => count(&guest.process, cpu_clock(guest, clock)?).ok_or(Errno::EINVAL),
        _ => Err(Errno::EINVAL),
    }
}

/// What a CPU clock by PID or TID, in the kernel's encoding (`pthread_getcpuclockid`), counts.
fn cpu_clock(guest: &GuestThread, clock: i32) -> Result<Counts, Errno> {
    let id = !(clock >> 3);
    let per_thread = clock & 4 != 0;
    if clock & 3 == 3 {
        return Err(Errno::EINVAL);
    }
    match id {
        0 if per_thread => Ok(Counts::ThreadCpu(guest.thread.tid())),
        0 => Ok(Counts::ProcessCpu(guest.process.pid)),
        tid if per_thread => guest.process.thread(tid).map(|_| Counts::ThreadCpu(tid)).ok_or(Errno::EINVAL),
        pid => {
            guest.kernel().process_of(guest.process.home(), pid).map(|_| Counts::ProcessCpu(pid)).ok_or(Errno::EINVAL)
        }
    }
}

pub fn clock_gettime(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let now = read_clock(guest, args[0] as i32)?;
    write_time(guest, cpu, args[1], now)?;
    Ok(0)
}

pub fn clock_getres(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let clock = args[0] as i32;
    let nanos = match resolution(clock) {
        Some(nanos) => nanos,
        None => read_clock(guest, clock).map(|_| 1)?,
    };
    if args[1] != 0 {
        write_time(guest, cpu, args[1], nanos)?;
    }
    Ok(0)
}

pub fn gettimeofday(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let now = read_clock(guest, libc::CLOCK_REALTIME)?;
    guest.with_memory(cpu, |memory| {
        if args[0] != 0 {
            write_timeval(memory, args[0], now)?;
        }
        if args[1] != 0 {
            memory.write_u64(GuestVirtAddr(args[1]), 0)?;
        }
        Ok(0)
    })
}

/// Writes nanoseconds as a `struct timeval`.
pub fn write_timeval(memory: &dyn UserMemory, at: u64, nanos: u64) -> Result<(), Errno> {
    memory.write_u64(GuestVirtAddr(at), nanos / 1_000_000_000)?;
    memory.write_u64(GuestVirtAddr(at) + 8, nanos % 1_000_000_000 / 1000)
}

pub fn time(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let seconds = read_clock(guest, libc::CLOCK_REALTIME)? / 1_000_000_000;
    if args[0] != 0 {
        guest.with_memory(cpu, |memory| memory.write_u64(GuestVirtAddr(args[0]), seconds))?;
    }
    Ok(seconds)
}

/// Which timer `setitimer` means.
fn interval_timer(guest: &GuestThread, which: u64) -> Result<i32, Errno> {
    let (id, counts, signal) = match which as i32 {
        0 => (interval::REAL, Counts::Time, libc::SIGALRM),
        1 => (interval::VIRTUAL, Counts::OwnUserTime, libc::SIGVTALRM),
        2 => (interval::PROF, Counts::ProcessCpu(guest.process.pid), libc::SIGPROF),
        _ => return Err(Errno::EINVAL),
    };
    let timer = Timer::new(counts, libc::CLOCK_MONOTONIC, Notice::Process { signal, value: 0 });
    lock(&guest.process.timers).ensure(id, timer);
    Ok(id)
}

fn write_itimer(guest: &GuestThread, cpu: &mut UserCpu, at: u64, (left, period): (u64, u64)) -> Result<(), Errno> {
    // What is left never shows as nothing.
    let left = if left == 0 { 0 } else { left.max(1000) };
    guest.with_memory(cpu, |memory| {
        write_timeval(memory, at, period)?;
        write_timeval(memory, at + 16, left)
    })
}

pub fn getitimer(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let id = interval_timer(guest, args[0])?;
    let old = guest.kernel().timers.look(&guest.process, id).unwrap_or_default();
    write_itimer(guest, cpu, args[1], old)?;
    Ok(0)
}

pub fn setitimer(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let id = interval_timer(guest, args[0])?;
    let mut words = [0u64; 4];
    if args[1] != 0 {
        for (i, word) in words.iter_mut().enumerate() {
            let at = GuestVirtAddr(args[1]) + i as u64 * 8;
            *word = guest.with_memory(cpu, |memory| memory.read_u64(at))?;
        }
    }
    let time = |seconds: u64, micros: u64| {
        if (seconds as i64) < 0 || micros >= 1_000_000 {
            return Err(Errno::EINVAL);
        }
        Ok(seconds.saturating_mul(1_000_000_000).saturating_add(micros * 1000).min(i64::MAX as u64))
    };
    let (period, value) = (time(words[0], words[1])?, time(words[2], words[3])?);
    let old = guest.kernel().timers.arm(&guest.process, id, value, false, period).unwrap_or_default();
    if args[2] != 0 {
        write_itimer(guest, cpu, args[2], old)?;
    }
    Ok(0)
}

pub fn alarm(guest: &mut GuestThread, args: &[u64; 6]) -> CallResult {
    let id = interval_timer(guest, 0)?;
    let nanos = u64::from(args[0] as u32) * 1_000_000_000;
    let (left, _) = guest.kernel().timers.arm(&guest.process, id, nanos, false, 0).unwrap_or_default();
    // Rounded, but never to 0 while something is left.
    let seconds = left / 1_000_000_000 + u64::from(left % 1_000_000_000 >= 500_000_000);
    Ok(if left > 0 { seconds.max(1) } else { 0 })
}

pub fn timer_create(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    const SIGEV_SIGNAL: u32 = 0;
    const SIGEV_NONE: u32 = 1;
    const SIGEV_THREAD: u32 = 2;
    const SIGEV_THREAD_ID: u32 = 4;
    let clock = args[0] as i32;
    let counts = match clock {
        libc::CLOCK_PROCESS_CPUTIME_ID => Counts::ProcessCpu(guest.process.pid),
        libc::CLOCK_THREAD_CPUTIME_ID => Counts::ThreadCpu(guest.thread.tid()),
        clock if clock < 0 => cpu_clock(guest, clock)?,
        clock if guest.process.now(clock).is_some() => Counts::Time,
        _ => return Err(Errno::EINVAL),
    };
    let event = match args[1] {
        0 => None,
        at => {
            let mut bytes = [0; 24];
            guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(at), &mut bytes))?;
            let word = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("4 bytes"));
            let value = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            Some((value, word(8) as i32, word(12), word(16) as i32))
        }
    };
    let valid = |signal: i32| if (1..=64).contains(&signal) { Ok(signal) } else { Err(Errno::EINVAL) };
    let notice = match event {
        None => Notice::Process { signal: libc::SIGALRM, value: 0 },
        Some((_, _, SIGEV_NONE, _)) => Notice::None,
        Some((value, signal, SIGEV_SIGNAL | SIGEV_THREAD, _)) => Notice::Process { signal: valid(signal)?, value },
        Some((value, signal, SIGEV_THREAD_ID, tid)) if is_thread_of(&guest.process, tid) => {
            Notice::Thread { signal: valid(signal)?, value, tid }
        }
        Some(_) => return Err(Errno::EINVAL),
    };
    // As Linux, where each has its signal set aside.
    let limit = lock(&guest.process.identity).limit(libc::RLIMIT_SIGPENDING);
    let id = lock(&guest.process.timers).create(Timer::new(counts, clock, notice), limit).ok_or(Errno::EAGAIN)?;
    if event.is_none() {
        lock(&guest.process.timers).set_default_value(id);
    }
    let written = guest.with_memory(cpu, |memory| memory.write_u32(GuestVirtAddr(args[2]), id as u32));
    if let Err(errno) = written {
        guest.kernel().timers.delete(&guest.process, id);
        return Err(errno);
    }
    Ok(0)
}

fn write_timer(guest: &GuestThread, cpu: &mut UserCpu, at: u64, (left, period): (u64, u64)) -> Result<(), Errno> {
    write_time(guest, cpu, at, period)?;
    write_time(guest, cpu, at + 16, left)
}

pub fn timer_settime(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let id = timer_id(args[0])?;
    if args[2] == 0 {
        return Err(Errno::EINVAL);
    }
    let period = read_time(guest, cpu, args[2])?;
    let mut value = read_time(guest, cpu, args[2] + 16)?;
    let (counts, clock) = {
        let timers = lock(&guest.process.timers);
        let timer = timers.get(id).ok_or(Errno::EINVAL)?;
        (timer.counts, timer.clock)
    };
    let absolute = args[1] & libc::TIMER_ABSTIME as u64 != 0;
    let mut exact = false;
    if absolute && value != 0 {
        if counts.is_cpu() {
            exact = true;
        } else {
            // A time that has passed expires at once.
            value = value.saturating_sub(read_clock(guest, clock)?).max(1);
        }
    }
    let old = guest.kernel().timers.arm(&guest.process, id, value, exact, period).ok_or(Errno::EINVAL)?;
    if args[3] != 0 {
        write_timer(guest, cpu, args[3], old)?;
    }
    Ok(0)
}

fn timer_id(value: u64) -> Result<i32, Errno> {
    i32::try_from(value as u32).map_err(|_| Errno::EINVAL)
}

pub fn timer_gettime(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let left = guest.kernel().timers.look(&guest.process, timer_id(args[0])?).ok_or(Errno::EINVAL)?;
    write_timer(guest, cpu, args[1], left)?;
    Ok(0)
}

pub fn timer_getoverrun(guest: &mut GuestThread, args: &[u64; 6]) -> CallResult {
    let timers = lock(&guest.process.timers);
    Ok(timers.get(timer_id(args[0])?).ok_or(Errno::EINVAL)?.overrun as u64)
}

pub fn timer_delete(guest: &mut GuestThread, args: &[u64; 6]) -> CallResult {
    if guest.kernel().timers.delete(&guest.process, timer_id(args[0])?) { Ok(0) } else { Err(Errno::EINVAL) }
}
