//! The `skein` command under its several names.
//!
//! Like BusyBox, one binary is several commands: called as `mosrun`, `mosps` or `mosmigrate` it is that
//! command,
//! under any other name it is `skein` with its subcommands.

mod cli;
mod client;
mod cluster;
mod commands;
mod finder;
mod hostd;
mod measured;
mod memory;
mod name;
mod nodelink;
mod output;
mod sandbox;
mod statedir;
mod table;
mod vmm_process;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let started = std::time::Instant::now();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    match called {
        Some("mosrun") => commands::mosrun::main(arguments),
        Some("mosps") => cli::mosps(arguments),
        Some("mosmigrate") => cli::mosmigrate(arguments),
        _ => cli::skein(arguments, started),
    }
}
