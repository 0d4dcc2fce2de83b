//! Who runs in an address space, and the page that tells its process who it is without a call: beyond what
//! the process can map or see, for the stubs of [`vmm::site_code`].

use super::fault::FaultError;
use super::gate::Gate;
use super::space::{AddressSpace, Inner};
use super::thread_ids::Base;
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::frames::AtLimit;
use vmm::machine::Machine;
use vmm::paging::{NO_EXECUTE, PRESENT, USER};
use vmm::shim_layout::IDENTITY;
use vmm::site_code::{self, Identity, base_entry, base_offset};

/// A thread that runs in an address space.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) gate: Gate,
    pid: i32,
    pub(super) tid: i32,
    pub(super) base: Base,
}

/// The page.
#[derive(Debug)]
pub(super) struct IdentityPage {
    pub(super) frame: Frame,
}

impl AddressSpace {
    /// A thread of process `pid` begins to run here: it has not been in the guest yet.
    pub fn join(&self, gate: &Gate, pid: i32, tid: i32) {
        let mut inner = self.lock();
        inner.members.push(Member { gate: gate.clone(), pid, tid, base: Base::default() });
        inner.tell_identity(&self.machine);
    }

    /// A thread runs here no more: it is out of the guest.
    pub fn part(&self, gate: &Gate) {
        let mut inner = self.lock();
        if let Some(at) = inner.members.iter().position(|member| member.gate.is(gate)) {
            inner.leave_place(&self.machine, at);
            let base = inner.members.remove(at).base.value;
            inner.return_to_place(&self.machine, base);
        }
        inner.tell_identity(&self.machine);
    }

    /// Maps the page, if it is not.
    ///
    /// # Errors
    /// If memory is short.
    pub(super) fn show_identity(&self, inner: &mut Inner) -> Result<(), FaultError> {
        if inner.identity.is_some() {
            return Ok(());
        }
        let frames = self.machine.frames();
        let frame = frames.allocate_for(self.account, AtLimit::Refuse)?;
        for place in 0..site_code::THREADS {
            self.machine.ram().store(frame.address() + base_offset(place), base_entry(None));
        }
        inner.identity = Some(IdentityPage { frame });
        inner.tell_identity(&self.machine);
        let entry = frame.address().raw() | PRESENT | USER | NO_EXECUTE;
        match inner.tables.fill(IDENTITY, &[entry]) {
            Ok(_) => Ok(()),
            Err(error) => {
                inner.identity = None;
                frames.release(frame);
                Err(error.into())
            }
        }
    }
}

impl Inner {
    /// Whether the page lies at `address`.
    pub(super) fn is_identity(address: u64) -> bool {
        (IDENTITY..IDENTITY + PAGE_SIZE).contains(&address)
    }

    /// Writes to the page what is true for all who can read it. While a `vfork` child is here it is nobody's
    /// process ID, and while there are several threads nobody's thread ID: they ask, or have a place each.
    fn tell_identity(&self, machine: &Machine) {
        let Some(page) = &self.identity else { return };
        let (pid, tid) = match &self.members[..] {
            [] => (0, 0),
            [only] => (only.pid, only.tid),
            [first, others @ ..] if others.iter().all(|other| other.pid == first.pid) => (first.pid, 0),
            _ => (0, 0),
        };
        for (which, value) in [(Identity::Process, pid), (Identity::Thread, tid)] {
            machine.ram().store_u32(page.frame.address() + which.offset(), value as u32);
        }
    }
}
