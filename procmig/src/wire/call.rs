//! Requests and replies on a call connection.
//!
//! ```text
//! request: RequestHeader, `length` bytes of payload        reply: ReplyHeader, `length` bytes of payload,
//!                                                                 `signals` × SIGINFO_SIZE bytes
//! ```
//! The payload of a forwarded system call is described in [`crate::calls::marshal`]; that of an
//! operation ([`super::op::Op`]) is its postcard encoding.

/// Largest payload of a request or a reply, in bytes.
pub const MAX_PAYLOAD: usize = 16 << 20;
/// Bytes of a kernel `siginfo_t`.
pub const SIGINFO_SIZE: usize = 128;
/// Most signals that one reply carries.
pub const MAX_SIGNALS: u32 = 64;

/// What a request asks for.
pub mod kind {
    /// A system call by the forwarding table.
    pub const CALL: u16 = 0;
    /// An operation of [`crate::wire::op::Op`].
    pub const OP: u16 = 1;
}

/// Bits of [`RequestHeader::blocked`]: job-control signals that the guest thread blocks, which the
/// deputy's thread must block too while it performs the call, since home's kernel acts on them.
pub mod blocked {
    /// `SIGTSTP`
    pub const TSTP: u32 = 1;
    /// `SIGTTIN`
    pub const TTIN: u32 = 2;
    /// `SIGTTOU`
    pub const TTOU: u32 = 4;
}

/// Bits of [`RequestHeader::flags`].
pub mod flags {
    /// If the call makes a descriptor of a file that may be handed over
    /// ([`file_kind`](crate::wire::file_kind)), the reply passes that file.
    pub const HAND_OVER: u32 = 1;
    /// No reply.
    pub const POSTED: u32 = 2;
}

/// Head of a request. Little-endian, as all of x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// One of [`kind`].
    pub kind: u16,
    /// One more than the number of the CPU on which the thread waits for the reply, if the deputy's thread is to
    /// run there too; 0 if it is not.
    pub near: u16,
    /// Number of the request on this connection; each is one more than the last, modulo 2^32.
    pub seq: u32,
    /// Bytes of payload that follow.
    pub length: u32,
    /// System call number (x86-64), or 0.
    pub nr: u32,
    /// Bits of [`blocked`].
    pub blocked: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// The call's arguments as the guest gave them, lengths cut as [`crate::calls::marshal`] says;
    /// pointers only tell NULL from not NULL.
    pub args: [u64; 6],
}

/// Head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The request's number.
    pub seq: u32,
    /// Bytes of payload that follow.
    pub length: u32,
    /// What the kernel returned: `-errno` for a failure.
    pub ret: i64,
    /// How many `siginfo_t` follow the payload: signals that home's kernel raised for the process
    /// (or, as `SIGPIPE` and `SIGXFSZ`, for this very thread: `si_code` is then `SI_KERNEL`
    /// or `SI_USER`) before the call returned, and that must be seen before it returns in the guest.
    pub signals: u32,
    /// How many signals the deputy has sent on the control connection so far, modulo 2^32: between hosts, where
    /// the two connections may overtake each other, the node takes them first where it matters.
    pub relayed: u32,
}

impl RequestHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 72;

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [
            u32::from(self.kind) | u32::from(self.near) << 16,
            self.seq,
            self.length,
            self.nr,
            self.blocked,
            self.flags,
        ];
        for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        for (slot, arg) in bytes[24..].chunks_exact_mut(8).zip(self.args) {
            slot.copy_from_slice(&arg.to_le_bytes());
        }
        bytes
    }

    /// Reads a header. Any bytes are a header; the caller checks `kind` and `length`.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |i: usize| u32::from_le_bytes(bytes[i * 4..i * 4 + 4].try_into().expect("4 bytes"));
        let arg = |i: usize| u64::from_le_bytes(bytes[24 + i * 8..32 + i * 8].try_into().expect("8 bytes"));
        Self {
            kind: word(0) as u16,
            near: (word(0) >> 16) as u16,
            seq: word(1),
            length: word(2),
            nr: word(3),
            blocked: word(4),
            flags: word(5),
            args: std::array::from_fn(arg),
        }
    }
}

impl ReplyHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 24;

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.seq.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.ret.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.signals.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.relayed.to_le_bytes());
        bytes
    }

    /// Reads a header; the caller checks `length` and `signals`.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("4 bytes"));
        Self {
            seq: word(0),
            length: word(4),
            ret: i64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes")),
            signals: word(16),
            relayed: word(20),
        }
    }
}
