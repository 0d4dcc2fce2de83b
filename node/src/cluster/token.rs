//! The token of an invitation: one line that carries what a host needs to find a cluster, to know that it is the
//! right one, and to show that it is invited.

use super::keys;
use super::wire::id::KeyId;
use super::wire::label::Label;
use super::wire::roster::MOST_ADDRESSES;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// How every token of this version begins.
const PREFIX: &str = "skein1-";
/// Longest token.
const LONGEST: usize = 1024;
/// Bytes of the hash that shows whether all of it was copied.
const CHECK: usize = 4;
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// An invitation, as its bearer has it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The cluster's name.
    pub cluster: Label,
    /// SHA-256 of the certificate of the cluster's authority.
    pub fingerprint: [u8; 32],
    /// The host that invites. Only it is asked: another host of the cluster would learn the secret.
    pub host: KeyId,
    /// Where it is, the most promising first.
    pub addresses: Vec<SocketAddr>,
    /// Which invitation.
    pub invitation: KeyId,
    /// What the host knows only the hash of.
    pub secret: [u8; 32],
    /// When it ends, in seconds since 1970 by the inviting host's clock. It decides nothing, but explains a refusal.
    pub expires: u64,
}

impl fmt::Debug for Token {
    /// Shows nothing of the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("cluster", &self.cluster).field("host", &self.host).finish_non_exhaustive()
    }
}

/// Why a text is no token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadToken {
    /// It does not look like one.
    #[error("this is no token; one begins with {PREFIX} and is printed by: skein cluster invite")]
    NoToken,
    /// Part of it is missing or wrong.
    #[error("the token is incomplete or damaged; copy the whole line that skein cluster invite has printed")]
    Damaged,
    /// Another version's.
    #[error("the token was made by another version of skein; install the same on both hosts")]
    OtherVersion,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        let check = keys::hash(&bytes);
        bytes.extend_from_slice(&check[..CHECK]);
        f.write_str(PREFIX)?;
        for chunk in bytes.chunks(3) {
            let word = chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
            for digit in 0..=chunk.len() {
                write!(f, "{}", char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63]))?;
            }
        }
        Ok(())
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let Some(digits) = text.strip_prefix(PREFIX) else {
            let other = text.strip_prefix("skein").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            return Err(if other { BadToken::OtherVersion } else { BadToken::NoToken });
        };
        if digits.len() > LONGEST {
            return Err(BadToken::Damaged);
        }
        let mut bytes = Vec::with_capacity(LONGEST);
        for chunk in digits.as_bytes().chunks(4) {
            let mut word = 0;
            for digit in chunk {
                let value = DIGITS.iter().position(|known| known == digit).ok_or(BadToken::Damaged)?;
                word = word << 6 | value as u32;
            }
            word <<= 6 * (4 - chunk.len());
            bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
        }
        let (body, check) = bytes.split_at_checked(bytes.len().saturating_sub(CHECK)).ok_or(BadToken::Damaged)?;
        if keys::hash(body)[..CHECK] != *check {
            return Err(BadToken::Damaged);
        }
        match postcard::take_from_bytes::<Self>(body) {
            Ok((token, [])) if token.addresses.len() <= MOST_ADDRESSES => Ok(token),
            _ => Err(BadToken::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(addresses: usize) -> Token {
        Token {
            cluster: "lab".parse().unwrap(),
            fingerprint: [1; 32],
            host: KeyId([2; 16]),
            addresses: (0..addresses).map(|i| SocketAddr::from(([10, 0, 0, i as u8], 4774))).collect(),
            invitation: KeyId([3; 16]),
            secret: [0xfe; 32],
            expires: 1 << 31,
        }
    }

    #[test]
    fn a_token_is_one_word_and_comes_back() {
        for addresses in 0..4 {
            let token = token(addresses);
            let text = token.to_string();
            assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'), "{text}");
            assert!(text.len() < 250, "{}", text.len());
            assert_eq!(text.parse(), Ok(token));
        }
        assert!(!format!("{:?}", token(1)).contains("254"));
    }

    #[test]
    fn a_part_of_a_token_is_known_as_such() {
        let text = token(2).to_string();
        for end in PREFIX.len()..text.len() {
            assert_eq!(text[..end].parse::<Token>(), Err(BadToken::Damaged), "{end}");
        }
        assert_eq!(text.replace('-', "").parse::<Token>(), Err(BadToken::OtherVersion));
        assert_eq!("hello".parse::<Token>(), Err(BadToken::NoToken));
        assert_eq!(format!("{text}!").parse::<Token>(), Err(BadToken::Damaged));
        assert_eq!(format!("{PREFIX}é").parse::<Token>(), Err(BadToken::Damaged));
    }
}
