//! Operations that a node asks of a deputy and that are no system call of their own.
//!
//! Between hosts no descriptors are passed. In the place of connections the payload is their identifiers
//! ([`ConnectionId`](super::link::ConnectionId)), in an array: the deputy opens them. Files are lent: behind the
//! payload's value is a [`LentFile`].

use super::bytes::Bytes;
use super::usage::Usage;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a node asks of the deputy's thread that serves the connection. The reply's `ret` is the
/// result or `-errno`; its payload is the postcard encoding of the type named here, if any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Start a thread of the deputy for a new guest thread. `ret`: its TID. Descriptors passed
    /// with the reply: the node's end of the new thread's call connection.
    NewThread,
    /// Fork the deputy. `ret`: the child's PID. Descriptors passed with the reply: the node's ends
    /// of the child's control connection and of its only thread's call connection, in this order.
    Fork,
    /// Open a file to execute, as `execveat(2)` looks it up: it must be a regular file that the
    /// caller may execute. `ret`: 0. Payload: [`ProgramFile`]. Descriptors: the file, read-only.
    OpenProgram {
        /// As the guest gave it.
        dirfd: i32,
        /// As the guest gave it; empty with `AT_EMPTY_PATH`.
        path: Vec<u8>,
        /// `AT_EMPTY_PATH`, `AT_SYMLINK_NOFOLLOW`.
        flags: i32,
    },
    /// The program is replaced: close the close-on-exec descriptors, set caught signals back to
    /// default, set the name and command line that `ps` shows. `ret`: 0, always.
    CommitExec {
        /// `comm`, at most 15 bytes.
        name: Vec<u8>,
        /// The new command line.
        argv: Vec<Vec<u8>>,
    },
    /// End this deputy thread. No reply. A thread-group leader only stays idle instead, so that
    /// its connection can still serve a later `exec`.
    EndThread,
    /// The process is about to end; this is what it used. Sent only if [`Attach::report`] asked for it.
    /// No reply.
    ///
    /// [`Attach::report`]: super::control::Attach::report
    Report {
        /// The process itself.
        own: Usage,
        /// Children that it waited for, and theirs.
        children: Usage,
    },
    /// End the process with this exit status. No reply: the connections close.
    Exit {
        /// As given to `exit_group(2)`; only the low 8 bits reach the parent.
        status: i32,
    },
    /// End the process by this signal, so that its parent sees a death by it. No reply.
    DieBySignal {
        /// 1..=64
        signal: u32,
    },
    /// Hand over a file to be mapped. `ret`: 0. Payload: [`FileIdentity`]. Descriptors: the file, or none if
    /// the guest has closed it meanwhile.
    MapFile {
        /// The guest's descriptor.
        fd: i32,
        /// The mapping is shared and may be written, so the descriptor must be writable (`EACCES`).
        write: bool,
    },
    /// Hand over the file of a descriptor to be read and written, if it may be
    /// ([`file_kind`](crate::wire::file_kind)). `ret`: 0; `-EOPNOTSUPP` if it may not. Descriptors: the file.
    HandOver {
        /// The guest's descriptor.
        fd: i32,
    },
    /// Attach a System V segment, as `shmat(2)` does. `ret`: 0. Payload: [`SegmentInfo`].
    AttachSegment {
        /// As `shmget(2)` gave it.
        id: i32,
        /// `SHM_RDONLY`, `SHM_EXEC`; the others are the node's.
        flags: i32,
    },
    /// Detach what [`Op::AttachSegment`] has attached. `ret`: 0.
    DetachSegment {
        /// Where the deputy has it.
        address: u64,
    },
    /// Tell home's kernel what a signal does to the process. `ret`: 0.
    SetDisposition {
        /// 1..=64
        signal: u32,
        /// What the guest chose.
        disposition: Disposition,
    },
    /// Make a descriptor of a memory file with this content, for files that only the node can
    /// write (`/proc/self/maps`). `ret`: the descriptor.
    MemoryFile {
        /// For `/proc/PID/fd`.
        name: Vec<u8>,
        /// The content; the file is read-only.
        content: Vec<u8>,
        /// `O_CLOEXEC`
        close_on_exec: bool,
    },
    /// Read a regular file of home, for files that the node changes (`/proc/self/status`). `ret`: 0.
    /// Payload: the bytes themselves, not encoded.
    ReadFile {
        /// As the guest gave it; absolute.
        path: Vec<u8>,
        /// At most so many bytes; no more than [`MAX_FILE`] are read.
        limit: u32,
    },
    /// The program could not be started: say so on standard error and exit with `status`. No reply.
    Refuse {
        /// 126, 127 or another status of `mosrun`.
        status: i32,
        /// A sentence that says what to do.
        message: String,
    },
}

/// Most bytes that [`Op::ReadFile`] gives.
pub const MAX_FILE: u32 = 1 << 20;

/// What a guest process does at a signal, as far as home's kernel must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disposition {
    /// `SIG_DFL`
    Default,
    /// `SIG_IGN`
    Ignore,
    /// The guest has a handler.
    Catch,
}

/// Which file, and which state of it: two mappings with equal identities show the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub modified: i64,
    /// Nanoseconds since the epoch.
    pub changed: i64,
    /// `st_mode`
    pub mode: u32,
}

impl FileIdentity {
    /// Of a file of this host.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        let nanoseconds = |seconds: i64, more: i64| seconds.saturating_mul(1_000_000_000).saturating_add(more);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            changed: nanoseconds(meta.ctime(), meta.ctime_nsec()),
            mode: meta.mode(),
        }
    }

    /// Whether the file was changed so lately that its times would not tell another change: they are of the
    /// kernel's clock, which ticks every ten milliseconds at worst. To be asked where the file is.
    pub fn is_fresh(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.is_fresh_at(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
    }

    /// The same when the clock shows `now`, in nanoseconds, where the file is.
    pub fn is_fresh_at(&self, now: i64) -> bool {
        const TICKS: i64 = 50_000_000;
        (0..TICKS).contains(&now.saturating_sub(self.changed.max(self.modified)))
    }
}

/// A file that the deputy keeps open for a node of another host, which reads it by
/// [`ToDeputy::Read`](super::control::ToDeputy::Read). The deputies of children have it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LentFile {
    /// Names it.
    pub file: u32,
    /// It was changed so lately that its times would not tell another change.
    pub is_fresh: bool,
    /// Its path, for `/proc/self/maps`.
    pub path: Vec<u8>,
    /// Its first bytes, where it is to be executed.
    pub head: Bytes,
}

/// A System V segment that the deputy has attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Where, in the deputy's memory; names the attachment.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// What it was made by.
    pub key: i32,
    /// Inode of the IPC namespace in which its identifier has a meaning.
    pub namespace: u64,
}

/// A file that may be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFile {
    /// The file.
    pub identity: FileIdentity,
    /// Its absolute path with links resolved (`/proc/self/exe`).
    pub path: Vec<u8>,
    /// Owner, for a set-user-ID program.
    pub uid: u32,
    /// Group, for a set-group-ID program.
    pub gid: u32,
}
