//! The comparison: everything that differs between two runs, said so that it can be read.

use crate::case::Case;
use crate::home::{self, Home, Host};
use crate::run::{Failure, Outcome, run};
use crate::tree::{self, Entry};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

/// Longest piece of a line that is shown.
const SHOWN: usize = 300;

/// What a run left behind.
struct Seen {
    outcome: Outcome,
    files: BTreeMap<String, Entry>,
}

/// Runs `case` natively and under `mosrun` and panics with the differences if there are any.
///
/// Both run in a directory of the same name, so that a program may print it.
///
/// # Panics
/// If the case does not run natively as it says, does not run under `mosrun`, or differs.
pub fn check(name: &str, case: &Case) {
    check_in(name, case, home::shared());
}

/// The same, by what runs programs there.
///
/// # Panics
/// As [`check`].
pub fn check_in(name: &str, case: &Case, home: &Home) {
    let home = match home {
        Home::Ready(home) => home,
        Home::Absent => {
            eprintln!("{name}: not run under mosrun: there is no /dev/kvm here");
            return;
        }
        Home::Broken(why) => panic!("{name}: {why}"),
    };
    let place = tempfile::tempdir().expect("a temporary directory");
    let native = seen("natively", case, place.path(), &[], &home.environment).unwrap_or_else(|why| panic!("{why}"));
    if native.outcome.ending != case.ending {
        panic!(
            "natively: {}, but the case says {}\nstdout: {}\nstderr: {}",
            native.outcome.ending,
            case.ending,
            shown(&native.outcome.stdout),
            shown(&native.outcome.stderr)
        );
    }
    let guest = seen("under mosrun", case, place.path(), &home.runner, &home.environment)
        .unwrap_or_else(|why| panic!("{why}\n{}", command(case)));
    let report = differences(&native, &guest);
    let log = home.other.as_ref().or(home.host.as_ref()).map(Host::log).unwrap_or_default();
    assert!(report.is_empty(), "not as natively:\n{report}{}\nlogs end with:\n{log}", command(case));
}

fn command(case: &Case) -> String {
    let words: Vec<String> = case.argv.iter().map(|word| format!("{word:?}")).collect();
    format!("command: {}", words.join(" "))
}

fn seen(
    how: &str,
    case: &Case,
    place: &Path,
    runner: &[OsString],
    environment: &[(OsString, OsString)],
) -> Result<Seen, String> {
    let work = place.join("work");
    tree::make(&work, &case.items).map_err(|error| format!("cannot make the files: {error}"))?;
    let outcome = run(case, &work, runner, environment).map_err(|failure| match failure {
        Failure::Start(error) => format!("{how}: it does not start: {error}"),
        Failure::Timeout(had) => format!(
            "{how}: did not end within {} seconds and was killed\nstdout: {}\nstderr: {}",
            case.timeout.as_secs(),
            shown(&had.stdout),
            shown(&had.stderr)
        ),
    })?;
    let files = tree::read(&work).map_err(|error| format!("{how}: cannot read the files it made: {error}"))?;
    let aside = place.join(if runner.is_empty() { "native" } else { "guest" });
    std::fs::rename(&work, aside).map_err(|error| format!("cannot rename the directory: {error}"))?;
    Ok(Seen { outcome, files })
}

/// The differences, a paragraph each; empty if there are none.
fn differences(native: &Seen, guest: &Seen) -> String {
    let mut report = String::new();
    let (n, g) = (&native.outcome, &guest.outcome);
    if n.ending != g.ending {
        let _ = writeln!(report, "ending: natively {}, under mosrun {}", n.ending, g.ending);
    }
    bytes_differ(&mut report, "stdout", &n.stdout, &g.stdout);
    bytes_differ(&mut report, "stderr", &n.stderr, &g.stderr);
    for (path, entry) in &native.files {
        match guest.files.get(path) {
            None => {
                let _ = writeln!(report, "{path}: a {} natively, missing under mosrun", entry.kind);
            }
            Some(other) => {
                if (entry.kind, entry.mode, entry.links) != (other.kind, other.mode, other.links) {
                    let _ = writeln!(
                        report,
                        "{path}: natively a {} {:04o} of {} links, under mosrun a {} {:04o} of {} links",
                        entry.kind, entry.mode, entry.links, other.kind, other.mode, other.links
                    );
                }
                bytes_differ(&mut report, path, &entry.content, &other.content);
            }
        }
    }
    for (path, entry) in &guest.files {
        if !native.files.contains_key(path) {
            let _ = writeln!(report, "{path}: a {} under mosrun, missing natively", entry.kind);
        }
    }
    report
}

/// The first line in which `native` and `guest` differ.
fn bytes_differ(report: &mut String, what: &str, native: &[u8], guest: &[u8]) {
    if native == guest {
        return;
    }
    let split = |bytes: &[u8]| bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (n, g) = (split(native), split(guest));
    let line = n.iter().zip(&g).take_while(|(n, g)| n == g).count();
    let at = |lines: &[Vec<u8>]| lines.get(line).map_or("(nothing)".to_owned(), |line| shown(line));
    let _ = writeln!(
        report,
        "{what}: {} bytes natively, {} under mosrun; first difference in line {}:\n  natively:     {}\n  under mosrun: {}",
        native.len(),
        guest.len(),
        line + 1,
        at(&n),
        at(&g)
    );
}

/// Bytes as a quoted string, cut where they are long.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    format!("{text:?}{}", if bytes.len() > SHOWN { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Ending;

    fn seen(stdout: &str, status: i32, mode: u32) -> Seen {
        let outcome = Outcome { stdout: stdout.into(), stderr: Vec::new(), ending: Ending::Status(status) };
        let entry = Entry { kind: "file", mode, links: 1, content: b"x".to_vec() };
        Seen { outcome, files: BTreeMap::from([("made".to_owned(), entry)]) }
    }

    #[test]
    fn equal_runs_have_no_differences() {
        assert_eq!(differences(&seen("a\n", 0, 0o644), &seen("a\n", 0, 0o644)), "");
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let report = differences(&seen("a\nb\n", 0, 0o644), &seen("a\nc\n", 1, 0o600));
        assert!(report.contains("natively exit status 0, under mosrun exit status 1"), "{report}");
        assert!(report.contains("first difference in line 2"), "{report}");
        assert!(report.contains("made: natively a file 0644"), "{report}");
    }

    #[test]
    fn a_missing_and_an_additional_file_are_differences() {
        let (with, mut without) = (seen("", 0, 0o644), seen("", 0, 0o644));
        without.files.clear();
        assert!(differences(&with, &without).contains("missing under mosrun"));
        assert!(differences(&without, &with).contains("missing natively"));
    }
}
