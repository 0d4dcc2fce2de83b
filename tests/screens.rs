//! Programs that own the screen, and shells that control jobs: the same dialogue natively and under
//! `mosrun`.

use skein_tests::home::{self, Home};
use skein_tests::pty::Session;

/// A terminal that programs may draw on.
const TERMINAL: &str = "export TERM=xterm; ";

/// Has a dialogue with a shell on a terminal, natively and with what starts programs in the node. The
/// second argument comes before a program's name.
fn both(dialogue: impl Fn(&mut Session, &str)) {
    let setup = match home::shared() {
        Home::Ready(setup) => setup,
        Home::Absent => return,
        Home::Broken(why) => panic!("{why}"),
    };
    let words: Vec<_> = setup.runner.iter().map(|word| word.to_string_lossy()).collect();
    for runner in ["env".to_owned(), words.join(" ")] {
        eprintln!("by {runner}");
        let mut session = Session::start(&["/bin/bash", "--norc", "--noprofile", "-i"], &setup.environment);
        session.say(&format!("{TERMINAL}PS1='READY''> '; bind 'set enable-bracketed-paste off'; stty -echo"));
        session.expect("READY> ");
        dialogue(&mut session, &runner);
    }
}

/// An interactive bash by `runner`, with line editing; its prompt is `INNER> `.
fn inner(session: &mut Session, runner: &str) {
    session.say(&format!("{runner} /bin/bash --norc --noprofile -i"));
    session.say("PS1='INN''ER> '; bind 'set enable-bracketed-paste off'");
    session.expect("INNER> ");
}

#[test]
fn a_shell_s_lines_are_edited_and_kept() {
    both(|session, runner| {
        inner(session, runner);
        // To the line's start, behind `echo`, and a word put in there.
        session.send(b"echo $((40+2))\x01\x1b[C\x1b[C\x1b[C\x1b[C edited\n");
        session.expect("edited 42\r\n");
        session.expect("INNER> ");
        session.send(b"echo wrong\x17right $((2*4))\n");
        session.expect("right 8\r\n");
        session.expect("INNER> ");
        // The line before the last, from the history.
        session.send(b"\x1b[A\x1b[A\n");
        session.expect("edited 42\r\n");
        session.expect("INNER> ");
        session.send(b"\x12rong\x07\n");
        session.expect("INNER> ");
        session.send(b"given up");
        session.pause();
        session.send(b"\x03");
        session.expect("INNER> ");
        session.send(b"exit 3\n");
        session.expect("READY> ");
        session.say("echo outer $?");
        session.expect("outer 3");
    });
}

#[test]
fn a_shell_controls_its_jobs() {
    both(|session, runner| {
        inner(session, runner);
        session.say("(echo start''ed; sleep 1000)");
        session.expect("started");
        session.send(b"\x1a");
        session.expect("Stopped");
        session.expect("INNER> ");
        session.say("bg");
        session.expect("&");
        session.expect("INNER> ");
        session.say("jobs");
        session.expect("Running");
        session.expect("INNER> ");
        session.say("fg; echo status $?");
        session.expect("sleep 1000");
        session.pause();
        session.send(b"\x03");
        session.expect("INNER> ");
        session.say("sleep 1000 &");
        session.expect("INNER> ");
        session.say("kill %1; wait %1; echo status $?");
        session.expect("Terminated");
        session.expect("status 143");
        session.expect("INNER> ");
        session.say("exit");
        session.expect("READY> ");
    });
}

#[test]
fn less_shows_pages_searches_and_follows_the_size() {
    both(|session, runner| {
        session.say("seq -f 'line %g.' 300 > lines");
        session.expect("READY> ");
        session.say(&format!("{runner} less lines"));
        session.expect("line 23.");
        session.send(b" ");
        session.expect("line 46.");
        session.send(b"/ 199\\.\n");
        session.expect("line 221.");
        session.pause();
        session.resize(34, 80);
        session.expect("line 231.");
        session.send(b"G");
        session.expect("line 300.");
        session.send(b"q");
        session.expect("READY> ");
    });
}

/// What an editor makes of a file, after a change and one that is undone.
fn edits(editor: &'static str) {
    both(|session, runner| {
        session.say("printf 'one\\ntwo\\nthree\\n' > text");
        session.expect("READY> ");
        session.say(&format!("{runner} {editor} text"));
        session.expect("three");
        session.send(b"jA and a half\x1b");
        session.expect("and a half");
        session.send(b":w\n");
        session.expect("written");
        session.send(b"ggdd");
        session.pause();
        session.send(b":q!\n");
        session.expect("READY> ");
        session.say("tr '\\n' '|' < text; echo");
        session.expect("one|two and a half|three|");
    });
}

#[test]
fn vim_edits_a_file() {
    edits("vim.tiny -u NONE");
}

#[test]
fn busybox_s_vi_edits_a_file() {
    both(|session, runner| {
        session.say("printf 'one\\ntwo\\n' > text");
        session.expect("READY> ");
        session.say(&format!("{runner} /bin/busybox vi text"));
        session.expect("two");
        session.send(b"Goadded\x1b");
        // Else the escape might be the beginning of a key's code.
        session.pause();
        session.send(b":wq\n");
        session.expect("READY> ");
        session.say("tr '\\n' '|' < text; echo");
        session.expect("one|two|added|");
    });
}

#[test]
fn top_draws_and_ends() {
    both(|session, runner| {
        session.say(&format!("{runner} top -d 100"));
        session.expect("load average");
        session.expect("COMMAND");
        session.pause();
        session.send(b"q");
        session.expect("READY> ");
        session.say("echo status $?");
        session.expect("status 0");
    });
}

#[test]
fn python_talks() {
    both(|session, runner| {
        session.say(&format!("{runner} /usr/bin/python3 -q"));
        session.expect(">>> ");
        session.send(b"6*7\n");
        session.expect("42");
        session.expect(">>> ");
        session.send(b"half a li");
        session.pause();
        session.send(b"\x03");
        session.expect("KeyboardInterrupt");
        session.expect(">>> ");
        session.send(b"import time; print('asleep', flush=True); time.sleep(1000)\n");
        session.expect("asleep\r\n");
        // Python sleeps on if the signal comes just before it goes to sleep.
        session.pause();
        session.send(b"\x03");
        session.expect("KeyboardInterrupt");
        session.expect(">>> ");
        session.send(b"\x1b[A\x1b[A\n");
        session.expect("42");
        session.expect(">>> ");
        session.send(b"\x04");
        session.expect("READY> ");
    });
}

#[test]
fn script_records_a_terminal_of_its_own() {
    both(|session, runner| {
        session
            .say(&format!("{runner} script -q -c 'tty > name; echo in the scr''ipt; read word; echo got $word' log"));
        session.expect("in the script");
        session.send(b"a word\n");
        session.expect("got a word");
        session.expect("READY> ");
        session.say("[ \"$(cat name)\" != \"$(tty)\" ] && grep -c 'got a word' log");
        session.expect("1");
    });
}

/// Detaches from tmux, which takes keys that come together for a paste.
fn detach(session: &mut Session) {
    session.pause();
    session.send(b"\x02");
    session.pause();
    session.send(b"d");
    session.expect("[detached");
    session.expect("READY> ");
}

#[test]
fn tmux_serves_detaches_and_attaches() {
    both(|session, runner| {
        let tmux = format!("{runner} tmux -S ./socket -f /dev/null");
        session.say(&format!("{tmux} new-session -s name '/bin/bash --norc --noprofile -i'"));
        session.expect("[name]");
        session.send(b"echo $((6*9)) inside; tmux split-window 'echo second pa''ne; sleep 1000'\n");
        session.expect("54 inside");
        session.expect("second pane");
        detach(session);
        session.say(&format!("{tmux} list-panes -t name | wc -l"));
        session.expect("2");
        session.expect("READY> ");
        session.resize(30, 100);
        session.say(&format!("{tmux} attach"));
        session.expect("second pane");
        detach(session);
        session.say(&format!("{tmux} kill-server; echo killed $?"));
        session.expect("killed 0");
    });
}
