//! What commands print, and how they fail.

use std::io::{self, Write};
use std::process::ExitCode;

/// Exit status of a command that failed.
pub const FAILURE: u8 = 1;

/// Writes to standard output. A reader that has gone away (`skein node ls | head -1`) ends the
/// command quietly, as it ends any filter.
///
/// # Errors
/// Any other failure to write.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

/// Writes a value as indented JSON.
///
/// # Errors
/// As [`print`].
pub fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(print(&text)?)
}

/// Writes a line to standard error; there is nobody to tell if that fails.
pub fn complain(command: &str, error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "{command}: {error:#}");
}

/// The exit status for a result, after saying what went wrong.
pub fn finish(command: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(command, &error);
            ExitCode::from(FAILURE)
        }
    }
}
