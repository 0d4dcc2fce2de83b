//! Making a link again that the network has lost, for up to the time that the user allows: `skeind` is asked for a way to
//! the same node, the link goes on over the connection that it gives, and each of this process's connections over a new
//! socket. Meanwhile its threads wait in what they were about to do.
//!
//! Each process does this for itself, on a thread of its own that is there only then; whoever finds a connection lost
//! starts it.

use super::control;
use super::descriptors::Own;
use super::end;
use super::finding;
use super::link::{self, LINK, Link, PATIENCE, ResumeError};
use super::moving::MoveError;
use super::threads::lock;
use crate::wire::lasting::{Lasting, Watcher, is_cut, tcp_state};
use crate::wire::link::{ConnectionId, LinkId};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// How long a lost link is made again for, in seconds.
static SECONDS: AtomicU32 = AtomicU32::new(0);
/// It is being made again. Set with [`LINK`] locked, so that no fork comes in between.
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Until when.
static UNTIL: Mutex<Option<Instant>> = Mutex::new(None);
/// This process's connections to nodes of other hosts.
static CONNECTIONS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two looks whether the link is there again.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Entry {
    link: LinkId,
    name: ConnectionId,
    connection: Weak<Lasting<Own>>,
}

struct Alarm(LinkId);

impl Watcher for Alarm {
    fn is_lost(&self, _: &io::Error) {
        if link::current().is_some_and(|link| link.id == self.0) {
            begin(false);
        }
    }

    fn is_slow(&self) {
        // Who would look otherwise may be the one who waits.
        if is_active() {
            let is_over = lock(&UNTIL).is_some_and(|until| until <= Instant::now());
            if is_over {
                end::lost_after(Duration::from_secs(patience().into()));
            }
        } else if link::current().is_some_and(|link| link.id == self.0) {
            link_has_news();
        }
    }
}

/// Sets for how many seconds a lost link is made again.
pub(super) fn set_patience(seconds: u32) {
    SECONDS.store(seconds, Ordering::Relaxed);
}

/// For how many seconds a lost link is made again.
pub(super) fn patience() -> u32 {
    SECONDS.load(Ordering::Relaxed)
}

/// Whether the link is lost and being made again.
pub(super) fn is_active() -> bool {
    ACTIVE.load(Ordering::SeqCst)
}

/// There is another connection of this link.
pub(super) fn enter(link: LinkId, name: ConnectionId, connection: &Arc<Lasting<Own>>) {
    connection.watch(Box::new(Alarm(link)));
    let mut connections = lock(&CONNECTIONS);
    connections.retain(|entry| entry.connection.strong_count() > 0);
    connections.push(Entry { link, name, connection: Arc::downgrade(connection) });
}

/// The registry, to be locked over a fork.
pub(super) fn hold() -> MutexGuard<'static, impl Sized> {
    lock(&CONNECTIONS)
}

/// In a child: its connections are these.
pub(super) fn forget_all_but(kept: &[RawFd]) {
    let is_kept = |own: Arc<Lasting<Own>>| {
        let is_kept = kept.contains(&own.socket().as_raw_fd());
        if !is_kept {
            // Its descriptor is closed with the others.
            std::mem::forget(own);
        }
        is_kept
    };
    lock(&CONNECTIONS).retain(|entry| entry.connection.upgrade().is_some_and(is_kept));
}

/// Whether `link` is the one with the node that has the process, and there. Call it with [`LINK`] locked, as `current`.
pub(super) fn is_there(current: Option<&Arc<Link>>, link: &Arc<Link>) -> bool {
    !is_active() && current.is_some_and(|current| Arc::ptr_eq(current, link))
}

/// The node cannot be reached: has the link made again, and waits until it is.
pub(super) fn wait() {
    begin(false);
    while is_active() {
        std::thread::sleep(LOOK);
    }
}

/// Lets some time pass while the link is made again.
pub(super) fn pause() {
    std::thread::sleep(LOOK);
}

/// What the link's own connection is found to be.
enum State {
    There,
    /// By the network.
    Lost,
    /// By the node.
    Ended,
    /// By this host's `skeind`: the other is no member any more.
    Cut,
}

/// Other deputies of the program may have the same socket, so its state is looked at, not its error, which is told once.
fn look(link: &Link) -> State {
    const TCP_ESTABLISHED: u8 = 1;
    const TCP_CLOSE_WAIT: u8 = 8;
    match tcp_state(&link.watched()) {
        TCP_ESTABLISHED => {}
        TCP_CLOSE_WAIT => return State::Ended,
        _ if is_cut(&link.watched()) => return State::Lost,
        _ => return State::Cut,
    }
    let mut byte = 0_u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the kernel writes at most one byte.
    match unsafe { libc::recv(link.watched(), (&raw mut byte).cast(), 1, flags) } {
        // Nothing is said on it but that it ends.
        1.. => State::Ended,
        _ if is_cut(&link.watched()) => State::Lost,
        0 => State::Ended,
        _ => State::There,
    }
}

/// Something is to be read on the link: makes it again if the network has lost it; else it has ended, and so does the
/// process.
pub(super) fn link_has_news() {
    let Some(link) = link::current() else { return };
    match look(&link) {
        State::There => {}
        State::Lost if patience() > 0 => begin(true),
        State::Lost | State::Cut => end::control_lost(),
        // Who looks may be who reads what the node had to say before it ended.
        State::Ended => end::lost_soon(),
    }
}

/// There is another link: has it made again if one of its connections was lost before it was this process's.
pub(super) fn look_at_all() {
    let Some(link) = link::current() else { return };
    if connections(&link.id).iter().any(|(_, connection)| connection.waits()) {
        begin(false);
    }
}

/// Has a thread make the link again, unless one does; whether the link's own connection `is_lost`, or another.
fn begin(is_lost: bool) {
    let link = lock(&LINK);
    let Some(old) = link.clone() else { return };
    if ACTIVE.swap(true, Ordering::SeqCst) {
        return;
    }
    drop(link);
    if control::spawn(move || run(old, is_lost)).is_err() {
        end::control_lost();
    }
}

/// Why an attempt came to nothing.
enum Failure {
    /// There is nothing to go on with.
    Final,
    /// It may be tried again.
    Transient,
}

impl From<MoveError> for Failure {
    fn from(_: MoveError) -> Self {
        Self::Transient
    }
}

fn run(old: Arc<Link>, mut is_lost: bool) {
    let limit = Duration::from_secs(patience().into());
    let begun = Instant::now();
    *lock(&UNTIL) = Some(begun + limit);
    // Those that were made and lost again are there until all is well: that they are closed would be taken for the end.
    let mut made = vec![old.clone()];
    loop {
        if !is_lost {
            match look(&old) {
                State::There => {}
                State::Lost => is_lost = true,
                State::Ended => end::lost(),
                State::Cut => end::control_lost(),
            }
        }
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            end::lost_after(limit);
        }
        match attempt(&old, &mut made, left.min(Duration::from_millis(PATIENCE as u64))) {
            Ok(new) if finish(&old, &new) => return,
            Ok(_) => std::thread::sleep(LOOK),
            Err(Failure::Final) => end::control_lost(),
            Err(Failure::Transient) => std::thread::sleep(PAUSE.min(limit.saturating_sub(begun.elapsed()))),
        }
    }
}

/// All of this process's connections of a link.
fn connections(link: &LinkId) -> Vec<(ConnectionId, Arc<Lasting<Own>>)> {
    let connections = lock(&CONNECTIONS);
    let its = connections.iter().filter(|entry| entry.link == *link);
    its.filter_map(|entry| Some((entry.name, entry.connection.upgrade()?))).collect()
}

fn attempt(old: &Link, made: &mut Vec<Arc<Link>>, patience: Duration) -> Result<Arc<Link>, Failure> {
    let Some((kept, keys)) = finding::find_again(&old.host, &old.node, patience)? else { return Err(Failure::Final) };
    let new = match link::resume(old, kept, keys, patience) {
        Ok(new) => Arc::new(new),
        Err(ResumeError::Refused(_)) => return Err(Failure::Final),
        Err(ResumeError::Frame(_)) => return Err(Failure::Transient),
    };
    made.push(new.clone());
    for (name, connection) in connections(&old.id) {
        match connection.reopen(new.way, |received| new.redial(&name, received, patience)) {
            Ok(()) => {}
            // Whoever has it finds that it has ended.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                connection.end();
            }
            Err(_) => return Err(Failure::Transient),
        }
    }
    Ok(new)
}

/// Takes a link into use, if all goes over it.
fn finish(old: &Arc<Link>, new: &Arc<Link>) -> bool {
    let mut link = lock(&LINK);
    if link.as_ref().is_none_or(|current| !Arc::ptr_eq(current, old)) {
        // The process has gone to another node meanwhile.
        ACTIVE.store(false, Ordering::SeqCst);
        drop(link);
        look_at_all();
        return true;
    }
    let goes_on =
        |connection: &Lasting<Own>| connection.has_ended() || (!connection.waits() && connection.tag() == new.way);
    if !connections(&old.id).iter().all(|(_, connection)| goes_on(connection)) {
        return false;
    }
    *link = Some(new.clone());
    ACTIVE.store(false, Ordering::SeqCst);
    true
}
