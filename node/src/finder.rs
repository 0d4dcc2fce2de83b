//! How a deputy asks `skeind` for the way to a node that its process is to migrate to.

use crate::cluster::wire::id::KeyId;
use crate::hostd::protocol::{self, HostReply, HostRequest};
use crate::name::BadName;
use crate::statedir::StateDir;
use procmig::deputy::{Finder, Found};
use procmig::wire::control::HostId;
use std::path::{Path, PathBuf};

/// The `skeind` of a state directory.
#[derive(Debug)]
pub struct HostFinder {
    state: StateDir,
    socket: PathBuf,
}

impl HostFinder {
    /// Of this one.
    pub fn new(state: StateDir) -> Self {
        Self { socket: state.host_socket(), state }
    }
}

impl Finder for HostFinder {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn question(&self, host: Option<&HostId>, node: &str) -> Result<Vec<u8>, String> {
        let node = node.parse().map_err(|error: BadName| error.to_string())?;
        let request = HostRequest::Reach { host: host.copied().map(KeyId), node };
        protocol::encode(&request).map_err(|error| error.to_string())
    }

    fn answer(&self, body: &[u8]) -> Result<Found, String> {
        match protocol::decode(body)? {
            HostReply::Node(node) => Ok(Found::Here(self.state.node_socket(&node.name))),
            HostReply::Link { keys, .. } => Ok(Found::There(keys)),
            HostReply::Nowhere(why) => Ok(Found::Nowhere(why)),
            HostReply::Refused(why) => Err(why),
            _ => Err("the host answered another question".to_owned()),
        }
    }
}
