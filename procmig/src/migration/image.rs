//! What a process is, apart from its memory's content, in a form that another node makes it from.

use crate::mm::thread_ids::Code;
use crate::signal::altstack::AltStack;
use crate::signal::pending::PendingSignals;
use crate::signal::set::SignalSet;
use crate::wire::capped;
use crate::wire::control::Ids;
use crate::wire::op::FileIdentity;
use crate::wire::usage::Usage;
use serde::{Deserialize, Serialize};

/// Most threads of an image.
pub const MAX_THREADS: usize = 4096;
/// Most areas of an image, as of an address space.
pub const MAX_REGIONS: usize = 65_530;
/// Most arguments of an image.
pub const MAX_ARGUMENTS: usize = 1 << 20;
/// Most timers: those of `timer_create`, and three of `setitimer`.
pub const MAX_TIMERS: usize = 4096 + 3;
/// Most places of a program's code that were rewritten.
pub const MAX_SITES: usize = 1024;
/// Bytes of one thread's extended state, at most.
pub const MAX_FPU: usize = 16 << 10;

/// A process whose threads stand still.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessImage {
    /// At home and in the guest.
    pub pid: i32,
    /// At home, when it started.
    pub parent: i32,
    /// How often the process has changed its node.
    pub epoch: u32,
    /// `comm`
    pub name: Vec<u8>,
    /// Arguments.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_ARGUMENTS>")]
    pub argv: Vec<Vec<u8>>,
    /// The program's absolute path.
    pub executable: Vec<u8>,
    /// Users and groups.
    pub ids: Ids,
    /// The auxiliary vector.
    pub auxiliary: Vec<u8>,
    /// The first stack pointer, and where arguments and environment start and end.
    pub places: [u64; 5],
    /// `RLIMIT_*` number, soft and hard limit.
    #[serde(deserialize_with = "capped::list::<_, _, 64>")]
    pub limits: Vec<(u32, u64, u64)>,
    /// Signals that wait for any thread.
    pub pending: PendingSignals,
    /// What is done at each signal: handler, flags, restorer, mask.
    #[serde(deserialize_with = "capped::list::<_, _, 64>")]
    pub actions: Vec<[u64; 4]>,
    /// Timers.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_TIMERS>")]
    pub timers: Vec<TimerImage>,
    /// The number that the next timer of `timer_create` gets.
    pub next_timer: i32,
    /// What threads that have ended have used.
    pub ended: Usage,
    /// What children have used that were waited for.
    pub children: Usage,
    /// Most bytes resident that were seen.
    pub peak_resident: u64,
    /// Seconds of CPU time at which `SIGXCPU` was sent last.
    pub cpu_warned: u64,
    /// The exit status of a leader that has ended before the others.
    pub leader_status: i32,
    /// Number of the last request on the connection of a leader that has ended, if it has.
    pub leader_seq: Option<u32>,
    /// Signals that descriptors of home wait for.
    pub home_signals: SignalSet,
    /// How many signals have come on the control connection.
    pub relayed: u32,
    /// What home's clocks showed when it stood still: monotonic, raw, and since home's start.
    pub clocks: [u64; 3],
    /// Each system call is told to the deputy.
    pub trace: bool,
    /// What it has used is told to the deputy when it ends.
    pub report: bool,
    /// Its deputy is stopped.
    pub stopped: bool,
    /// Most bytes of memory of it and all that it starts.
    pub memory_limit: Option<u64>,
    /// Most threads of it and all that it starts.
    pub max_threads: Option<u32>,
    /// The job that it belongs to.
    pub job: Option<u32>,
    /// Threads; the leader is the one whose TID is the PID, if it is there.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_THREADS>")]
    pub threads: Vec<ThreadImage>,
    /// Its address space.
    pub space: SpaceImage,
}

/// A thread that stands still.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThreadImage {
    /// At home and in the guest.
    pub tid: i32,
    /// RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS.
    pub regs: [u64; 18],
    /// Bases of FS and GS.
    pub bases: (u64, u64),
    /// Extended state in the standard format of XSAVE.
    pub fpu: Vec<u8>,
    /// Blocked signals.
    pub mask: SignalSet,
    /// The mask to go back to.
    pub saved_mask: Option<SignalSet>,
    /// Signals that wait for this thread.
    pub pending: PendingSignals,
    /// It is the one, or one of those, that are to take the signals of the process.
    pub chosen: bool,
    /// `sigaltstack`
    pub altstack: AltStack,
    /// `CLONE_CHILD_CLEARTID`
    pub clear_tid: u64,
    /// `set_robust_list`
    pub robust_list: u64,
    /// The last fault: number, error code, address.
    pub last_fault: (u64, u64, u64),
    /// What it has used.
    pub usage: Usage,
    /// CPU time in nanoseconds at its last turn to be told of the process's CPU time.
    pub charged: u64,
    /// The CPUs that it has chosen, in the kernel's form without zeros at the end.
    pub affinity: Option<Vec<u8>>,
    /// Those of its deputy's thread by rights, once that was bound to one of them.
    pub at_home: Option<Vec<u8>>,
    /// Number of the last request on its call connection.
    pub seq: u32,
    /// The system call that it is in; the registers are those of the call.
    pub call: Option<CallImage>,
}

/// A system call that a thread is in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallImage {
    /// The deputy performs it, or has performed it.
    pub forwarded: Option<ForwardedCall>,
    /// When its time is over, in nanoseconds of home's monotonic clock.
    pub deadline: Option<u64>,
    /// Bytes of it that are done.
    pub progress: u64,
}

/// A call whose reply has not been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardedCall {
    /// Its number.
    pub nr: u32,
    /// As the guest gave them.
    pub args: [u64; 6],
    /// Bits of [`crate::wire::call::flags`].
    pub flags: u32,
}

/// A timer of a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimerImage {
    /// As `timer_create` gave it, or one of [`interval`](crate::kernel::timers::interval).
    pub id: i32,
    /// What it counts: 0 time, 1 CPU time of the process `of`, 2 user time, 3 CPU time of the thread `of`.
    pub counts: (u8, i32),
    /// The clock that it was made with.
    pub clock: i32,
    /// What happens: 0 nothing, 1 a signal to the process, 2 one to the thread; signal, value, thread.
    pub notice: (u8, i32, u64, i32),
    /// When it expires, in nanoseconds of what it counts; time is home's monotonic clock's.
    pub deadline: Option<u64>,
    /// Its period in nanoseconds, or 0.
    pub interval: u64,
    /// Expirations that were merged into the last signal.
    pub overrun: i32,
}

/// An address space without its pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpaceImage {
    /// Stack top, top of mappings, program, gap to the heap.
    pub layout: [u64; 4],
    /// `RLIMIT_AS` in bytes.
    pub limit: u64,
    /// Start and end of the heap.
    pub heap: (u64, u64),
    /// What areas show, by index.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_REGIONS>")]
    pub objects: Vec<ObjectImage>,
    /// Areas, ascending.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_REGIONS>")]
    pub regions: Vec<RegionImage>,
    /// System V segments: where they are attached, where in the deputy's memory, identifier, bytes, object.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_REGIONS>")]
    pub segments: Vec<(u64, u64, i32, u64, u32)>,
    /// Places in its code that were rewritten.
    #[serde(deserialize_with = "capped::list::<_, _, MAX_SITES>")]
    pub sites: Vec<SiteImage>,
    /// What is known of its code.
    pub code: Code,
}

/// A call site in a program's code that jumps to a stub ([`vmm::site_code`]). Both are in private pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteImage {
    /// Where it is.
    pub at: u64,
    /// Where its stub is.
    pub stub: u64,
    /// What it asks for: 0 the process, 1 the thread, 2 what RAX says.
    pub asks: u8,
}

/// What areas show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ObjectImage {
    /// The time page and the vDSO, which every node has.
    Vdso,
    /// A file of home that is only read.
    File {
        /// Which.
        identity: FileIdentity,
        /// The number by which the deputy lends it; else its descriptor is passed.
        lent: Option<u32>,
    },
    /// A file of home itself. Its descriptor is passed.
    SharedFile {
        /// Which.
        identity: FileIdentity,
        /// It may be written.
        writable: bool,
    },
    /// A System V segment of home.
    Segment {
        /// Its identifier.
        id: i32,
        /// It may be written.
        writable: bool,
    },
    /// Memory that mappings of this process share.
    Memory,
}

impl ObjectImage {
    /// Whether a descriptor is passed for it.
    pub fn needs_descriptor(&self) -> bool {
        matches!(self, Self::File { lent: None, .. } | Self::SharedFile { .. })
    }
}

/// An area.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionImage {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Bits of [`Protection`](crate::mm::Protection).
    pub protection: u32,
    /// Bits of [`RegionFlags`](crate::mm::RegionFlags).
    pub flags: u32,
    /// Index of the object that it shows and the offset in it in bytes; none is zeros.
    pub backing: Option<(u32, u64)>,
    /// For `/proc/self/maps`.
    pub name: String,
}
