//! What `skein cluster` prints.

use crate::cluster::wire::control::{ClusterStatus, Measured, MemberStatus};
use crate::cluster::wire::label::Label;
use crate::table::{Align, Table};
use serde_json::{Value, json};

/// After becoming a member.
pub fn welcome(status: &ClusterStatus) -> String {
    format!(
        "this host is {} in cluster {} and listens on {}\nits keys are in {}\n",
        status.host, status.name, status.listen, status.directory
    )
}

/// Whether the members know.
pub fn told(told: &[Label], untold: &[Label]) -> String {
    let names = |labels: &[Label]| labels.iter().map(Label::as_str).collect::<Vec<_>>().join(", ");
    match (told.is_empty(), untold.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!("; told: {}", names(told)),
        (true, false) => format!("; not reached, told later: {}", names(untold)),
        (false, false) => format!("; told: {}; not reached, told later: {}", names(told), names(untold)),
    }
}

/// A table of the members.
pub fn members(members: &[MemberStatus]) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("ID", Align::Left),
        ("ADDRESS", Align::Left),
        ("RTT", Align::Right),
        ("VERSION", Align::Left),
        ("STATE", Align::Left),
    ]);
    for member in members {
        let address = member.addresses.first().map_or_else(|| "-".to_owned(), ToString::to_string);
        let (rtt, version, mut state) = match &member.answer {
            Ok(_) if member.is_this => ("-".to_owned(), env!("CARGO_PKG_VERSION").to_owned(), "this host".to_owned()),
            Ok(answer) => (round_trip(answer.round_trip_ns), answer.skein.clone(), "reachable".to_owned()),
            Err(why) => ("-".to_owned(), "-".to_owned(), format!("unreachable: {why}")),
        };
        if member.is_authority {
            state = format!("authority, {state}");
        }
        if let Some(lacks) = member.answer.as_ref().ok().filter(|answer| !answer.lacks.is_empty()) {
            state += &format!(", lacks {}", lacks.lacks.join(" "));
        }
        // The whole ID is in the JSON; as much as tells hosts apart is enough for people.
        let id: String = member.id.to_string().chars().take(12).collect();
        table.row(vec![member.name.to_string(), id, address, rtt, version, state]);
    }
    table.render()
}

fn round_trip(nanoseconds: u64) -> String {
    let microseconds = nanoseconds as f64 / 1e3;
    if microseconds < 1000.0 { format!("{microseconds:.0} µs") } else { format!("{:.1} ms", microseconds / 1e3) }
}

/// The same for programs.
pub fn members_json(members: &[MemberStatus]) -> Value {
    let row = |member: &MemberStatus| {
        let answer = member.answer.as_ref().ok();
        json!({
            "name": member.name,
            "id": member.id.to_string(),
            "this_host": member.is_this,
            "authority": member.is_authority,
            "addresses": member.addresses,
            "reachable": answer.is_some(),
            "error": member.answer.as_ref().err(),
            "round_trip_ns": answer.filter(|_| !member.is_this).map(|answer| answer.round_trip_ns),
            "version": answer.map(|answer| &answer.skein),
            "lacks": answer.map(|answer| &answer.lacks),
        })
    };
    members.iter().map(row).collect()
}

/// What this host knows of its cluster.
pub fn status(status: &ClusterStatus) -> String {
    let listening = match &status.not_listening {
        None => format!("{}", status.listen),
        Some(why) => format!("not on {}: {why}; tried again every few seconds", status.listen),
    };
    let mut rows = vec![
        ("cluster", format!("{} ({})", status.name, status.id)),
        ("this host", format!("{} ({})", status.host, status.host_id)),
        ("listens", listening),
        ("members", format!("{}; {} removed; see: skein cluster ls", status.members, status.removed)),
        ("authority", if status.is_authority { "this host".to_owned() } else { status.authority.to_string() }),
        ("CPU level", status.cpu_level.to_string()),
        ("keys", status.directory.clone()),
    ];
    if !status.lacks.is_empty() {
        rows.push(("lacks", status.lacks.join(" ")));
    }
    if status.is_authority {
        rows.push(("invitations", format!("{} open", status.invitations)));
    }
    rows.iter().map(|(what, value)| format!("{what:<12} {value}\n")).collect()
}

/// The same for programs.
pub fn status_json(status: &ClusterStatus) -> Value {
    json!({
        "cluster": status.name,
        "cluster_id": status.id.to_string(),
        "host": status.host,
        "host_id": status.host_id.to_string(),
        "authority": status.authority,
        "is_authority": status.is_authority,
        "members": status.members,
        "removed": status.removed,
        "serial": status.serial,
        "listen": status.listen,
        "not_listening": status.not_listening,
        "invitations": status.invitations,
        "cpu_level": status.cpu_level.to_string(),
        "lacks": status.lacks,
        "directory": status.directory,
    })
}

/// Bytes a second, in words.
fn rate(bytes: u64, nanoseconds: u64) -> String {
    let rate = bytes as f64 / (nanoseconds.max(1) as f64 / 1e9);
    if rate >= 1e9 { format!("{:.2} GB/s", rate / 1e9) } else { format!("{:.1} MB/s", rate / 1e6) }
}

/// How a connection is.
pub fn measured(measured: &Measured) -> String {
    let rows = [
        ("host", format!("{} at {}, by {}", measured.host, measured.address, measured.cipher)),
        ("round trip", format!("{}; shortest {}", round_trip(measured.median_ns), round_trip(measured.shortest_ns))),
        ("to it", rate(measured.bytes, measured.to_ns)),
        ("from it", rate(measured.bytes, measured.from_ns)),
    ];
    rows.iter().map(|(what, value)| format!("{what:<12} {value}\n")).collect()
}

/// The same for programs.
pub fn measured_json(measured: &Measured) -> Value {
    json!({
        "host": measured.host,
        "address": measured.address,
        "cipher": measured.cipher,
        "round_trip_median_ns": measured.median_ns,
        "round_trip_shortest_ns": measured.shortest_ns,
        "bytes": measured.bytes,
        "to_ns": measured.to_ns,
        "from_ns": measured.from_ns,
    })
}
