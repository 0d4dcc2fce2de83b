//! What hosts, and commands about the cluster, say to each other: data without sockets or keys.
//!
//! All of it is read as hostile input: lengths are capped, names are checked when they are decoded.

pub mod control;
pub mod id;
pub mod label;
pub mod level;
pub mod message;
pub mod roster;
