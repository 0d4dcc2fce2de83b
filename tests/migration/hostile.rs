//! A source, and a deputy, that say what they should not: the node refuses it, or takes it and gives it up, and has
//! afterwards what it had before.

use crate::sample::{CODE, PAGES, image};
use crate::{Pair, words};
use procmig::migration::cpu::CpuFeatures;
use procmig::migration::wire::{Content, FromSource, Offer, Owner, Reply, Run, Ticket};
use procmig::wire::control::{Adopt, MAX_MESSAGE, NodeReply, NodeRequest, ToNode, VERSION};
use procmig::wire::frame;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Of the first process; each has its own, since one that is not taken up is kept for a while.
const PID: i32 = 2_000_000_001;
const PAGE: usize = 4096;

fn offer(pid: i32) -> Offer {
    Offer {
        version: VERSION,
        pid,
        name: "hostile".into(),
        bytes: 1 << 20,
        threads: 1,
        fpu: (832, 0),
        cpu: CpuFeatures::default(),
        link: None,
        streams: 0,
    }
}

fn run(owner: Owner, first: u64, count: u32, content: Content) -> Run {
    Run { owner, first, count, large: false, content }
}

/// A chunk of compressed pages that are this pair of bytes again and again: an LZ4 block of one match.
fn packed(pair: [u8; 2], length: usize) -> Vec<u8> {
    let mut block = vec![0x2f, pair[0], pair[1], 2, 0];
    // A match has 4 bytes, and 15 by its token; 6 at the end must be literals.
    let mut rest = length - 2 - 6 - 19;
    while rest >= 255 {
        block.push(255);
        rest -= 255;
    }
    block.extend([rest as u8, 0x60, pair[0], pair[1], pair[0], pair[1], pair[0], pair[1]]);
    [&(block.len() as u32).to_le_bytes()[..], &block].concat()
}

/// The same with pages that are compressed.
fn packed_conversation(pid: i32) -> Vec<Vec<u8>> {
    let runs = vec![run(Owner::Space, CODE / PAGE as u64, PAGES, Content::Bytes)];
    let mut pages = frame::encode(&FromSource::Packed(runs)).expect("a message");
    pages.extend(packed([0xeb, 0xfe], PAGES as usize * PAGE));
    vec![pages, frame::encode(&FromSource::Image(Box::new(image(pid)))).expect("a message")]
}

/// What a source says after its offer, one message each; an image at last.
fn conversation(pid: i32) -> Vec<Vec<u8>> {
    let first = CODE / PAGE as u64;
    let runs = vec![
        run(Owner::Space, first, PAGES, Content::Bytes),
        run(Owner::Object(0), 0, PAGES, Content::Zeros),
        run(Owner::Space, first + 1, 1, Content::Nothing),
    ];
    let mut pages = frame::encode(&FromSource::Pages(runs)).expect("a message");
    // jmp .
    let code = [0xeb, 0xfe].repeat(PAGE / 2);
    (0..PAGES).for_each(|_| pages.extend_from_slice(&code));
    vec![pages, frame::encode(&FromSource::Image(Box::new(image(pid)))).expect("a message")]
}

/// Says it on a connection of its own; the ticket if the node takes the process.
fn say(socket: &Path, pid: i32, messages: &[Vec<u8>]) -> Option<(Ticket, UnixStream)> {
    say_beside(socket, pid, messages, &[])
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("the node is there");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    stream
}

/// Says something, and no more.
fn pour(stream: &UnixStream, messages: &[Vec<u8>]) {
    for message in messages {
        // It may have been refused already.
        let _ = (&*stream).write_all(message);
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

/// The same with further streams, of which each has its number and what is said on it.
fn say_beside(
    socket: &Path,
    pid: i32,
    messages: &[Vec<u8>],
    beside: &[(u32, Vec<Vec<u8>>)],
) -> Option<(Ticket, UnixStream)> {
    let stream = connect(socket);
    let offer = Offer { streams: beside.len() as u32, ..offer(pid) };
    frame::send(&stream, &NodeRequest::Receive(offer), &[]).expect("it listens");
    let others: Vec<UnixStream> = match frame::receive(&stream, MAX_MESSAGE).expect("an answer").0 {
        Reply::Accepted(aside) => {
            assert_eq!(aside.map_or(0, |aside| aside.streams), beside.len() as u32);
            let join = |&(stream, _): &(u32, _)| {
                let other = connect(socket);
                let ticket = aside.expect("just seen").ticket;
                frame::send(&other, &NodeRequest::Join { ticket, stream }, &[]).expect("it listens");
                // It is taken or not before the next one comes, which may have its number.
                let _ = frame::receive::<Reply>(&other, MAX_MESSAGE);
                other
            };
            beside.iter().map(join).collect()
        }
        Reply::Refused(reason) => panic!("{reason}"),
        other => panic!("{other:?}"),
    };
    for (other, (_, messages)) in others.iter().zip(beside) {
        pour(other, messages);
    }
    pour(&stream, messages);
    match frame::receive(&stream, MAX_MESSAGE) {
        Ok((Reply::Ready(ticket), _)) => Some((ticket, stream)),
        Ok((Reply::Refused(reason), _)) => {
            assert!(!reason.is_empty());
            None
        }
        Ok((other, _)) => panic!("{other:?}"),
        Err(_) => None,
    }
}

/// As a deputy, takes the process up; whether the node lets it.
fn adopt(socket: &Path, pid: i32, ticket: Ticket) -> bool {
    let control = UnixStream::connect(socket).expect("the node is there");
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let request = NodeRequest::Adopt(Adopt { ticket, threads: vec![pid], connections: Vec::new(), more: false });
    let is_done = frame::send(&control, &request, &[theirs.as_raw_fd()]).is_ok()
        && matches!(frame::receive(&control, MAX_MESSAGE), Ok((NodeReply::Done, _)));
    if is_done {
        let _ = frame::send(&control, &ToNode::Run { epoch: 1 }, &[]);
        std::thread::sleep(Duration::from_millis(2));
    }
    drop((ours, control));
    is_done
}

/// What the node has: processes, threads, and bytes of RAM in use.
fn has(pair: &Pair) -> (u64, u64, u64) {
    let node = pair.about("a");
    let number = |what: &str| node[what].as_u64().expect("a number");
    (number("processes"), number("threads"), number("memory_used"))
}

/// Waits until the node has no more than this again.
fn recovers(pair: &Pair, before: (u64, u64, u64)) {
    // Tables that are out of use wait for each other.
    const NOISE: u64 = 5 << 20;
    let since = Instant::now();
    loop {
        let now = has(pair);
        if (now.0, now.1) == (before.0, before.1) && now.2 <= before.2 + NOISE {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{before:?} has become {now:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = pair.mosrun(&crate::words(&["/bin/echo", "well"])).output().expect("mosrun");
    assert_eq!(output.stdout, b"well\n", "{output:?}");
}

#[test]
fn damaged_migrations_are_refused_and_leave_nothing() {
    let Some(pair) = Pair::start() else { return };
    let socket = pair.socket("a");
    let before = has(&pair);
    // Undamaged, it is taken and runs: so what follows begins from something that works.
    for conversation in [packed_conversation(PID), conversation(PID)] {
        let (ticket, stream) = say(&socket, PID, &conversation).expect("it is taken");
        assert!(adopt(&socket, PID, ticket));
        drop(stream);
        recovers(&pair, before);
    }
    let mut random = fastrand::Rng::with_seed(11);
    let (mut taken, mut adopted) = (0, 0);
    for round in 1..=400 {
        let pid = PID + round;
        let mut messages = if round % 4 == 0 { packed_conversation(pid) } else { conversation(pid) };
        let which = random.usize(..messages.len());
        for _ in 0..=random.u8(..4) {
            let message = &mut messages[which];
            // Lengths and headers are worth more than what pages hold.
            let span = message.len().min(if which == 0 { 64 } else { usize::MAX });
            if span == 0 {
                break;
            }
            let at = random.usize(..span);
            match random.u8(..6) {
                0 => message[at] = random.u8(..),
                1 => message[at] ^= 1 << random.u8(..8),
                2 => message[at] = 0xff,
                3 => message.insert(at, random.u8(..)),
                4 => drop(message.remove(at)),
                _ => message.truncate(at.max(1)),
            }
            // Else the length would be all that is wrong.
            if random.u8(..4) > 0 && which > 0 && message.len() > 4 {
                let length = (message.len() - 4) as u32;
                message[..4].copy_from_slice(&length.to_le_bytes());
            }
        }
        if let Some((ticket, _stream)) = say(&socket, pid, &messages) {
            taken += 1;
            adopted += u32::from(round % 2 == 0 && adopt(&socket, pid, ticket));
        }
    }
    eprintln!("{taken} of 400 were taken, {adopted} ran");
    assert!(taken > 0 && adopted > 0 && taken < 400, "{taken} were taken, {adopted} ran");
    recovers(&pair, before);
}

#[test]
fn a_processor_that_has_less_is_refused_and_what_it_lacks_is_named() {
    let Some(pair) = Pair::start() else { return };
    let lacking = CpuFeatures([u32::MAX; 9]).lacking(&CpuFeatures::here());
    assert!(!lacking.is_empty(), "no processor has features of all makers");
    let stream = UnixStream::connect(pair.socket("a")).expect("the node is there");
    let offer = Offer { cpu: CpuFeatures([u32::MAX; 9]), ..offer(PID) };
    frame::send(&stream, &NodeRequest::Receive(offer), &[]).expect("it listens");
    let Reply::Refused(reason) = frame::receive(&stream, MAX_MESSAGE).expect("an answer").0 else {
        panic!("it is taken");
    };
    assert!(reason.contains(&lacking.join(", ")), "{reason}");
}

#[test]
fn a_process_that_is_there_is_not_taken_again() {
    let Some(pair) = Pair::start() else { return };
    let mut child = pair.start_at_a(&words(&["/bin/cat"]));
    let pid = child.id() as i32;
    let stream = connect(&pair.socket("a"));
    frame::send(&stream, &NodeRequest::Receive(offer(pid)), &[]).expect("it listens");
    let Reply::Refused(reason) = frame::receive(&stream, MAX_MESSAGE).expect("an answer").0 else {
        panic!("it is taken");
    };
    assert!(reason.starts_with(&format!("process {pid} of this home is there")), "{reason}");
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn claims_cost_the_node_nothing() {
    let Some(pair) = Pair::start() else { return };
    let socket = pair.socket("a");
    let before = has(&pair);
    let pages = |runs: Vec<Run>| frame::encode(&FromSource::Pages(runs)).expect("a message");
    let owed = |runs: Vec<Run>| frame::encode(&FromSource::Owed(runs)).expect("a message");
    // Pages that are forgotten are not looked for one by one.
    let most = |index| run(Owner::Object(index), 0, u32::MAX, Content::Nothing);
    let since = Instant::now();
    let forgets: Vec<Vec<u8>> =
        (0..50).map(|round: u32| pages((0..2048).map(|index| most(round * 2048 + index)).collect())).collect();
    let mut messages = vec![conversation(PID).remove(0)];
    messages.extend(forgets);
    messages.push(pages(vec![run(Owner::Space, 0, u32::MAX, Content::Nothing)]));
    assert!(say(&socket, PID, &messages).is_none());
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // More pages than may come at once, none, some beyond the last, and a message that is not all there.
    for message in [
        pages(vec![run(Owner::Space, 0, u32::MAX, Content::Zeros)]),
        pages(vec![run(Owner::Space, 0, 0, Content::Zeros)]),
        pages(vec![run(Owner::Space, u64::MAX, 2, Content::Nothing)]),
        pages(vec![run(Owner::Space, u64::MAX / 4096, 1, Content::Bytes)]),
        owed(vec![run(Owner::Object(0), 0, 1, Content::Bytes)]),
        owed(vec![run(Owner::Space, 0, 1, Content::Zeros)]),
        owed(vec![run(Owner::Space, 0, u32::MAX, Content::Bytes)]),
        owed(vec![run(Owner::Space, 0, 4, Content::Bytes), run(Owner::Space, 3, 1, Content::Bytes)]),
        [owed(vec![run(Owner::Space, 16, 1, Content::Bytes)]), pages(vec![run(Owner::Space, 16, 1, Content::Zeros)])]
            .concat(),
        frame::encode(&FromSource::Moved).expect("a message"),
        u32::MAX.to_le_bytes().to_vec(),
        [&(60u32 << 20).to_le_bytes()[..], b"short"].concat(),
    ] {
        assert!(say(&socket, PID, &[message]).is_none());
    }
    // Compressed pages that are more than was announced, or fewer, or claim to be.
    let first = |chunk: &[u8]| {
        let runs = vec![run(Owner::Space, 1, 1, Content::Bytes)];
        [&frame::encode(&FromSource::Packed(runs)).expect("a message")[..], chunk].concat()
    };
    for chunk in [
        packed([1, 2], 2 * PAGE),
        packed([1, 2], PAGE / 2),
        packed([1, 2], 8 << 20),
        u32::MAX.to_le_bytes().to_vec(),
        vec![0; 4],
        [&4000u32.to_le_bytes()[..], &[0xff; 4000]].concat(),
    ] {
        assert!(say(&socket, PID, &[first(&chunk)]).is_none());
    }
    // As much memory as there is, and more.
    let zeros = |index: u64| pages(vec![run(Owner::Space, index * 2048, 2048, Content::Zeros)]);
    let zeros: Vec<Vec<u8>> = (0..2000).map(zeros).collect();
    assert!(say(&socket, PID, &zeros).is_none());
    let later = |index: u64| owed(vec![run(Owner::Space, index * 2048, 2048, Content::Bytes)]);
    let later: Vec<Vec<u8>> = (0..2000).map(later).collect();
    assert!(say(&socket, PID, &later).is_none());
    // Where the image has no memory.
    let mut messages = conversation(PID);
    messages.insert(1, owed(vec![run(Owner::Space, 1 << 30, 1, Content::Bytes)]));
    assert!(say(&socket, PID, &messages).is_none());
    recovers(&pair, before);
}

#[test]
fn streams_that_are_not_as_they_should_be_are_refused_and_leave_nothing() {
    let Some(pair) = Pair::start() else { return };
    let socket = pair.socket("a");
    let before = has(&pair);
    let message = |message: FromSource| frame::encode(&message).expect("a message");
    let spread = |streams| message(FromSource::Spread(streams));
    let gather = || message(FromSource::Gather);
    let image = || message(FromSource::Image(Box::new(image(PID))));
    let code = || {
        let runs = vec![run(Owner::Space, CODE / PAGE as u64, PAGES, Content::Bytes)];
        [message(FromSource::Pages(runs)), [0xeb, 0xfe].repeat(PAGES as usize * PAGE / 2)].concat()
    };
    let zeros = |page| message(FromSource::Pages(vec![run(Owner::Space, page, 1, Content::Zeros)]));
    let object = || message(FromSource::Pages(vec![run(Owner::Object(0), 0, PAGES, Content::Zeros)]));
    let say = |messages: &[Vec<u8>], beside: &[(u32, Vec<Vec<u8>>)]| say_beside(&socket, PID, messages, beside);

    // As it should be, it is taken and runs: 2 MiB in a row are of one stream, the next of the next.
    assert_eq!(CODE / (2 << 20) % 3, 2);
    let main = [spread(3), object(), gather(), image()];
    let (ticket, stream) =
        say(&main, &[(1, vec![spread(3), gather()]), (2, vec![spread(3), code(), gather()])]).expect("it is taken");
    assert!(adopt(&socket, PID, ticket));
    drop(stream);
    recovers(&pair, before);

    let refused = |what: &str, messages: &[Vec<u8>], beside: &[(u32, Vec<Vec<u8>>)]| {
        assert!(say(messages, beside).is_none(), "{what}");
    };
    let well = || (1, vec![spread(2), gather()]);
    let end = [gather(), image()];
    let main = |begin: &[Vec<u8>]| [begin, &end[..]].concat();
    // Those that are not expected do no harm; that none comes is noticed in time.
    for intruder in [(0, vec![spread(2), gather()]), (9, vec![spread(2), gather()]), (1, vec![image()])] {
        let taken = say(&main(&[spread(2), code()]), &[well(), intruder]);
        let (ticket, _stream) = taken.expect("it is taken");
        assert!(adopt(&socket, PID, ticket));
        recovers(&pair, before);
    }
    refused("no such stream", &main(&[spread(2)]), &[(2, vec![spread(2), gather()])]);
    refused("one that ends early", &main(&[spread(2)]), &[(1, vec![spread(2)])]);
    refused("one that has none of it", &main(&[spread(2)]), &[(1, vec![gather()])]);
    refused("fewer than there are", &main(&[spread(3)]), &[(1, vec![spread(3), gather()]), (2, vec![])]);
    refused("they disagree", &main(&[spread(2)]), &[(1, vec![spread(3), gather()])]);
    refused("its own number is too great", &main(&[spread(2)]), &[(1, vec![spread(1), gather()])]);
    for count in [0, 17, u32::MAX] {
        refused("so many", &main(&[spread(count)]), &[(1, vec![spread(count), gather()])]);
    }
    refused("twice told", &main(&[spread(2), spread(2)]), &[well()]);
    refused("told too late", &main(&[zeros(0), spread(2)]), &[well()]);
    refused("not gathered", &[spread(2), image()], &[well()]);
    refused("gathered twice", &[spread(2), gather(), gather(), image()], &[well()]);
    refused("nothing to gather", &main(&[]), &[]);
    let owed = message(FromSource::Owed(vec![run(Owner::Space, 16, 1, Content::Bytes)]));
    refused("owed before", &[spread(2), owed, gather(), image()], &[well()]);
    // Pages of the other stream, in part or whole, and what only the first has.
    refused("another's page", &main(&[spread(2)]), &[(1, vec![spread(2), zeros(0), gather()])]);
    refused("another's page on the first", &main(&[spread(2), zeros(512)]), &[well()]);
    let both = message(FromSource::Pages(vec![run(Owner::Space, 511, 2, Content::Zeros)]));
    refused("a page of each", &main(&[spread(2)]), &[(1, vec![spread(2), both.clone(), gather()])]);
    refused("a page of each on the first", &main(&[spread(2), both]), &[well()]);
    refused("an object's", &main(&[spread(2)]), &[(1, vec![spread(2), object(), gather()])]);
    refused("an image beside", &main(&[spread(2)]), &[(1, vec![spread(2), image()])]);
    // All memory that there is, over the second.
    let of_second = (0..8_000).filter(|stripe| (stripe + stripe / 4 + stripe / 32) % 2 == 1);
    let all = of_second.map(|stripe| {
        let runs = vec![run(Owner::Space, stripe * 512, 512, Content::Zeros)];
        message(FromSource::Pages(runs))
    });
    let all: Vec<Vec<u8>> = std::iter::once(spread(2)).chain(all).collect();
    refused("too much", &main(&[spread(2)]), &[(1, all)]);
    // Nobody is expected.
    let stranger = connect(&socket);
    frame::send(&stranger, &NodeRequest::Join { ticket: [7; 16], stream: 1 }, &[]).expect("it listens");
    let Ok((Reply::Refused(why), _)) = frame::receive(&stranger, MAX_MESSAGE) else { panic!("it is taken") };
    assert!(why.contains("no process arrives"), "{why}");
    recovers(&pair, before);
}
