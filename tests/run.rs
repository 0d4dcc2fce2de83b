//! One run of a command: its output, its ending, and never longer than it may take.

use crate::case::{Case, Ending, Input};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, close, pipe, setsid};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// More output than this is cut: no case prints it.
const MAX_OUTPUT: u64 = 64 << 20;

/// What was seen of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Everything written to standard output.
    pub stdout: Vec<u8>,
    /// Everything written to standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub ending: Ending,
}

/// Why there is no [`Outcome`].
#[derive(Debug)]
pub enum Failure {
    /// It could not be started.
    Start(io::Error),
    /// It took too long and was killed, with its process group; what it had written is here.
    Timeout(Outcome),
}

/// Runs `case` in `directory` by `runner` (empty: natively) with `environment` and nothing else.
///
/// # Errors
/// If it does not start or does not end in time. Its end is that of the command and of everyone
/// who holds its output.
pub fn run(
    case: &Case,
    directory: &Path,
    runner: &[OsString],
    environment: &[(OsString, OsString)],
) -> Result<Outcome, Failure> {
    let mut words = runner.iter().cloned().chain(case.argv.iter().map(OsString::from));
    let program = words.next().unwrap_or_default();
    let mut command = Command::new(program);
    command.args(words).current_dir(directory).env_clear();
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.envs(case.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(match case.input {
        Input::Null => Stdio::null(),
        Input::Bytes(_) => Stdio::piped(),
    });
    command.stdout(if case.broken_stdout { broken_pipe().map_err(Failure::Start)? } else { Stdio::piped() });
    command.stderr(Stdio::piped());
    let closed = case.closed.clone();
    // SAFETY: only async-signal-safe calls between fork and exec; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            for descriptor in &closed {
                close(*descriptor)?;
            }
            Ok(())
        });
    }
    let child = command.spawn().map_err(Failure::Start)?;
    finish(child, &case.input, case.timeout)
}

/// A pipe's write end without a reader.
fn broken_pipe() -> io::Result<Stdio> {
    let (_reader, writer): (OwnedFd, OwnedFd) = pipe()?;
    Ok(writer.into())
}

fn finish(mut child: Child, input: &Input, timeout: Duration) -> Result<Outcome, Failure> {
    let group = Pid::from_raw(child.id() as i32);
    let deadline = Instant::now() + timeout;
    if let (Some(mut stdin), Input::Bytes(bytes)) = (child.stdin.take(), input) {
        let bytes = bytes.clone();
        // A command that does not read all of its input is none of our business.
        thread::spawn(move || stdin.write_all(&bytes));
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let (status_sender, status) = channel();
    thread::spawn(move || status_sender.send(child.wait()));
    let left = || deadline.saturating_duration_since(Instant::now());
    let ended = status.recv_timeout(left());
    let out = stdout.recv_timeout(left());
    let err = stderr.recv_timeout(left());
    if let (Ok(Ok(ended)), Ok(out), Ok(err)) = (&ended, &out, &err) {
        return Ok(Outcome { stdout: out.clone(), stderr: err.clone(), ending: ending(*ended) });
    }
    // The group may be gone already where only a descriptor was kept open.
    let _ = killpg(group, Signal::SIGKILL);
    let after = Duration::from_secs(5);
    Err(Failure::Timeout(Outcome {
        stdout: out.or_else(|_| stdout.recv_timeout(after)).unwrap_or_default(),
        stderr: err.or_else(|_| stderr.recv_timeout(after)).unwrap_or_default(),
        ending: Ending::Signal(9),
    }))
}

/// Reads to the end of file in a thread of its own.
fn collect(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            // What was read before an error is what there is to compare.
            let _ = stream.take(MAX_OUTPUT).read_to_end(&mut bytes);
        }
        sender.send(bytes)
    });
    receiver
}

/// The ending that a status says.
pub fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Status(code),
        (None, signal) => Ending::Signal(signal.unwrap_or(0)),
    }
}
