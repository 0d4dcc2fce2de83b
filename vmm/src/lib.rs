//! The virtual machine of a node.

pub mod accounts;
pub mod addr;
pub mod call_slot;
pub mod dirty;
pub mod entry;
pub mod frames;
pub mod guard;
pub mod hypervisor;
pub mod machine;
pub mod paging;
pub mod probe;
pub mod ram;
pub mod regs;
pub mod table_frames;
pub mod tables;
pub use guest_shim::layout as shim_layout;
pub use guest_shim::site_code;
pub use guest_shim::slot_code::is_posted;
pub mod user_cpu;
pub mod windows;
