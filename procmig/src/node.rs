//! A node VM as a process: what `skeind` starts.

use crate::kernel::process::Presence;
use crate::kernel::{Kernel, KernelError, priority};
use crate::migration::wire::Reply;
use crate::migration::{adoption, source, target};
use crate::wire::control::{MAX_MESSAGE, MAX_REQUEST, NodeReply, NodeRequest, NodeStatus, VERSION};
use crate::wire::frame::{self, FrameError};
use crate::wire::stream::Stream;
use std::fs::File;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use vmm::addr::PAGE_SIZE;
use vmm::hypervisor::HypervisorError;
use vmm::machine::{Machine, MachineError};

/// Workers that are made before the node is ready.
const WARM_WORKERS: usize = 2;
/// How long a peer may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a node is set up.
#[derive(Debug)]
pub struct NodeConfig {
    /// Its name, unique on its host.
    pub name: String,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Where deputies and `skeind` connect, already listening.
    pub listener: UnixListener,
    /// One line is written here when the node is ready, then it is closed: `ready`, or `error: ` and a sentence.
    pub ready: Option<OwnedFd>,
}

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// No VM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The host refused a thread, or the listening socket failed.
    #[error("the host refused the node's threads or socket")]
    Io(#[from] io::Error),
}

/// Runs a node until it is stopped.
///
/// # Errors
/// If the VM cannot be made; who waits at `ready` is told, too.
pub fn serve(config: NodeConfig) -> Result<(), NodeError> {
    let started = Instant::now();
    priority::note_own();
    let NodeConfig { name, memory, listener, ready } = config;
    let made = start(name, memory);
    if let (Ok(kernel), Ok(own)) = (&made, listener.local_addr())
        && let Some(directory) = own.as_pathname().and_then(Path::parent)
        && let Err(error) = kernel.neighbours.settle(directory)
    {
        tracing::warn!(%error, "the processes of this node cannot be seen from others, nor theirs from here");
    }
    let line = match &made {
        Ok(_) => "ready\n".to_owned(),
        Err(error) => format!("error: {}\n", crate::chain(error)),
    };
    let start_micros = started.elapsed().as_micros() as u64;
    if let Some(ready) = ready
        && let Err(error) = File::from(ready).write_all(line.as_bytes())
    {
        tracing::debug!(%error, "nobody waits for the node");
    }
    let kernel = made?;
    let (stop, stopped) = channel();
    std::thread::Builder::new().name("accept".into()).stack_size(256 << 10).spawn({
        let kernel = kernel.clone();
        move || accept(&listener, &kernel, start_micros, &stop)
    })?;
    // An error means that the listener is gone, which ends the node too.
    let _ = stopped.recv();
    Ok(())
}

fn start(name: String, memory: u64) -> Result<Arc<Kernel>, NodeError> {
    let hypervisor = vmm::hypervisor::open()?;
    let machine = Machine::new(&*hypervisor, memory)?;
    let kernel = Kernel::new(name, machine)?;
    kernel.run()?;
    kernel.pool.warm(WARM_WORKERS).map_err(KernelError::from)?;
    Ok(kernel)
}

fn accept(listener: &UnixListener, kernel: &Arc<Kernel>, start_micros: u64, stop: &Sender<()>) {
    for connection in listener.incoming() {
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Mostly descriptors: others will be closed.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let (kernel, stop) = (kernel.clone(), stop.clone());
        let spawned = std::thread::Builder::new().name("connection".into()).stack_size(256 << 10).spawn(move || {
            priority::go_first();
            if let Err(error) = converse(connection, &kernel, start_micros, &stop) {
                tracing::warn!(error = %crate::chain(&error), "a connection is dropped");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a connection");
        }
    }
}

/// Serves one connection: a deputy that attaches, or requests one after the other.
fn converse(
    connection: UnixStream,
    kernel: &Arc<Kernel>,
    start_micros: u64,
    stop: &Sender<()>,
) -> Result<(), FrameError> {
    connection.set_read_timeout(Some(PATIENCE))?;
    loop {
        let (request, mut descriptors) = match frame::receive::<NodeRequest>(&connection, MAX_REQUEST) {
            Err(FrameError::Closed) => return Ok(()),
            // Who keeps a connection open and asks nothing is let go.
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        let reply = match request {
            NodeRequest::Attach(attach) => {
                if attach.version != VERSION {
                    let sentence = format!("this node speaks protocol {VERSION}, the caller {}", attach.version);
                    return frame::send(&connection, &NodeReply::Refused(sentence), &[]);
                }
                let Some(call) = descriptors.pop() else {
                    let sentence = "a deputy must pass its call connection".to_owned();
                    return frame::send(&connection, &NodeReply::Refused(sentence), &[]);
                };
                connection.set_read_timeout(None)?;
                if let Err(error) =
                    kernel.start_process(*attach, connection.into(), UnixStream::from(call).into(), None)
                {
                    tracing::warn!(error = %crate::chain(&error), "a process could not be started");
                }
                return Ok(());
            }
            NodeRequest::Receive(offer) => return target::receive(kernel, &mut connection.into(), &offer, None),
            NodeRequest::Join { ticket, stream } => {
                let mut connection = Stream::from(connection);
                // One from another host has its keys.
                let gathering = kernel.gatherings.find(&ticket).filter(|gathering| gathering.secret().is_none());
                let Some(gathering) = gathering else {
                    let sentence = "no process arrives with this ticket".to_owned();
                    return connection.send_message(&Reply::Refused(sentence), &[]);
                };
                return gathering.serve(kernel, &mut connection, stream);
            }
            NodeRequest::Incoming(keys) => {
                let Some(socket) = descriptors.pop() else {
                    let sentence = "a connection must be passed".to_owned();
                    return frame::send(&connection, &NodeReply::Refused(sentence), &[]);
                };
                // `connection` is closed when it is over, which is what `skeind` waits for.
                return target::receive_from_afar(kernel, TcpStream::from(socket), *keys);
            }
            NodeRequest::Adopt(adopt) => {
                return adoption::serve(kernel, connection.into(), adopt, descriptors, None);
            }
            NodeRequest::Migrate(order) => {
                let tell = &mut |event| {
                    // Who has asked may be gone; the migration goes on.
                    let _ = frame::send(&connection, &NodeReply::Migration(event), &[]);
                };
                match source::migrate(kernel, &order, descriptors.pop(), tell) {
                    Ok(record) => NodeReply::Migrated(record),
                    Err(error) => NodeReply::Refused(crate::chain(&error)),
                }
            }
            NodeRequest::Link(about) => {
                let Some(socket) = descriptors.pop() else {
                    let sentence = "a link must be passed".to_owned();
                    return frame::send(&connection, &NodeReply::Refused(sentence), &[]);
                };
                // Closed when the link has ended, which is what `skeind` waits for.
                if let Err(error) = kernel.serve_link(&about, TcpStream::from(socket)) {
                    tracing::warn!(error = %crate::chain(&error), home = about.home_name, "a link with another host");
                }
                return Ok(());
            }
            NodeRequest::Inquire(inquiry) => {
                frame::send(&connection, &NodeReply::Told(kernel.answer(&inquiry)), &[])?;
                continue;
            }
            NodeRequest::Status => NodeReply::Status(status(kernel, start_micros)),
            NodeRequest::Processes => {
                let mut all = kernel.processes();
                all.retain(|process| process.presence() != Presence::Gone);
                let mut all: Vec<_> = all.iter().map(|process| process.status()).collect();
                let room = command_room(all.len());
                for process in &mut all {
                    process.command.truncate(process.command.floor_char_boundary(room));
                }
                NodeReply::Processes(all)
            }
            NodeRequest::Stop { force } => {
                if kernel.stop(force) {
                    frame::send(&connection, &NodeReply::Done, &[])?;
                    let _ = stop.send(());
                    return Ok(());
                }
                NodeReply::Refused(match kernel.processes().len() {
                    0 => "a process that has left it still needs memory of it; wait until mosmigrate is done, or \
                          stop it with --force"
                        .to_owned(),
                    count => format!("the node runs {count} processes; end them, or stop it with --force"),
                })
            }
        };
        debug_assert!(frame::encode(&reply).is_ok_and(|bytes| bytes.len() <= MAX_MESSAGE));
        frame::send(&connection, &reply, &[])?;
    }
}

/// Most bytes of each process's command line, so that the list of so many goes into one message whatever
/// the programs have made of theirs.
fn command_room(processes: usize) -> usize {
    /// Bytes of everything else that is told of a process, and more.
    const REST: usize = 256;
    const MOST: usize = 4096;
    (MAX_MESSAGE / processes.max(1)).saturating_sub(REST).min(MOST)
}

fn status(kernel: &Kernel, start_micros: u64) -> NodeStatus {
    let machine = &kernel.machine;
    let frames = machine.frames();
    NodeStatus {
        name: kernel.name.clone(),
        vmm_pid: std::process::id() as i32,
        memory: machine.ram().size(),
        memory_used: u64::from(frames.total() - frames.free()) * PAGE_SIZE,
        processes: kernel.processes().len() as u32,
        threads: kernel.thread_count() as u32,
        entry: machine.entry_mode().to_string(),
        paging: machine.paging().to_string(),
        start_micros,
        uptime_seconds: kernel.ready.elapsed().as_secs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::ProcessStatus;
    use crate::wire::usage::Usage;

    #[test]
    fn a_list_of_long_command_lines_fits_into_a_message() {
        for count in [1, 100, 3000] {
            let process = ProcessStatus {
                pid: i32::MAX,
                parent: i32::MAX,
                name: "fifteen-letters".to_owned(),
                command: "x".repeat(command_room(count)),
                threads: u32::MAX,
                resident: u64::MAX >> 20,
                virtual_size: u64::MAX >> 16,
                usage: Usage::default(),
                children: Usage::default(),
                state: 'R',
                uid: u32::MAX,
                home: Some("a-name".repeat(10)),
                job: Some(u32::MAX),
                arriving: false,
            };
            let bytes = frame::encode(&NodeReply::Processes(vec![process; count])).expect("a message");
            assert!(bytes.len() <= MAX_MESSAGE, "{count} processes: {} bytes", bytes.len());
        }
    }
}
