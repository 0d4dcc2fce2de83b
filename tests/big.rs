//! Big inputs: programs that use memory, disk and processors in earnest.

use skein_tests::{bash, cases};

/// Prints `$1` bytes of lines from a generator with a fixed seed.
const LINES: &str = "lines() { mawk -v size=$1 'BEGIN { srand(1); x = 42; while (n < size) { \
    x = (x * 16807) % 2147483647; l = x; for (i = 0; i < 5; i++) { x = (x * 16807) % 2147483647; l = l \" \" x } \
    print l; n += length(l) + 1 } }'; }\n";

cases! {
    sort_sorts_200_megabytes: bash(&format!("{LINES} lines 200000000 > in; wc -c < in; mkdir t; LC_ALL=C sort -S 120M -T t --parallel=2 in | sha256sum; rm in; ls t")).seconds(400);
    xz_compresses_50_megabytes_in_two_threads: bash(&format!("{LINES} lines 50000000 | tee >(sha256sum > sum) | xz -1 -T2 --block-size=8MiB > out.xz; wait; xz -T2 -dc out.xz | sha256sum | cmp - sum && xz --robot -l out.xz | cut -f 2-5; cat sum; sha256sum < out.xz; rm out.xz sum")).seconds(400);
}
