//! `mosps`: the processes in the nodes of this host, and its own on others.

use crate::cli::{DirArg, STATUSES};
use crate::client::Client;
use crate::hostd::protocol::{HostReply, HostRequest};
use crate::memory::show;
use crate::nodelink;
use crate::output::{print, print_json};
use crate::statedir::StateDir;
use crate::table::{Align, Table};
use clap::Args;
use procmig::wire::control::{ProcessStatus, settle};

/// Show the processes that run in the nodes of this host, and those of this host that run on others.
#[derive(Debug, Args)]
#[command(after_help = format!("\
EXAMPLE
  mosrun sleep 100 &
  mosps

COLUMNS
  NODE   its node; of another host: HOST/NODE
  HOME   the host that it was started on, if that is another
  STATE  R runs, S waits, T is stopped
  TIME   CPU time, in the node
  PEAK   most memory that was resident
  CALLS  system calls served in the node / forwarded to the process's home
  BYTES  sent home / received from there
  EXITS  how often its threads left the virtual machine

{STATUSES}"))]
pub struct PsArgs {
    #[command(flatten)]
    dir: DirArg,
    /// Processes of all users, not only one's own
    #[arg(short, long)]
    all: bool,
    /// Processes of this job alone
    #[arg(short = 'J', long, value_name = "N")]
    job: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn main(args: PsArgs) -> anyhow::Result<()> {
    let user = nix::unistd::getuid().as_raw();
    let state = StateDir::find(args.dir.dir.as_deref())?;
    let client = state.as_ref().map(Client::connect).transpose()?.flatten();
    let mut rows = match (state, client) {
        (Some(state), Some(mut client)) => processes("mosps", &state, &mut client)?,
        _ => Vec::new(),
    };
    rows.retain(|(_, process)| args.all || process.uid == user);
    rows.retain(|(_, process)| args.job.is_none() || process.job == args.job);
    rows.sort_by_key(|(_, process)| process.pid);
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(node, process)| {
                let mut row = serde_json::json!(process);
                row["node"] = node.as_str().into();
                row
            })
            .collect();
        return print_json(&rows);
    }
    Ok(print(&table(&rows).render())?)
}

/// The processes in the nodes of this host, and those of this host on others, with where they are. What does not
/// answer is complained of in the name of the command.
pub fn processes(command: &str, state: &StateDir, client: &mut Client) -> anyhow::Result<Vec<(String, ProcessStatus)>> {
    let mut rows = Vec::new();
    for node in client.status()?.nodes {
        match nodelink::processes(state, &node.name) {
            Ok(processes) => rows.extend(processes.into_iter().map(|process| (node.name.to_string(), process))),
            Err(error) => crate::output::complain(command, &error.into()),
        }
    }
    match client.ask(&HostRequest::Elsewhere) {
        Ok(HostReply::Elsewhere(guests)) => rows.extend(guests.into_iter().map(|(host, node, mut guest)| {
            // Seen from here it is this host's own.
            guest.home = None;
            (format!("{host}/{node}"), guest)
        })),
        Ok(_) => {}
        Err(error) => crate::output::complain(command, &error),
    }
    settle(&mut rows);
    Ok(rows)
}

fn table(rows: &[(String, ProcessStatus)]) -> Table {
    let mut table = Table::new(&[
        ("PID", Align::Right),
        ("PPID", Align::Right),
        ("NODE", Align::Left),
        ("HOME", Align::Left),
        ("STATE", Align::Left),
        ("THREADS", Align::Right),
        ("TIME", Align::Right),
        ("RSS", Align::Right),
        ("PEAK", Align::Right),
        ("CALLS", Align::Right),
        ("BYTES", Align::Right),
        ("EXITS", Align::Right),
        ("COMMAND", Align::Left),
    ]);
    for (node, process) in rows {
        table.row(vec![
            process.pid.to_string(),
            process.parent.to_string(),
            printable(node),
            printable(process.home.as_deref().unwrap_or("-")),
            process.state.to_string(),
            process.threads.to_string(),
            cpu_time(process.usage.cpu_nanos / 1000),
            show(process.resident),
            show(process.usage.peak_resident),
            format!("{}/{}", process.usage.local_calls, process.usage.forwarded_calls),
            format!("{}/{}", show(process.usage.bytes_sent), show(process.usage.bytes_received)),
            process.usage.exits.to_string(),
            printable(if process.command.is_empty() { &process.name } else { &process.command }),
        ]);
    }
    table
}

/// Minutes, seconds and hundredths, as `ps` and `top` show them: `12:34.56`.
fn cpu_time(micros: u64) -> String {
    let hundredths = micros / 10_000;
    format!("{}:{:02}.{:02}", hundredths / 6000, hundredths / 100 % 60, hundredths % 100)
}

/// A process chooses its own command line; it must not command the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_shown_in_minutes() {
        assert_eq!(cpu_time(0), "0:00.00");
        assert_eq!(cpu_time(61_230_000), "1:01.23");
        assert_eq!(cpu_time(6_000_000_000), "100:00.00");
    }

    #[test]
    fn a_command_line_cannot_command_the_terminal() {
        assert_eq!(printable("a\x1b[2J\nb é"), "a?[2J?b é");
    }
}
