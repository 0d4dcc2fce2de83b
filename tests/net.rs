//! Hosts on a network of their own: one network namespace for each, a bridge between them.

use crate::home;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A process that keeps a namespace there: it ends when this process does, since it reads from it.
#[derive(Debug)]
struct Keeper(Child);

impl Keeper {
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // It says that it is where it should be.
        let mut line = [0; 3];
        let output = child.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(output, &mut line).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const KEEP: &str = "echo ok; exec cat";

/// Some hosts that reach each other over Ethernet, and nothing else.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<NetHost>,
    hub: Keeper,
    user: bool,
}

/// A host of a [`Network`].
#[derive(Debug)]
pub struct NetHost {
    name: String,
    directory: TempDir,
    keeper: Keeper,
    skein: PathBuf,
    user: bool,
    /// Seconds by which its clocks that count from its start are ahead of the first host's.
    ahead: Option<i64>,
}

impl Network {
    /// So many hosts, `host-1`, `host-2` and so on, with the addresses 10.77.0.1, 10.77.0.2 and so on.
    ///
    /// # Panics
    /// If this user may not make namespaces, by root or in a user namespace: then nothing of this can be tested.
    pub fn new(hosts: usize) -> Self {
        let skein = home::skein_binary().expect("the skein binary");
        let (hub, user) = hub();
        let mut network = Self { hosts: Vec::new(), hub, user };
        network.run("ip link add br0 type bridge && ip link set br0 up");
        for number in 1..=hosts {
            let name = format!("host-{number}");
            let mut command = enter(&network.hub, network.user, &["--net"]);
            command.args(["unshare", "--net", "--uts", "sh", "-c"]);
            command.arg(format!("hostname {name} && {KEEP}"));
            let keeper = Keeper::start(&mut command);
            network.run(&format!(
                "ip link add v{number} type veth peer name eth0 netns {} && ip link set v{number} master br0 up",
                keeper.pid()
            ));
            let directory = tempfile::tempdir().expect("a directory");
            let host = NetHost { name, directory, keeper, skein: skein.clone(), user: network.user, ahead: None };
            host.sh(&format!("ip addr add 10.77.0.{number}/24 dev eth0 && ip link set eth0 up && ip link set lo up"));
            network.hosts.push(host);
        }
        network
    }

    /// So many hosts of a cluster whose authority is the first; `None` where tests can start none.
    ///
    /// # Panics
    /// As [`Network::new`].
    pub fn cluster(hosts: usize) -> Option<Self> {
        home::can_host().then(|| {
            let network = Self::new(hosts);
            network.join();
            network
        })
    }

    /// Makes a cluster of the hosts, whose authority is the first.
    ///
    /// # Panics
    /// If that fails.
    pub fn join(&self) {
        let (first, others) = self.hosts.split_first().expect("a host");
        first.says(&["cluster", "init", "--name", "lab"]);
        for other in others {
            let token = first.says(&["cluster", "invite"]);
            other.says(&["cluster", "join", token.trim()]);
        }
    }

    /// The hosts.
    pub fn hosts(&self) -> &[NetHost] {
        &self.hosts
    }

    /// Has what runs on a host from now on see clocks of its own: those that count from its start are so many seconds
    /// ahead.
    pub fn set_ahead(&mut self, host: usize, seconds: i64) {
        self.hosts[host].ahead = Some(seconds);
    }

    /// Takes a host's cable out, or puts it in again.
    pub fn plug(&self, host: usize, plugged: bool) {
        self.run(&format!("ip link set v{} {}", host + 1, if plugged { "up" } else { "down" }));
    }

    /// Has a host's cable carry so many bits a second each way, as `tc` takes them: `200mbit`.
    pub fn limit(&self, host: usize, rate: &str) {
        let shape = format!("root tbf rate {rate} burst 128kb latency 50ms");
        self.run(&format!("tc qdisc replace dev v{} {shape}", host + 1));
        self.hosts[host].sh(&format!("tc qdisc replace dev eth0 {shape}"));
    }

    fn run(&self, script: &str) {
        let mut command = enter(&self.hub, self.user, &["--net"]);
        succeed(command.args(["sh", "-c", script]));
    }
}

impl NetHost {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A command on this host.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = enter(&self.keeper, self.user, &["--net", "--uts"]);
        if let Some(seconds) = self.ahead {
            command.args(["unshare", "--time", "--fork"]);
            command.args([format!("--monotonic={seconds}"), format!("--boottime={seconds}")]).arg("--");
        }
        command.arg(program.as_ref()).env("SKEIN_DIR", self.state());
        command
    }

    /// Runs skein on this host.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn skein(&self, arguments: &[&str]) -> Output {
        self.command(&self.skein).args(arguments).stdin(Stdio::null()).output().expect("nsenter must be installed")
    }

    /// What skein prints, if it succeeds.
    ///
    /// # Panics
    /// If it does not.
    pub fn says(&self, arguments: &[&str]) -> String {
        let output = self.skein(arguments);
        assert!(output.status.success(), "{} {arguments:?}: {output:?}", self.name);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a line of shell on this host.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&self, script: &str) {
        succeed(self.command("sh").args(["-c", script]));
    }
}

impl Drop for NetHost {
    fn drop(&mut self) {
        let _ = self.skein(&["host", "stop", "--force"]);
    }
}

/// The namespace in which the bridge is, and whether there is a user namespace around it.
fn hub() -> (Keeper, bool) {
    for user in [false, true] {
        let options: &[&str] = if user { &["--user", "--map-root-user", "--net"] } else { &["--net"] };
        let mut unshare = Command::new("unshare");
        let may = unshare.args(options).arg("true").stderr(Stdio::null()).status().expect("unshare must be installed");
        if may.success() {
            let mut unshare = Command::new("unshare");
            return (Keeper::start(unshare.args(options).args(["sh", "-c", KEEP])), user);
        }
    }
    panic!("this user may not make network namespaces, which hosts of a test are");
}

fn enter(keeper: &Keeper, user: bool, namespaces: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg("--target").arg(keeper.pid()).args(namespaces);
    if user {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.arg("--");
    command
}

fn succeed(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
