//! `skein node`: the nodes of this host.

use crate::cli::{DirArg, STATUSES};
use crate::client::Client;
use crate::commands::mosmigrate;
use crate::hostd::protocol::{HostRequest, HostStatus};
use crate::memory::{Machine, Size, show};
use crate::name::NodeName;
use crate::nodelink;
use crate::output::{print, print_json};
use crate::statedir::StateDir;
use crate::table::{Align, Table};
use anyhow::bail;
use clap::{Args, Subcommand};
use procmig::wire::control::NodeStatus;
use std::time::Instant;

/// Launch, list or stop nodes: the small virtual machines that programs run in.
#[derive(Debug, Args)]
#[command(after_help = format!("EXAMPLE\n  skein node launch --memory 4G\n  skein node ls\n  skein node stop --all\n\n{STATUSES}"))]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Launch a node; the host daemon is started if it does not run
    #[command(after_help = format!("EXAMPLE\n  skein node launch --name big --memory 16G\n\n{STATUSES}"))]
    Launch {
        #[command(flatten)]
        dir: DirArg,
        /// Name of the node [default: the first free of node-1, node-2, ...]
        #[arg(long)]
        name: Option<NodeName>,
        /// RAM of the node, used only as far as programs touch it [default: 4G, at most half of the machine's]
        #[arg(long, value_name = "SIZE")]
        memory: Option<Size>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the nodes
    #[command(after_help = format!("EXAMPLE\n  skein node ls --json\n\n{STATUSES}"))]
    Ls {
        #[command(flatten)]
        dir: DirArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop a node
    #[command(after_help = format!("EXAMPLE\n  skein node stop node-1\n  skein node stop --all --force\n\n{STATUSES}"))]
    Stop {
        #[command(flatten)]
        dir: DirArg,
        /// Which
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<NodeName>,
        /// All nodes
        #[arg(long)]
        all: bool,
        /// End programs that run in it
        #[arg(long)]
        force: bool,
    },
}

/// Runs the command, which began at `started`.
pub fn main(args: NodeArgs, started: Instant) -> anyhow::Result<()> {
    match args.command {
        NodeCommand::Launch { dir, name, memory, json } => launch(&dir, name, memory, json, started),
        NodeCommand::Ls { dir, json } => list(&dir, json),
        NodeCommand::Stop { dir, name, all: _, force } => stop(&dir, name, force),
    }
}

fn launch(
    dir: &DirArg,
    name: Option<NodeName>,
    memory: Option<Size>,
    json: bool,
    started: Instant,
) -> anyhow::Result<()> {
    // Checked here too, so that a wrong size starts no host.
    let memory = match memory {
        Some(Size(bytes)) => Some(Machine::read()?.check_node(bytes).map_err(anyhow::Error::msg)?),
        None => None,
    };
    let state = StateDir::open(dir.dir.as_deref())?;
    let node = Client::connect_or_start(&state)?.node(&HostRequest::Launch { name, memory })?;
    let millis = started.elapsed().as_secs_f64() * 1e3;
    if json {
        return print_json(&serde_json::json!({ "name": node.name, "pid": node.pid, "start_ms": millis }));
    }
    Ok(print(&format!("{}: PID {}, ready after {millis:.1} ms\n", node.name, node.pid))?)
}

/// A node, the PID of its process, and its state if it answers.
type Surveyed = (NodeName, i32, Result<NodeStatus, nodelink::LinkError>);

/// The nodes of the host; none if the host does not run.
fn survey(dir: &DirArg) -> anyhow::Result<Vec<Surveyed>> {
    let Some(state) = StateDir::find(dir.dir.as_deref())? else { return Ok(Vec::new()) };
    let Some(mut client) = Client::connect(&state)? else { return Ok(Vec::new()) };
    let HostStatus { nodes, .. } = client.status()?;
    Ok(nodes
        .into_iter()
        .map(|node| {
            let status = nodelink::status(&state, &node.name);
            (node.name, node.pid, status)
        })
        .collect())
}

fn list(dir: &DirArg, json: bool) -> anyhow::Result<()> {
    let nodes = survey(dir)?;
    if json {
        let rows: Vec<_> = nodes
            .iter()
            .map(|(name, pid, status)| match status {
                Ok(status) => {
                    let mut row = serde_json::json!(status);
                    row["state"] = "running".into();
                    row
                }
                Err(error) => {
                    let error = procmig::chain(error);
                    serde_json::json!({ "name": name, "vmm_pid": pid, "state": "silent", "error": error })
                }
            })
            .collect();
        return print_json(&rows);
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("PID", Align::Right),
        ("STATE", Align::Left),
        ("MEMORY", Align::Right),
        ("USED", Align::Right),
        ("PROCESSES", Align::Right),
        ("THREADS", Align::Right),
        ("ENTRY", Align::Left),
        ("PAGING", Align::Left),
        ("START", Align::Right),
        ("UP", Align::Right),
    ]);
    for (name, pid, status) in nodes {
        let mut row = vec![name.to_string(), pid.to_string()];
        match status {
            Ok(status) => row.extend([
                "running".into(),
                show(status.memory),
                show(status.memory_used),
                status.processes.to_string(),
                status.threads.to_string(),
                status.entry,
                status.paging,
                format!("{:.1}ms", status.start_micros as f64 / 1e3),
                format!("{}s", status.uptime_seconds),
            ]),
            Err(_) => {
                row.push("silent".into());
                row.extend(std::iter::repeat_n("-".to_owned(), 8));
            }
        }
        table.row(row);
    }
    Ok(print(&table.render())?)
}

fn stop(dir: &DirArg, name: Option<NodeName>, force: bool) -> anyhow::Result<()> {
    let state = StateDir::find(dir.dir.as_deref())?;
    let client = state.as_ref().map(Client::connect).transpose()?.flatten();
    let Some(mut client) = client else {
        bail!("the host does not run, so there is no node to stop; start it with: skein host start");
    };
    let names = match name {
        Some(name) => vec![name],
        None => client.status()?.nodes.into_iter().map(|node| node.name).collect(),
    };
    let all: Vec<NodeName> = client.status()?.nodes.into_iter().map(|node| node.name).collect();
    let others: Vec<NodeName> = all.iter().filter(|node| !names.contains(node)).cloned().collect();
    for name in names {
        if !force
            && all.contains(&name)
            && let Some(state) = &state
            && let Err(error) = mosmigrate::evacuate(state, &mut client, &name, &others)
        {
            // The host says what is to be done about the node.
            crate::output::complain("skein node stop", &error);
        }
        client.ask(&HostRequest::StopNode { name: name.clone(), force })?;
        print(&format!("{name} has stopped\n"))?;
    }
    Ok(())
}
