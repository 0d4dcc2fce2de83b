//! KVM.

use super::interrupt::{self, Interrupter};
use super::{Exit, Hypervisor, HypervisorError, HypervisorInfo, OFFERED_XCR0, Ring, Vcpu, VcpuSetup, Vm};
use crate::addr::GuestPhysAddr;
use crate::regs::Regs;
use guest_shim::layout::selector;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Msrs, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sync_regs, kvm_userspace_memory_region, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};
use std::io;
use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;

const DEVICE: &str = "/dev/kvm";
const CR0: u64 = 0x8005_0033;
const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 0x620;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_SCE_LME_LMA_NXE: u64 = 0xd01;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// `syscall` enters with the kernel's selectors, `sysretq` leaves with Linux's user selectors.
const STAR: u64 = ((selector::USER_CODE as u64 - 0x10) << 48) | ((selector::KERNEL_CODE as u64) << 32);
/// Flags that `syscall` clears: trap, interrupt, direction, nested task, alignment check.
const SFMASK: u64 = 0x4_4700;
/// A slot that is made and deleted to have the hypervisor drop its translations.
const FLUSH_SLOT: u32 = 1;
/// Far above any guest memory, and below every processor's physical address width.
const FLUSH_ADDRESS: u64 = 1 << 38;

/// Capabilities that nodes cannot do without, and the bits of the answer that are needed.
const NEEDED: &[(Cap, &str, i32)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", 1),
    (Cap::SyncMmu, "KVM_CAP_SYNC_MMU", 1),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", 1),
    (Cap::Xsave, "KVM_CAP_XSAVE", 1),
    (Cap::Xcrs, "KVM_CAP_XCRS", 1),
    (Cap::SyncRegs, "KVM_CAP_SYNC_REGS", (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS) as i32),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", 1),
];

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HypervisorError {
    move |error| HypervisorError::Failed { what, source: io::Error::from_raw_os_error(error.errno()) }
}

/// KVM of the running kernel.
pub struct KvmHypervisor {
    kvm: Kvm,
}

impl KvmHypervisor {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// If it is missing, may not be used, or lacks a capability.
    pub fn open() -> Result<Self, HypervisorError> {
        let kvm = Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => HypervisorError::Missing(DEVICE),
            libc::EACCES | libc::EPERM => HypervisorError::Denied(DEVICE),
            _ => failed("open /dev/kvm")(error),
        })?;
        let lacks = |cap: Cap, bits: i32| {
            // Where an answer is no set of bits it is a yes, which may be any number.
            let answer = kvm.check_extension_int(cap);
            if bits == 1 { answer <= 0 } else { answer & bits != bits }
        };
        if let Some(&(_, name, _)) = NEEDED.iter().find(|&&(cap, _, bits)| lacks(cap, bits)) {
            return Err(HypervisorError::Lacks(name));
        }
        Ok(Self { kvm })
    }
}

/// The KVM module that serves this machine, and what that means.
fn module() -> (&'static str, &'static str) {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    // Leaf 1 is there on every processor of 64 bits.
    let nested = std::arch::x86_64::__cpuid(1).ecx & HYPERVISOR_PRESENT != 0;
    let (inside, outside) = match ["kvm_pvm", "kvm_intel", "kvm_amd"]
        .into_iter()
        .find(|module| std::path::Path::new("/sys/module").join(module).exists())
    {
        Some("kvm_pvm") => return ("kvm_pvm", "nested, by PVM: user code at full speed, system calls cost more"),
        Some("kvm_intel") => (("kvm_intel", "nested, by VMX"), ("kvm_intel", "bare metal, by VMX")),
        Some(_) => (("kvm_amd", "nested, by SVM"), ("kvm_amd", "bare metal, by SVM")),
        None => return ("kvm", "unknown: no module of it is shown"),
    };
    if nested { inside } else { outside }
}

impl Hypervisor for KvmHypervisor {
    fn info(&self) -> HypervisorInfo {
        let (module, kind) = module();
        HypervisorInfo {
            name: format!("KVM ({module})"),
            kind,
            capabilities: NEEDED.iter().map(|&(_, name, _)| name).collect(),
            max_vcpus: self.kvm.get_max_vcpus() as u32,
        }
    }

    fn create_vm(&self) -> Result<Box<dyn Vm>, HypervisorError> {
        let vm = self.kvm.create_vm().map_err(failed("create a VM"))?;
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("tell its CPU features"))?;
        let xsave_size = self.kvm.check_extension_int(Cap::Xsave2).max(size_of::<kvm_xsave>() as i32) as usize;
        Ok(Box::new(KvmVm { vm, cpuid, xsave_size, slot: Mutex::new(None) }))
    }
}

struct KvmVm {
    vm: VmFd,
    cpuid: CpuId,
    xsave_size: usize,
    slot: Mutex<Option<kvm_userspace_memory_region>>,
}

impl KvmVm {
    fn set_log(&self, flags: u32) -> Result<(), HypervisorError> {
        let mut slot = self.slot.lock().expect("no panic while the slot is locked");
        let Some(slot) = slot.as_mut() else {
            return Err(HypervisorError::Lacks("guest memory"));
        };
        slot.flags = flags;
        // SAFETY: the same memory as in `map_memory`, whose caller keeps it mapped.
        unsafe { self.vm.set_user_memory_region(*slot) }.map_err(failed("switch the dirty log"))
    }
}

impl Vm for KvmVm {
    unsafe fn map_memory(&self, host: *mut u8, bytes: u64) -> Result<(), HypervisorError> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: bytes,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller keeps the memory mapped for as long as the VM exists.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("map guest memory"))?;
        *self.slot.lock().expect("no panic while the slot is locked") = Some(region);
        Ok(())
    }

    fn create_vcpu(&self, index: u32, setup: &VcpuSetup) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let fd = self.vm.create_vcpu(u64::from(index)).map_err(failed("create a vCPU"))?;
        let mut fd = fd;
        let synced = &raw const *fd.sync_regs_mut();
        let mut vcpu = KvmVcpu { fd, synced, interrupter: Interrupter::default(), xsave_size: self.xsave_size };
        vcpu.set_up(setup, &self.cpuid)?;
        Ok(Box::new(vcpu))
    }

    fn forget_translations(&self) -> Result<(), HypervisorError> {
        // Deleting any slot makes KVM drop all shadow pages, whatever they were made from.
        let page = PageOfHost::new().map_err(|source| HypervisorError::Failed { what: "map a page", source })?;
        let mut region = kvm_userspace_memory_region {
            slot: FLUSH_SLOT,
            flags: 0,
            guest_phys_addr: FLUSH_ADDRESS,
            memory_size: 4096,
            userspace_addr: page.0 as u64,
        };
        let _one_at_a_time = self.slot.lock().expect("no panic while the slot is locked");
        // SAFETY: the page lives until the slot is deleted below; no guest maps its address.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("make a slot"))?;
        region.memory_size = 0;
        // SAFETY: deletes the slot.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("delete a slot"))
    }

    fn start_dirty_log(&self) -> Result<(), HypervisorError> {
        self.set_log(KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn stop_dirty_log(&self) -> Result<(), HypervisorError> {
        self.set_log(0)
    }

    fn read_dirty_log(&self) -> Result<Vec<u64>, HypervisorError> {
        let slot = *self.slot.lock().expect("no panic while the slot is locked");
        let slot = slot.ok_or(HypervisorError::Lacks("guest memory"))?;
        self.vm.get_dirty_log(0, slot.memory_size as usize).map_err(failed("read the dirty log"))
    }
}

/// One page of this process, for the slot that is made only to be deleted.
struct PageOfHost(*mut libc::c_void);

impl PageOfHost {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(page)) }
    }
}

impl Drop for PageOfHost {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

struct KvmVcpu {
    fd: VcpuFd,
    /// The registers in the run page of `fd`.
    synced: *const kvm_sync_regs,
    interrupter: Interrupter,
    xsave_size: usize,
}

// SAFETY: the run page that `fd` maps is used only through `&mut self` and, for its
// `immediate_exit` byte, by the signal handler of the thread that is bound to it.
unsafe impl Send for KvmVcpu {}

// The registers are shown in place.
const _: () = {
    assert!(size_of::<Regs>() == size_of::<kvm_regs>());
    assert!(offset_of!(Regs, rax) == offset_of!(kvm_regs, rax));
    assert!(offset_of!(Regs, rsp) == offset_of!(kvm_regs, rsp));
    assert!(offset_of!(Regs, rsi) == offset_of!(kvm_regs, rsi));
    assert!(offset_of!(Regs, r8) == offset_of!(kvm_regs, r8));
    assert!(offset_of!(Regs, r15) == offset_of!(kvm_regs, r15));
    assert!(offset_of!(Regs, rip) == offset_of!(kvm_regs, rip));
    assert!(offset_of!(Regs, rflags) == offset_of!(kvm_regs, rflags));
};

fn segment(selector: u16, kind: u8, dpl: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Types of segments: accessed code that may be read, accessed data that may be written.
const CODE: u8 = 11;
const DATA: u8 = 3;

impl KvmVcpu {
    fn set_up(&mut self, setup: &VcpuSetup, cpuid: &CpuId) -> Result<(), HypervisorError> {
        self.fd.set_cpuid2(cpuid).map_err(failed("set CPU features"))?;
        let entry = |function: u32, index: u32| {
            cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index)
        };
        let has_xsave = entry(1, 0).is_some_and(|entry| entry.ecx & (1 << 26) != 0);
        let has_fsgsbase = entry(7, 0).is_some_and(|entry| entry.ebx & 1 != 0);

        let mut sregs = self.fd.get_sregs().map_err(failed("read registers"))?;
        sregs.cr0 = CR0;
        sregs.cr3 = setup.root.raw();
        sregs.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT
            | if has_xsave { CR4_OSXSAVE } else { 0 }
            | if has_fsgsbase { CR4_FSGSBASE } else { 0 };
        sregs.efer = EFER_SCE_LME_LMA_NXE;
        let data = segment(selector::USER_DATA, DATA, 3, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data);
        sregs.cs = segment(selector::KERNEL_CODE, CODE, 0, true);
        sregs.ss = segment(selector::KERNEL_DATA, DATA, 0, false);
        (sregs.gdt.base, sregs.gdt.limit) = setup.gdt;
        (sregs.idt.base, sregs.idt.limit) = setup.idt;
        sregs.tr = kvm_segment {
            base: setup.tss.0,
            limit: u32::from(setup.tss.1),
            selector: selector::TASK,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        self.fd.set_sregs(&sregs).map_err(failed("set system registers"))?;

        if has_xsave {
            let supported = entry(0xd, 0).map_or(3, |entry| u64::from(entry.eax) | u64::from(entry.edx) << 32);
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: supported & OFFERED_XCR0, ..Default::default() };
            self.fd.set_xcrs(&xcrs).map_err(failed("enable vector state"))?;
        }
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let msrs = Msrs::from_entries(&[msr(MSR_STAR, STAR), msr(MSR_LSTAR, setup.syscall), msr(MSR_SFMASK, SFMASK)])
            .expect("three entries fit");
        if self.fd.set_msrs(&msrs).map_err(failed("set the system-call entry"))? != 3 {
            return Err(HypervisorError::Lacks("the system-call MSRs"));
        }
        self.fd.set_regs(&kvm_regs { rflags: 2, ..Default::default() }).map_err(failed("set registers"))?;
        self.zero_tsc_offset();
        self.fd.set_sync_valid_reg(SyncReg::Register);
        self.fd.set_sync_valid_reg(SyncReg::SystemRegister);
        // From here on the run page is the truth: fill it.
        self.fd.sync_regs_mut().regs = self.fd.get_regs().map_err(failed("read registers"))?;
        self.fd.sync_regs_mut().sregs = self.fd.get_sregs().map_err(failed("read registers"))?;
        Ok(())
    }

    /// Makes the guest's time-stamp counter the host's, where the hypervisor offsets it. Where it
    /// cannot, the self-test finds the difference and the clock is read by system calls.
    fn zero_tsc_offset(&self) {
        let zero = 0u64;
        let attribute = kvm_bindings::kvm_device_attr {
            group: kvm_bindings::KVM_VCPU_TSC_CTRL,
            attr: u64::from(kvm_bindings::KVM_VCPU_TSC_OFFSET),
            addr: &raw const zero as u64,
            flags: 0,
        };
        // SAFETY: the attribute names a quadword that lives through the call. A hypervisor without
        // the attribute answers ENXIO and changes nothing.
        let done = unsafe { libc::ioctl(fd(&self.fd), KVM_SET_DEVICE_ATTR, &raw const attribute) };
        if done < 0 {
            tracing::debug!("the hypervisor offers no offset of the time-stamp counter");
        }
    }

    /// Drops an exception of which the delivery was broken off, for the registers may be changed
    /// before the next run: the instruction that caused it is executed again.
    fn drop_half_delivered(&mut self) -> Result<(), HypervisorError> {
        let mut events = self.fd.get_vcpu_events().map_err(failed("read pending events"))?;
        if events.exception.injected == 0 && events.exception.pending == 0 {
            return Ok(());
        }
        (events.exception.injected, events.exception.pending) = (0, 0);
        self.fd.set_vcpu_events(&events).map_err(failed("drop a pending event"))
    }

    /// Has KVM finish an `in` now, or one batch of a repeated one, and takes the registers back to before
    /// it: left open, it would be finished with the next run, over the registers that are set by then.
    fn abandon_port_read(&mut self) -> Result<(), HypervisorError> {
        let before = self.synced().regs;
        self.fd.set_kvm_immediate_exit(1);
        let finished = self.fd.run().map(drop);
        self.fd.sync_regs_mut().regs = before;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        match finished {
            Err(error) if error.errno() == libc::EINTR => self.drop_half_delivered(),
            Err(error) => Err(failed("finish a read of a port")(error)),
            Ok(()) => Err(HypervisorError::Failed {
                what: "finish a read of a port",
                source: io::Error::other("the vCPU ran on"),
            }),
        }
    }

    fn synced(&self) -> &kvm_sync_regs {
        // SAFETY: the pointer is into the run page of `fd`, which is mapped for as long as `fd`
        // exists and which the kernel writes only in `run`, which takes `&mut self`.
        unsafe { &*self.synced }
    }

    fn immediate_exit(&mut self) -> *const AtomicU8 {
        (&raw mut self.fd.get_kvm_run().immediate_exit).cast()
    }
}

impl Vcpu for KvmVcpu {
    fn claim(&mut self) {
        let byte = self.immediate_exit();
        if !self.interrupter.is_bound(byte) {
            // SAFETY: the byte is in the run page of `fd`; `drop` unbinds, and a vCPU that moves to
            // another thread binds there, which leaves the old thread's signals harmless writes to
            // a page that is mapped for as long as the vCPU exists.
            unsafe { self.interrupter.bind(byte) };
        }
    }

    fn run(&mut self) -> Result<Exit, HypervisorError> {
        self.claim();
        // Cleared before the interrupter is asked: one that comes between sets it again. With the
        // byte set the call still finishes the `out` that the last exit was for.
        self.fd.set_kvm_immediate_exit(0);
        if self.interrupter.take() {
            self.fd.set_kvm_immediate_exit(1);
        }
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, _)) => Exit::Port(port),
            Ok(VcpuExit::IoIn(port, data)) => {
                data.fill(0);
                Exit::PortRead(port)
            }
            Ok(VcpuExit::MemoryFault { .. }) => Exit::Unbacked,
            Ok(VcpuExit::Shutdown) => Exit::Died("triple fault".into()),
            Ok(other) => Exit::Died(format!("{other:?}")),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                libc::EFAULT | libc::ENOMEM | libc::EHWPOISON => Exit::Unbacked,
                _ => return Err(failed("run a vCPU")(error)),
            },
        };
        // An interrupt that comes with another exit is not lost: `take` is asked at the next run.
        if exit == Exit::Interrupted && self.interrupter.is_pending() {
            self.interrupter.take();
        }
        if matches!(exit, Exit::PortRead(_)) {
            self.abandon_port_read()?;
        }
        if matches!(exit, Exit::Interrupted | Exit::Unbacked) {
            self.drop_half_delivered()?;
        }
        Ok(exit)
    }

    fn regs(&self) -> &Regs {
        // SAFETY: `Regs` has the layout of `kvm_regs`, as asserted above.
        unsafe { &*(&raw const self.synced().regs).cast() }
    }

    fn regs_mut(&mut self) -> &mut Regs {
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        // SAFETY: `Regs` has the layout of `kvm_regs`, as asserted above.
        unsafe { &mut *(&raw mut self.fd.sync_regs_mut().regs).cast() }
    }

    fn code_selector(&self) -> u16 {
        self.synced().sregs.cs.selector
    }

    fn ring(&self) -> Ring {
        if self.synced().sregs.cs.selector & 3 == 3 { Ring::User } else { Ring::Kernel }
    }

    fn set_ring(&mut self, ring: Ring) {
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
        let sregs = &mut self.fd.sync_regs_mut().sregs;
        (sregs.cs, sregs.ss) = match ring {
            Ring::Kernel => {
                (segment(selector::KERNEL_CODE, CODE, 0, true), segment(selector::KERNEL_DATA, DATA, 0, false))
            }
            Ring::User => (segment(selector::USER_CODE, CODE, 3, true), segment(selector::USER_DATA, DATA, 3, false)),
        };
    }

    fn fault_address(&self) -> u64 {
        self.synced().sregs.cr2
    }

    fn root(&self) -> GuestPhysAddr {
        GuestPhysAddr(self.synced().sregs.cr3)
    }

    fn set_root(&mut self, root: GuestPhysAddr) {
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
        self.fd.sync_regs_mut().sregs.cr3 = root.raw();
    }

    fn set_syscall_entry(&mut self, address: u64) -> Result<(), HypervisorError> {
        let entry = kvm_msr_entry { index: MSR_LSTAR, data: address, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
        match self.fd.set_msrs(&msrs).map_err(failed("set the system-call entry"))? {
            1 => Ok(()),
            _ => Err(HypervisorError::Lacks("the system-call MSRs")),
        }
    }

    fn segment_bases(&self) -> (u64, u64) {
        let sregs = &self.synced().sregs;
        (sregs.fs.base, sregs.gs.base)
    }

    fn set_segment_bases(&mut self, fs: u64, gs: u64) {
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
        let data = segment(selector::USER_DATA, DATA, 3, false);
        let sregs = &mut self.fd.sync_regs_mut().sregs;
        sregs.fs = kvm_segment { base: fs, ..data };
        sregs.gs = kvm_segment { base: gs, ..data };
    }

    fn fpu(&self) -> Result<Vec<u8>, HypervisorError> {
        let mut state = vec![0; self.xsave_size];
        // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 tells, which is what the ioctl writes.
        let done = unsafe { libc::ioctl(fd(&self.fd), KVM_GET_XSAVE2, state.as_mut_ptr()) };
        let done = if done < 0 && self.xsave_size == size_of::<kvm_xsave>() {
            // SAFETY: the buffer is a `kvm_xsave`.
            unsafe { libc::ioctl(fd(&self.fd), KVM_GET_XSAVE, state.as_mut_ptr()) }
        } else {
            done
        };
        if done < 0 {
            return Err(HypervisorError::Failed { what: "read vector state", source: io::Error::last_os_error() });
        }
        Ok(state)
    }

    fn set_fpu(&mut self, state: &[u8]) -> Result<(), HypervisorError> {
        let mut buffer = vec![0; self.xsave_size];
        let length = state.len().min(buffer.len());
        buffer[..length].copy_from_slice(&state[..length]);
        // SAFETY: the buffer has the size that the ioctl reads.
        if unsafe { libc::ioctl(fd(&self.fd), KVM_SET_XSAVE, buffer.as_ptr()) } < 0 {
            return Err(HypervisorError::Failed { what: "set vector state", source: io::Error::last_os_error() });
        }
        Ok(())
    }

    fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }
}

const KVM_GET_XSAVE2: libc::c_ulong = 0x9000_aecf;
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const KVM_GET_XSAVE: libc::c_ulong = 0x9000_aea4;
const KVM_SET_XSAVE: libc::c_ulong = 0x5000_aea5;

fn fd(vcpu: &VcpuFd) -> libc::c_int {
    use std::os::fd::AsRawFd;
    vcpu.as_raw_fd()
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        interrupt::unbind(self.immediate_exit());
    }
}
