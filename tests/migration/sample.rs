//! The image of a process, as a source would send it.

use procmig::migration::image::{ObjectImage, ProcessImage, RegionImage, SiteImage, SpaceImage, ThreadImage};
use procmig::mm::thread_ids::Code;
use procmig::signal::altstack::AltStack;
use procmig::wire::control::Ids;

const PAGE: u64 = 4096;
/// Where its code lies.
pub(crate) const CODE: u64 = 0x40_0000;
/// Of each of its areas.
pub(crate) const PAGES: u32 = 4;

/// One thread that runs in a circle, in memory that it may write.
pub(crate) fn image(pid: i32) -> ProcessImage {
    let mut regs = [0; 18];
    // The instruction pointer is the last but one, flags the last.
    (regs[16], regs[17]) = (CODE, 0x202);
    let region = |start: u64, backing| RegionImage {
        start,
        end: start + u64::from(PAGES) * PAGE,
        protection: 7,
        flags: 0,
        backing,
        name: "area".into(),
    };
    ProcessImage {
        pid,
        parent: 1,
        epoch: 1,
        name: b"hostile".to_vec(),
        argv: vec![b"hostile".to_vec(); 3],
        executable: b"/bin/true".to_vec(),
        ids: Ids { uid: 0, euid: 0, gid: 0, egid: 0 },
        auxiliary: vec![0; 16],
        places: [CODE; 5],
        limits: vec![(7, 1024, 4096)],
        pending: Default::default(),
        actions: vec![[0; 4]; 64],
        timers: Vec::new(),
        next_timer: 0,
        ended: Default::default(),
        children: Default::default(),
        peak_resident: 0,
        cpu_warned: 0,
        leader_status: 0,
        leader_seq: None,
        home_signals: Default::default(),
        relayed: 0,
        clocks: [0; 3],
        trace: false,
        report: false,
        stopped: false,
        memory_limit: None,
        max_threads: None,
        job: None,
        threads: vec![ThreadImage {
            tid: pid,
            regs,
            bases: (0, 0),
            fpu: Vec::new(),
            mask: Default::default(),
            saved_mask: None,
            pending: Default::default(),
            chosen: false,
            altstack: AltStack::default(),
            clear_tid: 0,
            robust_list: 0,
            last_fault: (0, 0, 0),
            usage: Default::default(),
            charged: 0,
            affinity: None,
            at_home: None,
            seq: 0,
            call: None,
        }],
        space: SpaceImage {
            layout: [0x7ff0_0000_0000, 0x7fe0_0000_0000, CODE, 0x1000],
            limit: u64::MAX,
            heap: (0x80_0000, 0x80_0000),
            objects: vec![ObjectImage::Memory],
            regions: vec![region(CODE, None), region(CODE + 0x10_0000, Some((0, 0)))],
            segments: Vec::new(),
            sites: vec![SiteImage { at: CODE, stub: CODE + 0x100, asks: 2 }],
            code: Code::Unseen,
        },
    }
}
