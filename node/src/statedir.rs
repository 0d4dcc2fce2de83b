//! The state directory of a host: sockets, PID files and logs.
//!
//! ```text
//! skeind.lock   flock held by skeind while it runs: the truth of whether it runs
//! skeind.sock   its control socket          skeind.pid   its PID, for people
//! skeind.log    its log
//! nodes/NAME.sock   the node's socket       nodes/NAME.pid   its PID; flock held by its VMM process
//! nodes/NAME.log    its log
//! nodes/whereabouts for each PID of home, which node has taken it last
//! cluster/          certificate and keys, where the directory was chosen by --dir or SKEIN_DIR
//! ```
//! Whoever can write here can run programs as the user, so the directory must be the user's alone.

use crate::name::NodeName;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest path of a socket: `sun_path` less its final NUL.
const LONGEST_SOCKET: usize = 107;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It could not be made or looked at.
    #[error("cannot use the state directory {}; name another with --dir or SKEIN_DIR", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is not a directory; name one with --dir or SKEIN_DIR", path.display())]
    NotADirectory {
        /// What is there.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}; name a directory of your own with --dir or SKEIN_DIR", path.display())]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others may enter it.
    #[error("other users may enter {} (mode {mode:04o}); run: chmod 700 {}", path.display(), path.display())]
    TooOpen {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Sockets in it would have too long an address.
    #[error("the path {} is too long for sockets; name a shorter one with --dir or SKEIN_DIR", path.display())]
    TooLong {
        /// The directory.
        path: PathBuf,
    },
}

/// A state directory that has been found safe.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Where the state is: `given` (`--dir`), else `$SKEIN_DIR`, else `$XDG_RUNTIME_DIR/skein`,
    /// else `/tmp/skein-UID`.
    pub fn place(given: Option<&Path>) -> PathBuf {
        if let Some(path) = given {
            return path.to_owned();
        }
        variable("SKEIN_DIR").unwrap_or_else(Self::usual_place)
    }

    fn usual_place() -> PathBuf {
        match variable("XDG_RUNTIME_DIR") {
            Some(path) if path.is_dir() => path.join("skein"),
            _ => PathBuf::from(format!("/tmp/skein-{}", nix::unistd::geteuid())),
        }
    }

    /// Where certificate and keys of the cluster are. The usual state directory does not survive a reboot, so with it
    /// they are in `$XDG_STATE_HOME/skein/cluster`, else `~/.local/state/skein/cluster`; below a directory that was
    /// chosen, they are in its `cluster`. `None` if there is no home to be found.
    pub fn cluster(&self) -> Option<PathBuf> {
        if Self::usual_place().canonicalize().ok().as_deref() != Some(&self.path) {
            return Some(self.path.join("cluster"));
        }
        let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
        let state = state.or_else(|| Some(variable("HOME")?.join(".local/state")));
        state.map(|state| state.join("skein").join("cluster"))
    }

    /// Opens the directory at [`Self::place`] and makes it if it is not there.
    ///
    /// # Errors
    /// [`StateDirError`] says what to do.
    pub fn open(given: Option<&Path>) -> Result<Self, StateDirError> {
        let path = Self::place(given);
        let io = |source| StateDirError::Io { path: path.clone(), source };
        for directory in [path.clone(), path.join("nodes")] {
            match DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
                _ => check(&directory)?,
            }
        }
        // Commands may run in any directory, so what they show and pass on must not be relative.
        let absolute = path.canonicalize().map_err(io)?;
        if absolute.as_os_str().len() + "/nodes/.sock".len() + 32 > LONGEST_SOCKET {
            return Err(StateDirError::TooLong { path: absolute });
        }
        Ok(Self { path: absolute })
    }

    /// As [`Self::open`], but makes nothing: `None` if the directory is not there.
    ///
    /// # Errors
    /// [`StateDirError`] says what to do.
    pub fn find(given: Option<&Path>) -> Result<Option<Self>, StateDirError> {
        match Self::place(given).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::open(given).map(Some),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The control socket of `skeind`.
    pub fn host_socket(&self) -> PathBuf {
        self.path.join("skeind.sock")
    }

    /// The file whose lock says that `skeind` runs.
    pub fn host_lock(&self) -> PathBuf {
        self.path.join("skeind.lock")
    }

    /// The PID of `skeind`, for people.
    pub fn host_pid(&self) -> PathBuf {
        self.path.join("skeind.pid")
    }

    /// The log of `skeind`.
    pub fn host_log(&self) -> PathBuf {
        self.path.join("skeind.log")
    }

    /// The socket of a node.
    pub fn node_socket(&self, name: &NodeName) -> PathBuf {
        self.node_file(name, "sock")
    }

    /// The PID of a node's VMM process, which holds a lock on this file while it lives.
    pub fn node_pid(&self, name: &NodeName) -> PathBuf {
        self.node_file(name, "pid")
    }

    /// The log of a node.
    pub fn node_log(&self, name: &NodeName) -> PathBuf {
        self.node_file(name, "log")
    }

    fn node_file(&self, name: &NodeName, kind: &str) -> PathBuf {
        self.path.join("nodes").join(format!("{name}.{kind}"))
    }

    /// Names of the nodes that have a socket or a PID file here, alive or not, in order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn nodes(&self) -> io::Result<Vec<NodeName>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path.join("nodes"))? {
            let path = PathBuf::from(entry?.file_name());
            let kind = path.extension().and_then(|kind| kind.to_str());
            let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if let (Some("sock" | "pid"), Some(name)) = (kind, name) {
                names.push(name);
            }
        }
        names.sort_by_key(NodeName::sort_key);
        names.dedup();
        Ok(names)
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Refuses a directory that is not the user's alone.
fn check(path: &Path) -> Result<(), StateDirError> {
    let path = path.to_owned();
    let about = match path.symlink_metadata() {
        Ok(about) => about,
        Err(source) => return Err(StateDirError::Io { path, source }),
    };
    if !about.is_dir() {
        return Err(StateDirError::NotADirectory { path });
    }
    if about.uid() != nix::unistd::geteuid().as_raw() {
        return Err(StateDirError::ForeignOwner { path, owner: about.uid() });
    }
    if about.mode() & 0o077 != 0 {
        return Err(StateDirError::TooOpen { path, mode: about.mode() & 0o7777 });
    }
    Ok(())
}

/// Opens a log to append to.
///
/// # Errors
/// As `open(2)`.
pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let state = StateDir::open(Some(&path)).unwrap();
        assert_eq!(state.path().metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(StateDir::open(Some(&path)), Err(StateDirError::TooOpen { mode: 0o750, .. })));
    }

    #[test]
    fn a_link_or_a_file_is_no_state_directory() {
        let parent = tempfile::tempdir().unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert!(matches!(StateDir::open(Some(&link)), Err(StateDirError::NotADirectory { .. })));
        assert!(StateDir::find(Some(&parent.path().join("none"))).unwrap().is_none());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x".repeat(90));
        assert!(matches!(StateDir::open(Some(&path)), Err(StateDirError::TooLong { .. })));
    }

    #[test]
    fn only_files_of_nodes_are_nodes() {
        let parent = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(&parent.path().join("s"))).unwrap();
        for file in ["node-10.sock", "node-2.pid", "node-2.sock", "node-3.log", ".x.sock", "README"] {
            std::fs::write(state.path().join("nodes").join(file), "").unwrap();
        }
        let names: Vec<String> = state.nodes().unwrap().into_iter().map(String::from).collect();
        assert_eq!(names, ["node-2", "node-10"]);
    }
}
