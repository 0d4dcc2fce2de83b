//! The streams over which memory goes to the target: the first, on which all else is said, and others beside it, each
//! with a thread of its own.

use super::MigrateError;
use super::changes::{batches, bytes_in};
use super::link::Link;
use crate::kernel::{Kernel, priority};
use crate::migration::faults::{self, Step};
use crate::migration::record::Round;
use crate::migration::stripes::Stripes;
use crate::migration::wire::{Aside, FromSource, MAX_PAGES, MAX_STREAMS, Owner};
use crate::mm::AddressSpace;
use crate::mm::image::Stretch;
use crate::wire::control::{Migrate, PostCopy};
use crate::wire::frame::FrameError;
use nix::sys::socket::{Shutdown, shutdown};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm::addr::{Frame, PAGE_SIZE};

/// Between two reports.
const TELL: Duration = Duration::from_millis(100);
/// How long the first stream is silent while others are at work.
const SILENCE: Duration = Duration::from_secs(1);

/// How many streams memory of so many bytes is worth, if nobody says how many there shall be.
fn worth(bytes: u64) -> u32 {
    /// For each further stream, at least.
    const BYTES: u64 = 128 << 20;
    /// More are not known to pay.
    const MOST: usize = 4;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.min(MOST).min(1 + (bytes / BYTES) as usize) as u32
}

/// Further streams that are wanted for a process.
pub(super) fn further(order: &Migrate, bytes: u64) -> u32 {
    match (order.post_copy, order.streams) {
        // No round is sent.
        (PostCopy::Always, _) => 0,
        (_, streams) => streams.unwrap_or_else(|| worth(bytes)).clamp(1, MAX_STREAMS) - 1,
    }
}

/// What is sent of an address space at a time.
pub(super) struct Work {
    space: Arc<AddressSpace>,
    /// It may change meanwhile; else nobody may free frames.
    is_running: bool,
    /// Nothing of the space comes after it.
    is_last: bool,
    /// Bytes a second, over all streams.
    bandwidth: Option<u64>,
    started: Instant,
    /// Bytes that went over the wire.
    sent: AtomicU64,
    /// Bytes of pages that are done.
    done: AtomicU64,
    /// A stream has failed.
    failed: AtomicBool,
}

/// What one stream has sent of it, or all.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// But for the time.
    pub(super) round: Round,
    /// Pages that were to be sent and were not, since they are not what they were.
    pub(super) missed: Vec<u64>,
    /// How long nothing was sent, to stay within the bandwidth.
    pub(super) idle: Duration,
}

impl Share {
    fn add(&mut self, other: Self) {
        self.round.pages += other.round.pages;
        self.round.zeros += other.round.zeros;
        self.round.bytes += other.round.bytes;
        self.round.uncompressed += other.round.uncompressed;
        self.missed.extend(other.missed);
        self.idle = self.idle.max(other.idle);
    }
}

impl Work {
    /// Memory of a process that runs, within a bandwidth.
    pub(super) fn while_it_runs(space: &Arc<AddressSpace>, bandwidth: Option<u64>) -> Self {
        Self {
            space: space.clone(),
            is_running: true,
            is_last: false,
            bandwidth,
            started: Instant::now(),
            sent: AtomicU64::new(0),
            done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// The last of a process that stands still.
    pub(super) fn last(space: &Arc<AddressSpace>) -> Self {
        Self { is_running: false, is_last: true, ..Self::while_it_runs(space, None) }
    }

    /// Most pages of a message: what is sent in a part of a second, so that nobody waits for long.
    fn most(&self) -> u32 {
        let pages = |bandwidth: u64| (bandwidth / 4 / PAGE_SIZE).clamp(1, MAX_PAGES);
        self.bandwidth.map_or(MAX_PAGES, pages) as u32
    }

    /// Sends some of it over a stream; `tell` is told how many bytes of all of it are done, now and then.
    fn send(
        &self,
        kernel: &Kernel,
        link: &mut Link,
        stretches: &[Stretch],
        tell: &mut dyn FnMut(u64),
    ) -> Result<Share, MigrateError> {
        let mut share = Share::default();
        let (bytes, uncompressed) = (link.bytes, link.uncompressed);
        let mut told = Instant::now();
        for batch in batches(stretches, self.most()) {
            // What that is, the stream that has failed says.
            if self.failed.load(Ordering::Relaxed) {
                break;
            }
            let before = link.bytes;
            if self.is_running {
                faults::at(Step::SourcePages).map_err(FrameError::from)?;
                self.send_pinned(kernel, link, &batch, &mut share)?;
            } else {
                link.send_pages(kernel, Owner::Space, &batch, &mut share.round)?;
            }
            let sent = link.bytes - before;
            let sent = self.sent.fetch_add(sent, Ordering::Relaxed) + sent;
            let done = bytes_in(&batch);
            let done = self.done.fetch_add(done, Ordering::Relaxed) + done;
            if told.elapsed() >= TELL {
                told = Instant::now();
                tell(done);
            }
            if let Some(bandwidth) = self.bandwidth {
                let due = Duration::from_secs_f64(sent as f64 / bandwidth.max(1) as f64);
                let wait = due.saturating_sub(self.started.elapsed());
                std::thread::sleep(wait);
                share.idle += wait;
            }
        }
        (share.round.bytes, share.round.uncompressed) = (link.bytes - bytes, link.uncompressed - uncompressed);
        Ok(share)
    }

    fn send_pinned(
        &self,
        kernel: &Kernel,
        link: &mut Link,
        batch: &[Stretch],
        share: &mut Share,
    ) -> Result<(), MigrateError> {
        let pinned = self.space.pin(batch);
        if pinned.len() < batch.len() {
            let missed = batch.iter().filter(|stretch| !pinned.contains(stretch));
            share.missed.extend(missed.flat_map(|stretch| stretch.page..stretch.page + u64::from(stretch.count)));
        }
        let sent = link.send_pages(kernel, Owner::Space, &pinned, &mut share.round);
        let frames: Vec<Frame> = pinned.iter().flat_map(Stretch::frames).collect();
        kernel.machine.frames().release_all(&frames);
        sent
    }
}

/// A part of some work for one stream.
struct Job {
    work: Arc<Work>,
    stretches: Vec<Stretch>,
}

/// A stream beside the first; it ends when this is dropped.
struct Other {
    jobs: Option<Sender<Job>>,
    shares: Receiver<Result<Share, MigrateError>>,
    socket: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Other {
    fn start(kernel: &Arc<Kernel>, mut link: Link, stripes: Stripes) -> io::Result<Self> {
        let socket = link.as_fd().try_clone_to_owned()?;
        let ((jobs, to_do), (done, shares)) = (channel::<Job>(), channel());
        let kernel = kernel.clone();
        let work = move || {
            priority::go_first();
            let mut first = Some(FromSource::Spread(stripes.streams()));
            for Job { work, stretches } in to_do {
                let share = serve(&kernel, &mut link, &work, &stretches, first.take());
                if share.is_err() {
                    work.failed.store(true, Ordering::Relaxed);
                }
                if done.send(share).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("stream".into()).stack_size(256 << 10).spawn(work)?;
        Ok(Self { jobs: Some(jobs), shares, socket, thread: Some(thread) })
    }
}

/// One job of a further stream's thread.
fn serve(
    kernel: &Kernel,
    link: &mut Link,
    work: &Work,
    stretches: &[Stretch],
    first: Option<FromSource>,
) -> Result<Share, MigrateError> {
    if let Some(first) = first {
        link.send(&first, &[])?;
    }
    if work.is_last {
        link.hurry()?;
    }
    let share = work.send(kernel, link, stretches, &mut |_| {})?;
    if work.is_last {
        link.send(&FromSource::Gather, &[])?;
    }
    Ok(share)
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // It may be at work for a migration that has failed.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// All of them.
pub(super) struct Streams {
    /// On which all else is said.
    pub(super) first: Link,
    others: Vec<Other>,
    stripes: Stripes,
    /// Bytes that went over the others, and as many as these would be without compression.
    elsewhere: (u64, u64),
}

impl Streams {
    /// With as many further streams as the target says and can be opened.
    pub(super) fn open(kernel: &Arc<Kernel>, mut first: Link, aside: Option<Aside>) -> Result<Self, MigrateError> {
        let mut links = Vec::new();
        if let Some(aside) = aside {
            for stream in 1..=aside.streams.min(MAX_STREAMS - 1) {
                match faults::at(Step::SourceSpread).and_then(|()| first.another(&aside, stream)) {
                    Ok(link) => links.push(link),
                    Err(error) => {
                        tracing::info!(%error, stream, "memory goes over fewer streams");
                        break;
                    }
                }
            }
        }
        let stripes = Stripes::new(1 + links.len() as u32).ok_or(MigrateError::Nonsense)?;
        let start = |link| Other::start(kernel, link, stripes);
        let others = links.into_iter().map(start).collect::<io::Result<Vec<_>>>().map_err(FrameError::from)?;
        if !others.is_empty() {
            first.send(&FromSource::Spread(stripes.streams()), &[])?;
        }
        Ok(Self { first, others, stripes, elsewhere: (0, 0) })
    }

    /// How many they are.
    pub(super) fn count(&self) -> u32 {
        self.stripes.streams()
    }

    /// Bytes that went over all of them, and as many as these would be without compression.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.first.bytes + self.elsewhere.0, self.first.uncompressed + self.elsewhere.1)
    }

    /// Of that, what did not go over the first.
    pub(super) fn elsewhere(&self) -> (u64, u64) {
        self.elsewhere
    }

    /// Sends memory, each page over its stream; `tell` is told how many bytes are done.
    ///
    /// # Errors
    /// The first that a stream has.
    pub(super) fn send(
        &mut self,
        kernel: &Kernel,
        work: Work,
        stretches: &[Stretch],
        tell: &mut dyn FnMut(u64),
    ) -> Result<Share, MigrateError> {
        if self.others.is_empty() {
            return work.send(kernel, &mut self.first, stretches, tell);
        }
        let work = Arc::new(work);
        let mut parts = self.stripes.divide(stretches).into_iter();
        let own = parts.next().unwrap_or_default();
        for (other, stretches) in self.others.iter().zip(parts) {
            if let Some(jobs) = &other.jobs {
                // A thread that is gone is noticed below.
                let _ = jobs.send(Job { work: work.clone(), stretches });
            }
        }
        let mut all = work.send(kernel, &mut self.first, &own, tell);
        if all.is_ok() && work.is_last {
            all = self.first.send(&FromSource::Gather, &[]).map_err(MigrateError::from).and(all);
        }
        let mut said = Instant::now();
        for other in &self.others {
            if all.is_err() {
                work.failed.store(true, Ordering::Relaxed);
            }
            let share = loop {
                match other.shares.recv_timeout(TELL) {
                    Ok(share) => break share,
                    Err(RecvTimeoutError::Disconnected) => break Err(FrameError::Closed.into()),
                    Err(RecvTimeoutError::Timeout) => tell(work.done.load(Ordering::Relaxed)),
                }
                if said.elapsed() >= SILENCE && !work.is_last {
                    said = Instant::now();
                    if let Err(error) = self.first.keep_alive() {
                        break Err(error.into());
                    }
                }
            };
            match (&mut all, share) {
                (Ok(all), Ok(share)) => {
                    self.elsewhere.0 += share.round.bytes;
                    self.elsewhere.1 += share.round.uncompressed;
                    all.add(share);
                }
                (all @ Ok(_), Err(error)) => *all = Err(error),
                (Err(_), _) => {}
            }
        }
        all
    }

    /// The first, when the others have brought what they had to.
    pub(super) fn into_first(self) -> Link {
        self.first
    }
}
