//! Processes that migrate between hosts: what they notice of it is nothing, what is left of them where they were is
//! nothing, and what fails leaves them where they are.

mod clocks;
mod ends;
mod faults;
mod following;
mod lost;
mod wandering;

use skein_tests::home::{Host, can_host};
use skein_tests::turns::Turn;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Names of the hosts of a [`Cluster`]; processes are started at the first, which is their home.
const HOSTS: [&str; 3] = ["home", "one", "two"];
/// How long may pass until something is true.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most migrations of a test that may take longer than a process may stand still, where others load the machine.
const LATE: u32 = 10;

/// Hosts of a cluster, on loopback, each with a node `node-1`.
struct Cluster {
    hosts: Vec<Host>,
    place: TempDir,
    _turn: Turn,
}

impl Cluster {
    /// So many hosts; `None` where there is no `/dev/kvm`, or where another runner stands in for `mosrun`.
    fn start(hosts: usize) -> Option<Self> {
        Self::start_with(hosts, &[])
    }

    /// The same with variables in the environment of hosts and nodes.
    fn start_with(hosts: usize, environment: &[(&str, &str)]) -> Option<Self> {
        if !can_host() {
            return None;
        }
        let turn = Turn::wait();
        let place = tempfile::tempdir().expect("a temporary directory");
        let mut cluster = Self { hosts: Vec::new(), place, _turn: turn };
        for name in &HOSTS[..hosts] {
            let mut host = Host::prepare().unwrap_or_else(|why| panic!("{why}"));
            for &(name, value) in environment {
                host.set(name, value);
            }
            let about = ["--host-name", name, "--listen", "127.0.0.1:0"];
            match cluster.hosts.first() {
                None => says(&host, &[&["cluster", "init", "--name", "lab"][..], &about].concat()),
                Some(first) => {
                    let token = says(first, &["cluster", "invite"]);
                    says(&host, &[&["cluster", "join", token.trim()][..], &about].concat())
                }
            };
            says(&host, &["node", "launch", "--name", "node-1"]);
            cluster.hosts.push(host);
        }
        Some(cluster)
    }

    fn home(&self) -> &Host {
        &self.hosts[0]
    }

    /// `mosrun ARGV` at home, with its output in pipes.
    fn mosrun(&self, argv: &[OsString]) -> Child {
        let mut command: Command = self.home().command("mosrun");
        command.args(argv).current_dir(self.place.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("mosrun starts");
        let pid = child.id() as i32;
        until("a node has the process", || self.at(pid).is_some());
        child
    }

    /// The PID of a host's `skeind`.
    fn daemon(&self, host: usize) -> i32 {
        let status = says(&self.hosts[host], &["host", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        status["pid"].as_i64().expect("a PID") as i32
    }

    /// At which host a process runs, by its number.
    fn at(&self, pid: i32) -> Option<usize> {
        let nodes = self.hosts.iter().map(|host| host.socket("node-1"));
        skein_tests::mover::whereabouts(pid, nodes.enumerate())
    }

    /// Has a process go to a host; gives the record of it.
    fn migrate(&self, pid: i32, to: usize) -> Result<serde_json::Value, String> {
        self.migrate_with(pid, to, &[])
    }

    /// The same with options.
    fn migrate_with(&self, pid: i32, to: usize, options: &[&str]) -> Result<serde_json::Value, String> {
        let to = if to == 0 { "home".to_owned() } else { format!("{}/node-1", HOSTS[to]) };
        let said = self.home().skein(&[&["migrate", "--json", &pid.to_string(), &to], options].concat());
        let said = said.map_err(|why| format!("{why}{}", self.logs()))?;
        let record = said.lines().last().ok_or("it says nothing")?;
        serde_json::from_str(record).map_err(|error| format!("{error}: {said}"))
    }

    /// The same, unless it is there; a few may be late, which `late` counts.
    fn migrate_for_sure(&self, pid: i32, to: usize, late: &mut u32) -> serde_json::Value {
        self.migrate_with_for_sure(pid, to, &[], late)
    }

    fn migrate_with_for_sure(&self, pid: i32, to: usize, options: &[&str], late: &mut u32) -> serde_json::Value {
        loop {
            if self.at(pid) == Some(to) {
                return serde_json::Value::Null;
            }
            match self.migrate_with(pid, to, options) {
                Ok(record) => return record,
                Err(why) => {
                    *late += 1;
                    eprintln!("to {}: {why}", HOSTS[to]);
                    assert!(*late <= LATE, "to {}: {why}\n{}", HOSTS[to], self.logs());
                }
            }
        }
    }

    fn logs(&self) -> String {
        self.hosts.iter().map(|host| host.daemon_log() + &host.node_log("node-1")).collect()
    }
}

/// What skein prints there, which must succeed.
fn says(host: &Host, arguments: &[&str]) -> String {
    host.skein(arguments).unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
}

/// Waits for something that soon becomes true.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Words of a command.
fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Waits for a program's end, which is a good one; gives what it said on standard error.
fn ended_well(child: Child) -> String {
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "it said: {said}");
    said
}

/// The lines of a file are the numbers from 0 on, each once.
fn numbered(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).expect("the file");
    for (expected, line) in text.lines().enumerate() {
        assert_eq!(line.parse(), Ok(expected), "a number was lost or written twice");
    }
    text.lines().count()
}
