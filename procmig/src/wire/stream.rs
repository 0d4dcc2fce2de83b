//! A connection between a node and a deputy, of which there are two kinds: a Unix stream on the same host, which may
//! pass descriptors, and sealed TCP between hosts, which may not, and which may outlast its socket.

use super::frame::{self, FrameError};
use super::lasting::{self, Lasting, Transport};
use super::sealed::{BadKeys, Opener, SealedStream, Sealer, StreamKeys};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Seconds without a sign of life after which the kernel asks for one, between two such questions, and how many of
/// them go unanswered until the connection is given up.
const SILENCE: (u32, u32, u32) = (5, 2, 5);

/// Has the kernel of this host notice that the other host is gone, as long as nothing is sent: so at least by the
/// link. There is no limit for what was sent, since a peer that is stopped may leave it unread for long.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    let (idle, interval, count) = SILENCE;
    setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    Ok(())
}

/// A connection that one thread uses, both ways.
#[derive(Debug)]
pub enum Stream {
    /// On the same host.
    Local(UnixStream),
    /// With another host.
    Sealed(Box<Sealed>),
    /// With a deputy at another host.
    Lasting(Arc<Lasting<TcpStream>>),
}

impl Transport for TcpStream {
    fn receive(&self, room: &mut [u8], now: bool) -> io::Result<usize> {
        Ok(recv(self.as_raw_fd(), room, flags(now))?)
    }

    fn send(&self, bytes: &[u8], now: bool) -> io::Result<usize> {
        Ok(send(self.as_raw_fd(), bytes, flags(now) | MsgFlags::MSG_NOSIGNAL)?)
    }

    fn is_cut(&self) -> bool {
        lasting::is_cut(self)
    }

    fn replace(&self, by: &impl AsRawFd) -> io::Result<()> {
        // SAFETY: no pointers; both numbers are open, and the second stays so.
        Errno::result(unsafe { libc::dup3(by.as_raw_fd(), self.as_raw_fd(), libc::O_CLOEXEC) })?;
        Ok(())
    }
}

fn flags(now: bool) -> MsgFlags {
    if now { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() }
}

/// Sealed TCP.
#[derive(Debug)]
pub struct Sealed {
    socket: TcpStream,
    sealer: Sealer,
    opener: Opener,
}

impl Sealed {
    /// Goes on with a connection on which as much has been sent and received as the halves say.
    pub fn new(socket: TcpStream, sealer: Sealer, opener: Opener) -> Self {
        Self { socket, sealer, opener }
    }

    /// Over a socket, with its keys.
    ///
    /// # Errors
    /// [`BadKeys`]
    pub fn with_keys(socket: TcpStream, keys: StreamKeys) -> Result<Self, BadKeys> {
        let (socket, sealer, opener) = SealedStream::new(socket, keys)?.into_parts();
        Ok(Self { socket, sealer, opener })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::Local(stream)
    }
}

impl From<Arc<Lasting<TcpStream>>> for Stream {
    fn from(lasting: Arc<Lasting<TcpStream>>) -> Self {
        Self::Lasting(lasting)
    }
}

impl From<Sealed> for Stream {
    fn from(sealed: Sealed) -> Self {
        Self::Sealed(Box::new(sealed))
    }
}

impl Stream {
    /// Sends all of `bytes`: in one write, if they are no more than [`MAX_RECORD`](super::sealed::MAX_RECORD).
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = match self {
            Self::Local(stream) => stream,
            Self::Sealed(sealed) => return sealed.sealer.send(&mut sealed.socket, bytes),
            Self::Lasting(lasting) => return lasting.send(bytes),
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match send(stream.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives what is there, at most `room`, with the descriptors that came along, close-on-exec, if they are
    /// asked for. A signal ends the wait. 0 is the end.
    ///
    /// # Errors
    /// If the connection fails, and [`io::ErrorKind::Interrupted`].
    pub fn receive(&mut self, room: &mut [u8], descriptors: Option<&mut Vec<OwnedFd>>) -> io::Result<usize> {
        match (self, descriptors) {
            (Self::Local(stream), Some(descriptors)) => frame::receive_with_descriptors_once(stream, room, descriptors),
            (Self::Local(stream), None) => stream.read(room),
            (Self::Sealed(sealed), _) => sealed.opener.receive_once(&mut sealed.socket, room),
            (Self::Lasting(lasting), _) => lasting.receive(room, false),
        }
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), and [`io::ErrorKind::WouldBlock`].
    pub fn receive_now(&mut self, room: &mut [u8], descriptors: Option<&mut Vec<OwnedFd>>) -> io::Result<usize> {
        match self {
            Self::Lasting(lasting) => lasting.receive(room, true),
            // What comes over these is all for who receives it.
            Self::Local(_) | Self::Sealed(_) if self.has_news() => self.receive(room, descriptors),
            Self::Local(_) | Self::Sealed(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether something has come, be it the end.
    pub fn has_news(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Whether it goes to another host.
    pub fn is_sealed(&self) -> bool {
        !matches!(self, Self::Local(_))
    }

    /// From now on another socket is waited for when this one is lost, if it is of a kind for which one may come.
    pub fn last(&self) {
        if let Self::Lasting(lasting) = self {
            lasting.last();
        }
    }

    /// Sends a message as a [frame](frame), with descriptors, which only a stream on the same host takes along.
    ///
    /// # Errors
    /// If the connection fails, or cannot pass descriptors.
    pub fn send_message<T: Serialize>(&mut self, message: &T, descriptors: &[RawFd]) -> Result<(), FrameError> {
        self.send_frame(&frame::encode(message)?, descriptors)
    }

    /// The same of a frame that is encoded.
    ///
    /// # Errors
    /// If the connection fails, or cannot pass descriptors.
    pub fn send_frame(&mut self, bytes: &[u8], descriptors: &[RawFd]) -> Result<(), FrameError> {
        let sent = match self {
            Self::Local(stream) if !descriptors.is_empty() => frame::send_with_descriptors(stream, bytes, descriptors)?,
            Self::Sealed(_) | Self::Lasting(_) if !descriptors.is_empty() => {
                return Err(io::Error::from(io::ErrorKind::Unsupported).into());
            }
            _ => 0,
        };
        Ok(self.send(&bytes[sent..])?)
    }

    /// Receives a message of at most `cap` bytes, and the descriptors that came with it.
    ///
    /// # Errors
    /// As [`frame::receive`].
    pub fn receive_message<T: DeserializeOwned>(&mut self, cap: usize) -> Result<(T, Vec<OwnedFd>), FrameError> {
        match self {
            Self::Local(stream) => frame::receive(stream, cap),
            Self::Sealed(_) | Self::Lasting(_) => Ok((frame::read_from(self, cap)?, Vec::new())),
        }
    }

    /// How long it waits for the other side, both ways; `None` is for ever.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Local(stream) => {
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)
            }
            Self::Sealed(sealed) => {
                sealed.socket.set_read_timeout(patience)?;
                sealed.socket.set_write_timeout(patience)
            }
            Self::Lasting(lasting) => {
                lasting.socket().set_read_timeout(patience)?;
                lasting.socket().set_write_timeout(patience)
            }
        }
    }

    /// Its two halves, for threads that send and receive at once.
    pub fn split(self) -> (Sending, Receiving) {
        match self {
            Self::Local(stream) => {
                let stream = Arc::new(stream);
                (Sending::Local(stream.clone()), Receiving::Local(stream))
            }
            Self::Sealed(sealed) => {
                let Sealed { socket, sealer, opener } = *sealed;
                Self::Lasting(Arc::new(Lasting::new(socket, sealer, opener, 0, false))).split()
            }
            Self::Lasting(lasting) => (Sending::Lasting(lasting.clone()), Receiving::Lasting(lasting)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Local(stream) => stream.as_fd(),
            Self::Sealed(sealed) => sealed.socket.as_fd(),
            Self::Lasting(lasting) => lasting.socket().as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.receive(room, None)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sending half.
#[derive(Debug)]
pub enum Sending {
    /// On the same host.
    Local(Arc<UnixStream>),
    /// With another host.
    Lasting(Arc<Lasting<TcpStream>>),
}

impl From<Arc<UnixStream>> for Sending {
    fn from(stream: Arc<UnixStream>) -> Self {
        Self::Local(stream)
    }
}

impl Sending {
    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Local(stream) => (&**stream).write_all(bytes),
            Self::Lasting(lasting) => lasting.send(bytes),
        }
    }

    /// Sends a short message if that needs no waiting; `false` if it would, and then nothing was sent.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let must_wait = |errno| matches!(errno, Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM);
        match self {
            // So few bytes go whole or not at all.
            Self::Local(stream) => match send(stream.as_raw_fd(), bytes, flags(true) | MsgFlags::MSG_NOSIGNAL) {
                Err(errno) if must_wait(errno) => Ok(false),
                other => other.map(|_| true).map_err(io::Error::from),
            },
            Self::Lasting(lasting) => lasting.try_send(bytes),
        }
    }
}

/// The receiving half.
#[derive(Debug)]
pub enum Receiving {
    /// On the same host.
    Local(Arc<UnixStream>),
    /// With another host.
    Lasting(Arc<Lasting<TcpStream>>),
}

impl Receiving {
    /// Receives what is there, at most `room`, without waiting. 0 is the end.
    ///
    /// # Errors
    /// If the connection fails, and [`io::ErrorKind::WouldBlock`].
    pub fn receive_now(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(stream) => Ok(recv(stream.as_raw_fd(), room, flags(true))?),
            Self::Lasting(lasting) => lasting.receive(room, true),
        }
    }

    /// Whether something may be here that a `poll` does not tell of.
    pub fn keeps_some(&self) -> bool {
        matches!(self, Self::Lasting(lasting) if lasting.has_more())
    }
}

impl AsFd for Receiving {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Local(stream) => stream.as_fd(),
            Self::Lasting(lasting) => lasting.socket().as_fd(),
        }
    }
}
