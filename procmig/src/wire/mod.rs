//! The protocols between a node VM and the deputies of its guests, and between a node VM and `skeind`.
//!
//! A deputy has one *control* connection (Unix stream) for the process and one *call* connection
//! for each of its threads. On a call connection the node sends a request and the deputy's thread
//! answers it: one request at a time, one write each way. The control connection carries what is
//! not an answer: signals that reached the deputy, cancellations, trace lines.
//!
//! A guest of another host has a [link](link) with its home, and its connections are sealed TCP instead
//! ([`stream`]); these pass no descriptors, and can go on over another socket when theirs is lost ([`lasting`]).
//!
//! All of it is read as hostile input: lengths are capped before anything is allocated.

pub mod bytes;
pub mod call;
pub mod capped;
pub mod control;
pub mod file_kind;
pub mod frame;
pub mod inquiry;
pub mod lasting;
pub mod link;
pub mod op;
pub mod sealed;
pub mod stream;
pub mod usage;
