//! Vectors (`iovec`) and messages (`msghdr`, `mmsghdr`) in the guest's memory.

use super::marshal::{self, ABSENT, MAX_BUFFER, MAX_PARTS, MESSAGE_TAIL, Sections};
use crate::usermem::UserMemory;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;

/// Bytes of a `mmsghdr`, of which the first 56 are a `msghdr`.
const MMSGHDR: u64 = 64;
/// Longest address of a socket (`sockaddr_storage`).
const MAX_NAME: u32 = 128;
/// Longest control data that is carried; the kernel's own bound is `net.core.optmem_max`.
const MAX_CONTROL: usize = 256 << 10;

/// The parts of a vector.
pub(super) struct Parts {
    /// Address and length of each; the sum of the lengths is `total`.
    pub list: Vec<(u64, usize)>,
    /// Bytes in all, at most [`MAX_BUFFER`].
    pub total: usize,
}

/// Reads a vector of `count` parts. What is beyond [`MAX_BUFFER`] is cut off.
pub(super) fn parts(at: u64, count: u64, memory: &dyn UserMemory) -> Result<Parts, Errno> {
    if count > MAX_PARTS {
        return Err(Errno::EINVAL);
    }
    let mut raw = vec![0; count as usize * 16];
    if !raw.is_empty() {
        memory.read(GuestVirtAddr(at), &mut raw)?;
    }
    let mut parts = Parts { list: Vec::with_capacity(count as usize), total: 0 };
    let mut claimed = 0i64;
    for part in raw.chunks_exact(16) {
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| part[i + k]));
        claimed = i64::try_from(word(8)).ok().and_then(|length| claimed.checked_add(length)).ok_or(Errno::EINVAL)?;
        let length = word(8).min((MAX_BUFFER - parts.total) as u64) as usize;
        parts.total += length;
        parts.list.push((word(0), length));
    }
    Ok(parts)
}

impl Parts {
    /// Writes `bytes` over the parts, in order.
    pub(super) fn scatter(&self, mut bytes: &[u8], memory: &dyn UserMemory) -> Result<(), Errno> {
        for &(at, length) in &self.list {
            let (now, later) = bytes.split_at(length.min(bytes.len()));
            if !now.is_empty() {
                memory.write(GuestVirtAddr(at), now)?;
            }
            bytes = later;
        }
        if bytes.is_empty() { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Appends a section with the bytes of all parts.
    fn gather(&self, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<(), Errno> {
        out.extend_from_slice(&(self.total as u32).to_le_bytes());
        for &(at, length) in &self.list {
            marshal::append_bytes(at, length, memory, out)?;
        }
        Ok(())
    }
}

/// Appends the bytes of a vector and gives the number of its parts.
pub(super) fn gather(at: u64, count: u64, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<u64, Errno> {
    parts(at, count, memory)?.gather(memory, out)?;
    Ok(count)
}

/// A guest's `msghdr`.
struct Header {
    name: u64,
    name_length: u32,
    parts: Parts,
    control: u64,
    control_length: usize,
}

fn read_header(at: u64, memory: &dyn UserMemory) -> Result<Header, Errno> {
    let mut raw = [0; 56];
    memory.read(GuestVirtAddr(at), &mut raw)?;
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| raw[i + k]));
    let (name, control) = (word(0), word(32));
    let name_length = word(8) as u32;
    if (name_length as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    if word(24) > MAX_PARTS {
        return Err(Errno::EMSGSIZE);
    }
    let control_length = if control == 0 { 0 } else { word(40) };
    if control_length > MAX_CONTROL as u64 {
        return Err(Errno::ENOBUFS);
    }
    Ok(Header {
        name,
        name_length: if name == 0 { 0 } else { name_length.min(MAX_NAME) },
        parts: parts(word(16), word(24), memory)?,
        control,
        control_length: control_length as usize,
    })
}

/// Appends a message to send.
pub(super) fn put_message(at: u64, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<(), Errno> {
    let header = read_header(at, memory)?;
    if header.name == 0 {
        out.extend_from_slice(&ABSENT.to_le_bytes());
    } else {
        marshal::put_bytes(header.name, header.name_length as usize, memory, out)?;
    }
    header.parts.gather(memory, out)?;
    marshal::put_bytes(header.control, header.control_length, memory, out)
}

/// Appends the capacities of a message to receive; gives their sum.
pub(super) fn put_capacities(at: u64, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<usize, Errno> {
    let header = read_header(at, memory)?;
    let name = if header.name == 0 { ABSENT } else { header.name_length };
    for capacity in [name, header.parts.total as u32, header.control_length as u32] {
        out.extend_from_slice(&capacity.to_le_bytes());
    }
    Ok(header.name_length as usize + header.parts.total + header.control_length)
}

fn nth(at: u64, n: u64) -> Result<u64, Errno> {
    at.checked_add(n * MMSGHDR).ok_or(Errno::EFAULT)
}

/// Appends messages to send, as many of `count` as fit; gives how many.
pub(super) fn put_messages(at: u64, count: u64, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<u64, Errno> {
    let start = out.len();
    for n in 0..count {
        let before = out.len();
        let put = put_message(nth(at, n)?, memory, out);
        if put.is_err() || out.len() - start > MAX_BUFFER {
            // As the kernel does: what can be sent is sent, and the error waits for the next call.
            out.truncate(before);
            return if n > 0 { Ok(n) } else { Err(put.err().unwrap_or(Errno::ENOMEM)) };
        }
    }
    Ok(count)
}

/// Appends the capacities of messages to receive, as many of `count` as fit; gives how many.
pub(super) fn put_all_capacities(
    at: u64,
    count: u64,
    memory: &dyn UserMemory,
    out: &mut Vec<u8>,
) -> Result<u64, Errno> {
    let mut total = 0;
    for n in 0..count {
        let before = out.len();
        total += put_capacities(nth(at, n)?, memory, out)? + 64;
        if total > MAX_BUFFER && n > 0 {
            out.truncate(before);
            return Ok(n);
        }
    }
    Ok(count)
}

/// Writes a received message; gives its `msg_len`.
pub(super) fn take_message(at: u64, sections: &mut Sections, memory: &dyn UserMemory) -> Result<u32, Errno> {
    let header = read_header(at, memory)?;
    let tail: &[u8; MESSAGE_TAIL] = sections.next()?.and_then(|tail| tail.try_into().ok()).ok_or(Errno::EIO)?;
    let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|k| tail[i + k]));
    let (name_length, flags, control_length, length) = (word(0), word(4), word(8), word(12));
    if let Some(name) = sections.next()?.filter(|_| header.name != 0) {
        let name = &name[..name.len().min(header.name_length as usize)];
        memory.write(GuestVirtAddr(header.name), name)?;
    }
    header.parts.scatter(sections.next()?.ok_or(Errno::EIO)?, memory)?;
    let control = sections.next()?.ok_or(Errno::EIO)?;
    if control.len() > header.control_length {
        return Err(Errno::EIO);
    }
    write_control(header.control, control, memory)?;
    let field = |offset: u64| at.checked_add(offset).map(GuestVirtAddr).ok_or(Errno::EFAULT);
    if header.name != 0 {
        memory.write_u32(field(8)?, name_length)?;
    }
    memory.write_u64(field(40)?, u64::from(control_length))?;
    memory.write_u32(field(48)?, flags)?;
    Ok(length)
}

/// Writes received control data but for the padding between its parts, which the kernel leaves as it was.
fn write_control(at: u64, control: &[u8], memory: &dyn UserMemory) -> Result<(), Errno> {
    const HEAD: usize = 16;
    let mut from = 0;
    while let Some(head) = control.get(from..from + 8) {
        let length = u64::from_le_bytes(std::array::from_fn(|k| head[k]));
        let part = usize::try_from(length).ok().filter(|&length| length >= HEAD).ok_or(Errno::EIO)?;
        let end = from.checked_add(part).filter(|&end| end <= control.len()).ok_or(Errno::EIO)?;
        let to = at.checked_add(from as u64).ok_or(Errno::EFAULT)?;
        memory.write(GuestVirtAddr(to), &control[from..end])?;
        from = end.next_multiple_of(8);
    }
    Ok(())
}

/// Writes received messages.
pub(super) fn take_messages(
    at: u64,
    count: u64,
    sections: &mut Sections,
    memory: &dyn UserMemory,
) -> Result<(), Errno> {
    for n in 0..count.min(MAX_PARTS) {
        let each = nth(at, n)?;
        let length = take_message(each, sections, memory)?;
        memory.write_u32(GuestVirtAddr(each.checked_add(56).ok_or(Errno::EFAULT)?), length)?;
    }
    Ok(())
}

/// Writes how much of each message was sent.
pub(super) fn take_lengths(at: u64, lengths: &[u8], memory: &dyn UserMemory) -> Result<(), Errno> {
    for (n, length) in lengths.chunks_exact(4).take(MAX_PARTS as usize).enumerate() {
        let field = nth(at, n as u64)?.checked_add(56).ok_or(Errno::EFAULT)?;
        memory.write(GuestVirtAddr(field), length)?;
    }
    Ok(())
}
