//! The vDSO of guest processes: their clocks, read without an exit.
//!
//! [`IMAGE`] is mapped read-only and executable at a page boundary of each process, the [time
//! page](page::TimePage) read-only directly before it; `AT_SYSINFO_EHDR` is the image's address.
//! [`clock::Clock`] keeps the page right.

pub mod clock;
pub mod distance;
pub mod page;

/// The ELF shared object, to be mapped as it is.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vdso.so"));

const _: () = assert!(IMAGE.len() <= 2 * vmm::addr::PAGE_SIZE as usize, "the vDSO is meant to be small");

/// Bytes of address space that time page and image take.
pub const SPAN: u64 = vmm::addr::PAGE_SIZE + (IMAGE.len() as u64).next_multiple_of(vmm::addr::PAGE_SIZE);

#[cfg(test)]
mod tests;
