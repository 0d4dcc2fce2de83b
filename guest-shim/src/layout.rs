//! Where the shim and its tables lie, in guest physical and in guest virtual memory.
//!
//! The shim's virtual window is the last GiB of the lower half: addresses that a user program may
//! well never see, reached by one page directory that all address spaces share. The direct map of
//! guest memory, through which ring-0 code edits page tables, is the first slot of the upper half.

/// First virtual address that a guest process cannot use; the shim's window starts here.
pub const SHIM_BASE: u64 = 0x7fff_c000_0000;
/// Page of an address space's call slots, once it has any: ring 3 may read and write it. It is no part of
/// what a process can map or see.
pub const CALL_SLOTS: u64 = SHIM_BASE - 0x20_0000;
/// Page of an address space that tells its process who it is, once it is looked at there: ring 3 may read it.
/// As [`CALL_SLOTS`] it is no part of what a process can map or see.
pub const IDENTITY: u64 = CALL_SLOTS + 0x1000;
/// End of a guest process's address space.
pub const USER_END: u64 = CALL_SLOTS;
/// Lowest address that a guest process may map, as Linux's default `vm.mmap_min_addr`.
pub const USER_START: u64 = 0x1_0000;
/// Virtual address of guest physical address 0 in the supervisor-only direct map.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;

/// Offsets of the shim's pages: each lies at this offset from [`SHIM_BASE`] in virtual memory, and
/// at this very address in guest physical memory. Page 0 stays unmapped.
pub mod page {
    /// Exception stubs and the page-table editor; supervisor only.
    pub const CODE: u64 = 0x1000;
    /// Where `syscall` lands: ring 3 may execute it.
    pub const TRAMPOLINE: u64 = 0x2000;
    /// Global descriptor table.
    pub const GDT: u64 = 0x3000;
    /// Interrupt descriptor table: 32 gates.
    pub const IDT: u64 = 0x4000;
    /// Where `syscall` lands on vCPUs of threads with a call slot: one trampoline for each slot, which
    /// ring 3 may execute.
    pub const SLOT_TRAMPOLINES: u64 = 0x3_0000;
    /// First page of the vCPUs' own areas, one page each.
    pub const VCPUS: u64 = 0x10_0000;
}

/// Most vCPUs in one VM: the areas take 16 MiB of guest physical memory, backed as they are used.
pub const MAX_VCPUS: u32 = 4096;

/// Guest physical addresses of tables that have no virtual address of their own.
pub mod table {
    /// PML4 of the VM without a process: the shim alone.
    pub const BOOT_PML4: u64 = 0x5000;
    /// PDPT of the boot root's last lower-half slot.
    pub const BOOT_PDPT: u64 = 0x6000;
    /// Page directory of the shim's window; shared by all roots.
    pub const SHIM_PD: u64 = 0x7000;
    /// Page table of the window's first 2 MiB; those of the vCPU areas follow.
    pub const SHIM_PTS: u64 = 0x8000;
    /// PDPT of the direct map; shared by all roots.
    pub const DIRECT_PDPT: u64 = 0x2_0000;
    /// Code page of the self-test, ring 3.
    pub const PROBE_CODE: u64 = 0x2_1000;
    /// First data page of the self-test.
    pub const PROBE_DATA: u64 = 0x2_2000;
    /// Second data page of the self-test.
    pub const PROBE_OTHER: u64 = 0x2_3000;
    /// PDPT, PD and PT of the self-test's mappings at [`super::PROBE_BASE`].
    pub const PROBE_TABLES: u64 = 0x2_4000;
}

/// Virtual address of the self-test's code; its data page follows.
pub const PROBE_BASE: u64 = 0x40_0000;

/// First guest physical address that the frame allocator may hand out, less the direct map's page
/// directories, which follow the vCPU areas.
pub const VCPU_AREAS_END: u64 = page::VCPUS + MAX_VCPUS as u64 * 4096;

/// Offsets within a vCPU's own page.
pub mod vcpu {
    /// Task state segment, with an I/O bitmap that opens only the system-call port.
    pub const TSS: u64 = 0;
    /// Bytes of the task state segment and its I/O bitmap, less one.
    pub const TSS_LIMIT: u64 = 104 + super::port::SYSTEM_CALL as u64 / 8 + 1;
    /// The ring-0 stack grows down from here.
    pub const STACK_TOP: u64 = 0x800;
    /// List of page-table edits: pairs of the entry's virtual address and its new value.
    pub const EDITS: u64 = 0x800;
    /// Most edits in one list.
    pub const MAX_EDITS: usize = 64;
}

/// A call slot: how a guest thread and a thread of the VMM hand a system call over and its result back
/// without an exit. Offsets within it; one cache line for each direction.
pub mod call_slot {
    /// Bytes of a slot.
    pub const SIZE: u64 = 128;
    /// Slots of one page.
    pub const COUNT: u32 = 32;
    /// A doubleword, one of [`NOT_POSTED`], [`POSTED`], [`WITHDRAWN`]. Whoever changes it from `POSTED`
    /// has the call.
    pub const POST: u64 = 0;
    /// Nothing is posted, or it was taken.
    pub const NOT_POSTED: u32 = 0;
    /// A call is to be taken.
    pub const POSTED: u32 = 1;
    /// The guest thread has waited long enough.
    pub const WITHDRAWN: u32 = 2;
    /// The call's number, a doubleword.
    pub const NUMBER: u64 = 8;
    /// Its six arguments.
    pub const ARGUMENTS: u64 = 16;
    /// What the call returns.
    pub const RESULT: u64 = 64;
    /// A doubleword: 0, [`ANSWERED`] or [`REFUSED`].
    pub const DONE: u64 = 72;
    /// The result is there.
    pub const ANSWERED: u32 = 1;
    /// The call must be made with an exit.
    pub const REFUSED: u32 = 2;
    /// A doubleword, not 0: somebody looks for posted calls.
    pub const ARMED: u64 = 76;
    /// What `getpid` returns, a doubleword; 0 for unknown.
    pub const PID: u64 = 80;
    /// What `gettid` returns, a doubleword; 0 for unknown.
    pub const TID: u64 = 84;
    /// How often the guest thread looks whether a call that was taken is done, a doubleword.
    pub const PATIENCE: u64 = 88;
}

/// Ports of the `out` instructions: the kinds of events.
pub mod port {
    /// A system call.
    pub const SYSTEM_CALL: u16 = 0x10;
    /// Page tables were edited, or the root was reloaded.
    pub const EDITED: u16 = 0x11;
    /// Exception `vector` is at `EXCEPTION + vector`, 32 of them.
    pub const EXCEPTION: u16 = 0x20;
}

/// Segment selectors; those of ring 3 are Linux's.
pub mod selector {
    /// Ring-0 code.
    pub const KERNEL_CODE: u16 = 0x10;
    /// Ring-0 data.
    pub const KERNEL_DATA: u16 = 0x18;
    /// Ring-3 data.
    pub const USER_DATA: u16 = 0x2b;
    /// Ring-3 64-bit code.
    pub const USER_CODE: u16 = 0x33;
    /// Task state.
    pub const TASK: u16 = 0x40;
}

/// Whether the processor pushes an error code for exception `vector`.
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
