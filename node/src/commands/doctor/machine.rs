//! The machine besides its hypervisor: clock, memory, limits.

use super::Row;
use crate::cli::DirArg;
use crate::memory::{Machine, show};

/// A thread in a node takes about this many descriptors: its vCPU and its connection.
const DESCRIPTORS_PER_THREAD: u64 = 2;
/// Threads that a node should be able to have.
const THREADS: u64 = 1000;
/// Linux's default of `vm.max_map_count`.
const USUAL_MAPS: u64 = 65530;

/// What a file says, without blanks around it.
fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Whether the first CPU has a flag of `/proc/cpuinfo`.
pub fn has_cpu_flag(flag: &str) -> bool {
    let Some(text) = read("/proc/cpuinfo") else { return false };
    let flags = text.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
}

/// Whether programs can read the time without leaving the node.
pub fn clock(_: &DirArg) -> Vec<Row> {
    let name = "clock";
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    let steady = has_cpu_flag("constant_tsc") && has_cpu_flag("nonstop_tsc");
    vec![match (source.as_str(), steady) {
        ("tsc", _) => Row::ok(name, "the TSC is usable: reading the time costs no exit"),
        (_, true) => Row::ok(name, format!("the TSC is steady, though Linux itself uses {source}")),
        _ => Row::warn(
            name,
            format!("the TSC is not steady; Linux uses {source}"),
            "programs that read the time often are slower in a node; see: dmesg | grep -i tsc",
        ),
    }]
}

/// The choice in brackets, as in `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Whether the host backs guest memory with huge pages: it decides the speed of random access.
pub fn huge_pages(_: &DirArg) -> Vec<Row> {
    let setting = |file| {
        let text = read(&format!("/sys/kernel/mm/transparent_hugepage/{file}"))?;
        chosen(&text).map(str::to_owned)
    };
    let anonymous = setting("enabled");
    let shared = setting("shmem_enabled");
    let shown = |setting: &Option<String>| setting.clone().unwrap_or_else(|| "not there".to_owned());
    let usable = |setting: &Option<String>, words: &[&str]| setting.as_deref().is_some_and(|s| words.contains(&s));
    let name = "huge pages";
    let shared_usable = usable(&shared, &["always", "within_size", "advise", "force"]);
    let anonymous_usable = usable(&anonymous, &["always", "madvise"]);
    let found = format!("enabled: {}, shmem_enabled: {}", shown(&anonymous), shown(&shared));
    vec![match (anonymous_usable, shared_usable) {
        (true, true) => Row::ok(name, format!("{found}; any guest memory gets them")),
        (true, false) => {
            Row::ok(name, format!("{found}; guest memory gets them where it is anonymous, not as a memfd"))
        }
        _ => Row::warn(
            name,
            format!("{found}; random access in a node is slower where paging is nested"),
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
    }]
}

/// Memory for nodes.
pub fn memory(_: &DirArg) -> Vec<Row> {
    let name = "memory";
    let machine = match Machine::read() {
        Ok(machine) => machine,
        Err(error) => return vec![Row::fail(name, error.to_string(), "mount /proc")],
    };
    let found = format!(
        "{} available of {}; a node gets {} unless told otherwise, used as programs touch it",
        show(machine.available),
        show(machine.total),
        show(machine.default_node())
    );
    vec![match machine.check_node(machine.default_node()) {
        Ok(_) if machine.available < machine.default_node() => {
            Row::warn(name, found, "less is free than a node may come to use; launch it with a smaller --memory")
        }
        Ok(_) => Row::ok(name, found),
        Err(why) => Row::fail(name, found, why),
    }]
}

/// Limits of processes.
pub fn limits(_: &DirArg) -> Vec<Row> {
    let mut rows = Vec::new();
    let name = "open files";
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if hard >= THREADS * DESCRIPTORS_PER_THREAD => {
            rows.push(Row::ok(name, format!("{soft}, and {hard} at most (a node raises its own)")));
        }
        Ok((_, hard)) => rows.push(Row::warn(
            name,
            format!("at most {hard}, enough for about {} threads in a node", hard / DESCRIPTORS_PER_THREAD),
            "raise the hard limit: add '* hard nofile 1048576' to /etc/security/limits.conf",
        )),
        Err(error) => rows.push(Row::warn(name, error.to_string(), "see: ulimit -Hn")),
    }
    let name = "memory maps";
    rows.push(match read("/proc/sys/vm/max_map_count").and_then(|text| text.parse::<u64>().ok()) {
        Some(count) if count >= USUAL_MAPS => Row::ok(name, format!("{count} in a process")),
        Some(count) => {
            let advice = format!("as root: sysctl vm.max_map_count={USUAL_MAPS}");
            Row::warn(name, format!("only {count} in a process"), advice)
        }
        None => Row::warn(name, "unknown", "mount /proc"),
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_in_brackets_is_the_chosen_one() {
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("always madvise never"), None);
        assert_eq!(chosen(""), None);
    }
}
