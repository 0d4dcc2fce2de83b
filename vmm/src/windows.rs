//! Windows: parts of guest RAM that show pages of a file or of shared memory of the host's, the very
//! pages, so that what a guest writes there is written there, and what others write it sees.
//!
//! The frames of a window are taken from the node's like any others and keep a user, the window, until it is
//! gone and covered: no frame of it is ever given back to the host or handed to anyone else before.

use crate::addr::{Frame, GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::frames::FRAMES_PER_BLOCK;
use crate::machine::Machine;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

/// Frames of a small window.
pub const SMALL: u32 = 16;
/// Frames of a large one.
pub const LARGE: u32 = FRAMES_PER_BLOCK;
/// Most windows of a machine: each takes up to three of the 65,530 mappings that Linux allows a process.
const MOST: usize = 8192;

/// What a window shows.
#[derive(Debug, Clone, Copy)]
pub enum Shown<'a> {
    /// A file from an offset on, in bytes; a multiple of the page size.
    File(BorrowedFd<'a>, u64),
    /// The pages of a shared mapping of this process, which stays mapped for as long as the window.
    Memory(usize),
}

/// Why there is no window.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// No block of frames is left.
    #[error("the node's memory is used up")]
    OutOfFrames,
    /// The machine has as many as it may.
    #[error("the node shows as many pieces of files as it can")]
    TooMany,
    /// The host refused.
    #[error("the host cannot map it")]
    Host(#[from] io::Error),
}

/// Which frames are set aside for windows.
#[derive(Debug, Default)]
pub(crate) struct WindowFrames(Mutex<Blocks>);

#[derive(Debug, Default)]
struct Blocks {
    /// By its first frame, which small windows of a block are taken: a bit for each.
    taken: BTreeMap<Frame, u32>,
    windows: usize,
    /// Windows that are gone but for a frame that is being read or written at this moment.
    leaving: Vec<(Frame, u32)>,
}

impl WindowFrames {
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.0.lock().expect("no panic while the blocks are locked")
    }
}

/// A part of guest RAM that shows something of the host's.
pub struct Window {
    machine: Arc<Machine>,
    first: Frame,
    count: u32,
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window").field("first", &self.first).field("count", &self.count).finish_non_exhaustive()
    }
}

impl Window {
    /// Shows something in [`SMALL`] or [`LARGE`] frames, for reading or for writing too.
    ///
    /// # Errors
    /// See [`WindowError`].
    pub fn new(machine: &Arc<Machine>, count: u32, shown: Shown<'_>, writable: bool) -> Result<Self, WindowError> {
        let first = take(machine, count)?;
        let made = machine.ram().show(first.address(), u64::from(count) * PAGE_SIZE, shown, writable);
        if let Err(error) = made {
            machine.windows().lock().give_back(machine, first, count);
            return Err(error.into());
        }
        Ok(Self { machine: machine.clone(), first, count })
    }

    /// Shows it again where an access of this process has found no page ([`crate::guard::take_fault`]).
    ///
    /// # Errors
    /// If the host refuses.
    pub fn show_again(&self, shown: Shown<'_>, writable: bool) -> io::Result<()> {
        self.machine.ram().show(self.first.address(), u64::from(self.count) * PAGE_SIZE, shown, writable)
    }

    /// Whether an address is in it.
    pub fn holds(&self, at: GuestPhysAddr) -> bool {
        (self.first.address()..self.first.offset(self.count).address()).contains(&at)
    }

    /// Its frame with this index.
    pub fn frame(&self, index: u32) -> Frame {
        debug_assert!(index < self.count);
        self.first.offset(index)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut blocks = self.machine.windows().lock();
        blocks.leaving.push((self.first, self.count));
        blocks.clear(&self.machine);
    }
}

impl Blocks {
    /// Covers the windows that are gone and gives their frames back. No frame of them gets a new user, but
    /// a call of this process may have one for as long as it lasts.
    fn clear(&mut self, machine: &Machine) {
        let in_use = |&(first, count): &(Frame, u32)| (0..count).any(|i| !machine.frames().is_sole(first.offset(i)));
        let (leaving, gone) = std::mem::take(&mut self.leaving).into_iter().partition(in_use);
        self.leaving = leaving;
        let gone: Vec<(Frame, u32)> = gone;
        for (first, count) in gone {
            machine.ram().cover(first.address(), u64::from(count) * PAGE_SIZE);
            self.give_back(machine, first, count);
        }
    }

    fn give_back(&mut self, machine: &Machine, first: Frame, count: u32) {
        self.windows -= 1;
        let block = Frame(first.0 / FRAMES_PER_BLOCK * FRAMES_PER_BLOCK);
        let Some(taken) = self.taken.get_mut(&block) else { return };
        *taken &= if count == LARGE { 0 } else { !(1 << ((first.0 - block.0) / SMALL)) };
        if *taken != 0 {
            return;
        }
        // One block stays for the next: programs that map a small file for a moment are many.
        if self.taken.values().filter(|taken| **taken == 0).count() > 1 {
            self.taken.remove(&block);
            machine.ram().want_huge_pages(block.address(), LARGE_PAGE_SIZE);
            let frames: Vec<_> = (0..FRAMES_PER_BLOCK).map(|i| block.offset(i)).collect();
            machine.frames().release_all(&frames);
        }
    }
}

fn take(machine: &Machine, count: u32) -> Result<Frame, WindowError> {
    let mut blocks = machine.windows().lock();
    blocks.clear(machine);
    if blocks.windows >= MOST {
        return Err(WindowError::TooMany);
    }
    let frame = if count == LARGE {
        let block = machine.frames().allocate_block().ok_or(WindowError::OutOfFrames)?;
        blocks.taken.insert(block, u32::MAX);
        block
    } else if let Some((&block, taken)) = blocks.taken.iter_mut().find(|(_, taken)| **taken != u32::MAX) {
        let index = taken.trailing_ones();
        *taken |= 1 << index;
        block.offset(index * SMALL)
    } else {
        let block = machine.frames().allocate_block().ok_or(WindowError::OutOfFrames)?;
        blocks.taken.insert(block, 1);
        block
    };
    blocks.windows += 1;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::FrameAllocator;
    use crate::guard::take_fault;
    use crate::ram::{Backing, GuestRam};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    const BYTES: u64 = SMALL as u64 * PAGE_SIZE;

    fn read(ram: &GuestRam, at: GuestPhysAddr) -> [u8; 4] {
        let mut bytes = [1; 4];
        ram.read(at, &mut bytes);
        bytes
    }

    #[test]
    fn a_window_is_the_file_and_leaves_zeros_behind() {
        for backing in [Backing::Anonymous, Backing::MemoryFile] {
            let ram = GuestRam::new(LARGE_PAGE_SIZE, backing).unwrap();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(b"file", 2 * PAGE_SIZE).unwrap();
            file.set_len(BYTES + PAGE_SIZE).unwrap();
            let at = GuestPhysAddr(BYTES);
            ram.show(at, BYTES, Shown::File(file.as_fd(), PAGE_SIZE), true).unwrap();
            assert_eq!(&read(&ram, at + PAGE_SIZE), b"file");
            ram.write(at + PAGE_SIZE, b"more");
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 2 * PAGE_SIZE).unwrap();
            assert_eq!(&bytes, b"more");
            // Freeing its frames must not cut the file.
            ram.punch(Frame(SMALL), SMALL);
            file.read_exact_at(&mut bytes, 2 * PAGE_SIZE).unwrap();
            assert_eq!(&bytes, b"more");
            ram.cover(at, BYTES);
            assert_eq!(read(&ram, at + PAGE_SIZE), [0; 4]);
            ram.write(at + PAGE_SIZE, b"last");
            file.read_exact_at(&mut bytes, 2 * PAGE_SIZE).unwrap();
            assert_eq!(&bytes, b"more");
        }
    }

    #[test]
    fn a_file_that_is_cut_gives_zeros_and_a_fault() {
        let ram = GuestRam::new(LARGE_PAGE_SIZE, Backing::Anonymous).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"file", 0).unwrap();
        let at = GuestPhysAddr(0);
        ram.show(at, BYTES, Shown::File(file.as_fd(), 0), true).unwrap();
        assert_eq!(&read(&ram, at), b"file");
        assert_eq!(take_fault(), None);
        assert!(ram.make_ready(at, PAGE_SIZE, true).is_ok());
        assert!(ram.make_ready(at + PAGE_SIZE, PAGE_SIZE, false).is_err());
        file.set_len(0).unwrap();
        assert_eq!(read(&ram, at), [0; 4]);
        assert_eq!(take_fault(), Some(at));
        ram.write(at + 3 * PAGE_SIZE, b"lost");
        assert_eq!(take_fault(), Some(at + 3 * PAGE_SIZE));
        assert_eq!(take_fault(), None);
        file.write_all_at(b"back", 0).unwrap();
        ram.show(at, BYTES, Shown::File(file.as_fd(), 0), true).unwrap();
        assert_eq!(&read(&ram, at), b"back");
    }

    #[test]
    fn what_the_host_does_not_map_changes_nothing() {
        let ram = Arc::new(GuestRam::new(2 * LARGE_PAGE_SIZE, Backing::Anonymous).unwrap());
        let frames = FrameAllocator::new(ram.clone(), GuestPhysAddr(1));
        let frame = frames.allocate().unwrap();
        ram.write(frame.address(), b"kept");
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert!(ram.show(frame.address(), PAGE_SIZE, Shown::File(pipe.as_fd(), 0), false).is_err());
        assert_eq!(&read(&ram, frame.address()), b"kept");
    }
}
