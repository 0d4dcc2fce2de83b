//! What stands in for a system call that a program makes again and again from one place, and that needs no
//! kernel, for machines where `syscall` itself costs ten times as much as the call.
//!
//! Compilers and C libraries write `mov $NUMBER,%eax; syscall`, and in the function for all calls
//! `mov 8(%rsp),%r9; syscall`. At such a *site* the first instruction becomes a
//! jump to a *stub*, which reads the answer from the process's identity page and jumps behind the `syscall`.
//! The `syscall` stays where it is: for whoever jumps there, and for the stub itself where the page has no answer.
//!
//! Of several threads each is found by its base of FS: the page has room for [`THREADS`] of them, each where its
//! base says ([`place`]).

use crate::layout::IDENTITY;
use crate::slot_code::{GETPID, GETTID};

/// Bytes of the two instructions of a site.
pub const SITE_SIZE: u64 = MOVE_SIZE + 2;

/// Bytes of the first of them, and of the jump that takes its place.
const MOVE_SIZE: u64 = 5;
/// Bytes of the code that answers `getpid`.
const PROCESS_SIZE: usize = 54;
/// Bytes of the code that answers `gettid`.
const THREAD_SIZE: usize = 125;
/// Bytes of the code that finds out which call it is.
const CHOICE_SIZE: usize = 25;
/// `mov 8(%rsp),%r9`: the last argument.
const LOAD_LAST: [u8; MOVE_SIZE as usize] = [0x4c, 0x8b, 0x4c, 0x24, 8];

/// Places for threads in the identity page.
pub const THREADS: u64 = 256;

/// Where in the identity page the IDs of threads are, a doubleword for each place.
const TIDS: u64 = 1024;
/// Where the bases of FS are to which they belong, a quadword for each: what added to the base is 0.
const BASES: u64 = 2048;
/// In the place of a base: nobody's.
const NO_BASE: u64 = 1;

/// The place of a thread that has this base of FS. Threads of the C library have theirs where their stacks end, which
/// are some MiB apart, and aligned to 2 MiB or not: neighbours differ in one byte or the other.
pub const fn place(base: u64) -> u64 {
    ((base >> 13) + (base >> 21)) % THREADS
}

/// Where in the identity page the ID at a place is, a doubleword.
pub const fn tid_offset(place: u64) -> u64 {
    TIDS + place % THREADS * 4
}

/// Where in the identity page it is said to whom it belongs, a quadword.
pub const fn base_offset(place: u64) -> u64 {
    BASES + place % THREADS * 8
}

/// What is there: this base, or nobody's.
pub const fn base_entry(base: Option<u64>) -> u64 {
    match base {
        Some(base) => base.wrapping_neg(),
        None => NO_BASE,
    }
}

/// A call that the identity page answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// `getpid`
    Process,
    /// `gettid`
    Thread,
}

impl Identity {
    /// The one that has this number.
    pub fn of(number: u64) -> Option<Self> {
        match u32::try_from(number) {
            Ok(GETPID) => Some(Self::Process),
            Ok(GETTID) => Some(Self::Thread),
            _ => None,
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Process => GETPID,
            Self::Thread => GETTID,
        }
    }

    /// Where in the identity page its answer is, if it is the same for all, a doubleword; 0 if not.
    pub const fn offset(self) -> u64 {
        match self {
            Self::Process => 0,
            Self::Thread => 4,
        }
    }

    fn load_number(self) -> [u8; MOVE_SIZE as usize] {
        let [a, b, c, d] = self.number().to_le_bytes();
        [0xb8, a, b, c, d]
    }
}

/// Who makes calls at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A function for one call, or code that makes it by itself: `mov $NUMBER,%eax; syscall`.
    Own(Identity),
    /// `syscall` of the C library, for all calls: the number is in RAX when it loads the last argument.
    Any,
}

impl Caller {
    /// The one that has these instructions and has just asked for `which`.
    pub fn of(site: [u8; SITE_SIZE as usize], which: Identity) -> Option<Self> {
        [Self::Own(which), Self::Any].into_iter().find(|caller| caller.site() == site)
    }

    /// What a site holds.
    pub fn site(self) -> [u8; SITE_SIZE as usize] {
        let [a, b, c, d, e] = match self {
            Self::Own(which) => which.load_number(),
            Self::Any => LOAD_LAST,
        };
        [a, b, c, d, e, 0x0f, 0x05]
    }

    /// The call of which the number was in RAX at the site, and is not any more at `offset` in its stub.
    pub fn lost_number(self, offset: u64) -> Option<u64> {
        let within = (offset as usize).checked_sub(CHOICE_SIZE)?;
        let answers = if within < PROCESS_SIZE { Identity::Process } else { Identity::Thread };
        (self == Self::Any).then(|| answers.number().into())
    }
}

/// The jump at `site` to a stub, in the place of the first instruction; `None` if it is too far away.
pub fn jump(site: u64, stub: u64) -> Option<[u8; MOVE_SIZE as usize]> {
    let [a, b, c, d] = distance(site + MOVE_SIZE, stub)?;
    Some([0xe9, a, b, c, d])
}

/// The stub at `stub` of a site; `None` if it is too far away. It changes what the system call changes: RAX, RCX
/// to the address behind it, R11 to the flags (the status flags, and those that programs have set), no others.
pub fn stub(caller: Caller, site: u64, stub: u64) -> Option<Vec<u8>> {
    let mut code = Vec::new();
    match caller {
        Caller::Own(which) => code.extend(answer(which, site, stub)?),
        Caller::Any => {
            let answers = [Identity::Process, Identity::Thread];
            // None of these changes a flag: lea -NUMBER(%rax),%rcx; jrcxz
            code.extend(LOAD_LAST);
            code.extend([0x48, 0x8d, 0x48, (GETPID as u8).wrapping_neg(), 0xe3, CHOICE_SIZE as u8 - 11]);
            code.extend([0x48, 0x8d, 0x88]);
            code.extend(GETTID.wrapping_neg().to_le_bytes());
            code.extend([0xe3, (CHOICE_SIZE + PROCESS_SIZE) as u8 - 20]);
            code.extend(with_distance(0xe9, distance(stub + CHOICE_SIZE as u64, site + MOVE_SIZE)?));
            debug_assert!(code.len() == CHOICE_SIZE);
            for which in answers {
                let at = stub + code.len() as u64;
                code.extend(answer(which, site, at)?);
            }
        }
    }
    Some(code)
}

/// What makes of the flags what the system call leaves in R11: in ECX, by way of EAX.
#[rustfmt::skip]
const FLAGS: [u8; 16] = [
    0x0f, 0x90, 0xc0, //                         0: seto %al
    0x9f, //                                     3: lahf
    0x0f, 0xb6, 0xcc, //                         4: movzbl %ah,%ecx
    0x8d, 0x04, 0xc5, 2, 0, 0, 0, //             7: lea 2(,%rax,8),%eax: overflow, interrupts enabled
    0x88, 0xc5, //                              14: mov %al,%ch
];

/// The code at `start` that answers a call of a site. Nothing in it changes a flag.
fn answer(which: Identity, site: u64, start: u64) -> Option<Vec<u8>> {
    match which {
        Identity::Process => answer_process(site, start),
        Identity::Thread => answer_thread(site, start),
    }
}

fn answer_process(site: u64, start: u64) -> Option<Vec<u8>> {
    let mut code = Vec::with_capacity(PROCESS_SIZE);
    code.extend(FLAGS);
    code.extend([0x41, 0x89, 0xcb]); //                16: mov %ecx,%r11d
    code.extend([0xa1]); //                            19: movabs PROCESS,%eax
    code.extend((IDENTITY + Identity::Process.offset()).to_le_bytes());
    code.extend([0x89, 0xc1, 0xe3, 12]); //            28: mov %eax,%ecx; jrcxz 44
    code.extend(go_behind(site, start + 32)?); //      32
    code.extend(make_call(Identity::Process, site, start + 44)?); // 44
    debug_assert!(code.len() == PROCESS_SIZE);
    Some(code)
}

fn answer_thread(site: u64, start: u64) -> Option<Vec<u8>> {
    let mut code = Vec::with_capacity(THREAD_SIZE);
    code.extend([0xa1]); //                             0: movabs THREAD,%eax
    code.extend((IDENTITY + Identity::Thread.offset()).to_le_bytes());
    code.extend([0x89, 0xc1, 0xe3, 37]); //             9: mov %eax,%ecx; jrcxz 50
    code.extend([0x41, 0x89, 0xc3]); //                13: mov %eax,%r11d
    code.extend(FLAGS); //                             16
    code.extend([0x44, 0x89, 0xd8]); //                32: mov %r11d,%eax
    code.extend([0x41, 0x89, 0xcb]); //                35: mov %ecx,%r11d
    code.extend(go_behind(site, start + 38)?); //      38
    // The place: of base << 3 the sum of the third and the fourth byte.
    code.extend([0xf3, 0x49, 0x0f, 0xae, 0xc3]); //    50: rdfsbase %r11
    code.extend([0x42, 0x8d, 0x0c, 0xdd, 0, 0, 0, 0]); // 55: lea 0(,%r11,8),%ecx
    code.extend([0x0f, 0xc9]); //                      63: bswap %ecx
    code.extend([0x0f, 0xb6, 0xc1]); //                65: movzbl %cl,%eax
    code.extend([0x0f, 0xb6, 0xcd]); //                68: movzbl %ch,%ecx
    code.extend([0x8d, 0x0c, 0x08]); //                71: lea (%rax,%rcx),%ecx
    code.extend([0x0f, 0xb6, 0xc9]); //                74: movzbl %cl,%ecx
    code.extend([0x48, 0xb8]); //                      77: movabs $BASES,%rax
    code.extend((IDENTITY + BASES).to_le_bytes());
    code.extend([0x48, 0x8b, 0x04, 0xc8]); //          87: mov (%rax,%rcx,8),%rax
    code.extend([0x4a, 0x8d, 0x04, 0x18]); //          91: lea (%rax,%r11),%rax
    code.extend([0x48, 0x91, 0xe3, 10]); //            95: xchg %rax,%rcx; jrcxz 109
    code.extend(make_call(Identity::Thread, site, start + 99)?); // 99
    code.extend([0x48, 0xb9]); //                     109: movabs $TIDS,%rcx
    code.extend((IDENTITY + TIDS).to_le_bytes());
    code.extend([0x44, 0x8b, 0x1c, 0x81]); //         119: mov (%rcx,%rax,4),%r11d
    code.extend([0xeb, 16u8.wrapping_sub(125)]); //   123: jmp 16
    debug_assert!(code.len() == THREAD_SIZE);
    Some(code)
}

/// `lea BEHIND(%rip),%rcx; jmp BEHIND`, at `start`: the call of the site is done.
fn go_behind(site: u64, start: u64) -> Option<[u8; 12]> {
    let behind = site + SITE_SIZE;
    let [a, b, c, d] = distance(start + 7, behind)?;
    let [e, f, g, h] = distance(start + 12, behind)?;
    Some([0x48, 0x8d, 0x0d, a, b, c, d, 0xe9, e, f, g, h])
}

/// `mov $NUMBER,%eax; jmp SYSCALL`, at `start`: the call of the site is made.
fn make_call(which: Identity, site: u64, start: u64) -> Option<[u8; 10]> {
    let [a, b, c, d, e] = which.load_number();
    let [f, g, h, i] = distance(start + 10, site + MOVE_SIZE)?;
    Some([a, b, c, d, e, 0xe9, f, g, h, i])
}

fn with_distance(operation: u8, [a, b, c, d]: [u8; 4]) -> [u8; 5] {
    [operation, a, b, c, d]
}

fn distance(from: u64, to: u64) -> Option<[u8; 4]> {
    i32::try_from(to.wrapping_sub(from) as i64).ok().map(i32::to_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: u64 = 0x7f00_0000_1004;
    const STUB: u64 = 0x7f00_0010_2000;

    /// Where the distance at `at` in the code of the stub leads.
    fn target(code: &[u8], at: usize) -> u64 {
        let distance = i32::from_le_bytes(code[at..at + 4].try_into().unwrap());
        (STUB + at as u64 + 4).wrapping_add_signed(distance.into())
    }

    #[test]
    fn a_site_is_what_compilers_write() {
        let own = Caller::Own(Identity::Process);
        assert_eq!(own.site(), [0xb8, 39, 0, 0, 0, 0x0f, 5]);
        assert_eq!(Caller::Own(Identity::Thread).site(), [0xb8, 186, 0, 0, 0, 0x0f, 5]);
        assert_eq!(Caller::of(own.site(), Identity::Process), Some(own));
        assert_eq!(Caller::of(own.site(), Identity::Thread), None);
        assert_eq!(Caller::of(Caller::Any.site(), Identity::Thread), Some(Caller::Any));
        assert_eq!((Identity::of(39), Identity::of(186)), (Some(Identity::Process), Some(Identity::Thread)));
        assert_eq!((Identity::of(38), Identity::of(39 | 1 << 32)), (None, None));
    }

    #[test]
    fn jumps_go_there_and_back() {
        let there = jump(SITE, STUB).unwrap();
        let distance = i32::from_le_bytes(there[1..].try_into().unwrap());
        assert_eq!((SITE + 5).wrapping_add_signed(distance.into()), STUB);
        let code = stub(Caller::Own(Identity::Process), SITE, STUB).unwrap();
        assert_eq!(code[20..28], IDENTITY.to_le_bytes());
        assert_eq!((code[31], &code[44..49]), (12, &[0xb8, 39, 0, 0, 0][..]));
        assert_eq!((target(&code, 35), target(&code, 40), target(&code, 50)), (SITE + 7, SITE + 7, SITE + 5));
        let code = stub(Caller::Own(Identity::Thread), SITE, STUB).unwrap();
        assert_eq!(code[1..9], (IDENTITY + 4).to_le_bytes());
        // Each jump leads to the beginning of what it is for.
        assert_eq!((13 + usize::from(code[12]), &code[50..55]), (50, &[0xf3, 0x49, 0x0f, 0xae, 0xc3][..]));
        assert_eq!((99 + usize::from(code[98]), &code[109..111]), (109, &[0x48, 0xb9][..]));
        assert_eq!((125i64 + i64::from(code[124] as i8), &code[16..32]), (16, &FLAGS[..]));
        assert_eq!((target(&code, 41), target(&code, 46), target(&code, 105)), (SITE + 7, SITE + 7, SITE + 5));
        assert_eq!((&code[99..104], code.len()), (&[0xb8, 186, 0, 0, 0][..], THREAD_SIZE));
    }

    #[test]
    fn a_thread_s_place_is_found_by_its_base() {
        let base = |thread: u64| 0x7fff_f7d8_a6c0 - thread * 0x80_1000;
        // As the code does it.
        let by_code = |base: u64| {
            let [low, high, ..] = ((base as u32) << 3).swap_bytes().to_le_bytes();
            u64::from(low.wrapping_add(high))
        };
        // Stacks of 8 MiB and of 256 KiB, each with a page that guards it; and aligned to 2 MiB.
        for (distance, threads) in [(0x80_1000, 56), (0x4_1000, 100), (0xa0_0000, THREADS)] {
            let places = (0..threads).map(|thread| 0x7fff_f7d8_a6c0 - thread * distance);
            let places: Vec<u64> = places.inspect(|&base| assert_eq!(by_code(base), place(base))).map(place).collect();
            let mut different = places.clone();
            different.sort_unstable();
            different.dedup();
            assert!(different.len() as u64 * 10 >= threads * 8, "{distance:x}: {places:?}");
        }
        assert_eq!(base_entry(Some(base(3))).wrapping_add(base(3)), 0);
        // What no base makes 0, not even that of a thread that has none.
        assert!([0, base(0)].iter().all(|base| base_entry(None).wrapping_add(*base) != 0));
        let end = |offset: u64, size: u64| offset + size;
        assert!(
            end(Identity::Thread.offset(), 4) <= tid_offset(0) && end(tid_offset(THREADS - 1), 4) <= base_offset(0)
        );
        assert!(end(base_offset(THREADS - 1), 8) <= 4096);
    }

    #[test]
    fn the_library_s_function_finds_each_answer_and_makes_all_other_calls() {
        let code = stub(Caller::Any, SITE, STUB).unwrap();
        assert_eq!(code[..5], LOAD_LAST);
        assert_eq!(code[5..11], [0x48, 0x8d, 0x48, 0xd9, 0xe3, 14]);
        assert_eq!(code[11..20], [0x48, 0x8d, 0x88, 0x46, 0xff, 0xff, 0xff, 0xe3, 59]);
        assert_eq!(target(&code, 21), SITE + 5);
        // 14 behind the first jump, 59 behind the second.
        let (process, thread) = (CHOICE_SIZE, CHOICE_SIZE + PROCESS_SIZE);
        assert_eq!((11 + 14, 20 + 59), (process, thread));
        for (start, size, call, number) in [(process, PROCESS_SIZE, 44, 39), (thread, THREAD_SIZE, 99, 186)] {
            assert_eq!((target(&code, start + call + 6), u64::from(code[start + call + 1])), (SITE + 5, number));
            assert_eq!(Caller::Any.lost_number(start as u64), Some(number));
            assert_eq!(Caller::Any.lost_number((start + size - 1) as u64), Some(number));
        }
        assert_eq!(code.len(), thread + THREAD_SIZE);
        assert_eq!((Caller::Any.lost_number(24), Caller::Own(Identity::Process).lost_number(30)), (None, None));
    }

    #[test]
    fn what_is_too_far_away_is_refused() {
        assert_eq!(jump(0x1000, 0x1_0000_0000), None);
        assert_eq!(stub(Caller::Own(Identity::Process), 0x1_0000_0000, 0x1000), None);
    }
}
