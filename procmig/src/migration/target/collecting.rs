//! What the source has kept of a process that runs here by now: it is asked for, what threads wait for first.

use super::pages::{Coming, Form};
use super::{PATIENCE, ReceiveError};
use crate::kernel::Kernel;
use crate::kernel::process::{Ending, Presence, Process};
use crate::migration::faults::{self, Step};
use crate::migration::packing::Unpacker;
use crate::migration::wire::{Content, FromSource, MAX_MESSAGE, Owner, Reply, Run, bytes_of};
use crate::mm::AddressSpace;
use crate::mm::owed::Owed;
use crate::wire::control::ToDeputy;
use crate::wire::stream::Stream;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Pages that are asked for at once.
const BATCH: u64 = 64;
/// Pages that are on their way at a time, at least: what a thread waits for comes behind them.
const WINDOW: u64 = 128;

/// Who brings a process's pages.
pub(super) struct Collector {
    process: Arc<Process>,
    /// Not kept: when nobody uses it, no page is needed any more.
    space: Weak<AddressSpace>,
    owed: Arc<Owed>,
}

impl Collector {
    /// For a process that arrives, if pages of it are to come.
    pub(super) fn new(process: &Arc<Process>, space: &Arc<AddressSpace>) -> Option<Self> {
        let owed = space.owed()?.clone();
        Some(Self { process: process.clone(), space: Arc::downgrade(space), owed })
    }

    /// Collects all of them. If that fails, all processes that need them end.
    pub(super) fn collect(self, kernel: &Kernel, stream: &mut Stream) {
        match self.all(kernel, stream) {
            Ok(()) => tracing::debug!(pid = self.process.pid, "all of its memory is here"),
            Err(error) => self.lose(kernel, &crate::chain(&error)),
        }
    }

    fn all(&self, kernel: &Kernel, stream: &mut Stream) -> Result<(), ReceiveError> {
        let (mut hidden, mut unpacker) = (Vec::new(), Unpacker::default());
        stream.set_patience(Some(PATIENCE))?;
        loop {
            // The other users are address spaces, of forked children too.
            while Arc::strong_count(&self.owed) > 1 && self.owed.asked() < WINDOW {
                let wanted = self.owed.next(BATCH);
                if wanted.is_empty() {
                    break;
                }
                stream.send_message(&Reply::Want(wanted), &[])?;
            }
            if self.owed.asked() == 0 {
                break;
            }
            faults::at(Step::TargetCollect)?;
            match stream.receive_message(MAX_MESSAGE)?.0 {
                FromSource::Pages(runs) => self.take(kernel, stream, &runs, Form::Plain, &mut hidden)?,
                FromSource::Packed(runs) => {
                    self.take(kernel, stream, &runs, Form::Packed(&mut unpacker), &mut hidden)?;
                }
                _ => return Err(ReceiveError::Wrong("something else than the pages that it owes")),
            }
        }
        stream.send_message(&Reply::Want(Vec::new()), &[])?;
        if let Some(space) = self.space.upgrade() {
            space.show_all_arrived(&self.owed, &hidden);
        }
        Ok(())
    }

    fn take(
        &self,
        kernel: &Kernel,
        stream: &mut Stream,
        runs: &[Run],
        form: Form<'_>,
        hidden: &mut Vec<Range<u64>>,
    ) -> Result<(), ReceiveError> {
        bytes_of(runs).ok_or(ReceiveError::Wrong("too many pages at once"))?;
        let mut coming = Coming::new(kernel.machine.ram());
        let mut arrived = Vec::new();
        for run in runs {
            if run.owner != Owner::Space || run.content == Content::Nothing {
                return Err(ReceiveError::Wrong("pages that it does not owe"));
            }
            let frames = self.owed.frames(run.first, run.count);
            for span in frames.ok_or(ReceiveError::Wrong("pages that nobody asked for"))? {
                (0..span.count).for_each(|i| coming.add(span.value.offset(i), run.content));
            }
            arrived.push(run.first..run.first + u64::from(run.count));
        }
        // SAFETY: the frames are kept by `owed`, and mapped by none but entries that are absent.
        unsafe { coming.receive(stream, form) }?;
        self.owed.arrived(&arrived);
        // Threads would find each by a fault.
        hidden.extend(arrived);
        if self.space.upgrade().is_none_or(|space| space.show_arrived(&self.owed, hidden)) {
            hidden.clear();
        }
        Ok(())
    }

    /// Ends all processes that need what does not come, if this one runs here.
    pub(super) fn lose(&self, kernel: &Kernel, why: &str) {
        /// How long the deputy may take to decide.
        const DECISION: Duration = Duration::from_secs(3);
        let deadline = Instant::now() + DECISION;
        while self.process.presence() == Presence::Arriving && self.space.strong_count() > 0 {
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let needs_it = |process: &Arc<Process>| {
            let space = process.space();
            process.presence() == Presence::Here
                && space.is_some_and(|space| space.owed().is_some_and(|owed| Arc::ptr_eq(owed, &self.owed)))
        };
        for process in kernel.processes().into_iter().filter(needs_it) {
            tracing::error!(pid = process.pid, why, "its memory was lost on its way from another node");
            process.send(&ToDeputy::MemoryLost);
            process.begin_exit(Ending::Lost);
        }
        self.owed.lose();
    }
}
