//! The page of an address space's call slots: beyond what its process can map or see.

use super::space::AddressSpace;
use vmm::addr::Frame;
use vmm::frames::AtLimit;
use vmm::paging::{NO_EXECUTE, PRESENT, USER, WRITE};
use vmm::shim_layout::{CALL_SLOTS, call_slot};

/// Slots that are given to threads.
#[derive(Debug)]
pub(super) struct SlotPage {
    pub(super) frame: Frame,
    /// A bit each.
    taken: u32,
}

impl AddressSpace {
    /// A slot for a thread, to be given back: its page's frame, which lasts as long as the address space, and
    /// its number. `None` if there is none left, or no memory.
    pub fn take_call_slot(&self) -> Option<(Frame, u32)> {
        const { assert!(call_slot::COUNT == u32::BITS) };
        let mut inner = self.lock();
        if inner.slots.is_none() {
            let frames = self.machine.frames();
            let frame = frames.allocate_for(self.account, AtLimit::Refuse).ok()?;
            let entry = frame.address().raw() | PRESENT | WRITE | USER | NO_EXECUTE;
            if !inner.tables.fill(CALL_SLOTS, &[entry]).is_ok_and(|written| written == [true]) {
                frames.release(frame);
                return None;
            }
            inner.slots = Some(SlotPage { frame, taken: 0 });
        }
        let page = inner.slots.as_mut()?;
        let index = page.taken.trailing_ones();
        if index == call_slot::COUNT {
            return None;
        }
        page.taken |= 1 << index;
        Some((page.frame, index))
    }

    /// Gives a slot back.
    pub fn give_call_slot(&self, index: u32) {
        if let Some(page) = &mut self.lock().slots {
            page.taken &= !(1 << index);
        }
    }
}
