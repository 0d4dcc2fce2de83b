//! Calls that wait with another signal mask.

use super::{Outcome, forward};
use crate::kernel::guest::GuestThread;
use crate::kernel::lock;
use crate::signal::set::SignalSet;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Replaces the mask until the call is over; a handler's frame then takes the old one back.
pub fn replace_mask(guest: &GuestThread, mask: SignalSet) {
    let mask = mask.blockable();
    let old = {
        let mut own = lock(&guest.thread.signals);
        let old = std::mem::replace(&mut own.mask, mask);
        own.saved_mask.get_or_insert(old);
        old
    };
    guest.mask_changed(old, mask);
}

/// Puts the mask back that [`replace_mask`] has replaced.
pub fn restore_mask(guest: &GuestThread) {
    let (old, mask) = {
        let mut own = lock(&guest.thread.signals);
        let Some(mask) = own.saved_mask.take() else { return };
        (std::mem::replace(&mut own.mask, mask), mask)
    };
    guest.mask_changed(old, mask);
}

/// `ppoll` and its kin: the mask is applied here, the wait is at home.
pub fn with_mask(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Outcome {
    let (pointer, size) = match i64::from(nr) {
        libc::SYS_ppoll => (args[3], args[4]),
        libc::SYS_pselect6 if args[5] != 0 => {
            let pair = guest.with_memory(cpu, |memory| {
                let at = GuestVirtAddr(args[5]);
                Ok((memory.read_u64(at)?, memory.read_u64(at + 8)?))
            });
            match pair {
                Ok(pair) => pair,
                Err(errno) => return Err(errno).into(),
            }
        }
        libc::SYS_pselect6 => (0, 0),
        _ => (args[4], args[5]),
    };
    if pointer != 0 {
        if size != 8 {
            return Err(Errno::EINVAL).into();
        }
        match guest.with_memory(cpu, |memory| memory.read_u64(GuestVirtAddr(pointer))) {
            Ok(mask) => replace_mask(guest, SignalSet(mask)),
            Err(errno) => return Err(errno).into(),
        }
    }
    let outcome = forward::forward(guest, cpu, nr, args);
    if pointer != 0 && !matches!(outcome, Outcome::Restart(_) | Outcome::Paused) {
        restore_mask(guest);
    }
    outcome
}
