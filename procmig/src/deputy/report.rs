//! What the process used, told when it ends: to who asked for it.

use super::control::write;
use super::descriptors::{Making, Own};
use super::threads::lock;
use crate::wire::usage::Usage;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

/// What a process used.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// The process itself, in its node.
    pub own: Usage,
    /// The children that it waited for, and theirs, in their nodes.
    pub children: Usage,
    /// CPU time at home in nanoseconds, of its deputy and those of its children: in user mode and in
    /// the kernel.
    pub home: (u64, u64),
}

/// Who is told.
pub struct Reporter {
    /// Where the text is written.
    pub to: OwnedFd,
    /// Makes the text.
    pub text: Box<dyn FnOnce(&Report) -> String + Send>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("to", &self.to).finish_non_exhaustive()
    }
}

type Waiting = (Own, Box<dyn FnOnce(&Report) -> String + Send>);

static REPORTER: Mutex<Option<Waiting>> = Mutex::new(None);

/// Keeps who is to be told.
///
/// # Errors
/// If there is no descriptor left.
pub(super) fn keep(reporter: Reporter, making: &Making) -> std::io::Result<()> {
    *lock(&REPORTER) = Some((Own::new(reporter.to, making)?, reporter.text));
    Ok(())
}

/// Tells it, if anyone wants to know.
pub(super) fn tell(own: Usage, children: Usage) {
    let Some((to, text)) = lock(&REPORTER).take() else { return };
    let report = Report { own, children, home: home() };
    write(to.as_raw_fd(), text(&report).as_bytes());
}

/// In a child: the report is its parent's.
pub(super) fn forget() {
    if let Some((to, _)) = REPORTER.try_lock().ok().and_then(|mut reporter| reporter.take()) {
        // It was closed with all that the child inherited.
        to.leak();
    }
}

fn home() -> (u64, u64) {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let nanos = |time: nix::sys::time::TimeVal| time.num_nanoseconds().max(0) as u64;
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .into_iter()
        .filter_map(|who| getrusage(who).ok())
        .fold((0, 0), |(user, system), usage| (user + nanos(usage.user_time()), system + nanos(usage.system_time())))
}
