//! System calls without an exit from the virtual machine.
//!
//! Where an exit costs as much as dozens of short calls, a thread that makes many of them gets a slot
//! ([`vmm::call_slot`]): it posts its calls there, and one thread of the node, the [`poller`], which looks
//! at all slots as long as calls come, takes and answers them: those on [`files`] at hand and on [`signals`] itself, others of
//! [`home`] by asking the deputy. Whatever cannot be answered soon and to the end goes the usual way, with
//! an exit.

mod files;
mod home;
pub mod poller;
mod signals;

use super::HWCAP2_FSGSBASE;
use super::guest::GuestThread;
use super::thread::Thread;
use crate::channel::CallChannel;
use crate::mm::AddressSpace;
use crate::mm::thread_ids::Told;
use poller::Polled;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmm::call_slot::CallSlot;
use vmm::entry::EntryMode;
use vmm::site_code::Identity;
use vmm::user_cpu::UserCpu;

/// A thread that runs no longer than this between two calls, exits included, makes one after the other.
const DENSE: Duration = Duration::from_micros(80);
/// So many dense calls in a row are taken for the beginning of many.
const FEW: u32 = 3;
/// How many there must be at most before the poller is asked again in vain.
const MANY: u32 = 256;
/// So many calls repay the poller's waking and its last, idle look.
const WORTHWHILE: u64 = 8;
/// So many calls that were posted in vain are repaid by one that is served without an exit: a post costs a
/// tenth of an exit.
const MISSES_REPAID: u64 = 4;
/// So many misses are one of a call that was taken and took long: the thread has spun for two exits' time.
const MISSES_OF_A_WAIT: u64 = 16;
/// Misses before it is given up.
const MISSES: u64 = 64;

/// How often at most it is tried to have a thread answered without a call that goes on asking for one ID: at another
/// place, or since it has come to nothing.
const ATTEMPTS: u32 = 64;

/// In whose name calls are served.
struct Caller {
    thread: Arc<Thread>,
    space: Arc<AddressSpace>,
    /// The thread's, which waits meanwhile.
    channel: Arc<Mutex<CallChannel>>,
    /// How long the last call of home took.
    trip: Duration,
}

/// What a thread knows of its calls without exits.
#[derive(Debug)]
pub struct Exitless {
    polled: Option<Arc<Polled>>,
    /// No slot can be had in this address space.
    refused: bool,
    /// Calls in a row that the poller could have served.
    dense: u32,
    /// How many of them it takes.
    wanted: u32,
    /// Calls served when the poller was asked last.
    served: u64,
    /// Calls served when it was last asked whether there are any.
    seen: u64,
    /// Exits since then for calls that the thread had posted.
    missed: u64,
    /// The last run in the guest was short.
    short_run: bool,
    /// Calls for the IDs of the process and of the thread.
    identities: [Asked; 2],
}

/// What is known of a thread's calls for one of its IDs.
#[derive(Debug, Default)]
struct Asked {
    /// How often the node has seen one since the last attempt.
    seen: u32,
    /// How often it was tried that it need not see them.
    attempts: u32,
    /// The node is not to see any more.
    over: bool,
}

impl Default for Exitless {
    fn default() -> Self {
        Self {
            polled: None,
            refused: false,
            dense: 0,
            wanted: FEW,
            served: 0,
            seen: 0,
            missed: 0,
            short_run: false,
            identities: Default::default(),
        }
    }
}

impl Exitless {
    /// Notes how long the thread was in the guest.
    pub fn ran(&mut self, time: Duration) {
        self.short_run = time < DENSE;
        if !self.short_run {
            self.dense = 0;
        }
    }

    /// Notes that the thread had to leave the guest to wait for its call.
    pub fn waited(&mut self) {
        self.missed += MISSES_OF_A_WAIT;
    }

    /// Whether the poller has answered calls since this was last asked, and looks for more.
    pub fn is_in_use(&mut self) -> bool {
        let Some(polled) = &self.polled else { return false };
        let served = polled.served();
        std::mem::replace(&mut self.seen, served) != served && polled.slot().is_armed()
    }

    /// Whether it was worth it to ask the poller the last time.
    fn is_repaid(&self) -> bool {
        let served = self.polled.as_ref().map_or(0, |polled| polled.served()) - self.served;
        served >= WORTHWHILE.max(self.missed / MISSES_REPAID)
    }

    /// The slot's last day: what it is used for is over when this returns.
    fn close(&mut self) -> Option<Arc<Polled>> {
        let polled = self.polled.take()?;
        polled.close();
        Some(polled)
    }
}

impl GuestThread {
    /// Notes a call that came with an exit and might have come without.
    pub fn note_exit(&mut self, cpu: &mut UserCpu) {
        if let Some(polled) = &self.exitless.polled
            && polled.slot().is_armed()
        {
            // Where all CPUs are busy the poller, or the deputy, may wait for the one that this thread has.
            self.exitless.missed += 1;
            if self.exitless.missed > MISSES && !self.exitless.is_repaid() {
                self.kernel().poller.forget(polled);
                self.exitless.dense = 0;
            }
            return;
        }
        if !self.exitless.short_run {
            return;
        }
        self.exitless.dense += 1;
        if self.exitless.dense < self.exitless.wanted {
            return;
        }
        self.exitless.dense = 0;
        if self.exitless.polled.is_none() && !self.get_slot(cpu) {
            return;
        }
        let repaid = self.exitless.is_repaid();
        self.exitless.wanted = if repaid { FEW } else { (self.exitless.wanted * 2).min(MANY) };
        let Some(polled) = &self.exitless.polled else { return };
        (self.exitless.served, self.exitless.missed) = (polled.served(), 0);
        self.kernel().poller.ask(polled);
    }

    /// Gets a slot, for a thread that is traced by nobody.
    fn get_slot(&mut self, cpu: &mut UserCpu) -> bool {
        if self.exitless.refused || cpu.entry_mode() != EntryMode::Ring3 || self.process.trace {
            return false;
        }
        let machine = self.kernel().machine.clone();
        let Some((frame, index)) = self.space.take_call_slot() else {
            self.exitless.refused = true;
            return false;
        };
        let slot = Arc::new(CallSlot::new(machine.ram().clone(), frame, index));
        if let Err(error) = cpu.set_call_slot(Some(slot.clone())) {
            tracing::warn!(error = %crate::chain(&error), "a thread gets no call slot");
            self.space.give_call_slot(index);
            self.exitless.refused = true;
            return false;
        }
        let caller = Caller {
            thread: self.thread.clone(),
            space: self.space.clone(),
            channel: self.channel.clone(),
            trip: Duration::ZERO,
        };
        self.exitless.polled = Some(Arc::new(Polled::new(slot, caller)));
        for which in [Identity::Process, Identity::Thread] {
            if self.exitless.identities[which as usize].over {
                self.tell_identity(which);
            }
        }
        true
    }

    /// Notes a call for an ID that came with an exit. If there are more of them the place that they come from
    /// is rewritten, and the thread's ID is where the stub looks for it, so that it needs no call; where that is in vain
    /// they are answered by the slot's trampoline.
    pub fn note_identity(&mut self, which: Identity, cpu: &mut UserCpu) {
        let counts = self.exitless.short_run || self.exitless.polled.is_some();
        // Stubs find threads with it.
        let has_fsgsbase = self.kernel().hwcap2 & HWCAP2_FSGSBASE != 0;
        let asked = &mut self.exitless.identities[which as usize];
        if asked.over || !counts || cpu.entry_mode() != EntryMode::Ring3 || self.process.trace {
            return;
        }
        asked.seen += 1;
        if asked.seen < FEW {
            return;
        }
        (asked.seen, asked.attempts) = (0, asked.attempts + 1);
        asked.over = asked.attempts == ATTEMPTS
            || !has_fsgsbase
            || !self.space.rewrite_site(which, cpu.regs().rip, cpu)
            || which == Identity::Thread && self.space.tell_thread(&self.thread.gate) == Told::Never;
        if asked.over {
            self.tell_identity(which);
        }
    }

    fn tell_identity(&self, which: Identity) {
        if let Some(polled) = &self.exitless.polled {
            let id = match which {
                Identity::Process => self.process.pid,
                Identity::Thread => self.thread.tid(),
            };
            polled.slot().tell(which, id);
        }
    }

    /// Gives the slot back: the thread leaves its address space, or ends.
    pub fn leave_slot(&mut self, cpu: &mut UserCpu) {
        if let Some(polled) = self.exitless.close() {
            if let Err(error) = cpu.set_call_slot(None) {
                tracing::error!(error = %crate::chain(&error), "a call slot");
            }
            self.kernel().poller.forget(&polled);
            self.space.give_call_slot(polled.slot().index());
        }
        self.exitless = Exitless::default();
    }
}
