//! Ring-0 code of a node VM and the layout that it shares with the VMM.
//!
//! The shim is little more than one `out` instruction for each kind of event. It is position
//! independent and assembled into the VMM's own read-only data; the VMM copies it into the
//! guest's memory at the places that [`layout`] names.

pub mod code;
pub mod layout;
pub mod site_code;
pub mod slot_code;
