//! Files that are kept open for a node of another host, which reads them here.
//!
//! They are opened anew. To close one would be to give up what locks (`fcntl`) the process has on the file, so
//! those that are given back are closed only when there are many.

use super::descriptors::{Making, Own};
use super::threads::lock;
use crate::wire::bytes::Bytes;
use crate::wire::control::MAX_READ;
use crate::wire::op::{FileIdentity, LentFile};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// Files beyond which those that are not used are closed.
const MANY: usize = 512;
/// Most files.
const MOST: usize = 8192;

struct Lent {
    identity: FileIdentity,
    descriptor: Own,
    is_used: bool,
}

/// The files by number. Locked over a fork.
pub(super) static LENT: Mutex<Files> = Mutex::new(Files { next: 0, files: None });

pub(super) struct Files {
    next: u32,
    files: Option<HashMap<u32, Lent>>,
}

/// Lends a file; `open` opens it, unless it is lent already.
///
/// # Errors
/// `ENFILE`, and those of `open`.
pub(super) fn lend(
    identity: FileIdentity,
    path: Vec<u8>,
    head: Vec<u8>,
    making: &Making,
    open: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<LentFile, Errno> {
    let is_fresh = identity.is_fresh();
    let file = lock(&LENT).lend(identity, is_fresh, || Own::new(open()?, making).map_err(|_| Errno::EMFILE))?;
    Ok(LentFile { file, is_fresh, path, head: Bytes(head) })
}

/// Lends files that a node of this host has open; gives their numbers.
///
/// # Errors
/// `ENFILE`; `EPROTO` if there is not one descriptor for each.
pub(super) fn lend_passed(files: &[FileIdentity], passed: Vec<Own>) -> Result<Vec<u32>, Errno> {
    if files.len() != passed.len() {
        return Err(Errno::EPROTO);
    }
    let lent = &mut *lock(&LENT);
    files.iter().zip(passed).map(|(&identity, own)| lent.lend(identity, identity.is_fresh(), || Ok(own))).collect()
}

/// The node does not use it any more.
pub(super) fn take_back(file: u32) {
    if let Some(lent) = lock(&LENT).files.as_mut().and_then(|files| files.get_mut(&file)) {
        lent.is_used = false;
    }
}

/// Bytes of a file, or `errno`.
pub(super) fn read(file: u32, offset: u64, length: u32) -> Result<Bytes, i32> {
    let state = lock(&LENT);
    let lent = state.files.as_ref().and_then(|files| files.get(&file)).ok_or(libc::EBADF)?;
    // SAFETY: the descriptor is open as long as the files are locked.
    let descriptor = unsafe { BorrowedFd::borrow_raw(lent.descriptor.as_raw_fd()) };
    read_at(descriptor, offset, length.min(MAX_READ)).map(Bytes).map_err(|errno| errno as i32)
}

/// Up to so many bytes at an offset; less only at the end.
pub(super) fn read_at(file: BorrowedFd<'_>, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; length as usize];
    let mut done = 0;
    while done < bytes.len() {
        let at = i64::try_from(offset.saturating_add(done as u64)).map_err(|_| Errno::EINVAL)?;
        match nix::sys::uio::pread(file, &mut bytes[done..], at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

impl Files {
    fn lend(
        &mut self,
        identity: FileIdentity,
        is_fresh: bool,
        open: impl FnOnce() -> Result<Own, Errno>,
    ) -> Result<u32, Errno> {
        let files = self.files.get_or_insert_default();
        if !is_fresh && let Some((&number, known)) = files.iter_mut().find(|(_, lent)| lent.identity == identity) {
            known.is_used = true;
            return Ok(number);
        }
        if files.len() >= MANY {
            files.retain(|_, lent| lent.is_used);
        }
        if files.len() >= MOST {
            return Err(Errno::ENFILE);
        }
        let descriptor = open()?;
        let number = self.next;
        self.next = number.wrapping_add(1);
        files.insert(number, Lent { identity, descriptor, is_used: true });
        Ok(number)
    }

    /// The own descriptors that a child keeps.
    pub(super) fn kept(&self) -> impl Iterator<Item = RawFd> {
        self.files.iter().flat_map(HashMap::values).map(|lent| lent.descriptor.as_raw_fd())
    }
}
