//! Operations that are no system call of their own.

use super::connection::Connection;
use super::descriptors::{self, Making, Own};
use super::serve::{Next, Server};
use super::threads::{THREADS, lock};
use super::{command_line, control, end, files, kernel, lent, link, moving, remaking, report, segments, signals};
use crate::wire::op::{LentFile, Op};
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc;

fn failed(error: &io::Error) -> Next {
    number(-i64::from(error.raw_os_error().unwrap_or(libc::EIO)))
}

fn number(ret: i64) -> Next {
    Next::Pass(ret, Vec::new(), Vec::new())
}

/// Hands over a file, which is the deputy's own until then. The opening runs with the lock held that
/// keeps it out of children.
fn file<T: serde::Serialize>(open: impl FnOnce() -> Result<(T, OwnedFd), Errno>) -> Next {
    let making = descriptors::making();
    match open() {
        Ok((about, file)) => match (postcard::to_stdvec(&about), Own::new(file, &making)) {
            (Ok(payload), Ok(file)) => Next::Pass(0, payload, vec![file]),
            (_, Err(error)) => failed(&error),
            (Err(_), _) => number(-i64::from(libc::EIO)),
        },
        Err(errno) => number(-(errno as i64)),
    }
}

/// Bytes of a program that are sent along when it is opened: what is needed to see what it is, and often more.
const HEAD: u32 = 16 << 10;

/// Lends a file to a node of another host. What is said of it is followed by where it is to be had, if it is.
fn lent<T: serde::Serialize>(lend: impl FnOnce(&Making) -> Result<(T, Option<LentFile>), Errno>) -> Next {
    match lend(&descriptors::making()) {
        Ok((about, lent)) => {
            let payload = postcard::to_stdvec(&about).and_then(|payload| match lent {
                Some(lent) => postcard::to_extend(&lent, payload),
                None => Ok(payload),
            });
            payload.map_or_else(|_| number(-i64::from(libc::EIO)), |payload| Next::Pass(0, payload, Vec::new()))
        }
        Err(errno) => number(-(errno as i64)),
    }
}

/// Performs an operation for the thread `tid`, which is the calling one and blocks these stops.
pub(super) fn perform(op: Op, tid: i32, guest_blocks: u32) -> Next {
    match op {
        Op::NewThread => new_thread(guest_blocks).unwrap_or_else(|error| failed(&error)),
        Op::Fork => fork().unwrap_or_else(|error| failed(&error)),
        Op::OpenProgram { dirfd, path, flags } if link::is_remote() => lent(|making| {
            let (about, file) = files::open_program(dirfd, &path, flags)?;
            let head = lent::read_at(file.as_fd(), 0, HEAD)?;
            let lent = lent::lend(about.identity, about.path.clone(), head, making, || Ok(file))?;
            Ok((about, Some(lent)))
        }),
        Op::OpenProgram { dirfd, path, flags } => file(|| files::open_program(dirfd, &path, flags)),
        Op::CommitExec { name, argv } => {
            files::close_on_exec();
            segments::detach_all();
            signals::forget_handlers();
            command_line::set_name(&name);
            command_line::set_arguments(&argv);
            end::note_program(argv.first().unwrap_or(&name));
            number(0)
        }
        // The leader stays to serve its connection.
        Op::EndThread if tid == std::process::id() as i32 => Next::Nothing,
        Op::EndThread => Next::End,
        Op::Report { own, children } => {
            report::tell(own, children);
            Next::Nothing
        }
        Op::Exit { status } => end::exit(status),
        Op::DieBySignal { signal } => end::die(signal),
        Op::MapFile { fd, write } if link::is_remote() => lent(|making| files::lend(fd, write, making)),
        Op::MapFile { fd, write } => match files::map_file(fd, write) {
            Ok(identity) => match postcard::to_stdvec(&identity) {
                Ok(payload) => Next::Lend(payload, fd),
                Err(_) => number(-i64::from(libc::EIO)),
            },
            Err(errno) => number(-(errno as i64)),
        },
        Op::HandOver { fd } if files::may_hand_over(fd) => Next::Lend(Vec::new(), fd),
        Op::HandOver { .. } => number(-i64::from(libc::EOPNOTSUPP)),
        Op::AttachSegment { id, flags } => match segments::attach(id, flags) {
            Ok(info) => match postcard::to_stdvec(&info) {
                Ok(payload) => Next::Pass(0, payload, Vec::new()),
                Err(_) => number(-i64::from(libc::EIO)),
            },
            Err(errno) => number(-(errno as i64)),
        },
        Op::DetachSegment { address } => number(segments::detach(address)),
        Op::SetDisposition { signal, disposition } => number(signals::set_disposition(signal, disposition)),
        Op::MemoryFile { name, content, close_on_exec } => number(
            files::memory_file(name, &content, close_on_exec).map_or_else(|errno| -(errno as i64), descriptors::give),
        ),
        Op::ReadFile { path, limit } => match files::read_file(path, limit) {
            Ok(content) => Next::Pass(0, content, Vec::new()),
            Err(errno) => number(-(errno as i64)),
        },
        Op::Refuse { status, message } => end::refuse(status, &message),
    }
}

/// Starts a thread; as its guest thread does, it starts with the mask of the calling one.
fn new_thread(guest_blocks: u32) -> io::Result<Next> {
    let (ours, names, nodes) = if link::is_remote() {
        let ([ours], names) = connect()?;
        (ours, names, Vec::new())
    } else {
        let (ours, nodes) = descriptors::socketpair(&descriptors::making())?;
        (Connection::local(ours), Vec::new(), vec![nodes])
    };
    let (started, starts) = mpsc::sync_channel(1);
    std::thread::Builder::new().stack_size(control::STACK).spawn(move || match Server::new(ours, guest_blocks) {
        Ok(server) => {
            // The receiver waits for it.
            let _ = started.send(Some(kernel::gettid()));
            server.serve();
        }
        Err(_) => drop(started.send(None)),
    })?;
    match starts.recv() {
        Ok(Some(tid)) => Ok(Next::Pass(tid.into(), names, nodes)),
        _ => Err(io::ErrorKind::OutOfMemory.into()),
    }
}

/// As [`link::connect`], of connections that are known when the link is made again.
fn connect<const N: usize>() -> io::Result<([Connection; N], Vec<u8>)> {
    loop {
        let (connections, names, link) = link::connect()?;
        if remaking::is_there(lock(&link::LINK).as_ref(), &link) {
            return Ok((connections, names));
        }
        remaking::pause();
    }
}

/// Forks the process. In the child the calling thread is the only one; the locks that other threads
/// could hold are held by it, so that they are free there.
fn fork() -> io::Result<Next> {
    loop {
        if let Some(next) = try_fork()? {
            return Ok(next);
        }
        remaking::pause();
    }
}

/// The same, unless the link is being made again just then.
fn try_fork() -> io::Result<Option<Next>> {
    let remote = link::is_remote().then(link::connect).transpose()?;
    let making = descriptors::making();
    let relay = lock(&signals::RELAY);
    let mut threads = lock(&THREADS);
    let end_names = lock(&end::NAMES);
    let attached = lock(&segments::ATTACHED);
    let lent = lock(&lent::LENT);
    let link = lock(&link::LINK);
    let (control, call, names, nodes) = match remote {
        Some((_, _, of)) if !remaking::is_there(link.as_ref(), &of) => return Ok(None),
        Some(([control, call], names, _)) => (control, call, names, Vec::new()),
        None => {
            let (control, nodes_control) = descriptors::socketpair(&making)?;
            let (call, nodes_call) = descriptors::socketpair(&making)?;
            let nodes = vec![nodes_control, nodes_call];
            (Connection::local(control), Connection::local(call), Vec::new(), nodes)
        }
    };
    let connections = remaking::hold();
    let closing = lock(&descriptors::CLOSING);
    // SAFETY: the C library keeps its own locks sane over a fork, and the child goes on with what
    // this thread holds alone.
    let pid = unsafe { libc::fork() };
    drop(closing);
    drop(connections);
    let pid = Errno::result(pid)?;
    if pid != 0 {
        return Ok(Some(Next::Pass(pid.into(), names, nodes)));
    }
    threads.clear();
    drop((attached, end_names, threads, relay, link));
    for one in nodes {
        one.leak();
    }
    let mut keep = control::kept();
    keep.extend(lent.kept());
    drop(lent);
    keep.extend([control.as_raw_fd(), call.as_raw_fd()]);
    remaking::forget_all_but(&keep);
    descriptors::close_all_but(&keep);
    report::forget();
    moving::forget();
    end::forget();
    let started = signals::open(&making).and_then(|()| control::start(control));
    drop(making);
    if started.is_err() {
        end::control_lost();
    }
    Ok(Some(Next::Become(call)))
}
