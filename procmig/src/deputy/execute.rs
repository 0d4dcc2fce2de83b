//! Executing a forwarded call by the shapes of its arguments.
//!
//! Buffers that the kernel reads stay where the request put them; those that it writes are laid out in
//! the reply, where the kernel fills them. Nothing that the node says about a length is believed: each
//! is computed again from the arguments that the kernel will see, and a buffer of length 0 is the
//! address 1, which no kernel can be made to write to.

use super::buffer::ReplyBuffer;
use super::messages::Messages;
use super::threads::Thread;
use super::{descriptors, kernel, listing, numbers, signals};
use crate::calls::marshal::{self, ABSENT, cut_lengths, length_by_arguments, length_by_word};
use crate::calls::{self, Back, Form, Len, Row, Shape};
use nix::errno::Errno;

/// A pointer that is not NULL and points to nothing.
const NOWHERE: u64 = 1;

/// A buffer of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// No buffer, or a NULL pointer.
    None,
    /// In the request's payload.
    Request { at: usize, length: usize },
    /// In the reply's payload; its length there is before it.
    Reply { at: usize, length: usize },
}

/// Reads the sections of a request and lays out those of the reply.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    payload: &'a [u8],
    at: usize,
    /// Bytes laid out in the reply.
    pub reply: usize,
}

impl<'a> Layout<'a> {
    /// The next section's length, `None` for a NULL pointer.
    pub(super) fn length(&mut self) -> Result<Option<usize>, Errno> {
        let bytes = self.payload.get(self.at..self.at + 4).ok_or(Errno::EPROTO)?;
        self.at += 4;
        let length = u32::from_le_bytes(bytes.try_into().map_err(|_| Errno::EPROTO)?);
        Ok((length != ABSENT).then_some(length as usize))
    }

    /// A section with its bytes.
    pub(super) fn bytes(&mut self) -> Result<Slot, Errno> {
        let Some(length) = self.length()? else { return Ok(Slot::None) };
        let at = self.at;
        if length > self.payload.len() - at {
            return Err(Errno::EPROTO);
        }
        self.at += length;
        Ok(Slot::Request { at, length })
    }

    /// A section that says a capacity.
    pub(super) fn capacity(&mut self) -> Result<Slot, Errno> {
        let Some(length) = self.length()? else {
            self.reply += 4;
            return Ok(Slot::None);
        };
        if length > marshal::MAX_BUFFER {
            return Err(Errno::EPROTO);
        }
        Ok(self.room(length))
    }

    /// Room for a section in the reply.
    pub(super) fn room(&mut self, length: usize) -> Slot {
        let at = self.reply + 4;
        self.reply = at + length;
        Slot::Reply { at, length }
    }
}

/// Where the buffers of a call are.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    /// The request's payload.
    pub request: &'a mut [u8],
    /// The reply's payload.
    pub reply: &'a mut [u8],
}

impl Memory<'_> {
    /// The pointer for the kernel.
    pub(super) fn pointer(&mut self, slot: Slot) -> u64 {
        match slot {
            Slot::None => 0,
            Slot::Request { length: 0, .. } | Slot::Reply { length: 0, .. } => NOWHERE,
            Slot::Request { at, length } => self.request[at..at + length].as_mut_ptr() as u64,
            Slot::Reply { at, length } => self.reply[at..at + length].as_mut_ptr() as u64,
        }
    }

    fn word(&self, slot: Slot, offset: usize) -> Option<u32> {
        let bytes = match slot {
            Slot::None => return None,
            Slot::Request { at, length } => &self.request[at..at + length],
            Slot::Reply { at, length } => &self.reply[at..at + length],
        };
        Some(u32::from_le_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
    }

    /// Appends a section of the reply: so many bytes of a buffer, or a NULL pointer.
    pub(super) fn emit(&mut self, end: &mut usize, slot: Slot, length: usize) {
        let start = *end + 4;
        let put = match slot {
            Slot::None => {
                self.reply[*end..start].copy_from_slice(&ABSENT.to_le_bytes());
                *end = start;
                return;
            }
            Slot::Request { at, length: most } => {
                let length = length.min(most);
                self.reply[start..start + length].copy_from_slice(&self.request[at..at + length]);
                length
            }
            Slot::Reply { at, length: most } => {
                let length = length.min(most);
                if at != start {
                    self.reply.copy_within(at..at + length, start);
                }
                length
            }
        };
        self.reply[*end..start].copy_from_slice(&(put as u32).to_le_bytes());
        *end = start + put;
    }
}

/// Executes call `nr` of request `seq`; gives what the kernel returned and the bytes of the reply's payload.
pub(super) fn execute(
    thread: &Thread,
    seq: u32,
    nr: u32,
    args: [u64; 6],
    request: &mut [u8],
    reply: &mut ReplyBuffer,
) -> (i64, usize) {
    let Some(row) = calls::row(nr) else { return (-i64::from(libc::ENOSYS), 0) };
    match prepare_and_call(thread, seq, row, args, request, reply) {
        Ok(done) => done,
        Err(errno) => (-(errno as i64), 0),
    }
}

fn prepare_and_call(
    thread: &Thread,
    seq: u32,
    row: &Row,
    mut args: [u64; 6],
    request: &mut [u8],
    reply: &mut ReplyBuffer,
) -> Result<(i64, usize), Errno> {
    let shapes = row.shapes(&args)?;
    cut_lengths(&mut args, &shapes);
    if shapes.iter().zip(args).any(|(shape, arg)| *shape == Shape::Fd && descriptors::is_own(arg as i32)) {
        return Err(Errno::EBADF);
    }
    if row.form() == Some(Form::CloseRange) {
        return Ok((descriptors::close_range(args[0] as u32, args[1] as u32, args[2] as u32), 0));
    }
    let mut layout = Layout { payload: request, at: 0, reply: 0 };
    let mut slots = [Slot::None; 6];
    let mut messages = Messages::default();
    let mut word = Slot::None;
    for (i, shape) in shapes.iter().enumerate() {
        slots[i] = match *shape {
            Shape::Value | Shape::Fd | Shape::Null => Slot::None,
            Shape::Path | Shape::Name | Shape::In(_) | Shape::InUpTo(_) | Shape::VectorIn => layout.bytes()?,
            Shape::InOut(_) => {
                let slot = layout.bytes()?;
                layout.reply += 4 + if let Slot::Request { length, .. } = slot { length } else { 0 };
                slot
            }
            Shape::Out(..) | Shape::VectorOut => layout.capacity()?,
            Shape::InterfaceList => {
                word = layout.room(4);
                layout.capacity()?
            }
            Shape::MessageIn | Shape::MessageOut => {
                messages.lay_out(&mut layout, *shape == Shape::MessageOut, 1)?;
                Slot::None
            }
            Shape::MessagesIn | Shape::MessagesOut => {
                messages.lay_out(&mut layout, *shape == Shape::MessagesOut, args[i + 1])?;
                Slot::None
            }
        };
    }
    let room = layout.reply;
    reply.reserve(room).map_err(|_| Errno::ENOMEM)?;
    let mut memory = Memory { request, reply: reply.payload() };
    check_lengths(&shapes, &slots, &args, &mut memory)?;
    check_contents(row, &slots, &args, &memory)?;
    let mut vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut aligned = None;
    let mut interfaces = [0u64; 2];
    for (i, shape) in shapes.iter().enumerate() {
        match *shape {
            Shape::Value | Shape::Fd => {}
            Shape::Null => args[i] = 0,
            Shape::VectorIn | Shape::VectorOut => {
                let (Slot::Request { length, .. } | Slot::Reply { length, .. }) = slots[i] else {
                    return Err(Errno::EPROTO);
                };
                vector.iov_base = align(args[0], slots[i], &mut memory, &mut aligned) as *mut libc::c_void;
                vector.iov_len = length;
                args[i] = std::ptr::from_mut(&mut vector) as u64;
                args[i + 1] = args[i + 1].min(1);
            }
            Shape::MessageIn | Shape::MessageOut | Shape::MessagesIn | Shape::MessagesOut => {
                messages.build(&mut memory)?;
                args[i] = messages.pointer();
                if matches!(shape, Shape::MessagesIn | Shape::MessagesOut) {
                    args[i + 1] = messages.count();
                }
            }
            Shape::InterfaceList => {
                if let Slot::Reply { length, .. } = slots[i] {
                    interfaces = [length as u64, memory.pointer(slots[i])];
                }
                args[i] = interfaces.as_mut_ptr() as u64;
            }
            Shape::In(Len::Arg(_)) => args[i] = align(args[0], slots[i], &mut memory, &mut aligned),
            _ => {
                if let Slot::Reply { at, length: length @ ..=512 } = slots[i] {
                    // A struct that the kernel fills in part must not show an earlier reply.
                    memory.reply[at..at + length].fill(0);
                }
                args[i] = memory.pointer(slots[i]);
            }
        }
    }
    thread.enter(seq);
    // SAFETY: every argument that the kernel takes for a pointer is NULL, points to nothing, or to a
    // buffer of the length that the kernel computes from the other arguments (`check_lengths`).
    let mut ret = unsafe { numbers::call(row.nr, args) };
    thread.leave(seq);
    if ret > 0 && matches!(i64::from(row.nr), libc::SYS_getdents | libc::SYS_getdents64) {
        ret = hide_own(row.nr, &args, ret, slots[1], &mut memory);
    }
    if ret >= 0
        && matches!(i64::from(row.nr), libc::SYS_signalfd | libc::SYS_signalfd4)
        && let (Some(low), Some(high)) = (memory.word(slots[1], 0), memory.word(slots[1], 4))
    {
        signals::leave_to_guest(u64::from(low) | u64::from(high) << 32);
    }
    let mut end = 0;
    for (i, shape) in shapes.iter().enumerate() {
        match *shape {
            Shape::InOut(_) => memory.emit(&mut end, slots[i], usize::MAX),
            Shape::Out(_, back) if ret >= 0 => {
                let length = returned(back, ret, &slots, &args, &memory);
                memory.emit(&mut end, slots[i], length);
            }
            Shape::InterfaceList if ret >= 0 => {
                if let Slot::Reply { at, .. } = word {
                    memory.reply[at..at + 4].copy_from_slice(&(interfaces[0] as u32).to_le_bytes());
                }
                memory.emit(&mut end, word, 4);
                memory.emit(&mut end, slots[i], interfaces[0] as u32 as usize);
            }
            Shape::VectorOut if ret >= 0 => memory.emit(&mut end, slots[i], ret as usize),
            Shape::MessageIn | Shape::MessageOut | Shape::MessagesIn | Shape::MessagesOut if ret >= 0 => {
                messages.emit(*shape, ret, &mut memory, &mut end);
            }
            _ => {}
        }
    }
    Ok((ret, end))
}

/// Hides what is the deputy's own from a directory's entries. Where nothing is left the next ones are
/// read: no bytes would mean the directory's end.
fn hide_own(nr: u32, args: &[u64; 6], mut ret: i64, slot: Slot, memory: &mut Memory) -> i64 {
    let (Slot::Reply { at, .. }, Some(kind)) = (slot, listing::kind(args[0] as i32)) else { return ret };
    let long = i64::from(nr) == libc::SYS_getdents64;
    while ret > 0 {
        let left = listing::filter(kind, &mut memory.reply[at..at + ret as usize], long);
        if left > 0 {
            return left as i64;
        }
        // SAFETY: the same call with the same buffer.
        ret = unsafe { kernel::call(nr, *args) };
    }
    ret
}

/// Checks every buffer's length against what the kernel will make of the arguments.
fn check_lengths(shapes: &[Shape; 6], slots: &[Slot; 6], args: &[u64; 6], memory: &mut Memory) -> Result<(), Errno> {
    for (i, shape) in shapes.iter().enumerate() {
        let has = match slots[i] {
            Slot::None => continue,
            Slot::Request { length, .. } | Slot::Reply { length, .. } => length,
        };
        let len = match *shape {
            Shape::Path | Shape::Name => {
                let Slot::Request { at, length } = slots[i] else { return Err(Errno::EPROTO) };
                if memory.request[at..at + length].last() != Some(&0) {
                    return Err(Errno::EPROTO);
                }
                continue;
            }
            Shape::In(len) | Shape::Out(len, _) | Shape::InOut(len) => len,
            _ => continue,
        };
        let needed = match (length_by_arguments(len, args), len) {
            (Some(needed), _) => needed,
            (None, Len::Deref(from, most)) => {
                let word = memory.word(slots[from as usize], 0);
                if let (Some(word), Slot::Request { at, .. }) = (word, slots[from as usize]) {
                    // The kernel takes this word for the capacity.
                    if word as i32 > most as i32 {
                        memory.request[at..at + 4].copy_from_slice(&most.to_le_bytes());
                    }
                }
                word.map_or(0, |word| length_by_word(len, word))
            }
            (None, Len::CapData(from)) => {
                memory.word(slots[from as usize], 0).map_or(0, |word| length_by_word(len, word))
            }
            (None, Len::Counted { at, .. }) => {
                length_by_word(len, memory.word(slots[i], at as usize).ok_or(Errno::EPROTO)?)
            }
            (None, _) => return Err(Errno::EPROTO),
        };
        if has < needed {
            return Err(Errno::EFAULT);
        }
    }
    Ok(())
}

/// Checks what a few calls carry inside their buffers.
fn check_contents(row: &Row, slots: &[Slot; 6], args: &[u64; 6], memory: &Memory) -> Result<(), Errno> {
    const SIGEV_THREAD: u32 = 2;
    match i64::from(row.nr) {
        libc::SYS_adjtimex if memory.word(slots[0], 0).is_some_and(|modes| modes != 0) => Err(Errno::EPERM),
        libc::SYS_clock_adjtime if memory.word(slots[1], 0).is_some_and(|modes| modes != 0) => Err(Errno::EPERM),
        // Its value is a pointer.
        libc::SYS_mq_notify if memory.word(slots[1], 12) == Some(SIGEV_THREAD) => Err(Errno::EINVAL),
        libc::SYS_semctl if args[2] as i32 == libc::SETALL => {
            let count = semaphores(args[0] as i32)?;
            match slots[3] {
                Slot::Request { length, .. } if length >= count * 2 => Ok(()),
                _ => Err(Errno::EFAULT),
            }
        }
        _ => Ok(()),
    }
}

/// How many semaphores a set has.
fn semaphores(set: i32) -> Result<usize, Errno> {
    let mut status = [0u8; 104];
    let args = [set as u64, 0, libc::IPC_STAT as u64, status.as_mut_ptr() as u64, 0, 0];
    // SAFETY: the kernel writes a `semid64_ds` of 104 bytes.
    let ret = unsafe { kernel::call(libc::SYS_semctl as u32, args) };
    kernel::errno(ret).map_or(Ok(()), Err)?;
    // `sem_nsems` is after a 48-byte `ipc_perm` and two times of 16 bytes.
    Ok(u64::from_le_bytes(std::array::from_fn(|k| status[80 + k])).min(32_000) as usize)
}

fn returned(back: Back, ret: i64, slots: &[Slot; 6], args: &[u64; 6], memory: &Memory) -> usize {
    match back {
        Back::All => usize::MAX,
        Back::Positive if ret > 0 => usize::MAX,
        Back::Positive => 0,
        Back::Ret(each) => (ret as usize).saturating_mul(each as usize),
        Back::RetPlus(more) => (ret as usize).saturating_add(more as usize),
        Back::Length(from) => memory.word(slots[from as usize], 0).unwrap_or(0) as usize,
        Back::Semaphores => semaphores(args[0] as i32).unwrap_or(0) * 2,
    }
}

/// The pointer to a buffer for writing. A file opened for direct I/O wants the alignment that the
/// guest's buffer had, so its bytes are copied to a page boundary.
fn align(fd: u64, slot: Slot, memory: &mut Memory, aligned: &mut Option<ReplyBuffer>) -> u64 {
    let pointer = memory.pointer(slot);
    let Slot::Request { at, length } = slot else { return pointer };
    if length == 0 || !length.is_multiple_of(512) || pointer.is_multiple_of(512) {
        return pointer;
    }
    // SAFETY: no pointers.
    let flags = unsafe { kernel::call(libc::SYS_fcntl as u32, [fd, libc::F_GETFL as u64, 0, 0, 0, 0]) };
    if flags < 0 || flags & i64::from(libc::O_DIRECT) == 0 {
        return pointer;
    }
    let Ok(mut copy) = ReplyBuffer::new() else { return pointer };
    if copy.reserve(length + 4).is_err() {
        return pointer;
    }
    copy.payload()[4..4 + length].copy_from_slice(&memory.request[at..at + length]);
    let pointer = copy.payload()[4..].as_mut_ptr() as u64;
    *aligned = Some(copy);
    pointer
}
