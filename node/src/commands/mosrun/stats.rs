//! `mosrun --stats`: what the program used, as `time -v` tells it.

use procmig::deputy::Report;
use procmig::wire::usage::Usage;
use std::time::{Duration, Instant};

/// What makes the text when the program has ended; the time runs from now.
pub fn teller(argv: Vec<Vec<u8>>, json: bool) -> Box<dyn FnOnce(&Report) -> String + Send> {
    let started = Instant::now();
    let command = String::from_utf8_lossy(&argv.join(&b' ')).into_owned();
    Box::new(move |report| {
        let took = started.elapsed();
        if json { as_json(&command, took, report) } else { as_text(&command, took, report) }
    })
}

/// Seconds with hundredths.
fn seconds(nanos: u64) -> String {
    format!("{:.2}", nanos as f64 / 1e9)
}

/// `h:mm:ss` or `m:ss.hh`, as GNU time writes it.
fn clock(time: Duration) -> String {
    let (whole, hundredths) = (time.as_secs(), time.subsec_millis() / 10);
    if whole >= 3600 {
        format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
    } else {
        format!("{}:{:02}.{hundredths:02}", whole / 60, whole % 60)
    }
}

fn total(report: &Report) -> Usage {
    let mut total = report.own;
    total.add(&report.children);
    total
}

fn as_text(command: &str, took: Duration, report: &Report) -> String {
    let used = total(report);
    let (home_user, home_system) = report.home;
    let user = used.user_nanos().saturating_add(home_user);
    let system = used.system_nanos.saturating_add(home_system);
    let share = (user as f64 + system as f64) / took.as_nanos().max(1) as f64 * 100.0;
    let lines = [
        ("Command being run", format!("\"{}\"", command.escape_debug())),
        ("User time (seconds)", seconds(user)),
        ("System time (seconds)", seconds(system)),
        ("Percent of CPU this job got", format!("{share:.0}%")),
        ("Elapsed (wall clock) time (h:mm:ss or m:ss)", clock(took)),
        ("Maximum resident set size (kbytes)", (used.peak_resident >> 10).to_string()),
        ("Page faults", used.faults.to_string()),
        ("CPU time of the deputies at home (seconds)", seconds(home_user.saturating_add(home_system))),
        ("System calls served in the node", used.local_calls.to_string()),
        ("System calls forwarded home", used.forwarded_calls.to_string()),
        ("System calls without an exit", used.exitless_calls.to_string()),
        ("Round trips home", used.round_trips.to_string()),
        ("Round trips without another CPU", used.near_trips.to_string()),
        ("Bytes sent home", used.bytes_sent.to_string()),
        ("Bytes received from home", used.bytes_received.to_string()),
        ("Exits from the guest", used.exits.to_string()),
        ("Exits to change page tables", used.table_edits.to_string()),
    ];
    lines.iter().map(|(name, value)| format!("\t{name}: {value}\n")).collect()
}

fn as_json(command: &str, took: Duration, report: &Report) -> String {
    let value = serde_json::json!({
        "command": command,
        "elapsed_nanos": u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        "home_user_nanos": report.home.0,
        "home_system_nanos": report.home.1,
        "own": report.own,
        "children": report.children,
    });
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let own = Usage { cpu_nanos: 1_500_000_000, system_nanos: 500_000_000, exits: 40, ..Usage::default() };
        let children = Usage { cpu_nanos: 1_000_000_000, peak_resident: 3 << 20, exits: 2, ..Usage::default() };
        Report { own, children, home: (10_000_000, 20_000_000) }
    }

    #[test]
    fn the_text_has_the_sums_of_all_processes_and_of_home() {
        let text = as_text("a\x1b b", Duration::from_millis(65_070), &report());
        for line in [
            "Command being run: \"a\\u{1b} b\"",
            "User time (seconds): 2.01",
            "System time (seconds): 0.52",
            "Percent of CPU this job got: 4%",
            "time (h:mm:ss or m:ss): 1:05.07",
            "resident set size (kbytes): 3072",
            "deputies at home (seconds): 0.03",
            "Exits from the guest: 42",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in {text}");
        }
    }

    #[test]
    fn json_tells_processes_apart() {
        let value: serde_json::Value = serde_json::from_str(&as_json("x", Duration::from_secs(1), &report())).unwrap();
        assert_eq!((value["own"]["exits"].as_u64(), value["children"]["exits"].as_u64()), (Some(40), Some(2)));
        assert_eq!(value["elapsed_nanos"], 1_000_000_000);
    }

    #[test]
    fn long_times_have_hours() {
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
        assert_eq!(clock(Duration::from_millis(90)), "0:00.09");
    }
}
