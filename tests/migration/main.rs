//! Processes that migrate while they run: what they notice of it is nothing, what is left of them where they were is
//! nothing, and what fails leaves them where they are.

mod faults;
mod hostile;
mod postcopy;
mod refusals;
mod sample;
mod views;
mod wandering;

use skein_tests::home::{Host, can_host};
use skein_tests::mover;
use skein_tests::turns::Turn;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A host with two nodes, `a` and `b`.
struct Pair {
    host: Host,
    place: TempDir,
    _turn: Turn,
}

impl Pair {
    /// Starts them; `None` where there is no `/dev/kvm`, or where another runner stands in for `mosrun`.
    fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with variables in the environment of host and nodes.
    fn start_with(environment: &[(&str, &str)]) -> Option<Self> {
        if !can_host() {
            return None;
        }
        let turn = Turn::wait();
        let mut host = Host::prepare().unwrap_or_else(|why| panic!("{why}"));
        for &(name, value) in environment {
            host.set(name, value);
        }
        for arguments in
            [&["host", "start"][..], &["node", "launch", "--name", "a"], &["node", "launch", "--name", "b"]]
        {
            host.skein(arguments).unwrap_or_else(|why| panic!("{why}"));
        }
        let place = tempfile::tempdir().expect("a temporary directory");
        Some(Self { host, place, _turn: turn })
    }

    fn socket(&self, node: &str) -> PathBuf {
        self.host.socket(node)
    }

    /// `mosrun --node a ARGV`, with its output in pipes.
    fn mosrun(&self, argv: &[OsString]) -> Command {
        let mut command = self.host.command("mosrun");
        command.args(["--node", "a"]).args(argv).current_dir(self.place.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts it and waits until the node has it.
    fn start_at_a(&self, argv: &[OsString]) -> Child {
        let child = self.mosrun(argv).spawn().expect("mosrun starts");
        let pid = child.id() as i32;
        until("the node has the process", || self.at(pid) == Some('a'));
        child
    }

    /// What `skein node ls` says of a node.
    fn about(&self, node: &str) -> serde_json::Value {
        let json = self.host.skein(&["node", "ls", "--json"]).expect("node ls works");
        let nodes: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
        nodes.into_iter().find(|entry| entry["name"] == node).expect("the node")
    }

    /// At which node a process is.
    fn at(&self, pid: i32) -> Option<char> {
        mover::whereabouts(pid, ['a', 'b'].map(|node| (node, self.socket(&node.to_string()))))
    }

    /// Has a process go to the other node.
    fn migrate(&self, pid: i32) -> Result<mover::Record, String> {
        self.migrate_with(pid, mover::PostCopy::Auto, 1)
    }

    /// The same, with some of its memory behind it, or over so many streams.
    fn migrate_with(&self, pid: i32, post_copy: mover::PostCopy, streams: u32) -> Result<mover::Record, String> {
        let (from, to) = match self.at(pid) {
            Some('a') => ("a", "b"),
            Some(_) => ("b", "a"),
            None => return Err("it is at no node".to_owned()),
        };
        mover::migrate_with(pid, &self.socket(from), &self.socket(to), post_copy, streams)
    }
}

/// Waits for something that soon becomes true.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 seconds: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Words of a command.
fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// The lines of a file are the numbers from 0 on, each once.
fn numbered(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).expect("the file");
    for (expected, line) in text.lines().enumerate() {
        assert_eq!(line.parse(), Ok(expected), "a number was lost or written twice");
    }
    text.lines().count()
}
