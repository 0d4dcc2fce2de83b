//! The link with a node of another host, which all deputies of a program share.

use super::connection::{self, Connection};
use super::descriptors::{MAKING, Own};
use super::threads::lock;
use super::{Remote, end};
use crate::vdso::distance::Clocks;
use crate::wire::control::{Attach, MAX_MESSAGE};
use crate::wire::frame::{self, FrameError};
use crate::wire::link::{ConnectionId, LinkId, LinkReply, LinkSecret, RemoteAttach, Side, opening, random};
use crate::wire::sealed::{Opener, SealedStream, Sealer};
use crate::wire::stream::prepare;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

/// How long the node may take to answer, in milliseconds.
pub(super) const PATIENCE: i32 = 10_000;

struct Link {
    /// Where the node listens.
    address: SocketAddr,
    id: LinkId,
    secret: LinkSecret,
    /// The link itself, and the connection with `skeind` that says that it is used: open as long as any of the
    /// program's deputies lives.
    kept: [RawFd; 2],
}

static LINK: OnceLock<Link> = OnceLock::new();

/// Whether the node is at another host.
pub(super) fn is_remote() -> bool {
    LINK.get().is_some()
}

/// What is to be watched: it becomes readable when the link ends. -1 where there is none.
pub(super) fn watched() -> RawFd {
    LINK.get().map_or(-1, |link| link.kept[0])
}

/// The own descriptors that a child keeps.
pub(super) fn kept() -> impl Iterator<Item = RawFd> {
    LINK.get().into_iter().flat_map(|link| link.kept)
}

/// Asks the node to run a program; gives the control connection and the first call connection. Call it with
/// [`MAKING`] locked.
///
/// # Errors
/// A refusal is [`io::ErrorKind::Other`] with the node's sentence.
pub(super) fn start(remote: Remote, attach: Attach) -> Result<(Connection, Connection), FrameError> {
    let Remote { socket, keys, lease } = remote;
    prepare(&socket)?;
    let patience = Some(Duration::from_millis(PATIENCE as u64));
    socket.set_read_timeout(patience)?;
    socket.set_write_timeout(patience)?;
    let mut address = socket.peer_addr()?;
    let secret = LinkSecret::new(&keys, Side::Home);
    let (control, call) = (random()?, random()?);
    let mut stream = SealedStream::new(&socket, keys).map_err(io::Error::other)?;
    frame::write_to(&mut stream, &RemoteAttach { attach, control, call })?;
    let (id, port, node) = match frame::read_from(&mut stream, MAX_MESSAGE)? {
        LinkReply::Open { link, port, node } => (link, port, node),
        LinkReply::Refused(why) => return Err(io::Error::other(why).into()),
    };
    frame::write_to(&mut stream, &Clocks::now())?;
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    address.set_port(port);
    let names = &mut *lock(&end::NAMES);
    names.1 = format!("{}/{}", names.1, node.chars().filter(|c| !c.is_control()).take(64).collect::<String>());
    let kept = [Own::new(socket.into())?.leak(), Own::new(lease.into())?.leak()];
    let link = LINK.get_or_init(|| Link { address, id, secret, kept });
    Ok((link.connect(control, false)?, link.connect(call, false)?))
}

impl Link {
    /// Opens a connection with this name. `locks` [`MAKING`] for the socket's own making.
    fn connect(&self, name: ConnectionId, locks: bool) -> io::Result<Connection> {
        let family = if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let making = locks.then(|| lock(&MAKING));
        let own = Own::new(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)?;
        drop(making);
        // SAFETY: the descriptor is open as long as `own` is.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(own.as_raw_fd()) };
        prepare(&borrowed)?;
        connection::connect(own.as_raw_fd(), &SockaddrStorage::from(self.address))?;
        let keys = self.secret.keys(&name, Side::Home);
        let mut sealer = Sealer::new(keys.send).map_err(io::Error::other)?;
        let opener = Opener::new(keys.receive).map_err(io::Error::other)?;
        let bytes = opening(&self.id, &name, &mut sealer)?;
        let mut connection = Connection::local(own);
        connection.write_all(&bytes)?;
        Ok(connection.seal(sealer, opener))
    }
}

/// Opens so many connections more, and names them for the node.
///
/// # Errors
/// If the node cannot be reached.
pub(super) fn connect<const N: usize>() -> io::Result<([Connection; N], Vec<u8>)> {
    let link = LINK.get().ok_or(io::ErrorKind::NotConnected)?;
    let mut names: Vec<ConnectionId> = Vec::with_capacity(N);
    let mut connections = Vec::with_capacity(N);
    for _ in 0..N {
        let name = random()?;
        connections.push(link.connect(name, true)?);
        names.push(name);
    }
    let payload = postcard::to_stdvec(&names).map_err(io::Error::other)?;
    let connections = connections.try_into().map_err(|_| io::ErrorKind::Other)?;
    Ok((connections, payload))
}
