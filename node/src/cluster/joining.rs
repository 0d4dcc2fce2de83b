//! How a host becomes a member: by a token, over a connection on which the cluster alone has a certificate.

use super::addresses;
use super::keys::{self, PrivateKey};
use super::link::{self, Link, LinkError, MESSAGE};
use super::membership::Membership;
use super::tls;
use super::token::Token;
use super::wire::label::Label;
use super::wire::message::{JoinReply, JoinRequest, MAX_MESSAGE, MAX_SHORT};
use super::wire::roster::{MOST_ADDRESSES, MOST_MEMBERS, Member, SignedRoster};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a refusal is held back: guessing is slow.
const PENANCE: Duration = Duration::from_millis(500);

/// Answers a host that wants to become a member.
///
/// # Errors
/// [`LinkError`], also where it was refused.
pub async fn admit(membership: &Arc<Membership>, mut link: Link, from: SocketAddr) -> Result<(), LinkError> {
    let Some(request) = link.receive::<JoinRequest>(MAX_SHORT, MESSAGE).await? else { return Ok(()) };
    let challenge = link::join_challenge(&link)?;
    let reply = match decide(membership, &request, &challenge, from) {
        Ok(reply) => reply,
        Err(why) => {
            tracing::warn!(%from, why, "a host was not let in");
            tokio::time::sleep(PENANCE).await;
            return link.send(&JoinReply::Refused(why)).await;
        }
    };
    link.send(&reply).await?;
    tracing::info!(%from, host = %request.name, id = %keys::id_of(&request.public), "a host has joined");
    drop(link);
    super::contact::meet_all(membership).await;
    Ok(())
}

/// Everything is looked at before the invitation is used up.
fn decide(
    membership: &Membership,
    request: &JoinRequest,
    challenge: &[u8],
    from: SocketAddr,
) -> Result<JoinReply, String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    if !keys::is_signed(&request.public, challenge, &request.proof) {
        return Err("the host does not have the private key of what it wants certified".to_owned());
    }
    let JoinRequest { invitation, secret, .. } = request;
    let invited = membership.with_invitations(|all, now| all.check(*invitation, secret, now));
    invited.map_err(|error| said(&error))?.map_err(|error| said(&error))?;
    let roster = membership.roster();
    let id = keys::id_of(&request.public);
    if roster.member(id).is_some() || roster.removed.contains(&id) {
        return Err("this key is or was a member's; a host makes a new one to join".to_owned());
    }
    if roster.members.len() >= MOST_MEMBERS {
        return Err(format!("the cluster has {MOST_MEMBERS} members and takes no more"));
    }
    let name = roster.free_name(&request.name);
    if request.exactly && name != request.name {
        return Err(format!(
            "the cluster has a host {} already; choose another --host-name, or remove that one first: \
             skein cluster remove {}",
            request.name, request.name
        ));
    }
    let authority = membership.authority.as_ref().ok_or("this host cannot let others in")?;
    let certificate = authority.issue(&request.public).map_err(|error| said(&error))?;
    membership.with_invitations(|all, _| all.use_up(*invitation)).map_err(|error| said(&error))?;
    // Where the request came from is most likely where the host can be reached, if it listens everywhere.
    let seen = (request.port != 0).then(|| SocketAddr::new(addresses::plain(from.ip()), request.port));
    let mut all = Vec::new();
    for address in seen.into_iter().chain(request.addresses.iter().copied()) {
        if !all.contains(&address) && all.len() < MOST_ADDRESSES {
            all.push(address);
        }
    }
    let member = Member { id, name, addresses: all };
    membership.change(|roster| roster.members.push(member)).map_err(|error| said(&error))?;
    Ok(JoinReply::Joined { certificate, roster: membership.signed_roster() })
}

/// What a host has got by joining.
#[derive(Debug)]
pub struct Joined {
    /// Its key, made here.
    pub key: PrivateKey,
    /// The key's certificate.
    pub certificate: Vec<u8>,
    /// The cluster's certificate.
    pub ca: Vec<u8>,
    /// The cluster's roster.
    pub roster: SignedRoster,
    /// Its name.
    pub name: Label,
}

/// Why a host does not become a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The host that invited cannot be spoken with.
    #[error(
        "the host that invited, of cluster {cluster}, {why}; is its skeind running, and does a firewall let it through?"
    )]
    Link {
        /// The cluster.
        cluster: Label,
        /// Why.
        why: LinkError,
    },
    /// What answers is not what the token was made by.
    #[error(
        "what answers there is not the host that made this token: it is of another cluster than {cluster}, or of one \
         that was made anew since; nothing was sent to it"
    )]
    WrongCluster {
        /// The cluster of the token.
        cluster: Label,
    },
    /// Nobody may join there at present.
    #[error("cluster {cluster} has no open invitation: the token has {}; ask for a new one: skein cluster invite",
        if *expired { "expired" } else { "been used already" })]
    NotOpen {
        /// The cluster.
        cluster: Label,
        /// By this host's clock its time is over.
        expired: bool,
    },
    /// It said why.
    #[error("cluster {cluster} refuses this host: {why}")]
    Refused {
        /// The cluster.
        cluster: Label,
        /// Why.
        why: String,
    },
    /// What it gave is of no use.
    #[error("cluster {cluster} has answered with a certificate or roster that is not right")]
    BadAnswer {
        /// The cluster.
        cluster: Label,
    },
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    /// TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// Becomes a member of the cluster that `token` is for.
///
/// # Errors
/// [`JoinError`]
pub async fn join(
    token: &Token,
    at: &[SocketAddr],
    name: Label,
    exactly: bool,
    listen: SocketAddr,
    now: u64,
) -> Result<Joined, JoinError> {
    let cluster = || token.cluster.clone();
    let wrong = |error: LinkError| match error {
        LinkError::OtherCluster | LinkError::OtherHost { .. } => JoinError::WrongCluster { cluster: cluster() },
        LinkError::NotServed => JoinError::NotOpen { cluster: cluster(), expired: now >= token.expires },
        why => JoinError::Link { cluster: cluster(), why },
    };
    let key = PrivateKey::generate()?;
    let config = tls::joining(token.fingerprint)?;
    let (mut link, _) = link::open(at, &keys::tls_name(token.host), &config, None).await.map_err(wrong)?;
    let bad = || JoinError::BadAnswer { cluster: cluster() };
    let chain = link.stream().get_ref().1.peer_certificates().unwrap_or_default();
    let ca = chain.iter().find(|ca| keys::hash(ca) == token.fingerprint).ok_or_else(bad)?.to_vec();
    let challenge = link::join_challenge(&link).map_err(wrong)?;
    let request = JoinRequest {
        invitation: token.invitation,
        secret: token.secret,
        public: *key.public(),
        proof: key.signature(&challenge),
        name,
        exactly,
        port: if listen.ip().is_unspecified() { listen.port() } else { 0 },
        addresses: addresses::reachable(listen),
    };
    link.send(&request).await.map_err(wrong)?;
    let reply = link.receive::<JoinReply>(MAX_MESSAGE, MESSAGE).await.map_err(wrong)?;
    match reply {
        None => Err(wrong(LinkError::Closed)),
        Some(JoinReply::Refused(why)) => {
            let why = super::contact::clean(&why, 500);
            Err(JoinError::Refused { cluster: cluster(), why })
        }
        Some(JoinReply::Joined { certificate, roster }) => {
            let authority = keys::public_key(&ca).map_err(|_| bad())?;
            let opened = keys::open_roster(&roster, &authority).map_err(|_| bad())?;
            let name = opened.member(key.id()).ok_or_else(bad)?.name.clone();
            if keys::public_key(&certificate).ok() != Some(*key.public()) {
                return Err(bad());
            }
            Ok(Joined { key, certificate, ca, roster, name })
        }
    }
}
