//! What is to be sent of a process's memory.

use crate::migration::wire::{MAX_PAGES, MAX_RUNS};
use crate::mm::image::{PrivatePage, Stretch};
use vmm::addr::PAGE_SIZE;
use vmm::dirty::FrameSet;

pub(super) fn bytes_in(stretches: &[Stretch]) -> u64 {
    stretches.iter().map(|stretch| u64::from(stretch.count) * PAGE_SIZE).sum()
}

/// Parts of at most as many pages as one message tells of.
pub(super) fn batches(stretches: &[Stretch]) -> impl Iterator<Item = &[Stretch]> {
    let mut rest = stretches;
    std::iter::from_fn(move || {
        let mut pages = 0;
        let fits = |stretch: &&Stretch| {
            pages += u64::from(stretch.count);
            pages <= MAX_PAGES
        };
        let count = rest.iter().take(MAX_RUNS).take_while(fits).count();
        let (batch, others) = rest.split_at(count);
        rest = others;
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
