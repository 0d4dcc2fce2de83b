//! perl and python3: forks, signals, threads, sockets, databases and numbers.

use skein_tests::{cases, perl, python};

cases! {
    perl_forks_and_waits: perl("for my $i (1..8) { my $p = fork // die; exit $i * 3 unless $p; $h{$p} = $i } while ((my $p = wait) > 0) { $r{$h{$p}} = $? >> 8 } print join(',', map { \"$_=$r{$_}\" } sort keys %r), \"\\n\"; print wait, ' ', $!+0, \"\\n\"");
    perl_opens_pipes: perl("open my $in, '-|', 'seq 1000 | sort -r' or die; my $n = 0; $n += $_ while <$in>; close $in; print \"$n $?\\n\"; open my $out, '|-', 'tr a-z A-Z; exit 5' or die; print $out \"text\\n\"; close $out; print $? >> 8, \"\\n\"");
    perl_opens_a_child_of_itself: perl("my $p = open(my $k, '-|') // die; if (!$p) { print \"from the child\\n\" for 1..3; exit 2 } print while <$k>; close $k; print $? >> 8, \"\\n\"");
    perl_handles_signals: perl("$| = 1; $SIG{$_} = sub { print \"got $_[0]\\n\" } for qw(INT TERM USR1 HUP); kill $_ => $$ for qw(USR1 INT HUP TERM); $SIG{ALRM} = sub { die \"alarm\\n\" }; alarm 1; eval { sleep 10; print 'not reached' }; print $@; $SIG{CHLD} = sub { wait; print \"child \", $? >> 8, \"\\n\" }; if (!fork) { exit 6 } sleep 1 while !$? ; print \"end\\n\"");
    perl_dies_of_a_signal: perl("my $s = system('kill -9 $$'); print $s & 127, \"\\n\"; $s = system('exit 3'); print $s >> 8, \"\\n\"; print `kill -TERM \\$\\$; echo no`, $? & 127, \"\\n\"");
    perl_talks_over_a_socketpair: perl("use Socket; socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die; if (!fork) { close $a; while (sysread($b, my $x, 100)) { syswrite $b, scalar reverse $x } exit } close $b; for (qw(one two three)) { syswrite $a, $_; sysread $a, my $r, 100; print \"$r\\n\" } shutdown $a, 1; wait; print \"$?\\n\"");
    perl_selects: perl("pipe my $r, my $w; if (!fork) { select undef, undef, undef, 0.3; syswrite $w, 'x'; exit } my $v = ''; vec($v, fileno $r, 1) = 1; print scalar select(my $o = $v, undef, undef, 0.01), \"\\n\"; print scalar select($o = $v, undef, undef, 20), \"\\n\"; sysread $r, my $x, 5; print \"$x\\n\"; wait");
    perl_prints_floats: perl("printf \"%.17g %g %e %s %s %.0f %a\\n\", $_, $_, $_, $_, sqrt(abs $_), $_, $_ for 0.1, 1/3, 1e308*10, -2.5e-310, 3.14159265358979, 2**53; printf \"%s %s\\n\", 9**9**9 - 9**9**9 == 0, int(7.999999999999999999); print atan2(1,1)*4, ' ', exp(1), ' ', sin(1e10), \"\\n\"");
    perl_sorts_and_matches: perl("srand 42; my @a = map { ($_ * 7919) % 10007 } 1..20000; my @s = sort { $a <=> $b } @a; print \"$s[0] $s[-1] $s[9999]\\n\"; my %h; $h{$_ % 100}++ for @a; print join(' ', map { \"$_:$h{$_}\" } (sort { $a <=> $b } keys %h)[0..5]), \"\\n\"; print join('|', 'a1b22c333' =~ /(\\d+)/g), \"\\n\"");
    perl_reads_directories_and_locks: perl("use Fcntl ':flock'; mkdir 'd'; for (1..50) { open my $f, '>', \"d/$_\"; print $f $_ x $_ } opendir my $d, 'd'; print join(' ', sort { $a <=> $b } grep !/^\\./, readdir $d), \"\\n\"; open my $l, '>', 'lock'; flock $l, LOCK_EX; if (!fork) { open my $m, '>', 'lock'; print flock($m, LOCK_EX | LOCK_NB) ? 'got' : 'busy', \"\\n\"; exit } wait; rename 'd/1', 'moved'; print -s 'd/50', ' ', (stat 'moved')[7], \"\\n\"; unlink glob 'd/*'; rmdir 'd'");
    perl_locals_and_time: perl("use POSIX; print strftime('%Y-%m-%d %H:%M:%S', gmtime 1e9), ' ', floor(-2.5), ' ', ctime(0); use Time::HiRes 'time', 'sleep'; my $t = time; sleep 0.2; my $d = time - $t; print $d >= 0.2 && $d < 5 ? 'slept' : \"slept $d\", \"\\n\"");
    perl_executes: perl("$ENV{X} = 'set'; exec 'sh', '-c', 'echo $X $0 $1; exit 4', 'zero', 'one'").status(4);
    perl_uses_a_module_in_c: perl("use Digest::SHA 'sha256_hex'; use MIME::Base64; use List::Util 'sum'; use Storable 'dclone'; print sha256_hex('x' x 1e6), ' ', encode_base64(pack 'NnC', 1, 2, 3), sum(@{dclone [1..10]}), \"\\n\"");

    python_runs_subprocesses: python("
import subprocess as s
print(s.run(['sort', '-n'], input=b'3\\n1\\n2\\n', capture_output=True))
print(s.run('echo out; echo err >&2; exit 7', shell=True, capture_output=True, text=True))
print(s.run(['sh', '-c', 'kill -9 $$']).returncode)
a = s.Popen(['seq', '100000'], stdout=s.PIPE); b = s.Popen(['tail', '-1'], stdin=a.stdout, stdout=s.PIPE); a.stdout.close()
print(b.communicate(), a.wait())
try: s.run(['sleep', '20'], timeout=0.3)
except s.TimeoutExpired as e: print('timeout', e.cmd)
try: s.run(['/no/such/program'])
except FileNotFoundError as e: print(e)
print(s.check_output(['cat', '/dev/fd/0'], stdin=open('/etc/hostname')) == open('/etc/hostname', 'rb').read())
");
    python_spawns_by_posix_spawn: python("
import os
p = os.posix_spawn('/bin/sh', ['sh', '-c', 'echo spawned; exit 3'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 1, 'out', os.O_WRONLY | os.O_CREAT, 0o644)])
print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]), open('out').read())
");
    python_has_threads: python("
import threading, queue
q = queue.Queue(); r = []; l = threading.Lock(); e = threading.Event()
def work():
    e.wait()
    while True:
        n = q.get()
        if n is None: return
        with l: r.append(n * n)
t = [threading.Thread(target=work) for _ in range(30)]
[x.start() for x in t]; [q.put(i) for i in range(3000)]; [q.put(None) for _ in t]; e.set(); [x.join(30) for x in t]
print(len(r), sum(r), threading.active_count())
b = threading.Barrier(10); seen = []
def meet(): seen.append(b.wait(20))
t = [threading.Thread(target=meet) for _ in range(10)]; [x.start() for x in t]; [x.join() for x in t]; print(sorted(seen))
");
    python_uses_a_pool_of_processes: python("
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
def f(n): return sum(i * i for i in range(n))
if __name__ == '__main__':
    with ThreadPoolExecutor(4) as t: print(list(t.map(f, range(0, 20000, 2000))))
    import multiprocessing as m
    c = m.get_context('fork')
    with ProcessPoolExecutor(3, mp_context=c) as p: print(list(p.map(f, range(0, 20000, 2000))))
    v = c.Value('i', 0); a = c.Array('d', 5)
    def g(i):
        with v.get_lock(): v.value += i
        a[i] = i / 3
    k = [c.Process(target=g, args=(i,)) for i in range(5)]; [x.start() for x in k]; [x.join() for x in k]
    print(v.value, list(a), [x.exitcode for x in k])
");
    python_handles_signals: python("
import signal, os, time
got = []
for s in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, lambda n, f: got.append(n))
for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT): os.kill(os.getpid(), s)
print(got)
signal.signal(signal.SIGALRM, lambda n, f: got.append(n)); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
while len(got) < 10: time.sleep(0.02)
signal.setitimer(signal.ITIMER_REAL, 0); print(len(got) >= 10)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); os.kill(os.getpid(), signal.SIGUSR2)
print(signal.sigpending(), signal.sigwait([signal.SIGUSR2]))
r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w); os.kill(os.getpid(), signal.SIGUSR1); print(os.read(r, 9))
");
    python_is_interrupted_from_the_keyboard: python("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)").signal(2);
    python_queries_sqlite: python("
import sqlite3
c = sqlite3.connect('db'); c.execute('create table t(a integer primary key, b text, c real)')
c.executemany('insert into t values(?,?,?)', ((i, f'name{i % 13}', i / 7) for i in range(5000))); c.commit()
print(c.execute('select b, count(*), round(sum(c), 6) from t group by b order by b limit 3').fetchall())
try: c.execute('insert into t values(1,2,3)')
except sqlite3.IntegrityError as e: print(e)
c.rollback(); print(c.execute('pragma integrity_check').fetchall()); c.close()
d = sqlite3.connect('wal'); print(d.execute('pragma journal_mode=wal').fetchone()); d.execute('create table x(y)'); d.execute('insert into x values(1)'); d.commit(); d.close()
").seconds(90);
    python_forks: python("
import os
r, w = os.pipe(); p = os.fork()
if p == 0:
    os.close(r); os.write(w, b'child says ' + str(os.getppid() > 0).encode()); os._exit(12)
os.close(w); print(os.read(r, 100), os.read(r, 1), os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))
l = [os.fork() or os._exit(i) for i in range(20)]
print(sorted(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) for _ in l))
try: os.wait()
except ChildProcessError as e: print(e)
");
    python_echoes_over_loopback_and_unix: python("
import socket, threading, os
def serve(s):
    c, _ = s.accept()
    with c:
        while d := c.recv(5000): c.sendall(d[::-1])
def talk(family, address):
    s = socket.socket(family); s.bind(address); s.listen()
    t = threading.Thread(target=serve, args=(s,)); t.start()
    c = socket.socket(family); c.settimeout(20); c.connect(s.getsockname())
    for n in (1, 100, 4000):
        c.sendall(bytes(range(256)) * (n // 256) + b'x' * (n % 256)); got = b''
        while len(got) < n: got += c.recv(n - len(got))
        print(n, sum(got))
    c.close(); t.join(); s.close()
talk(socket.AF_INET, ('127.0.0.1', 0)); talk(socket.AF_INET6, ('::1', 0)) if os.path.exists('/proc/net/if_inet6') and '00000000000000000000000000000001' in open('/proc/net/if_inet6').read() else print('1 1')
talk(socket.AF_UNIX, 'socket'); os.unlink('socket')
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); u.sendto(b'datagram', u.getsockname()); print(u.recvfrom(100)[0])
try: socket.create_connection(('127.0.0.1', 1), 5)
except OSError as e: print(e)
");
    python_passes_descriptors: python("
import socket, os, array
a, b = socket.socketpair()
if os.fork() == 0:
    f = os.open('made', os.O_RDWR | os.O_CREAT, 0o600); os.write(f, b'from the child'); socket.send_fds(a, [b'here'], [f]); os._exit(0)
m, f, _, _ = socket.recv_fds(b, 10, 2); os.wait(); print(m, os.pread(f[0], 99, 5))
");
    python_makes_temporary_files: python("
import tempfile, os
with tempfile.TemporaryDirectory(dir='.') as d:
    with tempfile.NamedTemporaryFile(dir=d) as f: f.write(b'x' * 9999); f.flush(); print(os.stat(f.name).st_size, oct(os.stat(f.name).st_mode))
    print(os.listdir(d))
with tempfile.TemporaryFile(dir='.') as f: f.write(b'abc'); f.seek(1); print(f.read())
");
    python_maps_files: python("
import mmap, os
open('f', 'wb').write(bytes(range(256)) * 100)
with open('f', 'r+b') as f:
    p = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); print(len(p), p[255], p.find(b'\\x07\\x08'), p[-1]); p.close()
    c = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY); c[0:3] = b'new'; print(c[0:4]); c.close()
print(open('f', 'rb').read(4))
a = mmap.mmap(-1, 1 << 20)
if os.fork() == 0: a[5000:5005] = b'child'; os._exit(0)
os.wait(); print(a[5000:5005])
");
    python_maps_a_file_shared: python("
import mmap
open('f', 'wb').write(b'.' * 10000)
with open('f', 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0); m[4095:4099] = b'over'; m.flush(); m.close()
d = open('f', 'rb').read(); print(d.find(b'over'), len(d))
");
    python_reads_json_and_numbers: python("
import json, math, random, decimal, fractions, hashlib, struct
o = {'a': [1, 2.5, None, True], 'ü': {'x': 1e-300, 'y': -0.0}}
print(json.dumps(o, sort_keys=True), json.loads(json.dumps(o)) == o)
random.seed(7); print([random.random() for _ in range(3)], random.sample(range(10**9), 3))
print(math.sin(1e22), math.fsum([.1] * 10), math.gamma(5.5), 2**200 % 10**9, decimal.Decimal(2).sqrt(), fractions.Fraction('0.125'))
print(hashlib.sha256(b'x' * 10**6).hexdigest(), struct.pack('<fdq', 1.1, 2.2, -3).hex())
");
    python_has_monotonic_time: python("
import time
l = time.monotonic(); bad = 0
for _ in range(100000):
    n = time.monotonic(); bad += n < l; l = n
a = time.monotonic(); time.sleep(0.2); b = time.monotonic(); print(bad, 0.2 <= b - a < 5, time.time() > 1.6e9)
p = time.process_time(); sum(range(10**6)); print(0 < time.process_time() - p < 20, time.strftime('%F', time.gmtime(86400)))
");
    python_compresses: python("
import zlib, gzip, bz2, lzma
d = bytes(i * i >> 3 & 255 for i in range(300000))
print(len(zlib.compress(d, 6)), zlib.crc32(d), zlib.adler32(d), [f.decompress(f.compress(d)) == d for f in (zlib, gzip, bz2, lzma)])
");
    python_runs_asyncio: python("
import asyncio
async def main():
    async def echo(r, w):
        while d := await r.readline(): w.write(d.upper()); await w.drain()
        w.close()
    s = await asyncio.start_server(echo, '127.0.0.1', 0)
    async def client(i):
        r, w = await asyncio.open_connection(*s.sockets[0].getsockname())
        w.write(b'line %d\\n' % i); x = await r.readline(); w.close(); await w.wait_closed(); return x
    print(await asyncio.gather(*(client(i) for i in range(20))))
    p = await asyncio.create_subprocess_exec('sh', '-c', 'cat; exit 3', stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    print(await p.communicate(b'through cat'), p.returncode)
    try: await asyncio.wait_for(asyncio.sleep(20), 0.1)
    except asyncio.TimeoutError: print('timeout')
    q = asyncio.Queue(3)
    async def produce():
        for i in range(10): await q.put(i)
    t = asyncio.create_task(produce()); print([await q.get() for _ in range(10)]); await t
asyncio.run(main())
");
    python_waits_with_select_and_epoll: python("
import select, os, socket
r, w = os.pipe(); print(select.select([r], [w], [], 0.01)[0:2] == ([], [w])); os.write(w, b'x'); print(select.select([r], [], [], 5)[0] == [r])
e = select.epoll(); a, b = socket.socketpair(); e.register(a, select.EPOLLIN | select.EPOLLET); print(e.poll(0.01)); b.send(b'hi'); print(e.poll(5) == [(a.fileno(), 1)], e.poll(0.01)); b.close(); print(e.poll(5)[0][1] & select.EPOLLHUP)
p = select.poll(); p.register(r, select.POLLIN); print(p.poll(1000) == [(r, 1)])
");
    python_faults_in_a_child: python("
import os, signal, ctypes, faulthandler
for f in (lambda: ctypes.string_at(0), os.abort, lambda: os.kill(os.getpid(), signal.SIGFPE), lambda: os._exit(255)):
    p = os.fork()
    if p == 0: f(); os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))
");
    python_walks_and_copies_trees: python("
import os, shutil, pathlib, stat
for i in range(30): pathlib.Path(f'a/{i % 3}/{i % 5}').mkdir(parents=True, exist_ok=True); pathlib.Path(f'a/{i % 3}/{i % 5}/{i}').write_text('x' * i)
os.symlink('0', 'a/link'); os.mkfifo('a/fifo'); shutil.copytree('a/0', 'b'); shutil.make_archive('t', 'tar', 'b')
print([(d.count('/'), sorted(f)) for d, _, f in sorted(os.walk('a'))]); os.remove('t.tar'); shutil.rmtree('a/1')
print(sorted(p.name for p in os.scandir('a') if p.is_dir(follow_symlinks=False)), stat.filemode(os.lstat('a/fifo').st_mode))
");
    python_knows_limits_and_usage: python("
import resource, os
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1000)
p = os.fork()
if p == 0:
    sum(i * i for i in range(3 * 10**6)); os._exit(0)
_, s, u = os.wait4(p, 0); print(s, u.ru_utime > 0.01, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime >= u.ru_utime > 0, os.times().children_user > 0)
");
    python_takes_exclusive_locks: python("
import fcntl, os
f = open('l', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)
if os.fork() == 0:
    g = open('l', 'w')
    try: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB); print('got', flush=True)
    except OSError as e: print(e, flush=True)
    os._exit(0)
os.wait(); fcntl.lockf(f, fcntl.LOCK_UN); print('freed')
");
    python_raises_in_the_main_program: python("import sys; sys.stderr.write('before\\n'); raise ValueError('said so')").status(1);
}
