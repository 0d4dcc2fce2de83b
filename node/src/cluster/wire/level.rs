//! What a cluster expects of its hosts' processors.
//!
//! A program chooses its code by the features that it finds when it starts, so it may only move to hosts that
//! have them all. Features are named as in `/proc/cpuinfo`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Most features that may be listed.
const MOST: usize = 256;
/// What each level of the x86-64 psABI adds to the one below.
const LEVELS: [&[&str]; 4] = [
    &["cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"],
    &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"],
    &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"],
    &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
];

/// The features that every host of a cluster should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub enum CpuLevel {
    /// `x86-64-v1` to `x86-64-v4`.
    Level(usize),
    /// Exactly these, beyond `x86-64-v1`.
    Features(BTreeSet<String>),
}

/// A text that is no level.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadLevel {
    /// Neither a level nor features.
    #[error(
        "{0:?} is neither a level (x86-64-v1 to x86-64-v4) nor a list of features as /proc/cpuinfo names them \
         (avx2,bmi2)"
    )]
    Unknown(String),
    /// Too many.
    #[error("more than {MOST} features are listed")]
    TooMany,
}

impl CpuLevel {
    /// The features.
    pub fn features(&self) -> BTreeSet<String> {
        let below = |level: usize| LEVELS[..level].iter().flat_map(|added| added.iter()).map(|&name| name.to_owned());
        match self {
            Self::Level(level) => below(*level).collect(),
            Self::Features(features) => below(1).chain(features.iter().cloned()).collect(),
        }
    }

    /// Those that are not among `there`, in the order of their names.
    pub fn lacking(&self, there: &BTreeSet<String>) -> Vec<String> {
        self.features().difference(there).cloned().collect()
    }

    /// The highest level that has no features but those of `there`.
    pub fn highest(there: &BTreeSet<String>) -> Self {
        Self::Level((2..=LEVELS.len()).rev().find(|&level| Self::Level(level).lacking(there).is_empty()).unwrap_or(1))
    }
}

/// The features of this machine; none if they cannot be read.
pub fn here() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).and_then(|line| line.split_once(':'));
    flags.map(|(_, names)| names.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

impl FromStr for CpuLevel {
    type Err = BadLevel;

    fn from_str(text: &str) -> Result<Self, BadLevel> {
        Self::try_from(text.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>())
    }
}

impl TryFrom<Vec<String>> for CpuLevel {
    type Error = BadLevel;

    fn try_from(parts: Vec<String>) -> Result<Self, BadLevel> {
        if let [one] = &parts[..]
            && let Some(level) = one.strip_prefix("x86-64-v").and_then(|level| level.parse().ok())
            && (1..=LEVELS.len()).contains(&level)
        {
            return Ok(Self::Level(level));
        }
        if parts.len() > MOST {
            return Err(BadLevel::TooMany);
        }
        let name = |part: &String| {
            (1..=32).contains(&part.len())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        match parts.iter().find(|part| !name(part)) {
            None if !parts.is_empty() => Ok(Self::Features(parts.into_iter().collect())),
            bad => Err(BadLevel::Unknown(bad.map(|bad| bad.chars().take(64).collect()).unwrap_or_default())),
        }
    }
}

impl From<CpuLevel> for Vec<String> {
    fn from(level: CpuLevel) -> Self {
        match level {
            CpuLevel::Level(_) => vec![level.to_string()],
            CpuLevel::Features(features) => features.into_iter().collect(),
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(level) => write!(f, "x86-64-v{level}"),
            Self::Features(features) => f.write_str(&features.iter().cloned().collect::<Vec<_>>().join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_looks_at_what_levels_are_made_of() {
        let known: BTreeSet<&str> = procmig::migration::cpu::names().collect();
        assert!(LEVELS.iter().flat_map(|added| added.iter()).all(|name| known.contains(name)));
    }

    #[test]
    fn a_level_is_a_name_or_a_list() {
        assert_eq!("x86-64-v3".parse(), Ok(CpuLevel::Level(3)));
        let list: CpuLevel = "bmi2, avx2".parse().unwrap();
        assert_eq!(list.to_string(), "avx2,bmi2");
        for bad in ["", "x86-64-v5", "x86-64-v0", "AVX2", "avx2,", "a\nb"] {
            assert!(bad.parse::<CpuLevel>().is_err(), "{bad:?}");
        }
        for level in [CpuLevel::Level(4), list] {
            let bytes = postcard::to_allocvec(&level).unwrap();
            assert_eq!(postcard::from_bytes::<CpuLevel>(&bytes), Ok(level));
        }
    }

    #[test]
    fn what_is_lacking_is_named() {
        let second = CpuLevel::Level(2).features();
        assert_eq!(CpuLevel::highest(&second), CpuLevel::Level(2));
        assert_eq!(CpuLevel::highest(&BTreeSet::new()), CpuLevel::Level(1));
        assert!(CpuLevel::Level(3).lacking(&second).contains(&"avx2".to_owned()));
        assert_eq!("avx512f".parse::<CpuLevel>().unwrap().lacking(&second), ["avx512f"]);
        assert!(here().contains("sse2"));
    }
}
