//! Links with the homes of guests of other hosts. See [`crate::wire::link`].

use super::doors::Greeted;
use super::process::Ending;
use super::start::StartError;
use super::time::Time;
use super::ways::Ways;
use super::{Kernel, KernelError, lock, priority};
use crate::migration::adoption;
use crate::vdso::distance::{Asked, Clocks, Distance};
use crate::wire::control::{self, HostId, MAX_MESSAGE, MAX_REQUEST, VERSION};
use crate::wire::frame::{self, FrameError};
use crate::wire::lasting::{Lasting, is_loss};
use crate::wire::link::{
    ConnectionId, Greeting, LinkId, LinkReply, LinkRequest, LinkSecret, RemoteAttach, Side, random,
};
use crate::wire::sealed::{Opener, Sealer};
use crate::wire::stream::{Sealed, Stream, prepare};
use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};
use vmm::machine::Machine;

/// How long a connection that was named may take to come, and one that has come to be named, if there are many.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Most connections of a link that wait to be named.
const MOST_UNNAMED: usize = 1024;
/// How often a home is asked for its clocks, and for how long, until it has answered fast.
const LOOKS: u32 = 20;
const LONG: Duration = Duration::from_millis(300);
/// The same for one that has never answered within [`LONG`].
const LONGEST: Duration = Duration::from_secs(4);
const FAST: Duration = Duration::from_micros(500);
/// Clocks that are told so slowly may be wrong by more than a target waits for ([`crate::migration::target`]).
const SLOW: Duration = Duration::from_secs(1);
/// Most links.
const MOST_LINKS: usize = 4096;
/// Why a link came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It failed.
    #[error("a link with another host failed")]
    Io(#[from] io::Error),
    /// What came over it was wrong.
    #[error("a link with another host was used wrongly")]
    Frame(#[from] FrameError),
    /// Keys that are none.
    #[error(transparent)]
    Keys(#[from] crate::wire::sealed::BadKeys),
    /// The other host's clocks show what no clock shows.
    #[error("another host says of its clocks what cannot be")]
    Clocks,
    /// What the other host's clocks show is not known well enough.
    #[error("another host takes {0:?} to say what its clocks show")]
    SlowClocks(Duration),
    /// There is no memory for its time.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The deputy's connections did not come.
    #[error("the connections of a process of another host did not come")]
    NotCome,
    /// The process could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Another host whose programs run here.
#[derive(Debug)]
pub struct Home {
    /// Tells it from others in this node; 0 is this host.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its time, since it has told of its clocks: before its first program starts.
    pub time: OnceLock<Time>,
}

impl Home {
    /// Learns what its clocks show. It was asked for the first time at `asked`.
    fn learn_clocks(&self, machine: &Arc<Machine>, stream: &mut Stream, asked: Asked) -> Result<(), LinkError> {
        if let Some(distance) = ask_clocks(stream, asked, self.time.get())? {
            // Another of its programs may have come first.
            let _ = self.time.set(Time::new(machine, Some(distance))?);
        }
        Ok(frame::write_to(stream, &LinkReply::Ready)?)
    }
}

/// How far a home's clocks are, if its time is not known yet: asks as often as it takes until an answer has come fast, or
/// long enough if none was so slow that the clocks would be wrong by much.
fn ask_clocks(stream: &mut Stream, first: Asked, known: Option<&Time>) -> Result<Option<Distance>, LinkError> {
    let begun = Instant::now();
    let (mut asked, mut sent) = (first, begun);
    let mut best: Option<(Duration, Distance)> = None;
    for look in 1.. {
        let told: Clocks = frame::read_from(stream, MAX_MESSAGE)?;
        let took = sent.elapsed();
        if let Some(time) = known {
            time.clock.hear(&asked, &told);
        } else {
            let distance = Distance::measure(&asked, &told).ok_or(LinkError::Clocks)?;
            if best.is_none_or(|(shortest, _)| took < shortest) {
                best = Some((took, distance));
            }
        }
        let is_known = known.is_some() || best.is_some_and(|(shortest, _)| shortest <= LONG);
        if took < FAST || look == LOOKS || begun.elapsed() > if is_known { LONG } else { LONGEST } {
            break;
        }
        (asked, sent) = (Asked::now(), Instant::now());
        frame::write_to(stream, &LinkReply::Clocks)?;
    }
    match best {
        Some((shortest, _)) if shortest > SLOW => Err(LinkError::SlowClocks(shortest)),
        best => Ok(best.map(|(_, distance)| distance)),
    }
}

/// The link of a program of another host.
#[derive(Debug)]
pub struct Link {
    /// The program's home.
    pub home: Arc<Home>,
    id: LinkId,
    pub(super) secret: LinkSecret,
    home_id: HostId,
    /// Its connections, and those that were made in place of lost ones.
    pub(super) ways: Ways,
    come: Mutex<HashMap<ConnectionId, (Stream, Instant)>>,
    changed: Condvar,
    has_ended: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    homes: HashMap<HostId, Arc<Home>>,
    open: HashMap<LinkId, Arc<Link>>,
}

/// All links of a node.
#[derive(Debug, Default)]
pub struct Links(Mutex<State>);

impl Link {
    /// The connection of this name, which the deputy has opened; it may not have come yet.
    pub fn take(&self, connection: &ConnectionId) -> Option<Stream> {
        let come = lock(&self.come);
        let waits = |come: &mut HashMap<_, _>| !come.contains_key(connection) && !self.has_ended();
        let wait = self.changed.wait_timeout_while(come, ARRIVAL, waits);
        let (mut come, _) = wait.unwrap_or_else(std::sync::PoisonError::into_inner);
        come.remove(connection).map(|(stream, _)| stream)
    }

    fn bring(&self, connection: ConnectionId, stream: Stream) {
        let mut come = lock(&self.come);
        if come.len() >= MOST_UNNAMED {
            // Those for a process that is to arrive may wait for as long as its memory takes.
            come.retain(|_, (_, since)| since.elapsed() < ARRIVAL);
        }
        if !self.has_ended() && come.len() < MOST_UNNAMED {
            come.entry(connection).or_insert((stream, Instant::now()));
            self.changed.notify_all();
        }
    }

    /// Whether it has ended, and with it all its processes.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Keeps a connection of this name for the process that it is for.
    pub(super) fn keep(self: &Arc<Self>, connection: ConnectionId, greeted: Greeted) -> Result<(), LinkError> {
        let Greeted { socket, mut sealer, mut opener, greeting: Greeting { way, resumes, .. } } = greeted;
        opener.count_from_here();
        let Some((name, theirs)) = resumes else {
            if !self.ways.is_open(way) {
                return Err(LinkError::NotCome);
            }
            self.lasting(connection, socket, sealer, opener, way);
            return Ok(());
        };
        // What is repeated by others would be answered under keys that were used.
        if !self.ways.use_up(way, connection) {
            return Err(LinkError::NotCome);
        }
        if let Some(lasting) = self.ways.find(&name) {
            return Ok(lasting.accept(&socket, sealer, opener, way, theirs)?);
        }
        if let Some(remains) = self.ways.remains(&name) {
            // It has ended since; what it had still to say is said.
            return Ok(remains.send(&mut &socket, sealer, theirs)?);
        }
        if theirs > 0 {
            return Ok(sealer.finish(&mut &socket)?);
        }
        // It had not come this far.
        sealer.send_counted(&mut &socket, &[], 0)?;
        self.lasting(name, socket, sealer, opener, way);
        Ok(())
    }

    /// A connection that may outlast its socket.
    fn lasting(self: &Arc<Self>, name: ConnectionId, socket: TcpStream, sealer: Sealer, opener: Opener, way: u64) {
        let lasting = Arc::new(Lasting::new(socket, sealer, opener, way, !self.ways.patience().is_zero()));
        let link = Arc::downgrade(self);
        lasting.bequeath(Box::new(move |remains| {
            if let Some(link) = link.upgrade() {
                link.ways.inherit(name, remains);
            }
        }));
        if self.ways.enter(name, &lasting) {
            self.bring(name, lasting.into());
        }
    }
}

impl Links {
    /// Has the clocks of other hosts follow those.
    pub fn update_clocks(&self) {
        let homes: Vec<Arc<Home>> = lock(&self.0).homes.values().cloned().collect();
        homes.iter().filter_map(|home| home.time.get()).for_each(|time| time.clock.update());
    }

    fn open(&self, about: &control::Link, patience: Duration) -> io::Result<Arc<Link>> {
        let secret = LinkSecret::new(&about.keys, Side::Node);
        let id = random()?;
        let state = &mut *lock(&self.0);
        if state.open.len() >= MOST_LINKS {
            return Err(io::Error::other("too many programs of other hosts run here"));
        }
        let number = state.homes.len() as u32 + 1;
        let new = || Arc::new(Home { number, name: about.home_name.clone(), time: OnceLock::new() });
        let home = state.homes.entry(about.home).or_insert_with(new).clone();
        let link = Arc::new(Link {
            home,
            id,
            secret,
            home_id: about.home,
            ways: Ways::new(patience),
            come: Mutex::default(),
            changed: Condvar::new(),
            has_ended: AtomicBool::new(false),
        });
        state.open.insert(id, link.clone());
        Ok(link)
    }

    /// The number by which a home is known here, if it is.
    pub fn home(&self, id: &HostId) -> Option<u32> {
        lock(&self.0).homes.get(id).map(|home| home.number)
    }

    /// The link with this identifier.
    pub fn find(&self, id: &LinkId) -> Option<Arc<Link>> {
        lock(&self.0).open.get(id).cloned()
    }
}

impl Kernel {
    /// Serves a link: runs the program that its deputy asks for, or lets a process of its deputy's arrive, and ends
    /// what is left of it when the link ends.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn serve_link(self: &Arc<Self>, about: &control::Link, socket: TcpStream) -> Result<(), LinkError> {
        prepare(&socket)?;
        socket.set_read_timeout(Some(ARRIVAL))?;
        let mut stream = Stream::from(Sealed::with_keys(socket.try_clone()?, about.keys.clone())?);
        let request = frame::read_from(&mut stream, MAX_REQUEST)?;
        let (version, patience) = match &request {
            LinkRequest::Attach(request) => (request.attach.version, request.patience),
            LinkRequest::Receive { version, patience, .. } => (*version, *patience),
            LinkRequest::Resume { version, .. } => (*version, 0),
        };
        if version != VERSION {
            let sentence = format!("this node speaks protocol {VERSION}, the caller {version}");
            return Ok(frame::write_to(&mut stream, &LinkReply::Refused(sentence))?);
        }
        if let LinkRequest::Resume { link, proof, .. } = request {
            let session = LinkSecret::new(&about.keys, Side::Node);
            let is_its = |link: &Arc<Link>| link.home_id == about.home && link.secret.proves(&session, &proof);
            let Some(link) = self.links.find(&link).filter(is_its).filter(|link| !link.has_ended()) else {
                let sentence = "the process is not there any more".to_owned();
                return Ok(frame::write_to(&mut stream, &LinkReply::Refused(sentence))?);
            };
            let port = self.port_at(socket.local_addr()?.ip())?;
            let way = link.ways.open();
            let told = frame::write_to(&mut stream, &LinkReply::Resumed { port, way });
            tracing::info!(home = link.home.name, way, "a link goes on over another connection");
            if told.is_ok() {
                self.follow(&link, way, &socket, &mut stream);
            }
            self.end_way(&link, way);
            return Ok(told?);
        }
        let link = self.links.open(about, Duration::from_secs(patience.into()))?;
        let begun = self.begin(&link, request, &socket, &mut stream);
        if begun.is_ok() {
            self.follow(&link, 0, &socket, &mut stream);
        }
        self.end_way(&link, 0);
        begun
    }

    /// Waits until a connection of a link ends. Nothing more is said on it; but who ends it, a deputy or a host, ends
    /// what came of it. If the network has lost it, there may be another for as long as the link's patience.
    fn follow(&self, link: &Arc<Link>, way: u64, socket: &TcpStream, stream: &mut Stream) {
        let ended = socket.set_read_timeout(None).and_then(|()| stream.receive(&mut [0], None));
        tracing::debug!(home = link.home.name, way, ?ended, "a connection of a link has ended");
        if ended.is_err_and(|error| is_loss(&error)) {
            tracing::warn!(home = link.home.name, way, patience = ?link.ways.patience(), "a link is lost");
            link.ways.wait_for_another(way);
        }
    }

    fn begin(
        self: &Arc<Self>,
        link: &Arc<Link>,
        request: LinkRequest,
        socket: &TcpStream,
        stream: &mut Stream,
    ) -> Result<(), LinkError> {
        let port = self.port_at(socket.local_addr()?.ip())?;
        let asked = Asked::now();
        frame::write_to(stream, &LinkReply::Open { link: link.id, port, node: self.name.clone() })?;
        link.home.learn_clocks(&self.machine, stream, asked)?;
        let take = |name| link.take(name).ok_or(LinkError::NotCome);
        match request {
            LinkRequest::Attach(request) => {
                let RemoteAttach { attach, control, call, .. } = *request;
                let (control, call) = (take(&control)?, take(&call)?);
                control.last();
                call.last();
                Ok(self.start_process(attach, control, call, Some(link.clone()))?)
            }
            LinkRequest::Resume { .. } => Ok(()),
            LinkRequest::Receive { control, .. } => {
                let control = take(&control)?;
                let (kernel, its) = (self.clone(), link.clone());
                std::thread::Builder::new().name("adopt".into()).stack_size(256 << 10).spawn(move || {
                    priority::go_first();
                    if let Err(error) = adoption::serve_remote(&kernel, control, &its) {
                        tracing::debug!(error = %crate::chain(&error), "no process has come over a link");
                    }
                })?;
                Ok(())
            }
        }
    }

    /// A connection of a link has ended, and no other has taken its place: ends the processes whose deputies have it, and
    /// the link if it was the last.
    fn end_way(&self, link: &Arc<Link>, way: u64) {
        let is_last = link.ways.end(way);
        if is_last {
            link.has_ended.store(true, Ordering::SeqCst);
            lock(&link.come).clear();
            link.changed.notify_all();
            lock(&self.links.0).open.remove(&link.id);
        }
        for process in self.processes() {
            if process.group.link().is_some_and(|its| Arc::ptr_eq(its, link)) && (is_last || process.way() == Some(way))
            {
                process.begin_exit(Ending::Lost);
                self.relay.look(&process);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// What is learnt from a home that takes so long for its answers, the first of which nobody has to ask for.
    fn learnt(slow: &[Duration]) -> Result<Option<Distance>, LinkError> {
        let (here, home) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut home = Stream::from(home);
                for (index, slow) in slow.iter().enumerate() {
                    if index > 0 && !matches!(frame::read_from(&mut home, MAX_MESSAGE), Ok(LinkReply::Clocks)) {
                        return;
                    }
                    std::thread::sleep(*slow);
                    let _ = frame::write_to(&mut home, &Clocks::now());
                }
            });
            ask_clocks(&mut Stream::from(here), Asked::now(), None)
        })
    }

    #[test]
    fn clocks_that_are_told_late_are_asked_for_again_until_they_are_not() {
        let (late, soon) = (Duration::from_millis(700), Duration::ZERO);
        let distance = learnt(&[late, late, soon]).unwrap().unwrap();
        assert!(distance.ahead().abs() < 10_000_000, "{distance:?}");
        let late = Duration::from_millis(1100);
        let error = learnt(&[late; 20]).unwrap_err().to_string();
        assert!(error.starts_with("another host takes 1.1"), "{error}");
    }
}
