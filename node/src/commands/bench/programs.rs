//! Programs as they are.

use super::costs::Costs;
use super::project;
use super::report::Outcome;
use super::setting::{Bench, seconds};
use super::stats::Spread;
use crate::commands::demo::{awk_iterations, awk_loop, installed};
use anyhow::bail;
use std::cell::RefCell;
use std::path::Path;
use std::process::Command;

/// How `mosrun` is told where to run.
type Where<'a> = &'a [&'a str];

/// Measures a CPU-bound program by the clock, without what `idle`, the same program with nothing to do,
/// takes on the same side: how long a program takes to start is another row's matter. How much CPU time
/// it takes, which other programs of the machine disturb less, is remarked.
fn cpu_bound(
    bench: &Bench,
    place: Where<'_>,
    count: usize,
    program: &[String],
    idle: &[String],
    statuses: &[i32],
) -> anyhow::Result<Outcome> {
    let cpu = RefCell::new(Vec::new());
    let starts = RefCell::new([Vec::new(), Vec::new()]);
    let there = |program: &[String]| {
        let mut command = bench.sandbox.command("mosrun")?;
        command.args(place).args(program);
        anyhow::Ok(command)
    };
    let walls = bench.both_at(place, count, program, |command| {
        let is_native = command.get_program() == program[0].as_str();
        let idle = if is_native {
            let mut command = Command::new(&idle[0]);
            command.args(&idle[1..]);
            command
        } else {
            there(idle)?
        };
        // Just before, so that both are made in the same state of the machine.
        let start = seconds(idle, statuses)?;
        starts.borrow_mut()[usize::from(is_native)].push(start);
        let before = bench.cpu_seconds()?;
        let wall = seconds(command, statuses)?;
        cpu.borrow_mut().push((is_native, bench.cpu_seconds()? - before));
        Ok(wall)
    })?;
    let [node, native] = starts.take().map(Spread::of);
    let (Some(native), Some(node)) = (native, node) else { bail!("nothing was measured") };
    let walls: Vec<_> = walls.iter().map(|wall| (wall.0 - native.tenth, wall.1 - node.tenth)).collect();
    let times = |of: bool| cpu.borrow().iter().filter(|taken| taken.0 == of).map(|taken| taken.1).collect::<Vec<_>>();
    let cpu = Spread::of(times(false)).zip(Spread::of(times(true))).map(|(node, native)| node.tenth / native.tenth);
    let starts = format!("less the starts of {:.0} and {:.0} ms", native.tenth * 1e3, node.tenth * 1e3);
    // What it takes elsewhere is not known here.
    let cpu = cpu.filter(|_| place.contains(&bench.node.as_str()));
    let cpu = cpu.map_or(String::new(), |ratio| format!("; CPU time, with them: {ratio:.3}"));
    Ok(Outcome::of(&walls).with_note(starts + &cpu))
}

/// The MOSIX FAQ's loop.
pub fn awk(bench: &Bench) -> anyhow::Result<Outcome> {
    // Many short runs: the longer one is, the less likely is it that nothing disturbs it.
    // The most that was thought to fit: a trial may have been disturbed.
    let trials: Vec<u32> = (0..5).map(|_| awk_iterations(0.2)).collect::<anyhow::Result<_>>()?;
    let program = awk_loop(trials.into_iter().max().unwrap_or(1));
    cpu_bound(bench, &["--node", bench.node.as_str()], bench.pick(121, 5), &program, &awk_loop(0), &[0])
}

/// A random instance.
pub fn minisat(bench: &Bench) -> anyhow::Result<Outcome> {
    /// A third of a second.
    const INSTANCE: (u64, u64) = (220, 20);
    solver(bench, &["--node", bench.node.as_str()], bench.pick(91, 5), INSTANCE)
}

/// The same anywhere; an instance is so many variables and a seed.
pub fn solver(bench: &Bench, place: Where<'_>, count: usize, instance: (u64, u64)) -> anyhow::Result<Outcome> {
    if !installed("minisat") {
        return Ok(Outcome::none("not installed; apt install minisat".to_owned()));
    }
    let solve = |name: &str, instance: String| {
        let path = bench.sandbox.directory().join(name);
        std::fs::write(&path, instance)?;
        anyhow::Ok(vec!["minisat".to_owned(), "-verb=0".to_owned(), path.display().to_string()])
    };
    let (variables, seed) = instance;
    let program = solve("instance.cnf", random_3sat(variables, seed))?;
    let idle = solve("trivial.cnf", "p cnf 1 1\n1 0\n".to_owned())?;
    // 10 is satisfiable, 20 is not.
    cpu_bound(bench, place, count, &program, &idle, &[10, 20])
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

/// The start of an interpreter that reads many small files.
pub fn python(bench: &Bench) -> anyhow::Result<Outcome> {
    // The system's, rather than what stands before it in `PATH` and may be a script.
    let python = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    if !installed("python3") {
        return Ok(Outcome::none("not installed; apt install python3".to_owned()));
    }
    let program = [python, "-c", "pass"].map(str::to_owned);
    let walls = bench.both(bench.pick(15, 3), &program, |command| Ok(seconds(command, &[0])? * 1e3))?;
    whole(bench, &walls, &program)
}

/// Sixty short runs of a compiler, two at a time.
pub fn make(bench: &Bench) -> anyhow::Result<Outcome> {
    if !["make", "cc"].iter().all(|program| installed(program)) {
        return Ok(Outcome::none("not installed; apt install make gcc".to_owned()));
    }
    let directory = bench.sandbox.directory().join("project");
    std::fs::create_dir_all(&directory)?;
    let files = bench.pick(60, 6);
    project::write(&directory, files)?;
    let directory = directory.display().to_string();
    let program = ["make", "-B", "-s", "-j2", "-C", &directory].map(str::to_owned);
    let walls = bench.both(bench.pick(3, 1), &program, |command| seconds(command, &[0]))?;
    let outcome = whole(bench, &walls, &program)?;
    Ok(if files == 60 { outcome } else { outcome.with_remark(format!("{files} files")) })
}

/// Pairs of a whole program's times, with what its run in the node is made of.
fn whole(bench: &Bench, walls: &[(f64, f64)], program: &[String]) -> anyhow::Result<Outcome> {
    let counts = bench.counts(program, &[0])?;
    Ok(Outcome::of(walls).with_note(Costs::measure(bench, Vec::new())?.total(&counts)))
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
}
