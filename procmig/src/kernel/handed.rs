//! A file of home that the deputy has handed over: the node reads and writes it itself.
//!
//! What comes over the connection is the very open file of the guest's descriptor, with its offset and
//! flags, so that nobody can tell who reads or writes it.

use crate::wire::file_kind::{self, Kind};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// An open file of home.
#[derive(Debug)]
pub struct HandedFile {
    file: OwnedFd,
    kind: Kind,
    /// The file knows how to say that it would have to wait.
    says_when_waiting: AtomicBool,
    /// Of an `epoll` set: it has files in it that look at who asks.
    home_only: AtomicBool,
}

/// How many there are in this process.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// How many there may be: half of the descriptors that the process may have.
fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 0));
        (soft / 2) as usize
    })
}

impl HandedFile {
    /// Takes a file, if it is of a kind that does not look at who uses it. Terminals do, and so
    /// does the process file system.
    pub fn new(file: OwnedFd) -> Option<Self> {
        let kind = file_kind::of(file.as_fd())?;
        if COUNT.fetch_add(1, Ordering::Relaxed) >= limit() {
            COUNT.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { file, kind, says_when_waiting: AtomicBool::new(true), home_only: AtomicBool::new(false) })
    }

    /// Of an `epoll` set: whether it is only to be used at home.
    pub fn is_home_only(&self) -> bool {
        self.home_only.load(Ordering::SeqCst)
    }

    /// Leaves it to home, for all who have it.
    pub fn leave_home(&self) {
        self.home_only.store(true, Ordering::SeqCst);
    }

    /// Takes events of an `epoll` set that are there, as many as there is room for; how many.
    ///
    /// # Errors
    /// As `epoll_wait(2)`.
    ///
    /// # Safety
    /// The places must be valid for writes until it returns.
    pub unsafe fn events(&self, places: &[libc::iovec]) -> Result<usize, Errno> {
        let room: usize = places.iter().map(|place| place.iov_len).sum();
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; room / size_of::<libc::epoll_event>()];
        let most = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel writes at most so many events.
        let got = unsafe { libc::epoll_wait(self.file.as_raw_fd(), events.as_mut_ptr(), most, 0) };
        let count = Errno::result(got)? as usize;
        let mut from = events.as_ptr().cast::<u8>();
        let mut left = count * size_of::<libc::epoll_event>();
        for place in places {
            let length = place.iov_len.min(left);
            // SAFETY: `left` bytes of the events are left, and the place has as many, as the caller promises.
            unsafe {
                std::ptr::copy_nonoverlapping(from, place.iov_base.cast(), length);
                from = from.add(length);
            }
            left -= length;
        }
        Ok(count)
    }

    /// What kind of file it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether its user has asked never to wait (`O_NONBLOCK`).
    pub fn is_nonblocking(&self) -> bool {
        nix::fcntl::fcntl(&self.file, nix::fcntl::FcntlArg::F_GETFL).is_ok_and(|flags| flags & libc::O_NONBLOCK != 0)
    }

    /// Whether it was opened to be read only.
    pub fn is_read_only(&self) -> bool {
        nix::fcntl::fcntl(&self.file, nix::fcntl::FcntlArg::F_GETFL)
            .is_ok_and(|flags| flags & libc::O_ACCMODE == libc::O_RDONLY)
    }

    /// Whether it may be read.
    pub fn is_readable(&self) -> bool {
        nix::fcntl::fcntl(&self.file, nix::fcntl::FcntlArg::F_GETFL)
            .is_ok_and(|flags| flags & libc::O_ACCMODE != libc::O_WRONLY)
    }

    /// Another descriptor of it.
    ///
    /// # Errors
    /// `ENFILE` if there is none left.
    pub fn copy(&self) -> Result<OwnedFd, Errno> {
        self.file.try_clone().map_err(|_| Errno::ENFILE)
    }

    /// Whether a call that must wait does so without a limit: a socket may have one.
    pub fn waits_forever(&self) -> bool {
        use nix::sys::socket::{getsockopt, sockopt};
        use nix::sys::time::TimeValLike;
        let unlimited =
            |time: nix::Result<nix::sys::time::TimeVal>| time.is_ok_and(|time| time.num_microseconds() == 0);
        self.kind != Kind::Socket
            || unlimited(getsockopt(&self.file, sockopt::ReceiveTimeout))
                && unlimited(getsockopt(&self.file, sockopt::SendTimeout))
    }

    /// Reads without waiting into these places, at its offset or at `offset`.
    ///
    /// # Errors
    /// As `preadv2(2)`: `EAGAIN` if it would have to wait, `EOPNOTSUPP` if it cannot say so.
    ///
    /// # Safety
    /// The places must be valid for writes until it returns.
    pub unsafe fn read(&self, places: &[libc::iovec], offset: Option<i64>) -> Result<usize, Errno> {
        let flags = self.flags()?;
        // SAFETY: the kernel writes to the places, as the caller promises.
        let got = unsafe {
            libc::preadv2(
                self.file.as_raw_fd(),
                places.as_ptr(),
                places.len() as libc::c_int,
                offset.unwrap_or(-1),
                flags,
            )
        };
        self.result(got, flags)
    }

    /// Writes these places without waiting for a reader, at its offset or at `offset`.
    ///
    /// # Errors
    /// As `pwritev2(2)`: `EAGAIN` if it would have to wait, `EOPNOTSUPP` if it cannot say so.
    ///
    /// # Safety
    /// The places must be valid for reads until it returns.
    pub unsafe fn write(&self, places: &[libc::iovec], offset: Option<i64>) -> Result<usize, Errno> {
        // Writing a regular file waits for nothing but the disk, as it would at home.
        let flags = if self.kind == Kind::Regular { 0 } else { self.flags()? };
        // SAFETY: the kernel reads the places, as the caller promises.
        let put = unsafe {
            libc::pwritev2(
                self.file.as_raw_fd(),
                places.as_ptr(),
                places.len() as libc::c_int,
                offset.unwrap_or(-1),
                flags,
            )
        };
        self.result(put, flags)
    }

    fn flags(&self) -> Result<libc::c_int, Errno> {
        match self.kind {
            Kind::Device => Ok(0),
            Kind::Event | Kind::Epoll => Err(Errno::EOPNOTSUPP),
            _ if self.says_when_waiting.load(Ordering::Relaxed) => Ok(libc::RWF_NOWAIT),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn result(&self, result: libc::ssize_t, flags: libc::c_int) -> Result<usize, Errno> {
        let result = Errno::result(result).map(|count| count as usize);
        if result == Err(Errno::EOPNOTSUPP) && flags != 0 {
            self.says_when_waiting.store(false, Ordering::Relaxed);
        }
        result
    }

    /// Reads a regular file, from the disk if need be.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn read_waiting(&self, buffer: &mut [u8], offset: Option<i64>) -> Result<usize, Errno> {
        loop {
            let (fd, at, length) = (self.file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len());
            // SAFETY: the kernel writes at most the buffer.
            let got = unsafe {
                match offset {
                    Some(offset) => libc::pread(fd, at, length, offset),
                    None => libc::read(fd, at, length),
                }
            };
            match Errno::result(got) {
                Err(Errno::EINTR) => {}
                result => return result.map(|count| count as usize),
            }
        }
    }

    /// `lseek(2)`
    ///
    /// # Errors
    /// As `lseek(2)`.
    pub fn seek(&self, offset: i64, whence: i32) -> Result<u64, Errno> {
        // SAFETY: no pointers.
        Errno::result(unsafe { libc::lseek(self.file.as_raw_fd(), offset, whence) }).map(|at| at as u64)
    }

    /// The bytes of its `struct stat`.
    ///
    /// # Errors
    /// As `fstat(2)`.
    pub fn status(&self) -> Result<[u8; size_of::<libc::stat>()], Errno> {
        let mut bytes = [0; size_of::<libc::stat>()];
        // SAFETY: the kernel writes a `struct stat`, which has that many bytes, all of them.
        Errno::result(unsafe { libc::fstat(self.file.as_raw_fd(), bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    /// Waits until it may be read or written, `wake` becomes readable, or the time is over.
    ///
    /// # Errors
    /// As `poll(2)`.
    pub fn wait(&self, events: i16, wake: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        let poll = |fd: BorrowedFd<'_>, events| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        let mut polled = [poll(self.file.as_fd(), events), poll(wake, libc::POLLIN)];
        let timeout = timeout.map(TimeSpec::from_duration);
        let until =
            timeout.as_ref().map_or(std::ptr::null(), |time| std::ptr::from_ref::<libc::timespec>(time.as_ref()));
        // SAFETY: the kernel reads and writes two `pollfd`, and reads the time, if there is one.
        match Errno::result(unsafe { libc::ppoll(polled.as_mut_ptr(), 2, until, std::ptr::null()) }) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for HandedFile {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}
