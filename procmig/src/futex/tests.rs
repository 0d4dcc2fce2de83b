use super::*;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::thread;
use std::time::Duration;

fn key(address: u64) -> Key {
    Key::Private { space: 1, address: GuestVirtAddr(address) }
}

fn enqueue(table: &FutexTable, address: u64, bitset: u32) -> Arc<Waiter> {
    table.enqueue(key(address), bitset, &Arc::new(Parker::new()), || Ok(true)).unwrap()
}

#[test]
fn a_changed_word_is_not_waited_for() {
    let table = FutexTable::new();
    let parker = Arc::new(Parker::new());
    let wait = |bitset, result| table.wait(key(4), bitset, &parker, None, || result);
    assert_eq!(wait(MATCH_ANY, Ok(false)), Err(Errno::EAGAIN));
    assert_eq!(wait(MATCH_ANY, Err(Errno::EFAULT)), Err(Errno::EFAULT));
    assert_eq!(wait(0, Ok(true)), Err(Errno::EINVAL));
    assert_eq!(table.waiters(&key(4)), 0);
}

#[test]
fn the_oldest_waiters_with_a_common_bit_are_woken() {
    let table = FutexTable::new();
    let waiters: Vec<_> = [1, 2, 3, 3].into_iter().map(|bits| enqueue(&table, 4, bits)).collect();
    let woken = || waiters.iter().map(|waiter| waiter.is_woken()).collect::<Vec<_>>();
    assert_eq!(table.wake(&key(8), 9, MATCH_ANY), 0);
    assert_eq!(table.wake(&key(4), 0, MATCH_ANY), 0);
    assert_eq!(table.wake(&key(4), 2, 2), 2);
    assert_eq!(woken(), [false, true, true, false]);
    assert_eq!(table.wake(&key(4), 9, MATCH_ANY), 2);
    assert_eq!(table.waiters(&key(4)), 0);
}

#[test]
fn a_wait_ends_by_its_deadline_or_an_interruption() {
    let table = FutexTable::new();
    let parker = Arc::new(Parker::new());
    let soon = Some(Instant::now() + Duration::from_millis(5));
    assert_eq!(table.wait(key(4), 1, &parker, soon, || Ok(true)), Ok(Waited::TimedOut));
    parker.interrupt();
    assert_eq!(table.wait(key(4), 1, &parker, None, || Ok(true)), Ok(Waited::Interrupted));
    assert!(parker.clear_interrupt());
    assert!(!parker.clear_interrupt());
    assert_eq!(table.waiters(&key(4)), 0);
}

#[test]
fn a_wake_before_the_interruption_counts() {
    let table = FutexTable::new();
    let waiter = enqueue(&table, 4, 1);
    assert_eq!(table.wake(&key(4), 1, 1), 1);
    waiter.parker.interrupt();
    assert_eq!(waiter.park(None), Parked::Ready);
    assert!(table.cancel(&waiter));
    let waiter = enqueue(&table, 4, 1);
    assert!(!table.cancel(&waiter));
    assert_eq!(table.wake(&key(4), 1, 1), 0);
}

#[test]
fn requeued_waiters_wait_on_the_other_word() {
    let table = FutexTable::new();
    for other in (8..4096).step_by(4) {
        let waiters: Vec<_> = (0..4).map(|_| enqueue(&table, 4, 1)).collect();
        assert_eq!(table.requeue(&key(4), &key(other), 1, 2, || Ok(false)), Err(Errno::EAGAIN));
        let done = table.requeue(&key(4), &key(other), 1, 2, || Ok(true)).unwrap();
        assert_eq!(done, Requeued { woken: 1, moved: 2 });
        assert_eq!((table.waiters(&key(4)), table.waiters(&key(other))), (1, 2));
        assert!(!table.cancel(&waiters[1]));
        assert_eq!(table.wake(&key(other), 9, MATCH_ANY), 1);
        assert!(waiters[2].is_woken());
        assert_eq!(table.wake(&key(4), 9, MATCH_ANY), 1);
    }
    let _waiters: Vec<_> = (0..4).map(|_| enqueue(&table, 4, 1)).collect();
    assert_eq!(table.requeue(&key(4), &key(4), 1, 2, || Ok(true)), Ok(Requeued { woken: 1, moved: 2 }));
    assert_eq!(table.waiters(&key(4)), 3);
}

#[test]
fn wake_op_wakes_the_second_word_if_its_old_value_passes() {
    let table = FutexTable::new();
    let word = AtomicU32::new(5);
    let run = |op: WakeOp| {
        let _waiters = [enqueue(&table, 4, 1), enqueue(&table, 8, 1)];
        let woken = table.wake_op(&key(4), &key(8), 1, 1, || {
            let old = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(op.apply(old))).unwrap();
            Ok(op.passes(old))
        });
        table.wake(&key(8), 9, MATCH_ANY);
        woken
    };
    // FUTEX_OP(ADD, 3, GT, 4), then again FUTEX_OP(SET | SHIFT, 4, LT, -1).
    assert_eq!(run(WakeOp::decode(1 << 28 | 4 << 24 | 3 << 12 | 4).unwrap()), Ok(2));
    assert_eq!(word.load(Ordering::SeqCst), 8);
    assert_eq!(run(WakeOp::decode(8 << 28 | 2 << 24 | 4 << 12 | 0xfff).unwrap()), Ok(1));
    assert_eq!(word.load(Ordering::SeqCst), 16);
    assert_eq!(WakeOp::decode(5 << 28), Err(Errno::ENOSYS));
    assert_eq!(WakeOp::decode(6 << 24), Err(Errno::ENOSYS));
}

/// Each wake of one waiter is a token; none is lost or made, with deadlines, interruptions and
/// requeues all the while.
#[test]
fn tokens_are_conserved_under_stress() {
    const WAITERS: usize = 6;
    let table = FutexTable::new();
    let parkers: Vec<_> = (0..WAITERS).map(|_| Arc::new(Parker::new())).collect();
    let stop = AtomicBool::new(false);
    let received = AtomicUsize::new(0);
    let given_up = AtomicUsize::new(0);
    let sent = thread::scope(|scope| {
        for (index, parker) in parkers.iter().enumerate() {
            let (table, stop, received, given_up) = (&table, &stop, &received, &given_up);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let deadline = Instant::now() + Duration::from_micros(20 + 37 * index as u64);
                    let deadline = (index % 3 != 0).then_some(deadline);
                    match table.wait(key(4 * (index as u64 % 2)), 1, parker, deadline, || Ok(true)) {
                        Ok(Waited::Woken) => received.fetch_add(1, Ordering::SeqCst),
                        Ok(_) => given_up.fetch_add(1, Ordering::SeqCst),
                        Err(errno) => panic!("{errno}"),
                    };
                    parker.clear_interrupt();
                }
            });
        }
        let wakers: Vec<_> = (0..2)
            .map(|which| {
                let (table, parkers) = (&table, &parkers);
                scope.spawn(move || {
                    let end = Instant::now() + Duration::from_millis(700);
                    let mut sent = 0;
                    let mut step = which;
                    while Instant::now() < end {
                        step += 1;
                        sent += match step % 4 {
                            0 => table.wake(&key(4 * which), 1, 1),
                            1 => table.requeue(&key(0), &key(4), 1, 2, || Ok(true)).unwrap().woken,
                            2 => table.requeue(&key(4), &key(0), 0, 9, || Ok(true)).unwrap().woken,
                            _ => table.wake_op(&key(0), &key(4), 1, 1, || Ok(true)).unwrap(),
                        };
                        if step % 8 == 0 {
                            parkers[step as usize / 8 % WAITERS].interrupt();
                        }
                        if step % 16 == 0 {
                            thread::yield_now();
                        }
                    }
                    sent
                })
            })
            .collect();
        let sent: usize = wakers.into_iter().map(|waker| waker.join().unwrap()).sum();
        stop.store(true, Ordering::SeqCst);
        parkers.iter().for_each(|parker| parker.interrupt());
        sent
    });
    assert_eq!(sent, received.load(Ordering::SeqCst));
    assert!(sent > 100 && given_up.load(Ordering::SeqCst) > 100, "{sent} sent, {given_up:?} given up");
    assert_eq!(table.waiters(&key(0)) + table.waiters(&key(4)), 0);
}
