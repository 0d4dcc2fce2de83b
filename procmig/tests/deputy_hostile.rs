//! A node that does not keep to the protocol: the deputy answers with errors or ends, and never does
//! what it was not asked for.

mod deputy_support;

use deputy_support::Deputy;
use libc::*;
use nix::sys::wait::WaitStatus;
use procmig::wire::call::{ReplyHeader, RequestHeader, kind};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

fn raw(deputy: &Deputy) -> UnixStream {
    deputy.call.as_fd().try_clone_to_owned().unwrap().into()
}

fn send(stream: &mut UnixStream, kind: u16, nr: i64, args: [u64; 6], payload: &[u8]) {
    let header = RequestHeader {
        kind,
        near: 0,
        seq: 1,
        length: payload.len() as u32,
        nr: nr as u32,
        blocked: 0,
        flags: 0,
        args,
    };
    stream.write_all(&[&header.encode()[..], payload].concat()).unwrap();
}

fn ask(stream: &mut UnixStream, nr: i64, args: [u64; 6], payload: &[u8]) -> i64 {
    send(stream, kind::CALL, nr, args, payload);
    answer(stream)
}

fn answer(stream: &mut UnixStream) -> i64 {
    let mut head = [0; ReplyHeader::SIZE];
    stream.read_exact(&mut head).unwrap();
    let header = ReplyHeader::decode(&head);
    stream.read_exact(&mut vec![0; header.length as usize]).unwrap();
    header.ret
}

#[test]
fn buffers_shorter_than_the_arguments_say_are_refused() {
    let d = Deputy::start();
    let mut s = raw(&d);
    let zero = std::fs::File::open("/dev/zero").unwrap();
    drop(zero);
    let capacity = |n: u32| n.to_le_bytes();
    let path = [&11u32.to_le_bytes()[..], b"/dev/zero\0\0"].concat();
    let fd = ask(&mut s, SYS_openat, [AT_FDCWD as u64, 1, 0, 0, 0, 0], &path) as u64;
    assert!(fd < 100, "{fd}");
    assert_eq!(ask(&mut s, SYS_read, [fd, 1, 100, 0, 0, 0], &capacity(100)), 100);
    assert_eq!(ask(&mut s, SYS_read, [fd, 1, 101, 0, 0, 0], &capacity(100)), -i64::from(EFAULT));
    assert_eq!(ask(&mut s, SYS_read, [fd, 1, 100, 0, 0, 0], &[]), -i64::from(EPROTO));
    assert_eq!(ask(&mut s, SYS_read, [fd, 1, 1 << 30, 0, 0, 0], &capacity(u32::MAX - 1)), -i64::from(EPROTO));
    assert_eq!(ask(&mut s, SYS_read, [fd, 1, 1 << 30, 0, 0, 0], &capacity(0)), -i64::from(EFAULT));
    assert_eq!(ask(&mut s, SYS_write, [fd, 1, 8, 0, 0, 0], &capacity(8)), -i64::from(EPROTO), "no bytes");
    let short = [&4u32.to_le_bytes()[..], b"/dev"].concat();
    assert_eq!(ask(&mut s, SYS_access, [1, 0, 0, 0, 0, 0], &short), -i64::from(EPROTO), "no NUL");
    // A length that only the kernel would read in 32 bits.
    assert_eq!(ask(&mut s, SYS_getdents64, [fd, 1, 0xffff_ffff_0000_1000, 0, 0, 0], &capacity(0)), -i64::from(ENOTDIR));
    // Deref: the word says more than the buffer has.
    let mut words = capacity(4).to_vec();
    words.extend([4, 0, 0, 0, 100, 0, 0, 0]);
    assert_eq!(ask(&mut s, SYS_getsockopt, [fd, 1, 3, 1, 1, 0], &words), -i64::from(EFAULT));
    // More messages than any call has.
    assert_eq!(ask(&mut s, SYS_recvmmsg, [fd, 1, u64::MAX, 0, 0, 0], &[]), -i64::from(EPROTO));
    assert_eq!(ask(&mut s, SYS_mmap, [0; 6], &[]), -i64::from(ENOSYS));
    send(&mut s, kind::OP, 0, [0; 6], &[200, 1, 2]);
    assert_eq!(answer(&mut s), -i64::from(EPROTO));
    assert_eq!(ask(&mut s, SYS_getppid, [0; 6], &[]), i64::from(std::process::id()));
    drop(s);
    d.exit();
}

#[test]
fn random_sections_do_no_harm() {
    let d = Deputy::start();
    let mut s = raw(&d);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // None of these can do anything with a descriptor that is not open.
    let calls = [
        SYS_read,
        SYS_write,
        SYS_readv,
        SYS_writev,
        SYS_fstat,
        SYS_sendmsg,
        SYS_recvmsg,
        SYS_sendmmsg,
        SYS_recvmmsg,
        SYS_getsockopt,
        SYS_setsockopt,
        SYS_accept4,
        SYS_getsockname,
        SYS_recvfrom,
        SYS_sendto,
        SYS_ioctl,
        SYS_fcntl,
        SYS_fgetxattr,
        SYS_flistxattr,
        SYS_getdents64,
        SYS_epoll_ctl,
        SYS_sendfile,
        SYS_splice,
        SYS_timerfd_settime,
        SYS_capget,
        SYS_prlimit64,
        SYS_statx,
        SYS_connect,
        SYS_bind,
        SYS_copy_file_range,
        SYS_mq_getsetattr,
    ];
    for _ in 0..20_000 {
        let nr = calls[random() as usize % calls.len()];
        let mut args: [u64; 6] = std::array::from_fn(|_| match random() % 4 {
            0 => 0,
            1 => random(),
            _ => random() % 300,
        });
        // `prlimit64` of a process that is not there.
        args[0] = 0x7fff_fff0;
        let payload: Vec<u8> = match random() % 2 {
            0 => (0..random() % 100).map(|_| random() as u8 & 7).collect(),
            _ => (0..random() % 40).flat_map(|_| (random() as u32 % 64).to_le_bytes()).collect(),
        };
        ask(&mut s, nr, args, &payload);
    }
    assert_eq!(ask(&mut s, SYS_getppid, [0; 6], &[]), i64::from(std::process::id()));
    drop(s);
    d.exit();
}

#[test]
fn a_request_that_is_none_ends_the_deputy_as_a_lost_node_does() {
    for header in [(9, 0), (kind::CALL, u32::MAX)] {
        let d = Deputy::start();
        let (kind, length) = header;
        let bytes = RequestHeader { kind, near: 0, seq: 1, length, nr: 0, blocked: 0, flags: 0, args: [0; 6] }.encode();
        raw(&d).write_all(&bytes).unwrap();
        assert_eq!(d.wait(), WaitStatus::Exited(d.pid, procmig::deputy::LOST_STATUS));
    }
}
