//! vCPUs, each with the host thread that runs it. They cannot be destroyed, so they wait for the next guest thread.

use super::guest::GuestThread;
use super::host_thread::HostThread;
use super::{lock, priority};
use crate::mm::Gate;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use vmm::machine::{Machine, MachineError};
use vmm::user_cpu::UserCpu;

/// Bytes of stack of a host thread: what a system call needs.
const STACK: usize = 512 << 10;

/// What a worker is given to do: a guest thread to run until it ends.
type Job = Box<dyn FnOnce(&mut UserCpu) -> Option<GuestThread> + Send>;

/// A host thread with a vCPU that waits for a guest thread.
pub struct Worker {
    /// The gate of the guest thread that it will run.
    pub gate: Gate,
    /// The host thread itself.
    pub host: HostThread,
    sender: Sender<Job>,
}

/// Workers.
pub struct Pool {
    machine: Arc<Machine>,
    idle: Arc<Mutex<Vec<Worker>>>,
}

impl Pool {
    /// No workers.
    pub fn new(machine: Arc<Machine>) -> Self {
        Self { machine, idle: Arc::default() }
    }

    /// Makes `count` workers ahead of need.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn warm(&self, count: usize) -> Result<(), MachineError> {
        for _ in 0..count {
            let worker = self.spawn()?;
            lock(&self.idle).push(worker);
        }
        Ok(())
    }

    /// Workers that wait.
    pub fn idle_count(&self) -> usize {
        lock(&self.idle).len()
    }

    /// A worker; give it something to [`run`](Worker::run).
    ///
    /// # Errors
    /// If no vCPU or host thread can be had.
    pub fn acquire(&self) -> Result<Worker, MachineError> {
        let idle = lock(&self.idle).pop();
        match idle {
            Some(worker) => Ok(worker),
            None => self.spawn(),
        }
    }

    /// Gives back a worker that was not used.
    pub fn release(&self, worker: Worker) {
        lock(&self.idle).push(worker);
    }

    fn spawn(&self) -> Result<Worker, MachineError> {
        let mut cpu = self.machine.create_cpu()?;
        let interrupter = cpu.interrupter();
        let (sender, receiver): (Sender<Job>, Receiver<Job>) = channel();
        let (host_sender, host_receiver) = channel();
        let idle = self.idle.clone();
        let own = sender.clone();
        let failed = |source| MachineError::Thread { source };
        std::thread::Builder::new()
            .name("vcpu".into())
            .stack_size(STACK)
            .spawn(move || {
                priority::take_turns();
                cpu.claim();
                let _ = host_sender.send(HostThread::current());
                while let Ok(job) = receiver.recv() {
                    if let Some(guest) = job(&mut cpu) {
                        // Everything of the guest thread is gone before the next may come.
                        drop(guest);
                    }
                    if cpu.is_dead() {
                        return;
                    }
                    cpu.reset();
                    let (gate, host) = (Gate::new(cpu.interrupter()), HostThread::current());
                    let worker = Worker { gate, host, sender: own.clone() };
                    lock(&idle).push(worker);
                }
            })
            .map_err(failed)?;
        let host = host_receiver.recv().map_err(|_| failed(std::io::Error::other("the thread ended")))?;
        Ok(Worker { gate: Gate::new(interrupter), host, sender })
    }
}

impl Worker {
    /// Runs a guest thread until it ends; the worker then waits for the next.
    pub fn run(self, job: impl FnOnce(&mut UserCpu) -> Option<GuestThread> + Send + 'static) {
        if self.sender.send(Box::new(job)).is_err() {
            tracing::error!("a vCPU's thread has ended");
        }
    }
}
