//! What the time of an operation in a node is made of.

use super::calls::{near_trip, round_trip};
use super::setting::Bench;
use super::stats::Spread;
use crate::measured;
use anyhow::Context;
use std::path::Path;

/// How often something is done, by programs of a node that have run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counts {
    /// Exits from the virtual machine.
    pub exits: f64,
    /// Of these, page faults.
    pub faults: f64,
    /// Requests to the deputy that were waited for.
    pub round_trips: f64,
    /// Of these, with the deputy's thread on the CPU of who waited.
    pub near_trips: f64,
    /// System calls that were served without an exit.
    pub exitless: f64,
}

impl Counts {
    /// From what `mosrun --stats --json` has written: of the program and its children.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value: serde_json::Value = serde_json::from_slice(&text)?;
        let number = |of: &str, name: &str| {
            value[of][name].as_f64().with_context(|| format!("mosrun --stats does not tell {name}"))
        };
        let sum = |name: &str| Ok::<f64, anyhow::Error>(number("own", name)? + number("children", name)?);
        Ok(Self {
            exits: sum("exits")?,
            faults: sum("faults")?,
            round_trips: sum("round_trips")?,
            near_trips: sum("near_trips")?,
            exitless: sum("exitless_calls")?,
        })
    }

    /// What is more than in another.
    pub fn less(&self, other: &Self) -> Self {
        let less = |a: f64, b: f64| (a - b).max(0.0);
        Self {
            exits: less(self.exits, other.exits),
            faults: less(self.faults, other.faults),
            round_trips: less(self.round_trips, other.round_trips),
            near_trips: less(self.near_trips, other.near_trips),
            exitless: less(self.exitless, other.exitless),
        }
    }

    /// The share of one of so many operations.
    pub fn over(&self, operations: f64) -> Self {
        Self {
            exits: self.exits / operations,
            faults: self.faults / operations,
            round_trips: self.round_trips / operations,
            near_trips: self.near_trips / operations,
            exitless: self.exitless / operations,
        }
    }
}

/// What that costs on this machine, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// A bare exit.
    pub exit: f64,
    /// A round trip over a Unix socket to another process: two wake-ups of a thread.
    pub round_trip: f64,
    /// The same with both processes on one CPU.
    pub near_trip: f64,
}

impl Costs {
    /// Measures both now, and takes the median of bare exits with `exits` that were measured before.
    pub fn measure(bench: &Bench, mut exits: Vec<f64>) -> anyhow::Result<Self> {
        let (mut round_trips, mut near_trips) = (Vec::new(), Vec::new());
        for _ in 0..bench.pick(5, 3) {
            exits.push(measured::bare_exit_nanos()?);
            let count = bench.pick(2000, 1000);
            round_trips.push(round_trip(bench, count)?);
            near_trips.push(near_trip(bench, count)?);
        }
        let median = |values: Vec<f64>| Spread::of(values).map_or(0.0, |spread| spread.median);
        Ok(Self { exit: median(exits), round_trip: median(round_trips), near_trip: median(near_trips) })
    }

    /// What the round trips among `counts` cost.
    fn trips(&self, counts: &Counts) -> f64 {
        (counts.round_trips - counts.near_trips) * self.round_trip + counts.near_trips * self.near_trip
    }

    /// In words, what an operation is made of that takes `node` nanoseconds in the node and `native`
    /// without one, with each part's share of `node`. The rest is what the VMM does in between; together they may be more
    /// than all, since they were measured apart.
    pub fn bound(&self, counts: &Counts, native: f64, node: f64) -> String {
        let share = |nanos: f64| format!("{:.0}%", nanos / node * 100.0);
        let mut parts = Vec::new();
        if is_some(counts.exits) {
            let faults = match counts.faults {
                faults if is_some(faults) => format!(" ({} for faults)", number(faults)),
                _ => String::new(),
            };
            parts.push(format!("{} exits{faults} {}", number(counts.exits), share(counts.exits * self.exit)));
        } else {
            parts.push("no exits".to_owned());
        }
        if is_some(counts.exitless) {
            parts.push(format!("{} calls without an exit", number(counts.exitless)));
        }
        if is_some(counts.round_trips) {
            parts.push(format!("{} round trips home {}", number(counts.round_trips), share(self.trips(counts))));
            if is_some(counts.near_trips) {
                parts.push(format!("of these {} without another CPU", number(counts.near_trips)));
            }
        }
        parts.push(format!("as native {}", share(native)));
        parts.join(", ")
    }

    /// In words, what `counts` of a whole run cost.
    pub fn total(&self, counts: &Counts) -> String {
        let seconds = |nanos: f64| nanos / 1e9;
        format!(
            "{:.0} exits ({:.0} for faults), bare {:.3} s; {:.0} calls without; {:.0} round trips home, {:.0} of them without another CPU, {:.3} s",
            counts.exits,
            counts.faults,
            seconds(counts.exits * self.exit),
            counts.exitless,
            counts.round_trips,
            counts.near_trips,
            seconds(self.trips(counts))
        )
    }
}

/// Whether it is more than what happens by chance in a loop.
fn is_some(count: f64) -> bool {
    count >= 0.0005
}

fn number(count: f64) -> String {
    let decimals = match count {
        c if c >= 100.0 => 0,
        c if c >= 10.0 => 1,
        c if c >= 0.1 => 2,
        _ => 4,
    };
    format!("{count:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_shares() {
        let costs = Costs { exit: 20.0, round_trip: 30.0, near_trip: 10.0 };
        let counts = Counts { exits: 2.0, faults: 0.0, round_trips: 1.0, near_trips: 0.0, exitless: 0.0 };
        assert_eq!(costs.bound(&counts, 10.0, 100.0), "2.00 exits 40%, 1.00 round trips home 30%, as native 10%");
        let near = Counts { near_trips: 0.5, ..counts };
        let told = "2.00 exits 40%, 1.00 round trips home 20%, of these 0.50 without another CPU, as native 10%";
        assert_eq!(costs.bound(&near, 10.0, 100.0), told);
        let counts = Counts { exits: 0.0001, faults: 0.0, round_trips: 0.0, near_trips: 0.0, exitless: 1.0 };
        assert_eq!(costs.bound(&counts, 50.0, 100.0), "no exits, 1.00 calls without an exit, as native 50%");
    }

    #[test]
    fn counts_are_of_all_processes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("told");
        let one = |n: u32| {
            serde_json::json!({
                "exits": n, "faults": n + 1, "round_trips": n + 2, "near_trips": n, "exitless_calls": n,
            })
        };
        std::fs::write(&path, serde_json::json!({ "own": one(1), "children": one(10) }).to_string()).unwrap();
        let counts = Counts::read(&path).unwrap();
        assert_eq!(counts, Counts { exits: 11.0, faults: 13.0, round_trips: 15.0, near_trips: 11.0, exitless: 11.0 });
        assert_eq!(counts.less(&counts).over(2.0).exits, 0.0);
        std::fs::write(&path, "{}").unwrap();
        assert!(Counts::read(&path).is_err());
    }
}
