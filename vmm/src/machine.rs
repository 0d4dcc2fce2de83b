//! A node's virtual machine: guest memory with the shim in it, and vCPUs to run guest threads on.

use crate::addr::{Frame, GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::dirty::Trackers;
use crate::entry::{EntryMode, Paging};
use crate::frames::FrameAllocator;
use crate::hypervisor::{Hypervisor, HypervisorError, Vcpu, VcpuSetup, Vm};
use crate::ram::{Backing, GuestRam};
use crate::table_frames::TableFrames;
use crate::user_cpu::UserCpu;
use crate::windows::WindowFrames;
use crate::{entry, paging};
use guest_shim::layout::{self, page, selector, table, vcpu};
use guest_shim::{code, slot_code};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Least memory of a node.
pub const MIN_MEMORY: u64 = 64 << 20;
/// Most memory of a node: frames are numbered in 32 bits and the flush slot is above.
pub const MAX_MEMORY: u64 = 256 << 30;

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The hypervisor refused.
    #[error("cannot make the virtual machine")]
    Hypervisor(#[from] HypervisorError),
    /// The memory cannot be reserved.
    #[error("cannot reserve {bytes} bytes of guest memory")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The size is out of range.
    #[error("a node has from {} MiB to {} GiB of memory", MIN_MEMORY >> 20, MAX_MEMORY >> 30)]
    Size,
    /// All vCPUs are made.
    #[error("the node has all the {0} vCPUs that it can have")]
    TooManyVcpus(u32),
    /// No host thread for a vCPU.
    #[error("the host has no thread for a vCPU")]
    Thread {
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The self-test saw what it cannot explain.
    #[error("the virtual machine's self-test failed: {0}")]
    SelfTest(String),
}

/// A virtual machine with the shim installed.
pub struct Machine {
    vm: Box<dyn Vm>,
    ram: Arc<GuestRam>,
    frames: FrameAllocator,
    tables: TableFrames,
    windows: WindowFrames,
    trackers: Trackers,
    vcpus: AtomicU32,
    max_vcpus: u32,
    modes: OnceLock<entry::Modes>,
}

impl Machine {
    /// Makes a machine with `memory` bytes of RAM, rounded up to 2 MiB, and tests what it does.
    ///
    /// # Errors
    /// If the hypervisor or the host refuses, or the self-test fails.
    pub fn new(hypervisor: &dyn Hypervisor, memory: u64) -> Result<Arc<Self>, MachineError> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&memory) {
            return Err(MachineError::Size);
        }
        let memory = memory.next_multiple_of(LARGE_PAGE_SIZE);
        let vm = hypervisor.create_vm()?;
        let ram = GuestRam::new(memory, Backing::for_this_host())
            .map_err(|source| MachineError::Memory { bytes: memory, source })?;
        let ram = Arc::new(ram);
        install_shim(&ram);
        // SAFETY: the memory is unmapped when `ram` is dropped, which `Machine` orders after `vm`;
        // vCPUs hold the machine. No reference into it is ever made.
        unsafe { vm.map_memory(ram.host_address(), memory) }?;
        let frames = FrameAllocator::new(ram.clone(), first_free(memory));
        let machine = Arc::new(Self {
            vm,
            frames,
            tables: TableFrames::default(),
            windows: WindowFrames::default(),
            trackers: Trackers::default(),
            ram,
            vcpus: AtomicU32::new(0),
            max_vcpus: hypervisor.info().max_vcpus.min(layout::MAX_VCPUS),
            modes: OnceLock::new(),
        });
        let modes = entry::self_test(&machine)?;
        let _ = machine.modes.set(modes);
        Ok(machine)
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Who has which frame.
    pub fn frames(&self) -> &FrameAllocator {
        &self.frames
    }

    /// Frames of page tables.
    pub fn tables(&self) -> &TableFrames {
        &self.tables
    }

    pub(crate) fn trackers(&self) -> &Trackers {
        &self.trackers
    }

    pub(crate) fn windows(&self) -> &WindowFrames {
        &self.windows
    }

    /// Where system calls land.
    pub fn entry_mode(&self) -> EntryMode {
        self.modes.get().map_or(EntryMode::Ring0, |modes| modes.entry)
    }

    /// Who translates guest addresses. Until it is known, what is right on both.
    pub fn paging(&self) -> Paging {
        self.modes.get().map_or(Paging::Shadow, |modes| modes.paging)
    }

    /// Whether an edit of page tables must end with a load of the root.
    pub(crate) fn edits_need_reload(&self) -> bool {
        self.modes.get().is_none_or(|modes| modes.edits_need_reload)
    }

    /// Whether the guest's time-stamp counter is the host's.
    pub fn shares_tsc(&self) -> bool {
        self.modes.get().is_some_and(|modes| modes.shares_tsc)
    }

    /// What the self-test found; until it is done, what is assumed.
    pub fn modes(&self) -> entry::Modes {
        entry::Modes {
            entry: self.entry_mode(),
            paging: self.paging(),
            edits_need_reload: self.edits_need_reload(),
            shares_tsc: self.shares_tsc(),
        }
    }

    /// The hypervisor's VM.
    pub fn vm(&self) -> &dyn Vm {
        &*self.vm
    }

    /// vCPUs made so far.
    pub fn vcpu_count(&self) -> u32 {
        self.vcpus.load(Ordering::Relaxed)
    }

    /// Whether tables with this root lead to the shim's window and to the direct map, as all roots do:
    /// a vCPU without them cannot even tell of a fault. For the log of one that has died.
    pub fn leads_to_shim(&self, root: GuestPhysAddr) -> bool {
        let step = |table: u64, slot: u64| {
            let whole = table + PAGE_SIZE <= self.ram.size();
            let entry = if whole { self.ram.load(GuestPhysAddr(table + slot * 8)) } else { 0 };
            (entry & paging::PRESENT != 0).then_some(entry & paging::ADDRESS)
        };
        let root = root.raw() & paging::ADDRESS;
        let window = step(root, paging::index(layout::SHIM_BASE, 3))
            .and_then(|pointers| step(pointers, paging::index(layout::SHIM_BASE, 2)));
        window == Some(table::SHIM_PD) && step(root, paging::index(layout::DIRECT_MAP, 3)) == Some(table::DIRECT_PDPT)
    }

    /// Makes a vCPU for guest threads.
    ///
    /// # Errors
    /// If there are too many, or the hypervisor refuses.
    pub fn create_cpu(self: &Arc<Self>) -> Result<UserCpu, MachineError> {
        let (vcpu, index) = self.create_vcpu()?;
        Ok(UserCpu::new(self.clone(), vcpu, area(index)))
    }

    /// Makes a bare vCPU, in ring 0 on the boot root.
    pub(crate) fn create_vcpu(&self) -> Result<(Box<dyn Vcpu>, u32), MachineError> {
        let index = self
            .vcpus
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < self.max_vcpus).then_some(count + 1))
            .map_err(|_| MachineError::TooManyVcpus(self.max_vcpus))?;
        let virt = layout::SHIM_BASE;
        let area = area(index);
        // Absent to present: no translation to flush.
        let entries = GuestPhysAddr(table::SHIM_PTS);
        self.ram.store(entries + area.raw() / PAGE_SIZE * 8, area.raw() | paging::PRESENT | paging::WRITE);
        // Until it is known the port is open, for the self-test.
        write_tss(&self.ram, area, self.modes.get().is_none_or(|modes| modes.entry == EntryMode::Ring3));
        let setup = VcpuSetup {
            root: GuestPhysAddr(table::BOOT_PML4),
            gdt: (virt + page::GDT, 10 * 8 - 1),
            idt: (virt + page::IDT, 32 * 16 - 1),
            tss: (virt + area.raw() + vcpu::TSS, vcpu::TSS_LIMIT as u16),
            syscall: virt + page::TRAMPOLINE,
        };
        Ok((self.vm.create_vcpu(index, &setup)?, index))
    }
}

/// A vCPU's own page, in guest physical memory and, from the shim's base, in virtual memory.
pub(crate) fn area(index: u32) -> GuestPhysAddr {
    GuestPhysAddr(page::VCPUS + u64::from(index) * PAGE_SIZE)
}

/// Page directories of the direct map, one for each GiB, follow the vCPU areas.
fn direct_map_directories(memory: u64) -> u64 {
    memory.div_ceil(1 << 30)
}

fn first_free(memory: u64) -> GuestPhysAddr {
    GuestPhysAddr(layout::VCPU_AREAS_END + direct_map_directories(memory) * PAGE_SIZE)
}

fn write_tss(ram: &GuestRam, area: GuestPhysAddr, calls_in_ring_3: bool) {
    let tss = area + vcpu::TSS;
    let mut bytes = [0; vcpu::TSS_LIMIT as usize + 1];
    let stack = layout::SHIM_BASE + area.raw() + vcpu::STACK_TOP;
    bytes[4..12].copy_from_slice(&stack.to_le_bytes());
    bytes[102..104].copy_from_slice(&104u16.to_le_bytes());
    // All ports closed, but for one where `syscall` stays in ring 3: the trampoline's `out` is there.
    bytes[104..].fill(0xff);
    if calls_in_ring_3 {
        bytes[104 + usize::from(layout::port::SYSTEM_CALL) / 8] &= !(1 << (layout::port::SYSTEM_CALL % 8));
    }
    ram.write(tss, &bytes);
}

/// Writes what all roots share: code, descriptor tables, the window's and the direct map's tables.
fn install_shim(ram: &GuestRam) {
    use paging::{LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
    ram.write(GuestPhysAddr(page::CODE), code::shim());
    ram.write(GuestPhysAddr(page::TRAMPOLINE), code::trampoline());
    ram.write(GuestPhysAddr(page::SLOT_TRAMPOLINES), slot_code::trampolines());
    ram.write(GuestPhysAddr(table::PROBE_CODE), code::probe());

    // The limit keeps the task descriptor at 0x40 within the table; its busy bit is set, as after LTR.
    let tss = layout::SHIM_BASE + page::VCPUS + vcpu::TSS;
    let gdt: [u64; 10] = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        // 32-bit code, which is not run; `sysretq` counts on its place alone.
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0,
        vcpu::TSS_LIMIT | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56,
        tss >> 32,
    ];
    for (i, entry) in gdt.into_iter().enumerate() {
        ram.store(GuestPhysAddr(page::GDT + i as u64 * 8), entry);
    }
    for vector in 0..32u64 {
        let stub = layout::SHIM_BASE + page::CODE + vector * code::STUB_SIZE;
        // Breakpoint and overflow are the gates that a program may enter by instruction.
        let level: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
        let gate = stub & 0xffff
            | u64::from(selector::KERNEL_CODE) << 16
            | (0x8e | level << 5) << 40
            | (stub >> 16 & 0xffff) << 48;
        ram.store(GuestPhysAddr(page::IDT + vector * 16), gate);
        ram.store(GuestPhysAddr(page::IDT + vector * 16 + 8), stub >> 32);
    }

    // The window: its tables are shared, and user-accessible down to the trampoline's own entry.
    let window = PRESENT | WRITE | USER;
    ram.store(GuestPhysAddr(table::BOOT_PML4 + 255 * 8), table::BOOT_PDPT | window);
    ram.store(GuestPhysAddr(table::BOOT_PDPT + 511 * 8), table::SHIM_PD | window);
    let page_tables = layout::VCPU_AREAS_END.div_ceil(LARGE_PAGE_SIZE);
    for i in 0..page_tables {
        ram.store(GuestPhysAddr(table::SHIM_PD + i * 8), (table::SHIM_PTS + i * PAGE_SIZE) | window);
    }
    let entry = |offset: u64, flags: u64| {
        ram.store(GuestPhysAddr(table::SHIM_PTS + offset / PAGE_SIZE * 8), offset | flags);
    };
    entry(page::CODE, PRESENT);
    entry(page::TRAMPOLINE, PRESENT | USER);
    for i in 0..slot_code::PAGES {
        entry(page::SLOT_TRAMPOLINES + i * PAGE_SIZE, PRESENT | USER);
    }
    entry(page::GDT, PRESENT | WRITE | NO_EXECUTE);
    entry(page::IDT, PRESENT | WRITE | NO_EXECUTE);

    // The direct map, for the editor.
    ram.store(GuestPhysAddr(table::BOOT_PML4 + 256 * 8), table::DIRECT_PDPT | PRESENT | WRITE);
    for gib in 0..direct_map_directories(ram.size()) {
        let directory = layout::VCPU_AREAS_END + gib * PAGE_SIZE;
        ram.store(GuestPhysAddr(table::DIRECT_PDPT + gib * 8), directory | PRESENT | WRITE);
        for i in 0..512 {
            let address = (gib << 30) + i * LARGE_PAGE_SIZE;
            if address < ram.size() {
                let flags = PRESENT | WRITE | LARGE | NO_EXECUTE;
                ram.store(GuestPhysAddr(directory + i * 8), address | flags);
            }
        }
    }
}

/// Frame of the page directory that every root's last lower-half slot points to in its last entry.
pub fn shim_directory() -> Frame {
    Frame::containing(GuestPhysAddr(table::SHIM_PD))
}

/// Frame of the PDPT of the direct map, for the first upper-half slot of every root.
pub fn direct_map_table() -> Frame {
    Frame::containing(GuestPhysAddr(table::DIRECT_PDPT))
}

const _: () = {
    // Page tables of the window lie between their start and the direct map's PDPT.
    assert!(table::SHIM_PTS + layout::VCPU_AREAS_END.div_ceil(LARGE_PAGE_SIZE) * PAGE_SIZE <= table::DIRECT_PDPT);
    assert!(layout::VCPU_AREAS_END.div_ceil(LARGE_PAGE_SIZE) <= 512);
    assert!(table::PROBE_TABLES + 3 * PAGE_SIZE <= page::SLOT_TRAMPOLINES);
    assert!(page::SLOT_TRAMPOLINES + slot_code::PAGES * PAGE_SIZE <= page::VCPUS);
    assert!(MAX_MEMORY >> 30 <= 512);
};
