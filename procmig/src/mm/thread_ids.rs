//! The IDs of the threads of an address space, told to them without a call: for the stubs of [`vmm::site_code`].
//!
//! What each thread has of its own in ring 3 is the base of FS, so the identity page says whose ID belongs to which.
//! That is right as long as each base is changed by calls alone. `wrfsbase` would do it without one, so all code is
//! looked through for it first; where it is found, or code may be made as the program runs, threads ask.

use super::gate::Gate;
use super::identity::Member;
use super::object::ObjectError;
use super::regions::{Backing, Protection, Region, RegionFlags};
use super::rewrite::is_code;
use super::space::{AddressSpace, Inner};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::frames::AtLimit;
use vmm::machine::Machine;
use vmm::paging;
use vmm::site_code::{self, base_entry, base_offset, tid_offset};

/// Most bytes of code that are looked through, a millisecond for each MiB that is in memory. The address space is
/// locked meanwhile: a thread that has a fault waits.
const MAX_CODE: u64 = 16 << 20;
/// How often that is done at most for one address space, for each library that comes may change what is true.
const MAX_LOOKS: u32 = 8;
/// How often threads ask in vain before it is done: a look costs as much as some hundred calls.
const ASKED: u32 = 16;
/// Pages of code that are read at once.
const AT_ONCE: u64 = 32;
/// Most bytes before an instruction's opcode.
const MAX_PREFIXES: usize = 12;

/// What is known of the code in an address space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// All that was ever here is files', and some of it has not been looked through.
    #[default]
    Unseen,
    /// None of it changes the base of FS without a call.
    KeepsBases,
    /// Some of it may.
    Any,
}

/// What is known of the bases of FS in an address space.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bases {
    pub(super) code: Code,
    /// How often it was looked through.
    looks: u32,
    /// How often threads have asked since there was something to look at.
    asked: u32,
}

impl Bases {
    /// What is known of code that has come from another node.
    pub(super) fn of(code: Code) -> Self {
        Self { code, ..Self::default() }
    }
}

/// Whether a thread is told its ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is.
    Yes,
    /// Another has its base or its place, memory is short, or it is too early to look at the code.
    NotNow,
    /// It cannot be.
    Never,
}

/// What is known of a thread's base of FS.
#[derive(Debug, Default)]
pub(super) struct Base {
    /// What it was set to, before which the thread was not in the guest.
    pub(super) value: Option<u64>,
    /// Its place in the identity page: nobody else's as long as the thread may be reading what is there.
    place: Option<u64>,
}

impl AddressSpace {
    /// A thread's base of FS is this from now on. The thread is not in the guest.
    pub fn set_base(&self, gate: &Gate, base: u64) {
        let inner = &mut *self.lock();
        let at = inner.members.iter().position(|member| member.gate.is(gate));
        let Some(at) = at.filter(|&at| inner.members[at].base.value != Some(base)) else { return };
        inner.leave_place(&self.machine, at);
        let before = inner.members[at].base.value.replace(base);
        // A `vfork` child has its parent's: nobody can be told by it who they are.
        let same = |member: &&Member| member.base.value == Some(base);
        let places: Vec<u64> = inner.members.iter().filter(same).filter_map(|member| member.base.place).collect();
        places.into_iter().for_each(|place| inner.write_base(&self.machine, place, None));
        inner.return_to_place(&self.machine, before);
    }

    /// Has a thread's ID in the identity page, if it can be. The thread is not in the guest.
    pub fn tell_thread(&self, gate: &Gate) -> Told {
        let inner = &mut *self.lock();
        if inner.members.len() == 1 {
            return Told::Yes;
        }
        match self.see_code(inner) {
            Ok(()) if self.show_identity(inner).is_ok() => {}
            Ok(()) => return Told::NotNow,
            Err(told) => return told,
        }
        let Some(at) = inner.members.iter().position(|member| member.gate.is(gate)) else { return Told::Never };
        let Some(base) = inner.members[at].base.value.filter(|&base| base != 0) else { return Told::NotNow };
        let place = site_code::place(base);
        let mut others = inner.members.iter().enumerate().filter(|&(i, _)| i != at).map(|(_, member)| &member.base);
        if others.any(|other| other.value == Some(base) || other.place == Some(place)) {
            return Told::NotNow;
        }
        let member = &mut inner.members[at];
        member.base.place = Some(place);
        let tid = member.tid as u32;
        let Some(page) = &inner.identity else { return Told::Never };
        self.machine.ram().store_u32(page.frame.address() + tid_offset(place), tid);
        inner.write_base(&self.machine, place, Some(base));
        Told::Yes
    }

    /// Sees to it that no code here changes a base but by a call; otherwise what a thread is to be told.
    fn see_code(&self, inner: &mut Inner) -> Result<(), Told> {
        match inner.bases.code {
            Code::KeepsBases => return Ok(()),
            Code::Any => return Err(Told::Never),
            Code::Unseen if inner.bases.looks >= MAX_LOOKS => return Err(Told::Never),
            Code::Unseen => {}
        }
        inner.bases.asked += 1;
        if inner.bases.asked < ASKED {
            return Err(Told::NotNow);
        }
        let writes = self.some_code_writes_base(inner)?;
        inner.bases.looks += 1;
        if writes {
            inner.bases.code = Code::Any;
            return Err(Told::Never);
        }
        inner.bases.code = Code::KeepsBases;
        let placed = inner.members.iter().filter(|member| member.base.place.is_some());
        placed.for_each(|member| inner.return_to_place(&self.machine, member.base.value));
        Ok(())
    }

    fn some_code_writes_base(&self, inner: &Inner) -> Result<bool, Told> {
        let areas = || inner.regions.iter().filter(|region| is_program_code(region));
        if areas().map(Region::length).sum::<u64>() > MAX_CODE {
            return Err(Told::Never);
        }
        let mut search = Search::default();
        let mut end = 0;
        for region in areas() {
            if region.start != end {
                search = Search::default();
            }
            end = region.end;
            if self.area_writes_base(region, &mut search)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at the pages that the file has. What was rewritten in memory changes nothing of this.
    fn area_writes_base(&self, region: &Region, search: &mut Search) -> Result<bool, Told> {
        let Backing::Object { object, .. } = &region.backing else { return Err(Told::Never) };
        // One of another host's would have to come from there.
        if !is_code(region) || object.read_file().is_none() {
            return Err(Told::Never);
        }
        let first = region.object_page(region.start);
        let Range { mut start, end } = first..first + region.length() / PAGE_SIZE;
        while start < end {
            // What is read here stays as long as the file is mapped.
            if !self.has_plenty() {
                return Err(Told::NotNow);
            }
            let found = match object.get(start..end.min(start + AT_ONCE), start, false, AtLimit::Refuse) {
                Ok(found) => found,
                Err(ObjectError::BeyondEnd) => break,
                Err(ObjectError::Shortage(_)) => return Err(Told::NotNow),
                Err(ObjectError::Io(_)) => return Err(Told::Never),
            };
            let frames: Vec<Frame> = found.iter().map(|&(_, frame)| frame).collect();
            // Those in a row from the first on, which is always among them.
            let row = found.iter().zip(start..).take_while(|((page, _), expected)| page == expected).count();
            let writes = frames[..row].iter().any(|&frame| search.finds(&self.bytes_of(frame)));
            self.machine.frames().release_all(&frames);
            if writes {
                return Ok(true);
            }
            start += row as u64;
        }
        Ok(false)
    }

    /// Before what is in `start..end` goes, or cannot be run any more.
    pub(super) fn code_goes(&self, inner: &mut Inner, start: u64, end: u64) {
        if inner.bases.code != Code::Unseen {
            return;
        }
        // It may have changed bases if it was run, and it was not where nothing was mapped yet.
        let mut search = Search::default();
        let areas = inner.regions.overlapping(start, end).filter(|region| is_program_code(region));
        let writes = areas.into_iter().any(|region| {
            let (start, end) = (start.max(region.start), end.min(region.end));
            let mut writes = end - start > MAX_CODE;
            inner.tables.for_each_in(start, end, &mut |_, entry, large| {
                writes = writes || large || search.finds(&self.bytes_of(paging::frame(entry)));
            });
            writes
        });
        if writes {
            inner.bases.code = Code::Any;
        }
    }
}

impl Inner {
    /// Before an area comes that is like this one.
    pub(super) fn code_comes(&mut self, machine: &Machine, region: &Region) {
        if !is_program_code(region) {
            return;
        }
        if is_code(region) && self.bases.code != Code::Any {
            (self.bases.code, self.bases.asked) = (Code::Unseen, 0);
            self.leave_all_places(machine);
        } else {
            self.any_code_comes(machine);
        }
    }

    /// Before code comes of which nothing is known.
    pub(super) fn any_code_comes(&mut self, machine: &Machine) {
        self.bases.code = Code::Any;
        self.leave_all_places(machine);
    }

    /// A thread is out of the guest, and its base is not what it was, or nobody's.
    pub(super) fn leave_place(&mut self, machine: &Machine, member: usize) {
        if let Some(place) = self.members[member].base.place.take() {
            self.write_base(machine, place, None);
        }
    }

    /// Nobody is told any more. A thread that is reading what is at its place reads it to the end.
    fn leave_all_places(&self, machine: &Machine) {
        let places = self.members.iter().filter_map(|member| member.base.place);
        places.for_each(|place| self.write_base(machine, place, None));
    }

    /// A thread whose place was left is told again if no other has its base now. If it is reading what is there it finds
    /// its own ID.
    pub(super) fn return_to_place(&self, machine: &Machine, base: Option<u64>) {
        let mut same = self.members.iter().filter(|member| member.base.value == base);
        if self.bases.code == Code::KeepsBases
            && base.is_some()
            && let (Some(member), None) = (same.next(), same.next())
            && let Some(place) = member.base.place
        {
            self.write_base(machine, place, base);
        }
    }

    fn write_base(&self, machine: &Machine, place: u64, base: Option<u64>) {
        if let Some(page) = &self.identity {
            machine.ram().store(page.frame.address() + base_offset(place), base_entry(base));
        }
    }
}

fn is_program_code(region: &Region) -> bool {
    region.protection.contains(Protection::EXECUTE) && !region.flags.contains(RegionFlags::SPECIAL)
}

/// A search for `wrfsbase` in code that comes piece by piece.
#[derive(Default)]
struct Search {
    /// The end of what has been searched, and the piece that is.
    bytes: Vec<u8>,
}

impl Search {
    /// Whether it is in `piece`, or begins before it.
    fn finds(&mut self, piece: &[u8]) -> bool {
        self.bytes.drain(..self.bytes.len().saturating_sub(MAX_PREFIXES + 2));
        self.bytes.extend_from_slice(piece);
        let opcodes = self.bytes.windows(3).enumerate();
        let mut likely = opcodes.filter(|(_, bytes)| bytes[1] == 0xae && bytes[0] == 0x0f && bytes[2] & 0xf8 == 0xd0);
        likely.any(|(at, _)| ends_with_repeat(&self.bytes[..at]))
    }
}

/// Whether F3 is among the prefixes at the end of this: without it the opcode is another instruction's.
fn ends_with_repeat(code: &[u8]) -> bool {
    let prefixes = code.iter().rev().take(MAX_PREFIXES);
    let mut prefixes = prefixes
        .take_while(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3));
    prefixes.any(|&byte| byte == 0xf3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `wrfsbase %rax`, `%r11` and `%eax`, and with prefixes in the way.
    const WRITES: [&[u8]; 5] = [
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],
        &[0xf3, 0x49, 0x0f, 0xae, 0xd3],
        &[0xf3, 0x0f, 0xae, 0xd0],
        &[0xf3, 0x2e, 0x67, 0x4f, 0x0f, 0xae, 0xd7],
        &[0xf3, 0x48, 0x2e, 0x0f, 0xae, 0xd0],
    ];

    #[test]
    fn wrfsbase_is_found_wherever_pages_divide_it() {
        for code in WRITES {
            for at in 0..=code.len() {
                let mut search = Search::default();
                let mut first = vec![0x90; 64];
                first.extend(&code[..at]);
                let mut second = code[at..].to_vec();
                second.extend([0xc3; 64]);
                assert_eq!(search.finds(&first), at == code.len(), "{code:x?} {at}");
                assert!(search.finds(&second), "{code:x?} {at}");
            }
        }
    }

    #[test]
    fn what_looks_like_it_is_not_it() {
        let others: [&[u8]; 6] = [
            // rdfsbase %r11; rdgsbase %rax; wrgsbase %rax
            &[0xf3, 0x49, 0x0f, 0xae, 0xc3],
            &[0xf3, 0x48, 0x0f, 0xae, 0xc8],
            &[0xf3, 0x48, 0x0f, 0xae, 0xd8],
            // ldmxcsr (%rsp), and what is no instruction without its prefix
            &[0x0f, 0xae, 0x14, 0x24],
            &[0x90, 0x48, 0x0f, 0xae, 0xd0],
            // The prefix is another instruction's.
            &[0xf3, 0x90, 0x48, 0x0f, 0xae, 0xd0],
        ];
        for code in others {
            let mut search = Search::default();
            assert!(!search.finds(code) && !search.finds(&[0x90; 32]), "{code:x?}");
        }
    }
}
