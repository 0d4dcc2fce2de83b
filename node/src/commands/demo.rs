//! `skein demo`: programs in a node beside the same programs without one.

use crate::cli::STATUSES;
use crate::memory::show;
use crate::name::NodeName;
use crate::output::print;
use crate::sandbox::{Sandbox, check_interrupted};
use anyhow::{Context, bail};
use clap::Args;
use std::process::{Command, Output};
use std::time::Instant;

/// Run a few programs natively and in a node beside it, and compare.
///
/// It uses a host and a node of its own, which are gone when it ends.
#[derive(Debug, Args)]
#[command(after_help = format!("EXAMPLE\n  skein demo\n\n{STATUSES} (also if a program's output differs)"))]
pub struct DemoArgs {}

/// How long the loop should run natively, in seconds.
const LOOP_SECONDS: f64 = 2.0;
/// Inner loop of the MOSIX FAQ's awk program.
const INNER: u32 = 10_000;
/// Characters that are shown of a line.
const LINE: usize = 60;
const PIPELINE: &str = "seq 1 200000 | sort -r | sed -n 's/7/seven/gp' | cksum; echo \"status $?\"";
const SYSTEM_PYTHON: &str = "/usr/bin/python3";
const PYTHON: &str = "\
import collections, sys, zlib
words = [str(n * n) for n in range(200000)]
digits = collections.Counter(''.join(words))
print(sorted(digits.items()), zlib.crc32(''.join(words).encode()))
print('to standard error', file=sys.stderr)
";
const PERL: &str = "\
my %count; for my $n (0 .. 200000) { $count{$_}++ for split //, $n * $n }
print join(' ', map { \"$_=$count{$_}\" } sort keys %count), \"\\n\";
print STDERR \"to standard error\\n\";
";

/// A program of the demonstration.
#[derive(Debug)]
struct Program {
    what: &'static str,
    command: Vec<String>,
}

/// Runs the command.
pub fn main(_: DemoArgs) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let node: NodeName = "demo".parse()?;
    let programs = programs()?;
    let sandbox = Sandbox::start()?;
    print("Each program runs here as usual, and then by mosrun in a node: a small virtual machine.\n")?;
    let (entry, millis) = sandbox.launch(node.clone(), None)?;
    let resident = resident(entry.pid).map_or_else(String::new, |bytes| format!(", {} resident", show(bytes)));
    print(&format!("Node {node} started in {millis:.1} ms (PID {}{resident}).\n", entry.pid))?;
    let places = [format!("on {host}, natively"), format!("on {host}, in node {node}")];
    let width = places.iter().map(|place| place.chars().count()).max().unwrap_or(0);
    let mut different = 0;
    for program in &programs {
        print(&format!("\n{}\n  $ {}\n", program.what, shell_line(&program.command)))?;
        let mut native = Command::new(&program.command[0]);
        native.args(&program.command[1..]);
        let (native, native_seconds) = run(native)?;
        print(&format!("  {:<width$}  {native_seconds:7.3} s  {}\n", places[0], summary(&native)))?;
        let (moved, moved_seconds) = run(sandbox.mosrun(&node, &program.command)?)?;
        print(&format!("  {:<width$}  {moved_seconds:7.3} s  {}\n", places[1], summary(&moved)))?;
        let same = native == moved;
        different += u32::from(!same);
        let verdict = if same { "same output and status" } else { "OUTPUT OR STATUS DIFFERS" };
        let mut text = format!("  -> {verdict}; {:.2} times the time\n", moved_seconds / native_seconds);
        if !same {
            text += &format!("  standard error in the node: {}\n", shorten(&moved.stderr));
        }
        print(&text)?;
    }
    print(
        "\nA node computes about as fast as its host; starting programs and system calls cost more, since each\n\
         leaves the node. What one costs here: skein doctor. To run a program yourself: mosrun PROGRAM\n",
    )?;
    drop(sandbox);
    if different > 0 {
        bail!("{different} of {} programs did not do in the node what they do without", programs.len());
    }
    Ok(())
}

fn programs() -> anyhow::Result<Vec<Program>> {
    let outer = awk_iterations(LOOP_SECONDS)?;
    let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
    // By its path: what is called python3 elsewhere may be a script that looks for a version of it.
    let script = match std::path::Path::new(SYSTEM_PYTHON).exists() {
        true => Program { what: "a Python script", command: text(&[SYSTEM_PYTHON, "-c", PYTHON]) },
        false => Program { what: "a Perl script", command: text(&["perl", "-e", PERL]) },
    };
    Ok(vec![
        Program { what: "the MOSIX FAQ's awk loop", command: awk_loop(outer) },
        Program { what: "a shell pipeline", command: text(&["sh", "-c", PIPELINE]) },
        script,
    ])
}

/// The MOSIX FAQ's loop with `outer` turns; it prints how far it came.
pub fn awk_loop(outer: u32) -> Vec<String> {
    let program = format!("BEGIN {{for(i=0;i<{outer};i++)for(j=0;j<{INNER};j++); print i, j}}");
    vec!["awk".to_owned(), program]
}

/// How many outer turns make the loop run for about `seconds` here.
pub fn awk_iterations(seconds: f64) -> anyhow::Result<u32> {
    const TRIAL: u32 = 500;
    let command = awk_loop(TRIAL);
    let mut trial = Command::new(&command[0]);
    trial.args(&command[1..]);
    let (_, took) = run(trial)?;
    Ok((f64::from(TRIAL) * seconds / took.max(1e-3)).clamp(1.0, 1e6) as u32)
}

/// Whether a program is in `PATH`.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Runs a program to its end; also says how many seconds it took.
fn run(mut command: Command) -> anyhow::Result<(Output, f64)> {
    check_interrupted()?;
    let started = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    check_interrupted()?;
    Ok((output, started.elapsed().as_secs_f64()))
}

/// Bytes of a process that are resident.
pub fn resident(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn summary(output: &Output) -> String {
    let status = match output.status.code() {
        Some(code) => format!("status {code}"),
        None => output.status.to_string(),
    };
    format!("{status}: {}", shorten(&output.stdout))
}

/// A command as one would type it, in one line of bearable length.
fn shell_line(command: &[String]) -> String {
    let quoted =
        command.iter().map(|word| match word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) {
            true => word.clone(),
            false => format!("'{word}'"),
        });
    let line = quoted.collect::<Vec<_>>().join(" ");
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    shorten(line.as_bytes())
}

fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line: String = text.lines().next().unwrap_or("").chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(LINE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_is_shown_short() {
        assert_eq!(shorten(b"one\ntwo"), "one");
        assert_eq!(shorten("é".repeat(70).as_bytes()).chars().count(), LINE + 1);
        assert_eq!(shorten(b""), "");
    }

    #[test]
    fn a_command_is_shown_in_one_line() {
        let words = ["awk", "BEGIN {\n  print 1\n}"].map(str::to_owned);
        assert_eq!(shell_line(&words), "awk 'BEGIN { print 1 }'");
    }
}
