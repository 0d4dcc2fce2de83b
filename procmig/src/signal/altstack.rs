//! A thread's alternate signal stack.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use vmm::addr::GuestVirtAddr;

/// The thread runs on it (only ever reported, or tolerated when set).
pub const SS_ONSTACK: u32 = 1;
/// There is none.
pub const SS_DISABLE: u32 = 2;
/// Forget it while a handler runs.
pub const SS_AUTODISARM: u32 = 1 << 31;

/// Least bytes that a thread may set (`MINSIGSTKSZ`).
pub const MIN_SIZE: u64 = 2048;

/// A `stack_t`, as a thread set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AltStack {
    /// Lowest address.
    pub base: u64,
    /// Bytes; 0 if there is none.
    pub size: u64,
    /// `SS_*`
    pub flags: u32,
}

impl Default for AltStack {
    fn default() -> Self {
        Self { base: 0, size: 0, flags: SS_DISABLE }
    }
}

impl AltStack {
    /// Bytes of a `stack_t`.
    pub const SIZE: usize = 24;

    /// Reads a `stack_t`.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Self { base: word(0), flags: word(8) as u32, size: word(16) }
    }

    /// Writes a `stack_t`.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.base.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// Whether `stack_pointer` is on it, armed or not.
    pub fn holds(&self, stack_pointer: GuestVirtAddr) -> bool {
        stack_pointer.0 > self.base && stack_pointer.0 - self.base <= self.size
    }

    /// Whether the thread runs on it; never with `SS_AUTODISARM`, which makes that harmless.
    pub fn in_use(&self, stack_pointer: GuestVirtAddr) -> bool {
        self.flags & SS_AUTODISARM == 0 && self.holds(stack_pointer)
    }

    /// What `sigaltstack` reports: the state of the stack in `flags`.
    pub fn reported(&self, stack_pointer: GuestVirtAddr) -> Self {
        let state = if self.size == 0 {
            SS_DISABLE
        } else if self.in_use(stack_pointer) {
            SS_ONSTACK
        } else {
            0
        };
        Self { flags: state | (self.flags & SS_AUTODISARM), ..*self }
    }

    /// Sets it to `wanted`, as `sigaltstack` does for a thread with this stack pointer. `min` is the
    /// least size: [`MIN_SIZE`].
    ///
    /// # Errors
    /// `EPERM` while the thread runs on it, `EINVAL` for unknown flags, `ENOMEM` if it is too small.
    pub fn set(&mut self, wanted: Self, stack_pointer: GuestVirtAddr, min: u64) -> Result<(), Errno> {
        if self.in_use(stack_pointer) {
            return Err(Errno::EPERM);
        }
        match wanted.flags & !SS_AUTODISARM {
            SS_DISABLE => *self = Self { base: 0, size: 0, flags: wanted.flags },
            0 | SS_ONSTACK if wanted.size < min => return Err(Errno::ENOMEM),
            0 | SS_ONSTACK => *self = wanted,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_in_use_cannot_be_changed() {
        let mut stack = AltStack::default();
        let here = GuestVirtAddr(0x1800);
        assert_eq!(stack.reported(here).flags, SS_DISABLE);
        let wanted = AltStack { base: 0x1000, size: 0x1000, flags: 0 };
        stack.set(wanted, here, MIN_SIZE).unwrap();
        assert_eq!(stack.reported(here).flags, SS_ONSTACK);
        assert_eq!(stack.reported(GuestVirtAddr(0x2000)).flags, SS_ONSTACK);
        assert_eq!(stack.reported(GuestVirtAddr(0x1000)).flags, 0);
        assert_eq!(stack.set(AltStack::default(), here, MIN_SIZE), Err(Errno::EPERM));
        stack.set(AltStack { flags: SS_AUTODISARM, ..wanted }, GuestVirtAddr(0), MIN_SIZE).unwrap();
        assert_eq!(stack.reported(here).flags, SS_AUTODISARM);
        stack.set(AltStack::default(), here, MIN_SIZE).unwrap();
        assert_eq!(stack.set(AltStack { size: 1, ..wanted }, here, MIN_SIZE), Err(Errno::ENOMEM));
        assert_eq!(stack.set(AltStack { flags: 8, ..wanted }, here, MIN_SIZE), Err(Errno::EINVAL));
    }

    #[test]
    fn its_bytes_are_those_of_a_stack_t() {
        let stack = AltStack { base: 1, size: 2, flags: SS_AUTODISARM };
        assert_eq!(AltStack::from_bytes(&stack.to_bytes()), stack);
        assert_eq!(AltStack::SIZE, size_of::<libc::stack_t>());
    }
}
