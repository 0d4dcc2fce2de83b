//! Finding a program as `execvp(3)` does, and telling early why it cannot run.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The shell that runs a text without `#!`, as in `execvp(3)`.
const SHELL: &str = "/bin/sh";
/// Where programs are looked for without `PATH`, as in glibc.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Class and machine bytes are within these first bytes of an ELF file.
const ELF_HEAD: usize = 20;
/// Bytes in which a text is told from a broken binary.
const SNIFF: usize = 256;

/// Why a program cannot be started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SearchError {
    /// Not in `PATH`.
    #[error("{0}: not found in PATH")]
    NotInPath(String),
    /// No such file.
    #[error("{0}: no such file")]
    NoSuchFile(String),
    /// The name is empty or has a NUL in it.
    #[error("the program's name is empty")]
    NoName,
    /// A directory or a device.
    #[error("{0}: not a file that can be executed")]
    NotAFile(String),
    /// Without permission.
    #[error("{0}: permission denied; to make it executable: chmod +x {0}")]
    Denied(String),
    /// A program for another machine.
    #[error("{0}: not an x86-64 program ({1}); nodes run those only")]
    ForeignProgram(String, &'static str),
    /// Neither a program nor a text.
    #[error("{0}: neither a program nor a script")]
    NoProgram(String),
    /// The lookup failed.
    #[error("{0}: {1}")]
    Failed(String, String),
}

impl SearchError {
    /// The shell's exit status for it.
    pub fn status(&self) -> u8 {
        match self {
            Self::NotInPath(_) | Self::NoSuchFile(_) | Self::NoName => 127,
            _ => 126,
        }
    }
}

/// Finds a program by its name in `PATH`, or takes it as it is if it has a slash.
pub fn find(name: &OsStr) -> Result<OsString, SearchError> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    find_in(name, &path)
}

fn find_in(name: &OsStr, path: &OsStr) -> Result<OsString, SearchError> {
    let shown = || name.to_string_lossy().into_owned();
    if name.is_empty() {
        return Err(SearchError::NoName);
    }
    if name.as_bytes().contains(&b'/') {
        return check(name).map(|()| name.to_owned());
    }
    let mut denied = None;
    for directory in path.as_bytes().split(|&byte| byte == b':') {
        // An empty element is the current directory.
        let directory = if directory.is_empty() { b".".as_slice() } else { directory };
        let candidate = OsString::from_vec([directory, b"/", name.as_bytes()].concat());
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(SearchError::NoSuchFile(_)) => {}
            // As execvp: go on, and say so if nothing else is found.
            Err(error) => denied = denied.or(Some(error)),
        }
    }
    Err(denied.unwrap_or_else(|| SearchError::NotInPath(shown())))
}

/// Whether a file may be executed by the effective user.
fn check(file: &OsStr) -> Result<(), SearchError> {
    use nix::errno::Errno;
    use nix::fcntl::{AT_FDCWD, AtFlags};
    use nix::unistd::{AccessFlags, faccessat};
    let shown = file.to_string_lossy().into_owned();
    let about = match nix::sys::stat::stat(file) {
        Ok(about) => about,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => return Err(SearchError::NoSuchFile(shown)),
        Err(Errno::EACCES) => return Err(SearchError::Denied(shown)),
        Err(error) => return Err(SearchError::Failed(shown, error.desc().to_owned())),
    };
    if about.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(SearchError::NotAFile(shown));
    }
    match faccessat(AT_FDCWD, file, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        Ok(()) => Ok(()),
        Err(Errno::EACCES) => Err(SearchError::Denied(shown)),
        Err(error) => Err(SearchError::Failed(shown, error.desc().to_owned())),
    }
}

/// Looks into a program: `None` if it is an x86-64 program or names its interpreter by `#!`, or
/// if it may be executed but not read; the shell if it is a text without `#!`.
pub fn interpreter(program: &OsStr) -> Result<Option<&'static OsStr>, SearchError> {
    let mut head = [0; SNIFF];
    let Ok(mut file) = File::open(program) else { return Ok(None) };
    let got = file.read(&mut head).unwrap_or(0);
    judge(&head[..got]).map_err(|fault| fault(program.to_string_lossy().into_owned()))
}

fn judge(head: &[u8]) -> Result<Option<&'static OsStr>, fn(String) -> SearchError> {
    const ELFCLASS64: u8 = 2;
    const ELFDATA2LSB: u8 = 1;
    const EM_X86_64: u16 = 62;
    if head.starts_with(b"#!") {
        return Ok(None);
    }
    if head.starts_with(b"\x7fELF") {
        if head.len() < ELF_HEAD {
            return Err(|name| SearchError::ForeignProgram(name, "the file is cut short"));
        }
        if head[4] != ELFCLASS64 {
            return Err(|name| SearchError::ForeignProgram(name, "it is a 32-bit program"));
        }
        if head[5] != ELFDATA2LSB || u16::from_le_bytes([head[18], head[19]]) != EM_X86_64 {
            return Err(|name| SearchError::ForeignProgram(name, "it is for another processor"));
        }
        return Ok(None);
    }
    // As shells tell them apart: a NUL before the first newline is no text.
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if line.contains(&0) || !begins_as_text(line) {
        return Err(SearchError::NoProgram);
    }
    Ok(Some(OsStr::new(SHELL)))
}

/// Images and archives begin with a byte that begins no command, though a newline may come before
/// their first NUL.
fn begins_as_text(line: &[u8]) -> bool {
    match std::str::from_utf8(line) {
        Err(error) if error.valid_up_to() == 0 => false,
        _ => line.first().is_none_or(|first| !first.is_ascii_control() || first.is_ascii_whitespace()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(directory: &std::path::Path, name: &str, mode: u32) {
        let path = directory.join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_executable_in_path_is_taken() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        file(first.path(), "prog", 0o644);
        file(second.path(), "prog", 0o755);
        file(first.path(), "only", 0o644);
        std::fs::create_dir(first.path().join("sub")).unwrap();
        let path: OsString = format!("/nowhere:{}:{}", first.path().display(), second.path().display()).into();
        assert_eq!(find_in(OsStr::new("prog"), &path).unwrap(), second.path().join("prog"));
        let denied = find_in(OsStr::new("only"), &path).unwrap_err();
        assert_eq!((denied.status(), matches!(denied, SearchError::Denied(_))), (126, true));
        let missing = find_in(OsStr::new("none"), &path).unwrap_err();
        assert_eq!((missing.status(), missing.to_string().as_str()), (127, "none: not found in PATH"));
        let directory = find_in(OsStr::new("sub"), &path).unwrap_err();
        assert_eq!(directory.status(), 126);
    }

    #[test]
    fn a_name_with_a_slash_is_not_looked_up() {
        assert_eq!(find_in(OsStr::new("/no/such"), OsStr::new("/bin")).unwrap_err().status(), 127);
        assert_eq!(find_in(OsStr::new("/"), OsStr::new("/bin")).unwrap_err().status(), 126);
        assert_eq!(find_in(OsStr::new("/bin/sh"), OsStr::new("")).unwrap(), "/bin/sh");
        assert_eq!(find_in(OsStr::new(""), OsStr::new("/bin")).unwrap_err().status(), 127);
    }

    #[test]
    fn programs_texts_and_garbage_are_told_apart() {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 62;
        assert_eq!(judge(&elf).unwrap(), None);
        assert_eq!(judge(b"#!/usr/bin/perl\n").unwrap(), None);
        assert_eq!(judge(b"echo hello\n\0").unwrap(), Some(OsStr::new("/bin/sh")));
        assert_eq!(judge(b"").unwrap(), Some(OsStr::new("/bin/sh")));
        let fault = |head: &[u8]| judge(head).unwrap_err()("x".into());
        assert!(fault(b"\x89PNG\0\0").to_string().contains("neither"));
        assert!(fault(b"\x89PNG\r\n\x1a\n\0\0").to_string().contains("neither"));
        assert!(fault(b"\x1f\x8b\x08\n").to_string().contains("neither"));
        let latin_1 = b"# na\xefve\n:\n";
        assert_eq!(judge(latin_1).unwrap(), Some(OsStr::new("/bin/sh")));
        assert_eq!(judge("\u{e9}tat\n".as_bytes()).unwrap(), Some(OsStr::new("/bin/sh")));
        assert_eq!(judge(b"\n\techo\n").unwrap(), Some(OsStr::new("/bin/sh")));
        assert!(fault(&elf[..10]).to_string().contains("cut short"));
        elf[4] = 1;
        assert!(fault(&elf).to_string().contains("32-bit"));
        elf[4] = 2;
        elf[18] = 183;
        assert_eq!(fault(&elf).status(), 126);
    }
}
