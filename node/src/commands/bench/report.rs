//! What a benchmark gives, and how it is shown.

use super::setting::Bench;
use super::stats::Spread;
use crate::table::{Align, Table};
use serde::{Deserialize, Serialize};

/// Something that can be measured.
#[derive(Debug)]
pub struct Case {
    /// What to type.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// Unit of its values.
    pub unit: &'static str,
    /// What to reach.
    pub goal: Goal,
    /// Measures it.
    pub run: fn(&Bench) -> anyhow::Result<Outcome>,
}

/// What to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// At most this many times the peer's value, in the median.
    Ratio(f64),
    /// At most this many times the peer's value, in the means of the lowest tenths of both: for programs that
    /// are to run at the peer's speed. What else a machine does makes a run longer and never shorter, and it
    /// moves medians by more than what is to be shown.
    Floor(f64),
    /// At most this value, in the median.
    Value(f64),
    /// None: what it is is told.
    None,
}

/// What was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// What Skein is compared with: native, or the parts that a call is made of.
    pub peer: Option<Spread>,
    /// Skein.
    pub skein: Option<Spread>,
    /// Skein to peer, by pair.
    pub ratio: Option<Spread>,
    /// What is to be known of it.
    pub note: Option<String>,
}

impl Outcome {
    /// Of pairs of a peer's and Skein's value.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        Self {
            peer: Spread::of(pairs.iter().map(|pair| pair.0)),
            skein: Spread::of(pairs.iter().map(|pair| pair.1)),
            ratio: Spread::of(pairs.iter().map(|pair| pair.1 / pair.0)),
            note: None,
        }
    }

    /// Of values that have no peer.
    pub fn alone(values: &[f64]) -> Self {
        Self { skein: Spread::of(values.iter().copied()), ..Self::default() }
    }

    /// The mean of Skein's lowest tenth to that of the peer's.
    pub fn floor(&self) -> Option<f64> {
        Some(self.skein?.tenth / self.peer?.tenth)
    }

    /// The same with a remark.
    pub fn with_note(self, note: String) -> Self {
        Self { note: Some(note), ..self }
    }

    /// The same with a remark before the one that it has.
    pub fn with_remark(self, remark: String) -> Self {
        let note = self.note.map_or(remark.clone(), |note| format!("{remark}; {note}"));
        Self { note: Some(note), ..self }
    }

    /// Nothing, and why.
    pub fn none(why: String) -> Self {
        Self { note: Some(why), ..Self::default() }
    }
}

/// A line of the report.
#[derive(Debug, Serialize)]
pub struct Row {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    goal: Goal,
    met: Option<bool>,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Row {
    /// Judges what was measured.
    pub fn new(case: &Case, outcome: Outcome) -> Self {
        let met = match case.goal {
            Goal::Ratio(most) => outcome.ratio.map(|ratio| ratio.median <= most),
            Goal::Floor(most) => outcome.floor().map(|ratio| ratio <= most),
            Goal::Value(most) => outcome.skein.map(|value| value.median <= most),
            Goal::None => None,
        };
        Self { name: case.name, what: case.what, unit: case.unit, goal: case.goal, met, outcome }
    }

    /// Whether it should have been measured and could not be.
    pub fn failed(&self) -> bool {
        self.outcome.skein.is_none() && self.outcome.note.as_deref().is_some_and(|note| note.starts_with("failed"))
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of Skein.
    pub version: &'static str,
    /// Less was measured.
    pub quick: bool,
    /// The lines.
    pub rows: Vec<Row>,
}

impl Report {
    /// As a table, and a second one of remarks.
    pub fn render(&self) -> String {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("PEER", Align::Right),
            ("SKEIN", Align::Right),
            ("UNIT", Align::Left),
            ("RATIO", Align::Left),
            ("GOAL", Align::Left),
            ("MET", Align::Left),
            ("WHAT", Align::Left),
        ]);
        for row in &self.rows {
            let value = |spread: Option<Spread>| {
                let typical = |spread: Spread| match row.goal {
                    Goal::Floor(_) => spread.tenth,
                    Goal::Ratio(_) | Goal::Value(_) | Goal::None => spread.median,
                };
                spread.map_or("-".to_owned(), |spread| number(typical(spread)))
            };
            table.row(vec![
                row.name.to_owned(),
                value(row.outcome.peer),
                value(row.outcome.skein),
                row.unit.to_owned(),
                match (row.outcome.ratio, row.goal) {
                    (Some(ratio), Goal::Floor(_)) => {
                        let floor = row.outcome.floor().unwrap_or(ratio.median);
                        format!("{floor:.3} [{:.3}..{:.3}]", ratio.min, ratio.max)
                    }
                    (Some(ratio), _) => format!("{:.3} [{:.3}..{:.3}]", ratio.median, ratio.min, ratio.max),
                    (None, Goal::Ratio(_) | Goal::Floor(_)) => "not measured".to_owned(),
                    (None, Goal::Value(_) | Goal::None) => "-".to_owned(),
                },
                match row.goal {
                    Goal::Ratio(most) | Goal::Floor(most) => format!("<= {most}"),
                    Goal::Value(most) => format!("<= {most} {}", row.unit),
                    Goal::None => "-".to_owned(),
                },
                row.met.map_or("-", |met| if met { "yes" } else { "NO" }).to_owned(),
                row.what.to_owned(),
            ]);
        }
        let mut remarks = Table::new(&[("NAME", Align::Left), ("REMARK", Align::Left)]);
        let noted: Vec<_> = self.rows.iter().filter_map(|row| Some((row.name, row.outcome.note.clone()?))).collect();
        if noted.is_empty() {
            return table.render();
        }
        noted.into_iter().for_each(|(name, note)| remarks.row(vec![name.to_owned(), note]));
        format!("{}\n{}", table.render(), remarks.render())
    }
}

/// Three or four digits that count.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 1000.0 => 0,
        v if v >= 10.0 => 1,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &Bench) -> anyhow::Result<Outcome> {
        Ok(Outcome::default())
    }

    #[test]
    fn a_goal_is_judged_by_the_median() {
        let case = Case { name: "n", what: "w", unit: "s", goal: Goal::Ratio(1.1), run: nothing };
        let row = Row::new(&case, Outcome::of(&[(1.0, 1.05), (1.0, 3.0), (1.0, 1.0)]));
        assert_eq!(row.met, Some(true));
        let report = Report { version: "0", quick: false, rows: vec![row] };
        assert!(report.render().contains("1.050 [1.000..3.000]"), "{}", report.render());
        let row = Row::new(&case, Outcome::none("failed: x".into()));
        assert_eq!((row.met, row.failed()), (None, true));
        let case = Case { goal: Goal::Value(2.0), ..case };
        assert_eq!(Row::new(&case, Outcome::alone(&[3.0])).met, Some(false));
    }

    #[test]
    fn without_a_goal_none_is_missed() {
        let case = Case { name: "n", what: "w", unit: "s", goal: Goal::None, run: nothing };
        let row = Row::new(&case, Outcome::of(&[(1.0, 30.0)]).with_note("b".into()).with_remark("a".into()));
        assert_eq!((row.met, row.failed()), (None, false));
        assert_eq!(serde_json::to_value(&row).unwrap()["goal"], "none");
        let report = Report { version: "0", quick: false, rows: vec![row] }.render();
        let line: Vec<&str> = report.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["n", "1.000", "30.0", "s", "30.000", "[30.000..30.000]", "-", "-", "w"]);
        assert!(report.ends_with("\nNAME  REMARK\nn     a; b\n"), "{report}");
    }

    #[test]
    fn a_floor_is_judged_by_the_lowest_tenths() {
        let case = Case { name: "n", what: "w", unit: "s", goal: Goal::Floor(1.01), run: nothing };
        // Skein is as fast when nothing else runs, which is one time in five.
        let mut pairs = vec![(1.0, 2.0); 16];
        pairs.extend([(1.0, 1.004), (1.0, 1.006), (4.0, 1.1), (1.0, 1.1)]);
        let row = Row::new(&case, Outcome::of(&pairs));
        assert_eq!(row.met, Some(true));
        let report = Report { version: "0", quick: false, rows: vec![row] };
        assert!(report.render().contains("1.005 [0.275..2.000]"), "{}", report.render());
        assert_eq!(Row::new(&case, Outcome::of(&[(1.0, 1.02)])).met, Some(false));
    }
}
