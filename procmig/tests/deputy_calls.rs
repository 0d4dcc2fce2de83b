//! Forwarded calls, performed by a real deputy.

mod deputy_support;

use deputy_support::{BASE, Deputy, attach};
use libc::*;
use nix::sys::wait::WaitStatus;
use procmig::wire::call::blocked;
use procmig::wire::control::{MAX_MESSAGE, ToDeputy, ToNode};
use procmig::wire::frame;
use procmig::wire::op::{Disposition, FileIdentity, Op, ProgramFile};
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const AT: u64 = AT_FDCWD as i64 as u64;

fn pipe(deputy: &mut Deputy) -> (u64, u64) {
    assert_eq!(deputy.sys(SYS_pipe2, &[BASE, 0]), 0);
    (deputy.memory.word(0) as u64, deputy.memory.word(4) as u64)
}

#[test]
fn files_are_written_read_and_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut d = Deputy::start();
    assert_eq!(d.sys(SYS_getppid, &[]), i64::from(std::process::id()));
    let path = d.memory.put(0, format!("{}/file\0", dir.path().display()).as_bytes());
    let fd = d.sys(SYS_openat, &[AT, path, (O_RDWR | O_CREAT) as u64, 0o600]);
    assert!(fd >= 0, "{fd}");
    let fd = fd as u64;
    let text = d.memory.put(1000, b"hello, deputy");
    assert_eq!(d.sys(SYS_write, &[fd, text, 13]), 13);
    assert_eq!(d.sys(SYS_lseek, &[fd, 0, SEEK_SET as u64]), 0);
    assert_eq!(d.sys(SYS_read, &[fd, BASE + 2000, 4000]), 13);
    assert_eq!(d.memory.get(2000, 14), b"hello, deputy\0");
    assert_eq!(d.sys(SYS_pread64, &[fd, BASE + 2000, 5, 7]), 5);
    assert_eq!(d.memory.get(2000, 6), b"deput,");
    assert_eq!(d.sys(SYS_newfstatat, &[AT, path, BASE + 3000, 0]), 0);
    assert_eq!(d.memory.get(3048, 8), 13u64.to_le_bytes());
    assert_eq!(d.sys(SYS_statx, &[AT, path, 0, STATX_ALL as u64, BASE + 3000]), 0);
    // Two parts out, three parts in.
    let vector = |parts: &[(u64, u64)]| {
        parts.iter().flat_map(|p| [p.0.to_le_bytes(), p.1.to_le_bytes()].concat()).collect::<Vec<u8>>()
    };
    let iov = d.memory.put(5000, &vector(&[(text, 5), (text + 7, 6)]));
    assert_eq!(d.sys(SYS_pwritev, &[fd, iov, 2, 0, 0]), 11);
    let iov = d.memory.put(5000, &vector(&[(BASE + 6000, 3), (0, 0), (BASE + 6100, 100)]));
    assert_eq!(d.sys(SYS_preadv, &[fd, iov, 3, 0, 0]), 13);
    assert_eq!((d.memory.get(6000, 4), d.memory.get(6100, 10)), (b"hel\0".to_vec(), b"lodeputyty".to_vec()));
    assert_eq!(d.sys(SYS_readlink, &[path, BASE, 100]), -i64::from(EINVAL));
    // Bad pointers and missing files.
    assert_eq!(d.sys(SYS_write, &[fd, 8, 10]), -i64::from(EFAULT));
    assert_eq!(d.sys(SYS_access, &[0, 0]), -i64::from(EFAULT));
    let none = d.memory.put(0, b"/nonexistent\0");
    assert_eq!(d.sys(SYS_access, &[none, 0]), -i64::from(ENOENT));
    // Read to the directory's end.
    let name = d.memory.put(0, format!("{}\0", dir.path().display()).as_bytes());
    let listing = d.sys(SYS_openat, &[AT, name, O_DIRECTORY as u64]) as u64;
    assert!(d.sys(SYS_getdents64, &[listing, BASE + 100, 4096]) >= 72);
    assert_eq!(d.sys(SYS_getdents64, &[listing, BASE + 100, 4096]), 0);
    assert!(d.sys(SYS_getcwd, &[BASE, 4096]) > 1);
    d.exit();
}

#[test]
fn large_buffers_travel_whole_and_larger_ones_are_cut() {
    let mut d = Deputy::start();
    d.memory = deputy_support::FakeMemory::new(40 << 20);
    let name = d.memory.put(0, b"big\0");
    let fd = d.sys(SYS_memfd_create, &[name, 0]) as u64;
    let pattern: Vec<u8> = (0..(20 << 20)).map(|i: u32| ((i * 7) >> 3) as u8).collect();
    d.memory.put(0, &pattern);
    let written = d.sys(SYS_write, &[fd, BASE, 20 << 20]);
    assert!(written > 15 << 20 && written < 16 << 20, "{written}");
    assert_eq!(d.sys(SYS_pread64, &[fd, BASE + (20 << 20), 20 << 20, 0]), written);
    assert!(d.memory.get(20 << 20, written as usize) == pattern[..written as usize]);
    assert_eq!(d.sys(SYS_getppid, &[]), i64::from(std::process::id()));
    d.exit();
}

#[test]
fn sockets_messages_polls_and_options_work() {
    let mut d = Deputy::start();
    assert_eq!(d.sys(SYS_socketpair, &[AF_UNIX as u64, SOCK_DGRAM as u64, 0, BASE]), 0);
    let (a, b) = (d.memory.word(0) as u64, d.memory.word(4) as u64);
    // A message of two parts with a descriptor.
    let q = |values: &[u64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    d.memory.put(1000, b"abcdef");
    d.memory.put(1100, &q(&[BASE + 1000, 2, BASE + 1003, 3]));
    d.memory.put(1200, &q(&[20, u64::from(SCM_RIGHTS as u32) << 32 | SOL_SOCKET as u64, a]));
    let message = d.memory.put(1300, &q(&[0, 0, BASE + 1100, 2, BASE + 1200, 24, 0]));
    assert_eq!(d.sys(SYS_sendmsg, &[a, message, 0]), 5);
    d.memory.put(2100, &q(&[BASE + 2000, 1, BASE + 2010, 100]));
    let message = d.memory.put(2300, &q(&[BASE + 2600, 100, BASE + 2100, 2, BASE + 2400, 64, 0]));
    assert_eq!(d.sys(SYS_recvmsg, &[b, message, 0]), 5);
    assert_eq!((d.memory.get(2000, 2), d.memory.get(2010, 5)), (b"a\0".to_vec(), b"bdef\0".to_vec()));
    assert_eq!(d.memory.get(2340, 8), 24u64.to_le_bytes(), "msg_controllen");
    let passed = d.memory.word(2416) as u64;
    assert!(passed > b && d.sys(SYS_fcntl, &[passed, F_GETFD as u64]) == 0);
    // Several messages at once.
    for n in 0..3 {
        d.memory.put(4000 + n * 16, &q(&[BASE + 1000, n as u64 + 1]));
        d.memory.put(5000 + n * 64, &q(&[0, 0, BASE + 4000 + n as u64 * 16, 1, 0, 0, 0, 0]));
    }
    assert_eq!(d.sys(SYS_sendmmsg, &[a, BASE + 5000, 3, 0]), 3);
    assert_eq!((d.memory.word(5056), d.memory.word(5184)), (1, 3));
    for n in 0..4 {
        d.memory.put(4000 + n * 16, &q(&[BASE + 6000 + n as u64 * 10, 10]));
    }
    d.memory.put(5192, &q(&[0, 0, BASE + 4048, 1, 0, 0, 0, 0]));
    assert_eq!(d.sys(SYS_recvmmsg, &[b, BASE + 5000, 4, MSG_DONTWAIT as u64, 0]), 3);
    assert_eq!((d.memory.word(5056), d.memory.word(5120), d.memory.word(5184)), (1, 2, 3));
    assert_eq!(d.memory.get(6020, 4), b"abc\0");
    // poll, select, epoll.
    assert_eq!(d.sys(SYS_write, &[a, BASE + 1000, 4]), 4);
    let polled = [(b as u32).to_le_bytes(), [POLLIN as u8, 0, 9, 9]].concat();
    d.memory.put(0, &polled);
    assert_eq!(d.sys(SYS_poll, &[BASE, 1, 1000]), 1);
    assert_eq!(d.memory.get(6, 2), [POLLIN as u8, 0]);
    d.memory.put(0, &(1u64 << b).to_le_bytes());
    assert_eq!(d.sys(SYS_pselect6, &[b + 1, BASE, 0, 0, 0, BASE + 9999]), 1);
    let epoll = d.sys(SYS_epoll_create1, &[0]) as u64;
    let event = d.memory.put(0, &[&(EPOLLIN as u32).to_le_bytes()[..], &77u64.to_le_bytes()].concat());
    assert_eq!(d.sys(SYS_epoll_ctl, &[epoll, EPOLL_CTL_ADD as u64, b, event]), 0);
    assert_eq!(d.sys(SYS_epoll_pwait, &[epoll, BASE + 100, 8, 1000, 0, 8]), 1);
    assert_eq!(d.memory.get(104, 8), 77u64.to_le_bytes());
    assert_eq!(d.sys(SYS_epoll_wait, &[epoll, BASE + 100, u64::MAX, 0]), -i64::from(EINVAL));
    // Options and addresses.
    d.memory.put(200, &100u32.to_le_bytes());
    assert_eq!(d.sys(SYS_getsockopt, &[b, SOL_SOCKET as u64, SO_TYPE as u64, BASE + 204, BASE + 200]), 0);
    assert_eq!((d.memory.word(200), d.memory.word(204)), (4, SOCK_DGRAM));
    d.memory.put(200, &i32::MAX.to_le_bytes());
    assert_eq!(d.sys(SYS_getsockname, &[b, BASE + 204, BASE + 200]), 0);
    assert_eq!(d.memory.word(200), 2);
    let filter = d.sys(SYS_setsockopt, &[b, SOL_SOCKET as u64, SO_ATTACH_FILTER as u64, BASE, 16]);
    assert_eq!(filter, -i64::from(EINVAL));
    // ioctl.
    assert_eq!(d.sys(SYS_ioctl, &[b, FIONREAD, BASE]), 0);
    assert_eq!(d.memory.word(0), 4);
    assert_eq!(d.sys(SYS_ioctl, &[b, TCGETS, BASE]), -i64::from(ENOTTY));
    assert_eq!(d.sys(SYS_ioctl, &[b, 0xffff_1234, BASE]), -i64::from(ENOTTY));
    d.exit();
}

#[test]
fn many_kinds_of_calls_give_what_the_kernel_gives() {
    let mut d = Deputy::start();
    assert_eq!(d.sys(SYS_uname, &[BASE]), 0);
    assert_eq!(d.memory.get(0, 6), b"Linux\0");
    assert_eq!(d.sys(SYS_prlimit64, &[0, RLIMIT_NOFILE as u64, 0, BASE]), 0);
    assert_eq!(d.sys(SYS_sysinfo, &[BASE]), 0);
    assert_eq!(d.sys(SYS_times, &[0]).signum(), 1);
    assert_eq!(d.sys(SYS_getrusage, &[0, BASE]), 0);
    assert!(d.sys(SYS_getgroups, &[0, 0]) >= 0);
    d.memory.put(0, &0x2008_0522u32.to_le_bytes());
    d.memory.put(4, &[0; 4]);
    assert_eq!(d.sys(SYS_capget, &[BASE, BASE + 8]), 0);
    assert_eq!(d.sys(SYS_prctl, &[PR_GET_NAME as u64, BASE]), 0);
    assert_eq!(d.sys(SYS_prctl, &[PR_SET_SECCOMP as u64, 1]), -i64::from(EINVAL));
    assert_eq!(d.sys(SYS_adjtimex, &[{ d.memory.put(0, &[1, 0, 0, 0]) }]), -i64::from(EPERM));
    let timer = d.sys(SYS_timerfd_create, &[CLOCK_MONOTONIC as u64, 0]) as u64;
    let when = [[0u64; 2].map(u64::to_le_bytes).concat(), [0, 1000u64].map(u64::to_le_bytes).concat()].concat();
    d.memory.put(0, &when);
    assert_eq!(d.sys(SYS_timerfd_settime, &[timer, 0, BASE, BASE + 100]), 0);
    assert_eq!(d.sys(SYS_read, &[timer, BASE, 8]), 8);
    // Semaphores, whose number only the kernel knows.
    let set = d.sys(SYS_semget, &[0, 3, 0o600 | IPC_CREAT as u64]) as u64;
    d.memory.put(0, &[1, 0, 2, 0, 3, 0]);
    d.memory.put(100, &[9; 16]);
    assert_eq!(d.sys(SYS_semctl, &[set, 0, SETALL as u64, BASE]), 0);
    assert_eq!(d.sys(SYS_semctl, &[set, 0, GETALL as u64, BASE + 100]), 0);
    assert_eq!(d.memory.get(100, 8), [1, 0, 2, 0, 3, 0, 9, 9]);
    assert_eq!(d.sys(SYS_semctl, &[set, 0, IPC_RMID as u64, 0]), 0);
    let queue = d.sys(SYS_msgget, &[0, 0o600 | IPC_CREAT as u64]) as u64;
    d.memory.put(0, &[&5u64.to_le_bytes()[..], b"note"].concat());
    assert_eq!(d.sys(SYS_msgsnd, &[queue, BASE, 4, 0]), 0);
    assert_eq!(d.sys(SYS_msgrcv, &[queue, BASE + 100, 50, 0, 0]), 4);
    assert_eq!(d.memory.get(100, 12), d.memory.get(0, 12));
    assert_eq!(d.sys(SYS_msgctl, &[queue, IPC_RMID as u64, 0]), 0);
    // A hostile or mistaken call answers like a kernel without it.
    assert_eq!(d.sys(SYS_ptrace, &[0]), -i64::from(EPERM));
    assert_eq!(d.sys(5000, &[0]), -i64::from(ENOSYS));
    assert_eq!(d.sys(SYS_getdents64, &[0, BASE, 0xffff_ffff_0000_1000]), -i64::from(ENOTDIR));
    d.exit();
}

#[test]
fn a_broken_pipe_raises_its_signal_with_the_reply_and_nothing_else_does() {
    let mut d = Deputy::start();
    let (reader, writer) = pipe(&mut d);
    assert_eq!(d.sys(SYS_close, &[reader]), 0);
    let reply = d.reply(SYS_write, &[writer, BASE, 4]);
    assert_eq!((reply.ret, reply.signals.len()), (-i64::from(EPIPE), 1));
    assert_eq!(reply.signals[0].signal(), SIGPIPE);
    assert!(d.reply(SYS_getppid, &[]).signals.is_empty());
    d.exit();
}

#[test]
fn signals_from_outside_and_children_are_relayed() {
    let mut d = Deputy::start();
    nix::sys::signal::kill(d.pid, nix::sys::signal::SIGTERM).unwrap();
    let (ToNode::Signal(info), _) = frame::receive(&d.control, MAX_MESSAGE).unwrap() else { panic!("no signal") };
    assert_eq!((info.signal(), info.code()), (SIGTERM, SI_USER));
    assert_eq!(info.0[16..20], std::process::id().to_le_bytes());
    assert!(d.is_alive());
    // A signal to itself comes by one way only.
    let own = d.pid.as_raw() as u64;
    let reply = d.reply(SYS_kill, &[own, SIGUSR1 as u64]);
    assert_eq!(reply.ret, 0);
    if reply.signals.is_empty() {
        let (ToNode::Signal(info), _) = frame::receive(&d.control, MAX_MESSAGE).unwrap() else { panic!("no signal") };
        assert_eq!(info.signal(), SIGUSR1);
    } else {
        assert_eq!(reply.signals[0].signal(), SIGUSR1);
    }
    d.exit();
}

#[test]
fn a_fork_is_a_real_child_that_is_waited_for() {
    let mut d = Deputy::start();
    let reply = d.op(&Op::Fork);
    assert_eq!(reply.descriptors.len(), 2);
    let mut ends = reply.descriptors.into_iter();
    let (control, call) = (ends.next().unwrap(), ends.next().unwrap());
    let mut child = Deputy {
        pid: nix::unistd::Pid::from_raw(reply.ret as i32),
        control: control.into(),
        call: procmig::channel::CallChannel::new(call.into()),
        memory: deputy_support::FakeMemory::new(1 << 16),
    };
    assert_eq!(child.sys(SYS_getppid, &[]), i64::from(d.pid.as_raw()));
    child.post(&Op::Exit { status: 7 });
    let reply = d.reply(SYS_wait4, &[u64::MAX, BASE, 0, BASE + 100]);
    assert_eq!(reply.ret, i64::from(child.pid.as_raw()));
    assert_eq!(d.memory.word(0), 7 << 8);
    let info = match reply.signals.first() {
        Some(&info) => info,
        None => {
            let (ToNode::Signal(info), _) = frame::receive(&d.control, MAX_MESSAGE).unwrap() else {
                panic!("no signal")
            };
            info
        }
    };
    assert_eq!((info.signal(), info.code()), (SIGCHLD, CLD_EXITED));
    assert_eq!(info.0[16..20], child.pid.as_raw().to_le_bytes());
    assert_eq!(info.0[24..28], 7i32.to_le_bytes());
    d.exit();
}

#[test]
fn a_thousand_threads_serve_connections_of_their_own() {
    let mut d = Deputy::start();
    let mut threads = Vec::new();
    for _ in 0..1000 {
        let mut reply = d.op(&Op::NewThread);
        assert!(reply.ret > 0, "{}", reply.ret);
        threads.push((reply.ret, procmig::channel::CallChannel::new(reply.descriptors.remove(0).into())));
    }
    let memory = deputy_support::FakeMemory::new(16);
    for (_, call) in &mut threads {
        call.begin_call(SYS_getpgrp as u32, &[0; 6], 0, &memory).unwrap();
    }
    for (_, call) in &mut threads {
        assert!(call.finish_call(&memory).unwrap().ret > 0);
        call.post(&Op::EndThread).unwrap();
    }
    let tasks = format!("/proc/{}/task", d.pid);
    let until = Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir(&tasks).unwrap().count() > 2 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(std::fs::read_dir(&tasks).unwrap().count(), 2);
    d.exit();
}

#[test]
fn the_deputys_own_descriptors_are_out_of_reach() {
    let mut d = Deputy::start();
    // When it answers it has started.
    assert_eq!(d.sys(SYS_getppid, &[]), i64::from(std::process::id()));
    let numbers = |d: &Deputy| {
        let open = std::fs::read_dir(format!("/proc/{}/fd", d.pid)).unwrap();
        open.filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u64>().ok()).collect::<Vec<_>>()
    };
    // Its signals, its two connections, and home's `/proc`.
    let own: Vec<u64> = numbers(&d).into_iter().filter(|&fd| fd >= 1024).collect();
    assert_eq!(own.len(), 4, "{own:?}");
    for &fd in &own {
        assert_eq!(d.sys(SYS_close, &[fd]), -i64::from(EBADF));
        assert_eq!(d.sys(SYS_dup2, &[0, fd]), -i64::from(EBADF));
        assert_eq!(d.sys(SYS_fcntl, &[fd, F_GETFD as u64]), -i64::from(EBADF));
    }
    assert_eq!(d.sys(SYS_close_range, &[3, u32::MAX.into(), 0]), 0);
    assert_eq!(d.sys(SYS_getppid, &[]), i64::from(std::process::id()));
    let left: Vec<u64> = numbers(&d).into_iter().filter(|&fd| fd > 2).collect();
    assert_eq!(left.len(), own.len());
    assert!(own.iter().all(|fd| left.contains(fd)));
    d.exit();
}

#[test]
fn exec_opens_programs_closes_descriptors_and_renames() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prog");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    let mut d = Deputy::start();
    let open = |d: &mut Deputy, path: &std::path::Path| {
        d.op(&Op::OpenProgram { dirfd: AT_FDCWD, path: path.to_str().unwrap().into(), flags: 0 })
    };
    assert_eq!(open(&mut d, &path).ret, -i64::from(EACCES));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let reply = open(&mut d, &path);
    assert_eq!((reply.ret, reply.descriptors.len()), (0, 1));
    let about: ProgramFile = postcard::from_bytes(&reply.payload).unwrap();
    assert_eq!((about.identity.size, about.path), (10, path.canonicalize().unwrap().to_str().unwrap().into()));
    assert_eq!(open(&mut d, dir.path()).ret, -i64::from(EACCES));
    assert_eq!(open(&mut d, &dir.path().join("none")).ret, -i64::from(ENOENT));
    assert_eq!(open(&mut d, "/dev/null".as_ref()).ret, -i64::from(EACCES));
    // What is close-on-exec goes, what is not stays, and so do the deputy's own.
    let name = d.memory.put(0, b"x\0");
    let stays = d.sys(SYS_memfd_create, &[name, 0]) as u64;
    let goes = d.sys(SYS_memfd_create, &[name, MFD_CLOEXEC.into()]) as u64;
    let argv = vec![b"renamed".to_vec(), b"with an argument that is longer than the old line".to_vec()];
    assert_eq!(d.op(&Op::CommitExec { name: b"renamed".to_vec(), argv: argv.clone() }).ret, 0);
    assert_eq!(d.sys(SYS_fcntl, &[stays, F_GETFD as u64]), 0);
    assert_eq!(d.sys(SYS_fcntl, &[goes, F_GETFD as u64]), -i64::from(EBADF));
    let show = |what: &str| std::fs::read(format!("/proc/{}/{what}", d.pid)).unwrap();
    assert_eq!(show("comm"), b"renamed\n");
    assert_eq!(show("cmdline"), [&argv[0][..], b"\0", &argv[1], b"\0"].concat());
    assert_eq!(d.op(&Op::CommitExec { name: b"b".to_vec(), argv: vec![b"b".to_vec()] }).ret, 0);
    d.exit();
}

#[test]
fn files_are_handed_over_to_be_mapped() {
    let mut d = Deputy::start();
    let path = d.memory.put(0, b"/etc/passwd\0");
    let fd = d.sys(SYS_openat, &[AT, path, O_RDONLY as u64]);
    let reply = d.op(&Op::MapFile { fd: fd as i32, write: false });
    let about: FileIdentity = postcard::from_bytes(&reply.payload).unwrap();
    assert_eq!((reply.ret, about.size), (0, std::fs::metadata("/etc/passwd").unwrap().len()));
    assert_eq!(d.op(&Op::MapFile { fd: fd as i32, write: true }).ret, -i64::from(EACCES));
    assert_eq!(d.op(&Op::MapFile { fd: 999, write: false }).ret, -i64::from(EBADF));
    let (reader, _) = pipe(&mut d);
    assert_eq!(d.op(&Op::MapFile { fd: reader as i32, write: false }).ret, -i64::from(ENODEV));
    let reply = d.op(&Op::MemoryFile { name: b"maps".to_vec(), content: b"content".to_vec(), close_on_exec: true });
    let fd = reply.ret as u64;
    assert!(reply.ret > 2 && reply.ret < 20, "{}", reply.ret);
    assert_eq!(d.sys(SYS_fcntl, &[fd, F_GETFD as u64]), i64::from(FD_CLOEXEC));
    assert_eq!(d.sys(SYS_read, &[fd, BASE, 100]), 7);
    assert_eq!(d.memory.get(0, 7), b"content");
    assert_eq!(d.sys(SYS_write, &[fd, BASE, 1]), -i64::from(EBADF));
    d.exit();
}

#[test]
fn exits_and_deaths_are_seen_by_the_parent_as_they_are() {
    let mut d = Deputy::start();
    d.post(&Op::Exit { status: 0x1ff });
    assert_eq!(d.wait(), WaitStatus::Exited(d.pid, 0xff));
    for (signal, died) in [
        (SIGTERM, true),
        (SIGSEGV, true),
        (SIGKILL, true),
        (SIGPIPE, true),
        (40, true),
        (SIGCHLD, false),
        (SIGSTOP, false),
        (SIGTSTP, false),
    ] {
        let mut d = Deputy::start();
        d.post(&Op::DieBySignal { signal: signal as u32 });
        let mut status = 0;
        // SAFETY: `status` is an `int`.
        unsafe { waitpid(d.pid.as_raw(), &mut status, 0) };
        if died {
            assert!(WIFSIGNALED(status) && WTERMSIG(status) == signal && !WCOREDUMP(status), "{signal}: {status:x}");
        } else {
            assert_eq!(WEXITSTATUS(status), 128 + signal);
        }
    }
}

/// What a deputy in which `prepare` gave it a standard error says there.
fn with_stderr(run: impl FnOnce(Deputy) -> WaitStatus) -> (WaitStatus, String) {
    let mut file = tempfile::tempfile().unwrap();
    let copy = file.try_clone().unwrap();
    let d = Deputy::start_with(attach(), None, move || {
        use std::os::fd::AsRawFd;
        // SAFETY: no pointers.
        unsafe { dup2(copy.as_raw_fd(), 2) };
    });
    let status = run(d);
    let mut said = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut said).unwrap();
    (status, said)
}

#[test]
fn a_lost_node_is_told_of_within_a_second() {
    let mut pid = None;
    let (status, said) = with_stderr(|d| {
        pid = Some(d.pid);
        let Deputy { pid, control, call, .. } = d;
        let start = Instant::now();
        drop((control, call));
        let status = nix::sys::wait::waitpid(pid, None).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
        status
    });
    let pid = pid.unwrap();
    assert_eq!(status, WaitStatus::Exited(pid, procmig::deputy::LOST_STATUS));
    assert_eq!(said, format!("mosrun: prog ({pid}): the node n1 that ran it is gone\n"));
}

#[test]
fn a_refused_program_is_told_of_in_the_nodes_words() {
    let (status, said) = with_stderr(|mut d| {
        d.post(&Op::Refuse { status: 126, message: "x: is a directory".into() });
        d.wait()
    });
    assert!(matches!(status, WaitStatus::Exited(_, 126)));
    assert_eq!(said, "mosrun: x: is a directory\n");
}

#[test]
fn trace_lines_go_to_the_trace() {
    let mut file = tempfile::tempfile().unwrap();
    let d = Deputy::start_with(attach(), Some(file.try_clone().unwrap().into()), || ());
    for line in ["one", "two"] {
        frame::send(&d.control, &ToDeputy::Trace(line.into()), &[]).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(5);
    while file.metadata().unwrap().len() < 8 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut said = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut said).unwrap();
    assert_eq!(said, "one\ntwo\n");
    d.exit();
}

#[test]
fn job_controls_stops_are_homes_until_the_guest_catches_them() {
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, waitpid};
    // In a process group of its own: in one that is orphaned, as that of the tests may be, nothing stops.
    let own_group = || nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0)).unwrap();
    let mut d = Deputy::start_with(deputy_support::attach(), None, own_group);
    d.sys(SYS_getppid, &[]);
    kill(d.pid, Signal::SIGTSTP).unwrap();
    let stopped = waitpid(d.pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(d.pid, Signal::SIGTSTP));
    kill(d.pid, Signal::SIGCONT).unwrap();
    let (ToNode::Signal(info), _) = frame::receive(&d.control, MAX_MESSAGE).unwrap() else { panic!("no signal") };
    assert_eq!(info.signal(), SIGCONT);
    // While the guest thread blocks it, it waits.
    d.call.begin_call(SYS_getppid as u32, &[0; 6], blocked::TSTP, &d.memory).unwrap();
    d.call.finish_call(&d.memory).unwrap();
    kill(d.pid, Signal::SIGTSTP).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(d.is_alive());
    assert_eq!(waitpid(d.pid, Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::StillAlive);
    let memory = deputy_support::FakeMemory::new(1);
    d.call.begin_call(SYS_getppid as u32, &[0; 6], 0, &memory).unwrap();
    let stopped = waitpid(d.pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(d.pid, Signal::SIGTSTP));
    kill(d.pid, Signal::SIGCONT).unwrap();
    assert!(d.call.finish_call(&memory).unwrap().ret > 0);
    let (ToNode::Signal(info), _) = frame::receive(&d.control, MAX_MESSAGE).unwrap() else { panic!("no signal") };
    assert_eq!(info.signal(), SIGCONT);
    let caught = Op::SetDisposition { signal: SIGTSTP as u32, disposition: Disposition::Catch };
    assert_eq!(d.op(&caught).ret, 0);
    d.sys(SYS_getppid, &[]);
    kill(d.pid, Signal::SIGTSTP).unwrap();
    let (ToNode::Signal(info), _) = frame::receive(&d.control, MAX_MESSAGE).unwrap() else { panic!("no signal") };
    assert_eq!(info.signal(), SIGTSTP);
    d.exit();
}

#[test]
fn a_guest_reads_its_own_signalfd() {
    let mut d = Deputy::start();
    let mask = d.memory.put(0, &(1u64 << (SIGUSR2 - 1)).to_le_bytes());
    let fd = d.sys(SYS_signalfd4, &[u64::MAX, mask, 8, 0]) as u64;
    nix::sys::signal::kill(d.pid, nix::sys::signal::SIGUSR2).unwrap();
    assert_eq!(d.sys(SYS_read, &[fd, BASE, 128]), 128);
    assert_eq!(d.memory.word(0), SIGUSR2);
    d.exit();
}
