//! Real programs, run natively and under `mosrun`: output, status and files must be the same.

mod build;
mod coreutils;
mod endings;
mod languages;
mod runtimes;
mod shells;
mod surroundings;
mod text;
