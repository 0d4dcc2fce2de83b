//! Deputies' control connections: signals that reached them, and their end.

use super::process::{Ending, Process, Verdict};
use super::{Kernel, lock, priority};
use crate::wire::control::{MAX_MESSAGE, ToNode};
use crate::wire::lasting::Watcher;
use crate::wire::stream::Receiving;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

struct Connection {
    process: Arc<Process>,
    stream: Receiving,
    /// What has come of a message that is not whole.
    partial: Vec<u8>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, Arc<Mutex<Connection>>>,
}

/// Listens to all deputies on one thread.
pub struct Relay {
    kernel: Weak<Kernel>,
    epoll: OnceLock<Epoll>,
    connections: Mutex<Connections>,
}

impl Relay {
    pub(super) fn new(kernel: Weak<Kernel>) -> Self {
        Self { kernel, epoll: OnceLock::new(), connections: Mutex::default() }
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn start(&self) -> io::Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if self.epoll.set(epoll).is_err() {
            return Ok(());
        }
        let kernel = self.kernel.clone();
        std::thread::Builder::new().name("relay".into()).stack_size(256 << 10).spawn(move || {
            priority::go_first();
            while let Some(kernel) = kernel.upgrade() {
                kernel.relay.turn();
            }
        })?;
        Ok(())
    }

    /// Listens to the deputy of `process`.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn add(&self, process: &Arc<Process>) -> io::Result<()> {
        let Some(epoll) = self.epoll.get() else { return Err(io::Error::other("the relay does not run")) };
        let stream = process.control().ok_or_else(|| io::Error::other("the relay listens already"))?;
        let mut connections = lock(&self.connections);
        let token = connections.next;
        connections.next += 1;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        process.set_relay_token(token);
        let keeps_some = stream.keeps_some();
        if let Receiving::Lasting(lasting) = &stream {
            let of = Arc::downgrade(process);
            lasting.watch(Box::new(Follower { kernel: self.kernel.clone(), process: of, token }));
        }
        let connection = Connection { process: process.clone(), stream, partial: Vec::new() };
        connections.open.insert(token, Arc::new(Mutex::new(connection)));
        drop(connections);
        if keeps_some {
            self.drain(process);
        }
        Ok(())
    }

    /// Takes what the deputy of `process` has sent by now: signals that home's kernel raised before
    /// it answered a call are seen before the call returns.
    pub fn drain(&self, process: &Process) {
        let connection = lock(&self.connections).open.get(&process.relay_token()).cloned();
        if let Some(connection) = connection {
            // If it is closed the relay's own thread finds it so.
            lock(&connection).receive();
        }
    }

    /// Looks whether the connection with the deputy of `process` has ended.
    pub fn look(&self, process: &Process) {
        self.serve(process.relay_token());
    }

    fn turn(&self) {
        let Some(epoll) = self.epoll.get() else { return };
        let mut events = [EpollEvent::empty(); 64];
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => return,
            Err(error) => {
                tracing::error!(%error, "the relay cannot listen");
                std::thread::sleep(std::time::Duration::from_millis(100));
                return;
            }
        };
        for event in &events[..count] {
            self.serve(event.data());
        }
    }

    fn serve(&self, token: u64) {
        let Some(connection) = lock(&self.connections).open.get(&token).cloned() else { return };
        let mut connection = lock(&connection);
        if connection.receive() {
            return;
        }
        lock(&self.connections).open.remove(&token);
        if let Some(epoll) = self.epoll.get()
            && let Err(error) = epoll.delete(&connection.stream)
        {
            tracing::debug!(%error, "a connection was not listened to");
        }
        connection.process.begin_exit(Ending::Lost);
    }
}

/// How long a deputy may take that has to make its connection again though its link is there: it hears of that at once,
/// unless it is not there any more.
const REPAIR: Duration = Duration::from_secs(3);
/// The same where nothing is heard any more: its link may be found lost so much later.
const SILENCE: Duration = Duration::from_secs(20);

/// Follows a connection that may go on over another socket.
struct Follower {
    kernel: Weak<Kernel>,
    process: Weak<Process>,
    token: u64,
}

impl Follower {
    /// The relay, its place in it, and the process.
    fn with<T>(&self, work: impl FnOnce(&Arc<Kernel>, &Epoll, &Arc<Process>) -> T) -> Option<T> {
        let (kernel, process) = (self.kernel.upgrade()?, self.process.upgrade()?);
        let epoll = kernel.relay.epoll.get()?;
        Some(work(&kernel, epoll, &process))
    }
}

impl Watcher for Follower {
    fn is_lost(&self, error: &std::io::Error) {
        let time = if error.raw_os_error() == Some(libc::ECONNRESET) { REPAIR } else { SILENCE };
        self.with(|kernel, epoll, process| {
            let Some(home) = process.to_home() else { return };
            let generation = home.generation_now();
            // It is gone by itself when the socket was closed already.
            let _ = epoll.delete(home.socket());
            if !home.waits() {
                // It was mended meanwhile.
                self.is_mended();
                return;
            }
            let (kernel, process) = (kernel.clone(), process.clone());
            let spawned = std::thread::Builder::new().name("repair".into()).stack_size(64 << 10).spawn(move || {
                std::thread::sleep(time);
                let is_there =
                    process.group.link().zip(process.way()).is_some_and(|(link, way)| link.ways.is_there(way));
                if home.is_lost() && home.generation_now() == generation && is_there {
                    home.end();
                    kernel.relay.look(&process);
                }
            });
            if let Err(error) = spawned {
                tracing::warn!(%error, "no thread for a connection that is lost");
            }
        });
    }

    fn is_mended(&self) {
        self.with(|kernel, epoll, process| {
            let Some(home) = process.to_home() else { return };
            match epoll.add(home.socket(), EpollEvent::new(EpollFlags::EPOLLIN, self.token)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => tracing::error!(%error, "a deputy's control connection"),
            }
            // What came with the last of the old one is told by no event.
            kernel.relay.serve(self.token);
        });
    }
}

impl Connection {
    /// Takes what has come; `false` if nothing will come any more.
    fn receive(&mut self) -> bool {
        loop {
            let mut chunk = [0; CHUNK];
            match self.stream.receive_now(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => self.partial.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return true;
                }
                Err(_) => return false,
            }
            if !self.take() {
                return false;
            }
            if !self.stream.keeps_some() {
                return true;
            }
        }
    }

    /// Takes the messages that are whole; `false` if nothing can come any more.
    fn take(&mut self) -> bool {
        loop {
            let Some(head) = self.partial.first_chunk::<4>() else { return true };
            let length = u32::from_le_bytes(*head) as usize;
            if length > MAX_MESSAGE {
                tracing::warn!(pid = self.process.pid, length, "the deputy sent a message that is too long");
                return false;
            }
            if self.partial.len() < 4 + length {
                return true;
            }
            let message = postcard::from_bytes(&self.partial[4..4 + length]);
            self.partial.drain(..4 + length);
            match message {
                Ok(ToNode::Signal(info)) => {
                    if (1..=64).contains(&info.signal()) {
                        self.process.post(info);
                    }
                    self.process.remote.count_signal();
                }
                Ok(ToNode::Held { epoch, attempt }) => self.process.note_answer(epoch, attempt, Verdict::Held),
                Ok(ToNode::Moved { epoch }) => self.process.note_verdict(epoch, Verdict::Moved),
                Ok(ToNode::Kept { epoch, reason }) => self.process.note_verdict(epoch, Verdict::Kept(reason)),
                Ok(ToNode::Prepared { epoch, attempt, result }) => {
                    let verdict = result.map_or_else(Verdict::Kept, Verdict::Prepared);
                    self.process.note_answer(epoch, attempt, verdict);
                }
                Ok(ToNode::Lent(result)) => self.process.remote.note_lent(result),
                Ok(ToNode::Run { .. }) => {
                    tracing::warn!(pid = self.process.pid, "the deputy has a process run that runs already");
                    return false;
                }
                Ok(ToNode::Bytes { tag, result }) => self.process.remote.answer(tag, result.map(|bytes| bytes.0)),
                Ok(ToNode::Awake { round, clocks }) => self.process.hear_clocks(round, &clocks),
                Err(error) => {
                    tracing::warn!(pid = self.process.pid, %error, "the deputy sent what cannot be read");
                    return false;
                }
            }
        }
    }
}
