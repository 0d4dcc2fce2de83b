//! Where things lie in an address space by default.

use vmm::addr::PAGE_SIZE;
use vmm::shim_layout::USER_END;

/// Addresses that a program's mappings are handed out from.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// One past the highest address of the stack.
    pub stack_top: u64,
    /// Mappings are placed below this.
    pub map_top: u64,
    /// Where a position-independent program is loaded.
    pub program: u64,
    /// Gap between a program's last byte and its heap.
    pub heap_gap: u64,
}

/// Room between the stack's lowest address and the mappings.
const STACK_GAP: u64 = 1 << 20;
/// As Linux: two thirds of the address space.
const PROGRAM_BASE: u64 = 0x5555_5555_4000;

impl Layout {
    /// A layout for a stack of at most `stack` bytes, randomized by `random` unless that is `None`
    /// (`ADDR_NO_RANDOMIZE`). Fewer bits than Linux uses: the guests are walled off by the VM.
    pub fn new(stack: u64, random: Option<[u64; 4]>) -> Self {
        let random = random.unwrap_or_default();
        let pages = |value: u64, bits: u32| (value & ((1 << bits) - 1)) * PAGE_SIZE;
        let stack_top = USER_END - PAGE_SIZE - pages(random[0], 20);
        Self {
            stack_top,
            map_top: stack_top - stack - STACK_GAP - pages(random[1], 24),
            program: PROGRAM_BASE + pages(random[2], 24),
            heap_gap: pages(random[3], 13),
        }
    }
}
