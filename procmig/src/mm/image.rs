//! Address spaces as images, and made from images.

use super::layout::Layout;
use super::object::PageObject;
use super::regions::{Backing, Protection, Region, RegionFlags, Regions};
use super::rewrite::Rewrites;
use super::segments::Attachment;
use super::shared::Origin;
use super::space::{AddressSpace, Inner, entry};
use super::thread_ids::Bases;
use crate::migration::image::{MAX_REGIONS, ObjectImage, RegionImage, SpaceImage};
use crate::wire::op::FileIdentity;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use vmm::accounts::Account;
use vmm::addr::{Frame, LARGE_PAGE_SIZE, PAGE_SIZE};
use vmm::frames::FRAMES_PER_BLOCK;
use vmm::machine::Machine;
use vmm::paging::{self, LARGE, OWED, PRESENT, WRITE};
use vmm::shim_layout::{USER_END, USER_START};
use vmm::tables::PageTables;

/// Why an address space cannot be taken elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescribeError {
    /// Other processes write the same memory.
    #[error("it shares writable memory with other processes")]
    Shared,
    /// It maps a file of its home to be written.
    #[error("it maps a file that it shares with other processes and may write, which only its home has")]
    SharedFile,
    /// It has attached a segment.
    #[error("it has attached System V memory, which only its home has")]
    Segment,
    /// It has come from another node, and its memory not all yet.
    #[error("its memory is still coming from the node where it was")]
    Arriving,
}

/// Why no address space can be made from an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It contradicts itself.
    #[error("the image of the address space is wrong: {0}")]
    Wrong(&'static str),
    /// No frame is left.
    #[error("the node's memory is used up")]
    OutOfMemory,
}

/// An address space in words, and what is behind it.
pub struct Description {
    /// All but the pages.
    pub image: SpaceImage,
    /// The objects of the image.
    pub objects: Vec<Arc<PageObject>>,
}

impl Description {
    /// The descriptors that are to be passed with the image, in the order of its objects.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let with_images = self.objects.iter().zip(&self.image.objects);
        with_images.filter(|(_, image)| image.needs_descriptor()).filter_map(|(object, _)| file_of(object)).collect()
    }

    /// Makes it one for a node of another host: no descriptors go there. Gives the files of home that are to be lent
    /// for it, by the indices of their objects.
    ///
    /// # Errors
    /// If it needs what cannot leave home.
    pub fn leave_home(&mut self) -> Result<Vec<(usize, FileIdentity, RawFd)>, DescribeError> {
        let SpaceImage { objects, regions, segments, .. } = &mut self.image;
        if !segments.is_empty() {
            return Err(DescribeError::Segment);
        }
        let mut files = Vec::new();
        for (index, (image, object)) in objects.iter_mut().zip(&self.objects).enumerate() {
            let identity = match image {
                ObjectImage::File { identity, lent: None } => *identity,
                ObjectImage::SharedFile { identity, writable } => {
                    let shows = |region: &&mut RegionImage| {
                        region.backing.is_some_and(|(shown, _)| shown as usize == index)
                            && region.flags & RegionFlags::SHARED.bits() != 0
                    };
                    for region in regions.iter_mut().filter(shows) {
                        if *writable {
                            return Err(DescribeError::SharedFile);
                        }
                        // It shows the file as it is now; so nobody may come to write it.
                        region.flags |= RegionFlags::NO_WRITE.bits();
                    }
                    *identity
                }
                ObjectImage::Segment { .. } => return Err(DescribeError::Segment),
                _ => continue,
            };
            files.extend(file_of(object).map(|file| (index, identity, file)));
        }
        Ok(files)
    }
}

/// The file that an object shows, if it is open here.
fn file_of(object: &PageObject) -> Option<RawFd> {
    match object.shared().map(|shared| shared.origin()) {
        Some(Origin::File(file, _)) => Some(file.as_raw_fd()),
        Some(Origin::Segment(_)) => None,
        None => object.read_file().map(|(file, _)| file.as_raw_fd()),
    }
}

/// A page of private memory, or 512 of them that are one large page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrivatePage {
    /// Its number: the address in pages.
    pub page: u64,
    /// Its first frame.
    pub frame: Frame,
    /// It is one of 2 MiB.
    pub large: bool,
    /// What is under it if it is not there is a file's page, and not zeros.
    pub covers_file: bool,
}

impl PrivatePage {
    /// How many pages of 4 KiB it is.
    pub fn count(&self) -> u32 {
        if self.large { FRAMES_PER_BLOCK } else { 1 }
    }
}

/// Pages in a row of which something is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Number of the first.
    pub page: u64,
    /// How many.
    pub count: u32,
    /// The frame of the first; those of the others follow it. `None` if they are not there any more.
    pub frame: Option<Frame>,
    /// They are part of a large page.
    pub large: bool,
    /// If nothing is told of them they are taken for zeros.
    pub is_zero_by_default: bool,
}

impl Stretch {
    /// Its first pages, and the others.
    pub fn split_at(self, count: u32) -> (Self, Self) {
        let count = count.min(self.count);
        let rest = Self {
            page: self.page + u64::from(count),
            count: self.count - count,
            frame: self.frame.map(|first| first.offset(count)),
            ..self
        };
        (Self { count, ..self }, rest)
    }

    /// Its frames.
    pub fn frames(&self) -> impl Iterator<Item = Frame> {
        let (frame, count) = (self.frame, self.count);
        frame.into_iter().flat_map(move |first| (0..count).map(move |i| first.offset(i)))
    }
}

fn object_index(
    objects: &mut Vec<Arc<PageObject>>,
    images: &mut Vec<ObjectImage>,
    object: &Arc<PageObject>,
    vdso: &Arc<PageObject>,
) -> u32 {
    if let Some(index) = objects.iter().position(|other| Arc::ptr_eq(other, object)) {
        return index as u32;
    }
    let image = if Arc::ptr_eq(object, vdso) {
        ObjectImage::Vdso
    } else if let Some(shared) = object.shared() {
        let writable = shared.is_writable();
        match shared.origin() {
            Origin::File(_, identity) => ObjectImage::SharedFile { identity: *identity, writable },
            Origin::Segment(segment) => ObjectImage::Segment { id: segment.id(), writable },
        }
    } else if let Some(identity) = object.identity() {
        ObjectImage::File { identity: *identity, lent: None }
    } else {
        ObjectImage::Memory
    };
    objects.push(object.clone());
    images.push(image);
    objects.len() as u32 - 1
}

impl AddressSpace {
    /// Describes it; `vdso` is what it and others map to read the clocks.
    ///
    /// # Errors
    /// See [`DescribeError`].
    pub fn describe(&self, vdso: &Arc<PageObject>) -> Result<Description, DescribeError> {
        let inner = self.lock();
        if self.owed().is_some_and(|owed| !owed.is_all_here()) {
            return Err(DescribeError::Arriving);
        }
        let (mut objects, mut images) = (Vec::new(), Vec::new());
        let mut uses: Vec<usize> = Vec::new();
        let mut regions = Vec::with_capacity(inner.regions.len());
        for region in inner.regions.iter() {
            let backing = match &region.backing {
                Backing::Anonymous => None,
                Backing::Object { object, offset } => {
                    let index = object_index(&mut objects, &mut images, object, vdso);
                    uses.resize(objects.len(), 0);
                    uses[index as usize] += 1;
                    Some((index, *offset))
                }
            };
            regions.push(RegionImage {
                start: region.start,
                end: region.end,
                protection: region.protection.bits(),
                flags: region.flags.bits(),
                backing,
                name: region.name.to_string(),
            });
        }
        let mut segments = Vec::new();
        for (&at, attachment) in &inner.segments {
            let index = object_index(&mut objects, &mut images, &attachment.object, vdso);
            segments.push((at, attachment.home, attachment.id, attachment.length, index));
        }
        for ((object, image), uses) in objects.iter().zip(&images).zip(&uses) {
            // Ours are those of the areas, and the one in `objects`.
            if *image == ObjectImage::Memory && Arc::strong_count(object) > uses + 1 {
                return Err(DescribeError::Shared);
            }
        }
        let Layout { stack_top, map_top, program, heap_gap } = inner.layout;
        let image = SpaceImage {
            layout: [stack_top, map_top, program, heap_gap],
            limit: inner.limit,
            heap: (inner.heap_start, inner.heap_end),
            objects: images,
            regions,
            segments,
            sites: inner.rewrites.images(&inner.tables),
            code: inner.bases.code,
        };
        Ok(Description { image, objects })
    }

    /// The private pages that it has, in order. Their frames are names, not to be accessed.
    pub fn private_pages(&self) -> Vec<PrivatePage> {
        let inner = self.lock();
        let mut pages = Vec::new();
        for region in inner.regions.iter() {
            if region.is_shared() || region.flags.contains(RegionFlags::SPECIAL) {
                continue;
            }
            inner.tables.for_each_in(region.start, region.end, &mut |at, entry, large| {
                let frame = paging::frame(entry);
                let covers_file = match &region.backing {
                    Backing::Anonymous => false,
                    // What it shows of the object is the object's.
                    Backing::Object { object, .. } if object.frame(region.object_page(at)) == Some(frame) => return,
                    Backing::Object { .. } => true,
                };
                let end = at + if large { LARGE_PAGE_SIZE } else { PAGE_SIZE };
                if region.start <= at && end <= region.end {
                    pages.push(PrivatePage { page: at / PAGE_SIZE, frame, large, covers_file });
                    return;
                }
                // Areas that differ in nothing that a page table knows (`mlock`) may have parts of one large page.
                for part in (at.max(region.start)..end.min(region.end)).step_by(PAGE_SIZE as usize) {
                    let page = part / PAGE_SIZE;
                    let frame = frame.offset((page - at / PAGE_SIZE) as u32);
                    pages.push(PrivatePage { page, frame, large: false, covers_file });
                }
            });
        }
        pages
    }

    /// Those of `stretches` that are still what they were, each of their frames with one more user.
    pub fn pin(&self, stretches: &[Stretch]) -> Vec<Stretch> {
        let inner = self.lock();
        let frames = self.machine.frames();
        let is_still = |stretch: &&Stretch| match stretch.frame {
            None => true,
            Some(frame) => {
                let at = stretch.page * PAGE_SIZE;
                // Pages in a row are parts of one large page.
                let is_whole = |large: bool| large || stretch.count == 1;
                inner.tables.lookup(at).is_some_and(|leaf| is_whole(leaf.large) && leaf.frame(at) == frame)
            }
        };
        let pinned: Vec<Stretch> = stretches.iter().filter(is_still).copied().collect();
        pinned.iter().flat_map(Stretch::frames).for_each(|frame| frames.share(frame));
        pinned
    }

    /// Makes an address space without pages. `objects` are those of the image, in its order.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn from_image(
        machine: Arc<Machine>,
        account: Account,
        image: &SpaceImage,
        objects: &[Arc<PageObject>],
    ) -> Result<Arc<Self>, ImageError> {
        let object =
            |index: u32| objects.get(index as usize).cloned().ok_or(ImageError::Wrong("there is no such object"));
        if image.regions.len() > MAX_REGIONS || objects.len() != image.objects.len() {
            return Err(ImageError::Wrong("there is too much of it"));
        }
        let in_user = |address: u64| address <= USER_END;
        if !image.layout[..3].iter().all(|&at| in_user(at)) || !in_user(image.layout[3]) {
            return Err(ImageError::Wrong("the layout is beyond what a process has"));
        }
        if image.heap.0 > image.heap.1 || !in_user(image.heap.1) {
            return Err(ImageError::Wrong("the heap is beyond what a process has"));
        }
        let mut regions = Regions::default();
        let mut free_from = USER_START;
        for region in &image.regions {
            let whole = region.start.is_multiple_of(PAGE_SIZE) && region.end.is_multiple_of(PAGE_SIZE);
            if !whole || region.start < free_from || region.start >= region.end || !in_user(region.end) {
                return Err(ImageError::Wrong("areas overlap, or are none"));
            }
            free_from = region.end;
            let flags = RegionFlags::from_bits(region.flags).ok_or(ImageError::Wrong("an area's flags"))?;
            let protection = Protection::from_bits(region.protection).ok_or(ImageError::Wrong("an area's rights"))?;
            let backing = match region.backing {
                None if flags.contains(RegionFlags::SHARED) => {
                    return Err(ImageError::Wrong("an area is shared and shows nothing"));
                }
                None => Backing::Anonymous,
                Some((index, offset)) => {
                    let end = offset.checked_add(region.end - region.start);
                    if !offset.is_multiple_of(PAGE_SIZE) || end.is_none_or(|end| end > i64::MAX as u64) {
                        return Err(ImageError::Wrong("an area's offset"));
                    }
                    let object = object(index)?;
                    // What is written there must be meant to be written.
                    let writes = flags.contains(RegionFlags::SHARED)
                        && protection.contains(Protection::WRITE)
                        && !(object.is_memory() || object.shared().is_some_and(|shared| shared.is_writable()));
                    let vdso = image.objects.get(index as usize) == Some(&ObjectImage::Vdso);
                    if writes || vdso && protection.contains(Protection::WRITE) {
                        return Err(ImageError::Wrong("an area writes what it may not"));
                    }
                    Backing::Object { object, offset }
                }
            };
            regions.insert(Region {
                start: region.start,
                end: region.end,
                protection,
                flags,
                backing,
                name: region.name.as_str().into(),
            });
        }
        let mut segments = BTreeMap::new();
        for &(at, home, id, length, index) in &image.segments {
            if !in_user(at.saturating_add(length)) || !length.is_multiple_of(PAGE_SIZE) {
                return Err(ImageError::Wrong("a segment is beyond what a process has"));
            }
            segments.insert(at, Attachment { home, object: object(index)?, id, length });
        }
        let [stack_top, map_top, program, heap_gap] = image.layout;
        let tables = PageTables::new(machine.clone()).map_err(|_| ImageError::OutOfMemory)?;
        let inner = Inner {
            regions,
            tables,
            layout: Layout { stack_top, map_top, program, heap_gap },
            limit: image.limit,
            heap_start: image.heap.0,
            heap_end: image.heap.1,
            segments,
            members: Vec::new(),
            slots: None,
            identity: None,
            bases: Bases::of(image.code),
            rewrites: Rewrites::default(),
        };
        Ok(Self::with(machine, account, inner))
    }

    /// Puts frames, of each of which the caller gives its one user, where private pages are: page number,
    /// frame, whether it is the first of a large page's, and whether some of it is still to come. No thread has run
    /// here yet.
    ///
    /// # Errors
    /// If one is where no private page can be, or no frame is left for the tables; the frames are released when
    /// the address space is.
    pub fn place(&self, pages: impl Iterator<Item = (u64, Frame, bool, bool)>) -> Result<(), ImageError> {
        let frames = self.machine.frames();
        let inner = &mut *self.lock();
        let Inner { regions, tables, .. } = inner;
        let mut result = Ok(());
        let mut run: Vec<u64> = Vec::new();
        let mut run_start = 0;
        let mut current: Option<Region> = None;
        let flush = |tables: &mut PageTables, run: &mut Vec<u64>, start: u64| -> Result<(), ImageError> {
            if run.is_empty() {
                return Ok(());
            }
            let entries = std::mem::take(run);
            let written = tables.fill(start, &entries);
            let missed = |i: usize| written.as_ref().map_or(true, |written| !written[i]);
            let lost: Vec<Frame> =
                (0..entries.len()).filter(|&i| missed(i)).map(|i| paging::frame(entries[i])).collect();
            frames.release_all(&lost);
            written.map_err(|_| ImageError::OutOfMemory)?;
            if lost.is_empty() { Ok(()) } else { Err(ImageError::Wrong("a page is there twice")) }
        };
        let mark = |entry: u64, is_owed: bool| if is_owed { entry & !(PRESENT | WRITE) | OWED } else { entry };
        for (page, frame, large, is_owed) in pages {
            let at = page.saturating_mul(PAGE_SIZE);
            let count = if large { FRAMES_PER_BLOCK } else { 1 };
            let end = at.saturating_add(if large { LARGE_PAGE_SIZE } else { PAGE_SIZE });
            if !current.as_ref().is_some_and(|region| region.start <= at && end <= region.end) {
                current = regions.at(at).filter(|region| end <= region.end).cloned();
            }
            let is_private = |region: &&Region| !region.is_shared() && !region.flags.contains(RegionFlags::SPECIAL);
            let Some(region) = current.as_ref().filter(is_private).filter(|_| result.is_ok()) else {
                result = result.and(Err(ImageError::Wrong("a page is where no private memory is")));
                frames.release_all(&(0..count).map(|i| frame.offset(i)).collect::<Vec<_>>());
                continue;
            };
            if large {
                result = flush(tables, &mut run, run_start);
                let placed = tables.fill_large(at, mark(entry(frame, region.protection, true) | LARGE, is_owed));
                if !matches!(placed, Ok(true)) {
                    frames.release_all(&(0..count).map(|i| frame.offset(i)).collect::<Vec<_>>());
                    result = result.and(Err(match placed {
                        Ok(_) => ImageError::Wrong("a page is there twice"),
                        Err(_) => ImageError::OutOfMemory,
                    }));
                }
                continue;
            }
            if run_start + run.len() as u64 * PAGE_SIZE != at || run.len() >= 512 {
                result = flush(tables, &mut run, run_start);
                run_start = at;
            }
            run.push(mark(entry(frame, region.protection, true), is_owed));
        }
        let last = flush(tables, &mut run, run_start);
        result.and(last)
    }
}
