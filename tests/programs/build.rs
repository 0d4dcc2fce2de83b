//! Compilers, linkers, build tools and version control.

use skein_tests::{Case, bash, cases};
use std::path::Path;

/// The directory of the cargo that runs the tests, and of the compiler beside it.
fn toolchain() -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| env!("CARGO").to_owned());
    Path::new(&cargo).parent().and_then(Path::to_str).expect("cargo has a path").to_owned()
}

fn cargo(script: &str) -> Case {
    bash(script).env("PATH", &format!("{}:/usr/bin:/bin", toolchain()))
}

cases! {
    make_builds_a_project_of_60_files: bash(include_str!("build/project.sh")).seconds(300);
    cxx_throws_across_threads: bash("g++ -std=c++17 -O1 -Wall -pthread -o prog exceptions.cpp && ./prog; echo \"status $?\"")
        .file("exceptions.cpp", include_str!("build/exceptions.cpp")).seconds(120);
    git_keeps_50_commits: bash(include_str!("build/git.sh")).seconds(300);
    cargo_builds_a_crate: cargo(include_str!("build/crate.sh")).seconds(300);
}
