//! The node's end of a call connection.

use crate::calls::marshal;
use crate::usermem::UserMemory;
use crate::wire::call::{MAX_PAYLOAD, MAX_SIGNALS, ReplyHeader, RequestHeader, SIGINFO_SIZE, flags, kind};
use crate::wire::control::SigInfo;
use crate::wire::frame::MAX_DESCRIPTORS;
use crate::wire::op::Op;
use crate::wire::stream::Stream;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Bytes of the buffer that a reply is read into; longer ones get more for themselves.
const INPUT: usize = 16 << 10;
/// A buffer that is longer than this is given back after the request or reply that needed it.
const KEEP: usize = 4 << 20;

/// Why a call connection cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The deputy closed it.
    #[error("the deputy closed the connection")]
    Closed,
    /// It failed.
    #[error("the connection to the deputy failed")]
    Io(#[source] io::Error),
    /// The deputy sent what is not a reply to the request.
    #[error("the deputy sent a reply that cannot be right")]
    Malformed,
    /// A request is under way, or none is.
    #[error("a reply was asked for at the wrong time")]
    OutOfTurn,
    /// The wait was given up; the reply may be waited for again.
    #[error("the wait for a reply was given up")]
    GivenUp,
}

/// Why a call could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The connection cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Nothing was sent: the guest's call fails with this.
    #[error("the call cannot be forwarded: {0}")]
    Errno(Errno),
}

/// What a forwarded call gave.
#[derive(Debug)]
pub struct CallReply {
    /// What the guest's call returns, `-errno` for a failure.
    pub ret: i64,
    /// Signals that the guest must see before the call returns.
    pub signals: Vec<SigInfo>,
    /// How many others came on the control connection before.
    pub relayed: u32,
    /// The file of the descriptor that the call made; close-on-exec.
    pub file: Option<OwnedFd>,
}

/// A reply of which not all has come.
#[derive(Debug, Default)]
struct Coming {
    /// Bytes of it in `input`.
    got: usize,
    header: Option<ReplyHeader>,
    files: Vec<OwnedFd>,
}

/// Bytes of a reply with this header.
fn length_of(header: &ReplyHeader) -> usize {
    ReplyHeader::SIZE + header.length as usize + header.signals as usize * SIGINFO_SIZE
}

/// How long a reply is waited for.
#[derive(Clone, Copy)]
enum Wait<'a> {
    /// Until this says so, where the wait is interrupted.
    Unless(&'a dyn Fn() -> bool),
    /// It is there, or it is not.
    NotAtAll,
}

/// A call whose reply is awaited, or was received and is not taken yet.
#[derive(Debug)]
struct Pending {
    nr: u32,
    args: [u64; 6],
    flags: u32,
    reply: Option<(ReplyHeader, Option<OwnedFd>)>,
}

/// What an operation gave.
#[derive(Debug)]
pub struct OpReply {
    /// The result, `-errno` for a failure.
    pub ret: i64,
    /// As [`Op`] says.
    pub payload: Vec<u8>,
    /// As [`Op`] says; close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Signals that the guest must see before the call returns.
    pub signals: Vec<SigInfo>,
}

/// What went over a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests whose reply was waited for and came.
    pub round_trips: u64,
    /// Of those, which were asked for from a CPU to which the deputy's thread was to come.
    pub near_trips: u64,
    /// Bytes to the deputy.
    pub sent: u64,
    /// Bytes from the deputy.
    pub received: u64,
}

/// One call connection, for one guest thread: one request at a time.
#[derive(Debug)]
pub struct CallChannel {
    stream: Stream,
    output: Vec<u8>,
    input: Vec<u8>,
    seq: u32,
    pending: Option<Pending>,
    coming: Coming,
    traffic: Traffic,
    /// For the next request, as in its header.
    near: u16,
    /// The last request had it.
    was_near: bool,
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl CallChannel {
    /// Takes over the node's end of a call connection.
    pub fn new(stream: UnixStream) -> Self {
        Self::over(stream.into())
    }

    /// The same of either kind.
    pub fn over(stream: Stream) -> Self {
        Self {
            stream,
            output: Vec::new(),
            input: vec![0; INPUT],
            seq: 0,
            pending: None,
            coming: Coming::default(),
            traffic: Traffic::default(),
            near: 0,
            was_near: false,
        }
    }

    /// What went over it since this was last asked.
    pub fn take_traffic(&mut self) -> Traffic {
        std::mem::take(&mut self.traffic)
    }

    /// The number that the next request will have.
    pub fn next_seq(&self) -> u32 {
        self.seq.wrapping_add(1)
    }

    /// The next request is made from this CPU, and the deputy's thread is to answer it there.
    pub fn ask_from(&mut self, cpu: Option<u16>) {
        self.near = cpu.filter(|_| !self.stream.is_sealed()).map_or(0, |cpu| cpu.saturating_add(1));
    }

    /// Sends a system call and gives the number of its request, for a cancellation. `blocked` is of
    /// [`crate::wire::call::blocked`].
    ///
    /// # Errors
    /// [`BeginError::Errno`] if the call fails without being sent.
    pub fn begin_call(
        &mut self,
        nr: u32,
        args: &[u64; 6],
        blocked: u32,
        memory: &dyn UserMemory,
    ) -> Result<u32, BeginError> {
        self.begin_call_with(nr, args, blocked, 0, memory)
    }

    /// The same with bits of [`flags`], but for those of posted calls.
    ///
    /// # Errors
    /// As [`begin_call`](Self::begin_call).
    pub fn begin_call_with(
        &mut self,
        nr: u32,
        args: &[u64; 6],
        blocked: u32,
        flags: u32,
        memory: &dyn UserMemory,
    ) -> Result<u32, BeginError> {
        self.begin_call_within(usize::MAX, nr, args, blocked, flags, memory)
    }

    /// The same of a request of at most so many bytes.
    ///
    /// # Errors
    /// As [`begin_call`](Self::begin_call); [`BeginError::Errno`] of one that is longer.
    pub fn begin_call_within(
        &mut self,
        most: usize,
        nr: u32,
        args: &[u64; 6],
        blocked: u32,
        flags: u32,
        memory: &dyn UserMemory,
    ) -> Result<u32, BeginError> {
        if self.pending.is_some() {
            return Err(ChannelError::OutOfTurn.into());
        }
        self.output.clear();
        self.output.resize(RequestHeader::SIZE, 0);
        let sent = marshal::encode(nr, args, memory, &mut self.output).map_err(BeginError::Errno)?;
        if self.output.len() > most {
            return Err(BeginError::Errno(Errno::EMSGSIZE));
        }
        let flags = flags & !flags::POSTED;
        let seq = self.send(kind::CALL, nr, blocked, flags, sent)?;
        self.pending = Some(Pending { nr, args: *args, flags, reply: None });
        Ok(seq)
    }

    /// Sends a call whose result nobody waits for and whose arguments are all numbers.
    ///
    /// # Errors
    /// If the connection cannot be used.
    pub fn post_call(&mut self, nr: u32, blocked: u32, args: [u64; 6]) -> Result<(), ChannelError> {
        if self.pending.is_some() {
            return Err(ChannelError::OutOfTurn);
        }
        self.output.clear();
        self.output.resize(RequestHeader::SIZE, 0);
        self.send(kind::CALL, nr, blocked, flags::POSTED, args).map(drop)
    }

    /// Waits for the reply to the call that was begun, and writes its buffers to the guest's memory.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the deputy is gone, and the others as they say.
    pub fn finish_call(&mut self, memory: &dyn UserMemory) -> Result<CallReply, ChannelError> {
        self.finish_call_unless(memory, &|| false)
    }

    /// The same, but gives up where the wait is interrupted and `give_up` says so.
    ///
    /// # Errors
    /// [`ChannelError::GivenUp`], and as [`finish_call`](Self::finish_call).
    pub fn finish_call_unless(
        &mut self,
        memory: &dyn UserMemory,
        give_up: &dyn Fn() -> bool,
    ) -> Result<CallReply, ChannelError> {
        self.await_reply_unless(give_up)?;
        let pending = self.pending.take();
        let Some(Pending { nr, args, reply: Some((header, file)), .. }) = pending else {
            return Err(ChannelError::OutOfTurn);
        };
        let payload = &self.input[ReplyHeader::SIZE..][..header.length as usize];
        let ret = marshal::decode(nr, &args, header.ret, payload, memory).unwrap_or_else(|errno| -(errno as i64));
        Ok(CallReply { ret, signals: self.signals(&header), relayed: header.relayed, file })
    }

    /// The number of the last request.
    pub fn seq(&self) -> u32 {
        self.seq
    }

    /// Goes on with numbers behind `seq`, as the connection that this one replaces.
    pub fn continue_from(&mut self, seq: u32) {
        self.seq = seq;
    }

    /// The call whose reply is awaited: number, arguments and [`flags`].
    pub fn pending_call(&self) -> Option<(u32, [u64; 6], u32)> {
        self.pending.as_ref().map(|pending| (pending.nr, pending.args, pending.flags))
    }

    /// Awaits the reply to the last request, which was sent on the connection that this one replaces.
    pub fn resume_call(&mut self, nr: u32, args: [u64; 6], flags: u32) {
        self.pending = Some(Pending { nr, args, flags: flags & !flags::POSTED, reply: None });
    }

    /// Whether a call was begun of which the reply is not taken.
    pub fn is_in_call(&self) -> bool {
        self.pending.is_some()
    }

    /// Waits for the reply to the call that was begun, and keeps it.
    ///
    /// # Errors
    /// As [`finish_call`](Self::finish_call).
    pub fn await_reply(&mut self) -> Result<(), ChannelError> {
        self.await_reply_unless(&|| false)
    }

    /// The same of a reply that has come, or its beginning.
    ///
    /// # Errors
    /// [`ChannelError::GivenUp`] if it has not, and as [`finish_call`](Self::finish_call).
    pub fn take_reply(&mut self) -> Result<(), ChannelError> {
        self.await_reply_by(Wait::NotAtAll)
    }

    fn await_reply_unless(&mut self, give_up: &dyn Fn() -> bool) -> Result<(), ChannelError> {
        self.await_reply_by(Wait::Unless(give_up))
    }

    fn await_reply_by(&mut self, wait: Wait<'_>) -> Result<(), ChannelError> {
        let pending = self.pending.as_ref().ok_or(ChannelError::OutOfTurn)?;
        if pending.reply.is_some() {
            return Ok(());
        }
        let takes_file = pending.flags & flags::HAND_OVER != 0;
        let (header, mut files) = self.receive(takes_file, wait)?;
        if let Some(pending) = &mut self.pending {
            pending.reply = Some((header, files.pop()));
        }
        Ok(())
    }

    /// As [`finish_call`](Self::finish_call) of a reply that has come, if that is all that there is to the call:
    /// it was not broken off, no signals came with it, and the memory takes what it brought. Otherwise
    /// it is still to be finished.
    pub fn finish_plain_call(&mut self, memory: &dyn UserMemory) -> Option<CallReply> {
        let Pending { nr, args, reply, .. } = self.pending.as_mut()?;
        let (header, file) = reply.as_mut()?;
        if header.signals > 0 || header.ret == -i64::from(Errno::EINTR as i32) {
            return None;
        }
        let payload = &self.input[ReplyHeader::SIZE..][..header.length as usize];
        let ret = marshal::decode(*nr, args, header.ret, payload, memory).ok()?;
        let (file, relayed) = (file.take(), header.relayed);
        self.pending = None;
        Some(CallReply { ret, signals: Vec::new(), relayed, file })
    }

    /// Performs an operation.
    ///
    /// # Errors
    /// As [`finish_call`](Self::finish_call).
    pub fn op(&mut self, op: &Op) -> Result<OpReply, ChannelError> {
        self.post(op)?;
        let (header, descriptors) = self.receive(true, Wait::Unless(&|| false))?;
        let payload = self.input[ReplyHeader::SIZE..][..header.length as usize].to_vec();
        Ok(OpReply { ret: header.ret, payload, descriptors, signals: self.signals(&header) })
    }

    /// Sends an operation that has no reply.
    ///
    /// # Errors
    /// If the connection cannot be used.
    pub fn post(&mut self, op: &Op) -> Result<(), ChannelError> {
        if self.pending.is_some() {
            return Err(ChannelError::OutOfTurn);
        }
        let mut output = std::mem::take(&mut self.output);
        output.clear();
        output.resize(RequestHeader::SIZE, 0);
        // It fails only for what cannot be encoded, and an operation can.
        self.output = postcard::to_extend(op, output).map_err(|_| ChannelError::Malformed)?;
        if self.output.len() - RequestHeader::SIZE > MAX_PAYLOAD {
            return Err(ChannelError::Malformed);
        }
        self.send(kind::OP, 0, 0, 0, [0; 6]).map(drop)
    }

    /// Writes the request that `output` holds behind the room for its header.
    fn send(&mut self, kind: u16, nr: u32, blocked: u32, flags: u32, args: [u64; 6]) -> Result<u32, ChannelError> {
        self.seq = self.seq.wrapping_add(1);
        let length = (self.output.len() - RequestHeader::SIZE) as u32;
        let near = std::mem::take(&mut self.near);
        self.was_near = near != 0;
        let header = RequestHeader { kind, near, seq: self.seq, length, nr, blocked, flags, args };
        self.output[..RequestHeader::SIZE].copy_from_slice(&header.encode());
        self.stream.send(&self.output)?;
        self.traffic.sent += self.output.len() as u64;
        if self.output.capacity() > KEEP {
            self.output = Vec::new();
        }
        Ok(self.seq)
    }

    /// Reads a reply into `input`: its header, payload and signals; the files that came with it.
    fn receive(&mut self, takes_files: bool, wait: Wait<'_>) -> Result<(ReplyHeader, Vec<OwnedFd>), ChannelError> {
        let mut reply = std::mem::take(&mut self.coming);
        let received = self.receive_rest(&mut reply, takes_files, wait);
        match (received, reply.header) {
            (Ok(()), Some(header)) => Ok((header, reply.files)),
            (Ok(()), None) => Err(ChannelError::Malformed),
            (Err(error), _) => {
                if matches!(error, ChannelError::GivenUp) {
                    self.coming = reply;
                }
                Err(error)
            }
        }
    }

    fn receive_rest(&mut self, reply: &mut Coming, takes_files: bool, wait: Wait<'_>) -> Result<(), ChannelError> {
        if self.input.len() > KEEP && reply.got == 0 {
            self.input.truncate(INPUT);
            self.input.shrink_to_fit();
        }
        loop {
            let wanted = reply.header.map_or(ReplyHeader::SIZE, |header| length_of(&header));
            while reply.got < wanted {
                let room = &mut self.input[reply.got..];
                let files = takes_files.then_some(&mut reply.files);
                let more = match wait {
                    Wait::NotAtAll => self.stream.receive_now(room, files),
                    Wait::Unless(_) => self.stream.receive(room, files),
                };
                let more = match (more, wait) {
                    (Err(error), Wait::NotAtAll)
                        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                    {
                        return Err(ChannelError::GivenUp);
                    }
                    // What has begun to come comes to its end.
                    (Err(error), Wait::Unless(give_up)) if error.kind() == io::ErrorKind::Interrupted => {
                        if reply.got == 0 && give_up() {
                            return Err(ChannelError::GivenUp);
                        }
                        continue;
                    }
                    (more, _) => more?,
                };
                if more == 0 {
                    return Err(ChannelError::Closed);
                }
                reply.got += more;
            }
            if reply.header.is_some() {
                // Nothing may follow: one request, one reply.
                let clean = reply.got == wanted && reply.files.len() <= MAX_DESCRIPTORS;
                self.traffic.round_trips += 1;
                self.traffic.near_trips += u64::from(self.was_near);
                self.traffic.received += reply.got as u64;
                return if clean { Ok(()) } else { Err(ChannelError::Malformed) };
            }
            let bytes = self.input.first_chunk().ok_or(ChannelError::Malformed)?;
            let read = ReplyHeader::decode(bytes);
            if read.seq != self.seq || read.length as usize > MAX_PAYLOAD || read.signals > MAX_SIGNALS {
                return Err(ChannelError::Malformed);
            }
            if length_of(&read) > self.input.len() {
                self.input.resize(length_of(&read), 0);
            }
            reply.header = Some(read);
        }
    }

    /// The signals behind the payload.
    fn signals(&self, header: &ReplyHeader) -> Vec<SigInfo> {
        let from = ReplyHeader::SIZE + header.length as usize;
        let bytes = self.input[from..].chunks_exact(SIGINFO_SIZE).take(header.signals as usize);
        bytes.filter_map(|info| info.try_into().ok().map(SigInfo)).collect()
    }
}

impl AsFd for CallChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
