//! A program whose pages are numbered, so that it sees whether each is the one that it should be.

/// Has 64 MiB of numbered pages; `check` looks at some of them, and `forked` has a child look and write to them.
const NUMBERED: &str = "
import ctypes, mmap, os, struct, sys
PAGES = 16384
memory = mmap.mmap(-1, PAGES * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(PAGES): struct.pack_into('<Q', memory, page * 4096 + page % 4089, page + 1)
def check(pages):
    for page in pages:
        got = struct.unpack_from('<Q', memory, page * 4096 + page % 4089)[0]
        assert got == page + 1, (page, got)
def forked(pages):
    child = os.fork()
    if child == 0:
        try:
            check(pages)
            for page in pages: struct.pack_into('<Q', memory, page * 4096 + page % 4089, 0)
            os._exit(0)
        finally: os._exit(1)
    return child
print('ready', flush=True)
";

/// A Python program with 64 MiB of numbered pages, which says `ready` and goes on as it is told here: `check(pages)`
/// looks at some of its `PAGES`, `forked(pages)` gives the PID of a child that does, and then writes to them.
pub fn numbered(then: &str) -> String {
    format!("{NUMBERED}{then}")
}
