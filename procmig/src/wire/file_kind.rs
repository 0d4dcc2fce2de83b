//! Which files a deputy may hand over: those that do not look at who uses them. Terminals do, and so
//! does the process file system.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{fstat, major, minor};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use std::os::fd::{AsRawFd, BorrowedFd};

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file: never waits for others, and a read or write is done in full.
    Regular,
    /// A pipe or FIFO.
    Pipe,
    /// A stream socket.
    Socket,
    /// An `eventfd`, which is handed over to be known: it is read and written at home.
    Event,
    /// An `epoll` set.
    Epoll,
    /// A memory device, such as `/dev/null`: never waits.
    Device,
}

/// Major number of the memory devices.
const MEMORY_DEVICES: u64 = 1;
/// Minor numbers of `null`, `zero`, `full`, `random` and `urandom`.
const NEVER_WAITING: [u64; 5] = [3, 5, 7, 8, 9];

/// What kind a file is, if one that may be handed over.
pub fn of(file: BorrowedFd<'_>) -> Option<Kind> {
    let flags = fcntl(file, FcntlArg::F_GETFL).ok()?;
    if flags & (libc::O_PATH | libc::O_DIRECT) != 0 {
        return None;
    }
    let status = fstat(file).ok()?;
    match status.st_mode & libc::S_IFMT {
        libc::S_IFREG => {
            let system = fstatfs(file).ok()?.filesystem_type();
            (system != PROC_SUPER_MAGIC).then_some(Kind::Regular)
        }
        libc::S_IFIFO => Some(Kind::Pipe),
        libc::S_IFSOCK => {
            let kind = getsockopt(&file, sockopt::SockType).ok()?;
            (kind == SockType::Stream).then_some(Kind::Socket)
        }
        libc::S_IFCHR => {
            let device = status.st_rdev;
            let never_waits = NEVER_WAITING.contains(&minor(device));
            (major(device) == MEMORY_DEVICES && never_waits).then_some(Kind::Device)
        }
        // What has no name in any file system.
        0 => match std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?.to_str()? {
            "anon_inode:[eventfd]" => Some(Kind::Event),
            "anon_inode:[eventpoll]" => Some(Kind::Epoll),
            _ => None,
        },
        _ => None,
    }
}
