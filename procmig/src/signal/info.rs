//! What a `siginfo_t` says, for each cause of a signal.

use crate::wire::call::SIGINFO_SIZE;
use crate::wire::control::SigInfo;
use vmm::addr::GuestVirtAddr;

/// `si_code`: sent by `kill`.
pub const SI_USER: i32 = 0;
/// `si_code`: sent by the kernel.
pub const SI_KERNEL: i32 = 0x80;
/// `si_code`: sent by `sigqueue`.
pub const SI_QUEUE: i32 = -1;
/// `si_code`: a POSIX timer expired.
pub const SI_TIMER: i32 = -2;
/// `si_code`: sent by `tkill` or `tgkill`.
pub const SI_TKILL: i32 = -6;

/// `si_code` of `SIGSEGV`: nothing is mapped there.
pub const SEGV_MAPERR: i32 = 1;
/// `si_code` of `SIGSEGV`: the mapping does not allow it.
pub const SEGV_ACCERR: i32 = 2;
/// `si_code` of `SIGBUS`: alignment.
pub const BUS_ADRALN: i32 = 1;
/// `si_code` of `SIGBUS`: beyond the end of the mapped file.
pub const BUS_ADRERR: i32 = 2;
/// `si_code` of `SIGILL`: an illegal operand, which Linux says of every `#UD`.
pub const ILL_ILLOPN: i32 = 2;
/// `si_code` of `SIGFPE`: integer division by zero.
pub const FPE_INTDIV: i32 = 1;
/// `si_code` of `SIGTRAP`: breakpoint.
pub const TRAP_BRKPT: i32 = 1;
/// `si_code` of `SIGTRAP`: single step.
pub const TRAP_TRACE: i32 = 2;

/// How a child's state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum ChildCode {
    /// It called `exit`; the status is its exit status.
    Exited = 1,
    /// A signal ended it; the status is the signal.
    Killed = 2,
    /// A signal ended it and it dumped core; the status is the signal.
    Dumped = 3,
    /// It is traced and stopped; the status is the signal.
    Trapped = 4,
    /// It stopped; the status is the signal.
    Stopped = 5,
    /// It goes on; the status is `SIGCONT`.
    Continued = 6,
}

/// Bytes of a `siginfo_t` in the making.
struct Builder([u8; SIGINFO_SIZE]);

impl Builder {
    fn new(signal: i32, code: i32) -> Self {
        Self([0; SIGINFO_SIZE]).word(0, signal).word(8, code)
    }
    fn word(mut self, at: usize, value: i32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }
    fn long(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }
    fn done(self) -> SigInfo {
        SigInfo(self.0)
    }
}

/// By `kill` from process `pid` of user `uid`.
pub fn kill(signal: i32, pid: i32, uid: u32) -> SigInfo {
    Builder::new(signal, SI_USER).word(16, pid).word(20, uid as i32).done()
}

/// By `tkill` or `tgkill` from process `pid` of user `uid`.
pub fn tgkill(signal: i32, pid: i32, uid: u32) -> SigInfo {
    Builder::new(signal, SI_TKILL).word(16, pid).word(20, uid as i32).done()
}

/// By `sigqueue` with `value` from process `pid` of user `uid`.
pub fn queue(signal: i32, pid: i32, uid: u32, value: u64) -> SigInfo {
    Builder::new(signal, SI_QUEUE).word(16, pid).word(20, uid as i32).long(24, value).done()
}

/// By the kernel, for no cause that the program could act on.
pub fn kernel(signal: i32) -> SigInfo {
    Builder::new(signal, SI_KERNEL).done()
}

/// By an instruction of the thread itself; `address` is `si_addr`.
pub fn fault(signal: i32, code: i32, address: GuestVirtAddr) -> SigInfo {
    Builder::new(signal, code).long(16, address.0).done()
}

/// By POSIX timer `id`, with the value its creator gave and the count of expirations missed.
pub fn timer(signal: i32, id: i32, overrun: i32, value: u64) -> SigInfo {
    Builder::new(signal, SI_TIMER).word(16, id).word(20, overrun).long(24, value).done()
}

/// `SIGCHLD` of child `pid` of user `uid`. Times are in clock ticks of 10 ms.
pub fn child(pid: i32, uid: u32, code: ChildCode, status: i32, user_ticks: u64, system_ticks: u64) -> SigInfo {
    Builder::new(libc::SIGCHLD, code as i32)
        .word(16, pid)
        .word(20, uid as i32)
        .word(24, status)
        .long(32, user_ticks)
        .long(40, system_ticks)
        .done()
}

/// Whether the kernel must have raised it for what the thread did, so that it cannot be put off:
/// a fault whose signal is blocked or ignored kills.
pub fn is_forced(info: &SigInfo) -> bool {
    info.code() > 0 && super::set::SignalSet::SYNCHRONOUS.contains(info.signal())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_libc(info: SigInfo) -> libc::siginfo_t {
        const { assert!(size_of::<libc::siginfo_t>() == SIGINFO_SIZE) };
        // SAFETY: every bit pattern is a siginfo_t, which is plain data of the same size.
        unsafe { std::mem::transmute(info.0) }
    }

    #[test]
    fn the_c_library_finds_every_field() {
        let info = as_libc(queue(34, 7, 8, 9));
        assert_eq!((info.si_signo, info.si_errno, info.si_code), (34, 0, SI_QUEUE));
        // SAFETY: the code says that these are the fields in use.
        unsafe {
            assert_eq!((info.si_pid(), info.si_uid(), info.si_value().sival_ptr as u64), (7, 8, 9));
            let info = as_libc(fault(libc::SIGSEGV, SEGV_ACCERR, GuestVirtAddr(0x1234)));
            assert_eq!((info.si_addr() as u64, info.si_code), (0x1234, SEGV_ACCERR));
            let info = as_libc(child(7, 8, ChildCode::Killed, 9, 10, 11));
            assert_eq!((info.si_pid(), info.si_uid(), info.si_status()), (7, 8, 9));
            assert_eq!((info.si_utime(), info.si_stime(), info.si_code), (10, 11, libc::CLD_KILLED));
        }
        assert!(is_forced(&fault(libc::SIGSEGV, SEGV_MAPERR, GuestVirtAddr(0))));
        assert!(!is_forced(&kill(libc::SIGSEGV, 1, 1)));
    }
}
