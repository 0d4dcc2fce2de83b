//! Which threads of a node go first on a busy machine.
//!
//! A process stands still while the last of it is sent, and what is sent before grows for as long as that takes. Threads
//! that do this, and those that hear deputies, get more of the processors than those that run guests, if the node may
//! have that: as root, or with `LimitNICE=`.

use std::sync::OnceLock;

/// By how much the niceness of those that go first is less: about three times the share of others.
const LESS: i32 = 5;

/// Niceness of the node.
static OWN: OnceLock<i32> = OnceLock::new();

fn own() -> i32 {
    // SAFETY: no pointers; 0 is the calling thread.
    *OWN.get_or_init(|| unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
}

fn set(niceness: i32) {
    // It is as it was where it may not be changed.
    // SAFETY: as above.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) };
}

/// To be called before the node has other threads: what they are compared with is this one.
pub fn note_own() {
    own();
}

/// From now on this thread, and those that it starts, go first.
pub fn go_first() {
    set(own() - LESS);
}

/// From now on this thread, whoever has started it, goes first no more.
pub fn take_turns() {
    set(own());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        // SAFETY: as above.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn who_goes_first_starts_others_that_do_not() {
        note_own();
        let before = niceness();
        std::thread::spawn(move || {
            go_first();
            let may = niceness() < before;
            let theirs = std::thread::spawn(|| {
                let inherited = niceness();
                take_turns();
                (inherited, niceness())
            });
            assert_eq!(theirs.join().unwrap(), (if may { before - LESS } else { before }, before));
        })
        .join()
        .unwrap();
        assert_eq!(niceness(), before);
    }
}
