//! Delivering signals to a guest thread before it goes back to user code.

use super::guest::GuestThread;
use super::lock;
use super::process::{Action, DEFAULT, Ending, IGNORE};
use crate::mm::ProcessMemory;
use crate::signal::frame::{self, Delivery};
use crate::signal::info;
use crate::signal::set::{DefaultAction, SignalSet, default_action};
use crate::usermem::UserMemory;
use crate::wire::control::SigInfo;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// What becomes of a system call that a signal broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartKind {
    /// Done again after a handler with `SA_RESTART`, or if there is no handler (`ERESTARTSYS`).
    IfAsked,
    /// Done again in any case, after the handler (`ERESTARTNOINTR`).
    Always,
    /// Done again only if there is no handler (`ERESTARTNOHAND`).
    WithoutHandler,
}

const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
const SA_RESTART: u64 = 0x1000_0000;
/// Bytes of the `syscall` instruction.
const CALL_SIZE: u64 = 2;

impl GuestThread {
    /// Raises a signal for what the thread did itself: if it is blocked or ignored it kills.
    pub fn force(&self, fault: SigInfo) {
        let signal = fault.signal();
        {
            let mut signals = lock(&self.process.signals);
            let mut own = lock(&self.thread.signals);
            let action = &mut signals.actions[(signal - 1) as usize];
            if own.mask.contains(signal) || action.handler == IGNORE {
                *action = Action::default();
                own.mask.remove(signal);
            }
            if let Err(error) = own.pending.push(fault, usize::MAX) {
                tracing::error!(%error, signal, "a fault's signal");
            }
        }
        self.thread.notify();
    }

    /// Delivers the signals that wait and are not blocked, each handler's frame on top of the last one's.
    /// `call` is the system call that was broken off, with its number.
    pub fn deliver_signals(&mut self, cpu: &mut UserCpu, call: Option<(RestartKind, u64)>) {
        let mut call = call;
        loop {
            let next = {
                let mut signals = lock(&self.process.signals);
                let mut own = lock(&self.thread.signals);
                let mask = own.mask;
                let mut taken = own.pending.take(mask);
                if taken.is_none() && own.chosen {
                    taken = signals.pending.take(mask);
                    own.chosen = taken.is_some();
                }
                taken.map(|info| {
                    let action = signals.action(info.signal());
                    if action.handler > IGNORE && action.flags & SA_RESETHAND != 0 {
                        signals.actions[(info.signal() - 1) as usize].handler = DEFAULT;
                    }
                    (info, action)
                })
            };
            let Some((info, action)) = next else { break };
            match action.handler {
                IGNORE => {}
                DEFAULT => {
                    if self.default(&info) {
                        return;
                    }
                }
                _ => {
                    if let Some((kind, nr)) = call.take() {
                        let again = match kind {
                            RestartKind::Always => true,
                            RestartKind::IfAsked => action.flags & SA_RESTART != 0,
                            RestartKind::WithoutHandler => false,
                        };
                        settle(cpu, again.then_some(nr));
                    }
                    if self.call_handler(cpu, &info, &action).is_err() {
                        self.force_kill(info.signal());
                    }
                }
            }
        }
        if let Some((_, nr)) = call {
            settle(cpu, Some(nr));
        }
        // No handler has taken it into its frame: the call that replaced the mask is over.
        let mut own = lock(&self.thread.signals);
        if let Some(mask) = own.saved_mask.take() {
            let during = std::mem::replace(&mut own.mask, mask);
            drop(own);
            self.mask_changed(during, mask);
        }
    }

    /// Does what a signal without handler does; `true` if the process ends by it.
    fn default(&mut self, info: &SigInfo) -> bool {
        let signal = info.signal();
        match default_action(signal) {
            DefaultAction::Ignore | DefaultAction::Continue => false,
            DefaultAction::Terminate | DefaultAction::Core => {
                self.process.begin_exit(Ending::Signal(signal));
                true
            }
            DefaultAction::Stop => {
                self.stop_at_home(signal);
                false
            }
        }
    }

    /// Has home's kernel stop the deputy, which keeps the rules of job control.
    fn stop_at_home(&mut self, signal: i32) {
        let pid = self.process.pid as u64;
        if let Err(error) = self.forward_raw(libc::SYS_kill as u32, &[pid, signal as u64, 0, 0, 0, 0]) {
            tracing::debug!(?error, "the deputy could not be stopped");
        }
    }

    /// A frame could not be built: as Linux does, the thread gets a `SIGSEGV` that it cannot put off.
    fn force_kill(&mut self, signal: i32) {
        if signal == libc::SIGSEGV {
            lock(&self.process.signals).actions[(signal - 1) as usize].handler = DEFAULT;
        }
        self.force(info::kernel(libc::SIGSEGV));
    }

    fn call_handler(&mut self, cpu: &mut UserCpu, info: &SigInfo, action: &Action) -> Result<(), Errno> {
        let (old_mask, altstack) = {
            let mut own = lock(&self.thread.signals);
            (own.saved_mask.take().unwrap_or(own.mask), own.altstack)
        };
        let xsave = cpu.fpu().map_err(|_| Errno::EFAULT)?;
        let regs = self.space.visible_place(cpu.regs());
        let image = frame::build(&Delivery {
            regs: &regs,
            xsave: &xsave,
            layout: self.kernel().fpu,
            info,
            old_mask,
            handler: GuestVirtAddr(action.handler),
            flags: action.flags,
            restorer: GuestVirtAddr(action.restorer),
            altstack,
            cr2: self.last_fault.2,
            error: self.last_fault.1,
            trap: self.last_fault.0,
        })?;
        ProcessMemory::new(&self.space, cpu).write(image.address, &image.bytes)?;
        *cpu.regs_mut() = image.regs;
        let mut own = lock(&self.thread.signals);
        own.altstack = image.altstack;
        let mut mask = own.mask | action.mask;
        if action.flags & SA_NODEFER == 0 {
            mask.insert(info.signal());
        }
        let mask = mask.blockable();
        let blocked = mask & !std::mem::replace(&mut own.mask, mask);
        drop(own);
        self.process.pass_on(blocked);
        Ok(())
    }

    /// Whether a signal waits that the thread is to take.
    pub fn signal_waits(&self) -> bool {
        let signals = lock(&self.process.signals);
        let own = lock(&self.thread.signals);
        !own.deliverable(signals.pending.set()).is_empty()
    }

    /// Looks anew for signals after the mask has changed, or leaves them to others.
    pub fn mask_changed(&self, old: SignalSet, new: SignalSet) {
        let waits = {
            let signals = lock(&self.process.signals);
            let mut own = lock(&self.thread.signals);
            own.choose_anew(signals.pending.set());
            !own.deliverable(signals.pending.set()).is_empty()
        };
        if waits {
            self.thread.notify();
        }
        self.process.pass_on(new & !old);
    }
}

/// Ends a system call that was broken off: done again, or `EINTR`.
fn settle(cpu: &mut UserCpu, again: Option<u64>) {
    let regs = cpu.regs_mut();
    match again {
        Some(nr) => {
            regs.rax = nr;
            // Whatever it was, it was two bytes long, wherever the program claims to have been.
            regs.rip = regs.rip.wrapping_sub(CALL_SIZE);
        }
        None => regs.rax = super::guest::failure(Errno::EINTR) as u64,
    }
}
