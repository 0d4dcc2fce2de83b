//! Logs of the processes that have no terminal.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;

/// How long a window of the log is.
const WINDOW: Duration = Duration::from_secs(60);
/// Most lines of one window: a program in a node can have lines written as fast as it likes.
const MOST_LINES: u64 = 2000;

/// Sends log lines to standard error, which is the log file; `SKEIN_LOG` chooses them as `RUST_LOG` would.
pub fn to_stderr() {
    static LIMIT: Mutex<Option<Limit>> = Mutex::new(None);
    let filter = EnvFilter::try_from_env("SKEIN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let writer = || Limited { limit: &LIMIT, to: io::stderr() };
    // A second call, as from a test, keeps the first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).try_init();
}

/// What has been written in the present window.
#[derive(Debug)]
struct Limit {
    since: Instant,
    lines: u64,
}

impl Limit {
    /// Counts a line; whether it is written, and how many of the last window were not.
    fn admit(limit: &mut Option<Self>, now: Instant) -> (bool, u64) {
        let mut left_out = 0;
        let window = match limit {
            Some(window) if now.duration_since(window.since) < WINDOW => window,
            old => {
                left_out = old.take().map_or(0, |old| old.lines.saturating_sub(MOST_LINES));
                old.insert(Self { since: now, lines: 0 })
            }
        };
        window.lines += 1;
        (window.lines <= MOST_LINES, left_out)
    }
}

/// Writes so many lines a minute and leaves the others out. Each write is a line.
struct Limited<W> {
    limit: &'static Mutex<Option<Limit>>,
    to: W,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (admitted, left_out) =
            Limit::admit(&mut self.limit.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if left_out > 0 {
            writeln!(self.to, "{left_out} lines of the minute before were left out")?;
        }
        if admitted {
            self.to.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_told() {
        static LIMIT: Mutex<Option<Limit>> = Mutex::new(None);
        let mut log = Limited { limit: &LIMIT, to: Vec::new() };
        for _ in 0..MOST_LINES + 5 {
            log.write_all(b"line\n").unwrap();
        }
        assert_eq!(log.to.len() as u64, MOST_LINES * 5);
        let later = Instant::now() + WINDOW;
        assert_eq!(Limit::admit(&mut LIMIT.lock().unwrap(), later), (true, 5));
        assert_eq!(Limit::admit(&mut LIMIT.lock().unwrap(), later), (true, 0));
    }
}
