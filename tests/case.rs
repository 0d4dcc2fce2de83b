//! What a test runs: a command, its input, the files it starts with, and how it ends natively.

use std::fmt;
use std::time::Duration;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Exit status.
    Status(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// A thing in the directory that a case starts in.
#[derive(Debug, Clone)]
pub enum Item {
    /// A regular file with its content and mode.
    File(Vec<u8>, u32),
    /// A directory with its mode.
    Directory(u32),
    /// A symbolic link with its target.
    Link(String),
}

/// What the command's standard input is.
#[derive(Debug, Clone)]
pub enum Input {
    /// `/dev/null`
    Null,
    /// A pipe with these bytes, then end of file.
    Bytes(Vec<u8>),
}

/// One command, run natively and under `mosrun`.
#[derive(Debug, Clone)]
pub struct Case {
    /// The program (an absolute path, or a name found in `PATH`) and its arguments.
    pub argv: Vec<String>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
    /// Standard input.
    pub input: Input,
    /// Made before the run, in this order.
    pub items: Vec<(String, Item)>,
    /// How it ends natively. Two runs that fail alike are no success: a missing program would pass.
    pub ending: Ending,
    /// Descriptors closed before the program starts.
    pub closed: Vec<i32>,
    /// Standard output is a pipe that nobody reads.
    pub broken_stdout: bool,
    /// How long each run may take.
    pub timeout: Duration,
}

/// Runs a program directly: the first word is the program.
pub fn exec<const N: usize>(argv: [&str; N]) -> Case {
    Case {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        environment: Vec::new(),
        input: Input::Null,
        items: Vec::new(),
        ending: Ending::Status(0),
        closed: Vec::new(),
        broken_stdout: false,
        timeout: Duration::from_secs(60),
    }
}

/// A script for bash.
pub fn bash(script: &str) -> Case {
    exec(["/bin/bash", "-c", script])
}

/// A script for dash.
pub fn dash(script: &str) -> Case {
    exec(["/bin/dash", "-c", script])
}

/// A script for busybox's ash, in which each command is an applet of the same static program.
pub fn busybox(script: &str) -> Case {
    exec(["/bin/busybox", "sh", "-c", script])
}

/// A perl program.
pub fn perl(script: &str) -> Case {
    exec(["/usr/bin/perl", "-e", script])
}

/// A python program, for Debian's own python3.
pub fn python(script: &str) -> Case {
    exec(["/usr/bin/python3", "-c", script])
}

impl Case {
    /// Adds a file with mode 0644.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.item(path, Item::File(content.as_ref().to_vec(), 0o644))
    }

    /// Adds an executable file.
    pub fn program(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.item(path, Item::File(content.as_ref().to_vec(), 0o755))
    }

    /// Adds a directory with mode 0755.
    pub fn directory(self, path: &str) -> Self {
        self.item(path, Item::Directory(0o755))
    }

    /// Adds a symbolic link.
    pub fn link(self, path: &str, target: &str) -> Self {
        self.item(path, Item::Link(target.to_owned()))
    }

    /// Adds anything.
    pub fn item(mut self, path: &str, item: Item) -> Self {
        self.items.push((path.to_owned(), item));
        self
    }

    /// Feeds standard input.
    pub fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.input = Input::Bytes(bytes.as_ref().to_vec());
        self
    }

    /// It exits with this status.
    pub fn status(mut self, status: i32) -> Self {
        self.ending = Ending::Status(status);
        self
    }

    /// It is killed by this signal.
    pub fn signal(mut self, signal: i32) -> Self {
        self.ending = Ending::Signal(signal);
        self
    }

    /// It starts with this descriptor closed.
    pub fn closed(mut self, descriptor: i32) -> Self {
        self.closed.push(descriptor);
        self
    }

    /// Its standard output is a pipe without a reader.
    pub fn broken_stdout(mut self) -> Self {
        self.broken_stdout = true;
        self
    }

    /// It starts with this in its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Each run may take so long.
    pub fn seconds(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }
}
