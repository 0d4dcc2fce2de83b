//! C programs that check the machine they run on, compiled when a test needs them.

use crate::case::{Case, exec};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

/// How a program is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linking {
    /// With the dynamic loader, position-independent.
    Dynamic,
    /// Without a loader, at fixed addresses.
    Static,
}

/// The compiled programs of a test run; removed when the test program exits.
static COMPILED: LazyLock<TempDir> = LazyLock::new(|| {
    // SAFETY: `remove` is a plain function that lives as long as the program.
    unsafe { libc::atexit(remove) };
    tempfile::Builder::new().prefix("skein-guest").tempdir().expect("a temporary directory")
});

extern "C" fn remove() {
    let _ = std::fs::remove_dir_all(COMPILED.path());
}

/// Compiles `guest/NAME.c` and returns the program.
///
/// # Panics
/// If the compiler is missing or finds fault.
pub fn compile(name: &str, linking: Linking) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("guest/{name}.c"));
    let suffix = if linking == Linking::Static { "static" } else { "dynamic" };
    let program = COMPILED.path().join(format!("{name}-{suffix}"));
    if program.exists() {
        return program;
    }
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    if linking == Linking::Static {
        cc.args(["-static", "-no-pie"]);
    }
    // Another test may compile the same: each into a file of its own, then one name for both.
    let own = tempfile::NamedTempFile::new_in(COMPILED.path()).expect("a temporary file").into_temp_path();
    cc.arg("-o").arg(&own).arg(&source).arg("-lm");
    let output = cc.output().expect("cc must be installed");
    assert!(output.status.success(), "{name}.c: {}", String::from_utf8_lossy(&output.stderr));
    own.persist(&program).expect("rename within a directory");
    program
}

/// The case that runs `guest/NAME.c` with these arguments.
pub fn program<const N: usize>(name: &str, linking: Linking, arguments: [&str; N]) -> Case {
    let path = compile(name, linking);
    let mut case = exec([path.to_str().expect("a path in UTF-8")]);
    case.argv.extend(arguments.map(str::to_owned));
    case.seconds(120)
}
