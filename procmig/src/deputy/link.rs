//! The link with a node of another host, which all deputies of a program share until their process migrates.

use super::connection::{self, Connection, Raw};
use super::descriptors::{self, Making, Own};
use super::threads::lock;
use super::{Remote, end, remaking};
use crate::vdso::distance::Clocks;
use crate::wire::control::{Attach, HostId, MAX_MESSAGE, VERSION};
use crate::wire::frame::{self, FrameError};
use crate::wire::lasting::{Lasting, is_loss};
use crate::wire::link::{
    ConnectionId, Greeting, LinkId, LinkReply, LinkRequest, LinkSecret, RemoteAttach, Side, opening, random,
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
    /// The node's host and the node, to be found again.
    pub host: HostId,
    /// See there.
    pub node: String,
    /// Names it.
    pub id: LinkId,
    /// Which of the connections of this name it is.
    pub way: u64,
    secret: LinkSecret,
    /// The link itself, and the connection with `skeind` that says that it is used: open as long as any of the
    /// deputies lives that have it.
    kept: [Own; 2],
}

/// The link with the node that has the process, if that is at another host. Locked over a fork.
pub(super) static LINK: Mutex<Option<Arc<Link>>> = Mutex::new(None);

pub(super) fn current() -> Option<Arc<Link>> {
    lock(&LINK).clone()
}

/// Whether the node is at another host.
pub(super) fn is_remote() -> bool {
    lock(&LINK).is_some()
}

/// What is to be watched: it becomes readable when the link ends. -1 where there is none, or where it has and another is
/// made.
pub(super) fn watched() -> RawFd {
    if remaking::is_active() || end::is_ending() {
        return -1;
    }
    lock(&LINK).as_ref().map_or(-1, |link| link.watched())
}

/// The own descriptors that a child keeps.
pub(super) fn kept() -> impl Iterator<Item = RawFd> {
    let link = current();
    link.into_iter().flat_map(|link| [link.kept[0].as_raw_fd(), link.kept[1].as_raw_fd()])
}

/// Asks the node to run a program; gives the control connection and the first call connection.
///
/// # Errors
/// A refusal is [`io::ErrorKind::Other`] with the node's sentence.
pub(super) fn start(remote: Remote, attach: Attach, making: &Making) -> Result<(Connection, Connection), FrameError> {
    let Remote { socket, keys, lease, host } = remote;
    let kept = [Own::new(socket.into(), making)?, Own::new(lease.into(), making)?];
    let (control, call) = (random()?, random()?);
    let request = LinkRequest::Attach(Box::new(RemoteAttach { attach, control, call, patience: remaking::patience() }));
    let (link, [control, call]) = open(kept, keys, host, &request, [control, call], Some(making))?;
    control.last();
    call.last();
    let names = &mut *lock(&end::NAMES);
    names.1 = format!("{}/{}", names.1, link.node.chars().filter(|c| !c.is_control()).take(64).collect::<String>());
    *lock(&LINK) = Some(Arc::new(link));
    Ok((control, call))
}

/// Opens a link for a process that is to arrive at the node; gives it and the control connection.
///
/// # Errors
/// As [`start`].
pub(super) fn open_for_arrival(
    kept: [Own; 2],
    keys: StreamKeys,
    host: HostId,
) -> Result<(Link, Connection), FrameError> {
    let control = random()?;
    let request = LinkRequest::Receive { version: VERSION, control, patience: remaking::patience() };
    open(kept, keys, host, &request, [control], None).map(|(link, [connection])| (link, connection))
}

/// Opens a link and connections with these names; with the right to make descriptors, or asking for it when it is needed.
fn open<const N: usize>(
    kept: [Own; 2],
    keys: StreamKeys,
    host: HostId,
    request: &LinkRequest,
    names: [ConnectionId; N],
    making: Option<&Making>,
) -> Result<(Link, [Connection; N]), FrameError> {
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
        LinkReply::Ready | LinkReply::Clocks | LinkReply::Resumed { .. } => return Err(wrong()),
    };
    frame::write_to(&mut stream, &Clocks::now())?;
    address.set_port(port);
    let link = Link { address, host, node, id, way: 0, secret, kept };
    // The node waits for them and for nothing else when it knows the clocks.
    let connections = names.iter().map(|name| link.connect(name, making)).collect::<io::Result<Vec<_>>>()?;
    let connections = connections.try_into().map_err(|_| wrong())?;
    loop {
        match frame::read_from(&mut stream, MAX_MESSAGE)? {
            LinkReply::Ready => break,
            LinkReply::Clocks => frame::write_to(&mut stream, &Clocks::now())?,
            LinkReply::Refused(why) => return Err(io::Error::other(why).into()),
            LinkReply::Open { .. } | LinkReply::Resumed { .. } => return Err(wrong()),
        }
    }
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    Ok((link, connections))
}

/// Why a lost link is not there again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResumeError {
    /// There is nothing to go on with.
    #[error("{0}")]
    Refused(String),
    /// It may be tried again.
    #[error("the node cannot be reached")]
    Frame(#[from] FrameError),
}

/// Has a link go on over another connection, which has these keys. The node may take so long to answer.
///
/// # Errors
/// [`ResumeError`]
pub(super) fn resume(old: &Link, kept: [Own; 2], keys: StreamKeys, patience: Duration) -> Result<Link, ResumeError> {
    // SAFETY: as in `open`.
    let socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(kept[0].as_raw_fd()) });
    let talk = || {
        prepare(&*socket)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        let proof = old.secret.proof(&LinkSecret::new(&keys, Side::Home));
        let mut stream = SealedStream::new(&*socket, keys).map_err(io::Error::other)?;
        frame::write_to(&mut stream, &LinkRequest::Resume { version: VERSION, link: old.id, proof })?;
        let reply = frame::read_from(&mut stream, MAX_MESSAGE)?;
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        Ok::<_, FrameError>((reply, socket.peer_addr()?))
    };
    match talk()? {
        (LinkReply::Resumed { port, way }, mut address) => {
            address.set_port(port);
            let (node, secret) = (old.node.clone(), old.secret.clone());
            Ok(Link { address, host: old.host, node, id: old.id, way, secret, kept })
        }
        (LinkReply::Refused(why), _) => Err(ResumeError::Refused(why)),
        _ => Err(FrameError::from(io::Error::from(io::ErrorKind::InvalidData)).into()),
    }
}

impl Link {
    /// What is to be watched: it becomes readable when the link ends.
    pub(super) fn watched(&self) -> RawFd {
        self.kept[0].as_raw_fd()
    }

    /// Opens a connection with this name.
    fn connect(&self, name: &ConnectionId, making: Option<&Making>) -> io::Result<Connection> {
        let patience = Duration::from_millis(PATIENCE as u64);
        let (socket, sealer, opener) = self.dial(name, &Greeting::new(self.way, None), making, patience)?;
        connection::reset_when_closed(socket.as_raw_fd(), false)?;
        let keeps = remaking::patience() > 0;
        let lasting = Arc::new(Lasting::new(socket, sealer, opener, self.way, keeps));
        remaking::enter(self.id, *name, &lasting);
        Ok(Connection::Remote(lasting))
    }

    /// Opens a socket to the node, and says what it is for.
    fn dial(
        &self,
        name: &ConnectionId,
        greeting: &Greeting,
        making: Option<&Making>,
        patience: Duration,
    ) -> io::Result<(Own, Sealer, Opener)> {
        let family = if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let open = || Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
        let own = match making {
            Some(making) => Own::make(making, open)?,
            None => Own::make(&descriptors::making(), open)?,
        };
        // SAFETY: the descriptor is open as long as `own` is.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(own.as_raw_fd()) };
        prepare(&borrowed)?;
        connection::reset_when_closed(own.as_raw_fd(), true)?;
        connection::set_patience(own.as_raw_fd(), Some(patience))?;
        connection::connect(own.as_raw_fd(), &SockaddrStorage::from(self.address))?;
        let keys = self.secret.keys(name, Side::Home);
        let mut sealer = Sealer::new(keys.send).map_err(io::Error::other)?;
        let opener = Opener::new(keys.receive).map_err(io::Error::other)?;
        let bytes = opening(&self.id, name, &mut sealer, greeting)?;
        Raw(own.as_raw_fd()).write_all(&bytes)?;
        connection::set_patience(own.as_raw_fd(), None)?;
        connection::tell_if_slow(own.as_raw_fd())?;
        Ok((own, sealer, opener))
    }

    /// Opens a socket over which the connection `name` goes on, of which so many bytes have been received.
    ///
    /// # Errors
    /// If the node cannot be reached in this time; [`io::ErrorKind::NotFound`] if the connection has ended there.
    pub(super) fn redial(
        &self,
        name: &ConnectionId,
        received: u64,
        patience: Duration,
    ) -> io::Result<(Own, Sealer, Opener)> {
        let greeting = Greeting::new(self.way, Some((*name, received)));
        let (own, sealer, mut opener) = self.dial(&random()?, &greeting, None, patience)?;
        connection::set_patience(own.as_raw_fd(), Some(patience))?;
        if !opener.open_one(&mut Raw(own.as_raw_fd()))? {
            return Err(io::ErrorKind::NotFound.into());
        }
        connection::set_patience(own.as_raw_fd(), None)?;
        connection::tell_if_slow(own.as_raw_fd())?;
        connection::reset_when_closed(own.as_raw_fd(), false)?;
        Ok((own, sealer, opener))
    }

    /// Opens another connection, and names it.
    ///
    /// # Errors
    /// If the node cannot be reached.
    pub(super) fn connect_anew(&self) -> io::Result<(Connection, ConnectionId)> {
        let name = random()?;
        Ok((self.connect(&name, None)?, name))
    }
}

/// Opens so many connections more with the node that has the process, and names them for it; with the link that they are
/// of. If the network has lost that, another is waited for.
///
/// # Errors
/// If the node cannot be reached.
pub(super) fn connect<const N: usize>() -> io::Result<([Connection; N], Vec<u8>, Arc<Link>)> {
    let (link, made) = loop {
        let link = current().ok_or(io::ErrorKind::NotConnected)?;
        match (0..N).map(|_| link.connect_anew()).collect::<io::Result<Vec<_>>>() {
            Ok(made) => break (link, made),
            Err(error) if remaking::patience() > 0 && is_transient(&error) => remaking::wait(),
            Err(error) => return Err(error),
        }
    };
    let (connections, names): (Vec<_>, Vec<ConnectionId>) = made.into_iter().unzip();
    connections.iter().for_each(Connection::last);
    let payload = postcard::to_stdvec(&names).map_err(io::Error::other)?;
    let connections = connections.try_into().map_err(|_| io::ErrorKind::Other)?;
    Ok((connections, payload, link))
}

/// Whether it may be different soon.
fn is_transient(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock, io::ErrorKind::ConnectionRefused];
    is_loss(error) || kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::EPIPE)
}
