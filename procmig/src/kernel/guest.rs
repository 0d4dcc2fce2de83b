//! The life of a guest thread on its host thread.

use super::Kernel;
use super::deadline::Deadline;
use super::exitless::Exitless;
use super::group::Permit;
use super::lock;
use super::memory_short::{Leaver, Whose};
use super::process::{Ending, Presence, Process};
use super::syscalls::{self, Outcome};
use super::thread::{Thread, ThreadSignals};
use crate::channel::CallChannel;
use crate::mm::{Access, AddressSpace, FaultError, Gone, ProcessMemory};
use crate::signal::info;
use crate::signal::set::SignalSet;
use crate::usermem::UserMemory;
use crate::wire::op::Op;
use nix::errno::Errno;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vmm::addr::GuestVirtAddr;
use vmm::regs::Regs;
use vmm::user_cpu::{Exception, UserCpu, UserEvent};

/// How often a page is tried for after memory was made free.
const ATTEMPTS: u32 = 64;

/// What a new thread starts from.
pub struct Start {
    /// General registers.
    pub regs: Regs,
    /// Bases of FS and GS.
    pub bases: (u64, u64),
    /// Extended state.
    pub fpu: Vec<u8>,
    /// Where the thread's TID is to be written before it runs (`CLONE_CHILD_SETTID`).
    pub child_tid: Option<u64>,
}

/// How often in a row the host may fail to provide a page of a file that seems to be there: somebody may
/// cut the file and extend it again, all the time.
const MAX_UNBACKED: u32 = 1000;

/// What is left of a call in which a thread stood still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Again {
    /// When its time is over, if it has begun to wait; the inner one is `None` for never.
    pub deadline: Option<Option<Deadline>>,
    /// Bytes of it that are done.
    pub progress: u64,
}

/// Why a forwarded call cannot go on: the deputy is gone.
#[derive(Debug)]
pub struct Lost;

/// A guest thread on the host thread that runs it.
pub struct GuestThread {
    /// As others see it.
    pub thread: Arc<Thread>,
    /// Its process.
    pub process: Arc<Process>,
    /// Its connection to its thread of the deputy. The poller uses it in the thread's place.
    pub channel: Arc<Mutex<CallChannel>>,
    /// Its address space.
    pub space: Arc<AddressSpace>,
    /// The last fault, for signal frames: number, error code, address.
    pub last_fault: (u64, u64, u64),
    /// Calls without exits.
    pub exitless: Exitless,
    /// What a call knows of itself that is made again because the thread stood still in it.
    pub again: Again,
    /// Kept until the memory is free; so it is the last.
    leaver: Option<Leaver>,
    /// Until it begins to end.
    permit: Option<Permit>,
}

impl GuestThread {
    /// Enters a thread into `process` and its address space.
    ///
    /// Returns `None` if the process is ending.
    pub fn enter(
        process: &Arc<Process>,
        tid: i32,
        signals: ThreadSignals,
        worker: &super::pool::Worker,
        channel: CallChannel,
        space: Arc<AddressSpace>,
        permit: Permit,
    ) -> Option<Self> {
        let thread = Thread::new(tid, process.clone(), signals, worker.gate.clone(), worker.host);
        if !process.add_thread(&thread) {
            return None;
        }
        space.join(&thread.gate, process.pid, tid);
        Some(Self {
            thread,
            process: process.clone(),
            channel: Arc::new(Mutex::new(channel)),
            space,
            last_fault: (0, 0, 0),
            exitless: Exitless::default(),
            again: Again::default(),
            leaver: None,
            permit: Some(permit),
        })
    }

    /// The node's kernel.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.process.kernel
    }

    /// Sets the vCPU up and runs the thread to its end.
    pub fn run(self, cpu: &mut UserCpu, start: Start) -> Option<Self> {
        self.run_from(cpu, start, false)
    }

    /// The same; `in_call` is whether the thread is in the system call that its registers say.
    pub fn run_from(mut self, cpu: &mut UserCpu, start: Start, in_call: bool) -> Option<Self> {
        *cpu.regs_mut() = start.regs;
        cpu.set_segment_bases(start.bases.0, start.bases.1);
        self.space.set_base(&self.thread.gate, start.bases.0);
        if let Err(error) = cpu.set_fpu(&start.fpu) {
            self.die(&crate::chain(&error));
        }
        cpu.set_root(self.space.root());
        if let Some(at) = start.child_tid {
            let tid = self.thread.tid() as u32;
            // As Linux, which ignores where it cannot be written.
            let _ = self.with_memory(cpu, |memory| memory.write_u32(GuestVirtAddr(at), tid));
        }
        // A fault of ours that one program has brought about ends that program alone.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            // Signals may wait already.
            self.thread.notify_self();
            if !in_call || self.is_to_go_on() && self.system_call(cpu) {
                self.go(cpu);
            }
        }));
        if ran.is_err() {
            self.die("the node's own code has panicked");
        }
        if catch_unwind(AssertUnwindSafe(|| self.finish(cpu))).is_err() {
            // The deputy sees its connections close.
            self.kernel().leave(&self.process);
        }
        Some(self)
    }

    /// Ends a process that has not come to run: `refusal` are its last words to the deputy.
    pub fn abandon(mut self, cpu: &mut UserCpu, refusal: &Op) -> Option<Self> {
        if let Err(error) = lock(&self.channel).post(refusal) {
            tracing::debug!(%error, "call connection");
        }
        self.process.begin_exit(Ending::Lost);
        self.finish(cpu);
        Some(self)
    }

    /// Runs until the thread must end.
    pub fn go(&mut self, cpu: &mut UserCpu) {
        let mut unbacked = 0;
        loop {
            // More than once: a process that was frozen may have gone by the time that it thaws.
            while self.thread.has_attention() {
                if !self.attend(cpu) {
                    return;
                }
            }
            if !self.thread.gate.enter() {
                // Someone changed the page tables: go on with what they are now.
                self.thread.gate.open();
                cpu.set_root(self.space.root());
                continue;
            }
            let entered = Instant::now();
            let event = cpu.run();
            self.thread.gate.leave();
            self.exitless.ran(entered.elapsed());
            self.count(cpu);
            let event = match event {
                Ok(UserEvent::InCall) => {
                    self.exitless.waited();
                    Ok(cpu.settle_call())
                }
                event => event,
            };
            match event {
                Ok(UserEvent::SystemCall) => {
                    if !self.system_call(cpu) {
                        return;
                    }
                }
                Ok(UserEvent::Exception(exception)) => self.exception(cpu, exception),
                // A call that was settled is over, or is made again.
                Ok(UserEvent::Interrupted | UserEvent::InCall) => {}
                Ok(UserEvent::Unbacked) => {
                    unbacked += 1;
                    match self.space.drop_gone(cpu) {
                        Gone::Dropped => {}
                        Gone::Perhaps if unbacked < MAX_UNBACKED => {}
                        _ => {
                            tracing::error!(pid = self.process.pid, "the host could not provide memory to a guest");
                            self.process.begin_exit(Ending::Signal(libc::SIGKILL));
                        }
                    }
                    continue;
                }
                Ok(UserEvent::Died(reason)) => return self.die(&reason),
                Err(error) => return self.die(&crate::chain(&error)),
            }
            unbacked = 0;
        }
    }

    /// Makes what was counted since the last time visible to others.
    pub fn count(&mut self, cpu: &UserCpu) {
        self.thread.tally.note(cpu.counts(), lock(&self.channel).take_traffic());
    }

    /// The vCPU cannot go on: the process is killed, and only it.
    fn die(&mut self, reason: &str) {
        tracing::error!(pid = self.process.pid, tid = self.thread.tid(), reason, "a vCPU cannot go on");
        self.process.begin_exit(Ending::Signal(libc::SIGKILL));
    }

    /// Looks for what others want of the thread; `false` if it is to end.
    fn attend(&mut self, cpu: &mut UserCpu) -> bool {
        self.thread.take_attention();
        if self.process.must_end(self.thread.tid()) {
            return false;
        }
        if self.process.freezer.is_wanted() {
            self.stand_still(cpu, None);
            return true;
        }
        if self.process.is_stopped() {
            self.process.wait_while_stopped();
            // What came meanwhile is looked at in the next round.
            self.thread.notify();
            return true;
        }
        self.deliver_signals(cpu, None);
        !self.process.must_end(self.thread.tid())
    }

    fn system_call(&mut self, cpu: &mut UserCpu) -> bool {
        let nr = cpu.regs().rax;
        let outcome = syscalls::dispatch(self, cpu, nr);
        let restart = match outcome {
            Outcome::Return(value) => {
                cpu.regs_mut().rax = value as u64;
                None
            }
            Outcome::Replaced => None,
            Outcome::End => return false,
            Outcome::Restart(kind) => Some((kind, nr)),
            // It is the dispatcher's to see to.
            Outcome::Paused => return false,
        };
        if self.process.group.is_beyond() && !self.kernel().relieve(&self.process, Whose::Group) {
            self.process.begin_exit(Ending::Signal(libc::SIGKILL));
        }
        if self.thread.has_attention() || restart.is_some() {
            self.thread.take_attention();
            if self.process.must_end(self.thread.tid()) {
                return false;
            }
            if self.process.is_stopped() {
                self.process.wait_while_stopped();
            }
            if self.process.freezer.is_wanted() {
                self.thread.notify_self();
            }
            self.deliver_signals(cpu, restart);
        }
        true
    }

    fn exception(&mut self, cpu: &mut UserCpu, exception: Exception) {
        let Exception { vector, error_code, address } = exception;
        self.last_fault = (u64::from(vector), error_code, address);
        let rip = GuestVirtAddr(cpu.regs().rip);
        let at = GuestVirtAddr(address);
        let fault = match vector {
            0 => info::fault(libc::SIGFPE, info::FPE_INTDIV, rip),
            1 => info::fault(libc::SIGTRAP, info::TRAP_TRACE, rip),
            3 => info::kernel(libc::SIGTRAP),
            4 => info::kernel(libc::SIGSEGV),
            // A software interrupt without a gate is a protection fault on processors, but not where
            // ring 3 runs natively under a hypervisor in ring 3.
            6 if self.is_software_interrupt(cpu) => info::kernel(libc::SIGSEGV),
            6 => info::fault(libc::SIGILL, info::ILL_ILLOPN, rip),
            14 => {
                self.thread.tally.faults.add(1);
                let access = match error_code {
                    code if code & 16 != 0 => Access::Execute,
                    code if code & 2 != 0 => Access::Write,
                    _ => Access::Read,
                };
                let done = self.space.fault(address, access, cpu);
                if access == Access::Execute && done == Err(FaultError::Forbidden) && self.space.leave_stub(cpu) {
                    return;
                }
                match done {
                    Ok(()) => return,
                    Err(FaultError::Unmapped) => info::fault(libc::SIGSEGV, info::SEGV_MAPERR, at),
                    Err(FaultError::Forbidden) => info::fault(libc::SIGSEGV, info::SEGV_ACCERR, at),
                    Err(FaultError::NoPage) => info::fault(libc::SIGBUS, info::BUS_ADRERR, at),
                    Err(error @ FaultError::Lost(_)) => {
                        tracing::error!(pid = self.process.pid, "killed: {error}");
                        self.process.begin_exit(Ending::Lost);
                        return;
                    }
                    Err(short @ (FaultError::OutOfMemory | FaultError::OverLimit)) => {
                        let whose = if short == FaultError::OverLimit { Whose::Group } else { Whose::Node };
                        // Others may take what has become free: so more than once.
                        for _ in 0..ATTEMPTS {
                            if !self.kernel().relieve(&self.process, whose) {
                                break;
                            }
                            // Any other failure comes again when the access is made again.
                            if self.process.ending().is_some() || self.space.fault(address, access, cpu) != Err(short) {
                                return;
                            }
                        }
                        tracing::warn!(pid = self.process.pid, "killed: there is no memory for it");
                        self.process.begin_exit(Ending::Signal(libc::SIGKILL));
                        return;
                    }
                }
            }
            16 | 19 => info::fault(libc::SIGFPE, floating_point_code(cpu, vector), rip),
            17 => info::fault(libc::SIGBUS, info::BUS_ADRALN, GuestVirtAddr(0)),
            _ => info::kernel(libc::SIGSEGV),
        };
        self.force(fault);
    }

    fn is_software_interrupt(&self, cpu: &mut UserCpu) -> bool {
        const INT: u8 = 0xcd;
        let rip = GuestVirtAddr(cpu.regs().rip);
        let mut byte = [0];
        self.with_memory(cpu, |memory| memory.read(rip, &mut byte)).is_ok() && byte[0] == INT
    }

    /// Runs `body` with the thread's memory.
    pub fn with_memory<T>(&self, cpu: &mut UserCpu, body: impl FnOnce(&ProcessMemory<'_>) -> T) -> T {
        body(&ProcessMemory::new(&self.space, cpu))
    }

    /// Performs an operation of the deputy that answers.
    ///
    /// # Errors
    /// [`Lost`] if the deputy is gone; the process then ends.
    pub fn op(&mut self, op: &Op) -> Result<crate::channel::OpReply, Lost> {
        let done = lock(&self.channel).op(op);
        match done {
            Ok(reply) => {
                for info in &reply.signals {
                    self.process.post(*info);
                }
                Ok(reply)
            }
            Err(error) => {
                tracing::debug!(pid = self.process.pid, error = %crate::chain(&error), "call connection");
                self.process.begin_exit(Ending::Lost);
                Err(Lost)
            }
        }
    }

    /// What is left to do when the thread ends: its last words to other threads, to the deputy, and
    /// if it was the last, the end of the process.
    fn finish(&mut self, cpu: &mut UserCpu) {
        // Whoever learns of its end may start another.
        self.permit = None;
        self.leave_slot(cpu);
        // Who joins it may give its stack to another thread at once, and with it its base.
        self.space.set_base(&self.thread.gate, 0);
        self.say_goodbye(cpu);
        self.thread.end_call();
        self.space.part(&self.thread.gate);
        self.count(cpu);
        let last = self.process.remove_thread(&self.thread);
        self.thread.leave_host_thread();
        cpu.reset();
        if !last {
            self.process.pass_on(SignalSet::ALL);
            let Ok(idle) = std::os::unix::net::UnixStream::pair() else { return };
            if self.thread.tid() == self.process.pid {
                let channel = std::mem::replace(&mut *lock(&self.channel), CallChannel::new(idle.0));
                self.process.keep_leader_channel(channel);
            } else if let Err(error) = lock(&self.channel).post(&Op::EndThread) {
                tracing::debug!(%error, "call connection");
            }
            return;
        }
        let ending = self.process.ending().unwrap_or(Ending::Exit(self.process.leader_status()));
        self.end_process(ending);
    }

    fn end_process(&mut self, ending: Ending) {
        if !self.process.end() {
            return;
        }
        self.process.begin_exit(ending);
        self.kernel().timers.forget(&self.process);
        // What the process had open is closed when its parent learns of its end.
        self.process.descriptors.close();
        // No longer found by the time that the parent learns of it; then the memory, which takes
        // longer, while home goes on.
        self.leaver = Some(self.kernel().leaving.begin());
        self.kernel().keep_usage(&self.process);
        self.kernel().leave(&self.process);
        self.process.note_left();
        let last_words = match ending {
            Ending::Exit(status) => Some(Op::Exit { status }),
            Ending::Signal(signal) => Some(Op::DieBySignal { signal: signal as u32 }),
            Ending::Lost => None,
        };
        let report = (self.process.report.load(Ordering::Relaxed) && last_words.is_some())
            .then(|| Op::Report { own: self.process.usage(), children: self.process.children_usage() });
        for op in report.into_iter().chain(last_words) {
            if let Err(error) = lock(&self.channel).post(&op) {
                tracing::debug!(%error, "call connection");
            }
        }
        self.process.set_space(None);
        self.process.end_vfork();
    }

    /// `CLONE_CHILD_CLEARTID` and robust futexes.
    fn say_goodbye(&mut self, cpu: &mut UserCpu) {
        if self.process.presence() == Presence::Gone {
            // It goes on elsewhere, and some of its memory may not have been sent.
            return;
        }
        syscalls::futex::release_robust(self, cpu);
        let clear = self.thread.clear_tid.load(Ordering::Relaxed);
        // Nobody is left to see it when the whole process ends.
        if clear != 0 && self.process.ending().is_none() {
            let written = self.with_memory(cpu, |memory| memory.write_u32(GuestVirtAddr(clear), 0));
            if written.is_ok() {
                syscalls::futex::wake_at(self, cpu, clear, 1);
            }
        }
    }
}

/// `si_code` of a floating-point fault, from the exceptions that are flagged and not masked.
fn floating_point_code(cpu: &UserCpu, vector: u8) -> i32 {
    const FPE_INTDIV: i32 = 1;
    let Ok(state) = cpu.fpu() else { return FPE_INTDIV };
    let word = |at: usize| u32::from(u16::from_le_bytes([state[at], state[at + 1]]));
    let raised = if vector == 16 {
        word(2) & !word(0)
    } else {
        let mxcsr = u32::from_le_bytes([state[24], state[25], state[26], state[27]]);
        mxcsr & !(mxcsr >> 7)
    };
    match raised {
        raised if raised & 1 != 0 => libc_fpe::INVALID,
        raised if raised & 4 != 0 => libc_fpe::DIVIDE,
        raised if raised & (8 | 2) == 8 => libc_fpe::OVERFLOW,
        raised if raised & (16 | 2) != 0 => libc_fpe::UNDERFLOW,
        raised if raised & 32 != 0 => libc_fpe::INEXACT,
        _ => 0,
    }
}

/// `FPE_*` of `siginfo.h`.
mod libc_fpe {
    pub const DIVIDE: i32 = 3;
    pub const OVERFLOW: i32 = 4;
    pub const UNDERFLOW: i32 = 5;
    pub const INEXACT: i32 = 6;
    pub const INVALID: i32 = 7;
}

/// `-errno` as a call returns it.
pub fn failure(errno: Errno) -> i64 {
    -(errno as i64)
}
