//! How the personality reads and writes the memory of a guest process.

use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;

/// The memory of one guest process, as its system calls see it.
///
/// Every access is checked against the process's mappings, faults pages in as the process's own
/// access would, and answers `EFAULT` where the process itself would be refused.
pub trait UserMemory {
    /// Copies `buffer.len()` bytes from `address`.
    ///
    /// # Errors
    /// `EFAULT` if any byte is not readable; `buffer` is then partly written.
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno>;

    /// Copies `bytes` to `address`.
    ///
    /// # Errors
    /// `EFAULT` if any byte is not writable; the bytes before it may have been written.
    fn write(&self, address: GuestVirtAddr, bytes: &[u8]) -> Result<(), Errno>;

    /// Reads the bytes of a NUL-terminated string, without the NUL.
    ///
    /// # Errors
    /// `EFAULT` as for [`read`](Self::read); `ENAMETOOLONG` if there is no NUL in the first `limit` bytes.
    fn read_string(&self, address: GuestVirtAddr, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        let mut at = address;
        while string.len() < limit {
            let in_page = (vmm::addr::PAGE_SIZE - at.page_offset()) as usize;
            let start = string.len();
            let take = in_page.min(limit - start);
            string.resize(start + take, 0);
            self.read(at, &mut string[start..])?;
            if let Some(end) = string[start..].iter().position(|&byte| byte == 0) {
                string.truncate(start + end);
                return Ok(string);
            }
            at = at.checked_add(take as u64).ok_or(Errno::EFAULT)?;
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Reads a little-endian `u64`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_u64(&self, address: GuestVirtAddr) -> Result<u64, Errno> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u32`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_u32(&self, address: GuestVirtAddr) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes a little-endian `u64`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn write_u64(&self, address: GuestVirtAddr, value: u64) -> Result<(), Errno> {
        self.write(address, &value.to_le_bytes())
    }

    /// Writes a little-endian `u32`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn write_u32(&self, address: GuestVirtAddr, value: u32) -> Result<(), Errno> {
        self.write(address, &value.to_le_bytes())
    }
}
