//! `skein cluster`: hosts that belong together.

mod show;

use crate::cli::{DirArg, STATUSES};
use crate::client::Client;
use crate::cluster::wire::control::{ClusterReply, ClusterRequest, ClusterStatus};
use crate::cluster::wire::label::Label;
use crate::cluster::wire::level::CpuLevel;
use crate::hostd::protocol::{HostReply, HostRequest};
use crate::memory::Size;
use crate::output::{print, print_json};
use crate::statedir::StateDir;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{self, Read};
use std::net::SocketAddr;

/// Make a cluster of hosts, invite others into it, remove them, and see how they are.
#[derive(Debug, Args)]
#[command(after_help = format!("\
EXAMPLE
  skein cluster init --name lab         on the first host
  skein cluster invite                  there; it prints a token
  skein cluster join TOKEN              on the second host
  skein cluster ls                      on either

{STATUSES}"))]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Make a cluster, with this host as its first member and its authority
    #[command(after_help = format!("\
EXAMPLE
  skein cluster init --name lab
  skein cluster init --name lab --listen 10.0.0.1:4774

This host alone can invite and remove others from then on.

{STATUSES}"))]
    Init {
        #[command(flatten)]
        dir: DirArg,
        /// Name of the cluster [default: skein]
        #[arg(long)]
        name: Option<Label>,
        #[command(flatten)]
        host: HostArg,
    },
    /// Print a token that lets one host join
    #[command(after_help = format!("\
EXAMPLE
  skein cluster invite --minutes 5

The token works once. Whoever has it can join, so pass it on as you would a password.

{STATUSES}"))]
    Invite {
        #[command(flatten)]
        dir: DirArg,
        /// For how many minutes it works, at most 1440
        #[arg(long, default_value_t = 15)]
        minutes: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Become a member of the cluster that a token is for
    #[command(after_help = format!("\
EXAMPLE
  skein cluster join skein1-A2xhYg...
  skein cluster join 10.0.0.1 skein1-A2xhYg...
  ssh first skein cluster invite | skein cluster join -

HOST is needed only where the addresses in the token do not lead to the host that printed it.

{STATUSES}"))]
    #[command(override_usage = "skein cluster join [OPTIONS] [HOST] TOKEN")]
    Join {
        #[command(flatten)]
        dir: DirArg,
        /// Where the host that invites is; may be left out
        #[arg(value_name = "HOST")]
        first: String,
        /// The token that it has printed; - reads it from standard input
        #[arg(value_name = "TOKEN")]
        second: Option<String>,
        #[command(flatten)]
        host: HostArg,
    },
    /// Shut a host out: no member speaks with it any more
    #[command(alias = "rm", after_help = format!("\
EXAMPLE
  skein cluster remove beta
  skein cluster remove 3f2a91

Run it on the host that made the cluster. Members that cannot be reached now learn of it when they
meet another that knows.

{STATUSES}"))]
    Remove {
        #[command(flatten)]
        dir: DirArg,
        /// Its name, its ID, or the first digits of its ID
        host: String,
    },
    /// Leave the cluster and forget its keys
    #[command(after_help = format!("EXAMPLE\n  skein cluster leave\n\n{STATUSES}"))]
    Leave {
        #[command(flatten)]
        dir: DirArg,
        /// Even from the host that made the cluster: nobody can invite or remove then
        #[arg(long)]
        force: bool,
    },
    /// List the members, and ask each how it is
    #[command(alias = "list", after_help = format!("EXAMPLE\n  skein cluster ls --json\n\n{STATUSES}"))]
    Ls {
        #[command(flatten)]
        dir: DirArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what this host knows of its cluster
    #[command(after_help = format!("EXAMPLE\n  skein cluster status --json\n\n{STATUSES}"))]
    Status {
        #[command(flatten)]
        dir: DirArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure the connection with a host: round trip, and throughput both ways
    #[command(after_help = format!("\
EXAMPLE
  skein cluster check beta
  skein cluster check beta --size 1G --json

It is measured as programs that run there and migrations use it: one encrypted stream.

{STATUSES}"))]
    Check {
        #[command(flatten)]
        dir: DirArg,
        /// Its name, its ID, or the first digits of its ID
        host: String,
        /// How much is sent each way, at most 4G
        #[arg(long, value_name = "SIZE", default_value = "256M")]
        size: Size,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show or set the CPU features that all hosts should have
    #[command(name = "cpu-level", after_help = format!("\
EXAMPLE
  skein cluster cpu-level
  skein cluster cpu-level x86-64-v3
  skein cluster cpu-level avx2,bmi2,aes

A program may move only to hosts that have the features it saw when it started. It is set on the host
that made the cluster; a new cluster has the level of that host.

{STATUSES}"))]
    CpuLevel {
        #[command(flatten)]
        dir: DirArg,
        /// x86-64-v1 to x86-64-v4, or features as /proc/cpuinfo names them
        level: Option<CpuLevel>,
        /// Print JSON
        #[arg(long, conflicts_with = "level")]
        json: bool,
    },
}

/// How this host is known.
#[derive(Debug, Args)]
struct HostArg {
    /// Name of this host in the cluster [default: the machine's, with a number if another has it]
    #[arg(long, value_name = "NAME")]
    host_name: Option<Label>,
    /// Where this host listens for others [default: port 4774 of all its addresses]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

/// Runs the command.
pub fn main(args: ClusterArgs) -> anyhow::Result<()> {
    match args.command {
        ClusterCommand::Init { dir, name, host } => {
            let request = ClusterRequest::Init { cluster: name, host: host.host_name, listen: host.listen };
            let status = status(ask(&dir, request, true)?)?;
            Ok(print(&format!("{}invite another host with: skein cluster invite\n", show::welcome(&status)))?)
        }
        ClusterCommand::Invite { dir, minutes, json } => invite(&dir, minutes, json),
        ClusterCommand::Join { dir, first, second, host } => {
            let (at, token) = match second {
                Some(token) => (Some(first), token),
                None => (None, first),
            };
            // On the command line other users of this machine can see it.
            let token = if token == "-" { read_token()? } else { token };
            let request = ClusterRequest::Join { token, at, host: host.host_name, listen: host.listen };
            let status = status(ask(&dir, request, true)?)?;
            Ok(print(&show::welcome(&status))?)
        }
        ClusterCommand::Remove { dir, host } => {
            let (host, told, untold) = told(ask(&dir, ClusterRequest::Remove { host }, true)?)?;
            Ok(print(&format!("{host} has been removed{}\n", show::told(&told, &untold)))?)
        }
        ClusterCommand::Leave { dir, force } => {
            let (host, _, untold) = told(ask(&dir, ClusterRequest::Leave { force }, true)?)?;
            let mut text = "this host has left the cluster and has forgotten its keys\n".to_owned();
            if let Some(authority) = untold.first() {
                text += &format!("{authority} could not be told; run there: skein cluster remove {host}\n");
            }
            Ok(print(&text)?)
        }
        ClusterCommand::Ls { dir, json } => match ask(&dir, ClusterRequest::Members, false)? {
            ClusterReply::Members(members) if json => print_json(&show::members_json(&members)),
            ClusterReply::Members(members) => Ok(print(&show::members(&members))?),
            other => bail!("the host answered another question: {other:?}"),
        },
        ClusterCommand::Status { dir, json } => {
            let status = status(ask(&dir, ClusterRequest::Status, false)?)?;
            if json { print_json(&show::status_json(&status)) } else { Ok(print(&show::status(&status))?) }
        }
        ClusterCommand::Check { dir, host, size, json } => {
            let request = ClusterRequest::Measure { host, bytes: size.0 };
            match ask(&dir, request, false)? {
                ClusterReply::Measured(measured) if json => print_json(&show::measured_json(&measured)),
                ClusterReply::Measured(measured) => Ok(print(&show::measured(&measured))?),
                other => bail!("the host answered another question: {other:?}"),
            }
        }
        ClusterCommand::CpuLevel { dir, level, json } => cpu_level(&dir, level, json),
    }
}

/// Asks `skeind`, which is started first where `start` says so, or where this host is a member: then it should run.
fn ask(dir: &DirArg, request: ClusterRequest, start: bool) -> anyhow::Result<ClusterReply> {
    let mut client = if start {
        Client::connect_or_start(&StateDir::open(dir.dir.as_deref())?)?
    } else {
        let state = StateDir::find(dir.dir.as_deref())?;
        match state.as_ref().map(Client::connect).transpose()?.flatten() {
            Some(client) => client,
            None => bail!("the host does not run; start it with: skein host start"),
        }
    };
    match client.ask(&HostRequest::Cluster(request))? {
        HostReply::Cluster(reply) => Ok(reply),
        other => bail!("the host answered another question: {other:?}"),
    }
}

fn status(reply: ClusterReply) -> anyhow::Result<Box<ClusterStatus>> {
    match reply {
        ClusterReply::Status(status) => Ok(status),
        other => bail!("the host answered another question: {other:?}"),
    }
}

fn told(reply: ClusterReply) -> anyhow::Result<(Label, Vec<Label>, Vec<Label>)> {
    match reply {
        ClusterReply::Told { host, told, untold } => Ok((host, told, untold)),
        other => bail!("the host answered another question: {other:?}"),
    }
}

fn invite(dir: &DirArg, minutes: u32, json: bool) -> anyhow::Result<()> {
    let token = match ask(dir, ClusterRequest::Invite { minutes }, true)? {
        ClusterReply::Token(token) => token,
        other => bail!("the host answered another question: {other:?}"),
    };
    if json {
        return print_json(&json!({ "token": token, "minutes": minutes }));
    }
    // The token alone on standard output, for scripts; what to do with it is for people.
    eprintln!("on the host that is to join, within {minutes} minutes: skein cluster join TOKEN");
    Ok(print(&format!("{token}\n"))?)
}

/// A token from standard input.
fn read_token() -> anyhow::Result<String> {
    let mut token = String::new();
    // Much longer than any.
    io::stdin().take(4096).read_to_string(&mut token).context("the token cannot be read")?;
    Ok(token)
}

fn cpu_level(dir: &DirArg, level: Option<CpuLevel>, json: bool) -> anyhow::Result<()> {
    if let Some(level) = level {
        let (_, told_now, untold) = told(ask(dir, ClusterRequest::SetCpuLevel(level.clone()), true)?)?;
        return Ok(print(&format!("the cluster's CPU level is {level}{}\n", show::told(&told_now, &untold)))?);
    }
    let status = status(ask(dir, ClusterRequest::Status, false)?)?;
    if json {
        return print_json(&json!({
            "cpu_level": status.cpu_level.to_string(),
            "features": status.cpu_level.features(),
            "lacks": status.lacks,
        }));
    }
    let mut text = format!("{}\n", status.cpu_level);
    if !status.lacks.is_empty() {
        text += &format!("this host lacks: {}\n", status.lacks.join(" "));
    }
    Ok(print(&text)?)
}
