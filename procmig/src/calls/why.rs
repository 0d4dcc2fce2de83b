//! Why calls are refused, in words for who looks whether a program can run (`docs/compatibility.md`).

pub(super) const OBSOLETE: &str = "Linux itself no longer has it, or never had it on this processor";
pub(super) const ADMINISTRATION: &str = "administers the whole machine, which is home's own business";
pub(super) const MOUNTS: &str = "changes or lists what is mounted; the program sees home's mounts as they are";
pub(super) const NAMESPACES: &str = "makes or enters namespaces (containers); the program lives in those of `mosrun`";
pub(super) const SEGMENTS: &str = "segments of 16-bit and 32-bit code, which is not run";
pub(super) const PORTS: &str = "hardware ports; a node has no hardware";
pub(super) const DEBUGGING: &str =
    "debuggers and tracers look into other processes by it; `mosrun --trace` shows system calls";
pub(super) const OTHERS_MEMORY: &str = "gives advice on the memory of another process";
pub(super) const ONE_MEMORY: &str = "a node has one kind of memory, in one place";
pub(super) const RINGS: &str = "shares rings of memory with home's kernel, from which the program is apart; \
     programs fall back to `epoll` and plain calls";
pub(super) const ASYNC_IO: &str =
    "works on the program's memory while the program runs, from which home's kernel is apart; `libaio` has fall-backs";
pub(super) const OWN_PAGES: &str = "hands the program's own pages to home's kernel, from which they are apart";
pub(super) const KEYS: &str = "home's key rings; a kernel may be built without them";
pub(super) const PROTECTION_KEYS: &str = "a processor feature that not every node has";
pub(super) const PROGRAMS_OF_THE_KERNEL: &str = "loads programs into the kernel or counts its events";
pub(super) const SANDBOXES: &str =
    "filters the calls of home's kernel, which are not the program's own; the node is a sandbox already";
pub(super) const FILE_HANDLES: &str = "opens files past their directories, which takes a privilege";
pub(super) const WATCHING_MOUNTS: &str = "watches whole file systems, which takes a privilege; `inotify` is served";
pub(super) const NEW: &str = "newer than what programs rely on; they ask for it and fall back";
pub(super) const NEW_FUTEX: &str = "a newer form of `futex`, which is served; programs fall back to that";
pub(super) const ONE_POLICY: &str = "a newer form of `sched_setscheduler`, which is served; programs fall back to that";
pub(super) const SEALS: &str = "forbids changes to mappings; programs ask for it and go on without";
pub(super) const RESTARTABLE: &str = "only saves time; the C library falls back";
