//! What is done a few times a second: the clock is kept right, and deputies that were stopped or
//! continued by what cannot be caught are noticed.

use super::process::Ending;
use super::{Kernel, lock};
use crate::signal::info;
use std::fs;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Between two looks at the deputies.
const LOOK: Duration = Duration::from_millis(50);
/// Looks between two updates of the clock.
const CLOCK_EVERY: u32 = 5;

/// Starts the thread.
pub(super) fn start(kernel: &Arc<Kernel>) -> io::Result<()> {
    let kernel: Weak<Kernel> = Arc::downgrade(kernel);
    std::thread::Builder::new().name("housekeeping".into()).stack_size(256 << 10).spawn(move || {
        let mut round = 0u32;
        loop {
            std::thread::sleep(LOOK);
            let Some(kernel) = kernel.upgrade() else { return };
            round = round.wrapping_add(1);
            if round.is_multiple_of(CLOCK_EVERY) {
                kernel.time.clock.update();
                kernel.links.update_clocks();
            }
            follow_deputies(&kernel);
            for process in kernel.processes() {
                process.send_cancellations();
            }
            watch_cpu_limits(&kernel);
        }
    })?;
    Ok(())
}

/// A process is stopped while its deputy is. Only those that could run are looked at: a deputy that
/// is stopped in a call keeps its guest waiting by itself.
fn follow_deputies(kernel: &Kernel) {
    for process in kernel.processes() {
        let stopped = process.is_stopped();
        // Who answers says what home's clocks show, too: one of them is asked.
        let is_asked = !stopped && process.is_remote() && process.time().clock.wants_news();
        if !stopped && !is_asked && !process.threads().iter().any(|thread| thread.gate.is_inside()) {
            continue;
        }
        if process.is_remote() {
            process.follow_remote_deputy();
            continue;
        }
        match (process_is_stopped(process.pid), stopped) {
            (Some(true), false) => process.stop(),
            (Some(false), true) => process.resume(),
            _ => {}
        }
    }
}

/// `RLIMIT_CPU`: a warning each second past the soft limit, and the end at the hard one.
fn watch_cpu_limits(kernel: &Kernel) {
    for process in kernel.processes() {
        let limit = lock(&process.identity).limits.get(&libc::RLIMIT_CPU).copied();
        let Some((soft, hard)) = limit.filter(|&(soft, _)| soft != libc::RLIM_INFINITY) else { continue };
        let seconds = process.cpu_time() / 1_000_000_000;
        if seconds >= hard {
            process.begin_exit(Ending::Signal(libc::SIGKILL));
        } else if seconds >= soft && process.counters.cpu_warned.fetch_max(seconds, Ordering::Relaxed) < seconds {
            process.post(info::kernel(libc::SIGXCPU));
        }
    }
}

/// `None` if it cannot be told.
pub(super) fn process_is_stopped(pid: i32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
    Some(matches!(state, 'T' | 't'))
}

/// The process of this host to which a thread belongs; `None` if it cannot be told.
pub(super) fn process_of_thread(tid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}
