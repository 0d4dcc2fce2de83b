//! Several hosts on a network: a cluster is made, grows, loses a host, and outlives cables and daemons.

use skein_tests::net::{NetHost, Network};
use std::time::{Duration, Instant};

/// How long may pass until something is true.
const PATIENCE: Duration = Duration::from_secs(60);

fn members(host: &NetHost) -> Vec<serde_json::Value> {
    serde_json::from_str(&host.says(&["cluster", "ls", "--json"])).expect("JSON")
}

/// Names of the members that the host reaches.
fn reached(host: &NetHost) -> Vec<String> {
    let reachable = |member: &&serde_json::Value| member["reachable"] == true;
    members(host).iter().filter(reachable).map(|member| member["name"].as_str().expect("a name").to_owned()).collect()
}

fn await_reached(host: &NetHost, names: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = reached(host);
        if now == names {
            return;
        }
        assert!(Instant::now() < deadline, "{} reaches {now:?}, not {names:?}", host.name());
    }
}

fn join(host: &NetHost, authority: &NetHost) {
    let token = authority.says(&["cluster", "invite"]);
    let said = host.says(&["cluster", "join", token.trim()]);
    assert!(said.contains(&format!("this host is {} in cluster lab", host.name())), "{said}");
}

#[test]
fn four_hosts_are_a_cluster_until_one_is_removed() {
    let network = Network::new(4);
    let [first, second, third, stranger] = network.hosts() else { panic!("four hosts") };
    let said = first.says(&["cluster", "init", "--name", "lab"]);
    assert!(said.contains("this host is host-1 in cluster lab"), "{said}");
    join(second, first);
    join(third, first);
    let all = ["host-1", "host-2", "host-3"];
    for host in [first, second, third] {
        await_reached(host, &all);
    }
    for member in members(second) {
        let this = member["name"] == "host-2";
        assert_eq!((member["this_host"] == true, member["round_trip_ns"].is_u64()), (this, !this), "{member}");
        let number = member["name"].as_str().expect("a name").strip_prefix("host-").expect("a number");
        assert_eq!(member["addresses"][0], format!("10.77.0.{number}:4774"), "{member}");
    }

    // Nobody gets in with a cluster of its own.
    stranger.says(&["cluster", "init", "--name", "lab"]);
    assert_eq!(reached(stranger), ["host-4"]);
    assert_eq!(members(first).len(), 3);

    // A cable is out: the others say so and go on; then it is in again.
    network.plug(2, false);
    await_reached(first, &["host-1", "host-2"]);
    network.plug(2, true);
    await_reached(first, &all);

    // Removed while its cable is out, with one that cannot be told.
    network.plug(1, false);
    let said = first.says(&["cluster", "remove", "host-3"]);
    assert!(said.contains("not reached, told later: host-2"), "{said}");
    let refused = third.skein(&["cluster", "ls"]);
    let text = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(text.contains("this host was removed from the cluster"), "{text}");
    network.plug(1, true);
    // The next contact carries it on.
    await_reached(first, &["host-1", "host-2"]);
    assert_eq!(members(second).len(), 2);
    assert_eq!(reached(third), ["host-3"]);

    // Daemons come and go; membership stays, also of who was removed.
    for host in [first, second] {
        host.says(&["host", "stop"]);
    }
    for host in [first, second] {
        host.says(&["host", "start"]);
    }
    await_reached(second, &["host-1", "host-2"]);
    assert_eq!(reached(third), ["host-3"]);

    third.says(&["cluster", "leave"]);
    join(third, first);
    await_reached(third, &all);
}
