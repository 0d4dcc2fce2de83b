//! What commands and `skeind` say to each other over the control socket.
//!
//! Each message is a frame (`u32` length, then postcard): the protocol's [`VERSION`], then a
//! [`HostRequest`] or a [`HostReply`]. A connection carries any number of requests, each answered
//! before the next is read. Only the user can reach the socket, and still all of it is read as
//! hostile input.

use crate::cluster::wire::control::{ClusterReply, ClusterRequest};
use crate::cluster::wire::id::KeyId;
use crate::cluster::wire::label::Label;
use crate::cluster::wire::message::Manner;
use crate::name::NodeName;
use procmig::migration::record::{Event, Record};
use procmig::wire::control::ProcessStatus;
use procmig::wire::frame::FrameError;
use procmig::wire::sealed::StreamKeys;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of this protocol. [`HostReply::Refused`] is the first variant in each version, so that
/// any peer can read a refusal.
pub const VERSION: u32 = 3;
/// Cap on the frame of a request.
pub const MAX_REQUEST: usize = 64 << 10;
/// Cap on the frame of a reply.
pub const MAX_REPLY: usize = 1 << 20;

/// Asked of `skeind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRequest {
    /// Answered by [`HostReply::Status`].
    Status,
    /// Start a node. Answered by [`HostReply::Node`].
    Launch {
        /// Its name; else the first free `node-N`.
        name: Option<NodeName>,
        /// Guest RAM in bytes; else a default.
        memory: Option<u64>,
    },
    /// The node on which a new process should run; if there is none, one is started. Answered by
    /// [`HostReply::Node`].
    Pick,
    /// Stop a node. Answered by [`HostReply::Done`].
    StopNode {
        /// Which.
        name: NodeName,
        /// Kill its guests.
        force: bool,
    },
    /// Stop all nodes and `skeind`. Answered by [`HostReply::Done`] before it exits.
    Stop {
        /// Kill the guests.
        force: bool,
    },
    /// About the cluster. Answered by [`HostReply::Cluster`].
    Cluster(ClusterRequest),
    /// Where a new process should run, which may be another host. Answered by [`HostReply::Node`] or
    /// [`HostReply::Link`].
    Place(Place),
    /// What runs for this host on others. Answered by [`HostReply::Elsewhere`].
    Elsewhere,
    /// From a deputy: the way to this node, of this host or of another. Answered as [`HostRequest::Place`].
    Reach {
        /// The node's host; else this one.
        host: Option<KeyId>,
        /// The node.
        node: NodeName,
    },
    /// Have a process migrate. Answered by [`HostReply::Migration`]s, and by [`HostReply::Migrated`].
    Migrate(Migrate),
}

/// Which process is to migrate where, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    /// At its home.
    pub pid: i32,
    /// Its home, if that is another host.
    pub home: Option<Label>,
    /// `NODE`, `HOST`, `HOST/NODE`, `home` or `out`.
    pub to: String,
    /// How it is to go.
    pub manner: Manner,
}

/// Where a user wants a process to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// `HOST`, `NODE` or `HOST/NODE`.
    At(String),
    /// On the host that is least busy.
    Best,
}

/// Answered by `skeind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostReply {
    /// It was not done; a sentence that says why and what to do.
    Refused(String),
    /// It was done.
    Done,
    /// To [`HostRequest::Status`].
    Status(HostStatus),
    /// To [`HostRequest::Launch`] and [`HostRequest::Pick`].
    Node(NodeEntry),
    /// To [`HostRequest::Cluster`].
    Cluster(ClusterReply),
    /// To [`HostRequest::Place`], with a descriptor: a connection with a node of another host. It is used until the
    /// connection with `skeind` is closed, on which nothing more is said.
    Link {
        /// The host.
        host: Label,
        /// Its ID.
        id: KeyId,
        /// The connection's keys.
        keys: StreamKeys,
    },
    /// To [`HostRequest::Elsewhere`].
    Elsewhere(Vec<(Label, NodeName, ProcessStatus)>),
    /// How a migration goes on.
    Migration(Event),
    /// The process has gone where it should.
    Migrated(Record),
    /// To [`HostRequest::Reach`]: the host is no member of the cluster any more. A sentence.
    Nowhere(String),
}

/// The state of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// PID of `skeind`.
    pub pid: i32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Its nodes, in order of their names.
    pub nodes: Vec<NodeEntry>,
}

/// What `skeind` knows of a node without asking it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name.
    pub name: NodeName,
    /// PID of its VMM process.
    pub pid: i32,
    /// An earlier `skeind` started it.
    pub adopted: bool,
}

/// Encodes a message with its version and its length before it.
///
/// # Errors
/// Only if serialization fails.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    procmig::wire::frame::encode(&(VERSION, message))
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
            "skeind speaks version {VERSION} of its protocol and the command version {version}; \
             stop the host with the skein that started it, then start it again"
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
    fn a_message_comes_back_as_it_was() {
        let request = HostRequest::Launch { name: Some(NodeName::numbered(3)), memory: Some(1 << 30) };
        let bytes = encode(&request).unwrap();
        assert_eq!(bytes.len() - 4, u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize);
        assert_eq!(decode::<HostRequest>(&bytes[4..]), Ok(request));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let body = postcard::to_allocvec(&(VERSION + 1, HostRequest::Status)).unwrap();
        assert!(decode::<HostRequest>(&body).unwrap_err().contains("version 3"));
    }

    #[test]
    fn garbage_is_refused() {
        for body in [&b""[..], &[3], &[3, 200], &[3, 0, 0], &[255; 64]] {
            assert!(decode::<HostRequest>(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn the_bytes_of_a_status_request_do_not_change() {
        assert_eq!(encode(&HostRequest::Status).unwrap(), [2, 0, 0, 0, 3, 0]);
    }
}
