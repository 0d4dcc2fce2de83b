//! The roster: who belongs to a cluster, who has been shut out, and what the cluster has agreed on.
//!
//! Only the host that has the cluster's authority makes rosters, each with a higher serial number, and signs
//! them. Every host keeps the newest that it has seen and passes it on to whoever has an older one.

use super::id::KeyId;
use super::label::Label;
use super::level::CpuLevel;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Most members.
pub const MOST_MEMBERS: usize = 1024;
/// Most hosts that have been shut out.
pub const MOST_REMOVED: usize = 16384;
/// Most addresses of a member.
pub const MOST_ADDRESSES: usize = 8;
/// Cap on the bytes of a roster.
pub const MAX_ROSTER: usize = 1 << 20;

/// A host of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The hash of its public key.
    pub id: KeyId,
    /// Its name, which no other member has.
    pub name: Label,
    /// Where it listens, the most promising first.
    pub addresses: Vec<SocketAddr>,
}

/// Who belongs to a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The hash of the public key of the cluster's certificate authority.
    pub cluster: KeyId,
    /// The cluster's name.
    pub name: Label,
    /// Counts up with each change.
    pub serial: u64,
    /// The host that has the authority's private key.
    pub authority: KeyId,
    /// The hosts.
    pub members: Vec<Member>,
    /// Hosts that were members and are not; their certificates are worth nothing.
    pub removed: Vec<KeyId>,
    /// What the hosts' processors should have.
    pub cpu_level: CpuLevel,
}

/// Which member is meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoMember {
    /// None.
    #[error("no host {0:?} in the cluster; see: skein cluster ls")]
    Unknown(String),
    /// Several.
    #[error("more than one host has an ID that begins with {0}; give more of it")]
    Several(String),
}

impl Roster {
    /// Whether its numbers are within bounds.
    pub fn is_bounded(&self) -> bool {
        self.members.len() <= MOST_MEMBERS
            && self.removed.len() <= MOST_REMOVED
            && self.members.iter().all(|member| member.addresses.len() <= MOST_ADDRESSES)
    }

    /// The member of an ID.
    pub fn member(&self, id: KeyId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The member of a name, an ID, or the first digits of an ID (at least four).
    ///
    /// # Errors
    /// [`NoMember`] says what to do.
    pub fn find(&self, text: &str) -> Result<&Member, NoMember> {
        if let Some(member) = self.members.iter().find(|member| member.name.as_str() == text) {
            return Ok(member);
        }
        let lower = text.to_ascii_lowercase();
        let mut found =
            self.members.iter().filter(|member| lower.len() >= 4 && member.id.to_string().starts_with(&lower));
        match (found.next(), found.next()) {
            (Some(member), None) => Ok(member),
            (None, _) => Err(NoMember::Unknown(text.chars().take(64).collect())),
            (Some(_), Some(_)) => Err(NoMember::Several(lower)),
        }
    }

    /// The name as it is, or with a number behind it if another member has it.
    pub fn free_name(&self, name: &Label) -> Label {
        let taken = |name: &Label| self.members.iter().any(|member| member.name == *name);
        if !taken(name) {
            return name.clone();
        }
        (2..).map(|number| name.numbered(number)).find(|name| !taken(name)).unwrap_or_else(|| name.clone())
    }
}

/// A roster as it is passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRoster {
    /// A [`Roster`], encoded.
    pub bytes: Vec<u8>,
    /// The authority's signature of them.
    pub signature: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster() -> Roster {
        let member = |first, name: &str| Member {
            id: KeyId([first, 0, first, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            name: name.parse().unwrap(),
            addresses: Vec::new(),
        };
        Roster {
            cluster: KeyId([9; 16]),
            name: "c".parse().unwrap(),
            serial: 1,
            authority: KeyId([1; 16]),
            members: vec![member(1, "a"), member(2, "a-2"), member(2, "0200")],
            removed: Vec::new(),
            cpu_level: CpuLevel::Level(1),
        }
    }

    #[test]
    fn a_member_is_found_by_name_or_first_digits() {
        let roster = roster();
        assert_eq!(roster.find("a").unwrap().name.as_str(), "a");
        assert_eq!(roster.find("0200").unwrap().name.as_str(), "0200");
        assert_eq!(roster.find("0100").unwrap().name.as_str(), "a");
        assert_eq!(roster.find("02000"), Err(NoMember::Several("02000".to_owned())));
        assert!(matches!(roster.find("01"), Err(NoMember::Unknown(_))));
    }

    #[test]
    fn the_second_of_a_name_gets_a_number() {
        assert_eq!(roster().free_name(&"a".parse().unwrap()).as_str(), "a-3");
        assert_eq!(roster().free_name(&"b".parse().unwrap()).as_str(), "b");
    }
}
