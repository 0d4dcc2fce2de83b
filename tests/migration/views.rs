//! What processes at different nodes of a host see of each other.

use crate::{Pair, until, words};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::guest::{Linking, compile};
use skein_tests::mover::PostCopy;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A program at `a` that waits for the end of its input with three threads, a title and a handler of its own.
fn somebody(pair: &Pair) -> Child {
    let script = "import signal, sys, threading\nsignal.signal(signal.SIGUSR2, lambda *_: 0)\n\
                  for _ in range(2): threading.Thread(target=sys.stdin.buffer.peek, daemon=True).start()\n\
                  lines = bytearray(3 << 20)\nprint('ready', flush=True)\nthreading.Event().wait()";
    let argv = words(&["/usr/bin/env", "SEEN=a b", "/usr/bin/python3", "-c", script, "last argument"]);
    let mut child = pair.start_at_a(&argv);
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut ready).expect("it is ready");
    child
}

/// What a program at a node sees of it, but for what changes by itself.
fn seen(pair: &Pair, node: &str, pid: i32) -> String {
    let script = "p=/proc/$0; for f in cmdline environ auxv; do echo $f; od -c $p/$f; done; cat $p/limits $p/maps\n\
                  readlink $p/exe; cksum < $p/exe; cut -d' ' -f 20 $p/task/$0/stat; ls $p/task | wc -l\n\
                  grep -E '^(Name|State|Threads|VmSize|VmRSS|VmData|VmStk|VmExe|VmLib|Sig(Pnd|Blk|Ign|Cgt)|ShdPnd)' $p/status\n\
                  cut -d' ' -f 2-4,20,23,24,26-28,31-34,45-51 $p/stat; cat $p/statm $p/task/$0/comm";
    let mut command = pair.host.command("mosrun");
    command.args(["--node", node, "/bin/bash", "-c", script]).arg(pid.to_string()).stdin(Stdio::null());
    let output = command.output().expect("mosrun starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn end(mut child: Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).expect("it runs");
    child.wait().expect("it ends");
}

/// What is seen of a process, the same from both nodes as soon as it is in this state.
fn alike(pair: &Pair, pid: i32, state: &str) -> String {
    let start = Instant::now();
    loop {
        let [a, b] = ["a", "b"].map(|node| seen(pair, node, pid));
        if a == b && a.contains(state) {
            return a;
        }
        // Its threads may be about to wait.
        if start.elapsed() > Duration::from_secs(20) {
            assert_eq!(a, b, "{state}");
            panic!("it is not {state}: {a}");
        }
    }
}

#[test]
fn a_process_looks_the_same_from_every_node() {
    let Some(pair) = Pair::start() else { return };
    let child = somebody(&pair);
    let pid = child.id() as i32;
    let before = alike(&pair, pid, "S (sleeping)");
    for shown in
        ["Threads:\t3", "SigCgt:\t0000000100000802", "l   a   s   t       a   r   g", "[heap]", "/usr/bin/python3"]
    {
        assert!(before.contains(shown), "{shown} is not in {before}");
    }
    pair.migrate(pid).expect("it goes");
    alike(&pair, pid, "S (sleeping)");
    // Its deputy cannot answer now.
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it runs");
    alike(&pair, pid, "T (stopped)");
    end(child);
}

#[test]
fn a_node_that_hangs_holds_up_nobody_who_looks() {
    let Some(pair) = Pair::start() else { return };
    let child = somebody(&pair);
    let pid = child.id() as i32;
    let vmm = Pid::from_raw(pair.about("a")["vmm_pid"].as_i64().expect("a PID") as i32);
    kill(vmm, Signal::SIGSTOP).expect("the node runs");
    let started = Instant::now();
    let mut command = pair.host.command("mosrun");
    command.args(["--node", "b", "/bin/cat"]).arg(format!("/proc/{pid}/status")).stdin(Stdio::null());
    let output = command.output().expect("mosrun starts");
    let took = started.elapsed();
    kill(vmm, Signal::SIGCONT).expect("it is there");
    let said = String::from_utf8_lossy(&output.stdout);
    // Home knows this much.
    assert!(said.contains("Name:\tpython3") && output.status.success(), "{said}");
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    end(child);
}

#[test]
fn what_a_child_has_used_counts_wherever_it_ran() {
    let Some(pair) = Pair::start() else { return };
    let script = "import os, resource, signal, sys, time\n\
        def child(how):\n p = os.fork()\n if p: return p\n data = bytearray(b'1') * (64 << 20)\n\
        \x20while time.process_time() < 0.5: pass\n\
        \x20signal.signal(10, lambda *_: os._exit(3))\n while True: time.sleep(0.05)\n\
        for how in ('exit', 'kill'):\n p = child(how); print(p, flush=True); sys.stdin.readline()\n\
        \x20os.kill(p, 9 if how == 'kill' else 10)\n\
        \x20before = resource.getrusage(resource.RUSAGE_CHILDREN); _, status, used = os.wait4(p, 0)\n\
        \x20after = resource.getrusage(resource.RUSAGE_CHILDREN)\n\
        \x20time_of = lambda u: u.ru_utime + u.ru_stime\n\
        \x20assert time_of(used) >= 0.49 and used.ru_maxrss >= 64 << 10, used\n\
        \x20assert time_of(after) - time_of(before) >= 0.49, (before, after)\nprint('counted')";
    for (move_parent, move_child) in [(false, true), (true, false), (true, true)] {
        let mut parent = pair.start_at_a(&words(&["/usr/bin/python3", "-c", script]));
        let pid = parent.id() as i32;
        let mut output = std::io::BufReader::new(parent.stdout.take().expect("a pipe"));
        let mut line = || {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut output, &mut line).expect("a line");
            line.trim().to_owned()
        };
        for _ in 0..2 {
            let Ok(child) = line().parse() else { panic!("{:?}", parent.wait_with_output()) };
            for (who, moves) in [(pid, move_parent), (child, move_child)] {
                if moves {
                    pair.migrate(who).expect("it goes");
                }
            }
            let used = |pid| {
                let nodes =
                    ["a", "b"].map(|node| skein_tests::mover::processes(&pair.socket(node)).unwrap_or_default());
                nodes.concat().iter().find(|process| process.pid == pid).map_or(0, |process| process.usage.cpu_nanos)
            };
            until("the child has computed", || used(child) >= 500_000_000);
            std::io::Write::write_all(parent.stdin.as_mut().expect("a pipe"), b"go\n").expect("it listens");
        }
        assert_eq!(line(), "counted", "parent moved: {move_parent}, child: {move_child}");
        assert!(parent.wait().expect("it ends").success());
    }
}

#[test]
fn a_large_page_that_is_partly_locked_goes_whole() {
    let Some(pair) = Pair::start() else { return };
    let script = "import ctypes, hashlib, mmap, sys\nm = mmap.mmap(-1, 16 << 20)\nm[:] = bytes(i * 7 & 255 for i in range(1 << 16)) * 256\n\
                  before = hashlib.sha256(m).digest()\n\
                  at = ctypes.addressof(ctypes.c_char.from_buffer(m))\nlibc = ctypes.CDLL(None)\n\
                  for k in range(8): assert libc.mlock(ctypes.c_void_p(at + (k << 21) + 0x33000 * k), 0x5000 + 0x71000 * k) == 0\n\
                  print('ready', flush=True)\nsys.stdin.readline()\nsys.exit(hashlib.sha256(m).digest() != before)";
    let mut child = pair.start_at_a(&words(&["/usr/bin/python3", "-c", script]));
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut ready).expect("it is ready");
    for _ in 0..3 {
        pair.migrate(child.id() as i32).expect("it goes");
    }
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_process_is_listed_once_while_it_migrates() {
    // The target has it meanwhile, but has not been told to run it.
    let Some(pair) = Pair::start_with(&[("SKEIN_FAULT", "DeputyAdopted=delay")]) else { return };
    let child = somebody(&pair);
    let pid = child.id() as i32;
    let places = || {
        let listed = pair.host.skein(&["ps", "--json"]).expect("ps works");
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
        let places = listed.iter().map(|row| row["node"].as_str().expect("a name").to_owned());
        places.collect::<Vec<_>>()
    };
    let mut seen = vec![places()];
    std::thread::scope(|scope| {
        let migration = scope.spawn(|| pair.migrate(pid).expect("it goes"));
        while !migration.is_finished() {
            seen.push(places());
        }
    });
    seen.push(places());
    seen.dedup();
    assert_eq!(seen, [["a"], ["b"]]);
    end(child);
}

/// What was rewritten of its code is undone wherever that cannot be run any more.
#[test]
fn a_program_may_have_taken_rights_from_its_code_before_it_goes() {
    let Some(pair) = Pair::start() else { return };
    let program = compile("identity", Linking::Dynamic).into_os_string();
    for (rights, post_copy) in
        [("readable", PostCopy::Auto), ("readable", PostCopy::Always), ("closed", PostCopy::Auto)]
    {
        let mut child = pair.start_at_a(&[program.clone(), rights.into()]);
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "the C library's code leaves no page to try it with");
        let pid = child.id() as i32;
        for _ in 0..2 {
            pair.migrate_with(pid, post_copy, 1).expect("it goes");
        }
        drop(child.stdin.take());
        let ended = child.wait_with_output().expect("it ends");
        assert!(ended.status.success(), "{rights}: {ended:?}");
    }
}
