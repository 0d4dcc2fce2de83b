//! Nodes as `skeind` keeps them: they outlive it, and their ends are noticed. Needs `/dev/kvm`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    /// `None` where there is no `/dev/kvm`; where it is there, a failure to use it is a failure.
    fn new() -> Option<Self> {
        let there = Path::new("/dev/kvm").exists();
        if !there {
            eprintln!("not run: there is no /dev/kvm here");
        }
        there.then(|| Self { directory: tempfile::tempdir().unwrap() })
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
        command.args(arguments).env("SKEIN_DIR", self.state());
        command
    }

    fn skein(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.skein(arguments);
        assert!(output.status.success(), "{arguments:?} {output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn host_pid(&self) -> i64 {
        self.json(&["host", "status", "--json"])["pid"].as_i64().unwrap()
    }

    fn nodes(&self) -> Vec<(String, i64)> {
        let list = self.json(&["node", "ls", "--json"]);
        let row =
            |row: &serde_json::Value| (row["name"].as_str().unwrap().to_owned(), row["vmm_pid"].as_i64().unwrap());
        list.as_array().unwrap().iter().map(row).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.skein(&["host", "stop", "--force"]);
    }
}

fn kill(pid: i64) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nodes_are_launched_listed_and_stopped() {
    let Some(host) = Host::new() else { return };
    let first = host.json(&["node", "launch", "--json"]);
    assert_eq!(first["name"], "node-1");
    assert!(first["start_ms"].as_f64().unwrap() > 0.0);
    host.json(&["node", "launch", "--name", "big", "--memory", "512M", "--json"]);
    host.json(&["node", "launch", "--json"]);
    let names: Vec<String> = host.nodes().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["big", "node-1", "node-2"]);
    let list = host.json(&["node", "ls", "--json"]);
    assert_eq!((&list[0]["memory"], &list[0]["state"]), (&(512 << 20).into(), &"running".into()));
    let again = host.skein(&["node", "launch", "--name", "big"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("runs already"), "{again:?}");
    assert!(host.skein(&["node", "stop", "node-1"]).status.success());
    // The name is free again.
    assert_eq!(host.json(&["node", "launch", "--json"])["name"], "node-1");
    let pids: Vec<i64> = host.nodes().into_iter().map(|(_, pid)| pid).collect();
    assert!(host.skein(&["node", "stop", "--all"]).status.success());
    assert!(host.nodes().is_empty());
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} of a stopped node is left");
    }
}

#[test]
fn nodes_outlive_skeind_and_a_new_one_picks_them_up() {
    let Some(host) = Host::new() else { return };
    host.json(&["node", "launch", "--json"]);
    host.json(&["node", "launch", "--json"]);
    let before = host.nodes();
    kill(host.host_pid());
    until("skeind is gone", || !host.skein(&["host", "status"]).status.success());
    assert!(host.skein(&["host", "start"]).status.success());
    assert_eq!(host.nodes(), before);
    let list = host.json(&["node", "ls", "--json"]);
    assert!(list.as_array().unwrap().iter().all(|row| row["state"] == "running"), "{list}");
    // An adopted node's end is noticed too, though it is no child.
    kill(before[0].1);
    until("the end of an adopted node is noticed", || host.nodes() == before[1..]);
    assert!(!host.state().join("nodes").join(format!("{}.sock", before[0].0)).exists());
    assert!(host.skein(&["node", "stop", &before[1].0]).status.success());
    assert!(host.skein(&["host", "stop"]).status.success());
}

#[test]
fn a_killed_node_is_noticed_and_reaped() {
    let Some(host) = Host::new() else { return };
    let pid = host.json(&["node", "launch", "--json"])["pid"].as_i64().unwrap();
    kill(pid);
    until("the end of a node is noticed", || host.nodes().is_empty());
    until("it is reaped", || !Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(host.json(&["node", "launch", "--json"])["name"], "node-1");
}

#[test]
fn stopping_without_skeind_stops_the_nodes_that_it_left() {
    let Some(host) = Host::new() else { return };
    let pid = host.json(&["node", "launch", "--json"])["pid"].as_i64().unwrap();
    kill(host.host_pid());
    until("skeind is gone", || !host.skein(&["host", "status"]).status.success());
    let output = host.skein(&["host", "stop"]);
    assert!(output.status.success(), "{output:?}");
    until("the node is gone", || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_host_that_is_started_on_demand_keeps_no_pipe_of_the_caller_open() {
    let Some(host) = Host::new() else { return };
    let mut shell = Command::new("sh");
    shell.args(["-c", r#""$0" node launch --json 3>&1 >/dev/null; echo done"#, env!("CARGO_BIN_EXE_skein")]);
    let mut child = shell.env("SKEIN_DIR", host.state()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = output.read_to_string(&mut text);
        let _ = sender.send(text);
    });
    let text = receiver.recv_timeout(Duration::from_secs(10)).expect("the pipe is still open");
    assert_eq!(text, "done\n");
    assert!(child.wait().unwrap().success());
}
