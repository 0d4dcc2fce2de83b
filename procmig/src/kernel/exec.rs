//! Loading programs.

use super::descriptors::Change;
use super::guest::GuestThread;
use super::lock;
use super::process::{Action, IGNORE, Process, StackPlaces};
use super::syscalls::random_bytes;
use crate::elf::program::{self, Program, ProgramError, ProgramKind};
use crate::elf::{script, stack};
use crate::mm::layout::Layout;
use crate::mm::object::PageObject;
use crate::mm::{AddressSpace, Backing, MapRequest, ProcessMemory, Protection, RegionFlags};
use crate::signal::altstack::AltStack;
use crate::signal::set::SignalSet;
use crate::usermem::UserMemory;
use crate::vdso;
use crate::wire::op::{LentFile, Op, ProgramFile};
use nix::errno::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmm::addr::{GuestVirtAddr, LARGE_PAGE_SIZE, PAGE_SIZE};
use vmm::regs::Regs;
use vmm::user_cpu::{UserCpu, initial_fpu};

/// Scripts that interpret scripts, at most, as Linux.
const MAX_SCRIPTS: usize = 5;
/// First bytes of a program that are read at once.
const HEAD: usize = 4096;
/// Bytes of stack where no limit is set.
const UNLIMITED_STACK: u64 = 1 << 30;
/// Least bytes of stack.
const MIN_STACK: u64 = 256 << 10;

/// Why a program cannot be executed; the old one goes on.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Home's answer.
    #[error("{}: {}", .path, .errno.desc())]
    Home {
        /// The file.
        path: String,
        /// The answer.
        errno: Errno,
    },
    /// The interpreter that a script or program names cannot be used.
    #[error("{program}: its interpreter {path}: {}", .errno.desc())]
    Interpreter {
        /// The file that names it.
        program: String,
        /// The interpreter.
        path: String,
        /// The answer.
        errno: Errno,
    },
    /// The file is not a program that runs here.
    #[error("{path}: {source}")]
    Program {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: ProgramError,
        /// What `execve` answers.
        errno: Errno,
    },
    /// Too many scripts in a row.
    #[error("{0}: too many scripts interpret each other")]
    Scripts(String),
    /// It does not fit.
    #[error("{path}: {}", .errno.desc())]
    Load {
        /// The file.
        path: String,
        /// `ENOMEM`, `E2BIG` and their kin.
        errno: Errno,
    },
    /// The deputy is gone.
    #[error("the deputy is gone")]
    Lost,
}

impl ExecError {
    /// What `execve` answers.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Home { errno, .. }
            | Self::Interpreter { errno, .. }
            | Self::Program { errno, .. }
            | Self::Load { errno, .. } => *errno,
            Self::Scripts(_) => Errno::ELOOP,
            Self::Lost => Errno::EIO,
        }
    }

    /// A shell's exit status for a command that cannot be started.
    pub fn status(&self) -> i32 {
        if self.errno() == Errno::ENOENT { 127 } else { 126 }
    }
}

/// Where the bytes of a program come from.
enum ProgramBytes {
    /// A file of this host.
    Here(File),
    /// A file of another host, which the process's deputy has lent.
    Lent(LentFile),
}

/// A file that was opened to be executed.
struct Opened {
    path: Vec<u8>,
    info: ProgramFile,
    file: ProgramBytes,
    head: Vec<u8>,
}

/// A program that is in memory, and where it starts.
struct Image {
    space: Arc<AddressSpace>,
    regs: Regs,
    auxiliary: Vec<u8>,
    places: StackPlaces,
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl GuestThread {
    /// Replaces the program, as `execveat` does. After `Ok` the registers are the new program's.
    ///
    /// # Errors
    /// See [`ExecError`]; nothing has changed then.
    pub fn exec(
        &mut self,
        cpu: &mut UserCpu,
        dirfd: i32,
        path: &[u8],
        argv: Vec<Vec<u8>>,
        environment: Vec<Vec<u8>>,
        flags: i32,
    ) -> Result<(), ExecError> {
        let mut argv = argv;
        let mut opened = self.open(dirfd, path, flags)?;
        // A script's process has the script's name, not its interpreter's.
        let base = opened.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let name = base[..base.len().min(15)].to_vec();
        let mut scripts = 0;
        while script::is_script(&opened.head) {
            scripts += 1;
            if scripts > MAX_SCRIPTS {
                return Err(ExecError::Scripts(lossy(path)));
            }
            let script = script::parse(&opened.head[..opened.head.len().min(script::HEAD_SIZE)])
                .ok_or_else(|| ExecError::Load { path: lossy(&opened.path), errno: Errno::ENOEXEC })?;
            argv = script.arguments(&opened.path, &argv);
            opened = self.open_interpreter(&opened, &script.interpreter)?;
        }
        let program = opened.parse(&self.process, ProgramError::errno)?;
        let interpreter = match &program.interpreter {
            None => None,
            Some(path) => {
                let opened = self.open_interpreter(&opened, path)?;
                let program = opened.parse(&self.process, ProgramError::interpreter_errno)?;
                Some((opened, program))
            }
        };
        let failed = |errno| ExecError::Load { path: lossy(&opened.path), errno };
        let image = self.load(cpu, &opened, &program, interpreter.as_ref(), &argv, &environment, path);
        let image = match image {
            Ok(image) => image,
            Err(errno) => {
                // Loading may have left the new address space's root in the vCPU.
                cpu.set_root(self.space.root());
                return Err(failed(errno));
            }
        };
        self.replace(cpu, &opened, name, argv, image)
    }

    fn open(&mut self, dirfd: i32, path: &[u8], flags: i32) -> Result<Opened, ExecError> {
        let refused = |errno| ExecError::Home { path: lossy(path), errno };
        let op = Op::OpenProgram { dirfd, path: path.to_vec(), flags };
        let mut reply = self.op(&op).map_err(|_| ExecError::Lost)?;
        if reply.ret < 0 {
            return Err(refused(Errno::from_raw(-reply.ret as i32)));
        }
        let (info, rest): (ProgramFile, _) = postcard::take_from_bytes(&reply.payload).map_err(|_| ExecError::Lost)?;
        let whole = if path.is_empty() { info.path.clone() } else { path.to_vec() };
        if self.process.is_remote() {
            let mut lent: LentFile = postcard::from_bytes(rest).map_err(|_| ExecError::Lost)?;
            let head = std::mem::take(&mut lent.head.0);
            return Ok(Opened { path: whole, info, file: ProgramBytes::Lent(lent), head });
        }
        let file = File::from(reply.descriptors.pop().ok_or(ExecError::Lost)?);
        let mut head = vec![0; HEAD];
        let mut length = 0;
        while length < HEAD {
            match file.read_at(&mut head[length..], length as u64) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(refused(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))),
            }
        }
        head.truncate(length);
        Ok(Opened { path: whole, info, file: ProgramBytes::Here(file), head })
    }

    fn open_interpreter(&mut self, of: &Opened, path: &[u8]) -> Result<Opened, ExecError> {
        self.open(libc::AT_FDCWD, path, 0).map_err(|error| match error {
            ExecError::Home { path, errno } => ExecError::Interpreter { program: lossy(&of.path), path, errno },
            other => other,
        })
    }

    #[allow(clippy::too_many_arguments, reason = "what a program is started from")]
    fn load(
        &self,
        cpu: &mut UserCpu,
        opened: &Opened,
        program: &Program,
        interpreter: Option<&(Opened, Program)>,
        argv: &[Vec<u8>],
        environment: &[Vec<u8>],
        executed_path: &[u8],
    ) -> Result<Image, Errno> {
        let kernel = self.kernel();
        let (stack_limit, space_limit, ids) = {
            let identity = lock(&self.process.identity);
            (identity.limit(libc::RLIMIT_STACK), identity.limit(libc::RLIMIT_AS), identity.ids)
        };
        let mut random = [0; 48];
        random_bytes(&mut random)?;
        let word = |i: usize| u64::from_le_bytes(random[i * 8..i * 8 + 8].try_into().expect("8 bytes"));
        let stack_size = stack_limit.clamp(MIN_STACK, UNLIMITED_STACK).next_multiple_of(PAGE_SIZE);
        let layout = Layout::new(stack_size, Some([word(0), word(1), word(2), word(3)]));
        let space = AddressSpace::new(kernel.machine.clone(), layout, space_limit, self.process.group.account())?;

        let bias = match program.kind {
            ProgramKind::Fixed => 0,
            ProgramKind::PositionIndependent => {
                layout.program.next_multiple_of(program.alignment.clamp(PAGE_SIZE, LARGE_PAGE_SIZE))
                    - (program.span().0.raw() & !(PAGE_SIZE - 1))
            }
        };
        map_program(&space, cpu, &self.process, opened, program, bias)?;
        let end = program.data_end().raw() + bias;
        space.place_heap(end.next_multiple_of(PAGE_SIZE) + layout.heap_gap);
        let mut entry = program.entry.raw().wrapping_add(bias);
        let mut base = 0;
        if let Some((opened, program)) = interpreter {
            let (low, high) = program.span();
            let length = (high.raw() - (low.raw() & !(PAGE_SIZE - 1))).next_multiple_of(PAGE_SIZE);
            base = match program.kind {
                ProgramKind::Fixed => 0,
                ProgramKind::PositionIndependent => {
                    space.find_place(length).ok_or(Errno::ENOMEM)? - (low.raw() & !(PAGE_SIZE - 1))
                }
            };
            map_program(&space, cpu, &self.process, opened, program, base)?;
            entry = program.entry.raw().wrapping_add(base);
        }
        let vdso = map_vdso(&space, cpu, &self.process.time().vdso)?;

        let mut request = MapRequest::anonymous(stack_size, Protection::READ | Protection::WRITE);
        request.protection.set(Protection::EXECUTE, program.executable_stack);
        request.address = layout.stack_top - stack_size;
        request.fixed = true;
        request.flags = RegionFlags::STACK;
        request.name = "[stack]".into();
        request.no_reserve = true;
        space.map(request, cpu)?;

        let aux = stack::auxiliary_vector(
            program,
            bias,
            GuestVirtAddr(base),
            &stack::Environment {
                vdso: Some(vdso),
                min_signal_stack: kernel.fpu.min_stack(),
                hwcap: kernel.hwcap,
                hwcap2: kernel.hwcap2,
                uid: ids.uid,
                euid: ids.euid,
                gid: ids.gid,
                egid: ids.egid,
                rseq: false,
            },
        );
        let image = stack::build(&stack::StackInput {
            top: GuestVirtAddr(layout.stack_top),
            arguments: argv,
            environment,
            auxiliary: &aux,
            executed_path,
            random: random[32..].try_into().expect("16 bytes"),
            stack_limit: stack_size,
        })?;
        ProcessMemory::new(&space, cpu).write(image.start, &image.bytes)?;
        let regs = Regs { rip: entry, rsp: image.start.raw(), rflags: 0x202, ..Regs::default() };
        let raw = |(start, end): (GuestVirtAddr, GuestVirtAddr)| (start.raw(), end.raw());
        let places = StackPlaces {
            stack: image.start.raw(),
            arguments: raw(image.arguments),
            environment: raw(image.environment),
        };
        Ok(Image { space, regs, auxiliary: image.auxiliary, places })
    }

    /// From here on there is no way back.
    fn replace(
        &mut self,
        cpu: &mut UserCpu,
        opened: &Opened,
        name: Vec<u8>,
        argv: Vec<Vec<u8>>,
        image: Image,
    ) -> Result<(), ExecError> {
        if !self.process.end_other_threads(self.thread.tid()) {
            // The process ends, or another thread was first: this one ends.
            return Ok(());
        }
        if self.thread.tid() != self.process.pid {
            let leader = self.process.take_leader_channel().ok_or(ExecError::Lost)?;
            self.count(cpu);
            let own = std::mem::replace(&mut *lock(&self.channel), leader);
            end_connection(own);
            self.thread.become_leader();
        }
        let process = self.process.clone();
        let changing = process.descriptors.change(Change::All);
        self.op(&Op::CommitExec { name: name.clone(), argv: argv.clone() }).map_err(|_| ExecError::Lost)?;
        drop(changing);
        {
            let mut signals = lock(&self.process.signals);
            for action in &mut signals.actions {
                let handler = if action.handler == IGNORE { IGNORE } else { 0 };
                *action = Action { handler, ..Action::default() };
            }
            lock(&self.thread.signals).altstack = AltStack::default();
        }
        {
            let mut identity = lock(&self.process.identity);
            identity.name = name;
            identity.argv = argv;
            identity.executable = opened.info.path.clone();
            identity.auxiliary = image.auxiliary;
            identity.places = image.places;
        }
        super::syscalls::futex::release_robust(self, cpu);
        self.thread.clear_tid.store(0, Ordering::Relaxed);
        self.process.set_home_signals(SignalSet::EMPTY);
        self.kernel().timers.delete_posix(&self.process);
        self.process.saw_resident(self.space.resident());
        self.leave_slot(cpu);
        self.space.part(&self.thread.gate);
        image.space.join(&self.thread.gate, self.process.pid, self.thread.tid());
        self.process.set_space(Some(image.space.clone()));
        cpu.set_root(image.space.root());
        self.space = image.space;
        cpu.set_segment_bases(0, 0);
        self.space.set_base(&self.thread.gate, 0);
        if let Err(error) = cpu.set_fpu(&initial_fpu()) {
            tracing::error!(error = %crate::chain(&error), "vector state");
        }
        *cpu.regs_mut() = image.regs;
        self.process.end_vfork();
        Ok(())
    }
}

fn end_connection(channel: crate::channel::CallChannel) {
    let mut channel = channel;
    if let Err(error) = channel.post(&Op::EndThread) {
        tracing::debug!(%error, "call connection");
    }
}

impl Opened {
    fn parse(&self, process: &Process, errno: fn(&ProgramError) -> Errno) -> Result<Program, ExecError> {
        let mut read = |offset: u64, buffer: &mut [u8]| {
            let here = usize::try_from(offset).ok().and_then(|at| self.head.get(at..)?.get(..buffer.len()));
            let read = match (here, &self.file) {
                (Some(here), _) => {
                    buffer.copy_from_slice(here);
                    Ok(())
                }
                (None, ProgramBytes::Here(file)) => file.read_exact_at(buffer, offset),
                (None, ProgramBytes::Lent(lent)) => process.read_lent(lent.file, buffer, offset),
            };
            read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        };
        program::parse(&self.head, &mut read).map_err(|source| ExecError::Program {
            path: lossy(&self.path),
            errno: errno(&source),
            source,
        })
    }
}

fn map_program(
    space: &AddressSpace,
    cpu: &mut UserCpu,
    process: &Arc<Process>,
    opened: &Opened,
    program: &Program,
    bias: u64,
) -> Result<(), Errno> {
    let object = match &opened.file {
        ProgramBytes::Here(file) => {
            let file = file.try_clone().map_err(|_| Errno::ENFILE)?;
            process.kernel.files.read_only(opened.info.identity, file.into())
        }
        ProgramBytes::Lent(lent) => process.lent_pages(opened.info.identity, lent),
    };
    for segment in &program.segments {
        let mut protection = Protection::empty();
        protection.set(Protection::READ, segment.readable);
        protection.set(Protection::WRITE, segment.writable);
        protection.set(Protection::EXECUTE, segment.executable);
        let start = segment.address.raw().wrapping_add(bias);
        let page = start & !(PAGE_SIZE - 1);
        let file_end = start + segment.file_size;
        let memory_end = start.checked_add(segment.memory_size).ok_or(Errno::ENOMEM)?;
        let file_pages = file_end.next_multiple_of(PAGE_SIZE);
        let memory_pages = memory_end.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        if segment.file_size > 0 {
            let mut request = MapRequest::anonymous(file_pages - page, protection);
            (request.address, request.fixed) = (page, true);
            request.backing =
                Backing::Object { object: object.clone(), offset: segment.file_offset & !(PAGE_SIZE - 1) };
            request.name = lossy(&opened.info.path).into();
            space.map(request, cpu)?;
        }
        let zeros = if segment.file_size > 0 { file_pages } else { page };
        if memory_pages > zeros {
            let mut request = MapRequest::anonymous(memory_pages - zeros, protection);
            (request.address, request.fixed) = (zeros, true);
            space.map(request, cpu)?;
        }
        if memory_end > file_end && segment.file_size > 0 && segment.writable && file_end < file_pages {
            let length = (file_pages - file_end) as usize;
            ProcessMemory::new(space, cpu).write(GuestVirtAddr(file_end), &vec![0; length])?;
        }
    }
    Ok(())
}

fn map_vdso(space: &AddressSpace, cpu: &mut UserCpu, object: &Arc<PageObject>) -> Result<GuestVirtAddr, Errno> {
    let at = space.find_place(vdso::SPAN).ok_or(Errno::ENOMEM)?;
    let backing = |offset| Backing::Object { object: object.clone(), offset };
    let mut request = MapRequest::anonymous(PAGE_SIZE, Protection::READ);
    (request.address, request.fixed) = (at, true);
    request.flags = RegionFlags::SHARED | RegionFlags::SPECIAL | RegionFlags::NO_WRITE;
    request.backing = backing(0);
    request.name = "[vvar]".into();
    space.map(request.clone(), cpu)?;
    request.address = at + PAGE_SIZE;
    request.length = vdso::SPAN - PAGE_SIZE;
    request.protection = Protection::READ | Protection::EXECUTE;
    request.backing = backing(PAGE_SIZE);
    request.name = "[vdso]".into();
    space.map(request, cpu)?;
    Ok(GuestVirtAddr(at + PAGE_SIZE))
}
