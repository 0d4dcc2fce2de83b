//! The hidden `skein bench-guest`: one loop, run natively and in a node, that prints nanoseconds
//! per operation.

pub mod files;
pub mod holding;
mod memory;
mod processes;
mod work;

use super::stats::Spread;
use anyhow::Context;
use clap::{Args, ValueEnum};
use std::convert::Infallible;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

pub use memory::{Area, PAGE};

/// Bytes of a forwarded call's request and reply without arguments.
pub const REQUEST: usize = procmig::wire::call::RequestHeader::SIZE;
/// See [`REQUEST`].
pub const REPLY: usize = procmig::wire::call::ReplyHeader::SIZE;

/// Which loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loop {
    /// Loads of 8 bytes at random places, each place known only from the load before
    MemoryRandom,
    /// Loads of 8 bytes one after the other
    MemoryStream,
    /// First writes to the pages of new memory
    Touch,
    /// A system call that a node serves itself
    Sigprocmask,
    /// The clock, read by the C library
    Clock,
    /// The process's ID
    Getpid,
    /// The thread's ID
    Gettid,
    /// The same of one of two threads
    GettidOfTwo,
    /// A system call that a node forwards
    Getppid,
    /// Reads of the file `--path`, in blocks of `--bytes`
    Read,
    /// Writes to the file `--path`, in blocks of `--bytes`
    Write,
    /// Reads of blocks of `--bytes` from a pipe into which a child writes them
    Pipe,
    /// Writes blocks of `--bytes` to standard output as long as somebody reads them
    Pour,
    /// The same to TCP, sealed
    PourSealed,
    /// Forks of a process with `--bytes` of memory
    Fork,
    /// Starts of /bin/true
    Spawn,
    /// Holds `--bytes` of noise until it is killed, and writes to `--count` bytes of its pages a second; writes to the
    /// file `--path`, if it is named, what pauses it sees
    HoldNoise,
    /// The same with zeros and text
    HoldHalf,
    /// Computes for `--count` microseconds eight times, and reads a block of `--bytes` of the file `--path` after each
    WorkAndRead,
    /// The same, and writes
    WorkAndWrite,
    /// Answers requests on standard input, a socket, until it ends
    Echo,
}

/// Arguments of `skein bench-guest`.
#[derive(Debug, Clone, Args)]
pub struct GuestArgs {
    /// Which loop
    #[arg(value_enum)]
    pub which: Loop,
    /// Size of the memory or of a block; of memory that is read, a power of two
    #[arg(long, default_value_t = 1 << 30)]
    pub bytes: usize,
    /// The file
    #[arg(long, default_value = "")]
    pub path: String,
    /// How many operations
    #[arg(long, default_value_t = 10_000)]
    pub count: u64,
}

impl GuestArgs {
    /// So many operations.
    pub fn new(which: Loop, count: u64) -> Self {
        Self { which, bytes: 0, path: String::new(), count }
    }

    /// As one types them.
    pub fn as_arguments(&self) -> Vec<String> {
        let which = self.which.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
        let options = [("--bytes", self.bytes.to_string()), ("--path", self.path.clone())];
        let options = options.into_iter().chain([("--count", self.count.to_string())]);
        std::iter::once(which).chain(options.flat_map(|(name, value)| [name.to_owned(), value])).collect()
    }
}

/// Runs the loop.
pub fn main(args: GuestArgs) -> anyhow::Result<()> {
    let nanos = match args.which {
        Loop::MemoryRandom => memory::random(&memory::filled(args.bytes)?, args.count),
        Loop::MemoryStream => memory::stream(&memory::filled(args.bytes)?, args.count),
        Loop::Touch => memory::touch(args.bytes, args.count)?,
        Loop::Sigprocmask => always(args.count, || {
            let mut old = 0u64;
            // SAFETY: no new set is given, and `old` has the size that the last argument says.
            unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, 0usize, &raw mut old, 8usize) }
        }),
        Loop::Clock => {
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).context("there is no clock")?;
            always(args.count, || nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC))
        }
        Loop::Getpid => always(args.count, std::process::id),
        Loop::Gettid => always(args.count, nix::unistd::gettid),
        Loop::GettidOfTwo => beside_another(|| always(args.count, nix::unistd::gettid)),
        Loop::Read => files::read(Path::new(&args.path), args.bytes, args.count)?,
        Loop::Write => files::write(Path::new(&args.path), args.bytes, args.count)?,
        Loop::Pipe => files::pipe(args.bytes, args.count)?,
        Loop::HoldNoise => held(&args, holding::Content::Noise)?,
        Loop::HoldHalf => held(&args, holding::Content::Half)?,
        Loop::Pour => return files::pour(args.bytes),
        Loop::PourSealed => return files::pour_sealed(args.bytes),
        Loop::Fork => processes::forked(args.bytes, args.count)?,
        Loop::Spawn => processes::spawned(args.count)?,
        // SAFETY: it takes no argument and cannot fail.
        Loop::Getppid => always(args.count, || unsafe { libc::syscall(libc::SYS_getppid) }),
        Loop::WorkAndRead => worked(&args, false)?,
        Loop::WorkAndWrite => worked(&args, true)?,
        Loop::Echo => return echo(),
    };
    Ok(crate::output::print(&format!("{nanos}\n"))?)
}

/// Does it while another thread sleeps.
fn beside_another(act: impl FnOnce() -> f64) -> f64 {
    let (over, sleeps) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || sleeps.recv());
        let nanos = act();
        drop(over);
        nanos
    })
}

fn held(args: &GuestArgs, content: holding::Content) -> anyhow::Result<f64> {
    let diary = Some(Path::new(&args.path)).filter(|_| !args.path.is_empty());
    match holding::hold(args.bytes, args.count, content, diary)? {}
}

fn worked(args: &GuestArgs, writes: bool) -> std::io::Result<f64> {
    work::work(Path::new(&args.path), args.bytes, WORK_STEPS, Duration::from_micros(args.count), writes)
}

/// Blocks of a [`Loop::WorkAndRead`].
pub const WORK_STEPS: u64 = 8;

/// Most batches that a loop is measured in.
const BATCHES: u64 = 51;

/// Operations of a batch.
fn batch(count: u64) -> u64 {
    count.div_ceil(BATCHES).max(1)
}

/// Operations that are made first and not timed: they fill caches, and in a node its tables.
fn untimed(count: u64) -> u64 {
    count / 20 + 1
}

/// How many operations [`timed`] makes where so many are asked for.
pub fn operations(count: u64) -> u64 {
    untimed(count) + count.div_ceil(batch(count)).max(1) * batch(count)
}

/// Nanoseconds of an operation: the median over batches, so that other programs of the machine,
/// which take the CPU away now and then, do not show.
pub fn timed<T, E>(count: u64, operation: impl FnMut() -> Result<T, E>) -> Result<f64, E> {
    Ok(batches(count, operation)?.map_or(0.0, |spread| spread.median))
}

/// Nanoseconds of an operation, by batches.
fn batches<T, E>(count: u64, mut operation: impl FnMut() -> Result<T, E>) -> Result<Option<Spread>, E> {
    for _ in 0..untimed(count) {
        black_box(operation()?);
    }
    let batch = batch(count);
    let mut times = Vec::new();
    for _ in 0..count.div_ceil(batch).max(1) {
        let started = Instant::now();
        for _ in 0..batch {
            black_box(operation()?);
        }
        times.push(started.elapsed().as_nanos() as f64 / batch as f64);
    }
    Ok(Spread::of(times))
}

/// The mean of the lowest tenth of the batches: for what is to be as fast as natively.
fn at_best<T>(count: u64, mut operation: impl FnMut() -> T) -> f64 {
    let Ok(spread) = batches(count, || Ok::<T, Infallible>(operation()));
    spread.map_or(0.0, |spread| spread.tenth)
}

fn always<T>(count: u64, mut operation: impl FnMut() -> T) -> f64 {
    let Ok(nanos) = timed(count, || Ok::<T, Infallible>(operation()));
    nanos
}

fn echo() -> anyhow::Result<()> {
    use std::os::fd::AsFd;
    let socket = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut request = [0; REQUEST];
    while (&socket).read_exact(&mut request).is_ok() {
        (&socket).write_all(&[0; REPLY])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_as_they_are_made() {
        for count in [1, 20, 51, 1000] {
            let mut made = 0;
            always(count, || made += 1);
            assert_eq!(made, operations(count));
        }
    }
}
