//! A real deputy in a child process, and the node's part played by the test.

#![allow(dead_code, reason = "each test file uses its part of it")]

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use procmig::channel::{CallChannel, CallReply, ChannelError, OpReply};
use procmig::deputy::{self, Setup};
use procmig::usermem::UserMemory;
use procmig::wire::control::{Attach, Ids, MAX_REQUEST, NodeRequest, ToDeputy, VERSION};
use procmig::wire::frame;
use procmig::wire::op::Op;
use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use vmm::addr::GuestVirtAddr;

/// Where the fake memory starts.
pub const BASE: u64 = 0x10_000;

/// A guest's memory: bytes from [`BASE`].
pub struct FakeMemory(pub RefCell<Vec<u8>>);

impl FakeMemory {
    pub fn new(length: usize) -> Self {
        Self(RefCell::new(vec![0; length]))
    }

    /// Puts bytes at an offset and gives their address.
    pub fn put(&self, offset: usize, bytes: &[u8]) -> u64 {
        self.0.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
        BASE + offset as u64
    }

    pub fn get(&self, offset: usize, length: usize) -> Vec<u8> {
        self.0.borrow()[offset..offset + length].to_vec()
    }

    pub fn word(&self, offset: usize) -> i32 {
        i32::from_le_bytes(self.get(offset, 4).try_into().unwrap())
    }
}

impl UserMemory for FakeMemory {
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        let from = address.0.checked_sub(BASE).ok_or(Errno::EFAULT)? as usize;
        let memory = self.0.borrow();
        buffer.copy_from_slice(memory.get(from..from + buffer.len()).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, address: GuestVirtAddr, bytes: &[u8]) -> Result<(), Errno> {
        let from = address.0.checked_sub(BASE).ok_or(Errno::EFAULT)? as usize;
        let mut memory = self.0.borrow_mut();
        memory.get_mut(from..from + bytes.len()).ok_or(Errno::EFAULT)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// A deputy and the node's ends of its connections.
pub struct Deputy {
    pub pid: Pid,
    pub control: UnixStream,
    pub call: CallChannel,
    pub memory: FakeMemory,
}

pub fn attach() -> Attach {
    Attach {
        version: VERSION,
        pid: 0,
        parent: 1,
        program: b"/bin/prog".to_vec(),
        argv: vec![b"prog".to_vec()],
        environment: Vec::new(),
        ignored_signals: 0,
        blocked_signals: 0,
        ids: Ids { uid: 0, euid: 0, gid: 0, egid: 0 },
        limits: Vec::new(),
        trace: false,
        report: false,
        memory_limit: None,
        max_threads: None,
        job: None,
    }
}

/// Closes what a child inherited from tests that run at the same time, whose connections would not
/// end otherwise.
fn close_others(keep: &[Option<i32>]) {
    for fd in (3..4096).filter(|&fd| !keep.contains(&Some(fd))) {
        // SAFETY: what owned it is in the parent.
        unsafe { libc::close(fd) };
    }
}

impl Deputy {
    pub fn start() -> Self {
        Self::start_with(attach(), None, || ())
    }

    /// Starts a deputy; `prepare` runs in its process before it.
    pub fn start_with(attach: Attach, trace: Option<OwnedFd>, prepare: impl FnOnce()) -> Self {
        let (node, control) = UnixStream::pair().expect("a socket pair");
        // SAFETY: the child runs the deputy and nothing else.
        match unsafe { fork() }.expect("a fork") {
            ForkResult::Child => {
                drop(control);
                prepare();
                close_others(&[Some(node.as_raw_fd()), trace.as_ref().map(AsRawFd::as_raw_fd)]);
                let error = deputy::run(Setup {
                    node: node.into(),
                    node_name: "n1".into(),
                    attach,
                    trace,
                    finder: None,
                    home_timeout: 0,
                    reporter: None,
                });
                eprintln!("{error:?}");
                std::process::abort();
            }
            ForkResult::Parent { child } => {
                drop(node);
                let (request, mut passed) = frame::receive::<NodeRequest>(&control, MAX_REQUEST).expect("a request");
                assert!(matches!(request, NodeRequest::Attach(_)));
                assert_eq!(passed.len(), 1);
                let call = CallChannel::new(passed.remove(0).into());
                Self { pid: child, control, call, memory: FakeMemory::new(1 << 20) }
            }
        }
    }

    pub fn try_call(&mut self, nr: i64, args: &[u64]) -> Result<CallReply, ChannelError> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        match self.call.begin_call(nr as u32, &all, 0, &self.memory) {
            Ok(_) => self.call.finish_call(&self.memory),
            Err(procmig::channel::BeginError::Errno(errno)) => {
                Ok(CallReply { ret: -(errno as i64), signals: Vec::new(), relayed: 0, file: None })
            }
            Err(procmig::channel::BeginError::Channel(error)) => Err(error),
        }
    }

    pub fn reply(&mut self, nr: i64, args: &[u64]) -> CallReply {
        self.try_call(nr, args).expect("a reply")
    }

    pub fn sys(&mut self, nr: i64, args: &[u64]) -> i64 {
        self.reply(nr, args).ret
    }

    pub fn op(&mut self, op: &Op) -> OpReply {
        self.call.op(op).expect("a reply")
    }

    pub fn post(&mut self, op: &Op) {
        self.call.post(op).expect("an operation");
    }

    pub fn cancel(&self, tid: i32, seq: u32) {
        frame::send(&self.control, &ToDeputy::Cancel { tid, seq }, &[]).expect("a control connection");
    }

    pub fn wait(&self) -> WaitStatus {
        waitpid(self.pid, None).expect("a child")
    }

    pub fn is_alive(&self) -> bool {
        matches!(waitpid(self.pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
    }

    pub fn exit(mut self) {
        self.post(&Op::Exit { status: 0 });
        assert_eq!(self.wait(), WaitStatus::Exited(self.pid, 0));
    }
}
