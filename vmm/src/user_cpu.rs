//! A vCPU as a guest thread sees it: ring 3 until an event, whatever ring the event arrived in.

use crate::addr::{GuestPhysAddr, PAGE_SIZE};
use crate::call_slot::{CallSlot, Settled};
use crate::entry::{EntryMode, Paging};
use crate::hypervisor::{Exit, HypervisorError, Interrupter, Ring, Vcpu};
use crate::machine::Machine;
use crate::regs::Regs;
use guest_shim::layout::{self, page, port, selector, vcpu};
use guest_shim::{code, slot_code};
use std::sync::Arc;

/// Why a guest thread left ring 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserEvent {
    /// A system call; the registers are those after `syscall`.
    SystemCall,
    /// A fault, at the faulting instruction; or a trap, after it.
    Exception(Exception),
    /// Somebody broke in.
    Interrupted,
    /// The thread has stopped in its call slot's trampoline: [`UserCpu::settle_call`] tells what comes of the
    /// call. It may wait, so it is asked when nobody waits for this thread to be out of the guest.
    InCall,
    /// The host could not provide memory that the thread touched.
    Unbacked,
    /// The vCPU cannot go on: a bug of the shim or of the hypervisor. A description for the log.
    Died(String),
}

/// A fault or trap of a guest thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// 0..=31
    pub vector: u8,
    /// As the processor pushed it; 0 for vectors without one.
    pub error_code: u64,
    /// For a page fault the address; else of the last one.
    pub address: u64,
}

/// A new value for an entry of a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edit {
    /// Of the entry.
    pub entry: GuestPhysAddr,
    /// What it becomes.
    pub value: u64,
}

/// Bytes of the `syscall` instruction.
const SYSCALL_SIZE: u64 = 2;
/// Flags that a program may set for itself; the others are the kernel's.
const USER_FLAGS: u64 = 0x24_4dd5;
/// Error code of a page fault: an instruction fetch from ring 3, of an absent page.
const FETCH_BY_USER: u64 = 0x14;
/// What a program gets for what only the kernel may do.
const PROTECTION: Exception = Exception { vector: 13, error_code: 0, address: 0 };
/// Flags that are always set: the reserved one, and interrupts enabled, as Linux has it.
const FIXED_FLAGS: u64 = 0x202;

/// A vCPU that runs guest threads.
pub struct UserCpu {
    machine: Arc<Machine>,
    vcpu: Box<dyn Vcpu>,
    area: GuestPhysAddr,
    /// The thread's registers. Valid between runs.
    regs: Regs,
    /// RIP of the vCPU itself if it stands behind the trampoline's `out` in ring 0.
    behind_call: Option<u64>,
    /// The vCPU is in ring 3.
    in_user: bool,
    /// The processor may hold translations of the root that was loaded before, or of another tree
    /// whose root was in the same frame: the hypervisor sees no change of the register then.
    stale: bool,
    /// The vCPU has died: some hypervisors leave nothing of its state then.
    dead: bool,
    counts: Counts,
    /// The thread's call slot.
    slot: Option<Arc<CallSlot>>,
    /// Bytes of the present call that were done before it came here.
    progress: u64,
}

/// How often a vCPU has left the guest for one guest thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// In all.
    pub exits: u64,
    /// Of these, those of the page-table editor.
    pub edits: u64,
}

impl UserCpu {
    pub(crate) fn new(machine: Arc<Machine>, vcpu: Box<dyn Vcpu>, area: GuestPhysAddr) -> Self {
        Self {
            machine,
            vcpu,
            area,
            regs: Regs::default(),
            behind_call: None,
            in_user: false,
            stale: true,
            dead: false,
            counts: Counts::default(),
            slot: None,
            progress: 0,
        }
    }

    /// The thread's registers.
    pub fn regs(&self) -> &Regs {
        &self.regs
    }

    /// The thread's registers, to change.
    pub fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }

    /// The page-table root that it runs on.
    pub fn root(&self) -> GuestPhysAddr {
        self.vcpu.root()
    }

    /// Sets the page-table root that it runs on next.
    pub fn set_root(&mut self, root: GuestPhysAddr) {
        self.vcpu.set_root(root);
        self.stale = true;
        // Changing system registers and resuming by `sysretq` do not go together everywhere.
        self.leave_kernel();
    }

    /// Bases of FS and GS.
    pub fn segment_bases(&self) -> (u64, u64) {
        self.vcpu.segment_bases()
    }

    /// Sets the bases of FS and GS, addresses of the lower half.
    pub fn set_segment_bases(&mut self, fs: u64, gs: u64) {
        self.vcpu.set_segment_bases(fs, gs);
        self.leave_kernel();
    }

    /// Has the thread make its calls by way of a slot of its address space, or none. Only where `syscall`
    /// stays in ring 3.
    ///
    /// # Errors
    /// If the hypervisor refuses; the thread has no slot then.
    pub fn set_call_slot(&mut self, slot: Option<Arc<CallSlot>>) -> Result<(), HypervisorError> {
        if slot.is_none() && self.slot.is_none() {
            return Ok(());
        }
        debug_assert!(self.machine.entry_mode() == EntryMode::Ring3);
        self.slot = None;
        let plain = layout::SHIM_BASE + page::TRAMPOLINE;
        self.vcpu.set_syscall_entry(slot.as_ref().map_or(plain, |slot| slot.trampoline()))?;
        self.slot = slot;
        Ok(())
    }

    /// How many bytes of the call that has come here were done before, once: it goes on behind them.
    pub fn take_progress(&mut self) -> u64 {
        std::mem::take(&mut self.progress)
    }

    /// Extended state, in the standard format of XSAVE.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn fpu(&self) -> Result<Vec<u8>, HypervisorError> {
        self.vcpu.fpu()
    }

    /// Sets the extended state.
    ///
    /// # Errors
    /// If the hypervisor refuses the bytes.
    pub fn set_fpu(&mut self, state: &[u8]) -> Result<(), HypervisorError> {
        self.vcpu.set_fpu(state)
    }

    /// Declares that the calling thread is the one that runs it.
    pub fn claim(&mut self) {
        self.vcpu.claim();
    }

    /// What breaks into [`run`](Self::run).
    pub fn interrupter(&self) -> Interrupter {
        self.vcpu.interrupter()
    }

    /// Runs the thread to its next event.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn run(&mut self) -> Result<UserEvent, HypervisorError> {
        let event = self.run_to_event();
        self.dead |= matches!(event, Err(_) | Ok(UserEvent::Died(_)));
        event
    }

    /// Whether it can run no more threads.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// Exits since the last [`reset`](Self::reset).
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn run_to_event(&mut self) -> Result<UserEvent, HypervisorError> {
        self.regs.rflags = self.regs.rflags & USER_FLAGS | FIXED_FLAGS;
        if self.regs.rip >= layout::USER_END {
            // A processor may refuse to enter there at all; the program gets what a jump there gives.
            let address = self.regs.rip;
            return Ok(UserEvent::Exception(Exception { vector: 14, error_code: FETCH_BY_USER, address }));
        }
        if self.stale && self.machine.paging() == Paging::Nested {
            self.reload_root()?;
        }
        let mut regs = self.regs;
        match self.behind_call.take() {
            // `sysretq` takes the address from RCX and the flags from R11.
            Some(rip) if regs.rcx == regs.rip && regs.r11 == regs.rflags && regs.rip < layout::USER_END => {
                regs.rip = rip;
            }
            _ => self.leave_kernel(),
        }
        *self.vcpu.regs_mut() = regs;
        let root = self.vcpu.root();
        let exit = self.vcpu.run()?;
        self.counts.exits += 1;
        Ok(match exit {
            Exit::Port(port::SYSTEM_CALL) => self.on_system_call(),
            Exit::Port(number) if (port::EXCEPTION..port::EXCEPTION + 32).contains(&number) => {
                self.on_exception((number - port::EXCEPTION) as u8)
            }
            Exit::Port(number) => UserEvent::Died(format!("a write to port {number:#x}")),
            Exit::PortRead(number) if self.vcpu.ring() == Ring::Kernel => {
                UserEvent::Died(format!("a read of port {number:#x} in the shim"))
            }
            // The port is open for the trampoline's `out` alone.
            Exit::PortRead(_) => {
                self.in_user = true;
                self.regs = *self.vcpu.regs();
                UserEvent::Exception(PROTECTION)
            }
            Exit::Interrupted | Exit::Unbacked if self.is_in_slot() => {
                self.in_user = true;
                UserEvent::InCall
            }
            Exit::Interrupted | Exit::Unbacked => {
                // In ring 3 at the next instruction, or in the shim between two of them: what was
                // under way there is done again from the registers that the thread had.
                self.in_user = self.vcpu.ring() == Ring::User;
                let rip = self.vcpu.regs().rip;
                let in_shim = if self.in_user { self.is_in_trampoline(rip) } else { rip >= layout::SHIM_BASE };
                let event = if in_shim {
                    self.recover_interrupted()
                } else if self.in_user {
                    // Perhaps on its way to an address that is not the program's: the next run tells.
                    self.regs = *self.vcpu.regs();
                    if self.is_foreign_code() { UserEvent::Exception(PROTECTION) } else { UserEvent::Interrupted }
                } else {
                    UserEvent::Died(format!("ring 0 at {:#x}", self.vcpu.regs().rip))
                };
                match event {
                    UserEvent::Died(_) => event,
                    _ if exit == Exit::Unbacked => UserEvent::Unbacked,
                    UserEvent::Interrupted => event,
                    _ => {
                        // It ends the next run instead.
                        self.vcpu.interrupter().interrupt();
                        event
                    }
                }
            }
            // Some hypervisors reset a vCPU that dies, so what is told is what it was entered with.
            Exit::Died(reason) => UserEvent::Died(format!(
                "{reason}, entered at {:#x} with a stack at {:#x} {}",
                regs.rip,
                regs.rsp,
                self.describe_root(root)
            )),
        })
    }

    fn on_system_call(&mut self) -> UserEvent {
        let regs = *self.vcpu.regs();
        self.regs = Regs { rip: regs.rcx, rflags: regs.r11, ..regs };
        match self.vcpu.ring() {
            Ring::User if self.is_foreign_code() => return UserEvent::Exception(PROTECTION),
            Ring::User => {
                self.in_user = true;
                if let Some(slot) = &self.slot {
                    let offset = slot_offset(regs.rip);
                    if offset.is_some_and(slot_code::is_waiting) {
                        return UserEvent::InCall;
                    }
                    self.progress = slot.take_progress();
                }
            }
            Ring::Kernel => {
                self.in_user = false;
                self.behind_call = Some(regs.rip);
            }
        }
        UserEvent::SystemCall
    }

    fn on_exception(&mut self, vector: u8) -> UserEvent {
        self.in_user = false;
        let regs = *self.vcpu.regs();
        let Some(frame) = regs.rsp.checked_sub(layout::SHIM_BASE) else {
            return UserEvent::Died(format!("exception {vector} with a stack at {:#x}", regs.rsp));
        };
        let code_size = if layout::has_error_code(vector) { 8 } else { 0 };
        let expected = self.area.raw() + vcpu::STACK_TOP - 40 - code_size;
        if frame != expected {
            return UserEvent::Died(format!("exception {vector} with a frame at {frame:#x}, not {expected:#x}"));
        }
        let ram = self.machine.ram();
        let word = |offset: u64| ram.load(GuestPhysAddr(frame + offset));
        let error_code = if code_size == 8 { word(0) } else { 0 };
        let (rip, cs, rflags, rsp) = (word(code_size), word(code_size + 8), word(code_size + 16), word(code_size + 24));
        if cs & 3 != 3 {
            return UserEvent::Died(format!("exception {vector} ({error_code:#x}) in the shim at {rip:#x}"));
        }
        self.regs = Regs { rip, rflags, rsp, ..regs };
        if cs as u16 != selector::USER_CODE {
            return UserEvent::Exception(PROTECTION);
        }
        UserEvent::Exception(Exception { vector, error_code, address: self.vcpu.fault_address() })
    }

    /// Whether the thread has left 64-bit code, by a segment that only the host has: what comes of it is
    /// not resumed as 64-bit code, nor is it run on. The next run enters by the usual segments.
    fn is_foreign_code(&mut self) -> bool {
        let foreign = self.vcpu.code_selector() != selector::USER_CODE;
        if foreign {
            self.in_user = false;
        }
        foreign
    }

    fn is_in_slot(&self) -> bool {
        self.slot.is_some() && self.vcpu.ring() == Ring::User && slot_offset(self.vcpu.regs().rip).is_some()
    }

    /// Brings the call to an end in which the thread has stopped.
    pub fn settle_call(&mut self) -> UserEvent {
        let regs = *self.vcpu.regs();
        self.regs = Regs { rip: regs.rcx, rflags: regs.r11, ..regs };
        let Some(slot) = self.slot.clone() else { return UserEvent::Interrupted };
        // A program may have jumped to the trampoline of another slot: nothing of its own is there.
        let offset = slot_offset(regs.rip)
            .filter(|offset| offset / slot_code::SIZE == u64::from(slot.index()))
            .map_or(Settled::Again(regs.rax), |offset| slot.settle(offset, regs.rax));
        match offset {
            Settled::Returned(value) => {
                self.regs.rax = value as u64;
                UserEvent::Interrupted
            }
            Settled::Again(number) => {
                self.regs.rip = regs.rcx.wrapping_sub(SYSCALL_SIZE);
                self.regs.rax = number;
                UserEvent::Interrupted
            }
            Settled::Serve(progress) => {
                self.regs.rax = slot.number();
                self.progress = progress;
                UserEvent::SystemCall
            }
        }
    }

    fn is_in_trampoline(&self, rip: u64) -> bool {
        let start = layout::SHIM_BASE + page::TRAMPOLINE;
        self.machine.entry_mode() == EntryMode::Ring3 && (start..start + code::trampoline().len() as u64).contains(&rip)
    }

    /// Where an interrupt found the vCPU in the shim, takes the thread back to ring 3.
    fn recover_interrupted(&mut self) -> UserEvent {
        let regs = *self.vcpu.regs();
        let offset = regs.rip.wrapping_sub(layout::SHIM_BASE);
        let trampoline_end = page::TRAMPOLINE + code::trampoline().len() as u64;
        if (page::TRAMPOLINE..trampoline_end).contains(&offset) {
            // Before the `out`: the call has not been made, so it is made again. Behind it: the
            // call is done and `sysretq` is left.
            let before = offset == page::TRAMPOLINE;
            let back = if before { SYSCALL_SIZE } else { 0 };
            self.in_user = false;
            self.regs = Regs { rip: regs.rcx.wrapping_sub(back), rflags: regs.r11, ..regs };
            return UserEvent::Interrupted;
        }
        let stubs = page::CODE..page::CODE + 32 * code::STUB_SIZE;
        if stubs.contains(&offset) && (offset - page::CODE).is_multiple_of(code::STUB_SIZE) {
            // Before the stub's `out`: all of the exception is there but its exit. It is told now,
            // since a trap, unlike a fault, would not come again.
            return self.on_exception(((offset - page::CODE) / code::STUB_SIZE) as u8);
        }
        UserEvent::Died(format!("interrupted at {:#x}", regs.rip))
    }

    /// Makes the vCPU enter ring 3 by its registers at the next run.
    fn leave_kernel(&mut self) {
        self.behind_call = None;
        if !self.in_user {
            self.vcpu.set_ring(Ring::User);
            self.in_user = true;
        }
    }

    /// Makes these changes to page tables from ring 0 of the guest, where every hypervisor sees them,
    /// and where the processor walks the tables itself flushes this vCPU's translations.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn edit_tables(&mut self, edits: &[Edit]) -> Result<(), HypervisorError> {
        // Where no load of the root is needed each write drops what was derived from the entry, on
        // all vCPUs. Where it is and tables are shadowed, the load does so.
        if self.stale && self.machine.paging() == Paging::Nested {
            self.reload_root()?;
        }
        let end = if self.machine.edits_need_reload() { code::edit_reload_end() } else { code::edit_end() };
        for chunk in edits.chunks(vcpu::MAX_EDITS) {
            let list = self.area + vcpu::EDITS;
            for (i, edit) in chunk.iter().enumerate() {
                self.machine.ram().store(list + i as u64 * 16, layout::DIRECT_MAP + edit.entry.raw());
                self.machine.ram().store(list + i as u64 * 16 + 8, edit.value);
            }
            self.run_shim(end - chunk.len() as u64 * code::EDIT_SIZE, layout::SHIM_BASE + list.raw())?;
        }
        Ok(())
    }

    /// Flushes this vCPU's translations.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn reload_root(&mut self) -> Result<(), HypervisorError> {
        // On the boot root, whose tables stay: those of the root that was loaded last may belong to
        // others by now, and not even the shim is to be reached through what is cached of them.
        let root = self.vcpu.root();
        self.vcpu.set_root(GuestPhysAddr(layout::table::BOOT_PML4));
        let done = self.run_shim(code::reload(), layout::SHIM_BASE + self.area.raw() + vcpu::STACK_TOP);
        self.vcpu.set_root(root);
        self.stale = done.is_err();
        done
    }

    fn run_shim(&mut self, offset: u64, stack: u64) -> Result<(), HypervisorError> {
        self.behind_call = None;
        self.in_user = false;
        self.vcpu.set_ring(Ring::Kernel);
        let rip = layout::SHIM_BASE + page::CODE + offset;
        *self.vcpu.regs_mut() = Regs { rip, rsp: stack, rflags: 2, ..Regs::default() };
        let root = self.vcpu.root();
        let interrupter = self.vcpu.interrupter();
        let mut interrupted = false;
        let result = loop {
            self.counts.exits += 1;
            self.counts.edits += 1;
            match self.vcpu.run()? {
                Exit::Port(port::EDITED) => break Ok(()),
                // The run goes on where it stopped; the interrupt is for the thread.
                Exit::Interrupted => interrupted = true,
                other => {
                    let root = self.describe_root(root);
                    let reason = format!("{other:?} in the page-table editor at {:#x} {root}", self.vcpu.regs().rip);
                    break Err(HypervisorError::Failed {
                        what: "edit page tables",
                        source: std::io::Error::other(reason),
                    });
                }
            }
        };
        if interrupted {
            interrupter.interrupt();
        }
        self.dead |= result.is_err();
        result
    }

    /// Tells a broken tree from a hypervisor that sees another one than guest memory holds.
    fn describe_root(&self, root: GuestPhysAddr) -> String {
        let leads = if self.machine.leads_to_shim(root) { "leads" } else { "does not lead" };
        format!("on the root {:#x}, which {leads} to the shim", root.raw())
    }

    /// Forgets the guest thread that it has run.
    pub fn reset(&mut self) {
        self.regs = Regs::default();
        self.vcpu.set_root(GuestPhysAddr(layout::table::BOOT_PML4));
        self.stale = true;
        self.counts = Counts::default();
        if let Err(error) = self.set_call_slot(None) {
            // Nobody else can be given a vCPU with the entry of this thread's slot.
            tracing::error!(%error, "a vCPU keeps a call slot");
            self.dead = true;
        }
        self.progress = 0;
        self.vcpu.set_segment_bases(0, 0);
        self.leave_kernel();
        // The next thread's state is set before it runs, so that nothing of this one is left then.
    }

    /// The mode in which system calls reach this vCPU's shim.
    pub fn entry_mode(&self) -> EntryMode {
        self.machine.entry_mode()
    }

    /// The machine that it belongs to.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }
}

/// Where in the slots' trampolines an address lies.
fn slot_offset(rip: u64) -> Option<u64> {
    let offset = rip.checked_sub(layout::SHIM_BASE + page::SLOT_TRAMPOLINES)?;
    (offset < slot_code::PAGES * PAGE_SIZE).then_some(offset)
}

/// Extended state as a new program finds it, in the standard format of XSAVE.
pub fn initial_fpu() -> Vec<u8> {
    const CONTROL_WORD: u16 = 0x37f;
    const MXCSR: u32 = 0x1f80;
    // The legacy area and a header that says that all components are in their initial state.
    let mut state = vec![0; 576];
    state[0..2].copy_from_slice(&CONTROL_WORD.to_le_bytes());
    state[24..28].copy_from_slice(&MXCSR.to_le_bytes());
    state
}
