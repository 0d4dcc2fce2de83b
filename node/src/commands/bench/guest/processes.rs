//! Loops that make processes.

use super::memory::Area;
use super::timed;
use anyhow::Context;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::io;
use std::process::{Command, Stdio};

/// Nanoseconds until a child has been forked, has exited and is waited for, by a process with `bytes` of
/// memory that it has written to.
pub fn forked(bytes: usize, count: u64) -> anyhow::Result<f64> {
    let mut memory = Area::new(bytes).context("too little memory; use a smaller --bytes")?;
    memory.bytes().fill(1);
    Ok(timed(count, || {
        // SAFETY: the child does nothing but exit.
        match unsafe { fork() }? {
            // SAFETY: it takes no memory and no locks.
            ForkResult::Child => unsafe { libc::_exit(0) },
            ForkResult::Parent { child } => match waitpid(child, None)? {
                WaitStatus::Exited(_, 0) => Ok(()),
                status => Err(io::Error::other(format!("the child: {status:?}"))),
            },
        }
    })?)
}

/// Nanoseconds until `/bin/true` has been started by `posix_spawn`, has exited and is waited for.
pub fn spawned(count: u64) -> anyhow::Result<f64> {
    // The standard library uses it where nothing is asked for that it has not.
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::inherit());
    Ok(timed(count, || match command.status()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("/bin/true: {status}"))),
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_started_again_and_again() {
        assert!(spawned(3).unwrap() > 0.0);
    }
}
