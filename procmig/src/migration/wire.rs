//! What source and target say to each other.
//!
//! The source connects to the target's socket and sends [`NodeRequest::Receive`](crate::wire::control::NodeRequest)
//! with an [`Offer`]; the answer is a [`Reply`]. Then it sends [`FromSource`] messages, as
//! [frames](crate::wire::frame), each [`FromSource::Pages`] followed by the bytes of the pages that have some, in
//! order, and [`FromSource::Packed`] by the same compressed. [`FromSource::Image`] is the last before the deputy decides; it
//! is answered by a [`Reply`].
//!
//! Memory may come over further streams, if the target says where it takes them ([`Aside`]): connections that begin with
//! [`NodeRequest::Join`](crate::wire::control::NodeRequest::Join) on the same host, and as those of a
//! [link](crate::wire::link) from another, of which the source is the side of home and [`Aside::ticket`] the identifier;
//! their secret is of the connection on which the offer was made. The target answers each with [`Reply::Accepted`], of
//! nothing; the source does without those that it does not answer. Before any pages each stream says
//! [`FromSource::Spread`], and behind the last of the address space [`FromSource::Gather`]: the first when all others
//! have. [`FromSource::Pages`] of nothing are a sign of life.
//!
//! If the source keeps some pages for later (post-copy), they are named in [`FromSource::Owed`] right before the image.
//! When the process is the target's the source says [`FromSource::Moved`], and answers each [`Reply::Want`] with one
//! message of pages, until the target wants nothing.

use super::cpu::CpuFeatures;
use super::image::ProcessImage;
use crate::wire::capped;
use crate::wire::link::LinkId;
use serde::{Deserialize, Serialize};
use vmm::addr::PAGE_SIZE;

/// Cap on a message.
pub const MAX_MESSAGE: usize = 64 << 20;
/// Most pages of one [`FromSource::Pages`] or [`FromSource::Packed`].
pub const MAX_PAGES: u64 = 2048;
/// Most runs of one.
pub const MAX_RUNS: usize = MAX_PAGES as usize;
/// Most streams over which the memory of a process comes.
pub const MAX_STREAMS: u32 = 16;
/// Bytes of a ticket.
pub const TICKET: usize = 16;

/// Names a process that has arrived and waits for its deputy.
pub type Ticket = [u8; TICKET];

/// What the source wants to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// [`VERSION`](crate::wire::control::VERSION)
    pub version: u32,
    /// The process.
    pub pid: i32,
    /// For people.
    pub name: String,
    /// Bytes of its private memory.
    pub bytes: u64,
    /// Its threads.
    pub threads: u32,
    /// Bytes of one thread's extended state, and the features (XCR0) that it may be of.
    pub fpu: (u32, u64),
    /// What the source's processor offers to programs.
    pub cpu: CpuFeatures,
    /// The deputy's link with the target; `None` if that is at home.
    pub link: Option<LinkId>,
    /// Further streams over which its memory could come.
    pub streams: u32,
}

/// Where further streams may come for a process that is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Names the process until it is there.
    pub ticket: Ticket,
    /// How many, at most.
    pub streams: u32,
    /// For another host: TCP port, at the address to which the first stream goes.
    pub port: Option<u16>,
}

/// The target's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To the offer: go on. To a further stream: it is taken.
    Accepted(Option<Aside>),
    /// To the image: the process waits for its deputy, who names it so.
    Ready(Ticket),
    /// No; why.
    Refused(String),
    /// The process runs; these of the pages that are owed are wanted: number of the first, and how many. None if
    /// nothing more is.
    Want(#[serde(deserialize_with = "capped::list::<_, _, MAX_RUNS>")] Vec<(u64, u32)>),
}

/// From the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromSource {
    /// Pages.
    Pages(#[serde(deserialize_with = "capped::list::<_, _, MAX_RUNS>")] Vec<Run>),
    /// Pages whose bytes follow in chunks that may be compressed ([`super::packing`]).
    Packed(#[serde(deserialize_with = "capped::list::<_, _, MAX_RUNS>")] Vec<Run>),
    /// The rest. The descriptors of the files that it maps follow, in messages of their own.
    Image(Box<ProcessImage>),
    /// Some of the descriptors, which the message passes.
    Descriptors,
    /// The process stays where it is.
    Abandoned,
    /// Pages of the address space that are to come when the process runs at the target.
    Owed(#[serde(deserialize_with = "capped::list::<_, _, MAX_RUNS>")] Vec<Run>),
    /// The process is the target's, and pages can be asked for.
    Moved,
    /// Memory comes over so many streams, this one among them.
    Spread(u32),
    /// All pages have been sent that come over this stream; on the first, over the others as well.
    Gather,
}

/// Whose a run of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    /// The address space; pages are counted from address 0.
    Space,
    /// An object of the image, by its index; pages are counted from its start.
    Object(u32),
}

/// What is known of the pages of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Their bytes follow.
    Bytes,
    /// They are zeros.
    Zeros,
    /// They are not there any more.
    Nothing,
}

/// Pages in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Whose.
    pub owner: Owner,
    /// Number of the first.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// They are part of a large page.
    pub large: bool,
    /// What they hold.
    pub content: Content,
}

/// Bytes that follow these runs; `None` if there are more runs or pages than may be, or one is nowhere.
pub fn bytes_of(runs: &[Run]) -> Option<u64> {
    const LAST: u64 = u64::MAX / PAGE_SIZE;
    if runs.len() > MAX_RUNS {
        return None;
    }
    let mut pages = 0;
    for run in runs {
        if run.count == 0 || run.first.checked_add(run.count.into()).is_none_or(|end| end > LAST) {
            return None;
        }
        if run.content != Content::Nothing {
            pages += u64::from(run.count);
        }
    }
    let bytes = runs.iter().filter(|run| run.content == Content::Bytes).map(|run| u64::from(run.count) * PAGE_SIZE);
    (pages <= MAX_PAGES).then(|| bytes.sum())
}
