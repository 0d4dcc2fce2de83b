//! A sealed connection that can go on over another socket when its own is lost, without those who use it noticing more
//! than that it takes long.
//!
//! Each side counts the bytes that it has received, and says so with whatever it sends. What it has sent itself it keeps
//! until the other side has said that it has it. When the socket is lost both wait; the deputy's side opens another, both
//! say how much has come, and each sends again what the other lacks. So all that is sent comes once, in its order.
//!
//! A socket that was closed is not lost, nor is one on which something came that the peer has not sealed.

mod kept;
#[cfg(test)]
mod tests;

use super::sealed::{Opener, Sealer};
use kept::Kept;
pub use kept::Remains;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes after which the peer is told that they have come even if there is nothing else to tell it.
const UNTOLD: u64 = 1 << 20;
/// How long a wait for another socket is until whoever waits looks whether it still wants to.
const LOOK: Duration = Duration::from_millis(50);

/// A socket.
pub trait Transport: AsRawFd + fmt::Debug {
    /// Receives, without waiting if it is to be `now`.
    ///
    /// # Errors
    /// As `recv(2)`.
    fn receive(&self, room: &mut [u8], now: bool) -> io::Result<usize>;

    /// Sends, without waiting if it is to be `now`.
    ///
    /// # Errors
    /// As `send(2)`.
    fn send(&self, bytes: &[u8], now: bool) -> io::Result<usize>;

    /// Whether the network has lost it, rather than that somebody has ended it.
    fn is_cut(&self) -> bool;

    /// Closes what it has, and has under the same number what another has.
    ///
    /// # Errors
    /// As `dup3(2)`.
    fn replace(&self, by: &impl AsRawFd) -> io::Result<()>;
}

/// A socket that is read or written, without waiting if it is to be `now`.
struct Io<'a, S> {
    socket: &'a S,
    now: bool,
    /// Told when a write takes long, and then it goes on.
    watcher: Option<&'a dyn Watcher>,
}

impl<S: Transport> Read for Io<'_, S> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.socket.receive(room, self.now)
    }
}

impl<S: Transport> Write for Io<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (self.socket.send(bytes, self.now), self.watcher) {
            (Err(error), Some(watcher)) if error.kind() == io::ErrorKind::WouldBlock => {
                watcher.is_slow();
                Err(io::ErrorKind::Interrupted.into())
            }
            (sent, _) => sent,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Output {
    sealer: Sealer,
    kept: Kept,
    /// Sealed bytes that are to be sent before any others.
    backlog: Vec<u8>,
    /// How many received bytes the peer was told of.
    told: u64,
}

#[derive(Debug, Default)]
struct State {
    /// How many sockets it has had before this one.
    generation: u64,
    /// It is about to get another.
    switches: bool,
    /// The socket is lost.
    is_lost: bool,
    /// There will be no other.
    has_ended: bool,
}

/// Who is told of what happens to a connection.
pub trait Watcher: Send + Sync {
    /// The socket is lost, as this error says.
    fn is_lost(&self, _error: &io::Error) {}

    /// Where the socket has a time limit for that: what is sent does not go.
    fn is_slow(&self) {}

    /// There is another socket, under the same number.
    fn is_mended(&self) {}
}

/// Called with what is left.
type Heir = Box<dyn Fn(Remains) + Send + Sync>;

/// A connection.
pub struct Lasting<S: Transport> {
    socket: S,
    /// Whether what is sent is kept.
    keeps: bool,
    /// Whether a lost socket is waited for.
    lasts: AtomicBool,
    /// Which link's connection it came over.
    tag: AtomicU64,
    received: AtomicU64,
    confirmed: AtomicU64,
    output: Mutex<Output>,
    input: Mutex<Opener>,
    state: Mutex<State>,
    changed: Condvar,
    watcher: OnceLock<Box<dyn Watcher>>,
    heir: OnceLock<Heir>,
}

impl<S: Transport> fmt::Debug for Lasting<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lasting").field("socket", &self.socket).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a TCP socket has been reset or timed out: one that somebody has ended is in another state.
pub fn is_cut(socket: &impl AsRawFd) -> bool {
    const TCP_CLOSE: u8 = 7;
    tcp_state(socket) == TCP_CLOSE
}

/// The `tcpi_state` of a TCP socket; 0 if it is none.
pub fn tcp_state(socket: &impl AsRawFd) -> u8 {
    let (mut info, mut length) = ([0_u8; 8], 8);
    // SAFETY: the kernel writes at most `length` bytes to `info`, and the length.
    unsafe {
        let (info, length) = (info.as_mut_ptr().cast(), &raw mut length);
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, length)
    };
    info[0]
}

/// Whether such an error means that the network has lost the connection, rather than that somebody has ended it.
pub fn is_loss(error: &io::Error) -> bool {
    let lost = [
        libc::ECONNRESET,
        libc::ECONNABORTED,
        libc::ETIMEDOUT,
        libc::EHOSTUNREACH,
        libc::EHOSTDOWN,
        libc::ENETUNREACH,
        libc::ENETDOWN,
        libc::ENETRESET,
        libc::ENONET,
    ];
    error.raw_os_error().is_some_and(|errno| lost.contains(&errno))
}

fn shut_down(socket: &impl AsRawFd, how: libc::c_int) {
    // SAFETY: no pointers; the number is open as long as it is borrowed.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

impl<S: Transport> Lasting<S> {
    /// Over a socket; what has been sent and received does not count. What is sent is kept if it `keeps` it.
    pub fn new(socket: S, sealer: Sealer, mut opener: Opener, tag: u64, keeps: bool) -> Self {
        opener.count_from_here();
        Self {
            socket,
            keeps,
            lasts: AtomicBool::new(false),
            tag: AtomicU64::new(tag),
            received: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            output: Mutex::new(Output { sealer, kept: Kept::default(), backlog: Vec::new(), told: 0 }),
            input: Mutex::new(opener),
            state: Mutex::default(),
            changed: Condvar::new(),
            watcher: OnceLock::new(),
            heir: OnceLock::new(),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// Which of the link's connections it came over.
    pub fn tag(&self) -> u64 {
        self.tag.load(Ordering::SeqCst)
    }

    /// From now on a lost socket is waited for.
    pub fn last(&self) {
        self.lasts.store(self.keeps, Ordering::SeqCst);
    }

    /// Sets who is told of what happens, once.
    pub fn watch(&self, watcher: Box<dyn Watcher>) {
        // There is one for each connection.
        let _ = self.watcher.set(watcher);
    }

    /// Sets who gets what is left of it, once.
    pub fn bequeath(&self, heir: Heir) {
        // As above.
        let _ = self.heir.set(heir);
    }

    /// How many sockets it has had before this one.
    pub fn generation_now(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Whether the socket is lost and another is waited for.
    pub fn is_lost(&self) -> bool {
        let state = lock(&self.state);
        state.is_lost && !state.has_ended
    }

    /// Whether there is no socket now.
    pub fn waits(&self) -> bool {
        let state = lock(&self.state);
        !state.has_ended && (state.is_lost || state.switches)
    }

    /// Whether it has been [ended](Self::end).
    pub fn has_ended(&self) -> bool {
        lock(&self.state).has_ended
    }

    /// Another socket will not come: whoever waits for it is told that the connection is lost.
    pub fn end(&self) {
        lock(&self.state).has_ended = true;
        shut_down(&self.socket, libc::SHUT_RDWR);
        self.changed.notify_all();
    }

    fn lose(&self, generation: u64, error: io::Error) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.has_ended {
            return Err(error);
        }
        if state.generation != generation || state.switches {
            return Ok(());
        }
        // The error itself is told once, to one of those who read and write: for the others it ends, or is a broken pipe.
        if !self.lasts.load(Ordering::SeqCst) || !(state.is_lost || is_loss(&error) || self.socket.is_cut()) {
            return Err(error);
        }
        let is_new = !std::mem::replace(&mut state.is_lost, true);
        drop(state);
        if is_new && let Some(watcher) = self.watcher.get() {
            watcher.is_lost(&error);
        }
        Ok(())
    }

    /// The generation, if there is a socket now.
    fn generation(&self) -> io::Result<(u64, bool)> {
        let state = lock(&self.state);
        match state.has_ended {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok((state.generation, state.is_lost || state.switches)),
        }
    }

    /// Sends all of `bytes`, now or when there is another socket.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut output = lock(&self.output);
        let (generation, waits) = self.generation()?;
        if self.keeps {
            // One that confirms what was not sent finds it forgotten no further.
            output.kept.forget(self.confirmed.load(Ordering::SeqCst));
            output.kept.add(bytes);
        }
        if waits && self.lasts.load(Ordering::SeqCst) {
            return if output.kept.is_incomplete() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) };
        }
        let Output { sealer, backlog, told, .. } = &mut *output;
        let mut socket = self.writer();
        let received = self.received.load(Ordering::SeqCst);
        let sent = match backlog.is_empty() {
            true => Ok(()),
            false => {
                let sent = socket.write_all(backlog);
                backlog.clear();
                sent
            }
        };
        let sent = sent.and_then(|()| match self.keeps {
            true => sealer.send_counted(&mut socket, bytes, received),
            false => sealer.send(&mut socket, bytes),
        });
        *told = received;
        drop(output);
        sent.or_else(|error| self.lose(generation, error))
    }

    /// Sends a short message if that needs no waiting; `false` if it would, and then nothing was sent.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<bool> {
        let Ok(mut output) = self.output.try_lock() else { return Ok(false) };
        let (generation, waits) = self.generation()?;
        if waits {
            return Ok(false);
        }
        if let Err(error) = self.put(&mut output) {
            drop(output);
            return self.lose(generation, error).map(|()| false);
        }
        if !output.backlog.is_empty() {
            return Ok(false);
        }
        if self.keeps {
            output.kept.forget(self.confirmed.load(Ordering::SeqCst));
            output.kept.add(bytes);
        }
        let sent = self.seal_and_put(&mut output, bytes);
        drop(output);
        // What is kept is sent again.
        sent.map(|()| true).or_else(|error| self.lose(generation, error).map(|()| self.keeps))
    }

    /// What blocks, and tells that it does.
    fn writer(&self) -> Io<'_, S> {
        let watcher = self.watcher.get().filter(|_| self.lasts.load(Ordering::SeqCst));
        Io { socket: &self.socket, now: false, watcher: watcher.map(|watcher| &**watcher as &dyn Watcher) }
    }

    fn seal_and_put(&self, output: &mut Output, bytes: &[u8]) -> io::Result<()> {
        let received = self.received.load(Ordering::SeqCst);
        let Output { sealer, backlog, told, .. } = output;
        match self.keeps {
            true => sealer.seal_counted_to(bytes, received, backlog)?,
            false => sealer.seal_to(bytes, backlog)?,
        }
        *told = received;
        self.put(output)
    }

    /// Sends what it can of the backlog without waiting: part of a record may have gone, and the rest goes first.
    fn put(&self, output: &mut Output) -> io::Result<()> {
        while !output.backlog.is_empty() {
            match self.socket.send(&output.backlog, true) {
                Ok(sent) => drop(output.backlog.drain(..sent)),
                Err(error) => {
                    let must_wait = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM];
                    let waits = error.raw_os_error().is_some_and(|errno| must_wait.contains(&errno));
                    return if waits { Ok(()) } else { Err(error) };
                }
            }
        }
        Ok(())
    }

    /// Receives what is there, at most `room`, without waiting if it is to be `now`. A signal ends the wait, and so does
    /// some time without a socket. 0 is the end.
    ///
    /// # Errors
    /// If the connection has ended; [`io::ErrorKind::Interrupted`] and [`io::ErrorKind::WouldBlock`].
    pub fn receive(&self, room: &mut [u8], now: bool) -> io::Result<usize> {
        loop {
            let (generation, waits) = self.generation()?;
            if waits && now {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if waits {
                self.await_another(generation)?;
                continue;
            }
            let mut input = lock(&self.input);
            let received = input.receive_once(&mut Io { socket: &self.socket, now, watcher: None }, room);
            let (count, confirmed) = input.counts();
            self.received.store(count, Ordering::SeqCst);
            self.confirmed.fetch_max(confirmed, Ordering::SeqCst);
            drop(input);
            match received {
                Ok(got) => {
                    self.confirm(count);
                    return Ok(got);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    return Err(error);
                }
                Err(error) => self.lose(generation, error)?,
            }
        }
    }

    /// Tells the peer how much has come, if that was not said for long.
    fn confirm(&self, received: u64) {
        if !self.keeps {
            return;
        }
        let Ok(mut output) = self.output.try_lock() else { return };
        if received.saturating_sub(output.told) > UNTOLD && output.backlog.is_empty() {
            // One that fails is found lost by who reads next.
            let _ = self.seal_and_put(&mut output, &[]);
        }
    }

    /// Waits a little for a socket.
    fn await_another(&self, generation: u64) -> io::Result<()> {
        let state = lock(&self.state);
        let waits =
            |state: &mut State| !state.has_ended && state.generation == generation && (state.switches || state.is_lost);
        let waited = self.changed.wait_timeout_while(state, LOOK, waits).unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    /// Whether bytes wait here that a `poll` of the socket does not tell of.
    pub fn has_more(&self) -> bool {
        lock(&self.input).has_more()
    }

    fn begin_switch(&self, how: libc::c_int) {
        lock(&self.state).switches = true;
        // Whoever reads, or writes, stops.
        shut_down(&self.socket, how);
    }

    /// Goes on over another socket, which the peer has opened that has received so many bytes.
    ///
    /// # Errors
    /// If it lacks what is not kept: the connection has ended then.
    pub fn accept(
        &self,
        socket: &impl AsRawFd,
        sealer: Sealer,
        opener: Opener,
        tag: u64,
        theirs: u64,
    ) -> io::Result<()> {
        if tag <= self.tag() {
            // It has been overtaken.
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.begin_switch(libc::SHUT_RDWR);
        let input = lock(&self.input);
        self.go_on(socket, input, sealer, opener, tag, theirs, true)
    }

    /// Goes on over another socket, which `open` opens: it is given how many bytes have been received, and gives what the
    /// peer has.
    ///
    /// # Errors
    /// Those of `open`: the socket is lost then; and as [`accept`](Self::accept).
    pub fn reopen<N: AsRawFd>(
        &self,
        tag: u64,
        open: impl FnOnce(u64) -> io::Result<(N, Sealer, Opener)>,
    ) -> io::Result<()> {
        // The peer must not take this for the end.
        self.begin_switch(libc::SHUT_RD);
        let input = lock(&self.input);
        match open(input.counts().0) {
            Ok((socket, sealer, opener)) => {
                shut_down(&self.socket, libc::SHUT_RDWR);
                let (_, theirs) = opener.counts();
                self.go_on(&socket, input, sealer, opener, tag, theirs, false)
            }
            Err(error) => {
                let mut state = lock(&self.state);
                (state.switches, state.is_lost) = (false, true);
                drop(state);
                drop(input);
                self.changed.notify_all();
                Err(error)
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what another socket comes with")]
    fn go_on(
        &self,
        socket: &impl AsRawFd,
        mut input: MutexGuard<'_, Opener>,
        sealer: Sealer,
        mut opener: Opener,
        tag: u64,
        theirs: u64,
        tells: bool,
    ) -> io::Result<()> {
        let mut output = lock(&self.output);
        let is_possible = output.kept.forget(theirs);
        opener.go_on_after(&mut input);
        *input = opener;
        let received = input.counts().0;
        self.received.store(received, Ordering::SeqCst);
        self.confirmed.fetch_max(theirs, Ordering::SeqCst);
        output.sealer = sealer;
        output.backlog.clear();
        output.told = received;
        self.tag.store(tag, Ordering::SeqCst);
        let moved = self.socket.replace(socket);
        let mut state = lock(&self.state);
        (state.switches, state.is_lost) = (false, false);
        state.generation += 1;
        let generation = state.generation;
        if moved.is_err() || !is_possible {
            state.has_ended = true;
        }
        let has_ended = state.has_ended;
        drop(state);
        // What comes is read while the rest is sent.
        drop(input);
        self.changed.notify_all();
        if has_ended {
            self.end();
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Output { sealer, kept, .. } = &mut *output;
        let sent = match tells || !kept.is_empty() {
            true => sealer.send_counted(&mut self.writer(), kept.bytes(), received),
            false => Ok(()),
        };
        drop(output);
        let sent = sent.or_else(|error| self.lose(generation, error));
        if let Some(watcher) = self.watcher.get() {
            watcher.is_mended();
        }
        sent
    }
}

impl<S: Transport> Drop for Lasting<S> {
    fn drop(&mut self) {
        let lasts = self.lasts.load(Ordering::SeqCst);
        let Some(heir) = self.heir.get().filter(|_| lasts) else { return };
        let (tag, received) = (self.tag(), self.received.load(Ordering::SeqCst));
        let confirmed = self.confirmed.load(Ordering::SeqCst);
        let kept = &mut self.output.get_mut().unwrap_or_else(PoisonError::into_inner).kept;
        kept.forget(confirmed);
        if !kept.is_empty() && !kept.is_incomplete() {
            heir(Remains::new(std::mem::take(kept), received, tag));
        }
    }
}
