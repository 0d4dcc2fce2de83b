//! Time is home's, however many hosts a process has been on.

use skein_tests::home::can_host;
use skein_tests::net::Network;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Most migrations that may take too long.
const LATE: u32 = 10;

#[test]
fn clocks_never_step_back_or_jump_across_a_hundred_migrations() {
    if !can_host() {
        return;
    }
    let mut network = Network::new(3);
    network.set_ahead(1, 10_000_000);
    network.set_ahead(2, 3_000);
    network.join();
    let first = &network.hosts()[0];
    // It looks at its clocks without a pause, but for sleeps and timed waits, which must last as long as they should.
    let program = "import signal, threading, time\n\
        names = ['CLOCK_MONOTONIC', 'CLOCK_MONOTONIC_RAW', 'CLOCK_BOOTTIME']\n\
        clocks = [getattr(time, name) for name in names]\n\
        done = []\nsignal.signal(signal.SIGUSR1, lambda *_: done.append(1))\n\
        def sleeper():\n  while not done:\n    before = time.monotonic()\n    time.sleep(0.05)\n\
        \x20   threading.Event().wait(0.05)\n    slept = time.monotonic() - before\n    assert 0.1 <= slept < 5, slept\n\
        thread = threading.Thread(target=sleeper)\nthread.start()\n\
        last = list(map(time.clock_gettime_ns, clocks))\nlongest = 0\nprint('here', flush=True)\n\
        while not done:\n  for i, clock in enumerate(clocks):\n    now = time.clock_gettime_ns(clock)\n\
        \x20   assert now >= last[i], (names[i], now, last[i])\n    longest = max(longest, now - last[i])\n    last[i] = now\n\
        thread.join()\nprint(longest, *map(time.clock_gettime_ns, clocks), flush=True)\n";
    let mut command = first.command(skein_tests::home::skein_binary().expect("skein"));
    command.args(["run", "/usr/bin/python3", "-c", program]).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("mosrun");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    let listed = || -> Vec<serde_json::Value> { serde_json::from_str(&first.says(&["ps", "--json"])).expect("JSON") };
    let pid = listed()[0]["pid"].to_string();
    let (mut longest_freeze, mut late) = (0, 0);
    for number in 1..=100 {
        let to = ["home", "host-2", "host-3"][number % 3];
        let record = loop {
            let output = first.skein(&["migrate", "--json", &pid, to]);
            if output.status.success() {
                break String::from_utf8(output.stdout).expect("text");
            }
            late += 1;
            eprintln!("{number}: {output:?}");
            assert!(late <= LATE, "{number}: {output:?}");
        };
        let record: serde_json::Value = serde_json::from_str(record.lines().last().expect("a line")).expect("JSON");
        longest_freeze = longest_freeze.max(record["freeze_micros"].as_u64().expect("a number"));
    }
    let before = here();
    assert!(first.command("kill").args(["-USR1", &pid]).status().expect("kill").success());
    line.clear();
    output.read_line(&mut line).expect("a line");
    let after = here();
    assert_eq!(child.wait().expect("an end").code(), Some(0));
    let said: Vec<i64> = line.split_whitespace().map(|time| time.parse().expect("a number")).collect();
    eprintln!("the longest gap between two looks: {} us; the longest freeze: {longest_freeze} us", said[0] / 1000);
    for (index, clock) in ["monotonic", "raw", "boottime"].into_iter().enumerate() {
        /// For what an answer may be wrong, and for lines that are being bent.
        const SLACK: i64 = 20_000_000;
        let range = before[index] - SLACK..after[index] + SLACK;
        assert!(range.contains(&said[1 + index]), "{clock}: {} is not in {range:?}", said[1 + index]);
    }
    // What else a gap is made of is the machine's doing, as of any program's: others want its processors.
    assert!(said[0] < 5_000_000_000, "a clock has jumped by {} ns", said[0]);
}

/// This host's clocks, which are those of the first.
fn here() -> [i64; 3] {
    [libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_BOOTTIME].map(|clock| {
        let time = nix::time::clock_gettime(clock.into()).expect("a clock");
        time.tv_sec() * 1_000_000_000 + time.tv_nsec()
    })
}
