//! Where a guest thread enters and leaves ring 3, so that others can change its page tables meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm::hypervisor::Interrupter;

/// A thread's gate. The thread passes it before it enters the guest and after it has left; whoever
/// changes the page tables closes it and waits until the thread is outside.
#[derive(Debug, Default, Clone)]
pub struct Gate {
    state: Arc<State>,
    interrupter: Option<Interrupter>,
}

#[derive(Debug, Default)]
struct State {
    inside: AtomicBool,
    closed: AtomicBool,
}

impl Gate {
    /// An open gate of the thread that this interrupter reaches.
    pub fn new(interrupter: Interrupter) -> Self {
        Self { state: Arc::default(), interrupter: Some(interrupter) }
    }

    /// Goes in, unless the gate is closed.
    pub fn enter(&self) -> bool {
        self.state.inside.store(true, Ordering::SeqCst);
        if self.state.closed.load(Ordering::SeqCst) {
            self.state.inside.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Is out again.
    pub fn leave(&self) {
        self.state.inside.store(false, Ordering::Release);
    }

    /// Whether the thread is in the guest.
    pub fn is_inside(&self) -> bool {
        self.state.inside.load(Ordering::Relaxed)
    }

    /// Opens it: the thread itself does so, when it has seen what was changed.
    pub fn open(&self) {
        self.state.closed.store(false, Ordering::SeqCst);
    }

    /// Whether someone has closed it and the thread has not seen what was changed.
    pub fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::SeqCst)
    }

    /// Closes it and waits until the thread is out. Not for a thread's own gate.
    pub fn close_and_wait(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        let mut rounds = 0u32;
        while self.state.inside.load(Ordering::SeqCst) {
            if rounds == 0
                && let Some(interrupter) = &self.interrupter
            {
                interrupter.interrupt();
            }
            rounds += 1;
            if rounds > 100 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Whether these are the same gate.
    pub fn is(&self, other: &Gate) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// Whether it is the gate of the thread that this interrupter reaches.
    pub fn is_of(&self, interrupter: &Interrupter) -> bool {
        self.interrupter.as_ref().is_some_and(|mine| mine.is(interrupter))
    }

    /// Breaks into whatever the thread waits in, too.
    pub fn kick(&self) {
        if let Some(interrupter) = &self.interrupter {
            interrupter.kick();
        }
    }

    /// Breaks into the thread's run, if it is in the guest or about to be.
    pub fn interrupt(&self) {
        if let Some(interrupter) = &self.interrupter {
            interrupter.interrupt();
        }
    }
}
