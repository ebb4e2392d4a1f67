//! What `velo` says, and how it ends, where no node runs.

use std::path::Path;
use std::process::{Command, Output};

fn velo(data_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_velo"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VELO_")) {
        command.env_remove(name);
    }
    command.env("HOME", data_dir).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
    command.arg("--data-dir").arg(data_dir.join("data")).args(arguments).output().expect("velo starts")
}

fn check(arguments: &[&str], status: i32, said: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let output = velo(dir.path(), arguments);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "velo {arguments:?}: {err}");
    assert!(err.contains(said), "velo {arguments:?} does not say `{said}`: {err}");
}

#[test]
fn errors_have_their_status_and_say_what_to_do() {
    check(&["up"], 2, "velo cluster init");
    check(&["up"], 2, "velo up --join");
    check(&["up", "--join", "127.0.0.1:1", "--token", "nonsense"], 2, "velo cluster token");
    check(&["up", "--join", "127.0.0.1:1"], 2, "--token");
    check(&["status"], 4, "velo up");
    check(&["put", "/etc/hostname"], 4, "velo up");
    check(&["get", "models/x", "/nonexistent/dest"], 4, "velo up");
    check(&["verify"], 4, "velo up");
    check(&["frobnicate"], 2, "frobnicate");
    check(&["--set", "net.lisen=x", "ls"], 2, "net.listen");
    check(&["--set", "nonsense", "ls"], 2, "SECTION.KEY=VALUE");
    check(&["--config", "/nonexistent/velo.toml", "ls"], 2, "/nonexistent/velo.toml");
    check(
        &["cluster", "export", "/tmp/never-written", "--passphrase-file", "/nonexistent"],
        3,
        "/nonexistent",
    );
    check(&["demo", "--nodes", "1"], 2, "--nodes");
}

#[test]
fn an_error_is_an_object_where_json_was_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = velo(dir.path(), &["--json", "ls"]);
    assert_eq!(output.status.code(), Some(4));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&answer["ok"], &answer["status"]), (&false.into(), &4.into()));
    assert!(answer["error"].as_str().is_some_and(|text| text.contains("velo up")));
}

#[test]
fn a_cluster_begins_once_and_its_authority_comes_back_from_a_backup() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let made = velo(dir.path(), &["--json", "cluster", "init"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(made["ok"], true);
    assert_eq!(velo(dir.path(), &["cluster", "init"]).status.code(), Some(1), "it overwrites nothing");

    std::fs::write(at("phrase"), "correct horse\n").expect("a file");
    let export = ["cluster", "export", &at("backup"), "--passphrase-file", &at("phrase")];
    assert!(velo(dir.path(), &export).status.success());
    assert!(!velo(dir.path(), &export).status.success(), "a backup is not overwritten");

    let other = tempfile::tempdir().expect("a directory");
    std::fs::write(at("wrong"), "wrong").expect("a file");
    let import = |phrase: &str| {
        velo(other.path(), &["--json", "cluster", "import", &at("backup"), "--passphrase-file", &at(phrase)])
    };
    assert_eq!(import("wrong").status.code(), Some(1));
    let back: serde_json::Value = serde_json::from_slice(&import("phrase").stdout).expect("JSON");
    assert_eq!(back["cluster"], made["cluster"]);
    assert_ne!(back["node"], made["node"]);
}

#[test]
fn completions_are_printed_for_every_shell() {
    let dir = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "zsh", "fish"] {
        let output = velo(dir.path(), &["completions", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("cluster"), "{shell}");
    }
}
