//! Memory that comes, in frames of this node's own.

use super::ReceiveError;
use crate::kernel::Kernel;
use crate::kernel::links::Link;
use crate::migration::packing::Unpacker;
use crate::migration::skip;
use crate::migration::stripes::Stripes;
use crate::migration::wire::{Content, Owner, Run, bytes_of};
use crate::mm::image::ImageError;
use crate::mm::spans::{Span, Spans};
use crate::wire::stream::Stream;
use nix::errno::Errno;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::frames::{AtLimit, FRAMES_PER_BLOCK};
use vmm::ram::GuestRam;

/// Frames by page number. Large pages are held by their first page.
#[derive(Default)]
pub(super) struct Pages {
    pub(super) small: BTreeMap<u64, Frame>,
    pub(super) large: BTreeMap<u64, Frame>,
}

/// The first page of the large page around one.
fn block_of(page: u64) -> u64 {
    page / u64::from(FRAMES_PER_BLOCK) * u64::from(FRAMES_PER_BLOCK)
}

/// Goes through pages row by row; `each` is given those that are left, and tells how many of them are done.
fn for_each_row(
    mut pages: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> Result<u32, ReceiveError>,
) -> Result<(), ReceiveError> {
    while !pages.is_empty() {
        pages.start += u64::from(each(pages.clone())?);
    }
    Ok(())
}

/// Memory that has come over one stream.
pub(super) struct Part {
    kernel: Arc<Kernel>,
    stream: u32,
    stripes: Stripes,
    pub(super) space: Pages,
    pub(super) objects: HashMap<u32, Pages>,
    unpacker: Unpacker,
}

impl Part {
    /// Nothing yet.
    pub(super) fn new(kernel: &Arc<Kernel>, stream: u32) -> Self {
        Self {
            kernel: kernel.clone(),
            stream,
            stripes: Stripes::ONE,
            space: Pages::default(),
            objects: HashMap::new(),
            unpacker: Unpacker::default(),
        }
    }

    /// How memory is divided among streams, of which this is one.
    pub(super) fn stripes(&self) -> Stripes {
        self.stripes
    }

    /// Learns that.
    pub(super) fn spread(&mut self, streams: u32) -> Result<(), ReceiveError> {
        let is_new = self.stripes == Stripes::ONE && self.space.small.is_empty() && self.space.large.is_empty();
        let stripes = Stripes::new(streams).filter(|_| is_new && streams > self.stream);
        self.stripes = stripes.ok_or(ReceiveError::Wrong("how many streams there are"))?;
        Ok(())
    }

    /// Takes the pages of one message.
    pub(super) fn take(&mut self, stream: &mut Stream, runs: &[Run], packed: bool) -> Result<(), ReceiveError> {
        bytes_of(runs).ok_or(ReceiveError::Wrong("too many pages at once"))?;
        let kernel = self.kernel.clone();
        let mut coming = Coming::new(kernel.machine.ram());
        for run in runs {
            let pages = run.first..run.first + u64::from(run.count);
            let is_own = match run.owner {
                Owner::Space => self.stripes.all_of(pages.clone(), self.stream),
                Owner::Object(_) => self.stream == 0,
            };
            if !is_own {
                return Err(ReceiveError::Wrong("pages of another stream"));
            }
            if run.content == Content::Nothing {
                self.drop_pages(run.owner, pages);
                continue;
            }
            for_each_row(pages, |pages| {
                let row = self.row(run.owner, pages, run.large)?;
                (0..row.count).for_each(|i| coming.add(row.value.offset(i), run.content));
                Ok(row.count)
            })?;
        }
        // SAFETY: nobody else has the frames yet.
        unsafe { coming.receive(stream, if packed { Form::Packed(&mut self.unpacker) } else { Form::Plain }) }
    }

    fn pages(&mut self, owner: Owner) -> &mut Pages {
        match owner {
            Owner::Space => &mut self.space,
            Owner::Object(index) => self.objects.entry(index).or_default(),
        }
    }

    /// Forgets pages: as many as are here, however many are claimed.
    fn drop_pages(&mut self, owner: Owner, range: Range<u64>) {
        let pages = match owner {
            Owner::Space => &mut self.space,
            Owner::Object(index) => match self.objects.get_mut(&index) {
                Some(pages) => pages,
                None => return,
            },
        };
        // What is left of a large page is many small ones.
        let blocks = block_of(range.start)..range.end;
        let large: Vec<u64> = pages.large.range(blocks).map(|(&block, _)| block).collect();
        for block in large {
            if let Some(first) = pages.large.remove(&block) {
                pages.small.extend((0..FRAMES_PER_BLOCK).map(|i| (block + u64::from(i), first.offset(i))));
            }
        }
        let dropped: Vec<u64> = pages.small.range(range).map(|(&page, _)| page).collect();
        let dropped: Vec<Frame> = dropped.iter().filter_map(|page| pages.small.remove(page)).collect();
        self.kernel.machine.frames().release_all(&dropped);
    }

    /// The frames for the first of some pages, made if they are not there, and zeros then: of all pages that are in the
    /// same large page, or of one.
    fn row(&mut self, owner: Owner, wanted: Range<u64>, large: bool) -> Result<Span<Frame>, ReceiveError> {
        let kernel = self.kernel.clone();
        let frames = kernel.machine.frames();
        let pages = self.pages(owner);
        let page = wanted.start;
        let block = block_of(page);
        let in_block = |first: Frame| {
            let end = wanted.end.min(block + u64::from(FRAMES_PER_BLOCK));
            Span { first: page, count: (end - page) as u32, value: first.offset((page - block) as u32) }
        };
        let single = |frame: Frame| Span { first: page, count: 1, value: frame };
        if let Some(&first) = pages.large.get(&block) {
            return Ok(in_block(first));
        }
        if let Some(&frame) = pages.small.get(&page) {
            return Ok(single(frame));
        }
        let is_free = || pages.small.range(block..block + u64::from(FRAMES_PER_BLOCK)).next().is_none();
        if large
            && is_free()
            && let Some(first) = frames.allocate_block()
        {
            pages.large.insert(block, first);
            return Ok(in_block(first));
        }
        // A part of the memory is the node's own.
        if frames.free() < crate::mm::RESERVED_FRAMES {
            return Err(ImageError::OutOfMemory.into());
        }
        let frame = frames.allocate_for(vmm::accounts::Account::default(), AtLimit::Refuse);
        let frame = frame.map_err(|_| ImageError::OutOfMemory)?;
        pages.small.insert(page, frame);
        Ok(single(frame))
    }
}

/// Memory that has come over all streams.
pub(super) struct Hold {
    pub(super) kernel: Arc<Kernel>,
    /// The deputy's, if that is at another host.
    pub(super) link: Option<Arc<Link>>,
    /// By stream; of the others than the first when they have brought all.
    pub(super) parts: Vec<Part>,
    /// Pages of the space that are to come later, with their frames.
    pub(super) owed: Spans<Frame>,
}

impl Hold {
    /// Nothing yet.
    pub(super) fn new(kernel: &Arc<Kernel>, link: Option<Arc<Link>>) -> Self {
        Self { kernel: kernel.clone(), link, parts: vec![Part::new(kernel, 0)], owed: Spans::default() }
    }

    /// What comes over the first stream.
    pub(super) fn first(&mut self) -> Result<&mut Part, ReceiveError> {
        if !self.owed.is_empty() {
            return Err(ReceiveError::Wrong("pages that come after those that are owed"));
        }
        Ok(&mut self.parts[0])
    }

    /// Whether all of the streams have brought what they had to.
    pub(super) fn is_whole(&self) -> bool {
        self.parts.len() == self.parts[0].stripes().streams() as usize
    }

    /// Makes room for pages that are to come when the process runs.
    pub(super) fn owe(&mut self, runs: &[Run]) -> Result<(), ReceiveError> {
        bytes_of(runs).ok_or(ReceiveError::Wrong("too many pages at once"))?;
        if !self.is_whole() {
            return Err(ReceiveError::Wrong("pages that are owed before all others have come"));
        }
        let stripes = self.parts[0].stripes();
        for run in runs {
            if (run.owner, run.content) != (Owner::Space, Content::Bytes) {
                return Err(ReceiveError::Wrong("pages that cannot be owed"));
            }
            for_each_row(run.first..run.first + u64::from(run.count), |pages| {
                let pages = pages.start..pages.end.min(stripes.end(pages.start));
                let row = self.parts[stripes.of(pages.start) as usize].row(run.owner, pages, run.large)?;
                if !self.owed.insert(row) {
                    return Err(ReceiveError::Wrong("pages that are owed twice"));
                }
                Ok(row.count)
            })?;
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let all = std::iter::once(&self.space).chain(self.objects.values());
        let mut frames: Vec<Frame> = Vec::new();
        for pages in all {
            frames.extend(pages.small.values());
            let of_block = |&first: &Frame| (0..FRAMES_PER_BLOCK).map(move |i| first.offset(i));
            frames.extend(pages.large.values().flat_map(of_block));
        }
        self.kernel.machine.frames().release_all(&frames);
    }
}

/// How the bytes of pages come.
pub(super) enum Form<'a> {
    /// As they are.
    Plain,
    /// Compressed.
    Packed(&'a mut Unpacker),
}

/// Frames whose content is about to be received.
pub(super) struct Coming<'a> {
    ram: &'a GuestRam,
    places: Vec<libc::iovec>,
    frames: Vec<Frame>,
}

impl<'a> Coming<'a> {
    /// None yet.
    pub(super) fn new(ram: &'a GuestRam) -> Self {
        Self { ram, places: Vec::new(), frames: Vec::new() }
    }

    /// Adds one, which is filled at once if it is zeros.
    pub(super) fn add(&mut self, frame: Frame, content: Content) {
        if content == Content::Zeros {
            self.ram.zero(frame);
            return;
        }
        self.frames.push(frame);
        let at = self.ram.host_address().wrapping_add(frame.address().raw() as usize);
        match self.places.last_mut() {
            Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == at => {
                last.iov_len += PAGE_SIZE as usize;
            }
            _ => self.places.push(libc::iovec { iov_base: at.cast(), iov_len: PAGE_SIZE as usize }),
        }
    }

    /// Receives all that were added, in the form in which they come.
    ///
    /// # Safety
    /// No other thread reads or writes the frames until it returns.
    pub(super) unsafe fn receive(mut self, stream: &mut Stream, form: Form<'_>) -> Result<(), ReceiveError> {
        // SAFETY: the places are frames of the guest's memory, and nobody else's meanwhile, as the caller promises.
        unsafe {
            match form {
                Form::Plain => read_places(stream, &mut self.places)?,
                Form::Packed(unpacker) => unpack_places(stream, unpacker, &mut self.places)?,
            }
        }
        for frame in self.frames {
            self.ram.note_written(frame.address(), PAGE_SIZE);
        }
        Ok(())
    }
}

/// Receives the bytes of all places, which are compressed.
///
/// # Safety
/// They must be valid for writes, and nobody else's, until it returns.
unsafe fn unpack_places(
    stream: &mut Stream,
    unpacker: &mut Unpacker,
    places: &mut [libc::iovec],
) -> Result<(), ReceiveError> {
    let mut rest = places;
    loop {
        let left: usize = rest.iter().map(|place| place.iov_len).sum();
        if left == 0 {
            return Ok(());
        }
        let chunk = unpacker.receive(stream, left)?;
        // SAFETY: as the caller promises; they hold no less than the chunk.
        unsafe { fill_places(rest, chunk) };
        rest = skip(rest, chunk.len());
    }
}

/// Puts bytes to the first places, which hold as many or more.
///
/// # Safety
/// They must be valid for writes, and nobody else's, until it returns.
unsafe fn fill_places(places: &[libc::iovec], mut bytes: &[u8]) {
    for place in places {
        let (now, later) = bytes.split_at(bytes.len().min(place.iov_len));
        // SAFETY: as the caller promises; what comes off the wire is no place.
        unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), place.iov_base.cast(), now.len()) };
        bytes = later;
    }
}

/// Reads the bytes of all places.
///
/// # Safety
/// They must be valid for writes, and nobody else's, until it returns.
unsafe fn read_places(stream: &mut Stream, places: &mut [libc::iovec]) -> io::Result<()> {
    const MOST: usize = libc::UIO_MAXIOV as usize;
    let mut rest = places;
    while let Some(first) = rest.first() {
        let got = match stream {
            Stream::Local(stream) => {
                let count = rest.len().min(MOST) as libc::c_int;
                // SAFETY: as the caller promises.
                Errno::result(unsafe { libc::readv(stream.as_raw_fd(), rest.as_ptr(), count) }).map_err(io::Error::from)
            }
            Stream::Sealed(_) | Stream::Lasting(_) => {
                // SAFETY: as the caller promises; frames have no padding or invalid values.
                let room = unsafe { std::slice::from_raw_parts_mut(first.iov_base.cast::<u8>(), first.iov_len) };
                stream.receive(room, None).map(|got| got as isize)
            }
        };
        match got {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => rest = skip(rest, got as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
