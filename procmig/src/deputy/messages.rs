//! Messages (`msghdr`, `mmsghdr`) at home: built from a request, told of in a reply.

use super::descriptors;
use super::execute::{Layout, Memory, Slot};
use crate::calls::Shape;
use crate::calls::marshal::{MAX_PARTS, MESSAGE_TAIL};
use nix::errno::Errno;

/// One message's buffers.
#[derive(Debug)]
struct Message {
    tail: Slot,
    name: Slot,
    data: Slot,
    control: Slot,
}

/// The messages of a call.
#[derive(Debug, Default)]
pub(super) struct Messages {
    list: Vec<Message>,
    lengths: Option<Slot>,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
}

fn length(slot: Slot) -> usize {
    match slot {
        Slot::None => 0,
        Slot::Request { length, .. } | Slot::Reply { length, .. } => length,
    }
}

impl Messages {
    /// Reads the sections of `count` messages.
    ///
    /// # Errors
    /// `EPROTO` if they are not there.
    pub(super) fn lay_out(&mut self, layout: &mut Layout, receive: bool, count: u64) -> Result<(), Errno> {
        if count > MAX_PARTS {
            return Err(Errno::EPROTO);
        }
        if !receive {
            self.lengths = Some(layout.room(count as usize * 4));
        }
        for _ in 0..count {
            self.list.push(if receive {
                let tail = layout.room(MESSAGE_TAIL);
                Message { tail, name: layout.capacity()?, data: layout.capacity()?, control: layout.capacity()? }
            } else {
                Message { tail: Slot::None, name: layout.bytes()?, data: layout.bytes()?, control: layout.bytes()? }
            });
        }
        Ok(())
    }

    /// Builds the kernel's structs. The memory must stay where it is until the call is over.
    ///
    /// # Errors
    /// `EBADF` if a message would pass one of the deputy's own descriptors.
    pub(super) fn build(&mut self, memory: &mut Memory) -> Result<(), Errno> {
        for message in &self.list {
            if let Slot::Request { at, length } = message.control {
                check_rights(&memory.request[at..at + length])?;
            }
            self.vectors.push(libc::iovec {
                iov_base: memory.pointer(message.data) as *mut libc::c_void,
                iov_len: length(message.data),
            });
        }
        for (n, message) in self.list.iter().enumerate() {
            // SAFETY: a `mmsghdr` of zeros is valid: NULL pointers and no lengths.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = memory.pointer(message.name) as *mut libc::c_void;
            header.msg_hdr.msg_namelen = length(message.name) as u32;
            header.msg_hdr.msg_iov = &mut self.vectors[n];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = match length(message.control) {
                0 => std::ptr::null_mut(),
                _ => memory.pointer(message.control) as *mut libc::c_void,
            };
            header.msg_hdr.msg_controllen = length(message.control);
            self.headers.push(header);
        }
        Ok(())
    }

    /// The array for the kernel; its first element is a `msghdr` too.
    pub(super) fn pointer(&mut self) -> u64 {
        self.headers.as_mut_ptr() as u64
    }

    /// How many they are.
    pub(super) fn count(&self) -> u64 {
        self.headers.len() as u64
    }

    /// Appends what the call gave to the reply.
    pub(super) fn emit(&self, shape: Shape, ret: i64, memory: &mut Memory, end: &mut usize) {
        match shape {
            Shape::MessagesIn => {
                let Some(Slot::Reply { at, .. }) = self.lengths else { return };
                let sent = (ret as usize).min(self.headers.len());
                for (n, header) in self.headers[..sent].iter().enumerate() {
                    memory.reply[at + n * 4..at + n * 4 + 4].copy_from_slice(&header.msg_len.to_le_bytes());
                }
                memory.emit(end, Slot::Reply { at, length: sent * 4 }, sent * 4);
            }
            Shape::MessageOut => self.emit_received(0, ret as u32, memory, end),
            Shape::MessagesOut => {
                for n in 0..(ret as usize).min(self.headers.len()) {
                    self.emit_received(n, self.headers[n].msg_len, memory, end);
                }
            }
            _ => {}
        }
    }

    fn emit_received(&self, n: usize, received: u32, memory: &mut Memory, end: &mut usize) {
        let (message, header) = (&self.list[n], &self.headers[n].msg_hdr);
        let Slot::Reply { at, .. } = message.tail else { return };
        let words = [header.msg_namelen, header.msg_flags as u32, header.msg_controllen as u32, received];
        for (k, word) in words.iter().enumerate() {
            memory.reply[at + k * 4..at + k * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        memory.emit(end, message.tail, MESSAGE_TAIL);
        memory.emit(end, message.name, header.msg_namelen as usize);
        memory.emit(end, message.data, received as usize);
        memory.emit(end, message.control, header.msg_controllen);
    }
}

/// Refuses control data that passes the deputy's own descriptors.
fn check_rights(mut control: &[u8]) -> Result<(), Errno> {
    const HEAD: usize = 16;
    while control.len() >= HEAD {
        let length = u64::from_le_bytes(std::array::from_fn(|k| control[k])) as usize;
        let word = |at: usize| i32::from_le_bytes(std::array::from_fn(|k| control[at + k]));
        if length < HEAD || length > control.len() {
            return Ok(()); // The kernel refuses it.
        }
        if word(8) == libc::SOL_SOCKET && word(12) == libc::SCM_RIGHTS {
            let passed = control[HEAD..length].chunks_exact(4);
            if passed.map(|fd| i32::from_le_bytes([fd[0], fd[1], fd[2], fd[3]])).any(descriptors::is_own) {
                return Err(Errno::EBADF);
            }
        }
        control = control.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(())
}
