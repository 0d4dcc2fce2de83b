//! Faults at each step of a migration between hosts: the process goes on at one node, and a retry succeeds.

use crate::wandering::wander;
use crate::{Cluster, HOSTS, ended_well, numbered, says, until, words};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::mishaps::{self, NODE_DIED, Then, goes_on, in_time};
use skein_tests::mover;
use skein_tests::net::Network;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use Then::{Dies, Goes, GoesWithoutSource, Stays, StaysWithoutTarget};

const FAULTS: [(&str, Then); 58] = [
    ("DeputyFind=cut", Stays),
    ("DeputyFind=delay", Goes),
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
    ("SourceImage=duplicate", Goes),
    ("SourceCommit=cut", Stays),
    ("SourceCommit=kill", Dies),
    ("SourceCommit=delay", Goes),
    ("SourceMoved=kill", GoesWithoutSource),
    ("SourceMoved=cut", Goes),
    ("SourceMoved=delay", Goes),
    ("TargetOffer=cut", Stays),
    ("TargetOffer=delay", Goes),
    ("TargetOffer=kill", StaysWithoutTarget),
    ("TargetJoin=cut", Goes),
    ("TargetJoin=delay", Goes),
    ("TargetJoin=kill", StaysWithoutTarget),
    ("TargetJoin=stop", Goes),
    ("TargetPages=cut", Stays),
    ("TargetPages=delay", Goes),
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

/// How long the program stood still, if that was too long.
fn once_with_fault(fault: &str, then: Then, home_first: bool) -> Option<Duration> {
    let (nodes, deputies) = if fault.starts_with("Deputy") { ("", fault) } else { (fault, "") };
    let place = tempfile::tempdir().expect("a temporary directory");
    let mark = place.path().join("happened").to_string_lossy().into_owned();
    if !home_first {
        // The way to where the fault is to happen has none.
        std::fs::write(&mark, "").expect("a file");
    }
    let mut cluster = Cluster::start_with(2, &[("SKEIN_FAULT", nodes), ("SKEIN_FAULT_MARK", &mark)])?;
    cluster.hosts[0].set("SKEIN_FAULT", deputies);
    let (mut child, file) = wander(&cluster, "3600", then == GoesWithoutSource);
    let pid = child.id() as i32;
    let written = || std::fs::metadata(&file).map_or(0, |about| about.len());
    until("the program is at work", || written() > 0);
    let (from, to) = if home_first { (0, 1) } else { (1, 0) };
    if !home_first {
        cluster.migrate_for_sure(pid, 1, &mut 0);
        std::fs::remove_file(&mark).expect("the file");
    }
    // So that some of what fails is beside the first.
    let result = cluster.migrate_with(pid, to, &["--streams", "3"]);
    // How it ended, if it has, is looked at later.
    let mut late = None;
    match then {
        Goes => {
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(cluster.at(pid), Some(to));
        }
        Stays | StaysWithoutTarget => {
            assert!(result.is_err(), "it went");
            late = goes_on(&mut child, written);
            assert_eq!(cluster.at(pid), Some(from));
            if then == StaysWithoutTarget {
                until("the target is gone", || !cluster.hosts[to].socket("node-1").exists());
                says(&cluster.hosts[to], &["node", "launch", "--name", "node-1"]);
            }
            let retry = Instant::now();
            // A process that was given up late may be there for a moment still.
            let mut again = cluster.migrate(pid, to);
            while again.is_err() && retry.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(20));
                again = cluster.migrate(pid, to);
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
fn at_each_step_a_fault_leaves_the_process_at_one_host() {
    // From home to another host, and back from there.
    let cases: Vec<(&str, Then, bool)> =
        FAULTS.iter().flat_map(|&(fault, then)| [(fault, then, true), (fault, then, false)]).collect();
    let name = |&(fault, _, home_first): &(&str, _, bool)| {
        format!("{fault} {}", if home_first { "from home" } else { "to home" })
    };
    mishaps::all(&cases, name, |&(fault, then, home_first)| in_time(|| once_with_fault(fault, then, home_first)));
}

/// At each of these steps the protocol waits for a moment, in which a `skeind` dies.
const STEPS: [&str; 6] = ["DeputyFind", "SourcePages", "SourceImage", "TargetAdopt", "SourceCommit", "DeputyMoved"];

/// Writes numbers to a file, each once, until it gets a signal.
const COUNTS: &str = "
import signal, sys, time
done = []
signal.signal(signal.SIGUSR1, lambda *_: done.append(1))
with open(sys.argv[1], 'w', buffering=1) as file:
    number = 0
    while not done:
        print(number, file=file)
        number += 1
        time.sleep(0.001)
";

/// How long the program stood still, if that was too long.
fn once_without_daemon(step: &str, of: usize, home_first: bool) -> Option<Duration> {
    let fault = format!("{step}=delay");
    let (nodes, deputies) = if step.starts_with("Deputy") { ("", fault.as_str()) } else { (fault.as_str(), "") };
    let place = tempfile::tempdir().expect("a temporary directory");
    let mark = place.path().join("happened");
    if !home_first {
        std::fs::write(&mark, "").expect("a file");
    }
    let variables = [("SKEIN_FAULT", nodes), ("SKEIN_FAULT_MARK", mark.to_str().expect("text"))];
    let mut cluster = Cluster::start_with(2, &variables)?;
    cluster.hosts[0].set("SKEIN_FAULT", deputies);
    let file = place.path().join("numbers");
    let mut argv = words(&["/usr/bin/python3", "-c", COUNTS]);
    argv.push(file.clone().into_os_string());
    let mut child = cluster.mosrun(&argv);
    let pid = child.id() as i32;
    let written = || std::fs::metadata(&file).map_or(0, |about| about.len());
    until("the program is at work", || written() > 0);
    if !home_first {
        cluster.migrate_for_sure(pid, 1, &mut 0);
        std::fs::remove_file(&mark).expect("the file");
    }
    let daemon = cluster.daemon(of);
    let result = std::thread::scope(|scope| {
        let migration = scope.spawn(|| cluster.migrate(pid, usize::from(home_first)));
        until("the step is reached", || mark.exists());
        kill(Pid::from_raw(daemon), Signal::SIGKILL).expect("it runs");
        migration.join().expect("no panic")
    });
    let late = goes_on(&mut child, written);
    let runs_at = || -> Vec<usize> {
        let runs = |host: &usize| {
            let all = mover::processes(&cluster.hosts[*host].socket("node-1")).unwrap_or_default();
            all.iter().any(|process| process.pid == pid && !process.arriving)
        };
        (0..2).filter(runs).collect()
    };
    if result.is_ok() {
        assert_eq!(runs_at(), [usize::from(home_first)], "it was said to have gone");
    }
    says(&cluster.hosts[of], &["host", "start"]);
    // Wherever it is, it can go; but the nodes may still go on with what was ordered before.
    until("a retry succeeds", || {
        let at = runs_at();
        assert!(at.len() < 2, "it is at both");
        matches!(at[..], [at] if cluster.migrate(pid, 1 - at).is_ok())
    });
    let before = written();
    until("it goes on", || written() > before);
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("it runs");
    ended_well(child);
    assert!(numbered(&file) > 0);
    late
}

#[test]
fn a_daemon_that_is_killed_at_any_step_leaves_the_process_at_one_host() {
    let both = |step| [(step, 0), (step, 1)];
    let cases: Vec<(&str, usize, bool)> =
        (STEPS.into_iter().flat_map(both)).flat_map(|(step, of)| [(step, of, true), (step, of, false)]).collect();
    let name = |&(step, of, home_first): &(&str, usize, bool)| {
        let direction = if home_first { "from home" } else { "to home" };
        format!("{step} {direction}, the daemon of {}", HOSTS[of])
    };
    mishaps::all(&cases, name, |&(step, of, home_first)| in_time(|| once_without_daemon(step, of, home_first)));
}

/// Cables are pulled at moments that a seed decides, while the process goes to another host or comes back from there: it
/// is at home then and goes on, or it was away and is lost, which is said.
#[test]
fn a_cable_that_is_pulled_leaves_the_process_at_one_host_or_none() {
    let Some(network) = Network::cluster(2) else { return };
    let [first, second] = network.hosts() else { panic!("two hosts") };
    first.says(&["node", "launch"]);
    second.says(&["node", "launch"]);
    let mut random = fastrand::Rng::with_seed(8);
    let (mut stayed, mut lost) = (0, 0);
    for round in 0..8 {
        let mut command = first.command(skein_tests::home::skein_binary().expect("skein"));
        let mut child = command
            .args(["run", "--home-timeout", "0", "/bin/cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("mosrun");
        let mut stdin = child.stdin.take().expect("a pipe");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut echo = || {
            let mut line = String::new();
            let asked = stdin.write_all(b"here\n").is_ok();
            asked && output.read_line(&mut line).is_ok() && line == "here\n"
        };
        assert!(echo(), "it runs");
        let listed: Vec<serde_json::Value> = serde_json::from_str(&first.says(&["ps", "--json"])).expect("JSON");
        let pid = listed[0]["pid"].to_string();
        if round % 2 == 1 {
            let output = first.skein(&["migrate", &pid, "host-2"]);
            assert!(output.status.success(), "{output:?}");
        }
        let to = if round % 2 == 1 { "home" } else { "host-2" };
        let wait = Duration::from_micros(random.u64(..60_000));
        std::thread::scope(|scope| {
            let moving = scope.spawn(|| first.skein(&["migrate", &pid, to]));
            std::thread::sleep(wait);
            network.plug(1, false);
            let goes_on = echo();
            let moved = moving.join().expect("no panic");
            eprintln!("{round}: pulled after {wait:?}: goes on: {goes_on}, {}", String::from_utf8_lossy(&moved.stderr));
            if goes_on {
                stayed += 1;
                assert!(echo(), "it goes on");
            } else {
                lost += 1;
            }
        });
        drop((stdin, output));
        let status = child.wait().expect("it ends").code();
        assert!(matches!(status, Some(0 | NODE_DIED)), "{status:?}");
        network.plug(1, true);
        until("the hosts meet again", || {
            let members = first.says(&["cluster", "ls", "--json"]);
            let members: Vec<serde_json::Value> = serde_json::from_str(&members).expect("JSON");
            members.iter().all(|member| member["reachable"] == true)
        });
        let there = second.says(&["ps", "--json"]);
        until("nothing is left there", || second.says(&["ps", "--json"]).trim() == "[]");
        drop(there);
    }
    eprintln!("{stayed} stayed or came home, {lost} were lost; {} and {}", HOSTS[0], HOSTS[1]);
    assert!(stayed > 0, "none stayed");
}
