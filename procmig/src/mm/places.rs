//! A process's memory as the host's kernel can use it: for reads and writes without a copy.

use super::access::ProcessMemory;
use super::fault::Access;
use super::space::{AddressSpace, Inner};
use nix::errno::Errno;
use std::ops::Range;
use vmm::addr::{Frame, GuestPhysAddr, GuestVirtAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use vmm::guard::take_fault;
use vmm::paging::{self, PRESENT, WRITE};
use vmm::shim_layout::USER_END;

/// Most pieces of memory that one call of the host's kernel takes (`IOV_MAX`).
const MOST: usize = 1024;
/// Most bytes that are looked up for one call.
const MOST_BYTES: usize = 8 << 20;

/// A part of a process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it starts.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

/// Where parts of memory lie in this process.
#[derive(Debug, Default)]
struct Places {
    vectors: Vec<libc::iovec>,
    frames: Vec<Frame>,
}

impl Places {
    /// Adds contiguous memory; `false` if there is no room for one more piece.
    fn add(&mut self, host: *mut u8, length: u64) -> bool {
        let continues = |last: &&mut libc::iovec| last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == host;
        if let Some(last) = self.vectors.last_mut().filter(continues) {
            last.iov_len += length as usize;
        } else if self.vectors.len() < MOST {
            self.vectors.push(libc::iovec { iov_base: host.cast(), iov_len: length as usize });
        } else {
            return false;
        }
        true
    }
}

impl AddressSpace {
    /// Runs `body` with the places of `parts`, for a thread that has no vCPU: only if all of them are mapped
    /// so that they can be accessed as they are, and nobody else is at the address space. The memory cannot
    /// change meanwhile, so `body` must not wait.
    pub fn with_present<T>(&self, parts: &[Part], access: Access, body: impl FnOnce(&[libc::iovec]) -> T) -> Option<T> {
        let inner = self.try_lock()?;
        let places = self.present(&inner, parts, access, false)?;
        let result = body(&places.vectors);
        self.note(&places, access);
        Some(result)
    }

    /// The same of memory to be read, with the memory free to change: the frames stay what they are.
    pub fn with_present_pinned<T>(&self, parts: &[Part], body: impl FnOnce(&[libc::iovec]) -> T) -> Option<T> {
        let frames = self.machine.frames();
        let places = {
            let inner = self.try_lock()?;
            let places = self.present(&inner, parts, Access::Read, true)?;
            for &frame in &places.frames {
                frames.share(frame);
            }
            places
        };
        let result = body(&places.vectors);
        frames.release_all(&places.frames);
        Some(result)
    }

    /// Notes what may have been written.
    fn note(&self, places: &Places, access: Access) {
        if access != Access::Write {
            return;
        }
        let ram = self.machine.ram();
        for place in &places.vectors {
            let at = place.iov_base as u64 - ram.host_address() as u64;
            ram.note_written(GuestPhysAddr(at), place.iov_len as u64);
        }
    }

    /// Copies bytes in, under the conditions of [`with_present`](Self::with_present); whether they were met.
    pub fn write_present(&self, address: u64, bytes: &[u8]) -> bool {
        let ram = self.machine.ram();
        self.each_present(address, bytes.len(), Access::Write, |at, range| ram.write(at, &bytes[range]))
    }

    /// Copies bytes out, as [`write_present`](Self::write_present).
    pub fn read_present(&self, address: u64, buffer: &mut [u8]) -> bool {
        let ram = self.machine.ram();
        self.each_present(address, buffer.len(), Access::Read, |at, range| ram.read(at, &mut buffer[range]))
    }

    /// Visits a few bytes, page by page, if all of them can be accessed as they are.
    fn each_present(
        &self,
        address: u64,
        length: usize,
        access: Access,
        mut visit: impl FnMut(GuestPhysAddr, Range<usize>),
    ) -> bool {
        let Some(inner) = self.try_lock() else { return false };
        let needed = if access == Access::Write { PRESENT | WRITE } else { PRESENT };
        let Some(end) = address.checked_add(length as u64).filter(|&end| end <= USER_END) else { return false };
        let mut pieces = Vec::new();
        let mut at = address;
        while at < end {
            let count = (PAGE_SIZE - at % PAGE_SIZE).min(end - at);
            let leaf = inner.tables.lookup(at & !(PAGE_SIZE - 1)).filter(|leaf| leaf.entry & needed == needed);
            let Some(leaf) = leaf else { return false };
            let start = (at - address) as usize;
            pieces.push((leaf.frame(at).address() + at % PAGE_SIZE, start..start + count as usize));
            at += count;
        }
        pieces.into_iter().for_each(|(at, range)| visit(at, range));
        // A page of a file that has been cut: the thread finds out by itself.
        take_fault().is_none()
    }

    fn present(&self, inner: &Inner, parts: &[Part], access: Access, with_frames: bool) -> Option<Places> {
        let needed = if access == Access::Write { PRESENT | WRITE } else { PRESENT };
        let base = self.machine.ram().host_address();
        let mut places = Places::default();
        let mut total = 0u64;
        for part in parts {
            let end = part.address.checked_add(part.length).filter(|&end| end <= USER_END)?;
            total = total.checked_add(part.length).filter(|&total| total <= MOST_BYTES as u64)?;
            // Up to where it is present and was added.
            let mut at = part.address;
            inner.tables.for_each_in(part.address, end, &mut |page, entry, large| {
                let span = if large { LARGE_PAGE_SIZE } else { PAGE_SIZE };
                if page > at || page + span <= at || entry & needed != needed {
                    return;
                }
                let first = at - page;
                let length = (span - first).min(end - at);
                let physical = paging::frame(entry).address() + first;
                // SAFETY: the address is of a frame, which lies within the mapping.
                if !places.add(unsafe { base.add(physical.raw() as usize) }, length) {
                    return;
                }
                if with_frames {
                    let pages = (physical.page_offset() + length).div_ceil(PAGE_SIZE);
                    places.frames.extend((0..pages as u32).map(|i| Frame::containing(physical).offset(i)));
                }
                at += length;
            });
            if at < end {
                return None;
            }
        }
        Some(places)
    }
}

impl ProcessMemory<'_> {
    /// Runs `body` with the places of `parts`, or of as much from their start as one call takes and the
    /// process may access. The memory cannot change meanwhile, so `body` must not wait.
    ///
    /// # Errors
    /// `EFAULT` if there is none at the start, `ENOMEM` if the node's memory is used up.
    pub fn with_places<T>(
        &self,
        parts: &[Part],
        access: Access,
        body: impl FnOnce(&[libc::iovec]) -> T,
    ) -> Result<T, Errno> {
        let mut inner = self.space().lock();
        let places = match self.space().present(&inner, parts, access, false) {
            Some(places) => places,
            None => self.places(&mut inner, parts, access)?,
        };
        let result = body(&places.vectors);
        self.space().note(&places, access);
        Ok(result)
    }

    /// Runs `body` with the places of `parts` to be read, as [`with_places`](Self::with_places), but with
    /// the memory free to change: the frames stay what they are, whatever becomes of their mappings.
    ///
    /// # Errors
    /// As [`with_places`](Self::with_places).
    pub fn with_pinned<T>(&self, parts: &[Part], body: impl FnOnce(&[libc::iovec]) -> T) -> Result<T, Errno> {
        let frames = self.space().machine.frames();
        let places = {
            let mut inner = self.space().lock();
            let places = match self.space().present(&inner, parts, Access::Read, true) {
                Some(places) => places,
                None => self.places(&mut inner, parts, Access::Read)?,
            };
            for &frame in &places.frames {
                frames.share(frame);
            }
            places
        };
        let result = body(&places.vectors);
        frames.release_all(&places.frames);
        Ok(result)
    }

    fn places(&self, inner: &mut Inner, parts: &[Part], access: Access) -> Result<Places, Errno> {
        let mut places = Places::default();
        let base = self.space().machine.ram().host_address();
        for part in parts {
            let end = part.address.checked_add(part.length).filter(|&end| end <= USER_END);
            let mut at = part.address;
            while at < part.address.saturating_add(part.length) {
                if places.frames.len() * PAGE_SIZE as usize >= MOST_BYTES {
                    return Ok(places);
                }
                let found = match end {
                    Some(_) => self.translate(inner, GuestVirtAddr(at), access),
                    None => Err(Errno::EFAULT),
                };
                let physical = match found {
                    Ok(physical) => physical,
                    Err(errno) if places.vectors.is_empty() => return Err(errno),
                    // What comes before it is transferred, as Linux does.
                    Err(_) => return Ok(places),
                };
                let length = (PAGE_SIZE - at % PAGE_SIZE).min(part.address + part.length - at);
                // SAFETY: the address is of a frame, which lies within the mapping.
                let host = unsafe { base.add(physical.raw() as usize) };
                if !places.add(host, length) {
                    return Ok(places);
                }
                places.frames.push(Frame::containing(physical));
                at += length;
            }
        }
        Ok(places)
    }
}
