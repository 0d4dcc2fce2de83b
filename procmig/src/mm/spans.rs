//! What is known of numbers in a row, kept once for each row: which frames pages have, say. Rows can be as long as a large
//! page or a single number, and what is done to part of one splits it.

use std::collections::BTreeMap;
use std::ops::Range;
use vmm::addr::Frame;

/// What numbers in a row have: the next number's is the next.
pub trait Row: Copy {
    /// What the number has that is so many further.
    fn further(self, by: u32) -> Self;
}

impl Row for Frame {
    fn further(self, by: u32) -> Self {
        self.offset(by)
    }
}

impl Row for u64 {
    fn further(self, by: u32) -> Self {
        self + u64::from(by)
    }
}

/// Numbers in a row, and what the first of them has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<V> {
    /// The first number.
    pub first: u64,
    /// How many they are.
    pub count: u32,
    /// What the first has.
    pub value: V,
}

impl<V: Row> Span<V> {
    /// The numbers.
    pub fn range(&self) -> Range<u64> {
        self.first..self.first + u64::from(self.count)
    }

    /// What of it is in a range, with which it overlaps.
    fn cut(self, range: &Range<u64>) -> Self {
        let first = self.first.max(range.start);
        let by = (first - self.first) as u32;
        let count = (self.range().end.min(range.end) - first) as u32;
        Self { first, count, value: self.value.further(by) }
    }
}

impl Span<Frame> {
    /// The numbers of the frames.
    pub fn frames(&self) -> Range<u64> {
        u64::from(self.value.0)..u64::from(self.value.0) + u64::from(self.count)
    }
}

/// Rows of numbers that do not overlap.
#[derive(Debug, Clone)]
pub struct Spans<V> {
    /// By their first numbers: how many they are, and what the first has.
    rows: BTreeMap<u64, (u32, V)>,
    len: u64,
}

impl<V> Default for Spans<V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), len: 0 }
    }
}

impl<V: Row> Spans<V> {
    /// How many numbers there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = Span<V>> {
        self.rows.iter().map(|(&first, &(count, value))| Span { first, count, value })
    }

    /// Parts of rows that are in a range, in order.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = Span<V>> {
        let before = self.rows.range(..range.start).next_back();
        let within = self.rows.range(range.start..range.end.max(range.start));
        let spans = before.into_iter().chain(within).map(|(&first, &(count, value))| Span { first, count, value });
        spans.filter_map(move |span| {
            let overlaps = span.range().end > range.start && !range.is_empty();
            overlaps.then(|| span.cut(&range))
        })
    }

    /// What a number has.
    pub fn get(&self, number: u64) -> Option<V> {
        self.overlapping(number..number + 1).next().map(|span| span.value)
    }

    /// Adds a row of numbers that are not there; `false`, and nothing is done, if one of them is.
    pub fn insert(&mut self, span: Span<V>) -> bool {
        if span.count == 0 || self.overlapping(span.range()).next().is_some() {
            return span.count == 0;
        }
        self.rows.insert(span.first, (span.count, span.value));
        self.len += u64::from(span.count);
        true
    }

    /// Takes out what is in a range, at most so many numbers, the first ones.
    pub fn take(&mut self, range: Range<u64>, most: u64) -> Vec<Span<V>> {
        let mut left = most;
        let mut taken = Vec::new();
        for span in self.overlapping(range) {
            if left == 0 {
                break;
            }
            let count = left.min(span.count.into()) as u32;
            left -= u64::from(count);
            taken.push(Span { count, ..span });
        }
        for span in &taken {
            self.remove(span);
        }
        taken
    }

    /// Takes out a part of one row.
    fn remove(&mut self, part: &Span<V>) {
        let Some((&first, &(count, value))) = self.rows.range(..=part.first).next_back() else { return };
        self.len -= u64::from(part.count);
        let before = (part.first - first) as u32;
        let behind = count - before - part.count;
        if before > 0 {
            self.rows.insert(first, (before, value));
        } else {
            self.rows.remove(&first);
        }
        if behind > 0 {
            self.rows.insert(part.range().end, (behind, value.further(before + part.count)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_splits_rows() {
        let mut spans = Spans::default();
        assert!(spans.insert(Span { first: 10, count: 10, value: 110_u64 }));
        assert!(spans.insert(Span { first: 20, count: 1, value: 7 }));
        assert!(!spans.insert(Span { first: 19, count: 2, value: 0 }) && spans.len() == 11);
        assert_eq!(spans.take(12..14, 99), [Span { first: 12, count: 2, value: 112 }]);
        assert_eq!((spans.get(11), spans.get(12), spans.get(14), spans.get(21)), (Some(111), None, Some(114), None));
        assert_eq!(spans.overlapping(0..12).next(), Some(Span { first: 10, count: 2, value: 110 }));
        let rest = [Span { first: 16, count: 4, value: 116 }, Span { first: 20, count: 1, value: 7 }];
        assert_eq!(spans.take(16..u64::MAX, 5), rest);
        assert_eq!(spans.iter().map(|span| span.range()).collect::<Vec<_>>(), [10..12, 14..16]);
        assert_eq!((spans.take(5..5, 9), spans.take(12..14, 9), spans.len()), (vec![], vec![], 4));
    }

    /// The same as what is kept number by number.
    #[test]
    fn rows_are_what_their_numbers_are() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut spans, mut plain) = (Spans::default(), BTreeMap::new());
        for _ in 0..20_000 {
            let first = random.u64(..500);
            let range = first..first + random.u64(..40);
            match random.u8(..3) {
                0 => {
                    let count = (range.end - first) as u32;
                    let is_free = plain.range(range.clone()).next().is_none();
                    let value = random.u64(..1000);
                    assert_eq!(spans.insert(Span { first, count, value }), is_free);
                    if is_free {
                        plain.extend(range.zip(value..));
                    }
                }
                1 => {
                    let most = random.u64(..30);
                    let expected: Vec<(u64, u64)> =
                        plain.range(range.clone()).take(most as usize).map(|(&a, &b)| (a, b)).collect();
                    plain.retain(|number, _| !expected.iter().any(|(taken, _)| taken == number));
                    let taken = spans.take(range, most);
                    assert_eq!(
                        taken.iter().flat_map(|span| span.range().zip(span.value..)).collect::<Vec<_>>(),
                        expected
                    );
                }
                _ => assert_eq!(spans.get(first), plain.get(&first).copied()),
            }
            assert_eq!(spans.len(), plain.len() as u64);
        }
    }
}
