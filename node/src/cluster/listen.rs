//! Being called by other hosts.
//!
//! A stranger gets as far as the handshake and no further: nothing is read from it, or told to it, but what TLS itself
//! needs. Who may not have a certificate yet is served while an invitation is open, and only the protocol for joining.

use super::addresses;
use super::contact;
use super::guests::{self, Nodes};
use super::joining;
use super::link::{HANDSHAKE, Link, LinkError};
use super::membership::Membership;
use super::migrating;
use super::probe;
use super::tls::{BETWEEN_MEMBERS, JOINING};
use super::wire::message::{Greeting, Hello, MAX_MESSAGE, MAX_SHORT, Purpose, Reply, Request};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

/// Most handshakes at a time.
const MOST_HANDSHAKES: usize = 256;
/// Most handshakes at a time with one address, so that one stranger cannot keep others out.
const MOST_FROM_ONE: usize = 32;
/// Most connections with members.
const MOST_CONNECTIONS: usize = 4096;
/// Most hosts that join at a time.
const MOST_JOINING: usize = 4;
/// How long a control connection may stay without a request.
const IDLE: Duration = Duration::from_secs(60);

/// Who shakes hands at the moment.
#[derive(Debug, Default)]
struct Doorway(Mutex<HashMap<IpAddr, usize>>);

/// Someone who shakes hands.
struct Entering {
    doorway: Arc<Doorway>,
    from: IpAddr,
}

impl Doorway {
    fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Entering> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.values().sum::<usize>() >= MOST_HANDSHAKES || all.get(&from).is_some_and(|&n| n >= MOST_FROM_ONE) {
            return None;
        }
        *all.entry(from).or_default() += 1;
        Some(Entering { doorway: self.clone(), from })
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        let mut all = self.doorway.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.from);
            }
        }
    }
}

/// Makes the socket.
///
/// # Errors
/// As `bind(2)` and `listen(2)`.
pub fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves whoever comes, for ever.
pub async fn serve(membership: Arc<Membership>, listener: TcpListener, nodes: Arc<dyn Nodes>) {
    let doorway = Arc::new(Doorway::default());
    let members = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let joining = Arc::new(Semaphore::new(MOST_JOINING));
    loop {
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely out of descriptors: wait for some to be closed.
                tracing::warn!(%error, "cannot accept a host's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(entering) = doorway.enter(addresses::plain(from.ip())) else {
            tracing::warn!(%from, "too many hosts knock at once; one was turned away");
            continue;
        };
        let (membership, nodes) = (membership.clone(), nodes.clone());
        let (members, joining) = (members.clone(), joining.clone());
        tokio::spawn(async move {
            if let Err(error) = welcome(membership, nodes, socket, from, entering, members, joining).await {
                tracing::warn!(%from, %error, "a host was refused, or its connection failed");
            }
        });
    }
}

#[allow(clippy::too_many_arguments, reason = "what one who knocks meets")]
async fn welcome(
    membership: Arc<Membership>,
    nodes: Arc<dyn Nodes>,
    socket: TcpStream,
    from: SocketAddr,
    entering: Entering,
    members: Arc<Semaphore>,
    joining: Arc<Semaphore>,
) -> Result<(), LinkError> {
    let (stream, joins) = tokio::time::timeout(HANDSHAKE, shake_hands(&membership, socket))
        .await
        .map_err(|_| LinkError::Silent)?
        .map_err(LinkError::of)?;
    let full = |_| LinkError::Refused("too many connections at once".to_owned());
    if joins {
        let _place = joining.try_acquire_owned().map_err(full)?;
        // Whoever wants to join counts as knocking until that is done.
        let result = joining::admit(&membership, Link::new(stream, None)?, from).await;
        drop(entering);
        return result;
    }
    drop(entering);
    let link = Link::new(stream, Some(&membership.connections))?;
    let _place = members.try_acquire_owned().map_err(full)?;
    // The list may have changed while hands were shaken.
    if membership.has_excluded(link.peer()) {
        return Err(LinkError::RemovedHere);
    }
    converse(&membership, nodes, link).await
}

/// The TLS handshake; whether it was for joining.
async fn shake_hands(membership: &Membership, socket: TcpStream) -> io::Result<(TlsStream<TcpStream>, bool)> {
    socket.set_nodelay(true)?;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
    let wants_to_join =
        start.client_hello().alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == JOINING));
    // Without an open invitation it meets the members' door, which knows no such protocol.
    let joins = wants_to_join && membership.open_invitations() > 0;
    let tls = &membership.tls;
    let config = if joins { tls.accept_joining.clone() } else { tls.accept.clone() };
    let stream = start.into_stream(config).await?;
    let spoken = if joins { JOINING } else { BETWEEN_MEMBERS };
    if stream.get_ref().1.alpn_protocol() != Some(spoken) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not say which protocol it speaks"));
    }
    Ok((TlsStream::Server(stream), joins))
}

/// Serves a member's connection.
async fn converse(membership: &Arc<Membership>, nodes: Arc<dyn Nodes>, mut link: Link) -> Result<(), LinkError> {
    let Some(hello) = link.receive::<Hello>(MAX_SHORT, HANDSHAKE).await? else { return Ok(()) };
    let peer = link.peer();
    tracing::debug!(%peer, purpose = ?hello.purpose, "a member has called");
    if let Purpose::Guest(node) = &hello.purpose {
        let Some(home) = membership.roster().member(peer).map(|member| member.name.clone()) else {
            return link.send(&Greeting::Refused("it is no member".to_owned())).await;
        };
        let node = node.clone();
        let connected = blocking(move || nodes.connect(node.as_ref())).await?;
        let node = match connected {
            Ok(node) => node,
            Err(why) => return link.send(&Greeting::Refused(why)).await,
        };
        link.send(&Greeting::Welcome(membership.hello(hello.purpose))).await?;
        return guests::pass_on(link.hand_over()?, node, peer, &home).await;
    }
    if let Purpose::Migration(node) = &hello.purpose {
        let (find, node) = (nodes.clone(), node.clone());
        let found = blocking(move || {
            let (node, _) = find.find(node.as_ref())?;
            let stream = find.connect(Some(&node))?;
            Ok::<_, String>((node, stream))
        });
        let (node, stream) = match found.await? {
            Ok(found) => found,
            Err(why) => return link.send(&Greeting::Refused(why)).await,
        };
        link.send(&Greeting::Welcome(membership.hello(Purpose::Migration(Some(node))))).await?;
        return guests::pass_on_migration(link.hand_over()?, stream).await;
    }
    link.send(&Greeting::Welcome(membership.hello(hello.purpose.clone()))).await?;
    match hello.purpose {
        Purpose::Control => control(membership, nodes, link).await,
        Purpose::Probe => probe::answer(link.hand_over()?).await,
        Purpose::Guest(_) | Purpose::Migration(_) => Ok(()),
    }
}

/// Runs what may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LinkError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| LinkError::Broken(io::Error::other(error)))
}

async fn control(membership: &Arc<Membership>, nodes: Arc<dyn Nodes>, mut link: Link) -> Result<(), LinkError> {
    loop {
        let request = match link.receive::<Request>(MAX_MESSAGE, IDLE).await {
            Ok(Some(request)) => request,
            Ok(None) | Err(LinkError::Silent | LinkError::Closed) => return Ok(()),
            Err(error @ LinkError::Garbage(_)) => {
                let _ = link.send(&Reply::Refused(error.to_string())).await;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let reply = match request {
            Request::Ping => Reply::Done,
            Request::Members => Reply::Roster(membership.signed_roster()),
            Request::Update(roster) => match membership.adopt(roster) {
                Ok(_) => Reply::Done,
                Err(error) => Reply::Refused(error.to_string()),
            },
            Request::Moved(addresses) => match membership.set_addresses(link.peer(), addresses) {
                Ok(()) => {
                    // The caller need not wait until everybody knows.
                    let membership = membership.clone();
                    tokio::spawn(async move { contact::meet_all(&membership).await });
                    Reply::Done
                }
                Err(error) => Reply::Refused(error.to_string()),
            },
            Request::Load => {
                let nodes = nodes.clone();
                Reply::Load(blocking(move || nodes.load()).await?)
            }
            Request::Guests => match membership.roster().member(link.peer()).map(|member| member.name.clone()) {
                Some(home) => {
                    let nodes = nodes.clone();
                    Reply::Guests(blocking(move || nodes.guests(Some(&home))).await?)
                }
                None => Reply::Refused("it is no member".to_owned()),
            },
            Request::Migrate(order) => {
                let (news, mut told) = tokio::sync::mpsc::unbounded_channel();
                let (membership, nodes, home) = (membership.clone(), nodes.clone(), link.peer());
                // It goes on, whether or not somebody is told.
                let moved = tokio::spawn(async move { migrating::obey(&membership, nodes, home, order, news).await });
                while let Some(event) = told.recv().await {
                    link.send(&Reply::Migration(event)).await?;
                }
                match moved.await {
                    Ok(Ok(record)) => Reply::Migrated(record),
                    Ok(Err(why)) => Reply::Refused(why),
                    Err(error) => Reply::Refused(error.to_string()),
                }
            }
            Request::Leave => return farewell(membership, link).await,
        };
        link.send(&reply).await?;
    }
}

/// A member leaves: its connection is over when that is written down, so it is told before.
async fn farewell(membership: &Arc<Membership>, mut link: Link) -> Result<(), LinkError> {
    let peer = link.peer();
    let roster = membership.roster();
    let Some(member) = roster.member(peer) else {
        return link.send(&Reply::Refused("it is no member".to_owned())).await;
    };
    if membership.authority.is_none() {
        return link.send(&Reply::Refused("only the host that made the cluster can let it go".to_owned())).await;
    }
    let told = link.send(&Reply::Done).await;
    match membership.remove(member) {
        Ok(()) => tracing::info!(host = %member.name, "a host has left the cluster"),
        Err(error) => tracing::warn!(host = %member.name, %error, "a host that leaves cannot be removed"),
    }
    contact::meet_all(membership).await;
    told
}
