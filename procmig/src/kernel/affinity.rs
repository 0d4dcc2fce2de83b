//! The CPUs that a guest thread may run on.

use nix::errno::Errno;
use std::sync::OnceLock;

/// Bytes of a set: as many CPUs as Debian's kernels know, 8192.
pub const MASK: usize = 1024;

/// A set of CPUs, in the kernel's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuSet([u8; MASK]);

impl CpuSet {
    /// The set of these bits.
    pub const fn new(bits: [u8; MASK]) -> Self {
        Self(bits)
    }

    /// Its bits without the zeros at the end.
    pub fn to_bytes(self) -> Vec<u8> {
        let used = self.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        self.0[..used].to_vec()
    }

    /// The set that [`to_bytes`](Self::to_bytes) has given; `None` if there are too many bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut bits = [0; MASK];
        bits.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self(bits))
    }

    /// The CPUs of a thread of this host; `None` if it cannot be asked, as one that has ended.
    pub fn of(tid: i32) -> Option<Self> {
        let mut bits = [0; MASK];
        // SAFETY: the buffer is ours and as long as is said; the call fills it from its start.
        let filled = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, MASK, bits.as_mut_ptr()) };
        (filled > 0).then_some(Self(bits))
    }

    /// Has a thread of this host run on these CPUs, those of them that it has.
    ///
    /// # Errors
    /// If it has none of them, or the thread has ended.
    pub fn apply(&self, tid: i32) -> Result<(), Errno> {
        // SAFETY: the buffer is ours and as long as is said; the call only reads it.
        let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, MASK, self.0.as_ptr()) };
        Errno::result(result).map(drop)
    }
}

/// Whether this process had but one CPU to run on when this was first asked.
pub fn has_one_cpu() -> bool {
    // It takes several files to find out.
    static ONE: OnceLock<bool> = OnceLock::new();
    *ONE.get_or_init(|| std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_on_the_cpus_that_it_is_given() {
        let all = CpuSet::of(0).expect("the own set");
        let first = all.0.iter().position(|&byte| byte != 0).expect("a CPU");
        let mut bits = [0; MASK];
        bits[first] = all.0[first] & all.0[first].wrapping_neg();
        let one = CpuSet::new(bits);
        assert_eq!(one.apply(0), Ok(()));
        assert_eq!(CpuSet::of(0), Some(one));
        assert_eq!(all.apply(0), Ok(()));
        assert_eq!(CpuSet::of(0), Some(all));
        assert_eq!(CpuSet::new([0; MASK]).apply(0), Err(Errno::EINVAL));
    }
}
