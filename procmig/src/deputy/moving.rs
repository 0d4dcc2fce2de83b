//! The deputy as the arbiter of a migration: it holds which node has the process, and gives it to one.
//!
//! Until the target has the connections and is told to run the process, any failure leaves the process where it
//! is. From then on the old node's connections mean nothing.

use super::connection::Connection;
use super::descriptors::{self, Own};
use super::end;
use super::finding::{Distant, Target};
use super::link::{self, Link};
use super::threads::{NewConnection, THREADS, Thread, lock};
use crate::migration::faults::{self, Step};
use crate::wire::control::{Adopt, Commit, HandOver, MAX_MESSAGE, NodeReply, NodeRequest, ToNode};
use crate::wire::frame::{self, MAX_DESCRIPTORS};
use crate::wire::link::ConnectionId;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
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

/// What has become of a process that has moved.
#[derive(Debug)]
pub(super) struct Moved {
    /// The control connection with the target, on which it has been told to run the process.
    pub control: Connection,
    /// The link with the node that it has left, if that is at another host.
    pub left: Option<Arc<Link>>,
}

/// What a target has taken.
struct Adopted {
    control: Connection,
    /// The link with it, if it is at another host.
    link: Option<Arc<Link>>,
}

/// Gives the process to a target: to the one at the socket that `commit` names, or to one that was found.
///
/// # Errors
/// If it stays where it is.
pub(super) fn hand_over(commit: &Commit, found: Option<Target>) -> Result<Moved, MoveError> {
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
    // A path is taken from a node of this host alone.
    let here = commit.socket.as_ref().filter(|_| !link::is_remote());
    let (mut adopted, calls) = match (here, found) {
        (Some(socket), _) => adopt_here(Path::new(OsStr::from_bytes(socket)), commit)?,
        (None, Some(Target::Here(socket))) => adopt_here(&socket, commit)?,
        (None, Some(Target::There(distant))) => adopt_there(*distant, commit)?,
        (None, None) => return Err(MoveError::Refused("home has found no way to the target".to_owned())),
    };
    faults::at(Step::DeputyAdopted)?;
    adopted.control.set_patience(None)?;
    // From here on the process is the target's.
    frame::write_to(&mut adopted.control, &ToNode::Run { epoch: commit.epoch })?;
    EPOCH.store(commit.epoch, Ordering::SeqCst);
    adopted.control.last();
    // It is the target's, whatever happens here.
    let _ = faults::at(Step::DeputyMoved);
    // Before the first thread does something for the target, where a fork opens connections, say.
    let left = std::mem::replace(&mut *lock(&link::LINK), adopted.link.take());
    for ((thread, hand_over), connection) in leaving.iter().zip(&commit.threads).zip(calls) {
        connection.last();
        thread.reconnect(NewConnection { connection, seq: hand_over.seq, awaits: hand_over.awaits });
    }
    let _ = faults::at(Step::DeputyLeft);
    end::note_node(&commit.node);
    Ok(Moved { control: adopted.control, left })
}

/// Has a target on this host take the connections; gives the deputy's ends of those of the threads.
fn adopt_here(socket: &Path, commit: &Commit) -> Result<(Adopted, Vec<Connection>), MoveError> {
    let making = descriptors::making();
    let mut control = Connection::local(Own::make(&making, || UnixStream::connect(socket))?);
    let pairs = commit.threads.iter().map(|_| descriptors::socketpair(&making)).collect::<Result<Vec<_>, _>>()?;
    drop(making);
    control.set_patience(Some(PATIENCE))?;
    let mut left = commit.threads.len();
    for (threads, pairs) in commit.threads.chunks(MAX_DESCRIPTORS).zip(pairs.chunks(MAX_DESCRIPTORS)) {
        left -= threads.len();
        let theirs: Vec<RawFd> = pairs.iter().map(|(_, theirs)| theirs.as_raw_fd()).collect();
        control.send_message(&request(commit, threads, Vec::new(), left), &theirs)?;
    }
    is_adopted(&mut control)?;
    Ok((Adopted { control, link: None }, pairs.into_iter().map(|(ours, _)| Connection::local(ours)).collect()))
}

/// The same of a target on another host.
fn adopt_there(distant: Distant, commit: &Commit) -> Result<(Adopted, Vec<Connection>), MoveError> {
    let Distant { link, mut control, mut spare } = distant;
    while spare.len() < commit.threads.len() {
        spare.push(link.connect_anew()?);
    }
    spare.truncate(commit.threads.len());
    let (connections, names) = spare.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
    control.set_patience(Some(PATIENCE))?;
    control.send_message(&request(commit, &commit.threads, names, 0), &[])?;
    is_adopted(&mut control)?;
    Ok((Adopted { control, link: Some(Arc::new(link)) }, connections))
}

fn request(commit: &Commit, threads: &[HandOver], connections: Vec<ConnectionId>, left: usize) -> NodeRequest {
    let threads = threads.iter().map(|thread| thread.tid).collect();
    NodeRequest::Adopt(Adopt { ticket: commit.ticket, threads, connections, more: left > 0 })
}

fn is_adopted(control: &mut Connection) -> Result<(), MoveError> {
    match frame::read_from::<NodeReply>(control, MAX_MESSAGE)? {
        NodeReply::Done => Ok(()),
        NodeReply::Refused(reason) => Err(MoveError::Refused(reason)),
        _ => Err(MoveError::Refused("the target answered something else".to_owned())),
    }
}
