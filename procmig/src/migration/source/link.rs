//! The connection with the target, and what pages look like on it.

use super::{MigrateError, PATIENCE, STOP};
use crate::kernel::Kernel;
use crate::migration::faults::{self, Action, Step};
use crate::migration::packing::{CHUNK, Packing};
use crate::migration::record::Round;
use crate::migration::wire::{Aside, Content, FromSource, Offer, Owner, Reply, Run, Ticket};
use crate::migration::{skip, stripes};
use crate::mm::image::Stretch;
use crate::wire::control::{MAX_MESSAGE, Migrate, NodeRequest, Way};
use crate::wire::frame::{self, FrameError};
use crate::wire::link::{Greeting, LinkSecret, Side, opening, random};
use crate::wire::sealed::{Opener, Sealer, StreamKeys};
use crate::wire::stream::{Sealed, Stream, prepare};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmm::addr::{Frame, PAGE_SIZE};

/// How long a further stream to another host may take to be opened.
const CONNECT: Duration = Duration::from_secs(2);

/// The way to the target.
pub(super) struct Link {
    stream: Stream,
    node: String,
    /// Sent so far.
    pub(super) bytes: u64,
    /// As many as these would be without compression.
    pub(super) uncompressed: u64,
    /// Where pages are copied to before they are sealed.
    room: Vec<u8>,
    /// At which pages are sent.
    step: Step,
    /// Whether they are compressed.
    packing: Packing,
    beside: Beside,
}

/// How further streams to the same target are opened.
#[derive(Debug, Clone)]
enum Beside {
    /// By its socket.
    Socket(Vec<u8>),
    /// At its host; their keys are derived from this.
    Port(IpAddr, LinkSecret),
}

impl Link {
    /// Opens it; `passed` is the connection with a target on another host.
    pub(super) fn open(migrate: &Migrate, passed: Option<OwnedFd>) -> Result<Self, MigrateError> {
        let node = migrate.shown.clone();
        let opened = match (&migrate.way, passed) {
            (Way::Socket(path), _) => {
                UnixStream::connect(OsStr::from_bytes(path)).map(|stream| (stream.into(), Beside::Socket(path.clone())))
            }
            (Way::Passed(keys), Some(socket)) => sealed(TcpStream::from(socket), keys),
            (Way::Passed(_), None) => Err(io::Error::from(io::ErrorKind::NotConnected)),
        };
        opened
            .and_then(|(stream, beside)| Self::over(stream, node.clone(), migrate.bandwidth, beside))
            .map_err(|source| MigrateError::Unreachable { node, source })
    }

    fn over(stream: Stream, node: String, bandwidth: Option<u64>, beside: Beside) -> io::Result<Self> {
        stream.set_patience(Some(PATIENCE))?;
        Ok(Self {
            stream,
            node,
            bytes: 0,
            uncompressed: 0,
            room: Vec::new(),
            step: Step::SourcePages,
            packing: Packing::new(bandwidth),
            beside,
        })
    }

    /// Opens a further stream to the same target, which says that it takes it.
    pub(super) fn another(&self, aside: &Aside, stream: u32) -> io::Result<Self> {
        let mut opened: Stream = match &self.beside {
            Beside::Socket(path) => {
                let mut opened = Stream::from(UnixStream::connect(OsStr::from_bytes(path))?);
                let request = NodeRequest::Join { ticket: aside.ticket, stream };
                opened.send_message(&request, &[]).map_err(io::Error::other)?;
                opened
            }
            Beside::Port(address, secret) => {
                let port = aside.port.ok_or(io::ErrorKind::AddrNotAvailable)?;
                let mut socket = TcpStream::connect_timeout(&SocketAddr::new(*address, port), CONNECT)?;
                prepare(&socket)?;
                let name = random()?;
                let keys = secret.keys(&name, Side::Home);
                let mut sealer = Sealer::new(keys.send).map_err(io::Error::other)?;
                let opener = Opener::new(keys.receive).map_err(io::Error::other)?;
                let greeting = Greeting::new(stream.into(), None);
                socket.write_all(&opening(&aside.ticket, &name, &mut sealer, &greeting)?)?;
                Sealed::new(socket, sealer, opener).into()
            }
        };
        opened.set_patience(Some(CONNECT))?;
        match opened.receive_message(MAX_MESSAGE).map_err(io::Error::other)?.0 {
            Reply::Accepted(_) => {}
            Reply::Refused(reason) => return Err(io::Error::other(reason)),
            Reply::Ready(_) | Reply::Want(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        Self::over(opened, self.node.clone(), self.packing.bandwidth(), self.beside.clone())
    }

    /// Offers a process; where further streams may come.
    pub(super) fn offer(&mut self, offer: Offer) -> Result<Option<Aside>, MigrateError> {
        if self.stream.is_sealed() {
            self.stream.send_message(&offer, &[])?;
        } else {
            self.stream.send_message(&NodeRequest::Receive(offer), &[])?;
        }
        match self.stream.receive_message(MAX_MESSAGE)?.0 {
            Reply::Accepted(aside) => Ok(aside),
            Reply::Refused(reason) => Err(MigrateError::Refused { node: self.node.clone(), reason }),
            Reply::Ready(_) | Reply::Want(_) => Err(MigrateError::Nonsense),
        }
    }

    pub(super) fn send(&mut self, message: &FromSource, descriptors: &[RawFd]) -> Result<(), FrameError> {
        let mut bytes = frame::encode(message)?;
        let step = match message {
            FromSource::Pages(runs) | FromSource::Packed(runs) if !runs.is_empty() => Some(self.step),
            FromSource::Pages(_) | FromSource::Packed(_) | FromSource::Spread(_) | FromSource::Gather => None,
            _ => Some(Step::SourceImage),
        };
        match step.and_then(faults::of_message) {
            Some(Action::Corrupt) => bytes[4..].iter_mut().for_each(|byte| *byte ^= 0xa5),
            Some(Action::Duplicate) => self.stream.send(&bytes.clone())?,
            _ => {}
        }
        self.stream.send_frame(&bytes, descriptors)?;
        self.bytes += bytes.len() as u64;
        self.uncompressed += bytes.len() as u64;
        Ok(())
    }

    /// Tells the target something between pages.
    ///
    /// # Errors
    /// Also what the target says before it is asked: that it does not take the process.
    pub(super) fn tell(&mut self, message: &FromSource) -> Result<(), MigrateError> {
        let sent = match self.stream.has_news() {
            true => Err(MigrateError::Nonsense),
            false => self.send(message, &[]).map_err(MigrateError::from),
        };
        self.or_reason(sent)
    }

    /// Why the target has closed the connection is more than that it has.
    fn or_reason(&mut self, sent: Result<(), MigrateError>) -> Result<(), MigrateError> {
        sent.map_err(|error| if self.stream.has_news() { self.reply().err().unwrap_or(error) } else { error })
    }

    /// Tells the target, which waits for pages, that they are to come.
    pub(super) fn keep_alive(&mut self) -> Result<(), MigrateError> {
        self.tell(&FromSource::Pages(Vec::new()))
    }

    /// The process runs at the target.
    pub(super) fn calm_down(&mut self) -> Result<(), FrameError> {
        self.step = Step::SourceServe;
        Ok(self.stream.set_patience(Some(PATIENCE))?)
    }

    /// The process stands still: nothing may take long any more.
    pub(super) fn hurry(&self) -> Result<(), FrameError> {
        Ok(self.stream.set_patience(Some(STOP))?)
    }

    pub(super) fn reply(&mut self) -> Result<Ticket, MigrateError> {
        match self.stream.receive_message(MAX_MESSAGE)?.0 {
            Reply::Ready(ticket) => Ok(ticket),
            Reply::Refused(reason) => Err(MigrateError::Refused { node: self.node.clone(), reason }),
            Reply::Accepted(_) | Reply::Want(_) => Err(MigrateError::Nonsense),
        }
    }

    /// What the target wants of the pages that it is owed.
    pub(super) fn wanted(&mut self) -> Result<Vec<(u64, u32)>, MigrateError> {
        match self.stream.receive_message(MAX_MESSAGE)?.0 {
            Reply::Want(pages) => Ok(pages),
            Reply::Accepted(_) | Reply::Ready(_) | Reply::Refused(_) => Err(MigrateError::Nonsense),
        }
    }
}

impl Link {
    /// Sends what pages hold; nobody may free their frames meanwhile.
    ///
    /// # Errors
    /// Also what the target says before it is asked: that it does not take the process.
    pub(super) fn send_pages(
        &mut self,
        kernel: &Kernel,
        owner: Owner,
        stretches: &[Stretch],
        round: &mut Round,
    ) -> Result<(), MigrateError> {
        if self.step == Step::SourceServe {
            // It asks for others meanwhile.
            return self.put_pages(kernel, owner, stretches, round);
        }
        let sent = match self.stream.has_news() {
            true => Err(MigrateError::Nonsense),
            false => self.put_pages(kernel, owner, stretches, round),
        };
        self.or_reason(sent)
    }

    fn put_pages(
        &mut self,
        kernel: &Kernel,
        owner: Owner,
        stretches: &[Stretch],
        round: &mut Round,
    ) -> Result<(), MigrateError> {
        let ram = kernel.machine.ram();
        let mut runs: Vec<Run> = Vec::new();
        let mut places: Vec<libc::iovec> = Vec::new();
        for stretch in stretches {
            for i in 0..stretch.count {
                let page = stretch.page + u64::from(i);
                let content = match stretch.frame {
                    None => Content::Nothing,
                    Some(first) if ram.is_zero(first.offset(i)) => {
                        if stretch.is_zero_by_default {
                            continue;
                        }
                        round.zeros += 1;
                        Content::Zeros
                    }
                    Some(first) => {
                        round.pages += 1;
                        add_place(&mut places, ram.host_address(), first.offset(i));
                        Content::Bytes
                    }
                };
                match runs.last_mut() {
                    Some(run)
                        if run.first + u64::from(run.count) == page
                            && !stripes::begins(page)
                            && run.large == stretch.large
                            && run.content == content =>
                    {
                        run.count += 1;
                    }
                    _ => runs.push(Run { owner, first: page, count: 1, large: stretch.large, content }),
                }
            }
        }
        if runs.is_empty() {
            return Ok(());
        }
        let bytes = places.iter().map(|place| place.iov_len as u64).sum::<u64>();
        self.uncompressed += bytes;
        let started = Instant::now();
        let packs = self.packing.is_packed() && bytes > 0;
        self.send(&if packs { FromSource::Packed(runs) } else { FromSource::Pages(runs) }, &[])?;
        let (packing, room) = (&mut self.packing, &mut self.room);
        let sent = match &mut self.stream {
            // Memory of one host is copied faster than compressed.
            // SAFETY: the places are frames of the guest's memory, which is mapped for as long as the kernel is.
            Stream::Local(stream) => unsafe { write_all(stream, &mut places) }.map(|()| bytes),
            // SAFETY: likewise.
            stream => unsafe {
                in_chunks(&places, room, |chunk| {
                    if packs { packing.send(stream, chunk) } else { stream.send(chunk).map(|()| chunk.len() as u64) }
                })
            },
        };
        let sent = sent.map_err(FrameError::from)?;
        self.bytes += sent;
        if self.stream.is_sealed() && bytes > 0 {
            self.packing.note(bytes, sent, started.elapsed());
            if self.packing.wants_trial() && !self.room.is_empty() {
                self.packing.try_with(&self.room);
            }
        }
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A connection with another host, and how others are opened.
fn sealed(socket: TcpStream, keys: &StreamKeys) -> io::Result<(Stream, Beside)> {
    prepare(&socket)?;
    let beside = Beside::Port(socket.peer_addr()?.ip(), LinkSecret::new(keys, Side::Home));
    Ok((Sealed::with_keys(socket, keys.clone()).map_err(io::Error::other)?.into(), beside))
}

fn add_place(places: &mut Vec<libc::iovec>, base: *mut u8, frame: Frame) {
    let at = base.wrapping_add(frame.address().raw() as usize);
    if let Some(last) = places.last_mut()
        && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == at
    {
        last.iov_len += PAGE_SIZE as usize;
    } else {
        places.push(libc::iovec { iov_base: at.cast(), iov_len: PAGE_SIZE as usize });
    }
}

/// Writes all places.
///
/// # Safety
/// They must be valid for reads until it returns.
unsafe fn write_all(stream: &UnixStream, places: &mut [libc::iovec]) -> io::Result<()> {
    const MOST: usize = libc::UIO_MAXIOV as usize;
    let mut rest = places;
    while !rest.is_empty() {
        let count = rest.len().min(MOST) as libc::c_int;
        // SAFETY: as the caller promises.
        let put = unsafe { libc::writev(stream.as_raw_fd(), rest.as_ptr(), count) };
        match put {
            ..0 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            0 => return Err(io::ErrorKind::WriteZero.into()),
            put => rest = skip(rest, put as usize),
        }
    }
    Ok(())
}

/// Copies all places to `room`, a chunk at a time, and has each sent; how many bytes were. The last one stays there.
///
/// # Safety
/// As of [`write_all`]. They may be written meanwhile: what was is sent again in a later round.
unsafe fn in_chunks(
    places: &[libc::iovec],
    room: &mut Vec<u8>,
    mut send: impl FnMut(&[u8]) -> io::Result<u64>,
) -> io::Result<u64> {
    room.clear();
    room.reserve(CHUNK);
    let mut sent = 0;
    for place in places {
        let mut done = 0;
        while done < place.iov_len {
            if room.len() == CHUNK {
                sent += send(room)?;
                room.clear();
            }
            let count = (CHUNK - room.len()).min(place.iov_len - done);
            let from = place.iov_base.cast::<u8>().cast_const().wrapping_add(done);
            // SAFETY: so many bytes can be read, as the caller promises, and there is room for them.
            unsafe {
                std::ptr::copy_nonoverlapping(from, room.as_mut_ptr().add(room.len()), count);
                room.set_len(room.len() + count);
            }
            done += count;
        }
    }
    if !room.is_empty() {
        sent += send(room)?;
    }
    Ok(sent)
}
