//! Names of hosts and clusters.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name in bytes: what Linux allows a host.
const LONGEST: usize = 64;

/// The name of a host or a cluster: 1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or a
/// digit, so that nothing misreads it and no terminal acts on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

/// A text that cannot be a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the name of a host or a cluster is 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or a digit"
)]
pub struct BadLabel;

impl Label {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with a number behind it, as is given to the second of the same name.
    pub fn numbered(&self, number: usize) -> Self {
        let suffix = format!("-{number}");
        Self(format!("{}{suffix}", &self.0[..self.0.len().min(LONGEST - suffix.len())]))
    }
}

impl FromStr for Label {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !first || text.len() > LONGEST || !text.chars().all(allowed) {
            return Err(BadLabel);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Label {
    type Error = BadLabel;

    fn try_from(text: String) -> Result<Self, BadLabel> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(name: Label) -> Self {
        name.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_be_misread() {
        for bad in ["", "-rf", ".", "a b", "a\n", "\u{1b}[2J", "ü", &"x".repeat(65)] {
            assert_eq!(bad.parse::<Label>(), Err(BadLabel), "{bad:?}");
        }
        assert_eq!("x".repeat(64).parse::<Label>().unwrap().numbered(12).as_str(), format!("{}-12", "x".repeat(61)));
        let bytes = postcard::to_allocvec("../../x").unwrap();
        assert!(postcard::from_bytes::<Label>(&bytes).is_err());
    }
}
