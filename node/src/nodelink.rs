//! Asking a node, from a thread that may wait.

use crate::name::NodeName;
use crate::statedir::StateDir;
use procmig::wire::control::{MAX_MESSAGE, NodeReply, NodeRequest, NodeStatus, ProcessStatus};
use procmig::wire::frame::{self, FrameError};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a node may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same where something is to be done with what it answers: on a machine that is very busy it may take a while.
const LONG: Duration = Duration::from_secs(6);

/// Why a node gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens.
    #[error("node {name} is not running; see: skein node ls")]
    Down {
        /// The node.
        name: NodeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time or not properly.
    #[error("node {name} does not answer")]
    Silent {
        /// The node.
        name: NodeName,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// It said no.
    #[error("node {name}: {why}")]
    Refused {
        /// The node.
        name: NodeName,
        /// Its sentence.
        why: String,
    },
    /// It answered something else.
    #[error("node {name} answered another question; is it another version?")]
    Unexpected {
        /// The node.
        name: NodeName,
    },
}

/// Connects to a node's socket.
///
/// # Errors
/// [`LinkError::Down`]
pub fn connect(state: &StateDir, name: &NodeName) -> Result<UnixStream, LinkError> {
    UnixStream::connect(state.node_socket(name)).map_err(|source| LinkError::Down { name: name.clone(), source })
}

fn ask(state: &StateDir, name: &NodeName, request: &NodeRequest, patience: Duration) -> Result<NodeReply, LinkError> {
    let stream = connect(state, name)?;
    let silent = |source| LinkError::Silent { name: name.clone(), source };
    let timeouts = stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_write_timeout(Some(patience)));
    timeouts.map_err(|error| silent(error.into()))?;
    frame::send(&stream, request, &[]).map_err(silent)?;
    match frame::receive(&stream, MAX_MESSAGE).map_err(silent)?.0 {
        NodeReply::Refused(why) => Err(LinkError::Refused { name: name.clone(), why }),
        other => Ok(other),
    }
}

/// The state of a node.
///
/// # Errors
/// [`LinkError`]
pub fn status(state: &StateDir, name: &NodeName) -> Result<NodeStatus, LinkError> {
    match ask(state, name, &NodeRequest::Status, PATIENCE)? {
        NodeReply::Status(status) => Ok(status),
        _ => Err(LinkError::Unexpected { name: name.clone() }),
    }
}

/// The processes of a node.
///
/// # Errors
/// [`LinkError`]
pub fn processes(state: &StateDir, name: &NodeName) -> Result<Vec<ProcessStatus>, LinkError> {
    processes_within(state, name, PATIENCE)
}

fn processes_within(state: &StateDir, name: &NodeName, patience: Duration) -> Result<Vec<ProcessStatus>, LinkError> {
    match ask(state, name, &NodeRequest::Processes, patience)? {
        NodeReply::Processes(processes) => Ok(processes),
        _ => Err(LinkError::Unexpected { name: name.clone() }),
    }
}

/// The processes of nodes, in the order of these; all are asked at a time. Those of a node that does not answer are left
/// out.
pub fn processes_of(state: &StateDir, nodes: Vec<NodeName>) -> Vec<(NodeName, ProcessStatus)> {
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = |name| {
            let thread = std::thread::Builder::new();
            (thread.spawn_scoped(scope, move || processes_within(state, name, LONG)), name)
        };
        let asked: Vec<_> = nodes.iter().map(ask).collect();
        asked.into_iter().map(|(thread, name)| (thread.map(|thread| thread.join()), name)).collect()
    });
    let mut all = Vec::new();
    for (answer, name) in answers {
        match answer {
            Ok(Ok(Ok(processes))) => all.extend(processes.into_iter().map(|process| (name.clone(), process))),
            Ok(Ok(Err(error))) => tracing::warn!(error = procmig::chain(&error), "what runs in a node is not known"),
            Err(error) => tracing::warn!(node = %name, %error, "no thread to ask what runs in a node"),
            Ok(Err(_)) => tracing::error!(node = %name, "asking what runs in a node has failed"),
        }
    }
    all
}

/// Asks a node to stop; it may still be ending when this returns.
///
/// # Errors
/// [`LinkError::Refused`] if it has guests and `force` is not given.
pub fn stop(state: &StateDir, name: &NodeName, force: bool) -> Result<(), LinkError> {
    match ask(state, name, &NodeRequest::Stop { force }, PATIENCE)? {
        NodeReply::Done => Ok(()),
        _ => Err(LinkError::Unexpected { name: name.clone() }),
    }
}
