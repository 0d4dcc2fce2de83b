//! Files of home that are mapped here, kept so that the next program finds their pages.

use super::object::{PageObject, Source};
use crate::wire::op::FileIdentity;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use vmm::machine::Machine;

/// Files that are kept though nobody maps them, each with a descriptor.
const KEPT: usize = 512;

/// The mapped files of a node.
pub struct FileCache {
    machine: Arc<Machine>,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    read: HashMap<FileIdentity, Arc<PageObject>>,
    written: HashMap<(u64, u64), Weak<PageObject>>,
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
        let mut files = self.files();
        if files.read.len() >= KEPT {
            files.read.retain(|_, object| Arc::strong_count(object) > 1);
        }
        files
            .read
            .entry(identity)
            .or_insert_with(|| {
                let source = Source::File { file: File::from(file), identity };
                Arc::new(PageObject::new(self.machine.clone(), source))
            })
            .clone()
    }

    /// The pages of a file that shared mappings write; all of this node show the same ones.
    pub fn writable(&self, identity: FileIdentity, file: OwnedFd) -> Arc<PageObject> {
        let mut files = self.files();
        files.written.retain(|_, object| object.strong_count() > 0);
        let key = (identity.device, identity.inode);
        if let Some(object) = files.written.get(&key).and_then(Weak::upgrade) {
            return object;
        }
        let source = Source::WritableFile { file: File::from(file), identity };
        let object = Arc::new(PageObject::new(self.machine.clone(), source));
        files.written.insert(key, Arc::downgrade(&object));
        object
    }

    /// Gives up the files that nobody maps: their frames are needed.
    pub fn shrink(&self) {
        self.files().read.retain(|_, object| Arc::strong_count(object) > 1);
    }
}
