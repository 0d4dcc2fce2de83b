//! Loops that move bytes: files, and a pipe.

use super::timed;
use anyhow::{Context, bail};
use procmig::wire::sealed::{Cipher, DirectionKeys, SealedStream, StreamKeys};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Nanoseconds of a `read` of a block, from the beginning of a file to its end and again.
pub fn read(path: &Path, block: usize, count: u64) -> anyhow::Result<f64> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![1; block];
    Ok(timed(count, || {
        if file.read(&mut buffer)? == block {
            return Ok(());
        }
        file.rewind()?;
        file.read_exact(&mut buffer)
    })?)
}

/// Nanoseconds of a `write` of a block over what a file has, from its beginning to its end and again.
pub fn write(path: &Path, block: usize, count: u64) -> anyhow::Result<f64> {
    let open = OpenOptions::new().write(true).open(path);
    let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
    let blocks = file.metadata()?.len() / block as u64;
    let buffer = vec![2; block];
    let mut written = 0;
    Ok(timed(count, || {
        if written == blocks {
            file.rewind()?;
            written = 0;
        }
        written += 1;
        file.write_all(&buffer)
    })?)
}

/// Nanoseconds that a block takes through a pipe from a child that writes blocks of this size.
pub fn pipe(block: usize, count: u64) -> anyhow::Result<f64> {
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["bench-guest", "pour", "--bytes", &block.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = child.spawn()?;
    let mut pipe = child.stdout.take().context("a child without its output")?;
    let mut buffer = vec![1; block];
    let nanos = timed(count, || pipe.read_exact(&mut buffer));
    drop(pipe);
    let status = child.wait()?;
    if !status.success() {
        bail!("the other process: {status}");
    }
    Ok(nanos?)
}

/// Writes blocks to standard output until nobody reads them.
pub fn pour(block: usize) -> anyhow::Result<()> {
    pour_to(output()?, block)
}

/// The same to a socket, as sealed records.
pub fn pour_sealed(block: usize) -> anyhow::Result<()> {
    pour_to(SealedStream::new(output()?, sealing())?, block)
}

/// What seals the records of [`pour_sealed`]: nothing of it is secret.
pub fn sealing() -> StreamKeys {
    let direction = DirectionKeys { cipher: Cipher::Aes256Gcm, key: vec![5; 32], iv: [9; 12], number: 0 };
    StreamKeys { send: direction.clone(), receive: direction }
}

/// Standard output, without the buffer of `std::io::stdout`.
fn output() -> io::Result<File> {
    use std::os::fd::AsFd;
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

fn pour_to(mut output: impl Write, block: usize) -> anyhow::Result<()> {
    let buffer = vec![3; block];
    loop {
        match output.write_all(&buffer) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_written_again_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![0; 10_000]).unwrap();
        assert!(read(&path, 1000, 100).unwrap() > 0.0);
        assert!(write(&path, 1000, 100).unwrap() > 0.0);
        assert_eq!(std::fs::read(&path).unwrap(), vec![2; 10_000]);
        assert!(read(&path, 20_000, 1).is_err());
    }
}
