//! findutils, grep, sed, awk in three kinds, tar and the compressors.

use skein_tests::{Case, bash, cases, dash, exec};

const STORY: &str = "The quick brown fox\njumps over the lazy dog.\n\nPack my box with five dozen jugs\nÄpfel, Öl und Übermut\n\
    error: line 6\nwarning: line 7\nerror: line 8\n";

fn story<const N: usize>(argv: [&str; N]) -> Case {
    exec(argv).file("story", STORY)
}

fn tree(case: Case) -> Case {
    let mut case = case.directory("d").directory("d/e").directory("d/e/f").link("d/link", "e/f");
    for i in 0..40 {
        let place = ["d", "d/e", "d/e/f"][i % 3];
        case = case.file(&format!("{place}/file{i:02}.{}", ["txt", "log"][i % 2]), "line\n".repeat(i * 17));
    }
    case
}

/// Sales, as awk's books have them.
fn sales(awk: &str, program: &str) -> Case {
    let lines: String = (0..500).map(|i| format!("{} shop{} {}.{:02}\n", i, i % 7, i * 37 % 101, i % 100)).collect();
    exec([awk, program, "sales"]).file("sales", lines)
}

const SUMS: &str = "{ sum[$2] += $3; n++ } END { for (i = 0; i < 7; i++) printf \"shop%d %.2f\\n\", i, sum[\"shop\" i]; print n, log(n), sin(1), sqrt(2), int(-3.7), 2^0.5 }";
const STRINGS: &str = "{ s = $0; gsub(/[0-9]/, \"#\", s); if (match($2, /p[0-9]/)) t = substr($2, RSTART); print toupper(s), length(s), index(s, \"s\"), t; if (NR == 20) exit 3 }";
const PIPES: &str = "BEGIN { \"echo sub\" | getline x; print x; for (i = 9; i; i--) print i | \"sort\"; close(\"sort\"); system(\"exit 3\"); while ((\"seq 5\" | getline l) > 0) print l; printf \"%s\", \"err\\n\" > \"/dev/stderr\"; print \"made\" > \"out\" }";

cases! {
    find_prints_a_tree: tree(bash("find d -printf '%p %y %m %s %l\\n' | sort"));
    find_by_name_size_and_type: tree(bash("find d -name '*.log' -size +1k -type f | sort; find d -newer d/file00.txt | wc -l; find d -empty"));
    find_executes_for_each: tree(bash("find d -name 'file0*' -exec wc -c {} \\; | sort"));
    find_executes_for_many: tree(bash("find d -type f -exec cat {} + | wc"));
    find_deletes: tree(exec(["find", "d", "-name", "*.txt", "-delete"]));
    find_says_what_is_missing: exec(["find", "missing", "-print"]).status(1);
    xargs_in_parallel: bash("seq 60 | xargs -P 4 -n 3 sh -c 'echo $(($1 + $2 + $3))' x | sort -n");
    xargs_with_nul_and_replacement: tree(bash("find d -name '*.log' -print0 | sort -z | xargs -0 -I{} basename {} .log"));
    xargs_reports_a_failure: bash("echo 1 2 3 | xargs -n1 sh -c 'exit $0'").status(123);
    xargs_stops_at_255: bash("echo 255 1 | xargs -n1 sh -c 'exit $0' 2>&1").status(124);
    grep_finds: story(["grep", "-n", "o[vx]", "story"]);
    grep_extended_with_context: story(["grep", "-E", "-A1", "-B1", "(lazy|dozen)", "story"]);
    grep_perl_expressions: story(["grep", "-oP", "(?<=line )\\d+", "story"]);
    grep_counts_and_ignores_case: story(["grep", "-ic", "THE", "story"]);
    grep_finds_nothing: story(["grep", "absent", "story"]).status(1);
    grep_names_a_missing_file: story(["grep", "x", "missing", "story"]).status(2);
    grep_walks: tree(bash("grep -rlc line d | sort"));
    grep_in_unicode: story(["grep", "-o", "[ÄÖÜ]\\w*", "story"]);
    sed_substitutes: story(["sed", "-E", "s/(quick) (brown)/\\2 \\1/; /^$/d; $s/8/eight/", "story"]);
    sed_edits_in_place: story(["sed", "-i.bak", "-e", "1,3d", "-e", "y/abc/xyz/", "story"]);
    sed_with_hold_space_and_branches: story(["sed", "-n", "/error/{H;x;s/\\n/|/g;x;b};${x;p}", "story"]);
    sed_writes_files: story(["sed", "-n", "-e", "/error/w errors", "-e", "/warning/w warnings", "story"]);
    mawk_sums: sales("mawk", SUMS);
    mawk_handles_strings: sales("mawk", STRINGS).status(3);
    mawk_runs_commands: exec(["mawk", PIPES]);
    mawk_loops: exec(["mawk", "BEGIN { for (i = 0; i < 3000000; i++) s += i % 7; print s }"]);
    gawk_sums: sales("gawk", SUMS);
    gawk_handles_strings: sales("gawk", STRINGS).status(3);
    gawk_runs_commands: exec(["gawk", PIPES]);
    gawk_has_coprocesses: exec(["gawk", "BEGIN { c = \"sort -n\"; for (i = 30; i > 0; i -= 7) print i |& c; close(c, \"to\"); while ((c |& getline l) > 0) print l; print strftime(\"%F\", 86400, 1) }"]);
    gawk_sorts_arrays: sales("gawk", "{ a[$1] = $3 } END { n = asort(a); print n, a[1], a[n]; PROCINFO[\"sorted_in\"] = \"@ind_num_desc\"; for (k in a) { print k; if (++c == 5) break } }");
    tar_makes_and_lists: tree(dash("tar --sort=name --owner=0 --group=0 -cf a.tar d && tar -tvf a.tar && md5sum a.tar"));
    tar_extracts: tree(dash("tar -cf a.tar d && mkdir x && tar -C x -xpf a.tar && diff -r d x/d && rm a.tar"));
    tar_compresses: tree(dash("tar --sort=name -czf a.tgz d && tar -xzf a.tgz -O d/e/file01.log | wc -l; tar -tzf a.tgz | wc -l; rm a.tgz"));
    tar_through_a_pipe: tree(dash("mkdir x; tar -c d | (cd x && tar -x); diff -r d x/d && echo same"));
    tar_with_xz: tree(dash("tar --sort=name -cJf a.txz d && xz -t a.txz && tar -xJOf a.txz d/file39.log 2>&1 | tail -1; rm a.txz"));
    tar_refuses_garbage: exec(["tar", "-tf", "garbage"]).file("garbage", "not a tar".repeat(200)).status(2);
    gzip_there_and_back: tree(dash("gzip -n9k d/file36.txt; gzip -l d/file36.txt.gz; gzip -dc d/file36.txt.gz | cmp - d/file36.txt; zgrep -c line d/file36.txt.gz"));
    gzip_refuses_garbage: exec(["gzip", "-t", "x.gz"]).file("x.gz", "\x1f no").status(1);
    bzip2_there_and_back: dash("seq 30000 | bzip2 | tee a.bz2 | bunzip2 | md5sum; bzip2 -tv a.bz2 2>&1");
    xz_there_and_back: dash("seq 100000 | xz -3 -T2 --block-size=100KiB > a.xz; xz -dc a.xz | md5sum; xz --robot -l a.xz | head -c 40");
    cpio_like_ar: dash("echo one > 1; echo two > 2; ar rcD a.a 1 2 && ar tv a.a && ar p a.a 2");
    diff_and_patch: bash("seq 20 > a; seq 20 | sed 's/7/seven/;15d' > b; diff -u --label a --label b a b > p; cat p; patch -s a < p && cmp a b && diff3 a b b");
    cmp_finds_a_difference: bash("cmp <(seq 100) <(seq 99; echo x)").status(1);
    bc_calculates: exec(["bc", "-l"]).stdin("scale=50\n4*a(1)\n2^200\nsqrt(2)\n");
    sqlite3_in_memory: exec(["sqlite3", ":memory:"]).stdin("create table t(a,b); with recursive n(i) as (select 1 union all select i+1 from n where i<5000) insert into t select i, i*i%97 from n; select count(*), sum(b), max(a) from t; select b, count(*) from t group by b order by 2 desc, 1 limit 3;");
    sqlite3_on_disk: exec(["sqlite3", "db"]).stdin("pragma journal_mode=delete; create table t(a unique,b); begin; insert into t values(1,'x'),(2,'y'); commit; insert or replace into t values(1,'z'); pragma integrity_check; select * from t;");
    sqlite3_with_a_write_ahead_log: exec(["sqlite3", "db"]).stdin("pragma journal_mode=wal; create table t(a); insert into t values(1); select * from t; pragma journal_mode=delete;");
    minisat_solves: exec(["minisat", "-verb=0", "f.cnf", "result"]).file("f.cnf", "p cnf 3 4\n1 2 0\n-1 3 0\n-2 -3 0\n1 -3 0\n").status(10);
    make_builds_in_parallel: exec(["make", "-s", "-j3", "all"]).file("Makefile", "all: a b c\n\tcat a b c > all\na b c:\n\techo $@ > $@\n");
}
