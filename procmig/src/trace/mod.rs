//! Lines of `mosrun --trace`: system calls as strace prints them.

pub mod flags;
pub mod table;
mod value;

use crate::usermem::UserMemory;
use nix::errno::Errno;
use table::{Arg, Call, Returns};
use vmm::addr::GuestVirtAddr;

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It returned this; -4095 to -1 are errors.
    Returned(i64),
    /// It will never return.
    Gone,
}

/// One call, to be printed.
struct Printer<'a> {
    args: &'a [u64; 6],
    outcome: Outcome,
    memory: &'a dyn UserMemory,
}

/// Formats system call number `nr`, called `name` if it is known. What the call wrote is read from
/// `memory`, so this is to be called when it is done and before the program goes on.
pub fn format(nr: u64, name: Option<&str>, args: &[u64; 6], outcome: Outcome, memory: &dyn UserMemory) -> String {
    let printer = Printer { args, outcome, memory };
    let fallback;
    let name = match name {
        Some(name) => name,
        None => {
            fallback = format!("syscall_{nr:#x}");
            &fallback
        }
    };
    let call = table::find(name);
    let list = match (name, call) {
        ("futex", _) => printer.futex(),
        ("clone", _) => printer.clone(),
        (_, Some(call)) => printer.arguments(call),
        (_, None) => args.iter().map(|value| format!("{value:#x}")).collect(),
    };
    let returns = call.map_or(Returns::Number, |call| call.returns);
    format!("{name}({}) = {}", list.join(", "), result(outcome, returns))
}

/// What comes after the equals sign.
fn result(outcome: Outcome, returns: Returns) -> String {
    match outcome {
        Outcome::Gone => "?".to_owned(),
        _ if returns == Returns::Never => "?".to_owned(),
        Outcome::Returned(value @ -4095..=-1) => error(-value as i32),
        Outcome::Returned(value) if returns == Returns::Address => format!("{value:#x}"),
        Outcome::Returned(value) => value.to_string(),
    }
}

/// An error's number, as strace prints it.
fn error(number: i32) -> String {
    // What the kernel keeps to itself: the call is made again or breaks off with EINTR.
    let restarted = match number {
        512 => Some("ERESTARTSYS (To be restarted if SA_RESTART is set)"),
        513 => Some("ERESTARTNOINTR (To be restarted)"),
        514 => Some("ERESTARTNOHAND (To be restarted if no handler)"),
        516 => Some("ERESTART_RESTARTBLOCK (Interrupted by signal)"),
        _ => None,
    };
    if let Some(text) = restarted {
        return format!("? {text}");
    }
    match Errno::from_raw(number) {
        Errno::UnknownErrno => format!("-1 (errno {number})"),
        errno => {
            let text = std::io::Error::from_raw_os_error(number).to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            format!("-1 {errno:?} ({text})")
        }
    }
}

/// The line for a signal that is delivered.
pub fn format_signal(info: &crate::wire::control::SigInfo) -> String {
    let signal = flags::signal(info.signal());
    let word = |at: usize| i32::from_le_bytes(info.0[at..at + 4].try_into().expect("4 bytes"));
    let details = match info.code() {
        code @ (crate::signal::info::SI_USER | crate::signal::info::SI_TKILL | crate::signal::info::SI_QUEUE) => {
            let code = match code {
                crate::signal::info::SI_USER => "SI_USER",
                crate::signal::info::SI_TKILL => "SI_TKILL",
                _ => "SI_QUEUE",
            };
            format!("si_code={code}, si_pid={}, si_uid={}", word(16), word(20))
        }
        code if crate::signal::info::is_forced(info) => {
            let address = u64::from_le_bytes(info.0[16..24].try_into().expect("8 bytes"));
            format!("si_code={code}, si_addr={}", value::address(GuestVirtAddr(address)))
        }
        code if info.signal() == libc::SIGCHLD => {
            format!("si_code={code}, si_pid={}, si_uid={}, si_status={}", word(16), word(20), word(24))
        }
        code => format!("si_code={code}"),
    };
    format!("--- {signal} {{si_signo={signal}, {details}}} ---")
}

impl Printer<'_> {
    /// What the call wrote can be looked at.
    fn succeeded(&self) -> bool {
        matches!(self.outcome, Outcome::Returned(value) if value >= 0)
    }

    fn returned(&self) -> u64 {
        match self.outcome {
            Outcome::Returned(value) => value.max(0) as u64,
            Outcome::Gone => 0,
        }
    }

    fn arguments(&self, call: &Call) -> Vec<String> {
        call.args
            .iter()
            .enumerate()
            .take(self.args.len())
            .filter_map(|(index, &arg)| self.argument(index, arg))
            .collect()
    }

    /// `None`: the call does not have it.
    fn argument(&self, index: usize, arg: Arg) -> Option<String> {
        let raw = self.args[index];
        let at = GuestVirtAddr(raw);
        let memory = self.memory;
        let done = self.succeeded();
        // What could not be read, or was not written, is an address.
        let or_address = |text: Option<String>| text.unwrap_or_else(|| value::address(at));
        Some(match arg {
            Arg::Int => (raw as i32).to_string(),
            Arg::Long => (raw as i64).to_string(),
            Arg::Size => raw.to_string(),
            Arg::Hex if raw == 0 => "0".to_owned(),
            Arg::Hex => format!("{raw:#x}"),
            Arg::Mode => value::octal(raw),
            Arg::ModeIfCreated(of) => {
                let flags = self.args[of] as i32;
                let makes = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
                return makes.then(|| value::octal(raw));
            }
            Arg::DirFd if raw as i32 == libc::AT_FDCWD => "AT_FDCWD".to_owned(),
            Arg::DirFd => (raw as i32).to_string(),
            Arg::Address => value::address(at),
            Arg::Path => or_address(value::path(memory, at)),
            Arg::In(of) => or_address(value::bytes(memory, at, self.args[of])),
            Arg::Out => or_address(value::bytes(memory, at, self.returned()).filter(|_| done)),
            Arg::OutPath => or_address(value::path(memory, at).filter(|_| done)),
            Arg::InVector(of) => or_address(value::vector(memory, at, self.args[of], u64::MAX)),
            Arg::OutVector(of) => {
                or_address(value::vector(memory, at, self.args[of], self.returned()).filter(|_| done))
            }
            Arg::Strings => or_address(value::strings(memory, at)),
            Arg::Environment => match value::count(memory, at) {
                Some(1) => format!("{} /* 1 var */", value::address(at)),
                Some(count) => format!("{} /* {count} vars */", value::address(at)),
                None => value::address(at),
            },
            Arg::Named(names) => names.format(raw),
            Arg::Signal => flags::signal(raw as i32),
            Arg::SignalSet => or_address(value::signal_set(memory, at)),
            Arg::OutSignalSet => or_address(value::signal_set(memory, at).filter(|_| done)),
            Arg::Action => or_address(value::action(memory, at)),
            Arg::OutAction => or_address(value::action(memory, at).filter(|_| done)),
            Arg::Stack => or_address(value::stack(memory, at)),
            Arg::Time => or_address(value::time(memory, at, "tv_nsec")),
            Arg::OutTime => or_address(value::time(memory, at, "tv_nsec").filter(|_| done)),
            Arg::OutTimeval => or_address(value::time(memory, at, "tv_usec").filter(|_| done)),
            Arg::Times => or_address(value::times(memory, at)),
            Arg::OutInt => or_address(value::int(memory, at).filter(|_| done)),
            Arg::OutPair => or_address(value::pair(memory, at).filter(|_| done)),
            Arg::OutStatus => or_address(value::status(memory, at).filter(|_| done && self.returned() > 0)),
            Arg::OutStat => or_address(value::stat(memory, at).filter(|_| done)),
            Arg::Limit => or_address(value::limit(memory, at)),
            Arg::OutLimit => or_address(value::limit(memory, at).filter(|_| done)),
            Arg::Poll(of) => or_address(value::poll(memory, at, self.args[of])),
            Arg::Socket(of) => or_address(value::socket(memory, at, self.args[of])),
            Arg::OutName => or_address(value::name(memory, at).filter(|_| done)),
            Arg::Fcntl => match self.args[1] as i32 {
                libc::F_GETFD | libc::F_GETFL | libc::F_GETOWN | libc::F_GETPIPE_SZ | libc::F_GET_SEALS => return None,
                libc::F_SETFD => flags::FD_FLAGS.format(raw),
                libc::F_SETFL => flags::OPEN.format(raw),
                libc::F_DUPFD | libc::F_DUPFD_CLOEXEC | libc::F_SETPIPE_SZ | libc::F_SETOWN => (raw as i32).to_string(),
                _ => format!("{raw:#x}"),
            },
        })
    }

    /// `futex`, whose arguments depend on its operation.
    fn futex(&self) -> Vec<String> {
        let [word, operation, value, fourth, second, third] = *self.args;
        let address = |raw| value::address(GuestVirtAddr(raw));
        let number = |raw: u64| (raw as i32).to_string();
        let bits = |raw: u64| match raw as u32 {
            u32::MAX => "FUTEX_BITSET_MATCH_ANY".to_owned(),
            bits => format!("{bits:#x}"),
        };
        let time = || value::time(self.memory, GuestVirtAddr(fourth), "tv_nsec").unwrap_or_else(|| address(fourth));
        // strace joins the operation and this flag.
        let name = flags::FUTEX.format(operation).replace("|FUTEX_PRIVATE_FLAG", "_PRIVATE");
        let mut list = vec![address(word), name];
        match operation as i32 & 0x7f {
            libc::FUTEX_WAIT => list.extend([number(value), time()]),
            libc::FUTEX_WAKE => list.push(number(value)),
            libc::FUTEX_WAIT_BITSET => list.extend([number(value), time(), "NULL".to_owned(), bits(third)]),
            libc::FUTEX_WAKE_BITSET => {
                list.extend([number(value), "NULL".to_owned(), "NULL".to_owned(), bits(third)]);
            }
            libc::FUTEX_REQUEUE => list.extend([number(value), number(fourth), address(second)]),
            libc::FUTEX_CMP_REQUEUE => {
                list.extend([number(value), number(fourth), address(second), number(third)]);
            }
            libc::FUTEX_WAKE_OP => {
                list.extend([number(value), number(fourth), address(second), format!("{third:#x}")]);
            }
            libc::FUTEX_LOCK_PI | libc::FUTEX_UNLOCK_PI | libc::FUTEX_TRYLOCK_PI => {}
            _ => list.extend([value, fourth, second, third].map(|raw| format!("{raw:#x}"))),
        }
        list
    }

    /// `clone`, whose arguments depend on its flags and are printed by name.
    fn clone(&self) -> Vec<String> {
        let [bits, stack, parent, child, tls, _] = *self.args;
        let address = |raw| value::address(GuestVirtAddr(raw));
        let signal = (bits & 0xff) as i32;
        let mut names = flags::CLONE.format(bits & !0xff);
        match (signal, names.as_str()) {
            (0, _) => {}
            (_, "0") => names = flags::signal(signal),
            _ => names = format!("{names}|{}", flags::signal(signal)),
        }
        let mut list = vec![format!("child_stack={}", address(stack)), format!("flags={names}")];
        let has = |flag: i32| bits & flag as u64 != 0;
        if has(libc::CLONE_PARENT_SETTID) {
            list.push(format!("parent_tid={}", address(parent)));
        }
        if has(libc::CLONE_SETTLS) {
            list.push(format!("tls={}", address(tls)));
        }
        if has(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) {
            list.push(format!("child_tidptr={}", address(child)));
        }
        list
    }
}

#[cfg(test)]
mod tests;
