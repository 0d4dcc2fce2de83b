//! The control connection: signals go to the node, cancellations and trace lines come from it.

use super::descriptors::Own;
use super::threads::{THREADS, Thread, lock};
use super::{descriptors, end, home_proc, kernel, moving, signals};
use crate::migration::faults::{self, Step};
use crate::wire::control::{MAX_MESSAGE, ToDeputy, ToNode};
use crate::wire::frame;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Where trace lines go; -1 for nowhere.
pub(super) static TRACE: AtomicI32 = AtomicI32::new(-1);

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
pub(super) fn start(connection: Own) -> io::Result<()> {
    // SAFETY: the number is the deputy's own and stays open for as long as the process lives.
    let mut stream = unsafe { UnixStream::from_raw_fd(connection.leak()) };
    let mask = signals::set_mask(u64::MAX);
    let started = std::thread::Builder::new().name(NAME.into()).stack_size(STACK);
    let started = started.spawn(move || run(&mut stream));
    signals::set_mask(mask);
    started.map(drop)
}

fn run(stream: &mut UnixStream) {
    TID.store(kernel::gettid(), Ordering::Relaxed);
    let mut cancelled: Vec<(Arc<Thread>, u32)> = Vec::new();
    // While a migration is decided no signal is sent: nobody knows to whom.
    let mut holds = false;
    loop {
        cancelled.retain(|(thread, seq)| thread.poke(*seq));
        let wait = if cancelled.is_empty() { -1 } else { REPEAT };
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(stream.as_raw_fd()), poll(if holds { -1 } else { signals::descriptor() })];
        // SAFETY: the kernel reads and writes two `pollfd`.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, wait) };
        if fds[1].revents != 0 {
            relay(stream);
        }
        if fds[0].revents != 0 {
            match frame::receive::<ToDeputy>(stream, MAX_MESSAGE) {
                Ok((ToDeputy::Cancel { tid, seq }, _)) => {
                    let thread = lock(&THREADS).iter().find(|thread| thread.tid == tid).cloned();
                    if let Some(thread) = thread {
                        cancelled.retain(|(other, _)| other.tid != tid);
                        cancelled.push((thread, seq));
                    }
                }
                Ok((ToDeputy::Trace(line), _)) => trace(line),
                Ok((ToDeputy::Hold { epoch }, _)) if moving::is_next(epoch) => {
                    holds = true;
                    relay(stream);
                    // One that fails is one that is not answered.
                    if faults::at(Step::DeputyHold).is_err() {
                        continue;
                    }
                    say(stream, &ToNode::Held { epoch });
                }
                Ok((ToDeputy::Release { epoch } | ToDeputy::Hold { epoch }, _)) => holds &= !moving::is_next(epoch),
                Ok((ToDeputy::Commit(commit), _)) => {
                    let epoch = commit.epoch;
                    match moving::hand_over(&commit) {
                        Ok(new) => {
                            say(stream, &ToNode::Moved { epoch });
                            cancelled.clear();
                            descriptors::close(std::mem::replace(stream, new).into_raw_fd());
                        }
                        Err(error) => say(stream, &ToNode::Kept { epoch, reason: crate::chain(&error) }),
                    }
                    holds = false;
                }
                Err(_) => end::lost(),
            }
        }
    }
}

/// Hands on the signals that wait.
fn relay(stream: &UnixStream) {
    let _relay = lock(&signals::RELAY);
    while let Some(info) = signals::take() {
        if frame::send(stream, &ToNode::Signal(info), &[]).is_err() {
            // Its end is seen where it is read, after what the node still had to say.
            return;
        }
    }
}

/// Tells the node something. That its end is closed is seen where it is read.
fn say(stream: &UnixStream, message: &ToNode) {
    let _ = frame::send(stream, message, &[]);
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
    Some(trace).filter(|&fd| descriptors::is_own(fd)).into_iter().chain(home_proc::kept()).collect()
}
