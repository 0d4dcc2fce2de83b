//! A deputy's end of a connection with its node: a Unix stream, or sealed TCP if the node is at another host.

use super::descriptors::{self, Own};
use super::kernel;
use super::threads::lock;
use crate::wire::frame::{self, FrameError};
use crate::wire::sealed::{Opener, Sealer};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A connection, closed when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Own,
    sealed: Option<Box<(Sealer, Opener)>>,
}

/// A socket by its number, without the C library's ways of being interrupted.
struct Raw(RawFd);

impl Read for Raw {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let args = [self.0 as u64, room.as_mut_ptr() as u64, room.len() as u64, 0, 0, 0];
        // SAFETY: the kernel writes at most `room.len()` bytes to `room`.
        let got = unsafe { kernel::call(libc::SYS_read as u32, args) };
        kernel::errno(got).map_or(Ok(got as usize), |errno| Err(errno.into()))
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_NOSIGNAL as u64;
        let args = [self.0 as u64, bytes.as_ptr() as u64, bytes.len() as u64, flags, 0, 0];
        // SAFETY: the kernel reads `bytes`; there is no address.
        let put = unsafe { kernel::call(libc::SYS_sendto as u32, args) };
        kernel::errno(put).map_or(Ok(put as usize), |errno| Err(errno.into()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection {
    /// On the same host.
    pub(super) fn local(socket: Own) -> Self {
        Self { socket, sealed: None }
    }

    /// From now on all is sealed.
    pub(super) fn seal(self, sealer: Sealer, opener: Opener) -> Self {
        Self { sealed: Some(Box::new((sealer, opener))), ..self }
    }

    /// Whether descriptors can be passed.
    pub(super) fn is_local(&self) -> bool {
        self.sealed.is_none()
    }

    /// Whether bytes wait here that a `poll` does not tell of.
    pub(super) fn has_more(&self) -> bool {
        self.sealed.as_ref().is_some_and(|sealed| sealed.1.has_more())
    }

    /// How long it waits for the node, both ways; `None` is for ever.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        let time = TimeVal::microseconds(patience.map_or(0, |patience| patience.as_micros() as i64));
        // SAFETY: the descriptor is open as long as `self` is.
        let socket = unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) };
        setsockopt(&socket, sockopt::ReceiveTimeout, &time)?;
        Ok(setsockopt(&socket, sockopt::SendTimeout, &time)?)
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
        self.socket.leak();
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// If the connection fails.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut raw = Raw(self.socket.as_raw_fd());
        match &mut self.sealed {
            None => raw.write_all(bytes),
            Some(sealed) => sealed.0.send(&mut raw, bytes),
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Read for Connection {
    /// A signal ends the wait.
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut raw = Raw(self.socket.as_raw_fd());
        match &mut self.sealed {
            None => raw.read(room),
            Some(sealed) => sealed.1.receive_once(&mut raw, room),
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
    await_events(socket, libc::POLLOUT)?;
    // SAFETY: the number is looked at in this call alone.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket) };
    match nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Waits for one of these events, as long as a node may take to answer.
fn await_events(fd: RawFd, events: libc::c_short) -> io::Result<()> {
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    loop {
        // SAFETY: the kernel reads and writes one `pollfd`.
        match Errno::result(unsafe { libc::poll(&mut polled, 1, super::link::PATIENCE) }) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// Receives some bytes with descriptors, which become the deputy's own before the guest can see them.
pub(super) fn receive(stream: &UnixStream, room: &mut [u8], passed: &mut Vec<Own>) -> io::Result<usize> {
    await_events(stream.as_raw_fd(), libc::POLLIN)?;
    let _making = lock(&descriptors::MAKING);
    let mut new = Vec::new();
    let got = frame::receive_with_descriptors(stream, room, &mut new)?;
    for descriptor in new {
        passed.push(Own::new(descriptor)?);
    }
    if got == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got) }
}
