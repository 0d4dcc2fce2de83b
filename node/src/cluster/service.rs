//! The cluster as `skeind` has it: what commands ask, and the tasks that run while this host is a member.

use super::addresses;
use super::contact;
use super::elsewhere::Elsewhere;
use super::guests::Nodes;
use super::invitations::{Invitations, TooMany};
use super::joining::{self, JoinError};
use super::keys::{self, Authority, KeyError, PrivateKey};
use super::link::{self, LinkError};
use super::listen;
use super::membership::{Clock, Membership, MembershipError};
use super::probe;
use super::store::{HostConfig, Kept, Store, StoreError};
use super::token::{BadToken, Token};
use super::wire::control::{ClusterReply, ClusterRequest, ClusterStatus};
use super::wire::id::KeyId;
use super::wire::label::Label;
use super::wire::level::{self, CpuLevel};
use super::wire::roster::{Member, NoMember, Roster};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// How often a host meets another, so that both know the newest roster.
const MEETING: Duration = Duration::from_secs(30);
/// How long until a taken address is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Longest that an invitation may be open, in minutes.
pub const LONGEST_INVITATION: u32 = 24 * 60;
/// How a cluster is called that was given no name.
const UNNAMED: &str = "skein";

/// Why a command's wish was not done.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// It is in no cluster.
    #[error(
        "this host is in no cluster; make one with: skein cluster init, or join one with: skein cluster join TOKEN"
    )]
    NoMember,
    /// It is in one.
    #[error("this host is a member of cluster {cluster} already; to leave it: skein cluster leave")]
    IsMember {
        /// Which.
        cluster: Label,
    },
    /// Its address is taken.
    #[error("cannot listen on {listen}: {why}; choose another with --listen ADDR:PORT")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        why: String,
    },
    /// The host of the command line is none.
    #[error("cannot find host {host}: {why}; give its address, as 10.0.0.1 or 10.0.0.1:{}", addresses::PORT)]
    NoHost {
        /// What was given.
        host: String,
        /// Why.
        why: String,
    },
    /// An invitation of no or of too much time.
    #[error("an invitation is open for 1 to {LONGEST_INVITATION} minutes")]
    Minutes,
    /// Others would stay without anybody who can invite and remove.
    #[error(
        "this host holds the authority of cluster {cluster}, and {others} other {} would stay that nobody could add to \
         or remove from; remove them first (skein cluster remove), or leave with --force",
        if *others == 1 { "member" } else { "members" }
    )]
    WouldOrphan {
        /// Which.
        cluster: Label,
        /// How many.
        others: usize,
    },
    /// No keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What is kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// As a member.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Joining.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The token.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// Which member.
    #[error(transparent)]
    Unknown(#[from] NoMember),
    /// It is this host.
    #[error("{0} is this host; there is no connection to measure")]
    ItsSelf(Label),
    /// A host that cannot be spoken with.
    #[error("{host}: {why}")]
    Link {
        /// Which.
        host: Label,
        /// Why.
        why: LinkError,
    },
    /// Too many invitations.
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

/// A membership, and what runs for it; when dropped, nothing of it runs on.
#[derive(Debug)]
struct Running {
    membership: Arc<Membership>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.membership.cut_all();
    }
}

/// What `skeind` has of the cluster.
#[derive(Debug)]
pub struct Service {
    store: Store,
    clock: Clock,
    pub(super) nodes: Arc<dyn Nodes>,
    /// On which others programs of this host run.
    pub(super) elsewhere: Arc<Elsewhere>,
    running: Mutex<Option<Running>>,
    /// Held by what makes this host a member or ends that.
    changing: tokio::sync::Mutex<()>,
}

impl Service {
    /// With what is kept in `store`; starts what has to run, so it is called within the runtime. A store that cannot
    /// be read is logged, and told to commands.
    pub fn start(store: Store, nodes: Arc<dyn Nodes>) -> Arc<Self> {
        let service = Arc::new(Self::new(store, Clock::of_the_machine(), nodes));
        if let Err(error) = service.resume() {
            tracing::error!(error = procmig::chain(&error), "this host cannot be a member");
        }
        service
    }

    fn new(store: Store, clock: Clock, nodes: Arc<dyn Nodes>) -> Self {
        let elsewhere = Elsewhere::new(store.clone());
        Self { store, clock, nodes, elsewhere, running: Mutex::new(None), changing: tokio::sync::Mutex::new(()) }
    }

    #[cfg(test)]
    pub fn for_test(store: Store, clock: Clock) -> Arc<Self> {
        let service = Arc::new(Self::new(store, clock, Arc::new(super::tests::NoNodes)));
        service.resume().expect("what is kept is right");
        service
    }

    #[cfg(test)]
    pub fn current(&self) -> Arc<Membership> {
        self.membership().expect("a member")
    }

    fn resume(&self) -> Result<(), ServiceError> {
        if let Some(kept) = self.store.load()? {
            let membership = Membership::new(self.store.clone(), kept, self.clock.clone())?;
            self.run(membership, None);
        }
        Ok(())
    }

    /// Does what a command asks.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub async fn serve(&self, request: ClusterRequest) -> Result<ClusterReply, String> {
        let result = match request {
            ClusterRequest::Init { cluster, host, listen } => self.init(cluster, host, listen).await,
            ClusterRequest::Invite { minutes } => self.invite(minutes),
            ClusterRequest::Join { token, at, host, listen } => self.join(&token, at, host, listen).await,
            ClusterRequest::Remove { host } => self.remove(&host).await,
            ClusterRequest::Leave { force } => self.leave(force).await,
            ClusterRequest::Status => self.status(),
            ClusterRequest::Members => self.members().await,
            ClusterRequest::SetCpuLevel(level) => self.set_cpu_level(level).await,
            ClusterRequest::Measure { host, bytes } => self.measure(&host, bytes).await,
        };
        result.map_err(|error| procmig::chain(&error))
    }

    pub fn membership(&self) -> Result<Arc<Membership>, ServiceError> {
        {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(running) = &*running {
                return Ok(running.membership.clone());
            }
        }
        // What is wrong with the store, if something is.
        self.store.load()?;
        Err(ServiceError::NoMember)
    }

    fn run(&self, membership: Arc<Membership>, listener: Option<TcpListener>) {
        if listener.is_some() {
            membership.set_not_listening(None);
        }
        let accepting = tokio::spawn(keep_listening(membership.clone(), listener, self.nodes.clone()));
        let meeting = tokio::spawn(keep_meeting(membership.clone()));
        let tasks = vec![accepting.abort_handle(), meeting.abort_handle()];
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Running { membership, tasks });
    }

    fn refuse_if_member(&self) -> Result<(), ServiceError> {
        match self.membership() {
            Ok(membership) => Err(ServiceError::IsMember { cluster: membership.roster().name.clone() }),
            Err(ServiceError::NoMember) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn init(
        &self,
        cluster: Option<Label>,
        host: Option<Label>,
        listen: Option<SocketAddr>,
    ) -> Result<ClusterReply, ServiceError> {
        let _changing = self.changing.lock().await;
        self.refuse_if_member()?;
        let (listener, listen) = bind(listen)?;
        let name = host.unwrap_or_else(machine_name);
        let authority = Authority::generate()?;
        let key = PrivateKey::generate()?;
        let member = Member { id: key.id(), name: name.clone(), addresses: addresses::reachable(listen) };
        let roster = Roster {
            cluster: authority.key().id(),
            name: cluster.unwrap_or_else(|| UNNAMED.parse().expect("a name")),
            serial: 1,
            authority: key.id(),
            members: vec![member],
            removed: Vec::new(),
            cpu_level: CpuLevel::highest(&level::here()),
        };
        let kept = Kept {
            certificate: authority.issue(key.public())?,
            ca: authority.certificate()?,
            roster: authority.seal(&roster),
            host: HostConfig { name, listen },
            invitations: Invitations::default(),
            authority: Some(authority),
            key,
        };
        self.become_member(kept, listener)
    }

    fn become_member(&self, kept: Kept, listener: TcpListener) -> Result<ClusterReply, ServiceError> {
        self.store.create(&kept)?;
        let membership = Membership::new(self.store.clone(), kept, self.clock.clone())?;
        self.run(membership, Some(listener));
        self.status()
    }

    fn invite(&self, minutes: u32) -> Result<ClusterReply, ServiceError> {
        if !(1..=LONGEST_INVITATION).contains(&minutes) {
            return Err(ServiceError::Minutes);
        }
        let membership = self.membership()?;
        let roster = membership.roster();
        if membership.authority.is_none() {
            let name = roster.member(roster.authority).map(|member| member.name.clone());
            let authority = name.unwrap_or_else(|| membership.name());
            return Err(MembershipError::NotTheAuthority { authority }.into());
        }
        let invitation = KeyId(keys::random()?);
        let secret = keys::random()?;
        let expires = membership.clock.now() + u64::from(minutes) * 60;
        membership.with_invitations(|all, now| all.add(invitation, &secret, expires, now))??;
        let token = Token {
            cluster: roster.name.clone(),
            fingerprint: keys::hash(&membership.ca),
            host: membership.id,
            addresses: addresses::reachable(membership.listen),
            invitation,
            secret,
            expires,
        };
        Ok(ClusterReply::Token(token.to_string()))
    }

    async fn join(
        &self,
        token: &str,
        at: Option<String>,
        host: Option<Label>,
        listen: Option<SocketAddr>,
    ) -> Result<ClusterReply, ServiceError> {
        let _changing = self.changing.lock().await;
        self.refuse_if_member()?;
        let token: Token = token.parse()?;
        let at = match at {
            Some(host) => resolve(&host, token.addresses.first().map_or(addresses::PORT, SocketAddr::port)).await?,
            None => token.addresses.clone(),
        };
        // Before the token is used up it must be sure that this host can listen.
        let (listener, listen) = bind(listen)?;
        let exactly = host.is_some();
        let name = host.unwrap_or_else(machine_name);
        let joined = joining::join(&token, &at, name, exactly, listen, self.clock.now()).await?;
        let kept = Kept {
            key: joined.key,
            certificate: joined.certificate,
            ca: joined.ca,
            authority: None,
            roster: joined.roster,
            host: HostConfig { name: joined.name, listen },
            invitations: Invitations::default(),
        };
        self.become_member(kept, listener)
    }

    async fn remove(&self, host: &str) -> Result<ClusterReply, ServiceError> {
        let membership = self.membership()?;
        let roster = membership.roster();
        let member = roster.find(host)?;
        membership.remove(member)?;
        let (told, untold) = contact::meet_all(&membership).await;
        Ok(ClusterReply::Told { host: member.name.clone(), told, untold })
    }

    async fn leave(&self, force: bool) -> Result<ClusterReply, ServiceError> {
        let _changing = self.changing.lock().await;
        let membership = self.membership()?;
        let roster = membership.roster();
        let others = membership.others();
        let name = membership.name();
        let mut reply = ClusterReply::Told { host: name.clone(), told: Vec::new(), untold: Vec::new() };
        if membership.authority.is_some() {
            if !others.is_empty() && !force {
                return Err(ServiceError::WouldOrphan { cluster: roster.name.clone(), others: others.len() });
            }
        } else if let Err(error) = contact::say_farewell(&membership).await
            // Where this host was removed already there is nobody to be told.
            && !matches!(error, LinkError::RemovedThere)
        {
            tracing::warn!(%error, "the cluster's authority could not be told that this host leaves");
            let authority = roster.member(roster.authority).map_or_else(|| name.clone(), |one| one.name.clone());
            reply = ClusterReply::Told { host: name, told: Vec::new(), untold: vec![authority] };
        }
        self.store.remove()?;
        self.elsewhere.forget();
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tracing::info!(cluster = %roster.name, "this host has left the cluster");
        Ok(reply)
    }

    fn status(&self) -> Result<ClusterReply, ServiceError> {
        let membership = self.membership()?;
        let roster = membership.roster();
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let host = membership.name();
        Ok(ClusterReply::Status(Box::new(ClusterStatus {
            name: roster.name.clone(),
            id: roster.cluster,
            authority: roster.member(roster.authority).map_or_else(|| host.clone(), |one| one.name.clone()),
            host,
            host_id: membership.id,
            is_authority: membership.authority.is_some(),
            members: count(roster.members.len()),
            removed: count(roster.removed.len()),
            serial: roster.serial,
            listen: membership.listen,
            not_listening: membership.not_listening(),
            invitations: count(membership.open_invitations()),
            cpu_level: roster.cpu_level.clone(),
            lacks: membership.lacks(),
            directory: membership.store().path().display().to_string(),
        })))
    }

    async fn members(&self) -> Result<ClusterReply, ServiceError> {
        Ok(ClusterReply::Members(contact::survey(&self.membership()?).await))
    }

    async fn set_cpu_level(&self, level: CpuLevel) -> Result<ClusterReply, ServiceError> {
        let membership = self.membership()?;
        membership.change(|roster| roster.cpu_level = level)?;
        let (told, untold) = contact::meet_all(&membership).await;
        Ok(ClusterReply::Told { host: membership.name(), told, untold })
    }
}

impl Service {
    async fn measure(&self, host: &str, bytes: u64) -> Result<ClusterReply, ServiceError> {
        let membership = self.membership()?;
        let roster = membership.roster();
        let member = roster.find(host)?;
        if member.id == membership.id {
            return Err(ServiceError::ItsSelf(member.name.clone()));
        }
        let measured = probe::measure(&membership, member, bytes).await;
        let failed = |why| ServiceError::Link { host: member.name.clone(), why };
        Ok(ClusterReply::Measured(Box::new(measured.map_err(failed)?)))
    }
}

/// What the machine is called, as far as it can be a name.
fn machine_name() -> Label {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    name.parse().unwrap_or_else(|_| "host".parse().expect("a name"))
}

fn bind(listen: Option<SocketAddr>) -> Result<(TcpListener, SocketAddr), ServiceError> {
    let listen = listen.unwrap_or_else(addresses::everywhere);
    let failed = |error: io::Error| ServiceError::Listen { listen, why: link::plain(&error) };
    let listener = listen::bind(listen).map_err(failed)?;
    let listen = listener.local_addr().map_err(failed)?;
    Ok((listener, listen))
}

/// The addresses of what a user has written as a host.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ServiceError> {
    let no_host = |why: String| ServiceError::NoHost { host: host.chars().take(256).collect(), why };
    let found = match host.parse::<SocketAddr>() {
        Ok(address) => vec![address],
        Err(_) => match host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?))) {
            Some((name, port)) if !name.contains(':') => {
                tokio::net::lookup_host((name, port)).await.map_err(|error| no_host(link::plain(&error)))?.collect()
            }
            _ => tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
                .await
                .map_err(|error| no_host(link::plain(&error)))?
                .collect::<Vec<_>>(),
        },
    };
    if found.is_empty() {
        return Err(no_host("it has no address".to_owned()));
    }
    Ok(found)
}

/// Listens; where the address is taken or not there yet, tries again.
async fn keep_listening(membership: Arc<Membership>, mut listener: Option<TcpListener>, nodes: Arc<dyn Nodes>) {
    loop {
        match listener.take().map_or_else(|| listen::bind(membership.listen), Ok) {
            Ok(listener) => {
                membership.set_not_listening(None);
                tracing::info!(address = %membership.listen, "listening for hosts");
                listen::serve(membership.clone(), listener, nodes.clone()).await;
            }
            Err(error) => {
                let why = link::plain(&error);
                if membership.not_listening().as_ref() != Some(&why) {
                    tracing::warn!(address = %membership.listen, why, "cannot listen for hosts; trying again");
                }
                membership.set_not_listening(Some(why));
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Meets all members at first and one of them every now and then. Who has other addresses than when it ran last tells
/// the authority when it meets it.
async fn keep_meeting(membership: Arc<Membership>) {
    if let (Some(_), Some(addresses)) = (&membership.authority, membership.unknown_addresses())
        && let Err(error) = membership.set_addresses(membership.id, addresses)
    {
        tracing::warn!(%error, "this host's new addresses cannot be written down");
    }
    contact::meet_all(&membership).await;
    loop {
        tokio::time::sleep(MEETING).await;
        let others = membership.others();
        let Ok(random) = keys::random::<8>() else { continue };
        let Some(which) = (u64::from_le_bytes(random) as usize).checked_rem(others.len()) else { continue };
        if let Err(error) = contact::meet(&membership, &others[which]).await {
            tracing::debug!(host = %others[which].name, %error, "a member was not reached");
        }
    }
}
