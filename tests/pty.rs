//! A command on a pseudo-terminal of its own, spoken to as a user would.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, setsid};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A session leader on a terminal, in a directory of its own.
pub struct Session {
    child: Child,
    terminal: Option<File>,
    output: Receiver<Vec<u8>>,
    seen: String,
    directory: Option<TempDir>,
}

impl Session {
    /// Starts `argv` with a terminal of 24 lines and 80 columns as its controlling one.
    ///
    /// # Panics
    /// If there is no terminal to have, or the program does not start.
    pub fn start(argv: &[&str], environment: &[(OsString, OsString)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a pseudo-terminal");
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("close-on-exec");
        }
        let stdio = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).current_dir(directory.path()).env_clear();
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: only system calls between fork and exec; descriptor 0 is the terminal, and the ioctl
        // takes no pointer.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("a program on a terminal");
        drop(command);
        drop(slave);
        let mut reader = File::from(master.try_clone().expect("a descriptor"));
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The other end's last close is an error (EIO) here.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let master: OwnedFd = master;
        Self { child, terminal: Some(master.into()), output, seen: String::new(), directory: Some(directory) }
    }

    /// Types bytes.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn send(&mut self, bytes: &[u8]) {
        self.terminal.as_mut().expect("not hung up").write_all(bytes).expect("a terminal that takes input");
    }

    /// Types a line.
    pub fn say(&mut self, line: &str) {
        self.send(line.as_bytes());
        self.send(b"\n");
    }

    /// Waits until `text` appears in what was not expected before.
    ///
    /// # Panics
    /// If it does not come.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("waited {} seconds for {text:?}; there is {:?}", PATIENCE.as_secs(), self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the terminal was closed before {text:?}; there is {:?}", self.seen)
                }
            }
        }
    }

    /// Waits as long as a user would before pressing a key, where nothing says that the moment is there.
    pub fn pause(&self) {
        thread::sleep(Duration::from_millis(700));
    }

    /// Changes the terminal's size.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = self.terminal.as_ref().expect("not hung up").as_raw_fd();
        // SAFETY: the descriptor is open and the pointer is to a live `winsize`.
        let result = unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0, "a terminal that can be resized");
    }

    /// The user closes the window. Returns the directory in which the command ran.
    ///
    /// # Panics
    /// If it was hung up before.
    pub fn hang_up(mut self) -> TempDir {
        // What a terminal's end sends to the session's leader, who tells its jobs; the reader still
        // holds the terminal, so the kernel does not.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGHUP);
        self.terminal = None;
        self.directory.take().expect("not hung up")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let session = self.child.id() as i32;
        // Every job of a shell has a group of its own: end all that are of the session.
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let of_session = nix::unistd::getsid(Some(Pid::from_raw(pid))).is_ok_and(|found| found.as_raw() == session);
            if of_session && self.directory.is_some() {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `holds`.
///
/// # Panics
/// If it does not come to hold.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {} seconds and it did not happen: {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}
