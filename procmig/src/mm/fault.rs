//! Page faults: what the host cannot decide by itself.

use super::object::ObjectError;
use super::regions::{Backing, Protection, Region, RegionFlags};
use super::space::{AddressSpace, ChangeError, Inner, entry};
use vmm::addr::{GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use vmm::frames::{AtLimit, FRAMES_PER_BLOCK, Shortage};
use vmm::guard::take_fault;
use vmm::paging::{self, LARGE, OWED, PRESENT, WRITE};
use vmm::table_frames::TableError;
use vmm::tables::Leaf;
use vmm::user_cpu::UserCpu;

/// What an instruction or a system call wanted of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To fetch an instruction.
    Execute,
}

/// Why it does not get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// Nothing is mapped there (`SIGSEGV`, `SEGV_MAPERR`).
    #[error("nothing is mapped there")]
    Unmapped,
    /// The area does not allow it (`SIGSEGV`, `SEGV_ACCERR`).
    #[error("the mapping does not allow it")]
    Forbidden,
    /// Beyond the end of the file, or the file cannot be read (`SIGBUS`).
    #[error("the file has no such page")]
    NoPage,
    /// The node's memory is used up.
    #[error("the node's memory is used up")]
    OutOfMemory,
    /// The program has all the memory that it may have.
    #[error("the program has all the memory that it may have")]
    OverLimit,
    /// It was at a node that is gone.
    #[error(transparent)]
    Lost(#[from] super::owed::Lost),
}

/// Whether a page that the host could not provide is one of home's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Nothing of home's is mapped.
    Never,
    /// All pages of home's can be had now; one may have come back meanwhile.
    Perhaps,
    /// Some were, and are unmapped.
    Dropped,
}

impl From<Shortage> for FaultError {
    fn from(shortage: Shortage) -> Self {
        match shortage {
            Shortage::Node(_) => Self::OutOfMemory,
            Shortage::Account => Self::OverLimit,
        }
    }
}

impl From<TableError> for FaultError {
    fn from(error: TableError) -> Self {
        super::space::table_errno(&error);
        Self::OutOfMemory
    }
}

impl From<ObjectError> for FaultError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Shortage(shortage) => shortage.into(),
            ObjectError::BeyondEnd | ObjectError::Io(_) => Self::NoPage,
        }
    }
}

/// Frames that are not given to programs' own faults but kept for system calls, which cannot wait in the
/// middle of what they do until memory is free: 1 MiB.
pub const RESERVED_FRAMES: u32 = 256;
/// Pages that one fault maps at least, where the area reaches: a fault costs as much as filling
/// hundreds of entries, and frames that nobody touches cost nothing.
const WINDOW: u64 = 16;
/// The same where the pages just before are mapped: the area is being walked through.
const WALKING_WINDOW: u64 = 128;
/// Pages of a file that one fault maps, read from it if need be.
const FILE_WINDOW: u64 = 16;
/// The same where the pages just before are mapped already.
const WALKING_FILE_WINDOW: u64 = 64;
/// Private pages that one write copies at most: copying a page costs a hundredth of a fault.
const COPY_WINDOW: u64 = 8;
/// The same where the page before or after has been copied already.
const WALKING_COPY_WINDOW: u64 = 64;
/// Bytes of a private writable mapping of a file up to which it is taken for a program's data, most
/// of which gets written: its pages are copied as they are touched, instead of shared until then.
const DATA: u64 = 4 << 20;
/// Pages known already that are mapped when a file is mapped.
const MAX_KNOWN: usize = 1024;

/// Shows an area's file anew after an access of this process has found no page.
pub(super) fn show_again(region: &Region, at: GuestPhysAddr) {
    if let Backing::Object { object, .. } = &region.backing
        && let Some(shared) = object.shared()
    {
        shared.show_again(at);
    }
}

impl AddressSpace {
    /// Unmaps the pages that the host could not provide when the guest touched them, because the file
    /// was cut or its disk is full, so that the next touch is a fault.
    pub fn drop_gone(&self, cpu: &mut UserCpu) -> Gone {
        let inner = &mut *self.lock();
        let mut found = Gone::Never;
        let mut gone = Vec::new();
        for region in inner.regions.iter() {
            let Backing::Object { object, .. } = &region.backing else { continue };
            let Some(shared) = object.shared() else { continue };
            found = Gone::Perhaps;
            // Only what is mapped is looked at: the area may be as large as the address space.
            inner.tables.for_each_in(region.start, region.end, &mut |page, entry, _| {
                let write = region.is_shared() && entry & WRITE != 0;
                if shared.is_gone(object.machine(), region.object_page(page), write) {
                    gone.push(page);
                }
            });
        }
        for page in gone {
            if self.discard(inner, page, page + PAGE_SIZE, cpu).is_ok() {
                found = Gone::Dropped;
            }
        }
        found
    }

    /// Makes an access possible, or says why not.
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn fault(&self, address: u64, access: Access, cpu: &mut UserCpu) -> Result<(), FaultError> {
        if self.machine.frames().free() < RESERVED_FRAMES {
            return Err(FaultError::OutOfMemory);
        }
        let inner = &mut *self.lock();
        if access == Access::Read && Inner::is_identity(address) {
            // A stub that has come here with a fork, or from another node.
            return self.show_identity(inner);
        }
        self.fault_locked(inner, address, access, AtLimit::Refuse, cpu)
    }

    pub(super) fn fault_locked(
        &self,
        inner: &mut Inner,
        address: u64,
        access: Access,
        at_limit: AtLimit,
        cpu: &mut UserCpu,
    ) -> Result<(), FaultError> {
        let region = inner.regions.at(address).ok_or(FaultError::Unmapped)?.clone();
        let allowed = match access {
            Access::Read => !region.protection.is_empty(),
            Access::Write => region.protection.contains(Protection::WRITE),
            Access::Execute => region.protection.contains(Protection::EXECUTE),
        };
        if !allowed {
            return Err(FaultError::Forbidden);
        }
        let page = address & !(PAGE_SIZE - 1);
        match inner.tables.lookup(page) {
            None => self.populate(inner, &region, page, access, at_limit),
            Some(leaf) if leaf.entry & OWED != 0 => {
                self.await_owed(inner, page, &leaf)?;
                self.fault_locked(inner, address, access, at_limit, cpu)
            }
            Some(leaf) => {
                if leaf.entry & PRESENT != 0 && (access != Access::Write || leaf.entry & WRITE != 0) {
                    // Another thread was first, or the translation was only stale.
                    return Ok(());
                }
                if access == Access::Write && !region.is_shared() {
                    self.break_sharing(inner, &region, page, leaf, at_limit, cpu)
                } else {
                    let write = access == Access::Write || leaf.entry & WRITE != 0;
                    let frame = paging::frame(leaf.entry);
                    inner.tables.raise(&leaf, entry(frame, region.protection, write) | leaf.entry & LARGE);
                    Ok(())
                }
            }
        }
    }

    /// A private page that is mapped, but not for writing, gets written: it becomes writable, and
    /// with it its neighbours that the process has for itself or that are few enough to be copied.
    fn break_sharing(
        &self,
        inner: &mut Inner,
        region: &Region,
        page: u64,
        leaf: Leaf,
        at_limit: AtLimit,
        cpu: &mut UserCpu,
    ) -> Result<(), FaultError> {
        let frames = self.machine.frames();
        let first = paging::frame(leaf.entry);
        if leaf.large && (0..FRAMES_PER_BLOCK).all(|i| frames.is_sole(first.offset(i))) {
            inner.tables.raise(&leaf, entry(first, region.protection, true) | LARGE);
            return Ok(());
        }
        // A large page is split, but its neighbours are left.
        let (start, end) = if leaf.large { (page, page + PAGE_SIZE) } else { inner.copy_window(region, page) };
        let mut copied = Vec::new();
        let (mut missing, mut gone) = (None, false);
        let result = self.change(inner, start, end, cpu, &mut |at, old, large| {
            if large || old & PRESENT == 0 || old & WRITE != 0 {
                return old;
            }
            let frame = paging::frame(old);
            if frames.is_sole(frame) {
                return entry(frame, region.protection, true);
            }
            // The page itself must be had; the others are copied only while plenty is left.
            if at != page && !self.has_plenty() {
                return old;
            }
            match frames.allocate_to_overwrite_for(self.account, at_limit) {
                Ok(copy) => {
                    self.machine.ram().copy_frame(frame, copy);
                    if let Some(fault) = take_fault() {
                        show_again(region, fault);
                        frames.release(copy);
                        gone |= at == page;
                        return old;
                    }
                    copied.push((at, frame, copy));
                    entry(copy, region.protection, true)
                }
                Err(shortage) => {
                    if at == page {
                        missing = Some(shortage);
                    }
                    old
                }
            }
        });
        // Where the editor failed nobody knows which frames are in use, so all of them stay taken.
        if result == Err(ChangeError::NotMade) {
            return Err(FaultError::OutOfMemory);
        }
        let unused: Vec<_> = copied
            .into_iter()
            .map(|(at, old, copy)| {
                let took = inner.tables.lookup(at).is_some_and(|leaf| leaf.frame(at) == copy);
                if took { old } else { copy }
            })
            .collect();
        frames.release_all(&unused);
        if result.is_err() {
            return Err(FaultError::OutOfMemory);
        }
        if gone {
            return Err(FaultError::NoPage);
        }
        missing.map_or(Ok(()), |shortage| Err(shortage.into()))
    }

    /// Whether frames may be taken for what is only likely to be touched.
    pub(super) fn has_plenty(&self) -> bool {
        let frames = self.machine.frames();
        frames.free() > frames.total() / 16 && frames.has_plenty(self.account, 0)
    }

    /// Nothing is mapped at `page` yet: maps it, and what is likely to be touched next.
    fn populate(
        &self,
        inner: &mut Inner,
        region: &Region,
        page: u64,
        access: Access,
        at_limit: AtLimit,
    ) -> Result<(), FaultError> {
        match &region.backing {
            Backing::Anonymous => self.populate_anonymous(inner, region, page, at_limit),
            Backing::Object { object, .. } => {
                let walking = page >= region.start + PAGE_SIZE && inner.tables.lookup(page - PAGE_SIZE).is_some();
                let window = if walking { WALKING_FILE_WINDOW } else { FILE_WINDOW } * PAGE_SIZE;
                let start = (page & !(window - 1)).max(region.start);
                let end = ((page & !(window - 1)).saturating_add(window)).min(region.end);
                let needed = region.object_page(page);
                let first = region.object_page(start);
                let writes = access == Access::Write && region.is_shared();
                let pages = object.get(first..first + (end - start) / PAGE_SIZE, needed, writes, at_limit)?;
                let write = if is_data(region) && self.has_plenty() {
                    Written::All
                } else if access == Access::Write {
                    Written::Page(needed)
                } else {
                    Written::None
                };
                self.map_object_pages(inner, region, &pages, write, at_limit)
            }
        }
    }

    fn populate_anonymous(
        &self,
        inner: &mut Inner,
        region: &Region,
        page: u64,
        at_limit: AtLimit,
    ) -> Result<(), FaultError> {
        let frames = self.machine.frames();
        let block = page & !(LARGE_PAGE_SIZE - 1);
        let whole = region.start <= block && block + LARGE_PAGE_SIZE <= region.end;
        if whole
            && !region.flags.contains(RegionFlags::STACK)
            && let Some(first) = frames.allocate_block_for(self.account)
        {
            if inner.tables.fill_large(block, entry(first, region.protection, true) | LARGE)? {
                return Ok(());
            }
            let all: Vec<_> = (0..FRAMES_PER_BLOCK).map(|i| first.offset(i)).collect();
            frames.release_all(&all);
        }
        let walking = page >= region.start + PAGE_SIZE && inner.tables.lookup(page - PAGE_SIZE).is_some();
        let window = if walking { WALKING_WINDOW } else { WINDOW } * PAGE_SIZE;
        let start = (page & !(window - 1)).max(region.start);
        let end = (start & !(window - 1)).saturating_add(window).min(region.end);
        let mut entries = vec![0; ((end - start) / PAGE_SIZE) as usize];
        let index = |at: u64| ((at - start) / PAGE_SIZE) as usize;
        // The page itself must be had; the others are taken only while plenty is left.
        entries[index(page)] = entry(frames.allocate_for(self.account, at_limit)?, region.protection, true);
        if self.has_plenty() {
            for at in (start..end).step_by(PAGE_SIZE as usize).filter(|&at| at != page) {
                if inner.tables.lookup(at).is_some() {
                    continue;
                }
                let Ok(frame) = frames.allocate_for(self.account, AtLimit::Refuse) else { break };
                entries[index(at)] = entry(frame, region.protection, true);
            }
        }
        let written = match inner.tables.fill(start, &entries) {
            Ok(written) => written,
            Err(error) => {
                tracing::debug!(%error, "no page table for an area");
                // Those that were written are found in the tables, the others are nobody's.
                let unwritten: Vec<_> = (start..end)
                    .step_by(PAGE_SIZE as usize)
                    .map(|at| (at, entries[index(at)]))
                    .filter(|&(at, new)| new != 0 && inner.tables.lookup(at).is_none_or(|leaf| leaf.entry != new))
                    .map(|(_, new)| paging::frame(new))
                    .collect();
                frames.release_all(&unwritten);
                return Err(error.into());
            }
        };
        let unused: Vec<_> = entries
            .iter()
            .zip(&written)
            .filter(|&(&entry, &written)| entry != 0 && !written)
            .map(|(&entry, _)| paging::frame(entry))
            .collect();
        frames.release_all(&unused);
        Ok(())
    }
}

/// Which of the pages that are mapped are for writing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    /// None.
    None,
    /// This one.
    Page(u64),
    /// All of them.
    All,
}

/// Whether an area is a program's data: see [`DATA`].
fn is_data(region: &Region) -> bool {
    !region.is_shared() && region.protection.contains(Protection::WRITE) && region.length() <= DATA
}

impl Inner {
    /// Where around `page`, which is about to be copied, others are copied with it.
    fn copy_window(&self, region: &Region, page: u64) -> (u64, u64) {
        let copied = |at: u64| {
            region.start <= at
                && at < region.end
                && self.tables.lookup(at).is_some_and(|leaf| !leaf.large && leaf.entry & WRITE != 0)
        };
        let walking = copied(page.wrapping_sub(PAGE_SIZE)) || copied(page + PAGE_SIZE);
        let window = if walking { WALKING_COPY_WINDOW } else { COPY_WINDOW } * PAGE_SIZE;
        let start = page & !(window - 1);
        (start.max(region.start), start.saturating_add(window).min(region.end))
    }
}

impl AddressSpace {
    /// Maps pages of an area's object, of which the caller has given a user to each; private ones
    /// that are written are copied.
    fn map_object_pages(
        &self,
        inner: &mut Inner,
        region: &Region,
        pages: &[(u64, vmm::addr::Frame)],
        written: Written,
        at_limit: AtLimit,
    ) -> Result<(), FaultError> {
        let frames = self.machine.frames();
        let mut result = Ok(());
        let base = region.object_page(region.start);
        for &(page, frame) in pages {
            let at = region.start + (page - base) * PAGE_SIZE;
            let write = written == Written::All || written == Written::Page(page);
            let new = if region.is_shared() {
                // Nobody here needs to know which pages of home's are written.
                Some((frame, true))
            } else if write {
                match frames.allocate_to_overwrite_for(self.account, at_limit) {
                    Ok(copy) => {
                        self.machine.ram().copy_frame(frame, copy);
                        if let Some(fault) = take_fault() {
                            show_again(region, fault);
                            result = Err(FaultError::NoPage);
                        }
                        frames.release(frame);
                        Some((copy, true))
                    }
                    Err(error) => {
                        result = Err(error.into());
                        None
                    }
                }
            } else {
                Some((frame, false))
            };
            let Some((frame, write)) = new else {
                frames.release(frame);
                continue;
            };
            match inner.tables.fill(at, &[entry(frame, region.protection, write)]) {
                Ok(written) if written[0] => {}
                Ok(_) => frames.release(frame),
                Err(error) => {
                    frames.release(frame);
                    result = Err(error.into());
                }
            }
        }
        result
    }

    /// Maps the pages of a new area that its object has already.
    pub(super) fn map_known_pages(&self, inner: &mut Inner, region: &Region) {
        let Backing::Object { object, .. } = &region.backing else { return };
        if region.protection.is_empty() || is_data(region) {
            return;
        }
        let first = region.object_page(region.start);
        let pages = object.cached(first..first + region.length() / PAGE_SIZE, MAX_KNOWN);
        if let Err(error) = self.map_object_pages(inner, region, &pages, Written::None, AtLimit::Refuse) {
            tracing::debug!(%error, "known pages are left for later");
        }
    }
}
