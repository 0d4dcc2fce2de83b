//! dash, bash and busybox: processes, pipes, traps, jobs and redirections.

use skein_tests::{bash, busybox, cases, dash, exec};

cases! {
    dash_has_pipelines: dash("seq 1000 | grep 7 | sed s/7/x/ | sort -r | head -3 | tac");
    dash_has_subshells: dash("x=1; (x=2; cd /; exit 3); echo $x $? $(pwd | sed 's/.*work/work/')");
    dash_has_here_documents: dash("v=value; cat <<A; cat <<'B'; cat <<-C\nv is $v $(echo cmd) $((6*7))\nA\nv is $v\nB\n\ttabs\n\tC\n");
    dash_traps_exit: dash("trap 'echo leaving $?' EXIT; (trap 'echo sub' EXIT; exit 2); exit 4").status(4);
    dash_traps_signals: dash("for s in INT TERM USR1 HUP; do trap \"echo got $s\" $s; done; for s in USR1 HUP INT TERM; do kill -$s $$; done; echo alive");
    dash_ignores_and_restores: dash("trap '' TERM; kill -TERM $$; sh -c 'kill -TERM $$; echo inherited'; trap - TERM; kill -TERM $$").signal(15);
    dash_waits_for_jobs: dash("(sleep 0.2; exit 5) & a=$!; (exit 6) & b=$!; wait $a; echo $?; wait $b; echo $?; wait; echo $?");
    dash_waits_and_traps: dash("trap 'echo usr1' USR1; p=$$; (sleep 0.2; kill -USR1 $p) & sleep 1 & wait $!; echo $(( $? > 128 )); wait");
    dash_redirects: dash("exec 3>out 4<&0; echo three >&3; ls missing 2>&1 >/dev/null | wc -l; echo a >>out; { echo err >&2; } 2>err; read x < out; echo $x; exec 3>&-; echo x 2>/dev/null >&3; cat out err").stdin("line\n");
    dash_reads_lines: dash("while IFS=: read -r a b; do echo \"$b,$a\"; done").stdin("1:one\n2:two\\n\n3:three:more\n");
    dash_set_e_and_u: dash("set -eu; false || echo ok; x=$(echo sub; true); echo $x; echo ${unset_one-default}; echo $unset_two").status(2);
    dash_executes_a_hundred_programs: dash("i=0; while [ $i -lt 100 ]; do /bin/true && i=$((i+1)); done; echo $i");
    dash_nests_a_hundred_shells: exec(["./nest", "40"]).program("nest", "#!/bin/dash\n[ $1 = 0 ] && exit 7\n./nest $(($1 - 1))\nexit $?\n").status(7);
    dash_times_and_umask: dash("umask 077; : > f; umask; umask u=rwx,g=rx,o=; mkdir d; times | wc -l");
    // dash does not always say "Terminated", natively either.
    dash_kills_a_job: dash("exec 2>/dev/null; sleep 50 & kill $!; wait $!; echo $?; (kill -9 $(exec sh -c 'echo $PPID')); echo $?");
    dash_stops_and_continues: dash("sleep 0.3 & kill -STOP $!; sleep 0.1; ps -o stat= -p $! | cut -c1; kill -CONT $!; wait $!; echo $?");

    bash_has_pipestatus: bash("exec 2>/dev/null; true | false | (exit 3) | kill -9 $BASHPID; echo ${PIPESTATUS[@]}");
    bash_fails_in_a_pipe: bash("set -o pipefail; (exit 4) | cat; echo $?; yes | head -1; echo $?");
    bash_has_process_substitution: bash("diff <(seq 5) <(seq 2 6); seq 3 | tee >(sort -r > out) > /dev/null; sleep 0.2; cat out; paste <(echo a) <(echo b)");
    bash_has_arrays: bash("a=(one 'two 2' three); a+=(four); unset 'a[0]'; echo ${#a[@]} ${!a[@]} \"${a[@]:1:2}\"; declare -A m=([x]=1 [y]=2); for k in $(printf '%s\\n' ${!m[@]} | sort); do echo $k=${m[$k]}; done");
    bash_expands: bash("shopt -s extglob\ns=hello.tar.gz; echo ${s%.*} ${s%%.*} ${s#*.} ${s/l/L} ${s^^} ${s:1:3} {a..e}{1,2} $((16#ff)) $'a\\tb' ~nobody; echo !(x)").file("y", "").file("x", "");
    bash_waits_for_the_next: bash("(sleep 0.4; exit 1) & (sleep 0.1; exit 2) & wait -n; echo $?; wait -n; echo $?; wait -n; echo $?");
    bash_waits_for_a_named_one: bash("(exit 9) & p=$!; (sleep 0.1; exit 8) & wait -n -p which $p; echo $? $((which == p)); wait");
    bash_traps_exit_and_err: bash("trap 'echo err $?' ERR; trap 'echo exit $?' EXIT; false; (exit 3); f() { return 4; }; f; trap 'echo debug' DEBUG; exit 5").status(5);
    bash_traps_signals_in_order: bash("trap 'echo int' INT; trap 'echo term' TERM; trap 'echo usr' USR1 USR2; kill -USR1 $$; kill -INT $$; kill -USR2 $$; kill -TERM $$; echo end");
    bash_traps_chld: bash("set -m; n=0; trap 'n=$((n+1))' CHLD; for i in 1 2 3; do (exit $i) & wait $!; done; echo $n");
    bash_dies_of_its_own_signal: bash("trap 'trap - TERM; echo cleanup; kill -TERM $$' TERM; kill -TERM $$; sleep 5").signal(15);
    bash_interrupts_a_wait: bash("trap 'echo alarm' ALRM; sleep 30 & s=$!; (sleep 0.2; kill -ALRM $$) & wait $s; echo $?; kill $s; wait $s; echo $?");
    bash_has_background_jobs: bash("for i in 1 2 3 4 5; do (sleep 0.0$i; echo $i > f$i; exit $i) & p[$i]=$!; done; for i in 5 4 3 2 1; do wait ${p[$i]}; echo $?; done; cat f*");
    bash_controls_jobs: bash("set -m; sleep 20 & kill -STOP %1; sleep 0.2; jobs | sed 's/ *sleep/ sleep/'; kill -CONT %1; jobs -r | wc -l; kill %1; wait %1; echo $?");
    bash_has_statuses_of_killed_children: bash("for s in HUP INT QUIT KILL TERM USR1 SEGV ABRT; do bash -c \"ulimit -c 0; kill -$s \\$\\$; sleep 1\"; echo $s $?; done 2>/dev/null");
    bash_says_who_was_killed: bash("bash -c '(kill -KILL $BASHPID); (kill -SEGV $BASHPID); (kill -TERM $BASHPID); true' 2>&1 | sed 's/line 1: *[0-9]* //'");
    bash_juggles_descriptors: bash("{ echo out; echo err >&2; } 3>&1 1>&2 2>&3 | sed 's/^/piped: /'; exec {fd}<> file; echo text >&$fd; exec {fd}>&-; cat file; ls /proc/self/fd | wc -l");
    bash_swaps_output_and_errors: bash("r=$( { ls . missing | tr a-z A-Z; } 2>&1 1>&3 ) 3>&1; echo \"[$r]\"");
    bash_has_exec: bash("exec > out 2>&1; echo to file; ls missing; exec /bin/echo last");
    bash_execs_with_a_name: bash("exec -a another sh -c 'echo $0'");
    bash_fails_to_exec: bash("exec /no/such/file").status(127);
    bash_has_coprocesses: bash("coproc BC { while read x; do echo $((x * x)); done; }; for i in 3 4 5; do echo $i >&${BC[1]}; read r <&${BC[0]}; echo $r; done; exec {BC[1]}>&-; wait $BC_PID; echo $?");
    bash_reads_with_a_timeout: bash("read -t 0.2 x < <(sleep 2); echo $(( $? > 128 )); read -t 5 y < <(echo soon); echo $? $y; read -n 3 z <<< abcdef; echo $z; IFS=, read -a a <<< 1,2,3; echo ${a[2]}");
    bash_has_here_strings_and_long_ones: bash("wc -c <<< \"$(head -c 200000 /dev/zero | tr '\\0' x)\"; cat <<E | md5sum\n$(seq 20000)\nE");
    bash_has_limits: bash("ulimit -n 64; ulimit -n; (ulimit -v 500000; ulimit -v); ulimit -f 8; ulimit -f; ulimit -Hn");
    bash_times_a_command: bash("TIMEFORMAT='%0R'; time sleep 0.1");
    bash_counts_seconds: bash("SECONDS=0; sleep 1.1; echo $((SECONDS >= 1 && SECONDS < 30)); [[ $EPOCHSECONDS -gt 1600000000 ]] && echo sane; printf '%(%F)T\\n' 0");
    bash_mapfile_and_select: bash("mapfile -t l < <(seq 1000); echo ${#l[@]} ${l[999]}; printf '%s\\n' \"${l[@]}\" | md5sum; sum=0; for x in \"${l[@]}\"; do ((sum += x)); done; echo $sum");
    bash_recurses: bash("fib() { if (( $1 < 2 )); then echo $1; else echo $(( $(fib $(($1 - 1))) + $(fib $(($1 - 2))) )); fi; }; fib 7");
    bash_globs_and_regexps: bash("touch a1 a2 b1; echo [ab]1 ?2 c*; [[ foobar =~ ^(f.*)(b.*)$ ]] && echo ${BASH_REMATCH[1]} ${BASH_REMATCH[2]}; shopt -s nullglob; echo c* end");
    bash_talks_over_tcp: bash("exec 2>/dev/null; python3=/usr/bin/python3; $python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); print(s.getsockname()[1], flush=True); c = s.accept()[0]; c.sendall(c.recv(100).upper())' > port & while [ ! -s port ]; do sleep 0.05; done; exec 5<>/dev/tcp/127.0.0.1/$(cat port); echo shout >&5; cat <&5; wait; rm port");
    bash_with_many_children: bash("for i in {1..60}; do echo $i & done | sort -n | md5sum; wait");
    bash_sources_and_evals: bash(". ./lib; f x; eval 'y=$((1+1))'; echo $y $LOADED; trap").file("lib", "f() { echo f \"$@\" ${FUNCNAME[0]} ${BASH_SOURCE[0]}; }\nLOADED=yes\n");

    busybox_ash_loops: busybox("i=0; s=0; while [ $i -lt 20000 ]; do i=$((i+1)); s=$((s+i)); done; echo $s");
    busybox_pipes_its_applets: busybox("seq 500 | grep 3 | sort -rn | head -n 5 | sed 's/^/n/' | tr n N; echo hi | rev; printf '%s\\n' c a b | sort | xargs echo");
    busybox_forks_while_children_end: busybox("i=0; while [ $i -lt 60 ]; do seq 3 | cat | tail -n 1 > /dev/null || exit 1; i=$((i + 1)); done; echo $i");
    busybox_awk: busybox("seq 100 | awk '{ s += $1; a[$1 % 3]++ } END { print s, a[0], a[1], a[2]; printf \"%.10f\\n\", 1 / 3 }'");
    // As dash, it does not always say "Killed".
    busybox_traps_and_jobs: busybox("exec 2>/dev/null; trap 'echo bye' EXIT; trap 'echo usr' USR1; kill -USR1 $$; (sleep 0.1; exit 3) & wait $!; echo $?; sleep 20 & kill -9 $!; wait $!; echo $?");
    busybox_archives: busybox("mkdir d; seq 100 > d/f; tar -czf a.tgz d; rm -r d; tar -xzf a.tgz; md5sum d/f; rm a.tgz; gzip d/f; zcat d/f.gz | tail -n 1; rm d/f.gz");
    busybox_finds: busybox("mkdir -p a/b c; touch a/1 a/b/2 c/3; find . -type f | sort; find . -type f -exec basename {} \\; | sort; cp -a a d; ls -R d; stat -c '%a %n' a; du -s nothing").status(1);
    busybox_dd_and_hexdump: busybox("seq 1000 | dd bs=7 count=100 2>/dev/null | hexdump -C | tail -n 3; echo abc | od -c; echo hi | base64; cmp -s /bin/busybox /bin/busybox && echo equal");
    busybox_here_documents_and_functions: busybox("f() { local x=$1; cat <<E\nx=$x\nE\n}; f 1; f two | wc -c; case abc in a*) echo match;; esac; echo $(( (7 * 3) % 4 )) ${#HOME}");
    busybox_applets_directly: exec(["/bin/busybox", "wc", "-lw"]).stdin("one two\nthree\n");
    busybox_status_of_an_applet: exec(["/bin/busybox", "grep", "x"]).stdin("y\n").status(1);
    busybox_timeout_and_kill: exec(["/bin/busybox", "timeout", "1", "sleep", "9"]).signal(15);
    busybox_diff_and_patch: busybox("seq 9 > a; seq 9 | sed s/5/five/ > b; diff a b; echo $?; sort -u a b | wc -l; cksum a; tac a | head -n 1; expr 3 + 4; bc <<E\n2^70\nE");
}
