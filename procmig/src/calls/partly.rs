//! What calls that are served do not do, for `docs/compatibility.md`.

use nix::errno::Errno;

/// A use of a served call that is refused.
#[derive(Clone, Copy, Debug)]
pub struct Partly {
    /// The calls, by name.
    pub calls: &'static [&'static str],
    /// What of them is refused.
    pub what: &'static str,
    /// What the program gets.
    pub errno: Errno,
    /// Why, for a user.
    pub why: &'static str,
}

const fn partly(calls: &'static [&'static str], what: &'static str, errno: Errno, why: &'static str) -> Partly {
    Partly { calls, what, errno, why }
}

/// All of them.
pub const PARTLY: &[Partly] = &[
    partly(&["clone", "clone3"], "new namespaces (`CLONE_NEW…`)", Errno::EPERM, super::why::NAMESPACES),
    partly(
        &["clone", "clone3"],
        "processes that share descriptors or handlers without being threads; a parent other than the caller; \
         an exit signal other than `SIGCHLD`; `CLONE_INTO_CGROUP`",
        Errno::EINVAL,
        "each process is one process at home, which shares nothing with its parent",
    ),
    partly(&["unshare"], "new namespaces (`CLONE_NEW…`)", Errno::EPERM, super::why::NAMESPACES),
    partly(
        &["unshare"],
        "`CLONE_FILES` of one thread among several",
        Errno::EPERM,
        "a process has one set of descriptors, at home as in the node",
    ),
    partly(&["clone3"], "a thread ID of one's choice", Errno::EPERM, "takes a privilege"),
    partly(&["mmap"], "`MAP_HUGETLB`", Errno::ENOMEM, "no huge pages are set aside; large areas get them unasked"),
    partly(&["mmap"], "`MAP_SYNC`", Errno::EOPNOTSUPP, "it is for files on persistent memory"),
    partly(
        &["madvise"],
        "`MADV_REMOVE`, `MADV_COLLAPSE`, `MADV_HWPOISON`",
        Errno::EINVAL,
        "kernels may lack them; programs do without",
    ),
    partly(&["pkey_mprotect"], "any key but -1", Errno::EINVAL, super::why::PROTECTION_KEYS),
    partly(
        &["futex"],
        "priority inheritance (`FUTEX_LOCK_PI` and its kin)",
        Errno::ENOSYS,
        "threads have no priorities to inherit",
    ),
    partly(&["personality"], "all but Linux itself and `ADDR_NO_RANDOMIZE`", Errno::EINVAL, "nothing else is emulated"),
    partly(
        &["arch_prctl"],
        "all but the bases of FS and GS and asking about `cpuid`",
        Errno::EINVAL,
        "processor features that not every node has",
    ),
    partly(
        &["membarrier"],
        "all but global and private expedited barriers",
        Errno::EINVAL,
        "the others go with calls that are not served",
    ),
    partly(
        &["prctl"],
        "`PR_SET_SECCOMP`, `PR_SET_MM`, speculation and processor controls",
        Errno::EINVAL,
        "they would change home's process, not the program's",
    ),
    partly(
        &["ioctl"],
        "requests other than those of terminals, sockets, files, block sizes, clocks and input devices",
        Errno::ENOTTY,
        "what their argument points to is not known",
    ),
    partly(&["fcntl"], "commands newer than the table", Errno::EINVAL, "what their argument points to is not known"),
    partly(
        &["setsockopt"],
        "`SO_ATTACH_FILTER`, `SO_ATTACH_REUSEPORT_CBPF`",
        Errno::EINVAL,
        "programs for home's kernel, by pointers within pointers",
    ),
    partly(
        &["setsockopt", "getsockopt"],
        "packet filter tables, `SO_GET_FILTER`",
        Errno::ENOPROTOOPT,
        "pointers within pointers",
    ),
    partly(&["adjtimex", "clock_adjtime"], "changing the clock", Errno::EPERM, "the clock is home's; asking is served"),
    partly(
        &["open", "openat", "openat2"],
        "`/proc/PID/mem` of a process in the node",
        Errno::EACCES,
        "it would show the memory of the process at home, not the program's",
    ),
];
