//! Language runtimes with their threads, collectors, processes, sockets and files: java, node, Go, python3, perl.

use skein_tests::{Case, bash, cases, exec};

/// A program for Debian's own python3, from a file: what it starts imports it again.
fn python<const N: usize>(source: &str, arguments: [&str; N]) -> Case {
    let mut case = exec(["/usr/bin/python3", "program.py"]).file("program.py", source).seconds(300);
    case.argv.extend(arguments.map(str::to_owned));
    // What is compiled holds the time of its source and is left in an order of its own.
    case.env("PYTHONDONTWRITEBYTECODE", "1")
}

cases! {
    java_compiles_and_runs: bash("javac -d . Program.java && java -Xmx64m Program; echo \"status $?\"")
        .file("Program.java", include_str!("runtimes/Program.java")).seconds(300);
    node_runs: exec(["/usr/bin/node", "program.js"])
        .file("program.js", include_str!("runtimes/program.js")).status(4).seconds(300);
    // The linker writes the program by a shared mapping. Its cache is of no interest, the program is.
    go_builds_and_runs: bash("export GOCACHE=$PWD/cache GOPATH=$PWD/path GO111MODULE=off; go build -o prog program.go; rm -rf cache path; ./prog")
        .file("program.go", include_str!("runtimes/program.go")).status(6).seconds(300);

    python_forks_processes: python(include_str!("runtimes/processes.py"), ["fork"]);
    python_spawns_processes: python(include_str!("runtimes/processes.py"), ["spawn", "forkserver"]);
    python_serves_and_selects: python(include_str!("runtimes/servers.py"), []);
    python_shares_memory_and_calls_c: python(include_str!("runtimes/memory.py"), []);
    perl_serves_selects_and_shares: exec(["/usr/bin/perl", "program.pl"])
        .file("program.pl", include_str!("runtimes/servers.pl")).seconds(300);
}
