//! The guest's calls that give, take or limit numbers of descriptors. The deputy makes descriptors of its own beside
//! them, which have low numbers for a moment and may need the limit raised; the guest counts on the lowest free number,
//! and on its limit.

use super::descriptors::{self, limit, set_limit, still};
use super::kernel;
use nix::errno::Errno;
use std::sync::atomic::{AtomicU64, Ordering};

/// The guest's hard limit on descriptors, where it is lower than the deputy's: that is left as it is, for the deputy's
/// own descriptors are above the guest's.
static HARD: AtomicU64 = AtomicU64::new(u64::MAX);

/// How a call has to do with numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Not at all.
    None,
    /// It gives some and does not wait.
    Quick,
    /// It closes what this number stands for, which may take long, or, if it is none, may give it to something else.
    Closes(u64),
    /// It gives one, and may wait for long with it.
    Slow,
    /// It is about the limit: the new one is that argument, if any, the old one goes to that one.
    Limit(Option<usize>, Option<usize>),
}

fn kind(nr: u32, args: &[u64; 6]) -> Kind {
    let limit = u64::from(libc::RLIMIT_NOFILE);
    match i64::from(nr) {
        libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 | libc::SYS_creat => Kind::Slow,
        libc::SYS_accept | libc::SYS_accept4 | libc::SYS_open_by_handle_at | libc::SYS_mq_open => Kind::Slow,
        libc::SYS_fcntl => match args[1] as i32 {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => Kind::Quick,
            _ => Kind::None,
        },
        libc::SYS_close => Kind::Closes(args[0]),
        libc::SYS_dup2 | libc::SYS_dup3 => Kind::Closes(args[1]),
        libc::SYS_dup => Kind::Quick,
        libc::SYS_pipe | libc::SYS_pipe2 | libc::SYS_socket | libc::SYS_socketpair => Kind::Quick,
        libc::SYS_epoll_create | libc::SYS_epoll_create1 | libc::SYS_eventfd | libc::SYS_eventfd2 => Kind::Quick,
        libc::SYS_signalfd | libc::SYS_signalfd4 | libc::SYS_timerfd_create | libc::SYS_memfd_create => Kind::Quick,
        libc::SYS_inotify_init | libc::SYS_inotify_init1 | libc::SYS_fanotify_init => Kind::Quick,
        libc::SYS_pidfd_open | libc::SYS_pidfd_getfd => Kind::Quick,
        libc::SYS_getrlimit if args[0] == limit => Kind::Limit(None, Some(1)),
        libc::SYS_setrlimit if args[0] == limit => Kind::Limit(Some(1), None),
        libc::SYS_prlimit64 if args[1] == limit && [0, std::process::id()].contains(&(args[0] as u32)) => {
            Kind::Limit(Some(2), Some(3))
        }
        _ => Kind::None,
    }
}

/// Makes a call of the guest's.
///
/// # Safety
/// As [`kernel::call`].
pub(super) unsafe fn call(nr: u32, args: [u64; 6]) -> i64 {
    // SAFETY: the caller's promise.
    let call = || unsafe { kernel::call(nr, args) };
    match kind(nr, &args) {
        Kind::None => call(),
        Kind::Quick => {
            let _still = still();
            call()
        }
        Kind::Closes(fd) => {
            let still = still();
            if is_open(fd) {
                // It is the guest's, and nobody else's by the time that it is closed.
                drop(still);
            }
            call()
        }
        Kind::Slow => loop {
            let before = descriptors::makings();
            let ret = call();
            if before.is_multiple_of(2) && before == descriptors::makings() {
                return ret;
            }
            if ret == -i64::from(libc::EMFILE) {
                // Its number was the deputy's for a moment.
                drop(still());
            } else if ret < 0 {
                return ret;
            } else {
                return as_if_alone(ret);
            }
        },
        Kind::Limit(new, old) => {
            if i64::from(nr) != libc::SYS_prlimit64 && args[1] == 0 {
                return -i64::from(libc::EFAULT);
            }
            // SAFETY: the caller's promise, for calls with these arguments.
            unsafe { limit_to(new.map_or(0, |new| args[new]), old.map_or(0, |old| args[old])) }
        }
    }
}

/// Whether a number stands for something.
fn is_open(fd: u64) -> bool {
    // SAFETY: no pointers.
    unsafe { kernel::call(libc::SYS_fcntl as u32, [fd, libc::F_GETFD as u64, 0, 0, 0, 0]) >= 0 }
}

/// Whether a file is locked by anyone: a process loses its locks of a file with any descriptor of it that is closed.
fn is_locked(fd: i64) -> bool {
    let mut lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    let args = [fd as u64, libc::F_OFD_GETLK as u64, std::ptr::from_mut(&mut lock) as u64, 0, 0, 0];
    // SAFETY: the kernel reads and writes one `flock`. Where there can be no locks it fails.
    let ret = unsafe { kernel::call(libc::SYS_fcntl as u32, args) };
    ret == 0 && lock.l_type != libc::F_UNLCK as i16
}

/// Gives a new descriptor of the guest's, which was made while the deputy made some, the number that it had got
/// otherwise; unless that would cost it a lock.
fn as_if_alone(fd: i64) -> i64 {
    let _still = still();
    if is_locked(fd) {
        return fd;
    }
    // SAFETY: no pointers; the new descriptors are the guest's, and it knows of neither yet.
    let fcntl = |command: i32, arg: i32| unsafe {
        kernel::call(libc::SYS_fcntl as u32, [fd as u64, command as u64, arg as u64, 0, 0, 0])
    };
    // SAFETY: as above.
    let close = |fd: i64| unsafe { kernel::call(libc::SYS_close as u32, [fd as u64, 0, 0, 0, 0, 0]) };
    let flags = fcntl(libc::F_GETFD, 0);
    let closes = flags >= 0 && flags as i32 & libc::FD_CLOEXEC != 0;
    let lowest = fcntl(if closes { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD }, 0);
    let (kept, left) = match lowest {
        // None is left below the limit, and this one may be above.
        ..0 if limit().is_ok_and(|limit| fd as u64 >= limit.rlim_cur) => (lowest, fd),
        ..0 => return fd,
        _ if lowest < fd => (lowest, fd),
        _ => (fd, lowest),
    };
    close(left);
    kept
}

/// Whether the calling thread may raise hard limits: `CAP_SYS_RESOURCE` is in effect.
fn may_raise() -> bool {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_SYS_RESOURCE: u32 = 24;
    let (head, mut sets) = ([VERSION_3, 0], [0_u32; 6]);
    let args = [head.as_ptr() as u64, sets.as_mut_ptr() as u64, 0, 0, 0, 0];
    // SAFETY: the kernel reads a header of 8 bytes, and writes two sets of 12 bytes each.
    let ret = unsafe { kernel::call(libc::SYS_capget as u32, args) };
    ret == 0 && sets[0] & 1 << CAP_SYS_RESOURCE != 0
}

/// `prlimit64` of the limit on descriptors of this process.
///
/// # Safety
/// `new` and `old` are 0 or point to 16 bytes each, to be read and to be written.
unsafe fn limit_to(new: u64, old: u64) -> i64 {
    let failed = |errno: Errno| -(errno as i64);
    let _still = still();
    let real = match limit() {
        Ok(limit) => limit,
        Err(errno) => return failed(errno),
    };
    let hard = HARD.load(Ordering::Relaxed).min(real.rlim_max);
    if new != 0 {
        // SAFETY: the caller's promise.
        let new = unsafe { std::ptr::read_unaligned(new as *const libc::rlimit) };
        if new.rlim_cur > new.rlim_max {
            return failed(Errno::EINVAL);
        }
        // A lower one is kept here; of a higher one the kernel knows who may have it.
        let set = match new.rlim_max <= hard {
            true => libc::rlimit { rlim_cur: new.rlim_cur, rlim_max: real.rlim_max },
            false if hard == real.rlim_max || may_raise() => {
                libc::rlimit { rlim_cur: new.rlim_cur, rlim_max: new.rlim_max.max(real.rlim_max) }
            }
            false => return failed(Errno::EPERM),
        };
        if let Err(errno) = set_limit(&set) {
            return failed(errno);
        }
        HARD.store(if new.rlim_max < set.rlim_max { new.rlim_max } else { u64::MAX }, Ordering::Relaxed);
    }
    if old != 0 {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_unaligned(old as *mut libc::rlimit, libc::rlimit { rlim_max: hard, ..real }) };
    }
    0
}
