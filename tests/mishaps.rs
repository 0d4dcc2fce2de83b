//! Faults that are brought about while a process migrates, and what becomes of it.

use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What becomes of a migration with a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It fails, the process goes on at the source, and a retry succeeds.
    Stays,
    /// It succeeds all the same.
    Goes,
    /// The node that had the process is dead, and so is it: its deputy says so.
    Dies,
    /// As `Stays`, but the target must be started anew first.
    StaysWithoutTarget,
    /// It is at the target, and the source is dead.
    GoesWithoutSource,
}

/// The status of a `mosrun` whose node died.
pub const NODE_DIED: i32 = 123;

/// How often a fault is tried after which the program must go on within a second, since a machine that others load may
/// keep it from running for as long.
const ROUNDS: u32 = 3;

/// Tries it until it does not take too long; `once` tells how long it took, if that was too long.
///
/// # Panics
/// If it does each time.
pub fn in_time(once: impl Fn() -> Option<Duration>) {
    for round in 1..=ROUNDS {
        let Some(late) = once() else { return };
        assert!(round < ROUNDS, "it took {late:?}");
    }
}

/// Waits until a program has written more, or has ended; tells for how long it stood still, if that was too long.
///
/// # Panics
/// If it goes on standing still.
pub fn goes_on(child: &mut Child, written: impl Fn() -> u64) -> Option<Duration> {
    let (before, since) = (written(), Instant::now());
    while written() <= before && child.try_wait().expect("a child").is_none() {
        assert!(since.elapsed() < Duration::from_secs(20), "it stands still");
        std::thread::sleep(Duration::from_millis(2));
    }
    Some(since.elapsed()).filter(|took| *took > Duration::from_secs(1))
}

/// Runs all cases, two at a time.
///
/// # Panics
/// If some fail, with what each of them says.
pub fn all<T: Sync + std::panic::RefUnwindSafe>(
    cases: &[T],
    name: impl Fn(&T) -> String + Sync,
    run: impl Fn(&T) + Sync + std::panic::RefUnwindSafe,
) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let since = Instant::now();
                    let done = std::panic::catch_unwind(|| run(case));
                    eprintln!("{}: {:.1?}", name(case), since.elapsed());
                    if let Err(panic) = done {
                        let why = panic.downcast_ref::<String>().cloned();
                        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                        let why = format!("{}: {}", name(case), why.unwrap_or_default());
                        failed.lock().expect("no panic").push(why);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
