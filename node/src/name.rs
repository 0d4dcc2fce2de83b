//! Names of nodes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name in bytes: with the state directory it must fit a socket's address.
const LONGEST: usize = 32;

/// The name of a node: 1 to 32 letters, digits, `.`, `_` and `-`, the first a letter or a digit,
/// so that it is a file name that nothing misreads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// A name that cannot be a node's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a node's name is 1 to 32 letters, digits, '.', '_' or '-', and begins with a letter or a digit")]
pub struct BadName;

impl NodeName {
    /// The name that is given to the `number`th node by default.
    pub fn numbered(number: u32) -> Self {
        Self(format!("node-{number}"))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What to order names by: `node-2` comes before `node-10`.
    pub fn sort_key(&self) -> (String, u64, String) {
        let digits = self.0.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        (self.0[..digits].to_owned(), self.0[digits..].parse().unwrap_or(0), self.0.clone())
    }
}

impl FromStr for NodeName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !first || text.len() > LONGEST || !text.chars().all(allowed) {
            return Err(BadName);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for NodeName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_file_name() {
        for good in ["node-1", "a", "7", "big.box_2"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", ".hidden", "a/b", "a b", "ü", &"x".repeat(33), "a\0"] {
            assert_eq!(bad.parse::<NodeName>(), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn names_sort_by_their_number() {
        let mut names: Vec<NodeName> = ["node-10", "node-2", "b"].iter().map(|n| n.parse().unwrap()).collect();
        names.sort_by_key(NodeName::sort_key);
        let names: Vec<_> = names.iter().map(NodeName::as_str).collect();
        assert_eq!(names, ["b", "node-2", "node-10"]);
    }

    #[test]
    fn a_hostile_name_is_refused_when_decoded() {
        let bytes = postcard::to_allocvec("../../etc/passwd").unwrap();
        assert!(postcard::from_bytes::<NodeName>(&bytes).is_err());
    }
}
