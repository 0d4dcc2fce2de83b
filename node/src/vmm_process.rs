//! The process of a node VM, as `skeind` starts it.

use anyhow::{Context, bail};
use clap::Args;
use procmig::node::NodeConfig;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// Arguments of the hidden `skein vmm`.
#[derive(Debug, Args)]
pub struct VmmArgs {
    /// Name of the node
    #[arg(long)]
    name: String,
    /// Guest RAM in bytes
    #[arg(long)]
    memory: u64,
    /// Inherited descriptor of the listening socket
    #[arg(long)]
    socket_fd: RawFd,
    /// Inherited descriptor to report on when ready
    #[arg(long)]
    ready_fd: Option<RawFd>,
    /// Inherited descriptor of the locked PID file, held until the process ends
    #[arg(long)]
    lock_fd: Option<RawFd>,
}

/// Runs the node until it is stopped.
pub fn main(args: VmmArgs) -> anyhow::Result<()> {
    keep_no_large_blocks();
    crate::hostd::log::to_stderr();
    let socket = inherit(args.socket_fd)?;
    let ready = args.ready_fd.map(inherit).transpose()?;
    let lock = args.lock_fd.map(inherit).transpose()?;
    raise_descriptor_limit();
    let config = NodeConfig { name: args.name, memory: args.memory, listener: UnixListener::from(socket), ready };
    let result = procmig::node::serve(config).context("the node cannot run");
    drop(lock);
    result
}

/// A thread in the node is a vCPU and a connection, so the usual soft limit is soon reached.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Has the allocator give back what large calls needed. Its own rule is to learn from the first large block
/// that is freed, and then to keep such blocks, in each of many arenas: hundreds of megabytes.
fn keep_no_large_blocks() {
    const LARGE: libc::c_int = 1 << 20;
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: sets a number of the allocator.
        if unsafe { libc::mallopt(option, LARGE) } == 0 {
            tracing::debug!(option, "the allocator keeps to its own rule");
        }
    }
}

/// Takes an inherited descriptor; no program started from here gets it.
fn inherit(fd: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: fcntl reads no memory here, and an invalid descriptor is an error.
    let set = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if fd < 3 || set < 0 {
        bail!("descriptor {fd} was not passed; this command is for skeind only, see: skein node launch --help");
    }
    // SAFETY: it is open, and nobody else in this new process owns it: its number came by argument.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
