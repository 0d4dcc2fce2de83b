//! The connections of a link: the one that it was opened with, and those that deputies have made in place of one that the
//! network has lost. Each process belongs to one of them, the one that its deputy holds.

use super::lock;
use crate::wire::lasting::{Lasting, Remains};
use crate::wire::link::ConnectionId;
use std::collections::{HashMap, HashSet};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Longest time that a home may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Most connections over which others go on, of one of a link's: all of a process with very many threads.
const MOST_USED: usize = 1 << 17;
/// Most connections of which something is left.
const MOST_REMAINS: usize = 4096;
/// How often, at least, those that are not used any more are looked for.
const MANY: usize = 64;

#[derive(Debug, Default)]
struct Way {
    is_lost: bool,
    /// Names that were used to go on.
    used: HashSet<ConnectionId>,
}

#[derive(Debug)]
struct State {
    next: u64,
    open: HashMap<u64, Way>,
    known: HashMap<ConnectionId, Weak<Lasting<TcpStream>>>,
    /// So many may be known before it is looked which are used.
    most: usize,
    remains: HashMap<ConnectionId, (Remains, Instant)>,
}

/// All of a link.
#[derive(Debug)]
pub struct Ways {
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

impl Ways {
    /// With the first, number 0; each that is lost is waited for so long.
    pub(super) fn new(patience: Duration) -> Self {
        let open = HashMap::from([(0, Way::default())]);
        let (known, remains) = (HashMap::new(), HashMap::new());
        let state = Mutex::new(State { next: 1, open, known, most: MANY, remains });
        Self { patience: patience.min(LONGEST), state, changed: Condvar::new() }
    }

    /// How long a lost one is waited for.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Another; its number.
    pub(super) fn open(&self) -> u64 {
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.open.insert(number, Way::default());
        number
    }

    /// Whether there is one of this number, be it lost.
    pub fn is_open(&self, number: u64) -> bool {
        lock(&self.state).open.contains_key(&number)
    }

    /// Whether there is one that is not lost.
    pub(super) fn is_there(&self, number: u64) -> bool {
        lock(&self.state).open.get(&number).is_some_and(|way| !way.is_lost)
    }

    /// Notes that one is lost, and waits as long as there may be another in its place.
    pub(super) fn wait_for_another(&self, number: u64) {
        let mut state = lock(&self.state);
        if let Some(way) = state.open.get_mut(&number) {
            way.is_lost = true;
        }
        let end = Instant::now() + self.patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// One is there no more, and what belongs to it has ended; whether it was the last.
    pub(super) fn end(&self, number: u64) -> bool {
        let mut state = lock(&self.state);
        state.open.remove(&number);
        let is_last = state.open.is_empty();
        let known: Vec<_> = state.known.values().filter_map(Weak::upgrade).collect();
        state.remains.retain(|_, (remains, _)| remains.tag != number);
        drop(state);
        known.iter().filter(|known| is_last || known.tag() == number).for_each(|known| known.end());
        is_last
    }

    /// A connection has come; `false` if there is one of this name.
    pub(super) fn enter(&self, name: ConnectionId, lasting: &Arc<Lasting<TcpStream>>) -> bool {
        let state = &mut *lock(&self.state);
        if state.known.len() >= state.most {
            state.known.retain(|_, known| known.strong_count() > 0);
            state.most = (state.known.len() * 2).max(MANY);
        }
        match state.known.get(&name).is_some_and(|known| known.strong_count() > 0) {
            true => false,
            false => {
                state.known.insert(name, Arc::downgrade(lasting));
                true
            }
        }
    }

    /// The connection of this name.
    pub(super) fn find(&self, name: &ConnectionId) -> Option<Arc<Lasting<TcpStream>>> {
        lock(&self.state).known.get(name).and_then(Weak::upgrade)
    }

    /// Whether a connection of this name may be used to go on: once, and not if what it belongs to is lost again.
    pub(super) fn use_up(&self, number: u64, name: ConnectionId) -> bool {
        let mut state = lock(&self.state);
        let way = state.open.get_mut(&number).filter(|way| !way.is_lost && way.used.len() < MOST_USED);
        way.is_some_and(|way| way.used.insert(name))
    }

    /// Keeps what is left of a connection.
    pub(super) fn inherit(&self, name: ConnectionId, remains: Remains) {
        let state = &mut *lock(&self.state);
        if state.remains.len() >= MANY {
            state.remains.retain(|_, (_, since)| since.elapsed() < self.patience);
        }
        if state.remains.len() < MOST_REMAINS {
            state.remains.insert(name, (remains, Instant::now()));
        }
    }

    /// What is left of a connection. It stays: what is sent of it may be lost too.
    pub(super) fn remains(&self, name: &ConnectionId) -> Option<Remains> {
        lock(&self.state).remains.get(name).map(|(remains, _)| remains.clone())
    }
}
