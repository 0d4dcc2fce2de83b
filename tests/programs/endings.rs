//! How programs start and end: statuses, deadly signals, closed and broken descriptors.

use skein_tests::case::Item;
use skein_tests::{bash, cases, dash, exec, perl, python};

cases! {
    an_exit_status_is_passed_on: dash("exit 57").status(57);
    an_exit_status_is_a_byte: perl("exit 256 + 7").status(7);
    killed_by_sigkill: dash("kill -KILL $$").signal(9);
    killed_by_sigterm: dash("kill -TERM $$").signal(15);
    killed_by_sigint: bash("kill -INT $$").signal(2);
    killed_by_sighup: dash("kill -HUP $$").signal(1);
    killed_by_sigsegv: dash("kill -SEGV $$").signal(11);
    killed_by_sigabrt: perl("use POSIX; POSIX::abort()").signal(6);
    killed_by_sigpipe: perl("kill PIPE => $$; sleep 9").signal(13);
    killed_by_sigalrm: perl("alarm 1; sleep 20").signal(14);
    killed_by_a_real_time_signal: dash("kill -40 $$").signal(40);
    killed_by_a_wild_pointer: python("import ctypes; ctypes.string_at(16)").signal(11);
    a_shell_says_127_for_what_is_missing: bash("no-such-command").status(127);
    a_shell_says_126_for_what_is_not_executable: dash("./f").file("f", "data").status(126);
    a_shell_says_126_for_a_directory: dash("./d").directory("d").status(126);
    a_shell_runs_a_script_without_a_first_line: bash("./f").program("f", "echo ran without '#!'\n");
    a_script_runs_by_its_first_line: exec(["./f", "a", "b c"]).program("f", "#!/bin/sh -e\necho \"$0\" \"$1\" \"$2\" $#\nfalse\necho not reached\n").status(1);
    a_script_for_awk: exec(["./f", "x"]).program("f", "#!/usr/bin/mawk -f\nBEGIN { print \"awk\", ARGV[1] }\n");
    a_script_by_a_script: exec(["./g", "1"]).program("f", "#!/bin/sh\necho f \"$@\"\n").program("g", "#!./f  two words \nignored\n");
    a_script_through_env: exec(["./f"]).program("f", "#!/usr/bin/env -S perl -w\nprint \"perl @ARGV\\n\";\n");
    a_missing_interpreter_fails_in_the_shell: dash("./f").program("f", "#!/no/such/interpreter\n").status(127);
    a_program_without_read_permission: dash("cat ./f | wc -c; ./f").item("f", Item::File(b"#!/bin/sh\necho ran\n".to_vec(), 0o755));
    a_relative_program: exec(["d/f"]).directory("d").program("d/f", "#!/bin/sh\necho $0; pwd | wc -l\n");
    a_long_argument_list: bash("x=$(printf '%0100000d' 7); /bin/echo $x $x | md5sum; /bin/echo {1..20000} | md5sum");
    an_argument_list_that_is_too_long: bash("x=$(printf '%0140000d' 7); /bin/echo $x").status(126);
    an_empty_argument_and_odd_bytes: exec(["printf", "%s|", "", "\u{7f}", "ä", "\t"]);
    a_closed_stdin: dash("cat; echo $?").closed(0);
    a_closed_stdout: exec(["echo", "nowhere"]).closed(1).status(1);
    a_closed_stderr: dash("echo lost >&2; echo $?; ls missing; echo $?").closed(2);
    all_three_closed: dash("exec 0</dev/null 1>out 2>&1; ls -1 .; echo done").closed(0).closed(1).closed(2);
    the_first_descriptor_is_the_lowest_free: python("import os; a = os.open('/dev/null', 0); b = os.open('/dev/null', 0); os.close(a); print(a, b, os.open('/dev/null', 0))");
    the_first_descriptor_where_stdin_is_closed: python("import os; print(os.open('/dev/null', 0))").closed(0);
    no_descriptor_is_left_over: python("import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])");
    a_broken_pipe_kills_a_writer: exec(["yes"]).broken_stdout().signal(13);
    a_broken_pipe_is_an_error_where_sigpipe_is_ignored: bash("trap '' PIPE; exec cat file").file("file", "x").broken_stdout().status(1);
    a_megabyte_through_a_pipe_in_odd_sizes: python("
import os, hashlib
r, w = os.pipe()
if os.fork() == 0:
    os.close(r); data = bytes(i * 7 & 255 for i in range(1 << 20)); at = 0; n = 1
    while at < len(data):
        at += os.write(w, data[at:at + n]); n = n * 3 % 70001 + 1
    os._exit(0)
os.close(w); h = hashlib.sha256(); n = 1; total = 0
while True:
    b = os.read(r, n); n = n * 5 % 90001 + 1
    if not b: break
    h.update(b); total += len(b)
print(total, h.hexdigest(), os.wait()[1])
");
    ten_megabytes_from_stdin_to_stdout: exec(["cat"]).stdin(vec![b'x'; 10 << 20]);
    stdin_that_nobody_reads: exec(["true"]).stdin(vec![b'x'; 1 << 20]);
    the_process_id_is_home_s: bash("[ $$ = $(exec sh -c 'echo $PPID') ] && [ $BASHPID = $$ ] && [ -d /proc/$$ ] && kill -0 $$ && echo same");
    ps_shows_it: bash("ps -o ppid= -p $$ | { read p; [ $p = $PPID ] && echo parent; }");
    the_process_sees_itself_in_proc: bash("readlink /proc/self/exe; readlink /proc/$$/exe; tr '\\0' ' ' < /proc/$$/cmdline | head -c 12; cat /proc/self/comm; readlink /proc/self/cwd | grep -c work; sed -n 's/^Name:[[:space:]]*//p' /proc/self/status");
    the_maps_show_the_program: dash("grep -c '\\[stack\\]' /proc/self/maps; grep -c 'bin/grep' /proc/self/maps | sed 's/[1-9]/some/'; grep -ci skein /proc/self/maps").status(1);
    a_call_through_the_link_to_the_program_reaches_it: bash("stat -L -c %s /proc/self/exe /proc/$$/exe; cksum < /proc/$$/exe; test -x /proc/self/exe && echo executable");
    proc_shows_another_process_of_the_node: bash("trap '' USR1; Z='a b' sleep 20 & sleep 0.3; for f in cmdline environ; do tr '\\0' '\\n' < /proc/$!/$f | grep -E '^(sleep|20|Z=)'; done; ls /proc/$!/fd | wc -l; grep -E '^(Name|State|Threads|Sig[BIC])' /proc/$!/status; cut -d' ' -f 2,3,20,31-34 /proc/$!/stat; grep -c sleep /proc/$!/maps | sed 's/[1-9]/some/'; kill $!");
    the_environment_is_seen_in_proc: bash("tr '\\0' '\\n' < /proc/$$/environ | grep ^TZ=");
    limits_are_inherited: bash("ulimit -n 77; sh -c 'ulimit -n'; ulimit -S -s 4096; sh -c 'ulimit -s; ulimit -Hs'; ulimit -c");
    too_many_files_is_an_error: python("
import os, resource, errno
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30)); n = 0
try:
    while True: os.dup(0); n += 1
except OSError as e: print(n, errno.errorcode[e.errno])
");
    numbers_of_files_are_the_lowest_free: python("
import os, resource, socket, errno
os.closerange(3, 100)
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 40))
free = [n for n in range(20) if n > 2]
for i in range(300):
    got = [os.open('/dev/null', os.O_RDONLY), *os.pipe(), os.dup(0), *(s.detach() for s in socket.socketpair())]
    assert got == free[:6], (i, got)
    os.close(got[2])
    assert os.open('/etc/passwd', os.O_RDONLY) == got[2]
    more = 6
    try:
        while True: more += os.open('/dev/null', os.O_RDONLY) > 0
    except OSError as e: assert e.errno == errno.EMFILE
    assert more == len(free), (i, more)
    os.closerange(3, 20)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
");
    a_hard_limit_of_files_is_one: python("
import os, resource, subprocess
def to(soft, hard):
    try: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError) as e: print(type(e).__name__, e)
    print(resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
to(40, 60); to(60, 60); to(61, 60); to(50, 70)
print(subprocess.run(['sh', '-c', 'ulimit -Sn; ulimit -Hn; ulimit -n 55; ulimit -Hn'], capture_output=True).stdout)
os.setuid(65534)
to(30, 70); to(30, 71); to(30, 50); to(30, 51); to(50, 50)
print(subprocess.run(['sh', '-c', 'ulimit -Sn; ulimit -Hn'], capture_output=True).stdout)
");
    a_file_size_limit_sends_sigxfsz: bash("exec 2>/dev/null; ulimit -f 1; head -c 5000 /dev/zero > f; echo $?; wc -c < f");
    a_cpu_limit_kills: dash("ulimit -S -t 1; exec mawk 'BEGIN { while (1) x++ }'").signal(24);
    an_address_space_limit_is_enomem: python("
import resource, mmap
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try: mmap.mmap(-1, 2 << 30); print('mapped')
except (OSError, MemoryError) as e: print(type(e).__name__, e)
print(len(mmap.mmap(-1, 1 << 20)))
");
    an_orphan_finishes_its_work: bash("(sleep 0.3; echo done > file) & disown; exit 3").status(3);
    a_zombie_is_reaped_by_wait: python("
import os, time
p = os.fork()
if p == 0: os._exit(9)
while open(f'/proc/{p}/stat').read().split(')')[1].split()[0] != 'Z': time.sleep(0.01)
print(os.waitpid(p, 0)[1], os.path.exists(f'/proc/{p}'))
");
}
