//! `mremap`.

use super::regions::{Backing, Protection, Region, RegionFlags};
use super::space::{AddressSpace, ChangeError, Inner, page_ceil, table_errno};
use nix::errno::Errno;
use vmm::addr::PAGE_SIZE;
use vmm::frames::FRAMES_PER_BLOCK;
use vmm::shim_layout::{USER_END, USER_START};
use vmm::user_cpu::UserCpu;

/// Where the area may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemapPlace {
    /// `MREMAP_MAYMOVE`
    pub may_move: bool,
    /// `MREMAP_FIXED`: exactly there.
    pub fixed: Option<u64>,
    /// `MREMAP_DONTUNMAP`: the old range stays mapped, without its pages.
    pub keep: bool,
}

impl AddressSpace {
    /// Grows, shrinks or moves an area and returns where it is.
    ///
    /// # Errors
    /// As `mremap(2)`.
    pub fn remap(
        &self,
        address: u64,
        old_length: u64,
        new_length: u64,
        place: RemapPlace,
        cpu: &mut UserCpu,
    ) -> Result<u64, Errno> {
        let bad = !address.is_multiple_of(PAGE_SIZE)
            || new_length == 0
            || (place.fixed.is_some() || place.keep) && !place.may_move;
        let old_length = page_ceil(old_length).ok_or(Errno::EINVAL)?;
        let new_length = page_ceil(new_length).filter(|&length| length <= USER_END).ok_or(Errno::EINVAL)?;
        if bad || place.keep && old_length != new_length {
            return Err(Errno::EINVAL);
        }
        let old_end = address.checked_add(old_length).filter(|&end| end <= USER_END).ok_or(Errno::EFAULT)?;
        let mut inner = self.lock();
        let region = inner.regions.at(address).ok_or(Errno::EFAULT)?.clone();
        if region.protection.contains(Protection::EXECUTE) {
            inner.any_code_comes(&self.machine);
        }
        if old_length == 0 {
            // A second mapping of the same shared pages.
            if !region.is_shared() || !place.may_move {
                return Err(Errno::EINVAL);
            }
            inner.check_count(3)?;
            return self.duplicate(&mut inner, &region, address, new_length, place, cpu);
        }
        if old_end > region.end {
            return Err(Errno::EFAULT);
        }
        // Both ends of the old range, and the new one.
        inner.check_count(3)?;
        if let Some(target) = place.fixed {
            let end = target.checked_add(new_length).filter(|&end| end <= USER_END).ok_or(Errno::EINVAL)?;
            if !target.is_multiple_of(PAGE_SIZE) || target < USER_START || (target < old_end && address < end) {
                return Err(Errno::EINVAL);
            }
            self.unmap_locked(&mut inner, target, end, cpu)?;
            return self.relocate(&mut inner, &region, address, old_length, new_length, target, place.keep, cpu);
        }
        if place.keep {
            let target = inner.place(0, new_length, false).ok_or(Errno::ENOMEM)?;
            return self.relocate(&mut inner, &region, address, old_length, new_length, target, true, cpu);
        }
        if new_length <= old_length {
            if new_length < old_length {
                self.unmap_locked(&mut inner, address + new_length, old_end, cpu)?;
            }
            return Ok(address);
        }
        inner.check_growth(new_length - old_length)?;
        let new_end = address.checked_add(new_length).ok_or(Errno::ENOMEM)?;
        if old_end == region.end && new_end <= USER_END && inner.regions.overlapping(old_end, new_end).next().is_none()
        {
            inner.regions.insert(continuation(&region, old_end, new_end));
            return Ok(address);
        }
        if !place.may_move {
            return Err(Errno::ENOMEM);
        }
        let target = inner.place(0, new_length, false).ok_or(Errno::ENOMEM)?;
        self.relocate(&mut inner, &region, address, old_length, new_length, target, false, cpu)
    }

    fn duplicate(
        &self,
        inner: &mut Inner,
        region: &Region,
        address: u64,
        length: u64,
        place: RemapPlace,
        cpu: &mut UserCpu,
    ) -> Result<u64, Errno> {
        let target = match place.fixed {
            Some(target) => {
                let end = target.checked_add(length).filter(|&end| end <= USER_END).ok_or(Errno::EINVAL)?;
                if !target.is_multiple_of(PAGE_SIZE) || target < USER_START {
                    return Err(Errno::EINVAL);
                }
                self.unmap_locked(inner, target, end, cpu)?;
                target
            }
            None => inner.place(0, length, false).ok_or(Errno::ENOMEM)?,
        };
        inner.regions.insert(moved(region, address, target, length));
        Ok(target)
    }

    #[allow(clippy::too_many_arguments, reason = "two ranges and what to do with them")]
    fn relocate(
        &self,
        inner: &mut Inner,
        region: &Region,
        from: u64,
        old_length: u64,
        new_length: u64,
        to: u64,
        keep: bool,
        cpu: &mut UserCpu,
    ) -> Result<u64, Errno> {
        let carried = old_length.min(new_length);
        if new_length < old_length {
            self.unmap_locked(inner, from + new_length, from + old_length, cpu)?;
        }
        self.restore_sites(inner, from, from + carried, cpu)?;
        // Large pages come apart unless both places are aligned alike; small ones are simple to move.
        let mut pages = Vec::new();
        let mut large_ones = Vec::new();
        let taken = self.change(inner, from, from + carried, cpu, &mut |at, entry, large| {
            if large {
                large_ones.push((at, entry))
            } else {
                pages.push((at, entry))
            }
            0
        });
        if taken == Err(ChangeError::NotMade) {
            return Err(Errno::ENOMEM);
        }
        let placed =
            taken.map_err(ChangeError::errno).and_then(|()| place(inner, &pages, &large_ones, to.wrapping_sub(from)));
        if let Err(error) = placed {
            // Back to where they were: what has come there is taken away, and the tables that were
            // given up are to be had again.
            if self.change(inner, to, to + carried, cpu, &mut |_, _, _| 0) != Err(ChangeError::NotMade) {
                self.put_back(inner, &pages, &large_ones);
            }
            return Err(error);
        }
        if !keep {
            inner.regions.remove(from, from + carried);
        }
        inner.regions.insert(moved(region, from, to, new_length));
        Ok(to)
    }

    /// Maps pages again where they were; those for which there is no table are lost to the process.
    fn put_back(&self, inner: &mut Inner, pages: &[(u64, u64)], large_ones: &[(u64, u64)]) {
        let small = |&(at, entry): &(u64, u64)| {
            let entry = entry & !vmm::paging::LARGE;
            (0..u64::from(FRAMES_PER_BLOCK)).map(move |i| (at + i * PAGE_SIZE, entry + i * PAGE_SIZE))
        };
        let mut lost = Vec::new();
        for (at, entry) in pages.iter().copied().chain(large_ones.iter().flat_map(small)) {
            match inner.tables.fill(at, &[entry]) {
                Ok(written) if written[0] => {}
                _ => lost.push(vmm::paging::frame(entry)),
            }
        }
        if !lost.is_empty() {
            tracing::warn!(pages = lost.len(), "pages are lost for want of page tables");
            self.machine.frames().release_all(&lost);
        }
    }
}

/// Maps pages that were taken out of the tables `by` bytes higher up.
fn place(inner: &mut Inner, pages: &[(u64, u64)], large_ones: &[(u64, u64)], by: u64) -> Result<(), Errno> {
    for &(at, entry) in large_ones {
        let there = at.wrapping_add(by);
        let aligned = there.is_multiple_of(vmm::addr::LARGE_PAGE_SIZE);
        if aligned && inner.tables.fill_large(there, entry).map_err(|error| table_errno(&error))? {
            continue;
        }
        for i in 0..u64::from(FRAMES_PER_BLOCK) {
            let small = (entry & !vmm::paging::LARGE) + i * PAGE_SIZE;
            inner.tables.fill(there + i * PAGE_SIZE, &[small]).map_err(|error| table_errno(&error))?;
        }
    }
    for &(at, entry) in pages {
        inner.tables.fill(at.wrapping_add(by), &[entry]).map_err(|error| table_errno(&error))?;
    }
    Ok(())
}

impl Inner {
    fn check_growth(&self, bytes: u64) -> Result<(), Errno> {
        if self.regions.total().saturating_add(bytes) > self.limit { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

/// The area that begins at `from` in `region`, placed at `to`.
fn moved(region: &Region, from: u64, to: u64, length: u64) -> Region {
    let mut new = region.clone();
    if let Backing::Object { offset, .. } = &mut new.backing {
        *offset += from - region.start;
    }
    (new.start, new.end) = (to, to + length);
    new.flags.remove(RegionFlags::HEAP);
    new
}

fn continuation(region: &Region, start: u64, end: u64) -> Region {
    let mut new = moved(region, start, start, end - start);
    new.flags = region.flags;
    new
}
