//! Guest processes: the Linux personality that serves them in a node VM, and their deputies at home.

pub mod calls;
pub mod channel;
pub mod deputy;
pub mod elf;
pub mod futex;
pub mod kernel;
pub mod migration;
pub mod mm;
pub mod node;
pub mod signal;
pub mod trace;
pub mod usermem;
pub mod vdso;
pub mod wire;

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
