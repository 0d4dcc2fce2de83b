//! System calls that are handed over without an exit.
//!
//! Where an exit is expensive a guest thread may post a call in a *slot* of memory that it shares with the
//! VMM, and wait while a thread of the VMM on another CPU takes the call and answers it. What lies in the
//! slot is the guest's to change at any time; what decides is kept here.

use crate::addr::{Frame, GuestPhysAddr};
use crate::ram::GuestRam;
use guest_shim::layout::{SHIM_BASE, call_slot, page};
use guest_shim::site_code::Identity;
use guest_shim::slot_code;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A call that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostedCall {
    /// Its number.
    pub number: u32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// What becomes of a call that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It returns this.
    Value(i64),
    /// Its thread must make it. So many bytes of it are done: it goes on behind them.
    Exit {
        /// Bytes.
        progress: u64,
    },
}

/// A slot of one guest thread.
#[derive(Debug)]
pub struct CallSlot {
    ram: Arc<GuestRam>,
    at: GuestPhysAddr,
    index: u32,
    private: Mutex<Private>,
}

#[derive(Debug)]
struct Private {
    /// Calls may be taken.
    open: bool,
    /// The thread waits longer than it does as a rule.
    patient: bool,
    /// Of the call that was taken last, until the thread has it.
    answer: Option<Answer>,
}

/// What a thread that was interrupted in its trampoline goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The call is done and returns this.
    Returned(i64),
    /// The call has not been made, and is made again.
    Again(u64),
    /// The call must be served now, in its thread: a part of it is done.
    Serve(u64),
}

impl CallSlot {
    /// The slot `index` of the page `frame`, which stays the caller's.
    ///
    /// # Panics
    /// If the page has no such slot.
    pub fn new(ram: Arc<GuestRam>, frame: Frame, index: u32) -> Self {
        assert!(index < call_slot::COUNT);
        let at = frame.address() + u64::from(index) * call_slot::SIZE;
        ram.write(at, &[0; call_slot::SIZE as usize]);
        ram.store_u32(at + call_slot::PATIENCE, slot_code::LONG_PATIENCE);
        Self { ram, at, index, private: Mutex::new(Private { open: true, patient: false, answer: None }) }
    }

    /// Which of its page's slots it is.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where `syscall` lands in a thread that has it.
    pub(crate) fn trampoline(&self) -> u64 {
        SHIM_BASE + page::SLOT_TRAMPOLINES + u64::from(self.index) * slot_code::SIZE
    }

    /// Has the thread answered in its trampoline when it asks for this ID, which is not 0. Until then it asks
    /// with an exit.
    pub fn tell(&self, which: Identity, id: i32) {
        let place = match which {
            Identity::Process => call_slot::PID,
            Identity::Thread => call_slot::TID,
        };
        self.ram.store_u32(self.at + place, id as u32);
    }

    /// Has the thread post its calls from now on, or no more. One that it has posted may still be taken.
    pub fn arm(&self, armed: bool) {
        self.ram.store_u32(self.at + call_slot::ARMED, armed.into());
    }

    /// Whether it is armed.
    pub fn is_armed(&self) -> bool {
        self.ram.load_u32(self.at + call_slot::ARMED) != 0
    }

    /// Nothing is taken any more, and nothing is being served when this returns; the slot's memory is no
    /// longer written.
    pub fn close(&self) {
        self.lock().open = false;
    }

    fn lock(&self) -> MutexGuard<'_, Private> {
        self.private.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the call that is posted, if one is.
    pub fn take(&self) -> Option<Taken<'_>> {
        if self.ram.load_u32(self.at + call_slot::POST) != call_slot::POSTED {
            return None;
        }
        let mut private = self.lock();
        if !private.open || !self.unpost() {
            return None;
        }
        private.answer = None;
        if std::mem::take(&mut private.patient) {
            self.ram.store_u32(self.at + call_slot::PATIENCE, slot_code::LONG_PATIENCE);
        }
        let number = self.ram.load_u32(self.at + call_slot::NUMBER);
        let argument = |i: usize| self.ram.load(self.at + call_slot::ARGUMENTS + i as u64 * 8);
        let call = PostedCall { number, arguments: std::array::from_fn(argument) };
        Some(Taken { slot: self, private, call })
    }

    fn unpost(&self) -> bool {
        let post = self.at + call_slot::POST;
        self.ram.compare_exchange_u32(post, call_slot::POSTED, call_slot::NOT_POSTED).is_ok()
    }

    /// Bytes of the call that its thread makes now which are done already.
    pub(crate) fn take_progress(&self) -> u64 {
        match self.lock().answer.take() {
            Some(Answer::Exit { progress }) => progress,
            Some(Answer::Value(_)) | None => 0,
        }
    }

    /// Brings a call to an end whose thread has stopped in the slot's trampoline, at `offset` from the
    /// trampolines' start and with this RAX. Waits for whoever has taken it.
    pub(crate) fn settle(&self, offset: u64, rax: u64) -> Settled {
        use slot_code::Stage;
        let number = u64::from(self.ram.load_u32(self.at + call_slot::NUMBER));
        let mut private = self.lock();
        let mut again = |number: u64| match private.answer.take() {
            Some(Answer::Exit { progress }) if progress > 0 => Settled::Serve(progress),
            _ => Settled::Again(number),
        };
        let taken = match slot_code::stage(offset) {
            Stage::Before => return again(rax),
            Stage::Identity(number) => return Settled::Again(number.into()),
            Stage::Known => return Settled::Returned(rax as i64),
            Stage::Tail => return Settled::Returned(self.ram.load(self.at + call_slot::RESULT) as i64),
            Stage::Refused => return again(number),
            Stage::Posted => !self.unpost(),
            Stage::Withdrawing => rax as u32 == call_slot::NOT_POSTED,
            Stage::Taken => true,
        };
        match private.answer.take() {
            Some(Answer::Value(value)) if taken => Settled::Returned(value),
            Some(Answer::Exit { progress }) if taken && progress > 0 => Settled::Serve(progress),
            _ => Settled::Again(number),
        }
    }

    /// The number of the call that was posted last.
    pub(crate) fn number(&self) -> u64 {
        self.ram.load_u32(self.at + call_slot::NUMBER).into()
    }
}

/// A call that was taken and waits for its answer.
#[derive(Debug)]
#[must_use = "the guest thread waits"]
pub struct Taken<'slot> {
    slot: &'slot CallSlot,
    private: MutexGuard<'slot, Private>,
    call: PostedCall,
}

impl Taken<'_> {
    /// The call.
    pub fn call(&self) -> &PostedCall {
        &self.call
    }

    /// It takes a while, but nobody who serves it needs the thread's CPU: the thread may wait longer.
    pub fn ask_for_patience(&mut self) {
        self.private.patient = true;
        self.slot.ram.store_u32(self.slot.at + call_slot::PATIENCE, slot_code::LONGEST_PATIENCE);
    }

    /// Answers it.
    pub fn answer(mut self, answer: Answer) {
        self.private.answer = Some(answer);
        let Self { slot: &CallSlot { ref ram, at, .. }, .. } = self;
        let done = match answer {
            Answer::Value(value) => {
                ram.store(at + call_slot::RESULT, value as u64);
                call_slot::ANSWERED
            }
            Answer::Exit { .. } => call_slot::REFUSED,
        };
        ram.store_u32(at + call_slot::DONE, done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::LARGE_PAGE_SIZE;
    use crate::ram::Backing;
    use guest_shim::slot_code::{Stage, stage};

    const READ: u64 = 0;

    fn slot() -> CallSlot {
        let ram = Arc::new(GuestRam::new(LARGE_PAGE_SIZE, Backing::Anonymous).unwrap());
        CallSlot::new(ram, Frame(1), 3)
    }

    fn post(slot: &CallSlot, number: u64) {
        slot.ram.store_u32(slot.at + call_slot::NUMBER, number as u32);
        slot.ram.store(slot.at + call_slot::ARGUMENTS + 8, 77);
        slot.ram.store_u32(slot.at + call_slot::DONE, 0);
        slot.ram.store_u32(slot.at + call_slot::POST, call_slot::POSTED);
    }

    fn at(wanted: Stage) -> u64 {
        (0..slot_code::SIZE).find(|&offset| stage(offset) == wanted).unwrap()
    }

    #[test]
    fn a_call_is_taken_once_and_answered() {
        let slot = slot();
        assert!(slot.take().is_none());
        post(&slot, READ);
        let taken = slot.take().unwrap();
        assert_eq!((taken.call().number, taken.call().arguments[1]), (0, 77));
        taken.answer(Answer::Value(-9));
        assert!(slot.take().is_none());
        assert_eq!(slot.ram.load_u32(slot.at + call_slot::DONE), call_slot::ANSWERED);
        assert_eq!(slot.settle(at(Stage::Tail), 1), Settled::Returned(-9));
    }

    #[test]
    fn an_interrupted_call_is_withdrawn_or_has_its_answer() {
        let slot = slot();
        post(&slot, 17);
        assert_eq!(slot.settle(at(Stage::Posted), 5), Settled::Again(17));
        assert!(slot.take().is_none());
        for stage in [Stage::Posted, Stage::Taken] {
            post(&slot, 17);
            slot.take().unwrap().answer(Answer::Value(3));
            assert_eq!(slot.settle(at(stage), 5), Settled::Returned(3), "{stage:?}");
        }
        // The answer of an earlier call is not that of one that nobody took.
        post(&slot, 17);
        slot.take().unwrap().answer(Answer::Value(3));
        post(&slot, 18);
        assert_eq!(slot.settle(at(Stage::Posted), 5), Settled::Again(18));
        assert_eq!(slot.settle(at(Stage::Before), 1), Settled::Again(1));
    }

    #[test]
    fn a_withdrawal_tells_whether_it_came_in_time() {
        let slot = slot();
        post(&slot, 17);
        slot.ram.store_u32(slot.at + call_slot::POST, call_slot::WITHDRAWN);
        assert!(slot.take().is_none());
        assert_eq!(slot.settle(at(Stage::Withdrawing), call_slot::POSTED.into()), Settled::Again(17));
        post(&slot, 17);
        let taken = slot.take().unwrap();
        slot.ram.store_u32(slot.at + call_slot::POST, call_slot::WITHDRAWN);
        taken.answer(Answer::Value(4));
        assert_eq!(slot.settle(at(Stage::Withdrawing), call_slot::NOT_POSTED.into()), Settled::Returned(4));
    }

    #[test]
    fn what_is_done_of_a_refused_call_is_not_done_again() {
        let slot = slot();
        post(&slot, 20);
        slot.take().unwrap().answer(Answer::Exit { progress: 0 });
        assert_eq!(slot.settle(at(Stage::Refused), 0), Settled::Again(20));
        for stage in [Stage::Posted, Stage::Taken, Stage::Refused, Stage::Before] {
            post(&slot, 20);
            slot.take().unwrap().answer(Answer::Exit { progress: 512 });
            assert_eq!(slot.settle(at(stage), 20), Settled::Serve(512), "{stage:?}");
        }
        post(&slot, 20);
        slot.take().unwrap().answer(Answer::Exit { progress: 9 });
        assert_eq!((slot.take_progress(), slot.take_progress()), (9, 0));
    }

    #[test]
    fn a_closed_slot_is_left_alone() {
        let slot = slot();
        slot.close();
        post(&slot, READ);
        assert!(slot.take().is_none());
    }

    #[test]
    fn one_of_two_takes_a_call() {
        let slot = slot();
        for round in 0..2000u64 {
            post(&slot, round);
            let (answered, settled) = std::thread::scope(|scope| {
                let server =
                    scope.spawn(|| slot.take().map(|taken| taken.answer(Answer::Value(round as i64))).is_some());
                let settled = slot.settle(at(Stage::Posted), 0);
                (server.join().unwrap(), settled)
            });
            let wanted = if answered { Settled::Returned(round as i64) } else { Settled::Again(round) };
            assert_eq!(settled, wanted);
        }
    }
}
