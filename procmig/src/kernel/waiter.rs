//! A thread's wait for a file of home, which other threads can end.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where one thread waits.
#[derive(Debug, Default)]
pub struct Waiter {
    /// It waits, or is about to.
    waits: AtomicBool,
    /// Made at the first wait.
    wake: OnceLock<EventFd>,
}

impl Waiter {
    /// Calls `poll`, which waits until the descriptor that it gets becomes readable, or for something
    /// else; unless `stop` says that there is no time. Returns whether it was done undisturbed.
    ///
    /// # Errors
    /// If no descriptor is left, or as `poll`.
    pub fn wait(
        &self,
        poll: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
        stop: impl Fn() -> bool,
    ) -> io::Result<bool> {
        let wake = match self.wake.get() {
            Some(wake) => wake,
            None => {
                let new = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
                self.wake.get_or_init(|| new)
            }
        };
        // Whoever wants to stop it says so first and looks at this then.
        self.waits.store(true, Ordering::SeqCst);
        let result = if stop() { Ok(()) } else { poll(wake.as_fd()) };
        self.waits.store(false, Ordering::SeqCst);
        // One that comes later is read at the next wait, which it ends too early and no more.
        let _ = wake.read();
        result.map(|()| !stop())
    }

    /// Ends a wait that is under way.
    pub fn interrupt(&self) {
        if self.waits.load(Ordering::SeqCst)
            && let Some(wake) = self.wake.get()
        {
            // It fails only where it has been written very often already.
            let _ = wake.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::sync::Arc;

    fn poll(wake: BorrowedFd<'_>) -> io::Result<()> {
        let mut polled = libc::pollfd { fd: wake.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one `pollfd`.
        unsafe { libc::poll(&mut polled, 1, -1) };
        Ok(())
    }

    #[test]
    fn an_interruption_is_never_lost() {
        let waiter = Arc::new(Waiter::default());
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..2000 {
            stop.store(false, Ordering::SeqCst);
            let (waiter, stop) = (waiter.clone(), stop.clone());
            let (other, flag) = (waiter.clone(), stop.clone());
            let interrupter = std::thread::spawn(move || {
                flag.store(true, Ordering::SeqCst);
                other.interrupt();
            });
            while waiter.wait(poll, || stop.load(Ordering::SeqCst)).unwrap() {}
            interrupter.join().unwrap();
        }
    }
}
