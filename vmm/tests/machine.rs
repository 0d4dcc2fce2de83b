//! A machine on the hypervisor that is here, with a few instructions as its guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmm::addr::{Frame, PAGE_SIZE};
use vmm::dirty::Tracker;
use vmm::entry::{EntryMode, Paging};
use vmm::hypervisor::kvm::KvmHypervisor;
use vmm::machine::{Machine, MachineError};
use vmm::paging::{NO_EXECUTE, PRESENT, USER, WRITE};
use vmm::tables::{Changes, PageTables};
use vmm::user_cpu::{Edit, Exception, UserCpu, UserEvent};

/// `mov %rsi,(%rdi); syscall`, then `mov (%rdi),%rax; syscall`, then a jump to itself.
const PROGRAM: [u8; 12] = [0x48, 0x89, 0x37, 0x0f, 0x05, 0x48, 0x8b, 0x07, 0x0f, 0x05, 0xeb, 0xfe];
const CODE: u64 = 0x40_0000;
const STORE: u64 = CODE;
const LOAD: u64 = CODE + 5;
const SPIN: u64 = CODE + 10;
const DATA: u64 = 0x4000_0000;

fn machine() -> Arc<Machine> {
    Machine::new(&KvmHypervisor::open().unwrap(), 256 << 20).unwrap()
}

/// Tables that map the program, and so many pages of data.
fn tables(machine: &Arc<Machine>, pages: u64) -> (PageTables, Vec<Frame>) {
    let mut tables = PageTables::new(machine.clone()).unwrap();
    let code = machine.frames().allocate().unwrap();
    machine.ram().write(code.address(), &PROGRAM);
    tables.fill(CODE, &[code.address().raw() | PRESENT | USER]).unwrap();
    let frames: Vec<_> = (0..pages).map(|_| machine.frames().allocate().unwrap()).collect();
    let entries: Vec<_> = frames.iter().map(|&frame| data_entry(frame)).collect();
    assert!(tables.fill(DATA, &entries).unwrap().iter().all(|&written| written));
    (tables, frames)
}

fn data_entry(frame: Frame) -> u64 {
    frame.address().raw() | PRESENT | USER | WRITE | NO_EXECUTE
}

fn cpu(machine: &Arc<Machine>, tables: &PageTables) -> UserCpu {
    let mut cpu = machine.create_cpu().unwrap();
    cpu.set_root(tables.root());
    cpu
}

fn at(cpu: &mut UserCpu, rip: u64, rdi: u64, rsi: u64) -> UserEvent {
    let regs = cpu.regs_mut();
    (regs.rip, regs.rdi, regs.rsi) = (rip, rdi, rsi);
    cpu.run().unwrap()
}

fn load(cpu: &mut UserCpu, address: u64) -> u64 {
    assert_eq!(at(cpu, LOAD, address, 0), UserEvent::SystemCall);
    cpu.regs().rax
}

fn store(cpu: &mut UserCpu, address: u64, value: u64) {
    assert_eq!(at(cpu, STORE, address, value), UserEvent::SystemCall);
}

#[test]
fn the_self_test_tells_what_kind_of_machine_this_is() {
    let machine = machine();
    if std::path::Path::new("/sys/module/kvm_pvm").exists() {
        assert_eq!((machine.entry_mode(), machine.paging()), (EntryMode::Ring3, Paging::Shadow));
    } else {
        assert_eq!(machine.entry_mode(), EntryMode::Ring0);
    }
}

#[test]
fn a_size_out_of_range_is_refused() {
    let hypervisor = KvmHypervisor::open().unwrap();
    assert!(matches!(Machine::new(&hypervisor, 1 << 20), Err(MachineError::Size)));
    assert!(matches!(Machine::new(&hypervisor, 1 << 50), Err(MachineError::Size)));
}

#[test]
fn a_system_call_leaves_the_registers_as_linux_leaves_them() {
    let machine = machine();
    let (tables, frames) = tables(&machine, 1);
    let mut cpu = cpu(&machine, &tables);
    store(&mut cpu, DATA, 42);
    assert_eq!(machine.ram().load(frames[0].address()), 42);
    assert_eq!((cpu.regs().rip, cpu.regs().rcx), (STORE + 5, STORE + 5));
    assert_eq!(cpu.regs().r11, cpu.regs().rflags);
    // And on from there.
    assert_eq!(cpu.run().unwrap(), UserEvent::SystemCall);
    assert_eq!(cpu.regs().rax, 42);
}

#[test]
fn a_fault_tells_address_and_reason_and_the_instruction_is_done_again() {
    let machine = machine();
    let (mut tables, _) = tables(&machine, 1);
    let mut cpu = cpu(&machine, &tables);
    let absent = DATA + 7 * PAGE_SIZE + 8;
    let expected = Exception { vector: 14, error_code: 6, address: absent };
    assert_eq!(at(&mut cpu, STORE, absent, 7), UserEvent::Exception(expected));
    assert_eq!(cpu.regs().rip, STORE);
    let frame = machine.frames().allocate().unwrap();
    tables.fill(absent & !(PAGE_SIZE - 1), &[data_entry(frame)]).unwrap();
    assert_eq!(cpu.run().unwrap(), UserEvent::SystemCall);
    assert_eq!(machine.ram().load(frame.address() + 8), 7);
}

#[test]
fn a_jump_out_of_the_user_s_half_is_a_fault() {
    let machine = machine();
    let (tables, _) = tables(&machine, 1);
    let mut cpu = cpu(&machine, &tables);
    for wild in [0x7fff_c000_1000, 0x8000_0000_0000, u64::MAX - 15] {
        let event = at(&mut cpu, wild, 0, 0);
        assert!(matches!(event, UserEvent::Exception(Exception { vector: 14, address, .. }) if address == wild));
    }
    assert_eq!(load(&mut cpu, DATA), 0);
}

#[test]
fn the_editor_s_changes_are_seen_by_every_vcpu() {
    let machine = machine();
    let (tables, frames) = tables(&machine, 200);
    let (mut editor, mut other) = (cpu(&machine, &tables), cpu(&machine, &tables));
    for (i, frame) in frames.iter().enumerate() {
        machine.ram().store(frame.address(), i as u64);
    }
    for i in 0..frames.len() as u64 {
        assert_eq!((load(&mut editor, DATA + i * PAGE_SIZE), load(&mut other, DATA + i * PAGE_SIZE)), (i, i));
    }
    // Each page gets its neighbour's frame: more edits than one list holds.
    let edits: Vec<_> = (0..frames.len())
        .map(|i| {
            let leaf = tables.lookup(DATA + i as u64 * PAGE_SIZE).unwrap();
            Edit { entry: leaf.at, value: data_entry(frames[(i + 1) % frames.len()]) }
        })
        .collect();
    editor.edit_tables(&edits).unwrap();
    if machine.paging() == Paging::Nested {
        other.reload_root().unwrap();
    }
    for i in 0..frames.len() as u64 {
        let expected = (i + 1) % frames.len() as u64;
        let seen = (load(&mut editor, DATA + i * PAGE_SIZE), load(&mut other, DATA + i * PAGE_SIZE));
        assert_eq!(seen, (expected, expected), "page {i}");
    }
}

#[test]
fn tables_change_and_unmap_as_asked() {
    let machine = machine();
    let (mut tables, frames) = tables(&machine, 1024);
    let mut cpu = cpu(&machine, &tables);
    for i in 0..1024 {
        store(&mut cpu, DATA + i * PAGE_SIZE, i);
    }
    // A few entries, more than a table's worth of edits, and a whole table with parts of two others.
    for (start, end) in [(3, 5), (100, 400), (500, 1024)] {
        let mut changes = Changes::default();
        let mut visited = 0;
        tables
            .update(
                DATA + start * PAGE_SIZE,
                DATA + end * PAGE_SIZE,
                &mut |_, _, large| {
                    assert!(!large);
                    visited += 1;
                    0
                },
                &mut changes,
            )
            .unwrap();
        assert_eq!(visited, end - start);
        changes.apply(&mut cpu, |_| ()).unwrap();
        for i in start..end {
            let event = at(&mut cpu, LOAD, DATA + i * PAGE_SIZE, 0);
            assert!(matches!(event, UserEvent::Exception(Exception { vector: 14, error_code: 4, .. })), "page {i}");
            // The frame is free for others now.
            machine.frames().release(frames[i as usize]);
        }
    }
    for i in (0..3).chain(5..100).chain(400..500) {
        assert_eq!(load(&mut cpu, DATA + i * PAGE_SIZE), i);
    }
}

#[test]
fn a_large_page_is_split_where_a_part_of_it_changes() {
    let machine = machine();
    let (mut tables, _) = tables(&machine, 1);
    let large = 0x6000_0000;
    let block = machine.frames().allocate_block().unwrap();
    assert!(tables.fill_large(large, data_entry(block) | vmm::paging::LARGE).unwrap());
    let mut cpu = cpu(&machine, &tables);
    for i in 0..512 {
        store(&mut cpu, large + i * PAGE_SIZE, i + 1);
    }
    let mut changes = Changes::default();
    let page = large + 77 * PAGE_SIZE;
    tables.update(page, page + PAGE_SIZE, &mut |_, _, _| 0, &mut changes).unwrap();
    changes.apply(&mut cpu, |_| ()).unwrap();
    assert!(matches!(at(&mut cpu, LOAD, page, 0), UserEvent::Exception(_)));
    for i in (0..512).filter(|&i| i != 77) {
        assert_eq!(load(&mut cpu, large + i * PAGE_SIZE), i + 1);
    }
}

#[test]
fn a_root_that_does_not_lead_to_the_shim_is_told_from_one_that_does() {
    let machine = machine();
    let (tables, _) = tables(&machine, 1);
    let boot = machine.create_cpu().unwrap().root();
    assert!(machine.leads_to_shim(boot) && machine.leads_to_shim(tables.root()));
    assert!(!machine.leads_to_shim(machine.frames().allocate().unwrap().address()));
    // Beyond the memory.
    assert!(!machine.leads_to_shim(Frame(u32::MAX).address()));
    machine.ram().store(tables.root() + 255 * 8, 0);
    assert!(!machine.leads_to_shim(tables.root()));
}

#[test]
fn a_change_that_memory_ends_early_is_whole_as_far_as_it_went() {
    let machine = machine();
    // A table full of pages, and behind it a large page that cannot be split without a new table.
    let (mut tables, _) = tables(&machine, 512);
    let large = DATA + 512 * PAGE_SIZE;
    let block = machine.frames().allocate_block().unwrap();
    assert!(tables.fill_large(large, data_entry(block) | vmm::paging::LARGE).unwrap());
    let mut cpu = cpu(&machine, &tables);
    store(&mut cpu, DATA, 1);
    store(&mut cpu, large, 2);
    while machine.frames().allocate().is_ok() {}
    let mut changes = Changes::default();
    assert!(tables.update(DATA, large + PAGE_SIZE, &mut |_, _, _| 0, &mut changes).is_err());
    changes.apply(&mut cpu, |_| ()).unwrap();
    // The table may be another's by now: nothing leads there any more.
    machine.tables().recycle(&machine).unwrap();
    let reused = machine.frames().allocate().unwrap();
    machine.ram().store(reused.address(), data_entry(block));
    assert_eq!(tables.lookup(DATA), None);
    assert!(matches!(at(&mut cpu, LOAD, DATA, 0), UserEvent::Exception(_)));
    assert_eq!(load(&mut cpu, large), 2);
}

#[test]
fn a_read_of_the_shim_s_port_is_a_fault_and_the_vcpu_lives() {
    const GENERAL_PROTECTION: u8 = 13;
    let machine = machine();
    let (mut tables, _) = tables(&machine, 2);
    let code = machine.frames().allocate().unwrap();
    let place = 0x50_0000;
    tables.fill(place, &[code.address().raw() | PRESENT | USER]).unwrap();
    let mut cpu = cpu(&machine, &tables);
    // in $0x10,%al; in (%dx),%al; insb; rep insb; rep insl
    for bytes in [&[0xe4, 0x10][..], &[0xec], &[0x6c], &[0xf3, 0x6c], &[0xf3, 0x6d]] {
        machine.ram().write(code.address(), bytes);
        store(&mut cpu, DATA, 5);
        let regs = cpu.regs_mut();
        (regs.rax, regs.rdx, regs.rcx) = (0x1234, 0x10, 700);
        let event = at(&mut cpu, place, DATA, 6);
        let UserEvent::Exception(exception) = event else { panic!("{bytes:x?}: {event:?}") };
        assert_eq!(exception.vector, GENERAL_PROTECTION, "{bytes:x?}");
        let regs = *cpu.regs();
        assert_eq!((regs.rip, regs.rax, regs.rcx, regs.rdi), (place, 0x1234, 700, DATA), "{bytes:x?}");
        // What is done next is not disturbed by a read that was left open.
        store(&mut cpu, DATA + PAGE_SIZE, 0xabcd);
        assert_eq!((load(&mut cpu, DATA + PAGE_SIZE), cpu.regs().rdi), (0xabcd, DATA + PAGE_SIZE));
    }
    assert!(!cpu.is_dead());
}

#[test]
fn a_root_in_the_frame_of_an_earlier_one_brings_its_own_translations() {
    let machine = machine();
    let mut cpu = machine.create_cpu().unwrap();
    let mut roots = Vec::new();
    for number in 1..=20 {
        let (tables, frames) = tables(&machine, 2);
        cpu.set_root(tables.root());
        store(&mut cpu, DATA, number);
        store(&mut cpu, DATA + PAGE_SIZE, number + 100);
        assert_eq!(machine.ram().load(frames[0].address()), number);
        assert_eq!(load(&mut cpu, DATA + PAGE_SIZE), number + 100);
        roots.push(tables.root());
        cpu.reset();
        // The data frames are not given back: the next tables map others.
        drop(tables);
    }
    roots.sort();
    roots.dedup();
    eprintln!("{} roots in 20 rounds, {} paging", roots.len(), machine.paging());
}

#[test]
fn retired_tables_are_used_again_without_old_translations() {
    let machine = machine();
    let mut last = None;
    for round in 0..40u64 {
        let (tables, frames) = tables(&machine, 8);
        let mut cpu = match last.take() {
            Some(cpu) => cpu,
            None => machine.create_cpu().unwrap(),
        };
        cpu.set_root(tables.root());
        for i in 0..8 {
            machine.ram().store(frames[i as usize].address(), round * 8 + i);
            assert_eq!(load(&mut cpu, DATA + i * PAGE_SIZE), round * 8 + i);
        }
        cpu.reset();
        last = Some(cpu);
        machine.frames().release_all(&frames);
        drop(tables);
        machine.tables().recycle(&machine).unwrap();
        assert_eq!(machine.tables().retired_count(), 0);
    }
}

#[test]
fn the_dirty_log_names_the_written_pages_and_no_others() {
    let machine = machine();
    let (tables, frames) = tables(&machine, 64);
    let mut cpu = cpu(&machine, &tables);
    for i in 0..64 {
        store(&mut cpu, DATA + i * PAGE_SIZE, 1);
    }
    machine.vm().start_dirty_log().unwrap();
    machine.vm().read_dirty_log().unwrap();
    for i in (0..64).step_by(3) {
        store(&mut cpu, DATA + i * PAGE_SIZE, 2);
    }
    let log = machine.vm().read_dirty_log().unwrap();
    for (i, frame) in frames.iter().enumerate() {
        let dirty = log[frame.0 as usize / 64] >> (frame.0 % 64) & 1 == 1;
        assert_eq!(dirty, i % 3 == 0, "page {i}");
    }
    let log = machine.vm().read_dirty_log().unwrap();
    assert!(frames.iter().all(|frame| log[frame.0 as usize / 64] >> (frame.0 % 64) & 1 == 0));
    machine.vm().stop_dirty_log().unwrap();
}

#[test]
fn no_interrupt_is_lost() {
    let machine = machine();
    let (tables, _) = tables(&machine, 1);
    let mut cpu = cpu(&machine, &tables);
    // One that comes before the run.
    let interrupter = cpu.interrupter();
    interrupter.interrupt();
    assert_eq!(at(&mut cpu, SPIN, 0, 0), UserEvent::Interrupted);
    assert_eq!(cpu.regs().rip, SPIN);
    // Many that come whenever they come.
    let (done, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let other = std::thread::spawn({
        let (done, taken) = (done.clone(), taken.clone());
        move || {
            for _ in 0..2000 {
                taken.store(false, Ordering::SeqCst);
                interrupter.interrupt();
                let start = Instant::now();
                while !taken.load(Ordering::SeqCst) {
                    assert!(start.elapsed() < Duration::from_secs(10), "an interrupt was lost");
                    std::hint::spin_loop();
                }
            }
            done.store(true, Ordering::SeqCst);
            interrupter.interrupt();
        }
    });
    while !done.load(Ordering::SeqCst) {
        match cpu.run().unwrap() {
            UserEvent::Interrupted => taken.store(true, Ordering::SeqCst),
            event => panic!("{event:?}"),
        }
    }
    other.join().unwrap();
}

#[test]
fn vector_state_is_kept_and_set() {
    let machine = machine();
    let (tables, _) = tables(&machine, 1);
    let mut cpu = cpu(&machine, &tables);
    cpu.set_fpu(&vmm::user_cpu::initial_fpu()).unwrap();
    store(&mut cpu, DATA, 1);
    let mut state = cpu.fpu().unwrap();
    // XMM3 in the legacy area, and the bit that says that it is there.
    state[160 + 3 * 16..][..8].copy_from_slice(&0x1234_5678u64.to_le_bytes());
    state[512] |= 3;
    cpu.set_fpu(&state).unwrap();
    store(&mut cpu, DATA, 2);
    assert_eq!(cpu.fpu().unwrap()[160 + 3 * 16..][..8], 0x1234_5678u64.to_le_bytes());
}

#[test]
fn the_costs_of_the_hypervisor_are_measured() {
    let hypervisor = KvmHypervisor::open().unwrap();
    let costs = vmm::probe::measure(&hypervisor).unwrap();
    eprintln!("{costs:?}");
    let parts = [costs.create_vm, costs.create_vcpu, costs.exit, costs.fault, costs.edit, costs.forget];
    assert!(parts.iter().all(|cost| !cost.is_zero()), "{costs:?}");
    // An exit is a world switch and no more: thousands fit into what a person notices.
    assert!(costs.exit.as_millis() < 10, "{costs:?}");
    assert_eq!(costs.modes, machine().modes());
    assert!(!vmm::probe::bare_exit(&hypervisor).unwrap().is_zero());
}

#[test]
fn each_who_wants_to_know_is_told_what_was_written_since_and_the_log_ends_a_moment_later() {
    let machine = machine();
    let (tables, frames) = tables(&machine, 6);
    let mut cpu = cpu(&machine, &tables);
    let mut write = |page: usize| store(&mut cpu, DATA + page as u64 * PAGE_SIZE, 1);
    let written = |tracker: &Tracker| -> Vec<usize> {
        let set = tracker.take().unwrap();
        (0..frames.len()).filter(|&page| set.contains(frames[page])).collect()
    };
    let is_ending = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names.into_iter().any(|name| name == "dirty log\n")
    };
    write(0);
    let first = Tracker::start(&machine).unwrap();
    write(1);
    let second = Tracker::start(&machine).unwrap();
    write(2);
    assert!(written(&second).contains(&2));
    let seen = written(&first);
    assert!(seen.contains(&1) && seen.contains(&2) && !seen.contains(&0), "{seen:?}");
    drop((first, second));
    // The log is still on, but what was written meanwhile is of no interest.
    write(3);
    let third = Tracker::start(&machine).unwrap();
    write(4);
    machine.ram().write(frames[5].address(), b"by the VMM");
    assert_eq!(written(&third), [4, 5]);
    // Whoever comes does not keep it from going on for who is there.
    std::thread::sleep(Duration::from_millis(1100));
    write(1);
    assert_eq!(written(&third), [1]);
    drop(third);
    // Noted while the log is on for nobody: not even then is it of interest when the log has ended.
    machine.ram().write(frames[3].address(), b"by the VMM");
    let since = Instant::now();
    // Who ends it is a thread, which is there in a moment.
    for is_so in [true, false] {
        while is_ending() != is_so {
            assert!(since.elapsed() < Duration::from_secs(10), "the log does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let fourth = Tracker::start(&machine).unwrap();
    assert!(written(&fourth).is_empty());
    write(0);
    assert_eq!(written(&fourth), [0]);
}
