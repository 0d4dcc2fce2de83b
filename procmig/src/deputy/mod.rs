//! The deputy: the process at home that stands for a guest process.
//!
//! Its first thread serves the first call connection and every further thread one of its own; the
//! control thread relays signals and breaks off calls. Requests are executed as they come
//! (`execute`); what is not a system call is in `ops`.

mod buffer;
mod command_line;
mod connection;
mod control;
mod descriptors;
mod end;
mod execute;
mod files;
mod finding;
mod home_proc;
mod kernel;
mod lent;
mod link;
mod listing;
mod messages;
mod moving;
mod near;
mod numbers;
mod ops;
mod remaking;
mod report;
mod segments;
mod serve;
mod signals;
mod standard;
mod threads;

pub use end::LOST_STATUS;
pub use finding::{Finder, Found};
pub use report::{Report, Reporter};
pub use signals::inherited_signals;

use crate::wire::control::{Attach, HostId, NodeRequest};
use crate::wire::frame::{self, FrameError};
use crate::wire::sealed::StreamKeys;
use connection::Connection;
use descriptors::Own;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

/// What a deputy starts from.
#[derive(Debug)]
pub struct Setup {
    /// How the node is reached.
    pub node: Node,
    /// The name that messages to the user speak of: the node's, or its host's.
    pub node_name: String,
    /// The process to run. `ignored_signals` and `blocked_signals` are from [`inherited_signals`].
    pub attach: Attach,
    /// Where trace lines go.
    pub trace: Option<OwnedFd>,
    /// Who knows the way to nodes of other hosts, when the process migrates.
    pub finder: Option<Box<dyn Finder>>,
    /// For how many seconds a link with another host is made again that the network has lost.
    pub home_timeout: u32,
    /// Who is told what the process used, if `attach.report`.
    pub reporter: Option<Reporter>,
}

/// How a node is reached.
#[derive(Debug)]
pub enum Node {
    /// On this host, connected to its socket; becomes the control connection.
    Here(UnixStream),
    /// On another host.
    Elsewhere(Remote),
}

/// A link with a node of another host.
#[derive(Debug)]
pub struct Remote {
    /// The connection that `skeind` has handed over.
    pub socket: TcpStream,
    /// Its keys.
    pub keys: StreamKeys,
    /// The node's host.
    pub host: HostId,
    /// The connection with `skeind`, which keeps the link until this is closed.
    pub lease: UnixStream,
}

impl From<UnixStream> for Node {
    fn from(stream: UnixStream) -> Self {
        Self::Here(stream)
    }
}

/// Why a deputy could not start; once it has started it exits as the guest process does.
#[derive(Debug, thiserror::Error)]
pub enum DeputyError {
    /// Descriptors, signals or threads are short.
    #[error("this process cannot become a deputy")]
    Prepare(#[source] io::Error),
    /// The node did not take the request.
    #[error("the node cannot be told what to run")]
    Attach(#[source] FrameError),
}

/// Makes this process the deputy of a new guest process. Returns only if it could not start.
///
/// The calling thread must be the process's only one. It ends with the guest's exit status or signal,
/// or with [`LOST_STATUS`] if the node is gone.
pub fn run(setup: Setup) -> DeputyError {
    match start(setup) {
        Ok(server) => {
            server.serve();
            // The first thread of a process is never told to end alone.
            end::lost()
        }
        Err(error) => error,
    }
}

fn start(setup: Setup) -> Result<serve::Server, DeputyError> {
    let Setup { node, node_name, attach, trace, finder, home_timeout, reporter } = setup;
    remaking::set_patience(home_timeout);
    finding::ask(finder);
    *threads::lock(&end::NAMES) = (attach.argv.first().unwrap_or(&attach.program).clone(), node_name);
    let making = descriptors::making();
    signals::start(attach.ignored_signals, &making).map_err(DeputyError::Prepare)?;
    home_proc::start(&making).map_err(DeputyError::Prepare)?;
    let blocked = signals::stops_in(attach.blocked_signals);
    let (control, call) = match node {
        Node::Here(node) => {
            let (call, nodes) = descriptors::socketpair(&making).map_err(DeputyError::Prepare)?;
            let request = NodeRequest::Attach(Box::new(attach));
            frame::send(&node, &request, &[nodes.as_raw_fd()]).map_err(DeputyError::Attach)?;
            let node = Own::new(node.into(), &making).map_err(DeputyError::Prepare)?;
            (Connection::local(node), Connection::local(call))
        }
        Node::Elsewhere(remote) => link::start(remote, attach, &making).map_err(DeputyError::Attach)?,
    };
    if let Some(trace) = trace {
        control::TRACE.store(Own::new(trace, &making).map_err(DeputyError::Prepare)?.leak(), Ordering::Relaxed);
    }
    if let Some(reporter) = reporter {
        report::keep(reporter, &making).map_err(DeputyError::Prepare)?;
    }
    drop(making);
    let server = serve::Server::new(call, blocked).map_err(DeputyError::Prepare)?;
    control::start(control).map_err(DeputyError::Prepare)?;
    // Last, when every descriptor of the deputy's own has its place: the numbers are the guest's.
    standard::close_again();
    Ok(server)
}
