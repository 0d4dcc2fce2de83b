//! System calls: served here, forwarded home, or refused, as the table says.

mod epoll;
mod forward;
pub mod futex;
mod info;
mod io;
mod limits;
mod masks;
mod memory;
mod processes;
mod scheduling;
mod segments;
mod signals;
mod sleep;
mod time;
mod waiting;

pub use epoll::room as epoll_room;
pub use forward::{blocked_bits, forward_with_path};
pub use info::random_bytes;
pub use io::{Manner, closes_unseen, may_take_over};

use super::deliver::RestartKind;
use super::guest::{Again, GuestThread, failure};
use super::proc_files;
use crate::calls::{self, Class};
use crate::kernel::descriptors::Change;
use crate::kernel::lock;
use crate::migration::image::{CallImage, ForwardedCall};
use nix::errno::Errno;
use vmm::site_code::Identity;
use vmm::user_cpu::UserCpu;

/// How a system call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With this value in RAX.
    Return(i64),
    /// A signal, or something else that is to be looked at first, broke it off.
    Restart(RestartKind),
    /// All registers are new (`execve`, `rt_sigreturn`).
    Replaced,
    /// The thread is to stand still; the call, which waits at home, goes on then.
    Paused,
    /// The thread ends.
    End,
}

/// What most calls give.
pub type CallResult = Result<u64, Errno>;

impl From<CallResult> for Outcome {
    fn from(result: CallResult) -> Self {
        Self::Return(match result {
            Ok(value) => value as i64,
            Err(errno) => failure(errno),
        })
    }
}

/// Serves the system call `nr` whose arguments are in the registers.
pub fn dispatch(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u64) -> Outcome {
    let regs = cpu.regs();
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    let outcome = loop {
        let outcome = serve(guest, cpu, nr, &args);
        let paused = outcome == Outcome::Paused || matches!(outcome, Outcome::Restart(_)) && guest.shall_only_freeze();
        if !paused {
            break outcome;
        }
        let call = CallImage {
            forwarded: lock(&guest.channel).pending_call().map(|(nr, args, flags)| ForwardedCall { nr, args, flags }),
            deadline: guest.again.deadline.flatten().map(|deadline| deadline.home),
            progress: guest.again.progress,
        };
        guest.stand_still(cpu, Some(call));
        if !guest.is_to_go_on() {
            break Outcome::End;
        }
    };
    guest.again = Again::default();
    if vmm::is_posted(nr) && matches!(outcome, Outcome::Return(_)) {
        guest.note_exit(cpu);
        if let Some(which) = Identity::of(nr) {
            guest.note_identity(which, cpu);
        }
    }
    if guest.process.trace {
        forward::trace(guest, cpu, nr, &args, outcome);
    }
    outcome
}

fn serve(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u64, args: &[u64; 6]) -> Outcome {
    // Of a call that home has begun the poller knows no progress.
    let (polled, before) = (cpu.take_progress(), guest.again.progress);
    let number = nr as i64;
    if lock(&guest.channel).is_in_call() {
        return go_on(guest, cpu, number, args, before);
    }
    let progress = polled.max(before);
    let local = |guest: &GuestThread| {
        guest.thread.tally.local_calls.add(1);
    };
    let served = match number {
        libc::SYS_rt_sigprocmask => signals::sigprocmask(guest, cpu, args).into(),
        libc::SYS_futex => futex::futex(guest, cpu, args),
        libc::SYS_clock_gettime => time::clock_gettime(guest, cpu, args).into(),
        libc::SYS_gettimeofday => time::gettimeofday(guest, cpu, args).into(),
        libc::SYS_time => time::time(guest, cpu, args).into(),
        libc::SYS_clock_getres => time::clock_getres(guest, cpu, args).into(),
        libc::SYS_nanosleep => sleep::nanosleep(guest, cpu, args),
        libc::SYS_clock_nanosleep => sleep::clock_nanosleep(guest, cpu, args),
        libc::SYS_pause => sleep::pause(guest),
        libc::SYS_getitimer => time::getitimer(guest, cpu, args).into(),
        libc::SYS_setitimer => time::setitimer(guest, cpu, args).into(),
        libc::SYS_alarm => time::alarm(guest, args).into(),
        libc::SYS_timer_create => time::timer_create(guest, cpu, args).into(),
        libc::SYS_timer_settime => time::timer_settime(guest, cpu, args).into(),
        libc::SYS_timer_gettime => time::timer_gettime(guest, cpu, args).into(),
        libc::SYS_timer_getoverrun => time::timer_getoverrun(guest, args).into(),
        libc::SYS_timer_delete => time::timer_delete(guest, args).into(),
        libc::SYS_getrusage => return waiting::getrusage(guest, cpu, args),
        libc::SYS_wait4 | libc::SYS_waitid => return waiting::wait(guest, cpu, nr as u32, args),
        libc::SYS_times => return waiting::times(guest, cpu, args),
        libc::SYS_mmap => memory::mmap(guest, cpu, args).into(),
        libc::SYS_munmap => memory::munmap(guest, cpu, args).into(),
        libc::SYS_mprotect => memory::mprotect(guest, cpu, args).into(),
        libc::SYS_pkey_mprotect => memory::pkey_mprotect(guest, cpu, args).into(),
        libc::SYS_brk => memory::brk(guest, cpu, args).into(),
        libc::SYS_mremap => memory::mremap(guest, cpu, args).into(),
        libc::SYS_madvise => memory::madvise(guest, cpu, args).into(),
        libc::SYS_mincore => memory::mincore(guest, cpu, args).into(),
        libc::SYS_shmat => segments::shmat(guest, cpu, args),
        libc::SYS_shmdt => segments::shmdt(guest, cpu, args).into(),
        libc::SYS_shmctl => return segments::shmctl(guest, cpu, args),
        libc::SYS_msync => memory::msync(guest, cpu, args).into(),
        libc::SYS_mlock | libc::SYS_mlock2 => memory::mlock(guest, args, true).into(),
        libc::SYS_munlock => memory::mlock(guest, args, false).into(),
        libc::SYS_mlockall | libc::SYS_munlockall => Outcome::Return(0),
        libc::SYS_mbind | libc::SYS_set_mempolicy => Outcome::Return(0),
        libc::SYS_get_mempolicy => memory::get_mempolicy(guest, cpu, args).into(),
        libc::SYS_rt_sigaction => signals::sigaction(guest, cpu, args).into(),
        libc::SYS_rt_sigreturn => signals::sigreturn(guest, cpu),
        libc::SYS_rt_sigpending => signals::sigpending(guest, cpu, args).into(),
        libc::SYS_rt_sigtimedwait => sleep::sigtimedwait(guest, cpu, args),
        libc::SYS_rt_sigsuspend => sleep::sigsuspend(guest, cpu, args),
        libc::SYS_rt_sigqueueinfo => signals::sigqueueinfo(guest, cpu, args),
        libc::SYS_rt_tgsigqueueinfo => signals::tgsigqueueinfo(guest, cpu, args),
        libc::SYS_sigaltstack => signals::sigaltstack(guest, cpu, args).into(),
        libc::SYS_kill => signals::kill(guest, cpu, args),
        libc::SYS_tkill => signals::tgkill(guest, cpu, nr, 0, args[0], args[1]),
        libc::SYS_tgkill => signals::tgkill(guest, cpu, nr, args[0], args[1], args[2]),
        libc::SYS_clone => processes::clone(guest, cpu, args),
        libc::SYS_clone3 => processes::clone3(guest, cpu, args),
        libc::SYS_fork => processes::fork(guest, cpu),
        libc::SYS_vfork => processes::vfork(guest, cpu),
        libc::SYS_execve => processes::execve(guest, cpu, args),
        libc::SYS_execveat => processes::execveat(guest, cpu, args),
        libc::SYS_exit => processes::exit(guest, args),
        libc::SYS_exit_group => processes::exit_group(guest, args),
        libc::SYS_set_tid_address => info::set_tid_address(guest, args).into(),
        libc::SYS_set_robust_list => futex::set_robust_list(guest, args).into(),
        libc::SYS_get_robust_list => futex::get_robust_list(guest, cpu, args).into(),
        libc::SYS_gettid => Outcome::Return(i64::from(guest.thread.tid())),
        libc::SYS_getpid => Outcome::Return(i64::from(guest.process.pid)),
        libc::SYS_getuid | libc::SYS_geteuid | libc::SYS_getgid | libc::SYS_getegid => info::user(guest, number),
        libc::SYS_arch_prctl => info::arch_prctl(guest, cpu, args).into(),
        libc::SYS_getrandom => info::getrandom(guest, cpu, args).into(),
        libc::SYS_getcpu => info::getcpu(guest, cpu, args).into(),
        libc::SYS_membarrier => info::membarrier(guest, args).into(),
        libc::SYS_rseq => Err(Errno::ENOSYS).into(),
        libc::SYS_restart_syscall => Err(Errno::EINTR).into(),
        libc::SYS_fadvise64 => Outcome::Return(0),
        libc::SYS_unshare if info::shares_nothing(guest, args[0]) => Outcome::Return(0),
        libc::SYS_prctl if info::is_local_prctl(args[0]) => info::prctl(guest, cpu, args).into(),
        libc::SYS_getrlimit if limits::is_local(args[0]) => limits::getrlimit(guest, cpu, args).into(),
        libc::SYS_setrlimit if limits::is_local(args[0]) => limits::setrlimit(guest, cpu, args).into(),
        libc::SYS_prlimit64 if limits::is_own(guest, args) => limits::prlimit(guest, cpu, args).into(),
        libc::SYS_sched_yield => scheduling::sched_yield(),
        libc::SYS_sched_getaffinity => return scheduling::getaffinity(guest, cpu, args),
        libc::SYS_sched_setaffinity => return scheduling::setaffinity(guest, cpu, args),
        libc::SYS_sched_setscheduler => return scheduling::setscheduler(guest, cpu, args),
        libc::SYS_sched_get_priority_max | libc::SYS_sched_get_priority_min => {
            scheduling::priority(args, number == libc::SYS_sched_get_priority_max).into()
        }
        libc::SYS_epoll_ctl => return epoll::control(guest, cpu, nr as u32, args),
        // Only `epoll_pwait` has a mask.
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait if number == libc::SYS_epoll_wait || args[4] == 0 => {
            match epoll::wait(guest, cpu, args) {
                Some(outcome) => outcome,
                None => return forward::forward(guest, cpu, nr as u32, args),
            }
        }
        libc::SYS_ppoll | libc::SYS_pselect6 | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => {
            return masks::with_mask(guest, cpu, nr as u32, args);
        }
        libc::SYS_signalfd | libc::SYS_signalfd4 => return signals::signalfd(guest, cpu, nr as u32, args),
        libc::SYS_read
        | libc::SYS_write
        | libc::SYS_pread64
        | libc::SYS_pwrite64
        | libc::SYS_readv
        | libc::SYS_writev
        | libc::SYS_lseek
        | libc::SYS_fstat
        | libc::SYS_recvfrom
        | libc::SYS_sendto
        | libc::SYS_ioctl => match io::serve(guest, cpu, number, args, progress) {
            Some(outcome) => outcome,
            None => return forward::forward(guest, cpu, nr as u32, args),
        },
        libc::SYS_close | libc::SYS_dup2 | libc::SYS_dup3 | libc::SYS_close_range => {
            return io::change(guest, cpu, number, args);
        }
        libc::SYS_creat
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_socket
        | libc::SYS_epoll_create
        | libc::SYS_epoll_create1 => return io::open(guest, cpu, nr as u32, args),
        libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 => match proc_files::serve(guest, cpu, number, args) {
            Some(outcome) => outcome,
            None => return io::open(guest, cpu, nr as u32, args),
        },
        libc::SYS_newfstatat if args[3] & libc::AT_EMPTY_PATH as u64 != 0 => {
            let served = io::serve_status(guest, cpu, args).or_else(|| proc_files::serve(guest, cpu, number, args));
            match served {
                Some(outcome) => outcome,
                None => return forward::forward(guest, cpu, nr as u32, args),
            }
        }
        libc::SYS_setrlimit | libc::SYS_prlimit64 if limits::is_file_size(number, args) => {
            // A limit on the size of files keeps them at home.
            let outcome = by_table(guest, cpu, nr, args);
            drop(guest.process.descriptors.change(Change::All));
            return outcome;
        }
        libc::SYS_setrlimit | libc::SYS_prlimit64 if limits::is_of_open_files(guest, number, args) => {
            let new = limits::new_limit(guest, cpu, number, args);
            let outcome = by_table(guest, cpu, nr, args);
            if let (Outcome::Return(0), Some(new)) = (&outcome, new) {
                limits::note_open_files(guest, new);
            }
            return outcome;
        }
        libc::SYS_readlink
        | libc::SYS_readlinkat
        | libc::SYS_stat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_access
        | libc::SYS_faccessat
        | libc::SYS_faccessat2 => match proc_files::serve(guest, cpu, number, args) {
            Some(outcome) => outcome,
            None => return forward::forward(guest, cpu, nr as u32, args),
        },
        libc::SYS_setuid
        | libc::SYS_setgid
        | libc::SYS_setreuid
        | libc::SYS_setregid
        | libc::SYS_setresuid
        | libc::SYS_setresgid => return info::change_user(guest, cpu, nr as u32, args),
        _ => return by_table(guest, cpu, nr, args),
    };
    local(guest);
    served
}

/// A call that the poller has begun, or in which the thread stood still: home has it already.
fn go_on(guest: &mut GuestThread, cpu: &mut UserCpu, number: i64, args: &[u64; 6], progress: u64) -> Outcome {
    let nr = number as u32;
    match number {
        libc::SYS_wait4 | libc::SYS_waitid => waiting::wait(guest, cpu, nr, args),
        libc::SYS_ppoll | libc::SYS_pselect6 | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => {
            masks::with_mask(guest, cpu, nr, args)
        }
        libc::SYS_open
        | libc::SYS_openat
        | libc::SYS_openat2
        | libc::SYS_creat
        | libc::SYS_accept
        | libc::SYS_accept4 => io::open(guest, cpu, nr, args),
        libc::SYS_read
        | libc::SYS_write
        | libc::SYS_pread64
        | libc::SYS_pwrite64
        | libc::SYS_readv
        | libc::SYS_writev
        | libc::SYS_recvfrom
        | libc::SYS_sendto
            if progress > 0 =>
        {
            io::go_on(guest, cpu, number, args, progress)
        }
        _ => forward::forward(guest, cpu, nr, args),
    }
}

/// Calls that the table alone decides.
fn by_table(guest: &mut GuestThread, cpu: &mut UserCpu, nr: u64, args: &[u64; 6]) -> Outcome {
    let row = u32::try_from(nr).ok().and_then(calls::row);
    match row.map(|row| (row.class, row.form())) {
        Some((Class::Forward(_) | Class::Split(Some(_)), _)) => forward::forward(guest, cpu, nr as u32, args),
        Some((Class::Refuse(errno), _)) => refuse(guest, nr, errno),
        Some((Class::Local | Class::Split(None), _)) | None => refuse(guest, nr, Errno::ENOSYS),
    }
}

/// The errno of a kernel without the feature, and a line in the log.
fn refuse(guest: &GuestThread, nr: u64, errno: Errno) -> Outcome {
    guest.thread.tally.local_calls.add(1);
    let program = super::lock(&guest.process.identity).name.clone();
    let name = u32::try_from(nr).ok().and_then(calls::name);
    // All numbers that no kernel knows are one.
    if guest.kernel().first_refusal(&program, name.map_or(u32::MAX, |_| nr as u32)) {
        let (call, program) = (name.unwrap_or("unknown"), String::from_utf8_lossy(&program));
        tracing::info!(call, nr, %program, pid = guest.process.pid, errno = %errno, "a call is not served");
    }
    Err(errno).into()
}
