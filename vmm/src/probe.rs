//! What the hypervisor costs on this machine, found by running small guests on it.

use crate::addr::GuestPhysAddr;
use crate::entry::{Modes, Probe};
use crate::hypervisor::Hypervisor;
use crate::machine::{MIN_MEMORY, Machine, MachineError};
use crate::paging::{PRESENT, USER, WRITE};
use guest_shim::layout::{self, table};
use std::time::{Duration, Instant};

/// Times of the operations that everything else is made of, each the median of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurements {
    /// What kind of machine it is.
    pub modes: Modes,
    /// Making a VM without memory or vCPUs.
    pub create_vm: Duration,
    /// Making a vCPU and setting it up.
    pub create_vcpu: Duration,
    /// The bare exit: a system call of ring 3 through the trampoline to the VMM, and back to ring 3.
    pub exit: Duration,
    /// A page fault of ring 3 with an exit, an absent entry filled in by the VMM, and back to ring 3.
    pub fault: Duration,
    /// A change of a present page-table entry by ring 0, from the VMM and back to it.
    pub edit: Duration,
    /// Dropping all translations that the hypervisor has derived from the guest's page tables.
    pub forget: Duration,
}

/// VMs made, and vCPUs made in one.
const MAKINGS: usize = 15;
/// Batches of exits, and exits in one: a single one may be as short as the clock's own cost.
const BATCHES: usize = 31;
const EXITS: u32 = 200;
/// Pages of the self-test's table behind its code and its data: each can be touched first but once.
const PAGES: std::ops::Range<u64> = 2..258;
const EDITS: u64 = 201;
const FORGETS: usize = 31;

/// Measures, in much less than a second on an idle machine.
///
/// # Errors
/// If a machine cannot be made or does not do what the self-test expects.
pub fn measure(hypervisor: &dyn Hypervisor) -> Result<Measurements, MachineError> {
    let create_vm = median((0..MAKINGS).map(|_| {
        let started = Instant::now();
        let vm = hypervisor.create_vm()?;
        let took = started.elapsed();
        drop(vm);
        Ok(took)
    }))?;
    let machine = Machine::new(hypervisor, MIN_MEMORY)?;
    let create_vcpu = median((0..MAKINGS).map(|_| timed(|| machine.create_vcpu())))?;
    let mut probe = Probe::new(&machine)?;
    let exit = exits(&mut probe)?;
    let fault = faults(&machine, &mut probe)?;
    let edit = edits(&machine, &mut probe)?;
    let forget = median((0..FORGETS).map(|_| timed(|| Ok(machine.vm().forget_translations()?))))?;
    Ok(Measurements { modes: machine.modes(), create_vm, create_vcpu, exit, fault, edit, forget })
}

/// Measures [`Measurements::exit`] alone.
///
/// # Errors
/// As [`measure`].
pub fn bare_exit(hypervisor: &dyn Hypervisor) -> Result<Duration, MachineError> {
    let machine = Machine::new(hypervisor, MIN_MEMORY)?;
    exits(&mut Probe::new(&machine)?)
}

fn timed<T>(operation: impl FnOnce() -> Result<T, MachineError>) -> Result<Duration, MachineError> {
    let started = Instant::now();
    operation()?;
    Ok(started.elapsed())
}

fn median(times: impl Iterator<Item = Result<Duration, MachineError>>) -> Result<Duration, MachineError> {
    let mut times = times.collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

fn exits(probe: &mut Probe<'_>) -> Result<Duration, MachineError> {
    probe.start_spinning()?;
    median((0..BATCHES).map(|_| {
        timed(|| {
            for _ in 0..EXITS {
                probe.spin()?;
            }
            Ok(())
        })
        .map(|took| took / EXITS)
    }))
}

fn faults(machine: &Machine, probe: &mut Probe<'_>) -> Result<Duration, MachineError> {
    let entry = |page: u64| GuestPhysAddr(table::PROBE_TABLES + 0x2000 + page * 8);
    let address = |page: u64| layout::PROBE_BASE + page * 0x1000;
    PAGES.for_each(|page| machine.ram().store(entry(page), 0));
    let with = median(PAGES.map(|page| {
        timed(|| {
            probe.load_absent(address(page))?;
            machine.ram().store(entry(page), table::PROBE_DATA | PRESENT | WRITE | USER);
            probe.load(address(page))
        })
    }))?;
    let without = median(PAGES.map(|page| timed(|| probe.load(address(page)))))?;
    Ok(with.saturating_sub(without))
}

fn edits(machine: &Machine, probe: &mut Probe<'_>) -> Result<Duration, MachineError> {
    let entry = GuestPhysAddr(table::PROBE_TABLES + 0x2000 + 8);
    median((0..EDITS).map(|i| {
        let page = if i % 2 == 0 { table::PROBE_OTHER } else { table::PROBE_DATA };
        timed(|| probe.edit(machine.edits_need_reload(), entry, page | PRESENT | WRITE | USER))
    }))
}
