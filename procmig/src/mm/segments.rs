//! System V segments of home that guests of this node have attached.

use super::object::{PageObject, Source};
use super::regions::{Backing, Region};
use super::shared::{Origin, Segment, SharedPages};
use super::space::{AddressSpace, MapRequest};
use crate::wire::inquiry::LastUse;
use nix::errno::Errno;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use vmm::machine::Machine;
use vmm::user_cpu::UserCpu;

/// The attached segments of a node, as [`FileCache`](super::file::FileCache) its files.
pub struct Segments {
    machine: Arc<Machine>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By identifier, and whether they may be written.
    objects: HashMap<(i32, bool), Weak<PageObject>>,
    /// Which process of this node has attached or detached a segment last.
    last: HashMap<i32, LastUse>,
}

/// A segment that a process has attached.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// Where in the deputy's memory.
    pub home: u64,
    /// Its pages.
    pub object: Arc<PageObject>,
    /// Its identifier.
    pub id: i32,
    /// Bytes, whole pages.
    pub length: u64,
}

impl Segments {
    /// No segments.
    pub fn new(machine: Arc<Machine>) -> Self {
        Self { machine, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic while the segments are locked")
    }

    /// The pages of a segment. The caller's deputy has it attached, so that the identifier stays its.
    ///
    /// # Errors
    /// As `shmat(2)`.
    pub fn object(&self, id: i32, writable: bool) -> Result<Arc<PageObject>, Errno> {
        let mut known = self.known();
        known.objects.retain(|_, object| object.strong_count() > 0);
        if let Some(object) = known.objects.get(&(id, writable)).and_then(Weak::upgrade) {
            return Ok(object);
        }
        let origin = Origin::Segment(Segment::attach(id, writable)?);
        let shared = SharedPages::new(origin, writable);
        let object = Arc::new(PageObject::new(self.machine.clone(), Source::Shared(shared)));
        known.objects.insert((id, writable), Arc::downgrade(&object));
        Ok(object)
    }

    /// Notes that a process has attached or detached a segment.
    pub fn note(&self, id: i32, pid: i32) {
        self.note_last(id, LastUse { pid, at: now() });
    }

    /// Notes who was the last to do so, as known elsewhere.
    pub fn note_last(&self, id: i32, by: LastUse) {
        let mut known = self.known();
        let Known { objects, last } = &mut *known;
        last.retain(|id, _| {
            [true, false].iter().any(|&w| objects.get(&(*id, w)).is_some_and(|object| object.strong_count() > 0))
        });
        last.insert(id, by);
    }

    /// How often this node itself has a segment attached, which is not to be seen, and which of its
    /// processes has attached or detached it last.
    pub fn own_use(&self, id: i32) -> (usize, Option<LastUse>) {
        let known = self.known();
        let attached = [true, false].iter().any(|&writable| known.objects.contains_key(&(id, writable)));
        (if attached { own_mappings(id) } else { 0 }, known.last.get(&id).copied())
    }
}

/// The host's monotonic clock in nanoseconds, the same for all nodes.
fn now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// Which process has attached or detached a segment last, as home's kernel says.
pub fn last_user(id: i32) -> Option<i32> {
    // SAFETY: the structure is plain data, which the kernel fills.
    let (found, about) = unsafe {
        let mut about: libc::shmid_ds = std::mem::zeroed();
        (libc::shmctl(id, libc::IPC_STAT, &mut about), about)
    };
    (found == 0).then_some(about.shm_lpid).filter(|&pid| pid > 0)
}

/// How often this process has a segment mapped. The kernel is asked, for it may join windows.
fn own_mappings(id: i32) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let is_segment = |line: &&str| {
        let mut words = line.split_ascii_whitespace().skip(4);
        let inode = words.next().and_then(|inode| inode.parse().ok());
        inode == Some(id) && words.next().is_some_and(|name| name.starts_with("/SYSV"))
    };
    maps.lines().filter(is_segment).count()
}

impl Attachment {
    /// Whether an area is what is left of the attachment that began at `start`.
    fn has(&self, start: u64, region: &Region) -> bool {
        let Backing::Object { object, offset } = &region.backing else { return false };
        Arc::ptr_eq(object, &self.object) && start.checked_add(*offset) == Some(region.start)
    }
}

impl AddressSpace {
    /// Maps a segment and returns where, and what it has replaced that was attached at the same place.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn attach(
        &self,
        request: MapRequest,
        attachment: Attachment,
        cpu: &mut UserCpu,
    ) -> Result<(u64, Option<Attachment>), Errno> {
        let inner = &mut *self.lock();
        let at = self.map_locked(inner, request, attachment.length, cpu)?;
        Ok((at, inner.segments.insert(at, attachment)))
    }

    /// Unmaps what is left of the segment that was attached at `address`, and gives up the attachment.
    ///
    /// # Errors
    /// `EINVAL` if there is none.
    pub fn detach_segment(&self, address: u64, cpu: &mut UserCpu) -> Result<Attachment, Errno> {
        let inner = &mut *self.lock();
        let attachment = inner.segments.remove(&address).ok_or(Errno::EINVAL)?;
        let left: Vec<_> = inner
            .regions
            .overlapping(address, address + attachment.length)
            .filter(|region| attachment.has(address, region))
            .map(|region| (region.start, region.end))
            .collect();
        for (start, end) in left {
            self.unmap_locked(inner, start, end, cpu)?;
        }
        Ok(attachment)
    }

    /// The attachments of which nothing is mapped any more, which are given up.
    pub fn take_unmapped_segments(&self) -> Vec<Attachment> {
        let inner = &mut *self.lock();
        if inner.segments.is_empty() {
            return Vec::new();
        }
        let regions = &inner.regions;
        let gone = |start: u64, attachment: &Attachment| {
            !regions.overlapping(start, start + attachment.length).any(|region| attachment.has(start, region))
        };
        let starts: Vec<u64> = inner
            .segments
            .iter()
            .filter(|&(&start, attachment)| gone(start, attachment))
            .map(|(&start, _)| start)
            .collect();
        starts.iter().filter_map(|start| inner.segments.remove(start)).collect()
    }
}
