//! What a migration did and how long it took.

use serde::{Deserialize, Serialize};

/// One round of copying memory while the process runs; the last one is made while it stands still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Pages sent with their content.
    pub pages: u64,
    /// Pages sent as zeros.
    pub zeros: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// As many as these would have been without compression.
    pub uncompressed: u64,
    /// Microseconds.
    pub micros: u64,
}

/// A migration, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process.
    pub pid: i32,
    /// The node that it has left.
    pub from: String,
    /// The node at which it is now.
    pub to: String,
    /// Until the target had agreed.
    pub prepare_micros: u64,
    /// Rounds.
    pub rounds: Vec<Round>,
    /// From the first thread that was told to stand still until the process ran at the target.
    pub freeze_micros: u64,
    /// Of that, until all threads stood still.
    pub stop_micros: u64,
    /// Of that, from the image's arrival until the deputy had given the process to the target.
    pub commit_micros: u64,
    /// What was sent when it ran at the target already.
    pub post_copy: Round,
    /// All of it.
    pub total_micros: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// As many as these would have been without compression.
    pub uncompressed: u64,
    /// Towards the end it ran for one part of the time in so many, since it wrote its memory as fast as it was sent;
    /// 1 if it was not slowed down.
    pub slowed: u32,
    /// Streams over which its memory was sent while it ran.
    pub streams: u32,
}

/// What is told while it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The target has agreed to take so many bytes.
    Prepared {
        /// Bytes of private memory.
        bytes: u64,
    },
    /// A part of a round is sent.
    Progress {
        /// The round, from 1.
        round: u32,
        /// Bytes of it that are done.
        done: u64,
        /// Bytes of it in all.
        of: u64,
    },
    /// A round is over.
    Round(Round),
    /// From now on the process runs for one part of the time in so many.
    Slowed(u32),
    /// The process stands still.
    Frozen,
    /// It runs at the target, which is owed some memory.
    Running {
        /// Bytes.
        owed: u64,
    },
    /// Some of that is sent.
    Owed {
        /// Bytes that are not.
        left: u64,
        /// Bytes in all.
        of: u64,
    },
}
