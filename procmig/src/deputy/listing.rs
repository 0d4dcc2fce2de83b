//! Listings of `/proc` directories, without what is the deputy's own.

use super::{control, descriptors, kernel, link};
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

/// What is to be hidden in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The descriptors of this process's own.
    Descriptors,
    /// The descriptors that another deputy seems to have for its own.
    Others {
        /// The process.
        pid: u32,
        /// They are none below this.
        first: RawFd,
    },
    /// This process's control thread.
    Threads,
    /// The control thread of another deputy, the process.
    OthersThreads(u32),
}

/// A directory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Directory {
    /// `fd` or `fdinfo`: names are descriptors.
    Descriptors,
    /// `task`: names are thread IDs.
    Threads,
}

/// Longest name of such a directory that is looked at.
const NAME: usize = 64;

/// What is to be hidden in a directory, if it is one that shows a deputy's own.
pub(super) fn kind(fd: RawFd) -> Option<Kind> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    // SAFETY: a `statfs` of zeros is valid, and the kernel writes one.
    let about = unsafe {
        let mut about: libc::statfs = std::mem::zeroed();
        let got = kernel::call(libc::SYS_fstatfs as u32, [fd as u64, (&raw mut about) as u64, 0, 0, 0, 0]);
        (got == 0).then_some(about)
    }?;
    if about.f_type != PROC_SUPER_MAGIC {
        return None;
    }
    let link = format!("/proc/self/fd/{fd}\0");
    let mut name = [0u8; NAME];
    // SAFETY: the path ends with a NUL, and the kernel writes at most the length of `name`.
    let length = unsafe {
        let args = [link.as_ptr() as u64, name.as_mut_ptr() as u64, NAME as u64, 0, 0, 0];
        kernel::call(libc::SYS_readlink as u32, args)
    };
    let (pid, directory) = of(std::str::from_utf8(name.get(..usize::try_from(length).ok()?)?).ok()?)?;
    match directory {
        Directory::Descriptors if pid == std::process::id() => Some(Kind::Descriptors),
        Directory::Threads if pid == std::process::id() => Some(Kind::Threads),
        Directory::Descriptors => others(pid).map(|first| Kind::Others { pid, first }),
        Directory::Threads => is_deputy(pid).then_some(Kind::OthersThreads(pid)),
    }
}

/// Whether another process runs the same program, and so is a deputy as this one is.
fn is_deputy(pid: u32) -> bool {
    let program = |pid: &str| {
        let meta = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    program(&pid.to_string()).is_some_and(|other| program("self") == Some(other))
}

/// Where another process's own descriptors begin, if it is a deputy.
fn others(pid: u32) -> Option<RawFd> {
    if !is_deputy(pid) {
        return None;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`, and the new one is none.
    let got = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) };
    (got == 0).then(|| descriptors::usual_start(&limit))
}

/// Whose directory a path is, and which. `/proc` may be mounted elsewhere, so only the end of it counts.
fn of(path: &str) -> Option<(u32, Directory)> {
    let mut parts = path.rsplit('/');
    let last = parts.next()?;
    let above = parts.next()?;
    match last {
        "task" => Some((above.parse().ok()?, Directory::Threads)),
        "fd" | "fdinfo" => {
            let below = parts.next()?;
            let pid = if below == "task" { parts.next()? } else { above };
            Some((pid.parse().ok()?, Directory::Descriptors))
        }
        _ => None,
    }
}

/// Takes out of what `getdents` (`long` is false) or `getdents64` gave the entries that are the
/// deputy's own, and returns how many bytes are left.
pub(super) fn filter(kind: Kind, entries: &mut [u8], long: bool) -> usize {
    // Inode and offset of 8 bytes, the record's length of 2; then the type in the long form.
    const LENGTH: usize = 16;
    let name_at = if long { 19 } else { 18 };
    let (mut from, mut to) = (0, 0);
    while let Some(length) = entries.get(from + LENGTH..from + LENGTH + 2) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        if length < name_at || from + length > entries.len() {
            break;
        }
        let name = &entries[from + name_at..from + length];
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        if !number.is_some_and(|number| is_own(kind, number)) {
            entries.copy_within(from..from + length, to);
            to += length;
        }
        from += length;
    }
    to
}

fn is_own(kind: Kind, number: i32) -> bool {
    match kind {
        Kind::Descriptors => descriptors::is_own(number),
        Kind::Others { pid, first } => number >= first && is_connection(pid, number),
        Kind::Threads => number == control::TID.load(Ordering::Relaxed),
        Kind::OthersThreads(pid) => is_control_thread(pid, number),
    }
}

/// Whether a thread of a deputy has the name of those that serve the node.
fn is_control_thread(pid: u32, tid: i32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    name.trim_end_matches('\n') == control::NAME
}

/// Whether a descriptor of a process is of the kinds that deputies keep for themselves.
fn is_connection(pid: u32, fd: RawFd) -> bool {
    let target = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
    let target = target.to_string_lossy();
    // What is lent to a node of another host; a guest's own descriptors seldom have such numbers.
    let is_lent = link::is_remote() && target.starts_with('/');
    is_lent || target.starts_with("socket:") || target == "anon_inode:[signalfd]" || target == "/proc"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_of_processes_are_known() {
        assert_eq!(of("/proc/12/fd"), Some((12, Directory::Descriptors)));
        assert_eq!(of("/proc/12/fdinfo"), Some((12, Directory::Descriptors)));
        assert_eq!(of("/proc/12/task/15/fd"), Some((12, Directory::Descriptors)));
        assert_eq!(of("/proc/12/task"), Some((12, Directory::Threads)));
        assert_eq!(of("/elsewhere/proc/12/task"), Some((12, Directory::Threads)));
        for other in ["/proc/12", "/proc/12/net", "/proc/x/fd", "/proc", "/", ""] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn entries_of_the_deputy_are_taken_out() {
        let entry = |name: &str, long: bool| {
            let head = if long { 19 } else { 18 };
            let length = (head + name.len() + 2).next_multiple_of(8);
            let mut bytes = vec![0; length];
            bytes[16..18].copy_from_slice(&(length as u16).to_le_bytes());
            bytes[head..head + name.len()].copy_from_slice(name.as_bytes());
            bytes
        };
        for long in [true, false] {
            control::TID.store(4711, Ordering::Relaxed);
            let names = ["4711", ".", "47110", "4711", "1", "4711"];
            let mut bytes = names.map(|name| entry(name, long)).concat();
            let left = filter(Kind::Threads, &mut bytes, long);
            assert_eq!(bytes[..left], [".", "47110", "1"].map(|name| entry(name, long)).concat());
            let mut broken = entry("1", long);
            broken[16] = 255;
            assert_eq!(filter(Kind::Threads, &mut broken, long), 0);
        }
    }
}
