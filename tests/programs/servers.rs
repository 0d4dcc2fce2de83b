//! Databases and servers: the server in the node and its clients at home, the reverse, and both in the
//! node. Each script runs natively, too, and must say the same: `$S` and `$C` stand before the server's
//! words and the clients'. Servers listen on sockets in files, or on loopback.

use skein_tests::bash;
use skein_tests::case::Ending;
use skein_tests::home::{self, Home};
use skein_tests::run::run;
use std::ffi::OsString;

/// Who runs in the node.
#[derive(Clone, Copy, Debug)]
enum Within {
    Server,
    Clients,
    Both,
}

/// Runs a script natively and so, and compares what it prints.
fn served(name: &str, script: &str, ways: &[Within]) {
    let home = match home::shared() {
        Home::Ready(home) => home,
        Home::Absent => {
            eprintln!("{name}: not run under mosrun: there is no /dev/kvm here");
            return;
        }
        Home::Broken(why) => panic!("{name}: {why}"),
    };
    let runner: Vec<_> = home.runner.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let runner = runner.join(" ");
    let said = |server: &str, clients: &str| {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mut environment = home.environment.clone();
        environment.push(("S".into(), OsString::from(server)));
        environment.push(("C".into(), OsString::from(clients)));
        let case = bash(script).seconds(240);
        let outcome = run(&case, place.path(), &[], &environment)
            .unwrap_or_else(|failure| panic!("{name}: S={server:?} C={clients:?}: {failure:?}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            (outcome.ending, text(&outcome.stderr)),
            (Ending::Status(0), String::new()),
            "{name}: S={server:?} C={clients:?}: {}",
            text(&outcome.stdout)
        );
        text(&outcome.stdout)
    };
    let native = said("", "");
    assert!(!native.is_empty());
    for way in ways {
        let guest = match way {
            Within::Server => said(&runner, ""),
            Within::Clients => said("", &runner),
            Within::Both => said(&runner, &runner),
        };
        assert_eq!(guest, native, "{name}, in the node: {way:?}");
    }
}

/// Writers of one database at the same time: each adds to a counter, and notes what it has added.
#[test]
fn sqlite_counts_exactly_whoever_writes() {
    let script = r#"
cat > writer.py <<'END'
import sqlite3, sys
base = sqlite3.connect('base', timeout=120, isolation_level=None)
for i in range(25):
    base.execute('begin immediate')
    base.execute('update counter set value = value + 1')
    base.execute('insert into done values (?, ?)', (sys.argv[1], i))
    base.execute('commit')
END
sqlite3 base 'pragma journal_mode = wal; create table counter(value); insert into counter values (0);
              create table done(who, what, unique(who, what));'
$S /usr/bin/python3 writer.py a & $S /usr/bin/python3 writer.py b &
$C /usr/bin/python3 writer.py c & $C /usr/bin/python3 writer.py d &
wait
sqlite3 base 'select value from counter; select who, count(*) from done group by who; pragma integrity_check'
$C sqlite3 base 'select sum(what) from done; pragma wal_checkpoint(truncate); pragma journal_mode = delete'
"#;
    served("sqlite", script, &[Within::Server, Within::Both]);
}

#[test]
fn redis_serves_inside_and_outside() {
    let script = r#"
$S redis-server --port 0 --unixsocket "$PWD/socket" --save '' --appendonly yes --dir "$PWD" --logfile log &
ask() { $C redis-cli -s socket "$@"; }
for i in $(seq 300); do [ -S socket ] && ask ping 2> /dev/null | grep -q PONG && break; sleep 0.1; done
$C redis-benchmark -s socket -c 8 -n 400 -q -t set,get,incr,lpush,mset > bench 2> errors
tr '\r' '\n' < bench | sed -n 's/:.*requests per second.*//p'
$C redis-benchmark -s socket -c 8 -P 16 -n 4000 -q -t incr > bench
ask get counter:__rand_int__; ask llen mylist; ask strlen key:__rand_int__
for i in 1 2 3; do ask set "name$i" "value $i"; done
ask eval 'return redis.call("get", "name2")' 0
ask shutdown nosave; wait $!; echo "ended with $?"
$S redis-server --port 0 --unixsocket "$PWD/socket" --save '' --appendonly yes --dir "$PWD" --logfile log &
for i in $(seq 300); do ask get name3 2> /dev/null | grep value && break; sleep 0.1; done
ask bgrewriteaof > /dev/null; ask get counter:__rand_int__
kill -TERM $!; wait $!; echo "ended with $?"
"#;
    served("redis", script, &[Within::Server, Within::Clients]);
}

#[test]
fn nginx_serves_a_tree() {
    let script = r#"
mkdir -p tree/deep/er logs tmp
for i in 0 1 100 4096 70000 1000000; do head -c $i < <(yes "line of file $i") > "tree/deep/f$i"; done
echo inner > tree/deep/er/index.html
port=$(/usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
[ "$(id -u)" = 0 ] && user='user root;'
cat > conf <<END
$user worker_processes 2; daemon off; pid $PWD/pid; error_log $PWD/logs/error; events { worker_connections 64; }
http { access_log $PWD/logs/access; sendfile on; default_type text/plain; gzip on; gzip_types text/plain;
  client_body_temp_path $PWD/tmp/a; proxy_temp_path $PWD/tmp/b; fastcgi_temp_path $PWD/tmp/c;
  uwsgi_temp_path $PWD/tmp/d; scgi_temp_path $PWD/tmp/e;
  server { listen 127.0.0.1:$port; root $PWD/tree; location = /there { return 301 /deep/f1; } } }
END
$S nginx -p "$PWD" -c "$PWD/conf" -e "$PWD/logs/error" &
at=http://127.0.0.1:$port
for i in $(seq 300); do curl -s -o /dev/null $at/deep/f1 && break; sleep 0.1; done
for i in 0 1 100 4096 70000 1000000; do $C curl -s $at/deep/f$i | cmp - tree/deep/f$i && echo "f$i"; done
$C curl -s --compressed $at/deep/f70000 | md5sum
$C curl -s -r 500-599 $at/deep/f70000 | md5sum
$C curl -s -L -w '%{http_code} %{num_redirects}\n' $at/there
for path in none deep/ deep/er/ deep/er; do $C curl -s -o /dev/null -w '%{http_code}\n' $at/$path; done
$C curl -s -I $at/deep/f4096 | grep -a Content-Length
$C wrk -t2 -c8 -d1s $at/deep/f4096 > report
grep -q 'Requests/sec: *[1-9]' report && ! grep -E 'Socket errors|Non-2xx' report && echo 'wrk is content'
kill -QUIT $!; wait $!; echo "ended with $?"; grep -c 'f1000000' logs/access
"#;
    served("nginx", script, &[Within::Server, Within::Clients]);
}

/// postgres refuses to run as root: there it is run as its own user, which a program in a node becomes as
/// one at home does.
#[test]
fn postgresql_serves_pgbench() {
    let script = r#"
for bin in /usr/lib/postgresql/*/bin; do :; done
base=$(mktemp -d /tmp/skein-pg.XXXXXX); trap 'rm -rf "$base"' EXIT
if [ "$(id -u)" = 0 ]; then
    chown postgres "$base"; as='setpriv --reuid postgres --regid postgres --init-groups'
else
    as=
fi
cd "$base"
$S $as $bin/initdb -D data -A trust -N -U tester --locale C -E UTF8 > init 2>&1 || cat init
$S $as $bin/postgres -D data -k "$base" -c listen_addresses= -c fsync=off -c max_connections=20 2> log &
for i in $(seq 600); do $as $bin/pg_isready -q -h "$base" -U tester -d postgres && break; sleep 0.1; done
export PGHOST=$base PGUSER=tester
ask() { $C $as $bin/psql -X -At -c "$1" postgres; }
$C $as $bin/pgbench -i -q postgres > init 2>&1 || cat init
$C $as $bin/pgbench -c 4 -j 2 -t 25 postgres 2> errors | grep -E 'processed|failed'
ask 'select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts) from pgbench_history'
ask "select pg_sleep(0.1), count(*), sum(i) from generate_series(1, 100000) i"
ask 'create table t as select i, md5(i::text) m from generate_series(1, 5000) i; create index on t(m); analyze t'
ask 'set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; select count(distinct m), max(i) from t'
ask 'select nothing' 2>&1 | head -1
kill -INT $!; wait $!; echo "ended with $?"
grep -E 'PANIC|terminated by signal' log
$S $as $bin/pg_controldata data | grep 'cluster state'
"#;
    served("postgresql", script, &[Within::Server, Within::Clients]);
}
