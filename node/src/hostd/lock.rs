//! Files whose lock says that a process lives.
//!
//! A PID file may outlive its process and the PID may come back as another's; a lock cannot.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a file, made if needed, and locks it; `None` if a living process holds the lock.
///
/// # Errors
/// As `open(2)` and `flock(2)`.
pub fn take(path: &Path) -> io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Whether a living process holds the lock; makes no file.
pub fn is_held(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // A shared lock, so that two who look at once do not see each other.
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}
