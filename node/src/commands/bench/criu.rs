//! What a user would pick instead: a process that CRIU dumps and restores on the same machine, its images in memory.

use super::diary::Diary;
use super::guest::holding::now;
use super::guest::{GuestArgs, Loop};
use super::setting::Bench;
use crate::sandbox::check_interrupted;
use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where files are in memory.
const MEMORY: &str = "/dev/shm";

/// How long a process may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether there is a CRIU that works here and room for so many bytes in memory, or what is missing.
pub fn is_here(bytes: usize) -> Result<(), String> {
    let room = statvfs(MEMORY).map_or(0, |about| about.blocks_available() * about.fragment_size());
    if room < 2 * bytes as u64 {
        return Err(format!("there is too little room in {MEMORY} for the images of criu"));
    }
    let output = criu().arg("check").stdin(Stdio::null()).output();
    let output = output.map_err(|_| "there is no criu here to compare with".to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().last().unwrap_or_default();
    if output.status.success() { Ok(()) } else { Err(format!("criu does not work here: {why}")) }
}

fn criu() -> Command {
    Command::new("criu")
}

/// How long a process of so many bytes stands still, as it sees that itself, in milliseconds.
pub fn pause(bench: &Bench, bytes: usize) -> anyhow::Result<f64> {
    check_interrupted()?;
    let images = TempDir::new_in(MEMORY)?;
    let diary = Diary(bench.sandbox.directory().join("diary-criu"));
    let args = GuestArgs { bytes, path: diary.0.display().to_string(), ..GuestArgs::new(Loop::HoldNoise, 0) };
    let mut dumped = Spawned::start(&bench.loop_of(&args)?)?;
    diary.await_line()?;
    let start = now()?;
    run(criu().arg("dump").arg("--tree").arg(dumped.process()?.to_string()), images.path())?;
    // What was dumped is gone, and its number with it.
    dumped.unshare.wait()?;
    let pid_file = images.path().join("restored");
    run(criu().args(["restore", "--restore-detached", "--pidfile"]).arg(&pid_file), images.path())?;
    let restored: i32 = std::fs::read_to_string(&pid_file)?.trim().parse().context("criu names no process")?;
    let seen = diary.since(start);
    kill(Pid::from_raw(restored), Signal::SIGKILL)?;
    Ok(seen?.longest.as_secs_f64() * 1e3)
}

fn run(command: &mut Command, images: &Path) -> anyhow::Result<()> {
    let output = command.arg("--images-dir").arg(images).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("criu: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A process in a session and PID namespace of its own: so it can have the same number when it is restored.
struct Spawned {
    unshare: Child,
}

impl Spawned {
    fn start(program: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "setsid"]).args(program).stdin(Stdio::null());
        let unshare = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("unshare is needed")?;
        Ok(Self { unshare })
    }

    fn process(&self) -> anyhow::Result<i32> {
        let since = Instant::now();
        let id = self.unshare.id();
        loop {
            let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
            if let Some(child) = children.split_whitespace().next() {
                return Ok(child.parse()?);
            }
            ensure!(since.elapsed() < PATIENCE, "it does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // If it has not ended: the number may be another's by then.
        if let (Ok(None), Ok(process)) = (self.unshare.try_wait(), self.process()) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
