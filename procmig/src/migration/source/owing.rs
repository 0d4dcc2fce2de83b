//! Post-copy: pages that are sent when the process runs at the target already.

use super::MigrateError;
use super::changes::batches;
use super::link::Link;
use crate::kernel::Kernel;
use crate::migration::faults::{self, Step};
use crate::migration::record::{Event, Round};
use crate::migration::wire::{Content, FromSource, MAX_PAGES, Owner, Run};
use crate::mm::AddressSpace;
use crate::mm::image::Stretch;
use crate::mm::regions::{Protection, Regions};
use crate::mm::spans::{Row, Span, Spans};
use crate::wire::frame::FrameError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vmm::addr::{Frame, PAGE_SIZE};

/// Pages that are owed, with their frames, of each of which this has one user.
pub(super) struct Owing {
    kernel: Arc<Kernel>,
    pages: Spans<Place>,
}

/// Where a page is.
#[derive(Debug, Clone, Copy)]
struct Place {
    frame: Frame,
    /// It is part of a large page.
    large: bool,
}

impl Row for Place {
    fn further(self, by: u32) -> Self {
        Self { frame: self.frame.offset(by), ..self }
    }
}

fn stretch(span: &Span<Place>) -> Stretch {
    let Place { frame, large } = span.value;
    Stretch { page: span.first, count: span.count, frame: Some(frame), large, is_zero_by_default: false }
}

/// Takes out of `stretches` what can be sent later: all memory but that of code, which the target wants to look at
/// before it runs, also where it has lost its rights.
pub(super) fn split(stretches: Vec<Stretch>, space: &AddressSpace) -> (Vec<Stretch>, Vec<Stretch>) {
    let mut regions = Regions::default();
    space.regions().into_iter().for_each(|region| regions.insert(region));
    let rewritten = space.rewritten_pages();
    stretches.into_iter().partition(|stretch| {
        let at = stretch.page * PAGE_SIZE;
        let end = at + u64::from(stretch.count) * PAGE_SIZE;
        let is_code = |region: &crate::mm::Region| region.protection.contains(Protection::EXECUTE);
        stretch.frame.is_none()
            || regions.overlapping(at, end).any(is_code)
            || rewritten.range(at..end).next().is_some()
    })
}

impl Owing {
    /// Keeps these pages. Nobody may free their frames meanwhile.
    pub(super) fn new(kernel: &Arc<Kernel>, stretches: &[Stretch]) -> Self {
        kernel.owing.fetch_add(1, Ordering::SeqCst);
        let mut pages = Spans::default();
        for &Stretch { page: first, count, frame, large, .. } in stretches {
            let Some(frame) = frame else { continue };
            if pages.insert(Span { first, count, value: Place { frame, large } }) {
                (0..count).for_each(|i| kernel.machine.frames().share(frame.offset(i)));
            }
        }
        Self { kernel: kernel.clone(), pages }
    }

    fn stretches(&self) -> Vec<Stretch> {
        self.pages.iter().map(|span| stretch(&span)).collect()
    }

    /// Tells the target which they are.
    pub(super) fn announce(&self, link: &mut Link) -> Result<(), MigrateError> {
        for batch in batches(&self.stretches(), MAX_PAGES as u32) {
            let mut runs: Vec<Run> = Vec::new();
            for &Stretch { page, count, large, .. } in &batch {
                match runs.last_mut().filter(|run| run.large == large && run.first + u64::from(run.count) == page) {
                    Some(run) => run.count += count,
                    None => runs.push(Run { owner: Owner::Space, first: page, count, large, content: Content::Bytes }),
                }
            }
            link.send(&FromSource::Owed(runs), &[])?;
        }
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
        let (mut round, of) = (Round::default(), self.pages.len() * PAGE_SIZE);
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
                tell(Event::Owed { left: self.pages.len() * PAGE_SIZE, of });
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
        let mut spans = Vec::new();
        for &(first, count) in wanted {
            spans.extend(self.pages.take(first..first.saturating_add(count.into()), u64::MAX));
        }
        if spans.iter().map(|span| u64::from(span.count)).sum::<u64>() == count {
            return Ok(spans.iter().map(stretch).collect());
        }
        // Back to those that are released.
        for span in spans {
            self.pages.insert(span);
        }
        Err(MigrateError::Nonsense)
    }
}

impl Drop for Owing {
    fn drop(&mut self) {
        let frames: Vec<Frame> = self.stretches().iter().flat_map(Stretch::frames).collect();
        self.kernel.machine.frames().release_all(&frames);
        self.kernel.owing.fetch_sub(1, Ordering::SeqCst);
    }
}
