//! The deputy as the arbiter of a migration: it holds which node has the process, and gives it to one.
//!
//! Until the target has the connections and is told to run the process, any failure leaves the process where it
//! is. From then on the old node's connections mean nothing.

use super::connection::Connection;
use super::descriptors::{self, Own};
use super::end;
use super::threads::{NewConnection, THREADS, Thread, lock};
use crate::migration::faults::{self, Step};
use crate::wire::control::{Commit, HandOver, MAX_MESSAGE, NodeReply, NodeRequest, ToNode};
use crate::wire::frame::{self, MAX_DESCRIPTORS};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long the target may take to answer: the process stands still meanwhile.
const PATIENCE: Duration = Duration::from_millis(800);

/// How often the process has changed its node.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Whether a migration to `epoch` would be the next.
pub(super) fn is_next(epoch: u32) -> bool {
    epoch == EPOCH.load(Ordering::SeqCst).wrapping_add(1)
}

/// In a child, which has its own migrations.
pub(super) fn forget() {
    EPOCH.store(0, Ordering::SeqCst);
}

/// Why a process is not given to a target.
#[derive(Debug, thiserror::Error)]
pub(super) enum MoveError {
    /// Not the one that is due.
    #[error("the migration is out of turn")]
    OutOfTurn,
    /// Not the process's threads.
    #[error("home has no thread {0}")]
    NoThread(i32),
    /// No connection.
    #[error("the target cannot be reached from home")]
    Unreachable(#[source] io::Error),
    /// The target fails.
    #[error("the target does not answer as it should")]
    Target(#[from] frame::FrameError),
    /// The target does not have it.
    #[error("{0}")]
    Refused(String),
}

impl From<io::Error> for MoveError {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error)
    }
}

/// Gives the process to a target; returns the new control connection, on which the target has been told to run it.
///
/// # Errors
/// If it stays where it is.
pub(super) fn hand_over(commit: &Commit) -> Result<Connection, MoveError> {
    if !is_next(commit.epoch) {
        return Err(MoveError::OutOfTurn);
    }
    faults::at(Step::DeputyCommit)?;
    let threads = lock(&THREADS).clone();
    let find = |hand_over: &HandOver| {
        let found = threads.iter().find(|thread| thread.tid == hand_over.tid);
        found.cloned().ok_or(MoveError::NoThread(hand_over.tid))
    };
    let leaving: Vec<Arc<Thread>> = commit.threads.iter().map(find).collect::<Result<_, _>>()?;
    let making = lock(&descriptors::MAKING);
    let stream = UnixStream::connect(Path::new(std::ffi::OsStr::from_bytes(&commit.socket)))?;
    let control = Own::new(stream.into())?;
    let pairs: Vec<(Own, Own)> = leaving.iter().map(|_| descriptors::socketpair()).collect::<Result<_, _>>()?;
    drop(making);
    // SAFETY: the number is the deputy's own; the stream is forgotten where `control` is dropped.
    let stream = std::mem::ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(control.as_raw_fd()) });
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    adopt(&stream, commit, &pairs)?;
    faults::at(Step::DeputyAdopted)?;
    stream.set_write_timeout(None)?;
    stream.set_read_timeout(None)?;
    // From here on the process is the target's.
    frame::send(&stream, &ToNode::Run { epoch: commit.epoch }, &[])?;
    EPOCH.store(commit.epoch, Ordering::SeqCst);
    // It is the target's, whatever happens here.
    let _ = faults::at(Step::DeputyMoved);
    for ((thread, hand_over), (ours, theirs)) in leaving.iter().zip(&commit.threads).zip(pairs) {
        drop(theirs);
        thread.reconnect(NewConnection {
            connection: Connection::local(ours),
            seq: hand_over.seq,
            awaits: hand_over.awaits,
        });
    }
    end::note_node(&commit.node);
    Ok(Connection::local(control))
}

/// Has the target take the connections.
fn adopt(stream: &UnixStream, commit: &Commit, pairs: &[(Own, Own)]) -> Result<(), MoveError> {
    let mut sent = 0;
    for (threads, pairs) in commit.threads.chunks(MAX_DESCRIPTORS).zip(pairs.chunks(MAX_DESCRIPTORS)) {
        sent += threads.len();
        let request = NodeRequest::Adopt {
            ticket: commit.ticket,
            threads: threads.iter().map(|thread| thread.tid).collect(),
            more: sent < commit.threads.len(),
        };
        let theirs: Vec<RawFd> = pairs.iter().map(|(_, theirs)| theirs.as_raw_fd()).collect();
        frame::send(stream, &request, &theirs)?;
    }
    match frame::receive::<NodeReply>(stream, MAX_MESSAGE)?.0 {
        NodeReply::Done => Ok(()),
        NodeReply::Refused(reason) => Err(MoveError::Refused(reason)),
        _ => Err(MoveError::Refused("the target answered something else".to_owned())),
    }
}
