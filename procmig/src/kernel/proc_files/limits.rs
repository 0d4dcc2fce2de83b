//! `limits`: home's text with the limits in it that the node keeps, or knows better.

use std::io::Write as _;

/// What the lines begin with, and the resource that each is about.
const NAMES: [(&str, u32); 11] = [
    ("Max cpu time", libc::RLIMIT_CPU),
    ("Max data size", libc::RLIMIT_DATA),
    ("Max stack size", libc::RLIMIT_STACK),
    ("Max resident set", libc::RLIMIT_RSS),
    ("Max locked memory", libc::RLIMIT_MEMLOCK),
    ("Max open files", libc::RLIMIT_NOFILE),
    ("Max address space", libc::RLIMIT_AS),
    ("Max pending signals", libc::RLIMIT_SIGPENDING),
    ("Max nice priority", libc::RLIMIT_NICE),
    ("Max realtime priority", libc::RLIMIT_RTPRIO),
    ("Max realtime timeout", libc::RLIMIT_RTTIME),
];
/// Columns of the name, and of either limit, each with a space behind it.
const NAME: usize = 25;
const LIMIT: usize = 20;

/// Home's lines, those replaced of which `kept` knows the soft and the hard limit.
pub(super) fn text(home: &[u8], kept: impl Fn(u32) -> Option<(u64, u64)>) -> Vec<u8> {
    let mut text = Vec::with_capacity(home.len());
    for line in home.split_inclusive(|&byte| byte == b'\n') {
        match std::str::from_utf8(line).ok().and_then(|line| replaced(line, &kept)) {
            // Writing to a vector cannot fail.
            Some(line) => drop(writeln!(text, "{line}")),
            None => text.extend_from_slice(line),
        }
    }
    text
}

fn replaced(line: &str, kept: impl Fn(u32) -> Option<(u64, u64)>) -> Option<String> {
    let name = line.get(..NAME)?;
    let (_, resource) = NAMES.iter().find(|(known, _)| *known == name.trim_end())?;
    let (soft, hard) = kept(*resource)?;
    let unit = line.get(NAME + 1 + 2 * (LIMIT + 1)..)?.trim_end_matches('\n');
    let shown = |limit| if limit == libc::RLIM_INFINITY { "unlimited".to_owned() } else { format!("{limit}") };
    Some(format!("{name} {:LIMIT$} {:LIMIT$} {unit}", shown(soft), shown(hard)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_that_the_node_keeps_replace_home_s() {
        let home = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max cpu time              unlimited            unlimited            seconds   \n\
            Max stack size            8388608              unlimited            bytes     \n\
            Max open files            20000                20000                files     \n\
            Max nice priority         0                    0                    \n\
            Max realtime timeout\nno";
        let kept = |resource| match resource {
            libc::RLIMIT_STACK => Some((1 << 20, 2 << 20)),
            libc::RLIMIT_NICE => Some((5, libc::RLIM_INFINITY)),
            libc::RLIMIT_NOFILE => Some((30, 40)),
            libc::RLIMIT_RTTIME => Some((1, 1)),
            _ => None,
        };
        let expected = home
            .replace("8388608              unlimited            b", "1048576              2097152              b")
            .replace("20000                20000                f", "30                   40                   f")
            .replace("0                    0                    \n", "5                    unlimited            \n");
        assert_eq!(String::from_utf8(text(home.as_bytes(), kept)).unwrap(), expected);
    }
}
