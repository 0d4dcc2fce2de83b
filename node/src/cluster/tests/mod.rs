//! Hosts of one process that speak over loopback, with a clock that is set by hand.

mod handing_over;
mod joining;
mod removal;
mod strangers;

use super::guests::Nodes;
use super::membership::{Clock, Membership};
use super::service::Service;
use super::store::Store;
use super::token::Token;
use super::wire::control::{ClusterReply, ClusterRequest, MemberStatus};
use super::wire::label::Label;
use super::wire::message::Load;
use super::wire::roster::Member;
use crate::name::NodeName;
use procmig::wire::control::ProcessStatus;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When tests begin, in seconds since 1970.
const START: u64 = 2_000_000_000;
/// How long may pass until something is true.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test where `skeind` would run its tasks.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// A host without nodes.
#[derive(Debug)]
pub(super) struct NoNodes;

impl Nodes for NoNodes {
    fn connect(&self, _: Option<&NodeName>) -> Result<UnixStream, String> {
        Err("this host has no nodes".to_owned())
    }

    fn find(&self, _: Option<&NodeName>) -> Result<(NodeName, PathBuf), String> {
        Err("this host has no nodes".to_owned())
    }

    fn load(&self) -> Load {
        Load { per_mille: 0, nodes: Vec::new() }
    }

    fn guests(&self, _: Option<&Label>) -> Vec<(NodeName, ProcessStatus)> {
        Vec::new()
    }
}

/// Directories of hosts, and their common clock.
struct World {
    directory: tempfile::TempDir,
    now: Arc<AtomicU64>,
}

impl World {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), now: Arc::new(AtomicU64::new(START)) }
    }

    fn store(&self, name: &str) -> PathBuf {
        self.directory.path().join(name).join("cluster")
    }

    /// The host of that name, as its store has it.
    fn host(&self, name: &str) -> Arc<Service> {
        let now = self.now.clone();
        Service::for_test(Store::new(self.store(name)), Clock::new(move || now.load(Ordering::Relaxed)))
    }

    fn pass(&self, minutes: u64) {
        self.now.fetch_add(minutes * 60, Ordering::Relaxed);
    }

    /// A host that has made a cluster.
    async fn first(&self, name: &str, cluster: &str) -> Arc<Service> {
        let host = self.host(name);
        host.serve(init(name, cluster)).await.unwrap();
        host
    }

    /// A host that has joined the cluster of `authority`.
    async fn joined(&self, name: &str, authority: &Service) -> Arc<Service> {
        let host = self.host(name);
        host.serve(join(name, &invite(authority).await)).await.unwrap();
        host
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn init(name: &str, cluster: &str) -> ClusterRequest {
    let cluster = Some(cluster.parse().unwrap());
    ClusterRequest::Init { cluster, host: Some(name.parse().unwrap()), listen: Some(loopback()) }
}

fn join(name: &str, token: &str) -> ClusterRequest {
    let host = Some(name.parse().unwrap());
    ClusterRequest::Join { token: token.to_owned(), at: None, host, listen: Some(loopback()) }
}

async fn invite(host: &Service) -> String {
    match host.serve(ClusterRequest::Invite { minutes: 10 }).await.unwrap() {
        ClusterReply::Token(token) => token,
        other => panic!("{other:?}"),
    }
}

async fn members(host: &Service) -> Vec<MemberStatus> {
    match host.serve(ClusterRequest::Members).await.unwrap() {
        ClusterReply::Members(members) => members,
        other => panic!("{other:?}"),
    }
}

async fn remove(host: &Service, name: &str) -> Result<ClusterReply, String> {
    host.serve(ClusterRequest::Remove { host: name.to_owned() }).await
}

/// The token with something changed.
fn changed(token: &str, change: impl FnOnce(&mut Token)) -> String {
    let mut token: Token = token.parse().unwrap();
    change(&mut token);
    token.to_string()
}

/// A host as others know it.
fn member(host: &Service) -> Member {
    let membership = host.current();
    membership.roster().member(membership.id).unwrap().clone()
}

fn address(host: &Service) -> SocketAddr {
    member(host).addresses[0]
}

/// Waits until something is true of a member.
async fn until(membership: &Membership, what: impl Fn(&Membership) -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !what(membership) {
        assert!(tokio::time::Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
