//! Where programs of this host run: here, or on another host.

use super::contact;
use super::elsewhere::Count;
use super::link::Handed;
use super::membership::Membership;
use super::service::{Service, ServiceError};
use super::wire::id::KeyId;
use super::wire::label::Label;
use super::wire::message::Purpose;
use super::wire::roster::Member;
use crate::name::NodeName;
use procmig::wire::control::ProcessStatus;
use std::sync::Arc;

/// Where a program is to run.
#[derive(Debug)]
pub enum Chosen {
    /// In a node of this host: this one, or which it likes.
    Here(Option<NodeName>),
    /// In a node of another host.
    There(Member, Option<NodeName>),
}

/// The link of a program that runs elsewhere; to be kept as long as the program uses it.
#[derive(Debug)]
pub struct Away {
    /// The other host.
    pub host: Label,
    /// Its ID.
    pub id: KeyId,
    /// The connection.
    pub handed: Handed,
    /// Counts it.
    _count: Count,
}

/// A host that is known by its ID, and a node there.
///
/// # Errors
/// A sentence that says what to do.
pub fn chosen(membership: &Membership, id: KeyId, node: Option<NodeName>) -> Result<Chosen, String> {
    if id == membership.id {
        return Ok(Chosen::Here(node));
    }
    let member = membership.roster().member(id).cloned();
    let member = member.ok_or_else(|| format!("no member of the cluster has the ID {id}"))?;
    Ok(Chosen::There(member, node))
}

impl Service {
    /// What a user means by `HOST`, `NODE` or `HOST/NODE`; `here` says whether this host has a node of this name.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub async fn choose(&self, text: &str, here: impl Fn(&NodeName) -> bool) -> Result<Chosen, String> {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(128).collect();
        let (host, node) = match text.split_once('/') {
            Some((host, node)) => (host, Some(node.parse::<NodeName>().map_err(|error| format!("{shown}: {error}"))?)),
            None => (text, None),
        };
        if node.is_none()
            && let Ok(node) = text.parse::<NodeName>()
            && here(&node)
        {
            return Ok(Chosen::Here(Some(node)));
        }
        let membership = self.membership().map_err(|error| match error {
            ServiceError::NoMember => format!("there is no node {shown} here, and {error}"),
            error => procmig::chain(&error),
        })?;
        let roster = membership.roster();
        match roster.find(host) {
            Ok(member) if member.id == membership.id => return Ok(Chosen::Here(node)),
            Ok(member) => return Ok(Chosen::There(member.clone(), node)),
            Err(error) if node.is_some() => return Err(error.to_string()),
            Err(_) => {}
        }
        // A node of another host, if there is one and no more.
        let mut found = Vec::new();
        for (member, load) in contact::loads(&membership).await {
            found
                .extend(load.nodes.into_iter().filter(|node| node.as_str() == text).map(|node| (member.clone(), node)));
        }
        match &found[..] {
            [(member, node)] => Ok(Chosen::There(member.clone(), Some(node.clone()))),
            [] => {
                Err(format!("there is no host or node {shown}; see: skein cluster ls, and on each host: skein node ls"))
            }
            several => {
                let hosts: Vec<_> = several.iter().map(|(member, node)| format!("{}/{node}", member.name)).collect();
                Err(format!("several hosts have a node {shown}; say which: {}", hosts.join(", ")))
            }
        }
    }

    /// The host that is least busy: this one, unless another is less so.
    pub async fn best(&self) -> Chosen {
        let Ok(membership) = self.membership() else { return Chosen::Here(None) };
        let nodes = self.nodes.clone();
        let own = tokio::task::spawn_blocking(move || nodes.load().per_mille);
        let mut loads = contact::loads(&membership).await;
        let own = own.await.unwrap_or(u32::MAX);
        loads.sort_by_key(|(_, load)| load.per_mille);
        match loads.into_iter().next() {
            Some((member, load)) if load.per_mille < own => Chosen::There(member, None),
            _ => Chosen::Here(None),
        }
    }

    /// Opens the link of a program that is to run on another host.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub async fn open_link(self: &Arc<Self>, member: &Member, node: Option<NodeName>) -> Result<Away, String> {
        let membership = self.membership().map_err(|error| procmig::chain(&error))?;
        let host = member.name.clone();
        let opened = contact::connect(&membership, member, Purpose::Guest(node)).await;
        let handed = opened.and_then(|(link, _, _)| link.hand_over()).map_err(|why| format!("{host}: {why}"))?;
        Ok(Away { host, id: member.id, handed, _count: self.elsewhere.count(member.id) })
    }

    /// What runs for this host on others.
    pub async fn guests_elsewhere(&self) -> Vec<(Label, NodeName, ProcessStatus)> {
        let Ok(membership) = self.membership() else { return Vec::new() };
        let on = self.elsewhere.hosts();
        let on = membership.others().into_iter().filter(|member| on.contains(&member.id)).collect();
        let mut all = Vec::new();
        for (member, guests) in contact::guests(&membership, on).await {
            if guests.is_empty() {
                self.elsewhere.has_none(member.id);
            }
            all.extend(guests.into_iter().map(|(node, guest)| (member.name.clone(), node, guest)));
        }
        all
    }
}
