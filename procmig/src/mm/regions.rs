//! The areas of an address space (Linux: VMAs), without their pages.

use super::object::PageObject;
use bitflags::bitflags;
use std::collections::BTreeMap;
use std::sync::Arc;
use vmm::addr::PAGE_SIZE;
use vmm::shim_layout::{USER_END, USER_START};

bitflags! {
    /// What a process may do with an area's bytes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Protection: u32 {
        /// `PROT_READ`
        const READ = 1;
        /// `PROT_WRITE`
        const WRITE = 2;
        /// `PROT_EXEC`
        const EXECUTE = 4;
    }
}

bitflags! {
    /// Properties of an area.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// `MAP_SHARED`
        const SHARED = 1;
        /// `MAP_STACK` or the main stack: touched in small steps, so no large pages.
        const STACK = 2;
        /// `MADV_DONTFORK`
        const DONT_FORK = 4;
        /// `MADV_WIPEONFORK`
        const WIPE_ON_FORK = 8;
        /// The heap that `brk` grows.
        const HEAP = 16;
        /// `mlock`: for `/proc/self/smaps` and `mincore`; guest RAM is never paged out by us.
        const LOCKED = 32;
        /// A shared file mapping whose descriptor cannot write, so `PROT_WRITE` is refused later too.
        const NO_WRITE = 64;
        /// The personality's own (vDSO, its time page): unmapped by nobody's default, not inherited by `exec`.
        const SPECIAL = 128;
    }
}

/// Where an area's bytes come from.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Zeros.
    Anonymous,
    /// Pages of an object from `offset` (bytes, page-aligned) on: a file, or shared memory.
    Object {
        /// The pages.
        object: Arc<PageObject>,
        /// Of the area's first byte.
        offset: u64,
    },
}

/// An area.
#[derive(Clone, Debug)]
pub struct Region {
    /// First address, page-aligned.
    pub start: u64,
    /// One past the last, page-aligned.
    pub end: u64,
    /// Rights.
    pub protection: Protection,
    /// Properties.
    pub flags: RegionFlags,
    /// Content.
    pub backing: Backing,
    /// For `/proc/self/maps`; empty for none.
    pub name: Arc<str>,
}

impl Region {
    /// Bytes.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Whether others see the writes.
    pub fn is_shared(&self) -> bool {
        self.flags.contains(RegionFlags::SHARED)
    }

    /// The page of the backing object that lies at `address`.
    pub fn object_page(&self, address: u64) -> u64 {
        match &self.backing {
            Backing::Anonymous => 0,
            Backing::Object { offset, .. } => (offset + (address - self.start)) / PAGE_SIZE,
        }
    }

    fn advance(&mut self, start: u64) {
        if let Backing::Object { offset, .. } = &mut self.backing {
            *offset += start - self.start;
        }
        self.start = start;
    }

    fn continues(&self, next: &Region) -> bool {
        let backing = match (&self.backing, &next.backing) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (Backing::Object { object: a, offset: at }, Backing::Object { object: b, offset: next_at }) => {
                Arc::ptr_eq(a, b) && at + self.length() == *next_at
            }
            _ => false,
        };
        backing
            && self.end == next.start
            && self.protection == next.protection
            && self.flags == next.flags
            && self.name == next.name
    }
}

/// The areas of one address space, in order, not overlapping.
#[derive(Clone, Debug, Default)]
pub struct Regions {
    map: BTreeMap<u64, Region>,
    /// Sum of the lengths.
    total: u64,
}

impl Regions {
    /// The area that holds `address`.
    pub fn at(&self, address: u64) -> Option<&Region> {
        let (_, region) = self.map.range(..=address).next_back()?;
        (address < region.end).then_some(region)
    }

    /// All areas.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.map.values()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The areas that overlap `start..end`.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Region> {
        let first = self.at(start).map_or(start, |region| region.start);
        self.map.range(first..end.max(first)).map(|(_, region)| region)
    }

    /// Whether areas cover all of `start..end`.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        self.covered_until(start, end) >= end
    }

    /// Where the first hole of `start..end` begins; `end` if there is none.
    pub fn covered_until(&self, start: u64, end: u64) -> u64 {
        let mut at = start;
        for region in self.overlapping(start, end) {
            if region.start > at {
                break;
            }
            at = region.end;
        }
        at.min(end)
    }

    /// Cuts areas so that none crosses `address`.
    fn cut(&mut self, address: u64) {
        let Some(region) = self.at(address) else { return };
        if region.start == address {
            return;
        }
        let start = region.start;
        let mut upper = region.clone();
        upper.advance(address);
        self.map.get_mut(&start).expect("just found").end = address;
        self.map.insert(address, upper);
    }

    /// Takes the areas in `start..end` out, cutting those that cross its edges.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Region> {
        if start >= end {
            return Vec::new();
        }
        self.cut(start);
        self.cut(end);
        let keys: Vec<u64> = self.map.range(start..end).map(|(&key, _)| key).collect();
        let removed: Vec<_> = keys.into_iter().filter_map(|key| self.map.remove(&key)).collect();
        self.total -= removed.iter().map(Region::length).sum::<u64>();
        removed
    }

    /// Puts an area where there is none, joining it with neighbours that it continues.
    pub fn insert(&mut self, region: Region) {
        self.total += region.length();
        let mut region = region;
        debug_assert!(region.start < region.end && self.overlapping(region.start, region.end).next().is_none());
        if let Some((_, before)) = self.map.range(..region.start).next_back()
            && before.continues(&region)
        {
            let before = self.map.remove(&before.start.clone()).expect("just found");
            region = Region { end: region.end, ..before };
        }
        if let Some(after) = self.map.get(&region.end)
            && region.continues(after)
        {
            let end = after.end;
            self.map.remove(&region.end);
            region.end = end;
        }
        self.map.insert(region.start, region);
    }

    /// Changes the areas in `start..end`, cutting those that cross its edges.
    pub fn modify(&mut self, start: u64, end: u64, mut change: impl FnMut(&mut Region)) {
        for mut region in self.remove(start, end) {
            change(&mut region);
            self.insert(region);
        }
    }

    /// The highest free range of `length` bytes below `top`, aligned as asked; `None` if there is none.
    pub fn find_gap(&self, length: u64, top: u64, alignment: u64) -> Option<u64> {
        let mut top = top.min(USER_END);
        loop {
            let candidate = top.checked_sub(length)? & !(alignment - 1);
            if candidate < USER_START {
                return None;
            }
            match self.overlapping(candidate, candidate + length).last() {
                None => return Some(candidate),
                Some(_) => {
                    let lowest = self.overlapping(candidate, candidate + length).next().expect("there is one");
                    top = lowest.start;
                }
            }
        }
    }

    /// Copies of the areas that overlap `start..end`.
    pub fn clone_range(&self, start: u64, end: u64) -> Self {
        let map: BTreeMap<_, _> = self.overlapping(start, end).map(|region| (region.start, region.clone())).collect();
        let total = map.values().map(Region::length).sum();
        Self { map, total }
    }

    /// Sum of the lengths in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, protection: Protection) -> Region {
        Region {
            start: start * PAGE_SIZE,
            end: end * PAGE_SIZE,
            protection,
            flags: RegionFlags::empty(),
            backing: Backing::Anonymous,
            name: "".into(),
        }
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one() {
        let mut regions = Regions::default();
        regions.insert(region(16, 17, Protection::READ));
        regions.insert(region(18, 19, Protection::READ));
        regions.insert(region(17, 18, Protection::READ));
        assert_eq!(regions.len(), 1);
        regions.modify(17 * PAGE_SIZE, 18 * PAGE_SIZE, |region| region.protection = Protection::WRITE);
        assert_eq!(regions.len(), 3);
        regions.modify(17 * PAGE_SIZE, 18 * PAGE_SIZE, |region| region.protection = Protection::READ);
        assert_eq!(regions.len(), 1);
    }

    #[test]
    fn removal_cuts_at_both_edges() {
        let mut regions = Regions::default();
        regions.insert(region(16, 32, Protection::READ));
        let out = regions.remove(20 * PAGE_SIZE, 24 * PAGE_SIZE);
        assert_eq!(out.len(), 1);
        assert!(regions.covers(16 * PAGE_SIZE, 20 * PAGE_SIZE));
        assert!(!regions.covers(16 * PAGE_SIZE, 21 * PAGE_SIZE));
        assert!(regions.at(24 * PAGE_SIZE).is_some());
        assert!(regions.at(23 * PAGE_SIZE).is_none());
        assert_eq!(regions.total(), 12 * PAGE_SIZE);
    }

    #[test]
    fn the_highest_gap_is_found() {
        let mut regions = Regions::default();
        regions.insert(region(100, 110, Protection::READ));
        regions.insert(region(112, 120, Protection::READ));
        let top = 120 * PAGE_SIZE;
        assert_eq!(regions.find_gap(2 * PAGE_SIZE, top, PAGE_SIZE), Some(110 * PAGE_SIZE));
        assert_eq!(regions.find_gap(3 * PAGE_SIZE, top, PAGE_SIZE), Some(97 * PAGE_SIZE));
        assert_eq!(regions.find_gap(u64::MAX, top, PAGE_SIZE), None);
    }
}
