//! Breaking into a running vCPU from another thread.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

thread_local! {
    /// The byte that keeps this thread's vCPU from entering the guest.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

static HANDLER: Once = Once::new();

/// The signal that takes a thread out of the guest.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: `bind` was called by this thread with a byte that outlives the thread's use of
        // its vCPU, and `unbind` before that byte went away.
        unsafe { (*byte).store(1, Ordering::Relaxed) }
    }
}

/// Breaks into the run of one vCPU. Cheap to clone; works from any thread.
///
/// An interrupt is never lost: it either ends the run that is under way, or the next one at once.
#[derive(Clone, Debug, Default)]
pub struct Interrupter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: AtomicBool,
    thread: AtomicI32,
}

impl Interrupter {
    /// Makes the vCPU stop with [`Exit::Interrupted`](super::Exit::Interrupted).
    pub fn interrupt(&self) {
        if self.shared.pending.swap(true, Ordering::SeqCst) {
            return;
        }
        self.signal();
    }

    /// As [`interrupt`](Self::interrupt), and breaks into what else the thread waits in: a system call of the host
    /// that it is in ends with `EINTR`. One that it is about to enter does not.
    pub fn kick(&self) {
        self.shared.pending.store(true, Ordering::SeqCst);
        self.signal();
    }

    fn signal(&self) {
        let thread = self.shared.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: sends a signal, which has our own handler, to a thread of this process. If
            // the thread has ended the kernel answers ESRCH.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
        }
    }

    /// Whether both break into the same vCPU.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Declares that the calling thread now runs the vCPU whose run page has `immediate_exit`.
    ///
    /// # Safety
    /// The byte stays valid until the thread calls [`unbind`](Self::unbind) or ends.
    pub(super) unsafe fn bind(&self, immediate_exit: *const AtomicU8) {
        HANDLER.call_once(|| {
            // SAFETY: installs a handler that does nothing but store to a thread-local's target.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_kick as *const () as usize;
                libc::sigaction(kick_signal(), &action, ptr::null_mut());
            }
        });
        IMMEDIATE_EXIT.set(immediate_exit);
        // SAFETY: asks for the caller's thread ID.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) } as i32;
        self.shared.thread.store(thread, Ordering::SeqCst);
    }

    /// Whether this vCPU is bound to the calling thread.
    pub(super) fn is_bound(&self, immediate_exit: *const AtomicU8) -> bool {
        IMMEDIATE_EXIT.get() == immediate_exit
    }

    /// Takes the pending interrupt, if there is one.
    pub(super) fn take(&self) -> bool {
        self.shared.pending.swap(false, Ordering::SeqCst)
    }

    /// Whether an interrupt is pending.
    pub(super) fn is_pending(&self) -> bool {
        self.shared.pending.load(Ordering::SeqCst)
    }
}

/// Undoes [`Interrupter::bind`] if the calling thread is bound to this byte.
pub(super) fn unbind(immediate_exit: *const AtomicU8) {
    IMMEDIATE_EXIT.with(|bound| {
        if bound.get() == immediate_exit {
            bound.set(ptr::null());
        }
    });
}
