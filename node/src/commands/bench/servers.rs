//! Servers in a node, asked from outside.

use super::costs::{Costs, Counts};
use super::report::Outcome;
use super::setting::{Bench, seconds};
use super::stats::pairs;
use crate::commands::demo::installed;
use crate::sandbox::check_interrupted;
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to be there, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs; ended when dropped.
struct Server {
    child: Child,
    /// What asks it to end.
    end: Signal,
}

impl Server {
    fn start(mut command: Command, end: Signal, socket: &Path) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut server = Self { child, end };
        let started = Instant::now();
        while UnixStream::connect(socket).is_err() {
            check_interrupted()?;
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended: {status}");
            }
            if started.elapsed() > PATIENCE {
                bail!("the server does not listen");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        // A child that was not waited for keeps its ID.
        kill(Pid::from_raw(self.child.id().cast_signed()), self.end)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            if asked.elapsed() > PATIENCE {
                bail!("the server does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.stop().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Something to ask a server for.
struct Setup<'a> {
    server: &'a [String],
    end: Signal,
    socket: PathBuf,
    client: &'a dyn Fn() -> anyhow::Result<Command>,
    /// Requests that the client makes.
    requests: f64,
    /// Units in a second.
    unit: f64,
}

/// Asks a server natively and one in the node in turn; the values are what a request takes.
fn asked(bench: &Bench, count: usize, setup: &Setup<'_>) -> anyhow::Result<Outcome> {
    let told = bench.sandbox.directory().join("told-server");
    let once = |command: Command| {
        let mut server = Server::start(command, setup.end, &setup.socket)?;
        let took = seconds((setup.client)()?, &[0])?;
        server.stop()?;
        anyhow::Ok(took / setup.requests * setup.unit)
    };
    let native = || {
        let mut command = Command::new(&setup.server[0]);
        command.args(&setup.server[1..]);
        once(command)
    };
    let counts = Cell::new(None);
    let node = || {
        let mut command = bench.sandbox.command("mosrun")?;
        command.args(["--stats", "--json", "-o"]).arg(&told).args(["--node", bench.node.as_str()]);
        command.args(setup.server);
        let took = once(command)?;
        counts.set(Some(Counts::read(&told)?.over(setup.requests)));
        Ok(took)
    };
    let outcome = Outcome::of(&pairs(count, native, node)?);
    let (Some(native), Some(node)) = (outcome.peer, outcome.skein) else { bail!("nothing was measured") };
    let counts = counts.get().context("nothing was counted")?;
    let nanos = 1e9 / setup.unit;
    let bound = Costs::measure(bench, Vec::new())?.bound(&counts, native.median * nanos, node.median * nanos);
    Ok(outcome.with_note(format!("a request, with the server's start: {bound}")))
}

/// Sets and gets by eight clients.
pub fn redis(bench: &Bench) -> anyhow::Result<Outcome> {
    if !["redis-server", "redis-benchmark"].iter().all(|program| installed(program)) {
        return Ok(Outcome::none("not installed; apt install redis-server".to_owned()));
    }
    let directory = bench.sandbox.directory();
    let socket = directory.join("redis");
    let (at, place) = (socket.display().to_string(), directory.display().to_string());
    let server = ["redis-server", "--port", "0", "--unixsocket", &at, "--save", "", "--dir", &place];
    let requests = bench.pick(5000, 500);
    let client = || {
        let mut command = Command::new("redis-benchmark");
        command.args(["-s", &at, "-c", "8", "-q", "-t", "set,get", "-n", &requests.to_string()]);
        Ok(command)
    };
    let setup = Setup {
        server: &server.map(str::to_owned),
        end: Signal::SIGTERM,
        socket,
        client: &client,
        requests: f64::from(requests) * 2.0,
        unit: 1e6,
    };
    asked(bench, bench.pick(5, 1), &setup)
}

/// The newest PostgreSQL's programs, which Debian keeps out of `PATH`.
fn postgresql() -> Option<PathBuf> {
    let has_all = |bin: &PathBuf| ["initdb", "postgres", "pgbench"].iter().all(|name| bin.join(name).is_file());
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let bins = versions.map(|version| version.path().join("bin")).filter(has_all);
    bins.max_by_key(|bin| {
        let version = bin.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        version.and_then(|version| version.parse::<u32>().ok())
    })
}

/// Has another user measure a case, who has a host and a node of his own: files are at hand only where the
/// program's user is the node's.
fn as_user(bench: &Bench, user: &str, case: &str) -> anyhow::Result<Outcome> {
    let Some(user) = User::from_name(user)?.filter(|_| installed("setpriv")) else {
        return Ok(Outcome::none(format!("not as root without a user {user} and setpriv")));
    };
    let place = tempfile::Builder::new().prefix("skein-user-").tempdir()?;
    chown(place.path(), Some(user.uid), Some(user.gid))?;
    let told = place.path().join("told");
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &gid, "--init-groups"]);
    // For `/dev/kvm`, which may be root's alone.
    command.args(["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]);
    command.arg(std::env::current_exe()?).arg("bench").args(bench.pick(None, Some("--quick")));
    command.arg("--json").arg(&told).arg(case).current_dir(place.path());
    command.env_remove("SKEIN_DIR").env_remove("XDG_RUNTIME_DIR");
    seconds(command, &[0]).with_context(|| format!("{case} as {}", user.name))?;
    let mut report: serde_json::Value = serde_json::from_slice(&std::fs::read(&told)?)?;
    Ok(serde_json::from_value(report["rows"][0].take())?)
}

/// Transactions of four clients.
pub fn pgbench(bench: &Bench) -> anyhow::Result<Outcome> {
    let Some(bin) = postgresql() else {
        return Ok(Outcome::none("not installed; apt install postgresql".to_owned()));
    };
    // It refuses to run as root.
    if geteuid().is_root() {
        return as_user(bench, "postgres", "pgbench");
    }
    let place = tempfile::Builder::new().prefix("skein-pg-").tempdir()?;
    let (at, data) = (place.path().display().to_string(), place.path().join("data").display().to_string());
    let argv = |program: &str, args: &[&str]| {
        let program = bin.join(program).display().to_string();
        let args = args.iter().map(|arg| (*arg).to_owned());
        [program].into_iter().chain(args).collect::<Vec<String>>()
    };
    let command = |argv: Vec<String>| {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).current_dir(place.path());
        command
    };
    let made = ["-D", &data, "-A", "trust", "-N", "-U", "bench", "--locale", "C", "-E", "UTF8"];
    seconds(command(argv("initdb", &made)), &[0]).context("initdb")?;
    let server =
        argv("postgres", &["-D", &data, "-k", &at, "-p", "5432", "-c", "listen_addresses=", "-c", "fsync=off"]);
    let socket = place.path().join(".s.PGSQL.5432");
    let ask = |args: &[&str]| {
        command(argv("pgbench", &[&["-h", &at, "-p", "5432", "-U", "bench"], args, &["postgres"]].concat()))
    };
    // The socket is there a moment before it answers.
    let until_done = |args: &[&str]| {
        let started = Instant::now();
        while let Err(error) = seconds(ask(args), &[0]) {
            check_interrupted()?;
            if started.elapsed() > PATIENCE {
                return Err(error.context("pgbench"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    let mut first = Server::start(command(server.clone()), Signal::SIGINT, &socket)?;
    until_done(&["-i", "-q"])?;
    first.stop()?;
    drop(first);
    let transactions = bench.pick(100u32, 10);
    let client = || {
        until_done(&["-n", "-t", "1"])?;
        Ok(ask(&["-n", "-c", "4", "-j", "2", "-t", &transactions.to_string()]))
    };
    let setup = Setup {
        server: &server,
        end: Signal::SIGINT,
        socket,
        client: &client,
        requests: f64::from(transactions) * 4.0,
        unit: 1e3,
    };
    asked(bench, bench.pick(5, 1), &setup)
}
