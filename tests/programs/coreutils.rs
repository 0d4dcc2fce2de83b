//! coreutils: each program directly, so that a failure names one.

use skein_tests::case::Item;
use skein_tests::{Case, bash, cases, dash, exec};

/// The same files for those that look at a tree.
fn tree(case: Case) -> Case {
    case.directory("tree")
        .file("tree/alpha", "alpha\n")
        .item("tree/secret", Item::File(b"not for all\n".to_vec(), 0o600))
        .program("tree/run", "#!/bin/sh\necho ran \"$@\"\n")
        .directory("tree/deep")
        .directory("tree/deep/er")
        .file("tree/deep/er/empty", "")
        .file("tree/deep/a file with spaces", "spaces\n")
        .item("tree/sticky", Item::Directory(0o1777))
        .link("tree/link", "alpha")
        .link("tree/dangling", "nowhere")
}

/// 2,000 lines that are neither sorted nor unique.
fn numbers() -> String {
    let mut state = 12345u32;
    (0..2000)
        .map(|_| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
            format!("{} word{}\n", state >> 20, state >> 28)
        })
        .collect()
}

fn on_numbers<const N: usize>(argv: [&str; N]) -> Case {
    exec(argv).file("numbers", numbers())
}

/// 70,001 bytes of every value.
fn binary() -> Vec<u8> {
    (0..70_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn on_binary(script: &str) -> Case {
    dash(script).file("binary", binary())
}

cases! {
    true_succeeds: exec(["/bin/true"]);
    false_fails: exec(["/bin/false"]).status(1);
    echo_prints_its_arguments: exec(["echo", "a", "b c", "", "d\n"]);
    printf_formats: exec(["printf", "%5d|%-8s|%x|%.3f|%b\n", "42", "left", "255", "3.14159", "tab\\tend"]);
    ls_lists_a_tree: tree(exec(["ls", "-la", "--time-style=full-iso", "tree"]));
    ls_walks_a_tree_in_order_of_size: tree(exec(["ls", "-RS1F", "tree"]));
    ls_names_what_is_missing: exec(["ls", "-d", ".", "missing"]).status(2);
    cp_archives_a_tree: tree(exec(["cp", "-a", "tree", "copy"]));
    cp_keeps_times: tree(dash("cp -a tree copy && stat -c '%n %a %s %Y %F' copy copy/*"));
    cp_copies_a_binary_file: on_binary("cp binary copy && cmp binary copy && cp --reflink=never --sparse=always binary sparse");
    cp_refuses_a_directory_without_r: tree(exec(["cp", "tree", "copy"])).status(1);
    mv_renames_files_and_directories: tree(dash("mv tree/alpha tree/beta && mv tree/deep moved && mv -n tree/beta tree/secret; ls -A tree moved"));
    rm_removes_a_tree: tree(exec(["rm", "-rv", "tree/deep", "tree/link"]));
    rm_says_what_it_cannot_remove: tree(exec(["rm", "tree", "missing"])).status(1);
    mkdir_makes_parents_with_a_mode: dash("umask 027; mkdir -p -m 711 a/b/c && mkdir -v d && rmdir d");
    ln_makes_hard_and_symbolic_links: tree(dash("ln tree/alpha hard && ln -s tree/alpha soft && ln -sr tree/deep/er up && readlink up && stat -c %h hard"));
    chmod_changes_modes: tree(dash("chmod -R u=rwX,go= tree && chmod +t,g+s tree/deep && chmod 000 tree/secret"));
    touch_sets_times: dash("touch -d '2011-12-13 14:15:16.123456789Z' made && touch -r made other && stat -c '%Y %.9Y %n' made other");
    stat_shows_everything_that_is_fixed: tree(exec(["stat", "-c", "%n %A %a %s %F %N %u %g %h %Y", "tree", "tree/link", "tree/run"]));
    install_makes_directories_and_modes: tree(exec(["install", "-D", "-m", "4750", "tree/run", "new/place/run"]));
    truncate_makes_a_sparse_file: dash("truncate -s 5000000 sparse && stat -c %s sparse && truncate -s 3 sparse");
    mktemp_makes_files_and_directories: dash("f=$(mktemp ./XXXXXXXX) d=$(mktemp -d ./dXXXXXX); stat -c '%a %s %F' $f $d; rm -r $f $d");
    mkfifo_and_two_ends: dash("mkfifo -m 600 pipe; (seq 1000 > pipe &); tail -n 2 pipe; wait");
    du_counts_apparent_sizes: tree(exec(["du", "-ab", "tree/deep"]));
    df_knows_the_file_system: exec(["df", "--output=target", "/proc"]);
    realpath_resolves: tree(dash("realpath --relative-to=. tree/link tree/deep/../alpha; cd tree && pwd && pwd -P | wc -c"));
    basename_and_dirname: exec(["dirname", "/usr/lib/x.so", "a", "a/b/"]);
    cat_joins_files_and_stdin: tree(exec(["cat", "-n", "tree/alpha", "-", "tree/secret"])).stdin("from stdin\nno newline");
    cat_names_a_missing_file: exec(["cat", "missing"]).status(1);
    tac_reverses: on_numbers(["tac", "numbers"]);
    head_takes_the_first: on_numbers(["head", "-n", "7", "numbers"]);
    head_takes_bytes_of_stdin: exec(["head", "-c", "100000"]).stdin(binary().repeat(20));
    tail_takes_the_last: on_numbers(["tail", "-n", "7", "numbers"]);
    tail_starts_at_a_line: on_numbers(["tail", "-n", "+1995", "numbers"]);
    tail_follows_until_a_process_ends: dash(": > log; (sleep 0.3; echo one >> log; sleep 0.3; echo two >> log) & tail -n +1 -s 0.05 -f --pid=$! log; wait");
    wc_counts: on_numbers(["wc", "numbers"]);
    sort_by_number_and_key: on_numbers(["sort", "-k2,2", "-k1,1nr", "-s", "numbers"]);
    sort_merges_and_is_unique: dash("sort -n numbers > a; sort -rn numbers | tac > b; sort -m -u -n a b").file("numbers", numbers());
    sort_spills_to_disk: dash("mkdir t; seq 50000 | sort -R --random-source=numbers | sort -n -S 100k -T t --parallel=2 | sha256sum; ls t").file("numbers", numbers().repeat(100));
    sort_in_two_threads: dash("seq 200000 -1 1 | sort -n --parallel=2 -S 50M | sha256sum");
    sort_checks_order: on_numbers(["sort", "-c", "numbers"]).status(1);
    uniq_counts: dash("cut -d' ' -f2 numbers | sort | uniq -c").file("numbers", numbers());
    comm_and_join: dash("seq 1 2 20 | sort > a; seq 1 3 20 | sort > b; comm a b; join a b; join -v1 a b; paste a b");
    cut_takes_fields_and_bytes: on_numbers(["cut", "-d", " ", "-f", "2,1", "--output-delimiter=:", "numbers"]);
    tr_translates_squeezes_and_deletes: exec(["tr", "-s", "a-z ", "A-Z_"]).stdin("hello   world  of pipes\n");
    nl_numbers_lines: on_numbers(["nl", "-ba", "-w3", "numbers"]);
    fold_and_fmt: dash("fold -w 30 numbers | head; fmt -w 60 numbers | tail -3").file("numbers", numbers());
    expand_and_unexpand: dash("printf 'a\\tb\\n' | expand -t 4 | unexpand -a -t 4 | od -c");
    split_and_rejoin: on_binary("split -b 10k -d binary part. && ls part.* && cat part.* | cmp - binary");
    split_through_a_filter: on_binary("split -n 3 --filter='gzip -n > $FILE.gz' binary && zcat x*.gz | cmp - binary && ls");
    csplit_at_a_pattern: on_numbers(["csplit", "-s", "numbers", "/word3/", "{2}"]);
    od_shows_bytes: on_binary("od -A x -t x1z binary | head -40; od -t f8 -N 64 binary; od -t d4 -j 1000 -N 64 binary");
    base64_there_and_back: on_binary("base64 binary > text && base64 -d text | cmp - binary && base32 binary | tail -1");
    sums_of_every_kind: on_binary("for s in sha256 sha512 sha1 md5 b2; do ${s}sum binary; done; cksum binary; sum binary");
    sha256sum_checks_a_list: on_binary("sha256sum binary > list; sha256sum -c list; echo >> binary; sha256sum -c list").status(1);
    dd_with_blocks_of_one_byte: on_binary("dd if=binary bs=1 count=5000 status=none | md5sum");
    dd_with_odd_blocks: on_binary("dd if=binary of=out ibs=777 obs=10001 status=none && cmp binary out");
    dd_with_big_blocks: on_binary("dd if=/dev/zero of=out bs=3M count=3 status=none; dd if=binary of=out bs=64k seek=10 conv=notrunc 2>&1 | sed 's/, [^,]* s, .*//'");
    dd_converts_and_counts_records: on_binary("dd if=binary bs=4k skip=3 conv=ucase,sync 2>err | md5sum; sed -n '/records/p' err; rm err");
    seq_and_tac: bash("seq 100000 | tac | sha256sum; seq -w 8 11; seq 1 0.25 2; seq -s, 5 -1 1");
    shuf_with_a_seed: dash("seq 100 | shuf --random-source=numbers | md5sum").file("numbers", numbers());
    factor_uses_big_numbers: exec(["factor", "18446744073709551557", "340282366920938463463374607431768211455", "1000000"]);
    expr_and_test: dash("expr 6 '*' 7; expr abcdef : 'abc\\(.*\\)'; /usr/bin/test 3 -gt 2 && echo yes; /usr/bin/[ -d tree ] || echo no");
    env_shows_and_sets: exec(["env", "-i", "A=1", "B=two words", "env"]);
    env_inherits: exec(["env", "-u", "LANG"]).env("ADDED", "with = signs = in it");
    printenv_knows_one: exec(["printenv", "TZ"]);
    nice_changes_niceness: exec(["nice", "-n", "5", "nice"]);
    nohup_ignores_hangup: dash("nohup sh -c 'kill -HUP $$; echo survived' < /dev/null");
    timeout_lets_it_end: exec(["timeout", "20", "echo", "in time"]);
    timeout_kills: exec(["timeout", "0.2", "sleep", "30"]).status(124);
    timeout_kills_harder: exec(["timeout", "-k", "0.2", "0.2", "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]).signal(9);
    timeout_passes_on_a_status: exec(["timeout", "20", "sh", "-c", "exit 42"]).status(42);
    tee_writes_to_all: exec(["tee", "-a", "one", "two"]).file("one", "had\n").stdin(numbers());
    yes_ends_with_its_reader: bash("yes | head -n 100000 | sha256sum; echo ${PIPESTATUS[@]}");
    kill_sends_and_lists: bash("sleep 100 & /bin/kill -TERM $!; wait $!; echo $?; /bin/kill -l 15; /bin/kill -0 999999999 2>&1 | head -c 4");
    date_formats_a_given_time: exec(["date", "-u", "-d", "@1234567890", "+%F %T %A %j"]);
    date_reads_a_file_s_time: exec(["date", "-r", "f", "+%s"]).file("f", "");
    sleep_takes_fractions: exec(["sleep", "0.01", "0.02"]);
    id_whoami_and_groups: dash("id; whoami; groups; logname 2>/dev/null; id -u nobody");
    uname_and_hostname: dash("uname -snm; hostname");
    nproc_is_what_the_environment_says: exec(["nproc"]).env("OMP_NUM_THREADS", "3");
    tty_says_not_a_tty: exec(["tty"]).status(1);
    stdbuf_preloads_a_library: exec(["stdbuf", "-oL", "tr", "a", "b"]).stdin("banana\n");
    sync_and_fsync: exec(["sync", "f"]).file("f", "x");
    pathchk_and_pr: dash("pathchk -p ok; pr -t -2 -l 20 numbers | head -20").file("numbers", numbers());
    chroot_without_right_or_directory: exec(["chroot", "missing", "/bin/true"]).status(125);
    flock_holds_a_lock: dash("flock lock sh -c 'flock -n lock echo both || echo only one'; flock -n lock echo free");
    setsid_starts_a_session: dash("setsid -w sh -c 'ps -o pid= -o sid= -p $$ | { read p s; [ $p = $s ] && echo leader; }'");
    xxd_like_hexdump: on_binary("od -An -v -tu2 -w20 binary | sort | uniq -d | wc -l");
}
