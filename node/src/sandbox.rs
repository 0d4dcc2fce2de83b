//! A host with a node in a temporary state directory, for demonstration and measurement: nothing of
//! the user's own host is touched, and nothing is left behind.

use crate::client::{self, Client};
use crate::hostd::protocol::{HostRequest, NodeEntry};
use crate::name::NodeName;
use crate::statedir::StateDir;
use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// A temporary host; stopped and removed when dropped.
#[derive(Debug)]
pub struct Sandbox {
    state: StateDir,
    // Dropped after the host has stopped.
    _directory: tempfile::TempDir,
}

impl Sandbox {
    /// Starts the host. From now on `^C` ends what runs, and the sandbox is still cleared away.
    pub fn start() -> anyhow::Result<Self> {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
        let action = SigAction::new(SigHandler::Handler(interrupted), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler only stores to an atomic.
            unsafe { sigaction(signal, &action)? };
        }
        let directory = tempfile::Builder::new().prefix("skein-").tempdir().context("cannot make a directory")?;
        let state = StateDir::open(Some(&directory.path().join("state")))?;
        let sandbox = Self { state, _directory: directory };
        client::start(&sandbox.state)?;
        Ok(sandbox)
    }

    /// Where its files are, and others may be put.
    pub fn directory(&self) -> &std::path::Path {
        self._directory.path()
    }

    /// The host's state directory.
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// Launches a node; also says how many milliseconds it took until it was ready.
    pub fn launch(&self, name: NodeName, memory: Option<u64>) -> anyhow::Result<(NodeEntry, f64)> {
        let started = Instant::now();
        let node = Client::connect_or_start(&self.state)?.node(&HostRequest::Launch { name: Some(name), memory })?;
        Ok((node, started.elapsed().as_secs_f64() * 1e3))
    }

    /// Stops a node.
    pub fn stop(&self, name: NodeName) -> anyhow::Result<()> {
        Client::connect_or_start(&self.state)?.ask(&HostRequest::StopNode { name, force: true }).map(drop)
    }

    /// This binary under one of its names, with this sandbox as its host.
    pub fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg0(name).env("SKEIN_DIR", self.state.path());
        Ok(command)
    }

    /// A command that runs `program` in `node`.
    pub fn mosrun<A: AsRef<OsStr>>(&self, node: &NodeName, program: &[A]) -> anyhow::Result<Command> {
        let mut command = self.command("mosrun")?;
        command.arg("--node").arg(node.as_str()).args(program);
        Ok(command)
    }
}

/// Fails if the user has asked to stop.
pub fn check_interrupted() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let stopped = Client::connect(&self.state).and_then(|client| match client {
            Some(mut client) => client.ask(&HostRequest::Stop { force: true }).map(drop),
            None => Ok(()),
        });
        if let Err(error) = stopped {
            crate::output::complain("skein", &error.context("the temporary host did not stop"));
        }
        client::await_stop(&self.state);
    }
}
