//! A page-table tree, and how it may be changed under running vCPUs.
//!
//! Absent to present, and more rights to the same frame, may be written at once: a processor or a
//! hypervisor that has not seen it takes a fault and looks again. Every other change is gathered in
//! [`Changes`] and made by ring-0 code of the guest. Many changes in one table are cheaper as a new
//! table: it is written here, at full speed, and takes one edit of the table above.

use crate::addr::{Frame, GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::entry::Paging;
use crate::frames::FRAMES_PER_BLOCK;
use crate::hypervisor::HypervisorError;
use crate::machine::{self, Machine};
use crate::paging::{self, ADDRESS, HAS_FRAME, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use crate::table_frames::TableError;
use crate::user_cpu::{Edit, UserCpu};
use guest_shim::layout::{SHIM_BASE, USER_END};
use std::ops::Range;
use std::sync::Arc;

/// Flags of an entry that points to a table.
const TABLE: u64 = PRESENT | WRITE | USER;
/// Slot of the PML4 that holds the shim's window, and of its PDPT.
const SHIM_SLOTS: (u64, u64) = (255, 511);
/// Slot of the PML4 that holds the direct map.
const DIRECT_SLOT: u64 = 256;
/// Edits in one table above which a new table is cheaper: an edit costs about 1.7 µs where ring 0
/// is emulated, a table one edit, half a microsecond to copy, and the refill of what it maps.
const MAX_EDITS_IN_TABLE: usize = 24;

/// Changes that ring-0 code must make, and what becomes free by them.
#[derive(Debug, Default)]
#[must_use = "the guest goes on using the old entries until the changes are applied"]
pub struct Changes {
    edits: Vec<Edit>,
    retired: Vec<Frame>,
    /// What ended the gathering early. What was gathered before is to be applied nevertheless.
    failure: Option<TableError>,
}

impl Changes {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.retired.is_empty()
    }

    /// Makes the changes, on a vCPU that has the tree's root loaded. Where other vCPUs of the tree may
    /// hold translations that these changes end, `hold_out_others` is called: it takes them out of the
    /// guest, and they set their root again before they go back in. The tables that the changes make
    /// superfluous are given back only then: a processor may still walk them until it is out.
    ///
    /// # Errors
    /// If the hypervisor fails; the guest may still use the old entries.
    pub fn apply(self, cpu: &mut UserCpu, hold_out_others: impl FnOnce(&UserCpu)) -> Result<(), HypervisorError> {
        let machine = cpu.machine().clone();
        if !self.edits.is_empty() {
            cpu.edit_tables(&self.edits)?;
            if machine.paging() == Paging::Nested {
                hold_out_others(cpu);
            }
        }
        machine.tables().retire(&machine, &self.retired);
        Ok(())
    }
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The entry's value, not zero.
    pub entry: u64,
    /// Where the entry lies.
    pub at: GuestPhysAddr,
    /// Whether it maps 2 MiB.
    pub large: bool,
}

impl Leaf {
    /// The frame that holds `address`.
    pub fn frame(&self, address: u64) -> Frame {
        let first = paging::frame(self.entry);
        if self.large { first.offset((address / PAGE_SIZE % u64::from(FRAMES_PER_BLOCK)) as u32) } else { first }
    }
}

/// The page tables of one address space.
pub struct PageTables {
    machine: Arc<Machine>,
    root: Frame,
}

/// What becomes of an entry that points to a table.
enum Outcome {
    Same,
    Becomes(u64),
}

impl PageTables {
    /// Tables that map nothing but the shim.
    ///
    /// # Errors
    /// If the memory is used up.
    pub fn new(machine: Arc<Machine>) -> Result<Self, TableError> {
        let root = machine.tables().allocate(&machine)?;
        let pointers = match machine.tables().allocate(&machine) {
            Ok(frame) => frame,
            Err(error) => {
                machine.frames().release(root);
                return Err(error);
            }
        };
        let ram = machine.ram();
        let entry = |table: Frame, slot: u64| table.address() + slot * 8;
        ram.store(entry(pointers, SHIM_SLOTS.1), machine::shim_directory().address().raw() | TABLE);
        ram.store(entry(root, SHIM_SLOTS.0), pointers.address().raw() | TABLE);
        ram.store(entry(root, DIRECT_SLOT), machine::direct_map_table().address().raw() | PRESENT | WRITE);
        Ok(Self { machine, root })
    }

    /// For a vCPU's root register.
    pub fn root(&self) -> GuestPhysAddr {
        self.root.address()
    }

    /// The machine that they belong to.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    fn load(&self, table: Frame, slot: u64) -> u64 {
        self.machine.ram().load(table.address() + slot * 8)
    }

    fn store(&self, table: Frame, slot: u64, value: u64) {
        self.machine.ram().store(table.address() + slot * 8, value);
    }

    /// The entry that maps `address`, if it is not zero.
    pub fn lookup(&self, address: u64) -> Option<Leaf> {
        let mut table = self.root;
        for level in (0..4).rev() {
            let slot = paging::index(address, level);
            let entry = self.load(table, slot);
            if entry == 0 {
                return None;
            }
            if level == 0 || (level == 1 && entry & LARGE != 0) {
                return Some(Leaf { entry, at: table.address() + slot * 8, large: level == 1 });
            }
            table = paging::frame(entry);
        }
        None
    }

    /// The table of `level` that spans `address`, made if it is not there; `None` if a large page is in its place.
    fn table(&mut self, address: u64, level: u32) -> Result<Option<Frame>, TableError> {
        let mut table = self.root;
        for above in (level + 1..4).rev() {
            let slot = paging::index(address, above);
            let mut entry = self.load(table, slot);
            if entry == 0 {
                let new = self.machine.tables().allocate(&self.machine)?;
                entry = new.address().raw() | TABLE;
                self.store(table, slot, entry);
            } else if above == 1 && entry & LARGE != 0 {
                return Ok(None);
            }
            table = paging::frame(entry);
        }
        Ok(Some(table))
    }

    /// Writes entries where there are none, from `address` on, one page each; those that are not
    /// zero stay. Returns for each whether it was written.
    ///
    /// # Errors
    /// If the memory is used up.
    pub fn fill(&mut self, address: u64, entries: &[u64]) -> Result<Vec<bool>, TableError> {
        let mut written = vec![false; entries.len()];
        let mut i = 0;
        while i < entries.len() {
            let at = address + i as u64 * PAGE_SIZE;
            let first = paging::index(at, 0);
            let count = (512 - first).min((entries.len() - i) as u64) as usize;
            if let Some(table) = self.table(at, 0)? {
                for j in 0..count {
                    if self.load(table, first + j as u64) == 0 && entries[i + j] != 0 {
                        self.store(table, first + j as u64, entries[i + j]);
                        written[i + j] = true;
                    }
                }
            }
            i += count;
        }
        Ok(written)
    }

    /// Maps a 2 MiB page where nothing is mapped; `false` if something is.
    ///
    /// # Errors
    /// If the memory is used up.
    pub fn fill_large(&mut self, address: u64, entry: u64) -> Result<bool, TableError> {
        debug_assert!(address.is_multiple_of(LARGE_PAGE_SIZE) && entry & LARGE != 0);
        let Some(table) = self.table(address, 1)? else { return Ok(false) };
        let slot = paging::index(address, 1);
        if self.load(table, slot) != 0 {
            return Ok(false);
        }
        self.store(table, slot, entry);
        Ok(true)
    }

    /// Writes an entry to which the rule of the module's head allows it: more rights, same frame.
    pub fn raise(&mut self, leaf: &Leaf, entry: u64) {
        debug_assert!(may_write_at_once(leaf.entry, entry));
        self.machine.ram().store(leaf.at, entry);
    }

    /// Offers each entry of `start..end` that is not zero to `change(address, entry, large)`, and
    /// gives it the value that is returned. A large page that is only partly in the range is split.
    ///
    /// # Errors
    /// If the memory is used up. What `change` was asked about until then is in `changes` or was
    /// written: apply them all the same.
    pub fn update(
        &mut self,
        start: u64,
        end: u64,
        change: &mut dyn FnMut(u64, u64, bool) -> u64,
        changes: &mut Changes,
    ) -> Result<(), TableError> {
        if start < end {
            self.update_table(self.root, 3, 0, start, end, change, changes);
        }
        changes.failure.take().map_or(Ok(()), Err)
    }

    /// Never gives up what it has gathered: a table that is retired must come out of the table above.
    #[allow(clippy::too_many_arguments, reason = "the recursion's state")]
    fn update_table(
        &mut self,
        table: Frame,
        level: u32,
        base: u64,
        start: u64,
        end: u64,
        change: &mut dyn FnMut(u64, u64, bool) -> u64,
        changes: &mut Changes,
    ) -> Outcome {
        let span = paging::span(level);
        let first = start.saturating_sub(base) / span;
        let last = ((end - 1 - base) / span).min(511);
        let mut pending = Vec::new();
        for slot in first..=last {
            let entry = self.load(table, slot);
            if entry == 0 {
                continue;
            }
            let at = base + slot * span;
            let whole = start <= at && at + span <= end;
            let new = if level == 0 || (level == 1 && entry & LARGE != 0 && whole) {
                change(at, entry, level == 1)
            } else if level == 1 && entry & LARGE != 0 {
                match self.split(entry, at, start, end, change) {
                    Ok(new) => new,
                    Err(error) => {
                        changes.failure = Some(error);
                        break;
                    }
                }
            } else {
                match self.update_table(paging::frame(entry), level - 1, at, start, end, change, changes) {
                    Outcome::Same => entry,
                    Outcome::Becomes(entry) => entry,
                }
            };
            if level <= 1 && may_write_at_once(entry, new) {
                if new != entry {
                    self.store(table, slot, new);
                }
            } else if new != entry {
                pending.push((slot, new));
            }
            if changes.failure.is_some() {
                break;
            }
        }
        if pending.is_empty() {
            return Outcome::Same;
        }
        if level < 3 && first == 0 && last == 511 && pending.len() > 1 && pending.iter().all(|&(_, value)| value == 0) {
            // Perhaps nothing is left in it.
            let kept = (0..512).any(|slot| self.load(table, slot) != 0 && !pending.iter().any(|&(s, _)| s == slot));
            if !kept {
                changes.retired.push(table);
                return Outcome::Becomes(0);
            }
        }
        if level < 3
            && pending.len() > MAX_EDITS_IN_TABLE
            && let Ok(new) = self.machine.tables().allocate(&self.machine)
        {
            self.machine.ram().copy_frame(table, new);
            for (slot, value) in pending {
                self.store(new, slot, value);
            }
            changes.retired.push(table);
            return Outcome::Becomes(new.address().raw() | TABLE);
        }
        let entry = |slot: u64| table.address() + slot * 8;
        changes.edits.extend(pending.into_iter().map(|(slot, value)| Edit { entry: entry(slot), value }));
        Outcome::Same
    }

    /// A table in place of a large page, with the part of it in the range changed.
    fn split(
        &mut self,
        entry: u64,
        base: u64,
        start: u64,
        end: u64,
        change: &mut dyn FnMut(u64, u64, bool) -> u64,
    ) -> Result<u64, TableError> {
        let table = self.machine.tables().allocate(&self.machine)?;
        for slot in 0..512 {
            let at = base + slot * PAGE_SIZE;
            let small = (entry & !LARGE) + slot * PAGE_SIZE;
            self.store(table, slot, if (start..end).contains(&at) { change(at, small, false) } else { small });
        }
        Ok(table.address().raw() | TABLE)
    }

    /// Makes a copy for a child. `divide(address, entry, large)` tells what each entry becomes here
    /// and what the child's is. Where entries change the tables are made anew, so the root may
    /// change: no vCPU runs on this tree meanwhile, and each loads [`root`](Self::root) afterwards.
    ///
    /// # Errors
    /// If the memory is used up; the tree is then as it was, but `divide` was called for some entries.
    pub fn fork(
        &mut self,
        divide: &mut dyn FnMut(u64, u64, bool) -> (u64, u64),
    ) -> Result<Self, (TableError, Option<Self>)> {
        let child = Self::new(self.machine.clone()).map_err(|error| (error, None))?;
        let mut fresh = Vec::new();
        let mut retired = Vec::new();
        match self.fork_table(self.root, child.root, 3, 0, divide, &mut fresh, &mut retired) {
            Ok(root) => {
                self.root = root;
                self.machine.tables().retire(&self.machine, &retired);
                Ok(child)
            }
            Err(error) => {
                // No vCPU has ever seen these.
                self.machine.frames().release_all(&fresh);
                Err((error, Some(child)))
            }
        }
    }

    /// Copies `table` into the child's, and returns the parent's: `table`, or a new one.
    #[allow(clippy::too_many_arguments, reason = "the recursion's state")]
    fn fork_table(
        &self,
        table: Frame,
        child: Frame,
        level: u32,
        base: u64,
        divide: &mut dyn FnMut(u64, u64, bool) -> (u64, u64),
        fresh: &mut Vec<Frame>,
        retired: &mut Vec<Frame>,
    ) -> Result<Frame, TableError> {
        let span = paging::span(level);
        let mut changed = Vec::new();
        for slot in 0..if level == 3 { DIRECT_SLOT } else { 512 } {
            let entry = self.load(table, slot);
            let at = base + slot * span;
            if entry == 0 || at >= guest_shim::layout::USER_END {
                continue;
            }
            if level == 0 || (level == 1 && entry & LARGE != 0) {
                let (mine, theirs) = divide(at, entry, level == 1);
                self.store(child, slot, theirs);
                if mine != entry {
                    changed.push((slot, mine));
                }
                continue;
            }
            let mut below = paging::frame(self.load(child, slot));
            if below == Frame(0) {
                below = self.machine.tables().allocate(&self.machine)?;
                self.store(child, slot, below.address().raw() | TABLE);
            }
            let mine = paging::frame(entry);
            let new = self.fork_table(mine, below, level - 1, at, divide, fresh, retired)?;
            if new != mine {
                changed.push((slot, new.address().raw() | TABLE));
            }
        }
        if changed.is_empty() {
            return Ok(table);
        }
        let new = self.machine.tables().allocate(&self.machine)?;
        fresh.push(new);
        self.machine.ram().copy_frame(table, new);
        for (slot, entry) in changed {
            self.store(new, slot, entry);
        }
        retired.push(table);
        Ok(new)
    }

    /// Calls `visit(address, entry, large)` for each entry that is not zero.
    pub fn for_each(&self, visit: &mut dyn FnMut(u64, u64, bool)) {
        self.for_each_in(0, USER_END, visit);
    }

    /// The same for those that map some of `start..end`, in time that grows with their number and not
    /// with the range's length.
    pub fn for_each_in(&self, start: u64, end: u64, visit: &mut dyn FnMut(u64, u64, bool)) {
        self.visit_table(self.root, 3, 0, &(start..end.min(USER_END)), visit, &mut |_| {});
    }

    fn visit_table(
        &self,
        table: Frame,
        level: u32,
        base: u64,
        range: &Range<u64>,
        visit: &mut dyn FnMut(u64, u64, bool),
        tables: &mut dyn FnMut(Frame),
    ) {
        let span = paging::span(level);
        let slots = if level == 3 { DIRECT_SLOT } else { 512 };
        let first = range.start.saturating_sub(base) / span;
        let end = range.end.saturating_sub(base).div_ceil(span).min(slots);
        for slot in first..end {
            let entry = self.load(table, slot);
            let at = base + slot * span;
            if entry == 0 {
                continue;
            }
            if level == 0 || (level == 1 && entry & LARGE != 0) {
                visit(at, entry, level == 1);
            } else {
                self.visit_table(paging::frame(entry), level - 1, at, range, visit, tables);
            }
        }
        tables(table);
    }
}

impl Drop for PageTables {
    /// Retires the tables. The frames that they map are the owner's to release before; no vCPU
    /// enters the guest on this root again.
    fn drop(&mut self) {
        let mut tables = Vec::new();
        // Those of the call slots too, but not the shim's.
        self.visit_table(self.root, 3, 0, &(0..SHIM_BASE), &mut |_, _, _| {}, &mut |table| tables.push(table));
        self.machine.tables().retire(&self.machine, &tables);
    }
}

/// Whether a present or absent `old` may become `new` by a plain write of the VMM.
fn may_write_at_once(old: u64, new: u64) -> bool {
    const RIGHTS: u64 = WRITE | NO_EXECUTE;
    if old & PRESENT == 0 {
        return true;
    }
    let same_but_rights = (old ^ new) & !RIGHTS & (ADDRESS | PRESENT | USER | LARGE | HAS_FRAME) == 0;
    let keeps_write = old & WRITE == 0 || new & WRITE != 0;
    let keeps_execute = old & NO_EXECUTE != 0 || new & NO_EXECUTE == 0;
    same_but_rights && keeps_write && keeps_execute
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_rights_to_the_same_frame_are_written_at_once() {
        let entry = 0x5000 | PRESENT | USER | NO_EXECUTE;
        assert!(may_write_at_once(0, entry));
        assert!(may_write_at_once(entry & !PRESENT, entry));
        assert!(may_write_at_once(entry, entry | WRITE));
        assert!(may_write_at_once(entry, entry & !NO_EXECUTE));
        assert!(!may_write_at_once(entry | WRITE, entry));
        assert!(!may_write_at_once(entry & !NO_EXECUTE, entry));
        assert!(!may_write_at_once(entry, entry & !PRESENT));
        assert!(!may_write_at_once(entry, entry + 0x1000));
        assert!(!may_write_at_once(entry, 0));
    }
}
