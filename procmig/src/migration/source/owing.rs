//! Post-copy: pages that are sent when the process runs at the target already.

use super::MigrateError;
use super::link::Link;
use crate::kernel::Kernel;
use crate::migration::faults::{self, Step};
use crate::migration::record::{Event, Round};
use crate::migration::wire::{Content, FromSource, MAX_PAGES, MAX_RUNS, Owner, Run};
use crate::mm::AddressSpace;
use crate::mm::image::Stretch;
use crate::mm::regions::{Protection, Regions};
use crate::wire::frame::FrameError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vmm::addr::{Frame, PAGE_SIZE};

/// Pages that are owed, with their frames, of each of which this has one user.
pub(super) struct Owing {
    kernel: Arc<Kernel>,
    /// By page: the frame, and whether it is part of a large page.
    pages: BTreeMap<u64, (Frame, bool)>,
}

/// Takes out of `stretches` what can be sent later: all memory but that of code, which the target wants to look at
/// before it runs.
pub(super) fn split(stretches: Vec<Stretch>, space: &AddressSpace) -> (Vec<Stretch>, Vec<Stretch>) {
    let mut regions = Regions::default();
    space.regions().into_iter().for_each(|region| regions.insert(region));
    stretches.into_iter().partition(|stretch| {
        let at = stretch.page * PAGE_SIZE;
        let is_code = |region: &crate::mm::Region| region.protection.contains(Protection::EXECUTE);
        stretch.frame.is_none() || regions.overlapping(at, at + u64::from(stretch.count) * PAGE_SIZE).any(is_code)
    })
}

impl Owing {
    /// Keeps these pages. Nobody may free their frames meanwhile.
    pub(super) fn new(kernel: &Arc<Kernel>, stretches: &[Stretch]) -> Self {
        kernel.owing.fetch_add(1, Ordering::SeqCst);
        let mut pages = BTreeMap::new();
        for stretch in stretches {
            for (page, frame) in (stretch.page..).zip(stretch.frames()) {
                kernel.machine.frames().share(frame);
                pages.insert(page, (frame, stretch.large));
            }
        }
        Self { kernel: kernel.clone(), pages }
    }

    /// Tells the target which they are.
    pub(super) fn announce(&self, link: &mut Link) -> Result<(), MigrateError> {
        let mut messages: Vec<Vec<Run>> = Vec::new();
        let mut left = 0;
        for (&page, &(_, large)) in &self.pages {
            if let Some(Run { first, count, large: of_large, .. }) =
                messages.last_mut().and_then(|runs| runs.last_mut())
                && *first + u64::from(*count) == page
                && *of_large == large
                && left > 0
            {
                *count += 1;
                left -= 1;
                continue;
            }
            let run = Run { owner: Owner::Space, first: page, count: 1, large, content: Content::Bytes };
            match messages.last_mut() {
                Some(runs) if left > 0 && runs.len() < MAX_RUNS => runs.push(run),
                _ => {
                    messages.push(vec![run]);
                    left = MAX_PAGES;
                }
            }
            left -= 1;
        }
        messages.into_iter().try_for_each(|runs| link.send(&FromSource::Owed(runs), &[]))?;
        Ok(())
    }

    /// Sends pages as the target asks for them, until it wants nothing.
    pub(super) fn serve(
        mut self,
        link: &mut Link,
        bandwidth: Option<u64>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Round, MigrateError> {
        /// Between two reports.
        const TELL: Duration = Duration::from_millis(100);
        let (started, before, uncompressed) = (Instant::now(), link.bytes, link.uncompressed);
        let mut told = started;
        let (mut round, of) = (Round::default(), self.pages.len() as u64 * PAGE_SIZE);
        tell(Event::Running { owed: of });
        link.send(&FromSource::Moved, &[])?;
        loop {
            let wanted = link.wanted()?;
            if wanted.is_empty() {
                break;
            }
            faults::at(Step::SourceServe).map_err(FrameError::from)?;
            let stretches = self.take(&wanted)?;
            let sent = link.send_pages(&self.kernel, Owner::Space, &stretches, &mut round);
            let frames: Vec<Frame> = stretches.iter().flat_map(Stretch::frames).collect();
            self.kernel.machine.frames().release_all(&frames);
            sent?;
            if told.elapsed() >= TELL {
                told = Instant::now();
                tell(Event::Owed { left: self.pages.len() as u64 * PAGE_SIZE, of });
            }
            if let Some(bandwidth) = bandwidth {
                let due = (link.bytes - before) as f64 / bandwidth.max(1) as f64;
                std::thread::sleep(Duration::from_secs_f64(due).saturating_sub(started.elapsed()));
            }
        }
        round.uncompressed = link.uncompressed - uncompressed;
        (round.bytes, round.micros) = (link.bytes - before, started.elapsed().as_micros() as u64);
        Ok(round)
    }

    /// Takes out what is wanted.
    fn take(&mut self, wanted: &[(u64, u32)]) -> Result<Vec<Stretch>, MigrateError> {
        let count: u64 = wanted.iter().map(|&(_, count)| u64::from(count)).sum();
        if count > MAX_PAGES {
            return Err(MigrateError::Nonsense);
        }
        let wanted = wanted.iter().flat_map(|&(first, count)| first..first.saturating_add(count.into()));
        let mut stretches: Vec<Stretch> = Vec::new();
        for page in wanted {
            match self.pages.remove(&page) {
                Some((frame, large)) => {
                    stretches.push(Stretch { page, count: 1, frame: Some(frame), large, is_zero_by_default: false });
                }
                None => {
                    // Back to those that are released.
                    let back =
                        stretches.iter().filter_map(|stretch| Some((stretch.page, (stretch.frame?, stretch.large))));
                    self.pages.extend(back);
                    return Err(MigrateError::Nonsense);
                }
            }
        }
        Ok(stretches)
    }
}

impl Drop for Owing {
    fn drop(&mut self) {
        let frames: Vec<Frame> = self.pages.values().map(|&(frame, _)| frame).collect();
        self.kernel.machine.frames().release_all(&frames);
        self.kernel.owing.fetch_sub(1, Ordering::SeqCst);
    }
}
