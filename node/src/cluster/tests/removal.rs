//! Who is shut out stays out.

use super::*;
use crate::cluster::contact::{connect, meet};
use crate::cluster::link::LinkError;
use crate::cluster::wire::message::{Purpose, Reply, Request};

#[test]
fn a_removed_host_is_out_at_once_and_everywhere() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let gamma = world.joined("gamma", &alpha).await;
        until(&beta.current(), |beta| beta.roster().members.len() == 3).await;
        // Connections that are open, of both directions.
        let mut open = Vec::new();
        for (from, to) in [(&beta, &alpha), (&beta, &gamma), (&alpha, &beta), (&gamma, &beta)] {
            let (mut link, _, _) = connect(&from.current(), &member(to), Purpose::Control).await.unwrap();
            assert_eq!(link.ask::<_, Reply>(&Request::Ping).await.unwrap(), Reply::Done);
            open.push(link);
        }
        let (beta_was, alpha_is, gamma_is) = (member(&beta), member(&alpha), member(&gamma));
        match remove(&alpha, "beta").await.unwrap() {
            ClusterReply::Told { host, told, untold } => {
                assert_eq!((host.as_str(), told.len(), untold.len()), ("beta", 1, 0), "{told:?}");
            }
            other => panic!("{other:?}"),
        }
        for mut link in open {
            assert!(link.ask::<_, Reply>(&Request::Ping).await.is_err(), "a connection was left open");
        }
        for other in [&alpha_is, &gamma_is] {
            let error = connect(&beta.current(), other, Purpose::Control).await.unwrap_err();
            assert!(matches!(error, LinkError::RemovedThere), "{error:?}");
        }
        for host in [&alpha, &gamma] {
            let error = connect(&host.current(), &beta_was, Purpose::Control).await.unwrap_err();
            assert!(matches!(error, LinkError::RemovedHere), "{error:?}");
            assert_eq!(members(host).await.len(), 2);
        }
        let state = members(&beta).await;
        let error = state.iter().find(|other| other.name.as_str() == "gamma").unwrap().answer.clone().unwrap_err();
        assert!(error.contains("this host was removed from the cluster; forget it with"), "{error}");
        // Nor after a restart of those who know.
        drop(gamma);
        let gamma = world.host("gamma");
        until(&gamma.current(), |gamma| gamma.not_listening().is_none() && gamma.has_excluded(beta_was.id)).await;
        // With a new key it may come back, by a new invitation.
        beta.serve(ClusterRequest::Leave { force: false }).await.unwrap();
        beta.serve(join("beta", &invite(&alpha).await)).await.unwrap();
        assert_ne!(member(&beta).id, beta_was.id);
        assert_eq!(members(&beta).await.iter().filter(|member| member.answer.is_ok()).count(), 3);
    });
}

#[test]
fn who_was_away_learns_of_a_removal_from_any_other() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let gamma = world.joined("gamma", &alpha).await;
        let delta = world.joined("delta", &alpha).await;
        until(&gamma.current(), |gamma| gamma.roster().members.len() == 4).await;
        let (beta_was, gamma_is) = (member(&beta), member(&gamma));
        drop(gamma);
        match remove(&alpha, "beta").await.unwrap() {
            ClusterReply::Told { told, untold, .. } => {
                assert_eq!((told[0].as_str(), untold[0].as_str()), ("delta", "gamma"));
            }
            other => panic!("{other:?}"),
        }
        // The authority is away when it comes back; delta meets it.
        drop(alpha);
        let gamma = world.host("gamma");
        until(&gamma.current(), |gamma| gamma.not_listening().is_none()).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Err(error) = meet(&delta.current(), &gamma_is).await {
            assert!(tokio::time::Instant::now() < deadline, "{error}");
        }
        assert!(gamma.current().has_excluded(beta_was.id));
        let error = connect(&beta.current(), &gamma_is, Purpose::Control).await.unwrap_err();
        assert!(matches!(error, LinkError::RemovedThere), "{error:?}");
    });
}

#[test]
fn who_leaves_is_a_member_no_more() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let was = member(&beta);
        beta.serve(ClusterRequest::Leave { force: false }).await.unwrap();
        assert!(!world.store("beta").exists(), "keys are left");
        until(&alpha.current(), |alpha| alpha.has_excluded(was.id) && alpha.roster().members.len() == 1).await;
        let error = beta.serve(ClusterRequest::Status).await.unwrap_err();
        assert!(error.contains("in no cluster"), "{error}");
        let gamma = world.joined("gamma", &alpha).await;
        let error = alpha.serve(ClusterRequest::Leave { force: false }).await.unwrap_err();
        assert!(error.contains("1 other member would stay"), "{error}");
        let error = remove(&alpha, "alpha").await.unwrap_err();
        assert!(error.contains("cannot be removed"), "{error}");
        let error = remove(&alpha, "nobody").await.unwrap_err();
        assert!(error.contains("no host \"nobody\""), "{error}");
        alpha.serve(ClusterRequest::Leave { force: true }).await.unwrap();
        // Gamma can leave alone, and says whom it could not tell.
        match gamma.serve(ClusterRequest::Leave { force: false }).await.unwrap() {
            ClusterReply::Told { untold, .. } => assert_eq!(untold[0].as_str(), "alpha"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn the_cpu_level_reaches_every_host() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        alpha.serve(ClusterRequest::SetCpuLevel("sse2,no_such_feature".parse().unwrap())).await.unwrap();
        assert_eq!(beta.current().roster().cpu_level.to_string(), "no_such_feature,sse2");
        let seen = members(&alpha).await;
        assert_eq!(seen[1].answer.as_ref().unwrap().lacks, ["no_such_feature"], "{seen:?}");
        let error = beta.serve(ClusterRequest::SetCpuLevel("avx2".parse().unwrap())).await.unwrap_err();
        assert!(error.contains("run it on alpha"), "{error}");
    });
}

#[test]
fn a_host_that_has_moved_is_found_again() {
    run(async {
        let world = World::new();
        let alpha = world.first("alpha", "lab").await;
        let beta = world.joined("beta", &alpha).await;
        let gamma = world.joined("gamma", &alpha).await;
        drop(beta);
        // It starts anew with another address.
        let kept = world.store("beta").join("host.json");
        let mut host: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
        host["listen"] = free.to_string().into();
        std::fs::write(&kept, host.to_string()).unwrap();
        let beta = world.host("beta");
        let id = beta.current().id;
        for host in [&alpha, &gamma] {
            until(&host.current(), |host| host.roster().member(id).unwrap().addresses == [free]).await;
        }
        connect(&gamma.current(), &member(&beta), Purpose::Control).await.unwrap();
    });
}
