//! The seam to a hypervisor. Nothing above it names one.
//!
//! A backend offers a VM with one slot of memory and vCPUs that run until something happens. The
//! guest's events are `out` instructions of the shim, so a port number is all that an exit tells.

mod interrupt;
pub mod kvm;

pub use interrupt::Interrupter;

use crate::addr::GuestPhysAddr;
use crate::regs::Regs;

/// Extended state that guests are offered. Beyond AVX-512 and PKRU it needs a permission of its own (AMX).
pub const OFFERED_XCR0: u64 = 0xe7;

/// The hypervisor of this machine.
///
/// # Errors
/// If there is none, it may not be used, or it lacks what nodes need.
pub fn open() -> Result<Box<dyn Hypervisor>, HypervisorError> {
    Ok(Box::new(kvm::KvmHypervisor::open()?))
}

/// Why the hypervisor refused.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// `/dev/kvm` is not there.
    #[error(
        "this machine offers no virtualization: {0} does not exist; enable it in the firmware, load the kvm module, or allow nested virtualization"
    )]
    Missing(&'static str),
    /// The user may not use `/dev/kvm`.
    #[error("no permission to use {0}; add the user to the group that owns it (usually kvm) and log in anew")]
    Denied(&'static str),
    /// A needed capability is not there.
    #[error("the hypervisor lacks {0}; a newer kernel has it")]
    Lacks(&'static str),
    /// A call failed.
    #[error("the hypervisor failed to {what}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Why a vCPU stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest executed `out` to this port.
    Port(u16),
    /// The guest executed `in` from an open port: it has not been done, and the registers are those before it.
    PortRead(u16),
    /// An [`Interrupter`] broke in.
    Interrupted,
    /// The host could not provide memory that the guest touched.
    Unbacked,
    /// The vCPU cannot go on; a description for the log.
    Died(String),
}

/// In which ring a vCPU goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// The shim.
    Kernel,
    /// A guest process.
    User,
}

/// What a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypervisorInfo {
    /// For example `KVM (kvm_amd)`.
    pub name: String,
    /// What it runs on, in words.
    pub kind: &'static str,
    /// What it has of that which nodes need, by its own names; it would not have opened without.
    pub capabilities: Vec<&'static str>,
    /// Most vCPUs of one VM.
    pub max_vcpus: u32,
}

/// A hypervisor.
pub trait Hypervisor: Send + Sync {
    /// What it is.
    fn info(&self) -> HypervisorInfo;

    /// Makes a VM without memory or vCPUs.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn create_vm(&self) -> Result<Box<dyn Vm>, HypervisorError>;
}

/// A virtual machine.
pub trait Vm: Send + Sync {
    /// Lets the guest see `bytes` of the caller's memory at guest physical address 0.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    ///
    /// # Safety
    /// The memory stays mapped for as long as the VM or one of its vCPUs exists, and nothing in
    /// this process takes references into it that the guest's writes would invalidate.
    unsafe fn map_memory(&self, host: *mut u8, bytes: u64) -> Result<(), HypervisorError>;

    /// Makes a vCPU; they cannot be destroyed. It starts in ring 0 with paging on.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn create_vcpu(&self, index: u32, setup: &VcpuSetup) -> Result<Box<dyn Vcpu>, HypervisorError>;

    /// Drops every translation that the hypervisor has derived from the guest's page tables, so
    /// that tables which the VMM has rewritten count again. No vCPU needs to be stopped.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn forget_translations(&self) -> Result<(), HypervisorError>;

    /// Starts recording which pages the guest writes.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn start_dirty_log(&self) -> Result<(), HypervisorError>;

    /// Stops recording.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn stop_dirty_log(&self) -> Result<(), HypervisorError>;

    /// The pages written since the log was started or last read, a bit each, and starts anew.
    ///
    /// # Errors
    /// If the log is not running.
    fn read_dirty_log(&self) -> Result<Vec<u64>, HypervisorError>;
}

/// Where a new vCPU finds the shim.
#[derive(Debug, Clone, Copy)]
pub struct VcpuSetup {
    /// Page-table root.
    pub root: GuestPhysAddr,
    /// Virtual address of the global descriptor table and its limit.
    pub gdt: (u64, u16),
    /// Virtual address of the interrupt descriptor table and its limit.
    pub idt: (u64, u16),
    /// Virtual address of the task state segment and its limit.
    pub tss: (u64, u16),
    /// Virtual address of the `syscall` trampoline.
    pub syscall: u64,
}

/// A vCPU. Its registers may be read and written while it does not run.
pub trait Vcpu: Send {
    /// Declares that the calling thread is the one that runs it: from now on its interrupter breaks into what that
    /// thread does, though it has not run it yet.
    fn claim(&mut self);

    /// Runs to the next exit.
    ///
    /// # Errors
    /// If the hypervisor fails.
    fn run(&mut self) -> Result<Exit, HypervisorError>;

    /// General registers.
    fn regs(&self) -> &Regs;

    /// General registers, to change.
    fn regs_mut(&mut self) -> &mut Regs;

    /// The ring that it is in.
    fn ring(&self) -> Ring;

    /// Selector of the code segment that it runs in.
    fn code_selector(&self) -> u16;

    /// Sets the ring that it goes on in, with its code and stack segments.
    fn set_ring(&mut self, ring: Ring);

    /// Address of the last page fault.
    fn fault_address(&self) -> u64;

    /// Page-table root.
    fn root(&self) -> GuestPhysAddr;

    /// Sets the page-table root.
    fn set_root(&mut self, root: GuestPhysAddr);

    /// Sets where `syscall` lands.
    ///
    /// # Errors
    /// If the hypervisor refuses.
    fn set_syscall_entry(&mut self, address: u64) -> Result<(), HypervisorError>;

    /// Bases of FS and GS.
    fn segment_bases(&self) -> (u64, u64);

    /// Sets the bases of FS and GS, canonical addresses.
    fn set_segment_bases(&mut self, fs: u64, gs: u64);

    /// FPU, vector and other extended state in the standard format of XSAVE.
    ///
    /// # Errors
    /// If the hypervisor fails.
    fn fpu(&self) -> Result<Vec<u8>, HypervisorError>;

    /// Sets the extended state; at most as many bytes as [`fpu`](Self::fpu) gives, the rest is in its initial state.
    ///
    /// # Errors
    /// If the hypervisor refuses the bytes.
    fn set_fpu(&mut self, state: &[u8]) -> Result<(), HypervisorError>;

    /// What breaks into [`run`](Self::run) of the thread that calls this.
    fn interrupter(&self) -> Interrupter;
}
