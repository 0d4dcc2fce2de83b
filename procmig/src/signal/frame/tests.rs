use super::super::info;
use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A piece of memory at an address.
struct Piece {
    address: u64,
    bytes: Vec<u8>,
}

impl UserMemory for Piece {
    fn read(&self, address: GuestVirtAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        let at = address.0.checked_sub(self.address).ok_or(Errno::EFAULT)? as usize;
        let end = at.checked_add(buffer.len()).ok_or(Errno::EFAULT)?;
        buffer.copy_from_slice(self.bytes.get(at..end).ok_or(Errno::EFAULT)?);
        Ok(())
    }
    fn write(&self, _: GuestVirtAddr, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

const SIZE: usize = 832;

fn layout() -> FpuLayout {
    FpuLayout::new(7, SIZE).unwrap()
}

fn some_regs() -> Regs {
    from_general(&std::array::from_fn(|index| match index {
        15 => 0x7fff_0000_0123,
        16 => 0x40_1234,
        17 => 0x10646,
        index => 0x1111 * (index as u64 + 1),
    }))
}

fn some_xsave() -> Vec<u8> {
    let mut xsave = vec![0x5a; SIZE];
    xsave[MXCSR..MXCSR + 8].copy_from_slice(&0xffff_0000_1f80u64.to_le_bytes());
    xsave[XSTATE_BV..XSAVE_MIN].fill(0);
    xsave[XSTATE_BV] = 7;
    xsave
}

fn build_with(change: impl FnOnce(&mut Delivery<'_>)) -> Result<FrameImage, Errno> {
    build_from(&some_regs(), change)
}

fn build_from(regs: &Regs, change: impl FnOnce(&mut Delivery<'_>)) -> Result<FrameImage, Errno> {
    let mut delivery = Delivery {
        regs,
        xsave: &some_xsave(),
        layout: layout(),
        info: &info::kill(10, 77, 1000),
        old_mask: SignalSet(0x55),
        handler: GuestVirtAddr(0x40_2000),
        flags: SA_RESTORER,
        restorer: GuestVirtAddr(0x40_3000),
        altstack: AltStack::default(),
        cr2: 0xc2,
        error: 6,
        trap: 14,
    };
    change(&mut delivery);
    build(&delivery)
}

/// `rt_sigreturn` from an image, as after the handler's `ret`.
fn restore_from(image: &FrameImage, altstack: AltStack) -> Result<Restored, Errno> {
    let memory = Piece { address: image.address.0, bytes: image.bytes.clone() };
    let current = Regs { rsp: image.address.0 + 8, rflags: 0x202, ..Regs::default() };
    restore(&memory, &current, altstack, layout())
}

#[test]
fn a_handler_starts_as_the_abi_says_and_comes_back_to_the_same_state() {
    let image = build_with(|_| {}).unwrap();
    assert_eq!(image.regs.rsp % 16, 8);
    assert_eq!(image.regs.rsp, image.address.0);
    assert!(image.address.0 + image.bytes.len() as u64 <= some_regs().rsp - RED_ZONE);
    assert_eq!((image.regs.rdi, image.regs.rip, image.regs.rax), (10, 0x40_2000, 0));
    assert_eq!(image.regs.rflags & (FLAG_TF | FLAG_DF | FLAG_RF), 0);
    let restored = restore_from(&image, AltStack::default()).unwrap();
    assert_eq!(restored.regs, some_regs());
    assert_eq!(restored.mask, SignalSet(0x55));
    let mut xsave = restored.xsave.unwrap();
    xsave[SOFTWARE..LEGACY_SIZE].fill(0x5a);
    assert_eq!(xsave, some_xsave());
}

#[test]
fn the_alternate_stack_is_used_once_and_its_overflow_is_a_fault() {
    let altstack = AltStack { base: 0x10_0000, size: 0x4000, flags: 0 };
    let on = SA_RESTORER | libc::SA_ONSTACK as u64;
    let image = build_with(|delivery| (delivery.altstack, delivery.flags) = (altstack, on)).unwrap();
    assert!(altstack.holds(image.address) && image.address.0 > 0x10_3000);
    let inner = Regs { rsp: 0x10_2000, ..some_regs() };
    let nested = build_from(&inner, |delivery| (delivery.altstack, delivery.flags) = (altstack, on)).unwrap();
    assert!(nested.address.0 < 0x10_2000);
    let inner = Regs { rsp: 0x10_0400, ..some_regs() };
    let overflow = build_from(&inner, |delivery| (delivery.altstack, delivery.flags) = (altstack, on));
    assert_eq!(overflow, Err(Errno::EFAULT));
    let auto = AltStack { flags: SS_AUTODISARM, ..altstack };
    let image = build_with(|delivery| (delivery.altstack, delivery.flags) = (auto, on)).unwrap();
    assert_eq!(image.altstack, AltStack::default());
    assert_eq!(restore_from(&image, image.altstack).unwrap().altstack, auto);
}

#[test]
fn a_frame_without_a_place_or_a_restorer_is_a_fault() {
    assert_eq!(build_with(|delivery| delivery.flags = 0), Err(Errno::EFAULT));
    for rsp in [0, 128, 1000, u64::MAX, 1 << 63] {
        let regs = Regs { rsp, ..some_regs() };
        assert_eq!(build_from(&regs, |_| {}), Err(Errno::EFAULT), "{rsp:#x}");
    }
    assert_eq!(build_with(|delivery| delivery.xsave = &[]), Err(Errno::EINVAL));
}

#[test]
fn a_forged_frame_cannot_load_what_the_cpu_refuses() {
    let image = build_with(|_| {}).unwrap();
    let state_at = (word64(&image.bytes, FPSTATE) - image.address.0) as usize;
    let forge = |at: usize, bytes: &[u8]| {
        let mut forged = image.clone();
        forged.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        restore_from(&forged, AltStack::default())
    };
    let ones = [0xff; 48];
    // IOPL, VM, VIF and the rest stay as they are.
    assert_eq!(forge(GENERAL + 136, &ones[..8]).unwrap().regs.rflags, 0x202 | USER_FLAGS);
    assert_eq!(forge(GENERAL + 128, &ones[..8]), Err(Errno::EFAULT));
    assert_eq!(forge(CS, &[0x23, 0]), Err(Errno::EFAULT));
    assert_eq!(forge(FPSTATE, &ones[..8]), Err(Errno::EFAULT));
    assert_eq!(forge(FPSTATE, &[0; 8]).unwrap().xsave, None);
    assert!(!forge(UC_SIGMASK, &ones[..8]).unwrap().mask.contains(libc::SIGKILL));
    let loaded = forge(state_at + XSTATE_BV, &ones).unwrap().xsave.unwrap();
    assert_eq!(word64(&loaded, XSTATE_BV), 7);
    assert!(loaded[XSTATE_BV + 8..XSAVE_MIN].iter().all(|&byte| byte == 0));
    let loaded = forge(state_at + MXCSR, &ones[..4]).unwrap().xsave.unwrap();
    assert_eq!(word32(&loaded, MXCSR), MXCSR_MASK);
    for (at, bytes) in [(SOFTWARE, &ones[..4]), (SOFTWARE + 16, &ones[..4]), (SIZE, &ones[..4])] {
        let loaded = forge(state_at + at, bytes).unwrap().xsave.unwrap();
        assert_eq!(word64(&loaded, XSTATE_BV), FP_SSE);
        assert!(loaded[XSAVE_MIN..].iter().all(|&byte| byte == 0));
    }
    let loaded = forge(state_at + SOFTWARE + 8, &[3]).unwrap().xsave.unwrap();
    assert_eq!(word64(&loaded, XSTATE_BV), 3);
}

static FRAME: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static FRAME_AT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn keep_frame(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let frame = context as usize - UC_FLAGS;
    let context = frame as *const u8;
    // SAFETY: the kernel built the frame there; its size is in the software-reserved bytes.
    let bytes = unsafe {
        let state = context.add(FPSTATE).cast::<u64>().read_unaligned() as usize;
        let size = (state as *const u8).add(SOFTWARE + 4).cast::<u32>().read_unaligned() as usize;
        std::slice::from_raw_parts(context, state + size - frame)
    };
    FRAME_AT.store(frame, Ordering::SeqCst);
    // The signal is raised by this thread itself while nobody holds the lock, outside of the allocator.
    if let Ok(mut keep) = FRAME.try_lock() {
        keep.extend_from_slice(bytes);
    }
}

#[test]
fn the_kernel_builds_the_same_frame() {
    // SAFETY: installs a handler for a signal that nothing else uses, and raises it in this thread.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = keep_frame as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut());
        libc::raise(libc::SIGUSR2);
    }
    let real = FRAME.lock().unwrap().clone();
    let at = FRAME_AT.load(Ordering::SeqCst) as u64;
    let state_at = (word64(&real, FPSTATE) - at) as usize;
    let state = &real[state_at..];
    let size = word32(state, SOFTWARE + 16) as usize;
    let layout = FpuLayout::new(word64(state, SOFTWARE + 8), size).unwrap();
    // SAFETY: reads the auxiliary vector. The kernel counts features that it then leaves out.
    assert!(layout.min_stack() <= unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) });
    assert!(layout.min_stack() >= real.len() as u64);

    let memory = Piece { address: at, bytes: real.clone() };
    let current = Regs { rsp: at + 8, rflags: 0x202, ..Regs::default() };
    let altstack = AltStack::from_bytes(real[UC_STACK..UC_STACK + 24].try_into().unwrap());
    let restored = restore(&memory, &current, altstack, layout).unwrap();
    let image = build(&Delivery {
        regs: &restored.regs,
        xsave: restored.xsave.as_ref().unwrap(),
        layout,
        info: &SigInfo(real[INFO..FRAME_SIZE].try_into().unwrap()),
        old_mask: restored.mask,
        handler: GuestVirtAddr(0x1000),
        flags: SA_RESTORER,
        restorer: GuestVirtAddr(word64(&real, 0)),
        altstack,
        cr2: word64(&real, CR2),
        error: word64(&real, ERROR),
        trap: word64(&real, TRAP),
    })
    .unwrap();
    assert_eq!(image.address.0, at);
    assert_eq!(image.bytes.len(), real.len());
    for (range, what) in [
        (0..16, "restorer, flags"),
        // The kernel leaves the bytes between its flags and its size as they were.
        (UC_STACK..UC_STACK + 12, "stack"),
        (UC_STACK + 16..GENERAL, "stack size"),
        (GENERAL..FPSTATE + 8, "registers"),
        (UC_SIGMASK..FRAME_SIZE, "mask, info"),
        (state_at..state_at + SOFTWARE + 20, "legacy state"),
        (state_at + XSTATE_BV..real.len(), "extended state"),
    ] {
        assert_eq!(image.bytes[range.clone()], real[range], "{what}");
    }
}
