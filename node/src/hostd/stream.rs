//! Frames on a tokio stream.

use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
