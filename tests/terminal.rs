//! A program under `mosrun` on a terminal: it is interrupted, stopped and continued as any other.

use skein_tests::home::{self, Home, Setup};
use skein_tests::pty::Session;

/// The shared home, and what to type before a program; `None` where there is no `/dev/kvm`.
fn home() -> Option<(&'static Setup, String)> {
    match home::shared() {
        Home::Ready(setup) => {
            let words: Vec<_> = setup.runner.iter().map(|word| word.to_string_lossy()).collect();
            Some((setup, words.join(" ")))
        }
        Home::Absent => None,
        Home::Broken(why) => panic!("{why}"),
    }
}

/// A shell on a terminal; its prompt is `READY> `.
fn shell(setup: &Setup) -> Session {
    let mut session = Session::start(&["/bin/bash", "--norc", "--noprofile", "-i"], &setup.environment);
    session.say("PS1='READY''> '; bind 'set enable-bracketed-paste off'; stty -echo");
    session.expect("READY> ");
    session
}

#[test]
fn control_c_kills_the_foreground_program() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("{mosrun} sh -c 'echo started; exec sleep 100'"));
    session.expect("started");
    session.send(b"\x03");
    session.expect("READY> ");
    session.say("echo status $?");
    session.expect("status 130");
}

#[test]
fn control_c_reaches_a_program_s_handler() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!(
        "{mosrun} bash -c 'trap \"echo caught; exit 7\" INT; echo started; while :; do sleep 0.1; done'"
    ));
    session.expect("started");
    session.send(b"\x03");
    session.expect("caught");
    session.expect("READY> ");
    session.say("echo status $?");
    session.expect("status 7");
}

#[test]
fn control_c_reaches_a_program_that_computes() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("{mosrun} mawk 'BEGIN {{ print \"started\"; fflush(); while (1) x++ }}'"));
    session.expect("started");
    session.send(b"\x03");
    session.expect("READY> ");
    session.say("echo status $?");
    session.expect("status 130");
}

#[test]
fn control_backslash_quits() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("ulimit -c 0; {mosrun} sh -c 'echo started; exec sleep 100'"));
    session.expect("started");
    session.send(b"\x1c");
    session.expect("READY> ");
    session.say("echo status $?");
    session.expect("status 131");
}

#[test]
fn control_z_stops_and_fg_continues() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("{mosrun} sh -c 'echo started; read line; echo \"read $line\"; exit 3'"));
    session.expect("started");
    session.send(b"\x1a");
    session.expect("Stopped");
    session.expect("READY> ");
    session.say("fg");
    session.pause();
    session.say("typed");
    session.expect("read typed");
    session.expect("READY> ");
    session.say("echo status $?");
    session.expect("status 3");
}

#[test]
fn a_stopped_program_that_computes_stands_still() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("{mosrun} bash -c 'echo started; while :; do echo >> count; done'"));
    session.expect("started");
    session.send(b"\x1a");
    session.expect("Stopped");
    session.expect("READY> ");
    session.say(
        "sleep 0.3; a=$(wc -c < count); sleep 0.5; b=$(wc -c < count); [ \"$a\" = \"$b\" ] && echo stands still; bg",
    );
    session.expect("stands still");
    session.expect("READY> ");
    session
        .say("sleep 0.5; c=$(wc -c < count); [ \"$c\" != \"$b\" ] && echo goes on; kill %1; wait %1; echo status $?");
    session.expect("goes on");
    session.expect("status 143");
}

#[test]
fn a_background_reader_is_stopped() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("{mosrun} cat &"));
    session.expect("READY> ");
    session.say("while jobs | grep -q Running; do sleep 0.1; done; jobs");
    session.expect("Stopped");
    session.expect("READY> ");
    session.say("kill -9 %1; while [ -e /proc/$! ]; do sleep 0.1; done; true");
    session.expect("Killed");
}

#[test]
fn programs_know_the_terminal_and_its_size() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("stty rows 33 cols 101; {mosrun} stty size"));
    session.expect("33 101");
    session.say(&format!("{mosrun} sh -c '[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo is a tty; tty'"));
    session.expect("is a tty");
    session.expect("/dev/pts/");
    session.say(&format!("{mosrun} ls / > list; {mosrun} ls -C / | wc -l; cmp list <(ls /) && echo redirected"));
    session.expect("redirected");
}

#[test]
fn a_program_is_told_of_a_changed_size() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    let script = "trap \"stty size; exit\" WINCH; echo started; while :; do sleep 0.1; done";
    session.say(&format!("{mosrun} bash -c '{script}'"));
    session.expect("started");
    session.resize(44, 123);
    session.expect("44 123");
}

#[test]
fn a_program_sets_the_terminal_s_mode() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    let script = "import tty, sys, termios; o = termios.tcgetattr(0); tty.setcbreak(0); print(\"raw\", flush=True); \
                  c = sys.stdin.read(1); termios.tcsetattr(0, termios.TCSADRAIN, o); print(\"key\", c)";
    session.say(&format!("{mosrun} /usr/bin/python3 -c '{script}'"));
    session.expect("raw");
    session.send(b"q");
    session.expect("key q");
}

#[test]
fn end_of_file_ends_a_reader() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("{mosrun} sh -c 'echo started; cat; echo ended'"));
    session.expect("started");
    session.say("a line");
    session.expect("a line");
    session.send(b"\x04");
    session.expect("ended");
}

#[test]
fn a_shell_under_mosrun_controls_its_own_jobs() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!("{mosrun} /bin/bash --norc --noprofile -i"));
    session.say("PS1='IN''NER> '; bind 'set enable-bracketed-paste off'");
    session.expect("INNER> ");
    session.say("sleep 100");
    session.pause();
    session.send(b"\x1a");
    session.expect("Stopped");
    session.say("fg");
    session.pause();
    session.send(b"\x03");
    session.expect("INNER> ");
    session.say("echo status $?; exit 5");
    session.expect("status 130");
    session.expect("READY> ");
    session.say("echo outer $?");
    session.expect("outer 5");
}

#[test]
fn a_hangup_ends_the_program() {
    let Some((setup, mosrun)) = home() else { return };
    let mut session = shell(setup);
    session.say(&format!(
        "{mosrun} bash -c 'trap \"echo hung up > hangup; exit\" HUP; echo started; while :; do sleep 0.1; done'"
    ));
    session.expect("started");
    let directory = session.hang_up();
    let made = directory.path().join("hangup");
    skein_tests::pty::until("the handler of SIGHUP ran", || made.exists());
}
