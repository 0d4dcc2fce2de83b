//! `epoll` sets that are at hand: the node waits for their events itself.
//!
//! What is ready is found out on behalf of who asks, and some files (a `signalfd`) answer by who that is. So
//! a set stays at hand only as long as everything in it is of the kinds that a deputy hands over: it comes over
//! when it is made, and leaves for good when another kind of file is added.

use super::io::file;
use super::sleep::end_of_wait;
use super::{Outcome, forward};
use crate::kernel::deliver::RestartKind;
use crate::kernel::guest::GuestThread;
use crate::mm::{Access, Part};
use crate::wire::file_kind::Kind;
use std::time::Instant;
use vmm::user_cpu::UserCpu;

/// Bytes of a `struct epoll_event`.
const EVENT: u64 = 12;
/// Most events that are told at once, whatever the program has room for: the next call tells the others.
const MOST: u64 = 256;

/// Where the events of a call go, if it is one that can be served here.
pub fn room(args: &[u64; 6]) -> Option<Part> {
    let most = u64::try_from(args[2] as i32).ok().filter(|&most| most > 0)?;
    Some(Part { address: args[1], length: most.min(MOST) * EVENT })
}

/// Serves `epoll_wait`; `None` if the set is home's.
pub fn wait(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Option<Outcome> {
    let room = room(args)?;
    let set = file(guest, args[0] as i32).filter(|set| set.kind() == Kind::Epoll)?;
    let nanos = u64::try_from(args[3] as i32).ok().map(|millis| millis * 1_000_000);
    let deadline = end_of_wait(guest, nanos);
    loop {
        if set.is_home_only() {
            return None;
        }
        let got = guest.with_memory(cpu, |memory| {
            // SAFETY: the places are valid while the memory is held.
            memory.with_places(&[room], Access::Write, |places| unsafe { set.events(places) })
        });
        match got {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => return Some(Outcome::Return(count as i64)),
            // Home knows what becomes of the call.
            Ok(Err(_)) | Err(_) => return None,
        }
        let left = deadline.map(|deadline| deadline.here.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            deadline.inspect(|deadline| deadline.await_home(&guest.process));
            return Some(Outcome::Return(0));
        }
        match guest.thread.wait_for(&set, libc::POLLIN, left) {
            Ok(true) => {}
            Ok(false) => return Some(Outcome::Restart(RestartKind::WithoutHandler)),
            Err(_) => return None,
        }
    }
}

/// `epoll_ctl`, which is home's to perform.
pub fn control(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Outcome {
    if args[1] as i32 == libc::EPOLL_CTL_ADD && guest.process.descriptors.has_epoll() {
        let added = guest.process.descriptors.file(args[2] as i32).or_else(|| super::io::ask(guest, args[2] as i32));
        if added.is_none_or(|added| added.kind() == Kind::Epoll) {
            guest.process.descriptors.leave_epoll_home();
        }
    }
    forward::forward(guest, cpu, nr, args)
}
