//! Messages on a deputy's control connection, and between a node and who manages it.
//!
//! Each message is a [frame](super::frame). The first on a new connection to a node's socket is a
//! [`NodeRequest`]. After an accepted [`NodeRequest::Attach`] (whose frame passes one descriptor:
//! the node's end of the first thread's call connection) the connection is that process's control
//! connection: the node sends [`ToDeputy`], the deputy sends [`ToNode`]. Any other request is
//! answered by one [`NodeReply`], and the next may follow.

use super::bytes::Bytes;
use super::call::SIGINFO_SIZE;
use super::capped;
use super::inquiry::{Inquiry, Told};
use super::link::{ConnectionId, LinkId};
use super::sealed::StreamKeys;
use super::usage::Usage;
use crate::migration::image::MAX_THREADS;
use crate::migration::record::{Event, Record};
use crate::migration::wire::{Offer, Ticket};
use crate::vdso::distance::Clocks;
use crate::wire::op::FileIdentity;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Version of these protocols; peers must agree.
pub const VERSION: u32 = 14;
/// Cap on the frame of a [`NodeRequest`]: the arguments and environment are in it.
pub const MAX_REQUEST: usize = 8 << 20;
/// Cap on every other frame.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Names a host of a cluster.
pub type HostId = [u8; 16];
/// Most bytes of one [`ToDeputy::Read`].
pub const MAX_READ: u32 = 512 << 10;

/// Asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRequest {
    /// Run a program for the deputy that sends this.
    Attach(Box<Attach>),
    /// Answered by [`NodeReply::Status`].
    Status,
    /// Answered by [`NodeReply::Processes`].
    Processes,
    /// Take a process. What follows is described in [`crate::migration::wire`].
    Receive(Offer),
    /// A further stream of such a process. What follows is described there, too.
    Join {
        /// Names the process.
        ticket: Ticket,
        /// Which of its streams this is; the first is 0.
        stream: u32,
    },
    /// The same from a node of another host: the message passes the connection, on which an [`Offer`] is to come. The
    /// connection with the node stays open until that is over; nothing more is said on it.
    Incoming(Box<StreamKeys>),
    /// From the deputy of a process that has arrived. Answered by [`NodeReply::Done`] or [`NodeReply::Refused`] if
    /// there are no more; then the connection is the process's control connection, and [`ToNode::Run`] is to come.
    Adopt(Adopt),
    /// Have a process go to another node. Answered by [`NodeReply::Migration`]s, and by
    /// [`NodeReply::Migrated`] or [`NodeReply::Refused`].
    Migrate(Migrate),
    /// Stop the node; with guests only if `force`, which kills them. Answered by
    /// [`NodeReply::Done`] or [`NodeReply::Refused`].
    Stop {
        /// Kill the guests.
        force: bool,
    },
    /// From `skeind`: a connection with another host, which the message passes, is the [link](super::link) of a
    /// program of that host. The connection with the node stays open until the link ends; nothing more is said on it.
    Link(Box<Link>),
    /// From another node of the host. Answered by [`NodeReply::Told`].
    Inquire(Inquiry),
}

/// What a node must know of the link of a program of another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The link's keys.
    pub keys: StreamKeys,
    /// The program's home.
    pub home: HostId,
    /// Its name.
    pub home_name: String,
}

/// The call connections of some threads of a process that has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopt {
    /// Which process.
    pub ticket: Ticket,
    /// The threads.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_THREADS>")]
    pub threads: Vec<i32>,
    /// Their connections, from another host; on the same host the message passes the node's ends, in this order.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_THREADS>")]
    pub connections: Vec<ConnectionId>,
    /// There are others.
    pub more: bool,
}

/// Where a process is to go, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    /// The process.
    pub pid: i32,
    /// Its home; `None` is this host.
    pub home: Option<HostId>,
    /// How the target is reached from here.
    pub way: Way,
    /// The target's host; `None` is the process's home.
    pub host: Option<HostId>,
    /// The target's name.
    pub node: String,
    /// What people call the target.
    pub shown: String,
    /// How long the process may stand still, in microseconds.
    pub max_freeze_micros: u64,
    /// Bytes per second that may be sent while the process runs.
    pub bandwidth: Option<u64>,
    /// Which memory may follow when the process runs at the target.
    pub post_copy: PostCopy,
    /// Most streams over which memory is sent while it runs; else as many as the processors make use of.
    pub streams: Option<u32>,
}

/// Which of a process's memory follows when it runs at the target already. Until all has come it needs both nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PostCopy {
    /// What would have it stand still for too long, since it is written faster than it is sent.
    #[default]
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

/// How a source reaches its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// By its socket on this host.
    Socket(Vec<u8>),
    /// Over a connection with a node of another host, which the message passes, with these keys.
    Passed(StreamKeys),
}

/// A thread that the deputy is asked to hand over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// Its TID.
    pub tid: i32,
    /// The last request that was sent.
    pub seq: u32,
    /// The reply to it has not been read.
    pub awaits: bool,
}

/// What a node must know of a process that it shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// [`VERSION`]
    pub version: u32,
    /// The deputy's PID, which is the process's.
    pub pid: i32,
    /// The deputy's parent.
    pub parent: i32,
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
    /// The job that it and all that it starts belong to: a number of the user's.
    pub job: Option<u32>,
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
    /// How a migration goes on.
    Migration(Event),
    /// A process has gone where it should.
    Migrated(Record),
    /// It was done.
    Done,
    /// It was not done; a sentence that says why and what to do.
    Refused(String),
    /// To [`NodeRequest::Inquire`]. Its frame may be of [`MAX_TOLD`](super::inquiry::MAX_TOLD) bytes.
    Told(Told),
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
    /// Name of its home, if that is another host.
    pub home: Option<String>,
    /// The job that it belongs to.
    pub job: Option<u32>,
    /// It has been copied to this node, which does not know yet that it runs here: it may still be where it was.
    pub arriving: bool,
}

/// Leaves each process once in what several nodes tell of theirs: while one migrates, its target has it too.
pub fn settle<T>(rows: &mut Vec<(T, ProcessStatus)>) {
    let mut at = HashMap::new();
    for (index, (_, process)) in rows.iter().enumerate() {
        let place = at.entry((process.pid, process.home.clone())).or_insert(index);
        // Of two that both had it, the one that was asked later is where it went.
        if !process.arriving {
            *place = index;
        }
    }
    let places: HashSet<usize> = at.into_values().collect();
    let mut index = 0..;
    rows.retain(|_| index.next().is_some_and(|index| places.contains(&index)));
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
    /// The process is about to migrate: send no signals until that is decided. Answered by [`ToNode::Held`].
    Hold {
        /// One more than the number of migrations so far.
        epoch: u32,
        /// For the answer: of several attempts to migrate, which this is.
        attempt: u32,
    },
    /// The process stays.
    Release {
        /// As in [`ToDeputy::Hold`].
        epoch: u32,
    },
    /// Find a way to a target that is not on the same host as this node and home. Answered by [`ToNode::Prepared`];
    /// what is found is given up at [`ToDeputy::Release`].
    Prepare {
        /// As in [`ToDeputy::Hold`].
        epoch: u32,
        /// As in [`ToDeputy::Hold`].
        attempt: u32,
        /// The target's host; `None` is home.
        host: Option<HostId>,
        /// The target's name.
        node: String,
        /// So many threads are to be handed over, or about so many.
        threads: u32,
    },
    /// Lend these files, which the message passes, to nodes of other hosts. Answered by [`ToNode::Lent`].
    Lend(Vec<FileIdentity>),
    /// Give the process to the target, where it has arrived. Answered by [`ToNode::Moved`] or
    /// [`ToNode::Kept`]: it is this node's until then.
    Commit(Box<Commit>),
    /// Send bytes of a file that the deputy has lent ([`LentFile`](super::op::LentFile)). Answered by
    /// [`ToNode::Bytes`].
    Read {
        /// Names the answer.
        tag: u32,
        /// Which file.
        file: u32,
        /// From here.
        offset: u64,
        /// At most so many, and at most [`MAX_READ`].
        length: u32,
    },
    /// A file that was lent is no longer used.
    GiveBack {
        /// Which.
        file: u32,
    },
    /// A thread that was bound to a CPU by requests made from there may run where it likes again.
    Part {
        /// The deputy's thread.
        tid: i32,
        /// It is to run on these from now on, in the kernel's form without zeros at the end: home's kernel was told so,
        /// but they may be the CPU that it was bound to.
        chosen: Option<Vec<u8>>,
    },
    /// Answered by [`ToNode::Awake`], unless the deputy is stopped.
    AreYouAwake {
        /// For the answer.
        round: u32,
    },
    /// The process is about to be lost, for memory that another node still had of it is.
    MemoryLost,
}

/// What a deputy must know to give a process to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// As in [`ToDeputy::Hold`].
    pub epoch: u32,
    /// The target's socket if all are on one host; else it is that of [`ToDeputy::Prepare`].
    pub socket: Option<Vec<u8>>,
    /// What people call the target.
    pub node: String,
    /// What the target calls the process.
    pub ticket: Ticket,
    /// All threads.
    pub threads: Vec<HandOver>,
}

/// From a deputy's control connection to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    /// This signal reached the process.
    Signal(SigInfo),
    /// To [`ToDeputy::Hold`]: all signals until now have been sent.
    Held {
        /// The same.
        epoch: u32,
        /// The same.
        attempt: u32,
    },
    /// To [`ToDeputy::Prepare`].
    Prepared {
        /// The same.
        epoch: u32,
        /// The same.
        attempt: u32,
        /// The link with the target, if that is at another host than home; or why there is no way.
        result: Result<Option<LinkId>, String>,
    },
    /// To [`ToDeputy::Lend`]: the numbers of the files, in order; or `errno`.
    Lent(Result<Vec<u32>, i32>),
    /// To [`ToDeputy::Commit`]: the process is the target's.
    Moved {
        /// The same.
        epoch: u32,
    },
    /// To [`ToDeputy::Commit`]: it stays.
    Kept {
        /// The same.
        epoch: u32,
        /// Why.
        reason: String,
    },
    /// To a target that has adopted the process: run it.
    Run {
        /// The same.
        epoch: u32,
    },
    /// To [`ToDeputy::Read`].
    Bytes {
        /// As asked.
        tag: u32,
        /// As many as there are, or `errno`.
        result: Result<Bytes, i32>,
    },
    /// To [`ToDeputy::AreYouAwake`].
    Awake {
        /// As asked.
        round: u32,
        /// What home's clocks show.
        clocks: Clocks,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_several_nodes_have_is_where_it_was_seen_to_run_last() {
        let row = |node: &'static str, pid, home: Option<&str>, arriving| {
            let (name, command, home) = (String::new(), String::new(), home.map(str::to_owned));
            let (usage, children) = (Usage::default(), Usage::default());
            let (parent, threads, resident, virtual_size, uid) = (1, 1, 0, 0, 0);
            let (state, job) = ('R', None);
            let status = ProcessStatus {
                pid,
                parent,
                name,
                command,
                threads,
                resident,
                virtual_size,
                usage,
                children,
                state,
                uid,
                home,
                job,
                arriving,
            };
            (node, status)
        };
        let mut rows = vec![
            row("a", 1, None, true),
            row("a", 2, None, false),
            row("a", 3, None, true),
            row("a", 4, None, false),
            row("b", 1, None, false),
            row("b", 2, None, false),
            row("b", 2, Some("other"), true),
            row("b", 4, None, true),
        ];
        settle(&mut rows);
        let left: Vec<_> = rows.iter().map(|(node, process)| (*node, process.pid, process.home.is_some())).collect();
        assert_eq!(left, [("a", 3, false), ("a", 4, false), ("b", 1, false), ("b", 2, false), ("b", 2, true)]);
    }
}
