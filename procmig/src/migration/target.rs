//! The target of a migration: memory that arrives, and a process that is made from it and waits for its deputy.

pub mod arrival;
mod collecting;
pub mod gathering;
mod making;
mod pages;

pub use making::validate;

use super::cpu::CpuFeatures;
use super::faults::{self, Step};
use super::wire::{Aside, FromSource, MAX_MESSAGE, Offer, Reply};
use crate::kernel::Kernel;
use crate::kernel::links::Link;
use crate::migration::packing::UnpackError;
use crate::mm::image::ImageError;
use crate::wire;
use crate::wire::control::VERSION;
use crate::wire::frame::FrameError;
use crate::wire::link::{LinkSecret, Side, random};
use crate::wire::sealed::StreamKeys;
use crate::wire::stream::{Sealed, Stream, prepare};
use arrival::Arrival;
use gathering::Expected;
use nix::errno::Errno;
use pages::Hold;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use vmm::addr::PAGE_SIZE;

/// How long a source may be silent.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Why a process is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection failed, or the source talks nonsense.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It is not as it should be.
    #[error("the source sent what cannot be right: {0}")]
    Wrong(&'static str),
    /// The address space is not.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A call failed.
    #[error("the node cannot take another process: {}", .0.desc())]
    Refused(Errno),
    /// It has one of this name: it runs here, or has come here in an attempt that is not over yet.
    #[error("process {0} of this home is there, or what has come of it in an earlier attempt that is not over yet")]
    There(i32),
    /// This processor lacks something.
    #[error("the program may use {0}, which this node's processor does not have")]
    Lacks(String),
    /// The source speaks another protocol.
    #[error("this node speaks protocol {VERSION}, the source {0}")]
    Version(u32),
    /// No vCPU.
    #[error("the node cannot run another thread")]
    Machine(#[from] vmm::machine::MachineError),
    /// The deputy is at another host, and has no link with this node.
    #[error("its home has no link with this node")]
    NoLink,
    /// A further stream failed.
    #[error("a stream of its memory failed: {0}")]
    Stream(String),
    /// The source has given it up.
    #[error("the source has given the migration up")]
    Abandoned,
}

impl From<UnpackError> for ReceiveError {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Io(error) => error.into(),
            UnpackError::Wrong => Self::Wrong("compressed pages"),
        }
    }
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        Self::Frame(error.into())
    }
}

/// Serves a source of another host: takes a process and has it wait for its deputy. `socket` is the connection that
/// both `skeind` have made.
///
/// # Errors
/// As [`receive`].
pub fn receive_from_afar(kernel: &Arc<Kernel>, socket: TcpStream, keys: StreamKeys) -> Result<(), FrameError> {
    prepare(&socket)?;
    let beside = (socket.local_addr()?.ip(), LinkSecret::new(&keys, Side::Node));
    let mut stream = Stream::from(Sealed::with_keys(socket, keys).map_err(io::Error::other)?);
    stream.set_patience(Some(PATIENCE))?;
    let offer = stream.receive_message(wire::control::MAX_MESSAGE)?.0;
    receive(kernel, &mut stream, &offer, Some(beside))
}

/// Serves a source on its connection: takes a process and has it wait for its deputy. From another host, further streams
/// come to the address in `beside`, with keys from the secret.
///
/// # Errors
/// If the connection fails; why a process is not taken the source is told.
pub fn receive(
    kernel: &Arc<Kernel>,
    stream: &mut Stream,
    offer: &Offer,
    beside: Option<(IpAddr, LinkSecret)>,
) -> Result<(), FrameError> {
    stream.set_patience(Some(PATIENCE))?;
    match arrive(kernel, stream, offer, beside) {
        Ok(arrival) => {
            let ticket = random()?;
            let collector = arrival.collector();
            kernel.arrivals.enter(ticket, arrival);
            let told = stream.send_message(&Reply::Ready(ticket), &[]);
            // The source says if it comes to nothing; if it is gone only the deputy knows.
            let news = told.is_ok().then(|| stream.receive_message(MAX_MESSAGE).map(|(message, _)| message));
            if matches!(news, None | Some(Ok(FromSource::Abandoned))) {
                drop(kernel.arrivals.take(&ticket));
            }
            kernel.arrivals.wait(&ticket);
            match (collector, news) {
                (Some(collector), Some(Ok(FromSource::Moved))) => collector.collect(kernel, stream),
                (Some(collector), _) => collector.lose(kernel, "the source is gone"),
                (None, _) => {}
            }
            told
        }
        Err(ReceiveError::Abandoned) => Ok(()),
        Err(error) => {
            let reason = crate::chain(&error);
            tracing::info!(pid = offer.pid, reason, "a process is not taken");
            stream.send_message(&Reply::Refused(reason), &[])
        }
    }
}

fn arrive(
    kernel: &Arc<Kernel>,
    stream: &mut Stream,
    offer: &Offer,
    beside: Option<(IpAddr, LinkSecret)>,
) -> Result<Arrival, ReceiveError> {
    faults::at(Step::TargetOffer)?;
    let link = offer.link.map(|id| kernel.links.find(&id).ok_or(ReceiveError::NoLink)).transpose()?;
    consider(kernel, offer, link.as_ref())?;
    let (expected, aside) = expect(kernel, offer.streams, beside).unzip();
    stream.send_message(&Reply::Accepted(aside), &[])?;
    let mut hold = Hold::new(kernel, link);
    loop {
        match stream.receive_message(MAX_MESSAGE)?.0 {
            FromSource::Pages(runs) => {
                faults::at(Step::TargetPages)?;
                hold.first()?.take(stream, &runs, false)?;
            }
            FromSource::Packed(runs) => {
                faults::at(Step::TargetPages)?;
                hold.first()?.take(stream, &runs, true)?;
            }
            FromSource::Image(image) => {
                faults::at(Step::TargetImage)?;
                return hold.make(stream, *image, offer.pid);
            }
            FromSource::Abandoned => return Err(ReceiveError::Abandoned),
            FromSource::Owed(runs) => hold.owe(&runs)?,
            FromSource::Spread(streams) => hold.first()?.spread(streams)?,
            FromSource::Gather => {
                let expected = expected.as_ref().filter(|_| !hold.is_whole());
                let expected = expected.ok_or(ReceiveError::Wrong("streams that nobody has told of"))?;
                let stripes = hold.first()?.stripes();
                hold.parts.extend(expected.gather(stripes)?);
            }
            FromSource::Descriptors | FromSource::Moved => {
                return Err(ReceiveError::Wrong("what comes behind an image before it"));
            }
        }
    }
}

/// Where further streams are taken, if some are offered and can be.
fn expect(kernel: &Arc<Kernel>, streams: u32, beside: Option<(IpAddr, LinkSecret)>) -> Option<(Expected<'_>, Aside)> {
    if streams == 0 {
        return None;
    }
    let (address, secret) = beside.unzip();
    let port = address.map(|address| kernel.port_at(address)).transpose();
    let opened = port.and_then(|port| Ok((port, Expected::new(kernel, streams, secret)?)));
    let (port, expected) = opened.inspect_err(|error| tracing::info!(%error, "no further streams")).ok()?;
    let aside = Aside { ticket: expected.ticket, streams: expected.most(), port };
    Some((expected, aside))
}

/// Whether a process can be taken.
fn consider(kernel: &Kernel, offer: &Offer, link: Option<&Arc<Link>>) -> Result<(), ReceiveError> {
    if offer.version != VERSION {
        return Err(ReceiveError::Version(offer.version));
    }
    let home = link.map_or(0, |link| link.home.number);
    if kernel.process_of(home, offer.pid).is_some() {
        return Err(ReceiveError::There(offer.pid));
    }
    let missing = offer.fpu.1 & !kernel.fpu.features();
    if missing != 0 {
        let names = (0..64).filter(|bit| missing & 1 << bit != 0).map(state_name).collect::<Vec<_>>();
        return Err(ReceiveError::Lacks(names.join(", ")));
    }
    let missing = offer.cpu.lacking(&CpuFeatures::here());
    if !missing.is_empty() {
        return Err(ReceiveError::Lacks(missing.join(", ")));
    }
    let frames = kernel.machine.frames();
    if offer.bytes > u64::from(frames.free()) * PAGE_SIZE {
        return Err(ReceiveError::Image(ImageError::OutOfMemory));
    }
    Ok(())
}

/// What a bit of XCR0 stands for.
fn state_name(bit: u32) -> String {
    match bit {
        1 => "SSE".to_owned(),
        2 => "AVX".to_owned(),
        5..=7 => "AVX-512".to_owned(),
        9 => "memory protection keys".to_owned(),
        other => format!("extended state {other}"),
    }
}
