//! The shim's machine code.

use core::arch::global_asm;

use crate::layout::{port, vcpu};

global_asm!(
    ".pushsection .rodata.skein_shim, \"a\", @progbits",
    // Exception stubs: two bytes each, in order of their vectors.
    ".globl skein_shim_code, skein_shim_edit, skein_shim_edit_reload, skein_shim_reload, skein_shim_code_end",
    "skein_shim_code:",
    ".set skein_port, {exception}",
    ".rept 32",
    "out %al, $skein_port",
    ".set skein_port, skein_port + 1",
    ".endr",
    // The page-table editor. RSP points at a list of (address, value); RIP is set so many pairs of
    // pops before the end as there are edits. Two instructions an edit, since where ring 0 is
    // emulated each costs most of a microsecond.
    ".rept {edits}",
    "pop %rdi",
    "popq (%rdi)",
    ".endr",
    "skein_shim_edit:",
    "out %al, ${edited}",
    // The same where the translations of this vCPU must be flushed too.
    ".rept {edits}",
    "pop %rdi",
    "popq (%rdi)",
    ".endr",
    "skein_shim_edit_reload:",
    "skein_shim_reload:",
    "mov %cr3, %rax",
    "mov %rax, %cr3",
    "out %al, ${edited}",
    "skein_shim_code_end:",
    // Where `syscall` lands. Where it stays in ring 3 the VMM resumes elsewhere; where it has
    // reached ring 0, `sysretq` brings it back to the address and flags that the VMM leaves in RCX and R11.
    ".globl skein_trampoline, skein_trampoline_end",
    "skein_trampoline:",
    "out %al, ${system_call}",
    "sysretq",
    "skein_trampoline_end:",
    // The self-test's ring-3 code.
    ".globl skein_probe, skein_probe_tsc, skein_probe_load, skein_probe_spin, skein_probe_end",
    "skein_probe:",
    "syscall",
    "skein_probe_tsc:",
    "rdtsc",
    "shl $32, %rdx",
    "or %rdx, %rax",
    "syscall",
    "skein_probe_load:",
    "mov (%rbx), %rax",
    "syscall",
    "skein_probe_spin:",
    "syscall",
    "jmp skein_probe_spin",
    "skein_probe_end:",
    ".popsection",
    exception = const port::EXCEPTION,
    edited = const port::EDITED,
    system_call = const port::SYSTEM_CALL,
    edits = const vcpu::MAX_EDITS,
    options(att_syntax)
);

unsafe extern "C" {
    static skein_shim_code: u8;
    static skein_shim_edit: u8;
    static skein_shim_edit_reload: u8;
    static skein_shim_reload: u8;
    static skein_shim_code_end: u8;
    static skein_trampoline: u8;
    static skein_trampoline_end: u8;
    static skein_probe: u8;
    static skein_probe_tsc: u8;
    static skein_probe_load: u8;
    static skein_probe_spin: u8;
    static skein_probe_end: u8;
}

/// Bytes of one exception stub.
pub const STUB_SIZE: u64 = 2;
/// Bytes of the code that makes one edit.
pub const EDIT_SIZE: u64 = 3;

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both are labels of the one block of read-only data above, `end` after `start`.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

fn offset(base: *const u8, label: *const u8) -> u64 {
    // SAFETY: both are labels of the one block of read-only data above, `label` not before `base`.
    unsafe { label.offset_from_unsigned(base) as u64 }
}

/// Exception stubs and page-table editor.
pub fn shim() -> &'static [u8] {
    between(&raw const skein_shim_code, &raw const skein_shim_code_end)
}

/// Where in [`shim`] the edits end: `EDIT_SIZE × n` bytes before it starts the code that makes `n`.
pub fn edit_end() -> u64 {
    offset(&raw const skein_shim_code, &raw const skein_shim_edit)
}

/// As [`edit_end`], of the editor that also reloads the root.
pub fn edit_reload_end() -> u64 {
    offset(&raw const skein_shim_code, &raw const skein_shim_edit_reload)
}

/// Where in [`shim`] the root is reloaded.
pub fn reload() -> u64 {
    offset(&raw const skein_shim_code, &raw const skein_shim_reload)
}

/// Where `syscall` lands.
pub fn trampoline() -> &'static [u8] {
    between(&raw const skein_trampoline, &raw const skein_trampoline_end)
}

/// The self-test's code.
pub fn probe() -> &'static [u8] {
    between(&raw const skein_probe, &raw const skein_probe_end)
}

/// Where in [`probe`] the time-stamp counter is read into RAX.
pub fn probe_tsc() -> u64 {
    offset(&raw const skein_probe, &raw const skein_probe_tsc)
}

/// Where in [`probe`] the quadword at RBX is loaded into RAX.
pub fn probe_load() -> u64 {
    offset(&raw const skein_probe, &raw const skein_probe_load)
}

/// Where in [`probe`] system calls are made for ever.
pub fn probe_spin() -> u64 {
    offset(&raw const skein_probe, &raw const skein_probe_spin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_has_the_shape_that_the_vmm_counts_on() {
        let edits = vcpu::MAX_EDITS as u64;
        assert_eq!(edit_end(), 32 * STUB_SIZE + edits * EDIT_SIZE);
        assert_eq!(edit_reload_end(), edit_end() + 2 + edits * EDIT_SIZE);
        assert_eq!(shim()[..2], [0xe6, port::EXCEPTION as u8]);
        assert_eq!(shim()[31 * 2..32 * 2], [0xe6, port::EXCEPTION as u8 + 31]);
        assert!(shim().len() <= 4096);
        assert_eq!(trampoline(), [0xe6, port::SYSTEM_CALL as u8, 0x48, 0x0f, 0x07]);
    }
}
