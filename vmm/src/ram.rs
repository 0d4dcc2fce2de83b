//! The node VM's physical memory: one area of this process, backed as it is touched.

use crate::addr::{Frame, GuestPhysAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use std::fs;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::atomic::Ordering;
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
    region: MmapRegion,
    backing: Backing,
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
        Ok(Self { region, backing })
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
    }

    /// Reads an aligned quadword at once. Panics as [`read`](Self::read), and if it is not aligned.
    pub fn load(&self, at: GuestPhysAddr) -> u64 {
        self.slice(at, 8).load(0, Ordering::Acquire).expect("aligned and within the memory")
    }

    /// Writes an aligned quadword at once. Panics as [`load`](Self::load).
    pub fn store(&self, at: GuestPhysAddr, value: u64) {
        self.slice(at, 8).store(value, 0, Ordering::Release).expect("aligned and within the memory");
    }

    /// Reads an aligned doubleword at once. Panics as [`load`](Self::load).
    pub fn load_u32(&self, at: GuestPhysAddr) -> u32 {
        self.slice(at, 4).load(0, Ordering::SeqCst).expect("aligned and within the memory")
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
        word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }

    /// Fills a frame with zeros.
    pub fn zero(&self, frame: Frame) {
        self.write(frame.address(), &[0; PAGE_SIZE as usize]);
    }

    /// Copies a frame.
    pub fn copy_frame(&self, from: Frame, to: Frame) {
        self.slice(from.address(), PAGE_SIZE as usize)
            .copy_to_volatile_slice(self.slice(to.address(), PAGE_SIZE as usize));
    }

    /// Gives `count` frames back to the host: they read as zeros from now on.
    pub fn punch(&self, first: Frame, count: u32) {
        let advice = match self.backing {
            Backing::MemoryFile => libc::MADV_REMOVE,
            Backing::Anonymous => libc::MADV_DONTNEED,
        };
        self.advise(first.address(), u64::from(count) * PAGE_SIZE, advice);
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
