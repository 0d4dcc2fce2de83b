//! What can be measured.

use super::guest::{REPLY, REQUEST, timed};
use super::report::{Case, Goal, Outcome};
use super::stats::{Spread, pairs};
use crate::commands::demo::{awk_iterations, awk_loop, installed, resident};
use crate::measured;
use crate::name::NodeName;
use crate::sandbox::{Sandbox, check_interrupted};
use anyhow::{Context, bail};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Every benchmark, in the order of the report.
pub const ALL: &[Case] = &[
    Case {
        name: "awk",
        what: "the MOSIX FAQ's awk loop, against native",
        unit: "s",
        goal: Goal::Floor(1.01),
        run: awk,
    },
    Case {
        name: "minisat",
        what: "minisat on a random 3-SAT instance, against native",
        unit: "s",
        goal: Goal::Floor(1.01),
        run: minisat,
    },
    Case {
        name: "memory-random",
        what: "random access to 1 GiB, against native",
        unit: "ns",
        goal: Goal::Floor(1.03),
        run: memory_random,
    },
    Case {
        name: "memory-stream",
        what: "streaming access to 1 GiB (8 bytes), against native",
        unit: "ns",
        goal: Goal::Floor(1.03),
        run: memory_stream,
    },
    Case {
        name: "local-call",
        what: "a call served in the node (sigprocmask), against the bare exit",
        unit: "ns",
        goal: Goal::Ratio(1.3),
        run: local_call,
    },
    Case {
        name: "forwarded-call",
        what: "a forwarded call (getppid), against the bare exit and a socket's round trip",
        unit: "ns",
        goal: Goal::Ratio(1.3),
        run: forwarded_call,
    },
    Case {
        name: "launch",
        what: "skein node launch, command to ready",
        unit: "ms",
        goal: Goal::Value(25.0),
        run: launch,
    },
    Case {
        name: "node-rss",
        what: "resident memory of a node before any process",
        unit: "MiB",
        goal: Goal::Value(8.0),
        run: node_rss,
    },
    Case {
        name: "mosrun-true",
        what: "mosrun /bin/true on a running node, beside native",
        unit: "ms",
        goal: Goal::Value(40.0),
        run: mosrun_true,
    },
];

/// What benchmarks run in.
#[derive(Debug)]
pub struct Bench {
    sandbox: Sandbox,
    node: NodeName,
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
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        let node = nix::time::ClockId::pid_cpu_clock_id(Pid::from_raw(self.pid))?.now()?;
        let ended = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let ended = [ended.user_time(), ended.system_time()].map(|time| time.num_microseconds() as f64 / 1e6);
        Ok(Duration::from(node).as_secs_f64() + ended.iter().sum::<f64>())
    }

    /// Measures a CPU-bound program by the clock, without what `idle`, the same program with nothing to do,
    /// takes on the same side: how long a program takes to start is another row's matter. How much CPU time
    /// it takes, which other programs of the machine disturb less, is remarked.
    fn cpu_bound(
        &self,
        count: usize,
        program: &[String],
        idle: &[String],
        statuses: &[i32],
    ) -> anyhow::Result<Outcome> {
        let cpu = RefCell::new(Vec::new());
        let starts = Outcome::of(&self.both(count, idle, |command| seconds(command, statuses))?);
        let (Some(native), Some(node)) = (starts.peer, starts.skein) else { bail!("nothing was measured") };
        let walls = self.both(count, program, |command| {
            let before = self.cpu_seconds()?;
            let is_native = command.get_program() == program[0].as_str();
            let wall = seconds(command, statuses)?;
            cpu.borrow_mut().push((is_native, self.cpu_seconds()? - before));
            Ok(wall - if is_native { native.tenth } else { node.tenth })
        })?;
        let times =
            |of: bool| cpu.borrow().iter().filter(|taken| taken.0 == of).map(|taken| taken.1).collect::<Vec<_>>();
        let cpu = Spread::of(times(false)).zip(Spread::of(times(true))).map(|(node, native)| node.tenth / native.tenth);
        let starts = format!("less the starts of {:.0} and {:.0} ms", native.tenth * 1e3, node.tenth * 1e3);
        let cpu = cpu.map_or(String::new(), |ratio| format!("; CPU time, with them: {ratio:.3}"));
        Ok(Outcome::of(&walls).with_note(starts + &cpu))
    }

    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Runs a program natively and in the node in turn, and takes what `measure` makes of each.
    fn both(
        &self,
        count: usize,
        program: &[String],
        measure: impl Fn(Command) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Vec<(f64, f64)>> {
        let native = || {
            let mut command = Command::new(&program[0]);
            command.args(&program[1..]);
            measure(command)
        };
        pairs(count, native, || measure(self.sandbox.mosrun(&self.node, program)?))
    }

    /// A loop of `skein bench-guest`.
    fn loop_of(&self, which: &str, options: &[(&str, u64)]) -> anyhow::Result<Vec<String>> {
        let binary = std::env::current_exe()?;
        let binary = binary.to_str().context("the path of this binary is not UTF-8")?;
        let mut program = vec![binary.to_owned(), "bench-guest".to_owned(), which.to_owned()];
        program.extend(options.iter().flat_map(|(name, value)| [format!("--{name}"), value.to_string()]));
        Ok(program)
    }

    /// Nanoseconds that a loop of `skein bench-guest` prints when it runs in the node.
    fn guest_nanos(&self, which: &str, options: &[(&str, u64)]) -> anyhow::Result<f64> {
        printed(self.sandbox.mosrun(&self.node, &self.loop_of(which, options)?)?)
    }
}

/// Seconds that a command takes; its status must be one of `statuses`.
fn seconds(mut command: Command, statuses: &[i32]) -> anyhow::Result<f64> {
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
fn printed(mut command: Command) -> anyhow::Result<f64> {
    check_interrupted()?;
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn awk(bench: &Bench) -> anyhow::Result<Outcome> {
    // Many short runs: the longer one is, the less likely is it that nothing disturbs it.
    let program = awk_loop(awk_iterations(0.2)?);
    bench.cpu_bound(bench.pick(121, 5), &program, &awk_loop(0), &[0])
}

fn minisat(bench: &Bench) -> anyhow::Result<Outcome> {
    if !installed("minisat") {
        return Ok(Outcome::none("not installed; apt install minisat".to_owned()));
    }
    let solve = |name: &str, instance: String| {
        let path = bench.sandbox.directory().join(name);
        std::fs::write(&path, instance)?;
        anyhow::Ok(vec!["minisat".to_owned(), "-verb=0".to_owned(), path.display().to_string()])
    };
    let program = solve("instance.cnf", random_3sat(220, 20))?;
    let idle = solve("trivial.cnf", "p cnf 1 1\n1 0\n".to_owned())?;
    // 10 is satisfiable, 20 is not.
    bench.cpu_bound(bench.pick(91, 5), &program, &idle, &[10, 20])
}

/// A random 3-SAT instance in DIMACS form, near the ratio of clauses to variables where they are hardest.
fn random_3sat(variables: u64, seed: u64) -> String {
    let clauses = variables * 426 / 100;
    let mut state = seed;
    let mut next = |below: u64| {
        // xorshift64* (Vigna 2016)
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    };
    let mut text = format!("p cnf {variables} {clauses}\n");
    for _ in 0..clauses {
        let mut clause: Vec<u64> = Vec::new();
        while clause.len() < 3 {
            let variable = next(variables) + 1;
            if !clause.contains(&variable) {
                clause.push(variable);
            }
        }
        for variable in clause {
            let sign = if next(2) == 0 { "" } else { "-" };
            text += &format!("{sign}{variable} ");
        }
        text += "0\n";
    }
    text
}

fn memory_random(bench: &Bench) -> anyhow::Result<Outcome> {
    let options = [("bytes", bench.pick(1 << 30, 1 << 28)), ("count", bench.pick(5_000_000, 2_000_000))];
    Ok(Outcome::of(&bench.both(bench.pick(11, 3), &bench.loop_of("memory-random", &options)?, printed)?))
}

fn memory_stream(bench: &Bench) -> anyhow::Result<Outcome> {
    let options = [("bytes", bench.pick(1 << 30, 1 << 28)), ("count", bench.pick(10, 5))];
    Ok(Outcome::of(&bench.both(bench.pick(11, 3), &bench.loop_of("memory-stream", &options)?, printed)?))
}

fn local_call(bench: &Bench) -> anyhow::Result<Outcome> {
    let count = bench.pick(20_000, 5_000);
    let pairs =
        pairs(bench.pick(11, 3), measured::bare_exit_nanos, || bench.guest_nanos("sigprocmask", &[("count", count)]))?;
    Ok(Outcome::of(&pairs))
}

fn forwarded_call(bench: &Bench) -> anyhow::Result<Outcome> {
    let count = bench.pick(10_000, 3_000);
    let parts = || Ok(measured::bare_exit_nanos()? + round_trip(bench, count)?);
    let pairs = pairs(bench.pick(11, 3), parts, || bench.guest_nanos("getppid", &[("count", count)]))?;
    // The scheduler places the two processes of either side as it likes.
    Ok(Outcome::of(&pairs).with_note("nothing is pinned to a CPU".to_owned()))
}

/// Nanoseconds of a round trip over a Unix socket to another process, with messages as long as a
/// forwarded call's.
fn round_trip(bench: &Bench, count: u64) -> anyhow::Result<f64> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut peer = bench.sandbox.command("skein")?;
    let mut peer = peer.args(["bench-guest", "echo"]).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    let mut reply = [0; REPLY];
    let mut once = || (&ours).write_all(&[0; REQUEST]).and_then(|()| (&ours).read_exact(&mut reply));
    let nanos = timed(count, &mut once)?;
    drop(ours);
    peer.wait()?;
    Ok(nanos)
}

fn launch(bench: &Bench) -> anyhow::Result<Outcome> {
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

fn node_rss(bench: &Bench) -> anyhow::Result<Outcome> {
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

fn mosrun_true(bench: &Bench) -> anyhow::Result<Outcome> {
    let program = ["/bin/true".to_owned()];
    let millis = |command| Ok(seconds(command, &[0])? * 1e3);
    Ok(Outcome::of(&bench.both(bench.pick(31, 7), &program, millis)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_the_same_for_the_same_seed() {
        let text = random_3sat(50, 1);
        assert_eq!(text, random_3sat(50, 1));
        assert_ne!(text, random_3sat(50, 2));
        assert!(text.starts_with("p cnf 50 213\n"));
        assert_eq!(text.lines().count(), 214);
        for clause in text.lines().skip(1) {
            let literals: Vec<i64> = clause.split(' ').map(|word| word.parse().unwrap()).collect();
            assert_eq!((literals.len(), literals[3]), (4, 0));
            assert!(literals[..3].iter().all(|literal| (1..=50).contains(&literal.abs())));
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = ALL.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
