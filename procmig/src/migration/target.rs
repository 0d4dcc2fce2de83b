//! The target of a migration: memory that arrives, and a process that is made from it and waits for its deputy.

use super::cpu::CpuFeatures;
use super::faults::{self, Step};
use super::image::{ForwardedCall, MAX_FPU, MAX_THREADS, ObjectImage, ProcessImage, ThreadImage};
use super::wire::{Content, FromSource, MAX_MESSAGE, Offer, Owner, Reply, Run, Ticket, bytes_of};
use crate::channel::CallChannel;
use crate::kernel::affinity::CpuSet;
use crate::kernel::deadline::Deadline;
use crate::kernel::descriptors::Descriptors;
use crate::kernel::group::Group;
use crate::kernel::guest::{Again, GuestThread, Start};
use crate::kernel::links::Link;
use crate::kernel::pool::Worker;
use crate::kernel::process::{Action, Ending, Identity, Presence, Process, ProcessSignals, StackPlaces};
use crate::kernel::thread::ThreadSignals;
use crate::kernel::timers::ProcessTimers;
use crate::kernel::{Kernel, lock};
use crate::mm::AddressSpace;
use crate::mm::image::ImageError;
use crate::mm::object::PageObject;
use crate::mm::space::shared_memory;
use crate::signal;
use crate::signal::set::SignalSet;
use crate::wire;
use crate::wire::control::VERSION;
use crate::wire::frame::FrameError;
use crate::wire::link::random;
use crate::wire::sealed::StreamKeys;
use crate::wire::stream::{Sealed, Stream, prepare};
use nix::errno::Errno;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::frames::{AtLimit, FRAMES_PER_BLOCK};
use vmm::regs::Regs;

/// How long a source may be silent.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a process that has arrived waits for its deputy.
const WAIT: Duration = Duration::from_secs(3);
/// Most names of areas in bytes, and of a process in all.
const MAX_TEXT: usize = 16 << 20;

/// Why a process is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection failed, or the source talks nonsense.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It is not as it should be.
    #[error("the source sent what cannot be right: {0}")]
    Wrong(&'static str),
    /// The address space is not.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A call failed.
    #[error("the node cannot take another process: {}", .0.desc())]
    Refused(Errno),
    /// This processor lacks something.
    #[error("the program may use {0}, which this node's processor does not have")]
    Lacks(String),
    /// The source speaks another protocol.
    #[error("this node speaks protocol {VERSION}, the source {0}")]
    Version(u32),
    /// No vCPU.
    #[error("the node cannot run another thread")]
    Machine(#[from] vmm::machine::MachineError),
    /// The deputy is at another host, and has no link with this node.
    #[error("its home has no link with this node")]
    NoLink,
    /// The source has given it up.
    #[error("the source has given the migration up")]
    Abandoned,
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        Self::Frame(error.into())
    }
}

/// A process that waits for its deputy. If it comes to nothing it is dropped: the deputy keeps the process where
/// it was.
pub struct Arrival {
    process: Arc<Process>,
    space: Arc<AddressSpace>,
    leader_seq: Option<u32>,
    /// Threads without connections.
    waiting: Vec<(ThreadImage, Worker)>,
    /// Threads that can run.
    ready: Vec<(GuestThread, ThreadImage, Worker)>,
    is_running: bool,
}

/// Processes that wait for their deputies.
#[derive(Default)]
pub struct Arrivals {
    waiting: Mutex<HashMap<Ticket, Arrival>>,
    changed: Condvar,
}

impl Arrivals {
    /// Takes the process with this ticket.
    pub fn take(&self, ticket: &Ticket) -> Option<Arrival> {
        let taken = lock(&self.waiting).remove(ticket);
        self.changed.notify_all();
        taken
    }

    /// Waits until somebody has taken it; else it is given up after a while.
    fn wait(&self, ticket: &Ticket) {
        let waiting = lock(&self.waiting);
        let wait = self.changed.wait_timeout_while(waiting, WAIT, |waiting| waiting.contains_key(ticket));
        drop(wait);
        drop(self.take(ticket));
    }
}

/// Serves a source of another host: takes a process and has it wait for its deputy. `socket` is the connection that
/// both `skeind` have made.
///
/// # Errors
/// As [`receive`].
pub fn receive_from_afar(kernel: &Arc<Kernel>, socket: TcpStream, keys: StreamKeys) -> Result<(), FrameError> {
    prepare(&socket)?;
    let mut stream = Stream::from(Sealed::with_keys(socket, keys).map_err(io::Error::other)?);
    stream.set_patience(Some(PATIENCE))?;
    let offer = stream.receive_message(wire::control::MAX_MESSAGE)?.0;
    receive(kernel, &mut stream, &offer)
}

/// Serves a source on its connection: takes a process and has it wait for its deputy.
///
/// # Errors
/// If the connection fails; why a process is not taken the source is told.
pub fn receive(kernel: &Arc<Kernel>, stream: &mut Stream, offer: &Offer) -> Result<(), FrameError> {
    stream.set_patience(Some(PATIENCE))?;
    match arrive(kernel, stream, offer) {
        Ok(arrival) => {
            let ticket = random()?;
            lock(&kernel.arrivals.waiting).insert(ticket, arrival);
            let told = stream.send_message(&Reply::Ready(ticket), &[]);
            // The source says if it comes to nothing; if it is gone only the deputy knows.
            if told.is_err() || matches!(stream.receive_message(MAX_MESSAGE), Ok((FromSource::Abandoned, _))) {
                drop(kernel.arrivals.take(&ticket));
            }
            kernel.arrivals.wait(&ticket);
            told
        }
        Err(ReceiveError::Abandoned) => Ok(()),
        Err(error) => {
            let reason = crate::chain(&error);
            tracing::info!(pid = offer.pid, reason, "a process is not taken");
            stream.send_message(&Reply::Refused(reason), &[])
        }
    }
}

fn arrive(kernel: &Arc<Kernel>, stream: &mut Stream, offer: &Offer) -> Result<Arrival, ReceiveError> {
    faults::at(Step::TargetOffer)?;
    let link = offer.link.map(|id| kernel.links.find(&id).ok_or(ReceiveError::NoLink)).transpose()?;
    consider(kernel, offer, link.as_ref())?;
    stream.send_message(&Reply::Ready(Ticket::default()), &[])?;
    let mut hold = Hold { kernel, link, space: Pages::default(), objects: HashMap::new() };
    loop {
        match stream.receive_message(MAX_MESSAGE)?.0 {
            FromSource::Pages(runs) => {
                faults::at(Step::TargetPages)?;
                hold.take(stream, &runs)?;
            }
            FromSource::Image(image) => {
                faults::at(Step::TargetImage)?;
                return hold.make(stream, *image, offer.pid);
            }
            FromSource::Abandoned => return Err(ReceiveError::Abandoned),
            FromSource::Descriptors => return Err(ReceiveError::Wrong("descriptors before the image")),
        }
    }
}

/// Whether a process can be taken.
fn consider(kernel: &Kernel, offer: &Offer, link: Option<&Arc<Link>>) -> Result<(), ReceiveError> {
    if offer.version != VERSION {
        return Err(ReceiveError::Version(offer.version));
    }
    let home = link.map_or(0, |link| link.home.number);
    if kernel.process_of(home, offer.pid).is_some() {
        return Err(ReceiveError::Refused(Errno::EEXIST));
    }
    let missing = offer.fpu.1 & !kernel.fpu.features();
    if missing != 0 {
        let names = (0..64).filter(|bit| missing & 1 << bit != 0).map(state_name).collect::<Vec<_>>();
        return Err(ReceiveError::Lacks(names.join(", ")));
    }
    let missing = offer.cpu.lacking(&CpuFeatures::here());
    if !missing.is_empty() {
        return Err(ReceiveError::Lacks(missing.join(", ")));
    }
    let frames = kernel.machine.frames();
    if offer.bytes > u64::from(frames.free()) * PAGE_SIZE {
        return Err(ReceiveError::Image(ImageError::OutOfMemory));
    }
    Ok(())
}

/// What a bit of XCR0 stands for.
fn state_name(bit: u32) -> String {
    match bit {
        1 => "SSE".to_owned(),
        2 => "AVX".to_owned(),
        5..=7 => "AVX-512".to_owned(),
        9 => "memory protection keys".to_owned(),
        other => format!("extended state {other}"),
    }
}

/// Frames by page number. Large pages are held by their first page.
#[derive(Default)]
struct Pages {
    small: BTreeMap<u64, Frame>,
    large: BTreeMap<u64, Frame>,
}

/// The first page of the large page around one.
fn block_of(page: u64) -> u64 {
    page / u64::from(FRAMES_PER_BLOCK) * u64::from(FRAMES_PER_BLOCK)
}

/// Memory that has come.
struct Hold<'a> {
    kernel: &'a Arc<Kernel>,
    /// The deputy's, if that is at another host.
    link: Option<Arc<Link>>,
    space: Pages,
    objects: HashMap<u32, Pages>,
}

impl Pages {
    /// The frame of a page that is here.
    fn get(&self, page: u64) -> Option<Frame> {
        let block = block_of(page);
        match self.large.get(&block) {
            Some(first) => Some(first.offset((page - block) as u32)),
            None => self.small.get(&page).copied(),
        }
    }
}

impl Hold<'_> {
    /// Takes the pages of one message.
    fn take(&mut self, stream: &mut Stream, runs: &[Run]) -> Result<(), ReceiveError> {
        bytes_of(runs).ok_or(ReceiveError::Wrong("too many pages at once"))?;
        let ram = self.kernel.machine.ram();
        let mut places: Vec<libc::iovec> = Vec::new();
        let mut coming: Vec<Frame> = Vec::new();
        for run in runs {
            let pages = run.first..run.first + u64::from(run.count);
            if run.content == Content::Nothing {
                self.drop_pages(run.owner, pages);
                continue;
            }
            for page in pages {
                let frame = self.frame(run.owner, page, run.large)?;
                if run.content == Content::Zeros {
                    ram.zero(frame);
                    continue;
                }
                coming.push(frame);
                let at = ram.host_address().wrapping_add(frame.address().raw() as usize);
                match places.last_mut() {
                    Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == at => {
                        last.iov_len += PAGE_SIZE as usize;
                    }
                    _ => places.push(libc::iovec { iov_base: at.cast(), iov_len: PAGE_SIZE as usize }),
                }
            }
        }
        // SAFETY: the places are frames that nobody else has yet.
        unsafe { read_places(stream, &mut places) }?;
        for frame in coming {
            ram.note_written(frame.address(), PAGE_SIZE);
        }
        Ok(())
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

    /// The frame for a page, made if it is not there; it is zeros then.
    fn frame(&mut self, owner: Owner, page: u64, large: bool) -> Result<Frame, ReceiveError> {
        let kernel = self.kernel.clone();
        let frames = kernel.machine.frames();
        let pages = self.pages(owner);
        if let Some(frame) = pages.get(page) {
            return Ok(frame);
        }
        let block = block_of(page);
        let is_free = || pages.small.range(block..block + u64::from(FRAMES_PER_BLOCK)).next().is_none();
        if large
            && is_free()
            && let Some(first) = frames.allocate_block()
        {
            pages.large.insert(block, first);
            return Ok(first.offset((page - block) as u32));
        }
        // A part of the memory is the node's own.
        if frames.free() < crate::mm::RESERVED_FRAMES {
            return Err(ImageError::OutOfMemory.into());
        }
        let frame = frames.allocate_for(vmm::accounts::Account::default(), AtLimit::Refuse);
        let frame = frame.map_err(|_| ImageError::OutOfMemory)?;
        pages.small.insert(page, frame);
        Ok(frame)
    }

    /// Makes the process.
    fn make(mut self, stream: &mut Stream, image: ProcessImage, pid: i32) -> Result<Arrival, ReceiveError> {
        let kernel = self.kernel.clone();
        validate(&image, pid)?;
        let objects = self.objects(stream, &image)?;
        let link = self.link.clone();
        let group = Group::of_link(kernel.machine.clone(), image.memory_limit, image.max_threads, link);
        let group = group.ok_or(ReceiveError::Refused(Errno::EAGAIN))?;
        let space = AddressSpace::from_image(kernel.machine.clone(), group.account(), &image.space, &objects)?;
        let Pages { small, large } = std::mem::take(&mut self.space);
        let small = small.into_iter().map(|(page, frame)| (page, frame, false));
        let mut pages: Vec<_> = large.into_iter().map(|(page, frame)| (page, frame, true)).chain(small).collect();
        pages.sort_unstable();
        space.place(pages.into_iter())?;
        space.adopt_sites(&image.space.sites);
        let process = process(&kernel, &image, &space, group)?;
        for (object, about) in objects.iter().zip(&image.space.objects) {
            if let ObjectImage::File { lent: Some(file), .. } = about {
                process.note_lent(*file, object);
            }
        }
        await_clocks(&process, &image.clocks)?;
        kernel.enter(&process).map_err(ReceiveError::Refused)?;
        let mut arrival = Arrival {
            process,
            space,
            leader_seq: image.leader_seq,
            waiting: Vec::new(),
            ready: Vec::new(),
            is_running: false,
        };
        // The last is connected first.
        for thread in image.threads.into_iter().rev() {
            let worker = kernel.pool.acquire()?;
            arrival.waiting.push((thread, worker));
        }
        Ok(arrival)
    }

    /// What the image's areas show.
    fn objects(&mut self, stream: &mut Stream, image: &ProcessImage) -> Result<Vec<Arc<PageObject>>, ReceiveError> {
        let kernel = self.kernel.clone();
        let needed = image.space.objects.iter().filter(|object| object.needs_descriptor()).count();
        let (home, time) = match &self.link {
            None => (0, &kernel.time),
            Some(link) if needed == 0 => (link.home.number, link.home.time.get().ok_or(ReceiveError::NoLink)?),
            Some(_) => return Err(ReceiveError::Wrong("it needs descriptors of another host")),
        };
        let now = time.clock.now(libc::CLOCK_REALTIME).map_or(0, |now| now as i64);
        let mut files: Vec<OwnedFd> = Vec::new();
        while files.len() < needed {
            match stream.receive_message(MAX_MESSAGE)? {
                (FromSource::Descriptors, passed) if !passed.is_empty() => files.extend(passed),
                _ => return Err(ReceiveError::Wrong("descriptors are missing")),
            }
        }
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or(ReceiveError::Wrong("descriptors are missing"));
        let mut objects = Vec::new();
        for (index, object) in (0..).zip(&image.space.objects) {
            objects.push(match object {
                ObjectImage::Vdso => time.vdso.clone(),
                ObjectImage::File { identity, lent: None } => kernel.files.read_only(*identity, next()?),
                ObjectImage::File { identity, lent: Some(_) } => {
                    kernel.files.lent(home, *identity, identity.is_fresh_at(now))
                }
                ObjectImage::SharedFile { identity, writable } => kernel.files.shared(*identity, next()?, *writable),
                ObjectImage::Segment { .. } if home != 0 => {
                    return Err(ReceiveError::Wrong("it needs memory of another host"));
                }
                ObjectImage::Segment { id, writable } => {
                    kernel.expect_segment(*id);
                    kernel.segments.object(*id, *writable).map_err(ReceiveError::Refused)?
                }
                ObjectImage::Memory => {
                    let object = shared_memory(kernel.machine.clone(), Default::default());
                    let Pages { small, large } = self.objects.remove(&index).unwrap_or_default();
                    small.into_iter().for_each(|(page, frame)| object.insert(page, frame));
                    for (block, first) in large {
                        (0..FRAMES_PER_BLOCK).for_each(|i| object.insert(block + u64::from(i), first.offset(i)));
                    }
                    object
                }
            });
        }
        Ok(objects)
    }
}

impl Drop for Hold<'_> {
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
            Stream::Sealed(_) => {
                // SAFETY: as the caller promises; frames have no padding or invalid values.
                let room = unsafe { std::slice::from_raw_parts_mut(first.iov_base.cast::<u8>(), first.iov_len) };
                stream.receive(room, None).map(|got| got as isize)
            }
        };
        match got {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => rest = super::skip(rest, got as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until its home's clocks show at least what they have shown to the process: they are known here and there to
/// within half of the time that an answer from home takes.
fn await_clocks(process: &Process, shown: &[u64; 3]) -> Result<(), ReceiveError> {
    const MOST: u64 = 500_000_000;
    loop {
        let behind = |(shown, now): (&u64, u64)| shown.saturating_sub(now);
        match shown.iter().zip(process.steady_clocks()).map(behind).max() {
            None | Some(0) => return Ok(()),
            Some(nanos) if nanos > MOST => return Err(ReceiveError::Wrong("its clocks are ahead of its home's")),
            Some(nanos) => std::thread::sleep(Duration::from_nanos(nanos)),
        }
    }
}

/// Whether an image is one that a node could have made of this process, as far as it can be told without making it.
///
/// # Errors
/// [`ReceiveError::Wrong`]
pub fn validate(image: &ProcessImage, pid: i32) -> Result<(), ReceiveError> {
    let wrong = |what| Err(ReceiveError::Wrong(what));
    if image.pid != pid || pid <= 0 {
        return wrong("another process");
    }
    if image.threads.is_empty() || image.threads.len() > MAX_THREADS || image.actions.len() != 64 {
        return wrong("the number of threads or signals");
    }
    let text: usize = image.argv.iter().map(Vec::len).sum::<usize>()
        + image.space.regions.iter().map(|region| region.name.len()).sum::<usize>();
    if text > MAX_TEXT || image.name.len() > 15 || image.auxiliary.len() > 4096 || image.executable.len() > 4096 {
        return wrong("its names are too long");
    }
    let mut tids: Vec<i32> = image.threads.iter().map(|thread| thread.tid).collect();
    tids.sort_unstable();
    if tids.windows(2).any(|pair| pair[0] == pair[1]) || tids[0] <= 0 {
        return wrong("two threads with one number");
    }
    if image.leader_seq.is_some() == tids.contains(&pid) {
        return wrong("it has no leader, or two");
    }
    let end = vmm::shim_layout::USER_END;
    for thread in &image.threads {
        if thread.fpu.len() > MAX_FPU {
            return wrong("a thread's extended state");
        }
        if thread.bases.0 >= end || thread.bases.1 >= end {
            return wrong("a thread's segment bases");
        }
    }
    Ok(())
}

fn process(
    kernel: &Arc<Kernel>,
    image: &ProcessImage,
    space: &Arc<AddressSpace>,
    group: Arc<Group>,
) -> Result<Arc<Process>, ReceiveError> {
    let mut actions = [Action::default(); 64];
    for (action, &[handler, flags, restorer, mask]) in actions.iter_mut().zip(&image.actions) {
        *action = Action { handler, flags, restorer, mask: SignalSet(mask).blockable() };
    }
    let [stack, arguments, arguments_end, environment, environment_end] = image.places;
    let identity = Identity {
        name: image.name.clone(),
        argv: image.argv.clone(),
        executable: image.executable.clone(),
        ids: image.ids,
        auxiliary: image.auxiliary.clone(),
        places: StackPlaces {
            stack,
            arguments: (arguments, arguments_end),
            environment: (environment, environment_end),
        },
        limits: image.limits.iter().map(|&(resource, soft, hard)| (resource, (soft, hard))).collect(),
    };
    // Until the deputy is connected there is nobody at the other end.
    let (idle, _) = UnixStream::pair()?;
    let process = Process::new(
        kernel.clone(),
        image.pid,
        image.parent,
        Some(space.clone()),
        ProcessSignals { pending: image.pending.clone(), actions },
        identity,
        Arc::new(idle),
        Descriptors::default(),
        image.trace,
        group,
    );
    *lock(&process.timers) = ProcessTimers::from_images(&image.timers, image.next_timer, process.ahead())
        .ok_or(ReceiveError::Wrong("a timer that nobody can have made"))?;
    *lock(&process.counters.ended) = image.ended;
    *lock(&process.counters.children) = image.children;
    process.saw_resident(image.peak_resident);
    process.counters.cpu_warned.store(image.cpu_warned, Ordering::Relaxed);
    process.set_leader_status(image.leader_status);
    process.set_home_signals(image.home_signals);
    process.remote.continue_from(image.relayed);
    process.report.store(image.report, Ordering::Relaxed);
    process.epoch.store(image.epoch, Ordering::SeqCst);
    process.set_presence(Presence::Arriving);
    if image.stopped {
        process.stop();
    }
    Ok(process)
}

impl Arrival {
    /// Connects the process's threads with their deputies, one of which can then have it [`run`](Self::run).
    ///
    /// # Errors
    /// If a thread's connection is missing, or it may not have so many threads.
    pub fn connect(&mut self, mut calls: HashMap<i32, Stream>) -> Result<(), ReceiveError> {
        faults::at(Step::TargetAdopt)?;
        let mut channel = |tid, seq| {
            let stream = calls.remove(&tid).ok_or(ReceiveError::Wrong("a thread has no connection"))?;
            stream.set_patience(None)?;
            let mut channel = CallChannel::over(stream);
            channel.continue_from(seq);
            Ok::<_, ReceiveError>(channel)
        };
        if let Some(seq) = self.leader_seq {
            self.process.keep_leader_channel(channel(self.process.pid, seq)?);
        }
        while let Some((image, worker)) = self.waiting.pop() {
            let guest = channel(image.tid, image.seq)
                .and_then(|channel| guest_thread(&self.process, &self.space, &image, &worker, channel));
            match guest {
                Ok(guest) => self.ready.push((guest, image, worker)),
                Err(error) => {
                    self.waiting.push((image, worker));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether the deputy has this migration of the process in mind.
    pub fn is_for(&self, epoch: u32) -> bool {
        self.process.epoch.load(Ordering::SeqCst) == epoch
    }

    /// Whether its deputy is at the other end of this link, or on this host.
    pub fn is_over(&self, link: Option<&Arc<Link>>) -> bool {
        match (self.process.group.link(), link) {
            (Some(own), Some(link)) => Arc::ptr_eq(own, link),
            (own, link) => own.is_none() && link.is_none(),
        }
    }

    /// Runs the process: it is this node's from now on.
    pub fn run(mut self, control: Stream) {
        self.process.set_control(control);
        // It is this node's, whatever happens here.
        let _ = faults::at(Step::TargetRun);
        self.process.set_presence(Presence::Here);
        let kernel = self.process.kernel.clone();
        if let Err(error) = kernel.relay.add(&self.process) {
            tracing::error!(pid = self.process.pid, %error, "a deputy's control connection");
            self.process.begin_exit(Ending::Lost);
        }
        kernel.timers.resume(&self.process);
        for (guest, image, worker) in std::mem::take(&mut self.ready) {
            let start = Start { regs: frame_regs(image.regs), bases: image.bases, fpu: image.fpu, child_tid: None };
            let in_call = image.call.is_some();
            worker.run(move |cpu| guest.run_from(cpu, start, in_call));
        }
        self.leader_seq = None;
        // Nothing is left to be undone.
        self.waiting.clear();
        self.is_running = true;
    }
}

/// Registers as a program may have them.
fn frame_regs(words: [u64; 18]) -> Regs {
    let regs = Regs::from_words(words);
    Regs { rflags: signal::frame::user_flags(regs.rflags), ..regs }
}

/// A thread as its image says.
fn guest_thread(
    process: &Arc<Process>,
    space: &Arc<AddressSpace>,
    image: &ThreadImage,
    worker: &Worker,
    mut channel: CallChannel,
) -> Result<GuestThread, ReceiveError> {
    let mut again = Again::default();
    if let Some(call) = &image.call {
        if let Some(ForwardedCall { nr, args, flags }) = call.forwarded {
            channel.resume_call(nr, args, flags);
        }
        again = Again { deadline: call.deadline.map(|at| Deadline::at(process, at)), progress: call.progress };
    }
    let signals = ThreadSignals {
        mask: image.mask.blockable(),
        saved_mask: image.saved_mask.map(SignalSet::blockable),
        awaited: SignalSet::EMPTY,
        pending: image.pending.clone(),
        altstack: image.altstack,
    };
    let refused = ReceiveError::Refused(Errno::EAGAIN);
    let Some(permit) = process.group.admit() else { return Err(refused) };
    let guest = GuestThread::enter(process, image.tid, signals, worker, channel, space.clone(), permit);
    let Some(mut guest) = guest else { return Err(refused) };
    guest.again = again;
    guest.last_fault = image.last_fault;
    guest.thread.clear_tid.store(image.clear_tid, Ordering::Relaxed);
    guest.thread.robust_list.store(image.robust_list, Ordering::Relaxed);
    guest.thread.continue_from(image.usage);
    guest.thread.charged.store(image.charged, Ordering::Relaxed);
    if let Some(cpus) = image.affinity.as_deref().and_then(CpuSet::from_bytes) {
        guest.thread.set_affinity(cpus);
    }
    Ok(guest)
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.is_running {
            return;
        }
        let kernel = self.process.kernel.clone();
        for (guest, _, worker) in std::mem::take(&mut self.ready) {
            self.space.part(&guest.thread.gate);
            self.process.remove_thread(&guest.thread);
            guest.thread.leave_host_thread();
            kernel.pool.release(worker);
        }
        for (_, worker) in std::mem::take(&mut self.waiting) {
            kernel.pool.release(worker);
        }
        kernel.timers.forget(&self.process);
        kernel.leave(&self.process);
        self.process.set_space(None);
    }
}
