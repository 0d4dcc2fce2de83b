//! Starts of nodes and of programs.

use super::report::Outcome;
use super::setting::{Bench, seconds};
use crate::commands::demo::resident;
use crate::name::NodeName;
use anyhow::Context;

/// A node's start.
pub fn launch(bench: &Bench) -> anyhow::Result<Outcome> {
    let name: NodeName = "launched".parse()?;
    let values: Vec<f64> = (0..bench.pick(15, 5))
        .map(|_| {
            let mut command = bench.sandbox.command("skein")?;
            command.args(["node", "launch", "--name", name.as_str()]);
            let millis = seconds(command, &[0])? * 1e3;
            bench.sandbox.stop(name.clone())?;
            Ok(millis)
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Outcome::alone(&values))
}

/// A node's memory.
pub fn node_rss(bench: &Bench) -> anyhow::Result<Outcome> {
    let name: NodeName = "resident".parse()?;
    let values: Vec<f64> = (0..bench.pick(5, 2))
        .map(|_| {
            let (node, _) = bench.sandbox.launch(name.clone(), None)?;
            let bytes = resident(node.pid).context("the node's memory cannot be read")?;
            bench.sandbox.stop(name.clone())?;
            Ok(bytes as f64 / f64::from(1 << 20))
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Outcome::alone(&values))
}

/// The start of a small program.
pub fn mosrun_true(bench: &Bench) -> anyhow::Result<Outcome> {
    let program = ["/bin/true".to_owned()];
    let millis = |command| Ok(seconds(command, &[0])? * 1e3);
    Ok(Outcome::of(&bench.both(bench.pick(31, 7), &program, millis)?))
}
