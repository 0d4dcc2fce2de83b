//! Resource limits: those of memory and CPU time are kept here, the others are home's.

use super::CallResult;
use crate::kernel::guest::GuestThread;
use crate::kernel::lock;
use crate::usermem::UserMemory;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;
use vmm::user_cpu::UserCpu;

/// Whether the personality keeps this limit.
pub fn is_local(resource: u64) -> bool {
    matches!(
        resource as u32,
        libc::RLIMIT_AS
            | libc::RLIMIT_DATA
            | libc::RLIMIT_STACK
            | libc::RLIMIT_RSS
            | libc::RLIMIT_MEMLOCK
            | libc::RLIMIT_CPU
            | libc::RLIMIT_RTTIME
            | libc::RLIMIT_NICE
            | libc::RLIMIT_RTPRIO
            | libc::RLIMIT_SIGPENDING
    )
}

/// Whether `prlimit64` asks for a limit of the caller that is kept here.
pub fn is_own(guest: &GuestThread, args: &[u64; 6]) -> bool {
    (args[0] == 0 || args[0] as i32 == guest.process.pid) && is_local(args[1])
}

/// Whether `setrlimit` or `prlimit64` is about the size of files.
pub fn is_file_size(nr: i64, args: &[u64; 6]) -> bool {
    let resource = if nr == libc::SYS_setrlimit { args[0] } else { args[1] };
    resource as u32 == libc::RLIMIT_FSIZE
}

/// Whether `setrlimit` or `prlimit64` is about the caller's own open files, of which home keeps the limit.
pub fn is_of_open_files(guest: &GuestThread, nr: i64, args: &[u64; 6]) -> bool {
    let (own, resource) = match nr {
        libc::SYS_setrlimit => (true, args[0]),
        _ => (args[0] == 0 || args[0] as i32 == guest.process.pid, args[1]),
    };
    own && resource as u32 == libc::RLIMIT_NOFILE
}

/// The limit that `setrlimit` or `prlimit64` sets, if any and if it can be read.
pub fn new_limit(guest: &GuestThread, cpu: &mut UserCpu, nr: i64, args: &[u64; 6]) -> Option<(u64, u64)> {
    let at = if nr == libc::SYS_setrlimit { args[1] } else { args[2] };
    (at != 0).then(|| read(guest, cpu, at).ok()).flatten()
}

/// Notes what home has set, to be shown: the deputy's own hard limit stays what it was.
pub fn note_open_files(guest: &GuestThread, new: (u64, u64)) {
    lock(&guest.process.identity).limits.insert(libc::RLIMIT_NOFILE, new);
}

fn current(guest: &GuestThread, resource: u64) -> (u64, u64) {
    let unlimited = (libc::RLIM_INFINITY, libc::RLIM_INFINITY);
    lock(&guest.process.identity).limits.get(&(resource as u32)).copied().unwrap_or(unlimited)
}

fn read(guest: &GuestThread, cpu: &mut UserCpu, at: u64) -> Result<(u64, u64), Errno> {
    guest.with_memory(cpu, |memory| Ok((memory.read_u64(GuestVirtAddr(at))?, memory.read_u64(GuestVirtAddr(at) + 8)?)))
}

fn write(guest: &GuestThread, cpu: &mut UserCpu, at: u64, (soft, hard): (u64, u64)) -> Result<(), Errno> {
    guest.with_memory(cpu, |memory| {
        memory.write_u64(GuestVirtAddr(at), soft)?;
        memory.write_u64(GuestVirtAddr(at) + 8, hard)
    })
}

fn set(guest: &GuestThread, resource: u64, (soft, hard): (u64, u64)) -> Result<(), Errno> {
    if soft > hard {
        return Err(Errno::EINVAL);
    }
    let mut identity = lock(&guest.process.identity);
    let old = identity.limits.get(&(resource as u32)).map_or(libc::RLIM_INFINITY, |&(_, hard)| hard);
    if hard > old && identity.ids.euid != 0 {
        return Err(Errno::EPERM);
    }
    identity.limits.insert(resource as u32, (soft, hard));
    drop(identity);
    if resource as u32 == libc::RLIMIT_AS {
        guest.space.set_limit(soft);
    }
    Ok(())
}

pub fn getrlimit(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    write(guest, cpu, args[1], current(guest, args[0]))?;
    Ok(0)
}

pub fn setrlimit(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let new = read(guest, cpu, args[1])?;
    set(guest, args[0], new)?;
    Ok(0)
}

pub fn prlimit(guest: &GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let new = if args[2] == 0 { None } else { Some(read(guest, cpu, args[2])?) };
    let old = current(guest, args[1]);
    if let Some(new) = new {
        set(guest, args[1], new)?;
    }
    if args[3] != 0 {
        write(guest, cpu, args[3], old)?;
    }
    Ok(0)
}
