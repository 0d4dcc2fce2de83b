//! The personality's own accesses to a process's memory.

use super::fault::{Access, FaultError, show_again};
use super::space::{AddressSpace, Inner};
use crate::usermem::UserMemory;
use nix::errno::Errno;
use std::cell::RefCell;
use vmm::addr::{GuestPhysAddr, GuestVirtAddr, PAGE_SIZE};
use vmm::frames::AtLimit;
use vmm::guard::take_fault;
use vmm::paging::{PRESENT, WRITE};
use vmm::ram::GuestRam;
use vmm::shim_layout::USER_END;
use vmm::user_cpu::UserCpu;

/// The memory of the process whose thread runs on `cpu`.
pub struct ProcessMemory<'a> {
    space: &'a AddressSpace,
    cpu: RefCell<&'a mut UserCpu>,
}

impl<'a> ProcessMemory<'a> {
    /// For the thread of `space` that runs on `cpu`.
    pub fn new(space: &'a AddressSpace, cpu: &'a mut UserCpu) -> Self {
        Self { space, cpu: RefCell::new(cpu) }
    }

    fn walk(
        &self,
        address: GuestVirtAddr,
        length: usize,
        access: Access,
        mut visit: impl FnMut(GuestPhysAddr, usize, usize),
    ) -> Result<(), Errno> {
        let end = address.checked_add(length as u64).filter(|end| end.raw() <= USER_END).ok_or(Errno::EFAULT)?;
        let mut inner = self.space.lock();
        let mut at = address;
        while at < end {
            let count = (PAGE_SIZE - at.page_offset()).min(end - at);
            let physical = self.translate(&mut inner, at, access)?;
            visit(physical, (at - address) as usize, count as usize);
            if let Some(fault) = take_fault() {
                show_again_at(&inner, at, fault);
                return Err(Errno::EFAULT);
            }
            at = at + count;
        }
        Ok(())
    }

    pub(super) fn translate(
        &self,
        inner: &mut Inner,
        at: GuestVirtAddr,
        access: Access,
    ) -> Result<GuestPhysAddr, Errno> {
        let needed = if access == Access::Write { PRESENT | WRITE } else { PRESENT };
        // Twice: a fault may only have made the page readable, though it is asked to be written.
        for _ in 0..3 {
            if let Some(leaf) = inner.tables.lookup(at.page_floor().raw())
                && leaf.entry & needed == needed
            {
                return Ok(leaf.frame(at.raw()).address() + at.page_offset());
            }
            let mut cpu = self.cpu.borrow_mut();
            // A call is not broken off half done for its program's limit; that is looked at after it.
            let done = self.space.fault_locked(inner, at.raw(), access, AtLimit::Pass, &mut cpu);
            done.map_err(|error| match error {
                FaultError::OutOfMemory => Errno::ENOMEM,
                _ => Errno::EFAULT,
            })?;
        }
        Err(Errno::EFAULT)
    }

    /// The aligned word at `address`, read at once, and where it lies in guest physical memory: a
    /// name for the word, not to be accessed, since the frame may be another's as soon as this returns.
    ///
    /// # Errors
    /// `EFAULT`; `EINVAL` if it is not aligned.
    pub fn load_word(&self, address: u64) -> Result<(u32, GuestPhysAddr), Errno> {
        self.with_word(address, Access::Read, |ram, physical| (ram.load_u32(physical), physical))
    }

    /// Replaces the aligned word at `address` by what `change` makes of it, at once; returns the old one.
    ///
    /// # Errors
    /// `EFAULT`; `EINVAL` if it is not aligned.
    pub fn change_word(&self, address: u64, change: impl Fn(u32) -> u32) -> Result<u32, Errno> {
        self.with_word(address, Access::Write, |ram, physical| {
            let mut old = ram.load_u32(physical);
            while let Err(other) = ram.compare_exchange_u32(physical, old, change(old)) {
                old = other;
            }
            old
        })
    }

    /// Accesses the word at `address` while the address space is locked: another thread's `munmap`
    /// would free the frame, and the access would be to whatever is in it next.
    fn with_word<T>(
        &self,
        address: u64,
        access: Access,
        body: impl FnOnce(&GuestRam, GuestPhysAddr) -> T,
    ) -> Result<T, Errno> {
        if !address.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        if address >= USER_END {
            return Err(Errno::EFAULT);
        }
        let mut inner = self.space.lock();
        let physical = self.translate(&mut inner, GuestVirtAddr(address), access)?;
        let result = body(self.space.machine.ram(), physical);
        if let Some(fault) = take_fault() {
            show_again_at(&inner, GuestVirtAddr(address), fault);
            return Err(Errno::EFAULT);
        }
        Ok(result)
    }

    /// The address space.
    pub fn space(&self) -> &AddressSpace {
        self.space
    }
}

fn show_again_at(inner: &Inner, at: GuestVirtAddr, fault: GuestPhysAddr) {
    if let Some(region) = inner.regions.at(at.raw()) {
        show_again(region, fault);
    }
}

impl UserMemory for ProcessMemory<'_> {
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        let ram = self.space.machine.ram();
        self.walk(address, buffer.len(), Access::Read, |at, offset, count| {
            ram.read(at, &mut buffer[offset..offset + count]);
        })
    }

    fn write(&self, address: GuestVirtAddr, bytes: &[u8]) -> Result<(), Errno> {
        let ram = self.space.machine.ram();
        self.walk(address, bytes.len(), Access::Write, |at, offset, count| {
            ram.write(at, &bytes[offset..offset + count]);
        })
    }
}
