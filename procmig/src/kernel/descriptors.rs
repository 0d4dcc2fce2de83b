//! Which of a process's descriptors stand for files that the node holds too.
//!
//! The descriptors are the deputy's. What the node knows of one holds until something changes what its
//! number stands for; such a call is announced before it is made and again when it is over. What was
//! learned in between, or was asked for before and came in between, is not kept: so whatever the
//! order in which calls of several threads reach home, nobody uses a file that a number no longer means.

use super::handed::HandedFile;
use super::lock;
use crate::wire::file_kind::Kind;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Files that one process may have here, so that one does not take all.
const MOST: usize = 256;

/// What is known of a process's descriptors.
#[derive(Debug, Default)]
pub struct Descriptors {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<i32, Known>,
    files: usize,
    /// Counts beginnings and ends of changes.
    generation: u64,
    /// Changes that are under way.
    changing: u32,
    /// Nothing is kept any more.
    closed: bool,
}

#[derive(Debug)]
enum Known {
    /// It stands for this file.
    File(Arc<HandedFile>),
    /// It was used once.
    Used,
    /// The file is only used at home.
    Home,
}

/// What to do with a call on a descriptor.
#[derive(Debug)]
pub enum Found {
    /// The file is here.
    File(Arc<HandedFile>),
    /// Ask for the file: the descriptor is used more than once.
    Ask(Ticket),
    /// Forward the call.
    Forward,
}

/// When something was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

/// What a call is about to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// One descriptor.
    One(i32),
    /// These, the last one too.
    Range(u32, u32),
    /// Any.
    All,
}

impl Change {
    fn covers(self, fd: i32) -> bool {
        match self {
            Self::One(one) => one == fd,
            Self::Range(first, last) => (first..=last).contains(&(fd as u32)),
            Self::All => true,
        }
    }
}

/// A change that is under way, until it is dropped.
#[derive(Debug)]
pub struct Changing<'a> {
    descriptors: &'a Descriptors,
    change: Change,
}

impl State {
    fn forget(&mut self, change: Change) -> Vec<Known> {
        let mut forgotten = Vec::new();
        if let Change::One(fd) = change {
            forgotten.extend(self.known.remove(&fd));
        } else {
            let gone: Vec<i32> = self.known.keys().copied().filter(|&fd| change.covers(fd)).collect();
            forgotten.extend(gone.iter().filter_map(|fd| self.known.remove(fd)));
        }
        self.files -= forgotten.iter().filter(|known| matches!(known, Known::File(_))).count();
        forgotten
    }

    fn put(&mut self, fd: i32, known: Known) {
        let old = self.forget(Change::One(fd));
        self.files += usize::from(matches!(known, Known::File(_)));
        self.known.insert(fd, known);
        drop(old);
    }
}

impl Descriptors {
    /// What to do with a call on `fd`.
    pub fn find(&self, fd: i32) -> Found {
        let mut state = lock(&self.state);
        match state.known.get(&fd) {
            Some(Known::File(file)) => Found::File(file.clone()),
            Some(Known::Home) => Found::Forward,
            Some(Known::Used) if state.changing == 0 && state.files < MOST => Found::Ask(Ticket(state.generation)),
            Some(Known::Used) => Found::Forward,
            None => {
                if fd >= 0 && state.changing == 0 && !state.closed {
                    state.put(fd, Known::Used);
                }
                Found::Forward
            }
        }
    }

    /// The file that `fd` stands for, if it is here.
    pub fn file(&self, fd: i32) -> Option<Arc<HandedFile>> {
        match lock(&self.state).known.get(&fd) {
            Some(Known::File(file)) => Some(file.clone()),
            _ => None,
        }
    }

    /// Whether it is known that the file of `fd` is only used at home.
    pub fn is_home(&self, fd: i32) -> bool {
        matches!(lock(&self.state).known.get(&fd), Some(Known::Home))
    }

    /// Whether an `epoll` set is among the files that are here.
    pub fn has_epoll(&self) -> bool {
        lock(&self.state).known.values().any(|known| matches!(known, Known::File(file) if file.kind() == Kind::Epoll))
    }

    /// Leaves all `epoll` sets to home.
    pub fn leave_epoll_home(&self) {
        for known in lock(&self.state).known.values() {
            if let Known::File(file) = known
                && file.kind() == Kind::Epoll
            {
                file.leave_home();
            }
        }
    }

    /// Says when something is asked for, if it could be kept.
    pub fn ticket(&self) -> Option<Ticket> {
        let state = lock(&self.state);
        (state.changing == 0 && state.files < MOST && !state.closed).then_some(Ticket(state.generation))
    }

    /// Keeps the file that `fd` stands for, or that it is not to be had, unless something has changed
    /// since it was asked for.
    pub fn keep(&self, ticket: Ticket, fd: i32, file: Option<Arc<HandedFile>>) {
        let mut state = lock(&self.state);
        if state.generation == ticket.0 && state.changing == 0 && !state.closed {
            state.put(fd, file.map_or(Known::Home, Known::File));
        }
    }

    /// Announces a call that changes what descriptors stand for, and lets go of their files.
    pub fn change(&self, change: Change) -> Changing<'_> {
        let mut state = lock(&self.state);
        state.generation += 1;
        state.changing += 1;
        let forgotten = state.forget(change);
        drop(state);
        drop(forgotten);
        Changing { descriptors: self, change }
    }

    /// Lets go of all files for good: the process has ended.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.generation += 1;
        let forgotten = state.forget(Change::All);
        drop(state);
        drop(forgotten);
    }

    /// The files of a process for a child that inherits its descriptors: `ticket` is from before the
    /// fork, and if something has changed since then the child starts with none.
    pub fn inherit(&self, ticket: Option<Ticket>) -> Self {
        let state = lock(&self.state);
        let mut child = State::default();
        if ticket.is_some_and(|ticket| ticket.0 == state.generation && state.changing == 0) {
            for (&fd, known) in &state.known {
                match known {
                    Known::File(file) => child.put(fd, Known::File(file.clone())),
                    Known::Home => child.put(fd, Known::Home),
                    Known::Used => {}
                }
            }
        }
        Self { state: Mutex::new(child) }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.descriptors.state);
        state.generation += 1;
        state.changing -= 1;
        let forgotten = state.forget(self.change);
        drop(state);
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<HandedFile> {
        let (reader, _) = nix::unistd::pipe().unwrap();
        Arc::new(HandedFile::new(reader).unwrap())
    }

    #[test]
    fn a_file_is_asked_for_at_the_second_use() {
        let descriptors = Descriptors::default();
        assert!(matches!(descriptors.find(3), Found::Forward));
        let Found::Ask(ticket) = descriptors.find(3) else { panic!("the second use") };
        descriptors.keep(ticket, 3, Some(file()));
        assert!(matches!(descriptors.find(3), Found::File(_)));
        drop(descriptors.change(Change::One(4)));
        assert!(matches!(descriptors.find(3), Found::File(_)));
        drop(descriptors.change(Change::Range(0, 3)));
        assert!(matches!(descriptors.find(3), Found::Forward));
    }

    #[test]
    fn what_was_asked_for_across_a_change_is_not_kept() {
        let descriptors = Descriptors::default();
        let before = descriptors.ticket().unwrap();
        let changing = descriptors.change(Change::One(3));
        assert!(descriptors.ticket().is_none());
        descriptors.keep(before, 3, Some(file()));
        assert!(descriptors.file(3).is_none());
        drop(changing);
        descriptors.keep(before, 3, Some(file()));
        assert!(descriptors.file(3).is_none());
        let after = descriptors.ticket().unwrap();
        descriptors.keep(after, 3, Some(file()));
        assert!(descriptors.file(3).is_some());
    }

    #[test]
    fn a_file_that_is_let_go_of_is_closed() {
        let descriptors = Descriptors::default();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let ticket = descriptors.ticket().unwrap();
        descriptors.keep(ticket, 5, HandedFile::new(writer).map(Arc::new));
        let child = descriptors.inherit(descriptors.ticket());
        assert!(child.file(5).is_some());
        let at_end = || nix::unistd::read(&reader, &mut [0; 1]) == Ok(0);
        let changing = descriptors.change(Change::One(5));
        child.close();
        assert!(at_end());
        drop(changing);
        child.keep(Ticket(1), 5, Some(file()));
        assert!(child.file(5).is_none());
    }

    #[test]
    fn a_child_inherits_nothing_that_has_changed_meanwhile() {
        let descriptors = Descriptors::default();
        let ticket = descriptors.ticket();
        descriptors.keep(ticket.unwrap(), 5, Some(file()));
        drop(descriptors.change(Change::One(9)));
        assert!(descriptors.inherit(ticket).file(5).is_none());
        assert!(descriptors.inherit(descriptors.ticket()).file(5).is_some());
    }

    #[test]
    fn no_process_has_more_than_its_share() {
        let descriptors = Descriptors::default();
        for fd in 0..MOST as i32 {
            descriptors.keep(descriptors.ticket().unwrap(), fd, Some(file()));
        }
        assert!(descriptors.ticket().is_none());
        drop(descriptors.change(Change::One(7)));
        assert!(descriptors.ticket().is_some());
    }
}
