//! `docs/compatibility.md` is what the tables say, and the tables are what the personality does.
//!
//! `UPDATE_DOCS=1 cargo test -p procmig --test compatibility` writes the document anew.

use nix::errno::Errno;
use procmig::calls::partly::PARTLY;
use procmig::calls::{Class, Row, rows};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compatibility.md");
const DISPATCH: &str = include_str!("../src/kernel/syscalls/mod.rs");

const HEAD: &str = "\
# Compatibility

What becomes of each system call of a program in a node. This page is made from the tables that the node works
by; a test holds it to them (`UPDATE_DOCS=1 cargo test -p procmig --test compatibility` writes it anew), and
another holds the tables to the kernel's own list.

A program that asks for what is not served gets the error that a kernel without the feature gives, and the
node's log has a line with the call and the program, once for each process. System calls that Linux does not
have yet: `ENOSYS`.
";

const OUTSIDE: &str = "
## Not system calls

* 32-bit programs are refused (status 126), 32-bit system calls (`int 0x80`) are `SIGSEGV`, and so is a jump
  to a 32-bit code segment.
* The vsyscall page, which Linux has emulated for programs of before 2012, is not there: `SIGSEGV`.
* Files of `/proc/PID` of processes in the node show the guest where this page's calls are served in the node
  (`maps`, `stat`, `statm`, `status`, `limits`, `cmdline`, `environ`, `auxv`, `exe`); the others show its process
  at home.
* Where calls are expensive, a program that asks for `getpid` or `gettid` many times and then reads the instructions
  that do so finds a jump there, unless it makes them writable first; behind the end of the code, to the end of the
  page, it finds other bytes than the file's.

## At different nodes

Processes that know each other may be at different nodes after a migration. Then:

* Files of `/proc/PID` of a process at another node, and so `ps` and `top`, show its process at home.
* What a child has used is counted only as far as it was used at its parent's node.
* `shm_nattch` of a System V segment counts the other node, too, as long as that has it.
* What a child at another node had open is closed a moment after its end is seen, if it is killed.

Processes that share writable memory with others (`MAP_SHARED | MAP_ANONYMOUS` over `fork`, `vfork` until the child
runs a program) do not migrate as long as they do, and `mosmigrate` says so.

## On another host

What runs on another host than its home (`mosrun -r`) has no memory together with home, so two things are refused
there that are served in a node of the same host:

* Shared mappings of files that may be written: `mmap` answers `ENODEV`, as on a file system that cannot map files.
  Private mappings and those that are only read work; those show the file as it was when the node first mapped
  it. Anonymous shared memory works, and so does `/dev/zero`; `memfd_create`, `shm_open` and what is built on
  them (`multiprocessing` with locks, SQLite's write-ahead log, the linker of Go) do not.
* System V shared memory: `shmat` answers `ENOSYS`.

Clocks are home's. CPU time and what `/proc/cpuinfo` leads a program to choose by `cpuid` are those of the host that it
runs on, and `/proc/PID` of another process shows what home knows of it. What has such memory when it is to migrate to
another host stays at home, and `mosmigrate` says so.
";

fn wrapped<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for name in names {
        if column > 0 && column + name.len() + 3 > 110 {
            text.push('\n');
            column = 0;
        }
        if column > 0 {
            text.push(' ');
        }
        let _ = write!(text, "`{name}`");
        column += name.len() + 3;
    }
    text.push('\n');
    text
}

fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}

fn section(text: &mut String, title: &str, about: &str, belongs: impl Fn(&Row) -> bool) {
    let names: Vec<_> = rows().filter(|row| belongs(row)).map(|row| row.name).collect();
    let _ = write!(text, "\n## {title}\n\n{about}: {} calls.\n\n{}", names.len(), wrapped(names.iter().copied()));
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    let mut refused: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for row in rows() {
        if let Class::Refuse(errno) = row.class {
            refused.entry((row.why, errno_name(errno))).or_default().push(row.name);
        }
    }
    let count: usize = refused.values().map(Vec::len).sum();
    let _ = write!(text, "\n## Refused\n\n{count} calls.\n\n| calls | error | why |\n| --- | --- | --- |\n");
    let mut lines: Vec<_> = refused.into_iter().collect();
    lines.sort_by(|a, b| a.1.cmp(&b.1));
    for ((why, errno), names) in lines {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "| {} | `{errno}` | {why} |", names.join(" "));
    }
    text.push_str("\n## Served in part\n\n| calls | what is refused | error | why |\n| --- | --- | --- | --- |\n");
    for part in PARTLY {
        let names: Vec<_> = part.calls.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "| {} | {} | `{}` | {} |", names.join(" "), part.what, errno_name(part.errno), part.why);
    }
    section(&mut text, "Served in the node", "By the node alone; they work without a word to home", |row| {
        matches!(row.class, Class::Local | Class::Split(None))
    });
    section(
        &mut text,
        "Served in the node or at home",
        "The node answers what it knows, as of its own processes and their memory, and asks home for the rest",
        |row| matches!(row.class, Class::Split(Some(_))),
    );
    section(&mut text, "Served at home", "Home's kernel does them for the program", |row| {
        matches!(row.class, Class::Forward(_))
    });
    text.push_str(OUTSIDE);
    text
}

#[test]
fn the_document_says_what_the_tables_say() {
    let wanted = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(DOCUMENT, &wanted).expect("the document can be written");
    }
    let written = fs::read_to_string(DOCUMENT).unwrap_or_default();
    let first = written.lines().zip(wanted.lines()).find(|(old, new)| old != new);
    assert!(
        written == wanted,
        "docs/compatibility.md is not what the tables say ({first:?}): write it anew with\n\
         UPDATE_DOCS=1 cargo test -p procmig --test compatibility"
    );
}

/// The calls that the personality's dispatcher has arms for, other than to refuse them.
fn dispatched() -> BTreeSet<&'static str> {
    let from = DISPATCH.find("\nfn serve(").expect("the dispatcher");
    let body = &DISPATCH[from..];
    let body = &body[..body.find("\n}\n").expect("its end")];
    let mut calls = BTreeSet::new();
    for line in body.lines().filter(|line| !line.contains("=> Err(Errno::ENOSYS).into()")) {
        for word in line.split("libc::SYS_").skip(1) {
            let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(word.len());
            calls.insert(&word[..end]);
        }
    }
    assert!(calls.len() > 80, "the dispatcher is not read right: {calls:?}");
    calls
}

#[test]
fn the_dispatcher_serves_what_the_table_calls_local() {
    let dispatched = dispatched();
    for row in rows() {
        let served = dispatched.contains(row.name);
        match row.class {
            Class::Local | Class::Split(None) => assert!(served, "{} is local, but nobody serves it", row.name),
            Class::Forward(_) | Class::Refuse(_) => {
                assert!(!served, "{} is {:?}, but the node serves it", row.name, row.class);
            }
            Class::Split(Some(_)) => {}
        }
    }
}

#[test]
fn what_is_refused_says_why_and_nothing_else_does() {
    for row in rows() {
        let refused = matches!(row.class, Class::Refuse(_));
        assert_eq!(refused, row.why.len() > 10, "{}: {:?}", row.name, row.why);
        assert!(!row.why.contains(['|', '\n']), "{}", row.name);
    }
    for part in PARTLY {
        for call in part.calls {
            let row = rows().find(|row| row.name == *call).unwrap_or_else(|| panic!("{call} is no call"));
            assert!(!matches!(row.class, Class::Refuse(_)), "{call} is refused as a whole");
        }
    }
}
