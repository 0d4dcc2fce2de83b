//! Memory that follows its process.

use crate::wandering::{ended_well, wander};
use crate::{Pair, numbered, until, words};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_tests::mishaps::NODE_DIED;
use skein_tests::mover::PostCopy;
use skein_tests::pages::numbered as numbered_program;
use std::io::{BufRead, BufReader, Write};
use std::process::Child;
use std::time::Duration;

#[test]
fn a_program_that_notices_everything_notices_nothing_of_memory_that_follows() {
    let Some(pair) = Pair::start() else { return };
    let (mut child, file) = wander(&pair, "3600", "numbers");
    let pid = child.id() as i32;
    let mut random = fastrand::Rng::with_seed(5);
    let (mut late, mut followed, mut longest) = (0, 0, 0);
    for number in 0..200 {
        let record = loop {
            match pair.migrate_with(pid, PostCopy::Always, 1) {
                Ok(record) => break record,
                Err(why) => {
                    late += 1;
                    if child.try_wait().expect("a child").is_some() {
                        let logs = ["a", "b"].map(|node| pair.host.node_log(node)).concat();
                        panic!("migration {number}: {why}: it has ended: {:?}\n{logs}", child.wait_with_output());
                    }
                    assert!(late <= 10, "migration {number}: {why}\n{}", pair.host.node_log("a"));
                }
            }
        };
        followed += record.post_copy.pages;
        longest = longest.max(record.freeze_micros);
        std::thread::sleep(Duration::from_micros(random.u64(..10_000)));
    }
    kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("it runs");
    let said = ended_well(child);
    assert!(numbered(&file) >= 10_000 && followed >= 200 * 100, "{followed} pages followed");
    eprintln!("{followed} pages followed; the longest freeze: {longest} us; it said: {said}");
}

fn numbered_pages(pair: &Pair, then: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let script = numbered_program(then);
    let mut child = pair.start_at_a(&words(&["/usr/bin/python3", "-c", &script]));
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    (child, output)
}

/// Has it go with all its memory behind it, so slowly that little of that has come when the program is told to go on.
fn go_slowly(pair: &Pair, child: &mut Child, meanwhile: impl FnOnce(&mut Child)) -> Result<String, String> {
    go_at(pair, child, "16M", meanwhile)
}

fn go_at(
    pair: &Pair,
    child: &mut Child,
    bandwidth: &str,
    meanwhile: impl FnOnce(&mut Child),
) -> Result<String, String> {
    let pid = child.id().to_string();
    std::thread::scope(|scope| {
        let order = ["migrate", "--json", "--post-copy", "always", "--bandwidth", bandwidth, &pid, "b"];
        let migration = scope.spawn(move || pair.host.skein(&order));
        until("it runs at its new place or has not gone", || {
            let at = |node| skein_tests::mover::processes(&pair.socket(node)).unwrap_or_default();
            // The node that it leaves has it for a moment longer.
            at("b").iter().any(|process| !process.arriving) && at("a").is_empty() || migration.is_finished()
        });
        let has_gone = !migration.is_finished();
        if has_gone {
            meanwhile(child);
        }
        let said = migration.join().expect("no panic");
        assert!(has_gone || said.is_err(), "it was there too soon: {said:?}");
        said
    })
}

fn tell(child: &mut Child) {
    child.stdin.as_mut().expect("a pipe").write_all(b"go\n").expect("it listens");
}

#[test]
fn what_is_done_with_memory_before_it_has_come_is_done_with_what_comes() {
    let Some(pair) = Pair::start() else { return };
    let then = "
import random
random.seed(3)
sys.stdin.readline()
check(random.sample(range(PAGES), 200))
children = [forked(random.sample(range(PAGES), 50)) for _ in range(3)]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
at = lambda page: ctypes.c_void_p(address + page * 4096)
# Some is given up, some may not be touched for a while, some goes elsewhere and comes back.
assert libc.madvise(at(1000), ctypes.c_size_t(100 * 4096), 4) == 0
assert libc.mprotect(at(3000), ctypes.c_size_t(2000 * 4096), 0) == 0
new = libc.mremap(at(6000), ctypes.c_size_t(3000 * 4096), ctypes.c_size_t(3000 * 4096), 1 | 2, ctypes.c_void_p(0x600000000000))
assert new == 0x600000000000, hex(new or 0)
moved = (ctypes.c_char * (3000 * 4096)).from_address(new)
for page in random.sample(range(3000), 100):
    number = page + 6000
    assert struct.unpack_from('<Q', moved, page * 4096 + number % 4089)[0] == number + 1, page
assert libc.mprotect(at(3000), ctypes.c_size_t(2000 * 4096), 3) == 0
assert libc.mremap(ctypes.c_void_p(new), ctypes.c_size_t(3000 * 4096), ctypes.c_size_t(3000 * 4096), 1 | 2, at(6000)) == address + 6000 * 4096
assert memory[1000 * 4096:1100 * 4096] == bytes(100 * 4096)
out = os.memfd_create('x')
assert os.pwrite(out, memory[9000 * 4096:9100 * 4096], 0) == 100 * 4096
check(p for p in range(PAGES) if not 1000 <= p < 1100)
for child in children: assert os.waitpid(child, 0)[1] == 0
check(p for p in range(PAGES) if not 1000 <= p < 1100)
print('right', flush=True)
sys.stdin.readline()
check(p for p in range(PAGES) if not 1000 <= p < 1100)
print('still right', flush=True)
";
    let (mut child, mut output) = numbered_pages(&pair, then);
    let said = go_slowly(&pair, &mut child, tell).expect("it goes");
    let record: serde_json::Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    assert!(record["post_copy"]["bytes"].as_u64() >= Some(60 << 20), "{said}");
    assert!(said.lines().any(|line| line.starts_with("{\"Running\"")), "{said}");
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "right\n", "{:?}", child.wait_with_output());
    // It can go on now.
    pair.migrate(child.id() as i32).expect("it goes back");
    tell(&mut child);
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "right\nstill right\n", "{:?}", child.wait_with_output());
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_node_that_still_has_memory_of_a_process_does_not_stop() {
    let Some(pair) = Pair::start() else { return };
    let (mut child, _output) = numbered_pages(&pair, "sys.stdin.readline()\ncheck(range(PAGES))");
    let went = go_slowly(&pair, &mut child, |child| {
        let why = pair.host.skein(&["node", "stop", "a"]).expect_err("it is needed");
        assert!(why.contains("still needs memory of it"), "{why}");
        // It can go when all of it is there.
        pair.migrate(child.id() as i32).expect("it goes back");
        let order = ["migrate", &child.id().to_string(), "b"].map(str::to_owned);
        pair.host.skein(&order.each_ref().map(String::as_str)).expect("it goes again");
    });
    went.expect("it goes");
    tell(&mut child);
    assert!(child.wait().expect("it ends").success());
    pair.host.skein(&["node", "stop", "a"]).expect("nobody needs it");
}

#[test]
fn a_process_whose_memory_comes_too_slowly_stays() {
    let Some(pair) = Pair::start() else { return };
    let (mut child, _output) = numbered_pages(&pair, "sys.stdin.readline()");
    let went = go_at(&pair, &mut child, "4M", |child| {
        let why = pair.migrate(child.id() as i32).expect_err("not all of it is there");
        assert!(why.contains("its memory is still coming"), "{why}");
        tell(child);
        assert!(child.wait().expect("it ends").success());
    });
    went.expect("it went");
}

#[test]
fn a_process_that_ends_or_runs_something_else_needs_no_more_of_its_memory() {
    let Some(pair) = Pair::start() else { return };
    for then in ["os._exit(0)", "os.execv('/bin/true', ['true'])"] {
        let (mut child, _output) = numbered_pages(&pair, &format!("sys.stdin.readline()\n{then}"));
        let said = go_at(&pair, &mut child, "4M", |child| {
            tell(child);
            assert!(child.wait().expect("it ends").success());
        });
        let said = said.expect("it went");
        let record: serde_json::Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
        assert!(record["post_copy"]["bytes"].as_u64() < Some(60 << 20), "{said}");
    }
}

#[test]
fn a_process_whose_memory_is_lost_ends_and_that_is_said() {
    for fault in [
        "SourceServe=cut",
        "SourceServe=kill",
        "SourceServe=corrupt",
        "TargetCollect=cut",
        "TargetCollect=kill",
        "SourceMoved=kill",
    ] {
        let Some(pair) = Pair::start_with(&[("SKEIN_FAULT", fault)]) else { return };
        let (mut child, _output) = numbered_pages(&pair, "while True: check(range(PAGES))");
        let pid = child.id().to_string();
        let went = pair.host.skein(&["migrate", "--post-copy", "always", &pid, "b"]);
        assert!(went.is_err(), "{fault}: {went:?}");
        until(&format!("{fault}: it ends, {went:?}"), || child.try_wait().expect("a child").is_some());
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(NODE_DIED), "{fault}: {said}");
        let why =
            if fault == "TargetCollect=kill" { "is gone" } else { "memory of it was lost on its way to the node b" };
        assert!(said.contains(why), "{fault}: {said}");
        if !fault.starts_with("Target") {
            until("the other node has nothing of it", || {
                skein_tests::mover::processes(&pair.socket("b")).is_ok_and(|all| all.is_empty())
            });
        }
    }
}
