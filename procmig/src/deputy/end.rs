//! The ends of a deputy: the guest's own, and that of its node.

use super::control::{self, write};
use super::threads::lock;
use super::{kernel, link, signals};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Exit status of a deputy whose node is gone.
pub const LOST_STATUS: i32 = 123;

/// How long an order to exit that came before the end of a connection may take to be carried out.
const GRACE: Duration = Duration::from_millis(300);

/// The same between hosts, where what was lost on the way is sent again.
const REMOTE_GRACE: Duration = Duration::from_secs(1);

/// By how much what comes over one connection may be later than what comes over another, if the network was away for as
/// long as it may be: TCP sends again after ever longer pauses.
const REMOTE_DELAY: Duration = Duration::from_secs(16);

/// Between two looks for the end of the control connection.
const LOOK: Duration = Duration::from_millis(10);

/// The program's name and its node's, for messages.
pub(super) static NAMES: Mutex<(Vec<u8>, String)> = Mutex::new((Vec::new(), String::new()));

/// Memory of the process was lost on its way between nodes.
static MEMORY_LOST: AtomicBool = AtomicBool::new(false);

static LOST: AtomicBool = AtomicBool::new(false);

/// There is nothing more to come over the control connection.
static CONTROL_ENDED: AtomicBool = AtomicBool::new(false);

/// The process is about to end, when nothing more comes over the control connection.
static ENDING: AtomicBool = AtomicBool::new(false);

/// The node is gone: says so and exits. The process may be told to exit on one connection while
/// another is closed already, and then that is what it does; or, by the control connection, why it is lost.
pub(super) fn lost() -> ! {
    ENDING.store(true, Ordering::SeqCst);
    if link::is_remote() {
        let since = Instant::now();
        while !CONTROL_ENDED.load(Ordering::SeqCst) && since.elapsed() < REMOTE_DELAY {
            std::thread::sleep(LOOK);
        }
    }
    std::thread::sleep(if link::is_remote() { REMOTE_GRACE } else { GRACE });
    leave("")
}

/// The same where nothing is to come over the control connection any more: it has ended, or the network is lost.
pub(super) fn control_lost() -> ! {
    CONTROL_ENDED.store(true, Ordering::SeqCst);
    lost()
}

/// As [`lost`], on a thread of its own: who calls it may be who reads the control connection.
pub(super) fn lost_soon() {
    if !ENDING.swap(true, Ordering::SeqCst) {
        control::spawn(|| lost()).unwrap_or_else(|_| control_lost());
    }
}

/// In a child: it has connections of its own.
pub(super) fn forget() {
    CONTROL_ENDED.store(false, Ordering::SeqCst);
    ENDING.store(false, Ordering::SeqCst);
}

/// Whether the process is about to end since its node is gone.
pub(super) fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// The node could not be reached for so long: says so and exits.
pub(super) fn lost_after(tried: Duration) -> ! {
    leave(&format!(": it could not be reached for {} s", tried.as_secs()))
}

fn leave(why: &str) -> ! {
    if LOST.swap(true, Ordering::SeqCst) {
        loop {
            // Another thread is about to end the process.
            std::thread::sleep(GRACE);
        }
    }
    let pid = std::process::id();
    let message = match NAMES.try_lock() {
        Ok(names) => {
            let program = String::from_utf8_lossy(&names.0);
            let node = &names.1;
            if MEMORY_LOST.load(Ordering::SeqCst) {
                format!("mosrun: {program} ({pid}): memory of it was lost on its way to the node {node}\n")
            } else {
                format!("mosrun: {program} ({pid}): the node {node} that ran it is gone{why}\n")
            }
        }
        Err(_) => format!("mosrun: ({pid}): the node that ran it is gone{why}\n"),
    };
    write(libc::STDERR_FILENO, message.as_bytes());
    exit(LOST_STATUS)
}

/// Ends the process with this status.
pub(super) fn exit(status: i32) -> ! {
    // SAFETY: it does not return, and nothing in this process needs to be finished.
    unsafe { libc::_exit(status) }
}

/// The program could not be started: says so and ends.
pub(super) fn refuse(status: i32, message: &str) -> ! {
    write(libc::STDERR_FILENO, format!("mosrun: {message}\n").as_bytes());
    exit(status)
}

/// Signals whose default does not end a process.
const HARMLESS: [i32; 8] = [
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
];

/// Ends the process by a signal, so that its parent sees a death by it; or, if the signal does not end
/// a process, with the status by which shells tell of such a death.
pub(super) fn die(signal: u32) -> ! {
    let number = if (1..=64).contains(&signal) { signal as i32 } else { libc::SIGKILL };
    if HARMLESS.contains(&number) {
        exit(128 + number);
    }
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // The core would be the deputy's, not the program's.
    // SAFETY: the kernel reads one `rlimit`; the other call has no pointers.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    signals::restore_default(number);
    // To this thread: one to the process could be taken by the control thread.
    kernel::signal_thread(kernel::gettid(), number);
    signals::set_mask(!signals::bit(number));
    // The first process of a PID namespace does not die of its own signals.
    exit(128 + number)
}

/// Notes the node's name.
pub(super) fn note_node(name: &str) {
    lock(&NAMES).1 = name.to_owned();
}

/// Notes why the node is about to give the process up.
pub(super) fn note_memory_lost() {
    MEMORY_LOST.store(true, Ordering::SeqCst);
}

/// Notes the program's name.
pub(super) fn note_program(name: &[u8]) {
    lock(&NAMES).0 = name.to_vec();
}
