//! Home's signals: what the deputy blocks, how it hears of them, and what it was started with.
//!
//! Every signal is blocked in every thread and read from a signalfd, to be relayed to the node. Only
//! job control's stops (`SIGTSTP`, `SIGTTIN`, `SIGTTOU`) are left to home's kernel while the guest has
//! their default: it stops the deputy as it would have stopped the program.

use super::descriptors::{Making, Own};
use super::kernel;
use super::threads::{CANCEL_SIGNAL, lock};
use crate::wire::call::blocked;
use crate::wire::control::SigInfo;
use crate::wire::op::Disposition;
use nix::errno::Errno;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Bit of a signal in a kernel mask.
pub(super) const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Stops of job control, each with its bit in a request's `blocked`.
const STOPS: [(i32, u32); 3] =
    [(libc::SIGTSTP, blocked::TSTP), (libc::SIGTTIN, blocked::TTIN), (libc::SIGTTOU, blocked::TTOU)];
const STOP_BITS: u64 = bit(libc::SIGTSTP) | bit(libc::SIGTTIN) | bit(libc::SIGTTOU);
const NEVER_BLOCKED: u64 = bit(libc::SIGKILL) | bit(libc::SIGSTOP) | bit(CANCEL_SIGNAL);

static INHERITED_IGNORED: AtomicU64 = AtomicU64::new(0);
static INHERITED_BLOCKED: AtomicU64 = AtomicU64::new(0);

/// Signals with the guest's disposition `Default`; the rest are ignored or caught.
static DEFAULTS: AtomicU64 = AtomicU64::new(u64::MAX);
/// Signals with the guest's disposition `Catch`.
static CAUGHT: AtomicU64 = AtomicU64::new(0);
/// Signals that the guest reads from a signalfd of its own.
static GUEST_READS: AtomicU64 = AtomicU64::new(0);
/// The signalfd, and who reads it or changes what it reads.
static SIGNALFD: AtomicI32 = AtomicI32::new(-1);

/// Held while signals are taken from the signalfd and handed on, so that a reply written after it was
/// held comes after every signal that was taken before.
pub(super) static RELAY: Mutex<()> = Mutex::new(());

/// The kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

fn sigaction(signal: i32, new: Option<&KernelAction>, old: Option<&mut KernelAction>) {
    let new = new.map_or(0, |new| std::ptr::from_ref(new) as u64);
    let old = old.map_or(0, |old| std::ptr::from_mut(old) as u64);
    // SAFETY: both are NULL or point to a kernel `sigaction` with a mask of 8 bytes.
    unsafe { kernel::call(libc::SYS_rt_sigaction as u32, [signal as u64, new, old, 8, 0, 0]) };
}

/// Sets the calling thread's mask; gives the old one.
pub(super) fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    let (new, was) = (std::ptr::from_ref(&mask) as u64, std::ptr::from_mut(&mut old) as u64);
    // SAFETY: both point to 8 bytes.
    unsafe { kernel::call(libc::SYS_rt_sigprocmask as u32, [libc::SIG_SETMASK as u64, new, was, 8, 0, 0]) };
    old
}

extern "C" fn note_inherited() {
    super::standard::note_closed();
    let mut ignored = 0;
    for signal in 1..=64 {
        let mut action = KernelAction::default();
        sigaction(signal, None, Some(&mut action));
        if action.handler == libc::SIG_IGN {
            ignored |= bit(signal);
        }
    }
    let mut mask = 0u64;
    let was = std::ptr::from_mut(&mut mask) as u64;
    // SAFETY: the kernel writes 8 bytes.
    unsafe { kernel::call(libc::SYS_rt_sigprocmask as u32, [libc::SIG_BLOCK as u64, 0, was, 8, 0, 0]) };
    INHERITED_IGNORED.store(ignored, Ordering::Relaxed);
    INHERITED_BLOCKED.store(mask, Ordering::Relaxed);
}

/// Rust's runtime ignores `SIGPIPE` and opens closed standard descriptors before `main`; constructors
/// run before the runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_INHERITED: extern "C" fn() = note_inherited;

/// The signals that this process was started with ignored, and those blocked; bit `n - 1` is signal `n`.
pub fn inherited_signals() -> (u64, u64) {
    (INHERITED_IGNORED.load(Ordering::Relaxed), INHERITED_BLOCKED.load(Ordering::Relaxed))
}

std::arch::global_asm!(
    ".local skein_deputy_restorer",
    "skein_deputy_restorer:",
    "mov eax, 15", // rt_sigreturn
    "syscall",
);

unsafe extern "C" {
    fn skein_deputy_restorer();
}

extern "C" fn broken_off(_signal: i32) {}

/// The mask of a thread whose guest thread blocks these stops (bits of [`blocked`]).
pub(super) fn thread_mask(guest_blocks: u32) -> u64 {
    let mut mask = !NEVER_BLOCKED;
    let defaults = DEFAULTS.load(Ordering::Relaxed);
    for (signal, flag) in STOPS {
        if defaults & bit(signal) != 0 && guest_blocks & flag == 0 {
            mask &= !bit(signal);
        }
    }
    mask
}

/// The stops (bits of [`blocked`]) in a kernel mask.
pub(super) fn stops_in(mask: u64) -> u32 {
    STOPS.iter().filter(|(signal, _)| mask & bit(*signal) != 0).fold(0, |bits, (_, flag)| bits | flag)
}

/// What the signalfd reads.
fn relayed() -> u64 {
    let stops = STOP_BITS & DEFAULTS.load(Ordering::Relaxed);
    !NEVER_BLOCKED & !stops & !GUEST_READS.load(Ordering::Relaxed)
}

/// Sets every signal up for a deputy that starts with these ignored, blocks all in this thread and
/// opens the signalfd.
///
/// # Errors
/// As `signalfd(2)`.
pub(super) fn start(ignored: u64, making: &Making) -> io::Result<()> {
    set_mask(!NEVER_BLOCKED);
    for signal in (1..=64).filter(|&signal| bit(signal) & NEVER_BLOCKED == 0) {
        let disposition = if ignored & bit(signal) == 0 { Disposition::Default } else { Disposition::Ignore };
        note_disposition(signal, disposition);
    }
    // SA_RESTORER: the kernel needs its address for the return from a handler.
    const SA_RESTORER: u64 = 0x0400_0000;
    let restorer = skein_deputy_restorer as *const () as usize;
    let handler = broken_off as *const () as usize;
    sigaction(CANCEL_SIGNAL, Some(&KernelAction { handler, flags: SA_RESTORER, restorer, mask: u64::MAX }), None);
    open(making)
}

/// Opens a signalfd for this process, in place of one that a child inherited.
///
/// # Errors
/// As `signalfd(2)`.
pub(super) fn open(making: &Making) -> io::Result<()> {
    // SAFETY: the kernel has just made it.
    let fd = Own::make(making, || Ok(unsafe { OwnedFd::from_raw_fd(signalfd(-1)?) }))?;
    SIGNALFD.store(fd.leak(), Ordering::Relaxed);
    Ok(())
}

fn signalfd(fd: RawFd) -> io::Result<RawFd> {
    let mask = relayed();
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    let args = [fd as u64, std::ptr::from_ref(&mask) as u64, 8, flags as u64, 0, 0];
    // SAFETY: the kernel reads 8 bytes.
    let ret = unsafe { kernel::call(libc::SYS_signalfd4 as u32, args) };
    kernel::errno(ret).map_or(Ok(ret as RawFd), |errno| Err(errno.into()))
}

/// The signalfd's number.
pub(super) fn descriptor() -> RawFd {
    SIGNALFD.load(Ordering::Relaxed)
}

fn note_disposition(signal: i32, disposition: Disposition) {
    let handler = if disposition == Disposition::Ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    sigaction(signal, Some(&KernelAction { handler, ..KernelAction::default() }), None);
    let put = |set: &AtomicU64, on: bool| match on {
        true => set.fetch_or(bit(signal), Ordering::Relaxed),
        false => set.fetch_and(!bit(signal), Ordering::Relaxed),
    };
    put(&DEFAULTS, disposition == Disposition::Default);
    put(&CAUGHT, disposition == Disposition::Catch);
}

/// Tells home's kernel what the guest does at a signal.
pub(super) fn set_disposition(signal: u32, disposition: Disposition) -> i64 {
    if !(1..=64).contains(&signal) {
        return -i64::from(libc::EINVAL);
    }
    let signal = signal as i32;
    if bit(signal) & NEVER_BLOCKED == 0 {
        note_disposition(signal, disposition);
        if bit(signal) & STOP_BITS != 0 {
            reread();
        }
    }
    0
}

/// After `execve`: caught signals have their default again.
pub(super) fn forget_handlers() {
    let caught = CAUGHT.load(Ordering::Relaxed);
    for signal in (1..=64).filter(|&signal| caught & bit(signal) != 0) {
        note_disposition(signal, Disposition::Default);
    }
    GUEST_READS.store(0, Ordering::Relaxed);
    reread();
}

/// The guest has a signalfd for these: they are left for it to read.
pub(super) fn leave_to_guest(mask: u64) {
    GUEST_READS.fetch_or(mask, Ordering::Relaxed);
    reread();
}

fn reread() {
    let _relay = lock(&RELAY);
    // It cannot fail for a signalfd that is open.
    let _ = signalfd(descriptor());
}

/// Takes a signal that waits, if one does. Call it with [`RELAY`] locked.
pub(super) fn take() -> Option<SigInfo> {
    let mut info = [0u8; 128];
    let args = [descriptor() as u64, info.as_mut_ptr() as u64, 128, 0, 0, 0];
    // SAFETY: the kernel writes at most 128 bytes.
    let got = unsafe { kernel::call(libc::SYS_read as u32, args) };
    (got == 128).then(|| convert(&info))
}

/// Takes a signal of `set` that waits for this thread.
pub(super) fn take_own(set: u64) -> Option<SigInfo> {
    let mut info = [0u8; 128];
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let (set, zero) = (std::ptr::from_ref(&set) as u64, std::ptr::from_ref(&zero) as u64);
    loop {
        // SAFETY: the set is 8 bytes, the information 128, and the time a `timespec`.
        let got =
            unsafe { kernel::call(libc::SYS_rt_sigtimedwait as u32, [set, info.as_mut_ptr() as u64, zero, 8, 0, 0]) };
        match kernel::errno(got) {
            Some(Errno::EINTR) => {}
            Some(_) => return None,
            None => return Some(SigInfo(info)),
        }
    }
}

/// The `siginfo_t` of what a signalfd gave.
fn convert(from: &[u8; 128]) -> SigInfo {
    let mut to = [0u8; 128];
    let mut put = |at: usize, bytes: &[u8]| to[at..at + bytes.len()].copy_from_slice(bytes);
    let signal = i32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    let code = i32::from_le_bytes([from[8], from[9], from[10], from[11]]);
    put(0, &from[0..12]);
    // Offsets: signalfd_siginfo has pid 12, uid 16, fd 20, tid 24, band 28, overrun 32, trapno 36,
    // status 40, int 44, ptr 48, utime 56, stime 64, addr 72, addr_lsb 80.
    match (signal, code) {
        (_, libc::SI_TIMER) => {
            put(16, &from[24..28]);
            put(20, &from[32..36]);
            put(24, &from[48..56]);
        }
        (libc::SIGCHLD, 1..) => {
            put(16, &from[12..20]);
            put(24, &from[40..44]);
            put(32, &from[56..72]);
        }
        (libc::SIGPOLL, 1..) => {
            put(16, &u64::from(u32::from_le_bytes([from[28], from[29], from[30], from[31]])).to_le_bytes());
            put(24, &from[20..24]);
        }
        (libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP, 1..) => {
            put(16, &from[72..80]);
            put(24, &from[80..82]);
        }
        _ => {
            put(16, &from[12..20]);
            put(24, &from[48..56]);
        }
    }
    SigInfo(to)
}

/// Gives a signal its default action at home.
pub(super) fn restore_default(signal: i32) {
    sigaction(signal, Some(&KernelAction::default()), None);
}
