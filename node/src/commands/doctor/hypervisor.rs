//! The hypervisor: is it there, may we use it, what is it, and what does it cost.

use super::Row;
use crate::cli::DirArg;
use crate::measured::{self, Measured};
use vmm::hypervisor::{Hypervisor, HypervisorError};

/// Threads that a node should be able to have.
const THREADS: u32 = 256;

/// The hypervisor and what stands behind it.
pub fn check(_: &DirArg) -> Vec<Row> {
    match vmm::hypervisor::open() {
        Ok(hypervisor) => {
            let mut rows = offers(&*hypervisor);
            rows.extend(costs(measured::measure(&*hypervisor)));
            rows
        }
        Err(error) => vec![missing(&error)],
    }
}

fn missing(error: &HypervisorError) -> Row {
    let name = "hypervisor";
    match error {
        HypervisorError::Missing(device) => Row::fail(
            name,
            format!("{device} is not there"),
            "turn on virtualization in the firmware and run: modprobe kvm_intel (or kvm_amd); \
             in a virtual machine, turn on nested virtualization on its host",
        ),
        HypervisorError::Denied(device) => Row::fail(
            name,
            format!("{device}: permission denied"),
            "join the group that may use it and log in again: sudo usermod -aG kvm \"$USER\"",
        ),
        HypervisorError::Lacks(capability) => {
            Row::fail(name, format!("lacks {capability}"), "use a newer Linux (4.17 has all that nodes need)")
        }
        HypervisorError::Failed { .. } => Row::fail(name, procmig::chain(error), "see: dmesg | grep -i kvm"),
    }
}

fn offers(hypervisor: &dyn Hypervisor) -> Vec<Row> {
    let info = hypervisor.info();
    let name = "vCPUs in a node";
    let found = format!("at most {}: as many threads", info.max_vcpus);
    let vcpus = if info.max_vcpus >= THREADS {
        Row::ok(name, found)
    } else {
        Row::warn(name, found, "launch more nodes for more threads")
    };
    vec![
        Row::ok("hypervisor", format!("{}, present and permitted", info.name)),
        Row::ok("kind", info.kind),
        Row::ok("capabilities", format!("all {} that nodes need", info.capabilities.len())),
        vcpus,
    ]
}

fn costs(costs: anyhow::Result<Measured>) -> Vec<Row> {
    let costs = match costs {
        Ok(costs) => costs,
        Err(error) => {
            let advice = "see the lines above; if they are all ok, report this with the output of skein doctor --json";
            return vec![Row::fail("costs", format!("a small guest does not run: {error:#}"), advice)];
        }
    };
    let micros = |micros: f64| format!("{micros:.1} µs");
    let clock = "guest clock";
    vec![
        Row::ok("system call entry", entry(&costs.entry)),
        Row::ok("paging", paging(&costs.paging)),
        if costs.shares_tsc {
            Row::ok(clock, "counts with this machine's: programs read the time without an exit")
        } else {
            Row::warn(
                clock,
                "does not count with this machine's; each reading of the time is a system call",
                "programs that read the time often are slower in a node; a newer kernel may help",
            )
        },
        Row::ok("exit and back", format!("{}: what each system call costs at least", micros(costs.exit_micros))),
        Row::ok("page fault", format!("{}, with its exit", micros(costs.fault_micros))),
        Row::ok("page-table edit", format!("{}, by the guest's ring 0", micros(costs.edit_micros))),
        Row::ok("page-table flush", format!("{}, of the whole VM", micros(costs.forget_micros))),
        Row::ok("create a VM", micros(costs.vm_micros)),
        Row::ok("create a vCPU", format!("{}, once for each thread at a time", micros(costs.vcpu_micros))),
    ]
}

fn entry(mode: &str) -> String {
    match mode {
        "ring3" => format!("{mode}: syscall stays in ring 3, as PVM has it"),
        _ => format!("{mode}: syscall enters ring 0, as processors have it"),
    }
}

fn paging(mode: &str) -> String {
    match mode {
        "shadow" => format!("{mode}: the hypervisor derives tables of its own from the guest's"),
        _ => format!("{mode}: the processor walks the guest's tables"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Verdict;

    #[test]
    fn a_hypervisor_that_cannot_be_used_fails_with_advice() {
        let source = || std::io::Error::from_raw_os_error(libc::EBUSY);
        for error in [
            HypervisorError::Missing("/dev/x"),
            HypervisorError::Denied("/dev/x"),
            HypervisorError::Lacks("X_CAP"),
            HypervisorError::Failed { what: "open /dev/x", source: source() },
        ] {
            let row = missing(&error);
            assert_eq!(row.verdict, Verdict::Fail);
            assert!(row.advice.is_some());
        }
    }
}
