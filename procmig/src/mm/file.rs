//! Files of home that are mapped here, kept so that the next program finds their pages.

use super::lent::LentFile;
use super::object::{PageObject, Source};
use super::shared::{Origin, SharedPages};
use crate::wire::op::FileIdentity;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use vmm::machine::Machine;

/// Files that are kept though nobody maps them, each with a descriptor.
const KEPT: usize = 512;

/// The same file, opened anew: locks (`flock`) belong to what the guest has opened, and would stay with what
/// the node keeps.
fn of_our_own(file: OwnedFd, writable: bool) -> File {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // A file with a lease would have to be waited for.
    let opened = OpenOptions::new().read(true).write(writable).custom_flags(libc::O_NONBLOCK).open(path);
    opened.unwrap_or_else(|_| File::from(file))
}

/// The mapped files of a node.
pub struct FileCache {
    machine: Arc<Machine>,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    /// By number of the home, 0 for this host.
    read: HashMap<(u32, FileIdentity), Arc<PageObject>>,
    /// By device and inode, and whether they may be written.
    shared: HashMap<(u64, u64, bool), Weak<PageObject>>,
}

impl FileCache {
    /// No files.
    pub fn new(machine: Arc<Machine>) -> Self {
        Self { machine, files: Mutex::default() }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("no panic while the files are locked")
    }

    /// The pages of a file in the state that `identity` names; `file` is kept if it is new.
    pub fn read_only(&self, identity: FileIdentity, file: OwnedFd) -> Arc<PageObject> {
        if identity.is_fresh() {
            // It may change again with the same times.
            let source = Source::File { file: of_our_own(file, false), identity };
            return Arc::new(PageObject::new(self.machine.clone(), source));
        }
        self.keep((0, identity), || Source::File { file: of_our_own(file, false), identity })
    }

    /// The same of a file of the host with the number `home`, to which who has it is to be added. If that is this host
    /// it may be open here, and has no lenders then.
    pub fn lent(&self, home: u32, identity: FileIdentity, is_fresh: bool) -> Arc<PageObject> {
        let source = || Source::Lent { file: LentFile::default(), identity };
        let new = || Arc::new(PageObject::new(self.machine.clone(), source()));
        if is_fresh {
            return new();
        }
        if home == 0 {
            // Others, to whom the file is passed, are not to depend on who lends it.
            return self.files().read.get(&(0, identity)).cloned().unwrap_or_else(new);
        }
        self.keep((home, identity), source)
    }

    fn keep(&self, key: (u32, FileIdentity), source: impl FnOnce() -> Source) -> Arc<PageObject> {
        let mut files = self.files();
        if files.read.len() >= KEPT {
            files.read.retain(|_, object| Arc::strong_count(object) > 1);
        }
        let new = || Arc::new(PageObject::new(self.machine.clone(), source()));
        files.read.entry(key).or_insert_with(new).clone()
    }

    /// The host's own pages of a file, for shared mappings: all of this node show the same ones.
    pub fn shared(&self, identity: FileIdentity, file: OwnedFd, writable: bool) -> Arc<PageObject> {
        let mut files = self.files();
        files.shared.retain(|_, object| object.strong_count() > 0);
        let key = (identity.device, identity.inode, writable);
        if let Some(object) = files.shared.get(&key).and_then(Weak::upgrade) {
            return object;
        }
        let origin = Origin::File(of_our_own(file, writable), identity);
        let shared = SharedPages::new(origin, writable);
        let object = Arc::new(PageObject::new(self.machine.clone(), Source::Shared(shared)));
        files.shared.insert(key, Arc::downgrade(&object));
        object
    }

    /// The pages of a file that is mapped to be written: its times do not tell what was written since.
    pub fn written(&self, identity: &FileIdentity) -> Option<Arc<PageObject>> {
        self.files().shared.get(&(identity.device, identity.inode, true)).and_then(Weak::upgrade)
    }

    /// Gives up the files that nobody maps: their frames are needed.
    pub fn shrink(&self) {
        self.files().read.retain(|_, object| Arc::strong_count(object) > 1);
    }
}
