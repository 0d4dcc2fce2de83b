//! Counting what a guest thread does.

use crate::channel::Traffic;
use crate::wire::usage::Usage;
use std::sync::atomic::{AtomicU64, Ordering};
use vmm::user_cpu::Counts;

/// A count that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it; for the one thread that writes it.
    pub fn add(&self, more: u64) {
        // No locked instruction: nobody else writes.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Sets it; for the one thread that writes it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of one guest thread, which only its host thread writes: on cache lines of their own, so
/// that counting costs the other threads nothing.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// System calls served here.
    pub local_calls: Count,
    /// System calls forwarded home.
    pub forwarded_calls: Count,
    /// System calls served here without an exit; the poller's to count, as the next.
    pub exitless_local_calls: Count,
    /// System calls forwarded home without an exit.
    pub exitless_forwarded_calls: Count,
    /// Page faults.
    pub faults: Count,
    round_trips: Count,
    near_trips: Count,
    sent: Count,
    received: Count,
    exits: Count,
    edits: Count,
}

impl Tally {
    /// Takes over what the vCPU and the call connection have counted.
    pub fn note(&self, counts: Counts, traffic: Traffic) {
        self.exits.set(counts.exits);
        self.edits.set(counts.edits);
        if traffic != Traffic::default() {
            self.round_trips.add(traffic.round_trips);
            self.near_trips.add(traffic.near_trips);
            self.sent.add(traffic.sent);
            self.received.add(traffic.received);
        }
    }

    /// All counts.
    pub fn usage(&self) -> Usage {
        Usage {
            local_calls: self.local_calls.get() + self.exitless_local_calls.get(),
            exitless_calls: self.exitless_local_calls.get() + self.exitless_forwarded_calls.get(),
            forwarded_calls: self.forwarded_calls.get() + self.exitless_forwarded_calls.get(),
            round_trips: self.round_trips.get(),
            near_trips: self.near_trips.get(),
            bytes_sent: self.sent.get(),
            bytes_received: self.received.get(),
            exits: self.exits.get(),
            faults: self.faults.get(),
            table_edits: self.edits.get(),
            ..Usage::default()
        }
    }
}
