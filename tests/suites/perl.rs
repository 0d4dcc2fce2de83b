//! perl's core tests for input, output and processes, run by the installed perl.

use crate::results::{Chosen, Endings, Way, compare};
use skein_tests::case::Ending;
use skein_tests::exec;
use skein_tests::run::run;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// What runs by default.
const SOME: &[&str] = &[
    "io/argv",
    "io/closepid",
    "io/data",
    "io/dup",
    "io/eintr_print",
    "io/errno",
    "io/errnosig",
    "io/fflush",
    "io/fs",
    "io/getcwd",
    "io/inplace",
    "io/iofile",
    "io/msg",
    "io/nargv",
    "io/open",
    "io/openpid",
    "io/pipe",
    "io/print",
    "io/read",
    "io/sem",
    "io/semctl",
    "io/socket",
    "io/socketpair",
    "io/tell",
    "op/chdir",
    "op/die_exit",
    "op/exec",
    "op/fork",
    "op/getpid",
    "op/getppid",
    "op/glob",
    "op/groups",
    "op/kill0",
    "op/lfs",
    "op/mkdir",
    "op/readdir",
    "op/setpgrpstack",
    "op/sysio",
    "op/threads-dirh",
    "op/unlink",
    "op/waitpid",
];
/// What runs besides when all is asked for.
const MORE: &[&str] = &[
    "io/binmode",
    "io/crlf",
    "io/crlf_through",
    "io/defout",
    "io/eintr",
    "io/iprefix",
    "io/layers",
    "io/perlio",
    "io/perlio_fail",
    "io/perlio_leaks",
    "io/perlio_open",
    "io/say",
    "io/shm",
    "io/through",
    "io/utf8",
    "op/alarm",
    "op/args",
    "op/chop",
    "op/crypt",
    "op/die_keeperr",
    "op/fh",
    "op/filehandle",
    "op/filetest_t",
    "op/grent",
    "op/heredoc",
    "op/inccode",
    "op/magic",
    "op/print",
    "op/pwent",
    "op/rand",
    "op/read",
    "op/readline",
    "op/select",
    "op/sigdispatch",
    "op/sigsystem",
    "op/sleep",
    "op/srand",
    "op/sselect",
    "op/stat",
    "op/stat_errors",
    "op/threads",
    "op/time_loop",
    "op/write",
];
/// Where Debian's perl has its modules, first those that count.
const MODULES: [&str; 3] =
    ["/usr/lib/x86_64-linux-gnu/perl-base", "/usr/share/perl/5.36", "/usr/lib/x86_64-linux-gnu/perl/5.36"];

#[test]
fn perl_s_own_tests() {
    let Some(sources) = crate::sources("perl") else { return };
    let files: Vec<&str> = SOME.iter().chain(MORE.iter().filter(|_| crate::all())).copied().collect();
    compare("perl", |way, chosen| endings(way, chosen, &sources, &files));
}

/// A tree as perl's tests are run in: they write to it, so each run has its own.
fn tree(sources: &Path) -> TempDir {
    let place = tempfile::tempdir().expect("a temporary directory");
    let copy = |from: &Path, options: &str, to: &Path| {
        // What one module directory has already, the next does not give again.
        let _ = Command::new("cp").arg(options).arg(from).arg(to).stderr(std::process::Stdio::null()).status();
    };
    for name in ["t", "TestInit.pm", "MANIFEST"] {
        copy(&sources.join(name), "-r", place.path());
    }
    let lib = place.path().join("lib");
    std::fs::create_dir(&lib).expect("a directory");
    for directory in MODULES {
        copy(&Path::new(directory).join("."), "-rs", &lib);
    }
    symlink("/usr/bin/perl", place.path().join("t/perl")).expect("a link");
    assert!(place.path().join("t/test.pl").exists() && lib.join("strict.pm").exists(), "perl's tests are not whole");
    place
}

fn endings(way: &Way<'_>, chosen: Chosen<'_>, sources: &Path, files: &[&str]) -> Endings {
    let place = tree(sources);
    let mut endings = Endings::new();
    for file in files {
        if chosen.is_some_and(|chosen| !chosen.iter().any(|name| name.starts_with(&format!("{file}/")))) {
            continue;
        }
        let test = format!("{file}.t");
        let case = exec(["./perl", "-I../lib", &test]).env("PERL_CORE", "1").seconds(300);
        let outcome = run(&case, &place.path().join("t"), way.runner, way.environment)
            .unwrap_or_else(|failure| panic!("perl's {test} does not run to its end: {failure:?}"));
        tap(&String::from_utf8_lossy(&outcome.stdout), file, &mut endings);
        let ended = match outcome.ending {
            Ending::Status(0) => "ok".to_owned(),
            other => other.to_string().replace(' ', "_"),
        };
        endings.insert(format!("{file}/end"), ended);
    }
    endings
}

/// The endings in the output of a test: `ok 3 - what`, `not ok 4`, `ok 5 # skip why`. They are told by
/// their numbers: what they are called may hold what is random.
fn tap(output: &str, file: &str, endings: &mut Endings) {
    for line in output.lines() {
        let (good, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => continue,
        };
        let Some(number) = rest.split_whitespace().next().and_then(|word| word.parse::<u32>().ok()) else { continue };
        let skipped = rest.to_lowercase().contains("# skip");
        let ending = match (good, skipped) {
            (_, true) => "skipped",
            (true, false) => "ok",
            (false, false) => "FAIL",
        };
        endings.insert(format!("{file}/{number}"), ending.to_owned());
    }
}

#[test]
fn endings_are_read_from_what_a_test_prints() {
    let mut endings = Endings::new();
    tap("1..3\nok 1 - a\n# not ok 9\nnot ok 2 - b\nok 3 # skip no c\nokay\n", "io/x", &mut endings);
    let found: Vec<_> = endings.iter().map(|(name, ending)| format!("{name} {ending}")).collect();
    assert_eq!(found, ["io/x/1 ok", "io/x/2 FAIL", "io/x/3 skipped"]);
}
