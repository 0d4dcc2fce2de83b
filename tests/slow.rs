//! Links between hosts that are slower than memory: how long things take there. One test at a time, and not beside those
//! that load the machine.

use skein_tests::home::skein_binary;
use skein_tests::net::{NetHost, Network};
use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How often a migration may be late, where others load the machine.
const LATE: u32 = 10;

/// A network that no other test has beside it.
struct Alone {
    network: Network,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Alone {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.network
    }
}

/// Two hosts of a cluster with a cable of so many bits a second; `None` where there are none.
fn network(rate: &str) -> Option<Alone> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let network = Network::cluster(2)?;
    network.limit(1, rate);
    Some(Alone { network, _turn: turn })
}

fn migrate(host: &NetHost, pid: &str, to: &str) -> serde_json::Value {
    for _ in 0..LATE {
        let output = host.skein(&["migrate", "--json", pid, to]);
        if output.status.success() {
            let said = String::from_utf8(output.stdout).expect("text");
            return serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
        }
        eprintln!("to {to}: {output:?}");
    }
    panic!("it does not go to {to}");
}

#[test]
fn a_process_crosses_a_slow_link_while_it_runs() {
    const MIB: u64 = 48;
    /// Bytes a second.
    const RATE: u64 = 25_000_000;
    let Some(network) = network("200mbit") else { return };
    let [first, second] = network.hosts() else { panic!("two hosts") };
    second.says(&["node", "launch"]);
    // It writes to some of its memory all the time, and finds all of it as it should be when it is asked.
    let program = format!(
        "import hashlib, os, select, sys\nnoise = bytearray(os.urandom({MIB} << 20))\n\
         first = hashlib.sha256(noise[1 << 20:]).hexdigest()\nprint('here', flush=True)\nn = 0\n\
         while True:\n  n += 1\n  noise[n * 4096 % (1 << 20)] = n & 255\n\
         \x20 if select.select([0], [], [], 0.001)[0]:\n    if not sys.stdin.readline(): break\n\
         \x20   assert hashlib.sha256(noise[1 << 20:]).hexdigest() == first\n    print('here', flush=True)\n"
    );
    let mut command = first.command(skein_binary().expect("skein"));
    command.args(["run", "/usr/bin/python3", "-c", &program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("mosrun");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut await_line = || {
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "here\n");
    };
    await_line();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&first.says(&["ps", "--json"])).expect("JSON");
    let pid = listed[0]["pid"].to_string();
    for to in ["host-2", "home"] {
        let record = migrate(first, &pid, to);
        let of = |what: &str| record[what].as_u64().expect("a number");
        eprintln!("to {to}: {} bytes, {} us in all, {} us still", of("bytes"), of("total_micros"), of("freeze_micros"));
        // It was this link that its memory went over, and not while it stood still.
        assert!(of("bytes") > MIB << 20 && of("total_micros") > (MIB << 20) * 1_000_000 / RATE / 2, "{record}");
        assert!(of("freeze_micros") < of("total_micros") / 2, "{record}");
        child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it reads");
        await_line();
    }
    drop(child.stdin.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn memory_is_compressed_where_the_link_is_slower_than_that() {
    const BYTES: u64 = 64 << 20;
    let Some(network) = network("200mbit") else { return };
    let [first, second] = network.hosts() else { panic!("two hosts") };
    second.says(&["node", "launch"]);
    let skein = skein_binary().expect("skein");
    let migrated = |which: &str| {
        let mut command = first.command(&skein);
        command.arg("run").arg(&skein).args(["bench-guest", which, "--bytes", &BYTES.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("mosrun");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        let record = migrate(first, &child.id().to_string(), "host-2");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        let of = |what: &str| record[what].as_u64().expect("a number");
        eprintln!("{which}: {} of {} bytes, {} us", of("bytes"), of("uncompressed"), of("total_micros"));
        let round = |what: &str| record["rounds"].as_array().expect("rounds").iter().map(|r| r[what].as_u64()).sum();
        let rounds: Option<u64> = round("uncompressed");
        assert!(rounds.is_some_and(|bytes| bytes > 0 && bytes <= of("uncompressed")), "{record}");
        (of("bytes"), of("uncompressed"), of("total_micros"))
    };
    let noise = migrated("hold-noise");
    let half = migrated("hold-half");
    eprintln!("half zeros, half text: {:.2} of the time of noise", half.2 as f64 / noise.2 as f64);
    // A chunk of noise is sent as it is, with a few bytes that say so.
    assert!(noise.1 > BYTES && noise.0 <= noise.1 + noise.1 / 1000, "{noise:?}");
    assert!(half.1 > BYTES / 2 && half.1 < BYTES && half.0 < half.1 / 5 * 4, "{half:?}");
}

/// A program of MOSIX's Table I: what it does, bytes of a block, and microseconds of computing before each.
type Program = (&'static str, &'static str, u64);

const SEARCH: Program = ("work-and-read", "65536", 437_000);
const ALIGN: Program = ("work-and-read", "65536", 81_000);
const SIMULATE: Program = ("work-and-write", "32768", 98_000);

/// How much longer it takes on the other host than natively, each time, sorted.
fn beside_native(network: &Network, (which, block, micros): Program, times: usize) -> Vec<f64> {
    let first = &network.hosts()[0];
    let skein = skein_binary().expect("skein");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![1; 8 << 16]).expect("a file");
    let path = file.path().to_str().expect("text");
    let micros = micros.to_string();
    let work = ["bench-guest", which, "--bytes", block, "--path", path, "--count", &micros];
    let run = |there: bool| -> f64 {
        let mut command = first.command(&skein);
        if there {
            command.args(["run", "-r", "host-2"]).arg(&skein);
        }
        let output = command.args(work).stdin(Stdio::null()).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").trim().parse().expect("a number")
    };
    run(true);
    let mut ratios: Vec<f64> = (0..times).map(|_| run(true) / run(false)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

#[test]
fn programs_that_compute_hardly_notice_a_gigabit_link() {
    /// More than a loaded machine brings about.
    const MOST: f64 = 1.5;
    let Some(network) = network("1gbit") else { return };
    for program in [ALIGN, SIMULATE] {
        let ratios = beside_native(&network, program, 5);
        eprintln!("{}: against native {ratios:.3?}", program.0);
        assert!(ratios[0] < MOST, "{program:?}: {ratios:?}");
    }
}

/// To be run on a machine that does nothing else.
#[test]
#[ignore = "a measurement"]
fn the_table_over_a_gigabit_link() {
    let Some(network) = network("1gbit") else { return };
    for (name, program) in [("search", SEARCH), ("simulate", SIMULATE), ("align", ALIGN)] {
        let ratios = beside_native(&network, program, 31);
        let (median, least, most) = (ratios[15], ratios[0], ratios[30]);
        eprintln!("{name}: against native {median:.3} [{least:.3}..{most:.3}]");
    }
}
