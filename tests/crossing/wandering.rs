//! Programs that go from host to host.

use crate::{Cluster, ended_well, numbered, words};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::guest::{Linking, program};
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

/// The program that notices everything, for so long, or without children.
pub(crate) fn wander(cluster: &Cluster, seconds: &str, alone: bool) -> (Child, PathBuf) {
    let case = program("wander", Linking::Dynamic, []);
    let file = cluster.place.path().join("numbers");
    let mut argv = vec![case.argv[0].clone().into(), seconds.into(), file.clone().into_os_string(), "far".into()];
    argv.extend(alone.then(|| "alone".into()));
    (cluster.mosrun(&argv), file)
}

#[test]
fn a_program_that_notices_everything_notices_nothing_of_a_hundred_hosts() {
    let Some(cluster) = Cluster::start(3) else { return };
    let (mut child, file) = wander(&cluster, "3600", false);
    let pid = child.id() as i32;
    let mut random = fastrand::Rng::with_seed(11);
    let (mut at, mut late) = (0, 0);
    let mut freezes = Vec::new();
    for number in 0..100 {
        let to = (at + 1 + random.usize(..2)) % 3;
        assert!(child.try_wait().expect("a child").is_none(), "{number}: {:?}", child.wait_with_output());
        let streams = random.u64(1..=4);
        let options = ["--streams", &streams.to_string()];
        let record = cluster.migrate_with_for_sure(pid, to, &options, &mut late);
        assert_eq!(record["streams"], streams, "{record}");
        freezes.push(record["freeze_micros"].as_u64().expect("a number"));
        assert_eq!(cluster.at(pid), Some(to));
        at = to;
        std::thread::sleep(Duration::from_micros(random.u64(..10_000)));
    }
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("it runs");
    let said = ended_well(child);
    assert!(numbered(&file) >= 10_000);
    freezes.sort_unstable();
    eprintln!("freezes: median {} us, longest {} us; it said: {said}", freezes[freezes.len() / 2], freezes[99]);
}

/// Descriptors and threads of a process.
fn belongings(pid: i64) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    (count("fd"), count("task"))
}

/// What the deputy, and VMM and `skeind` of each host have: descriptors, threads; and guest RAM that is handed out.
fn all_belongings(cluster: &Cluster, deputy: i32) -> (Vec<(usize, usize)>, Vec<u64>) {
    let (mut have, mut memory) = (vec![belongings(deputy.into())], Vec::new());
    for (number, host) in cluster.hosts.iter().enumerate() {
        have.push(belongings(cluster.daemon(number).into()));
        let nodes: Vec<serde_json::Value> =
            serde_json::from_str(&crate::says(host, &["node", "ls", "--json"])).expect("JSON");
        have.push(belongings(nodes[0]["vmm_pid"].as_i64().expect("a PID")));
        memory.push(nodes[0]["memory_used"].as_u64().expect("a number"));
    }
    (have, memory)
}

#[test]
fn nothing_is_left_where_a_process_has_been_a_hundred_times() {
    let Some(cluster) = Cluster::start(3) else { return };
    let child = cluster.mosrun(&words(&["/usr/bin/python3", "-c", "import time; time.sleep(3600)"]));
    let (pid, mut late) = (child.id() as i32, 0);
    let mut around = |times: usize| {
        for number in 1..=times {
            let streams = (1 + number % 4).to_string();
            cluster.migrate_with_for_sure(pid, number % 3, &["--streams", &streams], &mut late);
        }
    };
    // What is kept for the next is made by then.
    around(12);
    let before = all_belongings(&cluster, pid);
    around(300);
    // Page tables that are out of use wait for each other before they are free.
    const NOISE: (usize, u64) = (4, 5 << 20);
    let since = Instant::now();
    loop {
        let after = all_belongings(&cluster, pid);
        let is_more = |(before, after): (&(usize, usize), &(usize, usize))| {
            after.0 > before.0 + NOISE.0 || after.1 > before.1 + NOISE.0
        };
        let memory = before.1.iter().zip(&after.1).any(|(before, after)| *after > before + NOISE.1);
        if !memory && !before.0.iter().zip(&after.0).any(is_more) {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{before:?} has become {after:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    child.wait_with_output().expect("it ends");
}

#[test]
fn twenty_processes_cross_at_once() {
    let Some(cluster) = Cluster::start(3) else { return };
    let argv = words(&[
        "/usr/bin/python3",
        "-c",
        "import sys\nn = 0\nfor line in sys.stdin:\n n += int(line)\n print(n, flush=True)",
    ]);
    let mut children: Vec<Child> = (0..20).map(|_| cluster.mosrun(&argv)).collect();
    for round in 1..=5 {
        std::thread::scope(|scope| {
            for (number, child) in children.iter().enumerate() {
                let (pid, cluster) = (child.id() as i32, &cluster);
                scope.spawn(move || cluster.migrate_for_sure(pid, (round + number) % 3, &mut 0));
            }
        });
        for (number, child) in children.iter_mut().enumerate() {
            assert_eq!(cluster.at(child.id() as i32), Some((round + number) % 3));
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
fn a_job_goes_as_a_whole_wherever_it_is() {
    let Some(cluster) = Cluster::start(2) else { return };
    let script = "sleep 1000 & sleep 1000 & echo here; wait";
    let mut child = cluster.mosrun(&words(&["-J", "7", "bash", "-c", script]));
    let other = cluster.mosrun(&words(&["/bin/cat"]));
    let mut said = [0; 5];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("a line");
    let home = cluster.home();
    let job = || -> Vec<serde_json::Value> {
        serde_json::from_str(&home.mosps(&["-J", "7", "--json"]).expect("mosps")).expect("JSON")
    };
    // A child of a shell is one of the job when it is there, and has a program of its own soon.
    crate::until("all of it runs", || job().iter().filter(|process| process["name"] == "sleep").count() == 2);
    for (to, node) in [("one", "one/node-1"), ("home", "node-1")] {
        let mut went = home.skein(&["migrate", "-J", "7", to]);
        // On a machine that is loaded one may stay, for it would stand still for too long.
        let mut late = 0;
        while job().iter().any(|process| process["node"] != node) {
            late += 1;
            assert!(went.is_err() && late <= crate::LATE, "{went:?}");
            went = home.skein(&["migrate", "-J", "7", to]);
        }
        assert!(job().iter().all(|process| process["node"] == node), "{:?}", job());
        assert_eq!(cluster.at(other.id() as i32), Some(0));
    }
    let none = home.skein(&["migrate", "-J", "8", "one"]).expect_err("there is no such job");
    assert!(none.contains("no process runs of job 8"), "{none}");
    for mut child in [child, other] {
        // The group of processes that the shell leads is this test's own.
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }
}

#[test]
fn calls_that_wait_at_home_go_on_waiting() {
    let Some(cluster) = Cluster::start(3) else { return };
    let mut child = cluster.mosrun(&words(&["/bin/cat"]));
    let (pid, mut late) = (child.id() as i32, 0);
    for round in 0..9u8 {
        cluster.migrate_for_sure(pid, usize::from(round + 1) % 3, &mut late);
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
    let Some(cluster) = Cluster::start(3) else { return };
    let script = "import sys\nfor i in range(20): sys.stdout.buffer.write(bytes([i]) * 300000)";
    let mut child = cluster.mosrun(&words(&["/usr/bin/python3", "-c", script]));
    let pid = child.id() as i32;
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut got = Vec::new();
    let mut piece = vec![0; 200_000];
    for to in 1.. {
        // It waits in a write by now, or soon.
        let _ = cluster.migrate(pid, to % 3);
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
fn much_that_is_read_comes_whole() {
    let Some(cluster) = Cluster::start(3) else { return };
    // Big replies are on their way to nodes that the program leaves.
    let script = "import hashlib, os\nh = hashlib.sha256()\nf = os.open('/dev/stdin', os.O_RDONLY)\n\
        while b := os.read(f, 1 << 20): h.update(b)\nprint(h.hexdigest())";
    let mut child = cluster.mosrun(&words(&["/usr/bin/python3", "-c", script]));
    let pid = child.id() as i32;
    let bytes: Vec<u8> = {
        let mut random = fastrand::Rng::with_seed(5);
        (0..8 << 20).map(|_| random.u8(..)).collect()
    };
    let mut stdin = child.stdin.take().expect("a pipe");
    let to_write = bytes.clone();
    let writer =
        std::thread::spawn(move || to_write.chunks(100_000).for_each(|some| stdin.write_all(some).expect("it reads")));
    for to in 1.. {
        if cluster.migrate(pid, to % 3).is_err() && child.try_wait().expect("a child").is_some() {
            break;
        }
    }
    writer.join().expect("all is written");
    let mut sum = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sha256sum");
    sum.stdin.take().expect("a pipe").write_all(&bytes).expect("it reads");
    let expected = sum.wait_with_output().expect("it ends").stdout;
    let said = child.wait_with_output().expect("it ends");
    assert_eq!(said.stdout[..64], expected[..64], "{said:?}");
}
