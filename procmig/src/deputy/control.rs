//! The control connection: signals go to the node, cancellations and trace lines come from it.

use super::connection::Connection;
use super::threads::{THREADS, Thread, lock};
use super::{descriptors, end, home_proc, kernel, lent, link, moving, signals};
use crate::migration::faults::{self, Step};
use crate::vdso::distance::Clocks;
use crate::wire::control::{MAX_MESSAGE, ToDeputy, ToNode};
use crate::wire::frame;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

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

/// Starts the control thread of this process.
///
/// # Errors
/// If there can be no more threads.
pub(super) fn start(stream: Connection) -> io::Result<()> {
    RELAYED.store(0, Ordering::SeqCst);
    let mask = signals::set_mask(u64::MAX);
    let started = std::thread::Builder::new().name(NAME.into()).stack_size(STACK);
    let started = started.spawn(move || run(stream));
    signals::set_mask(mask);
    started.map(drop)
}

fn run(mut stream: Connection) -> ! {
    TID.store(kernel::gettid(), Ordering::Relaxed);
    let mut cancelled: Vec<(Arc<Thread>, u32)> = Vec::new();
    // While a migration is decided no signal is sent: nobody knows to whom.
    let mut holds = false;
    loop {
        cancelled.retain(|(thread, seq)| thread.poke(*seq));
        let wait = if cancelled.is_empty() { -1 } else { REPEAT };
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds =
            [poll(stream.as_raw_fd()), poll(if holds { -1 } else { signals::descriptor() }), poll(link::watched())];
        let count = if stream.has_more() { 0 } else { fds.len() };
        // SAFETY: the kernel reads and writes so many `pollfd`.
        unsafe { libc::poll(fds.as_mut_ptr(), count as libc::nfds_t, if count > 0 { wait } else { 0 }) };
        if fds[2].revents != 0 {
            end::lost();
        }
        if fds[1].revents != 0 {
            relay(&mut stream);
        }
        if fds[0].revents != 0 || count == 0 {
            match frame::read_from::<ToDeputy>(&mut stream, MAX_MESSAGE) {
                Ok(ToDeputy::Cancel { tid, seq }) => {
                    let thread = lock(&THREADS).iter().find(|thread| thread.tid == tid).cloned();
                    if let Some(thread) = thread {
                        cancelled.retain(|(other, _)| other.tid != tid);
                        cancelled.push((thread, seq));
                    }
                }
                Ok(ToDeputy::Trace(line)) => trace(line),
                Ok(ToDeputy::Read { tag, file, offset, length }) => {
                    say(&mut stream, &ToNode::Bytes { tag, result: lent::read(file, offset, length) });
                }
                Ok(ToDeputy::GiveBack { file }) => lent::take_back(file),
                Ok(ToDeputy::AreYouAwake { round }) => {
                    say(&mut stream, &ToNode::Awake { round, clocks: Clocks::now() })
                }
                Ok(ToDeputy::Hold { epoch }) if moving::is_next(epoch) => {
                    holds = true;
                    relay(&mut stream);
                    // One that fails is one that is not answered.
                    if faults::at(Step::DeputyHold).is_err() {
                        continue;
                    }
                    say(&mut stream, &ToNode::Held { epoch });
                }
                Ok(ToDeputy::Release { epoch } | ToDeputy::Hold { epoch }) => holds &= !moving::is_next(epoch),
                Ok(ToDeputy::Commit(commit)) => {
                    let epoch = commit.epoch;
                    match moving::hand_over(&commit) {
                        Ok(new) => {
                            say(&mut stream, &ToNode::Moved { epoch });
                            cancelled.clear();
                            stream = new;
                        }
                        Err(error) => say(&mut stream, &ToNode::Kept { epoch, reason: crate::chain(&error) }),
                    }
                    holds = false;
                }
                Err(_) => end::lost(),
            }
        }
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

/// Tells the node something. That its end is closed is seen where it is read.
fn say(stream: &mut Connection, message: &ToNode) {
    let _ = frame::write_to(stream, message);
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
