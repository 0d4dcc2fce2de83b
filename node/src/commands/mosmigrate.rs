//! `mosmigrate`: has a process go to another node while it runs.

use super::mosps;
use crate::cli::{DirArg, STATUSES};
use crate::client::Client;
use crate::cluster::wire::label::Label;
use crate::cluster::wire::message::Manner;
use crate::hostd::protocol::Migrate;
use crate::memory::{Size, show};
use crate::name::NodeName;
use crate::nodelink;
use crate::output::print;
use crate::statedir::StateDir;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use procmig::migration::record::{Event, Record, Round};
use procmig::migration::wire::MAX_STREAMS;
use procmig::wire::control::PostCopy;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How long a process may stand still if nobody says otherwise.
const MAX_FREEZE: Duration = Duration::from_millis(50);

/// Have a process go to another node while it runs.
///
/// The process keeps its PID, terminal, files and signals: all that touches its environment is done by its deputy,
/// which stays where it was started. If anything fails the process goes on where it is.
#[derive(Debug, Args)]
#[command(
    override_usage = "mosmigrate [OPTIONS] PID NODE|HOST|home|out\n       mosmigrate [OPTIONS] -J N NODE|HOST|home|out"
)]
#[command(after_help = format!("\
EXAMPLE
  mosrun --node a sort big.txt &
  mosmigrate $! b                  to the node b
  mosmigrate $! other-host         to a node of another host
  mosmigrate $! home               back to this host
  mosmigrate $! out                to any other node
  mosmigrate -J 7 other-host       all of `mosrun -J 7 ...`

{STATUSES}"))]
pub struct MigrateArgs {
    /// The process, as mosps and ps show it; with -J, where to
    #[arg(value_name = "PID")]
    first: String,
    /// The node or host to go to: NODE, HOST or HOST/NODE; or `home`, or `out` for any other than where it is
    #[arg(value_name = "NODE|HOST|home|out", required_unless_present = "job")]
    second: Option<String>,
    /// All processes of this job, wherever they are, in the place of one
    #[arg(short = 'J', long, value_name = "N", conflicts_with_all = ["second", "from"])]
    job: Option<u32>,
    /// The process is one of another host, which runs in a node of this one
    #[arg(long, value_name = "HOST")]
    from: Option<String>,
    /// How long the process may stand still; memory is sent beforehand until the rest fits in
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = duration)]
    max_freeze: Duration,
    /// Bytes a second that may be sent while the process runs, as 100M; at least 256K
    #[arg(long, value_name = "BYTES", value_parser = bandwidth)]
    bandwidth: Option<u64>,
    /// Most connections over which memory is sent while the process runs, 1 to 16; else as many as processors, 4 at
    /// most, and one more for each 128 MiB
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STREAMS)))]
    streams: Option<u32>,
    /// Which memory may follow when the process runs at its new place already. Until it has come the process needs
    /// both nodes: if one of them ends, so does the process
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    post_copy: Late,
    /// Print events as JSON, one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DirArg,
}

/// Values of `--post-copy`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Late {
    /// What the process writes faster than it can be sent, however slowed down
    Auto,
    /// All: the shortest standstill, and slow at first
    Always,
    /// None: it may stand still for longer than --max-freeze
    Never,
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

/// Reads how many bytes may be sent in a second: no fewer than have what a process waits for come in time.
fn bandwidth(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 256 << 10;
    let Size(bytes) = text.parse().map_err(|error| format!("{error}"))?;
    if bytes < LEAST { Err(format!("at least {}", show(LEAST))) } else { Ok(bytes) }
}

/// Runs the command.
pub fn main(args: MigrateArgs) -> anyhow::Result<()> {
    let state = StateDir::find(args.dir.dir.as_deref())?.context("no host runs here; see: skein host start")?;
    let mut client = Client::connect(&state)?.context("no host runs here; see: skein host start")?;
    let manner = Manner {
        max_freeze_micros: u64::try_from(args.max_freeze.as_micros()).unwrap_or(u64::MAX),
        bandwidth: args.bandwidth,
        post_copy: match args.post_copy {
            Late::Auto => PostCopy::Auto,
            Late::Always => PostCopy::Always,
            Late::Never => PostCopy::Never,
        },
        streams: args.streams,
    };
    let home = args.from.map(|from| from.parse::<Label>()).transpose()?;
    let mut go = |pid: i32, to: &str| {
        let mut display = Display::new(args.json, pid);
        let order = Migrate { pid, home: home.clone(), to: to.to_owned(), manner };
        let record = client.migrate(order, &mut |event| display.show(&event))?;
        display.finish(&record)
    };
    match (args.job, args.second) {
        (None, Some(to)) => {
            let pid = args.first.parse().with_context(|| format!("{} is no process ID", args.first))?;
            go(pid, &to)
        }
        (Some(job), None) => {
            let pids = of_job(&state, job)?;
            let mut stay = 0;
            for &pid in &pids {
                if let Err(error) = go(pid, &args.first) {
                    crate::output::complain("mosmigrate", &error.context(pid));
                    stay += 1;
                }
            }
            if stay > 0 {
                bail!("{stay} of {} processes of job {job} stay where they are", pids.len());
            }
            Ok(())
        }
        // The arguments' own rules.
        _ => bail!("a process or a job is to go somewhere; see: mosmigrate --help"),
    }
}

/// The processes of this host that belong to a job.
fn of_job(state: &StateDir, job: u32) -> anyhow::Result<Vec<i32>> {
    let mut client = Client::connect(state)?.context("no host runs here; see: skein host start")?;
    let all = mosps::processes("mosmigrate", state, &mut client)?;
    let its = all.into_iter().filter(|(_, process)| process.home.is_none() && process.job == Some(job));
    let pids: Vec<i32> = its.map(|(_, process)| process.pid).collect();
    if pids.is_empty() {
        bail!("no process runs of job {job}; see: mosps");
    }
    Ok(pids)
}

/// Has all processes of a node go to others, each to the one that has fewest threads, and those of other hosts home if
/// there are none; if one cannot go, it stays.
pub fn evacuate(state: &StateDir, client: &mut Client, from: &NodeName, others: &[NodeName]) -> anyhow::Result<()> {
    /// Processes may be started, or end, while others leave.
    const ROUNDS: u32 = 5;
    let max_freeze_micros = MAX_FREEZE.as_micros() as u64;
    let manner = Manner { max_freeze_micros, bandwidth: None, post_copy: PostCopy::Auto, streams: None };
    for _ in 0..ROUNDS {
        let mut processes = nodelink::processes(state, from)?;
        if others.is_empty() {
            processes.retain(|process| process.home.is_some());
        }
        if processes.is_empty() {
            break;
        }
        for process in processes {
            let to = least(state, others)?.map_or_else(|| "home".to_owned(), |node| node.to_string());
            let home = process.home.as_ref().map(|home| home.parse::<Label>()).transpose()?;
            match client.migrate(Migrate { pid: process.pid, home, to, manner }, &mut |_| {}) {
                Ok(record) => print(&format!("{} went to {}\n", process.pid, record.to))?,
                Err(error) => crate::output::complain("skein node stop", &error),
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
                Event::Round(Round { bytes, uncompressed, .. }) => {
                    *rounds += 1;
                    bar.set_message(format!("round {rounds}: {}{}", show(*bytes), compression(*bytes, *uncompressed)));
                }
                Event::Slowed(factor) => bar.set_message(format!("slowed down to 1/{factor}")),
                Event::Frozen => bar.set_message("standing still"),
                Event::Running { owed } => {
                    bar.set_length(*owed);
                    bar.set_position(0);
                    bar.set_message("it runs there; the rest follows");
                }
                Event::Owed { left, of } => bar.set_position(of - left),
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
            "{} went from {} to {}: {}{} in {} rounds{} and {}, {}standing still for {}\n",
            record.pid,
            record.from,
            record.to,
            show(record.bytes),
            compression(record.bytes, record.uncompressed),
            record.rounds.len(),
            if record.streams > 1 { format!(" over {} connections", record.streams) } else { String::new() },
            millis(record.total_micros),
            if record.slowed > 1 { format!("slowed down to 1/{} and ", record.slowed) } else { String::new() },
            millis(record.freeze_micros),
        ))?)
    }
}

/// What compression has made of so many bytes, if it has made anything of them.
fn compression(bytes: u64, uncompressed: u64) -> String {
    let ratio = uncompressed as f64 / bytes.max(1) as f64;
    if ratio < 1.005 { String::new() } else { format!(" (compressed {ratio:.2}:1)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_told_where_there_is_some() {
        assert_eq!(compression(1000, 1000), "");
        assert_eq!(compression(1000, 2500), " (compressed 2.50:1)");
        assert_eq!(compression(0, 0), "");
    }

    #[test]
    fn a_bandwidth_lets_pages_come_in_time() {
        assert_eq!((bandwidth("256K"), bandwidth("100M")), (Ok(256 << 10), Ok(100 << 20)));
        assert_eq!(bandwidth("255K"), Err("at least 256K".to_owned()));
        assert!(bandwidth("fast").is_err());
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("300us"), Ok(Duration::from_micros(300)));
        assert!(duration("50").is_err() && duration("ms").is_err() && duration("99999999999999999999s").is_err());
    }
}
