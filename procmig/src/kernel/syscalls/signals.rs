//! Signal calls.

use super::{CallResult, Outcome, forward};
use crate::kernel::actions::{
    SET_SIZE, changed_mask, concerns_home, disposition, exchange_action, read_action, read_set, write_action,
};
use crate::kernel::guest::{GuestThread, failure};
use crate::kernel::lock;
use crate::kernel::process::DEFAULT;
use crate::signal::altstack::{AltStack, MIN_SIZE};
use crate::signal::frame;
use crate::signal::info;
use crate::signal::set::{DefaultAction, SignalSet, default_action};
use crate::usermem::UserMemory;
use crate::wire::control::SigInfo;
use crate::wire::op::Op;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

pub fn sigprocmask(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let wanted = guest.with_memory(cpu, |memory| read_set(memory, args))?;
    let (old, new) = {
        let mut own = lock(&guest.thread.signals);
        let old = own.mask;
        own.mask = changed_mask(old, wanted, args)?;
        (old, own.mask)
    };
    if args[2] != 0 {
        guest.with_memory(cpu, |memory| memory.write_u64(GuestVirtAddr(args[2]), old.0))?;
    }
    guest.mask_changed(old, new);
    Ok(0)
}

pub fn sigaction(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let (signal, new) = guest.with_memory(cpu, |memory| read_action(memory, args))?;
    let old = exchange_action(&guest.process, signal, new, |_| true).unwrap_or_default();
    if let Some(new) = new
        && concerns_home(signal, &old, &new)
    {
        let op = Op::SetDisposition { signal: signal as u32, disposition: disposition(&new) };
        // If the deputy is gone the process ends at the next turn.
        let _ = guest.op(&op);
    }
    if args[2] != 0 {
        guest.with_memory(cpu, |memory| write_action(memory, args[2], &old))?;
    }
    Ok(0)
}

pub fn sigreturn(guest: &mut GuestThread, cpu: &mut UserCpu) -> Outcome {
    let regs = *cpu.regs();
    let altstack = lock(&guest.thread.signals).altstack;
    let layout = guest.kernel().fpu;
    let restored = guest.with_memory(cpu, |memory| frame::restore(memory, &regs, altstack, layout));
    let loaded = restored.ok().and_then(|restored| {
        let state = restored.xsave.clone().unwrap_or_else(vmm::user_cpu::initial_fpu);
        cpu.set_fpu(&state).ok()?;
        Some(restored)
    });
    match loaded {
        Some(restored) => {
            *cpu.regs_mut() = restored.regs;
            let old = {
                let mut own = lock(&guest.thread.signals);
                own.altstack = restored.altstack;
                std::mem::replace(&mut own.mask, restored.mask)
            };
            guest.mask_changed(old, restored.mask);
        }
        None => guest.force(info::kernel(libc::SIGSEGV)),
    }
    Outcome::Replaced
}

pub fn sigpending(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    if args[1] > SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let set = {
        let signals = lock(&guest.process.signals);
        let own = lock(&guest.thread.signals);
        (own.pending.set() | signals.pending.set()) & own.mask
    };
    guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(args[0]), &set.0.to_le_bytes()[..args[1] as usize]))?;
    Ok(0)
}

pub fn sigaltstack(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let stack_pointer = GuestVirtAddr(cpu.regs().rsp);
    let wanted = match args[0] {
        0 => None,
        at => {
            let mut bytes = [0; AltStack::SIZE];
            guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(at), &mut bytes))?;
            Some(AltStack::from_bytes(&bytes))
        }
    };
    let old = {
        let mut own = lock(&guest.thread.signals);
        let old = own.altstack.reported(stack_pointer);
        if let Some(wanted) = wanted {
            own.altstack.set(wanted, stack_pointer, MIN_SIZE)?;
        }
        old
    };
    if args[1] != 0 {
        guest.with_memory(cpu, |memory| memory.write(GuestVirtAddr(args[1]), &old.to_bytes()))?;
    }
    Ok(0)
}

/// Whether home's kernel must act on a signal that the process sends to itself.
fn acts_at_home(guest: &GuestThread, signal: i32) -> bool {
    let stops =
        lock(&guest.process.signals).action(signal).handler == DEFAULT && default_action(signal) == DefaultAction::Stop;
    let awaited = guest.process.home_signals().contains(signal) && lock(&guest.thread.signals).mask.contains(signal);
    SignalSet::UNBLOCKABLE.contains(signal) || stops || signal == libc::SIGCONT || awaited
}

/// The descriptor is home's, and so are from now on the signals that it waits for.
pub fn signalfd(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u32, args: &[u64; 6]) -> Outcome {
    let set = guest.with_memory(cpu, |memory| memory.read_u64(GuestVirtAddr(args[1])));
    let outcome = forward::forward(guest, cpu, nr, args);
    if let (Ok(set), Outcome::Return(0..)) = (set, outcome) {
        guest.process.set_home_signals(guest.process.home_signals() | SignalSet(set).blockable());
    }
    outcome
}

pub fn kill(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let (pid, signal) = (args[0] as i32, args[1] as i32);
    let own = pid == guest.process.pid && (1..=64).contains(&signal);
    if !own || acts_at_home(guest, signal) {
        return forward::forward(guest, cpu, libc::SYS_kill as u32, args);
    }
    let uid = lock(&guest.process.identity).ids.uid;
    let info = info::kill(signal, pid, uid);
    guest.process.post(info);
    Outcome::Return(0)
}

pub fn tgkill(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u64, group: u64, tid: u64, signal: u64) -> Outcome {
    let (group, tid, signal) = (group as i32, tid as i32, signal as i32);
    let is_tkill = nr as i64 == libc::SYS_tkill;
    if tid <= 0 || (!is_tkill && group <= 0) || !(0..=64).contains(&signal) {
        return Err(Errno::EINVAL).into();
    }
    let target = if is_tkill || group == guest.process.pid { guest.process.thread(tid) } else { None };
    let Some(target) = target else {
        let args = if is_tkill {
            [tid as u64, signal as u64, 0, 0, 0, 0]
        } else {
            [group as u64, tid as u64, signal as u64, 0, 0, 0]
        };
        return forward::forward(guest, cpu, nr as u32, &args);
    };
    if signal == 0 {
        return Outcome::Return(0);
    }
    if acts_at_home(guest, signal) {
        if guest.process.home_signals().contains(signal) {
            let args = [guest.process.pid as u64, tid as u64, signal as u64, 0, 0, 0];
            return forward::forward(guest, cpu, libc::SYS_tgkill as u32, &args);
        }
        let args = [guest.process.pid as u64, signal as u64, 0, 0, 0, 0];
        return forward::forward(guest, cpu, libc::SYS_kill as u32, &args);
    }
    let uid = lock(&guest.process.identity).ids.uid;
    sent(guest.process.post_to(&target, info::tgkill(signal, guest.process.pid, uid)))
}

/// What a call says that sends one signal of many.
fn sent(queued: bool) -> Outcome {
    if queued { Outcome::Return(0) } else { Outcome::Return(failure(Errno::EAGAIN)) }
}

fn read_info(guest: &GuestThread, cpu: &mut UserCpu, at: u64, signal: i32) -> Result<SigInfo, Errno> {
    let mut bytes = [0; crate::wire::call::SIGINFO_SIZE];
    guest.with_memory(cpu, |memory| memory.read(GuestVirtAddr(at), &mut bytes))?;
    bytes[..4].copy_from_slice(&signal.to_le_bytes());
    Ok(SigInfo(bytes))
}

pub fn sigqueueinfo(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let (pid, signal) = (args[0] as i32, args[1] as i32);
    if pid != guest.process.pid || !(1..=64).contains(&signal) || acts_at_home(guest, signal) {
        return forward::forward(guest, cpu, libc::SYS_rt_sigqueueinfo as u32, args);
    }
    match read_info(guest, cpu, args[2], signal) {
        Ok(info) => sent(guest.process.post(info)),
        Err(errno) => Outcome::Return(failure(errno)),
    }
}

pub fn tgsigqueueinfo(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let (group, tid, signal) = (args[0] as i32, args[1] as i32, args[2] as i32);
    let target = if group == guest.process.pid { guest.process.thread(tid) } else { None };
    let Some(target) = target.filter(|_| (1..=64).contains(&signal) && !acts_at_home(guest, signal)) else {
        return forward::forward(guest, cpu, libc::SYS_rt_tgsigqueueinfo as u32, args);
    };
    match read_info(guest, cpu, args[3], signal) {
        Ok(info) => sent(guest.process.post_to(&target, info)),
        Err(errno) => Outcome::Return(failure(errno)),
    }
}
