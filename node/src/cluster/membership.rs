//! This host as a member of a cluster.

use super::addresses;
use super::connections::Connections;
use super::invitations::Invitations;
use super::keys::{self, Authority, KeyError, PrivateKey};
use super::store::{Kept, Store, StoreError};
use super::tls::{Excluded, Setup, TlsError};
use super::wire::id::KeyId;
use super::wire::label::Label;
use super::wire::level;
use super::wire::message::{Hello, Purpose};
use super::wire::roster::{MOST_ADDRESSES, MOST_REMOVED, Member, Roster, SignedRoster};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, of which tests have their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock of one's own.
    #[cfg(test)]
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The machine's.
    pub fn of_the_machine() -> Self {
        Self(Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())))
    }

    /// What it shows.
    pub fn now(&self) -> u64 {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// Why this host cannot be a member, or not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// What is kept cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys are wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// TLS refuses them.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Only the authority may.
    #[error("only the host that made the cluster can do this; run it on {authority}")]
    NotTheAuthority {
        /// Its name.
        authority: Label,
    },
    /// It cannot shut itself out.
    #[error("{0} holds the cluster's authority and cannot be removed; to end the cluster: skein cluster leave --force")]
    RemovesItself(Label),
    /// The list of removed hosts is full.
    #[error("{MOST_REMOVED} hosts have been removed and no more can be remembered; make a new cluster")]
    TooManyRemoved,
}

/// This host as a member.
#[derive(Debug)]
pub struct Membership {
    store: Store,
    /// This host.
    pub id: KeyId,
    /// The cluster's certificate.
    pub ca: Vec<u8>,
    ca_key: [u8; 32],
    /// The cluster's private key, where this host has it.
    pub authority: Option<Authority>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Configurations of TLS.
    pub tls: Setup,
    /// Its connections with other members.
    pub connections: Arc<Connections>,
    /// CPU features of this machine.
    features: BTreeSet<String>,
    /// The time.
    pub clock: Clock,
    excluded: Arc<Excluded>,
    roster: Mutex<(SignedRoster, Arc<Roster>)>,
    invitations: Mutex<Invitations>,
    not_listening: Mutex<Option<String>>,
    name: Label,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done by a panic: values are replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Membership {
    /// With what is kept.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub fn new(store: Store, kept: Kept, clock: Clock) -> Result<Arc<Self>, MembershipError> {
        let Kept { key, certificate, ca, authority, roster: signed, host, invitations } = kept;
        let ca_key = keys::public_key(&ca)?;
        let roster = Arc::new(keys::open_roster(&signed, &ca_key)?);
        let excluded = Arc::new(Excluded::default());
        excluded.set(&roster.removed);
        let tls = Setup::new(&key, &certificate, &ca, &excluded)?;
        Ok(Arc::new(Self {
            store,
            id: PrivateKey::id(&key),
            ca,
            ca_key,
            authority,
            listen: host.listen,
            tls,
            connections: Arc::default(),
            features: level::here(),
            clock,
            excluded,
            roster: Mutex::new((signed, roster)),
            invitations: Mutex::new(invitations),
            not_listening: Mutex::new(Some("not yet".to_owned())),
            name: host.name,
        }))
    }

    /// Where it is kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// This host's name: as the roster has it, else as it was when it joined.
    pub fn name(&self) -> Label {
        self.roster().member(self.id).map_or_else(|| self.name.clone(), |member| member.name.clone())
    }

    /// The newest roster.
    pub fn roster(&self) -> Arc<Roster> {
        lock(&self.roster).1.clone()
    }

    /// The newest roster, as it is passed on.
    pub fn signed_roster(&self) -> SignedRoster {
        lock(&self.roster).0.clone()
    }

    /// The other members.
    pub fn others(&self) -> Vec<Member> {
        self.roster().members.iter().filter(|member| member.id != self.id).cloned().collect()
    }

    /// Whether a host has been shut out.
    pub fn has_excluded(&self, host: KeyId) -> bool {
        self.excluded.has(host)
    }

    /// Features of the cluster's level that this machine lacks.
    pub fn lacks(&self) -> Vec<String> {
        self.roster().cpu_level.lacking(&self.features)
    }

    /// What this host says first.
    pub fn hello(&self, purpose: Purpose) -> Hello {
        let skein = env!("CARGO_PKG_VERSION").to_owned();
        Hello { purpose, skein, serial: self.roster().serial, lacks: self.lacks() }
    }

    /// Why this host does not listen, if it does not.
    pub fn not_listening(&self) -> Option<String> {
        lock(&self.not_listening).clone()
    }

    /// Notes it.
    pub fn set_not_listening(&self, why: Option<String>) {
        *lock(&self.not_listening) = why;
    }

    /// How many invitations are open.
    pub fn open_invitations(&self) -> usize {
        lock(&self.invitations).open(self.clock.now())
    }

    /// Does something to the invitations and keeps them.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn with_invitations<T>(&self, work: impl FnOnce(&mut Invitations, u64) -> T) -> Result<T, StoreError> {
        let mut invitations = lock(&self.invitations);
        let result = work(&mut invitations, self.clock.now());
        self.store.save_invitations(&invitations)?;
        Ok(result)
    }

    /// Takes a roster that another host has sent; whether it was newer.
    ///
    /// # Errors
    /// [`KeyError::BadRoster`], or it cannot be kept.
    pub fn adopt(&self, signed: SignedRoster) -> Result<bool, MembershipError> {
        let roster = keys::open_roster(&signed, &self.ca_key)?;
        let mut current = lock(&self.roster);
        if roster.serial <= current.1.serial {
            return Ok(false);
        }
        self.publish(&mut current, signed, roster)?;
        Ok(true)
    }

    /// Makes the next roster. Only the authority can.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub fn change(&self, work: impl FnOnce(&mut Roster)) -> Result<(), MembershipError> {
        let Some(authority) = &self.authority else {
            let roster = self.roster();
            let name = roster.member(roster.authority).map(|member| member.name.clone());
            return Err(MembershipError::NotTheAuthority { authority: name.unwrap_or_else(|| self.name.clone()) });
        };
        let mut current = lock(&self.roster);
        let mut roster = Roster::clone(&current.1);
        work(&mut roster);
        roster.serial += 1;
        self.publish(&mut current, authority.seal(&roster), roster)
    }

    /// Shuts a host out.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub fn remove(&self, host: &Member) -> Result<(), MembershipError> {
        let roster = self.roster();
        if self.authority.is_some() && host.id == roster.authority {
            return Err(MembershipError::RemovesItself(host.name.clone()));
        }
        if roster.removed.len() >= MOST_REMOVED {
            return Err(MembershipError::TooManyRemoved);
        }
        self.change(|roster| {
            roster.members.retain(|member| member.id != host.id);
            roster.removed.push(host.id);
        })
    }

    /// Writes down where a member is reached now.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub fn set_addresses(&self, host: KeyId, mut addresses: Vec<SocketAddr>) -> Result<(), MembershipError> {
        addresses.truncate(MOST_ADDRESSES);
        if self.authority.is_some() && self.roster().member(host).is_none_or(|member| member.addresses == addresses) {
            return Ok(());
        }
        self.change(|roster| {
            for member in roster.members.iter_mut().filter(|member| member.id == host) {
                member.addresses.clone_from(&addresses);
            }
        })
    }

    /// Where this host is reached, if the roster does not say so.
    pub fn unknown_addresses(&self) -> Option<Vec<SocketAddr>> {
        let now = addresses::reachable(self.listen);
        let roster = self.roster();
        let known = &roster.member(self.id)?.addresses;
        now.iter().any(|address| !known.contains(address)).then_some(now)
    }

    fn publish(
        &self,
        current: &mut (SignedRoster, Arc<Roster>),
        signed: SignedRoster,
        roster: Roster,
    ) -> Result<(), MembershipError> {
        self.store.save_roster(&signed)?;
        self.excluded.set(&roster.removed);
        tracing::info!(serial = roster.serial, members = roster.members.len(), "the cluster's roster has changed");
        *current = (signed, Arc::new(roster));
        // Who shook hands before the list was set is found in the table now, or finds itself on the list.
        self.connections.cut(|peer| self.excluded.has(peer));
        Ok(())
    }

    /// Ends all connections.
    pub fn cut_all(&self) {
        self.connections.cut(|_| true);
    }
}
