//! What the hypervisor was measured to cost on this machine.

use anyhow::Context;
use std::time::Duration;
use vmm::hypervisor::Hypervisor;

/// Costs and modes of the hypervisor, found by running small guests.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measured {
    /// Where `syscall` lands in a guest: `ring0` or `ring3`.
    pub entry: String,
    /// Who translates guest addresses: `shadow` or `nested`.
    pub paging: String,
    /// The guest's time-stamp counter is the host's.
    pub shares_tsc: bool,
    /// Microseconds of an exit to the VMM and back.
    pub exit_micros: f64,
    /// Microseconds of a page fault that the VMM resolves.
    pub fault_micros: f64,
    /// Microseconds of an edit of a page table by the guest's ring 0.
    pub edit_micros: f64,
    /// Microseconds to drop all derived translations.
    pub forget_micros: f64,
    /// Microseconds to create a VM.
    pub vm_micros: f64,
    /// Microseconds to create a vCPU.
    pub vcpu_micros: f64,
}

/// Measures.
///
/// # Errors
/// If a small guest does not run.
pub fn measure(hypervisor: &dyn Hypervisor) -> anyhow::Result<Measured> {
    let costs = vmm::probe::measure(hypervisor)?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(Measured {
        entry: costs.modes.entry.to_string(),
        paging: costs.modes.paging.to_string(),
        shares_tsc: costs.modes.shares_tsc,
        exit_micros: micros(costs.exit),
        fault_micros: micros(costs.fault),
        edit_micros: micros(costs.edit),
        forget_micros: micros(costs.forget),
        vm_micros: micros(costs.create_vm),
        vcpu_micros: micros(costs.create_vcpu),
    })
}

/// Nanoseconds of the bare exit alone.
///
/// # Errors
/// As [`measure`].
pub fn bare_exit_nanos() -> anyhow::Result<f64> {
    let hypervisor = vmm::hypervisor::open()?;
    let exit = vmm::probe::bare_exit(&*hypervisor).context("the bare exit cannot be measured")?;
    Ok(exit.as_secs_f64() * 1e9)
}
