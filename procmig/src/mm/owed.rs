//! Pages of a process that has migrated which the node that it has left still has (post-copy).
//!
//! Each has its frame here. The entry that maps it is absent and marked [`OWED`], wherever calls move it and whoever
//! shares it after a fork; a thread that touches it waits until the frame is filled. What is known here is only which
//! frames are not filled yet, so an entry whose frame is none of them needs but to be made present.

use super::space::{AddressSpace, Inner, entry};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    /// By their numbers where they are.
    pages: BTreeMap<u64, Frame>,
    /// The same the other way round.
    frames: BTreeMap<Frame, u64>,
    /// Those that have been asked for.
    asked: BTreeSet<u64>,
    /// Those that somebody waits for, and that have not been asked for.
    wanted: VecDeque<u64>,
    /// All before have been asked for.
    from: u64,
    is_lost: bool,
}

impl Owed {
    /// Of these pages, each with the frame that it is to be in.
    pub fn new(machine: Arc<Machine>, pages: BTreeMap<u64, Frame>) -> Arc<Self> {
        pages.values().for_each(|&frame| machine.frames().share(frame));
        let frames = pages.iter().map(|(&page, &frame)| (frame, page)).collect();
        let state = State { pages, frames, ..State::default() };
        Arc::new(Self { machine, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while what is owed is locked")
    }

    /// Whether one of `count` frames from `first` on is to come.
    pub fn has(&self, first: Frame, count: u32) -> bool {
        self.lock().is_owed(first, count)
    }

    /// Waits until none of `count` frames from `first` on is.
    ///
    /// # Errors
    /// [`Lost`]
    pub fn wait(&self, first: Frame, count: u32) -> Result<(), Lost> {
        let mut state = self.lock();
        while state.is_owed(first, count) {
            if state.is_lost {
                return Err(Lost);
            }
            let State { frames, asked, wanted, .. } = &mut *state;
            let pages = frames.range(first..first.offset(count)).map(|(_, &page)| page);
            let new: Vec<u64> = pages.filter(|page| !asked.contains(page) && !wanted.contains(page)).collect();
            wanted.extend(new);
            state = self.changed.wait(state).expect("no panic while what is owed is locked");
        }
        Ok(())
    }

    /// Waits until all are here, for so long at most; whether they are.
    pub fn wait_for_all(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.pages.is_empty() && !state.is_lost {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).expect("no panic while what is owed is locked").0;
        }
        state.pages.is_empty()
    }

    /// Whether all are here.
    pub fn is_all_here(&self) -> bool {
        self.lock().pages.is_empty()
    }

    /// How many have been asked for and are not here.
    pub fn asked(&self) -> usize {
        self.lock().asked.len()
    }

    /// The next that are to be asked for, at most so many: first and count of each run. First come those that
    /// somebody waits for.
    pub fn next(&self, most: u64) -> Vec<(u64, u32)> {
        let mut runs: Vec<(u64, u32)> = Vec::new();
        let mut left = most;
        let state = &mut *self.lock();
        while left > 0 {
            let (from, some) = match state.wanted.pop_front() {
                Some(page) => (page, AHEAD.min(left)),
                None => (state.from, left),
            };
            let is_wanted = from != state.from;
            let range = if is_wanted { from..from.saturating_add(some) } else { from..u64::MAX };
            let asked = &state.asked;
            let new = state.pages.range(range).map(|(&page, _)| page).filter(|page| !asked.contains(page));
            let new: Vec<u64> = new.take(some as usize).collect();
            if !is_wanted {
                state.from = new.last().map_or(u64::MAX, |&last| last + 1);
            }
            left -= new.len() as u64;
            for page in &new {
                match runs.last_mut() {
                    Some((first, count)) if *first + u64::from(*count) == *page => *count += 1,
                    _ => runs.push((*page, 1)),
                }
            }
            state.asked.extend(&new);
            if new.is_empty() && !is_wanted {
                break;
            }
        }
        runs
    }

    /// The frame for a page that has been asked for and is not here.
    pub fn frame(&self, page: u64) -> Option<Frame> {
        let state = self.lock();
        state.asked.contains(&page).then(|| state.pages.get(&page).copied()).flatten()
    }

    /// Declares that the frames of these pages are filled.
    pub fn arrived(&self, pages: &[u64]) {
        let mut filled = Vec::new();
        let mut state = self.lock();
        for page in pages {
            state.asked.remove(page);
            if let Some(frame) = state.pages.remove(page) {
                state.frames.remove(&frame);
                filled.push(frame);
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
    fn is_owed(&self, first: Frame, count: u32) -> bool {
        self.frames.range(first..first.offset(count)).next().is_some()
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let frames: Vec<Frame> = state.frames.keys().copied().collect();
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
    pub fn show_arrived(&self, owed: &Owed, pages: &[u64]) -> bool {
        let Some(mut inner) = self.try_lock() else { return false };
        self.show(&mut inner, owed, pages);
        true
    }

    /// The same when all have come: nobody waits with the lock any more.
    pub fn show_all_arrived(&self, owed: &Owed, pages: &[u64]) {
        self.show(&mut self.lock(), owed, pages);
    }

    fn show(&self, inner: &mut Inner, owed: &Owed, pages: &[u64]) {
        let mut done = 0;
        for at in pages.iter().map(|page| page * PAGE_SIZE) {
            // Of a large page's parts the last does it.
            let Some(leaf) = inner.tables.lookup(at).filter(|leaf| leaf.entry & OWED != 0 && at >= done) else {
                continue;
            };
            let count = if leaf.large { FRAMES_PER_BLOCK } else { 1 };
            if !owed.has(paging::frame(leaf.entry), count) {
                self.make_present(inner, at, &leaf);
            } else {
                done = (at / PAGE_SIZE / u64::from(count) + 1) * u64::from(count) * PAGE_SIZE;
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
