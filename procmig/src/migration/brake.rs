//! Slows a process down that writes its memory as fast as it can be sent: its threads stand still for a part of the
//! time, each time for less than they may, instead of once for long.

use crate::kernel::freeze::FreezeError;
use crate::kernel::lock;
use crate::kernel::process::Process;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The process runs for one part in so many, at the least.
const MOST: u32 = 64;
/// How long running and standing still may take together.
const PERIOD: Duration = Duration::from_millis(16);
/// How long threads may take to stand still.
const STOP: Duration = Duration::from_millis(100);

/// What the thread that stops the others is told.
#[derive(Debug, Default)]
struct Orders {
    /// The process runs for one part in so many; 0 ends the thread.
    factor: Mutex<u32>,
    changed: Condvar,
}

impl Orders {
    /// Waits, unless the end comes first; the factor then.
    fn wait(&self, time: Duration) -> u32 {
        let factor = lock(&self.factor);
        let wait = self.changed.wait_timeout_while(factor, time, |factor| *factor > 0);
        *wait.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The brake of one process, which is released when this is dropped.
#[derive(Debug, Default)]
pub struct Brake {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

impl Brake {
    /// Halves the time for which the process runs. It stands still for at most half of `most` at a time.
    ///
    /// Returns the part of the time for which it runs now, one in so many; `None` if it cannot be slowed down more.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn press(&mut self, process: &Arc<Process>, most: Duration) -> io::Result<Option<u32>> {
        let factor = {
            let mut factor = lock(&self.orders.factor);
            if *factor >= MOST {
                return Ok(None);
            }
            *factor = (*factor * 2).max(2);
            *factor
        };
        if self.thread.is_none() {
            let (orders, process) = (self.orders.clone(), process.clone());
            let period = PERIOD.min(most / 2).max(Duration::from_micros(500));
            let thread = std::thread::Builder::new().name("brake".into()).stack_size(256 << 10);
            self.thread = Some(thread.spawn(move || hold_back(&process, &orders, period))?);
        }
        Ok(Some(factor))
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        *lock(&self.orders.factor) = 0;
        self.orders.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn hold_back(process: &Process, orders: &Orders, period: Duration) {
    loop {
        let factor = orders.wait(Duration::ZERO);
        if factor == 0 {
            return;
        }
        let runs = period / factor;
        match process.freeze(STOP) {
            Ok(still) => {
                orders.wait(period - runs);
                drop(still);
            }
            // Who ends needs not be slowed down.
            Err(FreezeError::Ended) => return,
            // A thread is in a call that takes long: it writes to memory that it was given before.
            Err(FreezeError::Late(_) | FreezeError::Busy) => {}
        }
        orders.wait(runs);
    }
}
