//! Memory that follows its process to another host.

use crate::wandering::wander;
use crate::{Cluster, ended_well, numbered, until, words};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::home::skein_binary;
use skein_tests::mishaps::{self, NODE_DIED};
use skein_tests::mover::processes;
use skein_tests::net::Network;
use skein_tests::pages;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

/// Options of a migration that leaves all memory behind.
const BEHIND: [&str; 2] = ["--post-copy", "always"];

#[test]
fn a_program_that_notices_everything_notices_nothing_of_memory_that_follows_to_other_hosts() {
    let Some(cluster) = Cluster::start(3) else { return };
    let (child, file) = wander(&cluster, "3600", false);
    let pid = child.id() as i32;
    let mut random = fastrand::Rng::with_seed(5);
    let (mut at, mut late, mut followed) = (0, 0, 0);
    for _ in 0..60 {
        let to = (at + random.usize(1..3)) % 3;
        let record = cluster.migrate_with_for_sure(pid, to, &BEHIND, &mut late);
        followed += record["post_copy"]["pages"].as_u64().unwrap_or(0);
        assert_eq!(cluster.at(pid), Some(to));
        at = to;
        std::thread::sleep(Duration::from_micros(random.u64(..10_000)));
    }
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("it runs");
    let said = ended_well(child);
    assert!(numbered(&file) >= 10_000 && followed >= 60 * 100, "{followed} pages followed");
    eprintln!("{followed} pages followed; it said: {said}");
}

/// The program with numbered pages, at home.
fn numbered_pages(cluster: &Cluster, then: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = cluster.mosrun(&words(&["/usr/bin/python3", "-c", &pages::numbered(then)]));
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    await_line(&mut output, "ready");
    (child, output)
}

fn await_line(output: &mut BufReader<ChildStdout>, expected: &str) {
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line.trim_end(), expected);
}

fn tell(child: &mut Child) {
    child.stdin.as_mut().expect("a pipe").write_all(b"go\n").expect("it listens");
}

/// Whether a process runs, rather than arrives, at the node with this socket; not if it does not say.
fn runs_at(socket: &Path) -> bool {
    processes(socket).unwrap_or_default().iter().any(|process| !process.arriving)
}

#[test]
fn what_is_done_with_memory_that_is_at_another_host_is_done_with_what_comes() {
    let Some(cluster) = Cluster::start(3) else { return };
    let then = "
import random
random.seed(3)
for word in ('there', 'further', 'home'):
    sys.stdin.readline()
    check(random.sample(range(PAGES), 200))
    children = [forked(random.sample(range(PAGES), 50)) for _ in range(3)]
    for child in children: assert os.waitpid(child, 0)[1] == 0
    out = os.memfd_create('x')
    assert os.pwrite(out, memory[9000 * 4096:9100 * 4096], 0) == 100 * 4096
    check(range(PAGES))
    print(word, flush=True)
";
    let (mut child, mut output) = numbered_pages(&cluster, then);
    let pid = child.id() as i32;
    for (to, word) in [(1, "there"), (2, "further"), (0, "home")] {
        let record = std::thread::scope(|scope| {
            // So slowly that little has come when it is touched.
            let options = [&BEHIND[..], &["--bandwidth", "2M"]].concat();
            let cluster = &cluster;
            let migration = scope.spawn(move || cluster.migrate_with_for_sure(pid, to, &options, &mut 0));
            until("it runs at its new place", || runs_at(&cluster.hosts[to].socket("node-1")));
            tell(&mut child);
            migration.join().expect("no panic")
        });
        assert!(record["post_copy"]["uncompressed"].as_u64() >= Some(60 << 20), "{record}");
        await_line(&mut output, word);
    }
    assert!(child.wait().expect("it ends").success());
}

/// What the processes say whose memory does not come.
const LOST: &str = "memory of it was lost on its way to the node";

#[test]
fn a_process_whose_memory_is_lost_between_hosts_ends_and_that_is_said() {
    let faults = [
        "SourceServe=cut",
        "SourceServe=kill",
        "SourceServe=corrupt",
        "TargetCollect=cut",
        "TargetCollect=kill",
        "SourceMoved=kill",
    ];
    let cases: Vec<(&str, bool)> = faults.iter().flat_map(|&fault| [(fault, true), (fault, false)]).collect();
    let name = |&(fault, from_home): &(&str, bool)| format!("{fault} {}", if from_home { "from home" } else { "away" });
    mishaps::all(&cases, name, |&(fault, from_home)| {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mark = place.path().join("happened").to_string_lossy().into_owned();
        if !from_home {
            // The way to where the fault is to happen has none.
            std::fs::write(&mark, "").expect("a file");
        }
        let variables = [("SKEIN_FAULT", fault), ("SKEIN_FAULT_MARK", &mark)];
        let Some(cluster) = Cluster::start_with(if from_home { 2 } else { 3 }, &variables) else { return };
        let (child, _output) = numbered_pages(&cluster, "while True: check(range(PAGES))");
        let pid = child.id() as i32;
        let to = if from_home {
            1
        } else {
            cluster.migrate_for_sure(pid, 1, &mut 0);
            std::fs::remove_file(&mark).expect("the file");
            2
        };
        let went = cluster.migrate_with(pid, to, &BEHIND);
        assert!(went.is_err(), "{went:?}");
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(NODE_DIED), "{said}");
        let why = if fault == "TargetCollect=kill" { "is gone" } else { LOST };
        assert!(said.contains(why), "{said}");
        if !fault.starts_with("Target") {
            until("the other node has nothing of it", || {
                processes(&cluster.hosts[to].socket("node-1")).is_ok_and(|all| all.is_empty())
            });
        }
    });
}

/// The connection over which memory comes is not made again: what it lacks is nowhere else, and its process ends, while
/// the link home is, over which that is said.
#[test]
fn a_cable_that_is_pulled_for_long_while_memory_follows_ends_its_process() {
    let Some(network) = Network::cluster(2) else { return };
    let [first, second] = network.hosts() else { panic!("two hosts") };
    second.says(&["node", "launch", "--name", "node-1"]);
    network.limit(1, "100mbit");
    let mut command = first.command(skein_binary().expect("skein"));
    command.args(["run", "/usr/bin/python3", "-c", &pages::numbered("while True: check(range(PAGES))")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mosrun");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    await_line(&mut output, "ready");
    let listed: Vec<serde_json::Value> = serde_json::from_str(&first.says(&["ps", "--json"])).expect("JSON");
    let pid = listed[0]["pid"].to_string();
    std::thread::scope(|scope| {
        // So slowly that little has come when the cable is out.
        let order = [&["migrate", "--bandwidth", "1M"][..], &BEHIND, &[&pid, "host-2"]].concat();
        let migration = scope.spawn(move || first.skein(&order));
        until("it runs at its new place", || runs_at(&second.state().join("nodes/node-1.sock")));
        network.plug(1, false);
        until("its memory is given up", || {
            processes(&second.state().join("nodes/node-1.sock")).is_ok_and(|all| all.is_empty())
        });
        network.plug(1, true);
        let went = migration.join().expect("no panic");
        assert!(!went.status.success(), "{went:?}");
    });
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(NODE_DIED), "{said}");
    assert!(said.contains(LOST), "{said}");
}
