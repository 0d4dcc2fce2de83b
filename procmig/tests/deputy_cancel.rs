//! Breaking off calls.

mod deputy_support;

use deputy_support::{BASE, Deputy, FakeMemory};
use libc::*;
use procmig::channel::CallChannel;
use procmig::wire::control::ToDeputy;
use procmig::wire::frame;
use procmig::wire::op::Op;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn a_blocked_read_is_broken_off_and_a_late_cancellation_does_nothing() {
    let mut d = Deputy::start();
    assert_eq!(d.sys(SYS_pipe2, &[BASE, 0]), 0);
    let reader = d.memory.word(0) as u64;
    let read = [reader, BASE, 8, 0, 0, 0];
    for _ in 0..20 {
        let seq = d.call.begin_call(SYS_read as u32, &read, 0, &d.memory).unwrap();
        d.cancel(d.pid.as_raw(), seq);
        assert_eq!(d.call.finish_call(&d.memory).unwrap().ret, -i64::from(EINTR));
        d.cancel(d.pid.as_raw(), seq);
        assert_eq!(d.sys(SYS_getppid, &[]), i64::from(std::process::id()));
    }
    // A cancellation of what is to come breaks it off before it begins, but only if it may block.
    let seq = d.call.begin_call(SYS_getppid as u32, &[0; 6], 0, &d.memory).unwrap();
    d.call.finish_call(&d.memory).unwrap();
    d.cancel(d.pid.as_raw(), seq.wrapping_add(1));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(d.sys(SYS_read, &read[..3]), -i64::from(EINTR));
    d.exit();
}

/// Numbered records through pipes, each reader cancelled at random moments, in time and too late:
/// nothing is lost, nothing comes twice, and every read gives its record, or `EINTR` if it was cancelled.
#[test]
fn cancelled_reads_and_polls_lose_nothing() {
    const THREADS: u64 = 8;
    const RECORDS: u64 = 400;
    let mut d = Deputy::start();
    let control = d.control.try_clone().unwrap();
    let mut workers = Vec::new();
    for n in 0..THREADS {
        assert_eq!(d.sys(SYS_pipe2, &[BASE, 0]), 0);
        let (reader, writer) = (d.memory.word(0) as u64, d.memory.word(4));
        let mut reply = d.op(&Op::NewThread);
        let (tid, connection) = (reply.ret as i32, reply.descriptors.remove(0));
        let path = format!("/proc/{}/fd/{writer}", d.pid);
        let mut feed = std::fs::File::options().write(true).open(path).unwrap();
        let control = control.try_clone().unwrap();
        workers.push(std::thread::spawn(move || {
            let mut call = CallChannel::new(connection.into());
            let memory = FakeMemory::new(4096);
            let mut random = fastrand::Rng::with_seed(n);
            let take = Arc::new(AtomicU64::new(0));
            let taken = take.clone();
            let writer = std::thread::spawn(move || {
                for record in 0..RECORDS {
                    // Each comes a while after the last was taken, so that the reader waits for it.
                    while taken.load(Ordering::Relaxed) < record {
                        std::thread::sleep(Duration::from_micros(20));
                    }
                    std::thread::sleep(Duration::from_micros(record * 37 % 300));
                    feed.write_all(&record.to_le_bytes()).unwrap();
                }
            });
            let (mut expected, mut broken) = (0, 0);
            while expected < RECORDS {
                let poll = random.u8(..4) == 0;
                memory.put(100, &[&(reader as u32).to_le_bytes()[..], &[1, 0, 0, 0]].concat());
                let (nr, args) = match poll {
                    true => (SYS_poll, [BASE + 100, 1, 5000, 0, 0, 0]),
                    false => (SYS_read, [reader, BASE, 8, 0, 0, 0]),
                };
                let seq = call.begin_call(nr as u32, &args, 0, &memory).unwrap();
                let late = random.u8(..3) == 0;
                let cancelled = !late && random.bool();
                if late || cancelled {
                    std::thread::sleep(Duration::from_micros(random.u64(..60)));
                    // One write, so that frames of threads do not mix.
                    let seq = if late { seq.wrapping_sub(1) } else { seq };
                    let bytes = frame::encode(&ToDeputy::Cancel { tid, seq }).unwrap();
                    assert_eq!(nix::unistd::write(&control, &bytes), Ok(bytes.len()));
                }
                match call.finish_call(&memory).unwrap().ret {
                    -4 if cancelled => broken += 1,
                    1 if poll => {}
                    8 if !poll => {
                        assert_eq!(memory.get(0, 8), u64::to_le_bytes(expected));
                        expected += 1;
                        take.store(expected, Ordering::Relaxed);
                    }
                    other => panic!("{nr}: {other}"),
                }
            }
            writer.join().unwrap();
            (broken, call)
        }));
    }
    // A connection that is closed is the end of the deputy: all stay open until every worker is done.
    let ends: Vec<(u64, CallChannel)> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    let broken: u64 = ends.iter().map(|(broken, _)| broken).sum();
    assert!(broken > 50, "only {broken} calls were broken off");
    d.exit();
}
