//! What benchmarks run in, and how they run things there.

use super::costs::{Costs, Counts};
use super::guest::{GuestArgs, operations};
use super::report::Outcome;
use super::stats::pairs;
use crate::measured;
use crate::name::NodeName;
use crate::sandbox::{Sandbox, check_interrupted};
use anyhow::{Context, bail};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What benchmarks run in.
#[derive(Debug)]
pub struct Bench {
    /// The host.
    pub sandbox: Sandbox,
    /// The node.
    pub node: NodeName,
    /// The node's VMM process.
    pid: i32,
    quick: bool,
}

impl Bench {
    /// Launches the node.
    pub fn new(sandbox: Sandbox, quick: bool) -> anyhow::Result<Self> {
        let node: NodeName = "bench".parse()?;
        let (entry, _) = sandbox.launch(node.clone(), None)?;
        Ok(Self { sandbox, node, pid: entry.pid, quick })
    }

    /// CPU seconds that the node and all programs that have ended here have taken.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        let node = nix::time::ClockId::pid_cpu_clock_id(Pid::from_raw(self.pid))?.now()?;
        let ended = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let ended = [ended.user_time(), ended.system_time()].map(|time| time.num_microseconds() as f64 / 1e6);
        Ok(Duration::from(node).as_secs_f64() + ended.iter().sum::<f64>())
    }

    /// One for a full run, another for a quick one.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Runs a program natively and in the node in turn, and takes what `measure` makes of each.
    pub fn both(
        &self,
        count: usize,
        program: &[String],
        measure: impl Fn(Command) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Vec<(f64, f64)>> {
        self.both_at(&["--node", self.node.as_str()], count, program, measure)
    }

    /// The same where `mosrun` is told to run it.
    pub fn both_at(
        &self,
        place: &[&str],
        count: usize,
        program: &[String],
        measure: impl Fn(Command) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Vec<(f64, f64)>> {
        let native = || {
            let mut command = Command::new(&program[0]);
            command.args(&program[1..]);
            measure(command)
        };
        let there = || {
            let mut command = self.sandbox.command("mosrun")?;
            command.args(place).args(program);
            measure(command)
        };
        pairs(count, native, there)
    }

    /// A loop of `skein bench-guest` as a program.
    pub fn loop_of(&self, args: &GuestArgs) -> anyhow::Result<Vec<String>> {
        let binary = std::env::current_exe()?;
        let binary = binary.to_str().context("the path of this binary is not UTF-8")?;
        Ok([binary.to_owned(), "bench-guest".to_owned()].into_iter().chain(args.as_arguments()).collect())
    }

    /// Nanoseconds that a loop prints when it runs in the node.
    pub fn guest_nanos(&self, args: &GuestArgs) -> anyhow::Result<f64> {
        printed(self.sandbox.mosrun(&self.node, &self.loop_of(args)?)?)
    }

    /// Runs a loop natively and in the node in turn; values are in units of so many nanoseconds. What an
    /// operation of it is made of in the node is remarked, after what `remark` says of the typical
    /// nanoseconds of both sides.
    pub fn beside(
        &self,
        count: usize,
        unit: f64,
        args: &GuestArgs,
        remark: impl Fn(f64, f64) -> Option<String>,
    ) -> anyhow::Result<Outcome> {
        let program = self.loop_of(args)?;
        let told = self.told();
        // Beside the loop, since the machine is faster at one time than at another.
        let exits = RefCell::new(Vec::new());
        let bare_exit = || {
            let nanos = measured::bare_exit_nanos()?;
            exits.borrow_mut().push(nanos);
            anyhow::Ok(())
        };
        let native = || {
            bare_exit()?;
            let mut command = Command::new(&program[0]);
            command.args(&program[1..]);
            Ok(printed(command)? / unit)
        };
        let mut runs = Vec::new();
        let node = || {
            bare_exit()?;
            let value = printed(self.telling(&program)?)? / unit;
            runs.push((value, Counts::read(&told)?));
            Ok(value)
        };
        let outcome = Outcome::of(&pairs(count, native, node)?);
        // What another run is made of may be something else: calls need no exit only while a CPU is free.
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let typical = runs.get(runs.len() / 2).map(|run| run.1);
        let (Some(native), Some(node), Some(counts)) = (outcome.peer, outcome.skein, typical) else {
            bail!("nothing was measured");
        };
        let (native, node) = (native.median * unit, node.median * unit);
        // Without what it takes to start.
        let start = self.counts(&self.loop_of(&GuestArgs { count: 1, ..args.clone() })?, &[0])?;
        let counts = counts.less(&start).over((operations(args.count) - operations(1)) as f64);
        let bound = Costs::measure(self, exits.take())?.bound(&counts, native, node);
        Ok(outcome.with_note(remark(native, node).map_or(String::new(), |remark| remark + "; ") + &bound))
    }

    /// Where a run in the node tells what it used.
    fn told(&self) -> PathBuf {
        self.sandbox.directory().join("told")
    }

    /// Runs a program in the node, and tells what it used.
    fn telling(&self, program: &[String]) -> anyhow::Result<Command> {
        let mut command = self.sandbox.command("mosrun")?;
        command.args(["--stats", "--json", "-o"]).arg(self.told()).args(["--node", self.node.as_str()]).args(program);
        Ok(command)
    }

    /// What a run of a program in the node is made of.
    pub fn counts(&self, program: &[String], statuses: &[i32]) -> anyhow::Result<Counts> {
        seconds(self.telling(program)?, statuses)?;
        Counts::read(&self.told())
    }
}

/// Seconds that a command takes; its status must be one of `statuses`.
pub fn seconds(mut command: Command, statuses: &[i32]) -> anyhow::Result<f64> {
    check_interrupted()?;
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let took = started.elapsed().as_secs_f64();
    if !output.status.code().is_some_and(|code| statuses.contains(&code)) {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(took)
}

/// The number that a command prints.
pub fn printed(mut command: Command) -> anyhow::Result<f64> {
    check_interrupted()?;
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
