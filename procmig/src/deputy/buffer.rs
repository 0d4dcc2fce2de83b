//! The memory that a reply is built in.

use crate::wire::call::{MAX_SIGNALS, ReplyHeader, SIGINFO_SIZE};
use std::io;

const PAGE: usize = 4096;
/// Where the reply's header is, so that the bytes of its first section start on a page, as direct
/// I/O wants it.
const START: usize = PAGE - ReplyHeader::SIZE - 4;
/// Room behind the payload.
const SIGNALS: usize = MAX_SIGNALS as usize * SIGINFO_SIZE;
/// Bytes to start with and to go back to after a big reply.
const SMALL: usize = 64 << 10;

/// Page-aligned memory of its own, which costs nothing until it is written.
#[derive(Debug)]
pub(super) struct ReplyBuffer {
    memory: *mut u8,
    length: usize,
}

fn map(length: usize) -> io::Result<*mut u8> {
    // SAFETY: a new anonymous mapping touches nothing that is there.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory.cast()) }
}

impl ReplyBuffer {
    /// # Errors
    /// If there is no memory.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { memory: map(SMALL)?, length: SMALL })
    }

    /// Makes room for a payload of so many bytes; what was in it is lost if it moves.
    ///
    /// # Errors
    /// If there is no memory; it is then as it was.
    pub(super) fn reserve(&mut self, payload: usize) -> io::Result<()> {
        let needed = (payload + PAGE + SIGNALS).next_multiple_of(PAGE);
        if needed > self.length || (self.length > SMALL * 16 && needed <= SMALL) {
            let length = needed.max(SMALL);
            let memory = map(length)?;
            // SAFETY: the mapping is ours and nothing borrows it.
            unsafe { libc::munmap(self.memory.cast(), self.length) };
            (self.memory, self.length) = (memory, length);
        }
        Ok(())
    }

    /// The room for the payload.
    pub(super) fn payload(&mut self) -> &mut [u8] {
        let from = START + ReplyHeader::SIZE;
        // SAFETY: the mapping is readable and writable, zeroed at first, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.memory.add(from), self.length - from) }
    }

    /// The first bytes of what was finished last.
    pub(super) fn finished(&self, length: usize) -> &[u8] {
        let length = length.min(self.length - START);
        // SAFETY: as in `payload`.
        unsafe { std::slice::from_raw_parts(self.memory.add(START), length) }
    }

    /// Puts the header before a payload of so many bytes; gives all of it.
    pub(super) fn finish(&mut self, header: &ReplyHeader, payload: usize) -> &[u8] {
        let length = ReplyHeader::SIZE + payload.min(self.length - START - ReplyHeader::SIZE);
        // SAFETY: as in `payload`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.memory.add(START), length) };
        bytes[..ReplyHeader::SIZE].copy_from_slice(&header.encode());
        bytes
    }
}

impl Drop for ReplyBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and goes with us.
        unsafe { libc::munmap(self.memory.cast(), self.length) };
    }
}
