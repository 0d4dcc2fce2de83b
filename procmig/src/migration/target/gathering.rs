//! Further streams that bring memory of a process that is on its way, on connections of their own.

use super::pages::Part;
use super::{PATIENCE, ReceiveError};
use crate::kernel::{Kernel, lock, priority};
use crate::migration::faults::{self, Step};
use crate::migration::stripes::Stripes;
use crate::migration::wire::{FromSource, MAX_MESSAGE, MAX_STREAMS, Reply, Ticket};
use crate::wire::frame::FrameError;
use crate::wire::link::{LinkSecret, random};
use crate::wire::stream::Stream;
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Processes that further streams may come for.
#[derive(Default)]
pub struct Gatherings(Mutex<HashMap<Ticket, Arc<Gathering>>>);

/// The further streams of one process.
pub struct Gathering {
    /// Their keys are derived from it, if they come from another host.
    secret: Option<LinkSecret>,
    /// How many may come.
    most: u32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Those that have come; without a socket those that have ended.
    come: HashMap<u32, Option<OwnedFd>>,
    /// What those have brought that have brought all.
    parts: HashMap<u32, Part>,
    failed: Option<String>,
    is_over: bool,
}

/// Streams are taken for a process until this is dropped.
pub(super) struct Expected<'a> {
    kernel: &'a Kernel,
    pub(super) ticket: Ticket,
    gathering: Arc<Gathering>,
}

impl Gatherings {
    /// Whose streams have this ticket.
    pub fn find(&self, ticket: &Ticket) -> Option<Arc<Gathering>> {
        lock(&self.0).get(ticket).cloned()
    }
}

impl<'a> Expected<'a> {
    /// At most so many further streams may come.
    pub(super) fn new(kernel: &'a Kernel, most: u32, secret: Option<LinkSecret>) -> io::Result<Self> {
        let most = most.min(MAX_STREAMS - 1);
        let gathering = Arc::new(Gathering { secret, most, state: Mutex::default(), changed: Condvar::new() });
        let ticket = random()?;
        lock(&kernel.gatherings.0).insert(ticket, gathering.clone());
        Ok(Self { kernel, ticket, gathering })
    }

    /// How many may come.
    pub(super) fn most(&self) -> u32 {
        self.gathering.most
    }

    /// Waits until so many streams, with the first, have brought all that they had to; what that is, in order.
    pub(super) fn gather(&self, stripes: Stripes) -> Result<Vec<Part>, ReceiveError> {
        let wanted = 1..stripes.streams();
        let state = lock(&self.gathering.state);
        let misses = |state: &mut State| {
            state.failed.is_none() && wanted.clone().any(|stream| !state.parts.contains_key(&stream))
        };
        let wait = self.gathering.changed.wait_timeout_while(state, PATIENCE, misses);
        let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = state.failed.take() {
            return Err(ReceiveError::Stream(why));
        }
        let parts: Option<Vec<Part>> = wanted.map(|stream| state.parts.remove(&stream)).collect();
        let parts = parts.ok_or(ReceiveError::Wrong("a stream has not brought all of its pages"))?;
        match parts.iter().all(|part| part.stripes() == stripes) {
            true => Ok(parts),
            false => Err(ReceiveError::Wrong("streams that disagree on how many they are")),
        }
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        lock(&self.kernel.gatherings.0).remove(&self.ticket);
        let mut state = lock(&self.gathering.state);
        state.is_over = true;
        for socket in state.come.values().flatten() {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        let parts = std::mem::take(&mut state.parts);
        drop(state);
        drop(parts);
    }
}

impl Gathering {
    /// What the keys of its streams are derived from, if they come from another host.
    pub fn secret(&self) -> Option<&LinkSecret> {
        self.secret.as_ref()
    }

    /// Serves a further stream until it has brought all that it is to bring, or the process comes to nothing.
    ///
    /// # Errors
    /// If the connection fails; why it is not taken the source is told.
    pub fn serve(&self, kernel: &Arc<Kernel>, stream: &mut Stream, number: u32) -> Result<(), FrameError> {
        priority::go_first();
        if !self.enter(stream, number)? {
            // What somebody repeats is not answered: that would be under keys that were used.
            return Err(io::Error::other("no such stream is expected").into());
        }
        let mut part = Part::new(kernel, number);
        let brought = bring(&mut part, stream);
        let mut state = lock(&self.state);
        state.come.insert(number, None);
        let part = match brought {
            Ok(()) if state.is_over => Some(part),
            Ok(()) => state.parts.insert(number, part),
            Err(_) if state.is_over => Some(part),
            // The source does without it.
            Err(ReceiveError::Frame(_)) if part.stripes() == Stripes::ONE => Some(part),
            Err(error) => {
                let reason = crate::chain(&error);
                tracing::debug!(number, reason, "a stream of a process that arrives");
                state.failed.get_or_insert(reason.clone());
                self.changed.notify_all();
                drop(state);
                drop(part);
                // The source may have given the process up, and is not there any more.
                let _ = stream.send_message(&Reply::Refused(reason), &[]);
                return Ok(());
            }
        };
        self.changed.notify_all();
        drop(state);
        // Its frames are free again, if nobody has asked for it.
        drop(part);
        Ok(())
    }

    /// Whether a stream of this number is taken, which each is once.
    fn enter(&self, stream: &Stream, number: u32) -> io::Result<bool> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        let mut state = lock(&self.state);
        let is_taken = !state.come.contains_key(&number) && !state.is_over && (1..=self.most).contains(&number);
        if is_taken {
            state.come.insert(number, Some(socket));
        }
        Ok(is_taken)
    }
}

/// Takes what a stream brings.
fn bring(part: &mut Part, stream: &mut Stream) -> Result<(), ReceiveError> {
    faults::at(Step::TargetJoin)?;
    stream.send_message(&Reply::Accepted(None), &[])?;
    // How long it may be silent is the first's affair: nothing may be there to be sent over this one.
    stream.set_patience(None)?;
    loop {
        match stream.receive_message(MAX_MESSAGE)?.0 {
            FromSource::Spread(streams) => part.spread(streams)?,
            FromSource::Pages(runs) => {
                faults::at(Step::TargetPages)?;
                part.take(stream, &runs, false)?;
            }
            FromSource::Packed(runs) => {
                faults::at(Step::TargetPages)?;
                part.take(stream, &runs, true)?;
            }
            FromSource::Gather => return Ok(()),
            _ => return Err(ReceiveError::Wrong("something else than pages on a further stream")),
        }
    }
}
