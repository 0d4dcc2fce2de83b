//! The open connections with members, so that those of a host that is shut out can be cut.

use super::wire::id::KeyId;
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The open connections.
#[derive(Debug, Default)]
pub struct Connections(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, (KeyId, OwnedFd)>,
}

impl Connections {
    /// Enters a connection with `peer`; it is in the table until the guard is dropped.
    ///
    /// A duplicate of the socket is kept, which the kernel closes no earlier than the guard goes. So a connection can
    /// be cut that is being served by another process.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn enter(self: &Arc<Self>, peer: KeyId, socket: &impl AsFd) -> io::Result<Guard> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = table.next;
        table.next += 1;
        table.open.insert(number, (peer, socket));
        Ok(Guard { connections: self.clone(), number })
    }

    /// Ends all connections with hosts of which `which` is true. Whoever reads or writes there is told by the kernel.
    pub fn cut(&self, which: impl Fn(KeyId) -> bool) {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, socket) in table.open.values().filter(|(peer, _)| which(*peer)) {
            // It may have ended by itself.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Keeps a connection in the table.
#[derive(Debug)]
pub struct Guard {
    connections: Arc<Connections>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.connections.0.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_the_connections_of_the_host_are_cut() {
        let connections = Arc::new(Connections::default());
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let guards: Vec<_> =
            pairs.iter().zip(0..).map(|((here, _), i)| connections.enter(KeyId([i % 2; 16]), here).unwrap()).collect();
        connections.cut(|peer| peer == KeyId([0; 16]));
        for (i, (here, there)) in pairs.iter().enumerate() {
            there.set_nonblocking(true).unwrap();
            let is_cut = matches!((&*there).read(&mut [0]), Ok(0));
            assert_eq!(is_cut, i != 1, "{here:?}");
        }
        drop(guards);
        assert!(connections.0.lock().unwrap().open.is_empty());
    }
}
