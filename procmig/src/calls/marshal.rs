//! Carrying a system call's buffers between the guest's memory and a connection.
//!
//! A request's payload holds one *section* for each buffer, in the order of the arguments: a `u32`
//! length, [`ABSENT`] for a NULL pointer, and then the bytes if the kernel reads the buffer. For a
//! buffer that the kernel only writes there is the length alone: its capacity.
//!
//! | shape | request | reply |
//! | --- | --- | --- |
//! | `Path`, `Name` | the string with its NUL | – |
//! | `In`, `InUpTo` | bytes | – |
//! | `Out` | capacity | bytes, if the call succeeded |
//! | `InOut` | bytes | bytes, if the call was made |
//! | `VectorIn` | the bytes of all parts, one after the other | – |
//! | `VectorOut` | sum of the capacities | bytes, if the call succeeded |
//! | `InterfaceList` | capacity | `ifc_len`, the list, if the call succeeded |
//! | `MessageIn` | name, bytes of all parts, control data | – |
//! | `MessageOut` | capacities of name, parts, control data | if it succeeded: [tail](MESSAGE_TAIL), name, bytes, control data |
//! | `MessagesIn` | as `MessageIn`, for each | if it succeeded: the `msg_len`s of those sent |
//! | `MessagesOut` | as `MessageOut`, for each | if it succeeded: as `MessageOut`, for each received |
//!
//! A call that was not made (a cancelled one, or one that the deputy refuses) has no payload in its
//! reply. Buffers longer than [`MAX_BUFFER`] are cut to it, and the length argument with them: a read
//! or write is then a short one, as the kernel may make it.

use super::messages;
use super::{Len, Shape};
use crate::usermem::UserMemory;
use crate::wire::call::MAX_PAYLOAD;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;

/// Length of the section of a NULL pointer.
pub const ABSENT: u32 = u32::MAX;
/// Longest buffer that one call carries, in bytes.
pub const MAX_BUFFER: usize = MAX_PAYLOAD - (64 << 10);
/// Longest path with its NUL, as `PATH_MAX`.
pub const MAX_PATH: usize = 4096;
/// Most parts of a vector, as `IOV_MAX`.
pub const MAX_PARTS: u64 = 1024;
/// Bytes of the section that heads a received message: `msg_namelen`, `msg_flags`, `msg_controllen`
/// and `msg_len`, each a `u32`.
pub const MESSAGE_TAIL: usize = 16;
/// Longest list of interfaces, in bytes.
const MAX_INTERFACES: i32 = 1 << 20;
/// Most descriptors that a set of `select(2)` has.
const MAX_FD_BITS: u32 = 1 << 20;

/// Cuts the length arguments of a call so that no buffer is longer than [`MAX_BUFFER`].
pub fn cut_lengths(args: &mut [u64; 6], shapes: &[Shape; 6]) {
    for shape in shapes {
        let (Shape::In(len) | Shape::Out(len, _) | Shape::InOut(len)) = *shape else { continue };
        match len {
            Len::Arg(i) | Len::ArgPlus(i, _) if args[i as usize] as i64 > 0 => {
                args[i as usize] = args[i as usize].min(MAX_BUFFER as u64 - 64);
            }
            Len::ArgTimes(i, each) if args[i as usize] as i32 > 0 => {
                args[i as usize] = u64::from((args[i as usize] as u32).min(MAX_BUFFER as u32 / each));
            }
            Len::FdBits(i) if args[i as usize] as i32 > 0 => {
                args[i as usize] = u64::from((args[i as usize] as u32).min(MAX_FD_BITS));
            }
            _ => {}
        }
    }
}

/// The length of a buffer in bytes, where cut arguments tell it. A negative length is 0: the kernel
/// refuses it before it looks at the buffer.
pub fn length_by_arguments(len: Len, args: &[u64; 6]) -> Option<usize> {
    Some(match len {
        Len::Const(bytes) => bytes as usize,
        Len::Arg(i) => (args[i as usize] as i64).max(0) as usize,
        Len::ArgPlus(i, more) if (args[i as usize] as i64) >= 0 => {
            (args[i as usize] as usize).saturating_add(more as usize)
        }
        Len::ArgPlus(..) => 0,
        Len::ArgTimes(i, each) => ((args[i as usize] as i32).max(0) as usize).saturating_mul(each as usize),
        Len::FdBits(i) => ((args[i as usize] as i32).max(0) as usize).div_ceil(64) * 8,
        Len::Deref(..) | Len::CapData(_) | Len::Counted { .. } => return None,
    })
}

/// The length that a `u32` in memory gives: of a buffer whose length is not [`length_by_arguments`].
pub fn length_by_word(len: Len, word: u32) -> usize {
    const CAPABILITY_VERSION_1: u32 = 0x1998_0330;
    match len {
        Len::Deref(_, most) => (word as i32).clamp(0, most as i32) as usize,
        Len::CapData(_) if word == CAPABILITY_VERSION_1 => 12,
        Len::CapData(_) => 24,
        Len::Counted { head, each, .. } => {
            (head as usize).saturating_add((word as usize).saturating_mul(each as usize))
        }
        _ => 0,
    }
}

fn length(len: Len, own: u64, args: &[u64; 6], memory: &dyn UserMemory) -> Result<usize, Errno> {
    if let Some(length) = length_by_arguments(len, args) {
        return Ok(length);
    }
    let word_at = match len {
        Len::Deref(i, _) | Len::CapData(i) => args[i as usize],
        Len::Counted { at, .. } => own.checked_add(u64::from(at)).ok_or(Errno::EFAULT)?,
        _ => return Err(Errno::EFAULT),
    };
    if word_at == 0 {
        return Ok(0);
    }
    Ok(length_by_word(len, memory.read_u32(GuestVirtAddr(word_at))?))
}

/// Builds the payload of a request behind what `out` holds, and gives the arguments for its header:
/// `args` with lengths cut.
///
/// # Errors
/// What the guest's call fails with if it is not sent: `EFAULT`, `ENAMETOOLONG`, `ENOMEM` for more than
/// [`MAX_PAYLOAD`], or the errno of a call (or command) that is not forwarded.
pub fn encode(nr: u32, args: &[u64; 6], memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<[u64; 6], Errno> {
    let shapes = super::row(nr).ok_or(Errno::ENOSYS)?.shapes(args)?;
    let mut args = *args;
    cut_lengths(&mut args, &shapes);
    let start = out.len();
    for (i, shape) in shapes.iter().enumerate() {
        let pointer = args[i];
        match *shape {
            Shape::Value | Shape::Fd | Shape::Null => {}
            Shape::VectorIn => args[i + 1] = messages::gather(pointer, args[i + 1], memory, out)?,
            Shape::VectorOut => {
                let parts = messages::parts(pointer, args[i + 1], memory)?;
                args[i + 1] = parts.list.len() as u64;
                out.extend_from_slice(&(parts.total as u32).to_le_bytes());
            }
            Shape::MessagesIn | Shape::MessagesOut => {
                args[i + 1] = u64::from((args[i + 1] as u32).min(MAX_PARTS as u32))
            }
            _ if pointer == 0 => put_absent(out),
            Shape::Path => put_string(pointer, MAX_PATH, false, memory, out)?,
            Shape::Name => put_string(pointer, 16, true, memory, out)?,
            Shape::In(len) | Shape::InOut(len) => {
                put_bytes(pointer, length(len, pointer, &args, memory)?, memory, out)?;
            }
            Shape::InUpTo(most) => put_up_to(pointer, most as usize, memory, out)?,
            Shape::Out(len, _) => {
                let capacity = length(len, pointer, &args, memory)?;
                if capacity > MAX_BUFFER {
                    return Err(Errno::ENOMEM);
                }
                out.extend_from_slice(&(capacity as u32).to_le_bytes());
            }
            Shape::InterfaceList => {
                let capacity = match memory.read_u64(field(pointer, 8)?)? {
                    0 => ABSENT,
                    _ => (memory.read_u32(GuestVirtAddr(pointer))? as i32).clamp(0, MAX_INTERFACES) as u32,
                };
                out.extend_from_slice(&capacity.to_le_bytes());
            }
            Shape::MessageIn => messages::put_message(pointer, memory, out)?,
            Shape::MessageOut => {
                messages::put_capacities(pointer, memory, out)?;
            }
        }
        match *shape {
            Shape::MessagesIn => args[i + 1] = messages::put_messages(pointer, args[i + 1], memory, out)?,
            Shape::MessagesOut => args[i + 1] = messages::put_all_capacities(pointer, args[i + 1], memory, out)?,
            _ => {}
        }
        if out.len() - start > MAX_PAYLOAD {
            return Err(Errno::ENOMEM);
        }
    }
    Ok(args)
}

/// Writes the buffers of a reply into the guest's memory and gives what the guest's call returns.
///
/// # Errors
/// `EFAULT` where the guest's buffer cannot be written; `EIO` if the payload is not what the call's
/// shapes allow.
pub fn decode(nr: u32, args: &[u64; 6], ret: i64, payload: &[u8], memory: &dyn UserMemory) -> Result<i64, Errno> {
    if payload.is_empty() {
        return Ok(ret);
    }
    let shapes = super::row(nr).ok_or(Errno::ENOSYS)?.shapes(args)?;
    let mut args = *args;
    cut_lengths(&mut args, &shapes);
    let mut sections = Sections::new(payload);
    for (i, shape) in shapes.iter().enumerate() {
        let pointer = args[i];
        match *shape {
            Shape::InOut(_) => {
                let bytes = sections.next()?;
                if let Some(bytes) = bytes.filter(|_| pointer != 0) {
                    let written = memory.write(GuestVirtAddr(pointer), bytes);
                    if ret >= 0 {
                        written?;
                    }
                }
            }
            Shape::Out(len, _) if ret >= 0 => {
                let Some(bytes) = sections.next()?.filter(|_| pointer != 0) else { continue };
                let most = match (length_by_arguments(len, &args), len) {
                    (Some(length), _) => length,
                    (None, Len::Deref(_, most)) => most as usize,
                    (None, _) => length(len, pointer, &args, memory)?,
                };
                if bytes.len() > most {
                    return Err(Errno::EIO);
                }
                memory.write(GuestVirtAddr(pointer), bytes)?;
            }
            Shape::VectorOut if ret >= 0 => {
                let bytes = sections.next()?.ok_or(Errno::EIO)?;
                messages::parts(pointer, args[i + 1], memory)?.scatter(bytes, memory)?;
            }
            Shape::InterfaceList if ret >= 0 => {
                let length = sections.next()?.ok_or(Errno::EIO)?.first_chunk().ok_or(Errno::EIO)?;
                if let Some(list) = sections.next()? {
                    let most = (memory.read_u32(GuestVirtAddr(pointer))? as i32).max(0) as usize;
                    let at = memory.read_u64(field(pointer, 8)?)?;
                    memory.write(GuestVirtAddr(at), &list[..list.len().min(most)])?;
                }
                memory.write_u32(GuestVirtAddr(pointer), u32::from_le_bytes(*length))?;
            }
            Shape::MessageOut if ret >= 0 => {
                messages::take_message(pointer, &mut sections, memory)?;
            }
            Shape::MessagesIn if ret >= 0 => {
                messages::take_lengths(pointer, sections.next()?.ok_or(Errno::EIO)?, memory)?;
            }
            Shape::MessagesOut if ret >= 0 => messages::take_messages(pointer, ret as u64, &mut sections, memory)?,
            _ => {}
        }
    }
    Ok(ret)
}

fn field(at: u64, offset: u64) -> Result<GuestVirtAddr, Errno> {
    at.checked_add(offset).map(GuestVirtAddr).ok_or(Errno::EFAULT)
}

fn put_absent(out: &mut Vec<u8>) {
    out.extend_from_slice(&ABSENT.to_le_bytes());
}

/// Appends a section with bytes of the guest.
pub(super) fn put_bytes(at: u64, length: usize, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<(), Errno> {
    if length > MAX_BUFFER {
        return Err(Errno::ENOMEM);
    }
    out.extend_from_slice(&(length as u32).to_le_bytes());
    append_bytes(at, length, memory, out)
}

/// Appends bytes of the guest.
pub(super) fn append_bytes(at: u64, length: usize, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    let start = out.len();
    out.resize(start + length, 0);
    memory.read(GuestVirtAddr(at), &mut out[start..])
}

/// Appends a section with a string and its NUL. What has no NUL in `limit` bytes is cut off or refused.
fn put_string(at: u64, limit: usize, cut: bool, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<(), Errno> {
    let head = out.len();
    out.extend_from_slice(&[0; 4]);
    let start = out.len();
    let mut at = GuestVirtAddr(at);
    let end = loop {
        let from = out.len();
        let in_page = (vmm::addr::PAGE_SIZE - at.page_offset()) as usize;
        // Few strings are long, and reading less costs less.
        let take = in_page.min(limit - (from - start)).min(256);
        if take == 0 {
            break None;
        }
        out.resize(from + take, 0);
        memory.read(at, &mut out[from..])?;
        if let Some(end) = out[from..].iter().position(|&byte| byte == 0) {
            break Some(from + end);
        }
        at = at.checked_add(take as u64).ok_or(Errno::EFAULT)?;
    };
    match end {
        Some(end) => out.truncate(end + 1),
        None if cut => *out.last_mut().ok_or(Errno::EFAULT)? = 0,
        None => return Err(Errno::ENAMETOOLONG),
    }
    let length = (out.len() - start) as u32;
    out[head..start].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Appends a section with as many bytes, at most `most`, as can be read.
fn put_up_to(at: u64, most: usize, memory: &dyn UserMemory, out: &mut Vec<u8>) -> Result<(), Errno> {
    let head = out.len();
    out.extend_from_slice(&[0; 4]);
    let start = out.len();
    let mut at = GuestVirtAddr(at);
    while out.len() - start < most {
        let from = out.len();
        let take = ((vmm::addr::PAGE_SIZE - at.page_offset()) as usize).min(most - (from - start));
        out.resize(from + take, 0);
        if memory.read(at, &mut out[from..]).is_err() {
            out.truncate(from);
            break;
        }
        let Some(next) = at.checked_add(take as u64) else { break };
        at = next;
    }
    let length = (out.len() - start) as u32;
    out[head..start].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// The sections of a payload that carries bytes with every length.
pub(super) struct Sections<'a> {
    rest: &'a [u8],
}

impl<'a> Sections<'a> {
    fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    /// The next section's bytes, `None` for a NULL pointer.
    pub(super) fn next(&mut self) -> Result<Option<&'a [u8]>, Errno> {
        let (length, rest) = self.rest.split_first_chunk::<4>().ok_or(Errno::EIO)?;
        let length = u32::from_le_bytes(*length);
        if length == ABSENT {
            self.rest = rest;
            return Ok(None);
        }
        let (bytes, rest) = rest.split_at_checked(length as usize).ok_or(Errno::EIO)?;
        self.rest = rest;
        Ok(Some(bytes))
    }
}
