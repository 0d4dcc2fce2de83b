//! An address space: its areas, its page tables, and the calls that change them.

use super::gate::Gate;
use super::identity::{IdentityPage, Member};
use super::layout::Layout;
use super::object::PageObject;
use super::owed::Owed;
use super::regions::{Backing, Protection, Region, RegionFlags, Regions};
use super::rewrite::Rewrites;
use super::segments::Attachment;
use super::slots::SlotPage;
use super::thread_ids::Bases;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use vmm::accounts::Account;
use vmm::addr::{Frame, GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use vmm::entry::Paging;
use vmm::frames::FRAMES_PER_BLOCK;
use vmm::machine::Machine;
use vmm::paging::{self, HAS_FRAME, NO_EXECUTE, OWED, PRESENT, USER, WRITE};
use vmm::shim_layout::{USER_END, USER_START};
use vmm::table_frames::TableError;
use vmm::tables::{Changes, PageTables};
use vmm::user_cpu::UserCpu;

/// Most areas of one address space, as Linux's default `vm.max_map_count`.
const MAX_REGIONS: usize = 65_530;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What to map.
#[derive(Debug, Clone)]
pub struct MapRequest {
    /// Wanted address; 0 for any.
    pub address: u64,
    /// Bytes; rounded up to pages.
    pub length: u64,
    /// Rights.
    pub protection: Protection,
    /// Properties.
    pub flags: RegionFlags,
    /// Content.
    pub backing: Backing,
    /// For `/proc/self/maps`.
    pub name: Arc<str>,
    /// The address is meant, whatever is there (`MAP_FIXED`).
    pub fixed: bool,
    /// With `fixed`: refuse if something is there (`MAP_FIXED_NOREPLACE`).
    pub keep: bool,
    /// Below 2 GiB (`MAP_32BIT`).
    pub low: bool,
    /// Not charged (`MAP_NORESERVE`).
    pub no_reserve: bool,
}

impl MapRequest {
    /// Anonymous private memory at any address.
    pub fn anonymous(length: u64, protection: Protection) -> Self {
        Self {
            address: 0,
            length,
            protection,
            flags: RegionFlags::empty(),
            backing: Backing::Anonymous,
            name: "".into(),
            fixed: false,
            keep: false,
            low: false,
            no_reserve: false,
        }
    }
}

/// An address space. Threads and `vfork` children share one.
pub struct AddressSpace {
    /// Never used again for another address space of this node.
    id: u64,
    pub(super) machine: Arc<Machine>,
    pub(super) inner: Mutex<Inner>,
    /// To which its frames are charged.
    pub(super) account: Account,
    /// What another node still had of it when it came here.
    pub(super) owed: OnceLock<Arc<Owed>>,
}

/// What the lock protects.
pub(super) struct Inner {
    pub(super) regions: Regions,
    pub(super) tables: PageTables,
    pub(super) layout: Layout,
    pub(super) limit: u64,
    pub(super) heap_start: u64,
    pub(super) heap_end: u64,
    /// System V segments by where they are attached.
    pub(super) segments: BTreeMap<u64, Attachment>,
    /// The threads that run in it.
    pub(super) members: Vec<Member>,
    pub(super) slots: Option<SlotPage>,
    pub(super) identity: Option<IdentityPage>,
    pub(super) bases: Bases,
    pub(super) rewrites: Rewrites,
}

/// An errno for a failure to change page tables.
pub(super) fn table_errno(error: &TableError) -> Errno {
    if let TableError::Hypervisor(error) = error {
        tracing::error!(error = %crate::chain(error), "page tables");
    }
    Errno::ENOMEM
}

/// Why not all entries of a range were changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChangeError {
    /// No memory for a page table: all that was offered to be changed by then is changed.
    #[error("no memory for a page table")]
    CutShort,
    /// The hypervisor failed: what was offered may or may not be changed.
    #[error("page tables could not be edited")]
    NotMade,
}

impl ChangeError {
    /// What the call answers.
    pub(super) fn errno(self) -> Errno {
        Errno::ENOMEM
    }
}

/// Rounds up to a page; `None` on overflow.
pub(super) fn page_ceil(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(PAGE_SIZE)
}

/// The entry for a frame with an area's rights. `write` is false where a write must be seen first.
pub(super) fn entry(frame: Frame, protection: Protection, write: bool) -> u64 {
    let mut entry = frame.address().raw() | USER | HAS_FRAME;
    if !protection.is_empty() {
        entry |= PRESENT;
    }
    if write && protection.contains(Protection::WRITE) {
        entry |= WRITE;
    }
    if !protection.contains(Protection::EXECUTE) {
        entry |= NO_EXECUTE;
    }
    entry
}

impl AddressSpace {
    /// An address space with nothing in it, whose frames are charged to `account`. `limit` is
    /// `RLIMIT_AS` in bytes.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(machine: Arc<Machine>, layout: Layout, limit: u64, account: Account) -> Result<Arc<Self>, Errno> {
        let tables = PageTables::new(machine.clone()).map_err(|error| table_errno(&error))?;
        Ok(Self::with(
            machine,
            account,
            Inner {
                regions: Regions::default(),
                tables,
                layout,
                limit,
                heap_start: 0,
                heap_end: 0,
                segments: BTreeMap::new(),
                members: Vec::new(),
                slots: None,
                identity: None,
                bases: Bases::default(),
                rewrites: Rewrites::default(),
            },
        ))
    }

    pub(super) fn with(machine: Arc<Machine>, account: Account, inner: Inner) -> Arc<Self> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, machine, inner: Mutex::new(inner), account, owed: OnceLock::new() })
    }

    /// Names the address space in futex keys.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where things lie in it.
    pub fn layout(&self) -> Layout {
        self.lock().layout
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while an address space is locked")
    }

    /// The same if nobody else has the lock.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Inner>> {
        self.inner.try_lock().ok()
    }

    /// The page-table root. Wait for whoever changes the tables.
    pub fn root(&self) -> GuestPhysAddr {
        self.lock().tables.root()
    }

    /// Sets `RLIMIT_AS` in bytes.
    pub fn set_limit(&self, limit: u64) {
        self.lock().limit = limit;
    }

    /// Whether the area at `address` is shared.
    pub fn is_shared_at(&self, address: u64) -> bool {
        self.lock().regions.at(address).is_some_and(Region::is_shared)
    }

    /// Whether a page is mapped at `address`.
    pub fn is_mapped_at(&self, address: u64) -> bool {
        self.lock().tables.lookup(address).is_some()
    }

    /// A free place for `length` bytes, where `mmap` would put them.
    pub fn find_place(&self, length: u64) -> Option<u64> {
        self.lock().place(0, page_ceil(length)?, false)
    }

    /// Bytes mapped.
    pub fn virtual_size(&self) -> u64 {
        self.lock().regions.total()
    }

    /// Bytes of frames mapped, touched or not.
    pub fn resident(&self) -> u64 {
        let inner = self.lock();
        let mut bytes = 0;
        inner.tables.for_each(&mut |_, _, large| bytes += if large { LARGE_PAGE_SIZE } else { PAGE_SIZE });
        bytes
    }

    /// Copies of the areas, in order.
    pub fn regions(&self) -> Vec<Region> {
        self.lock().regions.iter().cloned().collect()
    }

    /// Maps an area and returns where.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn map(&self, request: MapRequest, cpu: &mut UserCpu) -> Result<u64, Errno> {
        if request.length == 0 {
            return Err(Errno::EINVAL);
        }
        let length = page_ceil(request.length).filter(|&length| length <= USER_END).ok_or(Errno::ENOMEM)?;
        self.map_locked(&mut self.lock(), request, length, cpu)
    }

    pub(super) fn map_locked(
        &self,
        inner: &mut Inner,
        request: MapRequest,
        length: u64,
        cpu: &mut UserCpu,
    ) -> Result<u64, Errno> {
        self.check_limits(inner, &request, length)?;
        let start = if request.fixed {
            if !request.address.is_multiple_of(PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            let end = request.address.checked_add(length).ok_or(Errno::ENOMEM)?;
            if end > USER_END {
                return Err(Errno::ENOMEM);
            }
            if request.address < USER_START {
                return Err(Errno::EPERM);
            }
            if inner.regions.overlapping(request.address, end).next().is_some() {
                if request.keep {
                    return Err(Errno::EEXIST);
                }
                self.unmap_locked(inner, request.address, end, cpu)?;
            }
            request.address
        } else {
            inner.place(request.address, length, request.low).ok_or(Errno::ENOMEM)?
        };
        let region = Region {
            start,
            end: start + length,
            protection: request.protection,
            flags: request.flags,
            backing: request.backing,
            name: request.name,
        };
        inner.code_comes(&self.machine, &region);
        self.map_known_pages(inner, &region);
        inner.regions.insert(region);
        Ok(start)
    }

    /// Unmaps what lies in `address..address + length`.
    ///
    /// # Errors
    /// As `munmap(2)`.
    pub fn unmap(&self, address: u64, length: u64, cpu: &mut UserCpu) -> Result<(), Errno> {
        let end = range(address, length)?;
        self.unmap_locked(&mut self.lock(), address, end, cpu)
    }

    pub(super) fn unmap_locked(&self, inner: &mut Inner, start: u64, end: u64, cpu: &mut UserCpu) -> Result<(), Errno> {
        inner.check_cuts(start, end)?;
        self.restore_sites(inner, start, end, cpu)?;
        self.code_goes(inner, start, end);
        let removed = inner.regions.remove(start, end);
        if removed.is_empty() {
            return Ok(());
        }
        let result = self.discard(inner, start, end, cpu);
        if result.is_err() {
            // Some pages are still there, so the areas stay; those that are gone are made anew when touched.
            removed.into_iter().for_each(|region| inner.regions.insert(region));
            return result;
        }
        // The objects go after the frames that the tables refer to.
        drop(removed);
        result
    }

    /// Drops the pages in a range: they are made anew when touched.
    pub(super) fn discard(&self, inner: &mut Inner, start: u64, end: u64, cpu: &mut UserCpu) -> Result<(), Errno> {
        let mut freed = Vec::new();
        let result = self.change(inner, start, end, cpu, &mut |_, entry, large| {
            let first = paging::frame(entry);
            freed.extend((0..if large { FRAMES_PER_BLOCK } else { 1 }).map(|i| first.offset(i)));
            0
        });
        // Where memory ran out on the way, what was offered is out of the tables; only where the edits could
        // not be made may the guest still use these frames, which are lost then.
        if !matches!(result, Err(ChangeError::NotMade)) {
            self.machine.frames().release_all(&freed);
        }
        result.map_err(ChangeError::errno)
    }

    /// Changes the entries of a range; when it returns no thread uses the old ones any more.
    pub(super) fn change(
        &self,
        inner: &mut Inner,
        start: u64,
        end: u64,
        cpu: &mut UserCpu,
        change: &mut dyn FnMut(u64, u64, bool) -> u64,
    ) -> Result<(), ChangeError> {
        let mut changes = Changes::default();
        let result = inner.tables.update(start, end, change, &mut changes).map_err(|error| {
            table_errno(&error);
            ChangeError::CutShort
        });
        if changes.is_empty() {
            return result;
        }
        let visited = inner.load_root(cpu);
        let applied = changes.apply(cpu, |cpu| inner.hold_out_others(cpu));
        if let Some(root) = visited {
            cpu.set_root(root);
        }
        if let Err(error) = applied {
            // Without the edits the guest could use frames that are about to be freed.
            tracing::error!(error = %crate::chain(&error), "page tables could not be edited");
            return Err(ChangeError::NotMade);
        }
        result
    }

    /// Changes the rights of a range.
    ///
    /// # Errors
    /// As `mprotect(2)`.
    pub fn protect(&self, address: u64, length: u64, protection: Protection, cpu: &mut UserCpu) -> Result<(), Errno> {
        if length == 0 && address.is_multiple_of(PAGE_SIZE) {
            return Ok(());
        }
        let end = range(address, length).map_err(|error| if error == Errno::EINVAL { error } else { Errno::ENOMEM })?;
        let mut inner = self.lock();
        // As Linux: what lies before the first hole is changed, though the call fails.
        let (wanted_end, end) = (end, inner.regions.covered_until(address, end));
        let result = if end < wanted_end { Err(Errno::ENOMEM) } else { Ok(()) };
        if end == address {
            return result;
        }
        if protection.contains(Protection::WRITE)
            && inner.regions.overlapping(address, end).any(|region| region.flags.contains(RegionFlags::NO_WRITE))
        {
            return Err(Errno::EACCES);
        }
        if inner.regions.overlapping(address, end).all(|region| region.protection == protection) {
            return result;
        }
        inner.check_cuts(address, end)?;
        if protection.contains(Protection::WRITE) {
            // Who writes there may well read it first.
            self.restore_sites(&mut inner, address, end, cpu)?;
        }
        if protection.contains(Protection::EXECUTE) {
            inner.any_code_comes(&self.machine);
        } else {
            self.code_goes(&mut inner, address, end);
        }
        // A page that may be shared becomes writable only when a write is seen.
        let machine = self.machine.clone();
        let regions = inner.regions.clone_range(address, end);
        self.change(&mut inner, address, end, cpu, &mut |at, old, large| {
            if old & OWED != 0 {
                // It gets its rights when it is here.
                return old;
            }
            let keeps_write = old & WRITE != 0;
            let own = !large
                && regions.at(at).is_some_and(|region| matches!(region.backing, Backing::Anonymous))
                && machine.frames().is_sole(paging::frame(old));
            entry(paging::frame(old), protection, keeps_write || own) | old & paging::LARGE
        })
        .map_err(ChangeError::errno)?;
        inner.regions.modify(address, end, |region| region.protection = protection);
        result
    }

    /// Sets the end of the heap and returns it; the old one if it cannot be moved.
    pub fn set_break(&self, wanted: u64, cpu: &mut UserCpu) -> u64 {
        let mut inner = self.lock();
        let (start, old) = (inner.heap_start, inner.heap_end);
        if wanted < start || wanted > USER_END {
            return old;
        }
        let (Some(old_page), Some(new_page)) = (page_ceil(old), page_ceil(wanted)) else { return old };
        if new_page < old_page {
            if self.unmap_locked(&mut inner, new_page, old_page, cpu).is_err() {
                return old;
            }
        } else if new_page > old_page {
            let mut request = MapRequest::anonymous(new_page - old_page, Protection::READ | Protection::WRITE);
            request.flags = RegionFlags::HEAP;
            request.name = "[heap]".into();
            let free = inner.regions.overlapping(old_page, new_page + PAGE_SIZE).next().is_none();
            if !free || self.check_limits(&inner, &request, new_page - old_page).is_err() {
                return old;
            }
            let MapRequest { protection, flags, backing, name, .. } = request;
            inner.regions.insert(Region { start: old_page, end: new_page, protection, flags, backing, name });
        }
        inner.heap_end = wanted;
        wanted
    }

    /// Says where the heap starts; done once, when the program is loaded.
    pub fn place_heap(&self, start: u64) {
        let mut inner = self.lock();
        (inner.heap_start, inner.heap_end) = (start, start);
    }

    /// Drops pages (`MADV_DONTNEED`): private anonymous ones read as zeros, file pages as in the file.
    ///
    /// # Errors
    /// `ENOMEM` if some of the range is not mapped (the rest is done), `EINVAL` for a bad range.
    pub fn forget(&self, address: u64, length: u64, cpu: &mut UserCpu) -> Result<(), Errno> {
        let end = range(address, length)?;
        let mut inner = self.lock();
        let covered = inner.regions.covers(address, end);
        let parts: Vec<_> =
            inner.regions.overlapping(address, end).map(|r| (r.start.max(address), r.end.min(end))).collect();
        for (start, end) in parts {
            self.restore_sites(&mut inner, start, end, cpu)?;
            self.code_goes(&mut inner, start, end);
            // A thread may be in a stub.
            let mut start = start;
            for stubs in inner.rewrites.stub_pages(start, end) {
                self.discard(&mut inner, start, stubs, cpu)?;
                start = stubs + PAGE_SIZE;
            }
            self.discard(&mut inner, start, end, cpu)?;
        }
        if covered { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Sets and clears properties of the areas in a range.
    ///
    /// # Errors
    /// `ENOMEM` if some of the range is not mapped, `EINVAL` for a bad range.
    pub fn flag(&self, address: u64, length: u64, set: RegionFlags, clear: RegionFlags) -> Result<(), Errno> {
        let end = range(address, length)?;
        let mut inner = self.lock();
        if !inner.regions.covers(address, end) {
            return Err(Errno::ENOMEM);
        }
        if inner.regions.overlapping(address, end).all(|region| region.flags == region.flags.difference(clear) | set) {
            return Ok(());
        }
        inner.check_cuts(address, end)?;
        inner.regions.modify(address, end, |region| region.flags = region.flags.difference(clear) | set);
        Ok(())
    }

    /// Whether all of a range is mapped.
    ///
    /// # Errors
    /// `ENOMEM` if not, `EINVAL` for a bad range.
    pub fn check_mapped(&self, address: u64, length: u64) -> Result<(), Errno> {
        let end = range(address, length)?;
        if self.lock().regions.covers(address, end) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// For each page of a mapped range, which the caller keeps short, whether a frame is behind it (`mincore`).
    ///
    /// # Errors
    /// `ENOMEM` if some of the range is not mapped, `EINVAL` for a bad range.
    pub fn resident_pages(&self, address: u64, length: u64) -> Result<Vec<u8>, Errno> {
        let end = range(address, length)?;
        let inner = self.lock();
        if !inner.regions.covers(address, end) {
            return Err(Errno::ENOMEM);
        }
        let mut pages = vec![0; ((end - address) / PAGE_SIZE) as usize];
        inner.tables.for_each_in(address, end, &mut |at, _, large| {
            let last = if large { at + LARGE_PAGE_SIZE } else { at + PAGE_SIZE }.min(end);
            let index = |at: u64| ((at - address) / PAGE_SIZE) as usize;
            pages[index(at.max(address))..index(last)].fill(1);
        });
        Ok(pages)
    }

    /// Has what was written to shared files in a range written to where they are kept (`msync`).
    ///
    /// # Errors
    /// `ENOMEM` if some of the range is not mapped, `EINVAL` for a bad range, `EIO` and others if a file
    /// cannot be written.
    pub fn sync(&self, address: u64, length: u64) -> Result<(), Errno> {
        let end = range(address, length)?;
        let (objects, covered) = {
            let inner = self.lock();
            let mut objects: Vec<Arc<PageObject>> = Vec::new();
            for region in inner.regions.overlapping(address, end).filter(|region| region.is_shared()) {
                if let Backing::Object { object, .. } = &region.backing
                    && !objects.iter().any(|other| Arc::ptr_eq(other, object))
                {
                    objects.push(object.clone());
                }
            }
            (objects, inner.regions.covers(address, end))
        };
        // It may take long: other threads go on meanwhile.
        for shared in objects.iter().filter_map(|object| object.shared()) {
            shared.sync().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        }
        if covered { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// A copy for a forked child: private pages are shared until one of the two writes.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn fork(&self, cpu: &mut UserCpu) -> Result<Arc<Self>, Errno> {
        let mut inner = self.lock();
        let machine = &self.machine;
        inner.hold_out_others(cpu);
        let Inner { regions, tables, .. } = &mut *inner;
        let divided = tables.fork(&mut |at, entry, large| {
            let Some(region) = regions.at(at) else { return (entry, 0) };
            if region.flags.intersects(RegionFlags::DONT_FORK | RegionFlags::WIPE_ON_FORK) {
                return (entry, 0);
            }
            let first = paging::frame(entry);
            for i in 0..if large { FRAMES_PER_BLOCK } else { 1 } {
                machine.frames().share(first.offset(i));
            }
            if region.is_shared() { (entry, entry) } else { (entry & !WRITE, entry & !WRITE) }
        });
        let child_tables = match divided {
            Ok(tables) => tables,
            Err((error, partial)) => {
                if let Some(partial) = partial {
                    release_frames(machine, &partial);
                }
                return Err(table_errno(&error));
            }
        };
        cpu.set_root(inner.tables.root());
        let mut regions = Regions::default();
        for region in inner.regions.iter().filter(|region| !region.flags.contains(RegionFlags::DONT_FORK)) {
            let mut region = region.clone();
            region.flags.remove(RegionFlags::LOCKED);
            regions.insert(region);
        }
        let child = Self::with(
            machine.clone(),
            self.account,
            Inner {
                regions,
                tables: child_tables,
                layout: inner.layout,
                limit: inner.limit,
                heap_start: inner.heap_start,
                heap_end: inner.heap_end,
                segments: inner.segments.clone(),
                members: Vec::new(),
                slots: None,
                identity: None,
                bases: inner.bases,
                rewrites: inner.rewrites.share(machine),
            },
        );
        if let Some(owed) = self.owed() {
            child.owe(owed.clone());
        }
        Ok(child)
    }

    fn check_limits(&self, inner: &Inner, request: &MapRequest, length: u64) -> Result<(), Errno> {
        inner.check_count(1)?;
        if inner.regions.total().saturating_add(length) > inner.limit {
            return Err(Errno::ENOMEM);
        }
        // As Linux's heuristic: what can never fit is refused at once, the rest when it is touched.
        let charged = request.protection.contains(Protection::WRITE)
            && !request.no_reserve
            && matches!(request.backing, Backing::Anonymous);
        let frames = self.machine.frames();
        let most = frames.total().min(frames.account_state(self.account).1);
        if charged && length > u64::from(most) * PAGE_SIZE {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }
}

impl Inner {
    /// Gives the caller's vCPU the root that the tree has now, for it is to run the editor: while the
    /// thread was outside another may have forked, which retires the root that it ran on. Returns the
    /// root to go back to if the vCPU runs another address space.
    fn load_root(&self, cpu: &mut UserCpu) -> Option<GuestPhysAddr> {
        let (before, root) = (cpu.root(), self.tables.root());
        if before == root && cpu.machine().paging() == Paging::Shadow {
            return None;
        }
        let mine = cpu.interrupter();
        let gate = self.members.iter().map(|member| &member.gate).find(|gate| gate.is_of(&mine));
        // A visitor, or a thread that was held out, may have cached what was changed, even where the
        // root is in the same frame.
        if before != root || gate.is_none_or(Gate::is_closed) {
            cpu.set_root(root);
        }
        if gate.is_none() { Some(before) } else { None }
    }

    /// Takes all threads but the caller's out of the guest. They come back in when the lock is free
    /// and have then loaded the root anew.
    fn hold_out_others(&self, cpu: &UserCpu) {
        let mine = cpu.interrupter();
        for Member { gate, .. } in &self.members {
            if !gate.is_of(&mine) {
                gate.close_and_wait();
            }
        }
    }

    /// Whether so many areas more are too many.
    pub(super) fn check_count(&self, more: usize) -> Result<(), Errno> {
        if self.regions.len() + more > MAX_REGIONS { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Whether cutting areas at the edges of a range makes too many of them.
    pub(super) fn check_cuts(&self, start: u64, end: u64) -> Result<(), Errno> {
        let is_cut = |at: u64| self.regions.at(at).is_some_and(|region| region.start < at);
        self.check_count(usize::from(is_cut(start)) + usize::from(is_cut(end)))
    }

    pub(super) fn place(&self, hint: u64, length: u64, low: bool) -> Option<u64> {
        if hint != 0 {
            let hint = hint & !(PAGE_SIZE - 1);
            let end = hint.checked_add(length)?;
            if hint >= USER_START && end <= USER_END && self.regions.overlapping(hint, end).next().is_none() {
                return Some(hint);
            }
        }
        let top = if low { 1 << 31 } else { self.layout.map_top };
        let alignment = if length >= LARGE_PAGE_SIZE && !low { LARGE_PAGE_SIZE } else { PAGE_SIZE };
        self.regions
            .find_gap(length, top, alignment)
            .or_else(|| self.regions.find_gap(length, top, PAGE_SIZE))
            .or_else(|| self.regions.find_gap(length, USER_END, PAGE_SIZE).filter(|_| !low))
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        release_frames(&self.machine, &inner.tables);
        if let Some(page) = &inner.slots {
            self.machine.frames().release(page.frame);
        }
        if let Some(page) = &inner.identity {
            self.machine.frames().release(page.frame);
        }
        inner.rewrites.release(&self.machine);
    }
}

fn release_frames(machine: &Machine, tables: &PageTables) {
    let mut frames = Vec::new();
    tables.for_each(&mut |_, entry, large| {
        let first = paging::frame(entry);
        frames.extend((0..if large { FRAMES_PER_BLOCK } else { 1 }).map(|i| first.offset(i)));
    });
    machine.frames().release_all(&frames);
}

/// The end of a page range that a call names.
pub(super) fn range(address: u64, length: u64) -> Result<u64, Errno> {
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let length = page_ceil(length).ok_or(Errno::EINVAL)?;
    let end = address.checked_add(length).filter(|&end| end <= USER_END).ok_or(Errno::EINVAL)?;
    if length == 0 { Err(Errno::EINVAL) } else { Ok(end) }
}

/// Shared memory that is not a file's.
pub fn shared_memory(machine: Arc<Machine>, account: Account) -> Arc<PageObject> {
    Arc::new(PageObject::charged(machine, super::object::Source::Zeros, account))
}
