//! `mosmigrate`: has a process go to another node while it runs.

use crate::cli::{DirArg, STATUSES};
use crate::client::Client;
use crate::memory::{Size, show};
use crate::name::NodeName;
use crate::nodelink;
use crate::output::print;
use crate::statedir::StateDir;
use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use procmig::migration::record::{Event, Record, Round};
use procmig::wire::control::Migrate;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How long a process may stand still if nobody says otherwise.
const MAX_FREEZE: Duration = Duration::from_millis(50);

/// Have a process go to another node while it runs.
///
/// The process keeps its PID, terminal, files and signals: all that touches its environment is done by its deputy,
/// which stays where it was started. If anything fails the process goes on where it is.
#[derive(Debug, Args)]
#[command(after_help = format!("\
EXAMPLE
  mosrun --node a sort big.txt &
  mosmigrate $! b                  to the node b
  mosmigrate $! out                to any other node

{STATUSES}"))]
pub struct MigrateArgs {
    /// The process, as mosps and ps show it
    pid: i32,
    /// The node to go to; or `home`, or `out` for any other than where it is
    #[arg(value_name = "NODE|home|out")]
    to: String,
    /// How long the process may stand still; memory is sent beforehand until the rest fits in
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = duration)]
    max_freeze: Duration,
    /// Bytes a second that may be sent while the process runs, as 100M
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<Size>,
    /// Print events as JSON, one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DirArg,
}

/// Reads a time as users write it: `50ms`, `2s`, `300us`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let micros = match unit {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        _ => return Err("a time is a number and us, ms or s, as 50ms".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a time is a number and us, ms or s, as 50ms".to_owned())?;
    number.checked_mul(micros).map(Duration::from_micros).ok_or_else(|| "this time is too long".to_owned())
}

/// Runs the command.
pub fn main(args: MigrateArgs) -> anyhow::Result<()> {
    let state = StateDir::find(args.dir.dir.as_deref())?.context("no host runs here; see: skein host start")?;
    let mut client = Client::connect(&state)?.context("no host runs here; see: skein host start")?;
    let nodes: Vec<NodeName> = client.status()?.nodes.into_iter().map(|node| node.name).collect();
    let mut from = None;
    for node in &nodes {
        if nodelink::processes(&state, node)?.iter().any(|process| process.pid == args.pid) {
            from = Some(node.clone());
        }
    }
    let Some(from) = from else { bail!("no node of this host runs process {}; see: mosps", args.pid) };
    let to = target(&state, &nodes, &from, &args.to)?;
    let order = Migrate {
        max_freeze_micros: u64::try_from(args.max_freeze.as_micros()).unwrap_or(u64::MAX),
        bandwidth: args.bandwidth.map(|Size(bytes)| bytes.max(1)),
        ..order(&state, args.pid, &to)
    };
    let mut display = Display::new(args.json, args.pid);
    let record = nodelink::migrate(&state, &from, &order, &mut |event| display.show(&event))?;
    display.finish(&record)
}

/// Has all processes of a node go to others, each to the one that has fewest threads; if there are no others, or one
/// cannot go, it stays.
pub fn evacuate(state: &StateDir, from: &NodeName, others: &[NodeName]) -> anyhow::Result<()> {
    /// Processes may be started, or end, while others leave.
    const ROUNDS: u32 = 5;
    for _ in 0..ROUNDS {
        let processes = nodelink::processes(state, from)?;
        if processes.is_empty() || others.is_empty() {
            break;
        }
        for process in processes {
            let Some(to) = least(state, others)? else { return Ok(()) };
            let order = order(state, process.pid, &to);
            match nodelink::migrate(state, from, &order, &mut |_| {}) {
                Ok(_) => print(&format!("{} went to {to}\n", process.pid))?,
                Err(error) => crate::output::complain("skein node stop", &error.into()),
            }
        }
    }
    Ok(())
}

/// The node with fewest threads.
fn least(state: &StateDir, nodes: &[NodeName]) -> anyhow::Result<Option<NodeName>> {
    let mut known = Vec::new();
    for node in nodes {
        known.push((nodelink::status(state, node)?.threads, node.clone()));
    }
    known.sort();
    Ok(known.into_iter().next().map(|(_, node)| node))
}

/// The order to send a process to a node of this host, with what it is if nobody says otherwise.
pub fn order(state: &StateDir, pid: i32, to: &NodeName) -> Migrate {
    Migrate {
        pid,
        socket: state.node_socket(to).as_os_str().as_bytes().to_vec(),
        node: to.to_string(),
        max_freeze_micros: MAX_FREEZE.as_micros() as u64,
        bandwidth: None,
    }
}

/// The node that is meant.
fn target(state: &StateDir, nodes: &[NodeName], from: &NodeName, wanted: &str) -> anyhow::Result<NodeName> {
    match wanted {
        // All nodes that this command reaches are at home.
        "home" => bail!("it is at home already, at the node {from}"),
        "out" => {
            let others: Vec<NodeName> = nodes.iter().filter(|node| *node != from).cloned().collect();
            least(state, &others)?.context("there is no other node; see: skein node launch")
        }
        name => {
            let name: NodeName = name.parse()?;
            if name == *from {
                bail!("it is at the node {name} already");
            }
            if !nodes.contains(&name) {
                bail!("there is no node {name} on this host; see: skein node ls");
            }
            Ok(name)
        }
    }
}

/// How a migration is shown while it goes on.
enum Display {
    Json,
    Plain { rounds: u32 },
    Bar { bar: ProgressBar, rounds: u32 },
}

impl Display {
    fn new(json: bool, pid: i32) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Plain { rounds: 0 };
        }
        let bar = ProgressBar::new(0);
        let style =
            ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(format!("{pid}"));
        bar.set_message("preparing");
        Self::Bar { bar, rounds: 0 }
    }

    fn show(&mut self, event: &Event) {
        match self {
            Self::Json => {
                if let Ok(line) = serde_json::to_string(event) {
                    let _ = writeln!(std::io::stdout(), "{line}");
                }
            }
            Self::Plain { rounds } => {
                if let Event::Round(_) = event {
                    *rounds += 1;
                }
            }
            Self::Bar { bar, rounds } => match event {
                Event::Prepared { bytes } => bar.set_length(*bytes),
                Event::Progress { round, done, of } => {
                    bar.set_length(*of);
                    bar.set_position(*done);
                    bar.set_message(format!("round {round}"));
                }
                Event::Round(Round { bytes, .. }) => {
                    *rounds += 1;
                    bar.set_message(format!("round {rounds}: {}", show(*bytes)));
                }
                Event::Slowed(factor) => bar.set_message(format!("slowed down to 1/{factor}")),
                Event::Frozen => bar.set_message("standing still"),
            },
        }
    }

    fn finish(self, record: &Record) -> anyhow::Result<()> {
        if let Self::Bar { bar, .. } = &self {
            bar.finish_and_clear();
        }
        if matches!(self, Self::Json) {
            return Ok(print(&format!("{}\n", serde_json::to_string(record)?))?);
        }
        let millis = |micros: u64| format!("{:.1} ms", micros as f64 / 1000.0);
        Ok(print(&format!(
            "{} went from {} to {}: {} in {} rounds and {}, {}standing still for {}\n",
            record.pid,
            record.from,
            record.to,
            show(record.bytes),
            record.rounds.len(),
            millis(record.total_micros),
            if record.slowed > 1 { format!("slowed down to 1/{} and ", record.slowed) } else { String::new() },
            millis(record.freeze_micros),
        ))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("300us"), Ok(Duration::from_micros(300)));
        assert!(duration("50").is_err() && duration("ms").is_err() && duration("99999999999999999999s").is_err());
    }
}
