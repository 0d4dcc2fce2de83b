//! Frames: a `u32` length, then so many bytes of postcard; descriptors may ride along.

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Most descriptors that one message passes.
pub const MAX_DESCRIPTORS: usize = 16;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection is closed.
    #[error("the connection is closed")]
    Closed,
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer claims a length above the cap.
    #[error("the peer announced {claimed} bytes where at most {cap} are allowed")]
    TooLong {
        /// What the peer claims.
        claimed: usize,
        /// What is allowed.
        cap: usize,
    },
    /// The bytes are not what they should be.
    #[error("the peer sent a message that cannot be read")]
    Malformed(#[source] postcard::Error),
}

/// Encodes `message` with its length before it.
///
/// # Errors
/// Only if serialization fails.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(FrameError::Malformed)?;
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Sends a message in one write, with descriptors.
///
/// # Errors
/// [`FrameError::Io`] if the connection fails.
pub fn send<T: Serialize>(mut stream: &UnixStream, message: &T, descriptors: &[RawFd]) -> Result<(), FrameError> {
    let bytes = encode(message)?;
    let sent = send_with_descriptors(stream, &bytes, descriptors)?;
    Ok(stream.write_all(&bytes[sent..])?)
}

/// Writes at least one of `bytes`, with descriptors, and says how many.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn send_with_descriptors(stream: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Receives a message of at most `cap` bytes and the descriptors that came with it.
///
/// # Errors
/// [`FrameError::Closed`] at the end of the stream; the others as they say.
pub fn receive<T: DeserializeOwned>(mut stream: &UnixStream, cap: usize) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let mut head = [0; 4];
    let mut descriptors = Vec::new();
    let got = receive_with_descriptors(stream, &mut head, &mut descriptors)?;
    if got == 0 {
        return Err(FrameError::Closed);
    }
    Ok((read_rest(&mut stream, head, got, cap)?, descriptors))
}

/// Reads a message of which `got` bytes of the head are there.
///
/// # Errors
/// As [`receive`].
pub fn read_rest<T: DeserializeOwned>(
    stream: &mut impl Read,
    mut head: [u8; 4],
    got: usize,
    cap: usize,
) -> Result<T, FrameError> {
    stream.read_exact(&mut head[got..])?;
    let length = u32::from_le_bytes(head) as usize;
    if length > cap {
        return Err(FrameError::TooLong { claimed: length, cap });
    }
    // Room is made as bytes come, not as they are claimed.
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    if stream.take(length as u64).read_to_end(&mut bytes)? < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    postcard::from_bytes(&bytes).map_err(FrameError::Malformed)
}

/// Reads what is there, at most `buffer`, and takes the descriptors that came with it,
/// close-on-exec. 0 is the end of the stream.
///
/// # Errors
/// As `recvmsg(2)`.
pub fn receive_with_descriptors(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    loop {
        match receive_with_descriptors_once(stream, buffer, descriptors) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// The same, but a signal ends the wait.
///
/// # Errors
/// As `recvmsg(2)`.
pub fn receive_with_descriptors_once(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(message.bytes)
}

/// As [`send`], on any stream.
///
/// # Errors
/// [`FrameError::Io`] if it fails.
pub fn write_to<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    Ok(stream.write_all(&encode(message)?)?)
}

/// As [`receive`], from any stream.
///
/// # Errors
/// As [`receive`].
pub fn read_from<T: DeserializeOwned>(stream: &mut impl Read, cap: usize) -> Result<T, FrameError> {
    let mut head = [0; 4];
    let got = loop {
        match stream.read(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            got => break got?,
        }
    };
    if got == 0 {
        return Err(FrameError::Closed);
    }
    read_rest(stream, head, got, cap)
}
