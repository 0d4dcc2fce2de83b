//! Program files: what an ELF file or a script asks for, and the first stack of a new program.

pub mod program;
pub mod script;
pub mod stack;
