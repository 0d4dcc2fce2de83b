//! Entries of x86-64 page tables.

use crate::addr::{Frame, GuestPhysAddr};

/// The entry is valid.
pub const PRESENT: u64 = 1;
/// Writes are allowed.
pub const WRITE: u64 = 1 << 1;
/// Ring 3 is allowed.
pub const USER: u64 = 1 << 2;
/// Set by the processor at a write.
pub const DIRTY: u64 = 1 << 6;
/// In a page directory: a 2 MiB page.
pub const LARGE: u64 = 1 << 7;
/// For the VMM: the entry has a frame, though it may be absent (`PROT_NONE`).
pub const HAS_FRAME: u64 = 1 << 9;
/// For the VMM: the entry has a frame and is absent, for what belongs there is still to come.
pub const OWED: u64 = 1 << 10;
/// Instruction fetches are refused.
pub const NO_EXECUTE: u64 = 1 << 63;
/// The physical address in an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The frame that an entry points to.
pub fn frame(entry: u64) -> Frame {
    Frame::containing(GuestPhysAddr(entry & ADDRESS))
}

/// Index of the entry for `address` in a table of this level: 3 for the PML4, 0 for a page table.
pub fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * level) & 511
}

/// Bytes that one entry of a table of this level spans.
pub fn span(level: u32) -> u64 {
    1 << (12 + 9 * level)
}
