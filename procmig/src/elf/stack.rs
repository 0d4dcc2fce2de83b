//! The first stack of a program: arguments, environment and auxiliary vector, laid out as Linux does.
//!
//! From the top: eight zero bytes, the path that was executed, the environment's strings, the
//! arguments' strings, the platform's name, 16 random bytes, the auxiliary vector, the pointers to
//! the environment, the pointers to the arguments, their number.

use super::program::Program;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;

/// Longest argument or environment string, with its NUL (`MAX_ARG_STRLEN`).
pub const MAX_STRING: usize = 32 * 4096;
/// Room for strings and pointers that every program has, however small its stack (`ARG_MAX`).
const MIN_ROOM: u64 = 128 << 10;
/// Room for strings and pointers that no program exceeds, however large its stack.
const MAX_ROOM: u64 = 6 << 20;
/// `AT_PLATFORM`
const PLATFORM: &[u8] = b"x86_64\0";

/// Numbers of the entries of the auxiliary vector.
#[allow(missing_docs, reason = "the names are those of <elf.h>")]
pub mod at {
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const BASE: u64 = 7;
    pub const FLAGS: u64 = 8;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const PLATFORM: u64 = 15;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const HWCAP2: u64 = 26;
    pub const RSEQ_FEATURE_SIZE: u64 = 27;
    pub const RSEQ_ALIGN: u64 = 28;
    pub const EXECFN: u64 = 31;
    pub const SYSINFO_EHDR: u64 = 33;
    pub const MINSIGSTKSZ: u64 = 51;
}

/// What the auxiliary vector says of the machine and the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Environment {
    /// Where the vDSO's image is, if it is mapped.
    pub vdso: Option<GuestVirtAddr>,
    /// Bytes that a signal frame may need ([`crate::signal::frame::FpuLayout::min_stack`]).
    pub min_signal_stack: u64,
    /// EDX of CPUID leaf 1 as the cluster agrees on it.
    pub hwcap: u64,
    /// Bit 1: `wrfsbase` and its like may be used.
    pub hwcap2: u64,
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective group.
    pub egid: u32,
    /// Whether `rseq` is served.
    pub rseq: bool,
}

/// The value of an entry of the auxiliary vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuxValue {
    /// This number.
    Number(u64),
    /// The address of the platform's name.
    Platform,
    /// The address of the random bytes.
    Random,
    /// The address of the path that was executed.
    ExecutedPath,
}

/// The entries that a native program sees, in its order, without the closing `AT_NULL`.
///
/// `bias` is where the program was loaded less what its file says; `base` is where its interpreter
/// was loaded, 0 without one.
pub fn auxiliary_vector(
    program: &Program,
    bias: u64,
    base: GuestVirtAddr,
    environment: &Environment,
) -> Vec<(u64, AuxValue)> {
    use AuxValue::{ExecutedPath, Number, Platform, Random};
    let headers = program.headers_address.map_or(0, |address| address.0.wrapping_add(bias));
    let mut vector = Vec::with_capacity(24);
    vector.extend(environment.vdso.map(|vdso| (at::SYSINFO_EHDR, Number(vdso.0))));
    vector.extend([
        (at::MINSIGSTKSZ, Number(environment.min_signal_stack)),
        (at::HWCAP, Number(environment.hwcap)),
        (at::PAGESZ, Number(vmm::addr::PAGE_SIZE)),
        (at::CLKTCK, Number(100)),
        (at::PHDR, Number(headers)),
        (at::PHENT, Number(program.header_size())),
        (at::PHNUM, Number(program.headers_count.into())),
        (at::BASE, Number(base.0)),
        (at::FLAGS, Number(0)),
        (at::ENTRY, Number(program.entry.0.wrapping_add(bias))),
        (at::UID, Number(environment.uid.into())),
        (at::EUID, Number(environment.euid.into())),
        (at::GID, Number(environment.gid.into())),
        (at::EGID, Number(environment.egid.into())),
        (at::SECURE, Number(0)),
        (at::RANDOM, Random),
        (at::HWCAP2, Number(environment.hwcap2)),
        (at::EXECFN, ExecutedPath),
        (at::PLATFORM, Platform),
    ]);
    if environment.rseq {
        vector.extend([(at::RSEQ_FEATURE_SIZE, Number(28)), (at::RSEQ_ALIGN, Number(32))]);
    }
    vector
}

/// What the stack is made of.
#[derive(Debug, Clone, Copy)]
pub struct StackInput<'a> {
    /// The address after the stack's last byte, a multiple of 16.
    pub top: GuestVirtAddr,
    /// Arguments, each without NUL. Without any, one empty argument is passed, as Linux does.
    pub arguments: &'a [Vec<u8>],
    /// Environment strings, each without NUL.
    pub environment: &'a [Vec<u8>],
    /// Entries of the auxiliary vector without the closing one.
    pub auxiliary: &'a [(u64, AuxValue)],
    /// The path that was executed, without NUL.
    pub executed_path: &'a [u8],
    /// For the program's stack protector and pointer guard.
    pub random: [u8; 16],
    /// The soft `RLIMIT_STACK` in bytes.
    pub stack_limit: u64,
}

/// A first stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackImage {
    /// Where `bytes` go; also the first stack pointer, a multiple of 16.
    pub start: GuestVirtAddr,
    /// They end at the stack's top.
    pub bytes: Vec<u8>,
    /// The arguments' strings (`/proc/PID/cmdline`): first byte and the address after the last.
    pub arguments: (GuestVirtAddr, GuestVirtAddr),
    /// The environment's strings (`/proc/PID/environ`): first byte and the address after the last.
    pub environment: (GuestVirtAddr, GuestVirtAddr),
    /// The auxiliary vector as the program sees it (`/proc/PID/auxv`).
    pub auxiliary: Vec<u8>,
}

/// Bytes that strings and their pointers may take with this soft `RLIMIT_STACK`.
pub fn room(stack_limit: u64) -> u64 {
    (stack_limit / 4).clamp(MIN_ROOM, MAX_ROOM)
}

/// Builds the first stack.
///
/// # Errors
/// `E2BIG` if a string is longer than [`MAX_STRING`] or all of it exceeds [`room`]; `EINVAL` if a
/// string holds a NUL; `ENOMEM` if the stack would begin below address 0.
pub fn build(input: &StackInput<'_>) -> Result<StackImage, Errno> {
    let empty = [Vec::new()];
    let arguments = if input.arguments.is_empty() { &empty[..] } else { input.arguments };
    let room = room(input.stack_limit);
    let mut used = 8 * (arguments.len() as u64 + input.environment.len() as u64);
    let strings = || {
        let path = std::iter::once(input.executed_path);
        arguments.iter().chain(input.environment).map(Vec::as_slice).chain(path)
    };
    for string in strings() {
        if string.len() >= MAX_STRING {
            return Err(Errno::E2BIG);
        }
        if string.contains(&0) {
            return Err(Errno::EINVAL);
        }
        used += string.len() as u64 + 1;
    }
    if used > room {
        return Err(Errno::E2BIG);
    }

    // Ascending: arguments, environment, path, and the eight zero bytes at the top.
    let mut text = Vec::new();
    let mut offsets = Vec::with_capacity(arguments.len() + input.environment.len() + 1);
    for string in strings() {
        offsets.push(text.len() as u64);
        text.extend_from_slice(string);
        text.push(0);
    }
    text.extend([0; 8]);
    let text_start = input.top.0.checked_sub(text.len() as u64).ok_or(Errno::ENOMEM)?;
    let address = |index: usize| text_start + offsets[index];
    let path_index = arguments.len() + input.environment.len();

    let platform = (text_start & !15).checked_sub(PLATFORM.len() as u64).ok_or(Errno::ENOMEM)?;
    let random = platform.checked_sub(16).ok_or(Errno::ENOMEM)? & !15;

    let mut auxiliary = Vec::with_capacity(16 * (input.auxiliary.len() + 1));
    for &(kind, value) in input.auxiliary.iter().chain(&[(at::NULL, AuxValue::Number(0))]) {
        let value = match value {
            AuxValue::Number(number) => number,
            AuxValue::Platform => platform,
            AuxValue::Random => random,
            AuxValue::ExecutedPath => address(path_index),
        };
        auxiliary.extend(kind.to_le_bytes());
        auxiliary.extend(value.to_le_bytes());
    }

    let mut words = vec![arguments.len() as u64];
    words.extend((0..arguments.len()).map(address));
    words.push(0);
    words.extend((arguments.len()..path_index).map(address));
    words.push(0);
    let vectors = words.len() as u64 * 8 + auxiliary.len() as u64;
    let start = random.checked_sub(vectors).ok_or(Errno::ENOMEM)? & !15;

    let mut bytes = Vec::with_capacity((input.top.0 - start) as usize);
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend_from_slice(&auxiliary);
    bytes.resize((random - start) as usize, 0);
    bytes.extend(input.random);
    bytes.resize((platform - start) as usize, 0);
    bytes.extend(PLATFORM);
    bytes.resize((text_start - start) as usize, 0);
    bytes.extend_from_slice(&text);

    let environment_start = offsets.get(arguments.len()).map_or(text_start, |offset| text_start + offset);
    Ok(StackImage {
        start: GuestVirtAddr(start),
        bytes,
        arguments: (GuestVirtAddr(text_start), GuestVirtAddr(environment_start)),
        environment: (GuestVirtAddr(environment_start), GuestVirtAddr(address(path_index))),
        auxiliary,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: u64 = 0x7fff_ffff_e000;

    fn strings(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|string| string.as_bytes().to_vec()).collect()
    }

    fn build_with(arguments: &[Vec<u8>], environment: &[Vec<u8>], limit: u64) -> Result<StackImage, Errno> {
        build(&StackInput {
            top: GuestVirtAddr(TOP),
            arguments,
            environment,
            auxiliary: &[
                (at::RANDOM, AuxValue::Random),
                (at::PLATFORM, AuxValue::Platform),
                (at::EXECFN, AuxValue::ExecutedPath),
                (at::PAGESZ, AuxValue::Number(4096)),
            ],
            executed_path: b"/bin/x",
            random: [7; 16],
            stack_limit: limit,
        })
    }

    fn word(image: &StackImage, index: usize) -> u64 {
        u64::from_le_bytes(image.bytes[8 * index..8 * index + 8].try_into().unwrap())
    }

    fn string(image: &StackImage, address: u64) -> String {
        let bytes = &image.bytes[(address - image.start.0) as usize..];
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }

    #[test]
    fn a_program_finds_everything_where_linux_puts_it() {
        for count in 0..8 {
            let extra = vec![b"ab".to_vec(); count];
            let image = build_with(&strings(&["x", "-y"]), &[strings(&["A=1"]), extra].concat(), 8 << 20).unwrap();
            assert!(image.start.is_aligned(16));
            assert_eq!(image.start.0 + image.bytes.len() as u64, TOP);
            assert_eq!(word(&image, 0), 2);
            assert_eq!(string(&image, word(&image, 1)), "x");
            assert_eq!(string(&image, word(&image, 2)), "-y");
            assert_eq!(word(&image, 3), 0);
            assert_eq!(string(&image, word(&image, 4)), "A=1");
            assert_eq!(word(&image, 5 + count), 0);
            let auxiliary: Vec<u64> = (6 + count..16 + count).map(|index| word(&image, index)).collect();
            assert_eq!(auxiliary[0], at::RANDOM);
            let random = (auxiliary[1] - image.start.0) as usize;
            assert_eq!(image.bytes[random..random + 16], [7; 16]);
            assert_eq!(string(&image, auxiliary[3]), "x86_64");
            assert_eq!(string(&image, auxiliary[5]), "/bin/x");
            assert_eq!(auxiliary[6..], [at::PAGESZ, 4096, 0, 0]);
            assert_eq!(image.arguments, (GuestVirtAddr(word(&image, 1)), GuestVirtAddr(word(&image, 4))));
            assert_eq!(image.environment, (GuestVirtAddr(word(&image, 4)), GuestVirtAddr(auxiliary[5])));
        }
    }

    #[test]
    fn a_program_without_arguments_gets_an_empty_one() {
        let image = build_with(&[], &[], 8 << 20).unwrap();
        assert_eq!(word(&image, 0), 1);
        assert_eq!(string(&image, word(&image, 1)), "");
        assert_eq!(image.environment.0, image.environment.1);
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let long = vec![vec![b'x'; MAX_STRING - 1]];
        assert!(build_with(&long, &[], 8 << 20).is_ok());
        assert_eq!(build_with(&long, &[], 64 << 10), Err(Errno::E2BIG));
        assert_eq!(build_with(&[vec![b'x'; MAX_STRING]], &[], 8 << 20), Err(Errno::E2BIG));
        assert_eq!(build_with(&vec![Vec::new(); 300_000], &[], 8 << 20), Err(Errno::E2BIG));
        assert_eq!(build_with(&strings(&["a\0b"]), &[], 8 << 20), Err(Errno::EINVAL));
    }

    #[test]
    fn the_auxiliary_vector_has_the_native_order() {
        let program = Program {
            entry: GuestVirtAddr(0x1000),
            kind: super::super::program::ProgramKind::PositionIndependent,
            segments: Vec::new(),
            interpreter: None,
            executable_stack: false,
            headers_address: Some(GuestVirtAddr(64)),
            headers_count: 3,
            alignment: 4096,
        };
        let environment = Environment { vdso: Some(GuestVirtAddr(0x5000)), rseq: true, ..Default::default() };
        let vector = auxiliary_vector(&program, 0x1_0000, GuestVirtAddr(0), &environment);
        let kinds: Vec<u64> = vector.iter().map(|entry| entry.0).collect();
        assert_eq!(kinds, [33, 51, 16, 6, 17, 3, 4, 5, 7, 8, 9, 11, 12, 13, 14, 23, 25, 26, 31, 15, 27, 28]);
        assert!(vector.contains(&(at::PHDR, AuxValue::Number(0x1_0040))));
    }
}
