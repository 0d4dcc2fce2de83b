//! One function for each decoder of bytes from outside. Any bytes will do; whatever they are, the decoder
//! neither panics nor promises what cannot be.

use nix::errno::Errno;
use procmig::calls::{marshal, row};
use procmig::channel::CallChannel;
use procmig::elf::{program as elf, script};
use procmig::kernel::timers::ProcessTimers;
use procmig::migration::packing::{CHUNK, Unpacker};
use procmig::migration::target;
use procmig::migration::wire::{self as migration_wire, FromSource, Offer, Reply};
use procmig::signal::altstack::AltStack;
use procmig::signal::frame::{self as signal, FpuLayout};
use procmig::usermem::UserMemory;
use procmig::wire::call::{MAX_PAYLOAD, ReplyHeader, RequestHeader};
use procmig::wire::control::{MAX_MESSAGE, NodeReply, NodeRequest, ToDeputy, ToNode};
use procmig::wire::frame;
use procmig::wire::link::{LinkReply, LinkRequest};
use procmig::wire::op::{FileIdentity, LentFile, Op, ProgramFile};
use serde::{Serialize, de::DeserializeOwned};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use vmm::addr::GuestVirtAddr;
use vmm::regs::Regs;

/// Memory of as many bytes as there are, from address 0 on.
struct Bytes(RefCell<Vec<u8>>);

impl Bytes {
    fn range(address: GuestVirtAddr, length: usize) -> Result<std::ops::Range<usize>, Errno> {
        let from = usize::try_from(address.0).map_err(|_| Errno::EFAULT)?;
        Ok(from..from.checked_add(length).ok_or(Errno::EFAULT)?)
    }
}

impl UserMemory for Bytes {
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        let range = Self::range(address, buffer.len())?;
        buffer.copy_from_slice(self.0.borrow().get(range).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, address: GuestVirtAddr, bytes: &[u8]) -> Result<(), Errno> {
        let range = Self::range(address, bytes.len())?;
        self.0.borrow_mut().get_mut(range).ok_or(Errno::EFAULT)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// Takes numbers from the front of the input; zeros when it is used up.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        bytes[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// A number that a program passes: mostly small, an address in [`Bytes`], or anything.
    fn argument(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => u64::from(self.byte()),
            1 => u64::from(u16::from_le_bytes(self.take())),
            2 => u64::MAX - u64::from(self.byte()),
            _ => u64::from_le_bytes(self.take()),
        }
    }
}

/// A file that is executed.
pub fn program(data: &[u8]) {
    let head = &data[..data.len().min(4096)];
    if script::is_script(head) {
        let _ = script::parse(head);
    }
    let mut read_at = |offset: u64, buffer: &mut [u8]| {
        let from = usize::try_from(offset).map_err(|_| Errno::EIO)?;
        let end = from.checked_add(buffer.len()).ok_or(Errno::EIO)?;
        buffer.copy_from_slice(data.get(from..end).ok_or(Errno::EIO)?);
        Ok(())
    };
    match elf::parse(head, &mut read_at) {
        Ok(program) => {
            let (low, high) = program.span();
            assert!(low <= high && high.0 <= elf::ADDRESS_LIMIT, "{program:?}");
            assert!(program.segments.iter().all(|segment| low <= segment.address && segment.end() <= high));
        }
        Err(error) => {
            let _ = (error.errno(), error.to_string());
        }
    }
}

/// A system call of any arguments, and any reply to it.
pub fn call(data: &[u8]) {
    let mut numbers = Numbers(data);
    let nr = u32::from(u16::from_le_bytes(numbers.take())) % 480;
    let args: [u64; 6] = std::array::from_fn(|_| numbers.argument());
    let ret = numbers.argument() as i64;
    let split = usize::from(u16::from_le_bytes(numbers.take())).min(numbers.0.len());
    let (payload, rest) = numbers.0.split_at(split);
    let memory = Bytes(RefCell::new(rest.to_vec()));
    let mut request = Vec::new();
    if row(nr).is_some() && marshal::encode(nr, &args, &memory, &mut request).is_ok() {
        assert!(request.len() <= MAX_PAYLOAD);
    }
    let _ = marshal::decode(nr, &args, ret, payload, &memory);
    let _ = marshal::decode(nr, &args, ret, &request, &memory);
}

/// What a deputy sends on a call connection.
pub fn reply(data: &[u8]) {
    let request: [u8; RequestHeader::SIZE] = Numbers(data).take();
    assert_eq!(RequestHeader::decode(&request).encode(), request);
    let header: [u8; ReplyHeader::SIZE] = Numbers(data).take();
    assert_eq!(ReplyHeader::decode(&header).encode(), header);
    let mut numbers = Numbers(data);
    let nr = u32::from(u16::from_le_bytes(numbers.take())) % 480;
    let args: [u64; 6] = std::array::from_fn(|_| numbers.argument());
    let is_op = numbers.byte() & 1 == 1;
    // Half of the time the reply is to the request that was sent.
    let right = numbers.byte() & 1 == 1;
    // More would fill the socket, which nobody empties meanwhile.
    let mut answer = numbers.0[..numbers.0.len().min(32 << 10)].to_vec();
    if right && answer.len() >= 4 {
        answer[..4].copy_from_slice(&1u32.to_le_bytes());
    }
    let (node, mut deputy) = UnixStream::pair().expect("a pair of sockets");
    deputy.write_all(&answer).expect("room for so little");
    deputy.shutdown(Shutdown::Write).expect("an open socket");
    let mut channel = CallChannel::new(node);
    if is_op {
        let _ = channel.op(&Op::NewThread);
        return;
    }
    let memory = Bytes(RefCell::new(vec![0; 8192]));
    if row(nr).is_some() && channel.begin_call(nr, &args, 0, &memory).is_ok() {
        let _ = channel.finish_call(&memory);
    }
}

fn received<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let (here, mut there) = UnixStream::pair().expect("a pair of sockets");
    there.write_all(&bytes[..bytes.len().min(32 << 10)]).expect("room for so little");
    there.shutdown(Shutdown::Write).expect("an open socket");
    while let Ok((message, _)) = frame::receive::<T>(&here, MAX_MESSAGE) {
        frame::encode(&message).expect("what was read can be written");
    }
}

fn decoded<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    if let Ok(message) = postcard::from_bytes::<T>(bytes) {
        postcard::to_stdvec(&message).expect("what was read can be written");
    }
}

/// Frames of a control connection and of a node's socket, and what is in requests and replies.
pub fn message(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 11 {
        0 => received::<NodeRequest>(bytes),
        1 => received::<NodeReply>(bytes),
        2 => received::<ToDeputy>(bytes),
        3 => {
            // A signal is read in place, not copied.
            let _ = postcard::from_bytes::<ToNode>(bytes);
        }
        4 => decoded::<Op>(bytes),
        5 => decoded::<FileIdentity>(bytes),
        6 => decoded::<ProgramFile>(bytes),
        7 => decoded::<NodeRequest>(bytes),
        8 => decoded::<LinkRequest>(bytes),
        9 => decoded::<LinkReply>(bytes),
        _ => decoded::<LentFile>(bytes),
    }
}

/// Chunks of pages that may be compressed: the first two bytes say how long they are to be.
fn unpacked(data: &[u8]) {
    let Some((length, mut rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)) << 4;
    let mut unpacker = Unpacker::default();
    while let Ok(chunk) = unpacker.receive_with(length, |room| rest.read_exact(room)) {
        assert_eq!(chunk.len(), length.min(CHUNK));
        if chunk.is_empty() {
            break;
        }
    }
}

/// What the source of a migration sends, and what its target answers.
pub fn migration(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 => decoded::<Offer>(bytes),
        1 => decoded::<Reply>(bytes),
        3 => unpacked(bytes),
        _ => match postcard::from_bytes::<FromSource>(bytes) {
            Ok(FromSource::Pages(runs) | FromSource::Packed(runs) | FromSource::Owed(runs)) => {
                if let Some(bytes) = migration_wire::bytes_of(&runs) {
                    assert!(bytes <= migration_wire::MAX_PAGES * vmm::addr::PAGE_SIZE);
                }
            }
            Ok(FromSource::Image(image)) => {
                let is_valid = target::validate(&image, image.pid).is_ok();
                assert!(!is_valid || !image.threads.is_empty() && image.pid > 0);
                if let Some(timers) = ProcessTimers::from_images(&image.timers, image.next_timer, 0) {
                    assert!(timers.images(0).0.len() <= image.timers.len());
                }
                postcard::to_stdvec(&image).expect("what was read can be written");
            }
            _ => {}
        },
    }
}

/// A signal frame that the program has written itself.
pub fn signal_frame(data: &[u8]) {
    let mut numbers = Numbers(data);
    let layouts = [(3, 576), (7, 832), (0xe7, 2696)];
    let (features, size) = layouts[usize::from(numbers.byte()) % layouts.len()];
    let layout = FpuLayout::new(features, size).expect("a possible layout");
    let regs = Regs { rsp: numbers.argument(), rflags: numbers.argument(), ..Regs::default() };
    let memory = Bytes(RefCell::new(numbers.0.to_vec()));
    let Ok(restored) = signal::restore(&memory, &regs, AltStack::default(), layout) else { return };
    assert!(restored.regs.rip < elf::ADDRESS_LIMIT);
    // Interrupts on; neither I/O privilege nor virtual-8086 mode.
    assert_eq!(restored.regs.rflags & 0x202, 0x202);
    assert_eq!(restored.regs.rflags & !regs.rflags & 0x2_3000, 0);
    assert!(!restored.mask.contains(9) && !restored.mask.contains(19));
    if let Some(state) = restored.xsave {
        assert_eq!(state.len(), layout.size());
        let word = |at: usize| u64::from_le_bytes(state[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(word(512) & !features, 0, "components that are not offered");
        assert_eq!((word(520), state[24 + 2] | state[24 + 3]), (0, 0), "a header that cannot be loaded");
        assert!(state[520..576].iter().all(|&byte| byte == 0));
    }
}
