//! The link with a node of another host, which all deputies of a program share until their process migrates.

use super::connection::{self, Connection};
use super::descriptors::{MAKING, Own};
use super::threads::lock;
use super::{Remote, end};
use crate::vdso::distance::Clocks;
use crate::wire::control::{Attach, MAX_MESSAGE, VERSION};
use crate::wire::frame::{self, FrameError};
use crate::wire::link::{
    ConnectionId, LinkId, LinkReply, LinkRequest, LinkSecret, RemoteAttach, Side, opening, random,
};
use crate::wire::sealed::{Opener, SealedStream, Sealer, StreamKeys};
use crate::wire::stream::prepare;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long the node may take to answer, in milliseconds.
pub(super) const PATIENCE: i32 = 10_000;

/// A link.
#[derive(Debug)]
pub(super) struct Link {
    /// Where the node listens.
    address: SocketAddr,
    /// Names it.
    pub id: LinkId,
    secret: LinkSecret,
    /// The link itself, and the connection with `skeind` that says that it is used: open as long as any of the
    /// deputies lives that have it.
    kept: [Own; 2],
}

/// The link with the node that has the process, if that is at another host. Locked over a fork.
pub(super) static LINK: Mutex<Option<Arc<Link>>> = Mutex::new(None);

fn current() -> Option<Arc<Link>> {
    lock(&LINK).clone()
}

/// Whether the node is at another host.
pub(super) fn is_remote() -> bool {
    lock(&LINK).is_some()
}

/// What is to be watched: it becomes readable when the link ends. -1 where there is none.
pub(super) fn watched() -> RawFd {
    lock(&LINK).as_ref().map_or(-1, |link| link.watched())
}

/// The own descriptors that a child keeps.
pub(super) fn kept() -> impl Iterator<Item = RawFd> {
    let link = current();
    link.into_iter().flat_map(|link| [link.kept[0].as_raw_fd(), link.kept[1].as_raw_fd()])
}

/// Asks the node to run a program; gives the control connection and the first call connection. Call it with
/// [`MAKING`] locked.
///
/// # Errors
/// A refusal is [`io::ErrorKind::Other`] with the node's sentence.
pub(super) fn start(remote: Remote, attach: Attach) -> Result<(Connection, Connection), FrameError> {
    let Remote { socket, keys, lease } = remote;
    let kept = [Own::new(socket.into())?, Own::new(lease.into())?];
    let (control, call) = (random()?, random()?);
    let request = LinkRequest::Attach(Box::new(RemoteAttach { attach, control, call }));
    let (link, node, [control, call]) = open(kept, keys, &request, [control, call], false)?;
    let names = &mut *lock(&end::NAMES);
    names.1 = format!("{}/{}", names.1, node.chars().filter(|c| !c.is_control()).take(64).collect::<String>());
    *lock(&LINK) = Some(Arc::new(link));
    Ok((control, call))
}

/// Opens a link for a process that is to arrive at the node; gives it and the control connection.
///
/// # Errors
/// As [`start`].
pub(super) fn open_for_arrival(kept: [Own; 2], keys: StreamKeys) -> Result<(Link, Connection), FrameError> {
    let control = random()?;
    let request = LinkRequest::Receive { version: VERSION, control };
    open(kept, keys, &request, [control], true).map(|(link, _, [connection])| (link, connection))
}

/// Opens a link and connections with these names; gives the node's name too. `locks` [`MAKING`] where that is needed.
fn open<const N: usize>(
    kept: [Own; 2],
    keys: StreamKeys,
    request: &LinkRequest,
    names: [ConnectionId; N],
    locks: bool,
) -> Result<(Link, String, [Connection; N]), FrameError> {
    // SAFETY: the number is that of the first of `kept`, which lives as long; it is not closed here.
    let socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(kept[0].as_raw_fd()) });
    prepare(&*socket)?;
    let patience = Some(Duration::from_millis(PATIENCE as u64));
    socket.set_read_timeout(patience)?;
    socket.set_write_timeout(patience)?;
    let mut address = socket.peer_addr()?;
    let secret = LinkSecret::new(&keys, Side::Home);
    let mut stream = SealedStream::new(&*socket, keys).map_err(io::Error::other)?;
    let wrong = || FrameError::from(io::Error::from(io::ErrorKind::InvalidData));
    frame::write_to(&mut stream, request)?;
    let (id, port, node) = match frame::read_from(&mut stream, MAX_MESSAGE)? {
        LinkReply::Open { link, port, node } => (link, port, node),
        LinkReply::Refused(why) => return Err(io::Error::other(why).into()),
        LinkReply::Ready | LinkReply::Clocks => return Err(wrong()),
    };
    frame::write_to(&mut stream, &Clocks::now())?;
    address.set_port(port);
    let link = Link { address, id, secret, kept };
    // The node waits for them and for nothing else when it knows the clocks.
    let connections = names.iter().map(|name| link.connect(name, locks)).collect::<io::Result<Vec<_>>>()?;
    let connections = connections.try_into().map_err(|_| wrong())?;
    loop {
        match frame::read_from(&mut stream, MAX_MESSAGE)? {
            LinkReply::Ready => break,
            LinkReply::Clocks => frame::write_to(&mut stream, &Clocks::now())?,
            LinkReply::Refused(why) => return Err(io::Error::other(why).into()),
            LinkReply::Open { .. } => return Err(wrong()),
        }
    }
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    Ok((link, node, connections))
}

impl Link {
    /// What is to be watched: it becomes readable when the link ends.
    pub(super) fn watched(&self) -> RawFd {
        self.kept[0].as_raw_fd()
    }

    /// Opens a connection with this name. `locks` [`MAKING`] for the socket's own making.
    fn connect(&self, name: &ConnectionId, locks: bool) -> io::Result<Connection> {
        let family = if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let making = locks.then(|| lock(&MAKING));
        let own = Own::new(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)?;
        drop(making);
        // SAFETY: the descriptor is open as long as `own` is.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(own.as_raw_fd()) };
        prepare(&borrowed)?;
        connection::connect(own.as_raw_fd(), &SockaddrStorage::from(self.address))?;
        let keys = self.secret.keys(name, Side::Home);
        let mut sealer = Sealer::new(keys.send).map_err(io::Error::other)?;
        let opener = Opener::new(keys.receive).map_err(io::Error::other)?;
        let bytes = opening(&self.id, name, &mut sealer)?;
        let mut connection = Connection::local(own);
        connection.write_all(&bytes)?;
        Ok(connection.seal(sealer, opener))
    }

    /// Opens another connection, and names it.
    ///
    /// # Errors
    /// If the node cannot be reached.
    pub(super) fn connect_anew(&self) -> io::Result<(Connection, ConnectionId)> {
        let name = random()?;
        Ok((self.connect(&name, true)?, name))
    }
}

/// Opens so many connections more with the node that has the process, and names them for it.
///
/// # Errors
/// If the node cannot be reached.
pub(super) fn connect<const N: usize>() -> io::Result<([Connection; N], Vec<u8>)> {
    let link = current().ok_or(io::ErrorKind::NotConnected)?;
    let mut names: Vec<ConnectionId> = Vec::with_capacity(N);
    let mut connections = Vec::with_capacity(N);
    for _ in 0..N {
        let (connection, name) = link.connect_anew()?;
        connections.push(connection);
        names.push(name);
    }
    let payload = postcard::to_stdvec(&names).map_err(io::Error::other)?;
    let connections = connections.try_into().map_err(|_| io::ErrorKind::Other)?;
    Ok((connections, payload))
}
