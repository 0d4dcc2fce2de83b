//! What a process used, as it is told to people and to parents.

use serde::{Deserialize, Serialize};

/// What one process used, or several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in the node in nanoseconds: the program's own, and what its host threads spent as its kernel.
    pub cpu_nanos: u64,
    /// Of that, what the host's kernel spent for it: leaving the guest and coming back, and sockets.
    pub system_nanos: u64,
    /// Most bytes resident, of one process.
    pub peak_resident: u64,
    /// System calls served in the node.
    pub local_calls: u64,
    /// System calls forwarded home.
    pub forwarded_calls: u64,
    /// Of both, those for which the thread did not leave the guest.
    pub exitless_calls: u64,
    /// Requests to the deputy that were waited for: forwarded calls, and what the node itself asks of home.
    pub round_trips: u64,
    /// Of those, for which the deputy's thread was called to the CPU of who waited for it.
    pub near_trips: u64,
    /// Bytes sent home.
    pub bytes_sent: u64,
    /// Bytes received from home.
    pub bytes_received: u64,
    /// Runs of a vCPU that ended with an exit to the VMM, for whatever reason.
    pub exits: u64,
    /// Page faults that reached the VMM.
    pub faults: u64,
    /// Exits of the code in ring 0 that changes page tables.
    pub table_edits: u64,
}

impl Usage {
    /// CPU time in nanoseconds without [`system_nanos`](Self::system_nanos).
    pub fn user_nanos(&self) -> u64 {
        self.cpu_nanos.saturating_sub(self.system_nanos)
    }

    /// Adds what another has used; of the peaks the higher one stays.
    pub fn add(&mut self, other: &Self) {
        // A peer's numbers are any numbers.
        let sum = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        sum(&mut self.cpu_nanos, other.cpu_nanos);
        sum(&mut self.system_nanos, other.system_nanos);
        self.peak_resident = self.peak_resident.max(other.peak_resident);
        sum(&mut self.local_calls, other.local_calls);
        sum(&mut self.exitless_calls, other.exitless_calls);
        sum(&mut self.forwarded_calls, other.forwarded_calls);
        sum(&mut self.round_trips, other.round_trips);
        sum(&mut self.near_trips, other.near_trips);
        sum(&mut self.bytes_sent, other.bytes_sent);
        sum(&mut self.bytes_received, other.bytes_received);
        sum(&mut self.exits, other.exits);
        sum(&mut self.faults, other.faults);
        sum(&mut self.table_edits, other.table_edits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_the_higher_peak_stays() {
        let mut sum = Usage { cpu_nanos: 5, system_nanos: 2, peak_resident: 7, exits: u64::MAX, ..Usage::default() };
        sum.add(&Usage { cpu_nanos: 10, system_nanos: 1, peak_resident: 6, exits: 1, faults: 3, ..Usage::default() });
        assert_eq!((sum.cpu_nanos, sum.user_nanos(), sum.peak_resident), (15, 12, 7));
        assert_eq!((sum.exits, sum.faults), (u64::MAX, 3));
    }
}
