//! Speaking with other members as the one that calls.

use super::keys;
use super::link::{self, Link, LinkError};
use super::membership::Membership;
use super::wire::control::{MemberAnswer, MemberStatus};
use super::wire::label::Label;
use super::wire::message::{Greeting, Hello, Load, Purpose, Reply, Request};
use super::wire::roster::Member;
use crate::name::NodeName;
use procmig::chain;
use procmig::wire::control::ProcessStatus;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Most members that are called at a time.
const AT_ONCE: usize = 64;
/// How long a call of one member may take in all.
const CALL: Duration = Duration::from_secs(8);
/// How long calling all of them may take.
const SWEEP: Duration = Duration::from_secs(25);
/// Round trips of which the shortest is told.
const PINGS: usize = 3;
/// Most features that are shown of those that a host says it lacks.
const MOST_SHOWN: usize = 256;
/// Longest version or feature that is taken from a host.
const LONGEST_WORD: usize = 64;
/// Longest refusal.
pub const LONGEST_REFUSAL: usize = 500;

/// Opens a connection with a member for a purpose. It is ready for what the purpose says; this side speaks first.
///
/// # Errors
/// [`LinkError`]
pub async fn connect(
    membership: &Membership,
    member: &Member,
    purpose: Purpose,
) -> Result<(Link, Hello, SocketAddr), LinkError> {
    let name = keys::tls_name(member.id);
    let config = &membership.tls.connect;
    let (mut link, address) = link::open(&member.addresses, &name, config, Some(&membership.connections)).await?;
    // The list may have changed while hands were shaken.
    if membership.has_excluded(link.peer()) {
        return Err(LinkError::RemovedHere);
    }
    match link.ask(&membership.hello(purpose)).await? {
        Greeting::Welcome(mut hello) => {
            hello.skein = clean(&hello.skein, LONGEST_WORD);
            hello.lacks.truncate(MOST_SHOWN);
            hello.lacks.iter_mut().for_each(|feature| *feature = clean(feature, LONGEST_WORD));
            Ok((link, hello, address))
        }
        Greeting::Refused(why) => Err(LinkError::Refused(clean(&why, LONGEST_REFUSAL))),
    }
}

/// Text of a peer as it may be shown on a terminal.
pub fn clean(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// Brings the older roster of the two up to date.
///
/// # Errors
/// [`LinkError`]
async fn exchange(membership: &Membership, link: &mut Link, theirs: u64) -> Result<(), LinkError> {
    let ours = membership.roster().serial;
    if theirs > ours {
        match link.ask(&Request::Members).await? {
            Reply::Roster(roster) => {
                membership.adopt(roster).map_err(|error| LinkError::Garbage(error.to_string()))?;
            }
            Reply::Refused(why) => return Err(LinkError::Refused(clean(&why, LONGEST_REFUSAL))),
            _ => return Err(LinkError::Garbage("an answer to another question".to_owned())),
        }
    } else if theirs < ours {
        done(link.ask(&Request::Update(membership.signed_roster())).await?)?;
    }
    Ok(())
}

fn done(reply: Reply) -> Result<(), LinkError> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Refused(why) => Err(LinkError::Refused(clean(&why, LONGEST_REFUSAL))),
        _ => Err(LinkError::Garbage("an answer to another question".to_owned())),
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    tokio::time::timeout(CALL, work).await.unwrap_or(Err(LinkError::Silent))
}

/// Meets one member, so that both know the newest roster.
///
/// # Errors
/// [`LinkError`]
pub async fn meet(membership: &Membership, member: &Member) -> Result<(), LinkError> {
    in_time(async {
        let (mut link, hello, _) = connect(membership, member, Purpose::Control).await?;
        exchange(membership, &mut link, hello.serial).await?;
        let moved = membership.unknown_addresses().filter(|_| member.id == membership.roster().authority);
        match moved {
            Some(addresses) => done(link.ask(&Request::Moved(addresses)).await?),
            None => Ok(()),
        }
    })
    .await
}

/// Tells the authority that this host leaves.
///
/// # Errors
/// [`LinkError`]
pub async fn say_farewell(membership: &Membership) -> Result<(), LinkError> {
    let roster = membership.roster();
    let authority = roster.member(roster.authority).ok_or(LinkError::NoAddress)?;
    in_time(async {
        let (mut link, _, _) = connect(membership, authority, Purpose::Control).await?;
        done(link.ask(&Request::Leave).await?)
    })
    .await
}

/// Calls many members, some at a time. Those that have not been reached in time are left out.
async fn sweep<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    members: Vec<Member>,
    call: impl Fn(Member) -> F,
) -> Vec<T> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut calls = JoinSet::new();
    for member in members {
        let (room, call) = (room.clone(), call(member));
        calls.spawn(async move {
            let _place = room.acquire_owned().await;
            call.await
        });
    }
    let deadline = tokio::time::Instant::now() + SWEEP;
    let mut results = Vec::new();
    while let Ok(Some(result)) = tokio::time::timeout_at(deadline, calls.join_next()).await {
        results.extend(result.ok());
    }
    results
}

/// Meets all other members. The names of those that were reached, and of those that were not.
pub async fn meet_all(membership: &Arc<Membership>) -> (Vec<Label>, Vec<Label>) {
    let others = membership.others();
    let reached: Vec<Label> = sweep(others.clone(), |member| {
        let membership = membership.clone();
        async move {
            let met = meet(&membership, &member).await;
            if let Err(error) = &met {
                tracing::debug!(host = %member.name, %error, "a member was not reached");
            }
            met.is_ok().then_some(member.name)
        }
    })
    .await
    .into_iter()
    .flatten()
    .collect();
    let (told, untold) = others.into_iter().map(|member| member.name).partition(|name| reached.contains(name));
    (told, untold)
}

async fn ask(membership: &Membership, member: &Member, request: &Request) -> Result<Reply, LinkError> {
    let (mut link, _, _) = connect(membership, member, Purpose::Control).await?;
    match link.ask(request).await? {
        Reply::Refused(why) => Err(LinkError::Refused(clean(&why, LONGEST_REFUSAL))),
        reply => Ok(reply),
    }
}

/// How busy the other members are, those that answer.
pub async fn loads(membership: &Arc<Membership>) -> Vec<(Member, Load)> {
    let answers = sweep(membership.others(), |member| {
        let membership = membership.clone();
        async move { (in_time(ask(&membership, &member, &Request::Load)).await, member) }
    });
    let known = |(reply, member)| match reply {
        Ok(Reply::Load(load)) => Some((member, load)),
        _ => None,
    };
    answers.await.into_iter().filter_map(known).collect()
}

/// What runs for this host on these members, those that answer.
pub async fn guests(membership: &Arc<Membership>, on: Vec<Member>) -> Vec<(Member, Vec<(NodeName, ProcessStatus)>)> {
    let answers = sweep(on, |member| {
        let membership = membership.clone();
        async move { (in_time(ask(&membership, &member, &Request::Guests)).await, member) }
    });
    let known = |(reply, member): (Result<Reply, LinkError>, Member)| match reply {
        Ok(Reply::Guests(guests)) => Some((member, guests)),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(host = %member.name, error = chain(&error), "what runs on a host is not known");
            None
        }
    };
    answers.await.into_iter().filter_map(known).collect()
}

/// How all members are, in the order of their names.
pub async fn survey(membership: &Arc<Membership>) -> Vec<MemberStatus> {
    let roster = membership.roster();
    let answers = sweep(membership.others(), |member| {
        let membership = membership.clone();
        async move {
            let answer = in_time(ping(&membership, &member)).await;
            (member.id, answer)
        }
    })
    .await;
    let mut all: Vec<MemberStatus> = (roster.members.iter())
        .map(|member| {
            let mut status = MemberStatus {
                name: member.name.clone(),
                id: member.id,
                is_this: member.id == membership.id,
                is_authority: member.id == roster.authority,
                addresses: member.addresses.clone(),
                answer: Err(LinkError::Silent.to_string()),
            };
            if status.is_this {
                let hello = membership.hello(Purpose::Control);
                status.answer = Ok(MemberAnswer { skein: hello.skein, round_trip_ns: 0, lacks: hello.lacks });
            } else if let Some((_, answer)) = answers.iter().find(|(id, _)| *id == member.id) {
                status.answer = match answer {
                    Ok((answer, address)) => {
                        status.addresses = vec![*address];
                        Ok(answer.clone())
                    }
                    Err(error) => Err(error.to_string()),
                };
            }
            status
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

async fn ping(membership: &Membership, member: &Member) -> Result<(MemberAnswer, SocketAddr), LinkError> {
    let (mut link, hello, address) = connect(membership, member, Purpose::Control).await?;
    let mut shortest = Duration::MAX;
    for _ in 0..PINGS {
        let sent = Instant::now();
        done(link.ask(&Request::Ping).await?)?;
        shortest = shortest.min(sent.elapsed());
    }
    exchange(membership, &mut link, hello.serial).await?;
    let round_trip_ns = u64::try_from(shortest.as_nanos()).unwrap_or(u64::MAX);
    Ok((MemberAnswer { skein: hello.skein, round_trip_ns, lacks: hello.lacks }, address))
}
