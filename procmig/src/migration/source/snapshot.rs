//! The image of a process whose threads stand still.

use crate::kernel::affinity::CpuSet;
use crate::kernel::lock;
use crate::kernel::process::Process;
use crate::migration::image::{ProcessImage, SpaceImage, ThreadImage};
use crate::wire::control::HandOver;
use std::sync::atomic::Ordering;

/// The threads that the deputy is to hand over.
pub(super) fn hand_over_list(image: &ProcessImage) -> Vec<HandOver> {
    let thread = |thread: &ThreadImage| HandOver {
        tid: thread.tid,
        seq: thread.seq,
        awaits: thread.call.as_ref().is_some_and(|call| call.forwarded.is_some()),
    };
    let leader = image.leader_seq.map(|seq| HandOver { tid: image.pid, seq, awaits: false });
    image.threads.iter().map(thread).chain(leader).collect()
}

/// The image of a process whose threads stand still.
pub(super) fn image(process: &Process, threads: &[ThreadImage], space: SpaceImage, epoch: u32) -> ProcessImage {
    let identity = lock(&process.identity).clone();
    let signals = lock(&process.signals).clone();
    let (timers, next_timer) = lock(&process.timers).images(process.ahead());
    let (memory_limit, max_threads) = process.group.limits();
    let mut threads = threads.to_vec();
    for image in &mut threads {
        // Signals may have come since it stands still, and others of its threads have chosen its CPUs.
        if let Some(thread) = process.thread(image.tid) {
            let own = lock(&thread.signals);
            (image.pending, image.chosen) = (own.pending.clone(), own.chosen);
            (image.affinity, image.at_home) = (thread.own_affinity(), thread.hidden_affinity().map(CpuSet::to_bytes));
        }
    }
    ProcessImage {
        pid: process.pid,
        parent: process.parent,
        epoch,
        name: identity.name,
        argv: identity.argv,
        executable: identity.executable,
        ids: identity.ids,
        auxiliary: identity.auxiliary,
        places: [
            identity.places.stack,
            identity.places.arguments.0,
            identity.places.arguments.1,
            identity.places.environment.0,
            identity.places.environment.1,
        ],
        limits: identity.limits.iter().map(|(&resource, &(soft, hard))| (resource, soft, hard)).collect(),
        pending: signals.pending,
        actions: signals
            .actions
            .iter()
            .map(|action| [action.handler, action.flags, action.restorer, action.mask.0])
            .collect(),
        timers,
        next_timer,
        ended: *lock(&process.counters.ended),
        children: process.children_usage(),
        peak_resident: process.saw_resident(0),
        cpu_warned: process.counters.cpu_warned.load(Ordering::Relaxed),
        leader_status: process.leader_status(),
        leader_seq: process.leader_seq(),
        home_signals: process.home_signals(),
        relayed: process.remote.relayed(),
        clocks: process.steady_clocks(),
        trace: process.trace,
        report: process.report.load(Ordering::Relaxed),
        stopped: process.is_stopped(),
        memory_limit,
        max_threads,
        job: process.group.job(),
        threads,
        space,
    }
}
