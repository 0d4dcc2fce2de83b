//! Names of the numbers in arguments.

/// How the numbers of one argument are named.
#[derive(Debug)]
pub struct Names {
    /// Bits that hold one of `choices`; 0 if there are none.
    pub choice_mask: u64,
    /// The names of what those bits hold.
    pub choices: &'static [(u64, &'static str)],
    /// The names of the other bits. A name of several bits comes before the names of those bits.
    pub flags: &'static [(u64, &'static str)],
    /// What it is of, for bits without a name: `0x40 /* O_??? */`.
    pub prefix: &'static str,
}

impl Names {
    const fn choices(choices: &'static [(u64, &'static str)], prefix: &'static str) -> Self {
        Self { choice_mask: u32::MAX as u64, choices, flags: &[], prefix }
    }

    const fn flags(flags: &'static [(u64, &'static str)], prefix: &'static str) -> Self {
        Self { choice_mask: 0, choices: &[], flags, prefix }
    }

    /// The names of `value`, joined by `|`.
    pub fn format(&self, value: u64) -> String {
        // The kernel's flags are ints; what is above them is left over in the register.
        let value = value & u64::from(u32::MAX);
        let mut parts: Vec<String> = Vec::new();
        let choice = value & self.choice_mask;
        let mut rest = value & !self.choice_mask;
        match self.choices.iter().find(|(number, _)| *number == choice) {
            Some((_, name)) => parts.push((*name).to_owned()),
            None if self.choice_mask == 0 => {}
            None => parts.push(format!("{choice:#x} /* {}??? */", self.prefix)),
        }
        for (bits, name) in self.flags {
            if rest & bits == *bits && *bits != 0 {
                parts.push((*name).to_owned());
                rest &= !bits;
            }
        }
        if rest != 0 {
            parts.push(if parts.is_empty() {
                format!("{rest:#x} /* {}??? */", self.prefix)
            } else {
                format!("{rest:#x}")
            });
        }
        if parts.is_empty() { "0".to_owned() } else { parts.join("|") }
    }
}

macro_rules! named {
    ($($name:ident),* $(,)?) => { &[$((libc::$name as u32 as u64, stringify!($name))),*] };
}

/// `open`
pub static OPEN: Names = Names {
    choice_mask: 3,
    choices: named![O_RDONLY, O_WRONLY, O_RDWR],
    flags: named![
        O_TMPFILE,
        O_CREAT,
        O_EXCL,
        O_NOCTTY,
        O_TRUNC,
        O_APPEND,
        O_NONBLOCK,
        O_SYNC,
        O_DSYNC,
        O_ASYNC,
        O_DIRECT,
        O_DIRECTORY,
        O_NOFOLLOW,
        O_NOATIME,
        O_CLOEXEC,
        O_PATH
    ],
    prefix: "O_",
};
/// `pipe2`, `dup3`
pub static DESCRIPTOR: Names = Names::flags(named![O_CLOEXEC, O_NONBLOCK, O_DIRECT], "O_");
/// `mmap`, the protection
pub static PROT: Names = Names {
    choice_mask: 7,
    choices: &[
        (0, "PROT_NONE"),
        (1, "PROT_READ"),
        (2, "PROT_WRITE"),
        (3, "PROT_READ|PROT_WRITE"),
        (4, "PROT_EXEC"),
        (5, "PROT_READ|PROT_EXEC"),
        (6, "PROT_WRITE|PROT_EXEC"),
        (7, "PROT_READ|PROT_WRITE|PROT_EXEC"),
    ],
    flags: named![PROT_GROWSDOWN, PROT_GROWSUP],
    prefix: "PROT_",
};
/// `mmap`, the flags
pub static MAP: Names = Names {
    choice_mask: 15,
    choices: named![MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE],
    flags: named![
        MAP_FIXED,
        MAP_ANONYMOUS,
        MAP_32BIT,
        MAP_GROWSDOWN,
        MAP_DENYWRITE,
        MAP_EXECUTABLE,
        MAP_LOCKED,
        MAP_NORESERVE,
        MAP_POPULATE,
        MAP_NONBLOCK,
        MAP_STACK,
        MAP_HUGETLB,
        MAP_SYNC,
        MAP_FIXED_NOREPLACE
    ],
    prefix: "MAP_",
};
/// `mremap`
pub static MREMAP: Names = Names::flags(named![MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP], "MREMAP_");
/// `msync`
pub static MSYNC: Names = Names::flags(named![MS_ASYNC, MS_INVALIDATE, MS_SYNC], "MS_");
/// `madvise`
pub static MADVISE: Names = Names::choices(
    named![
        MADV_NORMAL,
        MADV_RANDOM,
        MADV_SEQUENTIAL,
        MADV_WILLNEED,
        MADV_DONTNEED,
        MADV_FREE,
        MADV_REMOVE,
        MADV_DONTFORK,
        MADV_DOFORK,
        MADV_MERGEABLE,
        MADV_UNMERGEABLE,
        MADV_HUGEPAGE,
        MADV_NOHUGEPAGE,
        MADV_DONTDUMP,
        MADV_DODUMP,
        MADV_WIPEONFORK,
        MADV_KEEPONFORK,
        MADV_COLD,
        MADV_PAGEOUT,
        MADV_POPULATE_READ,
        MADV_POPULATE_WRITE
    ],
    "MADV_",
);
/// `clone`; the low byte is a signal.
pub static CLONE: Names = Names::flags(
    named![
        CLONE_VM,
        CLONE_FS,
        CLONE_FILES,
        CLONE_SIGHAND,
        CLONE_PIDFD,
        CLONE_PTRACE,
        CLONE_VFORK,
        CLONE_PARENT,
        CLONE_THREAD,
        CLONE_NEWNS,
        CLONE_SYSVSEM,
        CLONE_SETTLS,
        CLONE_PARENT_SETTID,
        CLONE_CHILD_CLEARTID,
        CLONE_DETACHED,
        CLONE_UNTRACED,
        CLONE_CHILD_SETTID,
        CLONE_NEWCGROUP,
        CLONE_NEWUTS,
        CLONE_NEWIPC,
        CLONE_NEWUSER,
        CLONE_NEWPID,
        CLONE_NEWNET,
        CLONE_IO
    ],
    "CLONE_",
);
/// `futex`, the operation
pub static FUTEX: Names = Names {
    choice_mask: 0x7f,
    choices: named![
        FUTEX_WAIT,
        FUTEX_WAKE,
        FUTEX_FD,
        FUTEX_REQUEUE,
        FUTEX_CMP_REQUEUE,
        FUTEX_WAKE_OP,
        FUTEX_LOCK_PI,
        FUTEX_UNLOCK_PI,
        FUTEX_TRYLOCK_PI,
        FUTEX_WAIT_BITSET,
        FUTEX_WAKE_BITSET,
        FUTEX_WAIT_REQUEUE_PI,
        FUTEX_CMP_REQUEUE_PI,
        FUTEX_LOCK_PI2
    ],
    flags: named![FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME],
    prefix: "FUTEX_",
};
/// `rt_sigprocmask`
pub static SIGMASK: Names = Names::choices(named![SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK], "SIG_");
/// `rt_sigaction`, `sa_flags`
pub static SIGACTION: Names = Names {
    choice_mask: 0,
    choices: &[],
    flags: &[
        (0x0400_0000, "SA_RESTORER"),
        (libc::SA_ONSTACK as u64, "SA_ONSTACK"),
        (libc::SA_RESTART as u64, "SA_RESTART"),
        (libc::SA_NODEFER as u64, "SA_NODEFER"),
        (libc::SA_RESETHAND as u32 as u64, "SA_RESETHAND"),
        (libc::SA_SIGINFO as u64, "SA_SIGINFO"),
        (libc::SA_NOCLDSTOP as u64, "SA_NOCLDSTOP"),
        (libc::SA_NOCLDWAIT as u64, "SA_NOCLDWAIT"),
    ],
    prefix: "SA_",
};
/// `sigaltstack`
pub static SIGSTACK: Names = Names::flags(&[(1 << 31, "SS_AUTODISARM"), (1, "SS_ONSTACK"), (2, "SS_DISABLE")], "SS_");
/// `lseek`
pub static WHENCE: Names = Names::choices(named![SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE], "SEEK_");
/// `newfstatat` and its like
pub static AT: Names = Names::flags(
    named![
        AT_SYMLINK_NOFOLLOW,
        AT_SYMLINK_FOLLOW,
        AT_NO_AUTOMOUNT,
        AT_EMPTY_PATH,
        AT_STATX_FORCE_SYNC,
        AT_STATX_DONT_SYNC
    ],
    "AT_",
);
/// `unlinkat`
pub static UNLINKAT: Names = Names::flags(named![AT_REMOVEDIR], "AT_");
/// `faccessat2`
pub static FACCESSAT: Names = Names::flags(named![AT_EACCESS, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH], "AT_");
/// `statx`, the mask
pub static STATX: Names = Names::flags(
    named![
        STATX_ALL,
        STATX_BASIC_STATS,
        STATX_TYPE,
        STATX_MODE,
        STATX_NLINK,
        STATX_UID,
        STATX_GID,
        STATX_ATIME,
        STATX_MTIME,
        STATX_CTIME,
        STATX_INO,
        STATX_SIZE,
        STATX_BLOCKS,
        STATX_BTIME,
        STATX_MNT_ID
    ],
    "STATX_",
);
/// `access`
pub static ACCESS: Names = Names {
    choice_mask: 7,
    choices: &[
        (0, "F_OK"),
        (1, "X_OK"),
        (2, "W_OK"),
        (3, "W_OK|X_OK"),
        (4, "R_OK"),
        (5, "R_OK|X_OK"),
        (6, "R_OK|W_OK"),
        (7, "R_OK|W_OK|X_OK"),
    ],
    flags: &[],
    prefix: "?_OK",
};
/// `fcntl`, the command
pub static FCNTL: Names = Names::choices(
    named![
        F_DUPFD,
        F_GETFD,
        F_SETFD,
        F_GETFL,
        F_SETFL,
        F_GETLK,
        F_SETLK,
        F_SETLKW,
        F_SETOWN,
        F_GETOWN,
        F_OFD_GETLK,
        F_OFD_SETLK,
        F_OFD_SETLKW,
        F_DUPFD_CLOEXEC,
        F_SETPIPE_SZ,
        F_GETPIPE_SZ,
        F_ADD_SEALS,
        F_GET_SEALS
    ],
    "F_",
);
/// `fcntl` with `F_SETFD`
pub static FD_FLAGS: Names = Names::flags(named![FD_CLOEXEC], "FD_");
/// `ioctl`, the command
pub static IOCTL: Names = Names::choices(
    named![
        TCGETS, TCSETS, TCSETSW, TCSETSF, TCSBRK, TCXONC, TCFLSH, TIOCSCTTY, TIOCNOTTY, TIOCGPGRP, TIOCSPGRP, TIOCGSID,
        TIOCGWINSZ, TIOCSWINSZ, TIOCOUTQ, FIONREAD, FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX, FICLONE, BLKSSZGET
    ],
    "",
);
/// `clock_gettime`
pub static CLOCK: Names = Names::choices(
    named![
        CLOCK_REALTIME,
        CLOCK_MONOTONIC,
        CLOCK_PROCESS_CPUTIME_ID,
        CLOCK_THREAD_CPUTIME_ID,
        CLOCK_MONOTONIC_RAW,
        CLOCK_REALTIME_COARSE,
        CLOCK_MONOTONIC_COARSE,
        CLOCK_BOOTTIME,
        CLOCK_REALTIME_ALARM,
        CLOCK_BOOTTIME_ALARM,
        CLOCK_TAI
    ],
    "CLOCK_",
);
/// `clock_nanosleep`, `timer_settime`
pub static TIMER: Names = Names::flags(named![TIMER_ABSTIME], "TIMER_");
/// `setitimer`
pub static ITIMER: Names = Names::choices(named![ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF], "ITIMER_");
/// `wait4`
pub static WAIT: Names =
    Names::flags(named![WNOHANG, WUNTRACED, WEXITED, WCONTINUED, WNOWAIT, __WNOTHREAD, __WALL, __WCLONE], "W");
/// `arch_prctl`
pub static ARCH: Names = Names::choices(
    &[(0x1001, "ARCH_SET_GS"), (0x1002, "ARCH_SET_FS"), (0x1003, "ARCH_GET_FS"), (0x1004, "ARCH_GET_GS")],
    "ARCH_",
);
/// `prctl`
pub static PRCTL: Names = Names::choices(
    named![
        PR_SET_PDEATHSIG,
        PR_GET_PDEATHSIG,
        PR_GET_DUMPABLE,
        PR_SET_DUMPABLE,
        PR_SET_NAME,
        PR_GET_NAME,
        PR_GET_SECCOMP,
        PR_SET_SECCOMP,
        PR_CAPBSET_READ,
        PR_SET_NO_NEW_PRIVS,
        PR_GET_NO_NEW_PRIVS,
        PR_SET_CHILD_SUBREAPER,
        PR_SET_VMA
    ],
    "PR_",
);
/// `prlimit64`
pub static RLIMIT: Names = Names::choices(
    named![
        RLIMIT_CPU,
        RLIMIT_FSIZE,
        RLIMIT_DATA,
        RLIMIT_STACK,
        RLIMIT_CORE,
        RLIMIT_RSS,
        RLIMIT_NPROC,
        RLIMIT_NOFILE,
        RLIMIT_MEMLOCK,
        RLIMIT_AS,
        RLIMIT_LOCKS,
        RLIMIT_SIGPENDING,
        RLIMIT_MSGQUEUE,
        RLIMIT_NICE,
        RLIMIT_RTPRIO,
        RLIMIT_RTTIME
    ],
    "RLIMIT_",
);
/// `getrusage`
pub static RUSAGE: Names = Names::choices(named![RUSAGE_SELF, RUSAGE_CHILDREN, RUSAGE_THREAD], "RUSAGE_");
/// `getrandom`
pub static RANDOM: Names = Names::flags(named![GRND_NONBLOCK, GRND_RANDOM, GRND_INSECURE], "GRND_");
/// `memfd_create`
pub static MEMFD: Names = Names::flags(named![MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_HUGETLB], "MFD_");
/// `eventfd2`
pub static EVENTFD: Names = Names::flags(named![EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE], "EFD_");
/// `epoll_create1`
pub static EPOLL_CREATE: Names = Names::flags(named![EPOLL_CLOEXEC], "EPOLL_");
/// `epoll_ctl`
pub static EPOLL_CTL: Names = Names::choices(named![EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD], "EPOLL_CTL_");
/// `poll`
pub static POLL: Names = Names::flags(
    named![POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLNVAL, POLLRDNORM, POLLRDBAND, POLLWRNORM, POLLRDHUP],
    "POLL",
);
/// `socket`, the family
pub static FAMILY: Names =
    Names::choices(named![AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK], "AF_");
/// `socket`, the type
pub static SOCKET: Names = Names {
    choice_mask: 15,
    choices: named![SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_RDM, SOCK_SEQPACKET],
    flags: named![SOCK_CLOEXEC, SOCK_NONBLOCK],
    prefix: "SOCK_",
};
/// `accept4`
pub static SOCKET_FLAGS: Names = Names::flags(named![SOCK_CLOEXEC, SOCK_NONBLOCK], "SOCK_");
/// `setsockopt`, the level
pub static SOCKET_LEVEL: Names =
    Names::choices(&[(0, "SOL_IP"), (1, "SOL_SOCKET"), (6, "SOL_TCP"), (17, "SOL_UDP"), (41, "SOL_IPV6")], "SOL_");
/// `send`, `recv`
pub static MSG: Names = Names::flags(
    named![
        MSG_OOB,
        MSG_PEEK,
        MSG_DONTROUTE,
        MSG_CTRUNC,
        MSG_TRUNC,
        MSG_DONTWAIT,
        MSG_EOR,
        MSG_WAITALL,
        MSG_CONFIRM,
        MSG_ERRQUEUE,
        MSG_NOSIGNAL,
        MSG_MORE,
        MSG_CMSG_CLOEXEC
    ],
    "MSG_",
);
/// `shutdown`
pub static SHUTDOWN: Names = Names::choices(named![SHUT_RD, SHUT_WR, SHUT_RDWR], "SHUT_");
/// `flock`
pub static FLOCK: Names = Names::flags(named![LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB], "LOCK_");
/// `renameat2`
pub static RENAME: Names = Names::flags(named![RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT], "RENAME_");
/// `close_range`
pub static CLOSE_RANGE: Names = Names::flags(named![CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC], "CLOSE_RANGE_");
/// The kind of file in `st_mode`
pub static FILE_KIND: Names = Names {
    choice_mask: libc::S_IFMT as u64,
    choices: named![S_IFREG, S_IFDIR, S_IFCHR, S_IFBLK, S_IFIFO, S_IFLNK, S_IFSOCK],
    flags: named![S_ISUID, S_ISGID, S_ISVTX],
    prefix: "S_IF",
};

/// Names of the standard signals, by number.
static SIGNALS: [&str; 32] = [
    "0", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH",
    "IO", "PWR", "SYS",
];

/// The name of a signal without `SIG`; real-time signals are counted from the kernel's first.
pub fn signal_suffix(signal: i32) -> String {
    match signal {
        1..=31 => SIGNALS[signal as usize].to_owned(),
        32 => "RTMIN".to_owned(),
        33..=64 => format!("RT_{}", signal - 32),
        _ => signal.to_string(),
    }
}

/// The name of a signal.
pub fn signal(signal: i32) -> String {
    match signal {
        1..=32 => format!("SIG{}", signal_suffix(signal)),
        33..=64 => format!("SIGRT_{}", signal - 32),
        _ => signal.to_string(),
    }
}
