//! The host thread that runs a guest thread: the host's scheduler accounts its CPU time.

/// A host thread, and what it had used when it began to run a guest thread.
#[derive(Debug, Clone, Copy)]
pub struct HostThread {
    tid: i32,
    cpu_before: u64,
    system_before: u64,
}

impl HostThread {
    /// The calling thread, about to run a guest thread.
    pub fn current() -> Self {
        let tid = nix::unistd::gettid().as_raw();
        Self { tid, cpu_before: cpu_time(tid), system_before: own_system_time() }
    }

    /// Its ID.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// CPU time in nanoseconds that it has used since.
    pub fn cpu_time(&self) -> u64 {
        cpu_time(self.tid).saturating_sub(self.cpu_before)
    }

    /// Of that, nanoseconds in the host's kernel: what it took to leave the guest, to come back, and
    /// to talk to home. Told in microseconds to the thread itself, to others in hundredths of a second.
    pub fn system_time(&self) -> u64 {
        let now = if nix::unistd::gettid().as_raw() == self.tid { own_system_time() } else { system_time(self.tid) };
        now.saturating_sub(self.system_before)
    }
}

/// CPU time of a thread of this process in nanoseconds; 0 if it has ended.
fn cpu_time(tid: i32) -> u64 {
    // The kernel's encoding of a thread's CPU clock.
    const PER_THREAD_SCHED: i32 = 6;
    let clock = (!tid << 3) | PER_THREAD_SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is the place that the call writes to.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return 0;
    }
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn own_system_time() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.system_time().num_nanoseconds().max(0) as u64)
}

fn system_time(tid: i32) -> u64 {
    /// Nanoseconds of a tick, in which the kernel tells times of other threads.
    const TICK: u64 = 10_000_000;
    /// Fields between the name, which may hold anything, and the time in the kernel.
    const BEFORE: usize = 12;
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_whitespace().nth(BEFORE).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0) * TICK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_s_time_in_the_kernel_is_part_of_its_time_and_others_see_it_too() {
        let thread = HostThread::current();
        // Work for the kernel, until it has been accounted in both of its units.
        let mut page = vec![0u8; 1 << 20];
        while system_time(thread.tid) < 30_000_000 {
            let zeros = std::fs::File::open("/dev/zero").unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&zeros, &mut page, 0).unwrap();
        }
        let (system, cpu) = (thread.system_time(), thread.cpu_time());
        assert!(system > 0 && system <= cpu + 20_000_000, "{system} of {cpu}");
        let seen = std::thread::scope(|scope| scope.spawn(|| thread.system_time()).join().unwrap());
        assert!(seen.abs_diff(system) <= 20_000_000, "{seen} instead of {system}");
    }
}
