//! Real programs, run natively and under `mosrun`: output, status and files must be the same.

mod build;
mod coreutils;
mod debugger;
mod endings;
mod languages;
mod runtimes;
mod servers;
mod shells;
mod surroundings;
mod text;
