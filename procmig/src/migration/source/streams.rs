//! The streams over which memory goes to the target: the first, on which all else is said, and others beside it, each
//! with a thread of its own.

use super::MigrateError;
use super::changes::{batches, bytes_in};
use super::link::Link;
use crate::kernel::{Kernel, lock, priority};
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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
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
    /// The first that did.
    error: Mutex<Option<MigrateError>>,
}

/// What one stream has sent of it, or all.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// But for the time.
    pub(super) round: Round,
    /// Pages that were to be sent and were not, since they are not what they were.
    pub(super) missed: Vec<u64>,
    /// How long was sent, without what was waited to stay within the bandwidth; of all streams in turn.
    pub(super) busy: Duration,
}

impl Share {
    fn add(&mut self, other: Self) {
        self.round.pages += other.round.pages;
        self.round.zeros += other.round.zeros;
        self.round.bytes += other.round.bytes;
        self.round.uncompressed += other.round.uncompressed;
        self.missed.extend(other.missed);
        self.busy += other.busy;
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
            error: Mutex::default(),
        }
    }

    /// A stream has failed; what that brings about on others is of no interest.
    fn fail(&self, error: MigrateError) {
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::SeqCst);
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
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
        let (begun, mut idle) = (Instant::now(), Duration::ZERO);
        let mut told = begun;
        for batch in batches(stretches, self.most()) {
            // What that is, the stream that has failed says.
            if self.has_failed() {
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
                idle += wait;
            }
        }
        share.busy = begun.elapsed().saturating_sub(idle);
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
    /// How memory is divided, if the target was not told.
    spread: Option<Stripes>,
}

/// A stream beside the first; it ends when this is dropped.
struct Other {
    jobs: Option<Sender<Job>>,
    /// What became of each; nothing of one that has failed.
    shares: Receiver<Option<Share>>,
    socket: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Other {
    fn start(kernel: &Arc<Kernel>, mut link: Link) -> io::Result<Self> {
        let socket = link.as_fd().try_clone_to_owned()?;
        let ((jobs, to_do), (done, shares)) = (channel::<Job>(), channel());
        let kernel = kernel.clone();
        let work = move || {
            priority::go_first();
            for Job { work, stretches, spread } in to_do {
                let share = serve(&kernel, &mut link, &work, &stretches, spread);
                if done.send(share.map_err(|error| work.fail(error)).ok()).is_err() {
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
    spread: Option<Stripes>,
) -> Result<Share, MigrateError> {
    if let Some(stripes) = spread {
        link.tell(&FromSource::Spread(stripes.streams()))?;
    }
    if work.is_last {
        link.hurry()?;
    }
    let share = work.send(kernel, link, stretches, &mut |_| {})?;
    if work.is_last && !work.has_failed() {
        link.tell(&FromSource::Gather)?;
    }
    Ok(share)
}

impl Other {
    /// Whatever it is at fails.
    fn cut(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // It may be at work for a migration that has failed.
        self.cut();
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
    /// The target knows how many they are.
    is_told: bool,
    /// Bytes that went over the others, and as many as these would be without compression.
    elsewhere: (u64, u64),
}

impl Streams {
    /// With as many further streams as were `offered`, the target takes, and can be opened.
    pub(super) fn open(
        kernel: &Arc<Kernel>,
        mut first: Link,
        offered: u32,
        aside: Option<Aside>,
    ) -> Result<Self, MigrateError> {
        let mut others = Vec::new();
        if let Some(aside) = aside {
            for stream in 1..=aside.streams.min(offered) {
                let opened = faults::at(Step::SourceSpread).and_then(|()| first.another(&aside, stream));
                match opened.and_then(|link| Other::start(kernel, link)) {
                    Ok(other) => others.push(other),
                    Err(error) => {
                        tracing::info!(%error, stream, "memory goes over fewer streams");
                        break;
                    }
                }
                first.keep_alive()?;
            }
        }
        let stripes = Stripes::new(1 + others.len() as u32).ok_or(MigrateError::Nonsense)?;
        Ok(Self { first, others, stripes, is_told: false, elsewhere: (0, 0) })
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
        let spread = (!std::mem::replace(&mut self.is_told, true)).then_some(self.stripes);
        let mut parts = self.stripes.divide(stretches).into_iter();
        let own = parts.next().unwrap_or_default();
        for (other, stretches) in self.others.iter().zip(parts) {
            if let Some(jobs) = &other.jobs {
                // A thread that is gone is noticed below.
                let _ = jobs.send(Job { work: work.clone(), stretches, spread });
            }
        }
        let told = spread.map_or(Ok(()), |stripes| self.first.tell(&FromSource::Spread(stripes.streams())));
        let own = told.and_then(|()| work.send(kernel, &mut self.first, &own, tell));
        let mut all = own.map_err(|error| work.fail(error)).unwrap_or_default();
        let mut said = Instant::now();
        for other in &self.others {
            let share = loop {
                if work.has_failed() {
                    // It may wait for a target that takes nothing.
                    other.cut();
                }
                match other.shares.recv_timeout(TELL) {
                    Ok(share) => break share,
                    Err(RecvTimeoutError::Disconnected) => {
                        work.fail(FrameError::Closed.into());
                        break None;
                    }
                    Err(RecvTimeoutError::Timeout) => tell(work.done.load(Ordering::Relaxed)),
                }
                if said.elapsed() >= SILENCE && !work.has_failed() {
                    said = Instant::now();
                    self.first.keep_alive().unwrap_or_else(|error| work.fail(error));
                }
            };
            if let Some(share) = share {
                self.elsewhere.0 += share.round.bytes;
                self.elsewhere.1 += share.round.uncompressed;
                all.add(share);
            }
        }
        if let Some(error) = lock(&work.error).take() {
            return Err(error);
        }
        if work.is_last {
            // The target waits for the others from now on, and for no longer than for one message.
            self.first.tell(&FromSource::Gather)?;
        }
        Ok(all)
    }

    /// The first, when the others have brought what they had to.
    pub(super) fn into_first(self) -> Link {
        self.first
    }
}
