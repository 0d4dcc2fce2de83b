//! One module for each command.

pub mod bench;
pub mod cluster;
pub mod demo;
pub mod doctor;
pub mod host;
pub mod man;
pub mod mosmigrate;
pub mod mosps;
pub mod mosrun;
pub mod node;
