//! What hosts say to each other.
//!
//! Each message is a frame: `u32` length, then postcard: the protocol's [`VERSION`], then the message. On a
//! connection between members, the opener's first frame is a [`Hello`], which names the purpose; what follows
//! depends on that. For [`Purpose::Control`] it is a [`Request`] at a time, each answered by a [`Reply`].

use super::id::KeyId;
use super::label::Label;
use super::roster::SignedRoster;
use crate::name::NodeName;
use procmig::migration::record::{Event, Record};
use procmig::wire::control::{PostCopy, ProcessStatus};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::net::SocketAddr;

/// Version of these protocols. A refusal is the first variant in each version, so that any peer can read it.
pub const VERSION: u32 = 2;
/// Cap on a [`Hello`], a [`JoinRequest`], and what else is short.
pub const MAX_SHORT: usize = 16 << 10;
/// Cap on a frame that may hold a roster.
pub const MAX_MESSAGE: usize = super::roster::MAX_ROSTER + (64 << 10);

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Requests and replies between two `skeind`.
    Control,
    /// A sealed stream, served by a thread of its own, on which the opener measures the connection (`probe`).
    Probe,
    /// A program of the opener's host is to run in a node of the other's: this one, or which it likes. A sealed stream
    /// between the deputy and the node ([`procmig::wire::link`]).
    Guest(Option<NodeName>),
    /// A process is to migrate from a node of the opener's host to one of the other's: this one, or which it likes; the
    /// welcome names it. A sealed stream between the two nodes ([`procmig::migration::wire`]).
    Migration(Option<NodeName>),
}

/// The first frame of the opener, and of the accepter's [`Greeting::Welcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Version of the sender's skein.
    pub skein: String,
    /// Serial number of the sender's roster.
    pub serial: u64,
    /// CPU features of the cluster's level that the sender's machine lacks.
    pub lacks: Vec<String>,
}

/// Answers a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// The connection is of no use; a sentence says why.
    Refused(String),
    /// It is open.
    Welcome(Hello),
}

/// Asked on a control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Reply::Done`].
    Ping,
    /// Answered by [`Reply::Roster`].
    Members,
    /// A newer roster. Answered by [`Reply::Done`].
    Update(SignedRoster),
    /// The sender leaves the cluster. Asked of the authority, answered by [`Reply::Done`].
    Leave,
    /// The sender is reached at other addresses than the roster says. Asked of the authority, answered by
    /// [`Reply::Done`].
    Moved(Vec<SocketAddr>),
    /// Answered by [`Reply::Load`].
    Load,
    /// What runs for the sender's host. Answered by [`Reply::Guests`].
    Guests,
    /// Have a process of the sender's host, which runs here, migrate. Answered by [`Reply::Migration`]s, and by
    /// [`Reply::Migrated`] or [`Reply::Refused`].
    Migrate(Migrate),
}

/// Where a process is to migrate, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    /// At its home.
    pub pid: i32,
    /// The target's host.
    pub to: KeyId,
    /// The target; else which its host likes.
    pub node: Option<NodeName>,
    /// How it is to go.
    pub manner: Manner,
}

/// How a process is to migrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    /// How long it may stand still, in microseconds.
    pub max_freeze_micros: u64,
    /// Bytes per second that may be sent while it runs.
    pub bandwidth: Option<u64>,
    /// Which memory may follow when it runs at the target.
    pub post_copy: PostCopy,
    /// Most streams over which memory is sent while it runs; else as many as the source's processors make use of.
    pub streams: Option<u32>,
}

/// How busy a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Threads that run or could, in thousandths of its processors.
    pub per_mille: u32,
    /// Its nodes.
    pub nodes: Vec<NodeName>,
}

/// Answers a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It was not done; a sentence says why.
    Refused(String),
    /// It was done.
    Done,
    /// To [`Request::Members`].
    Roster(SignedRoster),
    /// To [`Request::Load`].
    Load(Load),
    /// To [`Request::Guests`].
    Guests(Vec<(NodeName, ProcessStatus)>),
    /// How a migration goes on.
    Migration(Event),
    /// The process has gone where it should.
    Migrated(Record),
}

/// Asked by a host that wants to become a member, on a connection on which only the cluster has shown a
/// certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Which invitation.
    pub invitation: KeyId,
    /// What only its bearer knows.
    pub secret: [u8; 32],
    /// The host's public key (Ed25519).
    pub public: [u8; 32],
    /// The private key's signature of this connection's exported secret: the key is the sender's.
    pub proof: Vec<u8>,
    /// The name that it would have.
    pub name: Label,
    /// The name was asked for; else it may get a number.
    pub exactly: bool,
    /// The port that it listens on.
    pub port: u16,
    /// Addresses at which it may be reached.
    pub addresses: Vec<SocketAddr>,
}

/// Answers a [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    /// The host does not become a member; a sentence says why and what to do.
    Refused(String),
    /// It is a member.
    Joined {
        /// Its certificate (DER).
        certificate: Vec<u8>,
        /// The cluster's roster, with it.
        roster: SignedRoster,
    },
}

/// Encodes a message with its version and its length before it.
///
/// # Errors
/// Only if serialization fails.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, postcard::Error> {
    let mut frame = postcard::to_extend(&(VERSION, message), vec![0; 4])?;
    let length = u32::try_from(frame.len() - 4).map_err(|_| postcard::Error::SerializeBufferFull)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Decodes the body of a frame.
///
/// # Errors
/// A sentence for the peer.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let (version, rest) =
        postcard::take_from_bytes::<u32>(body).map_err(|_| "a message without a version".to_owned())?;
    if version != VERSION {
        return Err(format!(
            "this host speaks version {VERSION} of the protocol between hosts and the other version {version}; \
             install the same skein on both"
        ));
    }
    match postcard::take_from_bytes(rest) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err("a message with bytes after its end".to_owned()),
        Err(error) => Err(format!("a message that cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_hello_do_not_change() {
        let hello = Hello { purpose: Purpose::Control, skein: "1.0".to_owned(), serial: 7, lacks: Vec::new() };
        let frame = encode(&hello).unwrap();
        assert_eq!(frame, [8, 0, 0, 0, 2, 0, 3, b'1', b'.', b'0', 7, 0]);
        assert_eq!(decode::<Hello>(&frame[4..]), Ok(hello));
        assert_eq!(encode(&Request::Ping).unwrap(), [2, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn garbage_is_refused() {
        for body in [&b""[..], &[2], &[2, 200], &[2, 0, 0], &[1, 0], &[255; 64]] {
            assert!(decode::<Request>(body).is_err(), "{body:?}");
        }
        // A roster of 4 GiB is claimed.
        assert!(decode::<Request>(&[2, 2, 255, 255, 255, 255, 15, 0]).is_err());
    }
}
