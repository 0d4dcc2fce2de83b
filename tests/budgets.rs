//! What common things may cost, counted: exits from the virtual machine and round trips home. Counts do
//! not flake as times do. Who makes something cheaper lowers its budget.

use serde_json::Value;
use skein_tests::guest::{Linking, compile};
use skein_tests::home::{Home, Host, elsewhere, shared};
use std::fs;
use std::path::Path;

/// What a run may cost at most.
struct Budget {
    /// Exits but for those of the page-table editor.
    exits: u64,
    /// Exits of the page-table editor, where page tables are shadowed; elsewhere they are others.
    edits: u64,
    /// Requests to the deputy that are waited for.
    round_trips: u64,
    /// Bytes to the deputy and from there.
    bytes: (u64, u64),
}

fn host() -> Option<&'static Host> {
    match shared() {
        Home::Ready(setup) if setup.host.is_some() => setup.host.as_ref(),
        Home::Ready(_) | Home::Absent => {
            eprintln!("not run: no host here");
            None
        }
        Home::Broken(why) => panic!("{why}"),
    }
}

/// Counts of one run.
fn counted(host: &Host, argv: &[&str]) -> Value {
    let place = tempfile::tempdir().expect("a directory");
    let told = place.path().join("told");
    let mut command = host.command("mosrun");
    command.args(["--stats", "--json", "-o"]).arg(&told).args(argv);
    let output = command.output().expect("mosrun starts");
    assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&fs::read(&told).expect("what it told")).expect("JSON")
}

fn is_shadowed(host: &Host) -> bool {
    let nodes: Value = serde_json::from_str(&host.skein(&["node", "ls", "--json"]).expect("a list")).expect("JSON");
    nodes[0]["paging"] == "shadow"
}

fn check(argv: &[&str], budget: &Budget) {
    let Some(host) = host() else { return };
    // Where things lie is chosen at random and decides over a few faults, and the first run of a
    // program reads it: so what counts is the cheapest of a few.
    let runs: Vec<Value> = (0..5).map(|_| counted(host, argv)).collect();
    let least = |count: &dyn Fn(&Value) -> u64| runs.iter().map(|run| count(&run["own"])).min().expect("runs");
    let number = |own: &Value, name: &str| own[name].as_u64().unwrap_or_else(|| panic!("no {name} in {own}"));
    let held = |name: &str, used: u64, most: u64| {
        println!("{name}: {used} of {most}");
        assert!(used > 0, "{name} of {argv:?} were not counted");
        assert!(used <= most, "{argv:?} took {used} {name}, and may take {most}: {:#}", runs[0]["own"]);
    };
    held("exits", least(&|own| number(own, "exits") - number(own, "table_edits")), budget.exits);
    if is_shadowed(host) {
        held("page-table edits", least(&|own| number(own, "table_edits")), budget.edits);
    }
    held("round trips", least(&|own| number(own, "round_trips")), budget.round_trips);
    held("bytes sent", least(&|own| number(own, "bytes_sent")), budget.bytes.0);
    held("bytes received", least(&|own| number(own, "bytes_received")), budget.bytes.1);
}

#[test]
fn a_program_that_does_nothing() {
    check(&["/bin/true"], &Budget { exits: 38, edits: 9, round_trips: 7, bytes: (850, 400) });
}

#[test]
fn reading_a_file_of_a_mebibyte() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("file");
    fs::write(&file, vec![b'x'; 1 << 20]).expect("a file");
    // It is copied to a pipe, whose first use is at home: later ones are not.
    let budget = Budget { exits: 147, edits: 8, round_trips: 58, bytes: (145_000, 2400) };
    check(&["/bin/cat", path(&file)], &budget);
}

#[test]
fn taking_100_mib_in_one_piece() {
    let program = compile("allocate", Linking::Dynamic);
    check(&[path(&program)], &Budget { exits: 93, edits: 9, round_trips: 7, bytes: (900, 400) });
}

#[test]
fn taking_100_mib_in_small_pieces() {
    let program = compile("allocate", Linking::Dynamic);
    check(&[path(&program), "100"], &Budget { exits: 545, edits: 9, round_trips: 7, bytes: (900, 400) });
}

/// A fault for each 2 MiB, and no more.
#[test]
fn touching_256_mib_first() {
    let program = compile("hog", Linking::Dynamic);
    let budget = Budget { exits: 185, edits: 9, round_trips: 9, bytes: (1100, 600) };
    check(&[path(&program), "once", "256"], &budget);
}

/// What the host does for it cannot be seen from the node: a fault of the VMM's for each huge page, where
/// the host has them, and not for each of the 65,536 small ones.
#[test]
fn the_host_backs_what_is_touched_first_with_huge_pages() {
    let Some(host) = host() else { return };
    let modes = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !modes.contains("[always]") && !modes.contains("[madvise]") {
        eprintln!("not run: this host has no huge pages for memory");
        return;
    }
    // Nobody else's faults are counted in a node of its own.
    let launched = host.skein(&["node", "launch", "--name", "touched", "--json"]).expect("a node");
    let launched: Value = serde_json::from_str(&launched).expect("JSON");
    let pid = launched["pid"].as_u64().unwrap_or_else(|| panic!("no pid in {launched}"));
    let faults = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node's state");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        // The tenth of all is the number of faults without input; the first two are the ID and the name.
        fields[10 - 3].parse::<u64>().expect("a number")
    };
    let program = compile("hog", Linking::Dynamic);
    let before = faults();
    counted(host, &["--node", "touched", path(&program), "once", "256"]);
    let used = faults() - before;
    host.skein(&["node", "stop", "touched"]).expect("it stops");
    println!("faults of the host: {used}");
    assert!(used > 0, "faults of the host were not counted");
    // Where memory is in pieces some of the blocks may get none.
    assert!(used < 65_536 / 4, "the host took {used} faults for 256 MiB");
}

/// How many calls come without an exit depends on whether another CPU is free: one run must find one.
#[test]
fn many_short_reads_come_without_exits() {
    let Some(host) = host() else { return };
    let nodes: Value = serde_json::from_str(&host.skein(&["node", "ls", "--json"]).expect("a list")).expect("JSON");
    let cpus = std::thread::available_parallelism().expect("CPUs").get();
    let possible = nodes[0]["entry"] == "ring3" && cpus > 1;
    let argv = ["dd", "if=/dev/zero", "of=/dev/null", "bs=4k", "count=20000"];
    let mut best = 0;
    for _ in 0..if possible { 60 } else { 2 } {
        let own = &counted(host, &argv)["own"];
        let number = |name: &str| own[name].as_u64().unwrap_or_else(|| panic!("no {name} in {own}"));
        best = best.max(number("exitless_calls"));
        assert!(number("local_calls") >= 39_000, "{own}");
        if best > 0 {
            assert!(possible, "{own}");
        }
        if best > 30_000 {
            assert!(number("exits") < 12_000, "{own}");
            return;
        }
    }
    assert!(!possible, "at most {best} of 40,000 calls came without an exit");
}

/// How many do depends on whether another CPU is free there: one run must find one.
#[test]
fn calls_of_home_come_from_another_host_without_exits() {
    const CALLS: u64 = 20_000;
    let Home::Ready(setup) = elsewhere() else { return };
    let (Some(home), Some(other)) = (&setup.host, &setup.other) else { return };
    // It has a node when it has been used.
    counted(home, &["-r", "other", "/bin/true"]);
    let nodes: Value = serde_json::from_str(&other.skein(&["node", "ls", "--json"]).expect("a list")).expect("JSON");
    let cpus = std::thread::available_parallelism().expect("CPUs").get();
    let possible = nodes[0]["entry"] == "ring3" && cpus > 1;
    let script = format!("import os\nfor _ in range({CALLS}): os.getppid()");
    let mut best = 0;
    for _ in 0..if possible { 60 } else { 2 } {
        let own = &counted(home, &["-r", "other", "/usr/bin/python3", "-c", &script])["own"];
        let number = |name: &str| own[name].as_u64().unwrap_or_else(|| panic!("no {name} in {own}"));
        assert!(number("round_trips") >= CALLS, "{own}");
        best = best.max(number("exitless_calls"));
        assert!(best == 0 || possible, "{own}");
        if best > CALLS / 4 * 3 {
            assert!(number("exits") < CALLS / 2, "{own}");
            return;
        }
    }
    assert!(!possible, "at most {best} of {CALLS} calls came without an exit");
}

/// Who keeps asking home has it answer on its own CPU: no other is woken for it.
#[test]
fn who_keeps_asking_home_wakes_no_other_cpu() {
    let Some(host) = host() else { return };
    if std::thread::available_parallelism().expect("CPUs").get() == 1 {
        eprintln!("not run: there is no other CPU");
        return;
    }
    let program = compile("near", Linking::Dynamic);
    // Calls that are far apart, as on a machine that is busy, are none in a row: one run must have them.
    let mut best = 0;
    for _ in 0..30 {
        let own = &counted(host, &[path(&program), "2000"])["own"];
        let number = |name: &str| own[name].as_u64().unwrap_or_else(|| panic!("no {name} in {own}"));
        assert!(number("round_trips") >= 2000, "{own}");
        best = best.max(number("near_trips") * 100 / number("round_trips"));
        if best >= 90 {
            break;
        }
    }
    println!("round trips without another CPU: {best} %");
    assert!(best >= 90, "at most {best} %");
}

/// However often they are asked for, after the first few times.
#[test]
fn the_ids_of_process_and_thread_come_without_exits() {
    let Some(host) = host() else { return };
    let nodes: Value = serde_json::from_str(&host.skein(&["node", "ls", "--json"]).expect("a list")).expect("JSON");
    if nodes[0]["entry"] != "ring3" {
        eprintln!("not run: calls are cheap here, and made");
        return;
    }
    let program = compile("identity", Linking::Dynamic);
    let budget = Budget { exits: 48, edits: 14, round_trips: 8, bytes: (950, 450) };
    check(&[path(&program), "loop"], &budget);
    // Four threads that ask, each first a few times, and all until the code is looked at.
    let budget = Budget { exits: 200, edits: 30, round_trips: 12, bytes: (1200, 500) };
    check(&[path(&program), "threads"], &budget);
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
