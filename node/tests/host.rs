//! The host daemon and the commands that speak to it, as a user meets them. No node is started.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A state directory of its own; its host is stopped at the end.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn skein(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
        command.args(arguments).env("SKEIN_DIR", self.state()).output().unwrap()
    }

    fn start(&self) -> i32 {
        let output = self.skein(&["host", "start"]);
        assert!(output.status.success(), "{output:?}");
        fs::read_to_string(self.state().join("skeind.pid")).unwrap().trim().parse().unwrap()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.state().join("skeind.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn log(&self) -> String {
        fs::read_to_string(self.state().join("skeind.log")).unwrap()
    }

    fn await_log(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "the log lacks {text:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_alive(&self) -> bool {
        self.skein(&["host", "status"]).status.success()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
        let _ = command.args(["host", "stop", "--force"]).env("SKEIN_DIR", self.state()).output();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_host_starts_once_and_stops() {
    let host = Host::new();
    assert_eq!(host.skein(&["host", "status"]).status.code(), Some(1));
    assert!(!host.state().exists(), "a question made the state directory");
    let pid = host.start();
    let again = host.skein(&["host", "start"]);
    assert!(again.status.success() && text(&again.stdout).contains("runs already"), "{again:?}");
    assert!(text(&again.stdout).contains(&pid.to_string()));
    let status: serde_json::Value =
        serde_json::from_slice(&host.skein(&["host", "status", "--json"]).stdout).expect("JSON");
    assert_eq!((&status["running"], &status["pid"]), (&true.into(), &pid.into()));
    assert_eq!(text(&host.skein(&["node", "ls", "--json"]).stdout).trim(), "[]");
    assert_eq!(text(&host.skein(&["ps", "--json"]).stdout).trim(), "[]");
    let stopped = host.skein(&["host", "stop"]);
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(!host.is_alive());
    assert!(!host.state().join("skeind.sock").exists());
    let stopped = host.skein(&["host", "stop"]);
    assert!(stopped.status.success() && text(&stopped.stdout).contains("does not run"), "{stopped:?}");
}

#[test]
fn two_hosts_started_at_once_are_one() {
    let host = Host::new();
    let pids: Vec<String> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| host.skein(&["host", "start"]))).collect();
        starts
            .into_iter()
            .map(|start| {
                let output = start.join().unwrap();
                assert!(output.status.success(), "{output:?}");
                let line = text(&output.stdout);
                line.split("PID ").nth(1).unwrap().split(',').next().unwrap().to_owned()
            })
            .collect()
    });
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
}

#[test]
fn a_killed_host_leaves_nothing_that_hinders_the_next() {
    let host = Host::new();
    let first = host.start();
    kill(first);
    // A dead node's files, and a socket that nobody listens on.
    fs::write(host.state().join("nodes/node-1.pid"), format!("{}\n", std::process::id())).unwrap();
    drop(std::os::unix::net::UnixListener::bind(host.state().join("nodes/node-1.sock")).unwrap());
    assert!(host.state().join("skeind.sock").exists());
    let deadline = Instant::now() + Duration::from_secs(10);
    while host.is_alive() {
        assert!(Instant::now() < deadline);
    }
    let second = host.start();
    assert_ne!(first, second);
    assert_eq!(text(&host.skein(&["node", "ls", "--json"]).stdout).trim(), "[]");
    assert!(!host.state().join("nodes/node-1.sock").exists());
    assert!(!host.state().join("nodes/node-1.pid").exists());
}

#[test]
fn a_host_that_dies_while_it_is_asked_is_started_anew() {
    let host = Host::new();
    kill(host.start());
    let socket = host.state().join("skeind.sock");
    fs::remove_file(&socket).unwrap();
    // As one that is about to end: it takes the connection, and closes it without a word.
    let dying = UnixListener::bind(&socket).unwrap();
    let dies = std::thread::spawn(move || drop(dying.accept().unwrap()));
    let started = host.skein(&["host", "start"]);
    dies.join().unwrap();
    assert!(started.status.success() && text(&started.stdout).contains("the host started"), "{started:?}");
    assert!(host.is_alive());
}

#[test]
fn a_state_directory_that_others_may_enter_is_refused() {
    let host = Host::new();
    fs::create_dir(host.state()).unwrap();
    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = host.skein(&["host", "start"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("chmod 700"), "{output:?}");
    let output = host.skein(&["run", "/bin/true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

/// The version of the protocol that `skeind` speaks, as its one byte.
const VERSION: u8 = 3;

#[test]
fn garbage_on_the_control_socket_is_refused_and_logged() {
    let host = Host::new();
    let pid = host.start();
    let answer = |bytes: &[u8]| {
        let mut stream = host.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        text(&answer)
    };
    // A length above the cap; nothing of such a size may be allocated.
    assert!(answer(&u32::MAX.to_le_bytes()).contains("4294967295 bytes"));
    host.await_log("4294967295 bytes");
    // Bytes that are no request.
    assert!(answer(&[3, 0, 0, 0, VERSION, 250, 250]).contains("cannot be read"));
    host.await_log("cannot be read");
    // A request with bytes after it.
    assert!(answer(&[3, 0, 0, 0, VERSION, 0, 9]).contains("after its end"));
    // Another version.
    assert!(answer(&[2, 0, 0, 0, 77, 0]).contains("version 77"));
    // No body at all.
    assert!(answer(&[0, 0, 0, 0]).contains("without a version"));
    // A node's name that would lead out of the directory: StopNode { name: "../x", force: true }.
    assert!(answer(&[8, 0, 0, 0, VERSION, 3, 4, b'.', b'.', b'/', b'x', 1]).contains("cannot be read"));
    // The peer goes in the middle of a frame.
    let mut stream = host.connect();
    stream.write_all(&[100, 0, 0, 0, VERSION]).unwrap();
    drop(stream);
    host.await_log("the connection failed");
    // And many who say nothing do not keep others out.
    let silent: Vec<UnixStream> = (0..50).map(|_| host.connect()).collect();
    let status = host.skein(&["host", "status", "--json"]);
    assert!(text(&status.stdout).contains(&pid.to_string()), "{status:?}");
    drop(silent);
}

#[test]
fn wrong_names_and_sizes_are_refused_with_advice() {
    let host = Host::new();
    let output = host.skein(&["node", "launch", "--memory", "900000T"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("smaller --memory"), "{output:?}");
    assert!(!host.is_alive(), "a wrong size started a host");
    assert_eq!(host.skein(&["node", "launch", "--memory", "much"]).status.code(), Some(2));
    assert_eq!(host.skein(&["node", "launch", "--name", "../x"]).status.code(), Some(2));
    host.start();
    let output = host.skein(&["node", "stop", "nobody"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no node nobody; see: skein node ls"), "{output:?}");
}

#[test]
fn mosrun_has_the_shells_statuses_before_anything_starts() {
    let host = Host::new();
    let plain = host.directory.path().join("plain");
    fs::write(&plain, "text").unwrap();
    let cases: [(&[&str], i32, &str); 7] = [
        (&["no-such-program"], 127, "skein run: no-such-program: not found in PATH"),
        (&["/no/such"], 127, "no such file"),
        (&[plain.to_str().unwrap()], 126, "chmod +x"),
        (&["/"], 126, "not a file"),
        (&[], 125, "Usage: mosrun"),
        (&["--nonsense", "true"], 125, "no option --nonsense"),
        (&["--node", "nobody", "true"], 125, "node nobody is not running"),
    ];
    for (arguments, status, sentence) in cases {
        let output = host.skein(&[&["run"], arguments].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?} {output:?}");
        assert!(text(&output.stderr).contains(sentence), "{arguments:?} {output:?}");
        assert!(output.stdout.is_empty());
    }
    assert!(!host.is_alive());
}

#[test]
fn the_binary_is_each_command_under_its_name() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["mosrun", "mosps", "mosmigrate"] {
        let link = directory.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_skein"), &link).unwrap();
        let output = Command::new(&link).arg("--help").output().unwrap();
        assert!(output.status.success());
        let help = text(&output.stdout);
        assert!(help.contains(&format!("Usage: {name}")) && help.contains("EXAMPLE"), "{help}");
    }
    let output = Command::new(directory.path().join("mosrun")).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "wrong usage of mosrun must not look like the program's status");
}

#[test]
fn every_command_shows_an_example_and_has_a_manual_page() {
    let host = Host::new();
    let out = host.directory.path().join("man");
    assert!(host.skein(&["man", "--out", out.to_str().unwrap()]).status.success());
    let pages: Vec<String> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for page in [
        "skein.1",
        "mosrun.1",
        "mosps.1",
        "mosmigrate.1",
        "skein-host-start.1",
        "skein-node-launch.1",
        "skein-doctor.1",
    ] {
        assert!(pages.iter().any(|name| name == page), "{page} is not among {pages:?}");
    }
    for page in &pages {
        // A hyphen between two words is one of the page's name, but for commands that have one themselves.
        let name = page.trim_end_matches(".1").replace("cpu-level", "cpu_level");
        let words: Vec<String> = name.split('-').map(|word| word.replace('_', "-")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words[0] == "skein" {
            let help = text(&host.skein(&[&words[1..], &["--help"]].concat()).stdout);
            assert!(help.contains("EXAMPLE"), "{page}: {help}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = host.skein(&["completions", shell]);
        assert!(text(&output.stdout).contains("mosrun"), "{shell}");
    }
}
