//! The commands' side of the control socket.

use crate::hostd::launch::read_line;
use crate::hostd::lock;
use crate::hostd::protocol::{self, HostReply, HostRequest, HostStatus, MAX_REPLY, Migrate, NodeEntry, Place};
use crate::statedir::{StateDir, open_log};
use anyhow::{Context, bail};
use procmig::deputy::Remote;
use procmig::migration::record::{Event, Record};
use procmig::wire::frame;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long `skeind` may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take: a stop of many nodes takes longest.
const ANSWER: Duration = Duration::from_secs(60);

/// Where a new process shall run.
#[derive(Debug)]
pub enum Placed {
    /// In this node of this host.
    Here(NodeEntry),
    /// On another host.
    There {
        /// Its name.
        host: String,
        /// The link with its node.
        remote: Remote,
    },
}

/// A connection to `skeind`.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects; `None` if no `skeind` runs.
    pub fn connect(state: &StateDir) -> anyhow::Result<Option<Self>> {
        match UnixStream::connect(state.host_socket()) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_write_timeout(Some(ANSWER))?;
                Ok(Some(Self { stream }))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot reach the host at {}", state.host_socket().display()))
            }
        }
    }

    /// Connects, and starts `skeind` first if none runs.
    pub fn connect_or_start(state: &StateDir) -> anyhow::Result<Self> {
        match Self::connect(state)? {
            Some(client) => Ok(client),
            None => Ok(start(state)?.0),
        }
    }

    /// Asks, and waits for the answer; a refusal is an error.
    pub fn ask(&mut self, request: &HostRequest) -> anyhow::Result<HostReply> {
        let reply = self.exchange(request).context("the host does not answer; see: skein host status")?;
        match protocol::decode(&reply).map_err(anyhow::Error::msg)? {
            HostReply::Refused(why) => Err(anyhow::Error::msg(why)),
            other => Ok(other),
        }
    }

    fn exchange(&mut self, request: &HostRequest) -> anyhow::Result<Vec<u8>> {
        self.stream.write_all(&protocol::encode(request)?)?;
        self.next()
    }

    fn next(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut head = [0; 4];
        self.stream.read_exact(&mut head)?;
        self.body(head)
    }

    fn body(&mut self, head: [u8; 4]) -> anyhow::Result<Vec<u8>> {
        let length = u32::from_le_bytes(head) as usize;
        if length > MAX_REPLY {
            bail!("it announced {length} bytes where at most {MAX_REPLY} are allowed");
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    /// Finds a place for a new process.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn place(mut self, place: Place) -> anyhow::Result<Placed> {
        let failed = "the host does not answer; see: skein host status";
        let request = protocol::encode(&HostRequest::Place(place))?;
        self.stream.write_all(&request).context(failed)?;
        let (mut head, mut passed) = ([0; 4], Vec::new());
        let got = frame::receive_with_descriptors(&self.stream, &mut head, &mut passed).context(failed)?;
        self.stream.read_exact(&mut head[got..]).context(failed)?;
        let body = self.body(head).context(failed)?;
        match (protocol::decode(&body).map_err(anyhow::Error::msg)?, passed.pop()) {
            (HostReply::Refused(why), _) => Err(anyhow::Error::msg(why)),
            (HostReply::Node(node), _) => Ok(Placed::Here(node)),
            (HostReply::Link { host, id, keys }, Some(socket)) => {
                self.stream.set_read_timeout(None)?;
                self.stream.set_write_timeout(None)?;
                let remote = Remote { socket: TcpStream::from(socket), keys, host: id.0, lease: self.stream };
                Ok(Placed::There { host: host.to_string(), remote })
            }
            (other, _) => bail!("the host answered another question: {other:?}"),
        }
    }

    /// Has a process migrate; while it goes on `tell` is told how.
    ///
    /// # Errors
    /// Why it stays where it is.
    pub fn migrate(&mut self, order: Migrate, tell: &mut dyn FnMut(Event)) -> anyhow::Result<Record> {
        let failed = "the host does not answer; see: skein host status";
        // However long a round takes: a host that is gone closes the connection.
        self.stream.set_read_timeout(None)?;
        let mut reply = self.exchange(&HostRequest::Migrate(order)).context(failed)?;
        let record = loop {
            match protocol::decode(&reply).map_err(anyhow::Error::msg)? {
                HostReply::Migration(event) => tell(event),
                HostReply::Migrated(record) => break Ok(record),
                HostReply::Refused(why) => break Err(anyhow::Error::msg(why)),
                other => bail!("the host answered another question: {other:?}"),
            }
            reply = self.next().context(failed)?;
        };
        self.stream.set_read_timeout(Some(ANSWER))?;
        record
    }

    /// The state of the host.
    pub fn status(&mut self) -> anyhow::Result<HostStatus> {
        match self.ask(&HostRequest::Status)? {
            HostReply::Status(status) => Ok(status),
            other => bail!("the host answered another question: {other:?}"),
        }
    }

    /// A request that is answered by a node.
    pub fn node(&mut self, request: &HostRequest) -> anyhow::Result<NodeEntry> {
        match self.ask(request)? {
            HostReply::Node(node) => Ok(node),
            other => bail!("the host answered another question: {other:?}"),
        }
    }
}

/// Whether a request had no answer because the other end is gone.
fn is_gone(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof))
}

/// Starts `skeind` unless it runs, and waits until it answers. The second part says whether it was
/// started by this call.
pub fn start(state: &StateDir) -> anyhow::Result<(Client, bool)> {
    if let Some(mut client) = Client::connect(state)? {
        match client.status() {
            // It was about to end, or to die.
            Err(error) if is_gone(&error) && await_stop(state) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok((client, false)),
        }
    }
    let log = open_log(&state.host_log()).with_context(|| format!("cannot write {}", state.host_log().display()))?;
    let (report, ready) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let ready_fd: RawFd = ready.as_raw_fd();
    let mut command = Command::new(std::env::current_exe().context("cannot find the skein binary")?);
    command.arg0("skeind").arg("skeind").arg("--dir").arg(state.path()).arg("--ready-fd").arg(ready_fd.to_string());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    crate::hostd::detach::detach(&mut command, vec![ready_fd]);
    command.spawn().context("cannot start skeind")?;
    drop(ready);
    let line = read_line(report, PATIENCE)?;
    // Two commands may start a host at once; one of the two daemons finds the lock taken and ends,
    // and both commands use the other.
    let deadline = Instant::now() + PATIENCE;
    while line.is_some() && Instant::now() < deadline {
        if let Some(client) = Client::connect(state)? {
            return Ok((client, line.as_deref() == Some("ready")));
        }
        if !lock::is_held(&state.host_lock()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let log = state.host_log();
    match line.as_deref().and_then(|line| line.strip_prefix("error: ")) {
        Some(why) => bail!("cannot start the host: {why}"),
        None => bail!("the host did not start; its log is {}", log.display()),
    }
}

/// Waits until no `skeind` holds the lock; whether that came true in time.
pub fn await_stop(state: &StateDir) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while lock::is_held(&state.host_lock()) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}
