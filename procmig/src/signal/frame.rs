//! The frame on which a signal handler runs: `struct rt_sigframe` of x86-64 Linux, bit for bit.
//!
//! From the handler's stack pointer upwards: the return address (the restorer), a `ucontext`, a
//! `siginfo_t`, padding, and at a multiple of 64 the FPU state in XSAVE's standard format, ended by
//! a magic number. `rt_sigreturn` reads it back; the program may have changed every byte of it.

use super::altstack::{AltStack, MIN_SIZE, SS_AUTODISARM};
use super::set::SignalSet;
use crate::elf::program::ADDRESS_LIMIT;
use crate::usermem::UserMemory;
use crate::wire::call::SIGINFO_SIZE;
use crate::wire::control::SigInfo;
use nix::errno::Errno;
use vmm::addr::GuestVirtAddr;
use vmm::regs::Regs;

/// Selector of user code, as programs see it in `cs`.
const USER_CS: u16 = 0x33;
/// Selector of user data, as programs see it in `ss`.
const USER_SS: u16 = 0x2b;
/// `SA_RESTORER`, which x86-64 demands.
const SA_RESTORER: u64 = 0x0400_0000;
/// The FPU state has an XSAVE header and the magic numbers.
const UC_FP_XSTATE: u64 = 1;
/// `ss` is in the frame, and `rt_sigreturn` restores it as it is.
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Bytes below the stack pointer that a function may use (System V ABI).
const RED_ZONE: u64 = 128;

// Offsets in `struct rt_sigframe`.
const UC_FLAGS: usize = 8;
const UC_STACK: usize = 24;
const GENERAL: usize = 48;
const CS: usize = GENERAL + 144;
const SS: usize = CS + 6;
const ERROR: usize = GENERAL + 152;
const TRAP: usize = ERROR + 8;
const OLD_MASK: usize = ERROR + 16;
const CR2: usize = ERROR + 24;
const FPSTATE: usize = ERROR + 32;
const UC_SIGMASK: usize = GENERAL + 256;
const INFO: usize = UC_SIGMASK + 8;
/// Bytes of `struct rt_sigframe`.
const FRAME_SIZE: usize = INFO + SIGINFO_SIZE;
const _: () = assert!(FRAME_SIZE == 440, "struct rt_sigframe of Linux");

// Offsets in the FPU state.
const MXCSR: usize = 24;
const SOFTWARE: usize = 464;
const LEGACY_SIZE: usize = 512;
const XSTATE_BV: usize = 512;
const XSAVE_MIN: usize = 576;
/// x87 and SSE: always in a frame.
const FP_SSE: u64 = 3;
/// MXCSR's bits that a CPU with XSAVE has.
const MXCSR_MASK: u32 = 0xffff;

/// `AC OF DF TF SF ZF AF PF CF RF`: what `rt_sigreturn` takes from the frame.
const USER_FLAGS: u64 = 0x0005_0dd5;
/// `IF` and the bit that is always set.
const FIXED_FLAGS: u64 = 0x202;
const FLAG_TF: u64 = 0x100;
const FLAG_DF: u64 = 0x400;
const FLAG_RF: u64 = 0x1_0000;

/// Flags as a program may have them.
pub fn user_flags(flags: u64) -> u64 {
    flags & USER_FLAGS | FIXED_FLAGS
}

/// The shape of the FPU state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FpuLayout {
    features: u64,
    size: usize,
}

impl FpuLayout {
    /// `features` is XCR0; `size` is the bytes of the standard format with all of them (EBX of CPUID
    /// leaf 13). `None` if the size is impossible.
    pub fn new(features: u64, size: usize) -> Option<Self> {
        (XSAVE_MIN..=1 << 20).contains(&size).then_some(Self { features: features | FP_SSE, size })
    }

    /// XCR0.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Bytes of the state.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Most bytes that a frame takes of a stack (`AT_MINSIGSTKSZ`).
    pub fn min_stack(&self) -> u64 {
        // As `get_sigframe_size` of Linux: the frame, the state with its magic number and the alignment
        // of both, rounded up to 16. The redzone is not counted.
        let state = self.size as u64 + 4 + 63;
        (FRAME_SIZE as u64 + 8 + 8 + state).next_multiple_of(16)
    }
}

/// What a handler is to be called for.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The registers to come back to, already set to restart or break off a system call.
    pub regs: &'a Regs,
    /// The FPU state in XSAVE's standard format, at least [`FpuLayout::size`] bytes.
    pub xsave: &'a [u8],
    /// Its shape.
    pub layout: FpuLayout,
    /// Why.
    pub info: &'a SigInfo,
    /// The mask to come back to.
    pub old_mask: SignalSet,
    /// `sa_handler`
    pub handler: GuestVirtAddr,
    /// `sa_flags`
    pub flags: u64,
    /// `sa_restorer`
    pub restorer: GuestVirtAddr,
    /// The thread's alternate stack.
    pub altstack: AltStack,
    /// Address of the thread's last fault.
    pub cr2: u64,
    /// Error code of the thread's last fault.
    pub error: u64,
    /// Number of the thread's last fault.
    pub trap: u64,
}

/// A frame to write, and where the thread goes then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameImage {
    /// Where `bytes` go.
    pub address: GuestVirtAddr,
    /// The frame.
    pub bytes: Vec<u8>,
    /// The registers with which the handler starts.
    pub regs: Regs,
    /// The thread's alternate stack while the handler runs.
    pub altstack: AltStack,
}

/// Builds the frame for a handler.
///
/// # Errors
/// `EFAULT` if there is no place for it or no restorer, `EINVAL` if `xsave` is too short; the caller
/// raises a forced `SIGSEGV` then, as it does where the bytes cannot be written.
pub fn build(delivery: &Delivery<'_>) -> Result<FrameImage, Errno> {
    let regs = delivery.regs;
    let size = delivery.layout.size;
    let xsave = delivery.xsave.get(..size).ok_or(Errno::EINVAL)?;
    if delivery.flags & SA_RESTORER == 0 {
        return Err(Errno::EFAULT);
    }
    let altstack = delivery.altstack;
    let nested = altstack.in_use(GuestVirtAddr(regs.rsp));
    let mut top = regs.rsp.wrapping_sub(RED_ZONE);
    let mut entering = false;
    if delivery.flags & libc::SA_ONSTACK as u64 != 0 && altstack.size != 0 && !altstack.in_use(GuestVirtAddr(top)) {
        top = altstack.base.wrapping_add(altstack.size);
        entering = true;
    }
    let state = top.checked_sub(size as u64 + 4).ok_or(Errno::EFAULT)? & !63;
    // The handler finds its stack as after a call: 8 less than a multiple of 16.
    let frame =
        (state.checked_sub(FRAME_SIZE as u64).ok_or(Errno::EFAULT)? & !15).checked_sub(8).ok_or(Errno::EFAULT)?;
    if (nested || entering) && !altstack.holds(GuestVirtAddr(frame)) {
        return Err(Errno::EFAULT);
    }
    if state >= ADDRESS_LIMIT - (size as u64 + 4) {
        return Err(Errno::EFAULT);
    }

    let state_at = (state - frame) as usize;
    let mut bytes = vec![0; state_at + size + 4];
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, delivery.restorer.0);
    put(UC_FLAGS, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
    for (index, value) in general(regs).into_iter().enumerate() {
        put(GENERAL + 8 * index, value);
    }
    put(CS, u64::from(USER_CS) | u64::from(USER_SS) << 48);
    put(ERROR, delivery.error);
    put(TRAP, delivery.trap);
    put(OLD_MASK, delivery.old_mask.0);
    put(CR2, delivery.cr2);
    put(FPSTATE, state);
    put(UC_SIGMASK, delivery.old_mask.0);
    bytes[UC_STACK..UC_STACK + AltStack::SIZE].copy_from_slice(&altstack.to_bytes());
    bytes[INFO..FRAME_SIZE].copy_from_slice(&delivery.info.0);
    write_fpu(&mut bytes[state_at..], xsave, delivery.layout);

    let mut entered = *regs;
    entered.rax = 0;
    entered.rdi = delivery.info.signal() as u64;
    entered.rsi = frame + INFO as u64;
    entered.rdx = frame + UC_FLAGS as u64;
    entered.rsp = frame;
    entered.rip = delivery.handler.0;
    entered.rflags = (regs.rflags | FIXED_FLAGS) & !(FLAG_TF | FLAG_DF | FLAG_RF);
    let disarmed = altstack.flags & SS_AUTODISARM != 0;
    Ok(FrameImage {
        address: GuestVirtAddr(frame),
        bytes,
        regs: entered,
        altstack: if disarmed { AltStack::default() } else { altstack },
    })
}

/// The registers in the order of `struct sigcontext`.
fn general(regs: &Regs) -> [u64; 18] {
    [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.rflags,
    ]
}

/// The opposite of [`general`].
fn from_general(words: &[u64; 18]) -> Regs {
    let &[r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags] = words;
    Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Writes the FPU state and what Linux puts into its software-reserved bytes.
fn write_fpu(to: &mut [u8], xsave: &[u8], layout: FpuLayout) {
    let size = layout.size;
    to[..size].copy_from_slice(xsave);
    let present = word64(xsave, XSTATE_BV) & layout.features;
    // The frame says that x87 and SSE are in it; where the CPU left them out they are as after reset.
    if present & 1 == 0 {
        to[..MXCSR].fill(0);
        to[32..160].fill(0);
        to[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    }
    if present & 2 == 0 {
        to[160..416].fill(0);
    }
    to[SOFTWARE..LEGACY_SIZE].fill(0);
    to[SOFTWARE..SOFTWARE + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    to[SOFTWARE + 4..SOFTWARE + 8].copy_from_slice(&(size as u32 + 4).to_le_bytes());
    to[SOFTWARE + 8..SOFTWARE + 16].copy_from_slice(&layout.features.to_le_bytes());
    to[SOFTWARE + 16..SOFTWARE + 20].copy_from_slice(&(size as u32).to_le_bytes());
    to[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(present | FP_SSE).to_le_bytes());
    to[XSTATE_BV + 8..XSAVE_MIN].fill(0);
    to[size..size + 4].copy_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
}

/// What `rt_sigreturn` brings back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The registers.
    pub regs: Regs,
    /// The mask, without what cannot be blocked.
    pub mask: SignalSet,
    /// The thread's alternate stack.
    pub altstack: AltStack,
    /// The FPU state in XSAVE's standard format, fit to be loaded; `None`: the state after reset.
    pub xsave: Option<Vec<u8>>,
}

/// Reads back the frame of a thread that calls `rt_sigreturn` with these registers.
///
/// # Errors
/// `EFAULT` if the frame cannot be read or leads out of user space; the caller raises a forced
/// `SIGSEGV` then.
pub fn restore(
    memory: &dyn UserMemory,
    current: &Regs,
    current_altstack: AltStack,
    layout: FpuLayout,
) -> Result<Restored, Errno> {
    // The handler's return took the restorer's address off the stack.
    let address = GuestVirtAddr(current.rsp.checked_sub(8).ok_or(Errno::EFAULT)?);
    let mut frame = [0; INFO];
    memory.read(address, &mut frame)?;
    let mut words = [0; 18];
    for (index, word) in words.iter_mut().enumerate() {
        *word = word64(&frame, GENERAL + 8 * index);
    }
    let mut regs = from_general(&words);
    regs.rflags = (current.rflags & !USER_FLAGS) | (regs.rflags & USER_FLAGS) | FIXED_FLAGS;
    // No other code segment exists here: a 32-bit one would fault at the return.
    if frame[CS..CS + 2] != USER_CS.to_le_bytes() || regs.rip >= ADDRESS_LIMIT {
        return Err(Errno::EFAULT);
    }
    let ss = u16::from_le_bytes([frame[SS], frame[SS + 1]]);
    if word64(&frame, UC_FLAGS) & UC_STRICT_RESTORE_SS != 0 && ss != USER_SS {
        return Err(Errno::EFAULT);
    }
    let xsave = match word64(&frame, FPSTATE) {
        0 => None,
        state => Some(read_fpu(memory, GuestVirtAddr(state), layout)?),
    };
    let wanted = AltStack::from_bytes(frame[UC_STACK..UC_STACK + AltStack::SIZE].try_into().expect("24 bytes"));
    let mut altstack = current_altstack;
    // Linux ignores every error here: a thread still on its alternate stack keeps it.
    let _ = altstack.set(wanted, GuestVirtAddr(regs.rsp), MIN_SIZE);
    Ok(Restored { regs, mask: SignalSet(word64(&frame, UC_SIGMASK)).blockable(), altstack, xsave })
}

/// Reads an FPU state that the program may have written, and makes it one that can be loaded.
fn read_fpu(memory: &dyn UserMemory, address: GuestVirtAddr, layout: FpuLayout) -> Result<Vec<u8>, Errno> {
    if address.0 >= ADDRESS_LIMIT || !address.is_aligned(64) {
        return Err(Errno::EFAULT);
    }
    let mut state = vec![0; layout.size];
    memory.read(address, &mut state[..LEGACY_SIZE])?;
    let size = word32(&state, SOFTWARE + 16) as usize;
    let extended_size = word32(&state, SOFTWARE + 4) as usize;
    let mut features = word64(&state, SOFTWARE + 8) & layout.features;
    let mut extended = word32(&state, SOFTWARE) == FP_XSTATE_MAGIC1
        && (XSAVE_MIN..=layout.size).contains(&size)
        && size <= extended_size;
    // A frame without its last magic number was copied by a program that knows only the first 512 bytes.
    extended = extended && memory.read_u32(address + size as u64)? == FP_XSTATE_MAGIC2;
    let present = if extended {
        memory.read(address + LEGACY_SIZE as u64, &mut state[LEGACY_SIZE..size])?;
        word64(&state, XSTATE_BV)
    } else {
        features = FP_SSE;
        FP_SSE
    };
    state[XSTATE_BV..XSAVE_MIN].fill(0);
    state[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(present & features).to_le_bytes());
    state[SOFTWARE..LEGACY_SIZE].fill(0);
    let mxcsr = word32(&state, MXCSR) & MXCSR_MASK;
    state[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    Ok(state)
}

#[cfg(test)]
mod tests;
