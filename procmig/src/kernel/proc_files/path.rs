//! Which file of which process a path means.

use crate::wire::inquiry::File;

/// Whose directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The caller's process.
    Own,
    /// The calling thread.
    OwnThread,
    /// The process with this PID.
    Process(i32),
}

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meant {
    /// Whose directory.
    pub whose: Whose,
    /// With a thread's own directory below it (`task/TID`).
    pub thread: Option<i32>,
    /// The file in it.
    pub file: File,
}

/// Reads a path; `None` for every file that is home's alone. Paths with `..` are: where they lead is
/// known only there.
pub(super) fn parse(path: &[u8]) -> Option<Meant> {
    let path = std::str::from_utf8(path).ok()?.strip_prefix('/')?;
    if path.ends_with(['/', '.']) {
        return None;
    }
    let mut parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    if parts.next()? != "proc" {
        return None;
    }
    let whose = match parts.next()? {
        "self" => Whose::Own,
        "thread-self" => Whose::OwnThread,
        pid => Whose::Process(number(pid)?),
    };
    let mut name = parts.next()?;
    let mut thread = None;
    if name == "task" {
        thread = Some(number(parts.next()?)?);
        name = parts.next()?;
    }
    let file = match name {
        "exe" => File::Executable,
        "maps" => File::Maps,
        "status" => File::Status,
        "stat" => File::Stat,
        "statm" => File::StatM,
        "limits" => File::Limits,
        "auxv" => File::Auxiliary,
        "environ" => File::Environment,
        "cmdline" => File::CommandLine,
        "mem" => File::Memory,
        "smaps" | "smaps_rollup" | "numa_maps" | "pagemap" | "clear_refs" => File::Pages,
        _ => return None,
    };
    parts.next().is_none().then_some(Meant { whose, thread, file })
}

/// A number as `/proc` names its directories.
fn number(text: &str) -> Option<i32> {
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_process_s_files_are_known() {
        let meant = |path: &str| parse(path.as_bytes());
        let own = |file| Some(Meant { whose: Whose::Own, thread: None, file });
        assert_eq!(meant("/proc/self/exe"), own(File::Executable));
        assert_eq!(meant("//proc/./self//maps"), own(File::Maps));
        let other = Meant { whose: Whose::Process(12), thread: None, file: File::Stat };
        assert_eq!(meant("/proc/12/stat"), Some(other));
        assert_eq!(meant("/proc/12/task/13/stat"), Some(Meant { thread: Some(13), ..other }));
        assert_eq!(meant("/proc/self/limits"), own(File::Limits));
        let thread = Meant { whose: Whose::OwnThread, thread: None, file: File::Status };
        assert_eq!(meant("/proc/thread-self/status"), Some(thread));
    }

    #[test]
    fn all_other_paths_are_home_s() {
        for path in [
            "",
            "/",
            "/proc",
            "/proc/self",
            "/proc/self/",
            "/proc/self/fd/1",
            "/proc/self/exe/",
            "/proc/self/exe/x",
            "/proc/self/../1/exe",
            "/proc/stat",
            "/proc/012/stat",
            "/proc/+1/stat",
            "proc/self/exe",
            "/sys/self/exe",
            "/proc/99999999999/stat",
            "/proc/self/task/stat",
            "/proc/self/task/1",
            "/proc/self/exe/.",
        ] {
            assert_eq!(parse(path.as_bytes()), None, "{path}");
        }
    }
}
