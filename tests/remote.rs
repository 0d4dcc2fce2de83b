//! Programs that run on another host than their home: what they do is what it is natively, and when a host, a node or
//! a deputy goes, so does what depends on it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::compare::check_in;
use skein_tests::guest::{Linking, program};
use skein_tests::home::{Home, Host, Setup, can_host, elsewhere};
use skein_tests::net::Network;
use skein_tests::{Case, bash, exec, python};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long may pass until something is true.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two hosts, if this machine can have nodes.
fn hosts() -> Option<Setup> {
    match elsewhere() {
        Home::Ready(setup) => Some(*setup),
        Home::Absent => {
            eprintln!("not run: there is no /dev/kvm here");
            None
        }
        Home::Broken(why) => panic!("{why}"),
    }
}

fn parts(setup: &Setup) -> (&Host, &Host) {
    (setup.host.as_ref().expect("a home"), setup.other.as_ref().expect("another host"))
}

/// What runs elsewhere for a home, by PID.
fn processes(host: &Host) -> Vec<serde_json::Value> {
    serde_json::from_str(&host.mosps(&["--json"]).expect("mosps")).expect("JSON")
}

fn until(what: &str, is_true: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that runs on the other host, has said a line and waits.
struct Waiting {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(home: &Host, script: &str) -> Self {
        let mut command = home.command("mosrun");
        let mut child = command
            .args(["-r", "other", "bash", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mosrun");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "here\n", "{child:?}");
        Self { child, output }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits for the end: status, and what was said on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("an end");
        let mut said = String::new();
        // What it has started may have the other end for longer.
        BufReader::new(self.child.stderr.take().expect("a pipe")).read_line(&mut said).expect("text");
        drop(self.output);
        (status.code(), said)
    }
}

const WAIT: &str = "echo here; sleep 1000; true";

fn cases() -> Vec<(&'static str, Case)> {
    let numbers = "for i in $(seq 1 3000); do echo $i; done > numbers; exec 3>>numbers; echo last >&3";
    let threads = "import threading\ndone=[]\ndef work(i):\n  s=0\n  for k in range(20000): s+=k*i\n  done.append(s)\n\
                   ts=[threading.Thread(target=work,args=(i,)) for i in range(16)]\n\
                   [t.start() for t in ts]; [t.join() for t in ts]; print(sorted(done))";
    let children = "import subprocess, sys\nfor i in range(5):\n  r=subprocess.run(['sh','-c','cat; exit %d' % i],\
                    input=b'x'*100000,capture_output=True)\n  print(r.returncode,len(r.stdout))\n\
                    p=subprocess.Popen(['sleep','1000']); p.terminate(); print(p.wait())";
    let signals = "import os, signal, time\ngot=[]\nsignal.signal(signal.SIGUSR1, lambda *a: got.append(1))\n\
                   signal.signal(signal.SIGALRM, lambda *a: got.append(2))\n\
                   for i in range(50): os.kill(os.getpid(), signal.SIGUSR1)\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\n\
                   while 2 not in got: time.sleep(0.01)\nprint(got.count(1))";
    let mapped = "import mmap, os\nf=open('data','rb')\nm=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ,\
                  flags=mmap.MAP_PRIVATE)\nprint(sum(m[::4096]), m[3_000_000:3_000_010], len(m))\n\
                  try: mmap.mmap(os.open('data', os.O_RDWR),0)\nexcept OSError as e: pass";
    let data: Vec<u8> = (0..3_500_000u32).map(|at| (at / 7 % 251) as u8).collect();
    vec![
        ("true", exec(["true"])),
        ("ls", exec(["ls", "-l", "/usr/share"])),
        ("status", bash("exit 42").status(42)),
        ("killed", bash("kill -TERM $$").signal(15)),
        ("numbered lines", bash(numbers)),
        ("pipeline", bash("seq 1 20000 | sort -rn | awk '{s+=$1} END {print NR, s}' | tee out; wc -c < out")),
        ("input", exec(["md5sum"]).stdin(vec![b'a'; 300_000])),
        (
            "jobs",
            bash(
                "for i in 1 2 3 4; do (sleep 0.0$i; echo $i >> all) & done; wait; sort all; rm all; (exit 3) & wait $!; echo $?",
            ),
        ),
        (
            "trap",
            bash("trap 'echo usr1' USR1; for i in 1 2 3; do kill -USR1 $$; done; trap 'echo bye' EXIT; exit 5")
                .status(5),
        ),
        ("python threads", python(threads)),
        ("python children", python(children)),
        ("python signals", python(signals)),
        ("mapped", python(mapped).file("data", data)),
        ("a program of one's own", bash("cp /bin/echo ./mine; ./mine one; cp /bin/printf ./mine; ./mine 'two\\n'")),
        ("many calls", program("exitless", Linking::Dynamic, [])),
        ("interpreter", exec(["./script", "a"]).program("script", "#!/bin/sh\necho $0 $1 $#\n")),
    ]
}

#[test]
fn programs_on_another_host_do_what_they_do_natively() {
    let Some(setup) = hosts() else { return };
    let home = Home::Ready(Box::new(setup));
    for (name, case) in cases() {
        check_in(name, &case, &home);
    }
    let Home::Ready(setup) = &home else { return };
    assert_eq!(processes(parts(setup).0), Vec::<serde_json::Value>::new(), "something was left");
}

#[test]
fn where_a_program_runs_is_said_and_can_be_chosen() {
    let Some(setup) = hosts() else { return };
    let (home, other) = parts(&setup);
    other.skein(&["node", "launch", "--name", "big"]).expect("a node");
    let waiting = Waiting::start(home, WAIT);
    let pid = u64::from(waiting.child.id());
    until("it is shown", || processes(home).len() == 2 && processes(other).len() == 2);
    for (host, node, of) in [(home, "other/big", None), (other, "big", Some("home"))] {
        let rows = processes(host);
        let row = rows.iter().find(|row| row["pid"] == pid).expect("it");
        assert_eq!((row["node"].as_str(), row["home"].as_str()), (Some(node), of), "{row}");
    }
    kill(waiting.pid(), Signal::SIGKILL).expect("it runs");
    let run = |arguments: &[&str]| home.command("mosrun").args(arguments).output().expect("mosrun");
    for place in [&["-r", "other"][..], &["-r", "big"], &["-r", "other/big"], &["-r", "home"], &["-h"], &["-b"]] {
        let output = run(&[place, &["echo", "done"]].concat());
        assert_eq!(output.stdout, b"done\n", "{place:?}: {output:?}");
    }
    for (place, says) in [("nobody", "nobody"), ("other/small", "small"), ("nobody/big", "nobody")] {
        let output = run(&["-r", place, "true"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(125) && said.contains(says), "{place}: {output:?}");
    }
    assert!(run(&["--help"]).stdout.windows(8).any(|some| some == b"--run-on"));
}

#[test]
fn a_deputy_that_is_killed_takes_its_guest_with_it() {
    let Some(setup) = hosts() else { return };
    let (home, other) = parts(&setup);
    let waiting = Waiting::start(home, "echo here; while true; do :; done");
    kill(waiting.pid(), Signal::SIGKILL).expect("it runs");
    until("its guest is gone", || processes(other).is_empty());
    assert_eq!(waiting.end().0, None);
}

#[test]
fn a_guest_stops_while_its_deputy_does() {
    let Some(setup) = hosts() else { return };
    let (home, other) = parts(&setup);
    let waiting = Waiting::start(home, "echo here; while true; do :; done");
    let used = || processes(other)[0]["usage"]["cpu_nanos"].as_u64().expect("a number");
    let stands_still = || {
        let before = used();
        std::thread::sleep(Duration::from_millis(300));
        used() == before
    };
    kill(waiting.pid(), Signal::SIGSTOP).expect("it runs");
    until("it stops", stands_still);
    kill(waiting.pid(), Signal::SIGCONT).expect("it runs");
    until("it goes on", || !stands_still());
    kill(waiting.pid(), Signal::SIGTERM).expect("it runs");
    assert_eq!(waiting.end(), (None, String::new()));
}

#[test]
fn a_node_that_is_killed_is_told_of_at_home() {
    let Some(setup) = hosts() else { return };
    let (home, other) = parts(&setup);
    let waiting = Waiting::start(home, WAIT);
    for vmm in other.vmms() {
        kill(Pid::from_raw(vmm), Signal::SIGKILL).expect("it runs");
    }
    let (status, said) = waiting.end();
    assert!(status == Some(123) && said.contains("other/node-1") && said.contains("is gone"), "{status:?} {said}");
    // The next finds a new one.
    let output = home.command("mosrun").args(["-r", "other", "echo", "again"]).output().expect("mosrun");
    assert_eq!(output.stdout, b"again\n", "{output:?}");
}

#[test]
fn a_host_that_is_removed_runs_nothing_more() {
    let Some(setup) = hosts() else { return };
    let (home, other) = parts(&setup);
    let waiting = Waiting::start(home, WAIT);
    home.skein(&["cluster", "remove", "other"]).expect("removed");
    assert_eq!(waiting.end().0, Some(123));
    until("nothing of it is left", || processes(other).is_empty());
    let output = home.command("mosrun").args(["-r", "other", "true"]).output().expect("mosrun");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

#[test]
fn a_program_runs_across_a_network_and_ends_with_it() {
    let Some(network) = Network::cluster(2) else { return };
    let first = &network.hosts()[0];
    let mosrun = |arguments: &[&str]| -> Command {
        let mut command = first.command(skein_tests::home::skein_binary().expect("skein"));
        command.args(["run", "--home-timeout", "0", "-r", "host-2"]).args(arguments).stdin(Stdio::null());
        command
    };
    let output = mosrun(&["bash", "-c", "hostname; seq 1 1000 | tail -1"]).output().expect("mosrun");
    assert_eq!(output.stdout, b"host-1\n1000\n", "{output:?}");
    let mut waiting = mosrun(&["bash", "-c", "echo here; sleep 1000"]).stdout(Stdio::piped()).spawn().expect("mosrun");
    let mut said = [0; 5];
    waiting.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("a line");
    network.plug(1, false);
    // The kernel notices by itself.
    assert_eq!(waiting.wait().expect("an end").code(), Some(123));
}

#[test]
fn the_clocks_are_homes_wherever_a_program_runs() {
    if !can_host() {
        return;
    }
    const AHEAD: i64 = 10_000_000;
    let mut network = Network::new(2);
    network.set_ahead(1, AHEAD);
    let [first, second] = network.hosts() else { panic!("two hosts") };
    let uptime = |host: &skein_tests::net::NetHost| -> f64 {
        let output = host.command("cat").arg("/proc/uptime").output().expect("cat");
        let text = String::from_utf8(output.stdout).expect("text");
        text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
    };
    assert!(uptime(second) > uptime(first) + AHEAD as f64 - 1000.0, "its clocks are not ahead");
    network.join();
    // Its time is asked for again and again; sleeps until a time and timed waits for locks are by these clocks.
    let program = "import threading, time\n\
        names = ['CLOCK_REALTIME', 'CLOCK_MONOTONIC', 'CLOCK_MONOTONIC_RAW', 'CLOCK_BOOTTIME', 'CLOCK_TAI']\n\
        clocks = [getattr(time, name) for name in names]\n\
        def show(): print(*map(time.clock_gettime_ns, clocks), flush=True)\n\
        show()\nlast = time.monotonic_ns()\nend = last + 9_000_000_000\nrounds = 0\n\
        while last < end:\n  now = time.monotonic_ns()\n  assert now >= last, (now, last)\n  last = now\n  rounds += 1\n\
        \x20 if rounds % 20000 == 0:\n    before = time.monotonic()\n    time.sleep(0.05)\n\
        \x20   threading.Event().wait(0.05)\n    slept = time.monotonic() - before\n    assert 0.1 <= slept < 5, slept\n\
        show()\n";
    let mut command = first.command(skein_tests::home::skein_binary().expect("skein"));
    command.args(["run", "-r", "host-2", "/usr/bin/python3", "-c", program]).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("mosrun");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let clocks =
        [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI];
    let here = || {
        clocks.map(|clock| {
            let time = nix::time::clock_gettime(clock.into()).expect("a clock");
            time.tv_sec() * 1_000_000_000 + time.tv_nsec()
        })
    };
    let mut before = here();
    for _ in 0..2 {
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        let after = here();
        let there: Vec<i64> = line.split_whitespace().map(|time| time.parse().expect("a number")).collect();
        assert_eq!(there.len(), clocks.len(), "{line:?}");
        for (index, clock) in clocks.into_iter().enumerate() {
            /// For what an answer may be wrong, and for lines that are being bent.
            const SLACK: i64 = 20_000_000;
            let range = before[index] - SLACK..after[index] + SLACK;
            assert!(range.contains(&there[index]), "clock {clock}: {} is not in {range:?}", there[index]);
        }
        before = after;
    }
    assert_eq!(child.wait().expect("an end").code(), Some(0));
}
