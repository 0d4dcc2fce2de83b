//! Logs of the processes that have no terminal.

use tracing_subscriber::EnvFilter;

/// Sends log lines to standard error, which is the log file; `SKEIN_LOG` chooses them as `RUST_LOG` would.
pub fn to_stderr() {
    let filter = EnvFilter::try_from_env("SKEIN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second call, as from a test, keeps the first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}
