//! What a program and all that it starts are together: what they may take (`mosrun -m` and `--max-threads`), the user's
//! number for them (`-J`), and where they were started.

use super::links::Link;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vmm::accounts::Account;
use vmm::machine::Machine;

/// A program that was started from home, with all its descendants.
pub struct Group {
    machine: Arc<Machine>,
    account: Account,
    max_threads: u32,
    threads: AtomicU32,
    job: Option<u32>,
    /// Where it was started, if that is another host.
    link: Option<Arc<Link>>,
}

/// The right to be one thread of a group, until it is dropped.
pub struct Permit(Arc<Group>);

impl Group {
    /// A group without threads that may have so many bytes of memory and threads; `None` if the node
    /// has too many groups.
    pub fn new(machine: Arc<Machine>, memory: Option<u64>, threads: Option<u32>) -> Option<Arc<Self>> {
        Self::of_link(machine, memory, threads, None, None)
    }

    /// The same of a job, for a program of another host with its link.
    pub fn of_link(
        machine: Arc<Machine>,
        memory: Option<u64>,
        threads: Option<u32>,
        job: Option<u32>,
        link: Option<Arc<Link>>,
    ) -> Option<Arc<Self>> {
        let account = match memory {
            Some(bytes) => machine.frames().open_account(bytes)?,
            None => Account::default(),
        };
        let max_threads = threads.unwrap_or(u32::MAX);
        Some(Arc::new(Self { machine, account, max_threads, threads: AtomicU32::new(0), job, link }))
    }

    /// The user's number for it, if it has one.
    pub fn job(&self) -> Option<u32> {
        self.job
    }

    /// The link with its home, if that is another host.
    pub fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    /// The number of its home; 0 is this host.
    pub fn home(&self) -> u32 {
        self.link.as_ref().map_or(0, |link| link.home.number)
    }

    /// To which its frames are charged.
    pub fn account(&self) -> Account {
        self.account
    }

    /// What it may have: bytes of memory, and threads.
    pub fn limits(&self) -> (Option<u64>, Option<u32>) {
        let frames = self.machine.frames();
        let memory =
            self.account.is_limited().then(|| u64::from(frames.account_state(self.account).1) * vmm::addr::PAGE_SIZE);
        (memory, (self.max_threads != u32::MAX).then_some(self.max_threads))
    }

    /// One more thread; `None` if it has as many as it may have.
    pub fn admit(self: &Arc<Self>) -> Option<Permit> {
        let more = |threads: u32| (threads < self.max_threads).then_some(threads + 1);
        self.threads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Permit(self.clone()))
    }

    /// Whether a page more would be beyond its limit of memory.
    pub fn is_full(&self) -> bool {
        self.account.is_limited() && {
            let (used, limit) = self.machine.frames().account_state(self.account);
            used >= limit
        }
    }

    /// Whether it has taken more than it may: system calls may do so for a moment.
    pub fn is_beyond(&self) -> bool {
        self.account.is_limited() && {
            let (used, limit) = self.machine.frames().account_state(self.account);
            used > limit
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.machine.frames().close_account(self.account);
    }
}
