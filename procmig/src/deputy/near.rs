//! A thread that is asked often runs beside who asks it ([`crate::kernel`] says why).

use super::kernel;
use super::threads::lock;
use std::sync::Mutex;

/// Bytes of a set of CPUs: as many CPUs as a request can name.
const MASK: usize = 8192;

/// Whether a thread is bound to a CPU.
#[derive(Debug, Default)]
pub(super) struct Near(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// As in a request: 0 for no CPU.
    at: u16,
    /// Where it may run by rights, while it is bound.
    rights: Vec<u8>,
}

impl Near {
    /// From the thread itself: goes where it is asked from.
    pub(super) fn follow(&self, near: u16) {
        let state = &mut *lock(&self.0);
        if near == 0 || near == state.at {
            return;
        }
        if state.at == 0 {
            let Some(rights) = cpus(0) else { return };
            state.rights = rights;
        }
        let cpu = usize::from(near - 1);
        let allowed = state.rights.get(cpu / 8).is_some_and(|byte| byte & 1 << (cpu % 8) != 0);
        if allowed && set_cpus(0, &only(cpu)) {
            state.at = near;
        }
    }

    /// From any thread: the thread `tid`, which is this one, may run where it has the right to. What somebody else
    /// has chosen for it meanwhile stays.
    pub(super) fn part(&self, tid: i32) {
        let state = &mut *lock(&self.0);
        let at = std::mem::take(&mut state.at);
        if at == 0 {
            return;
        }
        let bound = only(usize::from(at - 1));
        if cpus(tid).is_some_and(|now| trimmed(&now) == trimmed(&bound)) {
            set_cpus(tid, &state.rights);
        }
    }
}

impl Near {
    /// From any thread: somebody has chosen where the thread `tid`, which is this one, has the right to run.
    pub(super) fn choose(&self, tid: i32, set: &[u8]) {
        let state = &mut *lock(&self.0);
        state.at = 0;
        set_cpus(tid, set);
    }
}

fn trimmed(set: &[u8]) -> &[u8] {
    &set[..set.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)]
}

fn only(cpu: usize) -> Vec<u8> {
    let mut set = vec![0; cpu / 64 * 8 + 8];
    set[cpu / 8] = 1 << (cpu % 8);
    set
}

fn cpus(tid: i32) -> Option<Vec<u8>> {
    let mut set = vec![0u8; MASK];
    let args = [tid as u64, set.len() as u64, set.as_mut_ptr() as u64, 0, 0, 0];
    // SAFETY: the kernel writes at most `set.len()` bytes to `set`.
    let length = unsafe { kernel::call(libc::SYS_sched_getaffinity as u32, args) };
    set.truncate(usize::try_from(length).ok()?);
    Some(set)
}

fn set_cpus(tid: i32, set: &[u8]) -> bool {
    let args = [tid as u64, set.len() as u64, set.as_ptr() as u64, 0, 0, 0];
    // SAFETY: the kernel reads `set`.
    unsafe { kernel::call(libc::SYS_sched_setaffinity as u32, args) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_bound_has_its_rights_again_and_keeps_what_others_chose() {
        let rights = cpus(0).unwrap();
        let all: Vec<usize> =
            (0..MASK * 8).filter(|cpu| rights.get(cpu / 8).is_some_and(|b| b & 1 << (cpu % 8) != 0)).collect();
        let near = Near::default();
        let tid = kernel::gettid();
        for &cpu in &all {
            near.follow(cpu as u16 + 1);
            assert_eq!(trimmed(&cpus(0).unwrap()), trimmed(&only(cpu)));
        }
        near.part(tid);
        assert_eq!(cpus(0).unwrap(), rights);
        // No CPU of its own.
        near.follow(u16::MAX);
        assert_eq!(cpus(0).unwrap(), rights);
        if let [first, second, ..] = all[..] {
            near.follow(first as u16 + 1);
            assert!(set_cpus(0, &only(second)));
            near.part(tid);
            assert_eq!(trimmed(&cpus(0).unwrap()), trimmed(&only(second)));
            assert!(set_cpus(0, &rights));
            // What is chosen is what it was bound to.
            near.follow(second as u16 + 1);
            near.choose(tid, &only(second));
            near.part(tid);
            assert_eq!(trimmed(&cpus(0).unwrap()), trimmed(&only(second)));
            assert!(set_cpus(0, &rights));
        }
    }
}
