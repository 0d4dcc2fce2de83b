//! Masks and actions: what a process keeps of its signals.

use super::Caller;
use super::home::Present;
use crate::kernel::actions::{changed_mask, concerns_home, exchange_action, read_action, read_set, write_action};
use crate::kernel::lock;
use vmm::call_slot::{Answer, PostedCall};

/// Serves a call; `None` if its thread must make it.
pub fn serve(caller: &Caller, call: &PostedCall) -> Option<Answer> {
    match i64::from(call.number) {
        libc::SYS_rt_sigprocmask => mask(caller, &call.arguments)?,
        libc::SYS_rt_sigaction => action(caller, &call.arguments)?,
        _ => return None,
    }
    caller.thread.tally.exitless_local_calls.add(1);
    Some(Answer::Value(0))
}

fn mask(caller: &Caller, arguments: &[u64; 6]) -> Option<()> {
    let wanted = read_set(&Present(&caller.space), arguments).ok()?;
    let process = &caller.thread.process;
    let waiting = lock(&process.signals).pending.set();
    let (old, new) = {
        let mut own = lock(&caller.thread.signals);
        let old = own.mask;
        let new = changed_mask(old, wanted, arguments).ok()?;
        // What is delivered now is delivered before the call returns.
        if !((waiting | own.pending.set()) & old & !new).is_empty() {
            return None;
        }
        let at = arguments[2];
        if at != 0 && !caller.space.write_present(at, &old.0.to_le_bytes()) {
            return None;
        }
        own.mask = new;
        (old, new)
    };
    process.pass_on(new & !old);
    Some(())
}

fn action(caller: &Caller, arguments: &[u64; 6]) -> Option<()> {
    let memory = Present(&caller.space);
    let (signal, new) = read_action(&memory, arguments).ok()?;
    let at = arguments[2];
    exchange_action(&caller.thread.process, signal, new, |old| {
        let is_ours = new.is_none_or(|new| !concerns_home(signal, old, &new));
        is_ours && (at == 0 || write_action(&memory, at, old).is_ok())
    })?;
    Some(())
}
