//! Processes that migrate to other hosts, or from there.
//!
//! The order comes from the process's home, or from a command on the host where it runs. The source's `skeind` makes the
//! connection with the target's host and gives it to the two nodes, which speak on it with nobody between them. The
//! deputy has its own way to the target.

use super::contact;
use super::guests::Nodes;
use super::link::Handed;
use super::membership::Membership;
use super::placing::{self, Chosen};
use super::wire::id::KeyId;
use super::wire::message::{self, Manner, Migrate as Order, Purpose, Reply, Request};
use super::wire::roster::Member;
use crate::name::NodeName;
use procmig::chain;
use procmig::migration::record::{Event, Record};
use procmig::wire::control::{MAX_MESSAGE, Migrate, NodeReply, NodeRequest, Way};
use procmig::wire::frame;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// How long another host may be silent while a process migrates from it.
const SILENCE: Duration = Duration::from_secs(60);

/// Where news of a migration goes.
pub type News = UnboundedSender<Event>;

/// A process that runs in a node of this host.
#[derive(Debug, Clone)]
pub struct Source {
    /// The node.
    pub node: NodeName,
    /// At its home.
    pub pid: i32,
    /// Its home, if that is another host.
    pub home: Option<KeyId>,
}

/// Has a process migrate from a node of this host.
///
/// # Errors
/// A sentence; the process is where it was.
pub async fn send(
    membership: Option<&Membership>,
    nodes: Arc<dyn Nodes>,
    source: Source,
    target: Chosen,
    manner: Manner,
    news: News,
) -> Result<Record, String> {
    let own = membership.map(|membership| membership.id);
    let home = source.home.or(own);
    let there = |id: KeyId| (home != Some(id)).then_some(id.0);
    let Manner { max_freeze_micros, bandwidth, post_copy, streams } = manner;
    let order = |way, host, node: &NodeName, shown| Migrate {
        pid: source.pid,
        home: source.home.map(|home| home.0),
        way,
        host,
        node: node.to_string(),
        shown,
        max_freeze_micros,
        bandwidth,
        post_copy,
        streams,
    };
    let (order, handed) = match target {
        Chosen::Here(node) => {
            let nodes = nodes.clone();
            let (node, socket) = blocking(move || nodes.find(node.as_ref())).await?;
            if node == source.node {
                return Err(format!("it is at the node {node} already"));
            }
            let way = Way::Socket(socket.as_os_str().as_bytes().to_vec());
            // Where its home is another host, that has to find the way here.
            let host = source.home.and(own).and_then(there);
            (order(way, host, &node, node.to_string()), None)
        }
        Chosen::There(member, node) => {
            let membership = membership.ok_or("this host is in no cluster")?;
            let (handed, node) = open(membership, &member, node).await?;
            let shown = if home == Some(member.id) { node.to_string() } else { format!("{}/{node}", member.name) };
            (order(Way::Passed(handed.keys.clone()), there(member.id), &node, shown), Some(handed))
        }
    };
    blocking(move || {
        let stream = nodes.connect(Some(&source.node))?;
        follow(&stream, &order, handed.as_ref(), &news)
    })
    .await
}

/// Opens a connection for a process to a node of another host; says which node it is.
async fn open(membership: &Membership, member: &Member, node: Option<NodeName>) -> Result<(Handed, NodeName), String> {
    let opened = contact::connect(membership, member, Purpose::Migration(node)).await;
    let (handed, purpose) = opened
        .and_then(|(link, hello, _)| Ok((link.hand_over()?, hello.purpose)))
        .map_err(|why| format!("{}: {why}", member.name))?;
    match purpose {
        Purpose::Migration(Some(node)) => Ok((handed, node)),
        _ => Err(format!("{}: it does not say which node takes the process", member.name)),
    }
}

/// Gives the order to the source's node and passes on what it says.
fn follow(stream: &UnixStream, order: &Migrate, handed: Option<&Handed>, news: &News) -> Result<Record, String> {
    let failed = |error: frame::FrameError| format!("the node that runs the process fails: {}", chain(&error));
    let passed: Vec<_> = handed.iter().map(|handed| handed.socket.as_raw_fd()).collect();
    frame::send(stream, &NodeRequest::Migrate(order.clone()), &passed).map_err(failed)?;
    loop {
        match frame::receive(stream, MAX_MESSAGE).map_err(failed)?.0 {
            NodeReply::Migration(event) => {
                // Who has asked may be gone; the migration goes on.
                let _ = news.send(event);
            }
            NodeReply::Migrated(record) => return Ok(record),
            NodeReply::Refused(why) => return Err(why),
            _ => return Err("the node that runs the process answered another question".to_owned()),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Has a process of this host migrate that runs on another.
///
/// # Errors
/// A sentence; if the other host fails it may have migrated all the same.
pub async fn order(membership: &Membership, on: &Member, order: Order, news: News) -> Result<Record, String> {
    let at = |why| format!("{}: {why}", on.name);
    let (mut link, _, _) = contact::connect(membership, on, Purpose::Control).await.map_err(at)?;
    link.send(&Request::Migrate(order)).await.map_err(at)?;
    loop {
        match link.receive(message::MAX_MESSAGE, SILENCE).await.map_err(at)? {
            Some(Reply::Migration(event)) => {
                let _ = news.send(event);
            }
            Some(Reply::Migrated(mut record)) => {
                record.from = format!("{}/{}", on.name, contact::clean(&record.from, 64));
                record.to = contact::clean(&record.to, 160);
                return Ok(record);
            }
            Some(Reply::Refused(why)) => return Err(contact::clean(&why, contact::LONGEST_REFUSAL)),
            Some(_) => return Err(format!("{}: it answered another question", on.name)),
            None => return Err(format!("{}: it closed the connection", on.name)),
        }
    }
}

/// Serves such an order, of a host whose process runs here.
///
/// # Errors
/// A sentence.
pub async fn obey(
    membership: &Membership,
    nodes: Arc<dyn Nodes>,
    home: KeyId,
    order: Order,
    news: News,
) -> Result<Record, String> {
    let Order { pid, to, node, manner } = order;
    let target = placing::chosen(membership, to, node)?;
    let home_name = membership.roster().member(home).map(|member| member.name.clone()).ok_or("it is no member")?;
    let find = nodes.clone();
    let source = blocking(move || {
        let guests = find.guests(Some(&home_name));
        let found = guests.into_iter().find(|(_, process)| process.pid == pid);
        found.map(|(node, _)| node).ok_or_else(|| format!("no node of this host runs process {pid} any more"))
    });
    let source = Source { node: source.await?, pid, home: Some(home) };
    send(Some(membership), nodes, source, target, manner, news).await
}
