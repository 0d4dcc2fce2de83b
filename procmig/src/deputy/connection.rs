//! A deputy's end of a connection with its node: a Unix stream, or sealed TCP if the node is at another host.

use super::descriptors::Own;
use super::kernel;
use crate::wire::sealed::{Opener, Sealer};
use nix::errno::Errno;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

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

    /// Whether something was sent here that has not been read.
    pub(super) fn is_unread(&self) -> bool {
        let mut byte = 0u8;
        let flags = (libc::MSG_PEEK | libc::MSG_DONTWAIT) as u64;
        let args = [self.as_raw_fd() as u64, std::ptr::from_mut(&mut byte) as u64, 1, flags, 0, 0];
        // SAFETY: the kernel writes at most one byte to `byte`; there is no address.
        self.has_more() || unsafe { kernel::call(libc::SYS_recvfrom as u32, args) } > 0
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
    let mut polled = libc::pollfd { fd: socket, events: libc::POLLOUT, revents: 0 };
    loop {
        // SAFETY: the kernel reads and writes one `pollfd`.
        match Errno::result(unsafe { libc::poll(&mut polled, 1, super::link::PATIENCE) }) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => break,
        }
    }
    // SAFETY: the number is looked at in this call alone.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket) };
    match nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
