//! `skeind`, the host daemon.
//!
//! One task accepts commands' connections and one serves each; changes of the nodes are made one
//! at a time by [`registry::Registry`] on a blocking thread. Nodes do not depend on `skeind`: they
//! go on without it, and the next one picks them up.

pub mod detach;
mod guests;
pub mod launch;
pub mod lock;
pub mod log;
mod migrate;
pub mod protocol;
pub mod registry;
mod stream;

use crate::cluster::service::Service;
use crate::cluster::store::{Store, StoreError};
use crate::statedir::StateDir;
use anyhow::{Context, bail};
use protocol::{HostReply, HostRequest, HostStatus, MAX_REQUEST};
use registry::Registry;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// Most commands served at a time.
const MOST_CONNECTIONS: usize = 256;
/// How long a connection may stay without a request.
const IDLE: Duration = Duration::from_secs(60);

/// What the tasks share.
#[derive(Debug)]
struct Host {
    registry: Arc<Mutex<Registry>>,
    started: Instant,
    stop: mpsc::UnboundedSender<()>,
    /// `None` if there is no place for its keys.
    cluster: Option<Arc<Service>>,
}

/// Runs the daemon until it is stopped. `ready` gets one line when it answers, or when it cannot.
pub fn main(state: StateDir, ready: Option<OwnedFd>) -> anyhow::Result<()> {
    let result = start(&state);
    if let Some(ready) = ready {
        let line = match &result {
            Ok(_) => "ready\n".to_owned(),
            Err(error) => format!("error: {error:#}\n"),
        };
        // The command that waits may have gone; the host runs all the same.
        let _ = std::fs::File::from(ready).write_all(line.as_bytes());
    }
    let (lock, listener) = result?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(state.clone(), listener));
    for path in [state.host_socket(), state.host_pid()] {
        let _ = launch::remove(&path);
    }
    tracing::info!("stopped");
    drop(lock);
    ended
}

type Lock = nix::fcntl::Flock<std::fs::File>;

fn start(state: &StateDir) -> anyhow::Result<(Lock, std::os::unix::net::UnixListener)> {
    let lock_path = state.host_lock();
    let mut lock = lock::take(&lock_path);
    // Somebody who only looks holds the lock for a moment.
    for _ in 0..20 {
        if !matches!(lock, Ok(None)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
        lock = lock::take(&lock_path);
    }
    let Some(lock) = lock.with_context(|| format!("cannot lock {}", lock_path.display()))? else {
        bail!("a host runs already in {}", state.path().display());
    };
    let socket = state.host_socket();
    // We hold the lock, so whatever is there is stale.
    launch::remove(&socket).with_context(|| format!("cannot remove the stale {}", socket.display()))?;
    let listener = std::os::unix::net::UnixListener::bind(&socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    std::fs::write(state.host_pid(), format!("{}\n", std::process::id()))?;
    Ok((lock, listener))
}

async fn serve(state: StateDir, listener: std::os::unix::net::UnixListener) -> anyhow::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let (news, mut new_nodes) = mpsc::unbounded_channel();
    let (stop, mut stopped) = mpsc::unbounded_channel();
    let mut registry = Registry::new(state.clone(), news);
    let registry = tokio::task::spawn_blocking(move || registry.adopt().map(|()| registry)).await??;
    let registry = Arc::new(Mutex::new(registry));
    let nodes = Arc::new(guests::OwnNodes(registry.clone()));
    let cluster = state.cluster().map(|path| Service::start(Store::new(path), nodes));
    let host = Arc::new(Host { registry, started: Instant::now(), stop, cluster });
    let room = Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tracing::info!(pid = std::process::id(), directory = %state.path().display(), "started");
    loop {
        tokio::select! {
            Some(pid) = new_nodes.recv() => {
                tokio::spawn(watch(host.clone(), pid));
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match room.clone().try_acquire_owned() {
                    Ok(place) => {
                        let host = host.clone();
                        tokio::spawn(async move {
                            if let Err(error) = converse(host, stream, place).await {
                                tracing::warn!(error = format!("{error:#}"), "a command's connection was closed");
                            }
                        });
                    }
                    Err(_) => tracing::warn!("too many commands at once; one was turned away"),
                },
                Err(error) => {
                    // Most likely out of descriptors: wait for some to be closed.
                    tracing::warn!(%error, "cannot accept a command");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = stopped.recv() => return Ok(()),
            // Ended so, skeind leaves its nodes running, and the next one picks them up.
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// Waits for the end of a node's process.
async fn watch(host: Arc<Host>, pid: i32) {
    if let Some(pidfd) = registry::open_pidfd(pid) {
        // SAFETY: the descriptor is open, and the `AsyncFd` owns it until it is deregistered.
        let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        match watched {
            Ok(pidfd) => {
                let _ = pidfd.readable().await;
            }
            Err(error) => {
                tracing::warn!(pid, %error, "cannot watch a node; its end will be noticed late");
                return;
            }
        }
    }
    let _ = change(&host, move |registry| registry.ended(pid)).await;
}

/// Runs a change of the nodes where it may wait.
async fn change<T: Send + 'static>(
    host: &Arc<Host>,
    work: impl FnOnce(&mut Registry) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let host = host.clone();
    // The registry is right after each of its steps, so a panic in one does not spoil it.
    tokio::task::spawn_blocking(move || work(&mut host.registry.lock().unwrap_or_else(PoisonError::into_inner))).await
}

/// Serves one command's connection.
async fn converse(
    host: Arc<Host>,
    mut connection: UnixStream,
    room: tokio::sync::OwnedSemaphorePermit,
) -> anyhow::Result<()> {
    let peer = connection.peer_cred()?;
    if peer.uid() != nix::unistd::geteuid().as_raw() && peer.uid() != 0 {
        bail!("user {} may not command this host", peer.uid());
    }
    loop {
        let body = match tokio::time::timeout(IDLE, stream::read(&mut connection, MAX_REQUEST)).await {
            Err(_) => return Ok(()),
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(body))) => body,
            Ok(Err(error)) => {
                if let stream::ReadError::TooLong { .. } = error {
                    let refusal = protocol::encode(&HostReply::Refused(error.to_string()))?;
                    let _ = stream::write(&mut connection, &refusal).await;
                }
                return Err(error).context("no request could be read");
            }
        };
        let request = match protocol::decode::<HostRequest>(&body) {
            Ok(request) => request,
            Err(why) => {
                let refusal = protocol::encode(&HostReply::Refused(why.clone()))?;
                let _ = stream::write(&mut connection, &refusal).await;
                bail!(why);
            }
        };
        if let HostRequest::Migrate(order) = request {
            let reply = tell_of_migration(&host, &mut connection, order).await?;
            stream::write(&mut connection, &protocol::encode(&reply)?).await?;
            continue;
        }
        let placed = match request {
            HostRequest::Place(place) => Ok(guests::place(&host, place).await?),
            HostRequest::Reach { host: to, node } => Ok(guests::way(&host, to, node).await?),
            other => Err(other),
        };
        let request = match placed {
            Err(other) => other,
            Ok((reply, away)) => {
                let bytes = protocol::encode(&reply)?;
                let Some(away) = away else {
                    stream::write(&mut connection, &bytes).await?;
                    continue;
                };
                stream::write_with_descriptor(&mut connection, &bytes, &away.handed.socket).await?;
                // As long as the program and what it has started live.
                drop(room);
                stream::closed(&mut connection).await;
                drop(away);
                return Ok(());
            }
        };
        let stopping = matches!(request, HostRequest::Stop { .. });
        let reply = answer(&host, request).await?;
        let stop = stopping && reply == HostReply::Done;
        stream::write(&mut connection, &protocol::encode(&reply)?).await?;
        if stop {
            let _ = host.stop.send(());
            return Ok(());
        }
    }
}

/// Has a process migrate and tells how it goes on; gives the last word. It goes on, whether or not somebody listens.
async fn tell_of_migration(
    host: &Arc<Host>,
    connection: &mut UnixStream,
    order: protocol::Migrate,
) -> anyhow::Result<HostReply> {
    let (news, mut told) = mpsc::unbounded_channel();
    let by = host.clone();
    let moved = tokio::spawn(async move { migrate::serve(&by, order, news).await });
    while let Some(event) = told.recv().await {
        stream::write(connection, &protocol::encode(&HostReply::Migration(event))?).await?;
    }
    Ok(moved.await?.map_or_else(HostReply::Refused, HostReply::Migrated))
}

async fn answer(host: &Arc<Host>, request: HostRequest) -> anyhow::Result<HostReply> {
    let started = host.started;
    let request = match request {
        HostRequest::Elsewhere => {
            let guests = match &host.cluster {
                Some(cluster) => cluster.guests_elsewhere().await,
                None => Vec::new(),
            };
            return Ok(HostReply::Elsewhere(guests));
        }
        HostRequest::Cluster(request) => {
            let reply = match &host.cluster {
                Some(cluster) => cluster.serve(request).await,
                None => Err(StoreError::NoPlace.to_string()),
            };
            return Ok(reply.map_or_else(HostReply::Refused, HostReply::Cluster));
        }
        other => other,
    };
    let reply = change(host, move |registry| match request {
        HostRequest::Status => Ok(HostReply::Status(HostStatus {
            pid: std::process::id() as i32,
            uptime_seconds: started.elapsed().as_secs(),
            nodes: registry.entries(),
        })),
        HostRequest::Launch { name, memory } => registry.launch(name, memory).map(HostReply::Node),
        HostRequest::Pick => registry.pick().map(HostReply::Node),
        HostRequest::StopNode { name, force } => registry.stop(&name, force).map(|()| HostReply::Done),
        HostRequest::Stop { force } => registry.stop_all(force).map(|()| HostReply::Done),
        HostRequest::Cluster(_)
        | HostRequest::Place(_)
        | HostRequest::Reach { .. }
        | HostRequest::Migrate(_)
        | HostRequest::Elsewhere => Err("a request about the cluster is answered elsewhere".to_owned()),
    })
    .await?;
    Ok(reply.unwrap_or_else(HostReply::Refused))
}
