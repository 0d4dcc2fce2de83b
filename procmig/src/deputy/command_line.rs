//! The name and the command line that `ps` shows.

use super::home_proc;
use nix::fcntl::OFlag;
use std::sync::Mutex;

/// Longest command line that is shown.
const LONGEST: usize = 128 << 10;

/// The kernel's `struct prctl_mm_map`.
#[repr(C)]
#[derive(Debug, Default)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// The mapping that holds the command line shown now, and its length.
static SHOWN: Mutex<Option<(usize, usize)>> = Mutex::new(None);

/// Sets `comm` of the process.
pub(super) fn set_name(name: &[u8]) {
    let mut comm = [0u8; 16];
    let length = name.len().min(15);
    comm[..length].copy_from_slice(&name[..length]);
    if super::kernel::gettid() == std::process::id() as i32 {
        // SAFETY: the name ends with a NUL.
        unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) };
        return;
    }
    // The calling thread need not be the leader, whose name the process has.
    if let Ok(mut file) = home_proc::open(&format!("self/task/{}/comm", std::process::id()), OFlag::O_WRONLY) {
        let _ = std::io::Write::write_all(&mut file, &comm[..length]);
    }
}

/// Reads where the kernel thinks that the parts of this process are.
fn current() -> Option<MemoryMap> {
    let stat = std::io::read_to_string(home_proc::open("self/stat", OFlag::O_RDONLY).ok()?).ok()?;
    // Fields are counted from 1; the third follows the name in parentheses.
    let fields: Vec<u64> =
        stat.rsplit_once(") ")?.1.split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect();
    let field = |n: usize| fields.get(n - 3).copied();
    // SAFETY: 0 only asks.
    let brk = unsafe { libc::sbrk(0) } as u64;
    Some(MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_stack: field(28)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    })
}

/// Shows these arguments as the command line.
pub(super) fn set_arguments(argv: &[Vec<u8>]) {
    let mut line = Vec::new();
    for argument in argv {
        line.extend_from_slice(argument);
        line.push(0);
    }
    line.truncate(LONGEST);
    let Some(mut map) = current().filter(|_| !line.is_empty()) else { return };
    if !place(&line, &mut map) {
        overwrite(&line, &map);
    }
}

/// Shows a command line from a mapping of its own; whether the kernel allows it.
fn place(line: &[u8], map: &mut MemoryMap) -> bool {
    // SAFETY: a new anonymous mapping touches nothing that is there.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            line.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the mapping has `line.len()` bytes.
    unsafe { std::ptr::copy_nonoverlapping(line.as_ptr(), memory.cast(), line.len()) };
    (map.arg_start, map.arg_end) = (memory as u64, memory as u64 + line.len() as u64);
    // SAFETY: the kernel reads one `prctl_mm_map`.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP,
            std::ptr::from_ref(map) as u64,
            std::mem::size_of::<MemoryMap>(),
            0,
        )
    } == 0;
    let mut shown = super::threads::lock(&SHOWN);
    let unused = if set { shown.replace((memory as usize, line.len())) } else { Some((memory as usize, line.len())) };
    if let Some((memory, length)) = unused {
        // SAFETY: the mapping was made here, and nothing points to it any more.
        unsafe { libc::munmap(memory as *mut libc::c_void, length) };
    }
    set
}

/// Shows as much of a command line as fits where the old one is.
fn overwrite(line: &[u8], map: &MemoryMap) {
    let room = map.arg_end.saturating_sub(map.arg_start) as usize;
    let Ok(memory) = home_proc::open("self/mem", OFlag::O_WRONLY) else { return };
    let mut text = line[..line.len().min(room)].to_vec();
    text.resize(room, 0);
    // Through the file, since the program's own view of its arguments is not to be written to in Rust.
    let _ = std::os::unix::fs::FileExt::write_all_at(&memory, &text, map.arg_start);
}
