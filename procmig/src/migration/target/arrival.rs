//! A process that has arrived and waits for its deputy.

use super::ReceiveError;
use super::collecting::Collector;
use crate::channel::CallChannel;
use crate::kernel::affinity::CpuSet;
use crate::kernel::deadline::Deadline;
use crate::kernel::guest::{Again, GuestThread, Start};
use crate::kernel::links::Link;
use crate::kernel::lock;
use crate::kernel::pool::Worker;
use crate::kernel::process::{Ending, Presence, Process};
use crate::kernel::thread::ThreadSignals;
use crate::migration::faults::{self, Step};
use crate::migration::image::{ForwardedCall, ThreadImage};
use crate::migration::wire::Ticket;
use crate::mm::AddressSpace;
use crate::signal;
use crate::signal::set::SignalSet;
use crate::wire::stream::Stream;
use nix::errno::Errno;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use vmm::regs::Regs;

/// How long a process that has arrived waits for its deputy.
const WAIT: Duration = Duration::from_secs(3);

/// A process that waits for its deputy. If it comes to nothing it is dropped: the deputy keeps the process where
/// it was.
pub struct Arrival {
    process: Arc<Process>,
    space: Arc<AddressSpace>,
    leader_seq: Option<u32>,
    /// Threads without connections.
    waiting: Vec<(ThreadImage, Worker)>,
    /// Threads that can run.
    ready: Vec<(GuestThread, ThreadImage, Worker)>,
    is_running: bool,
}

/// Processes that wait for their deputies.
#[derive(Default)]
pub struct Arrivals {
    waiting: Mutex<HashMap<Ticket, Arrival>>,
    changed: Condvar,
}

impl Arrivals {
    /// Has a process wait.
    pub(super) fn enter(&self, ticket: Ticket, arrival: Arrival) {
        lock(&self.waiting).insert(ticket, arrival);
    }

    /// Takes the process with this ticket.
    pub fn take(&self, ticket: &Ticket) -> Option<Arrival> {
        let taken = lock(&self.waiting).remove(ticket);
        self.changed.notify_all();
        taken
    }

    /// Waits until somebody has taken it; else it is given up after a while.
    pub(super) fn wait(&self, ticket: &Ticket) {
        let waiting = lock(&self.waiting);
        let wait = self.changed.wait_timeout_while(waiting, WAIT, |waiting| waiting.contains_key(ticket));
        drop(wait);
        drop(self.take(ticket));
    }
}

impl Arrival {
    /// A process that the node knows already; its threads get vCPUs.
    ///
    /// # Errors
    /// If there are not so many.
    pub(super) fn new(
        process: Arc<Process>,
        space: Arc<AddressSpace>,
        leader_seq: Option<u32>,
        threads: Vec<ThreadImage>,
    ) -> Result<Self, ReceiveError> {
        let kernel = process.kernel.clone();
        let mut arrival =
            Self { process, space, leader_seq, waiting: Vec::new(), ready: Vec::new(), is_running: false };
        // The last is connected first.
        for thread in threads.into_iter().rev() {
            let worker = kernel.pool.acquire()?;
            arrival.waiting.push((thread, worker));
        }
        Ok(arrival)
    }

    /// Who is to bring what the source keeps of its memory.
    pub(super) fn collector(&self) -> Option<Collector> {
        Collector::new(&self.process, &self.space)
    }

    /// Connects the process's threads with their deputies, one of which can then have it [`run`](Self::run).
    ///
    /// # Errors
    /// If a thread's connection is missing, or it may not have so many threads.
    pub fn connect(&mut self, mut calls: HashMap<i32, Stream>) -> Result<(), ReceiveError> {
        faults::at(Step::TargetAdopt)?;
        let mut channel = |tid, seq| {
            let stream = calls.remove(&tid).ok_or(ReceiveError::Wrong("a thread has no connection"))?;
            stream.set_patience(None)?;
            stream.last();
            let mut channel = CallChannel::over(stream);
            channel.continue_from(seq);
            Ok::<_, ReceiveError>(channel)
        };
        if let Some(seq) = self.leader_seq {
            self.process.keep_leader_channel(channel(self.process.pid, seq)?);
        }
        while let Some((image, worker)) = self.waiting.pop() {
            let guest = channel(image.tid, image.seq)
                .and_then(|channel| guest_thread(&self.process, &self.space, &image, &worker, channel));
            match guest {
                Ok(guest) => self.ready.push((guest, image, worker)),
                Err(error) => {
                    self.waiting.push((image, worker));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether the deputy has this migration of the process in mind.
    pub fn is_for(&self, epoch: u32) -> bool {
        self.process.epoch.load(Ordering::SeqCst) == epoch
    }

    /// Whether its deputy is at the other end of this link, or on this host.
    pub fn is_over(&self, link: Option<&Arc<Link>>) -> bool {
        match (self.process.group.link(), link) {
            (Some(own), Some(link)) => Arc::ptr_eq(own, link),
            (own, link) => own.is_none() && link.is_none(),
        }
    }

    /// Runs the process: it is this node's from now on.
    pub fn run(mut self, control: Stream) {
        control.last();
        self.process.set_control(control);
        // It is this node's, whatever happens here.
        let _ = faults::at(Step::TargetRun);
        self.process.set_presence(Presence::Here);
        let kernel = self.process.kernel.clone();
        if let Err(error) = kernel.relay.add(&self.process) {
            tracing::error!(pid = self.process.pid, %error, "a deputy's control connection");
            self.process.begin_exit(Ending::Lost);
        }
        kernel.timers.resume(&self.process);
        for (guest, image, worker) in std::mem::take(&mut self.ready) {
            let start = Start { regs: frame_regs(image.regs), bases: image.bases, fpu: image.fpu, child_tid: None };
            let in_call = image.call.is_some();
            worker.run(move |cpu| guest.run_from(cpu, start, in_call));
        }
        // What came while it had no threads here.
        self.process.pass_on(SignalSet::ALL);
        self.leader_seq = None;
        // Nothing is left to be undone.
        self.waiting.clear();
        self.is_running = true;
    }
}

/// Registers as a program may have them.
fn frame_regs(words: [u64; 18]) -> Regs {
    let regs = Regs::from_words(words);
    Regs { rflags: signal::frame::user_flags(regs.rflags), ..regs }
}

/// A thread as its image says.
fn guest_thread(
    process: &Arc<Process>,
    space: &Arc<AddressSpace>,
    image: &ThreadImage,
    worker: &Worker,
    mut channel: CallChannel,
) -> Result<GuestThread, ReceiveError> {
    let mut again = Again::default();
    if let Some(call) = &image.call {
        if let Some(ForwardedCall { nr, args, flags }) = call.forwarded {
            channel.resume_call(nr, args, flags);
        }
        again = Again { deadline: call.deadline.map(|at| Deadline::at(process, at)), progress: call.progress };
    }
    let signals = ThreadSignals {
        mask: image.mask.blockable(),
        saved_mask: image.saved_mask.map(SignalSet::blockable),
        awaited: SignalSet::EMPTY,
        pending: image.pending.clone(),
        chosen: image.chosen,
        altstack: image.altstack,
    };
    let refused = ReceiveError::Refused(Errno::EAGAIN);
    let Some(permit) = process.group.admit() else { return Err(refused) };
    let guest = GuestThread::enter(process, image.tid, signals, worker, channel, space.clone(), permit);
    let Some(mut guest) = guest else { return Err(refused) };
    guest.again = again;
    guest.last_fault = image.last_fault;
    guest.thread.clear_tid.store(image.clear_tid, Ordering::Relaxed);
    guest.thread.robust_list.store(image.robust_list, Ordering::Relaxed);
    guest.thread.continue_from(image.usage);
    guest.thread.charged.store(image.charged, Ordering::Relaxed);
    if let Some(cpus) = image.affinity.as_deref().and_then(CpuSet::from_bytes) {
        guest.thread.set_affinity(cpus);
    }
    guest.thread.continue_hidden(image.at_home.as_deref().and_then(CpuSet::from_bytes));
    Ok(guest)
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.is_running {
            return;
        }
        let kernel = self.process.kernel.clone();
        for (guest, _, worker) in std::mem::take(&mut self.ready) {
            self.space.part(&guest.thread.gate);
            self.process.remove_thread(&guest.thread);
            guest.thread.leave_host_thread();
            kernel.pool.release(worker);
        }
        for (_, worker) in std::mem::take(&mut self.waiting) {
            kernel.pool.release(worker);
        }
        kernel.timers.forget(&self.process);
        kernel.leave(&self.process);
        self.process.set_space(None);
    }
}
