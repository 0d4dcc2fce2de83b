//! The hosts on which programs of this one run. They are asked when these are looked for, and no others.

use super::store::Store;
use super::wire::id::KeyId;
use procmig::chain;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which they are, also of a `skeind` before this one: programs outlive it.
#[derive(Debug)]
pub struct Elsewhere {
    store: Store,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many programs of this `skeind`'s each has.
    counts: BTreeMap<KeyId, usize>,
    /// Those that may have some of an earlier one's.
    former: BTreeSet<KeyId>,
    /// Those that are written down.
    kept: BTreeSet<KeyId>,
}

impl State {
    fn hosts(&self) -> BTreeSet<KeyId> {
        self.counts.keys().chain(&self.former).copied().collect()
    }
}

/// Counts a program of this host that runs on another.
#[derive(Debug)]
pub struct Count(Arc<Elsewhere>, KeyId);

impl Drop for Count {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Some(count) = state.counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                state.counts.remove(&self.1);
            }
        }
    }
}

impl Elsewhere {
    /// With what is kept of an earlier `skeind`. If that cannot be read, its programs are not found.
    pub fn new(store: Store) -> Arc<Self> {
        let former = store.load_elsewhere().unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "programs that run on other hosts may not be found");
            BTreeSet::new()
        });
        let state = State { counts: BTreeMap::new(), kept: former.clone(), former };
        Arc::new(Self { store, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A program is to run there.
    pub fn count(self: &Arc<Self>, host: KeyId) -> Count {
        let mut state = self.lock();
        *state.counts.entry(host).or_default() += 1;
        // Those that have none any more are left out when there is another, not each time that a program ends.
        if !state.kept.contains(&host) {
            let hosts = state.hosts();
            match self.store.save_elsewhere(&hosts) {
                Ok(()) => state.kept = hosts,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "another skeind would not find programs on other hosts");
                }
            }
        }
        Count(self.clone(), host)
    }

    /// What is kept is there no more, since this host is in no cluster.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.former.clear();
        state.kept.clear();
    }

    /// Which they are.
    pub fn hosts(&self) -> BTreeSet<KeyId> {
        self.lock().hosts()
    }

    /// One says that it has none. It has none of an earlier `skeind` then, since those do not come again.
    pub fn has_none(&self, host: KeyId) {
        self.lock().former.remove(&host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_to_the_next() {
        let place = tempfile::tempdir().unwrap();
        let store = || Store::new(place.path().to_owned());
        let (one, two) = (KeyId([1; 16]), KeyId([2; 16]));
        let first = Elsewhere::new(store());
        assert!(first.hosts().is_empty());
        let counts = [first.count(one), first.count(one), first.count(two)];
        drop(counts);
        assert!(first.hosts().is_empty());
        let again = first.count(one);
        assert_eq!(first.hosts(), [one].into());
        // It is killed.
        std::mem::forget(again);
        let second = Elsewhere::new(store());
        assert_eq!(second.hosts(), [one, two].into());
        let count = second.count(two);
        second.has_none(two);
        second.has_none(one);
        assert_eq!(second.hosts(), [two].into());
        drop(count);
        assert!(second.hosts().is_empty());
        let _three = second.count(KeyId([3; 16]));
        assert_eq!(Elsewhere::new(store()).hosts(), [KeyId([3; 16])].into());
        std::fs::write(place.path().join("elsewhere.json"), "{").unwrap();
        assert!(Elsewhere::new(store()).hosts().is_empty());
    }
}
