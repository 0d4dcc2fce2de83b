//! Pages of a process that has migrated which the node that it has left still has (post-copy).
//!
//! Each has its frame here. The entry that maps it is absent and marked [`OWED`], wherever calls move it and whoever
//! shares it after a fork; a thread that touches it waits until the frame is filled. What is known here is only which
//! frames are not filled yet, so an entry whose frame is none of them needs but to be made present.

use super::space::{AddressSpace, Inner, entry};
use super::spans::{Span, Spans};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::frames::FRAMES_PER_BLOCK;
use vmm::machine::Machine;
use vmm::paging::{self, LARGE, OWED};
use vmm::tables::Leaf;

/// Pages behind one that is touched which are asked for with it.
const AHEAD: u64 = 16;

/// The node that had them is gone, or has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory was lost on its way from another node")]
pub struct Lost;

/// Pages that are to come. It has a user of each of their frames, so none is another's when they come late.
pub struct Owed {
    machine: Arc<Machine>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Those that have not been asked for, by their numbers where they are.
    unasked: Spans<Frame>,
    /// Those that have been asked for and are not here.
    asked: Spans<Frame>,
    /// The pages of both, by the numbers of their frames.
    frames: Spans<u64>,
    /// Those that somebody waits for; some may have been asked for, or have come.
    wanted: VecDeque<Range<u64>>,
    is_lost: bool,
}

impl Owed {
    /// Of these pages, each with the frame that it is to be in, which no other has.
    pub fn new(machine: Arc<Machine>, pages: Spans<Frame>) -> Arc<Self> {
        let mut frames = Spans::default();
        for Span { first, count, value } in pages.iter() {
            (0..count).for_each(|i| machine.frames().share(value.offset(i)));
            frames.insert(Span { first: value.0.into(), count, value: first });
        }
        let state = State { unasked: pages, frames, ..State::default() };
        Arc::new(Self { machine, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while what is owed is locked")
    }

    /// Whether one of `count` frames from `first` on is to come.
    pub fn has(&self, first: Frame, count: u32) -> bool {
        self.lock().pages_of(first, count).next().is_some()
    }

    /// Waits until none of `count` frames from `first` on is.
    ///
    /// # Errors
    /// [`Lost`]
    pub fn wait(&self, first: Frame, count: u32) -> Result<(), Lost> {
        let mut state = self.lock();
        while state.pages_of(first, count).next().is_some() {
            if state.is_lost {
                return Err(Lost);
            }
            let unasked = state.pages_of(first, count).flat_map(|pages| state.unasked.overlapping(pages));
            let is_known = |new: &Range<u64>| {
                let mut wanted = state.wanted.iter();
                wanted.any(|wanted| wanted.start <= new.start && new.end <= wanted.end)
            };
            let new: Vec<Range<u64>> = unasked.map(|span| span.range()).filter(|new| !is_known(new)).collect();
            state.wanted.extend(new);
            state = self.changed.wait(state).expect("no panic while what is owed is locked");
        }
        Ok(())
    }

    /// Waits until all are here, for so long at most; whether they are.
    pub fn wait_for_all(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.frames.is_empty() && !state.is_lost {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).expect("no panic while what is owed is locked").0;
        }
        state.frames.is_empty()
    }

    /// Whether all are here.
    pub fn is_all_here(&self) -> bool {
        self.lock().frames.is_empty()
    }

    /// How many have been asked for and are not here.
    pub fn asked(&self) -> u64 {
        self.lock().asked.len()
    }

    /// The next that are to be asked for, at most so many: first and count of each run. First come those that
    /// somebody waits for.
    pub fn next(&self, most: u64) -> Vec<(u64, u32)> {
        let mut runs: Vec<(u64, u32)> = Vec::new();
        let mut left = most;
        let State { unasked, asked, wanted, .. } = &mut *self.lock();
        while left > 0 {
            let (pages, is_wanted) = match wanted.front() {
                Some(pages) => (pages.start..pages.end.max(pages.start.saturating_add(AHEAD)), true),
                None => (0..u64::MAX, false),
            };
            let new = unasked.take(pages, left);
            for &span in &new {
                left -= u64::from(span.count);
                match runs.last_mut() {
                    Some((first, count)) if *first + u64::from(*count) == span.first => *count += span.count,
                    _ => runs.push((span.first, span.count)),
                }
                asked.insert(span);
            }
            if is_wanted && left > 0 {
                wanted.pop_front();
            } else if new.is_empty() {
                break;
            }
        }
        runs
    }

    /// The frames for pages that have been asked for and are not here; `None` if one of them is none.
    pub fn frames(&self, first: u64, count: u32) -> Option<Vec<Span<Frame>>> {
        let spans: Vec<_> = self.lock().asked.overlapping(first..first + u64::from(count)).collect();
        (spans.iter().map(|span| u64::from(span.count)).sum::<u64>() == u64::from(count)).then_some(spans)
    }

    /// Declares that the frames of these pages are filled.
    pub fn arrived(&self, pages: &[Range<u64>]) {
        let mut filled = Vec::new();
        let mut state = self.lock();
        for pages in pages {
            for span in state.asked.take(pages.clone(), u64::MAX) {
                state.frames.take(span.frames(), u64::MAX);
                filled.extend((0..span.count).map(|i| span.value.offset(i)));
            }
        }
        drop(state);
        self.machine.frames().release_all(&filled);
        self.changed.notify_all();
    }

    /// Declares that none will come any more.
    pub fn lose(&self) {
        self.lock().is_lost = true;
        self.changed.notify_all();
    }
}

impl State {
    /// Which pages are to come to some of `count` frames from `first` on.
    fn pages_of(&self, first: Frame, count: u32) -> impl Iterator<Item = Range<u64>> {
        let spans = self.frames.overlapping(u64::from(first.0)..u64::from(first.0) + u64::from(count));
        spans.map(|span| span.value..span.value + u64::from(span.count))
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let rows = state.unasked.iter().chain(state.asked.iter());
        let frames: Vec<Frame> = rows.flat_map(|span| (0..span.count).map(move |i| span.value.offset(i))).collect();
        self.machine.frames().release_all(&frames);
    }
}

impl AddressSpace {
    /// What was to come of its memory when it came here.
    pub fn owed(&self) -> Option<&Arc<Owed>> {
        self.owed.get()
    }

    /// Has threads wait for memory that is to come, whose entries are marked. No thread has run here yet.
    pub fn owe(&self, owed: Arc<Owed>) {
        // A space comes here once.
        let _ = self.owed.set(owed);
    }

    /// Makes an entry present whose content is to come, when it is here.
    ///
    /// Its lock is held meanwhile; who brings the content does not need that.
    pub(super) fn await_owed(&self, inner: &mut Inner, at: u64, leaf: &Leaf) -> Result<(), Lost> {
        let first = paging::frame(leaf.entry);
        if let Some(owed) = self.owed() {
            owed.wait(first, if leaf.large { FRAMES_PER_BLOCK } else { 1 })?;
        }
        self.make_present(inner, at, leaf);
        Ok(())
    }

    /// Makes pages present that have come and are still where they were, but not if somebody has the lock: he may
    /// wait for the next to come. Tells whether it was done.
    pub fn show_arrived(&self, owed: &Owed, pages: &[Range<u64>]) -> bool {
        let Some(mut inner) = self.try_lock() else { return false };
        self.show(&mut inner, owed, pages);
        true
    }

    /// The same when all have come: nobody waits with the lock any more.
    pub fn show_all_arrived(&self, owed: &Owed, pages: &[Range<u64>]) {
        self.show(&mut self.lock(), owed, pages);
    }

    fn show(&self, inner: &mut Inner, owed: &Owed, pages: &[Range<u64>]) {
        for pages in pages {
            let mut page = pages.start;
            while page < pages.end {
                let at = page * PAGE_SIZE;
                page += 1;
                let Some(leaf) = inner.tables.lookup(at) else { continue };
                let count = if leaf.large { FRAMES_PER_BLOCK } else { 1 };
                // Of a large page's parts one is enough.
                page = page.next_multiple_of(u64::from(count));
                if leaf.entry & OWED != 0 && !owed.has(paging::frame(leaf.entry), count) {
                    self.make_present(inner, at, &leaf);
                }
            }
        }
    }

    fn make_present(&self, inner: &mut Inner, at: u64, leaf: &Leaf) {
        let Some(protection) = inner.regions.at(at).map(|region| region.protection) else { return };
        let first = paging::frame(leaf.entry);
        let frames = self.machine.frames();
        let count = if leaf.large { FRAMES_PER_BLOCK } else { 1 };
        // What is shared with a child is copied when it is written.
        let is_own = (0..count).all(|i| frames.is_sole(first.offset(i)));
        inner.tables.raise(leaf, entry(first, protection, is_own) | leaf.entry & LARGE);
    }
}
