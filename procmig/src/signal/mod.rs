//! Signals: sets, what is pending, `siginfo_t`, alternate stacks and the frames that handlers run on.

pub mod altstack;
pub mod frame;
pub mod info;
pub mod pending;
pub mod set;
