//! Serving a call connection: read a request, do it, write the reply.

#[cfg(test)]
mod tests;

use super::buffer::ReplyBuffer;
use super::connection::Connection;
use super::descriptors::Own;
use super::threads::{Thread, lock};
use super::{control, end, execute, files, kernel, ops, signals};
use crate::calls;
use crate::migration::faults::{self, Step};
use crate::wire::call::{MAX_PAYLOAD, MAX_SIGNALS, ReplyHeader, RequestHeader, SIGINFO_SIZE, flags, kind};
use crate::wire::control::SigInfo;
use crate::wire::frame;
use crate::wire::op::Op;
use nix::errno::Errno;
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the buffer that requests are read into; longer ones get more for themselves.
const INPUT: usize = 16 << 10;

/// What a longer request needed is given back after it if it is more than this.
const KEEP: usize = 4 << 20;

/// How long a request may be on its way from a node of another host that the process has left, and how often it is
/// looked for.
const ON_ITS_WAY: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(1);

/// A thread of the deputy and its call connection.
#[derive(Debug)]
pub(super) struct Server {
    connection: Connection,
    thread: Arc<Thread>,
    input: Vec<u8>,
    /// What has been read and not been served is `input[start..end]`.
    start: usize,
    end: usize,
    reply: ReplyBuffer,
    mask: u64,
    guest_blocks: u32,
    /// From where the last request came.
    near: u16,
    /// Number of the last request.
    last: u32,
    /// The last reply, which is in its buffer still.
    replied: Option<Replied>,
}

/// A reply that was sent.
#[derive(Debug, Clone, Copy)]
struct Replied {
    seq: u32,
    /// Bytes, the header too.
    length: usize,
    /// The guest's descriptor whose file it passed.
    passed: Option<RawFd>,
}

/// What an operation leaves to be done.
pub(super) enum Next {
    /// Send this result and payload, with these descriptors, which are closed then.
    Pass(i64, Vec<u8>, Vec<Own>),
    /// Send 0 and this payload, with a descriptor of the guest's, which stays open.
    Lend(Vec<u8>, RawFd),
    /// There is no reply.
    Nothing,
    /// There is no reply, and the thread ends.
    End,
    /// This is now the only thread of a child, which serves this connection.
    Become(Connection),
}

impl Server {
    /// For the calling thread, whose guest thread blocks these stops (bits of
    /// [`blocked`](crate::wire::call::blocked)) until a request says otherwise.
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn new(connection: Connection, guest_blocks: u32) -> io::Result<Self> {
        Ok(Self {
            thread: Thread::register(&connection),
            connection,
            input: vec![0; INPUT],
            start: 0,
            end: 0,
            reply: ReplyBuffer::new()?,
            mask: 0,
            guest_blocks,
            near: 0,
            last: 0,
            replied: None,
        })
    }

    /// Serves until the thread shall end.
    pub(super) fn serve(mut self) {
        loop {
            self.apply_mask();
            // When nobody waits for it.
            self.thread.near.follow(self.near);
            let Some(header) = self.receive() else { end::lost() };
            self.near = header.near;
            if !self.answer(&header) {
                break;
            }
        }
        self.thread.unregister();
    }

    /// Blocks what the guest's dispositions and mask ask for now.
    fn apply_mask(&mut self) {
        let mask = signals::thread_mask(self.guest_blocks);
        if mask != self.mask {
            signals::set_mask(mask);
            self.mask = mask;
        }
    }

    /// The next request's header, its payload at `start`; `None` if the node is gone or talks nonsense.
    fn receive(&mut self) -> Option<RequestHeader> {
        if self.input.len() > KEEP && self.start == self.end {
            self.input = vec![0; INPUT];
        }
        let header = loop {
            let is_whole = self.fill(RequestHeader::SIZE, false).is_some();
            let header = is_whole.then(|| self.input[self.start..].first_chunk().map(RequestHeader::decode)).flatten();
            if let Some(header) = header.filter(|header| !self.thread.is_too_late(header.seq)) {
                break header;
            }
            // Nothing comes any more, or nothing that counts; perhaps because the process has migrated.
            let is_clean = is_whole || self.start == self.end;
            (self.start, self.end) = (0, 0);
            if !is_clean || !self.reconnect() {
                return None;
            }
        };
        self.last = header.seq;
        self.start += RequestHeader::SIZE;
        if header.length as usize > MAX_PAYLOAD {
            return None;
        }
        self.fill(header.length as usize, true)?;
        Some(header)
    }

    /// Goes over to the connection to the process's next node, and sends again what the old one has not read;
    /// `false` if there is none, or it does not go on where the old one ends.
    fn reconnect(&mut self) -> bool {
        // The process has moved, whatever happens here.
        let _ = faults::at(Step::DeputyReconnect);
        self.part();
        while let Some((seq, awaits)) = self.thread.take_new_connection(&mut self.connection) {
            if seq != self.last {
                return false;
            }
            let unheard = self.replied.filter(|replied| awaits && replied.seq == seq);
            // It fails where the process has left that node too.
            if unheard.is_none_or(|replied| self.send_again(replied)) {
                return true;
            }
        }
        false
    }

    fn send_again(&mut self, replied: Replied) -> bool {
        let bytes = self.reply.finished(replied.length);
        let passed = replied.passed.filter(|&fd| files::may_hand_over(fd));
        send_all(&mut self.connection, bytes, passed.as_slice()).is_ok()
    }

    /// Reads until `wanted` bytes are there; `begun` says whether something of the request is here already.
    fn fill(&mut self, wanted: usize, begun: bool) -> Option<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start + wanted > self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if wanted > self.input.len() {
                self.input.resize(wanted, 0);
            }
        }
        let mut ended: Option<Instant> = None;
        while self.end - self.start < wanted {
            let room = &mut self.input[self.end..];
            match self.connection.read(room) {
                // The process has gone on without what was lost.
                Err(error) if error.kind() == io::ErrorKind::Interrupted && self.is_left() => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.apply_mask(),
                Err(_) | Ok(0)
                    if self.thread.is_behind(self.last, begun || self.end > self.start)
                        && ended.get_or_insert_with(Instant::now).elapsed() < ON_ITS_WAY =>
                {
                    std::thread::sleep(LOOK);
                }
                Err(_) | Ok(0) => return None,
                Ok(got) => self.end += got,
            }
        }
        Some(())
    }

    /// Whether the network has lost the connection, and the process has moved.
    fn is_left(&self) -> bool {
        self.connection.waits() && self.thread.is_awaited()
    }

    /// Leaves the CPU that it was bound to.
    fn part(&mut self) {
        self.near = 0;
        self.thread.near.part(self.thread.tid);
    }

    /// Does what a request asks for; whether to go on.
    fn answer(&mut self, header: &RequestHeader) -> bool {
        let payload = self.start..self.start + header.length as usize;
        self.start = payload.end;
        if header.blocked != self.guest_blocks {
            self.guest_blocks = header.blocked;
            self.apply_mask();
        }
        match header.kind {
            kind::CALL => {
                if matches!(i64::from(header.nr), libc::SYS_sched_setaffinity | libc::SYS_sched_getaffinity) {
                    self.part();
                }
                let request = &mut self.input[payload];
                let (ret, mut length) =
                    execute::execute(&self.thread, header.seq, header.nr, header.args, request, &mut self.reply);
                self.thread.pass(header.seq);
                let mut count = 0;
                self.collect(header.nr, &header.args, ret, length, &mut count);
                length = length.min(MAX_PAYLOAD);
                if header.flags & flags::POSTED != 0 {
                    return true;
                }
                let made = ret as RawFd;
                let passed = header.flags & flags::HAND_OVER != 0
                    && self.connection.is_local()
                    && ret >= 0
                    && files::may_hand_over(made);
                self.send(header.seq, ret, length, count, if passed { std::slice::from_ref(&made) } else { &[] });
                true
            }
            kind::OP => {
                self.thread.pass(header.seq);
                // What is made has the same rights, and what is told is what is so by rights.
                self.part();
                let next = match postcard::from_bytes::<Op>(&self.input[payload]) {
                    Ok(op) => ops::perform(op, self.thread.tid, self.guest_blocks),
                    Err(_) => Next::Pass(-i64::from(libc::EPROTO), Vec::new(), Vec::new()),
                };
                self.finish_op(header.seq, next)
            }
            _ => end::lost(),
        }
    }

    fn finish_op(&mut self, seq: u32, next: Next) -> bool {
        match next {
            Next::Pass(ret, payload, descriptors) => {
                let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
                self.pass(seq, ret, &payload, &raw);
            }
            Next::Lend(payload, descriptor) => self.pass(seq, 0, &payload, &[descriptor]),
            Next::Nothing => {}
            Next::End => return false,
            Next::Become(connection) => {
                // The parent's connection was closed with all that the child inherited.
                std::mem::replace(&mut self.connection, connection).leak();
                self.thread = Thread::register(&self.connection);
                (self.start, self.end) = (0, 0);
                (self.last, self.replied) = (0, None);
            }
        }
        true
    }

    fn pass(&mut self, seq: u32, ret: i64, payload: &[u8], descriptors: &[RawFd]) {
        let fits = self.reply.reserve(payload.len()).is_ok();
        if fits {
            self.reply.payload()[..payload.len()].copy_from_slice(payload);
        }
        self.send(seq, ret, if fits { payload.len() } else { 0 }, 0, descriptors);
    }

    /// Puts the signals that a call raised behind the payload of its reply.
    fn collect(&mut self, nr: u32, args: &[u64; 6], ret: i64, length: usize, count: &mut u32) {
        let raised = match kernel::errno(ret) {
            Some(Errno::EPIPE) => signals::bit(libc::SIGPIPE),
            Some(Errno::EFBIG) => signals::bit(libc::SIGXFSZ),
            // The pipe's reader can go when part of it was written.
            None if i64::from(nr) == libc::SYS_write && (ret as u64) < args[2] => signals::bit(libc::SIGPIPE),
            None if i64::from(nr) == libc::SYS_writev => signals::bit(libc::SIGPIPE),
            _ => 0,
        };
        if raised != 0 {
            while let Some(info) = signals::take_own(raised) {
                self.append(length, count, &info);
            }
        }
        if ret >= 0 && calls::raises_signals(nr) {
            let _relay = lock(&signals::RELAY);
            while *count < MAX_SIGNALS {
                let Some(info) = signals::take() else { break };
                self.append(length, count, &info);
            }
        }
    }

    fn append(&mut self, length: usize, count: &mut u32, info: &SigInfo) {
        // `reserve` leaves room for all signals that a reply may carry.
        let at = length + *count as usize * SIGINFO_SIZE;
        if *count < MAX_SIGNALS
            && let Some(room) = self.reply.payload().get_mut(at..at + SIGINFO_SIZE)
        {
            room.copy_from_slice(&info.0);
            *count += 1;
        }
    }

    fn send(&mut self, seq: u32, ret: i64, length: usize, signals: u32, descriptors: &[RawFd]) {
        let header = ReplyHeader { seq, length: length as u32, ret, signals, relayed: control::relayed() };
        let bytes = self.reply.finish(&header, length + signals as usize * SIGINFO_SIZE);
        let replied = Replied { seq, length: bytes.len(), passed: descriptors.first().copied() };
        if send_all(&mut self.connection, bytes, descriptors).is_ok() {
            self.replied = Some(replied);
            return;
        }
        // The process has migrated while the call was made: the reply goes to where it is now.
        self.replied = None;
        loop {
            if !self.reconnect() {
                end::lost();
            }
            // It may have left that node by now too.
            if self.send_again(replied) {
                break;
            }
        }
        self.replied = Some(replied);
    }
}

/// Sends a reply, with descriptors.
fn send_all(connection: &mut Connection, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let mut sent = 0;
    if !descriptors.is_empty() && connection.is_local() {
        // SAFETY: the connection is open for as long as it is borrowed, which closes it.
        let stream = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(connection.as_raw_fd()) });
        match frame::send_with_descriptors(&stream, bytes, descriptors) {
            Ok(count) => sent = count,
            // The guest has closed it meanwhile, or has too many in flight: the reply goes without.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ETOOMANYREFS)) => {}
            Err(error) => return Err(error),
        }
    }
    if sent < bytes.len() { connection.send(&bytes[sent..]) } else { Ok(()) }
}
