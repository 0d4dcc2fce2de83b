//! Programs that run on another host than their home.
//!
//! The connection that becomes a program's link ([`procmig::wire::link`]) is made here, by both `skeind`, and given
//! away: at home to the deputy, at the other host to a node. Each side keeps the guard of its entry until the one who
//! has it closes the Unix connection by which it was given.

use super::link::{Handed, LinkError};
use super::wire::id::KeyId;
use super::wire::label::Label;
use super::wire::message::Load;
use crate::name::NodeName;
use procmig::wire::control::{Link, NodeRequest, ProcessStatus};
use procmig::wire::frame;
use procmig::wire::sealed::StreamKeys;
use std::fmt::Debug;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use tokio::io::AsyncReadExt;

/// The nodes of this host, as other hosts may use them. All of it may wait.
pub trait Nodes: Debug + Send + Sync {
    /// Connects with a node: this one, or the one with the fewest processes, which is launched if there is none.
    ///
    /// # Errors
    /// A sentence.
    fn connect(&self, node: Option<&NodeName>) -> Result<UnixStream, String>;

    /// The same for a process that is to migrate to it; says which it is, and where its socket is.
    ///
    /// # Errors
    /// A sentence.
    fn find(&self, node: Option<&NodeName>) -> Result<(NodeName, PathBuf), String>;

    /// How busy this host is.
    fn load(&self) -> Load;

    /// What runs here for the host of this name; for this one if there is none.
    fn guests(&self, home: Option<&Label>) -> Vec<(NodeName, ProcessStatus)>;
}

/// Gives a link to a node, and keeps it until the node has done with it.
///
/// # Errors
/// [`LinkError`]
pub async fn pass_on(handed: Handed, node: UnixStream, home: KeyId, home_name: &Label) -> Result<(), LinkError> {
    let about = |keys| NodeRequest::Link(Box::new(Link { keys, home: home.0, home_name: home_name.to_string() }));
    give(handed, node, about).await
}

/// Gives a node the connection on which a process comes from another host, and keeps it until that is over.
///
/// # Errors
/// [`LinkError`]
pub async fn pass_on_migration(handed: Handed, node: UnixStream) -> Result<(), LinkError> {
    give(handed, node, |keys| NodeRequest::Incoming(Box::new(keys))).await
}

/// Gives a connection to a node with a request, and keeps it until the node has done with it.
async fn give(
    handed: Handed,
    node: UnixStream,
    request: impl FnOnce(StreamKeys) -> NodeRequest,
) -> Result<(), LinkError> {
    let Handed { socket, keys, _guard } = handed;
    frame::send(&node, &request(keys), &[socket.as_raw_fd()])
        .map_err(|error| LinkError::Broken(io::Error::other(error)))?;
    // The guard has a duplicate: when it goes, and the node's is closed, the other side is told.
    drop(socket);
    node.set_nonblocking(true).map_err(LinkError::Broken)?;
    let mut node = tokio::net::UnixStream::from_std(node).map_err(LinkError::Broken)?;
    // It says nothing, unless it refuses, and then it is over as well.
    let _ = node.read(&mut [0]).await;
    Ok(())
}
