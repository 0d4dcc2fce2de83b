//! Orders to have a process migrate: which process is meant, where it is, and where it is to go.

use super::Host;
use super::protocol::Migrate;
use crate::cluster::contact;
use crate::cluster::membership::Membership;
use crate::cluster::migrating::{self, News, Source};
use crate::cluster::placing::Chosen;
use crate::cluster::wire::id::KeyId;
use crate::cluster::wire::label::Label;
use crate::cluster::wire::message::Migrate as Order;
use crate::cluster::wire::roster::Member;
use crate::name::NodeName;
use crate::nodelink;
use procmig::chain;
use procmig::migration::record::Record;
use procmig::wire::control::{ProcessStatus, settle};
use std::sync::Arc;

/// Where a process runs.
enum Place {
    /// In a node of this host.
    Here(NodeName),
    /// On another host.
    There(Member),
}

/// Has a process migrate.
///
/// # Errors
/// A sentence that says what to do.
pub(super) async fn serve(host: &Arc<Host>, request: Migrate, news: News) -> Result<Record, String> {
    let membership = host.cluster.as_ref().and_then(|cluster| cluster.membership().ok());
    let place = find(host, request.pid, request.home.as_ref()).await?;
    let target = target(host, membership.as_ref(), &request, &place).await?;
    let manner = request.manner;
    match place {
        Place::Here(node) => {
            let home = match (&request.home, &membership) {
                (Some(home), Some(membership)) => Some(member(membership, home)?.id),
                (Some(_), None) => return Err("this host is in no cluster any more".to_owned()),
                (None, _) => None,
            };
            let source = Source { node, pid: request.pid, home };
            let nodes = Arc::new(super::guests::OwnNodes(host.registry.clone()));
            migrating::send(membership.as_deref(), nodes, source, target, manner, news).await
        }
        Place::There(on) => {
            let membership = membership.ok_or("this host is in no cluster any more")?;
            let (to, node) = match target {
                Chosen::Here(node) => (membership.id, node),
                Chosen::There(member, node) => (member.id, node),
            };
            migrating::order(&membership, &on, Order { pid: request.pid, to, node, manner }, news).await
        }
    }
}

fn member(membership: &Membership, name: &Label) -> Result<Member, String> {
    membership.roster().find(name.as_str()).cloned().map_err(|error| error.to_string())
}

/// Where a process runs.
async fn find(host: &Arc<Host>, pid: i32, home: Option<&Label>) -> Result<Place, String> {
    let failed = |error: tokio::task::JoinError| error.to_string();
    let (state, nodes) = super::change(host, |registry| registry.nodes()).await.map_err(failed)?;
    let asked = tokio::task::spawn_blocking(move || nodelink::processes_of(&state, nodes));
    let processes = asked.await.map_err(failed)?;
    let is_it = |process: &ProcessStatus| process.pid == pid && process.home.as_deref() == home.map(Label::as_str);
    let here = processes.into_iter().filter(|(_, process)| is_it(process));
    let mut seen: Vec<_> = here.map(|(node, process)| (Ok(node), process)).collect();
    // One that is only arriving may still be on another host.
    if let (None, Some(cluster), true) = (home, &host.cluster, seen.iter().all(|(_, process)| process.arriving)) {
        let guests = cluster.guests_elsewhere().await.into_iter().filter(|(.., process)| process.pid == pid);
        seen.extend(guests.map(|(on, _, guest)| (Err(on), ProcessStatus { home: None, ..guest })));
    }
    settle(&mut seen);
    match seen.pop() {
        Some((Ok(node), _)) => return Ok(Place::Here(node)),
        Some((Err(on), _)) => {
            let cluster = host.cluster.as_ref().ok_or("this host is in no cluster any more")?;
            let membership = cluster.membership().map_err(|error| chain(&error))?;
            return Ok(Place::There(member(&membership, &on)?));
        }
        None => {}
    }
    Err(match home {
        None => format!("no node that answers runs process {pid} of this host; see: mosps"),
        Some(home) => format!("no node of this host that answers runs process {pid} of {home}; see: mosps"),
    })
}

/// The node that is meant.
async fn target(
    host: &Arc<Host>,
    membership: Option<&Arc<Membership>>,
    request: &Migrate,
    place: &Place,
) -> Result<Chosen, String> {
    match request.to.as_str() {
        "home" => match (place, &request.home, membership) {
            (Place::There(_), ..) => Ok(Chosen::Here(None)),
            (Place::Here(_), Some(home), Some(membership)) => Ok(Chosen::There(member(membership, home)?, None)),
            (Place::Here(node), ..) => Err(format!("it is at home already, at the node {node}")),
        },
        "out" => out(host, membership, place).await,
        text => {
            let nodes = super::change(host, |registry| registry.entries()).await.map_err(|error| error.to_string())?;
            let here = |name: &NodeName| nodes.iter().any(|entry| entry.name == *name);
            match &host.cluster {
                Some(cluster) => cluster.choose(text, here).await,
                None => match text.parse::<NodeName>() {
                    Ok(node) if here(&node) => Ok(Chosen::Here(Some(node))),
                    _ => Err(format!("there is no node {text} here; see: skein node ls")),
                },
            }
        }
    }
}

/// Any other node than where it is: on this host the one with fewest threads, else one of the least busy host.
async fn out(host: &Arc<Host>, membership: Option<&Arc<Membership>>, place: &Place) -> Result<Chosen, String> {
    if let Place::Here(node) = place {
        let node = node.clone();
        let other = super::change(host, move |registry| registry.least_busy_but(&node)).await;
        if let Some(other) = other.map_err(|error| error.to_string())? {
            return Ok(Chosen::Here(Some(other)));
        }
    }
    let none = || "there is no other node; see: skein node launch".to_owned();
    let membership = membership.ok_or_else(none)?;
    let from: Option<KeyId> = match place {
        Place::Here(_) => None,
        Place::There(member) => Some(member.id),
    };
    let loads = contact::loads(membership).await;
    let best = loads.into_iter().filter(|(member, _)| Some(member.id) != from).min_by_key(|(_, load)| load.per_mille);
    match (best, place) {
        (Some((member, _)), _) => Ok(Chosen::There(member, None)),
        (None, Place::There(_)) => Ok(Chosen::Here(None)),
        (None, Place::Here(_)) => Err(none()),
    }
}
