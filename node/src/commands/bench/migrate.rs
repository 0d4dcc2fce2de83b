//! Migrations between two nodes of the host, and between two hosts.

use super::criu;
use super::diary::Diary;
use super::guest::holding::now;
use super::guest::{Area, GuestArgs, Loop, files};
use super::remote;
use super::report::Outcome;
use super::setting::Bench;
use super::stats::{Spread, pairs};
use crate::client::Client;
use crate::cluster::wire::message::Manner;
use crate::hostd::protocol::Migrate;
use crate::name::NodeName;
use crate::sandbox::{Sandbox, check_interrupted};
use anyhow::{Context, ensure};
use procmig::migration::record::Record;
use procmig::wire::control::PostCopy;
use procmig::wire::sealed::SealedStream;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long a process may stand still, in microseconds.
const MAX_FREEZE: u64 = 20_000;
/// Bytes of a write of the bare stream, as of a round's batch.
const BLOCK: usize = 2 << 20;

/// Where a process goes from the bench's node, and back.
enum Other<'a> {
    /// Another node of the host, until this is dropped.
    Node(&'a Bench, NodeName),
    /// Another host, over loopback.
    Host { bench: &'a Bench, _other: Sandbox },
}

impl<'a> Other<'a> {
    fn launch(bench: &'a Bench) -> anyhow::Result<Self> {
        let node: NodeName = "other".parse()?;
        bench.sandbox.launch(node.clone(), None)?;
        Ok(Self::Node(bench, node))
    }

    fn bench(&self) -> &'a Bench {
        let (Self::Node(bench, _) | Self::Host { bench, .. }) = self;
        bench
    }

    /// Starts a process that holds memory.
    fn hold(&self, which: Loop, bytes: usize, rate: u64) -> anyhow::Result<Holder<'_>> {
        self.start(GuestArgs { bytes, ..GuestArgs::new(which, rate) })
    }

    /// The same that writes down what pauses it sees.
    fn hold_with_diary(&self, bytes: usize, rate: u64) -> anyhow::Result<(Holder<'_>, Diary)> {
        let diary = Diary(self.bench().sandbox.directory().join("diary"));
        let path = diary.0.display().to_string();
        Ok((self.start(GuestArgs { bytes, path, ..GuestArgs::new(Loop::HoldNoise, rate) })?, diary))
    }

    fn start(&self, args: GuestArgs) -> anyhow::Result<Holder<'_>> {
        let bench = self.bench();
        let program = bench.loop_of(&args)?;
        let mut command = bench.sandbox.mosrun(&bench.node, &program)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut holder = Holder { other: self, child, is_away: false };
        let mut line = String::new();
        BufReader::new(holder.child.stdout.take().context("a child without its output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the program says {line:?}");
        // What is made at the first migration is there for those that are measured.
        holder.migrate()?;
        holder.migrate()?;
        Ok(holder)
    }
}

impl Drop for Other<'_> {
    fn drop(&mut self) {
        if let Self::Node(bench, node) = self {
            let _ = bench.sandbox.stop(node.clone());
        }
    }
}

/// A process that holds memory, until this is dropped.
struct Holder<'a> {
    other: &'a Other<'a>,
    child: Child,
    is_away: bool,
}

impl Holder<'_> {
    /// Has it go to the other node, or back.
    fn migrate(&mut self) -> anyhow::Result<Record> {
        self.migrate_with(PostCopy::Never, None)
    }

    fn migrate_with(&mut self, post_copy: PostCopy, streams: Option<u32>) -> anyhow::Result<Record> {
        check_interrupted()?;
        let bench = self.other.bench();
        let to = match self.other {
            _ if self.is_away => format!("home/{}", bench.node),
            Other::Node(_, node) => node.to_string(),
            Other::Host { .. } => "other".to_owned(),
        };
        let to = to.strip_prefix("home/").filter(|_| matches!(self.other, Other::Node(..))).unwrap_or(&to);
        let manner = Manner { max_freeze_micros: MAX_FREEZE, bandwidth: None, post_copy, streams };
        let order = Migrate { pid: self.child.id() as i32, home: None, to: to.to_owned(), manner };
        let record = Client::connect_or_start(bench.sandbox.state())?.migrate(order, &mut |_| {})?;
        self.is_away = !self.is_away;
        Ok(record)
    }
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a process stands still of whose memory nothing is written.
pub fn idle(bench: &Bench) -> anyhow::Result<Outcome> {
    freeze(bench, 64 << 20, 0)
}

/// How long a process stands still that writes to its memory.
pub fn dirty(bench: &Bench) -> anyhow::Result<Outcome> {
    freeze(bench, bench.pick(1 << 30, 1 << 28), 50_000_000)
}

fn freeze(bench: &Bench, bytes: usize, rate: u64) -> anyhow::Result<Outcome> {
    let other = Other::launch(bench)?;
    let mut holder = other.hold(Loop::HoldNoise, bytes, rate)?;
    let mut records: Vec<Record> = Vec::new();
    for _ in 0..bench.pick(20, 4) {
        if rate > 0 {
            // So that as much is written as between migrations of a user's.
            std::thread::sleep(Duration::from_millis(50));
        }
        records.push(holder.migrate()?);
    }
    let millis = |value: &dyn Fn(&Record) -> u64| -> Vec<f64> {
        records.iter().map(|record| value(record) as f64 / 1e3).collect()
    };
    let median = |values: Vec<f64>| Spread::of(values).map_or(0.0, |spread| spread.median);
    let rounds = Spread::of(records.iter().map(|record| record.rounds.len() as f64));
    let note = format!(
        "until its threads stood still {:.2} ms, home's decision {:.2} ms; {:.0} rounds, {:.0} ms in all",
        median(millis(&|record| record.stop_micros)),
        median(millis(&|record| record.commit_micros)),
        rounds.map_or(0.0, |rounds| rounds.median),
        median(millis(&|record| record.total_micros)),
    );
    Ok(Outcome::alone(&millis(&|record| record.freeze_micros)).with_note(note))
}

/// The longest pause that a process sees that goes to another node, beside one that CRIU dumps and restores. It wakes
/// up each millisecond to look at the clock.
pub fn criu(bench: &Bench) -> anyhow::Result<Outcome> {
    const BYTES: usize = 64 << 20;
    if let Err(why) = criu::is_here(BYTES) {
        return Ok(Outcome::none(why));
    }
    let other = Other::launch(bench)?;
    let (mut holder, diary) = other.hold_with_diary(BYTES, 0)?;
    let migration = || {
        diary.await_line()?;
        let start = now()?;
        holder.migrate()?;
        Ok(diary.since(start)?.longest.as_secs_f64() * 1e3)
    };
    Ok(Outcome::of(&pairs(bench.pick(11, 3), || criu::pause(bench, BYTES), migration)?))
}

/// The longest pause that a process sees whose memory follows it to another node, to all of which it writes.
pub fn follow(bench: &Bench) -> anyhow::Result<Outcome> {
    followed(bench, &Other::launch(bench)?)
}

/// The same to another host.
pub fn follow_far(bench: &Bench) -> anyhow::Result<Outcome> {
    followed(bench, &Other::Host { bench, _other: remote::other_host(bench)? })
}

fn followed(bench: &Bench, other: &Other<'_>) -> anyhow::Result<Outcome> {
    /// Bytes whose pages are written to each second.
    const RATE: u64 = 200_000_000;
    let bytes = bench.pick(1 << 30, 1 << 28);
    let (mut holder, diary) = other.hold_with_diary(bytes, RATE)?;
    let (mut pauses, mut freezes, mut times, mut speeds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.pick(20, 4) {
        let start = now()?;
        std::thread::sleep(Duration::from_millis(100));
        let before = diary.since(start)?;
        let start = now()?;
        let record = holder.migrate_with(PostCopy::Always, None)?;
        let meanwhile = diary.since(start)?;
        let millis = |micros: u64| micros as f64 / 1e3;
        pauses.push(meanwhile.longest.as_secs_f64() * 1e3);
        freezes.push(millis(record.freeze_micros));
        times.push(millis(record.post_copy.micros));
        speeds.push(meanwhile.pages_a_second() / before.pages_a_second());
    }
    let median = |values: Vec<f64>| Spread::of(values).map_or(0.0, |spread| spread.median);
    let note = format!(
        "it stood still for {:.2} ms, all of its memory was there {:.0} ms later; from the order until then it did {:.0} % of \
         its work",
        median(freezes),
        median(times),
        median(speeds) * 100.0,
    );
    Ok(Outcome::alone(&pauses).with_note(note))
}

/// How long memory takes that cannot be compressed, against a stream of as many bytes. Both put them into memory that
/// was not used before, which the host has to find first, and to fetch from below where it is a virtual machine
/// itself: that takes up to several times what the copying does.
pub fn stream(bench: &Bench) -> anyhow::Result<Outcome> {
    beside_stream(bench, &Other::launch(bench)?, poured)
}

/// The same to another host, against a stream that is sealed likewise and does nothing else.
pub fn sealed(bench: &Bench) -> anyhow::Result<Outcome> {
    beside_stream(bench, &Other::Host { bench, _other: remote::other_host(bench)? }, poured_sealed)
}

/// A migration of noise, against so many bytes that are `poured`, which says how many milliseconds they took.
fn beside_stream(
    bench: &Bench,
    other: &Other<'_>,
    poured: impl Fn(&Bench, usize) -> anyhow::Result<f64>,
) -> anyhow::Result<Outcome> {
    let bytes = bench.pick(1 << 30, 1 << 28);
    let mut holder = other.hold(Loop::HoldNoise, bytes, 0)?;
    let migration = || Ok(holder.migrate()?.total_micros as f64 / 1e3);
    let outcome = Outcome::of(&pairs(bench.pick(9, 3), || poured(bench, bytes), migration)?);
    let rate = |spread: Option<Spread>| spread.map_or(0.0, |spread| bytes as f64 / 1e6 / spread.median);
    let note = format!("GB/s: {:.2}, of the bare stream {:.2}", rate(outcome.skein), rate(outcome.peer));
    Ok(outcome.with_note(note))
}

/// Milliseconds in which another process sends so many bytes over a Unix stream to new memory.
fn poured(bench: &Bench, bytes: usize) -> anyhow::Result<f64> {
    let (ours, theirs) = UnixStream::pair()?;
    pour(bench, Loop::Pour, bytes, theirs.into(), ours)
}

/// The same over sealed TCP.
fn poured_sealed(bench: &Bench, bytes: usize) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    pour(bench, Loop::PourSealed, bytes, theirs.into(), SealedStream::new(ours, files::sealing())?)
}

fn pour(bench: &Bench, which: Loop, bytes: usize, theirs: OwnedFd, mut ours: impl Read) -> anyhow::Result<f64> {
    let mut command = bench.sandbox.command("skein")?;
    let args = GuestArgs { bytes: BLOCK, ..GuestArgs::new(which, 0) };
    command.arg("bench-guest").args(args.as_arguments()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::from(theirs)).spawn()?;
    // It holds the other end until it is gone.
    drop(command);
    let mut first = vec![1; BLOCK];
    // It has started.
    ours.read_exact(&mut first)?;
    let started = Instant::now();
    let mut area = Area::new(bytes)?;
    area.ask_for_huge_pages();
    let read = area.bytes().chunks_mut(BLOCK).try_for_each(|block| ours.read_exact(block));
    let millis = started.elapsed().as_secs_f64() * 1e3;
    drop((ours, area));
    child.wait()?;
    read?;
    Ok(millis)
}

/// The same memory to another host over two connections, against one.
pub fn streams(bench: &Bench) -> anyhow::Result<Outcome> {
    let bytes = bench.pick(1 << 30, 1 << 28);
    let other = Other::Host { bench, _other: remote::other_host(bench)? };
    let holder = RefCell::new(other.hold(Loop::HoldNoise, bytes, 0)?);
    let over = |streams: u32| {
        let record = holder.borrow_mut().migrate_with(PostCopy::Never, Some(streams))?;
        ensure!(record.streams == streams, "{} connections in the place of {streams}", record.streams);
        Ok(record.total_micros as f64 / 1e3)
    };
    let outcome = Outcome::of(&pairs(bench.pick(9, 3), || over(1), || over(2))?);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(outcome.with_note(format!("{processors} processors for both hosts")))
}

/// How long memory takes that is half zeros and half text, against what cannot be compressed: over one connection, since
/// with more of them on one machine none of its processors is left over for anything.
pub fn sparse(bench: &Bench) -> anyhow::Result<Outcome> {
    half(bench, &Other::launch(bench)?)
}

/// The same to another host.
pub fn text(bench: &Bench) -> anyhow::Result<Outcome> {
    half(bench, &Other::Host { bench, _other: remote::other_host(bench)? })
}

fn half(bench: &Bench, other: &Other<'_>) -> anyhow::Result<Outcome> {
    let bytes = bench.pick(1 << 30, 1 << 28);
    let noise = RefCell::new(other.hold(Loop::HoldNoise, bytes, 0)?);
    let mut half = other.hold(Loop::HoldHalf, bytes, 0)?;
    let millis = |record: &Record| record.total_micros as f64 / 1e3;
    let last = RefCell::new(Record::default());
    let migration = || {
        let record = half.migrate_with(PostCopy::Never, Some(1))?;
        let took = millis(&record);
        *last.borrow_mut() = record;
        Ok(took)
    };
    let incompressible = || Ok(millis(&noise.borrow_mut().migrate_with(PostCopy::Never, Some(1))?));
    let outcome = Outcome::of(&pairs(bench.pick(9, 3), incompressible, migration)?);
    let last = last.take();
    let (pages, zeros) = last.rounds.iter().fold((0, 0), |sum, round| (sum.0 + round.pages, sum.1 + round.zeros));
    let megabytes = |bytes: u64| bytes / 1_000_000;
    Ok(outcome.with_note(format!(
        "{pages} pages were sent, {zeros} as zeros, {} MB, {} uncompressed",
        megabytes(last.bytes),
        megabytes(last.uncompressed)
    )))
}
