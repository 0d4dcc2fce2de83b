//! Home's kernel, called without a C library between that could keep state of its own.

use nix::errno::Errno;

/// Makes a system call and gives what the kernel returned: `-errno` for a failure.
///
/// # Safety
/// The pointers among `args` must be valid for what the call does with them.
pub(super) unsafe fn call(nr: u32, args: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: the Linux x86-64 convention: these registers and no others are used, and what memory
    // the kernel touches is the caller's promise.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") u64::from(nr) => ret,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

/// The errno of a call's result, if it failed.
pub(super) fn errno(ret: i64) -> Option<Errno> {
    (-4095..0).contains(&ret).then(|| Errno::from_raw(-ret as i32))
}

/// `gettid(2)`
pub(super) fn gettid() -> i32 {
    // SAFETY: the call has no arguments.
    unsafe { call(libc::SYS_gettid as u32, [0; 6]) as i32 }
}

/// `tgkill(2)` of one of this process's own threads.
pub(super) fn signal_thread(tid: i32, signal: i32) {
    // SAFETY: the call has no pointers.
    unsafe { call(libc::SYS_tgkill as u32, [libc::getpid() as u64, tid as u64, signal as u64, 0, 0, 0]) };
}
