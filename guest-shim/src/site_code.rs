//! What stands in for a system call that a program makes again and again from one place, and that needs no
//! kernel, for machines where `syscall` itself costs ten times as much as the call.
//!
//! Compilers and C libraries write `mov $NUMBER,%eax; syscall`, and in the function for all calls
//! `mov 8(%rsp),%r9; syscall`. At such a *site* the first instruction becomes a
//! jump to a *stub*, which reads the answer from the process's identity page and jumps behind the `syscall`.
//! The `syscall` stays where it is: for whoever jumps there, and for the stub itself where the page holds 0.

use crate::layout::IDENTITY;
use crate::slot_code::{GETPID, GETTID};

/// Bytes of the two instructions of a site.
pub const SITE_SIZE: u64 = MOVE_SIZE + 2;

/// Bytes of the first of them, and of the jump that takes its place.
const MOVE_SIZE: u64 = 5;
/// Bytes of the code that answers one call.
const ANSWER_SIZE: usize = 54;
/// Bytes of the code that finds out which call it is.
const CHOICE_SIZE: usize = 25;
/// `mov 8(%rsp),%r9`: the last argument.
const LOAD_LAST: [u8; MOVE_SIZE as usize] = [0x4c, 0x8b, 0x4c, 0x24, 8];

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

    /// Where in the identity page its answer is, a doubleword; 0 for unknown.
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
        let answer = (offset as usize).checked_sub(CHOICE_SIZE)? / ANSWER_SIZE;
        match (self, answer) {
            (Self::Any, 0) => Some(GETPID.into()),
            (Self::Any, 1) => Some(GETTID.into()),
            _ => None,
        }
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
            code.extend([0xe3, (CHOICE_SIZE + ANSWER_SIZE) as u8 - 20]);
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

/// The code at `start` that answers a call of a site.
fn answer(which: Identity, site: u64, start: u64) -> Option<Vec<u8>> {
    let behind = site + SITE_SIZE;
    let mut code = Vec::with_capacity(ANSWER_SIZE);
    // None of these changes a flag.
    code.extend([0x0f, 0x90, 0xc0]); //                 0: seto %al
    code.extend([0x9f]); //                             3: lahf
    code.extend([0x0f, 0xb6, 0xcc]); //                 4: movzbl %ah,%ecx
    code.extend([0x8d, 0x04, 0xc5, 2, 0, 0, 0]); //     7: lea 2(,%rax,8),%eax: overflow, interrupts enabled
    code.extend([0x88, 0xc5]); //                      14: mov %al,%ch
    code.extend([0x41, 0x89, 0xcb]); //                16: mov %ecx,%r11d
    code.extend([0xa1]); //                            19: movabs ANSWER,%eax
    code.extend((IDENTITY + which.offset()).to_le_bytes());
    code.extend([0x89, 0xc1, 0xe3, 12]); //            28: mov %eax,%ecx; jrcxz 44
    code.extend([0x48, 0x8d, 0x0d]); //                32: lea BEHIND(%rip),%rcx
    code.extend(distance(start + 39, behind)?);
    code.extend(with_distance(0xe9, distance(start + 44, behind)?)); // 39: jmp BEHIND
    code.extend(which.load_number()); //               44: mov $NUMBER,%eax; jmp SYSCALL
    code.extend(with_distance(0xe9, distance(start + ANSWER_SIZE as u64, site + MOVE_SIZE)?));
    debug_assert!(code.len() == ANSWER_SIZE);
    Some(code)
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
        let code = stub(Caller::Own(Identity::Thread), SITE, STUB).unwrap();
        assert_eq!(code[20..28], (IDENTITY + 4).to_le_bytes());
        assert_eq!((code[31], &code[44..49]), (12, &[0xb8, 186, 0, 0, 0][..]));
        assert_eq!((target(&code, 35), target(&code, 40), target(&code, 50)), (SITE + 7, SITE + 7, SITE + 5));
        assert_eq!(code.len(), ANSWER_SIZE);
    }

    #[test]
    fn the_library_s_function_finds_each_answer_and_makes_all_other_calls() {
        let code = stub(Caller::Any, SITE, STUB).unwrap();
        assert_eq!(code[..5], LOAD_LAST);
        assert_eq!(code[5..11], [0x48, 0x8d, 0x48, 0xd9, 0xe3, 14]);
        assert_eq!(code[11..20], [0x48, 0x8d, 0x88, 0x46, 0xff, 0xff, 0xff, 0xe3, 59]);
        assert_eq!(target(&code, 21), SITE + 5);
        // 14 behind the first jump, 59 behind the second.
        assert_eq!((11 + 14, 20 + 59), (CHOICE_SIZE, CHOICE_SIZE + ANSWER_SIZE));
        for (start, number) in [(CHOICE_SIZE, 39), (CHOICE_SIZE + ANSWER_SIZE, 186)] {
            assert_eq!((target(&code, start + 40), target(&code, start + 50)), (SITE + 7, SITE + 5));
            assert_eq!(u64::from(code[start + 45]), number);
            assert_eq!(Caller::Any.lost_number(start as u64), Some(number));
            assert_eq!(Caller::Any.lost_number((start + ANSWER_SIZE - 1) as u64), Some(number));
        }
        assert_eq!((Caller::Any.lost_number(24), Caller::Own(Identity::Process).lost_number(30)), (None, None));
    }

    #[test]
    fn what_is_too_far_away_is_refused() {
        assert_eq!(jump(0x1000, 0x1_0000_0000), None);
        assert_eq!(stub(Caller::Own(Identity::Process), 0x1_0000_0000, 0x1000), None);
    }
}
