//! Connections over a relay that cuts them where a seed says: what one end sends comes at the other once and in its order.

use super::super::sealed::{Cipher, DirectionKeys};
use super::*;
use fastrand::Rng;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// The sealers and openers of both ends, with keys of this number.
fn ends(number: u64) -> [(Sealer, Opener); 2] {
    let keys = |direction: u8| {
        let mut key = vec![direction; 16];
        key[..8].copy_from_slice(&number.to_le_bytes());
        DirectionKeys { cipher: Cipher::Aes128Gcm, key, iv: [direction; 12], number: 0 }
    };
    let end = |send: u8, receive: u8| {
        (Sealer::new(keys(send)).expect("good keys"), Opener::new(keys(receive)).expect("good keys"))
    };
    [end(1, 2), end(2, 1)]
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let one = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let other = listener.accept().expect("it has connected").0;
    (one, other)
}

/// Has the other side see that the network has lost the connection.
fn reset(socket: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = std::mem::size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the kernel reads one `linger`.
    let set = unsafe {
        let linger = (&raw const linger).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, linger, length)
    };
    assert_eq!(set, 0);
}

/// Two sockets with a relay between, which resets both when it has passed so many bytes one of the ways.
fn cut_after(bytes: u64) -> (TcpStream, TcpStream) {
    let ((one, near), (far, other)) = (pair(), pair());
    let passed = Arc::new(AtomicU64::new(0));
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        let passed = passed.clone();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let before = passed.load(Ordering::SeqCst);
                let most = chunk.len().min(bytes.saturating_sub(before) as usize);
                match if most == 0 { Ok(0) } else { from.read(&mut chunk[..most]) } {
                    Ok(got @ 1..) if to.write_all(&chunk[..got]).is_ok() => {
                        passed.fetch_add(got as u64, Ordering::SeqCst);
                    }
                    _ => break,
                }
            }
            // Who waits in the other direction is woken by this, and both are closed when it has gone.
            for socket in [&from, &to] {
                reset(socket);
                let _ = socket.shutdown(Shutdown::Read);
            }
        });
    };
    let copy = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
    pass(copy(&near), copy(&far));
    pass(far, near);
    (one, other)
}

struct Alarm(Mutex<Sender<()>>);

impl Watcher for Alarm {
    fn is_lost(&self, _: &io::Error) {
        // Whoever makes another may have ended.
        let _ = lock(&self.0).send(());
    }
}

/// The bytes that are sent one way.
fn content(from: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Rng::with_seed(from).fill(&mut bytes);
    bytes
}

/// Makes another socket whenever one is lost, until all is `done`; gives how often.
fn mend(
    seed: u64,
    mut random: Rng,
    lost: &Receiver<()>,
    done: &AtomicBool,
    [a, b]: [&Arc<Lasting<TcpStream>>; 2],
) -> u64 {
    let mut count = 0;
    while !done.load(Ordering::SeqCst) {
        // That none comes is seen by `done`.
        let _ = lost.recv_timeout(Duration::from_millis(5));
        while a.is_lost() {
            count += 1;
            let (one, other) = cut_after(random.u64(..1 << 18));
            let [(sealer_a, mut opener_a), (sealer_b, opener_b)] = ends(seed << 32 | count);
            let reopened = a.reopen(count, |received| {
                let b = b.clone();
                // That fails as the socket does.
                let accept = move || drop(b.accept(&other, sealer_b, opener_b, count, received));
                thread::spawn(accept);
                opener_a.open_one(&mut &one)?;
                Ok((one, sealer_a, opener_a))
            });
            if let Err(error) = reopened {
                assert!(a.is_lost(), "seed {seed}: {error}");
            }
        }
    }
    count
}

/// Reads so much, and then goes on to look for losses, until all is `done`.
fn reads(of: &Lasting<TcpStream>, length: usize, now: bool, done: &AtomicBool) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut chunk = [0; 3000];
    while !done.load(Ordering::SeqCst) {
        match of.receive(&mut chunk, now) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => all.extend_from_slice(&chunk[..got]),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                thread::sleep(Duration::from_micros(100));
            }
            Err(error) => return Err(error),
        }
        if all.len() >= length && !now {
            break;
        }
    }
    Ok(all)
}

fn writes(to: &Lasting<TcpStream>, mut random: Rng, mut bytes: &[u8], done: &AtomicBool) -> io::Result<()> {
    while !bytes.is_empty() && !done.load(Ordering::SeqCst) {
        let (chunk, rest) = bytes.split_at(random.usize(1..=40_000).min(bytes.len()));
        if chunk.len() > 1000 {
            to.send(chunk)?;
        } else if !to.try_send(chunk)? {
            thread::yield_now();
            continue;
        }
        bytes = rest;
    }
    Ok(())
}

/// Has the others end when one has ended too early.
fn or_all<T>(done: &AtomicBool, result: io::Result<T>) -> io::Result<T> {
    result.inspect_err(|_| done.store(true, Ordering::SeqCst))
}

/// Sends both ways over connections that are cut, and gives how often they were.
fn goes_on(seed: u64, length: usize) -> u64 {
    let mut random = Rng::with_seed(seed);
    let (one, other) = cut_after(random.u64(..1 << 16));
    let [a, b] = ends(seed << 32);
    let a = Arc::new(Lasting::new(one, a.0, a.1, 0, true));
    let b = Arc::new(Lasting::new(other, b.0, b.1, 0, true));
    a.last();
    b.last();
    let (lost, mender) = channel();
    a.watch(Box::new(Alarm(Mutex::new(lost))));
    let mut part = || random.fork();
    let (first, second, third) = (part(), part(), part());
    let (to_b, to_a) = (content(seed, length), content(!seed, length / 2));
    let done = &AtomicBool::new(false);
    let (end_a, end_b, to_b, to_a) = (&a, &b, &to_b, &to_a);
    thread::scope(|scope| {
        let ends = [end_a, end_b];
        let mend = scope.spawn(move || mend(seed, first, &mender, done, ends));
        let at_a = scope.spawn(move || or_all(done, reads(end_a, to_a.len(), true, done)));
        let at_b = scope.spawn(move || or_all(done, reads(end_b, to_b.len(), false, done)));
        let from_a = scope.spawn(move || or_all(done, writes(end_a, second, to_b, done)));
        let from_b = scope.spawn(move || or_all(done, writes(end_b, third, to_a, done)));
        let written = [from_a, from_b].map(|writer| writer.join().expect("no panic"));
        let at_b = at_b.join().expect("no panic");
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while at_b.is_ok() && a.received.load(Ordering::SeqCst) < to_a.len() as u64 && std::time::Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        done.store(true, Ordering::SeqCst);
        let at_a = at_a.join().expect("no panic");
        assert!(
            written.iter().all(Result::is_ok) && at_a.is_ok() && at_b.is_ok(),
            "{seed}: {written:?} {:?} {:?}",
            at_a.err(),
            at_b.err()
        );
        assert!(
            at_a.as_ref().ok() == Some(to_a) && at_b.as_ref().ok() == Some(to_b),
            "seed {seed}: something else has come"
        );
        mend.join().expect("no panic")
    })
}

#[test]
fn what_is_sent_comes_once_however_it_is_cut() {
    let cuts: u64 = (0..24).map(|seed| goes_on(seed, 3 << 20)).sum();
    assert!(cuts > 100, "{cuts} cuts");
}

#[test]
fn one_that_does_not_last_ends_with_its_socket() {
    let (one, other) = cut_after(0);
    let [a, b] = ends(0);
    // What is not kept cannot be waited for.
    let a = Lasting::new(one, a.0, a.1, 0, false);
    let b = Lasting::new(other, b.0, b.1, 0, true);
    a.last();
    let _ = b.send(b"x");
    for end in [a, b] {
        assert!(end.receive(&mut [0; 8], false).is_err() && !end.waits());
    }
}

#[test]
fn one_that_is_closed_has_ended() {
    let (one, other) = pair();
    let [a, _] = ends(0);
    let a = Lasting::new(one, a.0, a.1, 0, true);
    a.last();
    drop(other);
    assert_eq!(a.receive(&mut [0; 8], false).expect_err("nobody is there").kind(), io::ErrorKind::UnexpectedEof);
    assert!(!a.waits());
}

#[test]
fn what_the_peer_cannot_have_ends_it() {
    let [(_, other), (next, last)] = [pair(), pair()];
    let (one, far) = pair();
    let ([a, b], [c, d]) = (ends(0), ends(1));
    let a = Lasting::new(one, a.0, a.1, 0, true);
    a.last();
    a.send(b"four").expect("it is there");
    drop((b, d, other, far));
    let error = a.accept(&next, c.0, c.1, 1, 5).expect_err("it has four");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(a.has_ended() && a.send(b"more").is_err());
    drop(last);
}

#[test]
fn what_was_left_is_sent_when_it_is_asked_for() {
    let (one, other) = pair();
    let [(sealer, opener), _] = ends(0);
    let (told, heirs) = channel();
    let a = Lasting::new(one, sealer, opener, 7, true);
    a.last();
    let told = Mutex::new(told);
    a.bequeath(Box::new(move |remains| lock(&told).send(remains).expect("there is one")));
    a.send(b"the end").expect("it is there");
    drop((a, other));
    let remains = heirs.try_recv().expect("something is left");
    assert_eq!(remains.tag, 7);
    let [(sealer, _), (_, mut opener)] = ends(1);
    let mut sent = Vec::new();
    remains.send(&mut sent, sealer, 4).expect("memory");
    let mut room = [0; 8];
    let got = opener.receive(&mut &sent[..], &mut room).expect("it was sealed");
    assert_eq!((&room[..got], opener.counts()), (&b"end"[..], (3, 0)));
}
