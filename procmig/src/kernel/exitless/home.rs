//! Calls that the deputy performs, asked for in their thread's place.

use super::super::descriptors::Change;
use super::super::handed::HandedFile;
use super::super::lock;
use super::super::syscalls::{blocked_bits, closes_unseen, may_take_over};
use super::Caller;
use crate::calls::{self, Class};
use crate::channel::CallChannel;
use crate::mm::AddressSpace;
use crate::usermem::UserMemory;
use crate::wire::call::flags;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::addr::GuestVirtAddr;
use vmm::call_slot::{Answer, PostedCall};

/// How long a reply is waited for, while other threads' calls are not looked at; then the thread waits itself.
const PATIENCE: Duration = Duration::from_micros(300);

/// Bytes of a request that the poller sends over a network.
const MOST: usize = 4 << 10;
/// The way to another host may take so long if others wait meanwhile: as long as their threads wait before they leave
/// the guest.
const SHORT: Duration = Duration::from_micros(50);

/// A process's memory as it is mapped now, for a thread without a vCPU: what is not there yet is refused.
pub(super) struct Present<'a>(pub(super) &'a AddressSpace);

impl UserMemory for Present<'_> {
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        if self.0.read_present(address.raw(), buffer) { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn write(&self, address: GuestVirtAddr, bytes: &[u8]) -> Result<(), Errno> {
        if self.0.write_present(address.raw(), bytes) { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

/// Serves a call; `None` if its thread must make it. A call that was begun and is not over is the thread's
/// to finish: it finds that in its channel. `alone`: nobody else waits meanwhile.
pub fn serve(caller: &mut Caller, call: &PostedCall, alone: bool) -> Option<Answer> {
    let PostedCall { number, arguments } = *call;
    let process = &caller.thread.process;
    let row = calls::row(number).filter(|row| matches!(row.class, Class::Forward(_) | Class::Split(Some(_))))?;
    if calls::raises_signals(number) || !is_plain(caller, number, &arguments) {
        return None;
    }
    let is_far = process.is_remote();
    let patience = if is_far && !alone { SHORT } else { PATIENCE };
    if is_far && caller.trip > patience {
        // It is tried again, the later the longer it took.
        caller.trip = caller.trip * 15 / 16;
        return None;
    }
    let channel = &mut *lock(&caller.channel);
    // Over a network nothing is waited for but a reply.
    let most = if is_far { MOST } else { usize::MAX };
    if is_far && !may_send(channel) {
        return None;
    }
    let closes = i64::from(number) == libc::SYS_close;
    let unseen = closes && closes_unseen(process, arguments[0] as i32);
    let _changing = closes.then(|| process.descriptors.change(Change::One(arguments[0] as i32)));
    if unseen {
        let blocked = blocked_bits(&caller.thread);
        channel.post_call(number, blocked, [arguments[0], 0, 0, 0, 0, 0]).ok()?;
        caller.thread.tally.exitless_forwarded_calls.add(1);
        return Some(Answer::Value(0));
    }
    let opens = matches!(i64::from(number), libc::SYS_open | libc::SYS_openat);
    let ticket = process.descriptors.ticket().filter(|_| opens && may_take_over(process));
    let flags = if ticket.is_some() { flags::HAND_OVER } else { 0 };
    if channel.is_in_call() || (row.may_block && !caller.thread.begin_call(channel.next_seq())) {
        return None;
    }
    channel.ask_from(caller.thread.call_near());
    let begun = Instant::now();
    let memory = Present(&caller.space);
    if channel.begin_call_within(most, number, &arguments, blocked_bits(&caller.thread), flags, &memory).is_err() {
        // Nothing was sent, since it is too much or for what it asks, or the connection is lost: the thread finds out.
        caller.thread.end_call();
        return None;
    }
    let reply = if has_come(channel, patience) && channel.take_reply().is_ok() {
        channel.finish_plain_call(&memory)
    } else {
        None
    };
    caller.trip = begun.elapsed();
    let Some(reply) = reply else { return Some(Answer::Exit { progress: 1 }) };
    caller.thread.end_call();
    if let (Some(ticket), 0..) = (ticket, reply.ret) {
        process.descriptors.keep(ticket, reply.ret as i32, reply.file.and_then(HandedFile::new).map(Arc::new));
    }
    caller.thread.tally.exitless_forwarded_calls.add(1);
    Some(Answer::Value(reply.ret))
}

fn has_come(channel: &CallChannel, patience: Duration) -> bool {
    becomes(channel, PollFlags::POLLIN, patience)
}

/// Whether a short request can be sent without waiting.
fn may_send(channel: &CallChannel) -> bool {
    becomes(channel, PollFlags::POLLOUT, Duration::ZERO)
}

fn becomes(channel: &CallChannel, what: PollFlags, within: Duration) -> bool {
    let mut polled = [PollFd::new(channel.as_fd(), what)];
    ppoll(&mut polled, Some(TimeSpec::from_duration(within)), None).is_ok_and(|count| count > 0)
}

/// Whether home alone decides about a call: no path of `/proc`, where some files are the node's, and nothing
/// that the thread looks at.
fn is_plain(caller: &Caller, number: u32, arguments: &[u64; 6]) -> bool {
    let path = match i64::from(number) {
        libc::SYS_open | libc::SYS_stat | libc::SYS_access | libc::SYS_readlink => arguments[0],
        libc::SYS_openat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_readlinkat
        | libc::SYS_faccessat
        | libc::SYS_faccessat2 => arguments[1],
        libc::SYS_fcntl => {
            return matches!(
                arguments[1] as i32,
                libc::F_DUPFD | libc::F_DUPFD_CLOEXEC | libc::F_GETFD | libc::F_SETFD | libc::F_GETFL | libc::F_SETFL
            );
        }
        // On files at hand these are the node's own, and a read may wait for long.
        libc::SYS_write
        | libc::SYS_pwrite64
        | libc::SYS_writev
        | libc::SYS_sendto
        | libc::SYS_lseek
        | libc::SYS_fstat
        | libc::SYS_ioctl => {
            let process = &caller.thread.process;
            return process.is_remote() || process.descriptors.is_home(arguments[0] as i32);
        }
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_recvfrom => return false,
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => return false,
        _ => return true,
    };
    let mut head = [0; 6];
    caller.space.read_present(path, &mut head) && head != *b"/proc/"
}
