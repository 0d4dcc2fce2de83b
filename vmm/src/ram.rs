//! The node VM's physical memory: one area of this process, backed as it is touched.

use crate::addr::{Frame, GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::dirty::OwnWrites;
use crate::guard::Guard;
use crate::windows::Shown;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, VolatileMemory, VolatileSlice};

/// What backs the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A `memfd`: another VMM of this host can take it over. Chosen where the host gives huge pages to such files.
    MemoryFile,
    /// Anonymous memory: gets huge pages by default.
    Anonymous,
}

impl Backing {
    /// What this host makes fast: random access runs at the speed of the host's page size.
    pub fn for_this_host() -> Self {
        let shmem = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
        if ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|mode| shmem.contains(mode)) {
            Self::MemoryFile
        } else {
            Self::Anonymous
        }
    }
}

/// Guest RAM. All accesses are bounds-checked; the guest may write at the same time, so bytes are
/// copied in and out and no reference into it is ever given away.
#[derive(Debug)]
pub struct GuestRam {
    /// Which parts are windows, once there was one. Dropped before the memory.
    guard: OnceLock<Guard>,
    region: MmapRegion,
    backing: Backing,
    own_writes: OwnWrites,
}

impl GuestRam {
    /// Reserves `bytes` of address space, a multiple of 2 MiB; no memory is taken yet.
    ///
    /// # Errors
    /// As `mmap(2)` and `memfd_create(2)`.
    pub fn new(bytes: u64, backing: Backing) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (file, flags) = match backing {
            Backing::Anonymous => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            Backing::MemoryFile => (Some(FileOffset::new(memory_file(bytes)?, 0)), libc::MAP_SHARED),
        };
        let region = MmapRegion::build(file, bytes as usize, protection, flags | libc::MAP_NORESERVE)
            .map_err(io::Error::other)?;
        Ok(Self { guard: OnceLock::new(), region, backing, own_writes: OwnWrites::default() })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.region.len() as u64
    }

    /// What backs it.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// Address in this process, for the hypervisor.
    pub fn host_address(&self) -> *mut u8 {
        self.region.as_ptr()
    }

    pub(crate) fn own_writes(&self) -> &OwnWrites {
        &self.own_writes
    }

    /// Declares that this process has written a range by its address.
    pub fn note_written(&self, at: GuestPhysAddr, bytes: u64) {
        self.own_writes.note(at, bytes);
    }

    fn slice(&self, at: GuestPhysAddr, bytes: usize) -> VolatileSlice<'_> {
        self.region.get_slice(at.raw() as usize, bytes).expect("guest physical addresses come from the frame allocator")
    }

    /// Copies out.
    ///
    /// # Panics
    /// If the range is not within the memory: physical addresses are never a guest's to choose.
    pub fn read(&self, at: GuestPhysAddr, buffer: &mut [u8]) {
        self.slice(at, buffer.len()).copy_to(buffer);
    }

    /// Copies in. Panics as [`read`](Self::read).
    pub fn write(&self, at: GuestPhysAddr, bytes: &[u8]) {
        self.slice(at, bytes.len()).copy_from(bytes);
        self.own_writes.note(at, bytes.len() as u64);
    }

    /// Reads an aligned quadword at once. Panics as [`read`](Self::read), and if it is not aligned.
    pub fn load(&self, at: GuestPhysAddr) -> u64 {
        self.slice(at, 8).load(0, Ordering::Acquire).expect("aligned and within the memory")
    }

    /// Writes an aligned quadword at once. Panics as [`load`](Self::load).
    pub fn store(&self, at: GuestPhysAddr, value: u64) {
        self.slice(at, 8).store(value, 0, Ordering::Release).expect("aligned and within the memory");
        self.own_writes.note(at, 8);
    }

    /// Reads an aligned doubleword at once. Panics as [`load`](Self::load).
    pub fn load_u32(&self, at: GuestPhysAddr) -> u32 {
        self.slice(at, 4).load(0, Ordering::SeqCst).expect("aligned and within the memory")
    }

    /// Writes an aligned doubleword at once. Panics as [`load`](Self::load).
    pub fn store_u32(&self, at: GuestPhysAddr, value: u32) {
        self.slice(at, 4).store(value, 0, Ordering::SeqCst).expect("aligned and within the memory");
        self.own_writes.note(at, 4);
    }

    /// Replaces an aligned doubleword if it still is `current`; `Err` is what it is instead.
    ///
    /// # Errors
    /// The other value.
    ///
    /// # Panics
    /// As [`load`](Self::load).
    pub fn compare_exchange_u32(&self, at: GuestPhysAddr, current: u32, new: u32) -> Result<(), u32> {
        assert!(at.is_aligned(4));
        let slice = self.slice(at, 4);
        let guard = slice.ptr_guard_mut();
        // SAFETY: aligned, within the mapping, which lives as long as `self`; all accesses to a
        // word that threads share are atomic.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(guard.as_ptr().cast()) };
        let exchanged = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).map(drop);
        self.own_writes.note(at, 4);
        exchanged
    }

    /// Fills a frame with zeros.
    pub fn zero(&self, frame: Frame) {
        self.write(frame.address(), &[0; PAGE_SIZE as usize]);
    }

    /// Whether a frame is all zeros.
    pub fn is_zero(&self, frame: Frame) -> bool {
        let slice = self.slice(frame.address(), PAGE_SIZE as usize);
        let guard = slice.ptr_guard();
        // SAFETY: aligned, within the mapping, which lives as long as `self`; words that threads share are
        // read atomically.
        let words = unsafe { std::slice::from_raw_parts(guard.as_ptr().cast::<AtomicU64>(), PAGE_SIZE as usize / 8) };
        words.chunks_exact(8).all(|line| line.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) == 0)
    }

    /// Copies a frame.
    pub fn copy_frame(&self, from: Frame, to: Frame) {
        self.slice(from.address(), PAGE_SIZE as usize)
            .copy_to_volatile_slice(self.slice(to.address(), PAGE_SIZE as usize));
        self.own_writes.note(to.address(), PAGE_SIZE);
    }

    /// Gives `count` frames back to the host: they read as zeros from now on.
    pub fn punch(&self, first: Frame, count: u32) {
        if self.has_window(first.address(), u64::from(count) * PAGE_SIZE) {
            // It would be cut out of the file that the window shows.
            tracing::error!(first = first.0, count, "a frame of a window was freed");
            return;
        }
        let advice = match self.backing {
            Backing::MemoryFile => libc::MADV_REMOVE,
            Backing::Anonymous => libc::MADV_DONTNEED,
        };
        self.advise(first.address(), u64::from(count) * PAGE_SIZE, advice);
        self.own_writes.note(first.address(), u64::from(count) * PAGE_SIZE);
    }

    /// Asks the host for huge pages (`MADV_HUGEPAGE`) in a range of whole 2 MiB blocks.
    pub fn want_huge_pages(&self, at: GuestPhysAddr, bytes: u64) {
        debug_assert!(at.is_aligned(LARGE_PAGE_SIZE));
        self.advise(at, bytes, libc::MADV_HUGEPAGE);
    }

    /// Takes [`want_huge_pages`](Self::want_huge_pages) back.
    pub fn want_small_pages(&self, at: GuestPhysAddr, bytes: u64) {
        self.advise(at, bytes, libc::MADV_NOHUGEPAGE);
    }

    fn has_window(&self, at: GuestPhysAddr, bytes: u64) -> bool {
        self.guard.get().is_some_and(|guard| guard.is_set(at.raw() as usize, bytes as usize))
    }

    fn guard(&self) -> io::Result<&Guard> {
        if self.guard.get().is_none() {
            let guard = Guard::new(self.region.as_ptr() as usize, self.region.len())?;
            // Another thread may have been first; then this one is dropped.
            let _ = self.guard.set(guard);
        }
        self.guard.get().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Shows something of the host's in a range that no guest has mapped, in place of what is there.
    /// Whatever happens, no address of the range is ever without a mapping, where this process might be
    /// given memory that the guest then shared.
    ///
    /// # Errors
    /// As `mmap(2)`; what was there is there still.
    pub(crate) fn show(&self, at: GuestPhysAddr, bytes: u64, shown: Shown<'_>, writable: bool) -> io::Result<()> {
        let guard = self.guard()?;
        let target = self.slice(at, bytes as usize).ptr_guard_mut().as_ptr().cast::<libc::c_void>();
        let length = bytes as usize;
        // First elsewhere: a mapping that fails in place would leave a hole.
        // SAFETY: a new mapping at an address that the kernel chooses; with an old length of 0 `mremap`
        // leaves the shared mapping that it copies as it is.
        let made = unsafe {
            match shown {
                Shown::File(file, offset) => {
                    let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
                    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
                    libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
                }
                Shown::Memory(address) => libc::mremap(address as *mut _, 0, length, libc::MREMAP_MAYMOVE),
            }
        };
        if made == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        guard.set(at.raw() as usize, length, true);
        // SAFETY: the range is this memory's own, into which nobody holds references.
        let moved = unsafe { libc::mremap(made, length, length, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, target) };
        if moved == libc::MAP_FAILED {
            give_up("a window could not be put in its place");
        }
        Ok(())
    }

    /// Puts the node's own memory, which reads as zeros, in place of a window that no guest has mapped.
    pub(crate) fn cover(&self, at: GuestPhysAddr, bytes: u64) {
        let target = self.slice(at, bytes as usize).ptr_guard_mut().as_ptr().cast::<libc::c_void>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_FIXED | libc::MAP_NORESERVE;
        let (flags, file, offset) = match self.region.file_offset() {
            Some(file) => (flags | libc::MAP_SHARED, file.file().as_raw_fd(), file.start() + at.raw()),
            None => (flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        // SAFETY: the range is this memory's own, into which nobody holds references.
        let covered = unsafe { libc::mmap(target, bytes as usize, protection, flags, file, offset as libc::off_t) };
        if covered == libc::MAP_FAILED {
            give_up("a window could not be covered");
        }
        if let Some(guard) = self.guard.get() {
            guard.set(at.raw() as usize, bytes as usize, false);
        }
    }

    /// Has the host make the pages of a window ready to be read, or written too.
    ///
    /// # Errors
    /// If a page cannot be had: it lies beyond the end of the file, cannot be read, or has no room.
    pub fn make_ready(&self, at: GuestPhysAddr, bytes: u64, write: bool) -> io::Result<()> {
        let target = self.slice(at, bytes as usize).ptr_guard_mut().as_ptr().cast::<libc::c_void>();
        let advice = if write { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        loop {
            // SAFETY: the range is within the mapping; pages are made present and nothing else.
            if unsafe { libc::madvise(target, bytes as usize, advice) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                // A kernel before 5.14, on which the access itself finds out.
                Some(libc::EINVAL) => return Ok(()),
                _ => return Err(error),
            }
        }
    }

    fn advise(&self, at: GuestPhysAddr, bytes: u64, advice: libc::c_int) {
        let slice = self.slice(at, bytes as usize);
        let guard = slice.ptr_guard_mut();
        // SAFETY: the range is within the mapping; the advice changes at most its content, which
        // nothing holds references into.
        let done = unsafe { libc::madvise(guard.as_ptr().cast(), bytes as usize, advice) };
        if done != 0 {
            tracing::debug!(advice, error = %io::Error::last_os_error(), "madvise");
        }
    }
}

/// The kernel has no memory left for a mapping and may have left a hole in guest memory, which the guest
/// would share with whatever this process put there next.
fn give_up(what: &str) -> ! {
    tracing::error!(error = %io::Error::last_os_error(), what, "the node cannot go on");
    std::process::abort()
}

fn memory_file(bytes: u64) -> io::Result<fs::File> {
    // SAFETY: creates a descriptor that is ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"skein-node".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        fs::File::from_raw_fd(fd)
    };
    file.set_len(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_punched_frame_reads_zero_whatever_backs_it() {
        for backing in [Backing::Anonymous, Backing::MemoryFile] {
            let ram = GuestRam::new(LARGE_PAGE_SIZE, backing).unwrap();
            ram.write(GuestPhysAddr(4096), b"secret");
            ram.punch(Frame(1), 1);
            let mut bytes = [1; 6];
            ram.read(GuestPhysAddr(4096), &mut bytes);
            assert_eq!(bytes, [0; 6]);
        }
    }

    #[test]
    fn words_and_frames_are_copied() {
        let ram = GuestRam::new(LARGE_PAGE_SIZE, Backing::Anonymous).unwrap();
        ram.store(GuestPhysAddr(8192 + 8), 0x1122_3344_5566_7788);
        ram.copy_frame(Frame(2), Frame(3));
        assert_eq!(ram.load(GuestPhysAddr(3 * 4096 + 8)), 0x1122_3344_5566_7788);
        assert_eq!(ram.compare_exchange_u32(GuestPhysAddr(3 * 4096 + 8), 1, 2), Err(0x5566_7788));
        assert_eq!(ram.compare_exchange_u32(GuestPhysAddr(3 * 4096 + 8), 0x5566_7788, 2), Ok(()));
        assert_eq!(ram.load_u32(GuestPhysAddr(3 * 4096 + 8)), 2);
    }
}
