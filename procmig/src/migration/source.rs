//! The source of a migration: rounds of memory while the process runs, and the rest while it stands still.

use super::brake::Brake;
use super::cpu::CpuFeatures;
use super::faults::{self, Action, Step};
use super::image::{ObjectImage, ProcessImage, SpaceImage, ThreadImage};
use super::record::{Event, Record, Round};
use super::wire::{Content, FromSource, MAX_PAGES, MAX_RUNS, Offer, Owner, Reply, Run, Ticket};
use crate::kernel::Kernel;
use crate::kernel::descriptors::Change;
use crate::kernel::freeze::{FreezeError, Frozen};
use crate::kernel::lock;
use crate::kernel::process::{Ending, Presence, Process, Verdict};
use crate::mm::AddressSpace;
use crate::mm::image::{DescribeError, Description, PrivatePage, Stretch};
use crate::wire::control::{Commit, HandOver, MAX_MESSAGE, Migrate, NodeRequest, ToDeputy, VERSION, Way};
use crate::wire::frame::{self, FrameError, MAX_DESCRIPTORS};
use crate::wire::link::LinkId;
use crate::wire::stream::{Sealed, Stream, prepare};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::dirty::{FrameSet, Tracker};
use vmm::hypervisor::HypervisorError;

/// How long threads may take to stand still.
const STOP: Duration = Duration::from_millis(900);
/// How long the deputy may take to hold its signals back.
const HOLD: Duration = Duration::from_millis(900);
/// How long the deputy may take to find a way to the target.
const PREPARE: Duration = Duration::from_secs(20);
/// How long the target may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most rounds while the process runs.
const MAX_ROUNDS: usize = 24;
/// As little is not worth a round.
const LITTLE: u64 = 64 * PAGE_SIZE;

/// Why a process has not migrated; it is where it was.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// There is none.
    #[error("this node runs no process {0}")]
    NoProcess(i32),
    /// It cannot leave.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// It cannot leave alone.
    #[error("process {pid} cannot migrate: {reason}")]
    Bound {
        /// The process.
        pid: i32,
        /// Why.
        reason: String,
    },
    /// The target cannot be reached.
    #[error("the node {node} cannot be reached")]
    Unreachable {
        /// The target.
        node: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The target does not take it.
    #[error("the node {node} does not take it: {reason}")]
    Refused {
        /// The target.
        node: String,
        /// Its reason.
        reason: String,
    },
    /// The connection to the target failed.
    #[error("the connection to the target failed")]
    Link(#[from] FrameError),
    /// The hypervisor does not say what is written.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The deputy has not given it away.
    #[error("home has not given the process to the target: {0}")]
    Kept(String),
    /// The deputy does not answer.
    #[error("the deputy does not answer; is it stopped?")]
    Silent,
}

impl From<DescribeError> for String {
    fn from(error: DescribeError) -> Self {
        error.to_string()
    }
}

/// The way to the target.
struct Link {
    stream: Stream,
    node: String,
    bytes: u64,
    /// Where pages are copied to before they are sealed.
    room: Vec<u8>,
}

impl Link {
    /// Opens it; `passed` is the connection with a target on another host.
    fn open(migrate: &Migrate, passed: Option<OwnedFd>) -> Result<Self, MigrateError> {
        let node = migrate.shown.clone();
        let opened = match (&migrate.way, passed) {
            (Way::Socket(path), _) => UnixStream::connect(OsStr::from_bytes(path)).map(Stream::from),
            (Way::Passed(keys), Some(socket)) => {
                let socket = TcpStream::from(socket);
                let sealed =
                    prepare(&socket).and_then(|()| Sealed::with_keys(socket, keys.clone()).map_err(io::Error::other));
                sealed.map(Stream::from)
            }
            (Way::Passed(_), None) => Err(io::Error::from(io::ErrorKind::NotConnected)),
        };
        let opened = opened.and_then(|stream| stream.set_patience(Some(PATIENCE)).map(|()| stream));
        match opened {
            Ok(stream) => Ok(Self { stream, node, bytes: 0, room: Vec::new() }),
            Err(source) => Err(MigrateError::Unreachable { node, source }),
        }
    }

    /// Offers a process.
    fn offer(&mut self, offer: Offer) -> Result<(), MigrateError> {
        if self.stream.is_sealed() {
            self.stream.send_message(&offer, &[])?;
        } else {
            self.stream.send_message(&NodeRequest::Receive(offer), &[])?;
        }
        self.reply().map(drop)
    }

    fn send(&mut self, message: &FromSource, descriptors: &[RawFd]) -> Result<(), FrameError> {
        let mut bytes = frame::encode(message)?;
        let step = match message {
            FromSource::Pages(_) => Step::SourcePages,
            _ => Step::SourceImage,
        };
        match faults::of_message(step) {
            Some(Action::Corrupt) => bytes[4..].iter_mut().for_each(|byte| *byte ^= 0xa5),
            Some(Action::Duplicate) => self.stream.send(&bytes.clone())?,
            _ => {}
        }
        self.stream.send_frame(&bytes, descriptors)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The process stands still: nothing may take long any more.
    fn hurry(&self) -> Result<(), FrameError> {
        Ok(self.stream.set_patience(Some(STOP))?)
    }

    fn reply(&mut self) -> Result<Ticket, MigrateError> {
        match self.stream.receive_message(MAX_MESSAGE)?.0 {
            Reply::Ready(ticket) => Ok(ticket),
            Reply::Refused(reason) => Err(MigrateError::Refused { node: self.node.clone(), reason }),
        }
    }
}

/// Has a process go to another node; `passed` is the connection with a node of another host. While it goes on `tell` is
/// told how.
///
/// # Errors
/// See [`MigrateError`]; the process goes on here then.
pub fn migrate(
    kernel: &Arc<Kernel>,
    order: &Migrate,
    passed: Option<OwnedFd>,
    tell: &mut dyn FnMut(Event),
) -> Result<Record, MigrateError> {
    let started = Instant::now();
    let home = order.home.map_or(Some(0), |home| kernel.links.home(&home));
    let process = home.and_then(|home| kernel.process_of(home, order.pid));
    let process = process.filter(|process| process.presence() == Presence::Here);
    let process = process.ok_or(MigrateError::NoProcess(order.pid))?;
    let space = check(kernel, &process)?;
    if order.host.is_some() {
        describe(&process, &space)?.leave_home().map_err(|error| bound(&process, error))?;
    }
    let mut link = Link::open(order, passed)?;
    let bytes = space.private_pages().iter().map(|page| u64::from(page.count()) * PAGE_SIZE).sum();
    let epoch = process.epoch.load(Ordering::SeqCst).wrapping_add(1);
    let way = Preparation::of(&process, order, epoch)?;
    let (features, fpu) = (kernel.fpu.features(), kernel.fpu.size() as u32);
    let offer = Offer {
        version: VERSION,
        pid: order.pid,
        name: String::from_utf8_lossy(&lock(&process.identity).name).into_owned(),
        bytes,
        threads: process.threads().len() as u32,
        fpu: (fpu, features),
        cpu: CpuFeatures::here(),
        link: way.link,
    };
    faults::at(Step::SourceOffer).map_err(FrameError::from)?;
    link.offer(offer)?;
    tell(Event::Prepared { bytes });
    let mut record = Record {
        pid: order.pid,
        from: kernel.name.clone(),
        to: order.shown.clone(),
        prepare_micros: micros(started),
        slowed: 1,
        ..Record::default()
    };
    let tracker = Tracker::start(&kernel.machine)?;
    let mut copy = Copy {
        kernel,
        space: space.clone(),
        link,
        sent: Vec::new(),
        dirty: FrameSet::default(),
        missed: BTreeSet::new(),
        order,
    };
    let moved = copy
        .while_it_runs(&process, &tracker, &mut record, tell)
        .and_then(|()| copy.while_it_stands(&process, &tracker, &mut record, tell));
    drop(tracker);
    let mut link = copy.link;
    match moved {
        Ok(()) => {
            way.is_used();
            record.total_micros = micros(started);
            record.bytes = link.bytes;
            process.wait_until_left(PATIENCE);
            Ok(record)
        }
        Err(error) => {
            // A target that does not hear it finds the connection closed.
            let _ = link.send(&FromSource::Abandoned, &[]);
            // The target may have said that it is there.
            if process.home() == 0 {
                kernel.neighbours.note(process.pid);
            }
            Err(error)
        }
    }
}

/// What the deputy has found: the way to a target where not all are on one host. It is given up when this is dropped.
struct Preparation<'a> {
    process: &'a Process,
    epoch: u32,
    link: Option<LinkId>,
    is_held: bool,
}

impl<'a> Preparation<'a> {
    /// Has the deputy find it.
    fn of(process: &'a Arc<Process>, order: &Migrate, epoch: u32) -> Result<Self, MigrateError> {
        let is_local = order.host.is_none() && !process.is_remote();
        let mut way = Self { process, epoch, link: None, is_held: !is_local };
        if is_local {
            return Ok(way);
        }
        process.take_verdict(Some(Duration::ZERO));
        let threads = process.threads().len() as u32;
        process.send(&ToDeputy::Prepare { epoch, host: order.host, node: order.node.clone(), threads });
        way.link = match process.take_verdict(Some(PREPARE)) {
            Some(Verdict::Prepared(link)) if link.is_some() == order.host.is_some() => link,
            Some(Verdict::Kept(reason)) => return Err(MigrateError::Kept(reason)),
            _ if process.ending().is_some() => return Err(FreezeError::Ended.into()),
            _ => return Err(MigrateError::Silent),
        };
        Ok(way)
    }

    /// The process has gone that way.
    fn is_used(mut self) {
        self.is_held = false;
    }
}

impl Drop for Preparation<'_> {
    fn drop(&mut self) {
        if self.is_held {
            self.process.send(&ToDeputy::Release { epoch: self.epoch });
        }
    }
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

fn bound(process: &Process, error: DescribeError) -> MigrateError {
    MigrateError::Bound { pid: process.pid, reason: error.into() }
}

fn describe(process: &Process, space: &AddressSpace) -> Result<Description, MigrateError> {
    space.describe(&process.time().vdso).map_err(|error| bound(process, error))
}

/// Whether a process can go alone.
fn check(kernel: &Kernel, process: &Arc<Process>) -> Result<Arc<AddressSpace>, MigrateError> {
    let space = process.space().ok_or(FreezeError::Ended)?;
    let shares = |other: &Arc<Process>| {
        !Arc::ptr_eq(other, process) && other.space().is_some_and(|other| Arc::ptr_eq(&other, &space))
    };
    if let Some(other) = kernel.processes().iter().find(|other| shares(other)) {
        let reason = format!("it shares its memory with process {} until that runs a program (vfork)", other.pid);
        return Err(MigrateError::Bound { pid: process.pid, reason });
    }
    describe(process, &space)?;
    Ok(space)
}

/// What a migration copies.
struct Copy<'a> {
    kernel: &'a Arc<Kernel>,
    space: Arc<AddressSpace>,
    link: Link,
    order: &'a Migrate,
    /// What has been sent, in order, as it was then.
    sent: Vec<PrivatePage>,
    /// Frames that may have been written since they were sent.
    dirty: FrameSet,
    /// Pages that were to be sent in this round and were not.
    missed: BTreeSet<u64>,
}

impl Copy<'_> {
    /// Sends what is written until so little is left that it can be sent while the process stands still. A process that
    /// writes faster is slowed down.
    fn while_it_runs(
        &mut self,
        process: &Arc<Process>,
        tracker: &Tracker,
        record: &mut Record,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), MigrateError> {
        // Bytes in a microsecond.
        let mut rate = 0.0;
        let mut last = u64::MAX;
        let mut brake = Brake::default();
        let most = Duration::from_micros(self.order.max_freeze_micros);
        for number in 1..=MAX_ROUNDS {
            let pages = self.space.private_pages();
            let todo = changes(&self.sent, &pages, &self.dirty);
            let bytes = bytes_in(&todo);
            // The rest of the freeze is for stopping, and for what else there is to send.
            let fits = rate * self.order.max_freeze_micros as f64 / 4.0;
            if number > 1 && (bytes <= LITTLE || (bytes as f64) < fits) {
                break;
            }
            if bytes >= last / 10 * 9 {
                let Some(factor) = brake.press(process, most).map_err(FrameError::from)? else { break };
                record.slowed = factor;
                tell(Event::Slowed(factor));
            }
            last = bytes;
            let round = self.round(number as u32, &todo, tell)?;
            rate = bytes as f64 / round.micros.max(1) as f64;
            self.sent = pages;
            self.forget_missed();
            record.rounds.push(round);
            tell(Event::Round(round));
            // From now on what is written is for the next round.
            self.dirty = tracker.take()?;
        }
        Ok(())
    }

    /// What was not what it had been when its turn came has not been sent.
    fn forget_missed(&mut self) {
        let missed = std::mem::take(&mut self.missed);
        if !missed.is_empty() {
            /// No page's: an earlier round may have sent something.
            const UNKNOWN: Frame = Frame(u32::MAX);
            let has =
                |page: &PrivatePage| missed.range(page.page..page.page + u64::from(page.count())).next().is_some();
            self.sent.iter_mut().filter(|page| has(page)).for_each(|page| page.frame = UNKNOWN);
        }
    }

    fn round(&mut self, number: u32, todo: &[Stretch], tell: &mut dyn FnMut(Event)) -> Result<Round, MigrateError> {
        /// Between two reports.
        const TELL: Duration = Duration::from_millis(100);
        let (started, before, of) = (Instant::now(), self.link.bytes, bytes_in(todo));
        let mut told = started;
        let mut round = Round::default();
        let mut done = 0;
        for batch in batches(todo) {
            faults::at(Step::SourcePages).map_err(FrameError::from)?;
            let pinned = self.space.pin(batch);
            self.missed.extend(batch.iter().filter(|stretch| !pinned.contains(stretch)).map(|stretch| stretch.page));
            let sent = self.link.send_pages(self.kernel, Owner::Space, &pinned, &mut round);
            let frames: Vec<Frame> = pinned.iter().flat_map(Stretch::frames).collect();
            self.kernel.machine.frames().release_all(&frames);
            sent?;
            done += bytes_in(batch);
            if told.elapsed() >= TELL {
                told = Instant::now();
                tell(Event::Progress { round: number, done, of });
            }
            if let Some(bandwidth) = self.order.bandwidth {
                let due = (self.link.bytes - before) as f64 / bandwidth.max(1) as f64;
                std::thread::sleep(Duration::from_secs_f64(due).saturating_sub(started.elapsed()));
            }
        }
        (round.bytes, round.micros) = (self.link.bytes - before, micros(started));
        Ok(round)
    }

    /// Stops the process, sends the rest, and has the deputy give the process to the target.
    fn while_it_stands(
        &mut self,
        process: &Arc<Process>,
        tracker: &Tracker,
        record: &mut Record,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), MigrateError> {
        let started = Instant::now();
        let epoch = process.epoch.load(Ordering::SeqCst).wrapping_add(1);
        process.take_verdict(Some(Duration::ZERO));
        process.send(&ToDeputy::Hold { epoch });
        let decided = process.freeze(STOP).map_err(MigrateError::from).and_then(|frozen| {
            record.stop_micros = micros(started);
            if process.take_verdict(Some(HOLD)) != Some(Verdict::Held) {
                return Err(if process.ending().is_some() { FreezeError::Ended.into() } else { MigrateError::Silent });
            }
            tell(Event::Frozen);
            self.kernel.timers.suspend(process);
            let moved = self.hand_over(process, frozen, epoch, tracker, record);
            if moved.is_err() {
                self.kernel.timers.resume(process);
            }
            moved
        });
        match decided {
            Ok(()) => record.freeze_micros = micros(started),
            Err(MigrateError::Kept(_)) => {}
            Err(_) => process.send(&ToDeputy::Release { epoch }),
        }
        decided
    }

    fn hand_over(
        &mut self,
        process: &Arc<Process>,
        frozen: Frozen<'_>,
        epoch: u32,
        tracker: &Tracker,
        record: &mut Record,
    ) -> Result<(), MigrateError> {
        let sending = Instant::now();
        self.link.hurry()?;
        faults::at(Step::SourceFrozen).map_err(FrameError::from)?;
        // Another process may have come to share the memory meanwhile; or this one has a new program, of whose
        // memory nothing is sent yet. The old memory is kept, so its frames are no other's.
        self.space = check(self.kernel, process)?;
        let mut description = describe(process, &self.space)?;
        self.lend(process, &mut description)?;
        self.dirty.add(&tracker.take()?);
        let before = self.link.bytes;
        let mut round = Round::default();
        let pages = self.space.private_pages();
        for batch in batches(&changes(&self.sent, &pages, &self.dirty)) {
            self.link.send_pages(self.kernel, Owner::Space, batch, &mut round)?;
        }
        self.send_objects(&description, &mut round)?;
        // What the node has of home's files is let go of, so that an end of a pipe is one when it should be.
        drop(process.descriptors.change(Change::All));
        let image = image(process, &frozen.threads, description.image.clone(), epoch);
        let threads = hand_over_list(&image);
        faults::at(Step::SourceImage).map_err(FrameError::from)?;
        self.link.send(&FromSource::Image(Box::new(image)), &[])?;
        for descriptors in description.descriptors().chunks(MAX_DESCRIPTORS) {
            self.link.send(&FromSource::Descriptors, descriptors)?;
        }
        let ticket = self.link.reply()?;
        (round.bytes, round.micros) = (self.link.bytes - before, micros(sending));
        record.rounds.push(round);
        let committing = Instant::now();
        let socket = match &self.order.way {
            Way::Socket(path) if self.order.host.is_none() && !process.is_remote() => Some(path.clone()),
            _ => None,
        };
        let commit = Commit { epoch, socket, node: self.order.shown.clone(), ticket, threads };
        faults::at(Step::SourceCommit).map_err(FrameError::from)?;
        process.send(&ToDeputy::Commit(Box::new(commit)));
        // From now on only the deputy knows whose the process is.
        let verdict = process.take_verdict(None);
        record.commit_micros = micros(committing);
        match verdict {
            Some(Verdict::Moved) => {
                // It is gone, whatever happens here.
                let _ = faults::at(Step::SourceMoved);
                process.set_presence(Presence::Gone);
                process.begin_exit(Ending::Lost);
                Ok(())
            }
            Some(Verdict::Kept(reason)) => Err(MigrateError::Kept(reason)),
            Some(Verdict::Held | Verdict::Prepared(_)) | None => Err(FreezeError::Ended.into()),
        }
    }

    /// Has the image name the files that the deputy lends by their numbers: all of them, if it goes to another host.
    fn lend(&self, process: &Arc<Process>, description: &mut Description) -> Result<(), MigrateError> {
        let unknown = || MigrateError::Bound { pid: process.pid, reason: "home does not lend a file of it".to_owned() };
        for (object, image) in description.objects.iter().zip(&mut description.image.objects) {
            if let (ObjectImage::File { lent, .. }, Some(_)) = (image, object.lent()) {
                *lent = Some(process.lent_number(object).ok_or_else(unknown)?);
            }
        }
        if self.order.host.is_none() {
            return Ok(());
        }
        let files = description.leave_home().map_err(|error| bound(process, error))?;
        for files in files.chunks(MAX_DESCRIPTORS) {
            let identities = files.iter().map(|&(_, identity, _)| identity).collect();
            let descriptors: Vec<RawFd> = files.iter().map(|&(.., file)| file).collect();
            process.send_with(&ToDeputy::Lend(identities), &descriptors).map_err(|_| MigrateError::Silent)?;
            let answer = process.remote.await_lent(Instant::now() + HOLD, || process.ending().is_some());
            let numbers = match answer.ok_or(MigrateError::Silent)? {
                Ok(numbers) if numbers.len() == files.len() => numbers,
                Ok(_) => return Err(unknown()),
                Err(errno) => {
                    let reason = format!("home cannot lend a file of it: {}", Errno::from_raw(errno).desc());
                    return Err(MigrateError::Bound { pid: process.pid, reason });
                }
            };
            for (&(index, identity, _), number) in files.iter().zip(numbers) {
                description.image.objects[index] = ObjectImage::File { identity, lent: Some(number) };
            }
        }
        Ok(())
    }

    /// Sends the memory that areas of the process share with each other.
    fn send_objects(&mut self, description: &Description, round: &mut Round) -> Result<(), MigrateError> {
        for (index, object) in (0..).zip(&description.objects) {
            if description.image.objects.get(index as usize) != Some(&ObjectImage::Memory) {
                continue;
            }
            let stretch = |(page, frame): (u64, Frame)| Stretch {
                page,
                count: 1,
                frame: Some(frame),
                large: false,
                is_zero_by_default: true,
            };
            let stretches: Vec<Stretch> = object.frames().into_iter().map(stretch).collect();
            for batch in batches(&stretches) {
                self.link.send_pages(self.kernel, Owner::Object(index), batch, round)?;
            }
        }
        Ok(())
    }
}

impl Link {
    /// Sends what pages hold; nobody may free their frames meanwhile.
    fn send_pages(
        &mut self,
        kernel: &Kernel,
        owner: Owner,
        stretches: &[Stretch],
        round: &mut Round,
    ) -> Result<(), MigrateError> {
        let ram = kernel.machine.ram();
        let mut runs: Vec<Run> = Vec::new();
        let mut places: Vec<libc::iovec> = Vec::new();
        for stretch in stretches {
            for i in 0..stretch.count {
                let page = stretch.page + u64::from(i);
                let content = match stretch.frame {
                    None => Content::Nothing,
                    Some(first) if ram.is_zero(first.offset(i)) => {
                        if stretch.is_zero_by_default {
                            continue;
                        }
                        round.zeros += 1;
                        Content::Zeros
                    }
                    Some(first) => {
                        round.pages += 1;
                        add_place(&mut places, ram.host_address(), first.offset(i));
                        Content::Bytes
                    }
                };
                match runs.last_mut() {
                    Some(run)
                        if run.first + u64::from(run.count) == page
                            && run.large == stretch.large
                            && run.content == content =>
                    {
                        run.count += 1;
                    }
                    _ => runs.push(Run { owner, first: page, count: 1, large: stretch.large, content }),
                }
            }
        }
        if runs.is_empty() {
            return Ok(());
        }
        self.send(&FromSource::Pages(runs), &[])?;
        self.bytes += places.iter().map(|place| place.iov_len as u64).sum::<u64>();
        // SAFETY: the places are frames of the guest's memory, which is mapped for as long as the kernel is.
        let written = match &mut self.stream {
            Stream::Local(stream) => unsafe { write_all(stream, &mut places) },
            stream => unsafe { seal_all(stream, &places, &mut self.room) },
        };
        Ok(written.map_err(FrameError::from)?)
    }
}

fn add_place(places: &mut Vec<libc::iovec>, base: *mut u8, frame: Frame) {
    let at = base.wrapping_add(frame.address().raw() as usize);
    if let Some(last) = places.last_mut()
        && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == at
    {
        last.iov_len += PAGE_SIZE as usize;
    } else {
        places.push(libc::iovec { iov_base: at.cast(), iov_len: PAGE_SIZE as usize });
    }
}

/// Writes all places.
///
/// # Safety
/// They must be valid for reads until it returns.
unsafe fn write_all(stream: &UnixStream, places: &mut [libc::iovec]) -> io::Result<()> {
    const MOST: usize = libc::UIO_MAXIOV as usize;
    let mut rest = places;
    while !rest.is_empty() {
        let count = rest.len().min(MOST) as libc::c_int;
        // SAFETY: as the caller promises.
        let put = unsafe { libc::writev(stream.as_raw_fd(), rest.as_ptr(), count) };
        match put {
            ..0 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            0 => return Err(io::ErrorKind::WriteZero.into()),
            put => rest = super::skip(rest, put as usize),
        }
    }
    Ok(())
}

/// The same over a connection that seals what it sends.
///
/// # Safety
/// As of [`write_all`]. They may be written meanwhile: what was is sent again in a later round.
unsafe fn seal_all(stream: &mut Stream, places: &[libc::iovec], room: &mut Vec<u8>) -> io::Result<()> {
    const AT_ONCE: usize = 256 << 10;
    room.clear();
    room.reserve(AT_ONCE);
    for place in places {
        let mut done = 0;
        while done < place.iov_len {
            let count = (AT_ONCE - room.len()).min(place.iov_len - done);
            let from = place.iov_base.cast::<u8>().cast_const().wrapping_add(done);
            // SAFETY: so many bytes can be read, as the caller promises, and there is room for them.
            unsafe {
                std::ptr::copy_nonoverlapping(from, room.as_mut_ptr().add(room.len()), count);
                room.set_len(room.len() + count);
            }
            done += count;
            if room.len() == AT_ONCE {
                stream.send(room)?;
                room.clear();
            }
        }
    }
    stream.send(room)
}

fn bytes_in(stretches: &[Stretch]) -> u64 {
    stretches.iter().map(|stretch| u64::from(stretch.count) * PAGE_SIZE).sum()
}

/// Parts of at most as many pages as one message tells of.
fn batches(stretches: &[Stretch]) -> impl Iterator<Item = &[Stretch]> {
    let mut rest = stretches;
    std::iter::from_fn(move || {
        let mut pages = 0;
        let fits = |stretch: &&Stretch| {
            pages += u64::from(stretch.count);
            pages <= MAX_PAGES
        };
        let count = rest.iter().take(MAX_RUNS).take_while(fits).count();
        let (batch, others) = rest.split_at(count);
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// What is to be sent where `sent` is known and `pages` are there now, of which those in `dirty` have changed.
fn changes(sent: &[PrivatePage], pages: &[PrivatePage], dirty: &FrameSet) -> Vec<Stretch> {
    let mut gone = Vec::new();
    let mut changed: Vec<Stretch> = Vec::new();
    let mut old = sent.iter().peekable();
    let nothing = |page: &PrivatePage| Stretch {
        page: page.page,
        count: page.count(),
        frame: None,
        large: page.large,
        is_zero_by_default: false,
    };
    for page in pages {
        while let Some(before) = old.next_if(|old| old.page < page.page) {
            gone.push(nothing(before));
        }
        let before = old.next_if(|old| old.page == page.page);
        let stretch = |i: u32, count: u32, is_zero_by_default: bool| Stretch {
            page: page.page + u64::from(i),
            count,
            frame: Some(page.frame.offset(i)),
            large: page.large,
            is_zero_by_default,
        };
        match before {
            Some(before) if before == page => {
                let mut i = 0;
                while i < page.count() {
                    let run = (i..page.count()).take_while(|&i| dirty.contains(page.frame.offset(i))).count() as u32;
                    if run > 0 {
                        changed.push(stretch(i, run, false));
                    }
                    i += run + 1;
                }
            }
            before => {
                gone.extend(before.map(nothing));
                changed.push(stretch(0, page.count(), !page.covers_file));
            }
        }
    }
    gone.extend(old.map(nothing));
    gone.extend(changed);
    gone
}

/// The threads that the deputy is to hand over.
fn hand_over_list(image: &ProcessImage) -> Vec<HandOver> {
    let thread = |thread: &ThreadImage| HandOver {
        tid: thread.tid,
        seq: thread.seq,
        awaits: thread.call.as_ref().is_some_and(|call| call.forwarded.is_some()),
    };
    let leader = image.leader_seq.map(|seq| HandOver { tid: image.pid, seq, awaits: false });
    image.threads.iter().map(thread).chain(leader).collect()
}

/// The image of a process whose threads stand still.
fn image(process: &Process, threads: &[ThreadImage], space: SpaceImage, epoch: u32) -> ProcessImage {
    let identity = lock(&process.identity).clone();
    let signals = lock(&process.signals).clone();
    let (timers, next_timer) = lock(&process.timers).images(process.ahead());
    let (memory_limit, max_threads) = process.group.limits();
    let mut threads = threads.to_vec();
    for image in &mut threads {
        // Signals may have come since it stands still.
        if let Some(thread) = process.thread(image.tid) {
            image.pending = lock(&thread.signals).pending.clone();
        }
    }
    ProcessImage {
        pid: process.pid,
        parent: process.parent,
        epoch,
        name: identity.name,
        argv: identity.argv,
        executable: identity.executable,
        ids: identity.ids,
        auxiliary: identity.auxiliary,
        places: [
            identity.places.stack,
            identity.places.arguments.0,
            identity.places.arguments.1,
            identity.places.environment.0,
            identity.places.environment.1,
        ],
        limits: identity.limits.iter().map(|(&resource, &(soft, hard))| (resource, soft, hard)).collect(),
        pending: signals.pending,
        actions: signals
            .actions
            .iter()
            .map(|action| [action.handler, action.flags, action.restorer, action.mask.0])
            .collect(),
        timers,
        next_timer,
        ended: *lock(&process.counters.ended),
        children: process.children_usage(),
        peak_resident: process.saw_resident(0),
        cpu_warned: process.counters.cpu_warned.load(Ordering::Relaxed),
        leader_status: process.leader_status(),
        leader_seq: process.leader_seq(),
        home_signals: process.home_signals(),
        relayed: process.remote.relayed(),
        clocks: process.steady_clocks(),
        trace: process.trace,
        report: process.report.load(Ordering::Relaxed),
        stopped: process.is_stopped(),
        memory_limit,
        max_threads,
        threads,
        space,
    }
}
