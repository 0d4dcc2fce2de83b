//! Calls that the deputy performs.

use super::Outcome;
use crate::calls;
use crate::channel::{BeginError, ChannelError};
use crate::kernel::deliver::RestartKind;
use crate::kernel::guest::{GuestThread, Lost, failure};
use crate::kernel::lock;
use crate::kernel::process::Ending;
use crate::kernel::thread::Thread;
use crate::mm::ProcessMemory;
use crate::signal::set::SignalSet;
use crate::trace;
use crate::usermem::UserMemory;
use crate::wire::call::{blocked, flags};
use crate::wire::control::{SigInfo, ToDeputy};
use nix::errno::Errno;
use std::cell::Cell;
use std::os::fd::OwnedFd;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Has the deputy perform a call, which a signal may break off.
pub fn forward(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Outcome {
    perform(guest, cpu, nr, args, None, 0).outcome
}

/// How a call ended that makes a descriptor.
pub struct Opened {
    /// As of any call.
    pub outcome: Outcome,
    /// The file, if the deputy has handed it over.
    pub file: Option<OwnedFd>,
}

/// Has the deputy perform a call that makes a descriptor.
pub fn open(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Opened {
    perform(guest, cpu, nr, args, None, flags::HAND_OVER)
}

/// Has the deputy close a descriptor, without waiting for it.
pub fn post_close(guest: &mut GuestThread, fd: u64) -> Outcome {
    guest.thread.tally.forwarded_calls.add(1);
    let blocked = blocked_bits(&guest.thread);
    let posted = lock(&guest.channel).post_call(libc::SYS_close as u32, blocked, [fd, 0, 0, 0, 0, 0]);
    match posted {
        Ok(()) => Outcome::Return(0),
        Err(error) => {
            lose(guest, &error);
            Outcome::End
        }
    }
}

/// The same with another path in place of the string at an address.
pub fn forward_with_path(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    nr: u32,
    args: &[u64; 6],
    path: (u64, Vec<u8>),
) -> Outcome {
    perform(guest, cpu, nr, args, Some(path), 0).outcome
}

fn perform(
    guest: &mut GuestThread,
    cpu: &mut UserCpu,
    nr: u32,
    args: &[u64; 6],
    path: Option<(u64, Vec<u8>)>,
    flags: u32,
) -> Opened {
    let without_file = |outcome| Opened { outcome, file: None };
    guest.thread.tally.forwarded_calls.add(1);
    let kind = restart_kind(nr);
    let blocked = blocked_bits(&guest.thread);
    let interruptible = calls::row(nr).is_some_and(|row| row.may_block);
    let channel = guest.channel.clone();
    let mut channel = lock(&channel);
    // The poller may have begun it, in the thread's place.
    let begun = channel.is_in_call();
    if begun {
        guest.thread.resume_call(channel.seq());
    } else if interruptible && !guest.thread.begin_call(channel.next_seq()) {
        return without_file(Outcome::Restart(kind));
    }
    if !begun {
        // While the poller answers most of its calls its deputy's thread is there.
        let near = if guest.exitless.is_in_use() { None } else { guest.thread.draw_near() };
        channel.ask_from(near);
    }
    let freezes = || interruptible && guest.process.freezer.is_wanted();
    let reply = {
        let memory = ProcessMemory::new(&guest.space, cpu);
        let substitute = path.map(|(at, path)| Substitute::new(&memory, at, path));
        let memory: &dyn UserMemory = match &substitute {
            Some(substitute) => substitute,
            None => &memory,
        };
        let sent = if begun { Ok(()) } else { channel.begin_call_with(nr, args, blocked, flags, memory).map(drop) };
        match sent {
            Ok(()) => channel.finish_call_unless(memory, &freezes),
            Err(BeginError::Errno(errno)) => {
                guest.thread.end_call();
                return without_file(Err(errno).into());
            }
            Err(BeginError::Channel(error)) => Err(error),
        }
    };
    drop(channel);
    if matches!(reply, Err(ChannelError::GivenUp)) {
        return without_file(Outcome::Paused);
    }
    if interruptible || begun {
        guest.thread.end_call();
    }
    match reply {
        Ok(reply) => {
            if calls::raises_signals(nr) {
                guest.kernel().relay.drain(&guest.process);
                guest.process.await_signals(reply.relayed);
            }
            post_signals(guest, &reply.signals);
            let interrupted = reply.ret == failure(Errno::EINTR);
            let outcome = if interrupted { Outcome::Restart(kind) } else { Outcome::Return(reply.ret) };
            Opened { outcome, file: reply.file }
        }
        Err(error) => {
            lose(guest, &error);
            without_file(Outcome::End)
        }
    }
}

fn lose(guest: &GuestThread, error: &ChannelError) {
    tracing::debug!(pid = guest.process.pid, error = %crate::chain(error), "call connection");
    guest.process.begin_exit(Ending::Lost);
}

/// Signals that came with a reply: those that home's kernel raised for the thread itself go to it.
fn post_signals(guest: &GuestThread, signals: &[SigInfo]) {
    for info in signals {
        if matches!(info.signal(), libc::SIGPIPE | libc::SIGXFSZ) {
            guest.process.post_to(&guest.thread, *info);
        } else if (1..=64).contains(&info.signal()) {
            guest.process.post(*info);
        }
    }
}

/// Which stopping signals a thread blocks, as bits of [`blocked`].
pub fn blocked_bits(thread: &Thread) -> u32 {
    let mask = lock(&thread.signals).mask;
    if (mask & SignalSet::STOPPING).is_empty() {
        return 0;
    }
    [(libc::SIGTSTP, blocked::TSTP), (libc::SIGTTIN, blocked::TTIN), (libc::SIGTTOU, blocked::TTOU)]
        .into_iter()
        .filter(|&(signal, _)| mask.contains(signal))
        .fold(0, |bits, (_, bit)| bits | bit)
}

/// What Linux does with this call when a signal has broken it off.
fn restart_kind(nr: u32) -> RestartKind {
    match i64::from(nr) {
        libc::SYS_poll
        | libc::SYS_ppoll
        | libc::SYS_select
        | libc::SYS_pselect6
        | libc::SYS_epoll_wait
        | libc::SYS_epoll_pwait
        | libc::SYS_epoll_pwait2
        | libc::SYS_semop
        | libc::SYS_semtimedop
        | libc::SYS_msgsnd
        | libc::SYS_msgrcv => RestartKind::WithoutHandler,
        _ => RestartKind::IfAsked,
    }
}

/// A process's memory with another string at one address. Only a read that starts there, and those that
/// go on where it ended, find it: other arguments may lie right behind the string that it replaces.
struct Substitute<'a> {
    memory: &'a ProcessMemory<'a>,
    at: u64,
    /// With its NUL.
    path: Vec<u8>,
    /// Where the next read goes on with the string.
    next: Cell<u64>,
}

impl<'a> Substitute<'a> {
    fn new(memory: &'a ProcessMemory<'a>, at: u64, mut path: Vec<u8>) -> Self {
        path.push(0);
        Self { memory, at, path, next: Cell::new(at) }
    }
}

impl UserMemory for Substitute<'_> {
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        if address.raw() != self.at && address.raw() != self.next.get() {
            return self.memory.read(address, buffer);
        }
        let rest = self.path.get((address.raw() - self.at) as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        buffer[count..].fill(0);
        // Once its end is read there is no more of it.
        self.next.set(if count < rest.len() { address.raw() + count as u64 } else { self.at });
        Ok(())
    }
    fn write(&self, address: GuestVirtAddr, bytes: &[u8]) -> Result<(), Errno> {
        self.memory.write(address, bytes)
    }
}

/// No memory: for calls whose arguments are all numbers.
struct NoMemory;

impl UserMemory for NoMemory {
    fn read(&self, _: GuestVirtAddr, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
    fn write(&self, _: GuestVirtAddr, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

impl GuestThread {
    /// Has the deputy perform a call of the personality's own, whose arguments are all numbers.
    ///
    /// # Errors
    /// [`Lost`] if the deputy is gone.
    pub fn forward_raw(&mut self, nr: u32, args: &[u64; 6]) -> Result<i64, Lost> {
        let reply = {
            let mut channel = lock(&self.channel);
            match channel.begin_call(nr, args, 0, &NoMemory) {
                Ok(_) => channel.finish_call(&NoMemory),
                Err(BeginError::Errno(errno)) => return Ok(failure(errno)),
                Err(BeginError::Channel(error)) => Err(error),
            }
        };
        match reply {
            Ok(reply) => {
                post_signals(self, &reply.signals);
                Ok(reply.ret)
            }
            Err(error) => {
                lose(self, &error);
                Err(Lost)
            }
        }
    }
}

/// Tells the deputy of a call that is over.
pub fn trace(guest: &GuestThread, cpu: &mut UserCpu, nr: u64, args: &[u64; 6], outcome: Outcome) {
    let outcome = match outcome {
        Outcome::Return(value) => trace::Outcome::Returned(value),
        Outcome::Restart(_) => trace::Outcome::Returned(failure(Errno::EINTR)),
        Outcome::Replaced => trace::Outcome::Returned(0),
        Outcome::End | Outcome::Paused => trace::Outcome::Gone,
    };
    let name = u32::try_from(nr).ok().and_then(calls::name);
    let line = guest.with_memory(cpu, |memory| trace::format(nr, name, args, outcome, memory));
    guest.process.send(&ToDeputy::Trace(format!("[pid {}] {line}", guest.thread.tid())));
}
