//! System V shared memory: the deputy attaches what its guest process attaches, so that home's kernel
//! counts it, inherits it over `fork` and gives it up when the process ends, as for any process.

use super::threads::lock;
use crate::wire::op::SegmentInfo;
use nix::errno::Errno;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

/// Addresses of the segments that the guest has attached. Locked over a fork.
pub(super) static ATTACHED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Attaches a segment.
pub(super) fn attach(id: i32, flags: i32) -> Result<SegmentInfo, Errno> {
    let flags = flags & (libc::SHM_RDONLY | libc::SHM_EXEC);
    let namespace = std::fs::metadata("/proc/self/ns/ipc").map_err(|_| Errno::ENOSYS)?.ino();
    let mut attached = lock(&ATTACHED);
    // SAFETY: the mapping is put where there is none.
    let at = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    if at as isize == -1 {
        return Err(Errno::last());
    }
    let at = at as usize;
    // SAFETY: `shmid_ds` is plain data, which the kernel fills.
    let (found, about) = unsafe {
        let mut about: libc::shmid_ds = std::mem::zeroed();
        (Errno::result(libc::shmctl(id, libc::IPC_STAT, &mut about)), about)
    };
    attached.push(at);
    drop(attached);
    if let Err(error) = found {
        detach(at as u64);
        return Err(error);
    }
    Ok(SegmentInfo { address: at as u64, size: about.shm_segsz as u64, key: about.shm_perm.__key, namespace })
}

/// Detaches what was attached at this address of the deputy's; 0 or `-errno`.
pub(super) fn detach(address: u64) -> i64 {
    let mut attached = lock(&ATTACHED);
    let Some(index) = attached.iter().position(|&at| at as u64 == address) else { return -i64::from(libc::EINVAL) };
    let at = attached.swap_remove(index);
    // SAFETY: the mapping is the guest's, which the deputy never touches.
    Errno::result(unsafe { libc::shmdt(at as *const libc::c_void) }).map_or_else(|errno| -(errno as i64), i64::from)
}

/// Detaches all: the guest has a new program.
pub(super) fn detach_all() {
    for at in std::mem::take(&mut *lock(&ATTACHED)) {
        // SAFETY: as in `detach`.
        unsafe { libc::shmdt(at as *const libc::c_void) };
    }
}
