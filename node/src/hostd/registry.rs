//! The nodes of a host, as `skeind` keeps them.
//!
//! All of it waits (for processes, sockets, files) and so runs on threads of its own, one change
//! at a time.

use super::launch::{self, LaunchError, remove};
use super::lock;
use super::protocol::NodeEntry;
use crate::memory::Machine;
use crate::name::NodeName;
use crate::nodelink;
use crate::statedir::StateDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procmig::chain;
use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long a node may take to end after it agreed to.
const ENDING: Duration = Duration::from_secs(5);
/// Names tried for a node without one.
const MOST_NODES: u32 = 10_000;

/// A living node.
#[derive(Debug)]
struct Known {
    pid: i32,
    /// `None` if an earlier skeind started it; else it must be reaped.
    child: Option<Child>,
}

/// The living nodes.
#[derive(Debug)]
pub struct Registry {
    state: StateDir,
    nodes: BTreeMap<NodeName, Known>,
    /// Where the PIDs of new nodes go, so that their ends are noticed.
    news: tokio::sync::mpsc::UnboundedSender<i32>,
}

impl Registry {
    /// An empty registry.
    pub fn new(state: StateDir, news: tokio::sync::mpsc::UnboundedSender<i32>) -> Self {
        Self { state, nodes: BTreeMap::new(), news }
    }

    /// The nodes in order of their names.
    pub fn entries(&self) -> Vec<NodeEntry> {
        let entry = |(name, known): (&NodeName, &Known)| NodeEntry {
            name: name.clone(),
            pid: known.pid,
            adopted: known.child.is_none(),
        };
        let mut entries: Vec<NodeEntry> = self.nodes.iter().map(entry).collect();
        entries.sort_by_key(|entry| entry.name.sort_key());
        entries
    }

    /// Picks up the nodes that an earlier skeind left running and clears away what dead ones left.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn adopt(&mut self) -> std::io::Result<()> {
        for name in self.state.nodes()? {
            if self.nodes.contains_key(&name) {
                continue;
            }
            if !lock::is_held(&self.state.node_pid(&name)) {
                tracing::info!(node = %name, "clearing away a dead node");
                self.clear(&name);
                continue;
            }
            let told = nodelink::status(&self.state, &name);
            let noted = || std::fs::read_to_string(self.state.node_pid(&name)).ok()?.trim().parse().ok();
            let pid = match told {
                Ok(status) => Some(status.vmm_pid),
                Err(error) => {
                    tracing::warn!(node = %name, %error, "a node lives but does not answer");
                    noted()
                }
            };
            match pid {
                Some(pid) if pid > 1 => {
                    tracing::info!(node = %name, pid, "picked up a running node");
                    self.insert(name, pid, None);
                }
                _ => tracing::warn!(node = %name, "a node lives but its PID is unknown; it is left alone"),
            }
        }
        Ok(())
    }

    fn insert(&mut self, name: NodeName, pid: i32, child: Option<Child>) {
        self.nodes.insert(name, Known { pid, child });
        let _ = self.news.send(pid);
    }

    fn clear(&self, name: &NodeName) {
        for path in [self.state.node_socket(name), self.state.node_pid(name)] {
            if let Err(error) = remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove what a node left");
            }
        }
    }

    /// Starts a node.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn launch(&mut self, name: Option<NodeName>, memory: Option<u64>) -> Result<NodeEntry, String> {
        let machine = Machine::read().map_err(|error| format!("cannot read the machine's memory: {error}"))?;
        let memory = machine.check_node(memory.unwrap_or_else(|| machine.default_node()))?;
        let name = match name {
            Some(name) if self.nodes.contains_key(&name) => return Err(LaunchError::Taken(name).to_string()),
            Some(name) => name,
            None => (1..=MOST_NODES)
                .map(NodeName::numbered)
                .find(|name| !self.nodes.contains_key(name) && !lock::is_held(&self.state.node_pid(name)))
                .ok_or_else(|| format!("{MOST_NODES} nodes run already; stop one with: skein node stop NAME"))?,
        };
        let started = Instant::now();
        let child = launch::launch(&self.state, &name, memory).map_err(|error| chain(&error))?;
        let pid = child.id() as i32;
        tracing::info!(node = %name, pid, memory, micros = started.elapsed().as_micros() as u64, "started a node");
        self.insert(name.clone(), pid, Some(child));
        Ok(NodeEntry { name, pid, adopted: false })
    }

    /// The node with the fewest processes; starts one if there is none.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn pick(&mut self) -> Result<NodeEntry, String> {
        let entries = self.entries();
        let best = match &entries[..] {
            [] => return self.launch(None, None),
            [only] => Some(only),
            // Not asking the nodes when there is no choice saves a round trip on the usual path.
            several => several
                .iter()
                .filter_map(|entry| Some((nodelink::status(&self.state, &entry.name).ok()?.processes, entry)))
                .min_by_key(|(processes, _)| *processes)
                .map(|(_, entry)| entry),
        };
        best.cloned().ok_or_else(|| "no node answers; see: skein node ls".to_owned())
    }

    /// A node that runs.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn find(&self, name: &NodeName) -> Result<NodeEntry, String> {
        let found = self.entries().into_iter().find(|entry| entry.name == *name);
        found.ok_or_else(|| format!("there is no node {name}; see: skein node ls"))
    }

    /// A node, this one or the one that is picked, and where its socket is.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn socket(&mut self, name: Option<&NodeName>) -> Result<(NodeName, PathBuf), String> {
        let entry = self.find_or_pick(name)?;
        let socket = self.state.node_socket(&entry.name);
        Ok((entry.name, socket))
    }

    fn find_or_pick(&mut self, name: Option<&NodeName>) -> Result<NodeEntry, String> {
        match name {
            Some(name) => self.find(name),
            None => self.pick(),
        }
    }

    /// Connects with a node: this one, or the one that is picked.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn connect(&mut self, name: Option<&NodeName>) -> Result<UnixStream, String> {
        let entry = self.find_or_pick(name)?;
        nodelink::connect(&self.state, &entry.name).map_err(|error| chain(&error))
    }

    /// The node with fewest threads among all but one.
    pub fn least_busy_but(&self, name: &NodeName) -> Option<NodeName> {
        let others = self.entries().into_iter().filter(|entry| entry.name != *name);
        let known = others.filter_map(|entry| {
            let status = nodelink::status(&self.state, &entry.name).ok()?;
            Some((status.threads, entry.name))
        });
        known.min().map(|(_, name)| name)
    }

    /// What it takes to ask all nodes something.
    pub fn nodes(&self) -> (StateDir, Vec<NodeName>) {
        (self.state.clone(), self.entries().into_iter().map(|entry| entry.name).collect())
    }

    /// Stops a node and waits until its process is gone.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn stop(&mut self, name: &NodeName, force: bool) -> Result<(), String> {
        let Some(known) = self.nodes.get(name) else {
            return Err(format!("there is no node {name}; see: skein node ls"));
        };
        let pid = known.pid;
        match nodelink::stop(&self.state, name, force) {
            Ok(()) => {}
            Err(nodelink::LinkError::Refused { why, .. }) => return Err(format!("node {name} goes on: {why}")),
            Err(error) if force => {
                tracing::warn!(node = %name, error = %chain(&error), "killing a node that does not answer");
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            Err(error) => return Err(format!("{}; to kill it: skein node stop --force {name}", chain(&error))),
        }
        if !self.await_end(name, ENDING) {
            tracing::warn!(node = %name, "a stopped node did not end; killing it");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            self.await_end(name, ENDING);
        }
        self.forget(name);
        tracing::info!(node = %name, pid, "stopped a node");
        Ok(())
    }

    /// Stops all nodes: none, unless `force`, if one of them has guests.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn stop_all(&mut self, force: bool) -> Result<(), String> {
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        if !force {
            for name in &names {
                let processes = nodelink::status(&self.state, name).map_err(|error| chain(&error))?.processes;
                if processes > 0 {
                    return Err(format!(
                        "{processes} {} on {name}; wait for it (see: mosps), or end it with --force",
                        if processes == 1 { "process runs" } else { "processes run" }
                    ));
                }
            }
        }
        names.iter().try_for_each(|name| self.stop(name, force))
    }

    fn await_end(&mut self, name: &NodeName, patience: Duration) -> bool {
        let Some(known) = self.nodes.get_mut(name) else { return true };
        let ended = open_pidfd(known.pid).is_none_or(|pidfd| {
            use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
            use std::os::fd::AsFd;
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) != Ok(0)
        });
        if let Some(child) = known.child.as_mut().filter(|_| ended) {
            let _ = child.wait();
        }
        ended
    }

    /// Notices that a process has ended.
    pub fn ended(&mut self, pid: i32) {
        let Some(name) = self.nodes.iter().find(|(_, known)| known.pid == pid).map(|(name, _)| name.clone()) else {
            return; // It was stopped, and is forgotten already.
        };
        let how = match self.nodes.get_mut(&name).and_then(|known| known.child.as_mut()).map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            _ => "unknown".to_owned(),
        };
        tracing::warn!(node = %name, pid, how, "a node has ended");
        self.forget(&name);
    }

    fn forget(&mut self, name: &NodeName) {
        self.nodes.remove(name);
        if !lock::is_held(&self.state.node_pid(name)) {
            self.clear(name);
        }
    }
}

/// A descriptor that becomes readable when the process ends; `None` if it has.
pub fn open_pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open reads no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just made it, for us alone.
    Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
