//! The host and the node that the tests of one process share, and how to reach them.

use crate::mover::Mover;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a command that manages hosts and nodes may take.
const MANAGE: Duration = Duration::from_secs(30);

/// What there is to run guest programs with.
pub enum Home {
    /// A host and a node run.
    Ready(Box<Setup>),
    /// There is no `/dev/kvm` on this machine.
    Absent,
    /// They should run and do not; a sentence that says why.
    Broken(String),
}

/// How to run something under `mosrun`.
#[derive(Debug)]
pub struct Setup {
    /// The words before the program's.
    pub runner: Vec<OsString>,
    /// The whole environment that both sides of a comparison run in.
    pub environment: Vec<(OsString, OsString)>,
    /// The host, unless another runner stands in for `mosrun`.
    pub host: Option<Host>,
    /// The host on which the programs run, if that is another.
    pub other: Option<Host>,
    /// Who has all processes migrate, if somebody shall.
    pub mover: Option<Mutex<Mover>>,
}

/// A host daemon with one node, state and commands in a directory of its own.
#[derive(Debug)]
pub struct Host {
    directory: TempDir,
    skein: PathBuf,
    variables: Vec<(String, String)>,
}

static SHARED: OnceLock<Home> = OnceLock::new();

/// The home that all tests of this process share, started by the first that asks.
pub fn shared() -> &'static Home {
    SHARED.get_or_init(|| {
        if let Some(runner) = env::var_os("SKEIN_TEST_RUNNER") {
            let runner = runner.to_string_lossy().split_whitespace().map(OsString::from).collect();
            let environment = environment(None);
            return Home::Ready(Box::new(Setup { runner, environment, host: None, other: None, mover: None }));
        }
        if !Path::new("/dev/kvm").exists() {
            return Home::Absent;
        }
        if env::var_os("SKEIN_TEST_REMOTE").is_some() {
            // SAFETY: `stop_shared` is a plain function that lives as long as the program.
            unsafe { libc::atexit(stop_shared) };
            return elsewhere();
        }
        let host = match Host::start() {
            Ok(host) => host,
            Err(why) => return Home::Broken(why),
        };
        // SAFETY: `stop_shared` is a plain function that lives as long as the program.
        unsafe { libc::atexit(stop_shared) };
        let runner = vec![host.command_path("mosrun").into_os_string()];
        let environment = environment(Some(&host.directory()));
        let mover = match env::var("SKEIN_TEST_MOVER").map(|seed| seed.parse()) {
            Err(_) => None,
            Ok(Err(_)) => return Home::Broken("SKEIN_TEST_MOVER is not a number".to_owned()),
            Ok(Ok(seed)) => match host.skein(&["node", "launch", "--name", "other"]) {
                Ok(_) => Some(Mutex::new(Mover::start(vec![host.socket("node-1"), host.socket("other")], seed))),
                Err(why) => return Home::Broken(why),
            },
        };
        Home::Ready(Box::new(Setup { runner, environment, host: Some(host), other: None, mover }))
    })
}

/// Whether tests can start hosts: there is a `/dev/kvm`, and no other runner stands in for `mosrun`.
pub fn can_host() -> bool {
    let can = std::env::var_os("SKEIN_TEST_RUNNER").is_none() && Path::new("/dev/kvm").exists();
    if !can {
        eprintln!("not run: no hosts here");
    }
    can
}

/// Two hosts of a cluster on loopback, and what runs programs of the first on the second.
pub fn elsewhere() -> Home {
    if !Path::new("/dev/kvm").exists() {
        return Home::Absent;
    }
    let start = || -> Result<Setup, String> {
        let (home, other) = (Host::prepare()?, Host::prepare()?);
        let listen = ["--listen", "127.0.0.1:0"];
        home.skein(&[&["cluster", "init", "--name", "lab", "--host-name", "home"][..], &listen].concat())?;
        let token = home.skein(&["cluster", "invite"])?;
        other.skein(&[&["cluster", "join", token.trim(), "--host-name", "other"][..], &listen].concat())?;
        let runner = vec![home.command_path("mosrun").into_os_string(), "-r".into(), "other".into()];
        let environment = environment(Some(&home.directory()));
        Ok(Setup { runner, environment, host: Some(home), other: Some(other), mover: None })
    };
    start().map_or_else(Home::Broken, |setup| Home::Ready(Box::new(setup)))
}

extern "C" fn stop_shared() {
    if let Some(Home::Ready(setup)) = SHARED.get()
        && let Setup { host: Some(host), other, mover, .. } = &**setup
    {
        if let Some(mover) = mover {
            let mut mover = mover.lock().unwrap_or_else(PoisonError::into_inner);
            mover.stop();
            eprintln!("{}", mover.tally());
        }
        for host in [Some(host), other.as_ref()].into_iter().flatten() {
            host.stop();
            // The `TempDir` is in a static, which is never dropped.
            let _ = fs::remove_dir_all(host.directory.path());
        }
    }
}

/// What every program of a test sees: fixed, but for what it must be told.
fn environment(state: Option<&Path>) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = [
        ("HOME", "/nonexistent"),
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("TERM", "dumb"),
        ("TZ", "UTC"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    if let Some(state) = state {
        variables.push(("SKEIN_DIR".into(), state.into()));
    }
    variables
}

impl Host {
    /// Starts a host and launches a node on it.
    ///
    /// # Errors
    /// A sentence with the failed command's own words.
    pub fn start() -> Result<Self, String> {
        let host = Self::prepare()?;
        host.skein(&["host", "start"])?;
        if let Err(why) = host.skein(&["node", "launch"]) {
            host.stop();
            return Err(why);
        }
        Ok(host)
    }

    /// The last lines of its nodes' logs.
    pub fn log(&self) -> String {
        const LINES: usize = 8;
        let logs = fs::read_dir(self.directory().join("nodes")).into_iter().flatten().flatten();
        let logs = logs.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "log"));
        let texts = logs.filter_map(|path| fs::read_to_string(path).ok());
        texts
            .map(|text| {
                let mut last: Vec<&str> = text.lines().rev().take(LINES).collect();
                last.reverse();
                last.join("\n")
            })
            .collect()
    }

    /// A host of which nothing runs yet.
    ///
    /// # Errors
    /// A sentence.
    pub fn prepare() -> Result<Self, String> {
        let skein = skein_binary()?;
        let directory = tempfile::Builder::new().prefix("skein-test").tempdir().map_err(|error| error.to_string())?;
        for name in ["skein", "mosrun", "mosps", "mosmigrate"] {
            symlink(&skein, directory.path().join(name)).map_err(|error| format!("cannot link {name}: {error}"))?;
        }
        Ok(Self { directory, skein, variables: Vec::new() })
    }

    /// Has the commands that are run from now on see a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(other, _)| other != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The state directory.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The `skein` binary under one of its names.
    pub fn command_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command of this host under one of `skein`'s names.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.command_path(name));
        command.env_clear().envs(environment(Some(&self.directory())));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `skein ARGUMENTS` and returns what it printed.
    ///
    /// # Errors
    /// A sentence if it fails or takes too long.
    pub fn skein(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command("skein");
        command.args(arguments);
        managed(&format!("skein {}", arguments.join(" ")), command)
    }

    /// Runs `mosps ARGUMENTS` and returns what it printed.
    ///
    /// # Errors
    /// A sentence if it fails or takes too long.
    pub fn mosps(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command("mosps");
        command.args(arguments);
        managed("mosps", command)
    }

    /// The processes that belong to this host, those that run the `skein` binary with its state
    /// directory, and their command lines.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let state = format!("SKEIN_DIR={}", self.directory().display());
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir("/proc") else { return found };
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let path = entry.path();
            let is_skein = fs::read_link(path.join("exe")).is_ok_and(|exe| exe == self.skein);
            let has_state = fs::read(path.join("environ"))
                .is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|word| word == state.as_bytes()));
            if is_skein && has_state {
                let line = fs::read(path.join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()));
            }
        }
        found
    }

    /// The socket of a node.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.directory().join("nodes").join(format!("{node}.sock"))
    }

    /// The log of the host daemon.
    pub fn daemon_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory().join("skeind.log")).unwrap_or_default()).into_owned()
    }

    /// The log of a node.
    pub fn node_log(&self, name: &str) -> String {
        let path = self.directory().join("nodes").join(format!("{name}.log"));
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The VMM processes of this host's nodes: those that hold `/dev/kvm` or a VM open.
    pub fn vmms(&self) -> Vec<i32> {
        let is_vmm = |pid: &i32| {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            descriptors.flatten().any(|descriptor| {
                fs::read_link(descriptor.path())
                    .is_ok_and(|target| matches!(target.to_str(), Some("/dev/kvm" | "anon_inode:kvm-vm")))
            })
        };
        self.processes().into_iter().map(|(pid, _)| pid).filter(is_vmm).collect()
    }

    /// Stops everything that this host runs, by force where asking does not help.
    pub fn stop(&self) {
        let _ = self.skein(&["host", "stop"]);
        for (pid, _) in self.processes() {
            // A process that ended in between is what was wanted.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a command that may start daemons: its output goes to files, since a daemon that keeps a
/// pipe open would keep us waiting.
fn managed(what: &str, mut command: Command) -> Result<String, String> {
    let failed = |error: io::Error| format!("{what}: {error}");
    let place = tempfile::tempdir().map_err(failed)?;
    let (out, err) = (place.path().join("out"), place.path().join("err"));
    command.stdin(Stdio::null());
    command.stdout(File::create(&out).map_err(failed)?).stderr(File::create(&err).map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if started.elapsed() > MANAGE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("`{what}` did not end within {} seconds", MANAGE.as_secs()));
        }
        thread::sleep(Duration::from_millis(2));
    };
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    if status.success() {
        Ok(read(&out))
    } else {
        Err(format!("`{what}` ended with {status}: {}{}", read(&err), read(&out)))
    }
}

/// The `skein` binary of the profile that the tests were built with, built now if it is not up to
/// date. `SKEIN_BIN` names another.
///
/// # Errors
/// A sentence.
pub fn skein_binary() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("SKEIN_BIN") {
        return fs::canonicalize(&path).map_err(|error| format!("SKEIN_BIN={}: {error}", Path::new(&path).display()));
    }
    static ONE_BUILD: Mutex<()> = Mutex::new(());
    let _guard = ONE_BUILD.lock().unwrap_or_else(PoisonError::into_inner);
    let test = env::current_exe().map_err(|error| format!("cannot find the test program: {error}"))?;
    // target/PROFILE/deps/test-program
    let directory = test.ancestors().nth(2).ok_or("the test program is in no target directory")?;
    let skein = directory.join("skein");
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => return Err("the test program is in no target directory".to_owned()),
    };
    // Cargo sets CARGO for what it runs; a test program started by hand takes what is there.
    if let (Some(cargo), Some(target)) = (env::var_os("CARGO"), directory.parent()) {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "node", "--bin", "skein", "--profile", profile]);
        build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        build.arg("--target-dir").arg(target);
        let output = build.stdin(Stdio::null()).output().map_err(|error| format!("cannot run cargo: {error}"))?;
        if !output.status.success() {
            return Err(format!("skein does not build: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    fs::canonicalize(&skein).map_err(|error| {
        format!("there is no {} ({error}): build it with `cargo build --package node`", skein.display())
    })
}
