//! Typed guest addresses, so that no bare integer crosses a function boundary as an address.

use std::fmt;

/// Bytes in a page and in a frame.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes in a large (2 MiB) page.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address as a number.
            pub const fn raw(self) -> u64 {
                self.0
            }
            /// The start of the page that holds this address.
            pub const fn page_floor(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }
            /// Offset within its page.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
            /// This address plus `bytes`, or `None` on overflow.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
            /// Whether it is a multiple of `alignment`, a power of two.
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }
        }

        impl std::ops::Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl std::ops::Sub<$name> for $name {
            type Output = u64;
            fn sub(self, other: $name) -> u64 {
                self.0 - other.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// An address in a guest process's virtual memory.
    GuestVirtAddr
);
address!(
    /// An address in the node VM's physical memory.
    GuestPhysAddr
);

/// The number of a 4 KiB frame of the node VM's physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Frame(pub u32);

impl Frame {
    /// Address of the frame's first byte.
    pub const fn address(self) -> GuestPhysAddr {
        GuestPhysAddr(self.0 as u64 * PAGE_SIZE)
    }
    /// The frame that holds `address`. Guest memory is below 16 TiB, so the number fits.
    pub const fn containing(address: GuestPhysAddr) -> Self {
        Self((address.0 / PAGE_SIZE) as u32)
    }
    /// The frame `count` after this one.
    pub const fn offset(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}
