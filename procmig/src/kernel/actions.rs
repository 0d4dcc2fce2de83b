//! Signal masks, and what is done at signals, as calls change them.

use super::lock;
use super::process::{Action, DEFAULT, IGNORE, Process};
use crate::signal::set::SignalSet;
use crate::usermem::UserMemory;
use crate::wire::op::Disposition;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;

/// Bytes of a set of signals.
pub const SET_SIZE: u64 = 8;

/// The set that a `sigprocmask` gives, if it gives one.
///
/// # Errors
/// As the call.
pub fn read_set(memory: &dyn UserMemory, args: &[u64; 6]) -> Result<Option<SignalSet>, Errno> {
    match args {
        [.., SET_SIZE, _, _] if args[1] == 0 => Ok(None),
        [.., SET_SIZE, _, _] => Ok(Some(SignalSet(memory.read_u64(GuestVirtAddr(args[1]))?))),
        _ => Err(Errno::EINVAL),
    }
}

/// What a `sigprocmask` makes of a mask.
///
/// # Errors
/// As the call.
pub fn changed_mask(old: SignalSet, wanted: Option<SignalSet>, args: &[u64; 6]) -> Result<SignalSet, Errno> {
    let Some(set) = wanted else { return Ok(old) };
    let mask = match args[0] as i32 {
        libc::SIG_BLOCK => old | set,
        libc::SIG_UNBLOCK => old & !set,
        libc::SIG_SETMASK => set,
        _ => return Err(Errno::EINVAL),
    };
    Ok(mask.blockable())
}

/// The signal of a `sigaction` and what is to be done at it, if that is given.
///
/// # Errors
/// As the call.
pub fn read_action(memory: &dyn UserMemory, args: &[u64; 6]) -> Result<(i32, Option<Action>), Errno> {
    let signal = args[0] as i32;
    if args[3] != SET_SIZE || !(1..=64).contains(&signal) {
        return Err(Errno::EINVAL);
    }
    if args[1] == 0 {
        return Ok((signal, None));
    }
    if SignalSet::UNBLOCKABLE.contains(signal) {
        return Err(Errno::EINVAL);
    }
    let mut words = [0; 32];
    memory.read(GuestVirtAddr(args[1]), &mut words)?;
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| words[i * 8 + k]));
    let mask = SignalSet(word(3)).blockable();
    Ok((signal, Some(Action { handler: word(0), flags: word(1), restorer: word(2), mask })))
}

/// Writes a `struct kernel_sigaction`.
///
/// # Errors
/// `EFAULT`.
pub fn write_action(memory: &dyn UserMemory, at: u64, action: &Action) -> Result<(), Errno> {
    let mut words = [0; 32];
    for (slot, word) in words.chunks_exact_mut(8).zip([action.handler, action.flags, action.restorer, action.mask.0]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    memory.write(GuestVirtAddr(at), &words)
}

/// Sets what is done at a signal, if anything else is to be done and `may` agrees, who is shown what is
/// done now; returns that. What waits and is ignored from now on is dropped.
pub fn exchange_action(
    process: &Process,
    signal: i32,
    new: Option<Action>,
    may: impl FnOnce(&Action) -> bool,
) -> Option<Action> {
    let mut signals = lock(&process.signals);
    let old = signals.action(signal);
    if !may(&old) {
        return None;
    }
    if let Some(new) = new {
        signals.actions[(signal - 1) as usize] = new;
        if signals.ignores(signal) {
            signals.pending.discard(SignalSet::of(&[signal]));
            for thread in process.threads() {
                lock(&thread.signals).pending.discard(SignalSet::of(&[signal]));
            }
        }
    }
    Some(old)
}

/// An action as home is told of it.
pub fn disposition(action: &Action) -> Disposition {
    match action.handler {
        DEFAULT => Disposition::Default,
        IGNORE => Disposition::Ignore,
        _ => Disposition::Catch,
    }
}

/// Home's kernel must know what it acts on itself. Whether a signal that it only passes on is caught
/// or does its default makes no difference there, except for job control.
pub fn concerns_home(signal: i32, old: &Action, new: &Action) -> bool {
    const NO_CHILD_WAIT: u64 = libc::SA_NOCLDWAIT as u64 | libc::SA_NOCLDSTOP as u64;
    let (before, after) = (disposition(old), disposition(new));
    let acts = |disposition| match disposition {
        Disposition::Catch if !SignalSet::STOPPING.contains(signal) => Disposition::Default,
        other => other,
    };
    let child_flags = signal == libc::SIGCHLD && (old.flags ^ new.flags) & NO_CHILD_WAIT != 0;
    acts(before) != acts(after) || child_flags
}
