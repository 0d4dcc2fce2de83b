//! What the arguments of each system call are.

use super::flags::{self, Names};

/// What an argument is. Numbers are of other arguments of the call, counted from 0.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A signed number of 32 bits.
    Int,
    /// A signed number of 64 bits.
    Long,
    /// An unsigned number of 64 bits.
    Size,
    /// Anything, in hexadecimal; 0 is `0`.
    Hex,
    /// Permissions, in octal.
    Mode,
    /// Permissions, if the flags in that argument make a file; else it is left out.
    ModeIfCreated(usize),
    /// A descriptor or `AT_FDCWD`.
    DirFd,
    /// An address that is not looked at.
    Address,
    /// The address of a NUL-terminated string.
    Path,
    /// Bytes that the call reads; their number is in that argument.
    In(usize),
    /// Bytes that the call writes; it returns their number.
    Out,
    /// A NUL-terminated string that the call writes.
    OutPath,
    /// An `iovec` array that the call reads from; its length is in that argument.
    InVector(usize),
    /// An `iovec` array that the call writes to; its length is in that argument.
    OutVector(usize),
    /// A NULL-terminated array of strings.
    Strings,
    /// A NULL-terminated array of strings; only counted.
    Environment,
    /// One of these, or several joined.
    Named(&'static Names),
    /// A signal's number.
    Signal,
    /// The address of a signal set that the call reads.
    SignalSet,
    /// The address of a signal set that the call writes.
    OutSignalSet,
    /// The address of a `sigaction` that the call reads.
    Action,
    /// The address of a `sigaction` that the call writes.
    OutAction,
    /// The address of a `stack_t` that the call reads.
    Stack,
    /// The address of a `timespec` that the call reads.
    Time,
    /// The address of a `timespec` that the call writes.
    OutTime,
    /// The address of two `timespec`s that the call reads.
    Times,
    /// The address of a `timeval` that the call writes.
    OutTimeval,
    /// The address of a number of 32 bits that the call writes.
    OutInt,
    /// The address of two descriptors that the call writes.
    OutPair,
    /// The address of a wait status that the call writes.
    OutStatus,
    /// The address of a `stat` that the call writes.
    OutStat,
    /// The address of a limit that the call reads.
    Limit,
    /// The address of a limit that the call writes.
    OutLimit,
    /// A `pollfd` array; its length is in that argument.
    Poll(usize),
    /// A socket address that the call reads; its length is in that argument.
    Socket(usize),
    /// The third argument of `fcntl`.
    Fcntl,
    /// The address of a `utsname` that the call writes.
    OutName,
}

/// What a result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returns {
    /// A number.
    Number,
    /// An address.
    Address,
    /// Nothing: the call does not return.
    Never,
}

/// A system call.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its arguments.
    pub args: &'static [Arg],
    /// Its result.
    pub returns: Returns,
}

macro_rules! calls {
    ($($name:ident($($arg:expr),* $(,)?) $(-> $returns:ident)?;)*) => {
        &[$(Call { name: stringify!($name), args: &[$($arg),*], returns: calls!(@ $($returns)?) }),*]
    };
    (@) => { Returns::Number };
    (@ $returns:ident) => { Returns::$returns };
}

use Arg::*;

/// The calls whose arguments are known; those of others are printed in hexadecimal.
pub static CALLS: &[Call] = calls! {
    read(Int, Out, Size);
    write(Int, In(2), Size);
    open(Path, Named(&flags::OPEN), ModeIfCreated(1));
    openat(DirFd, Path, Named(&flags::OPEN), ModeIfCreated(2));
    creat(Path, Mode);
    close(Int);
    close_range(Int, Int, Named(&flags::CLOSE_RANGE));
    stat(Path, OutStat);
    lstat(Path, OutStat);
    fstat(Int, OutStat);
    newfstatat(DirFd, Path, OutStat, Named(&flags::AT));
    statx(DirFd, Path, Named(&flags::AT), Named(&flags::STATX), Address);
    statfs(Path, Address);
    fstatfs(Int, Address);
    poll(Poll(1), Int, Int);
    ppoll(Poll(1), Int, Time, SignalSet, Size);
    select(Int, Address, Address, Address, Address);
    pselect6(Int, Address, Address, Address, Time, Address);
    lseek(Int, Long, Named(&flags::WHENCE));
    mmap(Address, Size, Named(&flags::PROT), Named(&flags::MAP), Int, Hex) -> Address;
    mprotect(Address, Size, Named(&flags::PROT));
    munmap(Address, Size);
    mremap(Address, Size, Size, Named(&flags::MREMAP), Address) -> Address;
    msync(Address, Size, Named(&flags::MSYNC));
    madvise(Address, Size, Named(&flags::MADVISE));
    mincore(Address, Size, Address);
    mlock(Address, Size);
    munlock(Address, Size);
    brk(Address) -> Address;
    rt_sigaction(Signal, Action, OutAction, Size);
    rt_sigprocmask(Named(&flags::SIGMASK), SignalSet, OutSignalSet, Size);
    rt_sigpending(OutSignalSet, Size);
    rt_sigsuspend(SignalSet, Size);
    rt_sigtimedwait(SignalSet, Address, Time, Size);
    rt_sigreturn();
    sigaltstack(Stack, Address);
    kill(Int, Signal);
    tkill(Int, Signal);
    tgkill(Int, Int, Signal);
    pause();
    ioctl(Int, Named(&flags::IOCTL), Hex);
    pread64(Int, Out, Size, Long);
    pwrite64(Int, In(2), Size, Long);
    readv(Int, OutVector(2), Int);
    writev(Int, InVector(2), Int);
    preadv(Int, OutVector(2), Int, Long);
    pwritev(Int, InVector(2), Int, Long);
    access(Path, Named(&flags::ACCESS));
    faccessat(DirFd, Path, Named(&flags::ACCESS));
    faccessat2(DirFd, Path, Named(&flags::ACCESS), Named(&flags::FACCESSAT));
    pipe(OutPair);
    pipe2(OutPair, Named(&flags::DESCRIPTOR));
    sched_yield();
    dup(Int);
    dup2(Int, Int);
    dup3(Int, Int, Named(&flags::DESCRIPTOR));
    nanosleep(Time, Address);
    clock_nanosleep(Named(&flags::CLOCK), Named(&flags::TIMER), Time, Address);
    clock_gettime(Named(&flags::CLOCK), OutTime);
    clock_getres(Named(&flags::CLOCK), OutTime);
    gettimeofday(OutTimeval, Address);
    time(Address);
    alarm(Int);
    getitimer(Named(&flags::ITIMER), Address);
    setitimer(Named(&flags::ITIMER), Address, Address);
    getpid();
    gettid();
    getppid();
    getpgrp();
    getpgid(Int);
    setpgid(Int, Int);
    setsid();
    getsid(Int);
    getuid();
    geteuid();
    getgid();
    getegid();
    setuid(Int);
    setgid(Int);
    getgroups(Int, Address);
    sendfile(Int, Int, Address, Size);
    copy_file_range(Int, Address, Int, Address, Size, Hex);
    socket(Named(&flags::FAMILY), Named(&flags::SOCKET), Int);
    socketpair(Named(&flags::FAMILY), Named(&flags::SOCKET), Int, OutPair);
    connect(Int, Socket(2), Int);
    bind(Int, Socket(2), Int);
    listen(Int, Int);
    accept(Int, Address, Address);
    accept4(Int, Address, Address, Named(&flags::SOCKET_FLAGS));
    getsockname(Int, Address, Address);
    getpeername(Int, Address, Address);
    sendto(Int, In(2), Size, Named(&flags::MSG), Socket(5), Int);
    recvfrom(Int, Out, Size, Named(&flags::MSG), Address, Address);
    sendmsg(Int, Address, Named(&flags::MSG));
    recvmsg(Int, Address, Named(&flags::MSG));
    shutdown(Int, Named(&flags::SHUTDOWN));
    setsockopt(Int, Named(&flags::SOCKET_LEVEL), Int, Address, Int);
    getsockopt(Int, Named(&flags::SOCKET_LEVEL), Int, Address, OutInt);
    clone3(Address, Size);
    fork();
    vfork();
    execve(Path, Strings, Environment);
    execveat(DirFd, Path, Strings, Environment, Named(&flags::AT));
    exit(Int) -> Never;
    exit_group(Int) -> Never;
    wait4(Int, OutStatus, Named(&flags::WAIT), Address);
    waitid(Int, Int, Address, Named(&flags::WAIT), Address);
    uname(OutName);
    fcntl(Int, Named(&flags::FCNTL), Fcntl);
    flock(Int, Named(&flags::FLOCK));
    fsync(Int);
    fdatasync(Int);
    truncate(Path, Long);
    ftruncate(Int, Long);
    fallocate(Int, Hex, Long, Long);
    fadvise64(Int, Long, Long, Int);
    getdents64(Int, Address, Size);
    getcwd(OutPath, Size);
    chdir(Path);
    fchdir(Int);
    rename(Path, Path);
    renameat(DirFd, Path, DirFd, Path);
    renameat2(DirFd, Path, DirFd, Path, Named(&flags::RENAME));
    mkdir(Path, Mode);
    mkdirat(DirFd, Path, Mode);
    rmdir(Path);
    link(Path, Path);
    linkat(DirFd, Path, DirFd, Path, Named(&flags::AT));
    unlink(Path);
    unlinkat(DirFd, Path, Named(&flags::UNLINKAT));
    symlink(Path, Path);
    symlinkat(Path, DirFd, Path);
    readlink(Path, Out, Size);
    readlinkat(DirFd, Path, Out, Size);
    chmod(Path, Mode);
    fchmod(Int, Mode);
    fchmodat(DirFd, Path, Mode);
    chown(Path, Int, Int);
    fchown(Int, Int, Int);
    fchownat(DirFd, Path, Int, Int, Named(&flags::AT));
    umask(Mode);
    utimensat(DirFd, Path, Times, Named(&flags::AT));
    getrlimit(Named(&flags::RLIMIT), OutLimit);
    setrlimit(Named(&flags::RLIMIT), Limit);
    prlimit64(Int, Named(&flags::RLIMIT), Limit, OutLimit);
    getrusage(Named(&flags::RUSAGE), Address);
    sysinfo(Address);
    times(Address);
    arch_prctl(Named(&flags::ARCH), Hex);
    prctl(Named(&flags::PRCTL), Hex, Hex, Hex, Hex);
    set_tid_address(Address);
    set_robust_list(Address, Size);
    rseq(Address, Size, Hex, Hex);
    sched_getaffinity(Int, Size, Address);
    sched_setaffinity(Int, Size, Address);
    getrandom(Out, Size, Named(&flags::RANDOM));
    memfd_create(Path, Named(&flags::MEMFD));
    eventfd2(Int, Named(&flags::EVENTFD));
    epoll_create1(Named(&flags::EPOLL_CREATE));
    epoll_ctl(Int, Named(&flags::EPOLL_CTL), Int, Address);
    epoll_wait(Int, Address, Int, Int);
    epoll_pwait(Int, Address, Int, Int, SignalSet, Size);
    pidfd_open(Int, Hex);
    membarrier(Hex, Hex, Int);
    getxattr(Path, Path, Address, Size);
    lgetxattr(Path, Path, Address, Size);
};

/// The call of that name.
pub fn find(name: &str) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.name == name)
}
