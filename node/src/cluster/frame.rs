//! Frames on a connection between hosts: `u32` length, then so many bytes.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How much is made room for before the bytes have come.
const STEP: usize = 16 << 10;

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed or ended within a frame.
    #[error(transparent)]
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

/// Reads the body of a frame of at most `cap` bytes; `None` at the end of the stream. Room is made as bytes come,
/// not as they are claimed, and no byte after the frame is taken.
///
/// # Errors
/// [`FrameError`]
pub async fn read(stream: &mut (impl AsyncRead + Unpin), cap: usize) -> Result<Option<Vec<u8>>, FrameError> {
    let mut head = [0; 4];
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let claimed = u32::from_le_bytes(head) as usize;
    if claimed > cap {
        return Err(FrameError::TooLong { claimed, cap });
    }
    let mut body = Vec::new();
    while body.len() < claimed {
        let from = body.len();
        body.resize(claimed.min(from + STEP), 0);
        let got = stream.read(&mut body[from..]).await?;
        if got == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        body.truncate(from + got);
    }
    Ok(Some(body))
}

/// Writes an encoded frame.
///
/// # Errors
/// If the connection fails.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    stream.write_all(frame).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_claimed_length_costs_nothing_until_its_bytes_come() {
        let mut bytes = (40_000_000u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[7; 100]);
        let error = run(read(&mut &bytes[..], 50_000_000)).unwrap_err();
        assert!(matches!(error, FrameError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof));
        let error = run(read(&mut &bytes[..], 1000)).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { claimed: 40_000_000, cap: 1000 }));
    }

    #[test]
    fn frames_follow_each_other() {
        let long = vec![3; STEP * 2 + 5];
        let mut bytes = vec![0, 0, 0, 0];
        bytes.extend_from_slice(&(long.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&long);
        let mut stream = &bytes[..];
        assert_eq!(run(read(&mut stream, 0)).unwrap(), Some(Vec::new()));
        assert_eq!(run(read(&mut stream, long.len())).unwrap(), Some(long));
        assert_eq!(run(read(&mut stream, 9)).unwrap(), None);
        assert!(run(read(&mut &[1, 0][..], 9)).is_err());
    }
}
