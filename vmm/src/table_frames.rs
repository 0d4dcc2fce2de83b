//! Frames that hold page tables.
//!
//! A hypervisor that shadows page tables keeps what it has derived from a table, also when no root
//! leads there any more, and does not see the VMM write to it. So a retired table is used again
//! only after the hypervisor was made to forget all; that costs every mapping a refill, so it is
//! done for many tables at once. Where the processor walks the tables itself, reuse is free.

use crate::addr::Frame;
use crate::entry::Paging;
use crate::frames::OutOfFrames;
use crate::hypervisor::HypervisorError;
use crate::machine::Machine;
use std::sync::Mutex;

/// Retired tables that are gathered before they are made usable together: 4 MiB of them.
const BATCH: usize = 1024;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// No frame is left.
    #[error(transparent)]
    OutOfFrames(#[from] OutOfFrames),
    /// The hypervisor did not forget.
    #[error("retired page tables cannot be used again")]
    Hypervisor(#[from] HypervisorError),
}

/// The frames of page tables that are out of use.
#[derive(Debug, Default)]
pub struct TableFrames {
    retired: Mutex<Vec<Frame>>,
}

impl TableFrames {
    /// A frame of zeros for a page table.
    ///
    /// # Errors
    /// If the memory is used up.
    pub fn allocate(&self, machine: &Machine) -> Result<Frame, TableError> {
        if self.retired_count() >= BATCH {
            self.recycle(machine)?;
        }
        match machine.frames().allocate() {
            Ok(frame) => Ok(frame),
            Err(OutOfFrames) => {
                self.recycle(machine)?;
                Ok(machine.frames().allocate()?)
            }
        }
    }

    /// Takes back tables that no root leads to. No vCPU that still has their root loaded enters
    /// the guest again before it loads another.
    pub fn retire(&self, machine: &Machine, tables: &[Frame]) {
        match machine.paging() {
            Paging::Nested => machine.frames().release_all(tables),
            Paging::Shadow => self.lock().extend_from_slice(tables),
        }
    }

    /// Makes the retired tables usable.
    ///
    /// # Errors
    /// If the hypervisor refuses; the tables stay retired.
    pub fn recycle(&self, machine: &Machine) -> Result<(), TableError> {
        let mut retired = self.lock();
        if !retired.is_empty() {
            machine.vm().forget_translations()?;
            machine.frames().release_all(&retired);
            retired.clear();
        }
        Ok(())
    }

    /// How many tables wait to be usable again.
    pub fn retired_count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Frame>> {
        self.retired.lock().expect("no panic while the retired tables are locked")
    }
}
