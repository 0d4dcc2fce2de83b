//! When it goes wrong: what is killed, what cannot be run, and what is left behind.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::case::Ending;
use skein_tests::home::{Host, can_host};
use skein_tests::pty::until;
use skein_tests::run::ending;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How soon a deputy must have noticed that its node is gone.
const WITHIN: Duration = Duration::from_secs(1);

/// How often something is tried that may take [`WITHIN`] at most, since a machine that others load may
/// keep a process from running for as long.
const ROUNDS: u32 = 4;

/// When to give up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The status of a `mosrun` whose node died.
const NODE_DIED: i32 = 123;

/// A host of the test's own, with one node; `None` where there is no `/dev/kvm`, or where another
/// runner stands in for `mosrun` and nothing here has a meaning.
fn host() -> Option<Host> {
    if !can_host() {
        return None;
    }
    Some(Host::start().unwrap_or_else(|why| panic!("{why}")))
}

/// Starts `mosrun ARGV` with all three streams piped and waits until `mosps` lists it.
fn start(host: &Host, argv: &[&str]) -> Child {
    let mut command = host.command("mosrun");
    command.args(argv).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("mosrun starts");
    until("mosps lists the program", || listed(host, child.id()));
    child
}

/// Whether `mosps` has a line with this PID.
fn listed(host: &Host, pid: u32) -> bool {
    let pid = pid.to_string();
    host.mosps(&[]).expect("mosps works").lines().any(|line| line.split_whitespace().any(|word| word == pid))
}

fn slay(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a process to kill");
}

/// Waits for the end; also says how long after `since` it was seen.
fn end_of(mut child: Child, since: Instant) -> (Output, Duration) {
    let took = loop {
        let ended = child.try_wait().expect("a child").is_some();
        let took = since.elapsed();
        if ended {
            break took;
        }
        if took > PATIENCE {
            slay(child.id() as i32);
            panic!("mosrun still runs {PATIENCE:?} after the fault: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    (child.wait_with_output().expect("its output"), took)
}

/// Does something that shall take [`WITHIN`] at most and says how long it took, until it was soon enough.
fn soon(what: &str, mut round: impl FnMut() -> Duration) {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(round());
        if times.last().is_some_and(|took| *took <= WITHIN) {
            return;
        }
    }
    panic!("{what} took {times:?}");
}

/// Runs `mosrun ARGV` in `directory` to its end.
fn mosrun(host: &Host, directory: &Path, argv: &[&str]) -> Output {
    let mut command: Command = host.command("mosrun");
    command.args(argv).current_dir(directory).stdin(Stdio::null());
    command.output().expect("mosrun starts")
}

/// It said one thing on standard error, printed nothing, and exited with `status`.
fn refused(output: &Output, status: i32, naming: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(ending(output.status), Ending::Status(status), "it said: {said}");
    assert!(output.stdout.is_empty(), "it printed {:?}", String::from_utf8_lossy(&output.stdout));
    assert!(said.contains(naming), "the message does not name {naming}: {said}");
    assert!(said.trim_end().len() > naming.len() + 10, "no sentence: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn when_the_vmm_is_killed_every_mosrun_says_so_and_ends() {
    let Some(host) = host() else { return };
    soon("the end of every mosrun", || kill_the_vmm(&host));
    assert!(host.mosps(&[]).expect("mosps works").lines().all(|line| !line.contains("sleep 1000")));
}

/// Kills the VMM under several programs; says how long it took until the last of them had ended.
fn kill_the_vmm(host: &Host) -> Duration {
    // A node that was killed before is replaced.
    assert_eq!(mosrun(host, Path::new("/"), &["true"]).status.code(), Some(0));
    let programs = [
        start(host, &["sleep", "1000"]),
        start(host, &["mawk", "BEGIN { while (1) x++ }"]),
        start(host, &["cat"]),
        start(host, &["bash", "-c", "sleep 1000 & sleep 1000 & wait"]),
        start(
            host,
            &[
                "/usr/bin/python3",
                "-c",
                "import threading, time\nfor i in range(5): threading.Thread(target=time.sleep, args=(1000,)).start()",
            ],
        ),
    ];
    let vmms = host.vmms();
    assert_eq!(vmms.len(), 1, "one node, one VMM: {:?}", host.processes());
    let since = Instant::now();
    slay(vmms[0]);
    // Each is watched by itself, so that none waits for another to be looked at.
    let slowest = std::thread::scope(|scope| {
        let watched = programs.map(|program| scope.spawn(move || end_of(program, since)));
        watched.map(|watched| {
            let (output, took) = watched.join().expect("a program that was watched");
            refused(&output, NODE_DIED, "node");
            took
        })
    });
    until("nothing but the host daemon is left", || host.processes().len() <= 1);
    slowest.into_iter().max().expect("programs")
}

#[test]
fn a_new_node_serves_after_the_vmm_was_killed() {
    let Some(host) = host() else { return };
    let vmm = host.vmms()[0];
    slay(vmm);
    let place = tempfile::tempdir().expect("a directory");
    // A process that dies gives up its memory first, and only then the socket that others may still reach.
    until("the dead node is gone", || kill(Pid::from_raw(vmm), None).is_err());
    let output = mosrun(&host, place.path(), &["echo", "served"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "served\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(host.vmms().len(), 1);
}

#[test]
fn when_the_host_daemon_is_killed_programs_go_on_and_a_new_one_finds_them() {
    let Some(host) = host() else { return };
    let mut program = start(&host, &["sh", "-c", "while read line; do echo \"got $line\"; done; exit 9"]);
    let mut input = program.stdin.take().expect("a pipe");
    let mut output = BufReader::new(program.stdout.take().expect("a pipe"));
    let mut ask = |word: &str| {
        writeln!(input, "{word}").expect("it reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("it answers");
        assert_eq!(line, format!("got {word}\n"));
    };
    ask("before");
    let vmms = host.vmms();
    let others = [vmms[0], program.id() as i32];
    let daemons: Vec<i32> =
        host.processes().into_iter().map(|(pid, _)| pid).filter(|pid| !others.contains(pid)).collect();
    assert_eq!(daemons.len(), 1, "{:?}", host.processes());
    slay(daemons[0]);
    ask("while it is gone");
    host.skein(&["host", "start"]).expect("a new host daemon starts");
    assert!(listed(&host, program.id()), "the new host daemon does not know the program");
    assert_eq!(host.vmms(), vmms, "the node is the one that it was");
    ask("after");
    let place = tempfile::tempdir().expect("a directory");
    assert_eq!(mosrun(&host, place.path(), &["echo", "new"]).stdout, b"new\n");
    drop(input);
    assert_eq!(ending(program.wait().expect("its end")), Ending::Status(9));
}

#[test]
fn when_mosrun_is_killed_its_guest_process_is_gone() {
    let Some(host) = host() else { return };
    for argv in [&["sleep", "1000"][..], &["mawk", "BEGIN { while (1) x++ }"], &["cat"]] {
        soon(&format!("the end of the guest process of {argv:?}"), || {
            let mut program = start(&host, argv);
            let since = Instant::now();
            slay(program.id() as i32);
            program.wait().expect("its end");
            while listed(&host, program.id()) {
                assert!(
                    since.elapsed() < PATIENCE,
                    "{argv:?} is still listed {PATIENCE:?} after its mosrun was killed"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            since.elapsed()
        });
    }
    assert_eq!(host.vmms().len(), 1, "the node goes on");
}

#[test]
fn a_child_goes_on_when_its_parent_s_mosrun_is_killed() {
    let Some(host) = host() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let done = place.path().join("done");
    let script = format!("(sleep 1; echo done > {}) & echo $!; wait", done.display());
    let mut program = start(&host, &["sh", "-c", &script]);
    let mut line = String::new();
    BufReader::new(program.stdout.take().expect("a pipe")).read_line(&mut line).expect("the child's PID");
    let child: u32 = line.trim().parse().expect("a PID");
    until("mosps lists the child", || listed(&host, child));
    slay(program.id() as i32);
    program.wait().expect("its end");
    until("the child has done its work", || done.exists());
    until("the child is gone", || !listed(&host, child));
}

#[test]
fn ps_shows_the_program_under_mosrun_s_process_id() {
    let Some(host) = host() else { return };
    let mut program = start(&host, &["sleep", "1000"]);
    let ps = Command::new("ps").args(["-o", "ppid=", "-p", &program.id().to_string()]).output().expect("ps");
    assert_eq!(String::from_utf8_lossy(&ps.stdout).trim(), std::process::id().to_string());
    kill(Pid::from_raw(program.id() as i32), Signal::SIGTERM).expect("a process");
    assert_eq!(ending(program.wait().expect("its end")), Ending::Signal(15));
}

#[test]
fn a_guest_that_wants_more_than_its_node_has_harms_nobody() {
    let Some(host) = host() else { return };
    host.skein(&["node", "launch", "--name", "small", "--memory", "256M"]).expect("a small node");
    let place = tempfile::tempdir().expect("a directory");
    let script = "b = []\nwhile True: b.append(bytearray(b'x' * (16 << 20)))";
    let output = mosrun(&host, place.path(), &["--node", "small", "/usr/bin/python3", "-c", script]);
    let said = String::from_utf8_lossy(&output.stderr);
    match ending(output.status) {
        Ending::Signal(9) => {}
        Ending::Status(1) => assert!(said.contains("MemoryError"), "{said}"),
        other => panic!("{other}: {said}"),
    }
    let output = mosrun(&host, place.path(), &["--node", "small", "echo", "still here"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "still here\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// `content` as the file `program` of a fresh directory, run as `./program`.
fn run_file(host: &Host, content: &[u8], mode: u32) -> Output {
    let place = tempfile::tempdir().expect("a directory");
    let program = place.path().join("program");
    fs::write(&program, content).expect("a file");
    fs::set_permissions(&program, Permissions::from_mode(mode)).expect("a mode");
    mosrun(host, place.path(), &["./program"])
}

#[test]
fn what_cannot_be_run_is_refused_with_the_shell_s_status_and_a_sentence() {
    let Some(host) = host() else { return };
    let place = tempfile::tempdir().expect("a directory");
    refused(&mosrun(&host, place.path(), &["no-such-program-anywhere"]), 127, "no-such-program-anywhere");
    refused(&mosrun(&host, place.path(), &["./missing"]), 127, "missing");
    refused(&mosrun(&host, place.path(), &["/"]), 126, "/");
    refused(&run_file(&host, b"#!/bin/sh\n", 0o644), 126, "program");
    refused(&run_file(&host, b"#!/no/such/interpreter\n", 0o755), 127, "/no/such/interpreter");
    refused(&run_file(&host, b"neither a program\0nor a script\n", 0o755), 126, "program");
    refused(&run_file(&host, b"\x89PNG\r\n\x1a\n\0\0", 0o755), 126, "program");
}

/// As under `env`, `nice` or `nohup`: execvp(3) has the shell run it.
#[test]
fn a_text_without_a_first_line_is_run_by_the_shell() {
    let Some(host) = host() else { return };
    let output = run_file(&host, b"echo ran by $0; exit 5\n", 0o755);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ran by ./program\n");
    assert_eq!(ending(output.status), Ending::Status(5));
    let output = run_file(&host, b"", 0o755);
    assert_eq!((ending(output.status), output.stdout.as_slice()), (Ending::Status(0), b"".as_slice()));
}

#[test]
fn a_32_bit_program_is_refused() {
    let Some(host) = host() else { return };
    // ELFCLASS32, little-endian, ET_EXEC, EM_386.
    let mut elf = vec![0u8; 84];
    elf[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    elf[16] = 2;
    elf[18] = 3;
    elf[20] = 1;
    elf[28] = 52;
    (elf[40], elf[42], elf[44]) = (52, 32, 1);
    let output = run_file(&host, &elf, 0o755);
    refused(&output, 126, "program");
    assert!(String::from_utf8_lossy(&output.stderr).contains("32"), "it says why");
}

#[test]
fn a_broken_program_is_refused_whatever_is_broken() {
    let Some(host) = host() else { return };
    let whole = fs::read("/bin/true").expect("/bin/true");
    refused(&run_file(&host, b"\x7fELF", 0o755), 126, "program");
    refused(&run_file(&host, &whole[..64], 0o755), 126, "program");
    let mut damaged = whole.clone();
    damaged[32..40].fill(0xff); // program headers beyond the file
    refused(&run_file(&host, &damaged, 0o755), 126, "program");
    let mut damaged = whole.clone();
    (damaged[18], damaged[19]) = (183, 0); // EM_AARCH64
    refused(&run_file(&host, &damaged, 0o755), 126, "program");
    // None of this took the node along.
    assert_eq!(run_file(&host, b"#!/bin/sh\necho well\n", 0o755).stdout, b"well\n");
    assert_eq!(host.vmms().len(), 1);
}

#[test]
fn a_program_whose_loader_is_missing_is_refused() {
    let Some(host) = host() else { return };
    let place = tempfile::tempdir().expect("a directory");
    fs::write(place.path().join("main.c"), "int main(void) { return 0; }\n").expect("a file");
    let mut cc = Command::new("cc");
    cc.args(["-o", "program", "main.c", "-Wl,--dynamic-linker=/no/such/loader.so"]).current_dir(place.path());
    assert!(cc.status().expect("cc must be installed").success());
    refused(&mosrun(&host, place.path(), &["./program"]), 127, "/no/such/loader.so");
}

#[test]
fn stopping_the_host_leaves_nothing_behind() {
    let Some(host) = host() else { return };
    let place = tempfile::tempdir().expect("a directory");
    assert_eq!(mosrun(&host, place.path(), &["echo", "ran"]).stdout, b"ran\n");
    host.skein(&["host", "stop"]).expect("the host stops");
    until("all processes of the host are gone", || host.processes().is_empty());
}
