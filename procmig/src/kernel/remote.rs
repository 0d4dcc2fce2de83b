//! What a process asks its deputy for over the control connection where that cannot pass descriptors: bytes of files,
//! home's clocks, and whether it is stopped.

use super::lock;
use super::process::{Ending, Process};
use super::time::Time;
use crate::mm::lent::Lender;
use crate::mm::object::PageObject;
use crate::vdso::distance::{Asked, Clocks};
use crate::wire::control::{MAX_READ, ToDeputy};
use crate::wire::op::{FileIdentity, LentFile};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long an answer is waited for before somebody else is asked who has the file too.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it takes at most until a wait notices that the process has ended.
const LOOK: Duration = Duration::from_millis(100);
/// How often a deputy is asked whether it is stopped, at most.
const QUESTION: Duration = Duration::from_millis(200);
/// How long it may take to answer, more than a network is likely to.
const STOPPED: Duration = Duration::from_secs(1);
/// Files that are kept before it is looked which are used.
const FEW: usize = 128;

/// What a deputy has answered.
type Answer = Result<Vec<u8>, i32>;

/// Of each process; empty for those of this host.
#[derive(Debug, Default)]
pub struct Remote {
    state: Mutex<State>,
    changed: Condvar,
    lent: Mutex<Lent>,
}

#[derive(Debug, Default)]
struct State {
    next: u32,
    /// Reads that are awaited.
    reads: HashMap<u32, Option<Answer>>,
    /// Numbers of files that the deputy has come to lend, or why it does not.
    lends: Option<Result<Vec<u32>, i32>>,
    /// Signals that have come.
    signals: u32,
    /// The last question whether the deputy is stopped, and the last that was answered.
    asked: u32,
    awake: u32,
    /// When it was asked.
    since: Option<(Instant, Asked)>,
}

#[derive(Debug, Default)]
struct Lent {
    files: Vec<(u32, Weak<PageObject>)>,
    /// So many may be there before it is looked which are used.
    most: usize,
}

impl Remote {
    /// An answer has come.
    pub fn answer(&self, tag: u32, answer: Answer) {
        if let Some(place) = lock(&self.state).reads.get_mut(&tag) {
            *place = Some(answer);
            self.changed.notify_all();
        }
    }

    /// The deputy has answered to files that it was to lend.
    pub fn note_lent(&self, result: Result<Vec<u32>, i32>) {
        lock(&self.state).lends = Some(result);
        self.changed.notify_all();
    }

    /// Waits for that until `deadline`, or `is_over`.
    pub fn await_lent(&self, deadline: Instant, is_over: impl Fn() -> bool) -> Option<Result<Vec<u32>, i32>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(result) = state.lends.take() {
                return Some(result);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || is_over() {
                return None;
            }
            state = self.changed.wait_timeout(state, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How many signals have come on the control connection.
    pub fn relayed(&self) -> u32 {
        lock(&self.state).signals
    }

    /// As many have come where it was before.
    pub fn continue_from(&self, relayed: u32) {
        lock(&self.state).signals = relayed;
    }

    /// A signal has come.
    pub fn count_signal(&self) {
        let mut state = lock(&self.state);
        state.signals = state.signals.wrapping_add(1);
        drop(state);
        self.changed.notify_all();
    }

    /// The deputy is not stopped: it has answered. When that was asked, if it is the last that was asked.
    fn is_awake(&self, round: u32) -> Option<Asked> {
        let mut state = lock(&self.state);
        state.awake = round;
        state.since.filter(|_| round == state.asked).map(|(_, asked)| asked)
    }

    /// Waits until so many signals have come, or `is_over`.
    pub fn await_signals(&self, count: u32, is_over: impl Fn() -> bool) {
        let mut state = lock(&self.state);
        while (state.signals.wrapping_sub(count) as i32) < 0 && !is_over() {
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Process {
    /// Whether its home is another host.
    pub fn is_remote(&self) -> bool {
        self.group.link().is_some()
    }

    /// Whether the connection with its home by which it came has ended.
    pub fn has_lost_link(&self) -> bool {
        let is_over = |way| self.group.link().is_some_and(|link| link.has_ended() || !link.ways.is_open(way));
        self.way().is_some_and(is_over)
    }

    /// The number of its home; 0 is this host.
    pub fn home(&self) -> u32 {
        self.group.home()
    }

    /// Names it among all of the node: the number of its home, and its PID.
    pub fn key(&self) -> (u32, i32) {
        (self.home(), self.pid)
    }

    /// Its home's time.
    pub fn time(&self) -> &Time {
        self.group.link().and_then(|link| link.home.time.get()).unwrap_or(&self.kernel.time)
    }

    /// One of its home's clocks in nanoseconds; `None` if it is none that all processes share.
    pub fn now(&self, clock: libc::clockid_t) -> Option<u64> {
        self.time().clock.now(clock)
    }

    /// Its deputy has answered that it is not stopped, and what home's clocks show.
    pub fn hear_clocks(&self, round: u32, clocks: &Clocks) {
        if let Some(asked) = self.remote.is_awake(round) {
            self.time().clock.hear(&asked, clocks);
        }
    }

    /// Whether its deputy can be asked nothing any more.
    fn is_gone(&self) -> bool {
        self.has_left() || self.ending() == Some(Ending::Lost)
    }

    /// Waits until the signals have come that the deputy had sent on the control connection when it sent a reply:
    /// between hosts it may have overtaken them.
    pub fn await_signals(&self, count: u32) {
        if self.is_remote() {
            self.remote.await_signals(count, || self.is_gone());
        }
    }

    /// Stops the process if its deputy, at another host, does not answer any more, and has it go on when it does.
    /// Never waits. Whoever is stopped by what cannot be caught cannot say so.
    pub fn follow_remote_deputy(&self) {
        let is_stopped = self.is_stopped();
        let mut state = lock(&self.remote.state);
        if state.asked != state.awake {
            let is_silent = state.since.is_some_and(|(since, _)| since.elapsed() > STOPPED);
            drop(state);
            if is_silent && !is_stopped {
                self.stop();
            }
            return;
        }
        if state.since.is_none_or(|(since, _)| since.elapsed() > QUESTION) {
            let (round, asked) = (state.asked.wrapping_add(1), Asked::now());
            if self.try_say(&ToDeputy::AreYouAwake { round }) {
                (state.asked, state.since) = (round, Some((Instant::now(), asked)));
            }
        }
        drop(state);
        if is_stopped {
            self.resume();
        }
    }

    /// Reads bytes of a file that the deputy has lent.
    ///
    /// # Errors
    /// If they are not to be had.
    pub fn read_lent(&self, file: u32, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(file, &mut buffer[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                // The deputy is stopped, and so is the process.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The pages of a file that the deputy has lent.
    pub fn lent_pages(self: &Arc<Self>, identity: FileIdentity, about: &LentFile) -> Arc<PageObject> {
        let object = self.kernel.files.lent(self.home(), identity, about.is_fresh);
        self.note_lent(about.file, &object);
        object
    }

    /// The number by which the process's deputy lends a file, of which `object` are the pages.
    pub fn lent_number(&self, object: &Arc<PageObject>) -> Option<u32> {
        let lent = lock(&self.remote.lent);
        let is_it = |other: &&(u32, Weak<PageObject>)| std::ptr::eq(other.1.as_ptr(), &raw const **object);
        lent.files.iter().find(is_it).map(|&(file, _)| file)
    }

    /// By how many nanoseconds its home's monotonic clock is ahead of this host's.
    pub fn ahead(&self) -> i64 {
        let home = self.now(libc::CLOCK_MONOTONIC).unwrap_or_default();
        home.wrapping_sub(super::timers::monotonic()) as i64
    }

    /// What those of its home's clocks show that never step back: monotonic, raw, and since home's start.
    pub fn steady_clocks(&self) -> [u64; 3] {
        [libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_BOOTTIME]
            .map(|clock| self.now(clock).unwrap_or_default())
    }

    /// Notes that the process's deputy has lent a file, of which `object` are the pages.
    pub fn note_lent(self: &Arc<Self>, file: u32, object: &Arc<PageObject>) {
        let lender: Arc<dyn Lender> = self.clone();
        if !object.lent().is_some_and(|lent| lent.add(&lender, file)) {
            // It is known by another number.
            return self.give_back(file);
        }
        let mut lent = lock(&self.remote.lent);
        lent.files.push((file, Arc::downgrade(object)));
        if lent.files.len() <= lent.most.max(FEW) {
            return;
        }
        // One user is the node's cache.
        let used = |object: &Weak<PageObject>| object.strong_count() > 1;
        let (kept, gone): (Vec<_>, Vec<_>) = lent.files.drain(..).partition(|(_, object)| used(object));
        lent.most = kept.len() * 2;
        lent.files = kept;
        drop(lent);
        for (file, object) in gone {
            if let Some(lent) = object.upgrade().as_ref().and_then(|object| object.lent()) {
                lent.remove(&lender);
            }
            self.give_back(file);
        }
    }

    /// A child's deputy has the files that its parent's has.
    pub fn inherit_lent(self: &Arc<Self>, parent: &Self) {
        let files = lock(&parent.remote.lent).files.clone();
        if files.is_empty() {
            return;
        }
        let lender: Arc<dyn Lender> = self.clone();
        for (file, object) in &files {
            if let Some(lent) = object.upgrade().as_ref().and_then(|object| object.lent()) {
                lent.add(&lender, *file);
            }
        }
        lock(&self.remote.lent).files = files;
    }
}

impl Lender for Process {
    fn read_at(&self, file: u32, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = buffer.len().min(MAX_READ as usize);
        let tag = {
            let mut state = lock(&self.remote.state);
            let tag = state.next;
            state.next = tag.wrapping_add(1);
            state.reads.insert(tag, None);
            tag
        };
        self.send(&ToDeputy::Read { tag, file, offset, length: length as u32 });
        let deadline = Instant::now() + PATIENCE;
        let mut state = lock(&self.remote.state);
        let answer = loop {
            if let Some(answer) = state.reads.get_mut(&tag).and_then(Option::take) {
                break Some(answer);
            }
            if self.is_gone() {
                break Some(Err(libc::EIO));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break None;
            }
            let wait = self.remote.changed.wait_timeout(state, left.min(LOOK));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.reads.remove(&tag);
        drop(state);
        let bytes = answer.ok_or(io::ErrorKind::TimedOut)?.map_err(io::Error::from_raw_os_error)?;
        let count = bytes.len().min(length);
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn give_back(&self, file: u32) {
        self.send(&ToDeputy::GiveBack { file });
    }
}
