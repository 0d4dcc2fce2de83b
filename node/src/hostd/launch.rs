//! Starting the VMM process of a node.

use super::lock;
use crate::name::NodeName;
use crate::statedir::{StateDir, open_log};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a node may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line that a starting node may report.
const LONGEST_REPORT: usize = 4096;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Its name is taken.
    #[error("node {0} runs already; choose another --name, or stop it with: skein node stop {0}")]
    Taken(NodeName),
    /// A file, the socket or the process could not be made.
    #[error("cannot start node {name}")]
    Io {
        /// The node.
        name: NodeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said why it cannot run.
    #[error("node {name} cannot run: {why}")]
    Failed {
        /// The node.
        name: NodeName,
        /// Its sentence.
        why: String,
    },
    /// It ended or hung without a word.
    #[error("node {name} did not become ready; its log is {log}")]
    Silent {
        /// The node.
        name: NodeName,
        /// Path of the log.
        log: String,
    },
}

/// Starts a node and waits until it is ready.
///
/// # Errors
/// [`LaunchError`]; nothing of the node is left then but its log.
pub fn launch(state: &StateDir, name: &NodeName, memory: u64) -> Result<Child, LaunchError> {
    let io = |source| LaunchError::Io { name: name.clone(), source };
    let pid_path = state.node_pid(name);
    let mut lock = lock::take(&pid_path).map_err(io)?.ok_or_else(|| LaunchError::Taken(name.clone()))?;
    let socket = state.node_socket(name);
    let result = (|| {
        remove(&socket).map_err(io)?;
        let listener = UnixListener::bind(&socket).map_err(io)?;
        let log = open_log(&state.node_log(name)).map_err(io)?;
        let (report, ready) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| io(e.into()))?;
        let mut child = spawn(name, memory, &listener, &ready, &lock, log).map_err(io)?;
        drop(ready);
        let outcome = write_pid(&mut lock, child.id()).map_err(io).and_then(|()| await_ready(state, name, report));
        if outcome.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        outcome.map(|()| child)
    })();
    if result.is_err() {
        let _ = remove(&socket);
        let _ = remove(&pid_path);
    }
    // The VMM process holds the lock too; ours must not outlive it. Closing alone keeps its hold,
    // where unlocking would end it.
    close_without_unlocking(lock);
    result
}

fn close_without_unlocking(lock: nix::fcntl::Flock<File>) {
    // `Flock` unlocks when dropped, for every holder of this open file. A duplicate of the
    // descriptor cannot help; so the value is forgotten and its descriptor closed.
    let fd = lock.as_raw_fd();
    std::mem::forget(lock);
    let _ = nix::unistd::close(fd);
}

/// Removes a file that may not be there.
///
/// # Errors
/// As `unlink(2)`, but for `ENOENT`.
pub fn remove(path: &std::path::Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_pid(file: &mut File, pid: u32) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{pid}")
}

fn spawn(
    name: &NodeName,
    memory: u64,
    listener: &UnixListener,
    ready: &OwnedFd,
    lock: &File,
    log: File,
) -> io::Result<Child> {
    let inherited: [RawFd; 3] = [listener.as_raw_fd(), ready.as_raw_fd(), lock.as_raw_fd()];
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0("skein-node").arg("vmm").arg("--name").arg(name.as_str()).arg("--memory").arg(memory.to_string());
    for (option, fd) in ["--socket-fd", "--ready-fd", "--lock-fd"].into_iter().zip(inherited) {
        command.arg(option).arg(fd.to_string());
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    super::detach::detach(&mut command, inherited.to_vec());
    command.spawn()
}

fn await_ready(state: &StateDir, name: &NodeName, report: OwnedFd) -> Result<(), LaunchError> {
    let log = state.node_log(name).display().to_string();
    match read_line(report, PATIENCE) {
        Ok(Some(line)) if line == "ready" => Ok(()),
        Ok(Some(line)) => {
            let why = line.strip_prefix("error: ").unwrap_or(&line).to_owned();
            Err(LaunchError::Failed { name: name.clone(), why })
        }
        Ok(None) => Err(LaunchError::Silent { name: name.clone(), log }),
        Err(source) => Err(LaunchError::Io { name: name.clone(), source }),
    }
}

/// Reads one line from a pipe; `None` if it closes or `patience` ends before the line does.
///
/// # Errors
/// As `poll(2)` and `read(2)`.
pub fn read_line(pipe: OwnedFd, patience: Duration) -> io::Result<Option<String>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let deadline = Instant::now() + patience;
    let mut file = File::from(pipe);
    let mut line = Vec::new();
    while line.len() < LONGEST_REPORT {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(None),
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let mut chunk = [0; 256];
        let got = file.read(&mut chunk)?;
        if got == 0 {
            return Ok(None);
        }
        line.extend_from_slice(&chunk[..got]);
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
        }
    }
    Ok(None)
}
