//! The Python interpreter's own tests, by the driver `python.py`.

use crate::results::{Chosen, Endings, Way, compare};
use skein_tests::case::Ending;
use skein_tests::exec;
use skein_tests::run::run;
use std::fs;
use std::path::Path;

/// Where Debian's `libpython3.11-testsuite` is.
const TESTS: &str = "/usr/lib/python3.11/test";

/// Not run: these speak to the machine's hypervisor, and wait for it without end where it does not answer.
const LEFT_OUT: &str = "-*VSOCK*";

/// Runs modules, or by default some of their tests.
fn check(some: &[&str], whole: &[&str]) {
    if !Path::new(TESTS).join("test_signal.py").exists() {
        assert!(std::env::var_os("SKEIN_SUITE_SOURCES").is_none(), "there are no tests in {TESTS}");
        eprintln!("python: its own tests do not run: install libpython3.11-testsuite");
        return;
    }
    let wanted = if crate::all() { whole } else { some };
    compare("python", |way, chosen| endings(way, chosen, wanted));
}

fn endings(way: &Way<'_>, chosen: Chosen<'_>, wanted: &[&str]) -> Endings {
    let place = tempfile::tempdir().expect("a temporary directory");
    let results = place.path().join("results");
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/suites/python.py");
    let mut case = exec(["/usr/bin/python3", driver]).seconds(1800);
    case.argv.push(results.display().to_string());
    // `test.MODULE.CLASS.TEST` is the test `CLASS.TEST` of the module.
    let word = |name: &String| name.trim_start_matches("test.").replacen('.', ":", 1);
    match chosen {
        None => case.argv.extend(wanted.iter().map(|&word| word.to_owned())),
        Some(tests) => case.argv.extend(tests.iter().map(word)),
    }
    case.argv.push(LEFT_OUT.into());
    let outcome = run(&case, place.path(), way.runner, way.environment)
        .unwrap_or_else(|failure| panic!("python's tests {wanted:?} do not run to their end: {failure:?}"));
    let text = fs::read_to_string(&results).unwrap_or_default();
    let last_words = String::from_utf8_lossy(&outcome.stderr);
    assert!(
        outcome.ending == Ending::Status(0) && text.ends_with("end\n"),
        "python's tests {wanted:?} ended with {}: {last_words}\n{}",
        outcome.ending,
        String::from_utf8_lossy(&outcome.stdout)
    );
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(ending, name)| (name.replace(' ', "_"), ending.to_owned()))
        .collect()
}

#[test]
fn python_s_tests_of_files_and_memory() {
    let modules = ["test_posix", "test_mmap", "test_os", "test_select"];
    check(&["test_posix", "test_mmap", "test_os:[FLPUS]*", "test_select"], &modules);
}

#[test]
fn python_s_tests_of_processes() {
    check(
        &["test_wait4", "test_subprocess:POSIXProcessTestCase.test_*[e-r]"],
        &["test_fork1", "test_wait4", "test_subprocess"],
    );
}

#[test]
fn python_s_tests_of_signals_and_threads() {
    check(&["test_signal:[PSW]*Tests.*", "test_threading:[CLEBSM]*Tests.*"], &["test_signal", "test_threading"]);
}

#[test]
fn python_s_tests_of_sockets() {
    check(&["test_socket:[BGINS]*", "test_socket:*SCMRights*"], &["test_socket"]);
}
