//! Everything that decodes bytes from outside, on damaged and on random input of a fixed seed: what the fuzz
//! targets run for as long as one likes.

#[path = "../../fuzz/src/decoders.rs"]
mod decoders;
#[allow(dead_code, reason = "others use the rest")]
#[path = "../../tests/migration/sample.rs"]
mod sample;

use fastrand::Rng;
use procmig::migration::cpu::CpuFeatures;
use procmig::migration::image::{CallImage, ForwardedCall, TimerImage};
use procmig::migration::wire::{Aside, Content, FromSource, Offer, Owner, Reply, Run};
use procmig::signal::altstack::AltStack;
use procmig::signal::frame::{Delivery, FpuLayout, build};
use procmig::signal::set::SignalSet;
use procmig::vdso::distance::Clocks;
use procmig::wire::bytes::Bytes;
use procmig::wire::call::ReplyHeader;
use procmig::wire::control::{Attach, Ids, Link, NodeReply, NodeRequest, SigInfo, ToDeputy, ToNode};
use procmig::wire::frame;
use procmig::wire::inquiry::{File, Inquiry, Told};
use procmig::wire::link::{LinkReply, LinkRequest, RemoteAttach};
use procmig::wire::op::{Disposition, LentFile, Op};
use procmig::wire::sealed::{Cipher, DirectionKeys, StreamKeys};
use vmm::addr::GuestVirtAddr;
use vmm::regs::Regs;

/// A copy with a few things wrong.
fn damaged(random: &mut Rng, whole: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..random.u8(1..=4) {
        let at = random.usize(..bytes.len().max(1));
        match random.u8(..6) {
            _ if bytes.is_empty() => bytes.push(random.u8(..)),
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.u8(..)),
            2 => bytes[at] ^= 1 << random.u8(..8),
            3 => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill([0, 0x7f, 0x80, 0xff][random.usize(..4)]);
            }
            4 => {
                let from = random.usize(..bytes.len().max(1));
                let length = random.usize(..16).min(bytes.len() - at).min(bytes.len() - from);
                bytes.copy_within(from..from + length, at);
            }
            _ => bytes[at] = random.u8(..),
        }
    }
    bytes
}

fn noise(random: &mut Rng) -> Vec<u8> {
    let small = random.bool();
    (0..random.usize(..600)).map(|_| random.u8(..) & if small { 7 } else { 0xff }).collect()
}

fn attack(seed: u64, rounds: usize, seeds: &[Vec<u8>], decode: fn(&[u8])) {
    let mut random = Rng::with_seed(seed);
    for seed in seeds {
        decode(seed);
    }
    for round in 0..rounds {
        let input = if seeds.is_empty() || round % 4 == 0 {
            noise(&mut random)
        } else {
            let whole = &seeds[random.usize(..seeds.len())];
            damaged(&mut random, whole)
        };
        decode(&input);
    }
}

#[test]
fn a_damaged_program_is_an_error_at_worst() {
    let own = std::fs::read("/proc/self/exe").expect("the test itself");
    let mut small = own[..8192].to_vec();
    small[40..48].fill(0);
    attack(1, 60_000, &[small, b"#!/bin/sh -x\necho\n".to_vec()], decoders::program);
}

#[test]
fn any_call_and_any_reply_are_errors_at_worst() {
    attack(2, 200_000, &[], decoders::call);
}

#[test]
fn a_damaged_reply_is_an_error_at_worst() {
    let header = |length, ret, signals| ReplyHeader { seq: 1, length, ret, signals, relayed: 0 }.encode();
    let seeds: Vec<Vec<u8>> = [
        header(0, 0, 0).to_vec(),
        [&header(12, 4, 0)[..], &8u32.to_le_bytes(), b"12345678"].concat(),
        [&header(0, -4, 1)[..], &[10; 128]].concat(),
        header(u32::MAX, 0, u32::MAX).to_vec(),
    ]
    .into_iter()
    .flat_map(|answer| {
        // The call (read, write, recvmsg, poll) with its arguments stands before.
        [0u16, 1, 47, 7]
            .map(|nr| [&nr.to_le_bytes()[..], &[0, 3, 1, 16, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0], &answer].concat())
    })
    .collect();
    attack(3, 30_000, &seeds, decoders::reply);
}

#[test]
fn a_damaged_message_is_an_error_at_worst() {
    let attach = Attach {
        version: 1,
        pid: 42,
        parent: 1,
        program: b"/bin/true".to_vec(),
        argv: vec![b"true".to_vec(), Vec::new()],
        environment: vec![b"PATH=/bin".to_vec()],
        ignored_signals: 1,
        blocked_signals: 2,
        ids: Ids { uid: 1, euid: 2, gid: 3, egid: 4 },
        limits: vec![(7, 1024, 4096)],
        trace: false,
        report: true,
        memory_limit: Some(1 << 20),
        max_threads: Some(3),
        job: Some(4),
    };
    let remote = RemoteAttach { attach: attach.clone(), control: [7; 16], call: [8; 16], patience: 60 };
    let remote = LinkRequest::Attach(Box::new(remote));
    let keys = |byte| DirectionKeys { cipher: Cipher::Aes256Gcm, key: vec![byte; 32], iv: [byte; 12], number: 2 };
    let keys = StreamKeys { send: keys(1), receive: keys(2) };
    let link = Link { keys, home: [3; 16], home_name: "home".into() };
    let lent = LentFile { file: 3, is_fresh: false, path: b"/bin/true".to_vec(), head: Bytes(vec![1; 60]) };
    let caller = Ids { uid: 1, euid: 2, gid: 3, egid: 4 };
    let inquiry = NodeRequest::Inquire(Inquiry::File { pid: 7, thread: Some(8), file: File::Status, caller });
    let framed = |kind: u8, bytes: Vec<u8>| [&[kind][..], &bytes].concat();
    let op = |op: &Op| framed(4, postcard::to_stdvec(op).expect("an operation"));
    let seeds = [
        framed(0, frame::encode(&NodeRequest::Attach(Box::new(attach))).expect("a request")),
        framed(0, frame::encode(&NodeRequest::Stop { force: true }).expect("a request")),
        framed(0, frame::encode(&inquiry).expect("a request")),
        framed(1, frame::encode(&NodeReply::Told(Told::Figures(Box::default()))).expect("a reply")),
        framed(1, frame::encode(&NodeReply::Told(Told::Bytes(Bytes(vec![3; 30])))).expect("a reply")),
        framed(1, frame::encode(&NodeReply::Refused("no".into())).expect("a reply")),
        framed(2, frame::encode(&ToDeputy::Trace("line".into())).expect("a message")),
        framed(2, frame::encode(&ToDeputy::Cancel { tid: 7, seq: 9 }).expect("a message")),
        framed(3, postcard::to_stdvec(&ToNode::Signal(SigInfo([17; 128]))).expect("a message")),
        framed(0, frame::encode(&NodeRequest::Link(Box::new(link))).expect("a request")),
        framed(2, frame::encode(&ToDeputy::Read { tag: 1, file: 2, offset: 3, length: 4 }).expect("a message")),
        framed(3, postcard::to_stdvec(&ToNode::Awake { round: 1, clocks: Clocks::now() }).expect("a message")),
        framed(3, postcard::to_stdvec(&ToNode::Bytes { tag: 1, result: Ok(Bytes(vec![5; 40])) }).expect("a message")),
        framed(8, postcard::to_stdvec(&remote).expect("a request")),
        framed(9, postcard::to_stdvec(&LinkReply::Open { link: [1; 16], port: 2, node: "n".into() }).expect("a reply")),
        framed(10, postcard::to_stdvec(&lent).expect("a file")),
        op(&Op::OpenProgram { dirfd: -100, path: b"/bin/true".to_vec(), flags: 0 }),
        op(&Op::CommitExec { name: b"true".to_vec(), argv: vec![b"true".to_vec()] }),
        op(&Op::SetDisposition { signal: 2, disposition: Disposition::Catch }),
        op(&Op::MemoryFile { name: b"maps".to_vec(), content: vec![1; 50], close_on_exec: true }),
    ];
    attack(4, 60_000, &seeds, decoders::message);
}

#[test]
fn a_forged_signal_frame_is_an_error_at_worst() {
    let layouts = [(3u64, 576usize), (7, 832), (0xe7, 2696)];
    let seeds: Vec<Vec<u8>> = layouts
        .into_iter()
        .zip(0u8..)
        .map(|((features, size), index)| {
            let layout = FpuLayout::new(features, size).expect("a possible layout");
            let regs = Regs { rsp: 16384, rip: 0x40_0000, rflags: 0x202, ..Regs::default() };
            let frame = build(&Delivery {
                regs: &regs,
                xsave: &vec![0; size],
                layout,
                info: &SigInfo([10; 128]),
                old_mask: SignalSet::EMPTY,
                handler: GuestVirtAddr(0x40_1000),
                flags: 0x0400_0000,
                restorer: GuestVirtAddr(0x40_2000),
                altstack: AltStack::default(),
                cr2: 0,
                error: 0,
                trap: 0,
            })
            .expect("a frame");
            // The layout's number, the stack pointer behind the restorer's address, and flags of 0; then memory
            // from address 0 on.
            let stack = (frame.address.0 as u16 + 8).to_le_bytes();
            let mut bytes = vec![index, 1, stack[0], stack[1], 0, 0];
            bytes.resize(6 + frame.address.0 as usize, 0);
            bytes.extend_from_slice(&frame.bytes);
            bytes
        })
        .collect();
    attack(5, 20_000, &seeds, decoders::signal_frame);
}

#[test]
fn a_damaged_migration_is_an_error_at_worst() {
    let offer = Offer {
        version: 1,
        pid: 42,
        name: "n".into(),
        bytes: 1,
        threads: 2,
        fpu: (832, 7),
        cpu: CpuFeatures::here(),
        link: None,
        streams: 3,
    };
    let aside = Aside { ticket: [5; 16], streams: 3, port: Some(4775) };
    let mut image = sample::image(42);
    let clock = libc::CLOCK_MONOTONIC;
    let timer =
        TimerImage { id: -1, counts: (0, 0), clock, notice: (1, 14, 5, 0), deadline: Some(9), interval: 3, overrun: 0 };
    image.timers = vec![timer.clone(), TimerImage { id: 3, counts: (3, 42), notice: (2, 10, 0, 42), ..timer }];
    let forwarded = Some(ForwardedCall { nr: 0, args: [1; 6], flags: 0 });
    image.threads[0].call = Some(CallImage { forwarded, deadline: Some(7), progress: 2 });
    let run = Run { owner: Owner::Object(3), first: 7, count: 9, large: true, content: Content::Bytes };
    let message = |message: FromSource| [&[2][..], &postcard::to_stdvec(&message).expect("a message")].concat();
    let seeds = [
        [&[0][..], &postcard::to_stdvec(&offer).expect("an offer")].concat(),
        [&[1][..], &postcard::to_stdvec(&Reply::Ready([3; 16])).expect("a reply")].concat(),
        [&[1][..], &postcard::to_stdvec(&Reply::Accepted(Some(aside))).expect("a reply")].concat(),
        message(FromSource::Spread(3)),
        message(FromSource::Gather),
        [&[1][..], &postcard::to_stdvec(&Reply::Want(vec![(5, 9), (7, 3)])).expect("a reply")].concat(),
        message(FromSource::Owed(vec![run])),
        message(FromSource::Pages(vec![run, Run { content: Content::Nothing, count: u32::MAX, ..run }])),
        message(FromSource::Packed(vec![run])),
        message(FromSource::Image(Box::new(image))),
        // 64 bytes as they are, then 64 compressed: one literal and a match of the rest.
        [&[3, 4, 0, 64, 0, 0, 0][..], &[7; 64], &[11, 0, 0, 0, 0x1f, 9, 1, 0, 39, 0x50, 9, 9, 9, 9, 9]].concat(),
    ];
    attack(6, 60_000, &seeds, decoders::migration);
}
