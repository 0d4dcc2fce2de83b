//! What the machine does not offer, what a node has no more of, and what is not served: each with a
//! sentence or an errno, and nobody else notices.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use skein_tests::case::Ending;
use skein_tests::guest::{Linking, compile};
use skein_tests::home::Host;
use skein_tests::run::ending;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// `None` where another runner stands in for `mosrun` and nothing here has a meaning.
fn prepared() -> Option<Host> {
    if std::env::var_os("SKEIN_TEST_RUNNER").is_some() {
        eprintln!("not run: no host here");
        return None;
    }
    Some(Host::prepare().unwrap_or_else(|why| panic!("{why}")))
}

/// The same with a node; `None` where there is no `/dev/kvm`, too.
fn host() -> Option<Host> {
    let host = prepared()?;
    if !Path::new("/dev/kvm").exists() {
        eprintln!("not run: no host here");
        return None;
    }
    host.skein(&["node", "launch"]).unwrap_or_else(|why| panic!("{why}"));
    Some(host)
}

/// What is mounted where, in a namespace that only a command sees.
struct Mounts(Vec<(PathBuf, PathBuf)>);

impl Mounts {
    /// Has `command` run with these mounts, as an ordinary user without privileges.
    fn around(self, command: &mut Command) {
        let (uid, gid) = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let enter = move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
            fs::write("/proc/self/setgroups", "deny")?;
            // Whoever is not user 0 in the namespace loses all privileges with the program.
            fs::write("/proc/self/uid_map", format!("1000 {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("1000 {gid} 1"))?;
            for (what, at) in &self.0 {
                mount(Some(what), at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            }
            Ok(())
        };
        // SAFETY: the child has one thread, and nothing that it allocates for is locked there: the C
        // library's allocator is whole after a fork.
        unsafe { command.pre_exec(enter) };
    }
}

/// Whether this user may make namespaces at all; some systems forbid it.
fn has_namespaces() -> bool {
    let mut command = Command::new("/bin/true");
    Mounts(Vec::new()).around(&mut command);
    let possible = command.status().is_ok_and(|status| status.success());
    if !possible {
        eprintln!("not run: this user may not make namespaces");
    }
    possible
}

/// A `/dev` in `place` with what programs need and no `kvm`.
fn bare_devices(place: &Path) -> Vec<(PathBuf, PathBuf)> {
    let devices = place.join("dev");
    fs::create_dir(&devices).expect("a directory");
    let mut mounts = Vec::new();
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        File::create(devices.join(name)).expect("a file");
        mounts.push((Path::new("/dev").join(name), devices.join(name)));
    }
    symlink("/proc/self/fd", devices.join("fd")).expect("a link");
    mounts.push((devices, "/dev".into()));
    mounts
}

/// The host's command with these mounts, run to its end. All that it has started ends with it.
fn run_with(host: &Host, mounts: Vec<(PathBuf, PathBuf)>, name: &str, arguments: &[&str]) -> Output {
    // What is started may outlive the command and would keep a pipe open.
    let place = tempfile::tempdir().expect("a directory");
    let (out, err) = (place.path().join("out"), place.path().join("err"));
    let mut command = host.command(name);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
    Mounts(mounts).around(&mut command);
    let status = command.status().expect("it starts");
    Output { status, stdout: fs::read(out).expect("its output"), stderr: fs::read(err).expect("its errors") }
}

/// `mosrun` and `skein node launch` fail as documented, with one sentence that has all of `words`.
fn fails_with(host: &Host, mounts: &[(PathBuf, PathBuf)], words: &[&str]) {
    for (name, arguments, status) in
        [("mosrun", &["echo", "ran"][..], 125), ("skein", &["node", "launch"], 1), ("mosrun", &["echo", "again"], 125)]
    {
        let output = run_with(host, mounts.to_vec(), name, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(ending(output.status), Ending::Status(status), "{name} said: {said}");
        assert!(output.stdout.is_empty(), "{name} printed {:?}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(said.trim_end().lines().count(), 1, "{name} said: {said}");
        for word in words {
            assert!(said.contains(word), "{name} says nothing of {word}: {said}");
        }
    }
}

#[test]
fn without_kvm_a_sentence_says_what_to_do() {
    let Some(host) = prepared().filter(|_| has_namespaces()) else { return };
    let place = tempfile::tempdir().expect("a directory");
    let mounts = bare_devices(place.path());
    fails_with(&host, &mounts, &["/dev/kvm does not exist", "enable it", "load the kvm module"]);
    let output = run_with(&host, mounts, "skein", &["doctor"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("/dev/kvm is not there") && told.contains("modprobe"), "{told}");
}

#[test]
fn without_permission_a_sentence_says_what_to_do() {
    let Some(host) = prepared().filter(|_| has_namespaces()) else { return };
    let place = tempfile::tempdir().expect("a directory");
    let mut mounts = bare_devices(place.path());
    let device = place.path().join("dev/kvm");
    File::create(&device).expect("a file");
    fs::set_permissions(&device, Permissions::from_mode(0o000)).expect("a mode");
    let (devices, at) = mounts.pop().expect("/dev itself");
    mounts.push((devices, at));
    fails_with(&host, &mounts, &["no permission to use /dev/kvm", "add the user to the group"]);
}

#[test]
fn a_call_that_is_not_served_is_logged_once() {
    let Some(host) = host() else { return };
    // io_uring_setup, several times, and a number that no kernel knows.
    let script = "for my $nr (425, 425, 7777, 425, 7778) { print syscall($nr, 1, 0), ' ', $! + 0, qq(\\n); } exit 3;";
    for _ in 0..2 {
        let output = host.command("mosrun").args(["perl", "-e", script]).output().expect("mosrun starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "-1 38\n".repeat(5), "ENOSYS, and it goes on");
        assert_eq!(ending(output.status), Ending::Status(3));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let log = host.node_log("node-1");
    for call in ["io_uring_setup", "unknown"] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(call)).collect();
        assert_eq!(lines.len(), 1, "of {call}: {log}");
        assert!(lines[0].contains("perl") && lines[0].contains("not served"), "{}", lines[0]);
    }
}

#[test]
fn what_can_never_fit_gets_enomem_and_what_does_not_fit_kills_that_process_alone() {
    let Some(host) = host() else { return };
    host.skein(&["node", "launch", "--name", "small", "--memory", "128M"]).expect("a small node");
    let hog = compile("hog", Linking::Dynamic);
    let hog = hog.to_str().expect("a path in UTF-8");
    let script = format!(
        "sleep 1000 & other=$!; {hog} once 512; echo $?; {hog} grow 512; echo $?; {hog} grow 16; echo $?; \
         kill -0 $other && echo others go on; kill $other"
    );
    let mut command = host.command("mosrun");
    let output = command.args(["--node", "small", "bash", "-c", &script]).output().expect("mosrun starts");
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, "cannot have 512 MiB: ENOMEM\n1\n137\nhad 16 MiB\n0\nothers go on\n", "{told}");
    assert_eq!(ending(output.status), Ending::Status(0));
    assert_eq!(host.vmms().len(), 2, "both nodes go on");
    let log = host.node_log("small");
    let killed: Vec<&str> = log.lines().filter(|line| line.contains("killed")).collect();
    assert_eq!(killed.len(), 1, "{log}");
    assert!(killed[0].contains("--memory"), "it says what to do: {}", killed[0]);
}

#[test]
fn a_node_that_is_larger_than_the_machine_is_refused() {
    let Some(host) = host() else { return };
    let why = host.skein(&["node", "launch", "--name", "huge", "--memory", "1000T"]).expect_err("a refusal");
    assert!(why.contains("--memory") && why.contains("does not fit this machine"), "{why}");
    let why = host.skein(&["node", "launch", "--name", "tiny", "--memory", "1M"]).expect_err("a refusal");
    assert!(why.contains("at least 64M"), "{why}");
    assert_eq!(host.vmms().len(), 1);
}
