//! Real programs, run natively and under `mosrun`: output, status and files must be the same.

mod coreutils;
mod endings;
mod languages;
mod shells;
mod text;
