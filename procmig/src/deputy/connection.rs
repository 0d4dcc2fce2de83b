//! A deputy's end of a connection with its node: a Unix stream, or sealed TCP if the node is at another host.

use super::descriptors::{self, Own};
use super::{kernel, remaking};
use crate::wire::frame::{self, FrameError};
use crate::wire::lasting::{self, Lasting, Transport};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection, closed when dropped.
#[derive(Debug)]
pub(super) enum Connection {
    /// On the same host.
    Local(Own),
    /// With a node of another host.
    Remote(Arc<Lasting<Own>>),
}

/// A socket by its number, without the C library's ways of being interrupted.
pub(super) struct Raw(pub(super) RawFd);

impl Raw {
    fn receive(&self, room: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        let args = [self.0 as u64, room.as_mut_ptr() as u64, room.len() as u64, flags as u64, 0, 0];
        // SAFETY: the kernel writes at most `room.len()` bytes to `room`; there is no address.
        let got = unsafe { kernel::call(libc::SYS_recvfrom as u32, args) };
        kernel::errno(got).map_or(Ok(got as usize), |errno| Err(errno.into()))
    }

    fn send(&self, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
        let flags = (flags | libc::MSG_NOSIGNAL) as u64;
        let args = [self.0 as u64, bytes.as_ptr() as u64, bytes.len() as u64, flags, 0, 0];
        // SAFETY: the kernel reads `bytes`; there is no address.
        let put = unsafe { kernel::call(libc::SYS_sendto as u32, args) };
        kernel::errno(put).map_or(Ok(put as usize), |errno| Err(errno.into()))
    }
}

fn flags(now: bool) -> libc::c_int {
    if now { libc::MSG_DONTWAIT } else { 0 }
}

impl Transport for Own {
    fn receive(&self, room: &mut [u8], now: bool) -> io::Result<usize> {
        Raw(self.as_raw_fd()).receive(room, flags(now))
    }

    fn send(&self, bytes: &[u8], now: bool) -> io::Result<usize> {
        Raw(self.as_raw_fd()).send(bytes, flags(now))
    }

    fn is_cut(&self) -> bool {
        lasting::is_cut(self)
    }

    fn replace(&self, by: &impl AsRawFd) -> io::Result<()> {
        self.become_like(by)
    }
}

impl Read for Raw {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.receive(room, 0)
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::send(self, bytes, 0)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection {
    /// On the same host.
    pub(super) fn local(socket: Own) -> Self {
        Self::Local(socket)
    }

    /// Whether descriptors can be passed.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }

    /// From now on another socket is waited for when this one is lost, if it goes to another host.
    pub(super) fn last(&self) {
        if let Self::Remote(lasting) = self {
            lasting.last();
        }
    }

    /// Whether it has lost its socket, and may get another.
    pub(super) fn waits(&self) -> bool {
        matches!(self, Self::Remote(lasting) if lasting.waits())
    }

    /// Whether bytes wait here that a `poll` does not tell of.
    pub(super) fn has_more(&self) -> bool {
        matches!(self, Self::Remote(lasting) if !lasting.waits() && lasting.has_more())
    }

    /// Receives what is there without waiting, at most `room`, from a node of another host. 0 is the end.
    ///
    /// # Errors
    /// If the connection fails, and [`io::ErrorKind::WouldBlock`].
    pub(super) fn receive_now(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(_) => Err(io::ErrorKind::Unsupported.into()),
            Self::Remote(lasting) => lasting.receive(room, true),
        }
    }

    /// How long it waits for the node, both ways; `None` is for ever.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        set_patience(self.as_raw_fd(), patience)?;
        if patience.is_none() && !self.is_local() { tell_if_slow(self.as_raw_fd()) } else { Ok(()) }
    }

    /// Sends a message, with descriptors, which only a node on this host is passed.
    ///
    /// # Errors
    /// If the connection fails, or cannot pass descriptors.
    pub(super) fn send_message<T: Serialize>(&mut self, message: &T, descriptors: &[RawFd]) -> Result<(), FrameError> {
        if descriptors.is_empty() {
            return frame::write_to(self, message);
        }
        if !self.is_local() {
            return Err(io::Error::from(io::ErrorKind::Unsupported).into());
        }
        // SAFETY: the connection is open for as long as it is borrowed, which closes it.
        let stream = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(self.as_raw_fd()) });
        frame::send(&stream, message, descriptors)
    }

    /// Receives a message of which something is here, and the descriptors that came with it.
    ///
    /// # Errors
    /// As [`frame::receive`].
    pub(super) fn receive_message<T: DeserializeOwned>(&mut self, cap: usize) -> Result<(T, Vec<Own>), FrameError> {
        if !self.is_local() {
            return Ok((frame::read_from(self, cap)?, Vec::new()));
        }
        // SAFETY: the connection is open for as long as it is borrowed, which closes it.
        let stream = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(self.as_raw_fd()) });
        let (mut head, mut passed) = ([0; 4], Vec::new());
        let got = receive(&stream, &mut head, &mut passed)?;
        Ok((frame::read_rest(self, head, got, cap)?, passed))
    }

    /// Gives it up without closing it.
    pub(super) fn leak(self) {
        match self {
            Self::Local(socket) => drop(socket.leak()),
            Self::Remote(lasting) => std::mem::forget(lasting),
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// If the connection fails.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Local(socket) => Raw(socket.as_raw_fd()).write_all(bytes),
            Self::Remote(lasting) => lasting.send(bytes),
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Local(socket) => socket.as_raw_fd(),
            Self::Remote(lasting) => lasting.socket().as_raw_fd(),
        }
    }
}

impl Read for Connection {
    /// A signal ends the wait, and so does some time without a socket.
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(socket) => Raw(socket.as_raw_fd()).read(room),
            Self::Remote(lasting) => lasting.receive(room, false),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a socket waits for the other side, both ways; `None` is for ever.
///
/// # Errors
/// As `setsockopt(2)`.
pub(super) fn set_patience(socket: RawFd, patience: Option<Duration>) -> io::Result<()> {
    let time = TimeVal::microseconds(patience.map_or(0, |patience| patience.as_micros().max(1) as i64));
    // SAFETY: the number is looked at in this call alone.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    setsockopt(&socket, sockopt::ReceiveTimeout, &time)?;
    Ok(setsockopt(&socket, sockopt::SendTimeout, &time)?)
}

/// Has sending be interrupted now and then, to look whether the link is there, if one that is lost is made again.
///
/// # Errors
/// As `setsockopt(2)`.
pub(super) fn tell_if_slow(socket: RawFd) -> io::Result<()> {
    if remaking::patience() == 0 {
        return Ok(());
    }
    // SAFETY: the number is looked at in this call alone.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    Ok(setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(1))?)
}

/// Whether a socket that is closed before it is in use is reset, which the other side does not take for an end.
///
/// # Errors
/// As `setsockopt(2)`.
pub(super) fn reset_when_closed(socket: RawFd, is_reset: bool) -> io::Result<()> {
    // SAFETY: the number is looked at in this call alone.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    Ok(setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: is_reset.into(), l_linger: 0 })?)
}

/// Opens a TCP connection on a socket that does not wait for ever.
///
/// # Errors
/// As `connect(2)`.
pub(super) fn connect(socket: RawFd, address: &nix::sys::socket::SockaddrStorage) -> io::Result<()> {
    match nix::sys::socket::connect(socket, address) {
        // It goes on by itself.
        Err(Errno::EINTR | Errno::EINPROGRESS) => {}
        connected => return Ok(connected?),
    }
    await_events(socket, libc::POLLOUT, usual())?;
    // SAFETY: the number is looked at in this call alone.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket) };
    match nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Until when a node may take to answer.
fn usual() -> Instant {
    Instant::now() + Duration::from_millis(super::link::PATIENCE as u64)
}

/// Waits for one of these events until `end`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`], and as `poll(2)`.
pub(super) fn await_events(fd: RawFd, events: libc::c_short, end: Instant) -> io::Result<()> {
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis().min(i32::MAX as u128) as i32;
        // SAFETY: the kernel reads and writes one `pollfd`.
        match Errno::result(unsafe { libc::poll(&mut polled, 1, left) }) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// Receives some bytes with descriptors, which become the deputy's own before the guest can see them.
pub(super) fn receive(stream: &UnixStream, room: &mut [u8], passed: &mut Vec<Own>) -> io::Result<usize> {
    await_events(stream.as_raw_fd(), libc::POLLIN, usual())?;
    let making = descriptors::making();
    making.raise()?;
    let mut new = Vec::new();
    let got = frame::receive_with_descriptors(stream, room, &mut new)?;
    for descriptor in new {
        passed.push(Own::new(descriptor, &making)?);
    }
    if got == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got) }
}
