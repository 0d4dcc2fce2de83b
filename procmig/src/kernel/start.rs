//! A deputy asks for a program to be run.

use super::affinity::CpuSet;
use super::descriptors::Descriptors;
use super::group::Group;
use super::guest::{GuestThread, Start};
use super::links::Link;
use super::process::{Identity, Process, StackPlaces, initial_signals, initial_thread_signals};
use super::{Kernel, lock};
use crate::channel::CallChannel;
use crate::mm::AddressSpace;
use crate::mm::layout::Layout;
use crate::wire::control::Attach;
use crate::wire::op::Op;
use crate::wire::stream::Stream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmm::user_cpu::initial_fpu;

/// Exit status of a `mosrun` whose node does not take its process.
const CANNOT: i32 = 125;

/// Why a process cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No vCPU.
    #[error("the node cannot run another thread")]
    Machine(#[from] vmm::machine::MachineError),
    /// No memory, or the node is stopping.
    #[error("the node cannot take another process: {}", .0.desc())]
    Refused(nix::errno::Errno),
    /// No descriptor.
    #[error("the host has no resources left")]
    Host(#[from] std::io::Error),
}

impl Kernel {
    /// Starts a process for the deputy at the other ends of `control` and `call`; with its link if that is at
    /// another host.
    ///
    /// # Errors
    /// See [`StartError`]; the deputy has been told then.
    pub fn start_process(
        self: &Arc<Self>,
        attach: Attach,
        control: Stream,
        call: Stream,
        link: Option<Arc<Link>>,
    ) -> Result<(), StartError> {
        let channel = CallChannel::over(call);
        let worker = match self.pool.acquire() {
            Ok(worker) => worker,
            Err(error) => return Err(self.refuse(channel, error.into())),
        };
        let (process, space) = match self.make_process(&attach, control, link) {
            Ok(made) => made,
            Err(error) => {
                self.pool.release(worker);
                return Err(self.refuse(channel, error));
            }
        };
        let signals = initial_thread_signals(attach.blocked_signals);
        let entered = process
            .group
            .admit()
            .and_then(|permit| GuestThread::enter(&process, process.pid, signals, &worker, channel, space, permit));
        let Some(mut guest) = entered else {
            self.leave(&process);
            self.pool.release(worker);
            return Err(StartError::Refused(nix::errno::Errno::EAGAIN));
        };
        // As any child of who started it (`taskset 1 mosrun PROGRAM`).
        if !process.is_remote()
            && let Some(cpus) = CpuSet::of(process.pid)
            && CpuSet::of(std::process::id() as i32).is_some_and(|all| all != cpus)
        {
            guest.thread.set_affinity(cpus);
        }
        worker.run(move |cpu| {
            let Attach { program, argv, environment, .. } = attach;
            match guest.exec(cpu, libc::AT_FDCWD, &program, argv, environment, 0) {
                Ok(()) => {
                    let start = Start { regs: *cpu.regs(), bases: (0, 0), fpu: initial_fpu(), child_tid: None };
                    guest.run(cpu, start)
                }
                Err(error) => {
                    let refusal = Op::Refuse { status: error.status(), message: error.to_string() };
                    guest.abandon(cpu, &refusal)
                }
            }
        });
        Ok(())
    }

    /// Tells a deputy why its process is not started.
    fn refuse(&self, mut channel: CallChannel, error: StartError) -> StartError {
        let message = format!("{}: {}; use another node, or wait", self.name, crate::chain(&error));
        if let Err(error) = channel.post(&Op::Refuse { status: CANNOT, message }) {
            tracing::debug!(%error, "call connection");
        }
        error
    }

    fn make_process(
        self: &Arc<Self>,
        attach: &Attach,
        control: Stream,
        link: Option<Arc<Link>>,
    ) -> Result<(Arc<Process>, Arc<AddressSpace>), StartError> {
        let layout = Layout::new(0, None);
        let group = Group::of_link(self.machine.clone(), attach.memory_limit, attach.max_threads, attach.job, link);
        let group = group.ok_or(StartError::Refused(nix::errno::Errno::EAGAIN))?;
        let space = AddressSpace::new(self.machine.clone(), layout, u64::MAX, group.account());
        let space = space.map_err(StartError::Refused)?;
        let identity = Identity {
            name: Vec::new(),
            argv: attach.argv.clone(),
            executable: attach.program.clone(),
            ids: attach.ids,
            auxiliary: Vec::new(),
            places: StackPlaces::default(),
            limits: attach.limits.iter().map(|&(resource, soft, hard)| (resource, (soft, hard))).collect(),
        };
        let process = Process::new(
            self.clone(),
            attach.pid,
            attach.parent,
            Some(space.clone()),
            initial_signals(attach.ignored_signals),
            identity,
            control,
            Descriptors::default(),
            attach.trace,
            group,
        );
        process.report.store(attach.report, Ordering::Relaxed);
        self.enter(&process).map_err(StartError::Refused)?;
        if let Err(error) = self.relay.add(&process) {
            self.leave(&process);
            return Err(error.into());
        }
        Ok((process, space))
    }

    /// Starts the node's own threads.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn run(self: &Arc<Self>) -> std::io::Result<()> {
        self.relay.start()?;
        self.timers.start(self)?;
        super::housekeeping::start(self)
    }

    /// Guest threads.
    pub fn thread_count(&self) -> usize {
        lock(&self.processes).values().map(|process| process.threads().len()).sum()
    }
}
