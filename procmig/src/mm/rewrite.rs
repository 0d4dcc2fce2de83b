//! Call sites of a program that are made to need no kernel: see [`vmm::site_code`].
//!
//! A stub lies in what is left of the last page of the program's or library's own code, behind the end of its
//! segment, where nothing is the program's. So it is always near, shows in no list of mappings, and is copied
//! with the address space, or taken to another node with it, as any private page: nothing else is needed there
//! to run it. A page is never written while others may run it: it is replaced by a changed copy.

use super::fault::Access;
use super::object::PageObject;
use super::regions::{Backing, Protection, Region, RegionFlags};
use super::space::{AddressSpace, ChangeError, Inner, entry};
use crate::elf::program::{self, Segment};
use crate::migration::image::SiteImage;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::frames::AtLimit;
use vmm::machine::Machine;
use vmm::paging::{self, OWED, PRESENT};
use vmm::regs::Regs;
use vmm::shim_layout::USER_END;
use vmm::site_code::{self, Caller, Identity, SITE_SIZE};
use vmm::tables::PageTables;
use vmm::user_cpu::UserCpu;

/// Most sites of one address space.
const MAX_SITES: usize = 32;

/// A rewritten site.
#[derive(Debug, Clone, Copy)]
struct Site {
    caller: Caller,
    at: u64,
    stub: u64,
    /// Bytes of the stub.
    size: u64,
}

impl Site {
    /// As an image says, if that can be one.
    fn of(image: &SiteImage) -> Option<Self> {
        let caller = match image.asks {
            0 => Caller::Own(Identity::Process),
            1 => Caller::Own(Identity::Thread),
            2 => Caller::Any,
            _ => return None,
        };
        let SiteImage { at, stub, .. } = *image;
        if at >= USER_END || stub >= USER_END {
            return None;
        }
        let size = site_code::stub(caller, at, stub)?.len() as u64;
        let is_in_page = |start: u64, size: u64| start % PAGE_SIZE + size <= PAGE_SIZE;
        (is_in_page(at, SITE_SIZE) && is_in_page(stub, size)).then_some(Self { caller, at, stub, size })
    }

    fn image(&self) -> SiteImage {
        let asks = match self.caller {
            Caller::Own(Identity::Process) => 0,
            Caller::Own(Identity::Thread) => 1,
            Caller::Any => 2,
        };
        SiteImage { at: self.at, stub: self.stub, asks }
    }

    fn page(self) -> u64 {
        self.at & !(PAGE_SIZE - 1)
    }

    fn stub_page(self) -> u64 {
        self.stub & !(PAGE_SIZE - 1)
    }

    /// The registers of a thread in the stub when it was at the site.
    fn before_call(self, regs: &Regs) -> Regs {
        let rax = self.caller.lost_number(regs.rip - self.stub).unwrap_or(regs.rax);
        Regs { rip: self.at, rax, ..*regs }
    }
}

/// What was rewritten in an address space. Without it all goes on running; it is needed to undo it.
#[derive(Debug, Default)]
pub(super) struct Rewrites {
    sites: Vec<Site>,
    /// The changed pages. Each frame has a user more, so that what has it is that page.
    pages: BTreeMap<u64, Frame>,
}

impl Rewrites {
    /// The same for a copy of the address space.
    pub(super) fn share(&self, machine: &Machine) -> Self {
        self.pages.values().for_each(|&frame| machine.frames().share(frame));
        Self { sites: self.sites.clone(), pages: self.pages.clone() }
    }

    /// The address space is gone.
    pub(super) fn release(&mut self, machine: &Machine) {
        let frames: Vec<Frame> = std::mem::take(&mut self.pages).into_values().collect();
        machine.frames().release_all(&frames);
    }

    /// The pages in `start..end` that hold stubs, in order.
    pub(super) fn stub_pages(&self, start: u64, end: u64) -> Vec<u64> {
        let holds_stub = |page: u64| self.sites.iter().any(|site| site.stub_page() == page);
        self.pages.range(start..end).map(|(&page, _)| page).filter(|&page| holds_stub(page)).collect()
    }

    /// The sites of which the stubs are there.
    pub(super) fn images(&self, tables: &PageTables) -> Vec<SiteImage> {
        let is_there = |site: &&Site| {
            let page = site.stub_page();
            tables.lookup(page).is_some_and(|leaf| !leaf.large && self.pages.get(&page) == Some(&leaf.frame(page)))
        };
        self.sites.iter().filter(is_there).map(Site::image).collect()
    }

    /// The site whose stub holds `address`.
    fn site_at(&self, address: u64) -> Option<Site> {
        self.sites.iter().find(|site| (site.stub..site.stub + site.size).contains(&address)).copied()
    }
}

impl AddressSpace {
    /// Takes over what was rewritten at another node, as far as it is there: a process that has just arrived.
    pub fn adopt_sites(&self, images: &[SiteImage]) {
        let inner = &mut *self.lock();
        for site in images.iter().take(MAX_SITES).filter_map(Site::of) {
            let stub = site_code::stub(site.caller, site.at, site.stub);
            let jump = site_code::jump(site.at, site.stub);
            let stub = stub.and_then(|stub| self.private_code(inner, site.stub, &stub));
            let Some(stub) = stub else { continue };
            let jump = jump.and_then(|jump| self.private_code(inner, site.at, &jump));
            let pages = [Some((site.stub_page(), stub)), jump.map(|frame| (site.page(), frame))];
            for (page, frame) in pages.into_iter().flatten() {
                if inner.rewrites.pages.insert(page, frame).is_none() {
                    self.machine.frames().share(frame);
                }
            }
            inner.rewrites.sites.push(site);
        }
    }

    /// The pages that hold what was rewritten, or stubs.
    pub fn rewritten_pages(&self) -> BTreeSet<u64> {
        self.lock().rewrites.pages.keys().copied().collect()
    }

    /// The frame of the page of code at `at`, if that is none of the file's and holds these bytes there. It may have lost
    /// its rights: what is rewritten must be undone then.
    fn private_code(&self, inner: &Inner, at: u64, bytes: &[u8]) -> Option<Frame> {
        let region = inner.regions.at(at).filter(|region| is_of_file(region))?;
        let Backing::Object { object, .. } = &region.backing else { return None };
        let page = at & !(PAGE_SIZE - 1);
        let leaf = inner.tables.lookup(page).filter(|leaf| leaf.entry & OWED == 0 && !leaf.large)?;
        let frame = leaf.frame(page);
        let offset = (at - page) as usize;
        let is_private = object.frame(region.object_page(page)) != Some(frame);
        (is_private && self.bytes_of(frame).get(offset..offset + bytes.len()) == Some(bytes)).then_some(frame)
    }

    /// Has the call that ends before `behind` answered there from now on, where the identity page has an answer;
    /// whether it is.
    pub fn rewrite_site(&self, which: Identity, behind: u64, cpu: &mut UserCpu) -> bool {
        let inner = &mut *self.lock();
        let Some(at) = behind.checked_sub(SITE_SIZE) else { return false };
        let Inner { rewrites, tables, .. } = inner;
        let is_there = |site: &Site| {
            let (page, leaf) = (site.stub_page(), tables.lookup(site.stub));
            leaf.is_some_and(|leaf| rewrites.pages.get(&page) == Some(&leaf.frame(page)))
        };
        let there: Vec<Site> = rewrites.sites.iter().filter(|site| is_there(site)).copied().collect();
        rewrites.sites = there;
        self.is_rewritten(inner, at) || self.try_rewrite(inner, which, at, cpu).is_some()
    }

    /// Whether the site at `at` leads to its stub, which is there.
    fn is_rewritten(&self, inner: &Inner, at: u64) -> bool {
        let page = at & !(PAGE_SIZE - 1);
        let leaf = inner.tables.lookup(page).filter(|leaf| !leaf.large);
        let frame = leaf.map(|leaf| leaf.frame(page));
        let Some(frame) = frame.filter(|frame| inner.rewrites.pages.get(&page) == Some(frame)) else { return false };
        let bytes = self.bytes_of(frame);
        inner.rewrites.sites.iter().filter(|site| site.at == at).any(|site| {
            site_code::jump(at, site.stub).is_some_and(|jump| bytes[(at - page) as usize..].starts_with(&jump))
        })
    }

    fn try_rewrite(&self, inner: &mut Inner, which: Identity, at: u64, cpu: &mut UserCpu) -> Option<()> {
        let page = at & !(PAGE_SIZE - 1);
        let offset = (at - page) as usize;
        let region = inner.regions.at(at).filter(|region| is_code_of_this_host(region))?.clone();
        let Backing::Object { object, .. } = &region.backing else { return None };
        let old = self.pristine(inner, &region, page, cpu)?;
        let mut code = self.bytes_of(old);
        let site_bytes = code.get(offset..offset + SITE_SIZE as usize)?;
        let caller = Caller::of(site_bytes.try_into().ok()?, which)?;
        if let Some(&site) = inner.rewrites.sites.iter().find(|site| (site.caller, site.at) == (caller, at)) {
            let jump = site_code::jump(at, site.stub)?;
            code[offset..offset + jump.len()].copy_from_slice(&jump);
            return self.replace(inner, &region, page, &code, cpu);
        }
        if inner.rewrites.sites.len() >= MAX_SITES {
            return None;
        }
        let (stub_page, free) = self.room(&region, object, at)?;
        let stub = inner.rewrites.sites.iter().filter(|site| site.stub_page() == stub_page);
        let stub = stub.map(|site| (site.stub + site.size).next_multiple_of(16)).max().unwrap_or(free);
        let stub_bytes = site_code::stub(caller, at, stub)?;
        let size = stub_bytes.len() as u64;
        if stub + size > stub_page + PAGE_SIZE {
            return None;
        }
        let jump = site_code::jump(at, stub)?;
        // Here and not at its first fault, for then it may be too late to refuse.
        self.show_identity(inner).ok()?;
        let stub_offset = (stub - stub_page) as usize;
        if stub_page == page {
            code[stub_offset..stub_offset + stub_bytes.len()].copy_from_slice(&stub_bytes);
        } else {
            let old = self.pristine(inner, &region, stub_page, cpu)?;
            let mut stubs = self.bytes_of(old);
            stubs[stub_offset..stub_offset + stub_bytes.len()].copy_from_slice(&stub_bytes);
            self.replace(inner, &region, stub_page, &stubs, cpu)?;
        }
        inner.rewrites.sites.push(Site { caller, at, stub, size });
        code[offset..offset + jump.len()].copy_from_slice(&jump);
        self.replace(inner, &region, page, &code, cpu)
    }

    /// The frame of a page of code, if it is as it is in the file, but for what was rewritten.
    fn pristine(&self, inner: &mut Inner, region: &Region, page: u64, cpu: &mut UserCpu) -> Option<Frame> {
        let Backing::Object { object, .. } = &region.backing else { return None };
        if inner.tables.lookup(page).is_none() {
            self.fault_locked(inner, page, Access::Execute, AtLimit::Refuse, cpu).ok()?;
        }
        let leaf = inner.tables.lookup(page).filter(|leaf| leaf.entry & PRESENT != 0 && !leaf.large)?;
        let frame = leaf.frame(page);
        let is_known = inner.rewrites.pages.get(&page) == Some(&frame);
        (is_known || object.frame(region.object_page(page)) == Some(frame)).then_some(frame)
    }

    pub(super) fn bytes_of(&self, frame: Frame) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE as usize];
        self.machine.ram().read(frame.address(), &mut bytes);
        bytes
    }

    /// A page of a file.
    fn page_of(&self, object: &PageObject, page: u64) -> Result<Vec<u8>, Errno> {
        let found = object.get(page..page + 1, page, false, AtLimit::Refuse).map_err(|_| Errno::ENOEXEC)?;
        let bytes = found.first().map(|&(_, frame)| self.bytes_of(frame));
        let frames: Vec<Frame> = found.into_iter().map(|(_, frame)| frame).collect();
        self.machine.frames().release_all(&frames);
        bytes.ok_or(Errno::ENOEXEC)
    }

    /// Where behind the end of the code that holds `site` its last page has room: the page, and from where on.
    fn room(&self, region: &Region, object: &Arc<PageObject>, site: u64) -> Option<(u64, u64)> {
        let head = self.page_of(object, 0).ok()?;
        let program = program::parse(&head, &mut |offset, buffer| {
            let (page, within) = (offset / PAGE_SIZE, (offset % PAGE_SIZE) as usize);
            let bytes = self.page_of(object, page)?;
            let bytes = bytes.get(within..within + buffer.len()).ok_or(Errno::ENOEXEC)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        });
        let program = program.ok()?;
        let in_file = region.object_page(site) * PAGE_SIZE + site % PAGE_SIZE;
        let holds = |segment: &&Segment| {
            let start = segment.file_offset;
            (start..start + segment.file_size).contains(&in_file)
        };
        let segment = program.segments.iter().find(holds)?;
        if !segment.executable || segment.writable || segment.memory_size != segment.file_size {
            return None;
        }
        let end = site.checked_add(segment.file_offset + segment.file_size - in_file)?;
        let page = end & !(PAGE_SIZE - 1);
        if end == page || page < region.start || page >= region.end {
            return None;
        }
        // Another segment that begins in what is left of the page in memory is not behind the code but code.
        let address = segment.address + segment.file_size;
        let page_end = (address.raw() & !(PAGE_SIZE - 1)) + PAGE_SIZE;
        let begins_there =
            |other: &Segment| (address.raw()..page_end).contains(&other.address.raw()) && other.memory_size > 0;
        if program.segments.iter().any(begins_there) {
            return None;
        }
        Some((page, end.next_multiple_of(16)))
    }

    /// Shows a page of code with other bytes.
    fn replace(&self, inner: &mut Inner, region: &Region, page: u64, bytes: &[u8], cpu: &mut UserCpu) -> Option<()> {
        let frames = self.machine.frames();
        let copy = frames.allocate_to_overwrite_for(self.account, AtLimit::Refuse).ok()?;
        self.machine.ram().write(copy.address(), bytes);
        let mut old = None;
        let changed = self.change(inner, page, page + PAGE_SIZE, cpu, &mut |_, before, _| {
            old = Some(paging::frame(before));
            entry(copy, region.protection, false)
        });
        if changed == Err(ChangeError::NotMade) {
            // Nobody knows which of the two is in use, so both stay taken.
            return None;
        }
        let took = inner.tables.lookup(page).is_some_and(|leaf| leaf.frame(page) == copy);
        if !took {
            frames.release(copy);
            return None;
        }
        frames.release_all(&old.into_iter().collect::<Vec<_>>());
        frames.share(copy);
        if let Some(before) = inner.rewrites.pages.insert(page, copy) {
            frames.release(before);
        }
        Some(())
    }

    /// Makes the sites in `start..end`, and those whose stubs are there, what they were. The stubs stay: a
    /// thread may be in one.
    pub(super) fn restore_sites(
        &self,
        inner: &mut Inner,
        start: u64,
        end: u64,
        cpu: &mut UserCpu,
    ) -> Result<(), Errno> {
        let is_in = |page: u64| start < page + PAGE_SIZE && page < end;
        let concerned = |site: &&Site| is_in(site.page()) || is_in(site.stub_page());
        let sites: Vec<Site> = inner.rewrites.sites.iter().filter(concerned).copied().collect();
        sites.into_iter().try_for_each(|site| self.restore(inner, site.page(), cpu))
    }

    /// Makes the sites in a page what they were.
    fn restore(&self, inner: &mut Inner, page: u64, cpu: &mut UserCpu) -> Result<(), Errno> {
        let Some(&frame) = inner.rewrites.pages.get(&page) else { return Ok(()) };
        let is_there = inner.tables.lookup(page).is_some_and(|leaf| !leaf.large && leaf.frame(page) == frame);
        if !is_there {
            inner.rewrites.pages.remove(&page);
            self.machine.frames().release(frame);
            return Ok(());
        }
        if inner.rewrites.sites.iter().any(|site| site.stub_page() == page) {
            // It holds stubs too.
            let sites: Vec<Site> = inner.rewrites.sites.iter().filter(|site| site.page() == page).copied().collect();
            let Some(region) = inner.regions.at(page).cloned() else { return Ok(()) };
            let mut bytes = self.bytes_of(frame);
            for site in sites {
                let offset = (site.at - page) as usize;
                let old = site.caller.site();
                bytes[offset..offset + old.len()].copy_from_slice(&old);
            }
            return self.replace(inner, &region, page, &bytes, cpu).ok_or(Errno::ENOMEM);
        }
        inner.rewrites.pages.remove(&page);
        let result = self.discard(inner, page, page + PAGE_SIZE, cpu);
        self.machine.frames().release(frame);
        result
    }

    /// Where a thread is that seems to be where these registers say: in a stub it is still before its call,
    /// which is made from the beginning.
    pub fn visible_place(&self, regs: &Regs) -> Regs {
        let inner = self.lock();
        let site = inner.rewrites.site_at(regs.rip).filter(|site| {
            let page = site.stub_page();
            let leaf = inner.tables.lookup(page);
            leaf.is_some_and(|leaf| inner.rewrites.pages.get(&page) == Some(&leaf.frame(page)))
        });
        site.map_or(*regs, |site| site.before_call(regs))
    }

    /// A stub at `address` cannot be run any more, for the rights of its page have changed: its site is made
    /// what it was, and the thread goes on there. Whether there is one.
    pub fn leave_stub(&self, cpu: &mut UserCpu) -> bool {
        let inner = &mut *self.lock();
        let Some(site) = inner.rewrites.site_at(cpu.regs().rip) else { return false };
        if self.restore(inner, site.page(), cpu).is_err() {
            return false;
        }
        *cpu.regs_mut() = site.before_call(cpu.regs());
        true
    }
}

/// Whether an area is code from a file that nobody writes.
pub(super) fn is_code(region: &Region) -> bool {
    is_of_file(region) && region.protection.contains(Protection::READ | Protection::EXECUTE)
}

/// The same of a file of this host.
fn is_code_of_this_host(region: &Region) -> bool {
    is_code(region) && matches!(&region.backing, Backing::Object { object, .. } if object.read_file().is_some())
}

/// Whether an area has private pages of a file, also of one that is lent by another host, which nobody writes.
fn is_of_file(region: &Region) -> bool {
    let is_file = |object: &PageObject| object.read_file().is_some() || object.lent().is_some();
    matches!(&region.backing, Backing::Object { object, .. } if is_file(object))
        && !region.is_shared()
        && !region.flags.contains(RegionFlags::SPECIAL)
        && !region.protection.contains(Protection::WRITE)
}
