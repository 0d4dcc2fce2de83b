//! Standard descriptors that were closed when this process was started.
//!
//! Rust's runtime opens `/dev/null` in their place before `main`; the guest must find them closed.

use super::kernel;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bit `n`: descriptor `n` was closed.
static CLOSED: AtomicU32 = AtomicU32::new(0);

const STANDARD: std::ops::RangeInclusive<i32> = 0..=2;

/// Notes which are closed. It runs before the runtime.
pub(super) fn note_closed() {
    for fd in STANDARD {
        // SAFETY: no pointers.
        let flags = unsafe { kernel::call(libc::SYS_fcntl as u32, [fd as u64, libc::F_GETFD as u64, 0, 0, 0, 0]) };
        if flags < 0 {
            CLOSED.fetch_or(1 << fd, Ordering::Relaxed);
        }
    }
}

/// Closes them again, where the runtime's `/dev/null` is still what they are.
pub(super) fn close_again() {
    let closed = CLOSED.swap(0, Ordering::Relaxed);
    for fd in STANDARD.filter(|fd| closed & 1 << fd != 0) {
        let is_null = std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|path| path == *"/dev/null");
        if is_null {
            // SAFETY: no pointers; nothing of the deputy's own has this number, and the standard
            // library does not mind a standard descriptor that is closed.
            unsafe { kernel::call(libc::SYS_close as u32, [fd as u64, 0, 0, 0, 0, 0]) };
        }
    }
}
