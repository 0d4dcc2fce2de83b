//! `skein doctor`: what this machine offers, and what to do where it lacks something.
//!
//! A check is a function in [`CHECKS`] that returns rows.

mod hypervisor;
mod machine;

use crate::cli::{DirArg, STATUSES};
use crate::output::{print, print_json};
use crate::statedir::StateDir;
use anyhow::bail;
use clap::Args;
use serde::Serialize;

/// Show what this machine offers to nodes, and what to do where it lacks something.
#[derive(Debug, Args)]
#[command(after_help = format!("EXAMPLE\n  skein doctor\n  skein doctor --json | jq '.[] | select(.verdict != \"ok\")'\n\n{STATUSES}"))]
pub struct DoctorArgs {
    #[command(flatten)]
    dir: DirArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Nodes run, but worse than they could.
    Warn,
    /// Nodes cannot run.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Row {
    /// As it should be.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    /// Worse than it could be.
    pub fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    /// Nodes cannot run.
    pub fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Every check, in the order of the report.
const CHECKS: &[fn(&DirArg) -> Vec<Row>] =
    &[hypervisor::check, machine::clock, machine::huge_pages, machine::memory, machine::limits, state_directory];

/// Runs the command.
pub fn main(args: DoctorArgs) -> anyhow::Result<()> {
    let rows: Vec<Row> = CHECKS.iter().flat_map(|check| check(&args.dir)).collect();
    if args.json {
        print_json(&rows)?;
    } else {
        print(&render(&rows))?;
    }
    let failed = rows.iter().filter(|row| row.verdict == Verdict::Fail).count();
    if failed > 0 {
        bail!("nodes cannot run on this machine before {failed} of these is put right");
    }
    Ok(())
}

fn render(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let verdict = match row.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        text += &format!("{verdict:<4}  {:<width$}  {}\n", row.name, row.found);
        if let Some(advice) = &row.advice {
            text += &format!("{:>width$}  -> {advice}\n", "", width = width + 6);
        }
    }
    text
}

fn state_directory(dir: &DirArg) -> Vec<Row> {
    let name = "state directory";
    let place = StateDir::place(dir.dir.as_deref());
    vec![match StateDir::find(dir.dir.as_deref()) {
        Ok(Some(state)) => Row::ok(name, state.path().display().to_string()),
        Ok(None) => Row::ok(name, format!("{} (made when it is needed)", place.display())),
        Err(error) => Row::fail(name, procmig::chain(&error), "use it as the message says"),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_that_is_not_ok_says_what_to_do() {
        let text = render(&[Row::ok("a", "fine"), Row::warn("longer", "so-so", "do it")]);
        assert_eq!(text, "ok    a       fine\nwarn  longer  so-so\n              -> do it\n");
    }

    #[test]
    fn every_check_reports() {
        for check in CHECKS {
            for row in check(&DirArg::default()) {
                assert!(!row.found.is_empty(), "{row:?}");
                assert_eq!(row.advice.is_some(), row.verdict != Verdict::Ok, "{row:?}");
            }
        }
    }
}
