//! Pages that are compressed (LZ4) on their way, where measuring says that it pays.
//!
//! The bytes of a [`FromSource::Packed`](super::wire::FromSource) come in chunks of [`CHUNK`] bytes of the pages, the
//! last one shorter. Each begins with the number of bytes that follow, 4 bytes, little-endian. So many bytes as the
//! chunk has are the chunk itself; fewer are an LZ4 block of it.

use crate::wire::stream::Stream;
use std::io;
use std::time::{Duration, Instant};

/// Bytes of pages that are compressed at once.
pub const CHUNK: usize = 256 << 10;
/// Bytes of a chunk's header.
const HEADER: usize = 4;

/// Appends a chunk to `out` as it goes over the wire.
fn pack(chunk: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + HEADER + lz4_flex::block::get_maximum_output_size(chunk.len()), 0);
    let length = match lz4_flex::block::compress_into(chunk, &mut out[start + HEADER..]) {
        Ok(length) if length < chunk.len() => length,
        _ => {
            out[start + HEADER..][..chunk.len()].copy_from_slice(chunk);
            chunk.len()
        }
    };
    out[start..][..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
    out.truncate(start + HEADER + length);
}

/// Why a chunk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is none.
    #[error("compressed pages that are not as they should be")]
    Wrong,
}

/// Takes chunks off the wire.
#[derive(Debug, Default)]
pub struct Unpacker {
    packed: Vec<u8>,
    chunk: Vec<u8>,
}

impl Unpacker {
    /// Receives a chunk of so many bytes, at most [`CHUNK`]; what is claimed on the way is never more.
    ///
    /// # Errors
    /// See [`UnpackError`].
    pub fn receive(&mut self, stream: &mut Stream, length: usize) -> Result<&[u8], UnpackError> {
        self.receive_with(length, |room| receive_all(stream, room))
    }

    /// The same with `receive` to fill buffers from wherever it is.
    ///
    /// # Errors
    /// See [`UnpackError`].
    pub fn receive_with(
        &mut self,
        length: usize,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<&[u8], UnpackError> {
        let length = length.min(CHUNK);
        self.chunk.resize(CHUNK, 0);
        let chunk = &mut self.chunk[..length];
        let mut header = [0; HEADER];
        receive(&mut header)?;
        let coming = u32::from_le_bytes(header) as usize;
        if coming > length {
            return Err(UnpackError::Wrong);
        }
        if coming == length {
            receive(chunk)?;
            return Ok(chunk);
        }
        self.packed.resize(CHUNK, 0);
        let packed = &mut self.packed[..coming];
        receive(packed)?;
        match lz4_flex::block::decompress_into(packed, chunk) {
            Ok(written) if written == length => Ok(chunk),
            _ => Err(UnpackError::Wrong),
        }
    }
}

fn receive_all(stream: &mut Stream, mut room: &mut [u8]) -> io::Result<()> {
    while !room.is_empty() {
        match stream.receive(room, None) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => room = &mut room[got..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a way of sending takes.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    bytes: u64,
    took: Duration,
}

impl Measured {
    /// Bytes after which a connection's buffers do not count any more, or the time if that is over first.
    const ENOUGH: (u64, Duration) = (4 << 20, Duration::from_millis(50));

    fn add(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes;
        self.took += took;
    }

    fn is_enough(&self) -> bool {
        self.bytes >= Self::ENOUGH.0 || self.bytes > 0 && self.took >= Self::ENOUGH.1
    }

    /// Seconds a byte.
    fn cost(&self) -> f64 {
        self.took.as_secs_f64() / self.bytes.max(1) as f64
    }
}

/// What is done at present.
#[derive(Debug)]
enum Stage {
    /// What was begun is not measured yet: buffers take what the link has not.
    Settling(Measured),
    /// It is measured.
    Measuring(Measured),
    /// It is known, and goes on for so many bytes.
    Settled(u64),
}

/// Decides how pages are sent: as they are, or compressed where that takes less time. Both are measured, a chunk that is
/// compressed and not sent tells whether the attempt is worth making, and what was decided is looked at again, ever
/// more seldom the more often it was found in vain.
#[derive(Debug)]
pub struct Packing {
    is_packed: bool,
    stage: Stage,
    /// Seconds that a byte takes uncompressed, when that was measured last.
    plain: f64,
    /// Bytes between two chunks that are tried.
    pause: u64,
    /// Bytes a second that may be sent, if there is a limit.
    bandwidth: Option<u64>,
    packed: Vec<u8>,
}

impl Packing {
    /// What compressing has to save at least, so that it is worth a processor's time.
    const LEAST: f64 = 0.9;
    /// Bytes between two attempts: at first, and at most.
    const PAUSE: (u64, u64) = (8 << 20, 128 << 20);
    /// Bytes that are sent compressed until it is measured anew how long they would take otherwise.
    const AGAIN: u64 = 512 << 20;

    /// Begins uncompressed; `bandwidth` is how many bytes a second may be sent.
    pub fn new(bandwidth: Option<u64>) -> Self {
        Self {
            is_packed: false,
            stage: Stage::Settling(Measured::default()),
            plain: 0.0,
            pause: Self::PAUSE.0,
            bandwidth,
            packed: Vec::new(),
        }
    }

    /// Bytes a second that may be sent, if there is a limit.
    pub fn bandwidth(&self) -> Option<u64> {
        self.bandwidth
    }

    /// Whether what is sent next is to be compressed.
    pub fn is_packed(&self) -> bool {
        self.is_packed
    }

    /// Sends a chunk, compressed; how many bytes that were.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(&mut self, stream: &mut Stream, chunk: &[u8]) -> io::Result<u64> {
        self.packed.clear();
        pack(chunk, &mut self.packed);
        stream.send(&self.packed)?;
        Ok(self.packed.len() as u64)
    }

    /// Notes what sending has taken: so many bytes of pages, so many on the wire.
    pub fn note(&mut self, bytes: u64, wire: u64, took: Duration) {
        let limit = self.bandwidth.map(|most| Duration::from_secs_f64(wire as f64 / most.max(1) as f64));
        let took = took.max(limit.unwrap_or_default());
        match &mut self.stage {
            Stage::Settling(measured) => {
                measured.add(bytes, took);
                if measured.is_enough() {
                    self.stage = Stage::Measuring(Measured::default());
                }
            }
            Stage::Measuring(measured) => {
                measured.add(bytes, took);
                if measured.is_enough() {
                    let cost = measured.cost();
                    self.settle(cost);
                }
            }
            Stage::Settled(left) => {
                *left = left.saturating_sub(bytes);
                if *left == 0 && self.is_packed {
                    self.turn(false);
                }
            }
        }
    }

    /// It is known how long this way takes.
    fn settle(&mut self, cost: f64) {
        if !self.is_packed {
            // The first chunk is tried at once.
            self.stage = Stage::Settled(if self.plain == 0.0 { 0 } else { self.pause });
            self.plain = cost;
        } else if cost < self.plain * Self::LEAST {
            (self.stage, self.pause) = (Stage::Settled(Self::AGAIN), Self::PAUSE.0);
        } else {
            self.give_up();
            self.turn(false);
        }
    }

    fn turn(&mut self, is_packed: bool) {
        self.is_packed = is_packed;
        self.stage = Stage::Settling(Measured::default());
    }

    fn give_up(&mut self) {
        self.pause = (self.pause * 2).min(Self::PAUSE.1);
    }

    /// Whether a chunk is to be tried.
    pub fn wants_trial(&self) -> bool {
        !self.is_packed && matches!(self.stage, Stage::Settled(0))
    }

    /// Tries how long a chunk takes and what is left of it.
    pub fn try_with(&mut self, chunk: &[u8]) {
        self.packed.clear();
        let since = Instant::now();
        pack(chunk, &mut self.packed);
        self.tried(chunk.len() as u64, self.packed.len() as u64, since.elapsed());
    }

    fn tried(&mut self, bytes: u64, left: u64, took: Duration) {
        let bytes = bytes.max(1) as f64;
        // The link goes on with what was sent while the next chunk is compressed.
        let cost = (took.as_secs_f64() / bytes).max(self.plain * left as f64 / bytes);
        if cost < self.plain * Self::LEAST {
            self.turn(true);
        } else {
            self.stage = Stage::Settled(self.pause);
            self.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Vec<u8> {
        (0..).flat_map(|n: u64| format!("line {} of many, {}\n", n, n * n).into_bytes()).take(length).collect()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn unpacked(wire: &[u8], length: usize) -> Result<Vec<u8>, UnpackError> {
        let mut rest = wire;
        let mut unpacker = Unpacker::default();
        let chunk = unpacker.receive_with(length, |room| io::Read::read_exact(&mut rest, room))?;
        Ok(chunk.to_vec())
    }

    #[test]
    fn chunks_come_back_as_they_were() {
        for chunk in [text(CHUNK), noise(CHUNK), text(4096), noise(4096), vec![0; CHUNK]] {
            let mut wire = Vec::new();
            pack(&chunk, &mut wire);
            assert!(wire.len() <= chunk.len() + HEADER);
            assert_eq!(unpacked(&wire, chunk.len()).unwrap(), chunk);
        }
        let mut wire = Vec::new();
        pack(&text(CHUNK), &mut wire);
        assert!(wire.len() < CHUNK / 2, "{}", wire.len());
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let mut wire = Vec::new();
        pack(&text(8192), &mut wire);
        // More or less than was announced, a length that is too great, and what ends early.
        for length in [4096, 12288] {
            assert!(matches!(unpacked(&wire, length), Err(UnpackError::Wrong)), "{length}");
        }
        assert!(matches!(unpacked(&u32::MAX.to_le_bytes(), 8192), Err(UnpackError::Wrong)));
        assert!(matches!(unpacked(&[0; 4], 8192), Err(UnpackError::Wrong)));
        assert!(matches!(unpacked(&wire[..wire.len() - 1], 8192), Err(UnpackError::Io(_))));
        // Damage is found, or gives so many bytes as were announced.
        for at in HEADER..wire.len() {
            let mut damaged = wire.clone();
            damaged[at] ^= 0x5a;
            assert!(unpacked(&damaged, 8192).map_or(true, |chunk| chunk.len() == 8192));
        }
    }

    /// Sends so many bytes over a link, in batches, and returns how many of them went compressed.
    fn sent(packing: &mut Packing, bytes: u64, link: f64, compressor: f64, ratio: f64) -> u64 {
        const BATCH: u64 = 2 << 20;
        let seconds = |bytes: f64, rate: f64| Duration::from_secs_f64(bytes / rate);
        let mut packed = 0;
        for _ in 0..bytes / BATCH {
            let plain = BATCH as f64;
            if packing.is_packed() {
                packed += BATCH;
                let took = seconds(plain, compressor) + seconds(plain * ratio, link);
                packing.note(BATCH, (plain * ratio) as u64, took);
            } else {
                packing.note(BATCH, BATCH, seconds(plain, link));
            }
            if packing.wants_trial() {
                packing.tried(CHUNK as u64, (CHUNK as f64 * ratio) as u64, seconds(CHUNK as f64, compressor));
            }
        }
        packed
    }

    #[test]
    fn it_is_compressed_where_that_takes_less_time() {
        const GIB: u64 = 1 << 30;
        let packed = |link, compressor, ratio| sent(&mut Packing::new(None), GIB, link, compressor, ratio);
        // Text over a gigabit link, over one that is as fast as memory, and noise over both.
        assert!(packed(117e6, 400e6, 0.4) > GIB / 10 * 9);
        assert_eq!(packed(2e9, 400e6, 0.4), 0);
        assert_eq!(packed(117e6, 2e9, 1.004), 0);
        assert_eq!(packed(2e9, 2e9, 1.004), 0);
    }

    #[test]
    fn what_changes_is_noticed() {
        const MIB: u64 = 1 << 20;
        let mut packing = Packing::new(None);
        assert_eq!(sent(&mut packing, 256 * MIB, 117e6, 2e9, 1.004), 0);
        assert!(sent(&mut packing, 512 * MIB, 117e6, 400e6, 0.4) > 256 * MIB);
        // Where it is in vain it is left.
        assert!(sent(&mut packing, 2048 * MIB, 2e9, 400e6, 0.4) < 1024 * MIB);
        assert!(!packing.is_packed());
    }

    #[test]
    fn a_limit_is_a_slow_link() {
        const GIB: u64 = 1 << 30;
        assert!(sent(&mut Packing::new(Some(50_000_000)), GIB, 2e9, 400e6, 0.4) > GIB / 10 * 9);
    }
}
