//! Which stream a page comes over, where memory comes over several.
//!
//! Each page has its stream: what is sent of it later comes later, and so no stream has to wait for another until all of
//! them have brought the last.

use super::wire::MAX_STREAMS;
use crate::mm::image::Stretch;
use std::ops::Range;
use vmm::frames::FRAMES_PER_BLOCK;

/// Pages in a row that come over one stream: as many as a large page has.
const STRIPE: u64 = FRAMES_PER_BLOCK as u64;

/// Whether a page may be of another stream than the one before it.
pub fn begins(page: u64) -> bool {
    page.is_multiple_of(STRIPE)
}

/// How an address space is divided among streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripes(u32);

impl Stripes {
    /// All over one stream.
    pub const ONE: Self = Self(1);

    /// Among so many, if there may be as many.
    pub fn new(streams: u32) -> Option<Self> {
        (1..=MAX_STREAMS).contains(&streams).then_some(Self(streams))
    }

    /// How many streams there are.
    pub fn streams(self) -> u32 {
        self.0
    }

    /// The stream of a page. What lies apart by a power of two, as stacks of threads and their heaps do, is not all of
    /// one.
    pub fn of(self, page: u64) -> u32 {
        let stripe = page / STRIPE;
        ((stripe + stripe / 4 + stripe / 32) % u64::from(self.0)) as u32
    }

    /// Where the pages end that are in a row with this one and come over the same stream.
    pub fn end(self, page: u64) -> u64 {
        if self.0 == 1 { u64::MAX } else { (page / STRIPE + 1).saturating_mul(STRIPE) }
    }

    /// Whether these pages, which are in one stripe, come over a stream.
    pub fn all_of(self, pages: Range<u64>, stream: u32) -> bool {
        self.of(pages.start) == stream && pages.end <= self.end(pages.start)
    }

    /// Divides what is to be sent: for each stream its part, in order.
    pub fn divide(self, stretches: &[Stretch]) -> Vec<Vec<Stretch>> {
        let mut parts = vec![Vec::new(); self.0 as usize];
        for &stretch in stretches {
            let mut rest = stretch;
            while rest.count > 0 {
                let here = (self.end(rest.page) - rest.page).min(rest.count.into()) as u32;
                let (first, others) = rest.split_at(here);
                parts[self.of(rest.page) as usize].push(first);
                rest = others;
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::addr::Frame;

    fn stretch(page: u64, count: u32) -> Stretch {
        Stretch { page, count, frame: Some(Frame(page as u32)), large: false, is_zero_by_default: true }
    }

    #[test]
    fn each_page_goes_over_its_own_stream_and_no_other() {
        let stretches = [stretch(3, 1), stretch(STRIPE - 1, 2), stretch(2 * STRIPE, 4 * STRIPE as u32 + 7)];
        for streams in 1..=MAX_STREAMS {
            let stripes = Stripes::new(streams).unwrap();
            let mut seen = Vec::new();
            for (stream, part) in (0..).zip(stripes.divide(&stretches)) {
                for piece in part {
                    assert!(stripes.all_of(piece.page..piece.page + u64::from(piece.count), stream), "{streams}");
                    assert_eq!(piece.frame, Some(Frame(piece.page as u32)));
                    seen.extend(piece.page..piece.page + u64::from(piece.count));
                }
            }
            seen.sort_unstable();
            let all: Vec<u64> = stretches.iter().flat_map(|s| s.page..s.page + u64::from(s.count)).collect();
            assert_eq!(seen, all, "{streams}");
        }
    }

    #[test]
    fn rows_and_what_lies_apart_by_powers_of_two_have_all_streams() {
        for streams in 2..=4 {
            let stripes = Stripes::new(streams).unwrap();
            // In MiB: a row, stacks of threads, heaps of threads.
            for apart in [2, 8, 64] {
                let mut of = [0; 4];
                (0..480).for_each(|k| of[stripes.of(k * apart * 256) as usize] += 1);
                let fair = 480 / streams;
                let is_fair = |&count: &u32| count.abs_diff(fair) <= fair / 8;
                assert!(of[..streams as usize].iter().all(is_fair), "{apart} MiB over {streams}: {of:?}");
            }
        }
    }

    #[test]
    fn what_crosses_to_another_stream_is_of_none() {
        let two = Stripes::new(2).unwrap();
        assert!(two.all_of(0..STRIPE, 0) && two.all_of(STRIPE..STRIPE + 1, 1));
        assert!(
            !two.all_of(0..STRIPE, 1) && !two.all_of(STRIPE - 1..STRIPE + 1, 0) && !two.all_of(0..2 * STRIPE + 1, 0)
        );
        assert!(Stripes::ONE.all_of(0..u64::MAX, 0));
        // The last page that there can be.
        assert!(two.end(u64::MAX) >= u64::MAX / STRIPE * STRIPE);
        assert_eq!((Stripes::new(0), Stripes::new(MAX_STREAMS + 1)), (None, None));
    }
}
