//! A connection with a host of the cluster: TLS with both sides authenticated, and frames on it.

use super::connections::{Connections, Guard};
use super::frame::{self, FrameError};
use super::keys;
use super::tls;
use super::wire::id::KeyId;
use super::wire::message::{self, MAX_MESSAGE};
use procmig::wire::sealed::{Cipher, DirectionKeys, StreamKeys};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, ConnectionTrafficSecrets};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

/// How long a connection and its handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a message may take, either way.
pub const MESSAGE: Duration = Duration::from_secs(10);

/// Why a host cannot be spoken with.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network says no.
    #[error("cannot be reached at {address}: {why}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// No address is known.
    #[error("no address of it is known")]
    NoAddress,
    /// It does not answer in time.
    #[error("does not answer in time")]
    Silent,
    /// It is of another cluster, or this host is to it.
    #[error("belongs to another cluster")]
    OtherCluster,
    /// Another host of the cluster has its address.
    #[error("another host listens at {address}")]
    OtherHost {
        /// Where.
        address: SocketAddr,
    },
    /// This host has been removed there.
    #[error("this host was removed from the cluster; forget it with: skein cluster leave")]
    RemovedThere,
    /// It has been removed here.
    #[error("was removed from the cluster")]
    RemovedHere,
    /// It does not speak this protocol now.
    #[error("does not serve this now")]
    NotServed,
    /// TLS failed in another way.
    #[error("the encrypted connection failed: {0}")]
    Tls(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// It ended where a message was due.
    #[error("closed the connection")]
    Closed,
    /// It sent what is no message.
    #[error("sent {0}")]
    Garbage(String),
    /// It said why not.
    #[error("{0}")]
    Refused(String),
}

impl LinkError {
    /// What a failure of the stream means.
    pub fn of(error: io::Error) -> Self {
        use rustls::Error;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(AlertDescription::CertificateRevoked)) => Self::RemovedThere,
            Some(Error::AlertReceived(AlertDescription::UnknownCA)) => Self::OtherCluster,
            Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => Self::NotServed,
            Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Self::OtherCluster,
            Some(Error::InvalidCertificate(CertificateError::Revoked)) => Self::RemovedHere,
            Some(other) => Self::Tls(other.to_string()),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            // What a blocking socket says when its time is over.
            None if error.kind() == io::ErrorKind::WouldBlock => Self::Silent,
            None => Self::Broken(error),
        }
    }
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::of(error),
            long @ FrameError::TooLong { .. } => Self::Garbage(long.to_string()),
        }
    }
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct Link {
    stream: TlsStream<TcpStream>,
    peer: KeyId,
    /// Keeps the connection among those that are cut with their host.
    guard: Option<Guard>,
}

/// A connection that can be given to another process or thread: what it takes to go on with it.
#[derive(Debug)]
pub struct Handed {
    /// The socket, which blocks.
    pub socket: std::net::TcpStream,
    /// The session's keys: worth nothing in any other connection.
    pub keys: StreamKeys,
    /// Must be kept as long as the connection is used, so that it is cut if its host is removed.
    pub _guard: Option<Guard>,
}

impl Link {
    /// Takes over a stream whose handshake is done. `None` as table where the peer is no member yet.
    ///
    /// # Errors
    /// If the peer has shown no certificate though it should have, or no descriptor is left.
    pub fn new(stream: TlsStream<TcpStream>, connections: Option<&Arc<Connections>>) -> Result<Self, LinkError> {
        let (socket, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let peer = match certificate.map(|certificate| keys::public_key(certificate)) {
            Some(Ok(public)) => keys::id_of(&public),
            None if connections.is_none() => KeyId([0; 16]),
            _ => return Err(LinkError::Tls("no certificate was shown".to_owned())),
        };
        let guard = connections.map(|table| table.enter(peer, socket)).transpose().map_err(LinkError::Broken)?;
        Ok(Self { stream, peer, guard })
    }

    /// The host at the other end.
    pub fn peer(&self) -> KeyId {
        self.peer
    }

    /// The stream itself.
    pub fn stream(&self) -> &TlsStream<TcpStream> {
        &self.stream
    }

    /// Takes the connection out of TLS: what follows are the sealed records of `procmig::wire::sealed`.
    ///
    /// Both sides do this right after the welcome, and the opener speaks first: so nothing of the peer's can be here
    /// yet, half read.
    ///
    /// # Errors
    /// If something has come all the same, or the session's cipher is unknown.
    pub fn hand_over(self) -> Result<Handed, LinkError> {
        let failed = |error: rustls::Error| LinkError::Tls(error.to_string());
        let (socket, mut session) = match self.stream {
            TlsStream::Client(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, rustls::Connection::from(session))
            }
            TlsStream::Server(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, rustls::Connection::from(session))
            }
        };
        let state = session.process_new_packets().map_err(failed)?;
        if state.plaintext_bytes_to_read() > 0 || state.tls_bytes_to_write() > 0 {
            return Err(LinkError::Garbage("bytes before it was its turn".to_owned()));
        }
        let secrets = session.dangerous_extract_secrets().map_err(failed)?;
        let keys = StreamKeys { send: direction(secrets.tx)?, receive: direction(secrets.rx)? };
        let socket = socket.into_std().map_err(LinkError::Broken)?;
        socket.set_nonblocking(false).map_err(LinkError::Broken)?;
        Ok(Handed { socket, keys, _guard: self.guard })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        let bytes = message::encode(message).map_err(|error| LinkError::Garbage(error.to_string()))?;
        match tokio::time::timeout(MESSAGE, frame::write(&mut self.stream, &bytes)).await {
            Ok(result) => result.map_err(LinkError::of),
            Err(_) => Err(LinkError::Silent),
        }
    }

    /// Sends bytes that may be no message.
    #[cfg(test)]
    pub async fn send_raw(&mut self, bytes: &[u8]) {
        frame::write(&mut self.stream, bytes).await.expect("the connection is open");
    }

    /// Receives a message of at most `cap` bytes; `None` if the peer has closed instead.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn receive<T: DeserializeOwned>(
        &mut self,
        cap: usize,
        patience: Duration,
    ) -> Result<Option<T>, LinkError> {
        let read = tokio::time::timeout(patience, frame::read(&mut self.stream, cap));
        match read.await.map_err(|_| LinkError::Silent)?? {
            None => Ok(None),
            Some(body) => message::decode(&body).map(Some).map_err(LinkError::Garbage),
        }
    }

    /// Sends a question and receives the answer.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(&mut self, question: &Q) -> Result<A, LinkError> {
        // A peer that has refused this side's certificate says so in an alert, which a failed write must not hide.
        let sent = self.send(question).await;
        match self.receive(MAX_MESSAGE, MESSAGE).await {
            Ok(Some(answer)) => sent.map(|()| answer),
            Ok(None) => Err(LinkError::Closed),
            Err(error) => Err(error),
        }
    }
}

fn direction((number, secrets): (u64, ConnectionTrafficSecrets)) -> Result<DirectionKeys, LinkError> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    let (cipher, key, iv) = match secrets {
        Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
        Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
        Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20Poly1305, key, iv),
        _ => return Err(LinkError::Tls("its cipher is unknown here".to_owned())),
    };
    let iv = iv.as_ref().try_into().map_err(|_| LinkError::Tls("its cipher is unknown here".to_owned()))?;
    Ok(DirectionKeys { cipher, key: key.as_ref().to_vec(), iv, number })
}

/// Opens TLS to the first of `addresses` that answers as `name`. What the others said is told by the error of the one
/// that came furthest.
///
/// # Errors
/// [`LinkError`]
pub async fn open(
    addresses: &[SocketAddr],
    name: &ServerName<'static>,
    config: &Arc<ClientConfig>,
    connections: Option<&Arc<Connections>>,
) -> Result<(Link, SocketAddr), LinkError> {
    let mut worst = LinkError::NoAddress;
    for &address in addresses {
        let attempt = tokio::time::timeout(HANDSHAKE, open_one(address, name.clone(), config.clone(), connections));
        let error = match attempt.await {
            Ok(Ok(link)) => return Ok((link, address)),
            Ok(Err(error)) => error,
            Err(_) => LinkError::Unreachable { address, why: "no answer".to_owned() },
        };
        let came_far = |error: &LinkError| {
            !matches!(error, LinkError::NoAddress | LinkError::Unreachable { .. } | LinkError::OtherHost { .. })
        };
        if matches!(worst, LinkError::NoAddress) || (came_far(&error) && !came_far(&worst)) {
            worst = error;
        }
    }
    Err(worst)
}

async fn open_one(
    address: SocketAddr,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    connections: Option<&Arc<Connections>>,
) -> Result<Link, LinkError> {
    let unreachable = |error: io::Error| LinkError::Unreachable { address, why: plain(&error) };
    let socket = TcpStream::connect(address).await.map_err(unreachable)?;
    socket.set_nodelay(true).map_err(unreachable)?;
    let stream = TlsConnector::from(config).connect(name, socket).await.map_err(|error| {
        let wrong_name = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some_and(|error| {
            matches!(
                error,
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                )
            )
        });
        if wrong_name { LinkError::OtherHost { address } } else { LinkError::of(error) }
    })?;
    Link::new(TlsStream::Client(stream), connections)
}

/// The kernel's sentence, without the number of the error.
pub fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// What both sides of a joining connection sign and verify.
///
/// # Errors
/// [`LinkError::Tls`]
pub fn join_challenge(link: &Link) -> Result<Vec<u8>, LinkError> {
    let challenge = match link.stream() {
        TlsStream::Client(stream) => tls::join_challenge(stream.get_ref().1),
        TlsStream::Server(stream) => tls::join_challenge(stream.get_ref().1),
    };
    challenge.map_err(|error| LinkError::Tls(error.to_string()))
}
