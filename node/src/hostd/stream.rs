//! Frames on a tokio stream.

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection failed or ended within a frame.
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
}

/// Reads the body of a frame of at most `cap` bytes; `None` at the end of the stream.
///
/// # Errors
/// [`ReadError`]
pub async fn read(stream: &mut UnixStream, cap: usize) -> Result<Option<Vec<u8>>, ReadError> {
    let mut head = [0; 4];
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let claimed = u32::from_le_bytes(head) as usize;
    if claimed > cap {
        return Err(ReadError::TooLong { claimed, cap });
    }
    let mut body = vec![0; claimed];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// Writes an encoded frame.
///
/// # Errors
/// If the connection fails.
pub async fn write(stream: &mut UnixStream, frame: &[u8]) -> io::Result<()> {
    stream.write_all(frame).await
}

/// Writes an encoded frame and passes a descriptor with it.
///
/// # Errors
/// If the connection fails.
pub async fn write_with_descriptor(stream: &mut UnixStream, frame: &[u8], passed: &impl AsRawFd) -> io::Result<()> {
    let passed = [passed.as_raw_fd()];
    let sent = loop {
        stream.writable().await?;
        let attempt = stream.try_io(Interest::WRITABLE, || {
            let rights = [ControlMessage::ScmRights(&passed)];
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(frame)], &rights, flags, None)?)
        });
        match attempt {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            sent => break sent?,
        }
    };
    stream.write_all(&frame[sent..]).await
}

/// Waits until the other side has closed the connection.
pub async fn closed(stream: &mut UnixStream) {
    let mut byte = [0];
    while matches!(stream.read(&mut byte).await, Ok(1..)) {}
}
