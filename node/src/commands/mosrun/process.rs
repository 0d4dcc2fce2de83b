//! What a program inherits from the process that starts it.

use std::ffi::CStr;

/// How many `RLIMIT_*` there are on x86-64 (`RLIM_NLIMITS`).
const LIMITS: u32 = 16;

/// The environment, each entry as it is: also one without `=`, which Rust's own reading drops.
pub fn environment() -> Vec<Vec<u8>> {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    let mut entries = Vec::new();
    // SAFETY: `environ` is an array of C strings ended by NULL, or NULL; no other thread runs yet
    // that could change it, and nothing in this program sets a variable.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            entries.push(CStr::from_ptr(*entry).to_bytes().to_vec());
            entry = entry.add(1);
        }
    }
    entries
}

/// Each resource limit: its number, soft and hard value.
pub fn limits() -> Vec<(u32, u64, u64)> {
    (0..LIMITS)
        .filter_map(|resource| {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: `limit` is a valid place for the answer.
            let got = unsafe { libc::getrlimit(resource, &mut limit) };
            (got == 0).then_some((resource, limit.rlim_cur, limit.rlim_max))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_complete() {
        let path = std::env::var_os("PATH").unwrap();
        let entry = [b"PATH=", std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())].concat();
        assert!(environment().contains(&entry));
    }

    #[test]
    fn every_limit_is_read() {
        assert_eq!(limits().len(), LIMITS as usize);
    }
}
