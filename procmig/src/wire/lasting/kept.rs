//! What a connection keeps to send it again.

use super::super::sealed::Sealer;
use std::collections::VecDeque;
use std::io::{self, Write};

/// Most bytes that are kept for a peer that does not say that it has them: one message, and what comes between two
/// confirmations. With more the connection ends when its socket does, until they have come.
const MOST_KEPT: usize = 32 << 20;
/// A buffer that is longer than this is given back when nothing is kept.
const KEEP_ROOM: usize = 4 << 20;

/// What was sent and may not have come.
#[derive(Debug, Default, Clone)]
pub(super) struct Kept {
    bytes: VecDeque<u8>,
    /// Number of the first of them.
    first: u64,
    /// There are too many: that many were sent, and nothing is kept until they have come.
    beyond: Option<u64>,
}

impl Kept {
    /// Adds what is sent.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if let Some(sent) = &mut self.beyond {
            *sent += bytes.len() as u64;
        } else if self.bytes.len() + bytes.len() > MOST_KEPT {
            self.beyond = Some(self.first + self.bytes.len() as u64 + bytes.len() as u64);
            self.bytes = VecDeque::new();
        } else {
            self.bytes.extend(bytes);
        }
    }

    /// The peer has so many; `false` if it cannot, or lacks what is not kept.
    pub(super) fn forget(&mut self, confirmed: u64) -> bool {
        if let Some(sent) = self.beyond {
            if sent == confirmed {
                (self.first, self.beyond) = (confirmed, None);
            }
            return sent == confirmed;
        }
        let Some(count) = confirmed.checked_sub(self.first).and_then(|count| usize::try_from(count).ok()) else {
            return false;
        };
        if count > self.bytes.len() {
            return false;
        }
        if count == self.bytes.len() {
            self.bytes.clear();
            if self.bytes.capacity() > KEEP_ROOM {
                self.bytes = VecDeque::new();
            }
        } else {
            self.bytes.drain(..count);
        }
        self.first = confirmed;
        true
    }

    /// Whether something that was sent is not kept.
    pub(super) fn is_incomplete(&self) -> bool {
        self.beyond.is_some()
    }

    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is kept.
    pub(super) fn bytes(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }
}

/// What is left of a connection that was closed before the peer has said that it has everything.
#[derive(Debug, Clone)]
pub struct Remains {
    kept: Kept,
    received: u64,
    /// As [`Lasting::tag`](super::Lasting::tag).
    pub tag: u64,
}

impl Remains {
    pub(super) fn new(kept: Kept, received: u64, tag: u64) -> Self {
        Self { kept, received, tag }
    }

    /// Sends, on another socket, what the peer lacks that has so many bytes.
    ///
    /// # Errors
    /// If the socket fails, or the peer lacks more than there is.
    pub fn send(mut self, socket: &mut impl Write, mut sealer: Sealer, theirs: u64) -> io::Result<()> {
        if !self.kept.forget(theirs) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        sealer.send_counted(socket, self.kept.bytes(), self.received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_is_not_kept_until_all_has_come() {
        let mut kept = Kept::default();
        kept.add(b"abc");
        assert!(kept.forget(1) && !kept.forget(0) && !kept.forget(4));
        assert_eq!(kept.bytes(), b"bc");
        kept.add(&vec![0; MOST_KEPT]);
        let sent = 3 + MOST_KEPT as u64;
        assert!(kept.is_incomplete() && kept.is_empty());
        kept.add(b"d");
        assert!(!kept.forget(sent) && kept.is_incomplete());
        assert!(kept.forget(sent + 1) && !kept.is_incomplete());
        kept.add(b"e");
        assert_eq!(kept.bytes(), b"e");
        assert!(kept.forget(sent + 2) && kept.is_empty());
    }
}
