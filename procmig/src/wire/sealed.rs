//! A connection that is encrypted with keys which another process has agreed on.
//!
//! `skeind` shakes hands with another host's (TLS 1.3, both sides authenticated) and then gives the socket and the
//! session's keys to whoever the connection is for. So a node or a deputy speaks with another host without a process
//! in between and without keys that would be worth anything in another connection.
//!
//! What goes over the socket are records as TLS 1.3 has them, numbered on from the handshake's. They are of
//! application data alone: neither side asks for anything else after the hand-over. Both change each direction's key
//! by themselves after each [`RECORDS_OF_A_KEY`] records, long before AES-GCM's bounds are reached.

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read, Write};

/// Most bytes of one record.
pub const MAX_RECORD: usize = 16 << 10;
/// Records after which a direction's key is changed.
pub const RECORDS_OF_A_KEY: u64 = 1 << 20;
/// Kind, version and length.
const HEADER: usize = 5;
const TAG: usize = 16;
/// What TLS lets a record be longer than its content.
const MAX_CIPHERTEXT: usize = MAX_RECORD + 256;
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// Data, and behind them how many bytes of the other direction have come; of ours, TLS has no such kind.
const COUNTED_DATA: u8 = 128;
/// Bytes of that number.
const COUNT: usize = 8;
/// Most bytes of a record that also tells how many have been received.
const MAX_COUNTED: usize = MAX_RECORD - COUNT;
/// Records that are sealed before they are written together.
const AT_ONCE: usize = 4;

/// How records are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    /// AES-128 in Galois/Counter mode.
    Aes128Gcm,
    /// AES-256 in Galois/Counter mode.
    Aes256Gcm,
    /// ChaCha20 with Poly1305.
    ChaCha20Poly1305,
}

impl Cipher {
    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    /// Bytes of a key.
    pub fn key_length(self) -> usize {
        self.algorithm().key_len()
    }
}

/// The keys of one direction.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionKeys {
    /// How.
    pub cipher: Cipher,
    /// The key.
    pub key: Vec<u8>,
    /// What the number of a record is mixed with.
    pub iv: [u8; 12],
    /// The number of the next record.
    pub number: u64,
}

impl fmt::Debug for DirectionKeys {
    /// Shows nothing of the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectionKeys").field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

/// The keys of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamKeys {
    /// Of what is sent.
    pub send: DirectionKeys,
    /// Of what is received.
    pub receive: DirectionKeys,
}

/// Keys that are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the keys of the encrypted connection have a wrong length")]
pub struct BadKeys;

/// One direction's state.
struct Direction {
    cipher: Cipher,
    secret: Vec<u8>,
    key: LessSafeKey,
    iv: [u8; 12],
    number: u64,
    /// Of the records that this key is for.
    left: u64,
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direction").field("cipher", &self.cipher).field("number", &self.number).finish_non_exhaustive()
    }
}

/// A length that HKDF should give.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Direction {
    fn new(keys: DirectionKeys) -> Result<Self, BadKeys> {
        let DirectionKeys { cipher, key: secret, iv, number } = keys;
        let key = LessSafeKey::new(UnboundKey::new(cipher.algorithm(), &secret).map_err(|_| BadKeys)?);
        Ok(Self { cipher, secret, key, iv, number, left: RECORDS_OF_A_KEY })
    }

    /// The next record's nonce.
    fn nonce(&mut self) -> io::Result<Nonce> {
        if self.left == 0 {
            self.change_key();
        }
        self.left -= 1;
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= number;
        }
        self.number = self.number.checked_add(1).ok_or_else(|| io::Error::other("too many records"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    fn change_key(&mut self) {
        let length = self.secret.len();
        let mut next = vec![0; length + self.iv.len()];
        let filled = hkdf::Salt::new(hkdf::HKDF_SHA256, b"skein")
            .extract(&[&self.secret[..], &self.iv].concat())
            .expand(&[b"next key"], Length(next.len()))
            .and_then(|output| output.fill(&mut next));
        filled.expect("so little can be derived");
        self.iv.copy_from_slice(&next[length..]);
        next.truncate(length);
        self.key = LessSafeKey::new(UnboundKey::new(self.cipher.algorithm(), &next).expect("of the same length"));
        self.secret = next;
        self.left = RECORDS_OF_A_KEY;
    }
}

/// The sending half.
#[derive(Debug)]
pub struct Sealer {
    direction: Direction,
    buffer: Vec<u8>,
}

impl Sealer {
    /// With these keys.
    ///
    /// # Errors
    /// [`BadKeys`]
    pub fn new(keys: DirectionKeys) -> Result<Self, BadKeys> {
        Ok(Self { direction: Direction::new(keys)?, buffer: Vec::new() })
    }

    /// Sends bytes: as one record and by one write, if there are no more than [`MAX_RECORD`].
    ///
    /// # Errors
    /// If the socket fails; the connection is of no use then.
    pub fn send(&mut self, socket: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
        for some in bytes.chunks(MAX_RECORD * AT_ONCE) {
            self.buffer.clear();
            some.chunks(MAX_RECORD).try_for_each(|content| self.seal(content, APPLICATION_DATA))?;
            socket.write_all(&self.buffer)?;
        }
        Ok(())
    }

    /// Seals bytes, to be sent by the caller before anything else is: appends their records to `to`.
    ///
    /// # Errors
    /// If there were too many records.
    pub fn seal_to(&mut self, bytes: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
        self.buffer.clear();
        bytes.chunks(MAX_RECORD).try_for_each(|content| self.seal(content, APPLICATION_DATA))?;
        to.extend_from_slice(&self.buffer);
        Ok(())
    }

    /// As [`send`](Self::send), and tells how many bytes have been received; which may be all that is sent.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_counted(&mut self, socket: &mut impl Write, bytes: &[u8], received: u64) -> io::Result<()> {
        let mut rest = bytes;
        loop {
            self.buffer.clear();
            for _ in 0..AT_ONCE {
                let (content, behind) = rest.split_at(rest.len().min(MAX_COUNTED));
                self.seal_with(content, &received.to_le_bytes(), COUNTED_DATA)?;
                rest = behind;
                if rest.is_empty() {
                    return socket.write_all(&self.buffer);
                }
            }
            socket.write_all(&self.buffer)?;
        }
    }

    /// As [`seal_to`](Self::seal_to), and tells how many bytes have been received.
    ///
    /// # Errors
    /// If there were too many records.
    pub fn seal_counted_to(&mut self, bytes: &[u8], received: u64, to: &mut Vec<u8>) -> io::Result<()> {
        self.send_counted(to, bytes, received)
    }

    /// Tells the peer that nothing follows, which it can tell from a connection that was cut.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn finish(&mut self, socket: &mut impl Write) -> io::Result<()> {
        self.buffer.clear();
        self.seal(&[1, 0], ALERT)?;
        socket.write_all(&self.buffer)
    }

    fn seal(&mut self, content: &[u8], kind: u8) -> io::Result<()> {
        self.seal_with(content, &[], kind)
    }

    fn seal_with(&mut self, content: &[u8], behind: &[u8], kind: u8) -> io::Result<()> {
        let length = content.len() + behind.len() + 1 + TAG;
        let [high, low] = u16::try_from(length).expect("a record is short").to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        self.buffer.extend_from_slice(&header);
        let from = self.buffer.len();
        self.buffer.extend_from_slice(content);
        self.buffer.extend_from_slice(behind);
        self.buffer.push(kind);
        let nonce = self.direction.nonce()?;
        let tag = (self.direction.key)
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut self.buffer[from..])
            .map_err(|_| io::Error::other("a record cannot be encrypted"))?;
        self.buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Opener {
    direction: Direction,
    /// What has been read of the socket: opened bytes at `ready`, then bytes that are not opened yet.
    buffer: Vec<u8>,
    ready: std::ops::Range<usize>,
    raw: std::ops::Range<usize>,
    ended: bool,
    /// Bytes that were opened.
    received: u64,
    /// How many bytes the peer has last said that it has received.
    confirmed: u64,
    /// What was opened before, by the opener of another socket.
    earlier: std::collections::VecDeque<u8>,
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Opener {
    /// With these keys.
    ///
    /// # Errors
    /// [`BadKeys`]
    pub fn new(keys: DirectionKeys) -> Result<Self, BadKeys> {
        let direction = Direction::new(keys)?;
        let buffer = vec![0; AT_ONCE * (HEADER + MAX_CIPHERTEXT)];
        Ok(Self {
            direction,
            buffer,
            ready: 0..0,
            raw: 0..0,
            ended: false,
            received: 0,
            confirmed: 0,
            earlier: Default::default(),
        })
    }

    /// Goes on where `old` ends, which was over another socket: what that has opened comes first.
    pub fn go_on_after(&mut self, old: &mut Self) {
        self.earlier.extend(old.earlier.drain(..));
        self.earlier.extend(&old.buffer[old.ready.clone()]);
        old.ready = 0..0;
        self.received += old.received;
    }

    /// What was received until now is not counted.
    pub fn count_from_here(&mut self) {
        (self.received, self.confirmed) = (self.ready.len() as u64, 0);
    }

    /// How many bytes were opened, and how many the peer has said that it has.
    pub fn counts(&self) -> (u64, u64) {
        (self.received, self.confirmed)
    }

    /// Receives some bytes; none if the peer has said that nothing follows.
    ///
    /// # Errors
    /// If the socket fails or ends in any other way, or what comes was not sealed by the peer; the connection is of no
    /// use then.
    pub fn receive(&mut self, socket: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.receive_once(socket, bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received,
            }
        }
    }

    /// The same, but a signal ends the wait, and so does a socket that does not wait: nothing is lost by either.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), and [`io::ErrorKind::Interrupted`] and [`io::ErrorKind::WouldBlock`].
    pub fn receive_once(&mut self, socket: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.earlier.is_empty() {
            return self.earlier.read(bytes);
        }
        while self.ready.is_empty() && !self.ended && !bytes.is_empty() {
            self.open_next(socket)?;
        }
        let count = bytes.len().min(self.ready.len());
        let from = self.ready.start;
        bytes[..count].copy_from_slice(&self.buffer[from..from + count]);
        self.ready.start += count;
        Ok(count)
    }

    /// Opens a record, which may hold nothing; `false` if the peer has said that nothing follows.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn open_one(&mut self, socket: &mut impl Read) -> io::Result<bool> {
        loop {
            match self.open_next(socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                opened => return opened.map(|()| !self.ended),
            }
        }
    }

    /// Whether bytes wait here that a `poll` of the socket does not tell of.
    pub fn has_more(&self) -> bool {
        !self.earlier.is_empty() || !self.ready.is_empty() || self.whole_record().is_ok_and(|record| record.is_some())
    }

    /// Length of the record that begins what is not opened, if all of it is here.
    fn whole_record(&self) -> io::Result<Option<usize>> {
        let Some(header) = self.buffer[self.raw.clone()].first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != APPLICATION_DATA || header[1..3] != [3, 3] || length > MAX_CIPHERTEXT || length <= TAG {
            return Err(bad("the peer sent what is no encrypted record"));
        }
        Ok((self.raw.len() >= HEADER + length).then_some(HEADER + length))
    }

    fn open_next(&mut self, socket: &mut impl Read) -> io::Result<()> {
        let length = loop {
            if let Some(length) = self.whole_record()? {
                break length;
            }
            if self.buffer.len() - self.raw.start < HEADER + MAX_CIPHERTEXT {
                self.buffer.copy_within(self.raw.clone(), 0);
                self.raw = 0..self.raw.len();
            }
            match socket.read(&mut self.buffer[self.raw.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => self.raw.end += got,
                Err(error) => return Err(error),
            }
        };
        let start = self.raw.start;
        let nonce = self.direction.nonce()?;
        let (header, rest) = self.buffer[start..start + length].split_at_mut(HEADER);
        let opened = self.direction.key.open_in_place(nonce, Aad::from(&*header), rest);
        let content = opened.map_err(|_| bad("a record is damaged or was not sent by the peer"))?;
        self.raw.start += length;
        // Zeros may pad the content.
        let Some(last) = content.iter().rposition(|&byte| byte != 0) else {
            return Err(bad("a record without a kind"));
        };
        match (content[last], &content[..last]) {
            (APPLICATION_DATA, _) => self.ready = start + HEADER..start + HEADER + last,
            (COUNTED_DATA, [.., _, _, _, _, _, _, _, _]) => {
                let (data, count) = content[..last].split_at(last - COUNT);
                self.confirmed = u64::from_le_bytes(std::array::from_fn(|k| count[k]));
                self.ready = start + HEADER..start + HEADER + data.len();
            }
            (ALERT, [_, 0]) => self.ended = true,
            (ALERT, _) => return Err(bad("the peer has ended the encrypted connection with an error")),
            _ => return Err(bad("a record of a kind that does not belong here")),
        }
        self.received += self.ready.len() as u64;
        Ok(())
    }
}

/// Both halves over one socket.
#[derive(Debug)]
pub struct SealedStream<S> {
    socket: S,
    sealer: Sealer,
    opener: Opener,
}

impl<S: Read + Write> SealedStream<S> {
    /// Over a socket, with its keys.
    ///
    /// # Errors
    /// [`BadKeys`]
    pub fn new(socket: S, keys: StreamKeys) -> Result<Self, BadKeys> {
        Ok(Self { socket, sealer: Sealer::new(keys.send)?, opener: Opener::new(keys.receive)? })
    }

    /// Its parts, for two threads that send and receive at once.
    pub fn into_parts(self) -> (S, Sealer, Opener) {
        (self.socket, self.sealer, self.opener)
    }

    /// Tells the peer that nothing follows.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn finish(&mut self) -> io::Result<()> {
        self.sealer.finish(&mut self.socket)
    }
}

impl<S: Read> Read for SealedStream<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.opener.receive(&mut self.socket, bytes)
    }
}

impl<S: Write> Write for SealedStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sealer.send(&mut self.socket, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(number: u64) -> DirectionKeys {
        DirectionKeys { cipher: Cipher::Aes256Gcm, key: vec![5; 32], iv: [9; 12], number }
    }

    fn pair(number: u64) -> (Sealer, Opener) {
        (Sealer::new(keys(number)).unwrap(), Opener::new(keys(number)).unwrap())
    }

    /// All that an opener gives, in pieces of `step`.
    fn all(opener: &mut Opener, mut wire: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let (mut bytes, mut piece) = (Vec::new(), vec![0; step]);
        loop {
            match opener.receive(&mut wire, &mut piece)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
    }

    #[test]
    fn bytes_come_back_as_they_were_however_they_are_cut() {
        for size in [0, 1, 100, MAX_RECORD, MAX_RECORD + 1, 10 * MAX_RECORD + 7] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let (mut sealer, mut opener) = pair(3);
            let mut wire = Vec::new();
            sealer.send(&mut wire, &bytes).unwrap();
            sealer.finish(&mut wire).unwrap();
            assert!(size < 100 || !wire.windows(16).any(|some| some == &bytes[..16]), "it is not encrypted");
            assert!(all(&mut opener, &wire, 1 + size / 3).unwrap() == bytes, "{size}");
        }
    }

    #[test]
    fn a_short_message_is_one_write() {
        struct Count(usize);
        impl Write for Count {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut count = Count(0);
        pair(0).0.send(&mut count, &[1; MAX_RECORD]).unwrap();
        assert_eq!(count.0, 1);
    }

    #[test]
    fn what_was_changed_lost_or_repeated_is_refused() {
        let (mut sealer, _) = pair(0);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        sealer.send(&mut first, b"first").unwrap();
        sealer.send(&mut second, b"second").unwrap();
        let refused = |wire: &[u8]| all(&mut pair(0).1, wire, 100).unwrap_err().kind();
        for at in 0..first.len() {
            let mut wire = first.clone();
            wire[at] ^= 1;
            // A length that grows waits for bytes that never come.
            assert!(matches!(refused(&wire), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof), "{at}");
        }
        assert_eq!(refused(&second), io::ErrorKind::InvalidData, "lost");
        assert_eq!(refused(&[&first[..], &first].concat()), io::ErrorKind::InvalidData, "repeated");
        assert_eq!(refused(&first), io::ErrorKind::UnexpectedEof, "cut, which is not an end");
        assert_eq!(refused(&[22, 3, 3, 0, 40]), io::ErrorKind::InvalidData);
        assert_eq!(refused(&[23, 3, 3, 255, 255]), io::ErrorKind::InvalidData);
        assert_eq!(refused(&[23, 3, 3, 0, 16]), io::ErrorKind::InvalidData, "nothing but a tag");
    }

    #[test]
    fn keys_change_on_both_sides_at_once() {
        let (mut sealer, mut opener) = pair(7);
        (sealer.direction.left, opener.direction.left) = (2, 2);
        let mut wire = Vec::new();
        for number in 0..5u8 {
            sealer.send(&mut wire, &[number]).unwrap();
        }
        sealer.finish(&mut wire).unwrap();
        assert_eq!(all(&mut opener, &wire, 1).unwrap(), [0, 1, 2, 3, 4]);
        assert_ne!(opener.direction.secret, keys(0).key);
        assert_eq!(sealer.direction.secret, opener.direction.secret);
    }

    #[test]
    fn keys_of_a_wrong_length_are_refused() {
        let short = DirectionKeys { key: vec![1; 31], ..keys(0) };
        assert_eq!(Sealer::new(short).unwrap_err(), BadKeys);
        assert!(!format!("{:?}", keys(0)).contains("5, 5"), "a key is shown");
    }
}
