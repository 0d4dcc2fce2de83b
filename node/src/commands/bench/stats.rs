//! Medians, lowest tenths and spreads.

use serde::{Deserialize, Serialize};

/// The middle of several values, and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The mean of the lowest tenth of the values, rounded down; of one at least.
    pub tenth: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of some values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        let lowest = &values[..(values.len() / 10).max(1)];
        let tenth = lowest.iter().sum::<f64>() / lowest.len() as f64;
        Some(Self { median, tenth, min, max })
    }
}

/// Measures `a` and `b` in turn `count` times, each first in every other pair, so that a drift of
/// the machine's speed hits both.
///
/// # Errors
/// The first that a measurement has.
pub fn pairs(
    count: usize,
    mut a: impl FnMut() -> anyhow::Result<f64>,
    mut b: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<(f64, f64)>> {
    (0..count)
        .map(|i| {
            if i % 2 == 0 {
                let first = a()?;
                Ok((first, b()?))
            } else {
                let first = b()?;
                Ok((a()?, first))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, tenth: 1.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_lowest_tenth_has_a_mean() {
        let down = |count: u32| Spread::of((0..count).rev().map(f64::from)).unwrap().tenth;
        assert_eq!((down(1), down(19), down(20), down(31), down(100)), (0.0, 0.0, 0.5, 1.0, 4.5));
    }

    #[test]
    fn pairs_change_their_order() {
        let order = std::cell::RefCell::new(String::new());
        let measure = |name: char, value: f64| {
            order.borrow_mut().push(name);
            Ok(value)
        };
        let got = pairs(2, || measure('a', 1.0), || measure('b', 2.0)).unwrap();
        assert_eq!(got, [(1.0, 2.0), (1.0, 2.0)]);
        assert_eq!(order.into_inner(), "abba");
    }
}
