//! Memory that a process has while it migrates.

use super::memory::{Area, PAGE};
use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// What is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// What cannot be compressed.
    Noise,
    /// Half of it zeros, which have been written, and half of it text.
    Half,
}

/// Text is of these in no order, which compresses as text does: LZ4 makes half of it.
const WORDS: &[u8] = b"all of it stands where stood and what was said is once more in memory that nobody else \
    has come to write after another process read the same page from its own file while they were both at home again";

/// Between two writes to pages.
const TICK: Duration = Duration::from_millis(1);

/// Between two lines of a [`Diary`].
const LINE: Duration = Duration::from_millis(10);

/// Where a process writes down what it sees of itself: lines of the time, the longest pause that it has made since the
/// line before, both in nanoseconds, and the pages that it has written to since.
struct Diary {
    file: File,
    last: Duration,
    told: Duration,
    longest: Duration,
    pages: u64,
}

impl Diary {
    fn begin(path: &Path) -> io::Result<Self> {
        let now = now()?;
        Ok(Self { file: File::create(path)?, last: now, told: now, longest: Duration::ZERO, pages: 0 })
    }

    /// It has done something, be it that it has slept for so long.
    fn look(&mut self, slept: Duration) -> io::Result<Duration> {
        let now = now()?;
        self.longest = self.longest.max((now - self.last).saturating_sub(slept));
        self.last = now;
        Ok(now)
    }

    /// It has written to a page.
    fn page(&mut self) -> io::Result<()> {
        self.pages += 1;
        self.look(Duration::ZERO).map(drop)
    }

    /// It has slept for a tick.
    fn tick(&mut self) -> io::Result<()> {
        let now = self.look(TICK)?;
        if now - self.told >= LINE {
            let line = format!("{} {} {}\n", now.as_nanos(), self.longest.as_nanos(), self.pages);
            self.file.write_all(line.as_bytes())?;
            (self.told, self.longest, self.pages) = (now, Duration::ZERO, 0);
        }
        Ok(())
    }
}

/// The time by the clock of a [`Diary`].
pub fn now() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// Holds memory until it is killed, and writes to pages here and there, so many bytes of them a second. Says `ready`
/// when it is filled. With a `diary` it writes down what it sees.
pub fn hold(bytes: usize, rate: u64, content: Content, diary: Option<&Path>) -> anyhow::Result<Infallible> {
    let mut area = Area::new(bytes).context("too little memory; use a smaller --bytes")?;
    let memory = area.bytes();
    fill(memory, content);
    println!("ready");
    std::io::stdout().flush()?;
    let pages = (bytes / PAGE).max(1);
    let in_a_tick = rate as usize / PAGE / Duration::from_secs(1).div_duration_f64(TICK) as usize;
    let mut next = 0;
    let mut diary = diary.map(Diary::begin).transpose()?;
    loop {
        for _ in 0..in_a_tick {
            memory[next * PAGE] = memory[next * PAGE].wrapping_add(1);
            // No divisor of a number of pages that anybody asks for, so that all have their turn.
            next = (next + 7919) % pages;
            if let Some(diary) = &mut diary {
                diary.page()?;
            }
        }
        let is_still = rate == 0 && diary.is_none();
        std::thread::sleep(if is_still { Duration::from_secs(3600) } else { TICK });
        if let Some(diary) = &mut diary {
            diary.tick()?;
        }
    }
}

fn fill(memory: &mut [u8], content: Content) {
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    match content {
        Content::Noise => {
            for word in memory.chunks_mut(8) {
                word.copy_from_slice(&next().to_le_bytes()[..word.len()]);
            }
        }
        Content::Half => {
            let (zeros, text) = memory.split_at_mut(memory.len() / 2);
            zeros.fill(0);
            let words: Vec<&[u8]> = WORDS.split_inclusive(|&byte| byte == b' ').collect();
            let mut rest = text;
            while !rest.is_empty() {
                let word = words[(next() % words.len() as u64) as usize];
                let length = word.len().min(rest.len());
                rest[..length].copy_from_slice(&word[..length]);
                rest = &mut rest[length..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_holds_what_it_should() {
        let mut memory = vec![1; 10_001];
        fill(&mut memory, Content::Half);
        assert!(memory[..5000].iter().all(|&byte| byte == 0) && memory[5000..].iter().all(|byte| WORDS.contains(byte)));
        fill(&mut memory, Content::Noise);
        assert!(memory.chunks(8).zip(memory[8..].chunks(8)).all(|(one, next)| one != next));
    }
}
