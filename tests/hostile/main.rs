//! A program that does whatever a program can do neither breaks its node nor reaches its neighbours or the host.

use skein_tests::guest::{Linking, compile};
use skein_tests::home::{can_host, skein_binary};
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds of each half of the attack; `SKEIN_HOSTILE_SECONDS` attacks longer.
const SECONDS: u64 = 25;
/// `SKEIN_HOSTILE_SEED` attacks otherwise.
const SEED: u64 = 20_261_121;

/// What a process has of its host.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    resident_mib: u64,
    threads: usize,
    descriptors: usize,
}

/// The VMM process of the node whose state is in `state`.
fn vmm(state: &Path) -> i32 {
    let wanted = [b"SKEIN_DIR=", state.as_os_str().as_bytes()].concat();
    let found: Vec<i32> = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let ours = environment.split(|&byte| byte == 0).any(|variable| variable == wanted);
            let has_vm = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("anon_inode:kvm-vm"));
            let runs_vm = ours && fs::read_dir(entry.path().join("fd")).ok()?.flatten().any(has_vm);
            runs_vm.then_some(pid)
        })
        .collect();
    assert_eq!(found.len(), 1, "one node, one VMM: {found:?}");
    found[0]
}

fn footprint(pid: i32) -> Footprint {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the VMM lives");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("the VMM lives").count();
    Footprint { resident_mib: kib >> 10, threads: count("task"), descriptors: count("fd") }
}

/// The namespaces that confine the attack at home; the user's too where that may be.
fn confinement() -> Vec<&'static str> {
    let rest = ["--mount", "--pid", "--fork", "--ipc", "--net", "--uts", "--mount-proc", "--kill-child"];
    for user in [&["--user", "--map-root-user"][..], &[]] {
        let options: Vec<_> = user.iter().chain(&rest).copied().collect();
        let mut unshare = Command::new("unshare");
        let status = unshare.args(&options).arg("true").stderr(Stdio::null()).status();
        if status.expect("unshare must be installed").success() {
            return options;
        }
    }
    panic!("this user may not make namespaces: without them the attack would reach the user's own files");
}

struct Attack {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Attack {
    fn start(directory: &Path, hostile: &Path, seed: u64, seconds: u64) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hostile/confined.sh");
        let mut command = Command::new("unshare");
        // A session of its own: what is sent to a process group stays in it.
        command.args(confinement()).arg("setsid").arg(script).arg(directory);
        command.arg(skein_binary().expect("the skein binary")).arg(hostile);
        command.args([seed.to_string(), seconds.to_string()]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare must be installed");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, input, output }
    }

    /// The next line, which begins with `word`.
    fn said(&mut self, word: &str) -> String {
        let line = self.output.next().expect("the script goes on").expect("UTF-8");
        assert!(line.starts_with(word), "{word} was expected, not: {line}");
        eprintln!("{line}");
        line
    }

    fn go_on(&mut self) {
        writeln!(self.input).expect("the script waits");
    }
}

impl Drop for Attack {
    /// With the first process of its namespace everything in it dies.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |value| value.parse().expect("a number"))
}

#[test]
fn a_hostile_program_breaks_nothing() {
    if !can_host() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let directory = place.path().join("confined");
    fs::create_dir(&directory).expect("a directory");
    fs::write(place.path().join("outside"), "not to be touched").expect("a file");
    let hostile = compile("hostile", Linking::Static);
    let seconds = number("SKEIN_HOSTILE_SECONDS", SECONDS);
    let mut attack = Attack::start(&directory, &hostile, number("SKEIN_HOSTILE_SEED", SEED), seconds);

    attack.said("started");
    let pid = vmm(&directory.join("state"));
    let start = footprint(pid);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        attack.go_on();
        attack.said("attacked 0: seed");
        assert!(began.elapsed() >= Duration::from_secs(seconds), "it was over too soon");
        // The last of its processes end at their leisure.
        std::thread::sleep(Duration::from_secs(1));
        seen.push(footprint(pid));
    }
    eprintln!("{start:?}, then {seen:?}");
    attack.go_on();
    attack.said("watched 0: ok nothing has changed");
    attack.said("alive: yes");
    attack.said("log bytes: ");
    attack.said("stopped");

    // vCPUs wait for the next thread, and files and frames for the next program; no more of them than were
    // needed at once, or than are kept at most.
    let (first, second) = (seen[0], seen[1]);
    assert!(second.resident_mib <= start.resident_mib + 120, "memory: {start:?}, then {seen:?}");
    assert!(second.resident_mib <= first.resident_mib + 64, "memory grows: {seen:?}");
    assert!(second.threads <= 800, "threads: {seen:?}");
    assert!(second.descriptors <= second.threads + 700, "descriptors: {seen:?}");
    assert_eq!(fs::read_to_string(place.path().join("outside")).expect("it is there"), "not to be touched");
}
