//! The deputy's own descriptors: at high numbers, out of the guest's way and out of its reach.

use super::threads::lock;
use nix::errno::Errno;
use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Own descriptors are below this.
const MOST: usize = 1 << 20;
/// Where own descriptors start if the limit allows.
const BASE: u64 = 16_384;
/// How many own descriptors the limit is raised for, for the moment of their making.
const ROOM: u64 = 65_536;

/// One bit for each descriptor of the deputy's own.
static OWN: [AtomicU64; MOST / 64] = [const { AtomicU64::new(0) }; MOST / 64];

/// The words of [`OWN`] that were ever used are from the first to the second: the rest need no look.
static LOWEST: AtomicUsize = AtomicUsize::new(MOST / 64);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// See [`Making`].
static MAKING: Mutex<()> = Mutex::new(());

/// How often the deputy has begun, and ended, to make descriptors: odd while it does.
static MAKINGS: AtomicU64 = AtomicU64::new(0);

/// Held while an own descriptor is closed and forgotten, and at the very fork, so that a child does not
/// inherit one in between.
pub(super) static CLOSING: Mutex<()> = Mutex::new(());

/// Whether a descriptor is the deputy's own.
pub(super) fn is_own(fd: i32) -> bool {
    usize::try_from(fd).is_ok_and(|fd| fd < MOST && OWN[fd / 64].load(Ordering::Relaxed) & 1 << (fd % 64) != 0)
}

fn set(fd: RawFd, own: bool) {
    let fd = fd as usize;
    if fd >= MOST {
        return;
    }
    if own {
        LOWEST.fetch_min(fd / 64, Ordering::Relaxed);
        HIGHEST.fetch_max(fd / 64, Ordering::Relaxed);
        OWN[fd / 64].fetch_or(1 << (fd % 64), Ordering::Relaxed);
    } else {
        OWN[fd / 64].fetch_and(!(1 << (fd % 64)), Ordering::Relaxed);
    }
}

/// The deputy's own descriptors, ascending.
pub(super) fn own() -> impl Iterator<Item = RawFd> {
    let words = LOWEST.load(Ordering::Relaxed)..=HIGHEST.load(Ordering::Relaxed);
    words.flat_map(|word| {
        let bits = OWN[word].load(Ordering::Relaxed);
        (0..64).filter(move |bit| bits & 1 << bit != 0).map(move |bit| (word * 64 + bit) as RawFd)
    })
}

/// Where the own descriptors of a deputy with this limit usually start.
pub(super) fn usual_start(limit: &libc::rlimit) -> RawFd {
    let base = limit.rlim_cur.min(BASE);
    (if limit.rlim_max > base { base } else { limit.rlim_cur / 4 * 3 }) as RawFd
}

/// The right to make descriptors: held while a new one is not yet one of the deputy's own, and over a fork, so that a
/// child never inherits one that it does not know of. New ones have low numbers for a moment, and may need the limit on
/// numbers raised: [`numbers`](super::numbers) has the guest's calls not notice.
#[derive(Debug)]
pub(super) struct Making {
    _lock: MutexGuard<'static, ()>,
    /// The guest's limit, which is put back in the end, and whether it was raised.
    limit: OnceCell<(libc::rlimit, bool)>,
}

/// Begins to make descriptors.
pub(super) fn making() -> Making {
    let lock = lock(&MAKING);
    MAKINGS.fetch_add(1, Ordering::SeqCst);
    Making { _lock: lock, limit: OnceCell::new() }
}

/// Keeps the deputy from making descriptors.
pub(super) fn still() -> MutexGuard<'static, ()> {
    lock(&MAKING)
}

/// Changes whenever the deputy begins or ends to make descriptors; odd while it does.
pub(super) fn makings() -> u64 {
    MAKINGS.load(Ordering::SeqCst)
}

impl Making {
    /// Raises the limit as far as that goes; gives what it was.
    ///
    /// # Errors
    /// As `getrlimit(2)`.
    pub(super) fn raise(&self) -> io::Result<libc::rlimit> {
        if let Some((limit, _)) = self.limit.get() {
            return Ok(*limit);
        }
        let limit = limit()?;
        let most = limit.rlim_cur.min(BASE) + ROOM;
        let raised = libc::rlimit { rlim_cur: limit.rlim_max.min(most), rlim_max: limit.rlim_max };
        let raise = raised.rlim_cur > limit.rlim_cur && set_limit(&raised).is_ok();
        Ok(self.limit.get_or_init(|| (limit, raise)).0)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some((limit, true)) = self.limit.get() {
            // It was this before.
            let _ = set_limit(limit);
        }
        MAKINGS.fetch_add(1, Ordering::SeqCst);
    }
}

/// The limit on descriptors.
pub(super) fn limit() -> Result<libc::rlimit, Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(limit)
}

/// Sets the limit on descriptors.
pub(super) fn set_limit(limit: &libc::rlimit) -> Result<(), Errno> {
    // SAFETY: the kernel reads one `rlimit`.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) }).map(drop)
}

/// A descriptor of the deputy's own; closed and forgotten when dropped.
#[derive(Debug)]
pub(super) struct Own(RawFd);

impl Own {
    /// Moves a descriptor to a high number.
    ///
    /// # Errors
    /// As `fcntl(2)`, if there is no number left.
    pub(super) fn new(fd: OwnedFd, making: &Making) -> io::Result<Self> {
        let limit = making.raise()?;
        let mut moved = Err(Errno::EMFILE);
        for from in [limit.rlim_cur.min(BASE), limit.rlim_cur / 4 * 3, 3] {
            // SAFETY: no pointers; the new descriptor is nobody else's.
            moved = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, from as libc::c_int) });
            if moved.is_ok() {
                break;
            }
        }
        let moved = moved?;
        set(moved, true);
        Ok(Self(moved))
    }

    /// Makes one, with room for it even if the guest has used its own up.
    ///
    /// # Errors
    /// Those of `make`, and as [`Own::new`].
    pub(super) fn make<F: Into<OwnedFd>>(making: &Making, make: impl FnOnce() -> io::Result<F>) -> io::Result<Self> {
        making.raise()?;
        Self::new(make()?.into(), making)
    }

    /// Takes another's place: this number stands for what the other did.
    ///
    /// # Errors
    /// As `dup3(2)`.
    pub(super) fn become_like(&self, other: &impl AsRawFd) -> io::Result<()> {
        let making = making();
        // What is beyond the limit cannot be replaced.
        making.raise()?;
        // SAFETY: no pointers; both numbers are open, and the second stays so.
        Errno::result(unsafe { libc::dup3(other.as_raw_fd(), self.0, libc::O_CLOEXEC) })?;
        Ok(())
    }

    /// Gives it up without closing it.
    pub(super) fn leak(self) -> RawFd {
        let fd = self.0;
        std::mem::forget(self);
        fd
    }
}

impl AsRawFd for Own {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// Closes an own descriptor.
pub(super) fn close(fd: RawFd) {
    let _closing = lock(&CLOSING);
    set(fd, false);
    // SAFETY: the number was the deputy's own, and nobody uses it after this.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// In a child: closes all own descriptors that it inherited, but for these.
pub(super) fn close_all_but(keep: &[RawFd]) {
    for fd in own().filter(|fd| !keep.contains(fd)) {
        close(fd);
    }
}

/// Two connected sockets.
///
/// # Errors
/// As `socketpair(2)`.
pub(super) fn socketpair(making: &Making) -> io::Result<(Own, Own)> {
    making.raise()?;
    let (one, other) = std::os::unix::net::UnixStream::pair()?;
    Ok((Own::new(one.into(), making)?, Own::new(other.into(), making)?))
}

/// `close_range(2)` over all but the own descriptors. The deputy makes none meanwhile.
pub(super) fn close_range(first: u32, last: u32, flags: u32) -> i64 {
    const UNSHARE: u32 = 2;
    // All deputy threads share one table; a thread that had its own would lose sight of theirs.
    let flags = flags & !UNSHARE;
    // SAFETY: no pointers; descriptors of the guest are the guest's to close.
    let range = |first: u32, last: u32| unsafe {
        super::kernel::call(libc::SYS_close_range as u32, [first.into(), last.into(), flags.into(), 0, 0, 0])
    };
    let _still = still();
    if first > last {
        return range(first, last);
    }
    let mut from = first;
    for fd in own().map(|fd| fd as u32).filter(|fd| (first..=last).contains(fd)) {
        if fd > from {
            let ret = range(from, fd - 1);
            if ret < 0 {
                return ret;
            }
        }
        from = fd + 1;
    }
    if from <= last { range(from, last) } else { 0 }
}

/// The raw number of a descriptor that the guest shall own.
pub(super) fn give(fd: OwnedFd) -> i64 {
    fd.into_raw_fd().into()
}
