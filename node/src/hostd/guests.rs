//! Where programs run: in nodes of this host, for itself and for others, or on other hosts.

use super::Host;
use super::protocol::{HostReply, Place};
use super::registry::Registry;
use crate::cluster::guests::Nodes;
use crate::cluster::placing::{self, Away, Chosen};
use crate::cluster::wire::id::KeyId;
use crate::cluster::wire::label::Label;
use crate::cluster::wire::message::Load;
use crate::name::NodeName;
use crate::nodelink;
use procmig::chain;
use procmig::wire::control::ProcessStatus;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// This host's nodes.
#[derive(Debug)]
pub(super) struct OwnNodes(pub(super) Arc<Mutex<Registry>>);

impl Nodes for OwnNodes {
    fn connect(&self, node: Option<&NodeName>) -> Result<UnixStream, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).connect(node)
    }

    fn find(&self, node: Option<&NodeName>) -> Result<(NodeName, PathBuf), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).socket(node)
    }

    fn load(&self) -> Load {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner).entries();
        Load { per_mille: per_mille(), nodes: nodes.into_iter().map(|entry| entry.name).collect() }
    }

    fn guests(&self, home: Option<&Label>) -> Vec<(NodeName, ProcessStatus)> {
        let (state, nodes) = self.0.lock().unwrap_or_else(PoisonError::into_inner).nodes();
        let mut all = nodelink::processes_of(&state, nodes);
        all.retain(|(_, process)| process.home.as_deref() == home.map(Label::as_str));
        all
    }
}

/// Threads that run or could, in thousandths of the processors: now, or in the last minute if that is more.
fn per_mille() -> u32 {
    let average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let average = average.split_whitespace().next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let running = stat.lines().find_map(|line| line.strip_prefix("procs_running ")?.trim().parse::<f64>().ok());
    let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    // Who asks runs too.
    let busy = average.max(running.unwrap_or(1.0) - 1.0).max(0.0);
    (busy / processors * 1000.0).min(f64::from(u32::MAX)) as u32
}

/// Finds a place for a new process; the link is there if it is on another host.
pub(super) async fn place(host: &Arc<Host>, place: Place) -> anyhow::Result<(HostReply, Option<Away>)> {
    let refused = |why: String| Ok((HostReply::Refused(why), None));
    let names: Vec<NodeName> =
        super::change(host, |registry| registry.entries()).await?.into_iter().map(|entry| entry.name).collect();
    let chosen = match (place, &host.cluster) {
        (Place::At(text), Some(cluster)) => match cluster.choose(&text, |node| names.contains(node)).await {
            Ok(chosen) => chosen,
            Err(why) => return refused(why),
        },
        (Place::At(text), None) => match text.parse::<NodeName>() {
            Ok(node) if names.contains(&node) => Chosen::Here(Some(node)),
            _ => return refused(format!("there is no node {text} here; see: skein node ls")),
        },
        (Place::Best, Some(cluster)) => cluster.best().await,
        (Place::Best, None) => Chosen::Here(None),
    };
    reach(host, chosen).await
}

/// Finds the way to a node for a process that is to migrate there.
pub(super) async fn way(
    host: &Arc<Host>,
    to: Option<KeyId>,
    node: NodeName,
) -> anyhow::Result<(HostReply, Option<Away>)> {
    let chosen = match (to, &host.cluster) {
        (Some(to), Some(cluster)) => {
            let membership = cluster.membership().map_err(|error| chain(&error));
            match membership.and_then(|membership| placing::chosen(&membership, to, Some(node))) {
                Ok(chosen) => chosen,
                Err(why) => return Ok((HostReply::Nowhere(why), None)),
            }
        }
        (Some(_), None) => return Ok((HostReply::Nowhere("this host is in no cluster".to_owned()), None)),
        (None, _) => Chosen::Here(Some(node)),
    };
    reach(host, chosen).await
}

async fn reach(host: &Arc<Host>, chosen: Chosen) -> anyhow::Result<(HostReply, Option<Away>)> {
    let refused = |why: String| Ok((HostReply::Refused(why), None));
    match (chosen, &host.cluster) {
        (Chosen::There(member, node), Some(cluster)) => match cluster.open_link(&member, node).await {
            Ok(away) => {
                let reply = HostReply::Link { host: away.host.clone(), id: away.id, keys: away.handed.keys.clone() };
                Ok((reply, Some(away)))
            }
            Err(why) => refused(why),
        },
        (Chosen::Here(node), _) => {
            let found = super::change(host, move |registry| match node {
                Some(node) => registry.find(&node),
                None => registry.pick(),
            });
            Ok((found.await?.map_or_else(HostReply::Refused, HostReply::Node), None))
        }
        (Chosen::There(..), None) => refused("this host is in no cluster".to_owned()),
    }
}
