//! Address spaces of guest processes.

pub mod access;
mod fault;
pub mod file;
pub mod gate;
mod identity;
pub mod image;
pub mod layout;
pub mod lent;
pub mod object;
pub mod owed;
mod places;
pub mod regions;
mod remap;
mod rewrite;
pub mod segments;
pub mod shared;
mod slots;
pub mod space;
pub mod spans;
pub mod thread_ids;

pub use access::ProcessMemory;
pub use fault::{Access, FaultError, Gone, RESERVED_FRAMES};
pub use gate::Gate;
pub use places::Part;
pub use regions::{Backing, Protection, Region, RegionFlags};
pub use remap::RemapPlace;
pub use space::{AddressSpace, MapRequest};
