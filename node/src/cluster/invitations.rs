//! The invitations of a host: each lets one host in, once, for some minutes.
//!
//! Kept are hashes: who reads the file cannot join. Invitations that have ended are remembered for a while, so that
//! their bearers are told what has become of them.

use super::keys;
use super::wire::id::KeyId;
use serde::{Deserialize, Serialize};

/// Most invitations that are open at a time.
const MOST_OPEN: usize = 64;
/// Wrong secrets after which an invitation ends.
const MOST_GUESSES: u32 = 5;
/// Seconds for which one that has ended is remembered.
const REMEMBERED: u64 = 3600;

/// What has become of an invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Open,
    Used,
    Guessed,
}

/// An invitation.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Invitation {
    id: KeyId,
    secret_hash: [u8; 32],
    /// Seconds since 1970.
    expires: u64,
    state: State,
    wrong: u32,
}

impl Invitation {
    fn is_open(&self, now: u64) -> bool {
        self.state == State::Open && now < self.expires
    }
}

/// Why an invitation lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotInvited {
    /// There is none of that ID.
    #[error("no such invitation; ask for a new token: skein cluster invite")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired; ask for a new one: skein cluster invite")]
    Expired,
    /// It has let a host in.
    #[error("the token has been used; each lets one host in, so ask for a new one: skein cluster invite")]
    Used,
    /// The secret is not the one.
    #[error("the token is wrong")]
    Wrong,
    /// It was ended by wrong secrets.
    #[error("the token was ended, since somebody has tried to guess it; ask for a new one: skein cluster invite")]
    Guessed,
}

/// No more can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_OPEN} invitations are open already; wait until one is used or ends")]
pub struct TooMany;

/// The invitations of a host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Invitations {
    all: Vec<Invitation>,
}

impl Invitations {
    /// How many are open.
    pub fn open(&self, now: u64) -> usize {
        self.all.iter().filter(|invitation| invitation.is_open(now)).count()
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn add(&mut self, id: KeyId, secret: &[u8; 32], expires: u64, now: u64) -> Result<(), TooMany> {
        self.all.retain(|invitation| now < invitation.expires.saturating_add(REMEMBERED));
        if self.open(now) >= MOST_OPEN {
            return Err(TooMany);
        }
        // What has ended must not grow without bound either.
        while self.all.len() >= 4 * MOST_OPEN {
            let Some(ended) = self.all.iter().position(|invitation| !invitation.is_open(now)) else { break };
            self.all.remove(ended);
        }
        self.all.push(Invitation { id, secret_hash: keys::hash(secret), expires, state: State::Open, wrong: 0 });
        Ok(())
    }

    /// Whether this secret lets its bearer in. A wrong one is counted.
    ///
    /// # Errors
    /// [`NotInvited`]. Nobody who lacks the secret learns whether the invitation was used.
    pub fn check(&mut self, id: KeyId, secret: &[u8; 32], now: u64) -> Result<(), NotInvited> {
        let invitation = self.all.iter_mut().find(|invitation| invitation.id == id).ok_or(NotInvited::Unknown)?;
        // Hashes are compared: how long that takes says nothing of the secret.
        if invitation.secret_hash != keys::hash(secret) {
            invitation.wrong = invitation.wrong.saturating_add(1);
            if invitation.wrong >= MOST_GUESSES && invitation.state == State::Open {
                invitation.state = State::Guessed;
            }
            return Err(NotInvited::Wrong);
        }
        match invitation.state {
            State::Used => Err(NotInvited::Used),
            State::Guessed => Err(NotInvited::Guessed),
            State::Open if now >= invitation.expires => Err(NotInvited::Expired),
            State::Open => Ok(()),
        }
    }

    /// Ends one that has let its bearer in.
    pub fn use_up(&mut self, id: KeyId) {
        if let Some(invitation) = self.all.iter_mut().find(|invitation| invitation.id == id) {
            invitation.state = State::Used;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: KeyId = KeyId([1; 16]);
    const SECRET: [u8; 32] = [7; 32];

    fn one() -> Invitations {
        let mut invitations = Invitations::default();
        invitations.add(ID, &SECRET, 600, 0).unwrap();
        invitations
    }

    #[test]
    fn an_invitation_lets_one_host_in_and_only_in_time() {
        let mut invitations = one();
        assert_eq!(invitations.check(ID, &SECRET, 599), Ok(()));
        assert_eq!(invitations.check(ID, &SECRET, 600), Err(NotInvited::Expired));
        assert_eq!((invitations.open(599), invitations.open(600)), (1, 0));
        invitations.use_up(ID);
        assert_eq!(invitations.check(ID, &SECRET, 10), Err(NotInvited::Used));
        assert_eq!(invitations.open(10), 0);
        assert_eq!(invitations.check(KeyId([2; 16]), &SECRET, 10), Err(NotInvited::Unknown));
    }

    #[test]
    fn guessing_ends_an_invitation() {
        let mut invitations = one();
        for _ in 0..MOST_GUESSES {
            assert_eq!(invitations.check(ID, &[8; 32], 1), Err(NotInvited::Wrong));
        }
        assert_eq!(invitations.check(ID, &SECRET, 1), Err(NotInvited::Guessed));
        assert_eq!(invitations.open(1), 0);
    }

    #[test]
    fn the_secret_is_not_kept() {
        let text = serde_json::to_string(&one()).unwrap();
        assert!(!text.contains("7,7,7,7"), "{text}");
    }

    #[test]
    fn there_is_an_end_to_invitations() {
        let numbered = |number: usize| KeyId((number as u128).to_be_bytes());
        let mut invitations = Invitations::default();
        for number in 0..MOST_OPEN {
            invitations.add(numbered(number), &SECRET, 600, 0).unwrap();
        }
        assert_eq!(invitations.add(ID, &SECRET, 600, 0), Err(TooMany));
        for number in 0..10 * MOST_OPEN {
            invitations.use_up(numbered(number));
            invitations.add(numbered(number + MOST_OPEN), &SECRET, 600, 0).unwrap();
            assert!(invitations.all.len() <= 4 * MOST_OPEN, "{number}");
        }
        invitations.add(ID, &SECRET, 9000, 600 + REMEMBERED).unwrap();
        assert_eq!(invitations.all.len(), 1, "what has long ended is forgotten");
    }
}
