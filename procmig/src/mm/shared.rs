//! What several processes share with each other and with home: a file, or a System V segment. Its pages
//! are the host's own, shown in windows of guest memory.

use super::object::ObjectError;
use crate::wire::op::FileIdentity;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use vmm::addr::{Frame, GuestPhysAddr, PAGE_SIZE};
use vmm::machine::Machine;
use vmm::windows::{LARGE, SMALL, Shown, Window, WindowError};

/// Pages of the host's.
#[derive(Debug)]
pub enum Origin {
    /// Of a file at home.
    File(File, FileIdentity),
    /// Of a System V segment at home.
    Segment(Segment),
}

/// A System V segment that this process has attached.
#[derive(Debug)]
pub struct Segment {
    id: i32,
    address: usize,
    size: u64,
}

impl Segment {
    /// Attaches a segment.
    ///
    /// # Errors
    /// As `shmat(2)`.
    pub fn attach(id: i32, writable: bool) -> Result<Self, Errno> {
        // SAFETY: the kernel fills the structure; the mapping is put where there is none.
        unsafe {
            let flags = if writable { 0 } else { libc::SHM_RDONLY };
            let at = libc::shmat(id, std::ptr::null(), flags);
            if at as isize == -1 {
                return Err(Errno::last());
            }
            let mut segment = Self { id, address: at as usize, size: 0 };
            let mut about: libc::shmid_ds = std::mem::zeroed();
            Errno::result(libc::shmctl(id, libc::IPC_STAT, &mut about))?;
            segment.size = about.shm_segsz as u64;
            Ok(segment)
        }
    }

    /// Its identifier.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; windows have mappings of their own.
        unsafe { libc::shmdt(self.address as *const libc::c_void) };
    }
}

/// Pages of the host's as guests have them.
#[derive(Debug)]
pub struct SharedPages {
    origin: Origin,
    writable: bool,
    /// By their first pages. Dropped before the origin.
    windows: Mutex<BTreeMap<u64, Window>>,
}

/// The window that shows a page: its first page and how many it has. Small ones at the beginning, since
/// most files that are shared are small.
fn window_of(page: u64) -> (u64, u32) {
    let count = if page < u64::from(LARGE) { SMALL } else { LARGE };
    (page / u64::from(count) * u64::from(count), count)
}

impl SharedPages {
    /// Pages that guests may write if `writable`; the origin must allow it.
    pub fn new(origin: Origin, writable: bool) -> Self {
        Self { origin, writable, windows: Mutex::default() }
    }

    /// Where they come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    fn windows(&self) -> MutexGuard<'_, BTreeMap<u64, Window>> {
        self.windows.lock().expect("no panic while the windows are locked")
    }

    /// Pages, up to the end.
    fn pages(&self) -> io::Result<u64> {
        let bytes = match &self.origin {
            Origin::File(file, _) => file.metadata()?.len(),
            Origin::Segment(segment) => segment.size,
        };
        Ok(bytes.div_ceil(PAGE_SIZE))
    }

    fn shown(&self, first: u64) -> Shown<'_> {
        match &self.origin {
            Origin::File(file, _) => Shown::File(file.as_fd(), first * PAGE_SIZE),
            Origin::Segment(segment) => Shown::Memory(segment.address + (first * PAGE_SIZE) as usize),
        }
    }

    /// Makes the window that shows a page, if there is none.
    ///
    /// # Errors
    /// If the host does not map it, or no frames are left.
    pub fn show(&self, machine: &Arc<Machine>, page: u64) -> Result<(), WindowError> {
        let (first, count) = window_of(page);
        if let Entry::Vacant(place) = self.windows().entry(first) {
            place.insert(Window::new(machine, count, self.shown(first), self.writable)?);
        }
        Ok(())
    }

    /// As [`PageObject::get`](super::object::PageObject::get); `write` is whether `needed` is to be written.
    ///
    /// # Errors
    /// If page `needed` cannot be had.
    pub fn get(
        &self,
        machine: &Arc<Machine>,
        wanted: Range<u64>,
        needed: u64,
        write: bool,
    ) -> Result<Vec<(u64, Frame)>, ObjectError> {
        let pages = self.pages()?;
        if needed >= pages {
            return Err(ObjectError::BeyondEnd);
        }
        self.show(machine, needed)?;
        let (first, count) = window_of(needed);
        let wanted = wanted.start.max(first)..wanted.end.min(first + u64::from(count)).min(pages);
        let found = self.cached(machine, wanted, usize::MAX);
        let frame = found.iter().find(|(page, _)| *page == needed).map(|&(_, frame)| frame);
        let frame = frame.ok_or(ObjectError::BeyondEnd)?;
        if let Err(error) = machine.ram().make_ready(frame.address(), PAGE_SIZE, write && self.writable) {
            for (_, frame) in found {
                machine.frames().release(frame);
            }
            return Err(error.into());
        }
        Ok(found)
    }

    /// The pages in `wanted` that windows show already, with one more user each, at most `limit`.
    pub fn cached(&self, machine: &Machine, wanted: Range<u64>, limit: usize) -> Vec<(u64, Frame)> {
        let Ok(pages) = self.pages() else { return Vec::new() };
        let windows = self.windows();
        let mut found = Vec::new();
        for (&first, window) in windows.range(window_of(wanted.start).0..wanted.end) {
            let end = (first + u64::from(window_of(first).1)).min(wanted.end).min(pages);
            for page in first.max(wanted.start)..end {
                if found.len() >= limit {
                    return found;
                }
                let frame = window.frame((page - first) as u32);
                machine.frames().share(frame);
                found.push((page, frame));
            }
        }
        found
    }

    /// Whether guests may write them.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The frame in which a page is shown, if it is.
    pub fn frame(&self, page: u64) -> Option<Frame> {
        let (first, _) = window_of(page);
        self.windows().get(&first).map(|window| window.frame((page - first) as u32))
    }

    /// Whether a page that was given out cannot be had any more: the file was cut, or has no room.
    pub fn is_gone(&self, machine: &Machine, page: u64, write: bool) -> bool {
        if self.pages().is_ok_and(|pages| page >= pages) {
            return true;
        }
        let (first, _) = window_of(page);
        let windows = self.windows();
        let Some(window) = windows.get(&first) else { return false };
        let at = window.frame((page - first) as u32).address();
        machine.ram().make_ready(at, PAGE_SIZE, write && self.writable).is_err()
    }

    /// Shows anew where an access of this process has found no page.
    pub fn show_again(&self, at: GuestPhysAddr) {
        if let Some((&first, window)) = self.windows().iter().find(|(_, window)| window.holds(at))
            && let Err(error) = window.show_again(self.shown(first), self.writable)
        {
            tracing::warn!(%error, "a shared file could not be mapped again");
        }
    }

    /// Has the file's pages written to where the file is kept (`MS_SYNC`).
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    pub fn sync(&self) -> io::Result<()> {
        match &self.origin {
            Origin::File(file, _) => file.sync_data(),
            Origin::Segment(_) => Ok(()),
        }
    }
}
