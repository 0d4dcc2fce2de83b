//! The link of a program that runs on another host than its home, and the connections that belong to it.
//!
//! The link is the connection that the two `skeind` have made and handed over: its sealed frames are the deputy's
//! [`LinkRequest`], the node's [`LinkReply`], and what home's [`Clocks`](crate::vdso::distance::Clocks) show, at once
//! when the reply has come; then as often as the node asks for that again, until it says that it is ready; and then
//! nothing. It stays open as long as any process of the
//! program's lives, and when it ends, whoever ended it, all of them are lost.
//!
//! Every other connection the deputies open themselves, to a port of the node's. No handshake is needed, since both
//! sides have a secret of the link: a connection begins with the link's identifier and one of its own, a random one,
//! and is sealed with keys derived from the secret and that identifier. Its first record is a greeting, which only
//! who has the secret can seal; then it is used as a Unix stream would be. The node takes each identifier once, when the
//! deputy has named it on a connection that is known already, so nothing that is repeated is taken for new.

use super::control::Attach;
use super::sealed::{Cipher, DirectionKeys, Sealer, StreamKeys};
use ring::hkdf;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// Names a link; no secret.
pub type LinkId = [u8; 16];
/// Names a connection of a link; no secret.
pub type ConnectionId = [u8; 16];

/// Most bytes of the first record of a connection, which holds a [`Greeting`].
pub const MAX_GREETING: usize = 64;
/// What it begins with.
const GREETING: [u8; 16] = *b"skein connection";
/// Bytes of a connection before its first record.
pub const PREFIX: usize = 32;

/// Sent by the deputy, first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkRequest {
    /// A program is to start.
    Attach(Box<RemoteAttach>),
    /// A link that was lost is to go on with this connection.
    Resume {
        /// [`VERSION`](super::control::VERSION)
        version: u32,
        /// The link.
        link: LinkId,
        /// Shows that the asker knows its secret: [`LinkSecret::proof`] of this connection's.
        proof: [u8; 32],
    },
    /// A process of the deputy's is to arrive from another node.
    Receive {
        /// [`VERSION`](super::control::VERSION)
        version: u32,
        /// Names the control connection, which the deputy opens when it has the reply, and on which it
        /// [adopts](super::control::NodeRequest::Adopt) the process.
        control: ConnectionId,
        /// As [`RemoteAttach::patience`].
        patience: u32,
    },
}

/// What program is to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteAttach {
    /// What to run.
    pub attach: Attach,
    /// Names the control connection, which the deputy opens when it has the reply.
    pub control: ConnectionId,
    /// Names the first thread's call connection.
    pub call: ConnectionId,
    /// For how many seconds a lost link is waited for.
    pub patience: u32,
}

/// The node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkReply {
    /// It takes no process; a sentence says why.
    Refused(String),
    /// It waits for the connections.
    Open {
        /// Of the link.
        link: LinkId,
        /// TCP port, at the address to which the link goes.
        port: u16,
        /// The node's name.
        node: String,
    },
    /// To [`LinkRequest::Resume`].
    Resumed {
        /// TCP port, as in [`Open`](Self::Open).
        port: u16,
        /// Which of the link's connections this is: the first was 0.
        way: u64,
    },
    /// To tell again what the clocks show: the shorter an answer takes the better they are known.
    Clocks,
    /// The clocks are known.
    Ready,
}

/// Which side of a link this is, or of a migration whose memory comes over several connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// That of the deputies, or of the source: it opens connections.
    Home,
    /// The node's, or the target's.
    Node,
}

/// What both sides of a link know and nobody else.
#[derive(Clone)]
pub struct LinkSecret {
    cipher: Cipher,
    secret: [u8; 32],
}

impl fmt::Debug for LinkSecret {
    /// Shows nothing of the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkSecret").field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

/// A length that HKDF should give.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive(salt: &[u8], secret: &[u8], about: &[&[u8]], to: &mut [u8]) {
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let filled = extracted.expand(about, Length(to.len())).and_then(|output| output.fill(to));
    filled.expect("so little can be derived");
}

impl LinkSecret {
    /// From the keys of the link as `side` has them.
    pub fn new(keys: &StreamKeys, side: Side) -> Self {
        let (from_home, from_node) = match side {
            Side::Home => (&keys.send, &keys.receive),
            Side::Node => (&keys.receive, &keys.send),
        };
        let all = [&from_home.key[..], &from_home.iv, &from_node.key, &from_node.iv].concat();
        let mut secret = [0; 32];
        derive(b"skein link", &all, &[b"connections"], &mut secret);
        Self { cipher: from_home.cipher, secret }
    }

    /// What nobody can know who does not know this secret, of the session that another one is from.
    pub fn proof(&self, session: &Self) -> [u8; 32] {
        let mut proof = [0; 32];
        derive(b"skein resume", &self.secret, &[&session.secret], &mut proof);
        proof
    }

    /// Whether this is that.
    pub fn proves(&self, session: &Self, proof: &[u8; 32]) -> bool {
        // In a time that does not tell how much is right.
        self.proof(session).iter().zip(proof).fold(0, |wrong, (right, given)| wrong | (right ^ given)) == 0
    }

    /// The keys of a connection, for `side`.
    pub fn keys(&self, connection: &ConnectionId, side: Side) -> StreamKeys {
        let direction = |whose: &[u8]| {
            let length = self.cipher.key_length();
            let mut derived = vec![0; length + 12];
            derive(connection, &self.secret, &[whose], &mut derived);
            let mut iv = [0; 12];
            iv.copy_from_slice(&derived[length..]);
            derived.truncate(length);
            DirectionKeys { cipher: self.cipher, key: derived, iv, number: 0 }
        };
        let (home, node) = (direction(b"from home"), direction(b"from the node"));
        match side {
            Side::Home => StreamKeys { send: home, receive: node },
            Side::Node => StreamKeys { send: node, receive: home },
        }
    }
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    magic: [u8; 16],
    /// To which of the link's connections it belongs.
    pub way: u64,
    /// The connection that it goes on with, if that has lost its socket, and how many bytes had come over it.
    pub resumes: Option<(ConnectionId, u64)>,
}

impl Greeting {
    /// With this.
    pub fn new(way: u64, resumes: Option<(ConnectionId, u64)>) -> Self {
        Self { magic: GREETING, way, resumes }
    }

    /// What a record holds, if it is one.
    pub fn read(record: &[u8]) -> Option<Self> {
        let (greeting, rest) = postcard::take_from_bytes::<Self>(record).ok()?;
        (greeting.magic == GREETING && rest.is_empty()).then_some(greeting)
    }
}

/// The first bytes of a connection, to be sent in one write, made with the sealer that goes on with it.
///
/// # Errors
/// If it has sealed too much already.
pub fn opening(
    link: &LinkId,
    connection: &ConnectionId,
    sealer: &mut Sealer,
    greeting: &Greeting,
) -> io::Result<Vec<u8>> {
    let mut bytes = [&link[..], connection].concat();
    sealer.seal_to(&postcard::to_stdvec(greeting).map_err(io::Error::other)?, &mut bytes)?;
    Ok(bytes)
}

/// Bytes that nobody can guess.
///
/// # Errors
/// As `getrandom(2)`.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut done = 0;
    while done < N {
        // SAFETY: the kernel writes at most what is left of the buffer.
        let got = unsafe { libc::getrandom(bytes[done..].as_mut_ptr().cast(), N - done, 0) };
        match nix::errno::Errno::result(got) {
            Ok(count) => done += count as usize,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::sealed::Opener;
    use super::*;

    fn session() -> (StreamKeys, StreamKeys) {
        let direction =
            |byte| DirectionKeys { cipher: Cipher::Aes128Gcm, key: vec![byte; 16], iv: [byte; 12], number: 3 };
        let (one, other) = (direction(1), direction(2));
        (StreamKeys { send: one.clone(), receive: other.clone() }, StreamKeys { send: other, receive: one })
    }

    #[test]
    fn both_sides_have_the_same_keys_and_each_connection_its_own() {
        let (home, node) = session();
        let (home, node) = (LinkSecret::new(&home, Side::Home), LinkSecret::new(&node, Side::Node));
        let here = home.keys(&[7; 16], Side::Home);
        let there = node.keys(&[7; 16], Side::Node);
        assert_eq!((&here.send, &here.receive), (&there.receive, &there.send));
        assert_ne!(here.send.key, here.receive.key);
        assert_ne!(here.send.key, home.keys(&[8; 16], Side::Home).send.key);
        let mut sealer = Sealer::new(here.send).unwrap();
        let said = Greeting::new(u64::MAX, Some(([6; 16], u64::MAX)));
        let bytes = opening(&[5; 16], &[7; 16], &mut sealer, &said).unwrap();
        assert_eq!(bytes[..PREFIX], [[5; 16], [7; 16]].concat());
        let open = |keys: StreamKeys| {
            let mut greeting = [0; MAX_GREETING];
            let count = Opener::new(keys.receive).unwrap().receive(&mut &bytes[PREFIX..], &mut greeting)?;
            Ok::<_, io::Error>(greeting[..count].to_vec())
        };
        assert_eq!(Greeting::read(&open(there).unwrap()), Some(said));
        assert!(open(node.keys(&[8; 16], Side::Node)).is_err());
        assert!(open(LinkSecret::new(&session().0, Side::Node).keys(&[7; 16], Side::Node)).is_err());
    }
}
