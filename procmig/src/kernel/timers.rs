//! Timers of guest processes: one host thread for the node.

use super::process::Process;
use super::thread::Thread;
use super::{Kernel, lock};
use crate::migration::image::TimerImage;
use crate::signal::info;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

/// Most POSIX timers of a process.
const MAX_TIMERS: usize = 4096;
/// Least nanoseconds between two looks at a timer: what expires oftener is counted (`timer_getoverrun`), and
/// one program's timers do not keep the node's one thread for them busy.
const MIN_PERIOD: u64 = 100_000;
/// How often a timer of CPU time is looked at, at most: as a kernel's tick.
const TICK: u64 = 4_000_000;

/// What a timer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Time of the host's monotonic clock.
    Time,
    /// CPU time of the process with this PID.
    ProcessCpu(i32),
    /// CPU time in user mode of the timer's own process.
    OwnUserTime,
    /// CPU time of the process's own thread with this TID.
    ThreadCpu(i32),
}

impl Counts {
    /// The same moment by a clock that is so much ahead; CPU time is the same everywhere.
    fn shift(self, nanos: u64, ahead: i64) -> u64 {
        if self.is_cpu() { nanos } else { nanos.saturating_add_signed(ahead) }
    }

    /// Whether it is CPU time, which passes slower than time.
    pub fn is_cpu(self) -> bool {
        self != Self::Time
    }
}

/// What a timer does when it expires.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Nothing.
    None,
    /// Signal to the process; the value for `si_value`.
    Process {
        /// 1..=64
        signal: i32,
        /// As `timer_create` was given.
        value: u64,
    },
    /// Signal to a thread.
    Thread {
        /// 1..=64
        signal: i32,
        /// As `timer_create` was given.
        value: u64,
        /// The thread.
        tid: i32,
    },
}

/// One timer. Times are nanoseconds of what it counts.
#[derive(Debug, Clone)]
pub struct Timer {
    /// What it counts.
    pub counts: Counts,
    /// The clock that its creator named.
    pub clock: libc::clockid_t,
    /// What it does.
    pub notice: Notice,
    /// When it expires next; `None` if it is not armed.
    pub deadline: Option<u64>,
    /// Period; 0 for once.
    pub interval: u64,
    /// Expirations since the last signal was queued, less one.
    pub overrun: i32,
    /// Arming changes it, so that an expiration that is under way then does nothing.
    generation: u64,
    /// Where it is in the queue.
    due: Option<Instant>,
}

impl Timer {
    /// A timer that is not armed.
    pub fn new(counts: Counts, clock: libc::clockid_t, notice: Notice) -> Self {
        Self { counts, clock, notice, deadline: None, interval: 0, overrun: 0, generation: 0, due: None }
    }
}

/// Timers of `setitimer` have these numbers.
pub mod interval {
    /// `ITIMER_REAL`
    pub const REAL: i32 = -1;
    /// `ITIMER_VIRTUAL`
    pub const VIRTUAL: i32 = -2;
    /// `ITIMER_PROF`
    pub const PROF: i32 = -3;
}

/// Timers of a process, by number: those of `timer_create` from 0 on.
#[derive(Debug, Default)]
pub struct ProcessTimers {
    timers: HashMap<i32, Timer>,
    next: i32,
    generation: u64,
}

impl ProcessTimers {
    /// All of them, and the number that the next gets. Home's monotonic clock is so much `ahead` of this host's.
    pub fn images(&self, ahead: i64) -> (Vec<TimerImage>, i32) {
        let at_home = |timer: &Timer| timer.deadline.map(|deadline| timer.counts.shift(deadline, ahead));
        let image = |(&id, timer): (&i32, &Timer)| TimerImage {
            id,
            counts: match timer.counts {
                Counts::Time => (0, 0),
                Counts::ProcessCpu(pid) => (1, pid),
                Counts::OwnUserTime => (2, 0),
                Counts::ThreadCpu(tid) => (3, tid),
            },
            clock: timer.clock,
            notice: match timer.notice {
                Notice::None => (0, 0, 0, 0),
                Notice::Process { signal, value } => (1, signal, value, 0),
                Notice::Thread { signal, value, tid } => (2, signal, value, tid),
            },
            deadline: at_home(timer),
            interval: timer.interval,
            overrun: timer.overrun,
        };
        (self.timers.iter().map(image).collect(), self.next)
    }

    /// Those of an image; they do not run yet. `None` if they cannot be anybody's.
    pub fn from_images(images: &[TimerImage], next: i32, ahead: i64) -> Option<Self> {
        let mut timers = HashMap::new();
        for image in images.iter().take(MAX_TIMERS + 3) {
            let counts = match image.counts {
                (0, _) => Counts::Time,
                (1, pid) => Counts::ProcessCpu(pid),
                (2, _) => Counts::OwnUserTime,
                (3, tid) => Counts::ThreadCpu(tid),
                _ => return None,
            };
            let (kind, signal, value, tid) = image.notice;
            let notice = match kind {
                0 => Notice::None,
                _ if !(1..=64).contains(&signal) => return None,
                1 => Notice::Process { signal, value },
                2 => Notice::Thread { signal, value, tid },
                _ => return None,
            };
            let mut timer = Timer::new(counts, image.clock, notice);
            timer.deadline = image.deadline.map(|deadline| counts.shift(deadline, -ahead));
            (timer.interval, timer.overrun) = (image.interval, image.overrun);
            timers.insert(image.id, timer);
        }
        Some(Self { timers, next: next.max(0), generation: 0 })
    }

    /// The timer with this number.
    pub fn get(&self, id: i32) -> Option<&Timer> {
        self.timers.get(&id)
    }

    /// Makes a POSIX timer; `None` if there are `limit` or too many.
    pub fn create(&mut self, timer: Timer, limit: u64) -> Option<i32> {
        let made = self.timers.keys().filter(|&&id| id >= 0).count();
        if made >= MAX_TIMERS || made as u64 >= limit {
            return None;
        }
        while self.timers.contains_key(&self.next) {
            self.next = (self.next + 1) & 0x7fff_ffff;
        }
        let id = self.next;
        self.next = (self.next + 1) & 0x7fff_ffff;
        self.timers.insert(id, timer);
        Some(id)
    }

    /// Makes the timer of `setitimer` with this number, if it is not there.
    pub fn ensure(&mut self, id: i32, timer: Timer) {
        self.timers.entry(id).or_insert(timer);
    }

    /// Has the signal of a timer that was made without `sigevent` carry the timer's number.
    pub fn set_default_value(&mut self, id: i32) {
        if let Some(Timer { notice: Notice::Process { value, .. }, .. }) = self.timers.get_mut(&id) {
            *value = id as u64;
        }
    }
}

/// Names a process: the number of its home, and its PID.
type Key = (u32, i32);

/// An entry of the queue, of which an armed timer has one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    whose: Key,
    id: i32,
    generation: u64,
}

/// The queue of a node's deadlines.
pub struct Timers {
    queue: Mutex<BTreeSet<Due>>,
    changed: Condvar,
    /// Held while a timer expires.
    expiring: Mutex<()>,
}

/// Nanoseconds of the host's monotonic clock.
pub fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is the place that the call writes to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What has been counted, in nanoseconds; `None` if what uses the CPU time has ended.
pub fn count(process: &Process, counts: Counts) -> Option<u64> {
    match counts {
        Counts::Time => Some(monotonic()),
        Counts::ProcessCpu(pid) if pid == process.pid => Some(process.cpu_time()),
        Counts::ProcessCpu(pid) => Some(process.kernel.process_of(process.home(), pid)?.cpu_time()),
        Counts::OwnUserTime => Some(process.user_time()),
        Counts::ThreadCpu(tid) => Some(process.thread(tid)?.cpu_time()),
    }
}

impl Timers {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::default(), changed: Condvar::new(), expiring: Mutex::default() }
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn start(&self, kernel: &Arc<Kernel>) -> io::Result<()> {
        let kernel: Weak<Kernel> = Arc::downgrade(kernel);
        std::thread::Builder::new().name("timers".into()).stack_size(256 << 10).spawn(move || {
            while let Some(kernel) = kernel.upgrade() {
                kernel.timers.turn(&kernel);
            }
        })?;
        Ok(())
    }

    fn turn(&self, kernel: &Kernel) {
        let mut queue = lock(&self.queue);
        let now = Instant::now();
        match queue.first() {
            Some(due) if due.at <= now => {
                let due = queue.pop_first().expect("just seen");
                let expiring = lock(&self.expiring);
                drop(queue);
                if let Some(process) = kernel.process_of(due.whose.0, due.whose.1) {
                    self.expire(&process, &due);
                }
                drop(expiring);
            }
            first => {
                let wait = first.map_or(Duration::from_secs(3600), |due| due.at - now);
                drop(self.changed.wait_timeout(queue, wait));
            }
        }
    }

    fn expire(&self, process: &Arc<Process>, due: &Due) {
        let (notice, overrun, counts) = {
            let mut timers = lock(&process.timers);
            let Some(timer) = timers.timers.get_mut(&due.id).filter(|timer| timer.generation == due.generation) else {
                return;
            };
            timer.due = None;
            let Some(deadline) = timer.deadline else { return };
            let Some(now) = count(process, timer.counts) else {
                timer.deadline = None;
                return;
            };
            if now < deadline {
                // CPU time passes slower than time.
                timer.due = Some(self.push(process.key(), due.id, due.generation, deadline - now, timer.counts));
                return;
            }
            let mut missed = 0;
            timer.deadline = None;
            if let Some(periods) = (now - deadline).checked_div(timer.interval) {
                missed = periods.min(i32::MAX as u64) as i32;
                let next = deadline.saturating_add((missed as u64 + 1).saturating_mul(timer.interval));
                timer.deadline = Some(next);
                let wait = next.saturating_sub(now).max(MIN_PERIOD);
                timer.due = Some(self.push(process.key(), due.id, due.generation, wait, timer.counts));
            }
            timer.overrun = missed;
            (timer.notice.clone(), missed, timer.counts)
        };
        let make = |signal, value| {
            if due.id < 0 { info::kernel(signal) } else { info::timer(signal, due.id, overrun, value) }
        };
        match notice {
            Notice::None => {}
            // As Linux, which sends it when the time of a running thread is counted.
            Notice::Process { signal, value }
                if matches!(counts, Counts::OwnUserTime) || counts == Counts::ProcessCpu(process.pid) =>
            {
                process.post_preferring(make(signal, value), process.charge().as_ref());
            }
            Notice::Process { signal, value } => {
                process.post(make(signal, value));
            }
            Notice::Thread { signal, value, tid } => match process.thread(tid) {
                Some(thread) => {
                    process.post_to(&thread, make(signal, value));
                }
                None => tracing::debug!(tid, "a timer's thread has ended"),
            },
        }
    }

    fn push(&self, whose: Key, id: i32, generation: u64, wait: u64, counts: Counts) -> Instant {
        let wait = if counts.is_cpu() { wait.max(TICK) } else { wait };
        let at = Instant::now() + Duration::from_nanos(wait);
        let mut queue = lock(&self.queue);
        let first = queue.first().is_none_or(|due| at < due.at);
        queue.insert(Due { at, whose, id, generation });
        drop(queue);
        if first {
            self.changed.notify_one();
        }
        at
    }

    /// Takes a timer out of the queue, so that arming timers again and again does not fill it.
    fn take_out(&self, whose: Key, id: i32, timer: &Timer) {
        if let Some(at) = timer.due {
            lock(&self.queue).remove(&Due { at, whose, id, generation: timer.generation });
        }
    }

    /// Arms a timer `value` nanoseconds from now, or at `value` if `absolute`; 0 disarms it. Returns
    /// what was left of it, and its old period; `None` if there is no such timer.
    pub fn arm(&self, process: &Process, id: i32, value: u64, absolute: bool, interval: u64) -> Option<(u64, u64)> {
        let mut timers = lock(&process.timers);
        timers.generation += 1;
        let generation = timers.generation;
        let timer = timers.timers.get_mut(&id)?;
        let now = count(process, timer.counts).unwrap_or(0);
        let old = left(timer, now);
        self.take_out(process.key(), id, timer);
        timer.generation = generation;
        timer.due = None;
        timer.interval = interval;
        timer.overrun = 0;
        timer.deadline = (value != 0).then(|| if absolute { value } else { now.saturating_add(value) });
        if let Some(deadline) = timer.deadline {
            timer.due = Some(self.push(process.key(), id, generation, deadline.saturating_sub(now), timer.counts));
        }
        Some(old)
    }

    /// What is left of a timer and its period, in nanoseconds; `None` if there is no such timer.
    pub fn look(&self, process: &Process, id: i32) -> Option<(u64, u64)> {
        let timers = lock(&process.timers);
        let timer = timers.timers.get(&id)?;
        Some(left(timer, count(process, timer.counts).unwrap_or(u64::MAX)))
    }

    /// Deletes a timer; `false` if there is none.
    pub fn delete(&self, process: &Process, id: i32) -> bool {
        let removed = lock(&process.timers).timers.remove(&id);
        removed.inspect(|timer| self.take_out(process.key(), id, timer)).is_some()
    }

    /// Deletes the POSIX timers (`exec`).
    pub fn delete_posix(&self, process: &Process) {
        lock(&process.timers).timers.retain(|&id, timer| {
            let stays = id < 0;
            if !stays {
                self.take_out(process.key(), id, timer);
            }
            stays
        });
    }

    /// Has none of the process's timers expire until [`resume`](Self::resume).
    pub fn suspend(&self, process: &Process) {
        let mut timers = lock(&process.timers);
        timers.generation += 1;
        let generation = timers.generation;
        for (&id, timer) in &mut timers.timers {
            self.take_out(process.key(), id, timer);
            timer.due = None;
            timer.generation = generation;
        }
        drop(timers);
        // One that was at it is done with it, its signal too.
        drop(lock(&self.queue));
        drop(lock(&self.expiring));
    }

    /// Has the process's timers expire again.
    pub fn resume(&self, process: &Process) {
        let timers = &mut *lock(&process.timers);
        for (&id, timer) in &mut timers.timers {
            if let (Some(deadline), None) = (timer.deadline, timer.due) {
                let now = count(process, timer.counts).unwrap_or(0);
                let wait = deadline.saturating_sub(now);
                timer.due = Some(self.push(process.key(), id, timer.generation, wait, timer.counts));
            }
        }
    }

    /// The process has ended.
    pub fn forget(&self, process: &Process) {
        for (id, timer) in std::mem::take(&mut *lock(&process.timers)).timers {
            self.take_out(process.key(), id, &timer);
        }
    }
}

fn left(timer: &Timer, now: u64) -> (u64, u64) {
    // An armed timer that is about to expire has at least a nanosecond left.
    (timer.deadline.map_or(0, |deadline| deadline.saturating_sub(now).max(1)), timer.interval)
}

/// The signal's target must be a thread of the process.
pub fn is_thread_of(process: &Process, tid: i32) -> bool {
    process.thread(tid).is_some_and(|thread: Arc<Thread>| thread.tid() == tid)
}
