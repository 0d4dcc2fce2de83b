//! What `skein cluster` asks of `skeind`, and its answers.

use super::id::KeyId;
use super::label::Label;
use super::level::CpuLevel;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Asked of `skeind` by a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterRequest {
    /// Make a cluster. Answered by [`ClusterReply::Status`].
    Init {
        /// The cluster's name; else one is made up from the host's.
        cluster: Option<Label>,
        /// This host's name; else what the machine is called.
        host: Option<Label>,
        /// Where to listen; else everywhere.
        listen: Option<SocketAddr>,
    },
    /// Invite a host. Answered by [`ClusterReply::Token`].
    Invite {
        /// For how long.
        minutes: u32,
    },
    /// Become a member. Answered by [`ClusterReply::Status`].
    Join {
        /// The token.
        token: String,
        /// Where the inviting host is; else what the token says. `HOST` or `HOST:PORT`.
        at: Option<String>,
        /// This host's name; else what the machine is called.
        host: Option<Label>,
        /// Where to listen; else everywhere.
        listen: Option<SocketAddr>,
    },
    /// Shut a host out. Answered by [`ClusterReply::Told`].
    Remove {
        /// Its name or ID.
        host: String,
    },
    /// Leave. Answered by [`ClusterReply::Told`].
    Leave {
        /// Even if others stay that nobody can remove or add to then.
        force: bool,
    },
    /// Answered by [`ClusterReply::Status`].
    Status,
    /// Answered by [`ClusterReply::Members`].
    Members,
    /// Set what processors should have. Answered by [`ClusterReply::Told`].
    SetCpuLevel(CpuLevel),
    /// Measure the connection with a host. Answered by [`ClusterReply::Measured`].
    Measure {
        /// Its name or ID.
        host: String,
        /// Bytes to send each way.
        bytes: u64,
    },
}

/// Answered by `skeind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterReply {
    /// The state of the cluster as this host knows it.
    Status(Box<ClusterStatus>),
    /// An invitation.
    Token(String),
    /// The members.
    Members(Vec<MemberStatus>),
    /// It was done, and these members know already; the others will when they are reached.
    Told {
        /// The host that it was about.
        host: Label,
        /// Members that know.
        told: Vec<Label>,
        /// Members that could not be reached.
        untold: Vec<Label>,
    },
    /// How the connection with a host is.
    Measured(Box<Measured>),
}

/// How the connection with a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The host.
    pub host: Label,
    /// The address that was used.
    pub address: SocketAddr,
    /// How it was encrypted.
    pub cipher: String,
    /// The shortest round trip of a message of 64 bytes, in nanoseconds.
    pub shortest_ns: u64,
    /// The median of many.
    pub median_ns: u64,
    /// Bytes sent each way.
    pub bytes: u64,
    /// How long they took to the host, in nanoseconds.
    pub to_ns: u64,
    /// How long they took from the host.
    pub from_ns: u64,
}

/// The state of a cluster as a host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: Label,
    /// Its ID.
    pub id: KeyId,
    /// This host's name.
    pub host: Label,
    /// This host's ID.
    pub host_id: KeyId,
    /// Name of the host that invites and removes.
    pub authority: Label,
    /// That is this host.
    pub is_authority: bool,
    /// How many members there are.
    pub members: u32,
    /// How many hosts have been removed.
    pub removed: u32,
    /// How often the roster has changed.
    pub serial: u64,
    /// Where this host listens.
    pub listen: SocketAddr,
    /// Why it does not.
    pub not_listening: Option<String>,
    /// How many invitations are open here.
    pub invitations: u32,
    /// What the hosts' processors should have.
    pub cpu_level: CpuLevel,
    /// What this machine's lacks of it.
    pub lacks: Vec<String>,
    /// Where certificate and keys are.
    pub directory: String,
}

/// A member as this host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: Label,
    /// Its ID.
    pub id: KeyId,
    /// It is this host.
    pub is_this: bool,
    /// It has the cluster's authority.
    pub is_authority: bool,
    /// Where it listens; the address that answered, else all that are known.
    pub addresses: Vec<SocketAddr>,
    /// Whether it answers, and how.
    pub answer: Result<MemberAnswer, String>,
}

/// What a member has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAnswer {
    /// Version of its skein.
    pub skein: String,
    /// The shortest of a few round trips, in nanoseconds; 0 for this host.
    pub round_trip_ns: u64,
    /// CPU features of the cluster's level that its machine lacks.
    pub lacks: Vec<String>,
}
