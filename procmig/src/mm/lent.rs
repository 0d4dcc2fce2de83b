//! Files of another host, of which the deputies there send the bytes.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Who can be asked for the bytes of files: a process, which asks its deputy.
pub trait Lender: Send + Sync {
    /// Reads bytes of a file; 0 at its end.
    ///
    /// # Errors
    /// As `pread(2)`; [`io::ErrorKind::TimedOut`] if there is no answer for now.
    fn read_at(&self, file: u32, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The file is not used any more.
    fn give_back(&self, file: u32);
}

/// A file with all who have it.
#[derive(Default)]
pub struct LentFile {
    lenders: Mutex<Vec<(Weak<dyn Lender>, u32)>>,
}

impl std::fmt::Debug for LentFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LentFile")
    }
}

impl LentFile {
    fn lenders(&self) -> MutexGuard<'_, Vec<(Weak<dyn Lender>, u32)>> {
        self.lenders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more has it; `false` if that one has it already, by another number.
    pub fn add(&self, lender: &Arc<dyn Lender>, file: u32) -> bool {
        let mut lenders = self.lenders();
        lenders.retain(|(lender, _)| lender.strong_count() > 0);
        let new = Arc::downgrade(lender);
        if lenders.iter().any(|(lender, _)| lender.ptr_eq(&new)) {
            return false;
        }
        // The newest is the likeliest to live longest.
        lenders.insert(0, (new, file));
        true
    }

    /// One has it no more.
    pub fn remove(&self, lender: &Arc<dyn Lender>) {
        let gone = Arc::downgrade(lender);
        self.lenders().retain(|(lender, _)| !lender.ptr_eq(&gone));
    }

    /// Reads bytes, from whoever answers; 0 at the end.
    ///
    /// # Errors
    /// If nobody is left who has it, or it cannot be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            let lenders: Vec<_> =
                self.lenders().iter().filter_map(|(lender, file)| Some((lender.upgrade()?, *file))).collect();
            let mut failure = io::Error::from_raw_os_error(libc::EIO);
            for (lender, file) in lenders {
                match lender.read_at(file, buffer, offset) {
                    Ok(count) => return Ok(count),
                    Err(error) if failure.kind() == io::ErrorKind::TimedOut => drop(error),
                    Err(error) => failure = error,
                }
            }
            // Somebody has it and is stopped: as with any process that waits for what another does.
            if failure.kind() != io::ErrorKind::TimedOut {
                return Err(failure);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<u8, io::ErrorKind>);

    impl Lender for Fixed {
        fn read_at(&self, _: u32, buffer: &mut [u8], _: u64) -> io::Result<usize> {
            buffer[0] = self.0?;
            Ok(1)
        }
        fn give_back(&self, _: u32) {}
    }

    #[test]
    fn a_file_is_read_from_whoever_is_left() {
        let lender = |result| Arc::new(Fixed(result)) as Arc<dyn Lender>;
        let (one, broken) = (lender(Ok(1)), lender(Err(io::ErrorKind::TimedOut)));
        let file = LentFile::default();
        assert!(file.add(&one, 0) && file.add(&broken, 0) && !file.add(&broken, 1));
        let mut byte = [0];
        assert_eq!((file.read_at(&mut byte, 0).unwrap(), byte), (1, [1]));
        drop(broken);
        assert_eq!(file.read_at(&mut byte, 0).unwrap(), 1);
        drop(one);
        assert!(file.read_at(&mut byte, 0).is_err());
    }
}
