//! Somebody who has every process of a host migrate all the time, at moments that a seed decides.

use fastrand::Rng;
pub use procmig::migration::record::Record;
pub use procmig::wire::control::PostCopy;
use procmig::wire::control::{MAX_MESSAGE, Migrate, NodeReply, NodeRequest, ProcessStatus, Way};
use procmig::wire::frame;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Migrations that each process shall have, if it lives long enough.
const ENOUGH: u32 = 5;
/// A process that lives shorter may have fewer.
const LONG: Duration = Duration::from_secs(1);

/// How many processes migrate at once: one that takes long must not keep the others where they are.
const AT_ONCE: u64 = 3;

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Each process that was seen.
    pub seen: BTreeMap<i32, Life>,
    /// Refusals, by their sentences without numbers.
    pub refused: BTreeMap<String, u32>,
}

/// What was seen of a process.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// When it was seen first, and last.
    pub from: Instant,
    /// Last.
    pub to: Instant,
    /// Migrations.
    pub moved: u32,
    /// Refusals.
    pub refused: u32,
    /// It is about to migrate.
    is_moving: bool,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moved: u32 = self.seen.values().map(|life| life.moved).sum();
        let count = |is: &dyn Fn(&Life) -> bool| self.seen.values().filter(|life| is(life)).count();
        let is_long = |life: &Life| life.to - life.from >= LONG;
        writeln!(
            f,
            "{moved} migrations of {} processes; {} of them migrated",
            self.seen.len(),
            count(&|l| l.moved > 0)
        )?;
        writeln!(
            f,
            "{} lived for {LONG:?} or longer: {} migrated {ENOUGH} times or more, {} of the others were refused",
            count(&is_long),
            count(&|life| is_long(life) && life.moved >= ENOUGH),
            count(&|life| is_long(life) && life.moved < ENOUGH && life.refused > 0),
        )?;
        write!(f, "refused: {:#?}", self.refused)
    }
}

/// Moves processes until it is stopped.
#[derive(Debug)]
pub struct Mover {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

fn ask(socket: &Path, request: &NodeRequest) -> Result<NodeReply, String> {
    let stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
    frame::send(&stream, request, &[]).map_err(|error| error.to_string())?;
    loop {
        match frame::receive(&stream, MAX_MESSAGE).map_err(|error| error.to_string())?.0 {
            NodeReply::Migration(_) => {}
            reply => return Ok(reply),
        }
    }
}

/// The processes of the node with this socket.
///
/// # Errors
/// If it does not answer.
pub fn processes(socket: &Path) -> Result<Vec<ProcessStatus>, String> {
    match ask(socket, &NodeRequest::Processes)? {
        NodeReply::Processes(processes) => Ok(processes),
        other => Err(format!("{other:?}")),
    }
}

/// Which of several nodes has a process: the one that runs it, or else one that waits to be told to.
pub fn whereabouts<T>(pid: i32, nodes: impl IntoIterator<Item = (T, PathBuf)>) -> Option<T> {
    let of = |(node, socket): (T, PathBuf)| {
        let its = processes(&socket).unwrap_or_default().into_iter().find(|process| process.pid == pid);
        its.map(|process| (node, process))
    };
    // More than one may have seen it, while it went.
    let seen: Vec<(T, ProcessStatus)> = nodes.into_iter().filter_map(of).collect();
    seen.into_iter().min_by_key(|(_, process)| process.arriving).map(|(node, _)| node)
}

/// Has a process go from one node to another.
///
/// # Errors
/// Why it stays.
pub fn migrate(pid: i32, from: &Path, to: &Path) -> Result<Record, String> {
    migrate_with(pid, from, to, PostCopy::Auto, 1)
}

/// The same, with some of its memory behind it, or over so many streams.
///
/// # Errors
/// Why it stays.
pub fn migrate_with(pid: i32, from: &Path, to: &Path, post_copy: PostCopy, streams: u32) -> Result<Record, String> {
    let node = to.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let order = Migrate {
        pid,
        home: None,
        way: Way::Socket(to.as_os_str().as_bytes().to_vec()),
        host: None,
        node: node.clone(),
        shown: node,
        max_freeze_micros: 50_000,
        post_copy,
        bandwidth: None,
        streams: Some(streams),
    };
    match ask(from, &NodeRequest::Migrate(order))? {
        NodeReply::Migrated(record) => Ok(record),
        NodeReply::Refused(reason) => Err(reason),
        other => Err(format!("{other:?}")),
    }
}

impl Mover {
    /// Begins to move the processes of the nodes with these sockets.
    pub fn start(sockets: Vec<PathBuf>, seed: u64) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Tally>>::default());
        let one = |seed: u64| {
            let (stop, tally, sockets) = (stop.clone(), tally.clone(), sockets.clone());
            std::thread::spawn(move || {
                let mut random = Rng::with_seed(seed);
                while !stop.load(Ordering::Relaxed) {
                    turn(&sockets, &mut random, &tally);
                }
            })
        };
        let threads = (0..AT_ONCE).map(|number| one(seed.wrapping_mul(AT_ONCE).wrapping_add(number))).collect();
        Self { stop, tally, threads }
    }

    /// What came of it so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn turn(sockets: &[PathBuf], random: &mut Rng, tally: &Mutex<Tally>) {
    let mut all = Vec::new();
    for (index, socket) in sockets.iter().enumerate() {
        all.extend(processes(socket).unwrap_or_default().into_iter().map(|process| (process.pid, index)));
    }
    let chosen = {
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for &(pid, _) in &all {
            tally.seen.entry(pid).or_insert(Life { from: now, to: now, moved: 0, refused: 0, is_moving: false }).to =
                now;
        }
        all.retain(|(pid, _)| !tally.seen[pid].is_moving);
        // Those that have not gone often enough are the next.
        let is_new = |&&(pid, _): &&(i32, usize)| tally.seen[&pid].moved + tally.seen[&pid].refused < ENOUGH;
        let new: Vec<_> = all.iter().filter(is_new).copied().collect();
        let all = if new.is_empty() { all } else { new };
        let chosen = random.choice(&all).copied();
        if let Some((pid, _)) = chosen {
            tally.seen.entry(pid).and_modify(|life| life.is_moving = true);
        }
        chosen
    };
    let Some((pid, from)) = chosen else {
        std::thread::sleep(Duration::from_millis(1));
        return;
    };
    let to = (from + 1 + random.usize(..sockets.len() - 1)) % sockets.len();
    // Some leave their memory behind, to follow when they run.
    let post_copy = if random.u8(..3) == 0 { PostCopy::Always } else { PostCopy::Auto };
    let streams = random.u32(1..=4);
    let result = migrate_with(pid, &sockets[from], &sockets[to], post_copy, streams);
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.seen.entry(pid).and_modify(|life| {
        life.is_moving = false;
        *(if result.is_ok() { &mut life.moved } else { &mut life.refused }) += 1;
    });
    if let Err(reason) = result {
        let reason: String = reason.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
        *tally.refused.entry(reason).or_default() += 1;
    }
    drop(tally);
    std::thread::sleep(Duration::from_micros(random.u64(..3000)));
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.stop();
    }
}
