//! Finding a way to a node that a process is to migrate to: `skeind` is asked, on a thread of its own, since another host
//! may take long to answer.

use super::connection::{self, Connection};
use super::control;
use super::descriptors::{self, Own};
use super::link::{self, Link, PATIENCE};
use super::moving::MoveError;
use super::threads::lock;
use crate::migration::faults::{self, Step};
use crate::wire::control::HostId;
use crate::wire::frame;
use crate::wire::link::{ConnectionId, LinkId};
use crate::wire::sealed::StreamKeys;
use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use std::time::Instant;

/// Who knows the ways to nodes: `skeind`, whose protocol this speaks.
pub trait Finder: Debug + Send + Sync {
    /// Its socket.
    fn socket(&self) -> &Path;

    /// The bytes of a question for the way to a node of a host, or of this one.
    ///
    /// # Errors
    /// A sentence.
    fn question(&self, host: Option<&HostId>, node: &str) -> Result<Vec<u8>, String>;

    /// What the body of the answer says, which came as a frame: `u32` length, then so many bytes.
    ///
    /// # Errors
    /// A sentence.
    fn answer(&self, body: &[u8]) -> Result<Found, String>;
}

/// A way to a node.
#[derive(Debug)]
pub enum Found {
    /// On this host, at this socket.
    Here(PathBuf),
    /// A link with it, which came with the answer; these are its keys. It is used as long as the connection with
    /// `skeind` is open.
    There(StreamKeys),
    /// There is none, nor will there be one; a sentence.
    Nowhere(String),
}

/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 10;

/// Who is asked; the same for all deputies of a program.
static FINDER: OnceLock<Box<dyn Finder>> = OnceLock::new();

/// Sets who is asked.
pub(super) fn ask(finder: Option<Box<dyn Finder>>) {
    if let Some(finder) = finder {
        // There is one start.
        let _ = FINDER.set(finder);
    }
}

/// A target that can be given the process.
#[derive(Debug)]
pub(super) enum Target {
    /// On this host.
    Here(PathBuf),
    /// On another.
    There(Box<Distant>),
}

impl Target {
    /// The link with it, if it is on another host.
    pub(super) fn link(&self) -> Option<LinkId> {
        match self {
            Self::Here(_) => None,
            Self::There(distant) => Some(distant.link.id),
        }
    }
}

/// A target on another host.
#[derive(Debug)]
pub(super) struct Distant {
    pub link: Link,
    pub control: Connection,
    /// Connections for threads, so that they need not be opened while the process stands still.
    pub spare: Vec<(Connection, ConnectionId)>,
}

/// A search for a target.
#[derive(Debug)]
pub(super) struct Search {
    /// For which migration.
    pub epoch: u32,
    /// At which attempt.
    pub attempt: u32,
    /// Ends when there is a result.
    done: Own,
    result: Arc<Mutex<Option<Result<Target, MoveError>>>>,
}

impl Search {
    /// Begins to look for a node.
    ///
    /// # Errors
    /// If there are no descriptors or threads left.
    pub(super) fn start(
        epoch: u32,
        attempt: u32,
        host: Option<HostId>,
        node: String,
        threads: u32,
    ) -> io::Result<Self> {
        let (done, doing) = descriptors::socketpair(&descriptors::making())?;
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        control::spawn(move || {
            let found = find(host.as_ref(), &node, threads);
            *lock(&place) = Some(found);
            drop(doing);
        })?;
        Ok(Self { epoch, attempt, done, result })
    }

    /// Becomes readable when there is a result.
    pub(super) fn descriptor(&self) -> RawFd {
        self.done.as_raw_fd()
    }

    /// What was found.
    ///
    /// # Errors
    /// Why there is no way.
    pub(super) fn result(self) -> Result<Target, MoveError> {
        let result = lock(&self.result).take();
        result.unwrap_or_else(|| Err(MoveError::Refused("the search for a way to the target failed".to_owned())))
    }
}

fn find(host: Option<&HostId>, node: &str, threads: u32) -> Result<Target, MoveError> {
    /// A process with more threads opens the rest later.
    const MOST_SPARE: u32 = 64;
    faults::at(Step::DeputyFind)?;
    let finder = FINDER.get().ok_or_else(|| MoveError::Refused("home knows no host to ask for a way".to_owned()))?;
    let patience = Duration::from_millis(PATIENCE as u64);
    let (mut answer, body) = exchange(&**finder, host, node, patience)?;
    match (finder.answer(&body).map_err(MoveError::Refused)?, answer.passed.pop()) {
        (Found::Here(socket), _) => Ok(Target::Here(socket)),
        (Found::There(keys), Some(socket)) => {
            let host = host.copied().ok_or_else(|| MoveError::Refused("the node is at another host".to_owned()))?;
            let (link, control) = link::open_for_arrival([socket, answer.lease], keys, host)?;
            let spare = (0..threads.min(MOST_SPARE)).map(|_| link.connect_anew()).collect::<io::Result<_>>()?;
            Ok(Target::There(Box::new(Distant { link, control, spare })))
        }
        (Found::Nowhere(why), _) => Err(MoveError::Refused(why)),
        (Found::There(_), None) => Err(MoveError::Refused("the host has passed no link".to_owned())),
    }
}

/// A way to a node of another host, to which there was one: the connection, what keeps it, and its keys; `None` if
/// there will be none. It may take so long.
///
/// # Errors
/// [`MoveError::Refused`] if `skeind` says why not, which may be different soon.
pub(super) fn find_again(
    host: &HostId,
    node: &str,
    patience: Duration,
) -> Result<Option<([Own; 2], StreamKeys)>, MoveError> {
    let finder = FINDER.get().ok_or_else(|| MoveError::Refused("home knows no host to ask for a way".to_owned()))?;
    let (mut answer, body) = exchange(&**finder, Some(host), node, patience)?;
    match (finder.answer(&body).map_err(MoveError::Refused)?, answer.passed.pop()) {
        (Found::There(keys), Some(socket)) => Ok(Some(([socket, answer.lease], keys))),
        (Found::Nowhere(_), _) => Ok(None),
        _ => Err(MoveError::Refused("the host has passed no link".to_owned())),
    }
}

/// What came with an answer.
struct Answer {
    passed: Vec<Own>,
    /// The connection with `skeind`.
    lease: Own,
}

/// Asks, and reads the body of the answer.
fn exchange(
    finder: &dyn Finder,
    host: Option<&HostId>,
    node: &str,
    patience: Duration,
) -> Result<(Answer, Vec<u8>), MoveError> {
    let end = Instant::now() + patience;
    let question = finder.question(host, node).map_err(MoveError::Refused)?;
    let lease = Own::make(&descriptors::making(), || UnixStream::connect(finder.socket()))?;
    // SAFETY: the number is the deputy's own, and is not closed here.
    let stream = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(lease.as_raw_fd()) });
    let patience = Some(patience);
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    (&*stream).write_all(&question)?;
    let (mut head, mut passed) = ([0; 4], Vec::new());
    connection::await_events(lease.as_raw_fd(), libc::POLLIN, end)?;
    let got = connection::receive(&stream, &mut head, &mut passed)?;
    (&*stream).read_exact(&mut head[got..])?;
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_ANSWER {
        return Err(frame::FrameError::TooLong { claimed: length, cap: MAX_ANSWER }.into());
    }
    let mut body = vec![0; length];
    (&*stream).read_exact(&mut body)?;
    Ok((Answer { passed, lease }, body))
}
