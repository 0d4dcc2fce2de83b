//! What does not migrate, and goes on where it is.

use crate::wandering::{ended_well, wander};
use crate::{Pair, numbered, words};
use skein_tests::mover;
use std::process::{Command, Output, Stdio};

fn mosmigrate(pair: &Pair, arguments: &[&str]) -> Output {
    let mut command: Command = pair.host.command("mosmigrate");
    command.args(arguments).stdin(Stdio::null()).output().expect("mosmigrate starts")
}

fn refused(output: &Output, naming: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "it said: {said}");
    assert!(said.contains(naming) && !said.contains("panicked"), "the message does not name {naming}: {said}");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let Some(pair) = Pair::start() else { return };
    let (child, file) = wander(&pair, "1", "refused");
    let pid = child.id().to_string();
    refused(&mosmigrate(&pair, &["1", "b"]), "process 1");
    refused(&mosmigrate(&pair, &[&pid, "nowhere"]), "nowhere");
    refused(&mosmigrate(&pair, &[&pid, "a"]), "already");
    refused(&mosmigrate(&pair, &[&pid, "home"]), "home already");
    assert_eq!(mosmigrate(&pair, &["--max-freeze", "soon", &pid, "b"]).status.code(), Some(2));
    let output = mosmigrate(&pair, &["--json", &pid, "out"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.len() >= 4 && lines[lines.len() - 1]["to"] == "b", "{said}");
    ended_well(child);
    assert!(numbered(&file) >= 10_000);
}

#[test]
fn processes_that_write_the_same_memory_stay_together() {
    let Some(pair) = Pair::start() else { return };
    let script = "import mmap, os, sys\nm = mmap.mmap(-1, 4096)\np = os.fork()\nif p == 0:\n while m[0] != 7: pass\n os._exit(3)\n\
                  sys.stdin.read()\nm[0] = 7\nsys.exit(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))";
    let mut child = pair.start_at_a(&words(&["/usr/bin/python3", "-c", script]));
    let pid = child.id() as i32;
    crate::until("it has a child", || mover::processes(&pair.socket("a")).is_ok_and(|all| all.len() == 2));
    let why = pair.migrate(pid).expect_err("it shares memory");
    assert!(why.contains("shares writable memory"), "{why}");
    drop(child.stdin.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}

#[test]
fn a_program_that_waits_for_a_child_by_vfork_waits_where_it_is() {
    let Some(pair) = Pair::start() else { return };
    // The child of posix_spawn waits in its open of the pipe until somebody writes.
    let script = "import os\nos.mkfifo('pipe')\nr = os.posix_spawn('/bin/cat', ['cat'], {}, \
                  file_actions=[(os.POSIX_SPAWN_OPEN, 0, 'pipe', os.O_RDONLY, 0)])\nos.waitpid(r, 0)";
    let child = pair.start_at_a(&words(&["/usr/bin/python3", "-c", script]));
    let pid = child.id() as i32;
    crate::until("it has a child", || mover::processes(&pair.socket("a")).is_ok_and(|all| all.len() == 2));
    let why = pair.migrate(pid).expect_err("it shares memory");
    assert!(why.contains("vfork"), "{why}");
    std::fs::write(pair.place.path().join("pipe"), "through\n").expect("the pipe has a reader");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through\n");
}
