//! Starting processes that outlive the command.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command's process a session of its own, which neither a terminal nor its parent's end
/// reaches, and leaves it no descriptors but the standard ones and `kept`: a pipe of the caller's
/// (`make`'s job server, a test's output) would otherwise stay open as long as the process.
///
/// `kept` must stay open until the command is spawned.
pub fn detach(command: &mut Command, kept: Vec<RawFd>) -> &mut Command {
    // SAFETY: between fork and exec it makes system calls only and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            // Where the kernel is older than 5.11 and knows it not, descriptors stay as they are.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            for &fd in &kept {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    }
}
