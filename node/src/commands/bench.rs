//! `skein bench`: how fast it is, beside native in the same run.

mod calls;
mod cases;
mod costs;
mod criu;
mod diary;
mod files;
pub mod guest;
mod memory;
mod migrate;
mod processes;
mod programs;
mod project;
mod remote;
mod report;
mod servers;
mod setting;
mod starts;
mod stats;

use crate::cli::STATUSES;
use crate::output::print;
use crate::sandbox::{Sandbox, check_interrupted};
use anyhow::{Context, bail};
use clap::Args;
use report::{Case, Report, Row};
use std::path::PathBuf;

/// Measure programs in a node beside the same programs without one.
///
/// The two are run in turn, so that what else happens on the machine hits both. The ratio is the
/// median over the pairs; its smallest and largest are in brackets. Where a program shall be as fast
/// as natively (awk, minisat, memory) values and ratio are the means of the lowest tenths of many short
/// runs, since what else happens only makes runs longer. It uses a host and a node of its own, which are
/// gone when it ends.
#[derive(Debug, Args)]
#[command(after_help = format!("EXAMPLE\n  skein bench\n  skein bench --quick awk launch\n  skein bench --json bench.json\n\n{STATUSES} (a missed goal is no failure)"))]
pub struct BenchArgs {
    /// Save the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure less, so that it takes seconds
    #[arg(long)]
    quick: bool,
    /// List what can be measured
    #[arg(long)]
    list: bool,
    /// What to measure, by name or the part of names before a dash, as migrate [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs the command.
pub fn main(args: BenchArgs) -> anyhow::Result<()> {
    if args.list {
        let width = cases::ALL.iter().map(|case| case.name.len()).max().unwrap_or_default();
        let lines: String = cases::ALL.iter().map(|case| format!("{:<width$}  {}\n", case.name, case.what)).collect();
        return Ok(print(&lines)?);
    }
    let chosen = choose(&args.names)?;
    let sandbox = Sandbox::start()?;
    let bench = setting::Bench::new(sandbox, args.quick)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut interrupted = Ok(());
    for case in chosen {
        eprintln!("measuring {}: {}", case.name, case.what);
        let outcome = (case.run)(&bench).unwrap_or_else(|error| report::Outcome::none(format!("failed: {error:#}")));
        interrupted = check_interrupted();
        if interrupted.is_err() {
            // What was measured until now is still shown.
            break;
        }
        rows.push(Row::new(case, outcome));
    }
    drop(bench);
    let report = Report { version: env!("CARGO_PKG_VERSION"), quick: args.quick, rows };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(&report.render())?;
    interrupted?;
    let failed = report.rows.iter().filter(|row| row.failed()).count();
    if failed > 0 {
        bail!("{failed} of {} could not be measured", report.rows.len());
    }
    Ok(())
}

fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Case>> {
    let is_meant = |case: &Case, name: &String| {
        case.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    if let Some(unknown) = names.iter().find(|name| !cases::ALL.iter().any(|case| is_meant(case, name))) {
        bail!("there is nothing called {unknown} to measure; see: skein bench --list");
    }
    Ok(cases::ALL.iter().filter(|case| names.is_empty() || names.iter().any(|name| is_meant(case, name))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(choose(&["awk".into(), "nonsense".into()]).is_err());
        assert!(choose(&["migr".into()]).is_err());
        assert_eq!(choose(&["awk".into()]).unwrap().len(), 1);
        assert_eq!(choose(&["memory".into(), "memory-stream".into()]).unwrap().len(), 2);
        assert_eq!(choose(&[]).unwrap().len(), cases::ALL.len());
    }
}
