//! What the node knows of a process for the texts of `/proc`.

use crate::kernel::lock;
use crate::kernel::process::{IGNORE, Process};
use crate::kernel::thread::Thread;
use crate::mm::{Backing, Protection, Region, RegionFlags};
use crate::wire::inquiry::{Figures, Sizes};

/// Bytes of a stack that are taken to be in use.
const TOUCHED_STACK: u64 = 128 << 10;

/// Of a process, as seen by the thread `caller`, if that is of this node; `thread` is the one that is asked
/// about, and `alone` says that its own CPU time is meant.
pub(super) fn of(process: &Process, thread: Option<&Thread>, alone: bool, caller: Option<&Thread>) -> Figures {
    let mut figures = Figures {
        state: thread.and_then(|thread| state(process, thread, caller)),
        threads: process.threads().len() as u64,
        shows_addresses: true,
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
fn state(process: &Process, thread: &Thread, caller: Option<&Thread>) -> Option<char> {
    if caller.is_some_and(|caller| std::ptr::eq(thread, caller)) {
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
                widen(&mut sizes.code_at, region);
            } else if writable {
                widen(&mut sizes.initialized, region);
            }
        }
        if &*region.name == "[heap]" && sizes.heap == 0 {
            sizes.heap = region.start;
        }
    }
    sizes.code = sizes.code_at.1 - sizes.code_at.0;
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
                code: 3 << 12,
                code_at: (2 << 12, 5 << 12),
                initialized: (5 << 12, 7 << 12),
                heap: 7 << 12,
            }
        );
    }
}
