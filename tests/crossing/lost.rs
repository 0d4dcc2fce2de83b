//! Links that the network loses: they are made again, and the process goes on where it waited; or they are not, and it
//! ends.

use crate::{ended_well, numbered, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::net::{NetHost, Network};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Status of a `mosrun` whose node is gone.
const LOST: i32 = 123;

/// Two hosts of a cluster with a node each, on a network of their own.
fn network() -> Option<Network> {
    let network = Network::cluster(2)?;
    network.hosts()[1].says(&["node", "launch", "--name", "node-1"]);
    Some(network)
}

/// A Python program of the first host's that runs on the second, with the usual limit on descriptors: the deputy's own are
/// beyond it.
fn start(first: &NetHost, options: &[&str], script: &str) -> Child {
    let mut command = first.command("/bin/sh");
    command.args(["-c", "ulimit -Sn 1024; exec \"$@\"", "sh"]).arg(skein_tests::home::skein_binary().expect("skein"));
    command.args(["run", "-r", "host-2"]).args(options).args(["/usr/bin/python3", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mosrun")
}

/// Resets all TCP connections of a host with the other.
fn reset(host: &NetHost) {
    host.sh("ss --kill --tcp dst 10.77.0.0/24 > /dev/null");
}

/// How often a link went on over another connection at this host's node.
fn resumed(host: &NetHost) -> usize {
    let log = std::fs::read_to_string(host.state().join("nodes/node-1.log")).expect("a log");
    log.matches("goes on over another connection").count()
}

#[test]
fn what_is_under_way_when_a_link_is_lost_happens_once() {
    let Some(network) = network() else { return };
    let [first, second] = network.hosts() else { panic!("two hosts") };
    let place = tempfile::tempdir().expect("a temporary directory");
    let (numbers, big) = (place.path().join("numbers"), place.path().join("big"));
    std::fs::write(&big, (0..3 << 20).map(|at: u32| (at % 251) as u8).collect::<Vec<_>>()).expect("a file");
    // Children too, and what goes over the control connection: signals one way, pages of a file the other.
    let script = format!(
        "import hashlib, mmap, os, signal, sys\n\
         caught = 0\n\
         def catch(*_):\n  global caught\n  caught += 1\n\
         signal.signal(signal.SIGUSR1, catch)\n\
         big = open({big:?}, 'rb').read()\n\
         f = os.open({numbers:?}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
         print(os.getpid(), flush=True)\n\
         sent = 0\n\
         i = 0\n\
         while i < 10000 or not os.path.exists({stop:?}):\n\
         \x20 os.write(f, b'%d\\n' % i)\n  i += 1\n\
         \x20 if i % 500 == 0:\n\
         \x20   assert open({big:?}, 'rb').read() == big\n\
         \x20   copy = os.open({copy:?}, os.O_RDWR | os.O_CREAT | os.O_TRUNC)\n\
         \x20   assert os.write(copy, big) == len(big)\n    assert os.pread(copy, len(big), 0) == big\n    os.close(copy)\n\
         \x20   child = os.fork()\n    if child == 0: os._exit(7)\n\
         \x20   assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n\
         print(i, caught, flush=True)\n",
        big = big,
        numbers = numbers,
        stop = place.path().join("stop"),
        copy = place.path().join("copy"),
    );
    let mut child = start(first, &[], &script);
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    let pid = Pid::from_raw(line.trim().parse().expect("a PID"));
    let written = || std::fs::metadata(&numbers).map_or(0, |about| about.len());
    let mut signals = 0;
    for round in 0..8 {
        let before = (resumed(second), written());
        match round {
            // Nothing is said by the network but that nothing comes, for so long that both sides give up.
            3 => {
                network.plug(1, false);
                std::thread::sleep(Duration::from_secs(18));
                kill(pid, Signal::SIGUSR1).expect("it runs");
                signals += 1;
                network.plug(1, true);
            }
            // Not for so long.
            5 => {
                network.plug(1, false);
                std::thread::sleep(Duration::from_secs(2));
                network.plug(1, true);
            }
            _ => {
                reset([first, second][round % 2]);
                kill(pid, Signal::SIGUSR1).expect("it runs");
                signals += 1;
            }
        }
        until("it goes on", || written() > before.1 + 1000);
        if round != 5 {
            until("the link was made again", || resumed(second) > before.0);
        }
    }
    std::fs::write(place.path().join("stop"), "").expect("a file");
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    ended_well(child);
    let count = numbered(&numbers);
    assert_eq!(line, format!("{count} {signals}\n"));
    assert!(count >= 10_000);
}

#[test]
fn a_link_that_is_not_made_again_in_time_ends_its_process() {
    let Some(network) = network() else { return };
    let [first, second] = network.hosts() else { panic!("two hosts") };
    let script = "import sys, time\nprint('here', flush=True)\ntime.sleep(3600)";
    let start = |options: &[&str]| {
        let mut child = start(first, options, script);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line, "here\n");
        child
    };
    let (at_once, soon, removed) = (start(&["--home-timeout", "0"]), start(&["--home-timeout", "3"]), start(&[]));
    network.plug(1, false);
    let ended = |child: Child| {
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(LOST), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = ended(at_once);
    assert!(said.ends_with("the node host-2/node-1 that ran it is gone\n"), "{said}");
    let said = ended(soon);
    assert!(said.ends_with("that ran it is gone: it could not be reached for 3 s\n"), "{said}");
    let left = || -> Vec<serde_json::Value> { serde_json::from_str(&second.says(&["ps", "--json"])).expect("JSON") };
    until("one is left there", || left().len() == 1);
    // It is waited for, until nothing can come of that.
    first.says(&["cluster", "remove", "host-2"]);
    ended(removed);
    network.plug(1, true);
}

#[test]
fn a_link_is_made_again_when_the_hosts_run_again() {
    let Some(network) = network() else { return };
    let [first, second] = network.hosts() else { panic!("two hosts") };
    let mut child = start(first, &[], "import sys\nfor line in sys.stdin: print(line, end='', flush=True)");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut echo = |child: &mut Child, line: &str| {
        writeln!(child.stdin.as_mut().expect("a pipe"), "{line}").expect("it reads");
        let mut come = String::new();
        output.read_line(&mut come).expect("a line");
        assert_eq!(come.trim_end(), line);
    };
    echo(&mut child, "here");
    for host in [first, second] {
        let before = resumed(second);
        let status: serde_json::Value = serde_json::from_str(&host.says(&["host", "status", "--json"])).expect("JSON");
        let daemon = status["pid"].as_i64().expect("a PID") as i32;
        kill(Pid::from_raw(daemon), Signal::SIGKILL).expect("it runs");
        reset(host);
        if host.name() == first.name() {
            let refused = second.skein(&["node", "stop", "node-1"]);
            let said = String::from_utf8_lossy(&refused.stderr);
            assert!(said.contains("host-1: cannot be reached") && said.contains("node node-1 goes on"), "{said}");
        }
        host.says(&["host", "start"]);
        echo(&mut child, "still");
        assert!(resumed(second) > before);
    }
    drop(child.stdin.take());
    ended_well(child);
}
