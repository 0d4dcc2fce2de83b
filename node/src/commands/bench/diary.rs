//! What a process has written down of itself while it migrated.

use super::guest::holding::now;
use crate::sandbox::check_interrupted;
use anyhow::{Context, ensure};
use std::path::PathBuf;
use std::time::Duration;

/// How long the next line may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A file that a process of `bench-guest hold-noise --path` writes.
#[derive(Debug)]
pub struct Diary(pub PathBuf);

/// What a process saw in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// The longest pause that it made.
    pub longest: Duration,
    /// Pages that it wrote to.
    pub pages: u64,
    /// How long that took it.
    pub took: Duration,
}

impl Seen {
    /// Pages that it wrote to in a second.
    pub fn pages_a_second(&self) -> f64 {
        self.pages as f64 / self.took.as_secs_f64()
    }
}

impl Diary {
    /// Waits until the process writes.
    pub fn await_line(&self) -> anyhow::Result<()> {
        self.since(now()?).map(drop)
    }

    /// What the process saw from `start` until now.
    pub fn since(&self, start: Duration) -> anyhow::Result<Seen> {
        let end = now()?;
        loop {
            check_interrupted()?;
            let text = std::fs::read_to_string(&self.0).unwrap_or_default();
            if let Some(seen) = read(&text, start, end)? {
                return Ok(seen);
            }
            ensure!(now()? < end + PATIENCE, "the process says nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What whole lines say of this time, if there is one of later.
fn read(text: &str, start: Duration, end: Duration) -> anyhow::Result<Option<Seen>> {
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    let mut seen = Seen::default();
    let mut last = None;
    for line in whole.lines() {
        let mut numbers = line.split(' ').map(|word| word.parse().ok());
        let mut next = || numbers.next().flatten().with_context(|| format!("the process writes {line:?}"));
        let (at, longest, pages) = (Duration::from_nanos(next()?), Duration::from_nanos(next()?), next()?);
        if at > start {
            seen.longest = seen.longest.max(longest);
            seen.pages += pages;
            seen.took += at - last.unwrap_or(start);
        }
        if at > end {
            return Ok(Some(seen));
        }
        last = Some(at);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_in_some_time_is_read() {
        let nanos = Duration::from_nanos;
        let text = "10 9 1\n20 1 2\n30 5 3\n40 2 4\n50 8 5\n6";
        let seen = |start, end| read(text, nanos(start), nanos(end)).unwrap();
        assert_eq!(seen(10, 35), Some(Seen { longest: nanos(5), pages: 9, took: nanos(30) }));
        assert_eq!(seen(15, 45), Some(Seen { longest: nanos(8), pages: 14, took: nanos(40) }));
        assert_eq!(seen(10, 50), None);
        assert!(read("a\n", nanos(1), nanos(2)).is_err());
    }
}
