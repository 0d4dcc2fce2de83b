//! Connections that come over the network: for [links](super::links), and for processes that come from another host over
//! several streams.
//!
//! The node listens on a port of each address at which it was reached, from the first of these on. Who connects and has
//! none of their secrets gets nothing, not a byte.

use super::links::LinkError;
use super::{Kernel, lock};
use crate::wire::link::{ConnectionId, Greeting, LinkId, LinkSecret, MAX_GREETING, PREFIX, Side};
use crate::wire::sealed::{Opener, Sealer};
use crate::wire::stream::{Sealed, prepare};
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a connection may take until it has shown that it knows a secret.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// Most connections that have not shown it yet, in all and from one address.
const MOST_STRANGERS: usize = 256;
const MOST_FROM_ONE: usize = 64;

#[derive(Debug, Default)]
struct State {
    ports: HashMap<IpAddr, u16>,
    strangers: HashMap<IpAddr, usize>,
}

/// The ports of a node, and who has come to them.
#[derive(Debug, Default)]
pub struct Doors(Mutex<State>);

impl Doors {
    fn admit(&self, from: IpAddr) -> Option<Stranger<'_>> {
        let strangers = &mut lock(&self.0).strangers;
        let count = strangers.values().sum::<usize>();
        if count >= MOST_STRANGERS || strangers.get(&from).is_some_and(|&count| count >= MOST_FROM_ONE) {
            return None;
        }
        *strangers.entry(from).or_default() += 1;
        Some(Stranger(self, from))
    }
}

/// A socket that is read until a moment and no longer, however slowly its bytes drip.
struct Until<'a>(&'a TcpStream, Instant);

impl Read for Until<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let left = self.1.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.0.set_read_timeout(Some(left))?;
        self.0.read(room)
    }
}

/// Someone who has not shown yet that it knows a link's secret.
struct Stranger<'a>(&'a Doors, IpAddr);

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        let strangers = &mut lock(&self.0.0).strangers;
        if let Some(count) = strangers.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                strangers.remove(&self.1);
            }
        }
    }
}

/// A connection whose opener knows the secret.
pub(super) struct Greeted {
    pub(super) socket: TcpStream,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) greeting: Greeting,
}

impl Greeted {
    /// Reads the greeting.
    fn read(socket: TcpStream, secret: &LinkSecret, name: &ConnectionId, end: Instant) -> Result<Self, LinkError> {
        let keys = secret.keys(name, Side::Node);
        let mut opener = Opener::new(keys.receive)?;
        let mut greeting = [0; MAX_GREETING];
        let count = opener.receive(&mut Until(&socket, end), &mut greeting)?;
        let greeting = Greeting::read(&greeting[..count]).ok_or(LinkError::NotCome)?;
        socket.set_read_timeout(None)?;
        Ok(Self { socket, sealer: Sealer::new(keys.send)?, opener, greeting })
    }
}

impl Kernel {
    /// The port at which other hosts reach the node by one of this host's addresses.
    pub(crate) fn port_at(self: &Arc<Self>, address: IpAddr) -> io::Result<u16> {
        let ports = &mut lock(&self.doors.0).ports;
        if let Some(&port) = ports.get(&address) {
            return Ok(port);
        }
        let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
        let port = listener.local_addr()?.port();
        let kernel = self.clone();
        std::thread::Builder::new().name("listen".into()).stack_size(256 << 10).spawn(move || {
            kernel.listen(&listener);
        })?;
        ports.insert(address, port);
        Ok(port)
    }

    /// Reads what a connection begins with, and gives it to whom it is for.
    fn greet(self: &Arc<Self>, socket: TcpStream, stranger: Stranger<'_>) -> Result<(), LinkError> {
        prepare(&socket)?;
        let end = Instant::now() + GREETING_TIME;
        let mut prefix = [0; PREFIX];
        Until(&socket, end).read_exact(&mut prefix)?;
        let (id, name) = prefix.split_at(PREFIX / 2);
        let (Ok(id), Ok(name)) = (LinkId::try_from(id), ConnectionId::try_from(name)) else {
            return Err(LinkError::NotCome);
        };
        if let Some(link) = self.links.find(&id) {
            return link.keep(name, Greeted::read(socket, &link.secret, &name, end)?);
        }
        let gathering = self.gatherings.find(&id).ok_or(LinkError::NotCome)?;
        let secret = gathering.secret().ok_or(LinkError::NotCome)?;
        let Greeted { socket, sealer, opener, greeting } = Greeted::read(socket, secret, &name, end)?;
        // It may take as long as it likes now.
        drop(stranger);
        let number = u32::try_from(greeting.way).map_err(|_| LinkError::NotCome)?;
        Ok(gathering.serve(self, &mut Sealed::new(socket, sealer, opener).into(), number)?)
    }

    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let (socket, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection from another host could not be accepted");
                    // Mostly descriptors: others will be closed.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            let kernel = self.clone();
            let spawned = std::thread::Builder::new().name("greet".into()).stack_size(256 << 10).spawn(move || {
                let Some(stranger) = kernel.doors.admit(from.ip()) else { return };
                if let Err(error) = kernel.greet(socket, stranger) {
                    tracing::warn!(%from, error = %crate::chain(&error), "a connection from another host was refused");
                }
            });
            if let Err(error) = spawned {
                tracing::warn!(%error, "no thread for a connection");
            }
        }
    }
}
