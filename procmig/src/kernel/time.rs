//! The clocks of the guests that have one home, and the pages from which they read them.

use super::KernelError;
use crate::mm::object::{PageObject, Source};
use crate::vdso;
use crate::vdso::clock::Clock;
use crate::vdso::distance::Distance;
use crate::vdso::page::TimePage;
use std::ptr::NonNull;
use std::sync::Arc;
use vmm::addr::{GuestPhysAddr, PAGE_SIZE};
use vmm::machine::Machine;

/// Time as a home's guests have it.
#[derive(Debug)]
pub struct Time {
    /// Their clocks.
    pub clock: Clock,
    /// Time page and vDSO, mapped by each of them.
    pub vdso: Arc<PageObject>,
}

impl Time {
    /// That of this host, or of another whose clocks are so far from this one's.
    ///
    /// # Errors
    /// [`KernelError::Memory`]
    pub fn new(machine: &Arc<Machine>, distance: Option<Distance>) -> Result<Self, KernelError> {
        let object = PageObject::new(machine.clone(), Source::Zeros);
        let time_page = machine.frames().allocate().map_err(|_| KernelError::Memory)?;
        object.insert(0, time_page);
        for (index, chunk) in (1..).zip(vdso::IMAGE.chunks(PAGE_SIZE as usize)) {
            let frame = machine.frames().allocate().map_err(|_| KernelError::Memory)?;
            machine.ram().write(frame.address(), chunk);
            object.insert(index, frame);
        }
        let page = host_address(machine, time_page.address()).cast::<TimePage>();
        let usable = machine.shares_tsc() && vdso::clock::tsc_is_usable();
        // SAFETY: the frame is the object's, which is kept as long as the clock; processes map it without the right
        // to write.
        let clock = unsafe {
            match distance {
                None => Clock::new(page, None, usable),
                Some(distance) => Clock::of_home(page, usable, distance),
            }
        };
        Ok(Self { clock, vdso: Arc::new(object) })
    }
}

/// Where a guest physical address lies in this process.
fn host_address(machine: &Machine, at: GuestPhysAddr) -> NonNull<u8> {
    let base = NonNull::new(machine.ram().host_address()).expect("a mapping is not at address 0");
    // SAFETY: the address is of a frame, which lies within the mapping.
    unsafe { base.add(at.raw() as usize) }
}
