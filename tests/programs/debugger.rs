//! gdb as far as it goes without tracing a process: it reads programs and computes.

use skein_tests::{cases, exec};

cases! {
    gdb_tells_its_version: exec(["gdb", "--version"]);
    gdb_reads_a_program: exec(["gdb", "-nx", "-batch", "-ex", "print 6 * 7", "-ex", "print $_gdb_major > 0", "-ex", "info files", "/bin/true"]);
}
