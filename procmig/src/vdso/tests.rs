use super::clock::{Clock, tsc_is_usable};
use super::distance::{Asked, Clocks, Distance};
use super::page::{Lines, TimePage};
use super::*;
use goblin::elf::Elf;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type GetTime = extern "C" fn(i32, *mut libc::timespec) -> i32;

/// Time page and image, mapped as in a guest process.
struct Mapped {
    start: *mut u8,
}

// SAFETY: it is only an address; what is there is atomic, or never written again.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn new() -> Self {
        // SAFETY: makes a new mapping, copies the image into it and makes that part executable.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(ptr::null_mut(), SPAN as usize, protection, flags, -1, 0).cast::<u8>();
            assert!(!start.is_null() && start as isize != -1);
            let image = start.add(4096);
            ptr::copy_nonoverlapping(IMAGE.as_ptr(), image, IMAGE.len());
            assert_eq!(libc::mprotect(image.cast(), IMAGE.len(), libc::PROT_READ | libc::PROT_EXEC), 0);
            Self { start }
        }
    }

    fn page(&self) -> &TimePage {
        // SAFETY: zeros are a time page, and it is at the start of the mapping.
        unsafe { &*self.start.cast() }
    }

    fn symbol(&self, name: &str) -> usize {
        let elf = Elf::parse(IMAGE).unwrap();
        let symbol = elf.dynsyms.iter().find(|symbol| elf.dynstrtab.get_at(symbol.st_name) == Some(name)).unwrap();
        self.start as usize + 4096 + symbol.st_value as usize
    }

    fn clock_gettime(&self) -> impl Fn(i32) -> u64 + Sync + use<> {
        // SAFETY: the symbol is this function.
        let function: GetTime = unsafe { std::mem::transmute(self.symbol("__vdso_clock_gettime")) };
        move |clock| {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            assert_eq!(function(clock, &mut time), 0);
            time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
        }
    }

    fn clock(&self, usable: bool) -> Clock {
        // SAFETY: the mapping stays for as long as the process.
        unsafe { Clock::new(NonNull::from(self.page()), None, usable) }
    }
}

fn libc_time(clock: i32) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is the place that the call writes to.
    assert_eq!(unsafe { libc::clock_gettime(clock, &mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

const CLOCKS: [i32; 5] =
    [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI];

/// Nanoseconds by which `read` lies outside of what libc says before and after it: the least of a
/// few tries, since a thread may lose its CPU in between.
fn distance(clock: i32, read: impl Fn(i32) -> u64) -> u64 {
    let once = || {
        let before = libc_time(clock);
        let time = read(clock);
        let after = libc_time(clock);
        before.saturating_sub(time).max(time.saturating_sub(after))
    };
    (0..5).map(|_| once()).min().unwrap()
}

#[test]
fn the_clocks_are_those_of_the_host_and_never_go_back() {
    if !tsc_is_usable() {
        eprintln!("the TSC of this machine is not usable: nothing to test");
        return;
    }
    let mapped = Mapped::new();
    let clock = mapped.clock(true);
    let read = mapped.clock_gettime();
    let stop = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_millis(1200);
    let (reads, farthest) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                clock.update();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let reader = scope.spawn(|| {
            let mut last = CLOCKS.map(&read);
            let (mut reads, mut farthest) = (0u64, 0);
            while Instant::now() < end {
                for _ in 0..100 {
                    for (index, &id) in CLOCKS.iter().enumerate() {
                        let now = read(id);
                        assert!(now >= last[index], "clock {id} went back by {} ns", last[index] - now);
                        last[index] = now;
                        reads += 1;
                    }
                }
                for id in CLOCKS {
                    farthest = farthest.max(distance(id, &read));
                }
            }
            (reads, farthest)
        });
        let result = reader.join();
        stop.store(true, Ordering::Relaxed);
        result.unwrap()
    });
    eprintln!("{reads} reads, at most {farthest} ns from libc");
    assert!(farthest < 200_000, "{farthest} ns from libc");
    for id in CLOCKS {
        assert!(distance(id, |id| clock.now(id).unwrap()) < 200_000);
        assert!(clock.now(id).unwrap() <= read(id));
    }
    for (coarse, fine) in
        [(libc::CLOCK_REALTIME_COARSE, libc::CLOCK_REALTIME), (libc::CLOCK_MONOTONIC_COARSE, libc::CLOCK_MONOTONIC)]
    {
        let (before, after) = (read(coarse), read(fine));
        assert!(before <= after && after - before < 500_000_000);
    }
}

/// What a host says that was started so many nanoseconds before this one and is as much fast.
fn elsewhere(ahead: i64) -> Clocks {
    let here = Clocks::now();
    let time = |time: u64| time.wrapping_add(ahead as u64);
    Clocks { monotonic: time(here.monotonic), raw: time(here.raw), ..here }
}

#[test]
fn another_hosts_clocks_are_followed_and_never_go_back() {
    const DAY: i64 = 86_400_000_000_000;
    /// As a host that is corrected wrongly time and again would have it.
    const JITTER: i64 = 3_000_000;
    for usable in [tsc_is_usable(), false] {
        let mapped = Mapped::new();
        let asked = Asked::now();
        let distance = Distance::measure(&asked, &elsewhere(DAY)).unwrap();
        // SAFETY: the mapping stays for as long as the process.
        let clock = unsafe { Clock::of_home(NonNull::from(mapped.page()), usable, distance) };
        let vdso = mapped.clock_gettime();
        // Without a TSC guests make system calls, which are answered so.
        let read = |id| if usable { vdso(id) } else { clock.now(id).unwrap() };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for jitter in [JITTER, -JITTER, 0].into_iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    clock.hear(&Asked::now(), &elsewhere(DAY + jitter));
                    clock.update();
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let end = Instant::now() + Duration::from_millis(500);
            let mut last = CLOCKS.map(read);
            let mut wrong = None;
            while Instant::now() < end && wrong.is_none() {
                for (last, id) in last.iter_mut().zip(CLOCKS) {
                    let now = read(id);
                    wrong = wrong.or((now < *last).then(|| (id, *last - now)));
                    *last = now;
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(wrong, None, "a clock went back");
        });
        for id in CLOCKS {
            let apart = distance_from(id, DAY, read);
            assert!(apart < 2 * JITTER as u64 + 200_000, "clock {id}: {apart}, usable {usable}");
        }
        assert_eq!(clock.now(99), None);
        assert!(!clock.wants_news());
    }
}

/// As [`distance`] of a clock that is ahead of libc's.
fn distance_from(clock: i32, ahead: i64, read: impl Fn(i32) -> u64) -> u64 {
    distance(clock, |id| read(id).wrapping_sub(ahead as u64))
}

#[test]
fn without_a_tsc_or_before_the_first_update_the_kernel_is_asked() {
    let mapped = Mapped::new();
    let read = mapped.clock_gettime();
    for round in 0..2 {
        for id in CLOCKS.into_iter().chain([libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID]) {
            assert_eq!(distance(id, &read), 0, "clock {id}");
        }
        if round == 0 {
            let clock = mapped.clock(false);
            assert!(!clock.is_usable());
            assert_eq!(distance(libc::CLOCK_MONOTONIC, |id| clock.now(id).unwrap()), 0);
            assert_eq!(clock.now(99), None);
        }
    }
    // SAFETY: the symbol is this function.
    let function: GetTime = unsafe { std::mem::transmute(mapped.symbol("__vdso_clock_gettime")) };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(function(99, &mut time), -libc::EINVAL);
    assert_eq!(function(-77777, &mut time), -libc::EINVAL);
}

#[test]
fn the_other_functions_say_the_same() {
    let mapped = Mapped::new();
    let clock = mapped.clock(tsc_is_usable());
    // SAFETY: the symbols are these functions.
    let (get_day, get_time, resolution, get_cpu) = unsafe {
        (
            std::mem::transmute::<usize, extern "C" fn(*mut libc::timeval, *mut [i32; 2]) -> i32>(
                mapped.symbol("__vdso_gettimeofday"),
            ),
            std::mem::transmute::<usize, extern "C" fn(*mut i64) -> i64>(mapped.symbol("__vdso_time")),
            std::mem::transmute::<usize, GetTime>(mapped.symbol("__vdso_clock_getres")),
            std::mem::transmute::<usize, extern "C" fn(*mut u32, *mut u32, usize) -> i64>(
                mapped.symbol("__vdso_getcpu"),
            ),
        )
    };
    let before = clock.now(libc::CLOCK_REALTIME).unwrap();
    let (mut day, mut zone, mut seconds) = (libc::timeval { tv_sec: 0, tv_usec: 0 }, [1, 1], 0);
    assert_eq!(get_day(&mut day, &mut zone), 0);
    assert_eq!(get_day(ptr::null_mut(), ptr::null_mut()), 0);
    assert_eq!(zone, [0, 0]);
    assert!(day.tv_sec as u64 * 1_000_000 + day.tv_usec as u64 - before / 1000 < 10_000_000);
    assert_eq!(get_time(&mut seconds), seconds);
    assert!(get_time(ptr::null_mut()) - (before / 1_000_000_000) as i64 <= 10);
    for id in (0..16).filter(|id| ![2, 3, 8, 9].contains(id)) {
        let mut time = libc::timespec { tv_sec: 9, tv_nsec: 9 };
        match super::clock::resolution(id) {
            Some(expected) => {
                assert_eq!(resolution(id, &mut time), 0);
                assert_eq!((time.tv_sec, time.tv_nsec as u64), (0, expected));
                assert_eq!(resolution(id, ptr::null_mut()), 0);
            }
            None => assert_eq!(resolution(id, &mut time), -libc::EINVAL),
        }
    }
    let (mut cpu, mut node) = (99, 99);
    assert_eq!(get_cpu(&mut cpu, &mut node, 0), 0);
    assert!(cpu < 99 && node < 99);
    mapped.page().cpus.store(1, Ordering::Relaxed);
    assert_eq!(get_cpu(&mut cpu, &mut node, 0), 0);
    assert_eq!((cpu, node), (0, 0));
}

/// Bases that belong together are published in a hurry; a reader that mixed two updates would see a
/// time that neither had.
#[test]
fn a_reader_never_sees_half_an_update() {
    let mapped = Mapped::new();
    let read = mapped.clock_gettime();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sequence = 0;
            let mut round = 0u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                // The multiplier is 0, so a clock shows its base; the offset makes up for the base.
                let lines = Lines {
                    realtime: 1_000_000_000 * round,
                    tai_offset: -(1_000_000_000 * round as i64),
                    ..Lines::default()
                };
                mapped.page().publish(&mut sequence, || Some(lines));
                std::hint::spin_loop();
            }
        });
        while mapped.page().usable.load(Ordering::Relaxed) == 0 {
            std::hint::spin_loop();
        }
        let end = Instant::now() + Duration::from_millis(300);
        let (mut whole, mut torn) = (0, None);
        while Instant::now() < end && torn.is_none() {
            for _ in 0..100 {
                match read(libc::CLOCK_TAI) {
                    0 => whole += 1,
                    // The writer lost its CPU in the middle of an update, so the kernel was asked.
                    time if time.abs_diff(libc_time(libc::CLOCK_TAI)) < 1_000_000_000 => {}
                    time => torn = Some(time),
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(torn, None, "a torn update was seen");
        assert!(whole > 1000, "{whole} reads");
    });
}

#[test]
fn the_dynamic_linker_finds_every_function_by_name_and_version() {
    let elf = Elf::parse(IMAGE).unwrap();
    assert_eq!(elf.soname, Some("linux-vdso.so.1"));
    let loads: Vec<_> = elf.program_headers.iter().filter(|header| header.p_type == 1).collect();
    assert_eq!(loads.len(), 1);
    assert_eq!((loads[0].p_offset, loads[0].p_vaddr, loads[0].p_flags), (0, 0, 5));
    assert!(elf.dynrels.is_empty() && elf.dynrelas.is_empty() && elf.pltrelocs.is_empty());
    let dynamic = elf.dynamic.as_ref().unwrap();
    for tag in [goblin::elf::dynamic::DT_HASH, goblin::elf::dynamic::DT_GNU_HASH] {
        assert!(dynamic.dyns.iter().any(|entry| entry.d_tag == tag));
    }
    let path = std::env::temp_dir().join(format!("vdso-{}.so", std::process::id()));
    std::fs::write(&path, IMAGE).unwrap();
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: loads a library that runs no code when it is loaded; only looks up its symbols.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        std::fs::remove_file(&path).unwrap();
        assert!(!handle.is_null());
        for function in ["clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu"] {
            for prefix in ["", "__vdso_"] {
                let symbol = std::ffi::CString::new(format!("{prefix}{function}")).unwrap();
                assert!(!libc::dlvsym(handle, symbol.as_ptr(), c"LINUX_2.6".as_ptr()).is_null());
            }
        }
    }
}

#[test]
fn pages_of_two_nodes_are_never_taken_for_one_that_has_not_changed() {
    let (one, other) = (Mapped::new(), Mapped::new());
    let _clocks = (one.clock(true), other.clock(true));
    let sequence = |mapped: &Mapped| mapped.page().sequence.load(Ordering::SeqCst);
    assert_eq!((sequence(&one) % 2, sequence(&other) % 2), (0, 0));
    assert!(sequence(&one).abs_diff(sequence(&other)) > 100, "{} and {}", sequence(&one), sequence(&other));
}
