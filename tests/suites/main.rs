//! The suites that programs bring along to test themselves, natively and under `mosrun`: each of their
//! tests must end alike, but for those in the file `differences`.
//!
//! A part of each suite runs by default; with `SKEIN_SUITES=all`, all that is named here. A suite that is
//! not on the machine is passed over: `.ci/run` sees to it that it is there and says so by
//! `SKEIN_SUITE_SOURCES`, from when on its absence is a failure.

mod busybox;
mod perl;
mod python;
mod results;

use std::env;
use std::path::PathBuf;

/// Whether everything is to run.
fn all() -> bool {
    env::var_os("SKEIN_SUITES").is_some_and(|value| value == "all")
}

/// The directory with the sources of a program, fetched by `tests/suites/fetch`.
///
/// # Panics
/// If `SKEIN_SUITE_SOURCES` says that they are there, and they are not.
fn sources(program: &str) -> Option<PathBuf> {
    let Some(directory) = env::var_os("SKEIN_SUITE_SOURCES") else {
        eprintln!("{program}: its own tests do not run: SKEIN_SUITE_SOURCES does not name their sources");
        return None;
    };
    let directory = PathBuf::from(directory).join(program);
    assert!(directory.is_dir(), "there is no {}: run tests/suites/fetch", directory.display());
    Some(directory)
}
