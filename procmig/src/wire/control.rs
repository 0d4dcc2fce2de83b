//! Messages on a deputy's control connection, and between a node and who manages it.
//!
//! Each message is a [frame](super::frame). The first on a new connection to a node's socket is a
//! [`NodeRequest`]. After an accepted [`NodeRequest::Attach`] (whose frame passes one descriptor:
//! the node's end of the first thread's call connection) the connection is that process's control
//! connection: the node sends [`ToDeputy`], the deputy sends [`ToNode`]. Any other request is
//! answered by one [`NodeReply`], and the next may follow.

use super::call::SIGINFO_SIZE;
use super::usage::Usage;
use serde::{Deserialize, Serialize};

/// Version of these protocols; peers must agree.
pub const VERSION: u32 = 3;
/// Cap on the frame of a [`NodeRequest`]: the arguments and environment are in it.
pub const MAX_REQUEST: usize = 8 << 20;
/// Cap on every other frame.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRequest {
    /// Run a program for the deputy that sends this.
    Attach(Box<Attach>),
    /// Answered by [`NodeReply::Status`].
    Status,
    /// Answered by [`NodeReply::Processes`].
    Processes,
    /// Stop the node; with guests only if `force`, which kills them. Answered by
    /// [`NodeReply::Done`] or [`NodeReply::Refused`].
    Stop {
        /// Kill the guests.
        force: bool,
    },
}

/// What a node must know of a process that it shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// [`VERSION`]
    pub version: u32,
    /// The deputy's PID, which is the process's.
    pub pid: i32,
    /// The program, found in `PATH` already; may be relative to the deputy's directory.
    pub program: Vec<u8>,
    /// Arguments, the first is argument 0.
    pub argv: Vec<Vec<u8>>,
    /// Environment, each `NAME=value`.
    pub environment: Vec<Vec<u8>>,
    /// Bit `n - 1`: signal `n` is ignored.
    pub ignored_signals: u64,
    /// Bit `n - 1`: signal `n` is blocked.
    pub blocked_signals: u64,
    /// Real, effective user and group.
    pub ids: Ids,
    /// `RLIMIT_*` number, soft and hard limit.
    pub limits: Vec<(u32, u64, u64)>,
    /// Send [`ToDeputy::Trace`] for each system call.
    pub trace: bool,
    /// Send [`Op::Report`](super::op::Op::Report) when the process ends.
    pub report: bool,
    /// Most bytes of memory of the process and all that it starts.
    pub memory_limit: Option<u64>,
    /// Most threads of the process and all that it starts.
    pub max_threads: Option<u32>,
}

/// User and group IDs of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective group.
    pub egid: u32,
}

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NodeReply {
    /// To [`NodeRequest::Status`].
    Status(NodeStatus),
    /// To [`NodeRequest::Processes`].
    Processes(Vec<ProcessStatus>),
    /// It was done.
    Done,
    /// It was not done; a sentence that says why and what to do.
    Refused(String),
}

/// The state of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name, unique on its host.
    pub name: String,
    /// PID of its VMM process.
    pub vmm_pid: i32,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Bytes of guest RAM handed out.
    pub memory_used: u64,
    /// Guest processes.
    pub processes: u32,
    /// Guest threads.
    pub threads: u32,
    /// `ring3` or `ring0`: where `syscall` lands in the guest.
    pub entry: String,
    /// `shadow` or `nested`: who translates guest addresses.
    pub paging: String,
    /// Microseconds from the start of the VMM process to ready.
    pub start_micros: u64,
    /// Seconds since it was ready.
    pub uptime_seconds: u64,
}

/// The state of a guest process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// At home and in the guest.
    pub pid: i32,
    /// At home.
    pub parent: i32,
    /// `comm`
    pub name: String,
    /// Command line, arguments joined by spaces.
    pub command: String,
    /// Guest threads.
    pub threads: u32,
    /// Bytes resident.
    pub resident: u64,
    /// Bytes of address space.
    pub virtual_size: u64,
    /// What it has used so far.
    pub usage: Usage,
    /// What its children have used that it has waited for, and theirs.
    pub children: Usage,
    /// `R`, `S` or `T`.
    pub state: char,
    /// User ID.
    pub uid: u32,
}

/// From the node to a deputy's control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDeputy {
    /// Break off request `seq` of thread `tid` if it is still running; its reply then says `EINTR`
    /// or what it had done.
    Cancel {
        /// The deputy's thread.
        tid: i32,
        /// The request's number.
        seq: u32,
    },
    /// A line for the trace file.
    Trace(String),
}

/// From a deputy's control connection to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    /// This signal reached the process.
    Signal(SigInfo),
}

/// A kernel `siginfo_t`, as bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SigInfo(pub [u8; SIGINFO_SIZE]);

impl SigInfo {
    /// `si_signo`
    pub fn signal(&self) -> i32 {
        i32::from_le_bytes(self.0[0..4].try_into().expect("4 bytes"))
    }
    /// `si_code`
    pub fn code(&self) -> i32 {
        i32::from_le_bytes(self.0[8..12].try_into().expect("4 bytes"))
    }
}

impl std::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigInfo(signal {}, code {})", self.signal(), self.code())
    }
}

impl Serialize for SigInfo {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SigInfo {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        let bytes = bytes.try_into().map_err(|_| serde::de::Error::invalid_length(bytes.len(), &"128 bytes"))?;
        Ok(Self(bytes))
    }
}
