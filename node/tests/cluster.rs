//! `skein cluster` as a user types it: two hosts on loopback, each with a state directory of its own.

use std::path::PathBuf;
use std::process::{Command, Output};

struct Host {
    directory: tempfile::TempDir,
    /// Nothing but the usual places, instead of a directory that was chosen.
    usual: bool,
}

impl Host {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), usual: false }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn skein(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
        command.args(arguments).env_remove("XDG_STATE_HOME");
        if self.usual {
            command.env_remove("SKEIN_DIR").env("XDG_RUNTIME_DIR", self.path("run")).env("HOME", self.path("home"));
        } else {
            command.env("SKEIN_DIR", self.path("state"));
        }
        command.output().unwrap()
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.skein(arguments);
        assert!(output.status.success(), "{arguments:?} {output:?}");
        text(&output.stdout)
    }

    /// The sentence with which it fails.
    fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.skein(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        text(&output.stderr)
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.says(arguments)).expect("JSON")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.skein(&["host", "stop", "--force"]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn two_hosts_become_a_cluster_and_part() {
    let (alpha, beta) = (Host::new(), Host::new());
    let listen = ["--listen", "127.0.0.1:0"];
    let said = alpha.refuses(&["cluster", "ls"]);
    assert!(said.contains("skein host start"), "{said}");
    assert!(!alpha.path("state").exists(), "a question made the state directory");
    let said = alpha.refuses(&["cluster", "invite"]);
    assert!(said.contains("in no cluster; make one with: skein cluster init"), "{said}");

    let said = alpha.says(&[&["cluster", "init", "--name", "lab", "--host-name", "alpha"][..], &listen].concat());
    assert!(said.contains("alpha in cluster lab") && said.contains("skein cluster invite"), "{said}");
    let token = alpha.says(&["cluster", "invite", "--minutes", "5"]);
    assert_eq!(token.lines().count(), 1);
    let status = alpha.json(&["cluster", "status", "--json"]);
    assert_eq!((&status["cluster"], &status["invitations"]), (&"lab".into(), &1.into()), "{status}");
    let port = status["listen"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();

    // A host and a port, where the token's own addresses would not do.
    let at = format!("localhost:{port}");
    let join = ["cluster", "join", &at, token.trim(), "--host-name", "beta"];
    beta.says(&[&join[..], &listen].concat());
    let said = alpha.says(&["cluster", "check", "beta", "--size", "1M"]);
    assert!(said.starts_with("host         beta at 127.0.0.1:") && said.contains("round trip"), "{said}");
    let checked = beta.json(&["cluster", "check", "alpha", "--size", "1M", "--json"]);
    assert_eq!(checked["bytes"], 1 << 20, "{checked}");
    let said = beta.refuses(&[&join[..], &listen].concat());
    assert!(said.contains("member of cluster lab already"), "{said}");
    let used = Host::new();
    let said = used.refuses(&[&["cluster", "join", token.trim()][..], &listen].concat());
    assert!(said.contains("the token has been used already"), "{said}");

    for (host, this) in [(&alpha, "alpha"), (&beta, "beta")] {
        let table = host.says(&["cluster", "ls"]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines.len() == 3 && lines[0].starts_with("NAME"), "{table}");
        assert!(lines.iter().any(|line| line.starts_with(this) && line.contains("this host")), "{table}");
        assert!(lines[1..].iter().any(|line| !line.starts_with(this) && line.contains("reachable")), "{table}");
        for member in host.json(&["cluster", "ls", "--json"]).as_array().unwrap() {
            assert_eq!(member["reachable"], true, "{member}");
            assert_eq!(member["id"].as_str().unwrap().len(), 32);
        }
    }
    assert!(alpha.says(&["cluster", "cpu-level", "x86-64-v2"]).contains("x86-64-v2; told: beta"));
    assert_eq!(beta.says(&["cluster", "cpu-level"]).lines().next(), Some("x86-64-v2"));
    assert_eq!(alpha.skein(&["cluster", "cpu-level", "x86-64-v9"]).status.code(), Some(2));

    // By the first digits of its ID.
    let id = beta.json(&["cluster", "status", "--json"])["host_id"].as_str().unwrap().to_owned();
    assert!(alpha.says(&["cluster", "remove", &id[..8]]).contains("beta has been removed"));
    assert!(beta.says(&["cluster", "ls"]).contains("this host was removed from the cluster"));
    let said = beta.says(&["cluster", "leave"]);
    assert!(said.contains("has left the cluster") && !said.contains("could not be told"), "{said}");
    assert!(!beta.path("state/cluster").exists());
}

#[test]
fn keys_are_where_they_survive_a_reboot() {
    let host = Host { directory: tempfile::tempdir().unwrap(), usual: true };
    for name in ["run", "home"] {
        std::fs::create_dir(host.path(name)).unwrap();
    }
    host.says(&["cluster", "init", "--listen", "127.0.0.1:0"]);
    let keys = host.path("home/.local/state/skein/cluster");
    assert!(keys.join("host.key").exists());
    assert_eq!(host.json(&["cluster", "status", "--json"])["directory"], keys.to_str().unwrap());
    // The next start knows of it, though everything of this boot is gone.
    host.says(&["host", "stop"]);
    std::fs::remove_dir_all(host.path("run/skein")).unwrap();
    host.says(&["host", "start"]);
    assert_eq!(host.json(&["cluster", "ls", "--json"]).as_array().unwrap().len(), 1);
    // A damaged key is named, and the host runs all the same.
    host.says(&["host", "stop"]);
    std::fs::write(keys.join("host.key"), "x").unwrap();
    host.says(&["host", "start"]);
    let said = host.refuses(&["cluster", "status"]);
    assert!(said.contains("host.key is damaged"), "{said}");
    assert_eq!(host.says(&["node", "ls", "--json"]).trim(), "[]");
}
