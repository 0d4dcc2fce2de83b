//! The other nodes of this host, and which of them runs which process of this host.
//!
//! Beside the nodes' sockets lies one file for all of them, `whereabouts`: for each PID of home the PID of the VMM
//! process whose node has taken it last. The node that takes a process writes it, so it needs nobody to be
//! looked up, and what a stopped deputy could not answer is answered. It is a hint: the node that it names says whether it has
//! the process.

use super::housekeeping::process_is_stopped;
use super::lock;
use crate::wire::control::{NodeReply, NodeRequest};
use crate::wire::frame::{self, FrameError};
use crate::wire::inquiry::{Inquiry, MAX_TOLD, SegmentUse, Told};
use crate::wire::usage::Usage;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long others may take for an answer: longer than a machine that is overloaded makes them take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The same of what an ended process has used: its end may still be on its way to its node.
pub const ENDING: Duration = Duration::from_secs(12);
/// How long one may take that has not answered before.
const SHORT: Duration = Duration::from_millis(50);
/// Between two questions about a process that is on its way.
pub const LOOK: Duration = Duration::from_millis(1);
/// How often it is looked whether a node that is asked has been stopped.
const STOPS: Duration = Duration::from_millis(100);
/// The largest PID that Linux gives.
const MAX_PID: i32 = 1 << 22;
/// Connections with one other node that are kept for the next question.
const KEPT: usize = 4;

/// Who else is on this host.
#[derive(Debug, Default)]
pub struct Neighbours {
    place: OnceLock<Place>,
    idle: Mutex<HashMap<u32, Vec<UnixStream>>>,
    /// Those that have not answered in time.
    silent: Mutex<HashSet<u32>>,
}

#[derive(Debug)]
struct Place {
    /// Where the sockets and PID files of nodes are.
    directory: PathBuf,
    /// For each PID the node's, 4 bytes.
    whereabouts: File,
}

impl Neighbours {
    /// The node's socket is in this directory, as those of the others are.
    ///
    /// # Errors
    /// If the file cannot be had: then nothing is known of others.
    pub fn settle(&self, directory: &Path) -> io::Result<()> {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let whereabouts = options.open(directory.join("whereabouts"))?;
        // A node settles once.
        let _ = self.place.set(Place { directory: directory.to_owned(), whereabouts });
        Ok(())
    }

    /// Notes that this node has a process of this host.
    pub fn note(&self, pid: i32) {
        let Some(place) = self.place.get().filter(|_| (1..=MAX_PID).contains(&pid)) else { return };
        if let Err(error) = place.whereabouts.write_all_at(&std::process::id().to_le_bytes(), pid as u64 * 4) {
            tracing::warn!(pid, %error, "other nodes will not find a process");
        }
    }

    /// The PID of the VMM process whose node has taken a process last.
    pub fn place_of(&self, pid: i32) -> Option<u32> {
        let place = self.place.get().filter(|_| (1..=MAX_PID).contains(&pid))?;
        let mut word = [0; 4];
        place.whereabouts.read_exact_at(&mut word, pid as u64 * 4).ok()?;
        Some(u32::from_le_bytes(word)).filter(|&node| node != 0)
    }

    /// The same, if that is another node.
    pub fn elsewhere(&self, pid: i32) -> Option<u32> {
        self.place_of(pid).filter(|&node| node != std::process::id())
    }

    /// Asks another node; `None` if it does not answer in time.
    pub fn ask(&self, node: u32, inquiry: &Inquiry, deadline: Instant) -> Option<Told> {
        if process_is_stopped(node as i32) == Some(true) {
            return None;
        }
        let is_silent = lock(&self.silent).contains(&node);
        let deadline = if is_silent { deadline.min(Instant::now() + SHORT) } else { deadline };
        let answer = self.ask_within(node, inquiry, deadline);
        let mut silent = lock(&self.silent);
        match &answer {
            Ok(_) => drop(silent.remove(&node)),
            Err(error) => {
                tracing::debug!(node, error = %crate::chain(error), "a node of this host does not answer");
                if matches!(error, FrameError::Io(error) if error.kind() == io::ErrorKind::WouldBlock) {
                    silent.insert(node);
                }
            }
        }
        answer.ok()
    }

    fn ask_within(&self, node: u32, inquiry: &Inquiry, deadline: Instant) -> Result<Told, FrameError> {
        // One that was kept may have been given up by the other side.
        while let Some(stream) = self.take_kept(node) {
            match converse(&stream, node, inquiry, deadline) {
                Ok(told) => return Ok(self.keep(node, stream, told)),
                Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) => {}
            }
        }
        let stream = self.connect(node)?;
        let told = converse(&stream, node, inquiry, deadline)?;
        Ok(self.keep(node, stream, told))
    }

    fn take_kept(&self, node: u32) -> Option<UnixStream> {
        lock(&self.idle).get_mut(&node)?.pop()
    }

    fn keep(&self, node: u32, stream: UnixStream, told: Told) -> Told {
        let mut idle = lock(&self.idle);
        let kept = idle.entry(node).or_default();
        if kept.len() < KEPT {
            kept.push(stream);
        }
        told
    }

    /// Never waits: who does not take connections is stopped.
    fn connect(&self, node: u32) -> io::Result<UnixStream> {
        let all = self.all();
        let known: Vec<u32> = all.iter().map(|&(pid, _)| pid).collect();
        lock(&self.idle).retain(|node, _| known.contains(node));
        lock(&self.silent).retain(|node| known.contains(node));
        let (_, path) = all.into_iter().find(|&(pid, _)| pid == node).ok_or(io::ErrorKind::NotFound)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// The other nodes: the VMM's PID, and the socket.
    fn all(&self) -> Vec<(u32, PathBuf)> {
        let Some(place) = self.place.get() else { return Vec::new() };
        let entries = fs::read_dir(&place.directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let pid_files = entries.filter(|path| path.extension().is_some_and(|kind| kind == "pid"));
        let pid = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
        let nodes = pid_files.filter_map(|path| Some((pid(&path)?, path.with_extension("sock"))));
        nodes.filter(|&(pid, _)| pid != std::process::id()).collect()
    }

    /// What a process has used that another node ran last.
    pub fn usage(&self, pid: i32, reaped: bool) -> Option<Usage> {
        let node = self.elsewhere(pid)?;
        match self.ask(node, &Inquiry::Ended { pid, reaped }, Instant::now() + ENDING) {
            Some(Told::Used(usage)) => Some(usage),
            _ => None,
        }
    }

    /// How other nodes use a System V segment themselves, as far as they say it in time.
    pub fn segment_uses(&self, id: i32, limit: Duration) -> Vec<SegmentUse> {
        let deadline = Instant::now() + limit;
        let ask = |node: u32| match self.ask(node, &Inquiry::Segment { id }, deadline) {
            Some(Told::Segment { mappings, last }) => Some(SegmentUse { node, mappings, last }),
            _ => None,
        };
        self.all().into_iter().filter_map(|(node, _)| ask(node)).collect()
    }
}

/// One question to a node and its answer; it is not waited for if the node is stopped meanwhile.
fn converse(stream: &UnixStream, node: u32, inquiry: &Inquiry, deadline: Instant) -> Result<Told, FrameError> {
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_write_timeout(Some(left()))?;
    frame::send(stream, &NodeRequest::Inquire(inquiry.clone()), &[])?;
    loop {
        let wait = PollTimeout::try_from(left().min(STOPS)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) if Instant::now() >= deadline || process_is_stopped(node as i32) == Some(true) => {
                return Err(io::Error::from(io::ErrorKind::WouldBlock).into());
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => break,
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    stream.set_read_timeout(Some(left()))?;
    match frame::receive(stream, MAX_TOLD)?.0 {
        NodeReply::Told(told) => Ok(told),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}
