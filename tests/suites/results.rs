//! How the tests of a suite ended, and what differs between two runs.

use skein_tests::home::{self, Home};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// What a suite is asked to run: all that it should, or these tests of a run before.
pub type Chosen<'a> = Option<&'a [String]>;

/// How each test ended, by its name.
pub type Endings = BTreeMap<String, String>;

/// How often a difference must be seen before it is one: tests of timing fail now and then, also natively.
const TIMES: usize = 3;

/// How a suite is run: with the words before a program's, and an environment.
pub struct Way<'a> {
    /// Empty for a native run.
    pub runner: &'a [OsString],
    /// The whole environment.
    pub environment: &'a [(OsString, OsString)],
}

/// A test that ended otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Difference {
    name: String,
    native: String,
    guest: String,
}

/// Runs a suite both ways at once and compares. `run` runs it, or some of its tests.
///
/// # Panics
/// With each difference that is not listed, and each listed one that is none.
pub fn compare(suite: &str, run: impl Fn(&Way<'_>, Chosen<'_>) -> Endings + Sync) {
    let home = match home::shared() {
        Home::Ready(home) => home,
        Home::Absent => {
            eprintln!("{suite}: not run under mosrun: there is no /dev/kvm here");
            return;
        }
        Home::Broken(why) => panic!("{suite}: {why}"),
    };
    let both = |chosen: Chosen<'_>| {
        let native = Way { runner: &[], environment: &home.environment };
        let guest = Way { runner: &home.runner, environment: &home.environment };
        std::thread::scope(|scope| {
            let native = scope.spawn(|| run(&native, chosen));
            let guest = run(&guest, chosen);
            (native.join().expect("a native run"), guest)
        })
    };
    let (native, guest) = both(None);
    assert!(native.values().any(|ending| ending == "ok"), "{suite}: nothing runs natively");
    eprintln!("{suite}: {} tests", native.len());
    let listed = listed(suite);
    let mut found = differences(&native, &guest);
    for _ in 1..TIMES {
        let unlisted: Vec<String> =
            found.iter().filter(|difference| !listed.contains(difference)).map(|each| each.name.clone()).collect();
        if unlisted.is_empty() {
            break;
        }
        let (native, guest) = both(Some(&unlisted));
        let again = differences(&native, &guest);
        found.retain(|each| listed.contains(each) || again.iter().any(|other| other.name == each.name));
    }
    let mut report = String::new();
    for Difference { name, native, guest } in found.iter().filter(|each| !listed.contains(each)) {
        report += &format!("{name}: natively {native}, under mosrun {guest}\n");
    }
    for each in listed.iter().filter(|each| native.contains_key(&each.name) && !found.contains(each)) {
        report += &format!("{}: tests/suites/differences says that it differs, and it does not\n", each.name);
    }
    assert!(report.is_empty(), "{suite}:\n{report}");
}

fn differences(native: &Endings, guest: &Endings) -> Vec<Difference> {
    let names: std::collections::BTreeSet<&String> = native.keys().chain(guest.keys()).collect();
    let ending = |endings: &Endings, name: &String| endings.get(name).cloned().unwrap_or_else(|| "missing".into());
    names
        .into_iter()
        .map(|name| Difference { name: name.clone(), native: ending(native, name), guest: ending(guest, name) })
        .filter(|difference| difference.native != difference.guest)
        .collect()
}

/// The differences that are listed for a suite.
fn listed(suite: &str) -> Vec<Difference> {
    let mut found = Vec::new();
    for line in include_str!("differences").lines().filter(|line| !line.starts_with('#')) {
        let (entry, reason) = line.split_once(" # ").unwrap_or_else(|| panic!("no reason: {line}"));
        let words: Vec<&str> = entry.split_whitespace().collect();
        let [of, name, native, guest] = words[..] else { panic!("not a suite, a test and two endings: {line}") };
        assert!(!reason.trim().is_empty(), "no reason: {line}");
        // Other users may not do it natively either.
        let holds = !reason.starts_with("as root: ") || nix::unistd::geteuid().is_root();
        if of == suite && holds {
            found.push(Difference { name: name.into(), native: native.into(), guest: guest.into() });
        }
    }
    found
}

#[test]
fn what_differs_is_found_whichever_side_lacks_it() {
    let endings = |list: &[(&str, &str)]| list.iter().map(|&(name, end)| (name.into(), end.into())).collect();
    let native = endings(&[("a", "ok"), ("b", "ok"), ("c", "FAIL")]);
    let guest = endings(&[("a", "ok"), ("c", "ok"), ("d", "ok")]);
    let found: Vec<_> =
        differences(&native, &guest).into_iter().map(|each| [each.name, each.native, each.guest].join(" ")).collect();
    assert_eq!(found, ["b ok missing", "c FAIL ok", "d missing ok"]);
}
