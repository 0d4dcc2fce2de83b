//! A process's memory as the host's kernel can use it: for reads and writes without a copy.

use super::access::ProcessMemory;
use super::fault::Access;
use super::space::Inner;
use nix::errno::Errno;
use vmm::addr::{Frame, GuestVirtAddr, PAGE_SIZE};
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
        let places = self.places(&mut inner, parts, access)?;
        Ok(body(&places.vectors))
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
            let places = self.places(&mut inner, parts, Access::Read)?;
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
                let continues = |last: &&mut libc::iovec| last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == host;
                if let Some(last) = places.vectors.last_mut().filter(continues) {
                    last.iov_len += length as usize;
                } else if places.vectors.len() < MOST {
                    places.vectors.push(libc::iovec { iov_base: host.cast(), iov_len: length as usize });
                } else {
                    return Ok(places);
                }
                places.frames.push(Frame::containing(physical));
                at += length;
            }
        }
        Ok(places)
    }
}
