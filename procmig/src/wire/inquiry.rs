//! What nodes of one host ask each other about processes, segments and children of their guests: on a connection
//! to the other's socket, each an [`Inquiry`] that is answered by a [`Told`].

use super::bytes::Bytes;
use super::control::Ids;
use super::usage::Usage;
use crate::signal::set::SignalSet;
use serde::{Deserialize, Serialize};

/// Cap on the frame of a [`Told`]: areas, arguments or environment can be long.
pub const MAX_TOLD: usize = 9 << 20;

/// A file of a process's directory in `/proc` that its node answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum File {
    /// `exe`: a link to the program.
    Executable,
    /// `maps`
    Maps,
    /// `status`
    Status,
    /// `stat`
    Stat,
    /// `statm`
    StatM,
    /// `limits`
    Limits,
    /// `auxv`
    Auxiliary,
    /// `environ`
    Environment,
    /// `cmdline`
    CommandLine,
    /// `mem`
    Memory,
    /// Pages of the address space as only its own kernel knows them: there is no such file, as
    /// where Linux is built without them.
    Pages,
}

/// Asked of another node of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inquiry {
    /// What goes into a file of a process of this host.
    File {
        /// The process.
        pid: i32,
        /// With this thread's own directory below it (`task/TID`).
        thread: Option<i32>,
        /// The file.
        file: File,
        /// Who wants to see it.
        caller: Ids,
    },
    /// What a process of this host has used that has ended there, and its children.
    Ended {
        /// The process.
        pid: i32,
        /// It has been waited for, and is not asked about again.
        reaped: bool,
    },
    /// On which CPUs a thread of a process of this host may run by rights.
    Cpus {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
        /// Home's kernel has just been told that it is to run on these, in the kernel's form without zeros at the
        /// end; its host thread is to do so too.
        chosen: Option<Vec<u8>>,
    },
    /// How the node itself uses a System V segment of this host.
    Segment {
        /// Its identifier.
        id: i32,
    },
}

/// To an [`Inquiry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Told {
    /// Nothing is known of it here.
    Nothing,
    /// The process is arriving: it is here in a moment, or where it was.
    Arriving,
    /// `errno`
    Refused(i32),
    /// Bytes of a file.
    Bytes(Bytes),
    /// The program's path.
    Path(Vec<u8>),
    /// Limits that the personality keeps: `RLIMIT_*` number, soft and hard.
    Limits(Vec<(u32, u64, u64)>),
    /// For `stat`, `statm` and `status`.
    Figures(Box<Figures>),
    /// To [`Inquiry::Ended`].
    Used(Usage),
    /// To [`Inquiry::Cpus`], in the same form; nothing where home's kernel tells it.
    Cpus(Option<Vec<u8>>),
    /// To [`Inquiry::Segment`].
    Segment {
        /// How often the node has it attached.
        mappings: u64,
        /// Which process it knows to have attached or detached it last.
        last: Option<LastUse>,
    },
}

/// An attachment or a detachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    /// By this process.
    pub pid: i32,
    /// When, in nanoseconds of the host's monotonic clock.
    pub at: u64,
}

/// What a node itself has to do with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentUse {
    /// The PID of its VMM process.
    pub node: u32,
    /// How often that has it attached.
    pub mappings: u64,
    /// Which process it knows to have attached or detached it last.
    pub last: Option<LastUse>,
}

/// What lies where on a program's first stack: first address and the one after the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackPlaces {
    /// The first stack pointer.
    pub stack: u64,
    /// The arguments' strings.
    pub arguments: (u64, u64),
    /// The environment's strings.
    pub environment: (u64, u64),
}

/// Sizes of an address space in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// All areas.
    pub total: u64,
    /// What is in memory.
    pub resident: u64,
    /// The most that was seen there.
    pub peak_resident: u64,
    /// Of what is in memory, that of no file.
    pub anonymous: u64,
    /// Locked.
    pub locked: u64,
    /// Private and writable.
    pub data: u64,
    /// The first thread's stack.
    pub stack: u64,
    /// Executable, not writable.
    pub executable: u64,
    /// The bytes of the program's own part of that.
    pub code: u64,
    /// Where that is: first address and the one after the last.
    pub code_at: (u64, u64),
    /// The program's writable part.
    pub initialized: (u64, u64),
    /// Where the heap starts; 0 without one.
    pub heap: u64,
}

/// What a node knows of a process, or of one of its threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// `R`, `S` or `T`; where home knows it, nothing.
    pub state: Option<char>,
    /// Threads.
    pub threads: u64,
    /// What the process has used, or the thread.
    pub usage: Usage,
    /// What children have used that were waited for.
    pub children: Usage,
    /// Memory.
    pub sizes: Sizes,
    /// Waiting signals of the thread.
    pub pending: SignalSet,
    /// Waiting signals of the process.
    pub shared_pending: SignalSet,
    /// Blocked by the thread.
    pub blocked: SignalSet,
    /// Ignored.
    pub ignored: SignalSet,
    /// With a handler.
    pub caught: SignalSet,
    /// `RLIMIT_RSS`
    pub resident_limit: u64,
    /// What lies on the stack.
    pub places: StackPlaces,
    /// Addresses may be shown to who has asked; else there are none here.
    pub shows_addresses: bool,
}

impl Figures {
    /// Takes all addresses out.
    pub fn hide_addresses(&mut self) {
        self.places = StackPlaces::default();
        (self.sizes.code_at, self.sizes.initialized, self.sizes.heap) = Default::default();
        self.shows_addresses = false;
    }
}
