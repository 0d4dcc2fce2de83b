use super::*;

/// 64 KiB of memory at 0x10000.
struct Memory(Vec<u8>);

const BASE: u64 = 0x10000;

impl Memory {
    fn new() -> Self {
        Self(vec![0; 65536])
    }
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = (at - BASE) as usize;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn put_words(&mut self, at: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.put(at + 8 * index as u64, &word.to_le_bytes());
        }
    }
}

impl UserMemory for Memory {
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        let at = address.0.checked_sub(BASE).ok_or(Errno::EFAULT)? as usize;
        let end = at.checked_add(buffer.len()).ok_or(Errno::EFAULT)?;
        buffer.copy_from_slice(self.0.get(at..end).ok_or(Errno::EFAULT)?);
        Ok(())
    }
    fn write(&self, _: GuestVirtAddr, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

fn line(memory: &Memory, name: &str, args: &[i64], ret: i64) -> String {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(args) {
        *to = *from as u64;
    }
    format(999, Some(name), &all, Outcome::Returned(ret), memory)
}

const A: i64 = BASE as i64 + 0x100;

#[test]
fn files_are_printed_as_strace_does() {
    let mut memory = Memory::new();
    memory.put(A as u64, b"/etc/passwd\0");
    let cloexec = i64::from(libc::O_CLOEXEC);
    assert_eq!(
        line(&memory, "openat", &[-100, A, cloexec, 0o644], 3),
        r#"openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3"#
    );
    let create = i64::from(libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC);
    assert_eq!(
        line(&memory, "openat", &[5, A, create, 0o644], -13),
        r#"openat(5, "/etc/passwd", O_WRONLY|O_CREAT|O_TRUNC, 0644) = -1 EACCES (Permission denied)"#
    );
    assert_eq!(
        line(&memory, "openat", &[-100, 0x10, 0], -14),
        "openat(AT_FDCWD, 0x10, O_RDONLY) = -1 EFAULT (Bad address)"
    );
    assert_eq!(line(&memory, "read", &[3, A, 4096], 3), r#"read(3, "/et", 4096) = 3"#);
    assert_eq!(
        line(&memory, "read", &[3, A, 4096], -11),
        format!("read(3, {A:#x}, 4096) = -1 EAGAIN (Resource temporarily unavailable)")
    );
    memory.put(A as u64, b"a\n\"\\\x01\x012\xff0123456789012345678901234567890123456789");
    assert_eq!(
        line(&memory, "write", &[1, A, 40], 40),
        r#"write(1, "a\n\"\\\1\0012\377012345678901234567890123"..., 40) = 40"#
    );
    memory.put_words(A as u64, &[0, 0, 0, 0o100_644, 0, 0, 1234]);
    assert_eq!(line(&memory, "fstat", &[3, A], 0), "fstat(3, {st_mode=S_IFREG|0644, st_size=1234, ...}) = 0");
    assert_eq!(line(&memory, "lseek", &[3, -1, 1], -22), "lseek(3, -1, SEEK_CUR) = -1 EINVAL (Invalid argument)");
    assert_eq!(line(&memory, "fcntl", &[3, 1], 0), "fcntl(3, F_GETFD) = 0");
    assert_eq!(line(&memory, "fcntl", &[3, 2, 1], 0), "fcntl(3, F_SETFD, FD_CLOEXEC) = 0");
}

#[test]
fn memory_and_programs_are_printed_as_strace_does() {
    let mut memory = Memory::new();
    assert_eq!(
        line(&memory, "mmap", &[0, 8192, 3, 0x22, -1, 0], 0x7f00_0000_0000),
        "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000"
    );
    assert_eq!(line(&memory, "brk", &[0], 0x5555_0000), "brk(NULL) = 0x55550000");
    assert_eq!(line(&memory, "exit_group", &[1], 0), "exit_group(1) = ?");
    memory.put(A as u64, b"/bin/ls\0ls\0-l\0");
    memory.put_words(A as u64 + 64, &[A as u64 + 8, A as u64 + 11, 0, A as u64, A as u64, 0]);
    assert_eq!(
        line(&memory, "execve", &[A, A + 64, A + 88], 0),
        format!(r#"execve("/bin/ls", ["ls", "-l"], {:#x} /* 2 vars */) = 0"#, A + 88)
    );
    memory.put_words(A as u64, &[0x100]);
    assert_eq!(
        line(&memory, "wait4", &[-1, A, 1, 0], 77),
        "wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 1}], WNOHANG, NULL) = 77"
    );
    assert_eq!(
        line(&memory, "clone", &[0x0120_0011, 0, 0, A, 0], 78),
        format!(
            "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr={A:#x}) = 78"
        )
    );
    memory.put(A as u64, &[3, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(line(&memory, "pipe2", &[A, i64::from(libc::O_CLOEXEC)], 0), "pipe2([3, 4], O_CLOEXEC) = 0");
}

#[test]
fn signals_and_futexes_are_printed_as_strace_does() {
    let mut memory = Memory::new();
    memory.put_words(A as u64, &[0x40_0000, 0x1400_0000, 0x50_0000, 1 << 9]);
    assert_eq!(
        line(&memory, "rt_sigaction", &[2, A, 0, 8], 0),
        "rt_sigaction(SIGINT, {sa_handler=0x400000, sa_mask=[USR1], sa_flags=SA_RESTORER|SA_RESTART, \
         sa_restorer=0x500000}, NULL, 8) = 0"
    );
    memory.put_words(A as u64, &[!0, 3]);
    assert_eq!(line(&memory, "rt_sigprocmask", &[0, A, 0, 8], 0), "rt_sigprocmask(SIG_BLOCK, ~[], NULL, 8) = 0");
    memory.put_words(A as u64, &[5, 3]);
    assert_eq!(
        line(&memory, "futex", &[A + 256, 0x80, 2, A], -110),
        format!(
            "futex({:#x}, FUTEX_WAIT_PRIVATE, 2, {{tv_sec=5, tv_nsec=3}}) = -1 ETIMEDOUT (Connection timed out)",
            A + 256
        )
    );
    assert_eq!(
        line(&memory, "futex", &[A, 0x189, 2, 0, 0, 0xffff_ffff], -512),
        format!(
            "futex({A:#x}, FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME, 2, NULL, NULL, FUTEX_BITSET_MATCH_ANY) = ? \
             ERESTARTSYS (To be restarted if SA_RESTART is set)"
        )
    );
    assert_eq!(line(&memory, "futex", &[A, 0x81, 1], 1), format!("futex({A:#x}, FUTEX_WAKE_PRIVATE, 1) = 1"));
    assert_eq!(line(&memory, "tgkill", &[1, 2, 9], 0), "tgkill(1, 2, SIGKILL) = 0");
    assert_eq!(
        format_signal(&crate::signal::info::kill(15, 7, 8)),
        "--- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=7, si_uid=8} ---"
    );
}

#[test]
fn any_call_with_any_arguments_is_printed() {
    let memory = Memory::new();
    for call in table::CALLS {
        assert!(call.args.len() <= 6, "{}", call.name);
        for value in [0, 1, -1, A, i64::MIN, i64::MAX, 0x1_0fff, 0x7fff_ffff] {
            for ret in [0, 7, -1, -38, -4095, i64::MAX] {
                assert!(line(&memory, call.name, &[value; 6], ret).starts_with(call.name));
            }
        }
    }
    for name in ["futex", "clone", "unheard_of"] {
        for operation in 0..0x200 {
            assert!(line(&memory, name, &[operation; 6], 0).starts_with(name));
        }
    }
    assert_eq!(format(0x999, None, &[0; 6], Outcome::Gone, &memory), "syscall_0x999(0x0, 0x0, 0x0, 0x0, 0x0, 0x0) = ?");
}

#[test]
fn no_call_is_listed_twice() {
    for (index, call) in table::CALLS.iter().enumerate() {
        assert!(table::CALLS[..index].iter().all(|other| other.name != call.name), "{}", call.name);
    }
}
