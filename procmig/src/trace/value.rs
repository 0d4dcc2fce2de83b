//! What arguments point at. `None`: it cannot be read, so the address is printed.

use super::flags;
use crate::signal::set::SignalSet;
use crate::usermem::UserMemory;
use vmm::addr::GuestVirtAddr;

/// Bytes of a buffer that are printed.
const MAX_BYTES: usize = 32;
/// Bytes of a path that are printed: all that a path can have.
const MAX_PATH: usize = 4096;
/// Elements of an array that are printed.
const MAX_ELEMENTS: usize = 32;
/// Strings of an environment that are counted.
const MAX_COUNT: usize = 100_000;

/// An address that is not looked at.
pub fn address(at: GuestVirtAddr) -> String {
    if at.0 == 0 { "NULL".to_owned() } else { format!("{at:#x}", at = at.0) }
}

/// Permissions.
pub fn octal(value: u64) -> String {
    match value & 0o7777 {
        0 => "000".to_owned(),
        mode => format!("0{mode:03o}"),
    }
}

/// Bytes between quotes, escaped as in C.
pub fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\r' => text.push_str("\\r"),
            0x0b => text.push_str("\\v"),
            0x0c => text.push_str("\\f"),
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(byte.into()),
            // A digit after it would become part of a short number.
            _ if bytes.get(index + 1).is_some_and(u8::is_ascii_digit) => text.push_str(&format!("\\{byte:03o}")),
            _ => text.push_str(&format!("\\{byte:o}")),
        }
    }
    text.push('"');
    text
}

fn read<const N: usize>(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if at.0 == 0 {
        return None;
    }
    memory.read(at, &mut bytes).ok()?;
    Some(bytes)
}

fn words<const N: usize>(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        *word = u64::from_le_bytes(read(memory, at.checked_add(8 * index as u64)?)?);
    }
    Some(words)
}

/// The first of `length` bytes.
pub fn bytes(memory: &dyn UserMemory, at: GuestVirtAddr, length: u64) -> Option<String> {
    if at.0 == 0 {
        return None;
    }
    let mut buffer = [0; MAX_BYTES];
    let shown = length.min(MAX_BYTES as u64) as usize;
    memory.read(at, &mut buffer[..shown]).ok()?;
    let more = if length > shown as u64 { "..." } else { "" };
    Some(quoted(&buffer[..shown]) + more)
}

/// A path, all of it.
pub fn path(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    if at.0 == 0 {
        return None;
    }
    Some(quoted(&memory.read_string(at, MAX_PATH).ok()?))
}

/// An `iovec` array, of whose bytes the first `total` count.
pub fn vector(memory: &dyn UserMemory, at: GuestVirtAddr, count: u64, total: u64) -> Option<String> {
    let mut left = total;
    let mut list = Vec::new();
    for index in 0..count.min(MAX_ELEMENTS as u64) {
        let [base, length] = words(memory, at.checked_add(16 * index)?)?;
        let valid = length.min(left);
        left -= valid;
        let base = GuestVirtAddr(base);
        let text = bytes(memory, base, valid).unwrap_or_else(|| address(base));
        list.push(format!("{{iov_base={text}, iov_len={length}}}"));
    }
    Some(array(list, count > MAX_ELEMENTS as u64))
}

fn array(mut list: Vec<String>, cut: bool) -> String {
    if cut {
        list.push("...".to_owned());
    }
    format!("[{}]", list.join(", "))
}

/// A NULL-terminated array of strings.
pub fn strings(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let mut list = Vec::new();
    for index in 0..MAX_ELEMENTS as u64 {
        let [string] = words(memory, at.checked_add(8 * index)?)?;
        if string == 0 {
            return Some(array(list, false));
        }
        let string = GuestVirtAddr(string);
        list.push(match memory.read_string(string, MAX_PATH) {
            Ok(text) if text.len() > MAX_BYTES => quoted(&text[..MAX_BYTES]) + "...",
            Ok(text) => quoted(&text),
            Err(_) => address(string),
        });
    }
    Some(array(list, true))
}

/// The length of a NULL-terminated array.
pub fn count(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<usize> {
    (0..MAX_COUNT)
        .try_fold((), |(), index| {
            let next = at.checked_add(8 * index as u64).and_then(|at| words::<1>(memory, at));
            match next {
                Some([0]) => Err(Some(index)),
                Some(_) => Ok(()),
                None => Err(None),
            }
        })
        .err()
        .flatten()
}

fn set(set: SignalSet) -> String {
    // As strace: what is not in it, if that is shorter.
    let (tilde, shown) = if set.iter().count() > 42 { ("~", !set) } else { ("", set) };
    let names: Vec<String> = shown.iter().map(flags::signal_suffix).collect();
    format!("{tilde}[{}]", names.join(" "))
}

/// A signal set.
pub fn signal_set(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    words(memory, at).map(|[bits]| set(SignalSet(bits)))
}

/// A `sigaction` as the kernel has it.
pub fn action(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let [handler, bits, restorer, mask] = words(memory, at)?;
    let handler = match handler {
        0 => "SIG_DFL".to_owned(),
        1 => "SIG_IGN".to_owned(),
        handler => format!("{handler:#x}"),
    };
    let mask = set(SignalSet(mask));
    let flags = flags::SIGACTION.format(bits);
    let restorer = if bits & 0x0400_0000 != 0 { format!(", sa_restorer={restorer:#x}") } else { String::new() };
    Some(format!("{{sa_handler={handler}, sa_mask={mask}, sa_flags={flags}{restorer}}}"))
}

/// A `stack_t`.
pub fn stack(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let [base, flags, size] = words(memory, at)?;
    let base = address(GuestVirtAddr(base));
    Some(format!("{{ss_sp={base}, ss_flags={}, ss_size={size}}}", flags::SIGSTACK.format(flags)))
}

/// Seconds and a fraction.
pub fn time(memory: &dyn UserMemory, at: GuestVirtAddr, fraction: &str) -> Option<String> {
    let [seconds, part] = words(memory, at)?;
    Some(format!("{{tv_sec={}, {fraction}={}}}", seconds as i64, part as i64))
}

/// Two of them; `utimensat` has names for some.
pub fn times(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let [seconds, part, seconds2, part2] = words(memory, at)?;
    let one = |seconds: u64, part: u64| match part as i64 {
        libc::UTIME_NOW => "UTIME_NOW".to_owned(),
        libc::UTIME_OMIT => "UTIME_OMIT".to_owned(),
        part => format!("{{tv_sec={}, tv_nsec={part}}}", seconds as i64),
    };
    Some(format!("[{}, {}]", one(seconds, part), one(seconds2, part2)))
}

/// A number.
pub fn int(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    Some(format!("[{}]", i32::from_le_bytes(read(memory, at)?)))
}

/// Two descriptors.
pub fn pair(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let bytes: [u8; 8] = read(memory, at)?;
    let [a, b, c, d, e, f, g, h] = bytes;
    Some(format!("[{}, {}]", i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h])))
}

/// How a child ended.
pub fn status(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let status = i32::from_le_bytes(read(memory, at)?);
    Some(if libc::WIFEXITED(status) {
        format!("[{{WIFEXITED(s) && WEXITSTATUS(s) == {}}}]", libc::WEXITSTATUS(status))
    } else if libc::WIFSTOPPED(status) {
        format!("[{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}]", flags::signal(libc::WSTOPSIG(status)))
    } else if libc::WIFSIGNALED(status) {
        let core = if libc::WCOREDUMP(status) { " && WCOREDUMP(s)" } else { "" };
        format!("[{{WIFSIGNALED(s) && WTERMSIG(s) == {}{core}}}]", flags::signal(libc::WTERMSIG(status)))
    } else if libc::WIFCONTINUED(status) {
        "[{WIFCONTINUED(s)}]".to_owned()
    } else {
        format!("[{status:#x}]")
    })
}

/// A `stat`: mode and size, or the device's number.
pub fn stat(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let [_, _, _, mode, _, device, size] = words(memory, at)?;
    let mode = mode & 0xffff_ffff;
    let kind = flags::FILE_KIND.format(mode & !0o777);
    let mode_text = format!("{kind}|{}", octal(mode & 0o777));
    let last = match mode as u32 & libc::S_IFMT {
        libc::S_IFCHR | libc::S_IFBLK => {
            format!("st_rdev=makedev({:#x}, {:#x})", libc::major(device), libc::minor(device))
        }
        _ => format!("st_size={size}"),
    };
    Some(format!("{{st_mode={mode_text}, {last}, ...}}"))
}

/// A soft and a hard limit.
pub fn limit(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let one = |value: u64| match value {
        u64::MAX => "RLIM64_INFINITY".to_owned(),
        value if value >= 1024 && value % 1024 == 0 => format!("{}*1024", value / 1024),
        value => value.to_string(),
    };
    words(memory, at).map(|[soft, hard]| format!("{{rlim_cur={}, rlim_max={}}}", one(soft), one(hard)))
}

/// A `pollfd` array.
pub fn poll(memory: &dyn UserMemory, at: GuestVirtAddr, count: u64) -> Option<String> {
    let mut list = Vec::new();
    for index in 0..count.min(MAX_ELEMENTS as u64) {
        let [a, b, c, d, e, f, g, h]: [u8; 8] = read(memory, at.checked_add(8 * index)?)?;
        let descriptor = i32::from_le_bytes([a, b, c, d]);
        let events = flags::POLL.format(u16::from_le_bytes([e, f]).into());
        let happened = match u16::from_le_bytes([g, h]) {
            0 => String::new(),
            bits => format!(", revents={}", flags::POLL.format(bits.into())),
        };
        list.push(format!("{{fd={descriptor}, events={events}{happened}}}"));
    }
    Some(array(list, count > MAX_ELEMENTS as u64))
}

/// A socket address.
pub fn socket(memory: &dyn UserMemory, at: GuestVirtAddr, length: u64) -> Option<String> {
    if at.0 == 0 || length < 2 {
        return None;
    }
    let mut buffer = [0; 128];
    let taken = length.min(128) as usize;
    memory.read(at, &mut buffer[..taken]).ok()?;
    let family = u16::from_le_bytes([buffer[0], buffer[1]]);
    let port = u16::from_be_bytes([buffer[2], buffer[3]]);
    let name = flags::FAMILY.format(family.into());
    Some(match i32::from(family) {
        libc::AF_UNIX if taken > 2 && buffer[2] == 0 => {
            format!("{{sa_family={name}, sun_path=@{}}}", quoted(&buffer[3..taken.max(3)]))
        }
        libc::AF_UNIX => {
            let path = &buffer[2..taken];
            let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
            format!("{{sa_family={name}, sun_path={}}}", quoted(&path[..end]))
        }
        libc::AF_INET if taken >= 8 => {
            let ip = std::net::Ipv4Addr::new(buffer[4], buffer[5], buffer[6], buffer[7]);
            format!("{{sa_family={name}, sin_port=htons({port}), sin_addr=inet_addr(\"{ip}\")}}")
        }
        libc::AF_INET6 if taken >= 24 => {
            let ip: [u8; 16] = buffer[8..24].try_into().expect("16 bytes");
            let ip = std::net::Ipv6Addr::from(ip);
            format!("{{sa_family={name}, sin6_port=htons({port}), sin6_addr=\"{ip}\"}}")
        }
        _ => format!("{{sa_family={name}, sa_data={}}}", quoted(&buffer[2..taken.clamp(2, 16)])),
    })
}

/// System and host name.
pub fn name(memory: &dyn UserMemory, at: GuestVirtAddr) -> Option<String> {
    let field = |index: u64| Some(quoted(&memory.read_string(at.checked_add(65 * index)?, 65).ok()?));
    if at.0 == 0 {
        return None;
    }
    Some(format!("{{sysname={}, nodename={}, ...}}", field(0)?, field(1)?))
}
