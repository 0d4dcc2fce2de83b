//! Directories as values: made before a run, read after it.

use crate::case::Item;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// The modification time of everything that a case starts with: 2001-02-03 04:05:06 UTC.
const MADE_AT: TimeSpec = TimeSpec::new(981_173_106, 0);

/// What is seen of a file after a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `file`, `directory`, `link`, `fifo`, `socket` or `device`.
    pub kind: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// Hard links, of files.
    pub links: u64,
    /// A file's bytes or a link's target.
    pub content: Vec<u8>,
}

/// Makes `items` below `root`, with fixed modification times.
///
/// # Errors
/// Those of the file system.
pub fn make(root: &Path, items: &[(String, Item)]) -> io::Result<()> {
    fs::create_dir(root)?;
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    for (path, item) in items {
        let path = root.join(path);
        match item {
            Item::File(content, mode) => {
                fs::write(&path, content)?;
                fs::set_permissions(&path, Permissions::from_mode(*mode))?;
            }
            Item::Directory(mode) => {
                fs::create_dir(&path)?;
                fs::set_permissions(&path, Permissions::from_mode(*mode))?;
            }
            Item::Link(target) => symlink(target, &path)?,
        }
    }
    // Backwards, so that a directory's time is set after what is in it was made.
    for (path, _) in items.iter().rev() {
        set_time(&root.join(path))?;
    }
    set_time(root)
}

fn set_time(path: &Path) -> io::Result<()> {
    Ok(utimensat(AT_FDCWD, path, &MADE_AT, &MADE_AT, UtimensatFlags::NoFollowSymlink)?)
}

/// Reads everything below `root`: path relative to it → what is there.
///
/// # Errors
/// Those of the file system.
pub fn read(root: &Path) -> io::Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    read_into(root, "", &mut entries)?;
    Ok(entries)
}

fn read_into(directory: &Path, prefix: &str, entries: &mut BTreeMap<String, Entry>) -> io::Result<()> {
    for found in fs::read_dir(directory)? {
        let found = found?;
        let name = format!("{prefix}{}", found.file_name().to_string_lossy());
        let path = found.path();
        let metadata = fs::symlink_metadata(&path)?;
        let kind = metadata.file_type();
        let mut entry = Entry { kind: "device", mode: metadata.mode() & 0o7777, links: 1, content: Vec::new() };
        if kind.is_dir() {
            entry.kind = "directory";
            read_into(&path, &format!("{name}/"), entries)?;
        } else if kind.is_symlink() {
            entry.kind = "link";
            entry.content = fs::read_link(&path)?.into_os_string().into_encoded_bytes();
        } else if kind.is_file() {
            entry.kind = "file";
            entry.links = metadata.nlink();
            entry.content = fs::read(&path)?;
        } else if kind.is_fifo() {
            entry.kind = "fifo";
        } else if kind.is_socket() {
            entry.kind = "socket";
        }
        entries.insert(name, entry);
    }
    Ok(())
}
