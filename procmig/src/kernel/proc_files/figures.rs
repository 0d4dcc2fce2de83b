//! What the node knows of a process for the texts of `/proc`.

use crate::kernel::lock;
use crate::kernel::process::{IGNORE, Process, StackPlaces};
use crate::kernel::thread::Thread;
use crate::mm::{Backing, Protection, Region, RegionFlags};
use crate::signal::set::SignalSet;
use crate::wire::usage::Usage;

/// Bytes of a stack that are taken to be in use.
const TOUCHED_STACK: u64 = 128 << 10;

/// Sizes of an address space in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// All areas.
    pub total: u64,
    /// What is in memory.
    pub resident: u64,
    /// The most that was seen there.
    pub peak_resident: u64,
    /// Of what is in memory, that of no file.
    pub anonymous: u64,
    /// Locked.
    pub locked: u64,
    /// Private and writable.
    pub data: u64,
    /// The first thread's stack.
    pub stack: u64,
    /// Executable, not writable.
    pub executable: u64,
    /// The program's own part of that: first address and the one after the last.
    pub code: (u64, u64),
    /// The program's writable part.
    pub initialized: (u64, u64),
    /// Where the heap starts; 0 without one.
    pub heap: u64,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// `R`, `S` or `T`; where home knows it, nothing.
    pub state: Option<char>,
    /// Threads.
    pub threads: usize,
    /// What the process has used, or the thread.
    pub usage: Usage,
    /// What children have used that were waited for.
    pub children: Usage,
    /// Memory.
    pub sizes: Sizes,
    /// Waiting signals of the thread.
    pub pending: SignalSet,
    /// Waiting signals of the process.
    pub shared_pending: SignalSet,
    /// Blocked by the thread.
    pub blocked: SignalSet,
    /// Ignored.
    pub ignored: SignalSet,
    /// With a handler.
    pub caught: SignalSet,
    /// `RLIMIT_RSS`
    pub resident_limit: u64,
    /// What lies on the stack.
    pub places: StackPlaces,
}

/// Of a process, as seen by the thread `caller`; `thread` is the one that is asked about, and `alone`
/// says that its own CPU time is meant.
pub(super) fn of(process: &Process, thread: Option<&Thread>, alone: bool, caller: &Thread) -> Figures {
    let mut figures = Figures {
        state: thread.and_then(|thread| state(process, thread, caller)),
        threads: process.threads().len(),
        usage: thread.filter(|_| alone).map_or_else(|| process.usage(), Thread::usage),
        children: process.children_usage(),
        ..Figures::default()
    };
    if let Some(space) = process.space() {
        let program = String::from_utf8_lossy(&lock(&process.identity).executable).into_owned();
        figures.sizes = sizes(&space.regions(), space.resident(), &program);
        figures.sizes.peak_resident = process.saw_resident(figures.sizes.resident);
    }
    {
        let identity = lock(&process.identity);
        figures.resident_limit = identity.limit(libc::RLIMIT_RSS);
        figures.places = identity.places;
    }
    {
        let signals = lock(&process.signals);
        figures.shared_pending = signals.pending.set();
        for (signal, action) in (1..).zip(&signals.actions) {
            match action.handler {
                0 => {}
                IGNORE => figures.ignored.insert(signal),
                _ => figures.caught.insert(signal),
            }
        }
    }
    if let Some(thread) = thread {
        let signals = lock(&thread.signals);
        (figures.pending, figures.blocked) = (signals.pending.set(), signals.mask);
    }
    figures
}

/// A thread that is not in the guest waits for home, or in the personality: then its thread of the
/// deputy sleeps too, and home knows.
fn state(process: &Process, thread: &Thread, caller: &Thread) -> Option<char> {
    if std::ptr::eq(thread, caller) {
        Some('R')
    } else if process.is_stopped() {
        Some('T')
    } else if thread.gate.is_inside() {
        Some('R')
    } else {
        None
    }
}

fn sizes(regions: &[Region], resident: u64, program: &str) -> Sizes {
    fn widen(range: &mut (u64, u64), region: &Region) {
        let start = if range.1 == 0 { region.start } else { range.0.min(region.start) };
        *range = (start, range.1.max(region.end));
    }
    let mut sizes = Sizes { resident, ..Sizes::default() };
    let mut anonymous = 0;
    for region in regions {
        let length = region.length();
        let writable = region.protection.contains(Protection::WRITE);
        let stack = &*region.name == "[stack]";
        sizes.total += length;
        if matches!(region.backing, Backing::Anonymous) {
            // Of a stack hardly any is ever touched.
            anonymous += if stack { length.min(TOUCHED_STACK) } else { length };
        }
        if region.flags.contains(RegionFlags::LOCKED) {
            sizes.locked += length;
        }
        if stack {
            sizes.stack += length;
        } else if writable && !region.is_shared() {
            sizes.data += length;
        } else if region.protection.contains(Protection::EXECUTE) && !writable {
            sizes.executable += length;
        }
        if &*region.name == program {
            if region.protection.contains(Protection::EXECUTE) {
                widen(&mut sizes.code, region);
            } else if writable {
                widen(&mut sizes.initialized, region);
            }
        }
        if &*region.name == "[heap]" && sizes.heap == 0 {
            sizes.heap = region.start;
        }
    }
    sizes.anonymous = resident.min(anonymous);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_counted_by_what_they_are() {
        let region = |start: u64, pages: u64, protection, name: &str| Region {
            start: start << 12,
            end: (start + pages) << 12,
            protection,
            flags: RegionFlags::empty(),
            backing: Backing::Anonymous,
            name: name.into(),
        };
        let (read, write, execute) = (Protection::READ, Protection::READ | Protection::WRITE, Protection::EXECUTE);
        let regions = [
            region(1, 1, read, "/bin/p"),
            region(2, 3, execute, "/bin/p"),
            region(5, 2, write, "/bin/p"),
            region(7, 4, write, "[heap]"),
            region(20, 5, execute, "/lib/l"),
            region(40, 6, write, "[stack]"),
        ];
        let sizes = sizes(&regions, 100 << 12, "/bin/p");
        assert_eq!(
            sizes,
            Sizes {
                total: 21 << 12,
                resident: 100 << 12,
                peak_resident: 0,
                anonymous: 21 << 12,
                locked: 0,
                data: 6 << 12,
                stack: 6 << 12,
                executable: 8 << 12,
                code: (2 << 12, 5 << 12),
                initialized: (5 << 12, 7 << 12),
                heap: 7 << 12,
            }
        );
    }
}
