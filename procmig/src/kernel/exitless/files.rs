//! Calls on files at hand that need not wait.

use super::super::handed::HandedFile;
use super::super::syscalls::{Manner, epoll_room};
use super::super::thread::Thread;
use crate::mm::{Access, AddressSpace, Part};
use crate::wire::file_kind::Kind;
use nix::errno::Errno;
use vmm::call_slot::{Answer, PostedCall};

/// Most parts of a vector that are looked at here.
const MOST_PARTS: u64 = 64;

/// From so many bytes on, moving them takes longer than a thread waits for a call as a rule.
const MANY: u64 = 128 << 10;

/// Whether a call, if it is served here, takes long for all that it has to copy.
pub fn is_long(call: &PostedCall) -> bool {
    let moves =
        matches!(i64::from(call.number), libc::SYS_read | libc::SYS_write | libc::SYS_pread64 | libc::SYS_pwrite64);
    moves && call.arguments[2] >= MANY
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// Serves a call; `None` if its thread must make it. Only what succeeds is answered: an error may be one
/// of the place where it is found, or come with a signal.
pub fn serve(thread: &Thread, space: &AddressSpace, call: &PostedCall) -> Option<Answer> {
    let process = &thread.process;
    let PostedCall { number, arguments } = call;
    let file = process.descriptors.file(arguments[0] as i32)?;
    if matches!(i64::from(*number), libc::SYS_epoll_wait | libc::SYS_epoll_pwait) {
        let answer = events(&file, space, *number, arguments);
        thread.tally.exitless_local_calls.add(answer.is_some().into());
        return answer;
    }
    let alone = process.is_single_threaded();
    let manner = Manner::of(&file, (*number).into(), arguments)?;
    let transfer = |way, parts| transfer(&file, space, alone, way, parts, manner.at);
    let answer = match i64::from(*number) {
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_recvfrom => transfer(Way::Read, vec![part(arguments)?]),
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_sendto => transfer(Way::Write, vec![part(arguments)?]),
        libc::SYS_readv => transfer(Way::Read, vector(space, arguments)?),
        libc::SYS_writev => transfer(Way::Write, vector(space, arguments)?),
        libc::SYS_lseek => {
            let offset = file.seek(arguments[1] as i64, arguments[2] as i32).ok()?;
            Some(Answer::Value(offset as i64))
        }
        libc::SYS_fstat => status(&file, space, arguments[1]),
        libc::SYS_newfstatat if arguments[3] == libc::AT_EMPTY_PATH as u64 => {
            let mut first = [1];
            if !space.read_present(arguments[1], &mut first) || first != [0] {
                return None;
            }
            status(&file, space, arguments[2])
        }
        _ => None,
    };
    if matches!(answer, Some(Answer::Value(_))) {
        thread.tally.exitless_local_calls.add(1);
    }
    answer
}

fn part(arguments: &[u64; 6]) -> Option<Part> {
    let [_, address, length, ..] = *arguments;
    (length > 0).then_some(Part { address, length })
}

/// The parts of an `iovec` array.
fn vector(space: &AddressSpace, arguments: &[u64; 6]) -> Option<Vec<Part>> {
    let [_, at, count, ..] = *arguments;
    if !(1..=MOST_PARTS).contains(&count) {
        return None;
    }
    let mut bytes = vec![0; count as usize * 16];
    if !space.read_present(at, &mut bytes) {
        return None;
    }
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| bytes[i * 8 + k]));
    let parts = (0..count as usize).map(|i| Part { address: word(i * 2), length: word(i * 2 + 1) });
    let parts: Vec<Part> = parts.filter(|part| part.length > 0).collect();
    (!parts.is_empty()).then_some(parts)
}

fn status(file: &HandedFile, space: &AddressSpace, at: u64) -> Option<Answer> {
    let bytes = file.status().ok()?;
    space.write_present(at, &bytes).then_some(Answer::Value(0))
}

/// Events of a set that are there already.
fn events(set: &HandedFile, space: &AddressSpace, number: u32, arguments: &[u64; 6]) -> Option<Answer> {
    let has_mask = i64::from(number) == libc::SYS_epoll_pwait && arguments[4] != 0;
    if set.kind() != Kind::Epoll || set.is_home_only() || has_mask {
        return None;
    }
    let room = epoll_room(arguments)?;
    // SAFETY: the places are valid while the memory is held.
    let count = space.with_present(&[room], Access::Write, |places| unsafe { set.events(places) })?.ok()?;
    let is_over = count > 0 || arguments[3] as i32 == 0;
    is_over.then_some(Answer::Value(count as i64))
}

/// Moves bytes once. What moves only a part of what was asked for, where the rest may follow, is left to
/// the thread, which goes on behind that. `alone`: the process has no other thread.
fn transfer(
    file: &HandedFile,
    space: &AddressSpace,
    alone: bool,
    way: Way,
    parts: Vec<Part>,
    offset: Option<i64>,
) -> Option<Answer> {
    let wanted = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.length))?;
    let moved = match way {
        // SAFETY: the places are valid while the memory is held.
        Way::Read => space.with_present(&parts, Access::Write, |places| unsafe { file.read(places, offset) }),
        // Nobody but the thread, which waits, can want its memory meanwhile.
        // SAFETY: the places are valid while the memory is held.
        Way::Write if alone => space.with_present(&parts, Access::Read, |places| unsafe { file.write(places, offset) }),
        // SAFETY: the places are valid while their frames are pinned.
        Way::Write => space.with_present_pinned(&parts, |places| unsafe { file.write(places, offset) }),
    };
    let moved: Result<usize, Errno> = moved?;
    let count = moved.ok()? as u64;
    // The end of a file, or what a pipe or socket had: there is no more.
    let is_whole = count == wanted || (way == Way::Read && (count == 0 || !is_storage(file)));
    Some(if is_whole { Answer::Value(count as i64) } else { Answer::Exit { progress: count } })
}

/// Whether a read gives all that was asked for as long as there is any.
fn is_storage(file: &HandedFile) -> bool {
    matches!(file.kind(), Kind::Regular | Kind::Device)
}
