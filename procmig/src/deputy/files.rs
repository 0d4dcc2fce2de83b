//! Files that the node asks for: programs, files to map, files of its own content.

use super::descriptors::{self, Making};
use super::{home_proc, kernel, lent};
use crate::wire::file_kind::{self, Kind};
use crate::wire::op::{FileIdentity, LentFile, MAX_FILE, ProgramFile};
use nix::errno::Errno;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Longest name of a memory file.
const MEMORY_NAME: usize = 249;

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn identity(file: &File) -> Result<(FileIdentity, std::fs::Metadata), Errno> {
    let meta = file.metadata().map_err(errno)?;
    Ok((FileIdentity::of(&meta), meta))
}

/// Opens a program as `execveat(2)` finds it.
pub(super) fn open_program(dirfd: i32, path: &[u8], flags: i32) -> Result<(ProgramFile, OwnedFd), Errno> {
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    if descriptors::is_own(dirfd) {
        return Err(Errno::EBADF);
    }
    let path = CString::new(path).map_err(|_| Errno::ENOENT)?;
    let mut how = libc::O_PATH | libc::O_CLOEXEC;
    if flags & libc::AT_SYMLINK_NOFOLLOW != 0 {
        how |= libc::O_NOFOLLOW;
    }
    // A path first: opening what is not a regular file may block or do something.
    let found = if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 && dirfd != libc::AT_FDCWD {
        // SAFETY: no pointers; the new descriptor is nobody else's.
        let copy = Errno::result(unsafe { libc::fcntl(dirfd, libc::F_DUPFD_CLOEXEC, 3) })?;
        // SAFETY: as above.
        unsafe { File::from_raw_fd(copy) }
    } else {
        // SAFETY: `path` ends with a NUL; the new descriptor is nobody else's.
        let found = Errno::result(unsafe { libc::openat(dirfd, path.as_ptr(), how) })?;
        // SAFETY: as above.
        unsafe { File::from_raw_fd(found) }
    };
    let (identity, meta) = identity(&found)?;
    if identity.mode & libc::S_IFMT == libc::S_IFLNK {
        return Err(Errno::ELOOP);
    }
    if identity.mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::EACCES);
    }
    may_execute(&found)?;
    let path = home_proc::path_of(found.as_raw_fd())?;
    let about = ProgramFile { identity, path, uid: meta.uid(), gid: meta.gid() };
    Ok((about, home_proc::reopen(&found)?))
}

fn may_execute(file: &File) -> Result<(), Errno> {
    let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
    let empty = c"".as_ptr() as u64;
    let args = [file.as_raw_fd() as u64, empty, libc::X_OK as u64, flags as u64, 0, 0];
    // SAFETY: the path is an empty string with its NUL.
    let allowed = unsafe { kernel::call(libc::SYS_faccessat2 as u32, args) };
    kernel::errno(allowed).map_or(Ok(()), Err)?;
    let mount = nix::sys::statvfs::fstatvfs(file)?;
    if mount.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC) { Err(Errno::EACCES) } else { Ok(()) }
}

/// What the guest's descriptor is, to map the file. It is lent to the node, never copied: to close a copy
/// would be to give up the process's locks on the file.
pub(super) fn map_file(fd: i32, write: bool) -> Result<FileIdentity, Errno> {
    if fd < 0 || descriptors::is_own(fd) {
        return Err(Errno::EBADF);
    }
    // SAFETY: no pointers.
    let flags = Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    if flags & libc::O_PATH != 0 {
        return Err(Errno::EBADF);
    }
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => return Err(Errno::EACCES),
        libc::O_RDONLY if write => return Err(Errno::EACCES),
        _ => {}
    }
    // SAFETY: the guest may close the number meanwhile, which makes `fstat` fail; it is not closed here.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let (identity, meta) = identity(&file)?;
    match identity.mode & libc::S_IFMT {
        libc::S_IFREG => {}
        // The device of zeros, which the node serves.
        libc::S_IFCHR if meta.rdev() == libc::makedev(1, 5) => {}
        _ => return Err(Errno::ENODEV),
    }
    Ok(identity)
}

/// As [`map_file`], but for a node of another host: lends the file too, if it is a regular one.
pub(super) fn lend(fd: i32, write: bool, making: &Making) -> Result<(FileIdentity, Option<LentFile>), Errno> {
    let identity = map_file(fd, write)?;
    if identity.mode & libc::S_IFMT != libc::S_IFREG {
        return Ok((identity, None));
    }
    if write {
        // One memory on two machines there is not: as with a file system that cannot map files.
        return Err(Errno::ENODEV);
    }
    let path = home_proc::path_of(fd)?;
    let lent = lent::lend(identity, path, Vec::new(), making, || home_proc::reopen(&fd).or_else(|_| copy(fd)))?;
    Ok((identity, Some(lent)))
}

/// A file that cannot be opened anew, as one whose permissions have changed since.
fn copy(fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; the new descriptor is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(Errno::result(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?) })
}

/// Whether the guest's descriptor stands for a file that may be handed over.
pub(super) fn may_hand_over(fd: RawFd) -> bool {
    if fd < 0 || descriptors::is_own(fd) {
        return false;
    }
    // SAFETY: the number is looked at in this function alone; one that is closed answers `EBADF`.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    match file_kind::of(file) {
        // The node has limits of its own, and its writes would not raise the signal.
        Some(Kind::Regular) => nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE)
            .is_ok_and(|(soft, _)| soft == libc::RLIM_INFINITY),
        kind => kind.is_some(),
    }
}

/// A read-only file with this content, as a descriptor of the guest's.
pub(super) fn memory_file(mut name: Vec<u8>, content: &[u8], close_on_exec: bool) -> Result<OwnedFd, Errno> {
    name.truncate(MEMORY_NAME);
    name.retain(|&byte| byte != 0);
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let _making = descriptors::making();
    // SAFETY: `name` ends with a NUL; the new descriptor is nobody else's.
    let mut file = unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        File::from_raw_fd(Errno::result(libc::memfd_create(name.as_ptr(), flags))?)
    };
    file.write_all(content).map_err(errno)?;
    file.rewind().map_err(errno)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    let reader = home_proc::reopen(&file)?;
    // The guest gets the lowest free number, which is the first of the two.
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: no pointers; both descriptors are ours.
    Errno::result(unsafe { libc::dup3(reader.as_raw_fd(), file.as_raw_fd(), flags) })?;
    Ok(file.into())
}

/// The first bytes of a regular file, with the rights of the calling thread.
pub(super) fn read_file(path: Vec<u8>, limit: u32) -> Result<Vec<u8>, Errno> {
    let path = std::ffi::OsString::from_vec(path);
    let mut content = Vec::new();
    // A child of a fork in another thread must not inherit the file.
    let _making = descriptors::making();
    // What blocks or takes a terminal when it is opened is no regular file.
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(errno)?;
    if !file.metadata().map_err(errno)?.is_file() {
        return Err(Errno::EINVAL);
    }
    file.take(limit.min(MAX_FILE).into()).read_to_end(&mut content).map_err(errno)?;
    Ok(content)
}

/// Closes the guest's close-on-exec descriptors.
pub(super) fn close_on_exec() {
    let _still = descriptors::still();
    let Ok(open) = home_proc::descriptors() else { return };
    for fd in open.into_iter().filter(|&fd| !descriptors::is_own(fd)) {
        // SAFETY: no pointers; the guest's descriptors are nobody's but the guest's, and it has said
        // that they end here. The listing's own is closed already and answers `EBADF`.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC != 0 {
                libc::close(fd);
            }
        }
    }
}
