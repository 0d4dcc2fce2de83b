//! What a program sees of itself, of its root directory and of the CPUs it may use.

use skein_tests::{bash, cases, exec, python};

cases! {
    a_script_has_its_own_name: exec(["./a-script"])
        .program("a-script", "#!/bin/busybox sh\ncat /proc/$$/comm; busybox pidof a-script | grep -o -w $$ | grep -c .\n");
    a_script_s_interpreter_may_be_a_script: exec(["./outer", "word"])
        .program("outer", "#!./inner -x\nnot read\n")
        .program("inner", "#!/bin/sh\ncat /proc/$$/comm; echo \"$@\"\n");
    programs_run_in_another_root: bash("
[ $(id -u) = 0 ] || { echo only root changes its root; exit 1; }
mkdir -p root/bin && cp /bin/busybox root/bin/
exec 7< /dev/null
chroot root /bin/busybox sh -c 'cd /; /bin/busybox ls; /bin/busybox echo in the root; (/bin/busybox pwd); [ -e /proc ] || echo no proc'
python3 -c '
import os
os.set_inheritable(7, False)
os.chroot(\"root\")
os.execv(\"/bin/busybox\", [\"busybox\", \"sh\", \"-c\", \"echo descriptor <&7\"])' 2>&1
").status(1);
    ps_top_and_pgrep_in_the_node_show_its_programs: bash("
(exec -a 'a name of its own' /bin/sleep 1000) & p=$!
until [ \"$(cat /proc/$p/comm)\" = sleep ]; do sleep 0.01; done
ps -o comm= -o args= -o nlwp= -p $p
[ $(pgrep -P $$ -x sleep) = $p ] && [ $(pgrep -P $$ -f '^a name of its own') = $p ] && pgrep -P $$ -l . | grep -c sleep
[ $(ps -o ppid= -p $p) = $$ ] && ps -o comm= --ppid $$ > list; sort -o list list; cat list
top -b -n 1 -p $p | awk -v p=$p '$1 == p { print $NF }'
[ $(ps -o vsz= -p $p) = $(awk '/^VmSize/ { print $2 }' /proc/$p/status) ] && echo size
pkill -P $$ -x sleep; wait $p; echo $?; ps -p $p > /dev/null || echo gone
");
    ps_shows_the_threads_of_a_program: python("
import os, subprocess, threading
wait = threading.Barrier(6)
for i in range(5): threading.Thread(target=wait.wait).start()
ps = lambda *options: subprocess.run(['ps', *options, '-p', str(os.getpid())], capture_output=True, text=True).stdout
print(ps('-o', 'nlwp=').strip(), len(ps('-L', '-o', 'lwp=').split()), str(threading.get_native_id()) in ps('-L', '-o', 'lwp='))
wait.wait()
");
    a_set_of_cpus_is_inherited: bash("taskset -c 0 nproc; taskset -c 0 sh -c 'nproc; taskset -c 0-99 nproc'; taskset -c 9999 true 2> /dev/null; echo $?");
    threads_have_cpus_of_their_own: python("
import os, threading
all = os.sched_getaffinity(0); one = {min(all)}
def pin():
    os.sched_setaffinity(0, one); print(os.sched_getaffinity(0) == one)
    more = threading.Thread(target=lambda: print(os.sched_getaffinity(0) == one)); more.start(); more.join()
t = threading.Thread(target=pin); t.start(); t.join()
print(os.sched_getaffinity(0) == all, os.sched_getscheduler(0))
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); print(os.sched_getscheduler(0))
if os.fork() == 0: print(os.sched_getscheduler(0), flush=True); os._exit(0)
os.wait()
for call in (lambda: os.sched_getaffinity(-1), lambda: os.sched_setaffinity(0, []), lambda: os.sched_getscheduler(-1)):
    try: call(); print('no error')
    except OSError as e: print(e)
");
}
