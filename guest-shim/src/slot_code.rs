//! Trampolines of threads that have a call slot, for machines where `syscall` stays in ring 3.
//!
//! Such a trampoline posts the call in its slot, where a thread of the VMM on another CPU may take it, and
//! waits for the answer for as long as that is cheaper than an exit. It uses RAX alone and leaves all other
//! registers as they are, so that wherever it is interrupted the call can be made again or completed from
//! the slot: [`stage`] tells which.

use core::arch::global_asm;

use crate::layout::{CALL_SLOTS, SHIM_BASE, call_slot, page, port};

/// Bytes from the start of one trampoline to the next.
pub const SIZE: u64 = 512;

/// Pages of all trampolines.
pub const PAGES: u64 = SIZE * call_slot::COUNT as u64 / 4096 + 1;

/// Calls that are posted, a bit each: those that may be served without the thread.
const POSTED_CALLS: [u64; 7] = calls(&[
    0,   // read
    1,   // write
    2,   // open
    3,   // close
    4,   // stat
    5,   // fstat
    6,   // lstat
    8,   // lseek
    13,  // rt_sigaction
    14,  // rt_sigprocmask
    16,  // ioctl
    17,  // pread64
    18,  // pwrite64
    19,  // readv
    20,  // writev
    21,  // access
    32,  // dup
    44,  // sendto
    45,  // recvfrom
    54,  // setsockopt
    63,  // uname
    72,  // fcntl
    79,  // getcwd
    80,  // chdir
    82,  // rename
    83,  // mkdir
    84,  // rmdir
    87,  // unlink
    89,  // readlink
    90,  // chmod
    95,  // umask
    110, // getppid
    111, // getpgrp
    121, // getpgid
    124, // getsid
    217, // getdents64
    232, // epoll_wait
    257, // openat
    262, // newfstatat
    263, // unlinkat
    264, // renameat
    267, // readlinkat
    268, // fchmodat
    269, // faccessat
    281, // epoll_pwait
    316, // renameat2
    332, // statx
    439, // faccessat2
]);

/// Numbers of calls from this one on are not posted.
const CALLS: u32 = 448;

/// Whether a call needs no exit of a thread that has a slot: if it is posted, or answered from the slot.
pub fn is_posted(number: u64) -> bool {
    number == u64::from(GETPID)
        || number == u64::from(GETTID)
        || number < u64::from(CALLS) && POSTED_CALLS[(number / 64) as usize] & 1 << (number % 64) != 0
}

const fn calls(numbers: &[u32]) -> [u64; 7] {
    let mut bits = [0; 7];
    let mut i = 0;
    while i < numbers.len() {
        bits[(numbers[i] / 64) as usize] |= 1 << (numbers[i] % 64);
        i += 1;
    }
    bits
}

/// `getpid`
pub const GETPID: u32 = 39;
/// `gettid`
pub const GETTID: u32 = 186;
/// Flags that only an exit brings back: trap, direction, nested task, alignment check.
const RARE_FLAGS: u32 = 0x4_4500;
/// How often a thread looks whether its call was taken: for about 3 µs.
const PATIENCE: u32 = 100;
/// How often it looks whether a call that was taken is done: for about 60 µs. Then it gives its CPU away,
/// which those who serve the call may be waiting for.
pub const LONG_PATIENCE: u32 = 2000;
/// The same of a call with which the one who has taken it is busy himself: about 600 µs.
pub const LONGEST_PATIENCE: u32 = 20_000;

/// Where a trampoline's slot lies from the trampolines' start.
const SLOTS: i64 = CALL_SLOTS as i64 - (SHIM_BASE + page::SLOT_TRAMPOLINES) as i64;

global_asm!(
    ".pushsection .rodata.skein_slot_code, \"a\", @progbits",
    ".globl skein_slots, skein_slots_end, skein_slot_posted, skein_slot_withdrawing, skein_slot_withdrawn",
    ".globl skein_slot_left, skein_slot_taken, skein_slot_waiting, skein_slot_tail",
    ".globl skein_slot_getpid, skein_slot_gettid, skein_slot_known, skein_slot_posting",
    ".macro SKEIN_MARK name",
    ".if skein_slot == 0",
    "\\name:",
    ".endif",
    ".endm",
    ".balign {trampoline}",
    "skein_slots:",
    ".set skein_slot, 0",
    ".rept {count}",
    ".balign {trampoline}",
    ".set skein_at, {slots} + skein_slot * {size}",
    "test ${rare_flags}, %r11d",
    "jnz 9f",
    "cmp ${getpid}, %rax",
    "je 5f",
    "cmp ${gettid}, %rax",
    "je 6f",
    "cmpl $0, skein_slots + skein_at + {armed}(%rip)",
    "je 9f",
    "cmp ${calls}, %rax",
    "jae 9f",
    "bt %rax, skein_slots_calls(%rip)",
    "jc 8f",
    "9: out %al, ${system_call}",
    "SKEIN_MARK skein_slot_getpid",
    "5: mov skein_slots + skein_at + {pid}(%rip), %eax",
    "test %eax, %eax",
    "jnz 7f",
    "mov ${getpid}, %eax",
    "jmp 9b",
    "SKEIN_MARK skein_slot_gettid",
    "6: mov skein_slots + skein_at + {tid}(%rip), %eax",
    "test %eax, %eax",
    "jnz 7f",
    "mov ${gettid}, %eax",
    "jmp 9b",
    "SKEIN_MARK skein_slot_known",
    "7: mov %rax, skein_slots + skein_at + {result}(%rip)",
    "jmp 7f",
    "SKEIN_MARK skein_slot_posting",
    "8: mov %rdi, skein_slots + skein_at + {arguments}(%rip)",
    "mov %rsi, skein_slots + skein_at + {arguments} + 8(%rip)",
    "mov %rdx, skein_slots + skein_at + {arguments} + 16(%rip)",
    "mov %r10, skein_slots + skein_at + {arguments} + 24(%rip)",
    "mov %r8, skein_slots + skein_at + {arguments} + 32(%rip)",
    "mov %r9, skein_slots + skein_at + {arguments} + 40(%rip)",
    "mov %eax, skein_slots + skein_at + {number}(%rip)",
    "movl $0, skein_slots + skein_at + {done}(%rip)",
    "movl ${posted}, skein_slots + skein_at + {post}(%rip)",
    "SKEIN_MARK skein_slot_posted",
    "mov ${patience}, %eax",
    "1: cmpl $0, skein_slots + skein_at + {done}(%rip)",
    "jne 4f",
    "pause",
    "dec %eax",
    "jnz 1b",
    "mov ${withdrawn}, %eax",
    "xchg %eax, skein_slots + skein_at + {post}(%rip)",
    "SKEIN_MARK skein_slot_withdrawing",
    "test %eax, %eax",
    "jz 2f",
    "SKEIN_MARK skein_slot_withdrawn",
    "5: mov skein_slots + skein_at + {number}(%rip), %eax",
    "SKEIN_MARK skein_slot_left",
    "jmp 9b",
    "SKEIN_MARK skein_slot_taken",
    "2: mov skein_slots + skein_at + {patience_left}(%rip), %eax",
    "3: cmpl $0, skein_slots + skein_at + {done}(%rip)",
    "jne 4f",
    "pause",
    "dec %eax",
    "jnz 3b",
    "SKEIN_MARK skein_slot_waiting",
    "out %al, ${system_call}",
    "4: cmpl ${refused}, skein_slots + skein_at + {done}(%rip)",
    "je 5b",
    "SKEIN_MARK skein_slot_tail",
    // The status flags that `syscall` has saved: overflow by an addition, the others from AH.
    "7: mov %r11d, %eax",
    "xchg %al, %ah",
    "and $8, %al",
    "add $0x78, %al",
    "sahf",
    "mov skein_slots + skein_at + {result}(%rip), %rax",
    "jmp *%rcx",
    ".set skein_slot, skein_slot + 1",
    ".endr",
    ".balign {trampoline}",
    "skein_slots_calls:",
    ".quad {calls0}, {calls1}, {calls2}, {calls3}, {calls4}, {calls5}, {calls6}",
    "skein_slots_end:",
    ".purgem SKEIN_MARK",
    ".popsection",
    count = const call_slot::COUNT,
    slots = const SLOTS,
    trampoline = const SIZE,
    size = const call_slot::SIZE,
    rare_flags = const RARE_FLAGS,
    getpid = const GETPID,
    gettid = const GETTID,
    armed = const call_slot::ARMED,
    arguments = const call_slot::ARGUMENTS,
    number = const call_slot::NUMBER,
    done = const call_slot::DONE,
    post = const call_slot::POST,
    posted = const call_slot::POSTED,
    withdrawn = const call_slot::WITHDRAWN,
    patience = const PATIENCE,
    patience_left = const call_slot::PATIENCE,
    refused = const call_slot::REFUSED,
    pid = const call_slot::PID,
    tid = const call_slot::TID,
    result = const call_slot::RESULT,
    system_call = const port::SYSTEM_CALL,
    calls0 = const POSTED_CALLS[0],
    calls1 = const POSTED_CALLS[1],
    calls2 = const POSTED_CALLS[2],
    calls3 = const POSTED_CALLS[3],
    calls4 = const POSTED_CALLS[4],
    calls5 = const POSTED_CALLS[5],
    calls6 = const POSTED_CALLS[6],
    calls = const CALLS,
    options(att_syntax)
);

unsafe extern "C" {
    static skein_slots: u8;
    static skein_slots_end: u8;
    static skein_slot_posted: u8;
    static skein_slot_withdrawing: u8;
    static skein_slot_withdrawn: u8;
    static skein_slot_left: u8;
    static skein_slot_taken: u8;
    static skein_slot_waiting: u8;
    static skein_slot_getpid: u8;
    static skein_slot_gettid: u8;
    static skein_slot_known: u8;
    static skein_slot_posting: u8;
    static skein_slot_tail: u8;
}

/// All trampolines, one for each slot, and the list of the calls that they post.
pub fn trampolines() -> &'static [u8] {
    let (start, end) = (&raw const skein_slots, &raw const skein_slots_end);
    // SAFETY: both are labels of the one block of read-only data above, `end` after `start`.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// How far a trampoline has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has happened: RAX is the call's number.
    Before,
    /// The call is posted, unless it was taken.
    Posted,
    /// RAX is what the slot's `POST` was before it became `WITHDRAWN`.
    Withdrawing,
    /// The call was withdrawn, or taken and refused.
    Refused,
    /// The call was taken: it will be done, is done or is refused.
    Taken,
    /// The call of this number is being answered from the slot, and nobody else sees it.
    Identity(u32),
    /// RAX is the result.
    Known,
    /// The result is in the slot.
    Tail,
}

/// How far the trampoline has come of which the next instruction is at `offset` from the trampolines' start.
pub fn stage(offset: u64) -> Stage {
    let at = |label: *const u8| {
        // SAFETY: both are labels of the one block of read-only data above, `label` not before the start.
        unsafe { label.offset_from_unsigned(&raw const skein_slots) as u64 }
    };
    // By where each begins, the last first.
    let stages = [
        (&raw const skein_slot_tail, Stage::Tail),
        (&raw const skein_slot_taken, Stage::Taken),
        (&raw const skein_slot_left, Stage::Before),
        (&raw const skein_slot_withdrawn, Stage::Refused),
        (&raw const skein_slot_withdrawing, Stage::Withdrawing),
        (&raw const skein_slot_posted, Stage::Posted),
        (&raw const skein_slot_posting, Stage::Before),
        (&raw const skein_slot_known, Stage::Known),
        (&raw const skein_slot_gettid, Stage::Identity(GETTID)),
        (&raw const skein_slot_getpid, Stage::Identity(GETPID)),
    ];
    let within = offset % SIZE;
    stages.into_iter().find(|&(label, _)| within >= at(label)).map_or(Stage::Before, |(_, stage)| stage)
}

/// Whether the exit of the `out` at or before this offset is of a thread that waits for a call that was taken.
pub fn is_waiting(offset: u64) -> bool {
    // SAFETY: both are labels of the one block of read-only data above, the second not before the first.
    let waiting = unsafe { (&raw const skein_slot_waiting).offset_from_unsigned(&raw const skein_slots) as u64 };
    // Some hypervisors tell the address of the instruction, some that of the next.
    (waiting..=waiting + OUT_SIZE).contains(&(offset % SIZE))
}

/// Bytes of `out` to an immediate port.
const OUT_SIZE: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_trampolines_are_alike_but_for_their_slot() {
        let code = trampolines();
        assert!(code.len() as u64 >= SIZE * u64::from(call_slot::COUNT));
        assert!(code.len() as u64 <= PAGES * 4096);
        let size = SIZE as usize;
        let differing = (0..size).filter(|&i| code[i] != code[size + i]).count();
        // A displacement for each access: at most four bytes differ.
        assert!((20..=100).contains(&differing), "{differing}");
    }

    #[test]
    fn a_trampoline_fits_and_ends_with_a_jump() {
        let code = &trampolines()[..SIZE as usize];
        let end = code.iter().rposition(|&byte| byte != 0 && byte != 0x90).unwrap();
        assert_eq!(code[end - 1..=end], [0xff, 0xe1]);
    }

    #[test]
    fn accesses_reach_their_slot() {
        // `mov %rdi, disp(%rip)` of each trampoline.
        let code = trampolines();
        for slot in 0..u64::from(call_slot::COUNT) {
            let start = (slot * SIZE) as usize;
            let at =
                start + code[start..start + SIZE as usize].windows(3).position(|w| w == [0x48, 0x89, 0x3d]).unwrap();
            let displacement = i32::from_le_bytes(code[at + 3..at + 7].try_into().unwrap());
            let next = SHIM_BASE + page::SLOT_TRAMPOLINES + at as u64 + 7;
            let target = next.wrapping_add_signed(i64::from(displacement));
            assert_eq!(target, CALL_SLOTS + slot * call_slot::SIZE + call_slot::ARGUMENTS);
        }
    }

    #[test]
    fn stages_follow_each_other() {
        assert_eq!(stage(0), Stage::Before);
        let seen: Vec<Stage> = (0..SIZE).map(stage).collect();
        for wanted in [Stage::Posted, Stage::Withdrawing, Stage::Refused, Stage::Taken, Stage::Tail] {
            assert!(seen.contains(&wanted), "{wanted:?}");
        }
        assert_eq!(stage(SIZE * 5 + 7), stage(7));
        assert!((0..SIZE).any(is_waiting));
        assert!(is_posted(0) && is_posted(439) && !is_posted(7) && !is_posted(1 << 40));
    }
}
