//! The command line: what can be typed, and who does it.

use crate::commands::{bench, cluster, demo, doctor, host, man, mosmigrate, mosps, mosrun, node};
use crate::output;
use crate::vmm_process::{self, VmmArgs};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Exit statuses of every command but mosrun.
pub const STATUSES: &str = "EXIT STATUS\n  0  done\n  1  failed; the message says why and what to do\n  2  wrong usage";

/// A set of computers that feels like one: programs run in small virtual machines, and move.
#[derive(Debug, Parser)]
#[command(name = "skein", version, after_help = format!("\
EXAMPLE
  skein doctor                     what does this machine offer?
  skein demo                       see it work
  mosrun make -j4                  run a program in a node
  mosps                            what runs where?

{STATUSES}"))]
pub struct Skein {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Host(host::HostArgs),
    Node(node::NodeArgs),
    Cluster(cluster::ClusterArgs),
    #[command(alias = "mosrun")]
    Run(mosrun::RunArgs),
    #[command(alias = "mosps")]
    Ps(mosps::PsArgs),
    #[command(alias = "mosmigrate")]
    Migrate(mosmigrate::MigrateArgs),
    Doctor(doctor::DoctorArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    Completions(man::CompletionsArgs),
    Man(man::ManArgs),
    #[command(hide = true)]
    Skeind(SkeindArgs),
    #[command(hide = true)]
    Vmm(VmmArgs),
    #[command(hide = true)]
    BenchGuest(bench::guest::GuestArgs),
}

/// Where the state is.
#[derive(Debug, Clone, Default, Args)]
pub struct DirArg {
    /// State directory [default: $SKEIN_DIR, else $XDG_RUNTIME_DIR/skein, else /tmp/skein-UID]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Run the host daemon; `skein host start` does it.
#[derive(Debug, Args)]
struct SkeindArgs {
    #[command(flatten)]
    dir: DirArg,
    /// Inherited descriptor to report on when ready
    #[arg(long)]
    ready_fd: Option<i32>,
}

/// `mosps` under its own name.
#[derive(Debug, Parser)]
#[command(name = "mosps", version)]
pub struct Mosps {
    #[command(flatten)]
    args: mosps::PsArgs,
}

/// `mosmigrate` under its own name.
#[derive(Debug, Parser)]
#[command(name = "mosmigrate", version)]
pub struct Mosmigrate {
    #[command(flatten)]
    args: mosmigrate::MigrateArgs,
}

/// Parses and runs `skein`.
pub fn skein(arguments: Vec<OsString>, started: Instant) -> ExitCode {
    let parsed = match Skein::try_parse_from(arguments.iter()) {
        Ok(parsed) => parsed,
        Err(error) if mosrun::is_meant(&arguments) => return mosrun::misused(&error),
        Err(error) => error.exit(),
    };
    let result = match parsed.command {
        Command::Run(args) => return mosrun::run("skein run", args, &arguments),
        Command::Host(args) => host::main(args),
        Command::Node(args) => node::main(args, started),
        Command::Cluster(args) => cluster::main(args),
        Command::Ps(args) => mosps::main(args),
        Command::Migrate(args) => mosmigrate::main(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Demo(args) => demo::main(args),
        Command::Bench(args) => bench::main(args),
        Command::BenchGuest(args) => bench::guest::main(args),
        Command::Completions(args) => man::completions(args),
        Command::Man(args) => man::pages(args),
        Command::Skeind(args) => skeind(args),
        Command::Vmm(args) => vmm_process::main(args),
    };
    output::finish("skein", result)
}

/// Parses and runs `mosps`.
pub fn mosps(arguments: Vec<OsString>) -> ExitCode {
    output::finish("mosps", mosps::main(Mosps::parse_from(arguments).args))
}

/// Parses and runs `mosmigrate`.
pub fn mosmigrate(arguments: Vec<OsString>) -> ExitCode {
    output::finish("mosmigrate", mosmigrate::main(Mosmigrate::parse_from(arguments).args))
}

/// Every command that has a manual page of its own.
pub fn all() -> Vec<clap::Command> {
    vec![Skein::command(), mosrun::Mosrun::command(), Mosps::command(), Mosmigrate::command()]
}

fn skeind(args: SkeindArgs) -> anyhow::Result<()> {
    crate::hostd::log::to_stderr();
    let state = crate::statedir::StateDir::open(args.dir.dir.as_deref())?;
    let ready = args.ready_fd.filter(|fd| *fd > 2).map(|fd| {
        // SAFETY: `client::start` passed it to this new process for this one use.
        unsafe { OwnedFd::from_raw_fd(fd) }
    });
    if let Some(ready) = &ready {
        // Nodes are started from here and must not keep the command waiting.
        nix::fcntl::fcntl(ready, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    crate::hostd::main(state, ready)
}
