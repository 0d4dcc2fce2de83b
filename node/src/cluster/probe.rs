//! Measuring a connection between hosts, over a stream that was handed over as those of programs and migrations are.
//!
//! The opener sends orders of 16 bytes, a kind and a number: [`ECHO`] (a message of 64 bytes follows and is sent back),
//! [`SINK`] (so many bytes follow, then one byte is sent back), [`SOURCE`] (so many bytes are sent back).

use super::contact;
use super::link::{Handed, LinkError};
use super::membership::Membership;
use super::wire::control::Measured;
use super::wire::message::Purpose;
use super::wire::roster::Member;
use procmig::wire::sealed::SealedStream;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ECHO: u64 = 1;
const SINK: u64 = 2;
const SOURCE: u64 = 3;
const MESSAGE: usize = 64;
/// Round trips that are measured.
const ROUNDS: usize = 200;
/// Bytes of one write.
const CHUNK: usize = 64 << 10;
/// Most bytes of an order.
pub const MOST_BYTES: u64 = 4 << 30;
/// Most probes that are answered at a time: they use as much of a processor as they get.
const MOST: usize = 2;
/// How long the other side may say nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long all of it may take.
const WHOLE: Duration = Duration::from_secs(50);

/// Answers a probe until its opener is done.
///
/// # Errors
/// [`LinkError`]
pub async fn answer(handed: Handed) -> Result<(), LinkError> {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    struct Place;
    impl Drop for Place {
        fn drop(&mut self) {
            RUNNING.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let place = Place;
    if RUNNING.fetch_add(1, Ordering::Relaxed) >= MOST {
        return Err(LinkError::Refused("too many probes at once".to_owned()));
    }
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        serve(handed)
    });
    work.await.map_err(|error| LinkError::Broken(io::Error::other(error)))?.map_err(LinkError::of)
}

fn open(handed: &Handed) -> io::Result<SealedStream<TcpStream>> {
    handed.socket.set_read_timeout(Some(PATIENCE))?;
    handed.socket.set_write_timeout(Some(PATIENCE))?;
    SealedStream::new(handed.socket.try_clone()?, handed.keys.clone()).map_err(io::Error::other)
}

fn order(kind: u64, number: u64) -> [u8; 16] {
    let mut order = [0; 16];
    order[..8].copy_from_slice(&kind.to_le_bytes());
    order[8..].copy_from_slice(&number.to_le_bytes());
    order
}

fn serve(handed: Handed) -> io::Result<()> {
    let mut stream = open(&handed)?;
    let deadline = Instant::now() + WHOLE;
    let mut buffer = vec![0; CHUNK];
    loop {
        let got = stream.read(&mut buffer[..16])?;
        if got == 0 {
            return stream.finish();
        }
        stream.read_exact(&mut buffer[got..16])?;
        let word = |at: usize| u64::from_le_bytes(buffer[at..at + 8].try_into().expect("8 bytes"));
        match (word(0), word(8)) {
            (ECHO, _) => {
                stream.read_exact(&mut buffer[..MESSAGE])?;
                stream.write_all(&buffer[..MESSAGE])?;
            }
            (SINK, bytes) if bytes <= MOST_BYTES => {
                take(&mut stream, bytes, &mut buffer, deadline)?;
                stream.write_all(&[1])?;
            }
            (SOURCE, bytes) if bytes <= MOST_BYTES => give(&mut stream, bytes, &buffer, deadline)?,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "an unknown order")),
        }
    }
}

fn in_time(deadline: Instant) -> io::Result<()> {
    if Instant::now() > deadline {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the measurement takes too long; give a smaller --size"));
    }
    Ok(())
}

fn take(stream: &mut impl Read, mut bytes: u64, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while bytes > 0 {
        let most = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        let got = stream.read(&mut buffer[..most])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes -= got as u64;
        in_time(deadline)?;
    }
    Ok(())
}

fn give(stream: &mut impl Write, mut bytes: u64, buffer: &[u8], deadline: Instant) -> io::Result<()> {
    while bytes > 0 {
        let some = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        stream.write_all(&buffer[..some])?;
        bytes -= some as u64;
        in_time(deadline)?;
    }
    Ok(())
}

/// Measures the connection with a member.
///
/// # Errors
/// [`LinkError`]
pub async fn measure(membership: &Membership, member: &Member, bytes: u64) -> Result<Measured, LinkError> {
    let (link, _, address) = contact::connect(membership, member, Purpose::Probe).await?;
    let handed = link.hand_over()?;
    let cipher = format!("{:?}", handed.keys.send.cipher);
    let work = tokio::task::spawn_blocking(move || run(&handed, bytes.min(MOST_BYTES)));
    let result = work.await.map_err(|error| LinkError::Broken(io::Error::other(error)))?;
    let (trips, to_ns, from_ns) = result.map_err(LinkError::of)?;
    Ok(Measured {
        host: member.name.clone(),
        address,
        cipher,
        shortest_ns: trips[0],
        median_ns: trips[trips.len() / 2],
        bytes: bytes.min(MOST_BYTES),
        to_ns,
        from_ns,
    })
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Round trips in order of their length, and how long the bytes took there and back.
fn run(handed: &Handed, bytes: u64) -> io::Result<(Vec<u64>, u64, u64)> {
    let mut stream = open(handed)?;
    let deadline = Instant::now() + WHOLE;
    let mut buffer = vec![0; CHUNK];
    let mut message = [7; 16 + MESSAGE];
    message[..16].copy_from_slice(&order(ECHO, 0));
    let mut trips = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut buffer[..MESSAGE])?;
        trips.push(nanoseconds(sent));
        in_time(deadline)?;
    }
    trips.sort_unstable();
    let begun = Instant::now();
    stream.write_all(&order(SINK, bytes))?;
    give(&mut stream, bytes, &buffer, deadline)?;
    stream.read_exact(&mut buffer[..1])?;
    let to_ns = nanoseconds(begun);
    let begun = Instant::now();
    stream.write_all(&order(SOURCE, bytes))?;
    take(&mut stream, bytes, &mut buffer, deadline)?;
    let from_ns = nanoseconds(begun);
    stream.finish()?;
    Ok((trips, to_ns, from_ns))
}
