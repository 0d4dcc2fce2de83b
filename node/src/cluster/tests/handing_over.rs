//! Connections that leave `skeind`'s hands.

use super::*;
use crate::cluster::contact::connect;
use crate::cluster::link::Handed;
use crate::cluster::wire::message::Purpose;
use procmig::wire::sealed::SealedStream;
use std::io::{Read, Write};

async fn probe(from: &Service, to: &Service) -> Handed {
    let (link, _, _) = connect(&from.current(), &member(to), Purpose::Probe).await.unwrap();
    link.hand_over().unwrap()
}

#[test]
fn a_connection_that_was_handed_over_goes_on_with_its_keys() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let request = ClusterRequest::Measure { host: "alpha".to_owned(), bytes: 3_000_001 };
        match beta.serve(request).await.unwrap() {
            ClusterReply::Measured(measured) => {
                assert_eq!((measured.host.as_str(), measured.bytes), ("alpha", 3_000_001));
                assert!(measured.shortest_ns > 0 && measured.shortest_ns <= measured.median_ns);
                assert!(measured.to_ns > 0 && measured.from_ns > 0);
            }
            other => panic!("{other:?}"),
        }
        let error = beta.serve(ClusterRequest::Measure { host: "beta".to_owned(), bytes: 1 }).await.unwrap_err();
        assert!(error.contains("beta is this host"), "{error}");

        // The keys of one connection are worth nothing in another.
        let (one, other) = (probe(&beta, &alpha).await, probe(&beta, &alpha).await);
        assert_ne!(one.keys, other.keys);
        let read = tokio::task::spawn_blocking(move || {
            let mut stream = SealedStream::new(&one.socket, other.keys.clone()).unwrap();
            stream.write_all(&[1; 80]).unwrap();
            stream.read(&mut [0; 64])
        });
        assert!(!matches!(read.await.unwrap(), Ok(1..)), "it was believed");
    });
}

#[test]
fn a_connection_that_was_handed_over_is_cut_when_its_host_is_removed() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let handed = probe(&alpha, &beta).await;
        // Whoever serves it waits in the kernel, with a copy of the socket of its own.
        let mut stream = SealedStream::new(handed.socket.try_clone().unwrap(), handed.keys.clone()).unwrap();
        let waiting = tokio::task::spawn_blocking(move || stream.read(&mut [0; 1]));
        remove(&alpha, "beta").await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, waiting).await.expect("it was cut").unwrap();
        assert!(ended.is_err(), "an end that beta has not sent: {ended:?}");
        drop(handed);
    });
}
