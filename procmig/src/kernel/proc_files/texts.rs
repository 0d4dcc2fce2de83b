//! `status`, `stat` and `statm`: home's texts with the guest's figures in them.

use crate::wire::inquiry::Figures;
use std::io::Write as _;
use vmm::addr::PAGE_SIZE;

/// Nanoseconds of a clock tick.
const TICK: u64 = 10_000_000;

/// `status`: home's lines, those that the node knows replaced.
pub(super) fn status(home: &[u8], figures: &Figures) -> Vec<u8> {
    let mut text = Vec::with_capacity(home.len() + 64);
    for line in home.split_inclusive(|&byte| byte == b'\n') {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        match value(name, figures) {
            Some(value) => {
                text.extend_from_slice(name);
                // Writing to a vector cannot fail.
                let _ = writeln!(text, ":\t{value}");
            }
            None => text.extend_from_slice(line),
        }
    }
    text
}

fn value(name: &[u8], figures: &Figures) -> Option<String> {
    let sizes = &figures.sizes;
    let kib = |bytes: u64| Some(format!("{:8} kB", bytes >> 10));
    let set = |set: crate::signal::set::SignalSet| Some(format!("{:016x}", set.0));
    match name {
        b"State" => {
            let state = state(figures)?;
            let words = match state {
                'R' => "running",
                'T' => "stopped",
                _ => "sleeping",
            };
            Some(format!("{state} ({words})"))
        }
        b"VmPeak" | b"VmSize" => kib(sizes.total),
        b"VmLck" => kib(sizes.locked),
        b"VmPin" | b"VmSwap" => kib(0),
        b"VmHWM" => kib(sizes.peak_resident),
        b"VmRSS" => kib(sizes.resident),
        b"RssAnon" => kib(sizes.anonymous),
        b"RssFile" => kib(sizes.resident.saturating_sub(sizes.anonymous)),
        b"RssShmem" => kib(0),
        b"VmData" => kib(sizes.data),
        b"VmStk" => kib(sizes.stack),
        b"VmExe" => kib(sizes.code),
        b"VmLib" => kib(sizes.executable.saturating_sub(sizes.code)),
        b"Threads" => Some(figures.threads.to_string()),
        b"SigPnd" => set(figures.pending),
        b"ShdPnd" => set(figures.shared_pending),
        b"SigBlk" => set(figures.blocked),
        b"SigIgn" => set(figures.ignored),
        b"SigCgt" => set(figures.caught),
        _ => None,
    }
}

/// The state, if it is one: another node's figures are any figures.
fn state(figures: &Figures) -> Option<char> {
    figures.state.filter(|state| matches!(state, 'R' | 'S' | 'T'))
}

/// `stat`: home's fields, those that the node knows replaced.
pub(super) fn stat(home: &[u8], figures: &Figures) -> Vec<u8> {
    // The name, which may hold anything, ends at the last parenthesis; the third field follows.
    let Some(end) = home.iter().rposition(|&byte| byte == b')') else { return home.to_vec() };
    let Ok(rest) = std::str::from_utf8(&home[end + 1..]) else { return home.to_vec() };
    let mut text = home[..=end].to_vec();
    for (number, old) in (3..).zip(rest.split_whitespace()) {
        let _ = match field(number, figures) {
            Some(new) => write!(text, " {new}"),
            None if number == 3 => write!(text, " {}", state(figures).map_or(old.to_owned(), String::from)),
            None => write!(text, " {old}"),
        };
    }
    text.push(b'\n');
    text
}

/// Field `number` as proc(5) counts them.
fn field(number: u32, figures: &Figures) -> Option<u64> {
    /// The signals that one number shows.
    const SHOWN: u64 = 0x7fff_ffff;
    let (sizes, places, inspect) = (&figures.sizes, &figures.places, figures.shows_addresses);
    Some(match number {
        10 => figures.usage.faults,
        11 => figures.children.faults,
        12 | 13 => 0,
        14 => figures.usage.user_nanos() / TICK,
        15 => figures.usage.system_nanos / TICK,
        16 => figures.children.user_nanos() / TICK,
        17 => figures.children.system_nanos / TICK,
        20 => figures.threads,
        23 => sizes.total,
        24 => sizes.resident / PAGE_SIZE,
        25 => figures.resident_limit,
        26 | 27 if !inspect => 1,
        28..=30 | 45..=51 if !inspect => 0,
        26 => sizes.code_at.0,
        27 => sizes.code_at.1,
        28 => places.stack,
        29 | 30 | 35 => 0,
        31 => figures.pending.0 & SHOWN,
        32 => figures.blocked.0 & SHOWN,
        33 => figures.ignored.0 & SHOWN,
        34 => figures.caught.0 & SHOWN,
        45 => sizes.initialized.0,
        46 => sizes.initialized.1,
        47 => sizes.heap,
        48 => places.arguments.0,
        49 => places.arguments.1,
        50 => places.environment.0,
        51 => places.environment.1,
        _ => return None,
    })
}

/// `statm`
pub(super) fn statm(figures: &Figures) -> Vec<u8> {
    let sizes = &figures.sizes;
    let fields = [
        sizes.total,
        sizes.resident,
        sizes.resident.saturating_sub(sizes.anonymous),
        sizes.code,
        0,
        sizes.data.saturating_add(sizes.stack),
        0,
    ];
    let mut text = fields.map(|bytes| (bytes / PAGE_SIZE).to_string()).join(" ");
    text.push('\n');
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::set::SignalSet;
    use crate::wire::inquiry::Sizes;
    use crate::wire::usage::Usage;

    fn figures() -> Figures {
        let sizes = Sizes { total: 12 << 20, resident: 3 << 20, anonymous: 1 << 20, ..Sizes::default() };
        let (blocked, caught) = (SignalSet::of(&[10]), SignalSet::of(&[64, 2]));
        let usage = Usage { cpu_nanos: 28 * TICK, system_nanos: 3 * TICK, ..Usage::default() };
        Figures {
            state: Some('R'),
            threads: 7,
            usage,
            sizes,
            blocked,
            caught,
            shows_addresses: true,
            ..Figures::default()
        }
    }

    #[test]
    fn the_status_keeps_what_only_home_knows() {
        let home = b"Name:\ta: b\nUmask:\t0022\nState:\tS (sleeping)\nVmSize:\t   99 kB\nThreads:\t2\n\
            SigBlk:\tfffffffe7ffbfeff\nSigCgt:\t0\nSeccomp:\t0\nno colon";
        let expected = "Name:\ta: b\nUmask:\t0022\nState:\tR (running)\nVmSize:\t   12288 kB\nThreads:\t7\n\
            SigBlk:\t0000000000000200\nSigCgt:\t8000000000000002\nSeccomp:\t0\nno colon";
        assert_eq!(String::from_utf8(status(home, &figures())).unwrap(), expected);
    }

    #[test]
    fn the_fields_of_stat_are_replaced_by_number() {
        let mut home = b"12 (a ) b)".to_vec();
        home.extend_from_slice(b" S");
        (4..=52).for_each(|n: u32| home.extend_from_slice(format!(" {}", 1000 + n).as_bytes()));
        home.push(b'\n');
        let text = String::from_utf8(stat(&home, &figures())).unwrap();
        let fields: Vec<&str> = text.strip_prefix("12 (a ) b) ").unwrap().trim_end().split(' ').collect();
        assert_eq!(fields.len(), 50);
        let field = |n: usize| fields[n - 3];
        assert_eq!((field(3), field(4), field(14), field(15), field(20)), ("R", "1004", "25", "3", "7"));
        assert_eq!((field(23), field(24), field(32), field(34)), ("12582912", "768", "512", "2"));
        assert_eq!((field(22), field(52)), ("1022", "1052"));
        assert!(text.ends_with(" 1052\n"));
        assert_eq!(stat(b"nonsense", &figures()), b"nonsense");
    }

    #[test]
    fn statm_is_in_pages() {
        assert_eq!(statm(&figures()), b"3072 768 512 0 0 0 0\n");
    }
}
