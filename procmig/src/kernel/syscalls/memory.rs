//! Memory calls.

use super::{CallResult, segments};
use crate::kernel::guest::GuestThread;
use crate::kernel::lock;
use crate::mm::object::PageObject;
use crate::mm::space::shared_memory;
use crate::mm::{AddressSpace, Backing, MapRequest, Protection, RegionFlags, RemapPlace};
use crate::usermem::UserMemory;
use crate::wire::file_kind::Kind;
use crate::wire::op::{FileIdentity, LentFile, Op};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vmm::addr::{GuestVirtAddr, PAGE_SIZE};
use vmm::user_cpu::UserCpu;
use vmm::windows::WindowError;

/// Flags that `mmap` knows; those of a kind of mapping that is not served are refused.
const MAP_SYNC: u64 = 0x8_0000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_TYPE: u64 = 0xf;
const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_32BIT: u64 = 0x40;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_POPULATE: u64 = 0x8000;
const MAP_STACK: u64 = 0x2_0000;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// Most bytes that `MAP_POPULATE` fills ahead.
const MAX_POPULATE: u64 = 64 << 20;

fn protection(bits: u64) -> Result<Protection, Errno> {
    // PROT_GROWSDOWN, PROT_GROWSUP and PROT_SEM change nothing here.
    const KNOWN: u64 = 7 | 8 | 0x0100_0000 | 0x0200_0000;
    if bits & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Protection::from_bits_truncate(bits as u32))
}

pub fn mmap(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let [address, length, prot, flags, fd, offset] = *args;
    let shared = match flags & MAP_TYPE {
        MAP_SHARED | MAP_SHARED_VALIDATE => true,
        MAP_PRIVATE => false,
        _ => return Err(Errno::EINVAL),
    };
    if !offset.is_multiple_of(PAGE_SIZE) || length == 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MAP_HUGETLB != 0 {
        // As where no huge pages are set aside.
        return Err(Errno::ENOMEM);
    }
    if flags & MAP_SYNC != 0 && flags & MAP_TYPE == MAP_SHARED_VALIDATE {
        return Err(Errno::EOPNOTSUPP);
    }
    let protection = protection(prot)?;
    let mut request = MapRequest::anonymous(length, protection);
    request.address = address;
    request.fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0;
    request.keep = flags & MAP_FIXED_NOREPLACE != 0;
    request.low = flags & MAP_32BIT != 0;
    request.no_reserve = flags & MAP_NORESERVE != 0;
    request.flags.set(RegionFlags::SHARED, shared);
    request.flags.set(RegionFlags::STACK, flags & (MAP_STACK | MAP_GROWSDOWN) != 0);
    if flags & MAP_ANONYMOUS != 0 {
        if shared {
            share_zeros(guest, &mut request);
        }
    } else {
        offset.checked_add(length).ok_or(Errno::EOVERFLOW)?;
        map_file(guest, fd as i32, offset, shared, &mut request)?;
    }
    let replaces = request.fixed && !request.keep;
    let at = guest.space.map(request, cpu)?;
    if replaces {
        segments::detach_unmapped(guest);
    }
    if flags & MAP_POPULATE != 0 && !protection.is_empty() {
        populate(&guest.space, cpu, at, length, protection);
    }
    Ok(at)
}

/// Maps a file: one that is at hand, or that the deputy hands over.
fn map_file(
    guest: &mut GuestThread,
    fd: i32,
    offset: u64,
    shared: bool,
    request: &mut MapRequest,
) -> Result<(), Errno> {
    let write = shared && request.protection.contains(Protection::WRITE);
    let at_hand = guest.process.descriptors.file(fd).filter(|file| file.kind() == Kind::Regular);
    let (file, identity) = match at_hand {
        Some(file) => {
            if !file.is_readable() || write && file.is_read_only() {
                return Err(Errno::EACCES);
            }
            let file = File::from(file.copy()?);
            let meta = file.metadata().map_err(|_| Errno::EBADF)?;
            (OwnedFd::from(file), FileIdentity::of(&meta))
        }
        None => {
            let mut reply = guest.op(&Op::MapFile { fd, write }).map_err(|_| Errno::EBADF)?;
            if reply.ret < 0 {
                return Err(Errno::from_raw(-reply.ret as i32));
            }
            if guest.process.is_remote() {
                return map_lent(guest, &reply.payload, offset, shared, request);
            }
            let file = File::from(reply.descriptors.pop().ok_or(Errno::EBADF)?);
            let identity: FileIdentity = postcard::from_bytes(&reply.payload).map_err(|_| Errno::EIO)?;
            // Another thread may have put another file in the descriptor's place before it was sent.
            let same = file.metadata().is_ok_and(|now| (now.dev(), now.ino()) == (identity.device, identity.inode));
            if !same {
                return Err(Errno::EBADF);
            }
            (OwnedFd::from(file), identity)
        }
    };
    if identity.mode & libc::S_IFMT == libc::S_IFCHR {
        // `/dev/zero`
        if shared {
            share_zeros(guest, request);
        }
        return Ok(());
    }
    request.name = path_of(&file).into();
    let object = if shared {
        shared_file(guest, identity, file, offset, request)?
    } else if let Some(object) = guest.kernel().files.written(&identity) {
        object
    } else {
        guest.kernel().files.read_only(identity, file)
    };
    request.backing = Backing::Object { object, offset };
    Ok(())
}

/// Maps a file of another host, which the deputy has lent.
fn map_lent(
    guest: &GuestThread,
    payload: &[u8],
    offset: u64,
    shared: bool,
    request: &mut MapRequest,
) -> Result<(), Errno> {
    let (identity, rest): (FileIdentity, _) = postcard::take_from_bytes(payload).map_err(|_| Errno::EIO)?;
    if identity.mode & libc::S_IFMT == libc::S_IFCHR {
        if shared {
            share_zeros(guest, request);
        }
        return Ok(());
    }
    let lent: LentFile = postcard::from_bytes(rest).map_err(|_| Errno::EIO)?;
    request.name = String::from_utf8_lossy(&lent.path).into_owned().into();
    // It shows the file as it was; so nobody may come to write it.
    request.flags.set(RegionFlags::NO_WRITE, shared);
    request.backing = Backing::Object { object: guest.process.lent_pages(identity, &lent), offset };
    Ok(())
}

/// New memory that the process shares with those that it forks.
fn share_zeros(guest: &GuestThread, request: &mut MapRequest) {
    request.backing = Backing::Object {
        object: shared_memory(guest.kernel().machine.clone(), guest.process.group.account()),
        offset: 0,
    };
    request.name = "/dev/zero (deleted)".into();
}

/// The pages of a file that a shared mapping shows.
fn shared_file(
    guest: &GuestThread,
    identity: FileIdentity,
    file: OwnedFd,
    offset: u64,
    request: &mut MapRequest,
) -> Result<Arc<PageObject>, Errno> {
    // Who may write the file may later make the mapping writable.
    let flags = fcntl(&file, FcntlArg::F_GETFL)?;
    let mut writable = flags & libc::O_ACCMODE == libc::O_RDWR;
    let kernel = guest.kernel();
    let show = |writable: bool, file: OwnedFd| {
        let object = kernel.files.shared(identity, file, writable);
        // What the host refuses, `mmap` refuses.
        let shown = object.shared().map(|shared| shared.show(object.machine(), offset / PAGE_SIZE));
        match shown {
            Some(Err(WindowError::Host(error))) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENODEV))),
            Some(Err(_)) => Err(Errno::ENOMEM),
            _ => Ok(object),
        }
    };
    let copy = file.try_clone().map_err(|_| Errno::ENFILE)?;
    let mut object = show(writable, file);
    if writable && matches!(object, Err(Errno::EPERM)) && !request.protection.contains(Protection::WRITE) {
        // Sealed against writing: it can be read.
        writable = false;
        object = show(writable, copy);
    }
    request.flags.set(RegionFlags::NO_WRITE, !writable);
    object
}

/// The path of a file for `/proc/self/maps`.
fn path_of(file: &impl std::os::fd::AsRawFd) -> String {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(link).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

fn populate(space: &AddressSpace, cpu: &mut UserCpu, at: u64, length: u64, protection: Protection) {
    let access =
        if protection.contains(Protection::WRITE) { crate::mm::Access::Write } else { crate::mm::Access::Read };
    for page in (at..at + length.min(MAX_POPULATE)).step_by(PAGE_SIZE as usize) {
        if !space.is_mapped_at(page) && space.fault(page, access, cpu).is_err() {
            return;
        }
    }
}

pub fn munmap(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    guest.space.unmap(args[0], args[1], cpu)?;
    segments::detach_unmapped(guest);
    Ok(0)
}

pub fn mprotect(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    guest.space.protect(args[0], args[1], protection(args[2])?, cpu)?;
    Ok(0)
}

pub fn pkey_mprotect(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    if args[3] as i32 != -1 {
        return Err(Errno::EINVAL);
    }
    mprotect(guest, cpu, args)
}

pub fn brk(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    Ok(guest.space.set_break(args[0], cpu))
}

pub fn mremap(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    const MAYMOVE: u64 = 1;
    const FIXED: u64 = 2;
    const DONTUNMAP: u64 = 4;
    let [address, old, new, flags, target, _] = *args;
    if flags & !(MAYMOVE | FIXED | DONTUNMAP) != 0 {
        return Err(Errno::EINVAL);
    }
    let place = RemapPlace {
        may_move: flags & MAYMOVE != 0,
        fixed: (flags & FIXED != 0).then_some(target),
        keep: flags & DONTUNMAP != 0,
    };
    guest.space.remap(address, old, new, place, cpu)
}

pub fn madvise(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    let [address, length, advice, ..] = *args;
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    if length == 0 {
        return Ok(0);
    }
    let space = guest.space.clone();
    let none = RegionFlags::empty();
    let advise = |set, clear| {
        space.check_mapped(address, length)?;
        // As Linux: too many areas are a lack that may pass.
        space
            .flag(address, length, set, clear)
            .map_err(|errno| if errno == Errno::ENOMEM { Errno::EAGAIN } else { errno })
    };
    match advice as i32 {
        libc::MADV_DONTNEED => space.forget(address, length, cpu)?,
        libc::MADV_DONTFORK => advise(RegionFlags::DONT_FORK, none)?,
        libc::MADV_DOFORK => advise(none, RegionFlags::DONT_FORK)?,
        libc::MADV_WIPEONFORK => advise(RegionFlags::WIPE_ON_FORK, none)?,
        libc::MADV_KEEPONFORK => advise(none, RegionFlags::WIPE_ON_FORK)?,
        libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE => {
            space.check_mapped(address, length)?;
            let access = if advice as i32 == libc::MADV_POPULATE_WRITE {
                crate::mm::Access::Write
            } else {
                crate::mm::Access::Read
            };
            for page in (address..address + length).step_by(PAGE_SIZE as usize) {
                space.fault(page, access, cpu).map_err(|_| Errno::EFAULT)?;
            }
        }
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_WILLNEED
        | libc::MADV_FREE
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_DONTDUMP
        | libc::MADV_DODUMP
        | libc::MADV_COLD
        | libc::MADV_PAGEOUT => space.check_mapped(address, length)?,
        // MADV_REMOVE, MADV_HWPOISON, MADV_COLLAPSE and what comes after them.
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

pub fn mincore(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    /// Bytes of address space that are looked at in one go: all of it has billions of pages.
    const STEP: u64 = 256 << 20;
    let [address, length, answer, ..] = *args;
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let length = length.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let mut done = 0;
    while done < length {
        let step = STEP.min(length - done);
        let at = address.checked_add(done).ok_or(Errno::ENOMEM)?;
        let pages = guest.space.resident_pages(at, step).map_err(|_| Errno::ENOMEM)?;
        let to = GuestVirtAddr(answer).checked_add(done / PAGE_SIZE).ok_or(Errno::EFAULT)?;
        guest.with_memory(cpu, |memory| memory.write(to, &pages))?;
        if guest.process.must_end(guest.thread.tid()) {
            return Err(Errno::EINTR);
        }
        done += step;
    }
    Ok(0)
}

pub fn msync(guest: &mut GuestThread, _: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    if args[2] & !7 != 0 || args[2] & 5 == 5 || !args[0].is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    if args[1] == 0 {
        return Ok(0);
    }
    if args[2] & libc::MS_SYNC as u64 == 0 {
        // What is written is in the files already.
        guest.space.check_mapped(args[0], args[1])?;
    } else {
        guest.space.sync(args[0], args[1])?;
    }
    Ok(0)
}

pub fn mlock(guest: &mut GuestThread, args: &[u64; 6], set: bool) -> CallResult {
    let start = args[0] & !(PAGE_SIZE - 1);
    let length = args[1].checked_add(args[0] - start).ok_or(Errno::EINVAL)?;
    if length == 0 {
        return Ok(0);
    }
    let none = RegionFlags::empty();
    let (set, clear) = if set { (RegionFlags::LOCKED, none) } else { (none, RegionFlags::LOCKED) };
    let limit = lock(&guest.process.identity).limit(libc::RLIMIT_MEMLOCK);
    let privileged = lock(&guest.process.identity).ids.euid == 0;
    if !set.is_empty() && !privileged && length > limit {
        return Err(Errno::ENOMEM);
    }
    guest.space.flag(start, length, set, clear)?;
    Ok(0)
}

pub fn get_mempolicy(guest: &mut GuestThread, cpu: &mut UserCpu, args: &[u64; 6]) -> CallResult {
    guest.with_memory(cpu, |memory| {
        if args[0] != 0 {
            memory.write_u32(GuestVirtAddr(args[0]), 0)?;
        }
        if args[1] != 0 {
            let bytes = args[2].div_ceil(64).min(1024) * 8;
            let mut mask = vec![0; bytes as usize];
            if let Some(first) = mask.first_mut() {
                // One node of memory.
                *first = 1;
            }
            memory.write(GuestVirtAddr(args[1]), &mask)?;
        }
        Ok(0)
    })
}
