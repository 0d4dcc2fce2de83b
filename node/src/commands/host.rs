//! `skein host`: the host daemon.

use crate::cli::{DirArg, STATUSES};
use crate::client::{self, Client};
use crate::hostd::protocol::HostRequest;
use crate::output::{print, print_json};
use crate::statedir::StateDir;
use anyhow::bail;
use clap::{Args, Subcommand};

/// Start, stop or show the host daemon of this machine.
#[derive(Debug, Args)]
#[command(after_help = format!("EXAMPLE\n  skein host start\n  skein host status --json\n\n{STATUSES}"))]
pub struct HostArgs {
    #[command(subcommand)]
    command: HostCommand,
}

#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Start the host daemon; if it runs already, say so
    #[command(after_help = format!("EXAMPLE\n  skein host start\n\nAs a service: skein host start --foreground\n\n{STATUSES}"))]
    Start {
        #[command(flatten)]
        dir: DirArg,
        /// Stay in the foreground and log to standard error
        #[arg(long)]
        foreground: bool,
    },
    /// Stop all nodes and the host daemon
    #[command(after_help = format!("EXAMPLE\n  skein host stop --force\n\n{STATUSES}"))]
    Stop {
        #[command(flatten)]
        dir: DirArg,
        /// End programs that run in the nodes
        #[arg(long)]
        force: bool,
    },
    /// Show whether the host daemon runs, and its nodes (exit status 1 if it does not)
    #[command(after_help = format!("EXAMPLE\n  skein host status --json\n\n{STATUSES}"))]
    Status {
        #[command(flatten)]
        dir: DirArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn main(args: HostArgs) -> anyhow::Result<()> {
    match args.command {
        HostCommand::Start { dir, foreground } => start(&dir, foreground),
        HostCommand::Stop { dir, force } => stop(&dir, force),
        HostCommand::Status { dir, json } => status(&dir, json),
    }
}

fn start(dir: &DirArg, foreground: bool) -> anyhow::Result<()> {
    let state = StateDir::open(dir.dir.as_deref())?;
    if foreground {
        crate::hostd::log::to_stderr();
        return crate::hostd::main(state, None);
    }
    let (mut client, started) = client::start(&state)?;
    let status = client.status()?;
    let verb = if started { "started" } else { "runs already" };
    Ok(print(&format!("the host {verb}: skeind has PID {}, its state is in {}\n", status.pid, state.path().display()))?)
}

fn stop(dir: &DirArg, force: bool) -> anyhow::Result<()> {
    let not_running = || print("the host does not run\n");
    let Some(state) = StateDir::find(dir.dir.as_deref())? else {
        return Ok(not_running()?);
    };
    let mut client = match Client::connect(&state)? {
        Some(client) => client,
        None if state.nodes()?.is_empty() => return Ok(not_running()?),
        // skeind has died and left nodes: a new one picks them up, and stops them.
        None => client::start(&state)?.0,
    };
    client.ask(&HostRequest::Stop { force })?;
    if !client::await_stop(&state) {
        bail!("the host agreed to stop but still runs; its log is {}", state.host_log().display());
    }
    Ok(print("the host has stopped\n")?)
}

fn status(dir: &DirArg, json: bool) -> anyhow::Result<()> {
    let state = StateDir::find(dir.dir.as_deref())?;
    let client = state.as_ref().map(Client::connect).transpose()?.flatten();
    let (Some(state), Some(mut client)) = (state, client) else {
        if json {
            print_json(&serde_json::json!({ "running": false }))?;
        }
        bail!("the host does not run; start it with: skein host start");
    };
    let status = client.status()?;
    if json {
        return print_json(&serde_json::json!({
            "running": true,
            "pid": status.pid,
            "uptime_seconds": status.uptime_seconds,
            "directory": state.path(),
            "nodes": status.nodes,
        }));
    }
    let mut text = format!(
        "the host runs: skeind has PID {}, up {} s, its state is in {}\n",
        status.pid,
        status.uptime_seconds,
        state.path().display()
    );
    for node in &status.nodes {
        text += &format!("node {}: PID {}\n", node.name, node.pid);
    }
    Ok(print(&text)?)
}
