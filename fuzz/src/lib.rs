//! What the fuzz targets run, which the project's own tests run too, on inputs of a fixed seed.

pub mod decoders;
