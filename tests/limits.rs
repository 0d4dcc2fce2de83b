//! What a program may take at most, and what a node has: `mosrun -m`, `--max-threads`, and no vCPU left.

use skein_tests::case::Ending;
use skein_tests::guest::{Linking, compile};
use skein_tests::home::{Host, can_host};
use skein_tests::run::ending;
use std::io::{BufRead, BufReader, Read};
use std::process::{Output, Stdio};

const PYTHON: &str = "/usr/bin/python3";

/// A host of the test's own, with one node; `None` where there is no `/dev/kvm`, or where another
/// runner stands in for `mosrun` and nothing here has a meaning.
fn host() -> Option<Host> {
    if !can_host() {
        return None;
    }
    Some(Host::start().unwrap_or_else(|why| panic!("{why}")))
}

fn mosrun(host: &Host, arguments: &[&str]) -> Output {
    host.command("mosrun").args(arguments).stdin(Stdio::null()).output().expect("mosrun starts")
}

/// It printed this and exited with `status`.
fn printed(output: &Output, status: i32, expected: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{told}");
    assert_eq!(ending(output.status), Ending::Status(status), "{told}");
}

#[test]
fn a_program_and_its_children_share_what_memory_they_may_have() {
    let Some(host) = host() else { return };
    let hog = compile("hog", Linking::Dynamic);
    let hog = hog.to_str().expect("a path in UTF-8");
    let run = |script: &str| mosrun(&host, &["-m", "64", "bash", "-c", script, hog]);
    printed(&run("$0 once 100"), 1, "cannot have 100 MiB: ENOMEM\n");
    printed(&run("$0 grow 32; $0 grow 32"), 0, "had 32 MiB\nhad 32 MiB\n");
    // One that takes too much is killed, and it alone.
    printed(&run("$0 grow 100; echo $?; $0 grow 8"), 0, "137\nhad 8 MiB\n");
    // Each would fit, all of them do not.
    let script = "import os
told, tell = os.pipe()
go, going = os.pipe()
children = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        os.close(going)
        b = []
        for n in range(40): b.append(bytearray(b'x' * (1 << 20)))
        os.write(tell, b'x')
        os.close(tell)
        os.read(go, 1)
        os._exit(0)
    children.append(pid)
os.close(tell)
while os.read(told, 1): pass
os.close(going)
print(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))";
    printed(&mosrun(&host, &["-m", "64", PYTHON, "-c", script]), 0, "[-9, -9, 0]\n");
    // What a parent and a child share until one of them writes counts once.
    let script = "import os\nb = bytearray(40 << 20)\nfor n in range(0, len(b), 4096): b[n] = 1\nfor i in range(3):\n pid = os.fork()\n \
                  if pid == 0: os._exit(len(b) >> 20)\n print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    printed(&mosrun(&host, &["-m", "64", PYTHON, "-c", script]), 0, "40\n40\n40\n");
    // The call that fills a buffer beyond the limit is not broken; the program is killed after it.
    let script = "import os\nb = []\nwhile True: b.append(os.read(os.open('/dev/zero', os.O_RDONLY), 1 << 20))";
    assert_eq!(ending(mosrun(&host, &["-m", "32", PYTHON, "-c", script]).status), Ending::Signal(9));
    // Others of the node have not noticed.
    printed(&mosrun(&host, &[hog, "grow", "200"]), 0, "had 200 MiB\n");
    assert!(host.node_log("node-1").contains("mosrun -m"), "the log says why");
}

#[test]
fn more_threads_than_a_program_may_have_are_refused() {
    let Some(host) = host() else { return };
    let script = "import threading\nstop = threading.Event()\ntry:\n for n in range(99): \
                  threading.Thread(target=stop.wait).start()\nexcept RuntimeError as error: print(n, error)\nstop.set()";
    let output = mosrun(&host, &["--max-threads", "5", PYTHON, "-c", script]);
    printed(&output, 0, "4 can't start new thread\n");
    let script = "import os, time\nchildren = []\ntry:\n while True:\n  pid = os.fork()\n  if pid == 0: time.sleep(1000)\n  \
                  children.append(pid)\nexcept BlockingIOError as error: print(len(children), error.strerror)\n\
                  for pid in children: os.kill(pid, 9)\nfor pid in children: os.waitpid(pid, 0)\n\
                  print(os.waitpid(os.spawnlp(os.P_NOWAIT, 'true', 'true'), 0)[1])";
    let output = mosrun(&host, &["--max-threads", "4", PYTHON, "-c", script]);
    printed(&output, 0, "3 Resource temporarily unavailable\n0\n");
    printed(&mosrun(&host, &["--max-threads", "1", "true"]), 0, "");
    let output = mosrun(&host, &["--max-threads", "1", "bash", "-c", "exec echo $BASHPID"]);
    assert_eq!(ending(output.status), Ending::Status(0));
}

#[test]
fn a_node_without_a_vcpu_left_refuses_threads_and_programs_and_goes_on() {
    let Some(host) = host() else { return };
    let script = "import threading\nstop = threading.Event()\nthreading.stack_size(1 << 16)\nthreads = []\ntry:\n \
                  while True:\n  t = threading.Thread(target=stop.wait)\n  t.start()\n  threads.append(t)\n\
                  except RuntimeError as error: print(len(threads), error, flush=True)\nimport sys\nsys.stdin.read()\nstop.set()\n\
                  for t in threads: t.join()\nprint('all ended')";
    let mut command = host.command("mosrun");
    command.args([PYTHON, "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut full = command.spawn().expect("mosrun starts");
    let mut output = BufReader::new(full.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    let threads: u32 = line.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"));
    assert!(threads > 100 && line.contains("can't start new thread"), "{line}");
    let refused = mosrun(&host, &["echo", "ran"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(ending(refused.status), Ending::Status(125), "{said}");
    assert!(said.contains("vCPU") && said.contains("another node"), "{said}");
    // Where there is room it runs, and here when there is some again.
    host.skein(&["node", "launch", "--name", "other"]).expect("another node");
    printed(&mosrun(&host, &["--node", "other", "echo", "ran"]), 0, "ran\n");
    drop(full.stdin.take());
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("its output");
    assert_eq!(rest, "all ended\n");
    assert_eq!(ending(full.wait().expect("its end")), Ending::Status(0));
    printed(&mosrun(&host, &["--node", "node-1", "echo", "ran"]), 0, "ran\n");
}
