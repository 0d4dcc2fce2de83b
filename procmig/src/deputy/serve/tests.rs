//! A process that goes from node to node while its calls are made: each is made once, and its reply comes to where the
//! process is then.

use super::*;
use crate::deputy::threads::NewConnection;
use crate::deputy::{descriptors, threads::THREADS};
use crate::wire::call::ReplyHeader;
use fastrand::Rng;
use std::io::Write;

/// The deputy's end of a new connection, and the node's.
fn connection() -> (Connection, UnixStream) {
    let (deputys, nodes) = UnixStream::pair().expect("descriptors");
    let deputys = Own::new(deputys.into(), &descriptors::making()).expect("descriptors");
    (Connection::local(deputys), nodes)
}

/// A write of four bytes.
fn request(seq: u32, fd: RawFd, number: u32) -> Vec<u8> {
    let header = RequestHeader {
        kind: kind::CALL,
        near: 0,
        seq,
        length: 8,
        nr: libc::SYS_write as u32,
        blocked: 0,
        flags: 0,
        args: [fd as u64, 1, 4, 0, 0, 0],
    };
    [&header.encode()[..], &4_u32.to_le_bytes(), &number.to_le_bytes()].concat()
}

fn spin(random: &mut Rng) {
    let until = Instant::now() + Duration::from_nanos(random.u64(..30_000));
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

#[test]
fn replies_follow_a_process_that_goes_on_and_on() {
    const CALLS: u32 = 10_000;
    const SEED: u64 = 1;
    let random = &mut Rng::with_seed(SEED);
    let (mut numbers, to) = std::io::pipe().expect("descriptors");
    let (deputys, mut node) = connection();
    let (started, starts) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        started.send(kernel::gettid()).expect("it waits");
        let mut server = Server::new(deputys, 0).expect("memory");
        // As `serve`, but that the test may end.
        while server.last != CALLS {
            let header = server.receive().expect("the process is somewhere");
            assert!(server.answer(&header));
        }
        server.thread.unregister();
    });
    let tid = starts.recv().expect("it starts");
    let thread = loop {
        if let Some(thread) = lock(&THREADS).iter().find(|thread| thread.tid == tid) {
            break thread.clone();
        }
    };
    for seq in 1..=CALLS {
        let number = seq - 1;
        node.write_all(&request(seq, to.as_raw_fd(), number)).expect("it is served");
        // The nodes that it leaves while it waits do not read the reply.
        for _ in 0..random.u64(..4) {
            spin(random);
            let (connection, next) = connection();
            thread.reconnect(NewConnection { connection, seq, awaits: true });
            node = next;
        }
        let mut reply = [0; ReplyHeader::SIZE];
        node.read_exact(&mut reply).expect("the reply comes here");
        let reply = ReplyHeader::decode(&reply);
        assert_eq!((reply.seq, reply.ret, reply.length), (seq, 4, 0), "seed {SEED}");
        // Those that it leaves when it has it have nothing to send again.
        for _ in 0..random.u64(..2) {
            let (connection, next) = connection();
            thread.reconnect(NewConnection { connection, seq, awaits: false });
            node = next;
        }
        let mut written = [0; 4];
        numbers.read_exact(&mut written).expect("it was written");
        assert_eq!(u32::from_le_bytes(written), number, "seed {SEED}");
    }
    server.join().expect("no panic");
}
