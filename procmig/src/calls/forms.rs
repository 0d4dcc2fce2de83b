//! Shapes of the calls whose arguments depend on a command.

use super::Back::{All, Length, Semaphores};
use super::Len::{Const, Counted, Deref};
use super::Shape::{Fd, In, InOut, InUpTo, InterfaceList, Name, Out, Value};
use super::{Form, Len, Shape};
use nix::errno::Errno;

/// Largest value of a socket option.
const OPTION_CAP: u32 = 64 << 10;
/// Bytes of the semaphores of the largest set (`SEMMSL` of them).
const SEMAPHORES_CAP: u32 = 64_000;

fn pad(shapes: &[Shape]) -> [Shape; 6] {
    let mut padded = [Value; 6];
    padded[..shapes.len()].copy_from_slice(shapes);
    padded
}

/// The shapes of a call of this form with these arguments.
pub(super) fn resolve(form: Form, nr: u32, args: &[u64; 6]) -> Result<[Shape; 6], Errno> {
    let shapes = match form {
        Form::Plain(shapes) => pad(shapes),
        Form::Ioctl => pad(&[Fd, Value, ioctl(args[1] as u32)?]),
        Form::Fcntl => pad(&[Fd, Value, fcntl(args[1] as i32)?]),
        Form::Prctl => pad(&[Value, prctl(args[0] as i32)?]),
        Form::Semctl => pad(&[Value, Value, Value, semctl(args[2] as i32)?]),
        Form::Shmctl => pad(&[Value, Value, shmctl(args[1] as i32)?]),
        Form::Msgctl => pad(&[Value, Value, msgctl(args[1] as i32)?]),
        Form::Setsockopt => {
            setsockopt(args[1] as i32, args[2] as i32)?;
            pad(&[Fd, Value, Value, In(Len::Arg(4)), Value])
        }
        Form::Getsockopt => {
            getsockopt(args[1] as i32, args[2] as i32)?;
            pad(&[Fd, Value, Value, Out(Deref(4, OPTION_CAP), Length(4)), InOut(Const(4))])
        }
        Form::ClockAdjust if nr == libc::SYS_adjtimex as u32 => pad(&[InOut(Const(208))]),
        Form::ClockAdjust => pad(&[Value, InOut(Const(208))]),
        Form::CloseRange => pad(&[Value, Value, Value]),
        Form::Personality => {
            personality(args[0] as u32)?;
            pad(&[Value])
        }
        Form::Unshare => {
            unshare(args[0])?;
            pad(&[Value])
        }
    };
    Ok(shapes)
}

fn personality(persona: u32) -> Result<(), Errno> {
    /// Asks what it is.
    const QUERY: u32 = u32::MAX;
    const NO_RANDOMIZE: u32 = libc::ADDR_NO_RANDOMIZE as u32;
    if matches!(persona, QUERY | 0 | NO_RANDOMIZE) { Ok(()) } else { Err(Errno::EINVAL) }
}

fn unshare(flags: u64) -> Result<(), Errno> {
    const OWN: u64 = (libc::CLONE_FS | libc::CLONE_SYSVSEM) as u64;
    const NAMESPACES: u64 = 0x7e02_0080;
    match flags & !OWN {
        0 => Ok(()),
        others if others & !(NAMESPACES | libc::CLONE_FILES as u64) == 0 => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

fn fcntl(command: i32) -> Result<Shape, Errno> {
    // Commands of Linux that libc has no name for.
    const F_SETSIG: i32 = 10;
    const F_GETSIG: i32 = 11;
    const F_GETOWNER_UIDS: i32 = 17;
    const F_SETOWN_EX: i32 = 15;
    const F_GETOWN_EX: i32 = 16;
    const F_DUPFD_QUERY: i32 = 1027;
    const F_CREATED_QUERY: i32 = 1028;
    const F_CANCELLK: i32 = 1029;
    const F_GET_RW_HINT: i32 = 1035;
    const F_SET_FILE_RW_HINT: i32 = 1038;
    Ok(match command {
        libc::F_GETLK | libc::F_OFD_GETLK => InOut(Const(32)),
        libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_SETLK | libc::F_OFD_SETLKW | F_CANCELLK => In(Const(32)),
        F_SETOWN_EX => In(Const(8)),
        F_GETOWN_EX | F_GETOWNER_UIDS => Out(Const(8), All),
        F_GET_RW_HINT..=F_SET_FILE_RW_HINT if command % 2 == 1 => Out(Const(8), All),
        F_GET_RW_HINT..=F_SET_FILE_RW_HINT => In(Const(8)),
        F_DUPFD_QUERY => Fd,
        libc::F_DUPFD
        | libc::F_DUPFD_CLOEXEC
        | libc::F_GETFD
        | libc::F_SETFD
        | libc::F_GETFL
        | libc::F_SETFL
        | libc::F_GETOWN
        | libc::F_SETOWN
        | F_SETSIG
        | F_GETSIG
        | libc::F_SETLEASE
        | libc::F_GETLEASE
        | libc::F_NOTIFY
        | libc::F_SETPIPE_SZ
        | libc::F_GETPIPE_SZ
        | libc::F_ADD_SEALS
        | libc::F_GET_SEALS
        | F_CREATED_QUERY => Value,
        _ => return Err(Errno::EINVAL),
    })
}

fn prctl(option: i32) -> Result<Shape, Errno> {
    Ok(match option {
        libc::PR_GET_PDEATHSIG | libc::PR_GET_CHILD_SUBREAPER => Out(Const(4), All),
        libc::PR_SET_NAME => Name,
        libc::PR_GET_NAME => Out(Const(16), All),
        libc::PR_SET_PDEATHSIG
        | libc::PR_SET_CHILD_SUBREAPER
        | libc::PR_GET_KEEPCAPS
        | libc::PR_SET_KEEPCAPS
        | libc::PR_CAPBSET_READ
        | libc::PR_CAPBSET_DROP
        | libc::PR_GET_SECUREBITS
        | libc::PR_SET_SECUREBITS
        | libc::PR_SET_NO_NEW_PRIVS
        | libc::PR_GET_NO_NEW_PRIVS
        | libc::PR_CAP_AMBIENT
        | libc::PR_GET_TIMERSLACK
        | libc::PR_SET_TIMERSLACK => Value,
        _ => return Err(Errno::EINVAL),
    })
}

fn semctl(command: i32) -> Result<Shape, Errno> {
    const SEM_STAT_ANY: i32 = 20;
    Ok(match command {
        libc::IPC_STAT | libc::SEM_STAT | SEM_STAT_ANY => Out(Const(104), All),
        libc::IPC_SET => In(Const(104)),
        libc::IPC_INFO | libc::SEM_INFO => Out(Const(40), All),
        libc::GETALL => Out(Const(SEMAPHORES_CAP), Semaphores),
        libc::SETALL => InUpTo(SEMAPHORES_CAP),
        libc::IPC_RMID | libc::GETVAL | libc::GETPID | libc::GETNCNT | libc::GETZCNT | libc::SETVAL => Value,
        _ => return Err(Errno::EINVAL),
    })
}

fn shmctl(command: i32) -> Result<Shape, Errno> {
    const SHM_STAT: i32 = 13;
    const SHM_INFO: i32 = 14;
    const SHM_STAT_ANY: i32 = 15;
    Ok(match command {
        libc::IPC_STAT | SHM_STAT | SHM_STAT_ANY => Out(Const(112), All),
        libc::IPC_SET => In(Const(112)),
        libc::IPC_INFO => Out(Const(72), All),
        SHM_INFO => Out(Const(48), All),
        libc::IPC_RMID | libc::SHM_LOCK | libc::SHM_UNLOCK => Value,
        _ => return Err(Errno::EINVAL),
    })
}

fn msgctl(command: i32) -> Result<Shape, Errno> {
    const MSG_STAT_ANY: i32 = 13;
    Ok(match command {
        libc::IPC_STAT | libc::MSG_STAT | MSG_STAT_ANY => Out(Const(120), All),
        libc::IPC_SET => In(Const(120)),
        libc::IPC_INFO | libc::MSG_INFO => Out(Const(32), All),
        libc::IPC_RMID => Value,
        _ => return Err(Errno::EINVAL),
    })
}

/// `IPT_SO_SET_REPLACE`, `IPT_SO_SET_ADD_COUNTERS` and their IPv6 twins hold pointers.
const XTABLES: std::ops::RangeInclusive<i32> = 64..=65;

fn setsockopt(level: i32, name: i32) -> Result<(), Errno> {
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF) => Err(Errno::EINVAL),
        (libc::SOL_IP | libc::SOL_IPV6, name) if XTABLES.contains(&name) => Err(Errno::ENOPROTOOPT),
        _ => Ok(()),
    }
}

fn getsockopt(level: i32, name: i32) -> Result<(), Errno> {
    match (level, name) {
        // Its length counts instructions, not bytes.
        (libc::SOL_SOCKET, libc::SO_GET_FILTER) => Err(Errno::ENOPROTOOPT),
        (libc::SOL_TCP, libc::TCP_ZEROCOPY_RECEIVE) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// Kinds of `_IOC` commands (terminals, files, input, clocks, printers) whose structs hold no pointers,
/// so that the number's own direction and size can be believed.
const SIZED_KINDS: &[u8] = b"TXEpv";

fn ioctl(command: u32) -> Result<Shape, Errno> {
    let (kind, nr) = ((command >> 8) as u8, command as u8);
    Ok(match command {
        0x0001 => InOut(Const(4)),                                    // FIBMAP
        0x0002 => Out(Const(4), All),                                 // FIGETBSZ
        0x4004_5436 => Value,                                         // TIOCSIG, whose number says otherwise
        0x894b => Out(Const(4), All),                                 // SIOCOUTQNSD
        0x5401 => Out(Const(36), All),                                // TCGETS
        0x5402..=0x5404 => In(Const(36)),                             // TCSETS, TCSETSW, TCSETSF
        0x5405 => Out(Const(18), All),                                // TCGETA
        0x5406..=0x5408 => In(Const(18)),                             // TCSETA, TCSETAW, TCSETAF
        0x5409..=0x540b | 0x5425 => Value,                            // TCSBRK, TCXONC, TCFLSH, TCSBRKP
        0x540c..=0x540e | 0x5422 => Value,                            // TIOCEXCL, TIOCNXCL, TIOCSCTTY, TIOCNOTTY
        0x5427 | 0x5428 => Value,                                     // TIOCSBRK, TIOCCBRK
        0x540f | 0x5411 | 0x5415 | 0x541b => Out(Const(4), All),      // TIOCGPGRP, OUTQ, TIOCMGET, FIONREAD
        0x5419 | 0x5424 | 0x5429 => Out(Const(4), All),               // TIOCGSOFTCAR, TIOCGETD, TIOCGSID
        0x5410 | 0x5416..=0x5418 | 0x541a => In(Const(4)),            // TIOCSPGRP, TIOCMBIS, MBIC, MSET, SSOFTCAR
        0x5420 | 0x5421 | 0x5423 | 0x5452 => In(Const(4)),            // TIOCPKT, FIONBIO, TIOCSETD, FIOASYNC
        0x5412 => In(Const(1)),                                       // TIOCSTI
        0x5413 => Out(Const(8), All),                                 // TIOCGWINSZ
        0x5414 => In(Const(8)),                                       // TIOCSWINSZ
        0x5450 | 0x5451 => Value,                                     // FIONCLEX, FIOCLEX
        0x5460 => Out(Const(8), All),                                 // FIOQSIZE
        0x5441 => Value,                                              // TIOCGPTPEER
        0x4004_9409 => Fd,                                            // FICLONE
        0x4020_940d => In(Const(32)),                                 // FICLONERANGE
        0xc018_9436 => InOut(Counted { head: 24, at: 16, each: 32 }), // FIDEDUPERANGE
        0xc020_660b => InOut(Counted { head: 32, at: 24, each: 56 }), // FS_IOC_FIEMAP
        // The number says 8 bytes, the kernel uses 4.
        0x8008_6601 | 0x8008_7601 => Out(Const(4), All), // FS_IOC_GETFLAGS, FS_IOC_GETVERSION
        0x4008_6602 | 0x4008_7602 => In(Const(4)),       // FS_IOC_SETFLAGS, FS_IOC_SETVERSION
        0x1260 | 0x8008_1272 => Out(Const(8), All),      // BLKGETSIZE, BLKGETSIZE64
        0x125e | 0x1268 | 0x127b | 0x1278 | 0x1279 => Out(Const(4), All), // BLKROGET, SSZ, PBSZ, IOMIN, IOOPT
        0x1261 => Value,                                 // BLKFLSBUF
        0x8901 | 0x8902 => In(Const(4)),                 // FIOSETOWN, SIOCSPGRP
        0x8903..=0x8905 => Out(Const(4), All),           // FIOGETOWN, SIOCGPGRP, SIOCATMARK
        0x8906 | 0x8907 => Out(Const(16), All),          // SIOCGSTAMP, SIOCGSTAMPNS
        0x8910 => InOut(Const(40)),                      // SIOCGIFNAME
        0x8912 => InterfaceList,                         // SIOCGIFCONF
        0x8913 | 0x8915 | 0x8917 | 0x8919 | 0x891b | 0x891d | 0x8921 | 0x8927 | 0x8933 | 0x8942 => InOut(Const(40)),
        0x8914 | 0x8916 | 0x8918 | 0x891a | 0x891c | 0x891e | 0x8922 | 0x8924 | 0x8943 => InOut(Const(40)),
        // EVIOCGMASK and EVIOCSMASK hold pointers.
        _ if kind == b'E' && (nr == 0x92 || nr == 0x93) => return Err(Errno::ENOTTY),
        _ if SIZED_KINDS.contains(&kind) => sized(command)?,
        _ => return Err(Errno::ENOTTY),
    })
}

/// The shape that a well-formed command's number tells.
fn sized(command: u32) -> Result<Shape, Errno> {
    let size = Const(command >> 16 & 0x3fff);
    match (command >> 30, size) {
        (_, Const(0)) => Err(Errno::ENOTTY),
        (1, size) => Ok(In(size)),
        (2, size) => Ok(Out(size, All)),
        (3, size) => Ok(InOut(size)),
        _ => Err(Errno::ENOTTY),
    }
}
