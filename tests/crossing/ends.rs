//! What ends when a host, a node, a link or a deputy does, and what cannot go to another host.

use crate::wandering::wander;
use crate::{Cluster, HOSTS, ended_well, says, until, words};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::guest::{Linking, program};
use skein_tests::mishaps::in_time;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Instant;

/// The status of a `mosrun` whose node is gone.
const LOST: i32 = 123;

#[test]
fn a_host_that_a_process_has_left_may_go() {
    let Some(cluster) = Cluster::start(3) else { return };
    let mut child = cluster.mosrun(&words(&["/bin/cat"]));
    let pid = child.id() as i32;
    cluster.migrate_for_sure(pid, 1, &mut 0);
    cluster.migrate_for_sure(pid, 2, &mut 0);
    says(cluster.home(), &["cluster", "remove", HOSTS[1]]);
    says(&cluster.hosts[1], &["host", "stop", "--force"]);
    child.stdin.as_mut().expect("a pipe").write_all(b"here\n").expect("it reads");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("a line");
    assert_eq!(line, "here\n");
    // That it is on goes with it.
    says(cluster.home(), &["cluster", "remove", HOSTS[2]]);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(LOST), "{said}");
    assert!(said.contains("the node two/node-1 that ran it is gone"), "{said}");
    until("nothing of it is left", || cluster.at(pid).is_none());
}

#[test]
fn a_deputy_that_is_killed_takes_its_process_along_wherever_that_is() {
    let Some(cluster) = Cluster::start(3) else { return };
    let gone_from = |to: usize| {
        let (mut child, _) = wander(&cluster, "3600", true);
        let pid = child.id() as i32;
        cluster.migrate_for_sure(pid, 2, &mut 0);
        cluster.migrate_for_sure(pid, to, &mut 0);
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        let since = Instant::now();
        until("no node has it", || cluster.at(pid).is_none());
        child.wait().expect("it has ended");
        Some(since.elapsed()).filter(|took| took.as_secs() >= 1)
    };
    for to in 0..3 {
        in_time(|| gone_from(to));
    }
}

#[test]
fn a_node_that_is_stopped_sends_the_processes_of_others_home() {
    let Some(cluster) = Cluster::start(2) else { return };
    let (child, file) = wander(&cluster, "0.5", false);
    let pid = child.id() as i32;
    cluster.migrate_for_sure(pid, 1, &mut 0);
    let said = says(&cluster.hosts[1], &["node", "stop", "node-1"]);
    assert!(said.contains(&format!("{pid} went to node-1")), "{said}");
    assert_eq!(cluster.at(pid), Some(0));
    ended_well(child);
    crate::numbered(&file);
}

#[test]
fn processes_go_on_while_no_skeind_runs_but_do_not_leave() {
    let Some(cluster) = Cluster::start(2) else { return };
    let mut child = cluster.mosrun(&words(&["/bin/cat"]));
    let pid = child.id() as i32;
    cluster.migrate_for_sure(pid, 1, &mut 0);
    // Its nodes live on, and with them the process.
    kill(Pid::from_raw(cluster.daemon(1)), Signal::SIGKILL).expect("it runs");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut echo = |child: &mut std::process::Child| {
        child.stdin.as_mut().expect("a pipe").write_all(b"here\n").expect("it reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "here\n");
    };
    echo(&mut child);
    assert!(cluster.migrate(pid, 0).is_err(), "its host can be asked nothing");
    echo(&mut child);
    says(&cluster.hosts[1], &["host", "start"]);
    until("it comes home", || cluster.migrate(pid, 0).is_ok());
    echo(&mut child);
    drop(child.stdin.take());
    ended_well(child);
}

#[test]
fn a_target_whose_memory_is_full_does_not_take_it_and_it_goes_on() {
    let Some(cluster) = Cluster::start(2) else { return };
    says(&cluster.hosts[1], &["node", "launch", "--name", "small", "--memory", "96M"]);
    // Each has as much noise as it is told to, in MiB, and says so when it has it.
    let script = "import os, sys\nnoise = []\n\
        for line in sys.stdin:\n  noise.append(os.urandom(int(line) << 20))\n  print(sum(map(len, noise)) >> 20, flush=True)\n";
    let start = |options: &[&str]| {
        let mut command = cluster.home().command("mosrun");
        command.args(options).args(["/usr/bin/python3", "-c", script]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mosrun");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        (child, output)
    };
    let takes = |(child, output): &mut (Child, BufReader<ChildStdout>), mebibytes: u32, all: u32| {
        writeln!(child.stdin.as_mut().expect("a pipe"), "{mebibytes}").expect("it reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, format!("{all}\n"));
    };
    let mut wants_to_go = start(&[]);
    takes(&mut wants_to_go, 44, 44);
    let pid = wants_to_go.0.id().to_string();
    let migrate = |options: &[&str]| cluster.home().skein(&[&["migrate", &pid, "one/small"], options].concat());
    let full = |refused: Result<String, String>| {
        let refused = refused.expect_err("there is no room");
        assert!(refused.contains("the node's memory is used up"), "{refused}");
        assert_eq!(cluster.at(pid.parse().expect("a number")), Some(0));
    };
    // There is room when it is asked for, but then another takes it.
    let mut other = start(&["-r", "one/small"]);
    takes(&mut other, 1, 1);
    let used = || {
        let nodes = says(&cluster.hosts[1], &["node", "ls", "--json"]);
        let nodes: Vec<serde_json::Value> = serde_json::from_str(&nodes).expect("JSON");
        let small = nodes.iter().find(|node| node["name"] == "small").expect("it is there");
        small["memory_used"].as_u64().expect("a number")
    };
    let before = used();
    std::thread::scope(|scope| {
        let migration = scope.spawn(|| migrate(&["--bandwidth", "12M", "--post-copy", "never"]));
        until("it is on its way", || used() > before + (4 << 20) || migration.is_finished());
        for all in [13, 25, 37] {
            takes(&mut other, 12, all);
        }
        full(migration.join().expect("no panic"));
    });
    takes(&mut wants_to_go, 1, 45);
    // Now there is none from the beginning.
    full(migrate(&[]));
    takes(&mut wants_to_go, 1, 46);
    takes(&mut other, 1, 38);
    drop(other.0.stdin.take());
    ended_well(other.0);
    until("there is room again", || migrate(&[]).is_ok());
    takes(&mut wants_to_go, 1, 47);
    drop(wants_to_go.0.stdin.take());
    ended_well(wants_to_go.0);
}

#[test]
fn who_forks_as_soon_as_it_has_moved_does_so_there() {
    let Some(mut cluster) = Cluster::start(2) else { return };
    // Long enough for some forks, the deputy is still busy with the migration when the process runs at its new place.
    cluster.hosts[0].set("SKEIN_FAULT", "DeputyLeft=delay");
    let script = "import os, signal\ndone = []\nsignal.signal(signal.SIGUSR1, lambda *_: done.append(1))\n\
        while not done:\n  child = os.fork()\n  if child == 0: os._exit(0)\n  assert os.waitpid(child, 0)[1] == 0\n";
    for (start, to) in [(&[][..], 1), (&["-r", HOSTS[1]][..], 0)] {
        let argv = [start, &["/usr/bin/python3", "-c", script]].concat();
        let child = cluster.mosrun(&words(&argv));
        let pid = child.id() as i32;
        until("it is there", || cluster.at(pid) == Some(1 - to));
        cluster.migrate_for_sure(pid, to, &mut 0);
        std::thread::sleep(std::time::Duration::from_millis(100));
        kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("it runs");
        ended_well(child);
    }
}

#[test]
fn what_shares_memory_with_its_home_stays_there() {
    let Some(cluster) = Cluster::start(2) else { return };
    let stays = |script: &str, why: &str| {
        let mut child = cluster.mosrun(&words(&["/usr/bin/python3", "-c", script]));
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("a line");
        let refused = cluster.migrate(child.id() as i32, 1).expect_err("it went");
        assert!(refused.contains(why), "{refused}");
        assert_eq!(cluster.at(child.id() as i32), Some(0));
        drop(child.stdin.take());
        ended_well(child);
    };
    let map = "import mmap, sys, tempfile\nf = tempfile.TemporaryFile()\nf.truncate(4096)\n\
        m = mmap.mmap(f.fileno(), 4096)\nprint('here', flush=True)\nsys.stdin.read()";
    stays(map, "it maps a file that it shares with other processes and may write, which only its home has");
    let segment = "import ctypes, sys\nc = ctypes.CDLL(None)\nc.shmat.restype = ctypes.c_void_p\n\
        i = c.shmget(0, 4096, 0o1600)\na = c.shmat(i, None, 0)\nc.shmctl(i, 0, None)\n\
        print('here', flush=True)\nsys.stdin.read()\nc.shmdt(ctypes.c_void_p(a))";
    stays(segment, "it has attached System V memory, which only its home has");
}

#[test]
fn files_that_are_mapped_go_along_and_come_back() {
    let Some(cluster) = Cluster::start(3) else { return };
    // Pages that were not touched before are read where it is by then, of a file that is gone by then.
    let script = "import mmap, os, sys, tempfile\nf = tempfile.NamedTemporaryFile(delete=False)\n\
        f.write(b''.join(bytes([i % 251]) * 4096 for i in range(600)))\nf.flush()\n\
        private = mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)\n\
        shared = mmap.mmap(os.open(f.name, os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_READ)\n\
        f.close()\nos.unlink(f.name)\nat = 0\n\
        for line in sys.stdin:\n  private[at * 4096 + 1] = 252\n\
        \x20 assert private[at * 4096] == at % 251 == shared[at * 4096] and private[at * 4096 + 1] == 252\n\
        \x20 assert all(private[i * 4096 + 1] == 252 for i in range(0, at, 97))\n  at += 97\n  print(at, flush=True)\n";
    let mut child = cluster.mosrun(&words(&["/usr/bin/python3", "-c", script]));
    let (pid, mut late) = (child.id() as i32, 0);
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    for to in [0, 1, 2, 0, 1, 0] {
        if cluster.at(pid) != Some(to) {
            cluster.migrate_for_sure(pid, to, &mut late);
        }
        child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        if line.is_empty() {
            panic!("at {}: {:?}", HOSTS[to], child.wait_with_output());
        }
    }
    drop(child.stdin.take());
    ended_well(child);
}

#[test]
fn a_process_that_came_home_leaves_nothing_that_others_depend_on() {
    let Some(cluster) = Cluster::start(2) else { return };
    // A program that starts elsewhere and comes to a node that has mapped nothing of it yet.
    let case = program("wander", Linking::Dynamic, []);
    let file = cluster.place.path().join("the-first-ones-numbers");
    let mut command = cluster.home().command("mosrun");
    let mut child = command
        .args(["-r", HOSTS[1]])
        .arg(&case.argv[0])
        .args(["3600".as_ref(), file.as_os_str(), "alone".as_ref()])
        .spawn()
        .expect("mosrun");
    let pid = child.id() as i32;
    until("it is there", || cluster.at(pid) == Some(1));
    until("it is at work", || std::fs::metadata(&file).is_ok_and(|about| about.len() > 0));
    cluster.migrate_for_sure(pid, 0, &mut 0);
    let (second, numbers) = wander(&cluster, "0.2", true);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    child.wait().expect("it ends");
    ended_well(second);
    crate::numbered(&numbers);
}
