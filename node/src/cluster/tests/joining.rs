//! Who gets in, and who does not.

use super::*;
use std::os::unix::fs::MetadataExt;

#[test]
fn three_hosts_know_each_other() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let gamma = world.joined("gamma", &alpha).await;
        for (host, name) in [(&alpha, "alpha"), (&beta, "beta"), (&gamma, "gamma")] {
            let members = members(host).await;
            let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            assert_eq!(names, ["alpha", "beta", "gamma"], "as {name} sees it");
            for member in &members {
                let answer = member.answer.as_ref().expect("it answers");
                assert_eq!(answer.skein, env!("CARGO_PKG_VERSION"));
                assert_eq!(member.is_this, member.name.as_str() == name);
                assert_eq!(answer.round_trip_ns == 0, member.is_this);
                assert_eq!(member.is_authority, member.name.as_str() == "alpha");
            }
        }
        // Private keys are made where they are used, and nowhere else.
        let key = |name: &str| std::fs::read(world.store(name).join("host.key")).unwrap();
        assert_ne!(key("alpha"), key("beta"));
        assert!(world.store("alpha").join("ca.key").exists() && !world.store("beta").join("ca.key").exists());
        assert_eq!(world.store("beta").join("host.key").metadata().unwrap().mode() & 0o777, 0o600);
    });
}

#[test]
fn a_token_is_no_use_after_its_time() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.host("beta");
        let token = invite(&alpha).await;
        world.pass(10);
        // The door is closed: not even TLS is spoken.
        let error = beta.serve(join("beta", &token)).await.unwrap_err();
        assert!(error.contains("lab has no open invitation: the token has expired"), "{error}");
        // It is open for another.
        let other = invite(&alpha).await;
        let error = beta.serve(join("beta", &token)).await.unwrap_err();
        assert!(error.contains("the token has expired; ask for a new one"), "{error}");
        world.pass(9);
        beta.serve(join("beta", &other)).await.unwrap();
    });
}

#[test]
fn a_token_lets_one_host_in_even_if_the_daemon_was_started_anew() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let token = invite(&alpha).await;
        let listen = address(&alpha);
        drop(alpha);
        let alpha = world.host("alpha");
        until(&alpha.current(), |alpha| alpha.listen == listen && alpha.not_listening().is_none()).await;
        world.host("beta").serve(join("beta", &token)).await.unwrap();
        let gamma = world.host("gamma");
        let error = gamma.serve(join("gamma", &token)).await.unwrap_err();
        assert!(error.contains("no open invitation: the token has been used already"), "{error}");
        let _open = invite(&alpha).await;
        let error = gamma.serve(join("gamma", &token)).await.unwrap_err();
        assert!(error.contains("the token has been used; each lets one host in"), "{error}");
        assert_eq!(alpha.current().roster().members.len(), 2);
    });
}

#[test]
fn a_wrong_secret_lets_nobody_in_and_guessing_ends_the_invitation() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let token = invite(&alpha).await;
        let beta = world.host("beta");
        for guess in 0..5 {
            let wrong = changed(&token, |token| token.secret[0] ^= 1 + guess);
            let error = beta.serve(join("beta", &wrong)).await.unwrap_err();
            assert!(error.contains("the token is wrong"), "{error}");
        }
        let error = beta.serve(join("beta", &token)).await.unwrap_err();
        assert!(error.contains("no open invitation"), "{error}");
        let _open = invite(&alpha).await;
        let error = beta.serve(join("beta", &token)).await.unwrap_err();
        assert!(error.contains("tried to guess"), "{error}");
        let unknown = changed(&token, |token| token.invitation.0[0] ^= 1);
        let error = beta.serve(join("beta", &unknown)).await.unwrap_err();
        assert!(error.contains("no such invitation"), "{error}");
        assert_eq!(alpha.current().roster().members.len(), 1);
    });
}

#[test]
fn nothing_is_told_to_a_host_that_is_not_the_one_that_invited() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let other = world.first("other", "elsewhere").await;
        let token = invite(&alpha).await;
        let open = invite(&other).await;
        // Of another cluster.
        let astray = changed(&token, |token| token.addresses = vec![address(&other)]);
        let gamma = world.host("gamma");
        let error = gamma.serve(join("gamma", &astray)).await.unwrap_err();
        assert!(error.contains("another cluster than lab") && error.contains("nothing was sent"), "{error}");
        // Of the right cluster, but not the host that invited: it would learn the secret.
        let listen = address(&beta);
        drop(beta);
        let key = PrivateKey::from_pkcs8(std::fs::read(world.store("beta").join("host.key")).unwrap()).unwrap();
        let read = |name| std::fs::read(world.store("beta").join(name)).unwrap();
        let setup = Setup::new(&key, &read("host.crt"), &read("ca.crt"), &Arc::default()).unwrap();
        let listener = retry_bind(listen).await;
        let overheard = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            tokio_rustls::TlsAcceptor::from(setup.accept_joining).accept(socket).await.err().map(|e| e.to_string())
        });
        let astray = changed(&token, |token| token.addresses = vec![listen]);
        let error = gamma.serve(join("gamma", &astray)).await.unwrap_err();
        assert!(error.contains("not the host that made this token"), "{error}");
        assert!(overheard.await.unwrap().is_some(), "the handshake went through");
        // And the true ones still work.
        gamma.serve(join("gamma", &token)).await.unwrap();
        let error = gamma.serve(join("gamma", &open)).await.unwrap_err();
        assert!(error.contains("member of cluster lab already"), "{error}");
    });
}

use crate::cluster::keys::PrivateKey;
use crate::cluster::tls::Setup;

/// The last one who listened there may be on its way out.
async fn retry_bind(listen: SocketAddr) -> tokio::net::TcpListener {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match tokio::net::TcpListener::bind(listen).await {
            Ok(listener) => return listener,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn names_are_each_ones_own() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.host("beta");
        let token = invite(&alpha).await;
        let error = beta.serve(join("alpha", &token)).await.unwrap_err();
        assert!(error.contains("has a host alpha already"), "{error}");
        // The token is still good, and a name that was not asked for gets a number.
        let request = ClusterRequest::Join { token, at: None, host: None, listen: Some(loopback()) };
        beta.serve(request).await.unwrap();
        let token = invite(&alpha).await;
        let request = ClusterRequest::Join { token, at: None, host: None, listen: Some(loopback()) };
        let gamma = world.host("gamma");
        gamma.serve(request).await.unwrap();
        assert_eq!(member(&gamma).name, member(&beta).name.numbered(2));
    });
}

#[test]
fn what_cannot_be_done_is_said_in_words() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let nobody = world.host("nobody");
        let error = nobody.serve(ClusterRequest::Invite { minutes: 10 }).await.unwrap_err();
        assert!(error.contains("in no cluster; make one with"), "{error}");
        let error = nobody.serve(join("nobody", "hello")).await.unwrap_err();
        assert!(error.contains("this is no token"), "{error}");
        let error = nobody.serve(join("nobody", &invite(&alpha).await[..40])).await.unwrap_err();
        assert!(error.contains("copy the whole line"), "{error}");
        let error = alpha.serve(init("alpha", "second")).await.unwrap_err();
        assert!(error.contains("member of cluster lab already"), "{error}");
        let error = alpha.serve(ClusterRequest::Invite { minutes: 0 }).await.unwrap_err();
        assert!(error.contains("1 to 1440 minutes"), "{error}");
        let beta = world.joined("beta", &alpha).await;
        for request in [ClusterRequest::Invite { minutes: 1 }, ClusterRequest::Remove { host: "alpha".to_owned() }] {
            let error = beta.serve(request).await.unwrap_err();
            assert!(error.contains("run it on alpha"), "{error}");
        }
        let taken = ClusterRequest::Init { cluster: None, host: None, listen: Some(address(&alpha)) };
        let error = nobody.serve(taken).await.unwrap_err();
        assert!(error.contains("address already in use; choose another with --listen"), "{error}");
        // Nobody is there; the token says where.
        let token = invite(&alpha).await;
        let listen = address(&alpha);
        drop(alpha);
        drop(retry_bind(listen).await);
        let error = nobody.serve(join("nobody", &token)).await.unwrap_err();
        assert!(error.contains("cannot be reached at 127.0.0.1") && error.contains("firewall"), "{error}");
    });
}
