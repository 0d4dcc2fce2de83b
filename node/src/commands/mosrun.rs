//! `mosrun`: runs a program in a node, and becomes its deputy.
//!
//! Each short program pays for this path, so it starts no runtime, and asks the host at most one
//! question; with `--node` it asks none.

use crate::cli::DirArg;
use crate::client::{Client, Placed};
use crate::finder::HostFinder;
use crate::hostd::protocol::{HostRequest, Place};
use crate::memory::{BadSize, Size, show};
use crate::name::NodeName;
use crate::nodelink;
use crate::output::complain;
use crate::statedir::StateDir;
use anyhow::Context;
use clap::{ArgGroup, Args, Parser};
use procmig::deputy::{self, Node, Reporter, Setup};
use procmig::wire::control::{self, Attach, Ids};
use search::SearchError;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

mod process;
mod search;
mod stats;

/// Least memory that a program is given: it could not even start with less.
const LEAST_LIMIT: u64 = 1 << 20;

/// Exit status: mosrun itself failed.
const FAILED: u8 = 125;

const AFTER_HELP: &str = "\
EXAMPLE
  mosrun make -j4
  mosrun -r other-host ./simulate
  mosrun -b xz -9 big
  mosrun --trace -o calls.txt ls /
  mosrun --stats xz -9 big
  mosrun -m 512 --max-threads 20 ./untrusted
  mosrun -J 7 ./simulate & mosmigrate -J 7 other-host
  seq 1000000 | mosrun sort -R | head

EXIT STATUS
  that of the program, or
  123  the node was lost while the program ran
  125  mosrun itself failed
  126  the program cannot be executed
  127  the program was not found";

/// Run a program in a node, as if it ran here: same terminal, files, process ID, signals and exit status.
#[derive(Debug, Parser)]
#[command(name = "mosrun", version)]
pub struct Mosrun {
    #[command(flatten)]
    args: RunArgs,
}

/// Run a program in a node, as if it ran here: same terminal, files, process ID, signals and exit status.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = AFTER_HELP, override_usage = "mosrun [OPTIONS] PROG [ARGS]...")]
#[command(group(ArgGroup::new("told").args(["trace", "stats"]).multiple(true)))]
pub struct RunArgs {
    #[command(flatten)]
    dir: DirArg,
    /// Node to run in [default: the one with the fewest processes; launched if there is none]
    #[arg(long)]
    node: Option<NodeName>,
    /// Host or node to run on: HOST, NODE or HOST/NODE, as in `skein cluster ls` and `skein node ls`
    #[arg(short, long = "run-on", value_name = "HOST|NODE", conflicts_with = "node")]
    run_on: Option<String>,
    /// Run on this host [default]
    #[arg(short = 'h', long, conflicts_with_all = ["node", "run_on"])]
    home: bool,
    /// Run on the host of the cluster that is least busy
    #[arg(short, long, conflicts_with_all = ["node", "run_on", "home"])]
    best: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Write each system call as strace does, to standard error
    #[arg(long)]
    trace: bool,
    /// When the program has ended, tell what it used, to standard error
    #[arg(long)]
    stats: bool,
    /// Tell it as JSON
    #[arg(long, requires = "stats")]
    json: bool,
    /// Write the trace, or what the program used, to a file
    #[arg(short, long, value_name = "FILE", requires = "told")]
    output: Option<PathBuf>,
    /// Most memory that the program and all that it starts may use together: a number of MiB, or a size
    /// as 2G. More in one piece is refused (ENOMEM); when all of it is used the largest process is
    /// killed, as by Linux for a control group
    #[arg(short, long, value_name = "MB", value_parser = limit_of_memory)]
    memory: Option<Size>,
    /// Most threads that the program and all that it starts may have together; more are refused (EAGAIN)
    #[arg(long, value_name = "N")]
    max_threads: Option<NonZeroU32>,
    /// Number of the job that the program and all that it starts belong to, for mosps and mosmigrate
    #[arg(short = 'J', long, value_name = "N")]
    job: Option<u32>,
    /// For how long a lost connection with the host on which the program runs is made again while the program waits;
    /// 0 to end it at once
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=86_400))]
    home_timeout: u32,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROG [ARGS]")]
    command: Vec<OsString>,
}

/// Why nothing ran, with mosrun's exit status for it.
#[derive(Debug)]
struct Failure {
    status: u8,
    error: anyhow::Error,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { status: FAILED, error }
    }
}

impl From<SearchError> for Failure {
    fn from(error: SearchError) -> Self {
        Self { status: error.status(), error: error.into() }
    }
}

/// Parses and runs `mosrun`.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    match Mosrun::try_parse_from(&arguments) {
        Ok(parsed) => run("mosrun", parsed.args, &arguments),
        Err(error) => misused(&error),
    }
}

/// Whether these are arguments of `skein` that call mosrun.
pub fn is_meant(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|first| first == "run" || first == "mosrun")
}

/// Prints help or what is wrong with the usage, which must not look like a status of the program's.
pub fn misused(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { FAILED } else { 0 })
}

/// Runs the program; returns only if it could not be started. `all` are the arguments as given.
pub fn run(called: &str, args: RunArgs, all: &[OsString]) -> ExitCode {
    let Err(Failure { status, error }) = start(args, all);
    complain(called, &error);
    ExitCode::from(status)
}

fn start(args: RunArgs, all: &[OsString]) -> Result<std::convert::Infallible, Failure> {
    if let Some(option) = mistaken_option(&args.command, all) {
        return Err(anyhow::anyhow!("there is no option {option}; see: mosrun --help").into());
    }
    let program = search::find(&args.command[0])?;
    let mut argv: Vec<Vec<u8>> = args.command.into_iter().map(OsString::into_vec).collect();
    let program = match search::interpreter(&program)? {
        None => program,
        Some(shell) => {
            // As execvp does with a text without `#!`: the shell runs it.
            argv.splice(0..1, [shell.as_bytes().to_vec(), program.as_bytes().to_vec()]);
            shell.to_owned()
        }
    };
    let output = (args.trace || args.stats).then(|| open_output(args.output)).transpose()?;
    let reporter = match &output {
        Some(output) if args.stats => {
            let to = output.try_clone().context("no descriptor is left for what the program used")?;
            Some(Reporter { to, text: stats::teller(argv.clone(), args.json) })
        }
        _ => None,
    };
    let trace = output.filter(|_| args.trace);
    let wish = match (args.node, args.run_on, args.best) {
        (Some(node), ..) => Wish::Node(node),
        (None, Some(place), _) => Wish::Place(Place::At(place)),
        (None, None, true) => Wish::Place(Place::Best),
        (None, None, false) => Wish::Home,
    };
    let state = StateDir::open(args.dir.dir.as_deref()).map_err(anyhow::Error::from)?;
    let (node, node_name) = reach(&state, wish)?;
    let finder = Some(Box::new(HostFinder::new(state)) as Box<dyn deputy::Finder>);
    let (ignored_signals, blocked_signals) = deputy::inherited_signals();
    let attach = Attach {
        version: control::VERSION,
        pid: std::process::id() as i32,
        parent: nix::unistd::getppid().as_raw(),
        program: program.into_vec(),
        argv,
        environment: process::environment(),
        ignored_signals,
        blocked_signals,
        ids: ids(),
        limits: process::limits(),
        trace: args.trace,
        report: args.stats,
        memory_limit: args.memory.map(|memory| memory.0),
        max_threads: args.max_threads.map(NonZeroU32::get),
        job: args.job,
    };
    let error =
        deputy::run(Setup { node, node_name, attach, trace, finder, home_timeout: args.home_timeout, reporter });
    Err(anyhow::Error::new(error).into())
}

/// A number alone is MiB.
fn limit_of_memory(text: &str) -> Result<Size, String> {
    let number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let text = if number { format!("{text}M") } else { text.to_owned() };
    let size: Size = text.parse().map_err(|error: BadSize| error.to_string())?;
    if size.0 < LEAST_LIMIT { Err(format!("a program needs at least {}", show(LEAST_LIMIT))) } else { Ok(size) }
}

/// An unknown option before the program would pass for the program; `--` says that it is one.
fn mistaken_option<'a>(command: &'a [OsString], all: &[OsString]) -> Option<std::path::Display<'a>> {
    let before = all.len().checked_sub(command.len() + 1).map(|at| all[at].as_os_str());
    let program = &command[0];
    let mistaken = program.as_bytes().starts_with(b"-") && before != Some(OsStr::new("--"));
    mistaken.then(|| std::path::Path::new(program).display())
}

fn open_output(output: Option<PathBuf>) -> anyhow::Result<OwnedFd> {
    let Some(path) = output else {
        let stderr = std::io::stderr().as_fd().try_clone_to_owned();
        return stderr.context("cannot write to standard error; name a file with -o");
    };
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(&path);
    Ok(file.with_context(|| format!("cannot write to {}", path.display()))?.into())
}

/// Where the user wants the program to run.
enum Wish {
    /// In this node of this host; `skeind` is not asked.
    Node(NodeName),
    /// Where `skeind` finds.
    Place(Place),
    /// On this host.
    Home,
}

/// Connects to the node that the program shall run in.
fn reach(state: &StateDir, wish: Wish) -> anyhow::Result<(Node, String)> {
    let here = |name: NodeName| anyhow::Ok((nodelink::connect(state, &name)?.into(), name.into()));
    let mut client = match wish {
        Wish::Node(name) => return here(name),
        Wish::Place(place) => match Client::connect_or_start(state)?.place(place)? {
            Placed::Here(node) => return here(node.name),
            Placed::There { host, remote } => return Ok((Node::Elsewhere(remote), host)),
        },
        Wish::Home => Client::connect_or_start(state)?,
    };
    let picked = client.node(&HostRequest::Pick)?.name;
    match nodelink::connect(state, &picked) {
        Ok(stream) => Ok((stream.into(), picked.into())),
        Err(_) => {
            // It ended just now; by the time of a second question the host has noticed.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let picked = client.node(&HostRequest::Pick)?.name;
            here(picked)
        }
    }
}

fn ids() -> Ids {
    use nix::unistd::{getegid, geteuid, getgid, getuid};
    Ids { uid: getuid().as_raw(), euid: geteuid().as_raw(), gid: getgid().as_raw(), egid: getegid().as_raw() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> (RunArgs, Vec<OsString>) {
        let all: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        (Mosrun::try_parse_from(&all).unwrap().args, all)
    }

    #[test]
    fn options_end_at_the_program() {
        let (args, all) = parse(&["mosrun", "--node", "a", "ls", "--node", "b", "--trace", "--", "-o"]);
        assert_eq!(args.command, ["ls", "--node", "b", "--trace", "--", "-o"]);
        assert_eq!(args.node, Some("a".parse().unwrap()));
        assert!(!args.trace);
        assert!(mistaken_option(&args.command, &all).is_none());
    }

    #[test]
    fn an_unknown_option_is_not_taken_for_a_program() {
        let (args, all) = parse(&["mosrun", "--nodes", "a", "ls"]);
        assert_eq!(mistaken_option(&args.command, &all).unwrap().to_string(), "--nodes");
        let (args, all) = parse(&["mosrun", "--", "--nodes"]);
        assert!(mistaken_option(&args.command, &all).is_none());
        assert_eq!(args.command, ["--nodes"]);
    }

    #[test]
    fn a_limit_of_memory_is_in_mib_unless_it_says_otherwise() {
        let memory = |text: &str| parse(&["mosrun", "-m", text, "ls"]).0.memory.unwrap().0;
        assert_eq!((memory("512"), memory("2G"), memory("2048k")), (512 << 20, 2 << 30, 2 << 20));
        for bad in ["", "0", "512k", "x", "-1"] {
            assert!(Mosrun::try_parse_from(["mosrun", "-m", bad, "ls"]).is_err(), "{bad}");
        }
        assert!(Mosrun::try_parse_from(["mosrun", "--max-threads", "0", "ls"]).is_err());
    }

    #[test]
    fn a_program_is_required_and_a_file_needs_what_goes_there() {
        assert!(Mosrun::try_parse_from(["mosrun"]).is_err());
        assert!(Mosrun::try_parse_from(["mosrun", "-o", "x", "ls"]).is_err());
        assert!(Mosrun::try_parse_from(["mosrun", "--json", "ls"]).is_err());
        assert!(Mosrun::try_parse_from(["mosrun", "--trace", "-o", "x", "ls"]).is_ok());
        assert!(Mosrun::try_parse_from(["mosrun", "--stats", "--json", "-o", "x", "ls"]).is_ok());
        assert!(Mosrun::try_parse_from(["mosrun", "--stats", "--trace", "-o", "x", "ls"]).is_ok());
    }
}
