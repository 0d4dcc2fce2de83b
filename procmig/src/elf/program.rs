//! What an ELF program file asks for.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::program_header::{PF_R, PF_W, PF_X, PT_GNU_STACK, PT_INTERP, PT_LOAD, PT_PHDR};
use goblin::elf::{Elf, ProgramHeader, header};
use nix::errno::Errno;
use vmm::addr::{GuestVirtAddr, PAGE_SIZE};

/// End of the addresses that a program may use: the lower half less its last page, as Linux has it.
pub const ADDRESS_LIMIT: u64 = (1 << 47) - PAGE_SIZE;
/// Bytes in an ELF header.
const HEADER_SIZE: usize = 64;
/// Bytes in a program header.
const PROGRAM_HEADER_SIZE: usize = 56;
/// Most bytes of program headers that Linux reads.
const MAX_PROGRAM_HEADERS: usize = 65536;
/// Longest interpreter path, with its NUL (`PATH_MAX`).
const MAX_INTERPRETER: u64 = 4096;

/// Whether the addresses in a file are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// `ET_EXEC`: they are.
    Fixed,
    /// `ET_DYN`: they are relative to where it is loaded.
    PositionIndependent,
}

/// A part of the file to map.
///
/// `address` and `file_offset` are equal modulo the page size where `file_size` is not 0. Two
/// segments may share a page (not a byte); then, as on Linux, the later mapping has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where its bytes are in the file.
    pub file_offset: u64,
    /// Bytes that come from the file.
    pub file_size: u64,
    /// Where it goes; to be moved by the load bias of a position-independent program.
    pub address: GuestVirtAddr,
    /// Bytes in memory, at least `file_size`; those beyond it are zero.
    pub memory_size: u64,
    /// `PF_R`
    pub readable: bool,
    /// `PF_W`
    pub writable: bool,
    /// `PF_X`
    pub executable: bool,
}

impl Segment {
    /// The address after its last byte.
    pub fn end(&self) -> GuestVirtAddr {
        self.address + self.memory_size
    }
}

/// What a program file asks for. Addresses are those in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it starts.
    pub entry: GuestVirtAddr,
    /// Whether the addresses are final.
    pub kind: ProgramKind,
    /// What to map, in the order of the file; never empty, never overlapping, all below [`ADDRESS_LIMIT`].
    pub segments: Vec<Segment>,
    /// Path of the dynamic loader, without its NUL.
    pub interpreter: Option<Vec<u8>>,
    /// Whether it asks for an executable stack.
    pub executable_stack: bool,
    /// Where its program headers are in memory (`AT_PHDR`), if a segment holds them.
    pub headers_address: Option<GuestVirtAddr>,
    /// Number of program headers (`AT_PHNUM`).
    pub headers_count: u16,
    /// Largest alignment that a segment asks for, a power of two, at least a page.
    pub alignment: u64,
}

impl Program {
    /// The lowest page and the end of the highest page that it uses.
    pub fn span(&self) -> (GuestVirtAddr, GuestVirtAddr) {
        let low = self.segments.iter().map(|segment| segment.address.page_floor()).min().unwrap_or_default();
        let high = self.segments.iter().map(|segment| segment.end().0.next_multiple_of(PAGE_SIZE)).max().unwrap_or(0);
        (low, GuestVirtAddr(high))
    }

    /// The end of its data, where `brk` starts.
    pub fn data_end(&self) -> GuestVirtAddr {
        self.segments.iter().map(Segment::end).max().unwrap_or_default()
    }

    /// Bytes of one program header (`AT_PHENT`).
    pub const fn header_size(&self) -> u64 {
        PROGRAM_HEADER_SIZE as u64
    }
}

/// Why a file cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum ProgramError {
    #[error("it is not an ELF program")]
    NotElf,
    #[error("it is a 32-bit program; only 64-bit ones run here")]
    Not64Bit,
    #[error("it is a program for another kind of machine (ELF machine {0}); only x86-64 runs here")]
    WrongMachine(u16),
    #[error("it is not a program but another kind of ELF file (type {0}: an object file or a core dump?)")]
    NotExecutable(u16),
    #[error("its ELF header is damaged: {0}")]
    BadHeader(&'static str),
    #[error("it is cut off: its {0} lie beyond its end")]
    Truncated(&'static str),
    #[error("it could not be read")]
    Read(#[source] Errno),
    #[error("it has nothing to load")]
    NoSegments,
    #[error("its segment {index} is damaged: {what}")]
    BadSegment { index: usize, what: &'static str },
    #[error("its interpreter's path is damaged: {0}")]
    BadInterpreter(&'static str),
}

impl ProgramError {
    /// What `execve` answers for the program itself.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Read(errno) => *errno,
            Self::NoSegments | Self::BadSegment { .. } => Errno::EINVAL,
            _ => Errno::ENOEXEC,
        }
    }

    /// What `execve` answers if the file is the interpreter of the program.
    pub fn interpreter_errno(&self) -> Errno {
        match self {
            Self::Read(errno) => *errno,
            Self::NoSegments | Self::BadSegment { .. } => Errno::EINVAL,
            _ => Errno::ELIBBAD,
        }
    }
}

/// Reads bytes of a program file: fills the buffer from the offset, or answers `EIO` if the file ends before.
pub type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), Errno> + 'a;

/// Copies from `head`, the file's first bytes, where they reach, and asks `read_at` otherwise.
fn fetch(
    head: &[u8],
    read_at: &mut ReadAt<'_>,
    offset: u64,
    buffer: &mut [u8],
    what: &'static str,
) -> Result<(), ProgramError> {
    let end = offset.checked_add(buffer.len() as u64).ok_or(ProgramError::Truncated(what))?;
    if end > i64::MAX as u64 {
        return Err(ProgramError::Truncated(what));
    }
    if end <= head.len() as u64 {
        buffer.copy_from_slice(&head[offset as usize..end as usize]);
        return Ok(());
    }
    read_at(offset, buffer).map_err(|errno| match errno {
        Errno::EIO => ProgramError::Truncated(what),
        errno => ProgramError::Read(errno),
    })
}

/// Reads what a program asks for. `head` holds the first bytes of the file, `read_at` reads the rest.
///
/// # Errors
/// If it is not a program that can run here; nothing has been changed then.
pub fn parse(head: &[u8], read_at: &mut ReadAt<'_>) -> Result<Program, ProgramError> {
    if !head.starts_with(header::ELFMAG) {
        return Err(ProgramError::NotElf);
    }
    match head.get(header::EI_CLASS) {
        None => return Err(ProgramError::Truncated("ELF header")),
        Some(&header::ELFCLASS64) => {}
        Some(&header::ELFCLASS32) => return Err(ProgramError::Not64Bit),
        Some(_) => return Err(ProgramError::BadHeader("its class is unknown")),
    }
    match head.get(header::EI_DATA) {
        None => return Err(ProgramError::Truncated("ELF header")),
        Some(&header::ELFDATA2LSB) => {}
        Some(_) => return Err(ProgramError::BadHeader("it is not little-endian")),
    }
    let raw = head.get(..HEADER_SIZE).ok_or(ProgramError::Truncated("ELF header"))?;
    let elf = Elf::parse_header(raw).map_err(|_| ProgramError::BadHeader("it cannot be decoded"))?;
    if elf.e_machine != header::EM_X86_64 {
        return Err(ProgramError::WrongMachine(elf.e_machine));
    }
    let kind = match elf.e_type {
        header::ET_EXEC => ProgramKind::Fixed,
        header::ET_DYN => ProgramKind::PositionIndependent,
        other => return Err(ProgramError::NotExecutable(other)),
    };
    if usize::from(elf.e_phentsize) != PROGRAM_HEADER_SIZE {
        return Err(ProgramError::BadHeader("its program headers have a wrong size"));
    }
    let headers_size = usize::from(elf.e_phnum) * PROGRAM_HEADER_SIZE;
    if headers_size == 0 {
        return Err(ProgramError::BadHeader("it has no program headers"));
    }
    if headers_size > MAX_PROGRAM_HEADERS {
        return Err(ProgramError::BadHeader("it has too many program headers"));
    }
    let mut raw = vec![0; headers_size];
    fetch(head, read_at, elf.e_phoff, &mut raw, "program headers")?;
    let context = Ctx::new(Container::Big, Endian::Little);
    let headers = ProgramHeader::parse(&raw, 0, usize::from(elf.e_phnum), context)
        .map_err(|_| ProgramError::BadHeader("its program headers cannot be decoded"))?;

    let mut program = Program {
        entry: GuestVirtAddr(elf.e_entry),
        kind,
        segments: Vec::new(),
        interpreter: None,
        executable_stack: false,
        headers_address: None,
        headers_count: elf.e_phnum,
        alignment: PAGE_SIZE,
    };
    let mut declared_headers = None;
    for (index, header) in headers.iter().enumerate() {
        match header.p_type {
            PT_LOAD => {
                if header.p_align.is_power_of_two() {
                    program.alignment = program.alignment.max(header.p_align);
                }
                let segment = segment(header).map_err(|what| ProgramError::BadSegment { index, what })?;
                if header.p_offset <= elf.e_phoff && elf.e_phoff - header.p_offset < header.p_filesz {
                    let address = segment.address + (elf.e_phoff - header.p_offset);
                    program.headers_address.get_or_insert(address);
                }
                if segment.memory_size > 0 {
                    program.segments.push(segment);
                }
            }
            PT_PHDR => declared_headers = Some(GuestVirtAddr(header.p_vaddr)),
            PT_GNU_STACK => program.executable_stack = header.p_flags & PF_X != 0,
            PT_INTERP if program.interpreter.is_none() => {
                program.interpreter = Some(interpreter(header, head, read_at)?);
            }
            _ => {}
        }
    }
    program.headers_address = program.headers_address.or(declared_headers);
    check_segments(&program.segments)?;
    let (low, high) = program.span();
    // A position-independent program must find room for its alignment too.
    if high.0 > ADDRESS_LIMIT || program.alignment > ADDRESS_LIMIT - (high - low) {
        return Err(ProgramError::BadSegment { index: 0, what: "it does not fit into the address space" });
    }
    if program.entry.0 >= ADDRESS_LIMIT {
        return Err(ProgramError::BadHeader("its entry is not a user address"));
    }
    Ok(program)
}

fn segment(header: &ProgramHeader) -> Result<Segment, &'static str> {
    if header.p_filesz > header.p_memsz {
        return Err("it has more bytes in the file than in memory");
    }
    if header.p_memsz > ADDRESS_LIMIT || header.p_vaddr > ADDRESS_LIMIT - header.p_memsz {
        return Err("it does not fit into the address space");
    }
    match header.p_offset.checked_add(header.p_filesz) {
        Some(end) if end <= i64::MAX as u64 => {}
        _ => return Err("its place in the file is impossible"),
    }
    if header.p_filesz > 0 && header.p_vaddr % PAGE_SIZE != header.p_offset % PAGE_SIZE {
        return Err("its address does not fit its place in the file");
    }
    Ok(Segment {
        file_offset: header.p_offset,
        file_size: header.p_filesz,
        address: GuestVirtAddr(header.p_vaddr),
        memory_size: header.p_memsz,
        readable: header.p_flags & PF_R != 0,
        writable: header.p_flags & PF_W != 0,
        executable: header.p_flags & PF_X != 0,
    })
}

fn check_segments(segments: &[Segment]) -> Result<(), ProgramError> {
    if segments.is_empty() {
        return Err(ProgramError::NoSegments);
    }
    let mut sorted: Vec<(usize, &Segment)> = segments.iter().enumerate().collect();
    sorted.sort_by_key(|(_, segment)| segment.address);
    for pair in sorted.windows(2) {
        if pair[0].1.end() > pair[1].1.address {
            return Err(ProgramError::BadSegment { index: pair[1].0, what: "it overlaps another" });
        }
    }
    Ok(())
}

fn interpreter(header: &ProgramHeader, head: &[u8], read_at: &mut ReadAt<'_>) -> Result<Vec<u8>, ProgramError> {
    if header.p_filesz < 2 {
        return Err(ProgramError::BadInterpreter("it is empty"));
    }
    if header.p_filesz > MAX_INTERPRETER {
        return Err(ProgramError::BadInterpreter("it is too long"));
    }
    let mut path = vec![0; header.p_filesz as usize];
    fetch(head, read_at, header.p_offset, &mut path, "interpreter's path")?;
    if path.pop() != Some(0) {
        return Err(ProgramError::BadInterpreter("it does not end with a NUL"));
    }
    if let Some(end) = path.iter().position(|&byte| byte == 0) {
        path.truncate(end);
    }
    if path.is_empty() {
        return Err(ProgramError::BadInterpreter("it is empty"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// An ELF file with these program headers: (type, flags, offset, address, file size, memory size, alignment).
    fn file(kind: u16, headers: &[(u32, u32, u64, u64, u64, u64, u64)]) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend(kind.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(0x40_1000u64.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64, 56, headers.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for &(kind, flags, offset, address, file_size, memory_size, align) in headers {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for word in [offset, address, address, file_size, memory_size, align] {
                file.extend(word.to_le_bytes());
            }
        }
        file
    }

    fn parse_all(file: &[u8]) -> Result<Program, ProgramError> {
        let head = &file[..file.len().min(4096)];
        parse(head, &mut |offset, buffer| {
            let from = file.get(offset as usize..).ok_or(Errno::EIO)?;
            buffer.copy_from_slice(from.get(..buffer.len()).ok_or(Errno::EIO)?);
            Ok(())
        })
    }

    const LOAD: (u32, u32, u64, u64, u64, u64, u64) = (PT_LOAD, PF_R | PF_X, 0, 0x40_0000, 0x1000, 0x1000, 4096);

    #[test]
    fn a_static_program_is_read() {
        let data = (PT_LOAD, PF_R | PF_W, 0x1010, 0x40_3010, 0x20, 0x5000, 0x20_0000);
        let program = parse_all(&file(header::ET_EXEC, &[LOAD, data, (PT_GNU_STACK, PF_X, 0, 0, 0, 0, 0)])).unwrap();
        assert_eq!(program.kind, ProgramKind::Fixed);
        assert_eq!(program.entry, GuestVirtAddr(0x40_1000));
        assert_eq!(program.segments.len(), 2);
        assert!(program.segments[1].writable && !program.segments[1].executable);
        assert_eq!(program.headers_address, Some(GuestVirtAddr(0x40_0040)));
        assert_eq!(program.headers_count, 3);
        assert!(program.executable_stack);
        assert_eq!(program.alignment, 0x20_0000);
        assert_eq!(program.span(), (GuestVirtAddr(0x40_0000), GuestVirtAddr(0x40_9000)));
        assert_eq!(program.data_end(), GuestVirtAddr(0x40_8010));
    }

    #[test]
    fn the_running_program_is_read() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let mut head = [0; 4096];
        file.read_exact_at(&mut head, 0).unwrap();
        let program =
            parse(&head, &mut |offset, buffer| file.read_exact_at(buffer, offset).map_err(|_| Errno::EIO)).unwrap();
        assert_eq!(program.kind, ProgramKind::PositionIndependent);
        assert!(program.interpreter.unwrap().starts_with(b"/lib"));
        assert!(!program.executable_stack);
        assert_eq!(program.headers_address, Some(GuestVirtAddr(64)));
    }

    #[test]
    fn headers_and_interpreter_beyond_the_head_are_fetched() {
        let mut file = file(header::ET_DYN, &[LOAD, (PT_INTERP, PF_R, 5000, 5000, 9, 9, 1)]);
        file.resize(5000, 0);
        file.extend(b"/lib/ld\0\0");
        assert_eq!(parse_all(&file).unwrap().interpreter, Some(b"/lib/ld".to_vec()));
        file.truncate(5003);
        assert_eq!(parse_all(&file), Err(ProgramError::Truncated("interpreter's path")));
    }

    #[test]
    fn nonsense_is_refused_with_the_errno_of_linux() {
        let good = file(header::ET_EXEC, &[LOAD]);
        assert!(parse_all(&good).is_ok());
        let change = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            parse_all(&bad).unwrap_err()
        };
        assert_eq!(change(0, b"x"), ProgramError::NotElf);
        assert_eq!(change(4, &[1]), ProgramError::Not64Bit);
        assert_eq!(change(5, &[2]).errno(), Errno::ENOEXEC);
        assert_eq!(change(18, &[183]), ProgramError::WrongMachine(183));
        assert_eq!(change(18, &[183]).interpreter_errno(), Errno::ELIBBAD);
        assert_eq!(change(16, &[1]), ProgramError::NotExecutable(1));
        assert_eq!(change(32, &[0xff; 8]), ProgramError::Truncated("program headers"));
        assert_eq!(change(54, &[32]).errno(), Errno::ENOEXEC);
        assert_eq!(change(56, &[0, 0]).errno(), Errno::ENOEXEC);
        assert_eq!(change(56, &[0xff, 0xff]).errno(), Errno::ENOEXEC);
        assert_eq!(change(24, &[0xff; 8]).errno(), Errno::ENOEXEC);
        for length in 0..good.len() {
            assert!(parse_all(&good[..length]).is_err());
        }
    }

    #[test]
    fn impossible_segments_are_refused() {
        let bad = |segments: &[(u32, u32, u64, u64, u64, u64, u64)]| {
            parse_all(&file(header::ET_EXEC, segments)).unwrap_err().errno()
        };
        assert_eq!(bad(&[(PT_GNU_STACK, 0, 0, 0, 0, 0, 0)]), Errno::EINVAL);
        assert_eq!(bad(&[(PT_LOAD, 4, 0, 0x1000, 0x2000, 0x1000, 4096)]), Errno::EINVAL);
        assert_eq!(bad(&[(PT_LOAD, 4, 0, 0x1001, 0x1000, 0x1000, 4096)]), Errno::EINVAL);
        assert_eq!(bad(&[(PT_LOAD, 4, 0, u64::MAX - 0xfff, 0x1000, 0x1000, 4096)]), Errno::EINVAL);
        assert_eq!(bad(&[(PT_LOAD, 4, 0, 0x1000, 0, u64::MAX, 4096)]), Errno::EINVAL);
        assert_eq!(bad(&[(PT_LOAD, 4, u64::MAX - 0xfff, 0, 0x1000, 0x1000, 4096)]), Errno::EINVAL);
        assert_eq!(bad(&[LOAD, LOAD]), Errno::EINVAL);
        assert_eq!(bad(&[(PT_LOAD, 4, 0, 0x1000, 0x10, 0x10, 1 << 63)]), Errno::EINVAL);
        assert_eq!(bad(&[LOAD, (PT_INTERP, 4, 0, 0, 1, 1, 1)]), Errno::ENOEXEC);
        assert_eq!(bad(&[LOAD, (PT_INTERP, 4, 0, 0, 5000, 5000, 1)]), Errno::ENOEXEC);
        assert_eq!(bad(&[LOAD, (PT_INTERP, 4, 0, 0, 4, 4, 1)]), Errno::ENOEXEC);
    }

    #[test]
    fn no_damage_makes_the_parser_panic_or_promise_the_impossible() {
        let data = (PT_LOAD, PF_R | PF_W, 0x1010, 0x40_3010, 0x20, 0x5000, 0x20_0000);
        let mut good = file(header::ET_DYN, &[LOAD, data, (PT_INTERP, PF_R, 250, 250, 8, 8, 1)]);
        good.extend(b"/lib/ld.so\0\0");
        let mut state = 1u64;
        let mut random = || {
            // Knuth's MMIX generator.
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize
        };
        for _ in 0..200_000 {
            let mut bad = good.clone();
            for _ in 0..1 + random() % 3 {
                let at = random() % bad.len();
                bad[at] = [0, 1, 0x7f, 0x80, 0xff, random() as u8][random() % 6];
            }
            if let Ok(program) = parse_all(&bad) {
                let (low, high) = program.span();
                assert!(low < high && high.0 <= ADDRESS_LIMIT);
                for segment in &program.segments {
                    assert!(segment.file_size <= segment.memory_size && segment.end() <= high);
                }
            }
        }
    }
}
