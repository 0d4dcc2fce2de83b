//! What can be measured.

use super::report::{Case, Goal};
use super::{calls, files, memory, migrate, processes, programs, remote, servers, starts};

/// Every benchmark, in the order of the report.
pub const ALL: &[Case] = &[
    Case {
        name: "awk",
        what: "the MOSIX FAQ's awk loop, against native",
        unit: "s",
        goal: Goal::Floor(1.01),
        run: programs::awk,
    },
    Case {
        name: "minisat",
        what: "minisat on a random 3-SAT instance, against native",
        unit: "s",
        goal: Goal::Floor(1.01),
        run: programs::minisat,
    },
    Case {
        name: "memory-random",
        what: "random access to 1 GiB, against native",
        unit: "ns",
        goal: Goal::Floor(1.03),
        run: memory::random,
    },
    Case {
        name: "memory-stream",
        what: "streaming access to 1 GiB (8 bytes), against native",
        unit: "ns",
        goal: Goal::Floor(1.03),
        run: memory::stream,
    },
    Case {
        name: "first-touch",
        what: "first write to a page of 1 GiB, beside native",
        unit: "ns",
        goal: Goal::Ratio(4.0),
        run: memory::touch,
    },
    Case {
        name: "local-call",
        what: "a call served in the node (sigprocmask), against the bare exit",
        unit: "ns",
        goal: Goal::Ratio(1.3),
        run: calls::local_call,
    },
    Case {
        name: "forwarded-call",
        what: "a forwarded call (getppid), against the bare exit and a socket's round trip",
        unit: "ns",
        goal: Goal::Ratio(1.3),
        run: calls::forwarded_call,
    },
    Case {
        name: "remote-call",
        what: "a forwarded call (getppid) from another host, against a TCP round trip (loopback)",
        unit: "ns",
        goal: Goal::Ratio(1.5),
        run: remote::call,
    },
    Case {
        name: "clock",
        what: "reading the clock, beside native",
        unit: "ns",
        goal: Goal::Ratio(3.0),
        run: calls::clock,
    },
    Case { name: "getpid", what: "getpid, beside native", unit: "ns", goal: Goal::Ratio(3.0), run: calls::getpid },
    Case { name: "gettid", what: "gettid, beside native", unit: "ns", goal: Goal::Ratio(3.0), run: calls::gettid },
    Case {
        name: "gettid-of-two",
        what: "gettid by one of two threads, beside native",
        unit: "ns",
        goal: Goal::Ratio(3.0),
        run: calls::gettid_of_two,
    },
    Case {
        name: "read-4k",
        what: "a cached file at home, read again in blocks of 4 KiB, beside native",
        unit: "us",
        goal: Goal::Ratio(10.0),
        run: |bench| files::read(bench, 4 << 10),
    },
    Case {
        name: "read-64k",
        what: "a cached file at home, read again in blocks of 64 KiB, beside native",
        unit: "us",
        goal: Goal::Ratio(2.5),
        run: |bench| files::read(bench, 64 << 10),
    },
    Case {
        name: "read-1m",
        what: "a cached file at home, read again in blocks of 1 MiB, beside native",
        unit: "us",
        goal: Goal::Ratio(1.43),
        run: |bench| files::read(bench, 1024 << 10),
    },
    Case {
        name: "write-4k",
        what: "a cached file at home, written again in blocks of 4 KiB, beside native",
        unit: "us",
        goal: Goal::Ratio(10.0),
        run: |bench| files::write(bench, 4 << 10),
    },
    Case {
        name: "write-64k",
        what: "a cached file at home, written again in blocks of 64 KiB, beside native",
        unit: "us",
        goal: Goal::Ratio(2.5),
        run: |bench| files::write(bench, 64 << 10),
    },
    Case {
        name: "write-1m",
        what: "a cached file at home, written again in blocks of 1 MiB, beside native",
        unit: "us",
        goal: Goal::Ratio(1.43),
        run: |bench| files::write(bench, 1024 << 10),
    },
    Case {
        name: "pipe",
        what: "64 KiB through a pipe between two processes, beside native",
        unit: "us",
        goal: Goal::Ratio(3.33),
        run: files::pipe,
    },
    Case {
        name: "fork",
        what: "fork, exit and wait, of a process with 100 MiB written to",
        unit: "ms",
        goal: Goal::Value(25.0),
        run: processes::fork,
    },
    Case {
        name: "spawn",
        what: "posix_spawn of /bin/true, and wait",
        unit: "ms",
        goal: Goal::Value(25.0),
        run: processes::spawn,
    },
    Case {
        name: "launch",
        what: "skein node launch, command to ready",
        unit: "ms",
        goal: Goal::Value(25.0),
        run: starts::launch,
    },
    Case {
        name: "node-rss",
        what: "resident memory of a node before any process",
        unit: "MiB",
        goal: Goal::Value(8.0),
        run: starts::node_rss,
    },
    Case {
        name: "mosrun-true",
        what: "mosrun /bin/true on a running node, beside native",
        unit: "ms",
        goal: Goal::Value(40.0),
        run: starts::mosrun_true,
    },
    Case {
        name: "table-solve",
        what: "minisat on another host (loopback), against native: MOSIX's Table I, no input or output",
        unit: "s",
        goal: Goal::Floor(1.003),
        run: remote::solve,
    },
    Case {
        name: "table-search",
        what: "a search there, 90 MB in 10 min, against native",
        unit: "s",
        goal: Goal::Floor(1.014),
        run: remote::search,
    },
    Case {
        name: "table-simulate",
        what: "a simulation there that writes 200 MB in 10 min, against native",
        unit: "s",
        goal: Goal::Floor(1.011),
        run: remote::simulate,
    },
    Case {
        name: "table-align",
        what: "an aligner there, 480 MB in 10 min, against native",
        unit: "s",
        goal: Goal::Floor(1.013),
        run: remote::align,
    },
    Case {
        name: "migrate-idle",
        what: "how long a process of 64 MiB stands still that goes to another node",
        unit: "ms",
        goal: Goal::Value(5.0),
        run: migrate::idle,
    },
    Case {
        name: "migrate-dirty",
        what: "how long a process of 1 GiB stands still that writes to 50 MB a second",
        unit: "ms",
        goal: Goal::Value(20.0),
        run: migrate::dirty,
    },
    Case {
        name: "migrate-criu",
        what: "the longest pause that an idle process of 64 MiB sees that goes to another node, beside CRIU's dump and restore",
        unit: "ms",
        goal: Goal::Ratio(0.05),
        run: migrate::criu,
    },
    Case {
        name: "migrate-follow",
        what: "the longest pause that a process of 1 GiB sees that writes to 200 MB a second, when its memory follows it",
        unit: "ms",
        goal: Goal::None,
        run: migrate::follow,
    },
    Case {
        name: "migrate-follow-far",
        what: "the same to another host (loopback)",
        unit: "ms",
        goal: Goal::None,
        run: migrate::follow_far,
    },
    Case {
        name: "migrate-stream",
        what: "a migration of 1 GiB of noise, against a Unix stream of as many bytes to new memory",
        unit: "ms",
        goal: Goal::Ratio(1.67),
        run: migrate::stream,
    },
    Case {
        name: "migrate-sparse",
        what: "a migration of 1 GiB, half zeros and half text, against noise, over one connection",
        unit: "ms",
        goal: Goal::Ratio(0.5),
        run: migrate::sparse,
    },
    Case {
        name: "migrate-text",
        what: "the same to another host (loopback)",
        unit: "ms",
        goal: Goal::Ratio(0.5),
        run: migrate::text,
    },
    Case {
        name: "migrate-sealed",
        what: "a migration of 1 GiB of noise to another host (loopback), against a bare sealed stream to new memory",
        unit: "ms",
        goal: Goal::Ratio(1.67),
        run: migrate::sealed,
    },
    Case {
        name: "migrate-streams",
        what: "the same over two connections, against one",
        unit: "ms",
        goal: Goal::None,
        run: migrate::streams,
    },
    Case {
        name: "python-start",
        what: "start of python3, beside native",
        unit: "ms",
        goal: Goal::None,
        run: programs::python,
    },
    Case {
        name: "make",
        what: "make -j2 of 60 C files, beside native",
        unit: "s",
        goal: Goal::None,
        run: programs::make,
    },
    Case {
        name: "redis",
        what: "redis in a node, requests from redis-benchmark outside, beside native",
        unit: "us",
        goal: Goal::None,
        run: servers::redis,
    },
    Case {
        name: "pgbench",
        what: "postgresql in a node, transactions from pgbench outside, beside native",
        unit: "ms",
        goal: Goal::None,
        run: servers::pgbench,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = ALL.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
