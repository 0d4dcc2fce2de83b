//! What a host keeps of its cluster, in a directory that survives a reboot.
//!
//! ```text
//! host.key host.crt   this host's private key, which never leaves it, and its certificate (DER)
//! ca.crt              the cluster's certificate (DER)
//! ca.key              its private key: only where hosts are invited and removed
//! roster              the newest roster, with its signature
//! host.json           this host's name and where it listens
//! invitations.json    open invitations, as hashes
//! elsewhere.json      the hosts on which programs of this one run, and maybe some on which they have run
//! ```
//! A directory that has all of it appears at once, by a rename.

use super::invitations::Invitations;
use super::keys::{self, Authority, KeyError, PrivateKey};
use super::wire::id::KeyId;
use super::wire::label::Label;
use super::wire::roster::SignedRoster;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest file that is read.
const LARGEST: u64 = 4 << 20;

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read keys.
    #[error("other users may enter {} (mode {mode:04o}); run: chmod 700 {}", path.display(), path.display())]
    TooOpen {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is another user's.
    #[error("{} belongs to user {owner}; it must be yours", path.display())]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A file holds something else.
    #[error("{} is damaged; restore it from a backup, or leave the cluster and join again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// There is no place for it.
    #[error("cannot tell where to keep the cluster's keys; set HOME or XDG_STATE_HOME, or give --dir")]
    NoPlace,
}

/// What the host itself has chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostConfig {
    /// Its name in the cluster.
    pub name: Label,
    /// Where it listens.
    pub listen: SocketAddr,
}

/// All that a member keeps.
#[derive(Debug)]
pub struct Kept {
    /// This host's private key.
    pub key: PrivateKey,
    /// This host's certificate.
    pub certificate: Vec<u8>,
    /// The cluster's certificate.
    pub ca: Vec<u8>,
    /// The cluster's private key, where it is kept.
    pub authority: Option<Authority>,
    /// The newest roster.
    pub roster: SignedRoster,
    /// Name and address.
    pub host: HostConfig,
    /// Invitations.
    pub invitations: Invitations,
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// In this directory, which need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(path: &Path) -> impl Fn(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { path: path.clone(), source }
    }

    /// Reads all of it; `None` if this host is in no cluster.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn load(&self) -> Result<Option<Kept>, StoreError> {
        let about = match self.path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Self::io(&self.path))?,
        };
        let path = self.path.clone();
        if !about.is_dir() {
            return Err(StoreError::Damaged { path });
        }
        if about.uid() != nix::unistd::geteuid().as_raw() {
            return Err(StoreError::ForeignOwner { path, owner: about.uid() });
        }
        if about.mode() & 0o077 != 0 {
            return Err(StoreError::TooOpen { path, mode: about.mode() & 0o7777 });
        }
        let key = |name: &str, bytes: Vec<u8>| PrivateKey::from_pkcs8(bytes).map_err(|_: KeyError| self.damaged(name));
        let authority = match self.read("ca.key")? {
            Some(bytes) => Some(Authority::new(key("ca.key", bytes)?)),
            None => None,
        };
        let host_key = key("host.key", self.wanted("host.key")?)?;
        let certificate = self.wanted("host.crt")?;
        if keys::public_key(&certificate).ok() != Some(*host_key.public()) {
            return Err(self.damaged("host.crt"));
        }
        let ca = self.wanted("ca.crt")?;
        let ca_key = keys::public_key(&ca).map_err(|_| self.damaged("ca.crt"))?;
        if authority.as_ref().is_some_and(|authority| *authority.key().public() != ca_key) {
            return Err(self.damaged("ca.key"));
        }
        let roster: SignedRoster = postcard::from_bytes(&self.wanted("roster")?).map_err(|_| self.damaged("roster"))?;
        keys::open_roster(&roster, &ca_key).map_err(|_| self.damaged("roster"))?;
        let host = serde_json::from_slice(&self.wanted("host.json")?).map_err(|_| self.damaged("host.json"))?;
        let invitations = match self.read("invitations.json")? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| self.damaged("invitations.json"))?,
            None => Invitations::default(),
        };
        Ok(Some(Kept { key: host_key, certificate, ca, authority, roster, host, invitations }))
    }

    /// Writes all of it where nothing is yet.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn create(&self, kept: &Kept) -> Result<(), StoreError> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(Self::io(parent))?;
        let new = Self { path: self.path.with_extension("new") };
        // Of an attempt that was broken off.
        new.remove()?;
        DirBuilder::new().mode(0o700).create(&new.path).map_err(Self::io(&new.path))?;
        new.write("host.key", kept.key.pkcs8())?;
        new.write("host.crt", &kept.certificate)?;
        new.write("ca.crt", &kept.ca)?;
        if let Some(authority) = &kept.authority {
            new.write("ca.key", authority.key().pkcs8())?;
        }
        new.save_roster(&kept.roster)?;
        new.write("host.json", &serde_json::to_vec_pretty(&kept.host).expect("it can be written"))?;
        std::fs::rename(&new.path, &self.path).map_err(Self::io(&self.path))?;
        sync(parent).map_err(Self::io(parent))
    }

    /// Keeps a newer roster.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn save_roster(&self, roster: &SignedRoster) -> Result<(), StoreError> {
        self.write("roster", &postcard::to_stdvec(roster).expect("a roster can be written"))
    }

    /// Keeps the invitations.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn save_invitations(&self, invitations: &Invitations) -> Result<(), StoreError> {
        self.write("invitations.json", &serde_json::to_vec(invitations).expect("they can be written"))
    }

    /// The hosts on which programs of this one may run.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn load_elsewhere(&self) -> Result<BTreeSet<KeyId>, StoreError> {
        const NAME: &str = "elsewhere.json";
        match self.read(NAME)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| self.damaged(NAME)),
            None => Ok(BTreeSet::new()),
        }
    }

    /// Keeps them.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn save_elsewhere(&self, hosts: &BTreeSet<KeyId>) -> Result<(), StoreError> {
        // No program outlives the machine, and whoever starts one waits for this.
        self.replace("elsewhere.json", &serde_json::to_vec(hosts).expect("they can be written"), false)
    }

    /// Forgets all of it.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn remove(&self) -> Result<(), StoreError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Self::io(&self.path)(error)),
            _ => Ok(()),
        }
    }

    fn damaged(&self, name: &str) -> StoreError {
        StoreError::Damaged { path: self.path.join(name) }
    }

    fn wanted(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        self.read(name)?.ok_or_else(|| {
            Self::io(&self.path.join(name))(io::Error::new(io::ErrorKind::NotFound, "the file is missing"))
        })
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path.join(name);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Self::io(&path))?,
        };
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes).map_err(Self::io(&path))?;
        Ok(Some(bytes))
    }

    /// Replaces a file in one step, so that a crash leaves the old or the new.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.replace(name, bytes, true)
    }

    /// The same; what need not survive the machine does not wait for the disk.
    fn replace(&self, name: &str, bytes: &[u8], survives: bool) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&new).and_then(|mut file| {
            file.write_all(bytes)?;
            if survives {
                file.sync_all()?;
            }
            std::fs::rename(&new, &path)?;
            if survives { sync(&self.path) } else { Ok(()) }
        });
        written.map_err(Self::io(&path))
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::wire::level::CpuLevel;
    use crate::cluster::wire::roster::Roster;
    use std::os::unix::fs::PermissionsExt;

    fn kept() -> Kept {
        let authority = Authority::generate().unwrap();
        let key = PrivateKey::generate().unwrap();
        let roster = Roster {
            cluster: authority.key().id(),
            name: "c".parse().unwrap(),
            serial: 1,
            authority: key.id(),
            members: Vec::new(),
            removed: Vec::new(),
            cpu_level: CpuLevel::Level(1),
        };
        Kept {
            certificate: authority.issue(key.public()).unwrap(),
            ca: authority.certificate().unwrap(),
            roster: authority.seal(&roster),
            host: HostConfig { name: "h".parse().unwrap(), listen: "127.0.0.1:1".parse().unwrap() },
            invitations: Invitations::default(),
            authority: Some(authority),
            key,
        }
    }

    #[test]
    fn keys_are_the_users_alone_and_come_back() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::new(parent.path().join("a/cluster"));
        assert!(store.load().unwrap().is_none());
        let kept = kept();
        store.create(&kept).unwrap();
        store.save_invitations(&kept.invitations).unwrap();
        assert_eq!(store.path().metadata().unwrap().mode() & 0o7777, 0o700);
        for entry in std::fs::read_dir(store.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().mode() & 0o7777, 0o600, "{entry:?}");
        }
        let again = store.load().unwrap().unwrap();
        assert_eq!((again.key.id(), &again.host, &again.roster), (kept.key.id(), &kept.host, &kept.roster));
        std::fs::set_permissions(store.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(store.load(), Err(StoreError::TooOpen { mode: 0o750, .. })));
    }

    #[test]
    fn what_is_damaged_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::new(parent.path().join("cluster"));
        store.create(&kept()).unwrap();
        for name in ["host.key", "host.crt", "ca.crt", "ca.key", "roster", "host.json"] {
            let path = store.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            match store.load() {
                Err(StoreError::Damaged { path: named }) => assert_eq!(named, path),
                other => panic!("{name}: {other:?}"),
            }
            std::fs::write(&path, whole).unwrap();
        }
        std::fs::write(store.path().join("ca.key"), PrivateKey::generate().unwrap().pkcs8()).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Damaged { .. })), "the key of another authority");
    }
}
