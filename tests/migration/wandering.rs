//! Programs that go back and forth.

use crate::{Pair, numbered, words};
use skein_tests::guest::{Linking, program};
use skein_tests::mover::PostCopy;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};

/// Most migrations of a test that may take too long.
const LATE: u32 = 10;

/// The program that notices everything, for so long.
pub(crate) fn wander(pair: &Pair, seconds: &str, file: &str) -> (Child, PathBuf) {
    wander_with(pair, seconds, file, &[])
}

/// The same without children, which would be lost where they are when a node is.
pub(crate) fn wander_alone(pair: &Pair, seconds: &str, file: &str) -> (Child, PathBuf) {
    wander_with(pair, seconds, file, &["alone".into()])
}

fn wander_with(pair: &Pair, seconds: &str, file: &str, more: &[OsString]) -> (Child, PathBuf) {
    let case = program("wander", Linking::Dynamic, []);
    let path = pair.place.path().join(file);
    let argv: [OsString; 3] = [case.argv[0].clone().into(), seconds.into(), path.clone().into()];
    (pair.start_at_a(&[&argv, more].concat()), path)
}

/// Waits for the program's end, which is a good one.
pub(crate) fn ended_well(child: Child) -> String {
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "it said: {said}");
    said
}

#[test]
fn a_program_that_notices_everything_notices_nothing_of_500_migrations() {
    let Some(pair) = Pair::start() else { return };
    let (mut child, file) = wander(&pair, "3600", "numbers");
    let pid = child.id() as i32;
    let mut random = fastrand::Rng::with_seed(4);
    let (mut longest, mut late) = (0, 0);
    for number in 0..500 {
        // Where others load the machine one may take longer than a process may stand still; it stays then.
        let streams = random.u32(1..=4);
        let migrate = || pair.migrate_with(pid, PostCopy::Auto, streams);
        let mut record = migrate();
        while let Err(why) = &record {
            late += 1;
            if child.try_wait().expect("a child").is_some() {
                let logs = ["a", "b"].map(|node| pair.host.node_log(node)).concat();
                panic!("migration {number}: {why}: it has ended: {:?}\n{logs}", child.wait_with_output());
            }
            assert!(late <= LATE, "migration {number}: {why}");
            record = migrate();
        }
        let record = record.expect("just seen");
        assert_eq!(record.streams, streams, "{record:?}");
        longest = longest.max(record.freeze_micros);
        std::thread::sleep(std::time::Duration::from_micros(random.u64(..10_000)));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGUSR1).expect("it runs");
    let said = ended_well(child);
    assert!(numbered(&file) >= 10_000);
    eprintln!("the longest freeze: {longest} us; it said: {said}");
}

/// What a node's VMM has: descriptors, threads, and bytes of guest RAM that are handed out.
fn belongings(pair: &Pair, node: &str) -> (usize, usize, u64) {
    let of = pair.about(node);
    let pid = of["vmm_pid"].as_i64().expect("a PID");
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("the VMM runs").count();
    (count("fd"), count("task"), of["memory_used"].as_u64().expect("a number"))
}

#[test]
fn nothing_is_left_of_a_process_that_has_gone_a_thousand_times() {
    let Some(pair) = Pair::start() else { return };
    let child = pair.start_at_a(&words(&["/usr/bin/python3", "-c", "import time; time.sleep(3600)"]));
    let pid = child.id() as i32;
    // What is kept for the next is made by then.
    for _ in 0..20 {
        pair.migrate(pid).expect("it goes");
    }
    let before = ["a", "b"].map(|node| belongings(&pair, node));
    let mut late = 0;
    for number in 0..1000 {
        // Where others load the machine one may take longer than a process may stand still; it stays then.
        while let Err(why) = pair.migrate_with(pid, PostCopy::Auto, 1 + number % 3) {
            late += 1;
            assert!(late <= LATE, "migration {number}: {why}");
        }
    }
    // Up to 1024 page tables that are out of use wait for each other before they are free.
    const NOISE: (usize, u64) = (4, 5 << 20);
    let since = std::time::Instant::now();
    loop {
        let after = ["a", "b"].map(|node| belongings(&pair, node));
        let is_more = |(before, after): (&(usize, usize, u64), &(usize, usize, u64))| {
            after.0 > before.0 + NOISE.0 || after.1 > before.1 || after.2 > before.2 + NOISE.1
        };
        if !before.iter().zip(&after).any(is_more) {
            break;
        }
        assert!(since.elapsed() < std::time::Duration::from_secs(10), "{before:?} has become {after:?}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).expect("it runs");
    child.wait_with_output().expect("it ends");
}

/// However small it is: the target hears of the source often enough.
#[test]
fn a_process_goes_within_a_bandwidth() {
    const BANDWIDTH: u64 = 256 << 10;
    let Some(pair) = Pair::start() else { return };
    let mut child = pair.start_at_a(&words(&["/usr/bin/python3", "-c", "import os; os.write(1, b'x'); os.read(0, 1)"]));
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("it has begun");
    let pid = child.id().to_string();
    let said = pair.host.skein(&["migrate", "--json", "--bandwidth", "256K", "--streams", "2", &pid, "b"]);
    let said = said.unwrap_or_else(|why| panic!("{why}"));
    let record: serde_json::Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    let of = |what: &str| record["rounds"][0][what].as_u64().expect("a number");
    // As long as the target waits for pages, and longer.
    assert!(of("bytes") > 10 * BANDWIDTH, "{record}");
    // What goes in a quarter of a second over each stream is not waited for.
    assert!(of("micros") > (of("bytes") - BANDWIDTH) * 1_000_000 / BANDWIDTH, "{record}");
    drop(child.stdin.take());
    ended_well(child);
}

#[test]
fn twenty_processes_migrate_at_once_in_both_directions() {
    let Some(pair) = Pair::start() else { return };
    let argv = words(&[
        "/usr/bin/python3",
        "-c",
        "import sys\nn = 0\nfor line in sys.stdin:\n n += int(line)\n print(n, flush=True)",
    ]);
    let mut children: Vec<Child> = (0..20).map(|_| pair.start_at_a(&argv)).collect();
    for child in children.iter().skip(10) {
        pair.migrate(child.id() as i32).expect("it goes");
    }
    // On a machine that is loaded one may not get to where it should be in the time that it may stand still.
    let late = AtomicU32::new(0);
    let go = |pid: i32| {
        while let Err(why) = pair.migrate(pid) {
            assert!(late.fetch_add(1, Ordering::SeqCst) < 2 * LATE, "{why}");
        }
    };
    for round in 1..=5 {
        std::thread::scope(|scope| {
            for child in &children {
                let (pid, go) = (child.id() as i32, &go);
                scope.spawn(move || go(pid));
            }
        });
        let at_a = children.iter().filter(|child| pair.at(child.id() as i32) == Some('a')).count();
        assert_eq!(at_a, 10);
        for child in &mut children {
            writeln!(child.stdin.as_mut().expect("a pipe"), "{round}").expect("it reads");
        }
    }
    for mut child in children {
        drop(child.stdin.take());
        let mut said = String::new();
        child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert_eq!(said, "1\n3\n6\n10\n15\n");
        assert!(child.wait().expect("it ends").success());
    }
}

#[test]
fn calls_that_wait_at_home_go_on_waiting() {
    let Some(pair) = Pair::start() else { return };
    let mut child = pair.start_at_a(&words(&["/bin/cat"]));
    let pid = child.id() as i32;
    for round in 0..6u8 {
        pair.migrate(pid).expect("it goes while it reads");
        let mut line = [b'a' + round, b'\n'];
        child.stdin.as_mut().expect("a pipe").write_all(&line).expect("it reads");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut line).expect("it writes");
        assert_eq!(line, [b'a' + round, b'\n']);
    }
    drop(child.stdin.take());
    ended_well(child);
}

#[test]
fn much_that_is_written_to_a_slow_reader_comes_whole() {
    let Some(pair) = Pair::start() else { return };
    let script = "import sys\nfor i in range(20): sys.stdout.buffer.write(bytes([i]) * 300000)";
    let mut child = pair.start_at_a(&words(&["/usr/bin/python3", "-c", script]));
    let pid = child.id() as i32;
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut got = Vec::new();
    let mut piece = vec![0; 70_000];
    loop {
        // It waits in a write by now, or soon.
        let _ = pair.migrate(pid);
        let count = stdout.read(&mut piece).expect("a pipe");
        if count == 0 {
            break;
        }
        got.extend_from_slice(&piece[..count]);
    }
    let expected: Vec<u8> = (0..20u8).flat_map(|i| vec![i; 300_000]).collect();
    assert!(got == expected, "{} bytes, and not the right ones", got.len());
    ended_well(child);
}

#[test]
fn a_node_that_is_stopped_sends_its_processes_away() {
    let Some(pair) = Pair::start() else { return };
    let (child, file) = wander(&pair, "0.5", "stopped");
    pair.host.skein(&["node", "stop", "a"]).expect("the node stops");
    assert_eq!(pair.at(child.id() as i32), Some('b'));
    ended_well(child);
    numbered(&file);
    assert!(!Path::new(&pair.socket("a")).exists());
}

#[test]
fn a_process_that_writes_as_fast_as_it_can_is_slowed_down() {
    let Some(pair) = Pair::start() else { return };
    const MIB: u64 = 256;
    let case = program("scribble", Linking::Dynamic, []);
    let argv: Vec<OsString> = [case.argv[0].clone().into(), MIB.to_string().into()].into();
    let mut child = pair.start_at_a(&argv);
    let pid = child.id() as i32;
    let mut said = [0; 5];
    let stdout = child.stdout.as_mut().expect("a pipe");
    stdout.read_exact(&mut said).expect("it has written to all of it");
    for number in 0..4 {
        let record = pair.migrate(pid).unwrap_or_else(|why| panic!("migration {number}: {why}"));
        let last = record.rounds.last().expect("the round while it stood still");
        let all = MIB << 20 >> 12;
        eprintln!("{number}: slowed to 1/{}, {} us still, {:?}", record.slowed, record.freeze_micros, record.rounds);
        assert!(last.pages < all / 2, "{} of {all} pages were sent while it stood still: {record:?}", last.pages);
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGUSR1).expect("it runs");
    ended_well(child);
}
