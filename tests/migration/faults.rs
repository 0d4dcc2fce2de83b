//! Faults at each step: the process goes on at one node, and a retry succeeds.

use crate::wandering::{ended_well, wander, wander_alone};
use crate::{Pair, numbered, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::mishaps::{self, NODE_DIED, Then, goes_on, in_time};
use skein_tests::mover::PostCopy;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use Then::{Dies, Goes, GoesWithoutSource, Stays, StaysWithoutTarget};

const FAULTS: [(&str, Then); 59] = [
    ("SourceOffer=cut", Stays),
    ("SourceOffer=kill", Dies),
    ("SourceOffer=delay", Goes),
    ("SourceSpread=cut", Goes),
    ("SourceSpread=kill", Dies),
    ("SourcePages=cut", Stays),
    ("SourcePages=kill", Dies),
    ("SourcePages=corrupt", Stays),
    ("SourcePages=duplicate", Stays),
    ("SourcePages=delay", Goes),
    ("SourceFrozen=cut", Stays),
    ("SourceFrozen=kill", Dies),
    ("SourceFrozen=delay", Goes),
    ("SourceImage=cut", Stays),
    ("SourceImage=kill", Dies),
    ("SourceImage=corrupt", Stays),
    ("SourceImage=duplicate", Stays),
    ("SourceImage=delay", Goes),
    ("SourceCommit=cut", Stays),
    ("SourceCommit=kill", Dies),
    ("SourceCommit=delay", Goes),
    ("SourceMoved=kill", GoesWithoutSource),
    ("SourceMoved=cut", Goes),
    ("SourceMoved=delay", Goes),
    ("TargetOffer=cut", Stays),
    ("TargetOffer=delay", Goes),
    ("TargetOffer=stop", Stays),
    ("TargetOffer=kill", StaysWithoutTarget),
    ("TargetJoin=cut", Goes),
    ("TargetJoin=delay", Goes),
    ("TargetJoin=kill", StaysWithoutTarget),
    ("TargetJoin=stop", Goes),
    ("TargetPages=cut", Stays),
    ("TargetPages=delay", Goes),
    ("TargetPages=stop", Stays),
    ("TargetPages=kill", StaysWithoutTarget),
    ("TargetImage=cut", Stays),
    ("TargetImage=delay", Goes),
    ("TargetImage=kill", StaysWithoutTarget),
    ("TargetImage=stop", Stays),
    ("TargetAdopt=cut", Stays),
    ("TargetAdopt=delay", Goes),
    ("TargetAdopt=kill", StaysWithoutTarget),
    ("TargetRun=kill", Dies),
    ("TargetRun=cut", Goes),
    ("TargetRun=delay", Goes),
    ("DeputyHold=cut", Stays),
    ("DeputyHold=delay", Goes),
    ("DeputyHold=late", Goes),
    ("DeputyCommit=cut", Stays),
    ("DeputyCommit=delay", Goes),
    ("DeputyAdopted=cut", Stays),
    ("DeputyAdopted=delay", Goes),
    ("DeputyMoved=cut", Goes),
    ("DeputyMoved=delay", Goes),
    ("DeputyLeft=cut", Goes),
    ("DeputyLeft=delay", Goes),
    ("DeputyReconnect=cut", Goes),
    ("DeputyReconnect=delay", Goes),
];

/// Over which its memory goes, so that some of what fails is beside the first.
const STREAMS: u32 = 3;

/// How long the program stood still, if that was too long.
fn once_with_fault(fault: &str, then: Then) -> Option<Duration> {
    let (nodes, deputies) = if fault.starts_with("Deputy") { ("", fault) } else { (fault, "") };
    let place = tempfile::tempdir().expect("a temporary directory");
    let mark = place.path().join("happened").to_string_lossy().into_owned();
    let mut pair = Pair::start_with(&[("SKEIN_FAULT", nodes), ("SKEIN_FAULT_MARK", &mark)])?;
    pair.host.set("SKEIN_FAULT", deputies);
    let start = if then == GoesWithoutSource { wander_alone } else { wander };
    let (mut child, file) = start(&pair, "3600", "numbers");
    let pid = child.id() as i32;
    let written = || std::fs::metadata(&file).map_or(0, |about| about.len());
    until("the program is at work", || written() > 0);
    let result = pair.migrate_with(pid, PostCopy::Auto, STREAMS);
    // How it ended, if it has, is looked at later.
    let mut late = None;
    match then {
        Goes => {
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(pair.at(pid), Some('b'));
        }
        Stays | StaysWithoutTarget => {
            assert!(result.is_err(), "it went");
            late = goes_on(&mut child, written);
            assert_eq!(pair.at(pid), Some('a'));
            if then == StaysWithoutTarget {
                until("the target is gone", || !pair.socket("b").exists());
                pair.host.skein(&["node", "launch", "--name", "b"]).expect("a new node");
            }
            let retry = Instant::now();
            // A process that was given up late may be there for a moment still.
            let mut again = pair.migrate(pid);
            while again.is_err() && retry.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(20));
                again = pair.migrate(pid);
            }
            assert!(again.is_ok(), "the retry: {again:?}");
        }
        Dies => {
            let output = child.wait_with_output().expect("mosrun ends");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(NODE_DIED), "it said: {said}");
            // What was written was written once.
            numbered(&file);
            return None;
        }
        GoesWithoutSource => {
            assert!(result.is_err());
            late = goes_on(&mut child, written);
        }
    }
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("it runs");
    ended_well(child);
    assert!(numbered(&file) >= 10_000);
    late
}

#[test]
fn at_each_step_a_fault_leaves_the_process_at_one_node() {
    let name = |&(fault, _): &(&str, _)| fault.to_owned();
    mishaps::all(&FAULTS, name, |&(fault, then)| in_time(|| once_with_fault(fault, then)));
}

#[test]
fn a_deputy_that_is_killed_takes_its_process_along_wherever_that_is() {
    let Some(pair) = Pair::start() else { return };
    for round in 0..10 {
        let (mut child, _) = wander(&pair, "3600", "killed");
        let pid = child.id() as i32;
        std::thread::scope(|scope| {
            scope.spawn(|| while pair.migrate(pid).is_ok() {});
            std::thread::sleep(Duration::from_millis(20 + 7 * round));
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        });
        let since = Instant::now();
        until("no node has it", || pair.at(pid).is_none());
        assert!(since.elapsed() < Duration::from_secs(1), "it was there for {:?}", since.elapsed());
        child.wait().expect("it has ended");
    }
}

#[test]
fn a_deputy_that_is_slow_to_go_over_finds_a_process_that_has_gone_on() {
    let Some(mut pair) = Pair::start() else { return };
    pair.host.set("SKEIN_FAULT", "DeputyReconnect=delay");
    // When it has migrated once it asks home for something; home comes to look when it has migrated again.
    let program = "import os, time; os.write(1, b'x'); time.sleep(0.12); os.write(1, os.read(0, 9))";
    let mut child = pair.start_at_a(&crate::words(&["/usr/bin/python3", "-c", program]));
    let pid = child.id() as i32;
    let mut told = [0];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut told).expect("it has begun");
    let begun = Instant::now();
    pair.migrate(pid).expect("it goes");
    std::thread::sleep(Duration::from_millis(170).saturating_sub(begun.elapsed()));
    pair.migrate(pid).expect("it goes again");
    pair.migrate(pid).expect("and again");
    child.stdin.take().expect("a pipe").write_all(b"a line\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"a line\n"[..]), "it said: {said}");
}
