//! Keeps this process alive when its own access to guest memory finds no page: a window shows a file of
//! somebody else's, who may cut it at any time.
//!
//! The handler of `SIGBUS` puts a page of zeros where the access went, notes for the thread that it did,
//! and lets the access go on. Who made the access asks afterwards ([`take_fault`]) and shows the window
//! anew.

use crate::addr::GuestPhysAddr;
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Memories that can be guarded at a time.
const MOST: usize = 64;
/// Bytes of the parts that are guarded or not.
pub(crate) const PART: usize = 64 << 10;

/// One guarded memory; free if `end` is 0.
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
    /// Address of a word of bits for each 64 parts, set for those that are guarded.
    bits: AtomicUsize,
}

static RANGES: [Range; MOST] =
    [const { Range { start: AtomicUsize::new(0), end: AtomicUsize::new(0), bits: AtomicUsize::new(0) } }; MOST];
static CHANGING: Mutex<()> = Mutex::new(());
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

thread_local! {
    static FAULTED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Where an access of this thread to guest memory found no page since this was last asked, if it did: what
/// it read there were zeros, and what it wrote is lost.
pub fn take_fault() -> Option<GuestPhysAddr> {
    FAULTED.take().map(GuestPhysAddr)
}

/// Which parts of a memory are guarded.
#[derive(Debug)]
pub(crate) struct Guard {
    slot: usize,
    bits: Box<[AtomicU64]>,
}

impl Guard {
    /// Of the memory at `start`, which stays mapped for as long as the guard lives.
    ///
    /// # Errors
    /// If there are too many, or the handler cannot be installed.
    pub(crate) fn new(start: usize, bytes: usize) -> io::Result<Self> {
        let _changing = CHANGING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        install()?;
        let slot = RANGES.iter().position(|range| range.end.load(Ordering::Acquire) == 0);
        let slot = slot.ok_or(io::ErrorKind::OutOfMemory)?;
        let bits: Box<[AtomicU64]> = (0..bytes.div_ceil(PART * 64)).map(|_| AtomicU64::new(0)).collect();
        RANGES[slot].bits.store(bits.as_ptr() as usize, Ordering::Release);
        RANGES[slot].start.store(start, Ordering::Release);
        RANGES[slot].end.store(start + bytes, Ordering::Release);
        Ok(Self { slot, bits })
    }

    /// Guards the parts in a range of offsets, or does so no more.
    pub(crate) fn set(&self, at: usize, bytes: usize, guarded: bool) {
        for part in at / PART..(at + bytes).div_ceil(PART) {
            let bit = 1 << (part % 64);
            if guarded {
                self.bits[part / 64].fetch_or(bit, Ordering::SeqCst);
            } else {
                self.bits[part / 64].fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }

    /// Whether any part of a range of offsets is guarded.
    pub(crate) fn is_set(&self, at: usize, bytes: usize) -> bool {
        (at / PART..(at + bytes).div_ceil(PART))
            .any(|part| self.bits[part / 64].load(Ordering::Relaxed) & 1 << (part % 64) != 0)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _changing = CHANGING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Nobody accesses the memory any more, so no handler is looking at the bits.
        RANGES[self.slot].end.store(0, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: both structures are plain data; the handler does nothing but what it may in a signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, &action, &mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        // The lock is held, so this is the first.
        let _ = BEFORE.set(before);
    }
    Ok(())
}

/// Only loads of atomics, a thread-local without a destructor, and system calls.
extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    const PAGE: usize = 4096;
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid structure, whose address is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    for range in &RANGES {
        let (start, end) = (range.start.load(Ordering::Acquire), range.end.load(Ordering::Acquire));
        if !(start..end).contains(&address) {
            continue;
        }
        let part = (address - start) / PART;
        let words = range.bits.load(Ordering::Acquire) as *const AtomicU64;
        // SAFETY: the words live for as long as the memory that is being accessed; the part lies in it.
        let word = unsafe { &*words.add(part / 64) };
        if word.load(Ordering::SeqCst) & 1 << (part % 64) == 0 {
            continue;
        }
        let page = (address & !(PAGE - 1)) as *mut libc::c_void;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page is part of a window, of which nobody holds a reference.
        if unsafe { libc::mmap(page, PAGE, protection, flags, -1, 0) } != libc::MAP_FAILED {
            FAULTED.set(Some((address - start) as u64));
            return;
        }
    }
    // None of ours: it happens again, and this time to whoever was asked before.
    if let Some(before) = BEFORE.get() {
        // SAFETY: what the kernel gave when the handler was installed.
        unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    }
}
