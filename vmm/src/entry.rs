//! What kind of machine this is, found by running a few instructions in it.
//!
//! Never by the processor's name: nested and paravirtual hypervisors differ in ways that it does not tell.

use crate::addr::GuestPhysAddr;
use crate::hypervisor::{Exit, Ring, Vcpu};
use crate::machine::{Machine, MachineError, area};
use crate::paging::{PRESENT, USER, WRITE};
use crate::regs::Regs;
use guest_shim::code;
use guest_shim::layout::{self, page, port, table, vcpu};
use std::fmt;

/// Where the `syscall` instruction lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryMode {
    /// In ring 0, as processors do it.
    Ring0,
    /// It jumps, and stays in ring 3 (PVM).
    Ring3,
}

/// Who translates guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// The hypervisor keeps tables of its own, derived from the guest's.
    Shadow,
    /// The processor walks the guest's tables.
    Nested,
}

impl fmt::Display for EntryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring0 => "ring0",
            Self::Ring3 => "ring3",
        })
    }
}

impl fmt::Display for Paging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shadow => "shadow",
            Self::Nested => "nested",
        })
    }
}

/// What the self-test found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Where system calls land.
    pub entry: EntryMode,
    /// Who translates.
    pub paging: Paging,
    /// An edit of the page tables takes effect only with the next load of the root.
    pub edits_need_reload: bool,
    /// The guest's time-stamp counter is the host's.
    pub shares_tsc: bool,
}

/// Time-stamp counters of host and guest are the same if they differ by less than a run can last.
const TSC_TOLERANCE: u64 = 1 << 32;

/// Runs the self-test on a vCPU of its own.
pub(crate) fn self_test(machine: &Machine) -> Result<Modes, MachineError> {
    let mut probe = Probe::new(machine)?;
    let entry = probe.entry()?;
    let shares_tsc = probe.shares_tsc()?;
    let (paging, edits_need_reload) = probe.paging()?;
    Ok(Modes { entry, paging, edits_need_reload, shares_tsc })
}

/// A vCPU that runs the self-test's code in ring 3.
pub(crate) struct Probe<'machine> {
    machine: &'machine Machine,
    vcpu: Box<dyn Vcpu>,
    area: GuestPhysAddr,
}

impl<'machine> Probe<'machine> {
    pub(crate) fn new(machine: &'machine Machine) -> Result<Self, MachineError> {
        let (vcpu, index) = machine.create_vcpu()?;
        let ram = machine.ram();
        let flags = PRESENT | WRITE | USER;
        let (directory_pointers, directory, entries) =
            (table::PROBE_TABLES, table::PROBE_TABLES + 0x1000, table::PROBE_TABLES + 0x2000);
        ram.store(GuestPhysAddr(directory_pointers), directory | flags);
        ram.store(GuestPhysAddr(directory + (layout::PROBE_BASE >> 21) * 8), entries | flags);
        ram.store(GuestPhysAddr(entries), table::PROBE_CODE | PRESENT | USER);
        ram.store(GuestPhysAddr(entries + 8), table::PROBE_DATA | flags);
        ram.store(GuestPhysAddr(table::BOOT_PML4), directory_pointers | flags);
        Ok(Self { machine, vcpu, area: area(index) })
    }

    /// Runs the probe's code from `offset` to its next system call.
    pub(crate) fn run(&mut self, offset: u64, rbx: u64) -> Result<Regs, MachineError> {
        self.enter(offset, rbx);
        self.expect(port::SYSTEM_CALL)?;
        Ok(*self.vcpu.regs())
    }

    /// Sets the vCPU to the probe's code at `offset`, in ring 3.
    fn enter(&mut self, offset: u64, rbx: u64) {
        self.vcpu.set_ring(Ring::User);
        *self.vcpu.regs_mut() = Regs { rip: layout::PROBE_BASE + offset, rbx, rflags: 0x202, ..Regs::default() };
    }

    fn expect(&mut self, port: u16) -> Result<(), MachineError> {
        match self.vcpu.run()? {
            Exit::Port(found) if found == port => Ok(()),
            other => {
                let rip = self.vcpu.regs().rip;
                Err(MachineError::SelfTest(format!("{other:?} at {rip:#x} instead of an exit to port {port:#x}")))
            }
        }
    }

    /// Runs to the first of the system calls that [`spin`](Self::spin) makes.
    pub(crate) fn start_spinning(&mut self) -> Result<(), MachineError> {
        self.run(code::probe_spin(), 0).map(drop)
    }

    /// Resumes ring 3 behind a system call of the endless loop and runs to the next one.
    pub(crate) fn spin(&mut self) -> Result<(), MachineError> {
        if self.vcpu.ring() == Ring::User {
            let regs = self.vcpu.regs_mut();
            (regs.rip, regs.rflags) = (regs.rcx, regs.r11);
        }
        // From ring 0 the trampoline's `sysretq` leads back.
        self.expect(port::SYSTEM_CALL)
    }

    /// Loads from a present page in ring 3.
    pub(crate) fn load(&mut self, address: u64) -> Result<(), MachineError> {
        self.run(code::probe_load(), address).map(drop)
    }

    /// Loads from an absent page in ring 3, up to the exit of the fault.
    pub(crate) fn load_absent(&mut self, address: u64) -> Result<(), MachineError> {
        const PAGE_FAULT: u16 = 14;
        self.enter(code::probe_load(), address);
        self.expect(port::EXCEPTION + PAGE_FAULT)
    }

    /// Makes one change to a page table from ring 0, with or without a load of the root.
    pub(crate) fn edit(&mut self, reload: bool, entry: GuestPhysAddr, value: u64) -> Result<(), MachineError> {
        let end = if reload { code::edit_reload_end() } else { code::edit_end() };
        let list = self.area + vcpu::EDITS;
        self.machine.ram().store(list, layout::DIRECT_MAP + entry.raw());
        self.machine.ram().store(list + 8, value);
        self.run_shim(end - code::EDIT_SIZE, vcpu::EDITS)
    }

    fn entry(&mut self) -> Result<EntryMode, MachineError> {
        self.run(0, 0)?;
        Ok(match self.vcpu.ring() {
            Ring::User => EntryMode::Ring3,
            Ring::Kernel => EntryMode::Ring0,
        })
    }

    fn shares_tsc(&mut self) -> Result<bool, MachineError> {
        // SAFETY: reads the time-stamp counter.
        let before = unsafe { std::arch::x86_64::_rdtsc() };
        let guest = self.run(code::probe_tsc(), 0)?.rax;
        Ok(guest.wrapping_sub(before) < TSC_TOLERANCE)
    }

    /// Changes a present entry behind the hypervisor's back and flushes the translations as a
    /// processor would: if the guest sees the old page, its tables are shadowed. Also tells whether
    /// the shim's own edits need a load of the root to be seen: a hypervisor that shadows may let the
    /// guest write to a table and look at what it wrote only then (KVM's "unsync" pages).
    fn paging(&mut self) -> Result<(Paging, bool), MachineError> {
        let ram = self.machine.ram();
        let (old, new) = (0x006f_6c64_u64, 0x006e_6577_u64);
        ram.store(GuestPhysAddr(table::PROBE_DATA), old);
        ram.store(GuestPhysAddr(table::PROBE_OTHER), new);
        let data = layout::PROBE_BASE + 0x1000;
        let seen = self.run(code::probe_load(), data)?.rax;
        if seen != old {
            return Err(MachineError::SelfTest(format!("the guest read {seen:#x} where {old:#x} was written")));
        }
        let entry = GuestPhysAddr(table::PROBE_TABLES + 0x2000 + 8);
        let value = table::PROBE_OTHER | PRESENT | WRITE | USER;
        ram.store(entry, value);
        self.run_shim(code::reload(), vcpu::STACK_TOP)?;
        if self.run(code::probe_load(), data)?.rax == new {
            return Ok((Paging::Nested, true));
        }
        // The shim's own write must be seen. Twice, there and back: the first write to a table may
        // be treated in another way than those that follow.
        let back = table::PROBE_DATA | PRESENT | WRITE | USER;
        for reload in [false, true] {
            let mut works = true;
            for (value, wanted) in [(value, new), (back, old), (value, new)] {
                self.edit(reload, entry, value)?;
                works &= self.run(code::probe_load(), data)?.rax == wanted;
            }
            if works {
                return Ok((Paging::Shadow, reload));
            }
        }
        Err(MachineError::SelfTest("the guest does not see the edits of its own page tables".into()))
    }

    fn run_shim(&mut self, offset: u64, stack: u64) -> Result<(), MachineError> {
        self.vcpu.set_ring(Ring::Kernel);
        let rip = layout::SHIM_BASE + page::CODE + offset;
        let rsp = layout::SHIM_BASE + self.area.raw() + stack;
        *self.vcpu.regs_mut() = Regs { rip, rsp, rflags: 2, ..Regs::default() };
        self.expect(port::EDITED)
    }
}
