//! The control connection: signals go to the node, cancellations and trace lines come from it.

use super::connection::Connection;
use super::descriptors::Own;
use super::finding::{Search, Target};
use super::link::Link;
use super::moving::{MoveError, Moved};
use super::threads::{THREADS, Thread, lock};
use super::{descriptors, end, home_proc, kernel, lent, link, moving, remaking, signals};
use crate::migration::faults::{self, Step};
use crate::vdso::distance::Clocks;
use crate::wire::control::{Commit, MAX_MESSAGE, ToDeputy, ToNode};
use crate::wire::frame;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where trace lines go; -1 for nowhere.
pub(super) static TRACE: AtomicI32 = AtomicI32::new(-1);

/// How many signals have been handed on.
static RELAYED: AtomicU32 = AtomicU32::new(0);

/// The control thread, which is none of the guest's; 0 before it runs.
pub(super) static TID: AtomicI32 = AtomicI32::new(0);

/// Name of the control thread, by which other deputies know it.
pub(super) const NAME: &str = "skein-control";
/// Bytes of the stack of the deputy's threads.
pub(super) const STACK: usize = 128 << 10;
/// Milliseconds between two signals to a thread that has not left a cancelled call yet.
const REPEAT: i32 = 1;
/// Milliseconds between two looks whether a lost connection is there again.
const LOOK: i32 = 20;
/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// How long a node that the process has left may take to hear of it.
const LONG: Duration = Duration::from_secs(15);

/// Starts the control thread of this process.
///
/// # Errors
/// If there can be no more threads.
pub(super) fn start(stream: Connection) -> io::Result<()> {
    RELAYED.store(0, Ordering::SeqCst);
    spawn(move || run(stream))
}

/// Starts a thread that is none of the guest's.
///
/// # Errors
/// If there can be no more threads.
pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mask = signals::set_mask(u64::MAX);
    let started = std::thread::Builder::new().name(NAME.into()).stack_size(STACK).spawn(work);
    signals::set_mask(mask);
    started.map(drop)
}

fn run(stream: Connection) -> ! {
    TID.store(kernel::gettid(), Ordering::Relaxed);
    let mut control = Control {
        stream,
        partial: Vec::new(),
        cancelled: Vec::new(),
        holds: false,
        search: None,
        found: None,
        left: None,
    };
    loop {
        control.turn();
    }
}

/// What the control thread has in hand.
struct Control {
    stream: Connection,
    /// What has come, from another host, of a message that is not whole.
    partial: Vec<u8>,
    /// Calls that are to be broken off, until they are.
    cancelled: Vec<(Arc<Thread>, u32)>,
    /// While a migration is decided no signal is sent: nobody knows to whom.
    holds: bool,
    /// A way to a target is looked for,
    search: Option<Search>,
    /// or was found, for this migration.
    found: Option<(u32, Target)>,
    left: Option<Left>,
}

/// A node of another host that the process has left: it has heard of it when it ends its control connection.
struct Left {
    control: Connection,
    /// To be ended last, or the node would hear of that first.
    _link: Option<Arc<Link>>,
    until: Instant,
}

impl Control {
    /// Waits for something, and does it.
    fn turn(&mut self) {
        self.cancelled.retain(|(thread, seq)| thread.poke(*seq));
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let waits = self.stream.waits();
        if waits && end::is_ending() {
            end::control_lost();
        }
        let mut fds = [
            poll(if waits { -1 } else { self.stream.as_raw_fd() }),
            poll(if self.holds { -1 } else { signals::descriptor() }),
            poll(link::watched()),
            poll(self.search.as_ref().map_or(-1, Search::descriptor)),
            poll(self.left.as_ref().map_or(-1, |left| left.control.as_raw_fd())),
        ];
        let has_more = self.stream.has_more();
        let wait = match &self.left {
            _ if has_more => 0,
            _ if !self.cancelled.is_empty() => REPEAT,
            _ if waits || remaking::is_active() => LOOK,
            Some(left) => left.until.saturating_duration_since(Instant::now()).as_millis() as i32 + 1,
            None => -1,
        };
        // SAFETY: the kernel reads and writes so many `pollfd`.
        unsafe { libc::poll(fds.as_mut_ptr(), if has_more { 0 } else { fds.len() as libc::nfds_t }, wait) };
        let [control, signal, link, search, left] = fds.map(|fd| fd.revents != 0);
        if link {
            remaking::link_has_news();
        }
        if signal {
            relay(&mut self.stream);
        }
        if search && let Some(search) = self.search.take() {
            self.end_search(search);
        }
        if left || self.left.as_ref().is_some_and(|left| left.until <= Instant::now()) {
            self.leave(left);
        }
        if (control || has_more) && !self.stream.is_local() {
            self.take();
        } else if control || has_more {
            match self.stream.receive_message(MAX_MESSAGE) {
                Ok((message, passed)) => self.hear(message, passed),
                Err(_) => end::control_lost(),
            }
        }
    }

    /// Takes what has come from another host, as far as it is whole.
    fn take(&mut self) {
        let mut chunk = [0; CHUNK];
        match self.stream.receive_now(&mut chunk) {
            Ok(0) => end::control_lost(),
            Ok(count) => self.partial.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => end::control_lost(),
        }
        while let Some(head) = self.partial.first_chunk::<4>() {
            let length = u32::from_le_bytes(*head) as usize;
            if length > MAX_MESSAGE {
                end::control_lost();
            }
            let Some(body) = self.partial.get(4..4 + length) else { return };
            let Ok(message) = postcard::from_bytes(body) else { end::control_lost() };
            self.partial.drain(..4 + length);
            self.hear(message, Vec::new());
        }
    }

    fn hear(&mut self, message: ToDeputy, passed: Vec<Own>) {
        // The process is not given to another node any more, and no file to this one.
        let gives = matches!(
            message,
            ToDeputy::Prepare { .. }
                | ToDeputy::Hold { .. }
                | ToDeputy::Commit(_)
                | ToDeputy::Read { .. }
                | ToDeputy::Lend(_)
        );
        if gives && end::is_ending() {
            return;
        }
        match message {
            ToDeputy::Cancel { tid, seq } => {
                let thread = lock(&THREADS).iter().find(|thread| thread.tid == tid).cloned();
                if let Some(thread) = thread {
                    self.cancelled.retain(|(other, _)| other.tid != tid);
                    self.cancelled.push((thread, seq));
                }
            }
            ToDeputy::Part { tid, chosen } => {
                if let Some(thread) = lock(&THREADS).iter().find(|thread| thread.tid == tid) {
                    match chosen {
                        Some(set) => thread.near.choose(tid, &set),
                        None => thread.near.part(tid),
                    }
                }
            }
            ToDeputy::Trace(line) => trace(line),
            ToDeputy::Read { tag, file, offset, length } => {
                self.say(&ToNode::Bytes { tag, result: lent::read(file, offset, length) });
            }
            ToDeputy::GiveBack { file } => lent::take_back(file),
            ToDeputy::AreYouAwake { round } => self.say(&ToNode::Awake { round, clocks: Clocks::now() }),
            ToDeputy::Lend(files) => {
                let lent = lent::lend_passed(&files, passed);
                self.say(&ToNode::Lent(lent.map_err(|errno| errno as i32)));
            }
            ToDeputy::Prepare { epoch, attempt, host, node, threads } => {
                self.found = None;
                let search = match moving::is_next(epoch) {
                    true => Search::start(epoch, attempt, host, node, threads).map_err(MoveError::from),
                    false => Err(MoveError::OutOfTurn),
                };
                match search {
                    Ok(search) => self.search = Some(search),
                    Err(error) => {
                        let result = Err(crate::chain(&error));
                        self.say(&ToNode::Prepared { epoch, attempt, result });
                    }
                }
            }
            ToDeputy::Hold { epoch, attempt } if moving::is_next(epoch) => {
                self.holds = true;
                relay(&mut self.stream);
                // One that fails is one that is not answered.
                if faults::at(Step::DeputyHold).is_ok() {
                    self.say(&ToNode::Held { epoch, attempt });
                }
            }
            ToDeputy::Release { epoch } | ToDeputy::Hold { epoch, .. } => {
                if moving::is_next(epoch) {
                    (self.holds, self.search, self.found) = (false, None, None);
                }
            }
            ToDeputy::Commit(commit) => self.commit(&commit),
            ToDeputy::MemoryLost => end::note_memory_lost(),
        }
    }

    fn end_search(&mut self, search: Search) {
        let (epoch, attempt) = (search.epoch, search.attempt);
        let result = match search.result() {
            Ok(target) => {
                let link = target.link();
                self.found = Some((epoch, target));
                Ok(link)
            }
            Err(error) => Err(crate::chain(&error)),
        };
        self.say(&ToNode::Prepared { epoch, attempt, result });
    }

    fn commit(&mut self, commit: &Commit) {
        let epoch = commit.epoch;
        let found = self.found.take().filter(|(of, _)| *of == epoch);
        match moving::hand_over(commit, found.map(|(_, target)| target)) {
            Ok(Moved { control, left }) => {
                self.say(&ToNode::Moved { epoch });
                self.cancelled.clear();
                // Nothing of the old node counts any more.
                self.partial.clear();
                let old = std::mem::replace(&mut self.stream, control);
                remaking::look_at_all();
                if !old.is_local() {
                    self.left = Some(Left { control: old, _link: left, until: Instant::now() + LONG });
                }
            }
            Err(error) => self.say(&ToNode::Kept { epoch, reason: crate::chain(&error) }),
        }
        self.holds = false;
    }

    /// Is done with a node that the process has left: it has `ended` its connection, or is not waited for any more.
    fn leave(&mut self, ended: bool) {
        let Some(left) = &mut self.left else { return };
        // Something else may have come; it is for nobody.
        if ended && matches!(left.control.read(&mut [0; 256]), Ok(1..)) {
            return;
        }
        self.left = None;
        if !ended {
            lock(&THREADS).iter().for_each(|thread| thread.cut_old());
        }
    }

    /// Tells the node something. That its end is closed is seen where it is read.
    fn say(&mut self, message: &ToNode) {
        let _ = frame::write_to(&mut self.stream, message);
    }
}

/// How many signals this process has handed on. Those that it says have been sent.
pub(super) fn relayed() -> u32 {
    RELAYED.load(Ordering::SeqCst)
}

/// Hands on the signals that wait.
fn relay(stream: &mut Connection) {
    let _relay = lock(&signals::RELAY);
    while let Some(info) = signals::take() {
        if frame::write_to(stream, &ToNode::Signal(info)).is_err() {
            // Its end is seen where it is read, after what the node still had to say.
            return;
        }
        RELAYED.fetch_add(1, Ordering::SeqCst);
    }
}

fn trace(mut line: String) {
    let fd = TRACE.load(Ordering::Relaxed);
    if fd >= 0 {
        line.push('\n');
        write(fd, line.as_bytes());
    }
}

/// Writes bytes, as far as it goes.
pub(super) fn write(fd: RawFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let args = [fd as u64, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0];
        // SAFETY: the kernel reads `bytes`.
        let put = unsafe { kernel::call(libc::SYS_write as u32, args) };
        match kernel::errno(put) {
            Some(nix::errno::Errno::EINTR) => {}
            None if put > 0 => bytes = &bytes[put as usize..],
            _ => {
                // The signal of a failed write is the deputy's own, not the guest's.
                let raised = signals::bit(libc::SIGPIPE) | signals::bit(libc::SIGXFSZ);
                while signals::take_own(raised).is_some() {}
                return;
            }
        }
    }
}

/// The own descriptors that a child keeps: its trace's, and home's `/proc`.
pub(super) fn kept() -> Vec<RawFd> {
    let trace = TRACE.load(Ordering::Relaxed);
    let trace = Some(trace).filter(|&fd| descriptors::is_own(fd));
    trace.into_iter().chain(home_proc::kept()).chain(link::kept()).collect()
}
