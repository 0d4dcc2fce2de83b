//! What this node tells others of the host about its processes, and what it asks them.

use super::Kernel;
use super::affinity::CpuSet;
use super::housekeeping::process_of_thread;
use super::neighbours::{LOOK, PATIENCE};
use super::proc_files::{Target, Viewer, strings, tell};
use super::process::{Presence, Process};
use crate::mm::segments::last_user;
use crate::wire::bytes::Bytes;
use crate::wire::control::Ids;
use crate::wire::inquiry::{File, Inquiry, LastUse, SegmentUse, Told};
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// How long a process whose end is known at home may take to end here, so that who asks has an answer in
/// [`ENDING`](super::neighbours::ENDING).
const LINGER: Duration = Duration::from_secs(10);
/// How long reading a process's memory may take.
const READING: Duration = Duration::from_secs(4);

/// How long a process that stands still waits for others.
const HURRY: Duration = Duration::from_millis(200);

/// A process is being taken to another node, which may not hear of what it is told here.
pub struct Busy;

impl Process {
    /// Has a thread run on the CPUs that are chosen, and tells on which its deputy's thread may run by rights if home's
    /// kernel may not.
    ///
    /// # Errors
    /// If it is to be told so again in a moment.
    fn cpus(&self, tid: i32, chosen: Option<CpuSet>) -> Result<Option<CpuSet>, Busy> {
        let told = self.thread(tid).and_then(|thread| thread.cpus(chosen));
        if chosen.is_some() && self.freezer.is_wanted() { Err(Busy) } else { Ok(told) }
    }
}

/// Where a process is.
pub enum Found {
    /// In this node.
    Here(Arc<Process>),
    /// In another, which has said this.
    There(Told),
}

impl Kernel {
    /// The process of this host with this PID, or what its node says; `None` if no node of this host has it.
    /// On its way from one node to another it is waited for.
    pub fn find(&self, pid: i32, inquiry: impl FnOnce() -> Inquiry) -> Option<Found> {
        if let Some(process) = self.process_of(0, pid).filter(|process| process.presence() == Presence::Here) {
            return Some(Found::Here(process));
        }
        // Most PIDs are no guest's.
        self.neighbours.place_of(pid)?;
        let inquiry = inquiry();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let node = self.neighbours.place_of(pid)?;
            let is_here = node == std::process::id();
            let process = self.process_of(0, pid);
            match process.as_ref().map(|process| process.presence()) {
                Some(Presence::Here) => return process.map(Found::Here),
                // It is not here any more, but the other has not said that it is there.
                Some(Presence::Arriving | Presence::Gone) if is_here => std::thread::sleep(LOOK),
                _ if is_here => return None,
                _ => match self.neighbours.ask(node, &inquiry, deadline)? {
                    Told::Nothing if self.neighbours.place_of(pid) == Some(node) => return None,
                    Told::Nothing => {}
                    Told::Arriving => std::thread::sleep(LOOK),
                    told => return Some(Found::There(told)),
                },
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }

    /// The process of a home with this PID, if it is here, or about to be.
    pub fn settled(&self, home: u32, pid: i32) -> Option<Arc<Process>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let process = self.process_of(home, pid)?;
            match process.presence() {
                Presence::Here => return Some(process),
                Presence::Gone => return None,
                Presence::Arriving if Instant::now() >= deadline => return None,
                Presence::Arriving => std::thread::sleep(LOOK),
            }
        }
    }

    /// Answers another node.
    pub fn answer(&self, inquiry: &Inquiry) -> Told {
        match *inquiry {
            Inquiry::File { pid, thread, file, caller } => self.tell(pid, thread, file, caller),
            Inquiry::Ended { pid, reaped } => {
                if let Some(process) = self.process_of(0, pid).filter(|process| process.presence() == Presence::Here) {
                    // The news of its deputy's end are still on their way here.
                    process.wait_until_left(LINGER);
                }
                let used = if reaped { self.take_usage(0, pid) } else { self.usage(0, pid) };
                used.map_or(Told::Nothing, Told::Used)
            }
            Inquiry::Cpus { pid, tid, ref chosen } => {
                self.tell_cpus(pid, tid, chosen.as_deref().and_then(CpuSet::from_bytes))
            }
            Inquiry::Segment { id } => {
                // The node's part of an ended process lasts a little longer than the process.
                self.leaving.wait(super::memory_short::LINGER);
                let (mappings, last) = self.segments.own_use(id);
                Told::Segment { mappings: mappings as u64, last }
            }
        }
    }

    /// How the nodes of this host use a segment themselves.
    pub fn segment_uses(&self, id: i32, limit: Duration) -> Vec<SegmentUse> {
        let (mappings, last) = self.segments.own_use(id);
        let mut uses = self.neighbours.segment_uses(id, limit);
        uses.push(SegmentUse { node: std::process::id(), mappings: mappings as u64, last });
        uses
    }

    /// A process comes that has a segment attached: the node is about to attach it too, and will seem to have been
    /// the last who did. Notes who it was.
    pub fn expect_segment(&self, id: i32) {
        let Some(pid) = last_user(id) else { return };
        // The process stands still meanwhile.
        let uses = self.segment_uses(id, HURRY);
        if !uses.iter().any(|used| used.node == pid as u32) {
            self.segments.note(id, pid);
        } else if let Some(last) = latest(&uses) {
            self.segments.note_last(id, last);
        }
    }

    fn tell(&self, pid: i32, thread: Option<i32>, file: File, caller: Ids) -> Told {
        let Some(process) = self.process_of(0, pid) else { return Told::Nothing };
        match process.presence() {
            Presence::Here => {}
            Presence::Arriving => return Told::Arriving,
            Presence::Gone => return Told::Nothing,
        }
        let Some(target) = Target::new(process, thread, file) else { return Told::Nothing };
        let viewer = Viewer { ids: caller, here: None };
        tell(&target, &viewer, || self.read_strings(&target.process, file))
    }

    /// The same of a process of this host in whatever node it is; nothing if that cannot be told.
    pub fn cpus(&self, tid: i32, chosen: Option<CpuSet>) -> Option<CpuSet> {
        let pid = process_of_thread(tid)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let inquiry = || Inquiry::Cpus { pid, tid, chosen: chosen.map(CpuSet::to_bytes) };
            match self.find(pid, inquiry)? {
                Found::Here(process) => match process.cpus(tid, chosen) {
                    Ok(told) => return told,
                    Err(Busy) => std::thread::sleep(LOOK),
                },
                Found::There(Told::Cpus(told)) => return CpuSet::from_bytes(&told?),
                Found::There(_) => return None,
            }
        }
        None
    }

    fn tell_cpus(&self, pid: i32, tid: i32, chosen: Option<CpuSet>) -> Told {
        let Some(process) = self.process_of(0, pid) else { return Told::Nothing };
        match process.presence() {
            Presence::Here => {}
            Presence::Arriving => return Told::Arriving,
            Presence::Gone => return Told::Nothing,
        }
        match process.cpus(tid, chosen) {
            Ok(told) => Told::Cpus(told.map(CpuSet::to_bytes)),
            Err(Busy) => Told::Arriving,
        }
    }

    /// Reads a process's memory, for which a vCPU is needed: pages may have to be mapped.
    fn read_strings(&self, process: &Arc<Process>, file: File) -> Result<Bytes, Errno> {
        let worker = self.pool.acquire().map_err(|_| Errno::EAGAIN)?;
        let (sender, receiver) = sync_channel(1);
        let process = process.clone();
        worker.run(move |cpu| {
            // Who asked may have given up.
            let _ = sender.send(strings(cpu, &process, file));
            None
        });
        receiver.recv_timeout(READING).map(Bytes).map_err(|_| Errno::EAGAIN)
    }
}

/// The last attachment or detachment that any of them knows.
pub fn latest(uses: &[SegmentUse]) -> Option<LastUse> {
    uses.iter().filter_map(|used| used.last).max_by_key(|last| last.at)
}
