//! What is to be sent of a process's memory.

use crate::migration::wire::MAX_RUNS;
use crate::mm::image::{PrivatePage, Stretch};
use vmm::addr::PAGE_SIZE;
use vmm::dirty::FrameSet;

pub(super) fn bytes_in(stretches: &[Stretch]) -> u64 {
    stretches.iter().map(|stretch| u64::from(stretch.count) * PAGE_SIZE).sum()
}

/// Parts of at most so many pages, and of as many stretches as one message tells of.
pub(super) fn batches(stretches: &[Stretch], most: u32) -> impl Iterator<Item = Vec<Stretch>> {
    let mut others = stretches.iter().copied();
    let mut rest: Option<Stretch> = None;
    std::iter::from_fn(move || {
        let (mut batch, mut room) = (Vec::new(), most);
        while room > 0 && batch.len() < MAX_RUNS {
            let Some(next) = rest.take().filter(|rest| rest.count > 0).or_else(|| others.next()) else { break };
            let (now, later) = next.split_at(room);
            room -= now.count;
            batch.push(now);
            rest = Some(later);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

/// What is to be sent where `sent` is known and `pages` are there now, of which those in `dirty` have changed.
pub(super) fn changes(sent: &[PrivatePage], pages: &[PrivatePage], dirty: &FrameSet) -> Vec<Stretch> {
    let mut gone = Vec::new();
    let mut changed: Vec<Stretch> = Vec::new();
    let mut old = sent.iter().peekable();
    let nothing = |page: &PrivatePage| Stretch {
        page: page.page,
        count: page.count(),
        frame: None,
        large: page.large,
        is_zero_by_default: false,
    };
    for page in pages {
        while let Some(before) = old.next_if(|old| old.page < page.page) {
            gone.push(nothing(before));
        }
        let before = old.next_if(|old| old.page == page.page);
        let stretch = |i: u32, count: u32, is_zero_by_default: bool| Stretch {
            page: page.page + u64::from(i),
            count,
            frame: Some(page.frame.offset(i)),
            large: page.large,
            is_zero_by_default,
        };
        match before {
            Some(before) if before == page => {
                let mut i = 0;
                while i < page.count() {
                    let run = (i..page.count()).take_while(|&i| dirty.contains(page.frame.offset(i))).count() as u32;
                    if run > 0 {
                        changed.push(stretch(i, run, false));
                    }
                    i += run + 1;
                }
            }
            before => {
                gone.extend(before.map(nothing));
                changed.push(stretch(0, page.count(), !page.covers_file));
            }
        }
    }
    gone.extend(old.map(nothing));
    gone.extend(changed);
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::addr::Frame;

    #[test]
    fn batches_have_each_page_once_and_no_more_than_fit() {
        let stretch = |page: u64, count: u32| Stretch {
            page,
            count,
            frame: Some(Frame(page as u32)),
            large: false,
            is_zero_by_default: true,
        };
        let mut stretches = vec![stretch(7, 1), stretch(512, 512), stretch(2000, 3)];
        stretches.extend((0..3 * MAX_RUNS as u64).map(|at| stretch(5000 + 2 * at, 1)));
        let pages = |stretches: &[Stretch]| -> Vec<u64> {
            stretches.iter().flat_map(|some| some.page..some.page + u64::from(some.count)).collect()
        };
        for most in [1, 2, 100, 513, 1 << 20] {
            let mut seen = Vec::new();
            for batch in batches(&stretches, most) {
                assert!(bytes_in(&batch) <= u64::from(most) * PAGE_SIZE && batch.len() <= MAX_RUNS, "{most}");
                assert!(batch.iter().all(|some| some.count > 0 && some.frame == Some(Frame(some.page as u32))));
                seen.extend(pages(&batch));
            }
            assert_eq!(seen, pages(&stretches), "{most}");
        }
        assert_eq!(batches(&[], 8).count(), 0);
    }
}
