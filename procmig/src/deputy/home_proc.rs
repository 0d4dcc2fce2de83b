//! Home's `/proc`, held open from the start: the guest may change its root to where there is none.

use super::descriptors::{Making, Own};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicI32, Ordering};

/// The directory; -1 where there is none.
static PROC: AtomicI32 = AtomicI32::new(-1);

/// Opens it.
///
/// # Errors
/// If there is no descriptor left. That there is no `/proc` is none.
pub(super) fn start(making: &Making) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    if let Ok(directory) = nix::fcntl::open("/proc", flags, Mode::empty()) {
        PROC.store(Own::new(directory, making)?.leak(), Ordering::Relaxed);
    }
    Ok(())
}

/// The own descriptor that a child keeps.
pub(super) fn kept() -> Option<RawFd> {
    Some(PROC.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
}

fn directory() -> Result<BorrowedFd<'static>, Errno> {
    let fd = kept().ok_or(Errno::ENOENT)?;
    // SAFETY: the number is the deputy's own and stays open for as long as the process lives.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Opens a file by its path below `/proc`, close-on-exec.
pub(super) fn open(path: &str, flags: OFlag) -> Result<File, Errno> {
    openat(directory()?, path, flags | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
}

/// Opens anew what a descriptor is open for, to read it.
pub(super) fn reopen(fd: &impl AsRawFd) -> Result<OwnedFd, Errno> {
    open(&format!("self/fd/{}", fd.as_raw_fd()), OFlag::O_RDONLY).map(OwnedFd::from)
}

/// The path that a descriptor was opened by.
pub(super) fn path_of(fd: RawFd) -> Result<Vec<u8>, Errno> {
    readlinkat(directory()?, format!("self/fd/{fd}").as_str()).map(OsStringExt::into_vec)
}

/// The numbers of this process's descriptors.
pub(super) fn descriptors() -> Result<Vec<RawFd>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(directory()?, "self/fd", flags, Mode::empty())?;
    let number = |name: &std::ffi::CStr| name.to_str().ok()?.parse().ok();
    Ok(listing.iter().flatten().filter_map(|entry| number(entry.file_name())).collect())
}
