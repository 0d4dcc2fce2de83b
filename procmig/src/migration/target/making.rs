//! A process that is made from an image, which is read as hostile.

use super::ReceiveError;
use super::arrival::Arrival;
use super::pages::{Hold, Pages};
use crate::kernel::descriptors::Descriptors;
use crate::kernel::group::Group;
use crate::kernel::process::{Action, Identity, Presence, Process, ProcessSignals, StackPlaces};
use crate::kernel::timers::ProcessTimers;
use crate::kernel::{Kernel, lock};
use crate::migration::image::{MAX_FPU, MAX_THREADS, ObjectImage, ProcessImage};
use crate::migration::wire::{FromSource, MAX_MESSAGE};
use crate::mm::AddressSpace;
use crate::mm::object::PageObject;
use crate::mm::owed::Owed;
use crate::mm::space::shared_memory;
use crate::signal::set::SignalSet;
use crate::wire::stream::Stream;
use nix::errno::Errno;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vmm::frames::FRAMES_PER_BLOCK;

/// Most names of areas in bytes, and of a process in all.
const MAX_TEXT: usize = 16 << 20;

impl Hold {
    /// Makes the process.
    pub(super) fn make(mut self, stream: &mut Stream, image: ProcessImage, pid: i32) -> Result<Arrival, ReceiveError> {
        let kernel = self.kernel.clone();
        validate(&image, pid)?;
        if !self.is_whole() {
            return Err(ReceiveError::Wrong("an image before all pages have come"));
        }
        let objects = self.objects(stream, &image)?;
        let link = self.link.clone();
        let group = Group::of_link(kernel.machine.clone(), image.memory_limit, image.max_threads, image.job, link);
        let group = group.ok_or(ReceiveError::Refused(Errno::EAGAIN))?;
        let space = AddressSpace::from_image(kernel.machine.clone(), group.account(), &image.space, &objects)?;
        let owed = std::mem::take(&mut self.owed);
        let is_owed = |page: u64, count: u32| owed.overlapping(page..page + u64::from(count)).next().is_some();
        let mut pages = Vec::new();
        for part in &mut self.parts {
            let Pages { small, large } = std::mem::take(&mut part.space);
            pages.extend(large.into_iter().map(|(page, frame)| (page, frame, true, is_owed(page, FRAMES_PER_BLOCK))));
            pages.extend(small.into_iter().map(|(page, frame)| (page, frame, false, is_owed(page, 1))));
        }
        pages.sort_unstable();
        // Before what is placed may be released.
        let owed = (!owed.is_empty()).then(|| Owed::new(kernel.machine.clone(), owed));
        space.place(pages.into_iter())?;
        if let Some(owed) = owed {
            space.owe(owed);
        }
        space.adopt_sites(&image.space.sites);
        let process = process(&kernel, &image, &space, group)?;
        for (object, about) in objects.iter().zip(&image.space.objects) {
            if let ObjectImage::File { lent: Some(file), .. } = about {
                process.note_lent(*file, object);
            }
        }
        await_clocks(&process, &image.clocks)?;
        kernel.enter(&process).map_err(|error| match error {
            Errno::EEXIST => ReceiveError::There(image.pid),
            error => ReceiveError::Refused(error),
        })?;
        Arrival::new(process, space, image.leader_seq, image.threads)
    }

    /// What the image's areas show.
    fn objects(&mut self, stream: &mut Stream, image: &ProcessImage) -> Result<Vec<Arc<PageObject>>, ReceiveError> {
        let kernel = self.kernel.clone();
        let needed = image.space.objects.iter().filter(|object| object.needs_descriptor()).count();
        let (home, time) = match &self.link {
            None => (0, &kernel.time),
            Some(link) if needed == 0 => (link.home.number, link.home.time.get().ok_or(ReceiveError::NoLink)?),
            Some(_) => return Err(ReceiveError::Wrong("it needs descriptors of another host")),
        };
        let now = time.clock.now(libc::CLOCK_REALTIME).map_or(0, |now| now as i64);
        let mut files: Vec<OwnedFd> = Vec::new();
        while files.len() < needed {
            match stream.receive_message(MAX_MESSAGE)? {
                (FromSource::Descriptors, passed) if !passed.is_empty() => files.extend(passed),
                _ => return Err(ReceiveError::Wrong("descriptors are missing")),
            }
        }
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or(ReceiveError::Wrong("descriptors are missing"));
        let mut objects = Vec::new();
        for (index, object) in (0..).zip(&image.space.objects) {
            objects.push(match object {
                ObjectImage::Vdso => time.vdso.clone(),
                ObjectImage::File { identity, lent: None } => kernel.files.read_only(*identity, next()?),
                ObjectImage::File { identity, lent: Some(_) } => {
                    kernel.files.lent(home, *identity, identity.is_fresh_at(now))
                }
                ObjectImage::SharedFile { identity, writable } => kernel.files.shared(*identity, next()?, *writable),
                ObjectImage::Segment { .. } if home != 0 => {
                    return Err(ReceiveError::Wrong("it needs memory of another host"));
                }
                ObjectImage::Segment { id, writable } => {
                    kernel.expect_segment(*id);
                    kernel.segments.object(*id, *writable).map_err(ReceiveError::Refused)?
                }
                ObjectImage::Memory => {
                    let object = shared_memory(kernel.machine.clone(), Default::default());
                    let Pages { small, large } = self.parts[0].objects.remove(&index).unwrap_or_default();
                    small.into_iter().for_each(|(page, frame)| object.insert(page, frame));
                    for (block, first) in large {
                        (0..FRAMES_PER_BLOCK).for_each(|i| object.insert(block + u64::from(i), first.offset(i)));
                    }
                    object
                }
            });
        }
        Ok(objects)
    }
}

/// Waits until its home's clocks show at least what they have shown to the process: they are known here and there to
/// within half of the time that an answer from home takes.
fn await_clocks(process: &Process, shown: &[u64; 3]) -> Result<(), ReceiveError> {
    const MOST: u64 = 500_000_000;
    loop {
        let behind = |(shown, now): (&u64, u64)| shown.saturating_sub(now);
        match shown.iter().zip(process.steady_clocks()).map(behind).max() {
            None | Some(0) => return Ok(()),
            Some(nanos) if nanos > MOST => return Err(ReceiveError::Wrong("its clocks are ahead of its home's")),
            Some(nanos) => std::thread::sleep(Duration::from_nanos(nanos)),
        }
    }
}

/// Whether an image is one that a node could have made of this process, as far as it can be told without making it.
///
/// # Errors
/// [`ReceiveError::Wrong`]
pub fn validate(image: &ProcessImage, pid: i32) -> Result<(), ReceiveError> {
    let wrong = |what| Err(ReceiveError::Wrong(what));
    if image.pid != pid || pid <= 0 {
        return wrong("another process");
    }
    if image.threads.is_empty() || image.threads.len() > MAX_THREADS || image.actions.len() != 64 {
        return wrong("the number of threads or signals");
    }
    let text: usize = image.argv.iter().map(Vec::len).sum::<usize>()
        + image.space.regions.iter().map(|region| region.name.len()).sum::<usize>();
    if text > MAX_TEXT || image.name.len() > 15 || image.auxiliary.len() > 4096 || image.executable.len() > 4096 {
        return wrong("its names are too long");
    }
    let mut tids: Vec<i32> = image.threads.iter().map(|thread| thread.tid).collect();
    tids.sort_unstable();
    if tids.windows(2).any(|pair| pair[0] == pair[1]) || tids[0] <= 0 {
        return wrong("two threads with one number");
    }
    if image.leader_seq.is_some() == tids.contains(&pid) {
        return wrong("it has no leader, or two");
    }
    let end = vmm::shim_layout::USER_END;
    for thread in &image.threads {
        if thread.fpu.len() > MAX_FPU {
            return wrong("a thread's extended state");
        }
        if thread.bases.0 >= end || thread.bases.1 >= end {
            return wrong("a thread's segment bases");
        }
    }
    Ok(())
}

fn process(
    kernel: &Arc<Kernel>,
    image: &ProcessImage,
    space: &Arc<AddressSpace>,
    group: Arc<Group>,
) -> Result<Arc<Process>, ReceiveError> {
    let mut actions = [Action::default(); 64];
    for (action, &[handler, flags, restorer, mask]) in actions.iter_mut().zip(&image.actions) {
        *action = Action { handler, flags, restorer, mask: SignalSet(mask).blockable() };
    }
    let [stack, arguments, arguments_end, environment, environment_end] = image.places;
    let identity = Identity {
        name: image.name.clone(),
        argv: image.argv.clone(),
        executable: image.executable.clone(),
        ids: image.ids,
        auxiliary: image.auxiliary.clone(),
        places: StackPlaces {
            stack,
            arguments: (arguments, arguments_end),
            environment: (environment, environment_end),
        },
        limits: image.limits.iter().map(|&(resource, soft, hard)| (resource, (soft, hard))).collect(),
    };
    // Until the deputy is connected there is nobody at the other end.
    let (idle, _) = UnixStream::pair()?;
    let process = Process::new(
        kernel.clone(),
        image.pid,
        image.parent,
        Some(space.clone()),
        ProcessSignals { pending: image.pending.clone(), actions },
        identity,
        Arc::new(idle),
        Descriptors::default(),
        image.trace,
        group,
    );
    *lock(&process.timers) = ProcessTimers::from_images(&image.timers, image.next_timer, process.ahead())
        .ok_or(ReceiveError::Wrong("a timer that nobody can have made"))?;
    *lock(&process.counters.ended) = image.ended;
    *lock(&process.counters.children) = image.children;
    process.saw_resident(image.peak_resident);
    process.counters.cpu_warned.store(image.cpu_warned, Ordering::Relaxed);
    process.set_leader_status(image.leader_status);
    process.set_home_signals(image.home_signals);
    process.remote.continue_from(image.relayed);
    process.report.store(image.report, Ordering::Relaxed);
    process.epoch.store(image.epoch, Ordering::SeqCst);
    process.set_presence(Presence::Arriving);
    if image.stopped {
        process.stop();
    }
    Ok(process)
}
