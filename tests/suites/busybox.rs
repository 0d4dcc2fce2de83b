//! busybox's own tests, of its shell and applets.

use crate::results::{Endings, Way, compare};
use skein_tests::exec;
use skein_tests::run::run;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// What runs by default: what has to do with files, processes and a changed root.
const SOME: &[&str] = &[
    "ar",
    "cat",
    "cp",
    "cpio",
    "cut",
    "find",
    "gunzip",
    "ln",
    "ls",
    "md5sum",
    "mdev",
    "mkdir",
    "mv",
    "od",
    "patch",
    "pidof",
    "readlink",
    "realpath",
    "rm",
    "start-stop-daemon",
    "tail",
    "tar",
    "taskset",
    "tee",
    "touch",
    "wc",
    "which",
    "xargs",
];
/// Not run: `wget` needs a network, and `bc` writes millions of single numbers.
const LEFT_OUT: &[&str] = &["bc", "wget"];

#[test]
fn busybox_s_own_tests() {
    let Some(sources) = crate::sources("busybox") else { return };
    // Its output does not say to which applet a test belongs, so it is run as a whole again.
    compare("busybox", |way, _| endings(way, &sources));
}

fn applets() -> Vec<String> {
    if !crate::all() {
        return SOME.iter().map(|&applet| applet.to_owned()).collect();
    }
    let list = Command::new("/bin/busybox").arg("--list").output().expect("busybox").stdout;
    let list = String::from_utf8_lossy(&list).into_owned();
    list.lines().chain(["busybox"]).filter(|name| !LEFT_OUT.contains(name)).map(str::to_owned).collect()
}

fn endings(way: &Way<'_>, sources: &Path) -> Endings {
    let place = tempfile::tempdir().expect("a temporary directory");
    let suite = place.path().join("testsuite");
    let copied = Command::new("cp").arg("-r").arg(sources.join("testsuite")).arg(place.path()).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} cannot be copied", sources.display());
    fs::copy(sources.join("static"), place.path().join(".config")).expect("busybox's configuration");
    fs::copy("/bin/busybox", place.path().join("busybox")).expect("busybox");
    // Its tests are written for its own shell.
    for entry in fs::read_dir(&suite).expect("a directory").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "tests") {
            let text = fs::read_to_string(&path).expect("a script");
            let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
            fs::write(&path, format!("#!/bin/busybox sh\n{rest}")).expect("a script");
        }
    }
    // The older of them are run by `sh`.
    let commands = place.path().join("commands");
    fs::create_dir(&commands).expect("a directory");
    symlink("/bin/busybox", commands.join("sh")).expect("a link");
    let mut case = exec(["/bin/busybox", "sh", "./runtest"]).seconds(1800);
    case.argv.extend(applets());
    let path = format!("{}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", commands.display());
    let case = case.env("PATH", &path);
    let outcome = run(&case, &suite, way.runner, way.environment)
        .unwrap_or_else(|failure| panic!("busybox's tests do not run to their end: {failure:?}"));
    named(&String::from_utf8_lossy(&outcome.stdout))
}

/// Names are not unique in the suite: the second of a name is `NAME#2`.
fn named(output: &str) -> Endings {
    let mut seen = Endings::new();
    for line in output.lines() {
        let Some((ending, name)) = line.split_once(": ") else { continue };
        let ending = match ending {
            "PASS" => "ok",
            "FAIL" => "FAIL",
            "SKIPPED" | "UNTESTED" => "skipped",
            _ => continue,
        };
        let name: String = name.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        let mut unique = name.clone();
        for count in 2.. {
            if !seen.contains_key(&unique) {
                break;
            }
            unique = format!("{name}#{count}");
        }
        seen.insert(unique, ending.to_owned());
    }
    seen
}
