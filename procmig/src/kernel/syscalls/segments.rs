//! System V shared memory. Segments are home's: the deputy attaches what its process attaches, and the
//! node shows the same pages to the guest, so that programs at home share them too.

use super::{CallResult, Outcome, forward, refuse};
use crate::kernel::guest::GuestThread;
use crate::kernel::neighbours::PATIENCE;
use crate::kernel::{inquiries, memory_short};
use crate::mm::segments::Attachment;
use crate::mm::{Backing, MapRequest, Protection, RegionFlags};
use crate::usermem::UserMemory;
use crate::wire::inquiry::SegmentUse;
use crate::wire::op::{Op, SegmentInfo};
use nix::errno::Errno;
use std::os::unix::fs::MetadataExt;
use vmm::addr::{GuestVirtAddr, PAGE_SIZE};
use vmm::user_cpu::UserCpu;

/// Offsets in a `struct shmid_ds`.
const LAST_PID: u64 = 84;
const ATTACHES: u64 = 88;
/// Offset of `shm_perm.mode` there, and the bit of a segment that is gone when its last user is.
const MODE: u64 = 20;
const SHM_DEST: u32 = 0o1000;
/// How often it is asked again where attachments come and go meanwhile.
const TRIES: usize = 20;

/// `shmat`
pub fn shmat(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    let (id, flags) = (args[0] as i32, args[2] as i32);
    let mut address = args[1];
    let remap = flags & libc::SHM_REMAP != 0;
    if !address.is_multiple_of(PAGE_SIZE) {
        if flags & libc::SHM_RND == 0 {
            return Err(Errno::EINVAL).into();
        }
        address &= !(PAGE_SIZE - 1);
    }
    if address == 0 && remap {
        return Err(Errno::EINVAL).into();
    }
    if guest.process.is_remote() {
        // It is memory of another machine.
        return refuse(guest, libc::SYS_shmat as u64, Errno::ENOSYS);
    }
    let Ok(reply) = guest.op(&Op::AttachSegment { id, flags }) else { return Outcome::End };
    if reply.ret < 0 {
        return Outcome::Return(reply.ret);
    }
    let Ok(info) = postcard::from_bytes::<SegmentInfo>(&reply.payload) else { return Err(Errno::EIO).into() };
    let mine = std::fs::metadata("/proc/self/ns/ipc").map(|meta| meta.ino());
    if !mine.is_ok_and(|mine| mine == info.namespace) {
        // The same identifier is another segment here.
        detach(guest, info.address);
        return refuse(guest, libc::SYS_shmat as u64, Errno::ENOSYS);
    }
    let attached = attach(guest, cpu, id, address, flags, &info);
    let result = match attached {
        Ok((at, replaced)) => {
            if let Some(replaced) = replaced {
                detach(guest, replaced.home);
            }
            if remap {
                detach_unmapped(guest);
            }
            guest.kernel().segments.note(id, guest.process.pid);
            Ok(at)
        }
        Err(errno) => {
            detach(guest, info.address);
            Err(errno)
        }
    };
    result.into()
}

fn attach(
    guest: &GuestThread,
    cpu: &mut UserCpu,
    id: i32,
    address: u64,
    flags: i32,
    info: &SegmentInfo,
) -> Result<(u64, Option<Attachment>), Errno> {
    let writable = flags & libc::SHM_RDONLY == 0;
    let mut protection = Protection::READ;
    protection.set(Protection::WRITE, writable);
    protection.set(Protection::EXECUTE, flags & libc::SHM_EXEC != 0);
    let object = guest.kernel().segments.object(id, writable)?;
    let mut request = MapRequest::anonymous(info.size, protection);
    request.address = address;
    request.fixed = address != 0;
    request.keep = flags & libc::SHM_REMAP == 0;
    request.flags = RegionFlags::SHARED;
    request.flags.set(RegionFlags::NO_WRITE, !writable);
    request.backing = Backing::Object { object: object.clone(), offset: 0 };
    request.name = format!("/SYSV{:08x} (deleted)", info.key).into();
    let length = info.size.next_multiple_of(PAGE_SIZE);
    let attachment = Attachment { home: info.address, object, id, length };
    guest.space.attach(request, attachment, cpu).map_err(|errno| match errno {
        // Something is mapped there.
        Errno::EEXIST | Errno::EPERM => Errno::EINVAL,
        errno => errno,
    })
}

/// `shmdt`
pub fn shmdt(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let attachment = guest.space.detach_segment(args[0], cpu)?;
    guest.kernel().segments.note(attachment.id, guest.process.pid);
    detach(guest, attachment.home);
    Ok(0)
}

/// Lets home know of segments of which the last page has been unmapped otherwise.
pub fn detach_unmapped(guest: &mut GuestThread) {
    for attachment in guest.space.take_unmapped_segments() {
        guest.kernel().segments.note(attachment.id, guest.process.pid);
        detach(guest, attachment.home);
    }
}

fn detach(guest: &mut GuestThread, address: u64) {
    // If the deputy is gone, so are its attachments; the process ends.
    let _ = guest.op(&Op::DetachSegment { address });
}

/// `shmctl`: home's, without what nodes themselves have attached.
pub fn shmctl(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> Outcome {
    const SHM_STAT: i32 = 13;
    const SHM_STAT_ANY: i32 = 15;
    let command = args[1] as i32;
    if !matches!(command, libc::IPC_STAT | SHM_STAT | SHM_STAT_ANY) {
        return forward::forward(guest, cpu, libc::SYS_shmctl as u32, args);
    }
    // The node's part of an ended process lasts a little longer than the process.
    guest.kernel().leaving.wait(memory_short::LINGER);
    // Which segment an index means only home knows.
    let mut before = (command == libc::IPC_STAT).then(|| guest.kernel().segment_uses(args[0] as i32, PATIENCE));
    for tried in 1.. {
        let outcome = forward::forward(guest, cpu, libc::SYS_shmctl as u32, args);
        let id = match (command, outcome) {
            (libc::IPC_STAT, Outcome::Return(0)) => args[0] as i32,
            (SHM_STAT | SHM_STAT_ANY, Outcome::Return(id @ 0..)) => id as i32,
            _ => return outcome,
        };
        let now = guest.kernel().segment_uses(id, PATIENCE);
        if before.as_ref() == Some(&now) || tried == TRIES {
            let hidden = guest.with_memory(cpu, |memory| hide(memory, GuestVirtAddr(args[2]), &now));
            return hidden.map_or_else(|errno| Err(errno).into(), |()| outcome);
        }
        before = Some(now);
    }
    unreachable!("the last try returns")
}

/// Takes what nodes have attached out of a `struct shmid_ds`.
fn hide(memory: &dyn UserMemory, about: GuestVirtAddr, uses: &[SegmentUse]) -> Result<(), Errno> {
    let mappings = uses.iter().fold(0u64, |sum, used| sum.saturating_add(used.mappings));
    let last_pid = memory.read_u32(about + LAST_PID)?;
    if uses.iter().any(|used| used.node == last_pid)
        && let Some(last) = inquiries::latest(uses)
    {
        memory.write_u32(about + LAST_PID, last.pid as u32)?;
    }
    if mappings == 0 {
        return Ok(());
    }
    let attaches = memory.read_u64(about + ATTACHES)?.saturating_sub(mappings);
    // Removed, and nobody has it but nodes.
    if attaches == 0 && memory.read_u32(about + MODE)? & SHM_DEST != 0 {
        return Err(Errno::EINVAL);
    }
    memory.write_u64(about + ATTACHES, attaches)
}
