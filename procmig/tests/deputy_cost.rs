//! What forwarding costs, beside what it is made of, in the same run.

mod deputy_support;

use deputy_support::{BASE, Deputy, FakeMemory};
use libc::*;
use procmig::channel::CallChannel;
use procmig::wire::op::Op;
use std::os::fd::AsRawFd;
use std::time::Instant;

/// The cost of a forwarded call beside that of a plain exchange over a socket, in the same run.
#[test]
#[ignore = "a measurement"]
fn a_forwarded_call_costs_little_more_than_its_exchange() {
    const ROUNDS: u32 = 20_000;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: the child makes system calls only.
    let echo = unsafe { fork() };
    if echo == 0 {
        let mut buffer = [0u8; 128];
        loop {
            // SAFETY: the buffer has 128 bytes, and `_exit` does not return.
            unsafe {
                if read(theirs.as_raw_fd(), buffer.as_mut_ptr().cast(), 128) <= 0 {
                    _exit(0);
                }
                write(theirs.as_raw_fd(), buffer.as_ptr().cast(), 24);
            }
        }
    }
    let mut d = Deputy::start();
    for _ in 0..3 {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let mut buffer = [0u8; 128];
            // SAFETY: the buffer has 128 bytes.
            unsafe {
                write(ours.as_raw_fd(), buffer.as_ptr().cast(), 72);
                read(ours.as_raw_fd(), buffer.as_mut_ptr().cast(), 128);
            }
        }
        let plain = start.elapsed() / ROUNDS;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            d.sys(SYS_getppid, &[]);
        }
        let forwarded = start.elapsed() / ROUNDS;
        let ratio = forwarded.as_secs_f64() / plain.as_secs_f64();
        println!("plain {plain:?}, forwarded {forwarded:?}, ratio {ratio:.2}");
    }
    d.exit();
    // SAFETY: the child is ours.
    unsafe { kill(echo, SIGKILL) };
}

/// A fork of the deputy with its child's exit and the wait for it; and large reads.
#[test]
#[ignore = "a measurement"]
fn forks_and_large_reads_are_timed() {
    const ROUNDS: u32 = 200;
    let mut d = Deputy::start();
    d.memory = FakeMemory::new(2 << 20);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let mut reply = d.op(&Op::Fork);
        let mut call = CallChannel::new(reply.descriptors.remove(1).into());
        call.post(&Op::Exit { status: 0 }).unwrap();
        assert_eq!(d.sys(SYS_wait4, &[reply.ret as u64, 0, 0, 0]), reply.ret);
    }
    println!("fork, exit, wait: {:?}", start.elapsed() / ROUNDS);
    let path = d.memory.put(0, b"/dev/zero\0");
    let fd = d.sys(SYS_openat, &[AT_FDCWD as u64, path, O_RDWR as u64, 0]) as u64;
    for size in [4096, 65536, 1 << 20] {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            assert_eq!(d.sys(SYS_read, &[fd, BASE, size]), size as i64);
        }
        let read = start.elapsed() / ROUNDS;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            assert_eq!(d.sys(SYS_write, &[fd, BASE, size]), size as i64);
        }
        println!("{size} bytes: read {read:?}, write {:?}", start.elapsed() / ROUNDS);
    }
    d.exit();
}
