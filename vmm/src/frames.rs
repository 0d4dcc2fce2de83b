//! Who has which frame of guest memory.
//!
//! Small frames are handed out from the bottom, in chunks of 2 MiB; large ones, whole 2 MiB
//! blocks, from the top, where the host is asked for huge pages: so a small process does not
//! take 2 MiB of the host's memory for each chunk it touches. A frame has a count of its users;
//! when it reaches zero nobody sees its bytes again.

use crate::accounts::{Account, Accounts};
use crate::addr::{Frame, GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::ram::GuestRam;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Frames in a 2 MiB block.
pub const FRAMES_PER_BLOCK: u32 = 512;
/// Free small frames that are kept with the host's memory behind them, at most: 16 MiB.
const KEPT: usize = 4096;

/// No frame is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's memory is used up")]
pub struct OutOfFrames;

/// Why an account gets no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// The node has none.
    #[error(transparent)]
    Node(#[from] OutOfFrames),
    /// The account has reached its limit.
    #[error("the program has all the memory that it may have")]
    Account,
}

/// What an account may do at its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLimit {
    /// It gets nothing.
    Refuse,
    /// It gets what it needs, and is looked after later.
    Pass,
}

/// Hands out frames.
#[derive(Debug)]
pub struct FrameAllocator {
    ram: Arc<GuestRam>,
    users: Vec<AtomicU32>,
    pools: Mutex<Pools>,
    accounts: Accounts,
}

#[derive(Debug)]
struct Pools {
    /// Free, and zero.
    clean: Vec<Frame>,
    /// Free, with what was in them; zeroed when handed out.
    dirty: Vec<Frame>,
    /// Free blocks of zeros, by their first frames.
    blocks: Vec<Frame>,
    /// First block between the small and the large ones that nobody has had.
    bottom: u32,
    /// One past the last such block.
    top: u32,
    free: u32,
}

/// Counts of zero that take memory only where they are touched: those of a large node are megabytes.
fn zeroed_counts(count: usize) -> Vec<AtomicU32> {
    // The allocator hands out zeroed memory as the system gives it, untouched.
    let mut zeros = std::mem::ManuallyDrop::new(vec![0u32; count]);
    // SAFETY: `AtomicU32` has the size, alignment and bit validity of `u32`, so that the parts are
    // those of a vector of either; the old one is not dropped.
    unsafe { Vec::from_raw_parts(zeros.as_mut_ptr().cast(), zeros.len(), zeros.capacity()) }
}

impl FrameAllocator {
    /// Manages the frames of `ram` from the block that holds `first` upwards.
    pub fn new(ram: Arc<GuestRam>, first: GuestPhysAddr) -> Self {
        let bottom = first.raw().div_ceil(LARGE_PAGE_SIZE) as u32;
        let top = (ram.size() / LARGE_PAGE_SIZE) as u32;
        ram.want_small_pages(GuestPhysAddr(0), ram.size());
        let frames = (top * FRAMES_PER_BLOCK) as usize;
        let free = (top - bottom) * FRAMES_PER_BLOCK;
        let users = zeroed_counts(frames);
        let pools = Pools { clean: Vec::new(), dirty: Vec::new(), blocks: Vec::new(), bottom, top, free };
        Self { ram, users, pools: Mutex::new(pools), accounts: Accounts::new(frames) }
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().expect("no panic while the pools are locked")
    }

    /// Frames that are free.
    pub fn free(&self) -> u32 {
        self.pools().free
    }

    /// Frames that can be handed out in all.
    pub fn total(&self) -> u32 {
        self.users.len() as u32
    }

    /// Opens an account that may have so many bytes; `None` if there are too many accounts.
    pub fn open_account(&self, bytes: u64) -> Option<Account> {
        self.accounts.open(u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX))
    }

    /// Closes an account; what it still has is counted until it is free.
    pub fn close_account(&self, account: Account) {
        self.accounts.close(account);
    }

    /// Frames that an account has, and may have.
    pub fn account_state(&self, account: Account) -> (u32, u32) {
        self.accounts.state(account)
    }

    /// As [`allocate`](Self::allocate), for an account.
    ///
    /// # Errors
    /// See [`Shortage`].
    pub fn allocate_for(&self, account: Account, at_limit: AtLimit) -> Result<Frame, Shortage> {
        self.charged(account, at_limit, || self.allocate())
    }

    /// As [`allocate_to_overwrite`](Self::allocate_to_overwrite), for an account.
    ///
    /// # Errors
    /// See [`Shortage`].
    pub fn allocate_to_overwrite_for(&self, account: Account, at_limit: AtLimit) -> Result<Frame, Shortage> {
        self.charged(account, at_limit, || self.allocate_to_overwrite())
    }

    fn charged(
        &self,
        account: Account,
        at_limit: AtLimit,
        allocate: impl FnOnce() -> Result<Frame, OutOfFrames>,
    ) -> Result<Frame, Shortage> {
        if !self.accounts.charge(account, 1, at_limit == AtLimit::Pass) {
            return Err(Shortage::Account);
        }
        match allocate() {
            Ok(frame) => {
                self.accounts.own(account, frame);
                Ok(frame)
            }
            Err(error) => {
                self.accounts.refund(account, 1);
                Err(error.into())
            }
        }
    }

    /// As [`allocate_block`](Self::allocate_block), for an account; only while it has room for more.
    pub fn allocate_block_for(&self, account: Account) -> Option<Frame> {
        if !self.has_plenty(account, FRAMES_PER_BLOCK) || !self.accounts.charge(account, FRAMES_PER_BLOCK, false) {
            return None;
        }
        let block = self.allocate_block();
        match block {
            Some(first) if account.is_limited() => {
                (0..FRAMES_PER_BLOCK).for_each(|i| self.accounts.own(account, first.offset(i)));
            }
            Some(_) => {}
            None => self.accounts.refund(account, FRAMES_PER_BLOCK),
        }
        block
    }

    /// Whether so many frames more leave an account a quarter of what it may have: then it may have some
    /// that it may never touch.
    pub fn has_plenty(&self, account: Account, frames: u32) -> bool {
        let (used, limit) = self.accounts.state(account);
        u64::from(used) + u64::from(frames) <= u64::from(limit) / 4 * 3
    }

    /// A frame of zeros with one user.
    ///
    /// # Errors
    /// If none is left.
    pub fn allocate(&self) -> Result<Frame, OutOfFrames> {
        let (frame, dirty) = self.take()?;
        if dirty {
            self.ram.zero(frame);
        }
        self.users[frame.0 as usize].store(1, Ordering::Relaxed);
        Ok(frame)
    }

    /// A frame with one user whose every byte the caller is about to write.
    ///
    /// # Errors
    /// If none is left.
    pub fn allocate_to_overwrite(&self) -> Result<Frame, OutOfFrames> {
        let (frame, _) = self.take()?;
        self.users[frame.0 as usize].store(1, Ordering::Relaxed);
        Ok(frame)
    }

    fn take(&self) -> Result<(Frame, bool), OutOfFrames> {
        let mut pools = self.pools();
        let taken = if let Some(frame) = pools.dirty.pop() {
            (frame, true)
        } else if let Some(frame) = pools.clean.pop() {
            (frame, false)
        } else {
            let first = if pools.bottom < pools.top {
                pools.bottom += 1;
                Frame((pools.bottom - 1) * FRAMES_PER_BLOCK)
            } else if let Some(block) = pools.blocks.pop() {
                self.ram.want_small_pages(block.address(), LARGE_PAGE_SIZE);
                block
            } else {
                return Err(OutOfFrames);
            };
            // The lowest comes out first.
            pools.clean.extend((1..FRAMES_PER_BLOCK).rev().map(|i| first.offset(i)));
            (first, false)
        };
        pools.free -= 1;
        Ok(taken)
    }

    /// 512 contiguous frames of zeros, aligned to 2 MiB, each with one user; `None` if there is no
    /// such block, though small frames may be left.
    pub fn allocate_block(&self) -> Option<Frame> {
        let mut pools = self.pools();
        let first = if let Some(block) = pools.blocks.pop() {
            block
        } else if pools.bottom < pools.top {
            pools.top -= 1;
            let block = Frame(pools.top * FRAMES_PER_BLOCK);
            self.ram.want_huge_pages(block.address(), LARGE_PAGE_SIZE);
            block
        } else {
            return None;
        };
        pools.free -= FRAMES_PER_BLOCK;
        drop(pools);
        for i in 0..FRAMES_PER_BLOCK {
            self.users[(first.0 + i) as usize].store(1, Ordering::Relaxed);
        }
        Some(first)
    }

    /// Adds a user to a frame that has one.
    pub fn share(&self, frame: Frame) {
        let before = self.users[frame.0 as usize].fetch_add(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a free frame was shared");
    }

    /// Whether the frame has only one user.
    pub fn is_sole(&self, frame: Frame) -> bool {
        self.users[frame.0 as usize].load(Ordering::Acquire) == 1
    }

    /// Takes a user from a frame.
    pub fn release(&self, frame: Frame) {
        self.release_all(&[frame]);
    }

    /// Takes a user from each of these frames. Those that nobody uses any more are free, and past a
    /// reserve their memory goes back to the host.
    pub fn release_all(&self, frames: &[Frame]) {
        let mut freed: Vec<Frame> = frames
            .iter()
            .copied()
            .filter(|frame| {
                let before = self.users[frame.0 as usize].fetch_sub(1, Ordering::AcqRel);
                debug_assert!(before > 0, "a free frame was released");
                if before == 1 {
                    self.accounts.disown(*frame);
                }
                before == 1
            })
            .collect();
        if freed.is_empty() {
            return;
        }
        let count = freed.len() as u32;
        let mut small = Vec::new();
        let mut runs = Vec::new();
        if freed.len() > 64 {
            freed.sort_unstable();
            split_runs(&freed, &mut runs);
        } else {
            small = freed;
        }
        let mut pools = self.pools();
        let room = KEPT.saturating_sub(pools.dirty.len());
        if small.len() > room {
            small.sort_unstable();
            split_runs(&small.split_off(room), &mut runs);
        }
        // Pools are taken from at their end, and neighbours should come out in order: memory that is
        // contiguous for a program is then contiguous for the host too.
        small.sort_unstable_by(|a, b| b.cmp(a));
        pools.dirty.append(&mut small);
        let kept_runs: Vec<(Frame, u32)>;
        (kept_runs, runs) = keep_small_runs(runs, KEPT.saturating_sub(pools.dirty.len()));
        for (first, length) in kept_runs.into_iter().rev() {
            pools.dirty.extend((0..length).rev().map(|i| first.offset(i)));
        }
        drop(pools);
        // Punched before anyone can be handed them, outside the lock.
        for &(first, length) in &runs {
            self.ram.punch(first, length);
        }
        let mut pools = self.pools();
        for (first, length) in runs.into_iter().rev() {
            let mut end = first.0 + length;
            while end > first.0 {
                let is_block = end % FRAMES_PER_BLOCK == 0 && end - first.0 >= FRAMES_PER_BLOCK;
                if is_block && (end / FRAMES_PER_BLOCK) > pools.top {
                    end -= FRAMES_PER_BLOCK;
                    pools.blocks.push(Frame(end));
                } else {
                    end -= 1;
                    pools.clean.push(Frame(end));
                }
            }
        }
        pools.free += count;
    }
}

/// Groups sorted frames into runs of neighbours.
fn split_runs(sorted: &[Frame], runs: &mut Vec<(Frame, u32)>) {
    for &frame in sorted {
        match runs.last_mut() {
            Some((first, length)) if first.0 + *length == frame.0 => *length += 1,
            _ => runs.push((frame, 1)),
        }
    }
}

/// Contiguous frames: the first and how many.
type Runs = Vec<(Frame, u32)>;

/// Parts the short runs, up to `room` frames of them, from the rest: a call to the host for each
/// of many single frames would cost more than the memory is worth.
fn keep_small_runs(runs: Runs, mut room: usize) -> (Runs, Runs) {
    runs.into_iter().partition(|&(_, length)| {
        let keep = length < 64 && length as usize <= room;
        if keep {
            room -= length as usize;
        }
        keep
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::Backing;

    fn allocator(blocks: u64) -> (Arc<GuestRam>, FrameAllocator) {
        let ram = Arc::new(GuestRam::new(blocks * LARGE_PAGE_SIZE, Backing::Anonymous).unwrap());
        (ram.clone(), FrameAllocator::new(ram, GuestPhysAddr(1)))
    }

    #[test]
    fn every_frame_is_handed_out_once_and_is_zero() {
        let (ram, frames) = allocator(3);
        for _ in 0..3 {
            let mut seen = Vec::new();
            while let Ok(frame) = frames.allocate() {
                assert_eq!(ram.load(frame.address()), 0);
                ram.store(frame.address(), 0xdead);
                seen.push(frame);
            }
            assert_eq!(frames.free(), 0);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len() as u32, 2 * FRAMES_PER_BLOCK);
            frames.release_all(&seen);
            assert_eq!(frames.free(), 2 * FRAMES_PER_BLOCK);
        }
    }

    #[test]
    fn a_shared_frame_is_free_after_its_last_user() {
        let (_, frames) = allocator(2);
        let frame = frames.allocate().unwrap();
        frames.share(frame);
        assert!(!frames.is_sole(frame));
        frames.release(frame);
        assert!(frames.is_sole(frame));
        assert_eq!(frames.free(), FRAMES_PER_BLOCK - 1);
        frames.release(frame);
        assert_eq!(frames.free(), FRAMES_PER_BLOCK);
    }

    #[test]
    fn blocks_come_from_the_top_and_are_zero_when_they_come_again() {
        let (ram, frames) = allocator(4);
        let block = frames.allocate_block().unwrap();
        assert_eq!(block, Frame(3 * FRAMES_PER_BLOCK));
        ram.store(block.offset(7).address(), 1);
        let all: Vec<_> = (0..FRAMES_PER_BLOCK).map(|i| block.offset(i)).collect();
        frames.release_all(&all);
        assert_eq!(frames.allocate_block(), Some(block));
        assert_eq!(ram.load(block.offset(7).address()), 0);
        assert!(frames.allocate_block().is_some());
        assert!(frames.allocate_block().is_some());
        assert_eq!(frames.allocate_block(), None);
        assert_eq!(frames.allocate(), Err(OutOfFrames));
    }

    #[test]
    fn an_account_gets_what_it_may_have_and_gives_it_back() {
        let (_, frames) = allocator(8);
        let limit = u64::from(FRAMES_PER_BLOCK) * 2;
        let account = frames.open_account(limit * PAGE_SIZE).unwrap();
        let block = frames.allocate_block_for(account).unwrap();
        assert_eq!(frames.allocate_block_for(account), None, "not so close to the limit");
        let mut all: Vec<Frame> = (0..FRAMES_PER_BLOCK).map(|i| block.offset(i)).collect();
        while let Ok(frame) = frames.allocate_for(account, AtLimit::Refuse) {
            all.push(frame);
        }
        assert_eq!(all.len() as u64, limit);
        assert_eq!(frames.allocate_to_overwrite_for(account, AtLimit::Refuse), Err(Shortage::Account));
        all.push(frames.allocate_for(account, AtLimit::Pass).unwrap());
        // A second user counts no more, and the frame is its account's until the last has gone.
        frames.share(all[0]);
        frames.release(all[0]);
        assert_eq!(frames.account_state(account), (limit as u32 + 1, limit as u32));
        frames.release_all(&all);
        assert_eq!(frames.account_state(account).0, 0);
    }

    #[test]
    fn small_frames_come_from_freed_blocks_when_nothing_else_is_left() {
        let (_, frames) = allocator(2);
        let block = frames.allocate_block().unwrap();
        let all: Vec<_> = (0..FRAMES_PER_BLOCK).map(|i| block.offset(i)).collect();
        assert_eq!(frames.allocate(), Err(OutOfFrames));
        frames.release_all(&all);
        assert_eq!(frames.allocate(), Ok(block));
    }
}
