//! Compiles the vDSO of guest processes with the system's C compiler.

use std::path::Path;
use std::process::Command;

fn main() {
    let source = Path::new("src/vdso");
    let output = Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("vdso.so");
    for file in ["vdso.c", "vdso.lds"] {
        println!("cargo::rerun-if-changed={}", source.join(file).display());
    }
    println!("cargo::rerun-if-env-changed=CC");
    // As in make, it may be a command with arguments.
    let compiler = std::env::var("CC").unwrap_or_default();
    let mut words = compiler.split_whitespace();
    let status = Command::new(words.next().unwrap_or("cc"))
        .args(words)
        .args(["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-nostdlib", "-ffreestanding"])
        // Callers may have little stack, their own vector registers, and no stack guard yet.
        .args(["-fno-stack-protector", "-mgeneral-regs-only", "-fcf-protection=none", "-fno-lto"])
        .args(["-march=x86-64", "-mtune=generic", "-fvisibility=default", "-fasynchronous-unwind-tables", "-g0"])
        .args(["-Wl,-soname=linux-vdso.so.1", "-Wl,--hash-style=both", "-Wl,-Bsymbolic", "-Wl,--eh-frame-hdr"])
        .args(["-Wl,--build-id=none", "-Wl,-z,max-page-size=4096", "-Wl,-z,norelro", "-Wl,--no-undefined"])
        .args(["-Wl,--strip-all", "-Wl,-T"])
        .arg(source.join("vdso.lds"))
        .arg("-o")
        .arg(&output)
        .arg(source.join("vdso.c"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the C compiler (cc, or CC={compiler:?}) could not build the vDSO ({status})"),
        Err(error) => {
            panic!("the C compiler (cc, or CC={compiler:?}) could not be started ({error}): install one or set CC")
        }
    }
}
