//! The source of a migration: rounds of memory while the process runs, and the rest while it stands still.

mod changes;
mod link;
mod owing;
mod preparation;
mod snapshot;
mod streams;

use super::brake::Brake;
use super::cpu::CpuFeatures;
use super::faults::{self, Step};
use super::image::ObjectImage;
use super::record::{Event, Record, Round};
use super::wire::{FromSource, MAX_PAGES, Offer, Owner};
use crate::kernel::Kernel;
use crate::kernel::descriptors::Change;
use crate::kernel::freeze::{FreezeError, Frozen};
use crate::kernel::lock;
use crate::kernel::process::{Ending, Presence, Process, Verdict};
use crate::mm::AddressSpace;
use crate::mm::image::{DescribeError, Description, PrivatePage, Stretch};
use crate::wire::control::{Commit, Migrate, PostCopy, ToDeputy, VERSION, Way};
use crate::wire::frame::{FrameError, MAX_DESCRIPTORS};
use changes::{batches, bytes_in, changes};
use link::Link;
use nix::errno::Errno;
use owing::Owing;
use preparation::Preparation;
use snapshot::{hand_over_list, image};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use streams::{Streams, Work};
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::dirty::{FrameSet, Tracker};
use vmm::hypervisor::HypervisorError;

/// How long threads may take to stand still.
const STOP: Duration = Duration::from_millis(900);
/// How long the deputy may take to hold its signals back.
const HOLD: Duration = Duration::from_millis(900);
/// How often a process is stopped, if its threads or its deputy are not in time: a machine may be very busy.
const STOPS: u32 = 3;
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
    /// It asks for what it was not told of.
    #[error("the target asks for what it cannot")]
    Nonsense,
    /// It is lost, or about to be.
    #[error("the process runs at {node}, but not all of its memory has got there")]
    Behind {
        /// The target.
        node: String,
        /// Why.
        #[source]
        source: Box<MigrateError>,
    },
    /// The link with its home is lost.
    #[error("process {0} cannot migrate: its home cannot be reached now")]
    Apart(i32),
    /// The deputy does not answer.
    #[error("the deputy does not answer; is it stopped?")]
    Silent,
}

impl From<DescribeError> for String {
    fn from(error: DescribeError) -> Self {
        error.to_string()
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
    let process = home.and_then(|home| kernel.settled(home, order.pid));
    let process = process.ok_or(MigrateError::NoProcess(order.pid))?;
    // What it was owed when it came here may still be on its way.
    if let Some(owed) = process.space().and_then(|space| space.owed().cloned()) {
        owed.wait_for_all(PATIENCE);
    }
    let space = check(kernel, &process)?;
    if process.has_lost_home() {
        return Err(MigrateError::Apart(order.pid));
    }
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
        streams: streams::further(order, bytes),
    };
    faults::at(Step::SourceOffer).map_err(FrameError::from)?;
    let offered = offer.streams;
    let aside = link.offer(offer)?;
    let streams = Streams::open(kernel, link, offered, aside)?;
    tell(Event::Prepared { bytes });
    let mut record = Record {
        pid: order.pid,
        from: kernel.name.clone(),
        to: order.shown.clone(),
        prepare_micros: micros(started),
        slowed: 1,
        streams: streams.count(),
        ..Record::default()
    };
    let tracker = Tracker::start(&kernel.machine)?;
    let mut copy = Copy {
        kernel,
        space: space.clone(),
        streams,
        sent: Vec::new(),
        dirty: FrameSet::default(),
        missed: BTreeSet::new(),
        rate: 0.0,
        owing: None,
        order,
    };
    let moved = copy
        .while_it_runs(&process, &tracker, &mut record, tell)
        .and_then(|()| copy.while_it_stands(&process, &tracker, &mut record, tell));
    drop(tracker);
    let Copy { streams, owing, .. } = copy;
    let (elsewhere, mut link) = (streams.elsewhere(), streams.into_first());
    match moved {
        Ok(()) => {
            way.use_up();
            if let Some(owing) = owing {
                let served = link.calm_down().map_err(MigrateError::from);
                let served = served.and_then(|()| owing.serve(&mut link, order.bandwidth, tell));
                let behind = |source| MigrateError::Behind { node: order.shown.clone(), source: Box::new(source) };
                record.post_copy = served.map_err(behind)?;
            }
            record.total_micros = micros(started);
            (record.bytes, record.uncompressed) = (elsewhere.0 + link.bytes, elsewhere.1 + link.uncompressed);
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

/// Stops a process whose deputy holds its signals back, and tells since when it stands still. If either takes long the
/// process goes on for a while before it is tried again, of which the target hears.
fn stop<'a>(process: &'a Arc<Process>, epoch: u32, link: &mut Link) -> Result<(Frozen<'a>, Instant), MigrateError> {
    let attempt = process.begin_attempt();
    process.send(&ToDeputy::Hold { epoch, attempt });
    let mut is_held = false;
    let mut hold = |limit| {
        is_held = is_held || process.take_verdict(Some(limit)) == Some(Verdict::Held);
        match is_held {
            true => Ok(()),
            false if process.ending().is_some() => Err(FreezeError::Ended.into()),
            false => Err(MigrateError::Silent),
        }
    };
    let mut stops = 1;
    loop {
        let started = Instant::now();
        let stopped = process.freeze(STOP).map_err(MigrateError::from).and_then(|frozen| hold(HOLD).map(|()| frozen));
        match stopped {
            Ok(frozen) => return Ok((frozen, started)),
            Err(MigrateError::Silent | MigrateError::Freeze(FreezeError::Late(_))) if stops < STOPS => {}
            Err(error) => return Err(error),
        }
        stops += 1;
        link.keep_alive()?;
        // It runs for as long as it has stood still.
        let until = Instant::now() + started.elapsed();
        let _ = hold(started.elapsed());
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// What a migration copies.
struct Copy<'a> {
    kernel: &'a Arc<Kernel>,
    space: Arc<AddressSpace>,
    streams: Streams,
    order: &'a Migrate,
    /// What has been sent, in order, as it was then.
    sent: Vec<PrivatePage>,
    /// Frames that may have been written since they were sent.
    dirty: FrameSet,
    /// Pages that were to be sent in this round and were not.
    missed: BTreeSet<u64>,
    /// Bytes in a microsecond that were sent in the last round.
    rate: f64,
    /// What is sent when the process runs at the target.
    owing: Option<Owing>,
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
        if self.order.post_copy == PostCopy::Always {
            return Ok(());
        }
        let mut last = u64::MAX;
        let mut brake = Brake::default();
        let most = Duration::from_micros(self.order.max_freeze_micros);
        for number in 1..=MAX_ROUNDS {
            let pages = self.space.private_pages();
            let todo = changes(&self.sent, &pages, &self.dirty);
            let bytes = bytes_in(&todo);
            // The rest of the freeze is for stopping, and for what else there is to send.
            let fits = self.rate * self.order.max_freeze_micros as f64 / 4.0;
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
        let (started, of) = (Instant::now(), bytes_in(todo));
        let work = Work::while_it_runs(&self.space, self.order.bandwidth);
        let share = self.streams.send(self.kernel, work, todo, &mut |done| {
            tell(Event::Progress { round: number, done, of });
        })?;
        self.missed.extend(share.missed);
        let round = Round { micros: micros(started), ..share.round };
        // While the process stands still the bandwidth is not limited. Until then streams may have taken turns.
        let busy = if self.order.bandwidth.is_some() { share.busy.as_micros() as u64 } else { round.micros };
        self.rate = of as f64 / busy.max(1) as f64;
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
        let epoch = process.epoch.load(Ordering::SeqCst).wrapping_add(1);
        let decided = stop(process, epoch, &mut self.streams.first).and_then(|(frozen, started)| {
            record.stop_micros = micros(started);
            tell(Event::Frozen);
            self.kernel.timers.suspend(process);
            let moved = self.hand_over(process, frozen, epoch, tracker, record);
            match moved {
                Ok(()) => record.freeze_micros = micros(started),
                Err(_) => self.kernel.timers.resume(process),
            }
            moved
        });
        if !matches!(decided, Ok(()) | Err(MigrateError::Kept(_))) {
            process.send(&ToDeputy::Release { epoch });
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
        self.streams.first.hurry()?;
        faults::at(Step::SourceFrozen).map_err(FrameError::from)?;
        // Another process may have come to share the memory meanwhile; or this one has a new program, of whose
        // memory nothing is sent yet. The old memory is kept, so its frames are no other's.
        self.space = check(self.kernel, process)?;
        let mut description = describe(process, &self.space)?;
        self.lend(process, &mut description)?;
        self.dirty.add(&tracker.take()?);
        let before = self.streams.bytes();
        let pages = self.space.private_pages();
        let mut todo = changes(&self.sent, &pages, &self.dirty);
        if self.is_too_much(bytes_in(&todo)) {
            let (now, later) = owing::split(todo, &self.space);
            todo = now;
            self.owing = (!later.is_empty()).then(|| Owing::new(self.kernel, &later));
        }
        let mut round = self.streams.send(self.kernel, Work::last(&self.space), &todo, &mut |_| {})?.round;
        self.send_objects(&description, &mut round)?;
        if let Some(owing) = &self.owing {
            owing.announce(&mut self.streams.first)?;
        }
        // What the node has of home's files is let go of, so that an end of a pipe is one when it should be.
        drop(process.descriptors.change(Change::All));
        let image = image(process, &frozen.threads, description.image.clone(), epoch);
        let threads = hand_over_list(&image);
        faults::at(Step::SourceImage).map_err(FrameError::from)?;
        let link = &mut self.streams.first;
        link.send(&FromSource::Image(Box::new(image)), &[])?;
        for descriptors in description.descriptors().chunks(MAX_DESCRIPTORS) {
            link.send(&FromSource::Descriptors, descriptors)?;
        }
        let ticket = link.reply()?;
        let (bytes, uncompressed) = self.streams.bytes();
        round.micros = micros(sending);
        (round.bytes, round.uncompressed) = (bytes - before.0, uncompressed - before.1);
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

    /// Whether so much memory is rather sent when the process runs again.
    fn is_too_much(&self, bytes: u64) -> bool {
        match self.order.post_copy {
            PostCopy::Always => true,
            PostCopy::Never => false,
            PostCopy::Auto => bytes > LITTLE && bytes as f64 > self.rate * self.order.max_freeze_micros as f64,
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
            for batch in batches(&stretches, MAX_PAGES as u32) {
                self.streams.first.send_pages(self.kernel, Owner::Object(index), &batch, round)?;
            }
        }
        Ok(())
    }
}
