//! Tests that keep all processors busy take turns: where more of them run than there are processors, programs
//! wait for seconds between two instructions, and what is to happen within a second does not.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The right of a thread's test to keep a processor busy, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    /// It ends in the thread that has it.
    _here: PhantomData<MutexGuard<'static, ()>>,
}

static BUSY: Mutex<usize> = Mutex::new(0);
static OVER: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

impl Turn {
    /// Waits for it, unless the thread has it already.
    pub fn wait() -> Self {
        if HELD.get() == 0 {
            let most = std::thread::available_parallelism().map_or(1, usize::from);
            let busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
            let mut busy = OVER.wait_while(busy, |busy| *busy >= most).unwrap_or_else(PoisonError::into_inner);
            *busy += 1;
        }
        HELD.set(HELD.get() + 1);
        Self { _here: PhantomData }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        if HELD.get() == 0 {
            *BUSY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            OVER.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_have_one_than_there_are_processors() {
        let most = std::thread::available_parallelism().map_or(1, usize::from);
        let (now, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..most * 3 {
                scope.spawn(|| {
                    let _turn = Turn::wait();
                    // One that has a turn does not wait for another.
                    let _same = Turn::wait();
                    peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!((1..=most).contains(&peak.load(Ordering::SeqCst)));
    }
}
