//! Pages that several mappings show: of a file, or of memory that processes share.

use super::lent::LentFile;
use super::shared::{Origin, SharedPages};
use crate::wire::op::FileIdentity;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};
use vmm::accounts::Account;
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::frames::{AtLimit, Shortage};
use vmm::machine::Machine;
use vmm::windows::WindowError;

/// Pages of a file of another host that are fetched at once, at most.
const AT_ONCE: u64 = 64;

/// Why a page of an object cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The page lies beyond the end of the file (`SIGBUS`).
    #[error("beyond the end of the file")]
    BeyondEnd,
    /// The file cannot be read (`SIGBUS`).
    #[error("the file cannot be read")]
    Io(#[from] io::Error),
    /// No frame is left.
    #[error(transparent)]
    Shortage(#[from] Shortage),
}

impl From<WindowError> for ObjectError {
    fn from(error: WindowError) -> Self {
        match error {
            WindowError::OutOfFrames | WindowError::TooMany => Self::Shortage(Shortage::Node(vmm::frames::OutOfFrames)),
            WindowError::Host(error) => Self::Io(error),
        }
    }
}

/// Where the bytes of an object come from.
#[derive(Debug)]
pub enum Source {
    /// Zeros: shared memory.
    Zeros,
    /// A file that is only read; the pages show the state of it that `identity` names.
    File {
        /// At home.
        file: File,
        /// What it was when it was mapped.
        identity: FileIdentity,
    },
    /// A file of another host, likewise.
    Lent {
        /// Where its bytes come from.
        file: LentFile,
        /// What it was when it was mapped.
        identity: FileIdentity,
    },
    /// The host's own pages of what is shared with home.
    Shared(SharedPages),
}

/// Pages that several mappings show. The object is a user of each frame that it holds.
#[derive(Debug)]
pub struct PageObject {
    machine: Handle,
    source: Source,
    pages: Mutex<BTreeMap<u64, Frame>>,
    /// To which its frames are charged: those of files, which can be had again, are nobody's.
    account: Account,
}

/// A machine, which has no useful debugging output.
struct Handle(Arc<Machine>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Machine")
    }
}

impl PageObject {
    /// An object without pages, whose frames are nobody's.
    pub fn new(machine: Arc<Machine>, source: Source) -> Self {
        Self::charged(machine, source, Account::default())
    }

    /// An object without pages, whose frames are charged to an account.
    pub fn charged(machine: Arc<Machine>, source: Source, account: Account) -> Self {
        Self { machine: Handle(machine), source, pages: Mutex::default(), account }
    }

    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Frame>> {
        self.pages.lock().expect("no panic while the pages are locked")
    }

    /// Puts a frame in the place of a page, of which the caller gives its user to the object.
    pub fn insert(&self, page: u64, frame: Frame) {
        if let Some(old) = self.pages().insert(page, frame) {
            self.machine.0.frames().release(old);
        }
    }

    /// Which file it is, if it is one.
    pub fn identity(&self) -> Option<&FileIdentity> {
        match &self.source {
            Source::File { identity, .. } | Source::Lent { identity, .. } => Some(identity),
            Source::Shared(shared) => match shared.origin() {
                Origin::File(_, identity) => Some(identity),
                Origin::Segment(_) => None,
            },
            Source::Zeros => None,
        }
    }

    /// The file that it shows a state of, to be passed to another node.
    pub fn read_file(&self) -> Option<(&File, &FileIdentity)> {
        if let Source::File { file, identity } = &self.source { Some((file, identity)) } else { None }
    }

    /// Whether its pages are nothing but memory of this node.
    pub fn is_memory(&self) -> bool {
        matches!(self.source, Source::Zeros)
    }

    /// The frame of a page, if it has it; a name, not to be accessed.
    pub fn frame(&self, page: u64) -> Option<Frame> {
        match &self.source {
            Source::Shared(shared) => shared.frame(page),
            _ => self.pages().get(&page).copied(),
        }
    }

    /// The pages that it has, in order.
    pub fn frames(&self) -> Vec<(u64, Frame)> {
        self.pages().iter().map(|(&page, &frame)| (page, frame)).collect()
    }

    /// What it shares with home, if it does.
    pub fn shared(&self) -> Option<&SharedPages> {
        if let Source::Shared(shared) = &self.source { Some(shared) } else { None }
    }

    /// Who lends it, if it is a file of another host.
    pub fn lent(&self) -> Option<&LentFile> {
        if let Source::Lent { file, .. } = &self.source { Some(file) } else { None }
    }

    /// The machine whose frames it holds.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine.0
    }

    /// Bytes of the file as it was when it was mapped, or `None` where there is no end.
    fn size(&self) -> Option<u64> {
        match &self.source {
            Source::File { identity, .. } | Source::Lent { identity, .. } => Some(identity.size),
            _ => None,
        }
    }

    /// The frames of those pages in `wanted` that can be had, in order, with one more user each.
    /// Page `needed`, which is in `wanted` and is to be written if `write`, is among them.
    ///
    /// # Errors
    /// If page `needed` cannot be had.
    pub fn get(
        &self,
        wanted: Range<u64>,
        needed: u64,
        write: bool,
        at_limit: AtLimit,
    ) -> Result<Vec<(u64, Frame)>, ObjectError> {
        let machine = &self.machine.0;
        if let Source::Shared(shared) = &self.source {
            return shared.get(machine, wanted, needed, write);
        }
        let mut wanted = wanted;
        if let Some(size) = self.size() {
            wanted.end = wanted.end.min(size.div_ceil(PAGE_SIZE));
            if needed >= wanted.end {
                return Err(ObjectError::BeyondEnd);
            }
        }
        let asked = wanted.clone();
        let frames = self.machine.0.frames();
        let is_short = self.account.is_limited() || frames.free() <= frames.total() / 16;
        if let Source::Lent { identity, .. } = &self.source
            && !is_short
        {
            // More at once, for the way is long.
            wanted.start = wanted.start / AT_ONCE * AT_ONCE;
            wanted.end = wanted.end.next_multiple_of(AT_ONCE).min(identity.size.div_ceil(PAGE_SIZE));
        }
        let mut pages = self.pages();
        let mut missing: Vec<u64> = wanted.clone().filter(|page| !pages.contains_key(page)).collect();
        if matches!(self.source, Source::Zeros) && is_short {
            // More at once would save faults, but takes frames that may not be used.
            missing.retain(|&page| page == needed);
        }
        let mut i = 0;
        while i < missing.len() {
            let run = missing[i..].iter().zip(missing[i]..).take_while(|(page, expected)| *page == expected).count();
            match self.read(missing[i], run, at_limit) {
                Ok(frames) => pages.extend((missing[i]..).zip(frames)),
                Err(error) if (missing[i]..missing[i] + run as u64).contains(&needed) => return Err(error),
                Err(_) => {}
            }
            i += run;
        }
        let found: Vec<_> = pages.range(asked).map(|(&page, &frame)| (page, frame)).collect();
        for &(_, frame) in &found {
            machine.frames().share(frame);
        }
        Ok(found)
    }

    /// The frames in `wanted` that are here already, with one more user each, at most `limit`.
    pub fn cached(&self, wanted: Range<u64>, limit: usize) -> Vec<(u64, Frame)> {
        if let Source::Shared(shared) = &self.source {
            return shared.cached(&self.machine.0, wanted, limit);
        }
        let found: Vec<_> = self.pages().range(wanted).map(|(&page, &frame)| (page, frame)).take(limit).collect();
        for &(_, frame) in &found {
            self.machine.0.frames().share(frame);
        }
        found
    }

    fn read(&self, first: u64, count: usize, at_limit: AtLimit) -> Result<Vec<Frame>, ObjectError> {
        let machine = &self.machine.0;
        let mut frames = Vec::with_capacity(count);
        let result = (|| {
            for _ in 0..count {
                frames.push(machine.frames().allocate_for(self.account, at_limit)?);
            }
            let mut buffer = Vec::new();
            let mut read_up_to = |read: &dyn Fn(&mut [u8], u64) -> io::Result<usize>| {
                buffer = vec![0; count * PAGE_SIZE as usize];
                read_up_to(read, &mut buffer, first * PAGE_SIZE)
            };
            let length = match &self.source {
                Source::File { file, .. } => Some(read_up_to(&|buffer, at| file.read_at(buffer, at))?),
                Source::Lent { file, .. } => Some(read_up_to(&|buffer, at| file.read_at(buffer, at))?),
                _ => None,
            };
            if let Some(length) = length {
                for (chunk, frame) in buffer[..length].chunks(PAGE_SIZE as usize).zip(&frames) {
                    machine.ram().write(frame.address(), chunk);
                }
            }
            Ok(())
        })();
        match result {
            Ok(()) => Ok(frames),
            Err(error) => {
                machine.frames().release_all(&frames);
                Err(error)
            }
        }
    }
}

fn read_up_to(read: &dyn Fn(&mut [u8], u64) -> io::Result<usize>, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match read(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

impl Drop for PageObject {
    fn drop(&mut self) {
        let frames: Vec<_> = std::mem::take(&mut *self.pages()).into_values().collect();
        self.machine.0.frames().release_all(&frames);
    }
}
