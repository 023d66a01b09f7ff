//! The binary, from outside: what it prints, where, and how it exits.
#![expect(
    clippy::disallowed_methods,
    reason = "tests of the command line start the command, and read and write files"
)]

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use glidefs::api::{self, Api};
use glidefs::control::{
    CacheDocument, CollectedDocument, Control, ControlError, ControlErrorKind, ExportDocument,
    ExportMeters, ForkDocument, ForkWait, ForkedDocument, GcDocument, GroupDocument, GroupRequest,
    GroupSnapshotDocument, IoDocument, LatenciesDocument, MetersDocument, OperationDocument,
    OperationState, PrepareDocument, Request, SalvageDocument, SalvageKind, SalvageRange,
    SalvageRanges, ServerDocument, SnapshotDocument, WarmDocument, WarmState,
};
use glidefs::meter::store::StoreUse;
use serde_json::Value;
use world::sync::{Receiver, watch};

/// The binary in a folder of its own, without the surroundings' variables.
fn glidefs(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_glidefs"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .output()
        .expect("the binary starts")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exited by itself")
}

#[test]
fn help_and_version_go_to_stdout_and_exit_0() {
    let dir = folder();
    let help = glidefs(dir.path(), &["--help"]);
    assert_eq!(code(&help), 0);
    for word in [
        "run",
        "init",
        "check",
        "status",
        "export",
        "completions",
        "Exit codes:",
    ] {
        assert!(stdout(&help).contains(word), "{word}");
    }
    let version = glidefs(dir.path(), &["--version"]);
    assert_eq!(code(&version), 0);
    assert_eq!(
        stdout(&version),
        format!("glidefs {}\n", env!("CARGO_PKG_VERSION"))
    );
    for command in [
        "run",
        "init",
        "check",
        "status",
        "export",
        "group",
        "completions",
    ] {
        let help = glidefs(dir.path(), &[command, "--help"]);
        assert_eq!(code(&help), 0, "{command}");
    }
}

#[test]
fn wrong_usage_exits_2() {
    let dir = folder();
    for arguments in [
        &[][..],
        &["rnu"],
        &["run", "--no-such-flag"],
        &["export", "drain"],
        &["export", "grow", "vm", "much"],
        &["status", "--api", "localhost:8080"],
        &["run", "-c", "absent.toml"],
    ] {
        let output = glidefs(dir.path(), arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn init_writes_a_file_that_loads_and_never_overwrites() {
    let dir = folder();
    let first = glidefs(dir.path(), &["init"]);
    assert_eq!(code(&first), 0);
    let path = dir.path().join("glidefs.toml");
    let written = std::fs::read_to_string(&path).expect("it is there");
    assert!(written.contains("[servers.nbd]"));

    std::fs::write(&path, "mine").expect("writable");
    let second = glidefs(dir.path(), &["init"]);
    assert_eq!(code(&second), 1);
    assert!(stderr(&second).contains("left alone"));
    let kept = std::fs::read_to_string(&path).expect("still there");
    assert_eq!(kept, "mine");

    let third = glidefs(dir.path(), &["init", "--path", "other.toml"]);
    assert_eq!(code(&third), 0);
    let report = checks(dir.path(), "other.toml");
    let failed = failed(&report);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn check_says_what_is_wrong_with_a_configuration() {
    let dir = folder();
    let text = "[cache]\ndir = \"c\"\n[storage]\nurll = \"file:///x\"\nurl = \"${NOT_SET}\"\n";
    std::fs::write(dir.path().join("bad.toml"), text).expect("writable");
    let output = glidefs(dir.path(), &["check", "-c", "bad.toml"]);
    assert_eq!(code(&output), 2);
    let said = stderr(&output);
    assert!(
        said.contains("bad.toml:4: `storage.urll`: unknown key; did you mean `storage.url`?"),
        "{said}"
    );
    assert!(said.contains("NOT_SET is not set"), "{said}");
}

#[test]
fn check_without_a_file_checks_the_embedded_default_and_names_the_answer_mode() {
    let dir = folder();
    let output = glidefs(dir.path(), &["check", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON alone");
    let failed = failed(&report);
    assert!(failed.is_empty(), "{failed:?}");
    let answers = report["checks"]
        .as_array()
        .expect("rows")
        .iter()
        .find(|row| row["check"] == "answers")
        .expect("the mode is told");
    assert!(
        answers["detail"]
            .as_str()
            .is_some_and(|text| text.contains("page cache"))
    );
    assert!(stderr(&output).contains("embedded default"));

    std::fs::write(dir.path().join("c"), "").expect("writable");
    let text = "[cache]\ndir = \"c\"\n[storage]\nurl = \"file://./s\"\n";
    std::fs::write(dir.path().join("glidefs.toml"), text).expect("writable");
    let output = glidefs(dir.path(), &["check"]);
    assert_eq!(code(&output), 1, "the cache folder is a file");
    assert!(stdout(&output).contains("FAILED"));
}

/// What `check --json` says of a configuration.
fn checks(dir: &Path, config: &str) -> Value {
    let output = glidefs(dir, &["check", "--json", "-c", config]);
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON alone");
    assert_eq!(code(&output), i32::from(report["ok"] != true));
    report
}

/// The rows that failed, but for the addresses: those of a default may be in use on this machine.
fn failed(report: &Value) -> Vec<&Value> {
    let rows = report["checks"].as_array().expect("rows").iter();
    let failed = rows.filter(|row| row["verdict"] == "failed");
    let is_address = |row: &&Value| {
        row["check"]
            .as_str()
            .is_some_and(|it| it.contains("address"))
    };
    failed.filter(|row| !is_address(row)).collect()
}

/// The first row of a check: its verdict and its text.
fn row<'a>(report: &'a Value, check: &str) -> (&'a str, &'a str) {
    let rows = report["checks"].as_array().expect("rows");
    let found = rows.iter().find(|row| row["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {check} in {report}"));
    let text = |key: &str| found[key].as_str().expect("text");
    (text("verdict"), text("detail"))
}

/// A configuration that nothing else on the machine is in the way of.
fn quiet_config(dir: &Path, more: &str) {
    let text = format!(
        "[cache]\ndir = \"c\"\n[storage]\nurl = \"file://./s\"\n{more}\n\
         [servers.nbd]\nunix_socket = \"sock\"\n[servers.api]\naddress = \"127.0.0.1:0\"\n"
    );
    std::fs::write(dir.join("t.toml"), text).expect("writable");
}

#[test]
fn check_begins_no_cache_and_no_keyring_and_says_what_the_first_start_will_fix() {
    let dir = folder();
    for (more, words) in [
        ("", "NOT encrypted"),
        ("encryption_password = \"secret\"", "an encrypted one"),
    ] {
        quiet_config(dir.path(), more);
        let report = checks(dir.path(), "t.toml");
        assert_eq!(report["ok"], true, "{report}");
        let (_, detail) = row(&report, "object store");
        assert!(
            detail.contains(words) && detail.contains("cannot be changed"),
            "{detail}"
        );
        let (_, detail) = row(&report, "cache log");
        assert!(detail.contains("first start makes one"), "{detail}");
        for made in ["c", "s/keyring", "sock"] {
            assert!(!dir.path().join(made).exists(), "{made} was made");
        }
    }
}

#[test]
fn check_says_what_is_wrong_with_the_cache_log_and_leaves_it_as_it_is() {
    let dir = folder();
    quiet_config(dir.path(), "");
    std::fs::create_dir(dir.path().join("c")).expect("a folder");
    let log = dir.path().join("c/log");
    let mut newer = vec![0_u8; 1 << 17];
    newer[..8].copy_from_slice(b"GLIDELOG");
    newer[8] = 99;
    for (content, words) in [
        (vec![7; 1 << 17], "not a glidefs cache log, or both copies"),
        (newer, "cache format 99"),
    ] {
        std::fs::write(&log, &content).expect("writable");
        let report = checks(dir.path(), "t.toml");
        let (verdict, detail) = row(&report, "cache log");
        assert_eq!(verdict, "failed");
        assert!(detail.contains(words), "{detail}");
        assert_eq!(std::fs::read(&log).expect("still there"), content);
    }
    let (how, mode) = (rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let held = rustix::fs::open(&log, how, mode).expect("still there");
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&held, lock).expect("nobody else has it");
    let report = checks(dir.path(), "t.toml");
    let (verdict, detail) = row(&report, "cache log");
    assert_eq!(verdict, "failed");
    assert!(detail.contains("in use by another process"), "{detail}");
}

#[test]
fn check_names_the_addresses_that_are_taken_and_takes_none() {
    let dir = folder();
    let taken = || std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (nbd, api) = (taken(), taken());
    let address = |listener: &std::net::TcpListener| listener.local_addr().expect("bound");
    let text = format!(
        "[cache]\ndir = \"c\"\n[storage]\nurl = \"file://./s\"\n\
         [servers.nbd]\naddress = \"{}\"\n[servers.api]\naddress = \"{}\"\n",
        address(&nbd),
        address(&api)
    );
    std::fs::write(dir.path().join("t.toml"), text).expect("writable");
    let report = checks(dir.path(), "t.toml");
    for (check, key) in [
        ("nbd address", "`servers.nbd.address`"),
        ("api address", "`servers.api.address`"),
    ] {
        let (verdict, detail) = row(&report, check);
        assert_eq!(verdict, "failed", "{check}: {detail}");
        assert!(detail.contains(key) && detail.contains("use"), "{detail}");
    }
    quiet_config(dir.path(), "");
    let socket = dir.path().join("sock");
    let server = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let report = checks(dir.path(), "t.toml");
    let (verdict, detail) = row(&report, "nbd address");
    assert_eq!(verdict, "failed", "{detail}");
    assert!(detail.contains("servers.nbd.unix_socket"), "{detail}");
    assert!(socket.exists(), "the server's socket is gone");
    server.set_nonblocking(true).expect("a socket");
    assert!(server.accept().is_err(), "nobody connected");
}

#[test]
fn completions_exist_for_the_usual_shells() {
    let dir = folder();
    for shell in ["bash", "zsh", "fish"] {
        let output = glidefs(dir.path(), &["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("glidefs"), "{shell}");
    }
    let output = glidefs(dir.path(), &["completions", "cmd.exe"]);
    assert_eq!(code(&output), 2);
}

#[test]
fn a_server_that_is_not_there_is_exit_2() {
    let dir = folder();
    // Bound and dropped again: nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let status = glidefs(dir.path(), &["status", "--json", "--api", &url]);
    assert_eq!(code(&status), 2);
    let answer: Value = serde_json::from_str(&stdout(&status)).expect("JSON");
    assert_eq!(answer["safe"], Value::Null);
    let drain = glidefs(dir.path(), &["export", "drain", "vm", "--api", &url]);
    assert_eq!(code(&drain), 2);
    assert!(stderr(&drain).contains("cannot reach"));
}

#[test]
fn status_tells_safe_from_unsafe_by_exit_code() {
    let dir = folder();
    let clean = Server::start(Vec::from([export("vm-a", 0)]), None);
    let output = glidefs(dir.path(), &["status", "--api", &clean.url]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).starts_with("Safe to stop"));

    let dirty = Server::start(Vec::from([export("vm-a", 0), export("vm-b", 8192)]), None);
    let output = glidefs(dir.path(), &["status", "--json", "--api", &dirty.url]);
    assert_eq!(code(&output), 1);
    let answer: Value = serde_json::from_str(&stdout(&output)).expect("JSON alone");
    assert_eq!(answer["safe"], false);
    assert_eq!(answer["dirty_exports"][0]["name"], "vm-b");
    assert_eq!(answer["dirty_exports"][0]["dirty_age_ms"], 1500);
    let output = glidefs(dir.path(), &["status", "--api", &dirty.url]);
    assert!(stdout(&output).contains("vm-b") && stdout(&output).contains("1.5 s"));
}

#[test]
fn a_token_is_taken_from_the_environment() {
    let dir = folder();
    let server = Server::start(Vec::new(), Some("sesame"));
    let status = |token: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glidefs"));
        command.args(["status", "--api", &server.url]);
        command.current_dir(dir.path()).env_clear();
        if let Some(token) = token {
            command.env("GLIDEFS_API_TOKEN", token);
        }
        code(&command.output().expect("the binary starts"))
    };
    assert_eq!(status(Some("sesame")), 0);
    assert_eq!(status(Some("open")), 2, "no answer is not an unsafe one");
    assert_eq!(status(None), 2);
}

#[test]
fn export_commands_speak_to_the_api() {
    let dir = folder();
    let server = Server::start(Vec::from([export("vm-a", 4096)]), None);
    let run = |arguments: &[&str]| {
        let mut words = Vec::from(["export"]);
        words.extend(arguments);
        words.extend(["--api", &server.url]);
        glidefs(dir.path(), &words)
    };
    let list = run(&["list"]);
    assert_eq!(code(&list), 0);
    assert!(stdout(&list).contains("vm-a") && stdout(&list).contains("4 KiB for 1.5 s"));
    let list: Value = serde_json::from_str(&stdout(&run(&["list", "--json"]))).expect("JSON");
    assert_eq!(list[0]["name"], "vm-a");

    let all: Value =
        serde_json::from_str(&stdout(&run(&["list", "--all", "--json"]))).expect("JSON");
    let names = all
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| &row["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["stored-a", "stored-b", "vm-a"]);

    let get = run(&["get", "vm-a"]);
    assert!(stdout(&get).contains("read-write"));
    assert_eq!(code(&run(&["get", "nobody"])), 1);

    assert_eq!(code(&run(&["drain", "vm-a"])), 0);
    let grown: Value =
        serde_json::from_str(&stdout(&run(&["grow", "vm-a", "2.5", "--json"]))).expect("JSON");
    assert_eq!(grown["size_bytes"], 5_u64 << 29);
    assert_eq!(code(&run(&["grow", "nobody", "2"])), 1);
    assert_eq!(code(&run(&["create", "vm-a", "2"])), 1);
    assert_eq!(code(&run(&["create", "vm-new", "2"])), 0);
    let words = [
        "promote",
        "vm-a",
        "--force",
        "--expected-epoch",
        "4",
        "--json",
    ];
    let promoted: Value = serde_json::from_str(&stdout(&run(&words))).expect("JSON");
    assert_eq!(promoted["epoch"], 5);
    let prepared = stdout(&run(&["prepare", "vm-a", "--warm-bytes", "8192"]));
    let warm = "4 KiB of 8 KiB: the cache takes no more";
    assert!(prepared.contains(warm), "{prepared}");
    assert!(!stdout(&run(&["prepare", "vm-a"])).contains("warm"));

    let refused = run(&["delete", "vm-a"]);
    assert_eq!(code(&refused), 1);
    let said = stderr(&refused);
    assert!(
        said.contains("a client is connected") && said.contains("4 KiB dirty"),
        "{said}"
    );
}

#[test]
fn snapshot_commands_speak_to_the_api() {
    let dir = folder();
    let server = Server::start(Vec::from([export("vm-a", 0)]), None);
    let run = |arguments: &[&str]| {
        let mut words = arguments.to_vec();
        words.extend(["--api", &server.url]);
        glidefs(dir.path(), &words)
    };
    let json = |arguments: &[&str]| -> Value {
        let output = run(&[arguments, &["--json"]].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).expect("JSON")
    };
    let list = stdout(&run(&["snapshot", "list", "vm-a"]));
    assert!(list.contains("s1") && list.contains("2026-11-20"), "{list}");
    assert_eq!(json(&["snapshot", "list", "vm-a"])[0]["name"], "s1");
    let dated = json(&["snapshot", "take", "vm-a"]);
    assert_eq!(dated["name"], "2026-11-26t07.49.04.123z");
    let words = ["snapshot", "take", "vm-a", "mine", "--request-id", "r"];
    assert_eq!(json(&words)["name"], "mine");
    let taken = stdout(&run(&words));
    assert!(taken.contains("vm-a@mine"), "{taken}");
    assert_eq!(json(&["snapshot", "get", "vm-a", "s1"])["cut_seq"], 7);
    assert_eq!(
        json(&["snapshot", "delete", "vm-a", "s1"])["export"],
        "vm-a"
    );
    for verb in ["get", "delete", "restore"] {
        assert_eq!(code(&run(&["snapshot", verb, "vm-a", "s2"])), 1, "{verb}");
    }
    assert_eq!(json(&["snapshot", "restore", "vm-a", "s1"])["name"], "vm-a");
    assert_eq!(
        json(&["snapshot", "prune", "vm-a", "--keep", "1"])[0]["name"],
        "s1"
    );
    let none = run(&["snapshot", "prune", "vm-a", "--older-than-s", "60"]);
    assert!(stdout(&none).contains("nothing to delete"));
    assert_eq!(
        code(&run(&["snapshot", "prune", "vm-a"])),
        2,
        "all of them?"
    );
}

#[test]
fn fork_commands_speak_to_the_api() {
    let dir = folder();
    let server = Server::start(Vec::from([export("vm-a", 0)]), None);
    let run = |arguments: &[&str]| {
        let mut words = arguments.to_vec();
        words.extend(["--api", &server.url]);
        glidefs(dir.path(), &words)
    };
    let json = |arguments: &[&str]| -> Value {
        let output = run(&[arguments, &["--json"]].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).expect("JSON")
    };
    let fork = json(&["fork", "vm-a@s1", "vm-b"]);
    assert_eq!(
        (&fork["name"], &fork["parent"], &fork["snapshot"]),
        (
            &Value::from("vm-b"),
            &Value::from("vm-a"),
            &Value::from("s1"),
        )
    );
    let tree = stdout(&run(&["export", "forks", "vm-a"]));
    let unreadable = "09".repeat(16);
    let why = "object `nbd/v/pins/09` is damaged";
    assert_eq!(
        tree,
        format!("vm-a\n├─ child\n└─ {unreadable}: cannot be read: {why}\n")
    );
    let tree = json(&["export", "forks", "vm-a"]);
    assert_eq!(tree["forks"][0]["name"], "child");
    assert_eq!(tree["forks"][0]["error"], Value::Null);
    assert_eq!(
        (&tree["forks"][1]["id"], &tree["forks"][1]["error"]),
        (&Value::from(unreadable), &Value::from(why))
    );
    let fork = stdout(&run(&["fork", "vm-a", "vm-b"]));
    assert!(
        fork.contains("write 7") && !fork.contains("not yet"),
        "{fork}"
    );
    let live = json(&["fork", "vm-a", "vm-b", "--live"]);
    assert_eq!(
        (live["name"].as_str(), live["published"].as_bool()),
        (Some("vm-b"), Some(false))
    );
}

#[test]
fn group_commands_speak_to_the_api() {
    let dir = folder();
    let server = Server::start(Vec::from([export("log", 0), export("data", 0)]), None);
    let run = |arguments: &[&str]| {
        let mut words = Vec::from(["group"]);
        words.extend(arguments);
        words.extend(["--api", &server.url]);
        glidefs(dir.path(), &words)
    };
    let json = |arguments: &[&str]| -> Value {
        let output = run(&[arguments, &["--json"]].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).expect("JSON")
    };
    let made = stdout(&run(&["make", "db", "log", "data"]));
    assert!(made.contains("formed") && made.contains("log"), "{made}");
    assert_eq!(
        json(&["make", "db", "log", "data"])["members"][1]["name"],
        "data"
    );
    assert_eq!(json(&["show", "db"])["name"], "db");
    assert_eq!(code(&run(&["show", "other"])), 1);
    let list = stdout(&run(&["list"]));
    assert!(list.contains("log, data"), "{list}");
    assert_eq!(json(&["list"])[0]["state"], "formed");
    let taken = stdout(&run(&["snapshot", "db", "mine"]));
    assert!(taken.contains("log@mine, data@mine"), "{taken}");
    assert_eq!(json(&["snapshot", "db"])["name"], "dated");
    assert_eq!(json(&["snapshot", "db", "--list"])[0]["name"], "s1");
    let forked = json(&["fork", "db@s1", "db2", "log=log2", "data=data2"]);
    assert_eq!(forked["members"][0]["name"], "data2");
    let restored = stdout(&run(&["restore", "db", "s1"]));
    assert!(restored.contains("db@s1"), "{restored}");
    assert_eq!(code(&run(&["restore", "db", "s2"])), 1);
    assert_eq!(code(&run(&["end", "db", "--request-id", "a b"])), 0);
    let refused = run(&["end", "used"]);
    assert_eq!(code(&refused), 1);
    let said = stderr(&refused);
    assert!(
        said.contains("export log: ") && said.contains("export data: "),
        "{said}"
    );
    for words in [
        &["make", "db", "log"][..],
        &["fork", "db", "db2", "log"],
        &["snapshot", "db", "mine", "--list"],
    ] {
        assert_eq!(code(&run(words)), 2, "{words:?}");
    }
}

#[test]
fn gc_waits_and_tells_what_it_gave_back() {
    let dir = folder();
    let server = Server::start(Vec::new(), None);
    let run = |arguments: &[&str]| {
        let mut words = Vec::from(["gc"]);
        words.extend(arguments);
        words.extend(["--api", &server.url]);
        glidefs(dir.path(), &words)
    };
    let done = stdout(&run(&["run", "vm-a"]));
    assert!(done.contains("DELETED") && done.contains("3 MiB"), "{done}");
    assert!(done.contains("vm-a: a note"), "{done}");
    let begun = run(&["run", "--no-wait", "--dry-run", "--json"]);
    let begun: Value = serde_json::from_str(&stdout(&begun)).expect("JSON");
    assert_eq!(
        (&begun["state"], &begun["dry_run"]),
        (&"running".into(), &true.into())
    );
    let id = "09".repeat(16);
    assert!(stdout(&run(&["run", "--no-wait"])).contains(&id));
    let shown: Value = serde_json::from_str(&stdout(&run(&["show", &id, "--json"]))).expect("JSON");
    assert_eq!(shown["exports"][0]["deleted_objects"], 3);
    assert!(stdout(&run(&["list"])).contains(&id));
    assert_eq!(code(&run(&["show", "08"])), 1);
}

#[test]
fn a_purge_is_asked_for_by_name_and_waited_for() {
    let dir = folder();
    let server = Server::start(Vec::new(), None);
    let run = |arguments: &[&str]| {
        let mut words = Vec::from(["export", "delete", "vm-a"]);
        words.extend(arguments);
        words.extend(["--api", &server.url]);
        glidefs(dir.path(), &words)
    };
    let begun = run(&["--purge", "--no-wait", "--request-id", "a b&c", "--json"]);
    let begun: Value = serde_json::from_str(&stdout(&begun)).expect("JSON");
    assert_eq!(begun["kind"], "purge");
    let at = begun["at"].as_str().expect("a text");
    for part in ["vm-a", "purge: true", "accept_loss: false", "\"a b&c\""] {
        assert!(at.contains(part), "{at}");
    }
    let done = stdout(&run(&["--purge"]));
    assert!(done.contains("DELETED") && done.contains("3 MiB"), "{done}");
    assert_eq!(code(&run(&["--no-wait"])), 2, "only a purge takes long");
}

#[test]
fn salvage_is_listed_shown_and_written_into_an_image_that_was_not_there() {
    let dir = folder();
    let server = Server::start(Vec::new(), None);
    let run = |arguments: &[&str]| {
        let mut words = Vec::from(["salvage"]);
        words.extend(arguments);
        words.extend(["--api", &server.url]);
        glidefs(dir.path(), &words)
    };
    let id = "05".repeat(16);
    let list = stdout(&run(&["list"]));
    assert!(list.contains(&id) && list.contains("8 to 9"), "{list}");
    let shown: Value = serde_json::from_str(&stdout(&run(&["show", &id, "--json"]))).expect("JSON");
    assert_eq!(shown["ranges"][1]["kind"], "zero", "{shown}");
    assert_eq!(code(&run(&["show", "06"])), 1);
    let words = ["export", &id, "--to", "vm-a.img"];
    let output = run(&words);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let image = std::fs::read(dir.path().join("vm-a.img")).expect("written");
    assert_eq!(image.len(), 1 << 20);
    assert!(image[512..1536].iter().all(|byte| *byte == 1));
    assert!(
        image[..512]
            .iter()
            .chain(&image[1536..])
            .all(|byte| *byte == 0)
    );
    let listed = std::fs::read(dir.path().join("vm-a.img.json")).expect("written");
    assert_eq!(
        serde_json::from_slice::<Value>(&listed).expect("JSON"),
        shown
    );
    assert_eq!(
        code(&run(&words)),
        2,
        "an image that is there is left alone"
    );
}

fn export(name: &str, dirty_bytes: u64) -> ExportDocument {
    ExportDocument {
        name: name.into(),
        volume: "1f".repeat(16),
        size_bytes: 1 << 30,
        role: "read-write".into(),
        epoch: 1,
        owner: "node-a".into(),
        parent: None,
        group: None,
        published: true,
        clients: 1,
        dirty_bytes,
        dirty_age_ms: if dirty_bytes > 0 { 1500 } else { 0 },
        published_seq: 1,
        published_at: String::new(),
        last_seq: 2,
        stored_bytes: 0,
        dead_bytes: 0,
        damage: None,
        warm: None,
        io: IoDocument::default(),
    }
}

/// The real API on a real socket, in front of a list instead of a shard. Ends with the test's
/// process.
struct Server {
    url: String,
    _stop: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(exports: Vec<ExportDocument>, token: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (control, requests) = Control::new();
        let (stop, stopping) = watch::channel(false);
        let token = token.map(|token| glidefs::config::Secret::new(token.into()));
        let router = Api::new(control, token, stopping).router();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = runtime.block_on(api::bind(any)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        runtime.spawn(api::serve(listener, router));
        runtime.spawn(shard(exports, requests));
        Self {
            url,
            _stop: stop,
            _runtime: runtime,
        }
    }
}

fn server(exports: &[ExportDocument]) -> ServerDocument {
    ServerDocument {
        version: "0".into(),
        cache_id: "0".into(),
        cache_bytes: 0,
        cache_used_bytes: 0,
        dirty_bytes: exports.iter().map(|export| export.dirty_bytes).sum(),
        exports: 0,
        clients: 0,
        stopped: None,
    }
}

fn meters_of(export: ExportDocument) -> ExportMeters {
    ExportMeters {
        export,
        published_unix_ms: 0,
        sync_lag_ms: 0,
        throttled_writes: 0,
        throttled_ms: 0,
        evicted_pages: 0,
        decayed_reads: 0,
        salvage_bytes: 0,
        store: Vec::new(),
        latency: LatenciesDocument::default(),
    }
}

/// An operation that runs when it is asked for, and is done when it is looked at.
fn operation(wanted: Option<&GcDocument>) -> OperationDocument {
    let running = wanted.is_some();
    let dry_run = wanted.is_some_and(|it| it.dry_run);
    let collected = CollectedDocument {
        export: "vm-a".to_owned(),
        repacked_bytes: 4096,
        flattened_bytes: 0,
        deleted_objects: 3,
        deleted_bytes: 3 << 20,
        held_objects: 1,
        held_bytes: 1 << 20,
        swept_objects: 0,
        swept_bytes: 0,
        stored_bytes: 5 << 20,
        live_bytes: 4 << 20,
        note: Some("a note".to_owned()),
    };
    OperationDocument {
        id: "09".repeat(16),
        kind: "gc".to_owned(),
        state: if running {
            OperationState::Running
        } else {
            OperationState::Done
        },
        dry_run,
        done: u64::from(!running),
        total: 1,
        at: String::new(),
        started_at: "2026-11-26T12:00:00.000Z".to_owned(),
        ended_at: None,
        error: None,
        exports: if running { Vec::new() } else { vec![collected] },
    }
}

fn salvaged() -> SalvageDocument {
    SalvageDocument {
        id: "05".repeat(16),
        export: "vm-a".to_owned(),
        size_bytes: 1 << 20,
        epoch: 3,
        first_seq: 8,
        last_seq: 9,
        dirty_bytes: 9216,
        damage: None,
    }
}

/// Forks of an export, by the ids behind one. The last cannot be read.
fn forked(of: &str, after: &str) -> Vec<ForkedDocument> {
    let fork = |name: &str, id: &str, direct: bool| ForkedDocument {
        name: name.to_owned(),
        id: id.repeat(16),
        direct,
        error: None,
    };
    let unreadable = ForkedDocument {
        error: Some("object `nbd/v/pins/09` is damaged".to_owned()),
        ..fork("", "09", false)
    };
    let mut forks = vec![
        fork("child", "07", true),
        fork("grandchild", "08", false),
        unreadable,
    ];
    forks.retain(|it| it.id.as_str() > after && of != "child");
    forks
}

/// Snapshots and forks: of every export there is one, `s1`.
fn answer_copies(request: Request) -> bool {
    let missing = || ControlError::new(ControlErrorKind::NotFound, "no snapshot of this name");
    match request {
        Request::Snapshots(name, reply) => reply.send(Ok(vec![snapshot(&name, "s1")])).is_ok(),
        Request::TakeSnapshot(name, wanted, reply) => {
            let dated = wanted
                .name
                .unwrap_or_else(|| "2026-11-26t07.49.04.123z".into());
            reply.send(Ok(snapshot(&name, &dated))).is_ok()
        }
        Request::Snapshot(name, which, reply) | Request::DeleteSnapshot(name, which, reply) => {
            let found = (which == "s1").then(|| snapshot(&name, &which));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::PruneSnapshots(name, how, reply) => {
            let gone = how.keep.map(|_| snapshot(&name, "s1"));
            reply.send(Ok(gone.into_iter().collect())).is_ok()
        }
        Request::Restore(name, wanted, reply) => {
            let found = (wanted.snapshot == "s1").then(|| export(&name, 0));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::Forks(name, after, reply) => reply.send(Ok(forked(&name, &after))).is_ok(),
        Request::Fork(name, wanted, reply) => {
            let fork = ForkDocument {
                name: wanted.name,
                parent: name,
                snapshot: wanted.snapshot,
                size_bytes: 1 << 30,
                cut_seq: 7,
                published: wanted.wait != Some(ForkWait::Local),
            };
            reply.send(Ok(fork)).is_ok()
        }
        Request::Salvage(reply) => reply.send(Ok(vec![salvaged()])).is_ok(),
        Request::SalvageRanges(id, from, reply) => {
            // Two pages.
            let range = |at, len, kind| SalvageRange { at, len, kind };
            let (ranges, next) = match from {
                0 => (vec![range(512, 1024, SalvageKind::Data)], Some(4096)),
                _ => (vec![range(4096, 8192, SalvageKind::Zero)], None),
            };
            let salvage = salvaged();
            let ranges = SalvageRanges {
                salvage,
                ranges,
                next,
            };
            let found = (id == salvaged().id).then_some(ranges);
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::SalvageData(_, at, len, reply) => {
            let byte = u8::try_from(at / 512).expect("small");
            let bytes = vec![byte; usize::try_from(len).expect("small")];
            reply.send(Ok(bytes.into())).is_ok()
        }
        other => answer_operations(other),
    }
}

fn answer_operations(request: Request) -> bool {
    let missing = || ControlError::new(ControlErrorKind::NotFound, "no operation of this id");
    match request {
        Request::Gc(wanted, reply) => reply.send(Ok(operation(Some(&wanted)))).is_ok(),
        Request::Operations(reply) => reply.send(Ok(vec![operation(None)])).is_ok(),
        Request::Operation(id, reply) => {
            let found = (id == operation(None).id).then(|| operation(None));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::Group(request) => answer_groups(request),
        other => panic!("{other:?} is answered elsewhere"),
    }
}

fn group(name: &str, members: &[&str]) -> GroupDocument {
    GroupDocument {
        id: "0a".repeat(16),
        name: name.to_owned(),
        state: "formed".to_owned(),
        members: members.iter().map(|member| export(member, 0)).collect(),
    }
}

/// One is there, `db`, of which no snapshot but `s1` can be restored.
fn answer_groups(request: GroupRequest) -> bool {
    let taken = |name: &str| GroupSnapshotDocument {
        group: "db".to_owned(),
        name: name.to_owned(),
        id: "06".repeat(16),
        taken_at: "2026-11-20T00:00:00.000Z".to_owned(),
        members: vec![snapshot("log", name), snapshot("data", name)],
    };
    match request {
        GroupRequest::List(after, reply) => {
            let mut all = vec![group("db", &["log", "data"])];
            all.retain(|it| it.id > after);
            reply.send(Ok(all)).is_ok()
        }
        GroupRequest::Get(which, reply) => {
            let missing = || ControlError::new(ControlErrorKind::NotFound, "no such group");
            let found = (which == "db").then(|| group("db", &["log", "data"]));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        GroupRequest::Form(_, reply) => reply.send(Ok(operation(None))).is_ok(),
        GroupRequest::End(which, _, reply) => {
            let mut refusal = ControlError::new(ControlErrorKind::Conflict, "in use");
            refusal.members = group(&which, &["log", "data"]).members;
            let answer = match which.as_str() {
                "used" => Err(refusal),
                _ => Ok(operation(None)),
            };
            reply.send(answer).is_ok()
        }
        GroupRequest::Fork(_, wanted, reply) => {
            let members: Vec<&str> = wanted.members.values().map(String::as_str).collect();
            reply.send(Ok(group(&wanted.name, &members))).is_ok()
        }
        GroupRequest::Snapshots(_, reply) => reply.send(Ok(vec![taken("s1")])).is_ok(),
        GroupRequest::TakeSnapshot(_, wanted, reply) => {
            let name = wanted.name.unwrap_or_else(|| "dated".to_owned());
            reply.send(Ok(taken(&name))).is_ok()
        }
        GroupRequest::Restore(_, wanted, reply) => {
            let done = operation(None);
            let failed = OperationDocument {
                state: OperationState::Failed,
                error: Some("no such snapshot".to_owned()),
                ..operation(None)
            };
            let answer = if wanted.snapshot == "s1" {
                done
            } else {
                failed
            };
            reply.send(Ok(answer)).is_ok()
        }
    }
}

fn snapshot(export: &str, name: &str) -> SnapshotDocument {
    SnapshotDocument {
        export: export.to_owned(),
        name: name.to_owned(),
        id: "06".repeat(16),
        size_bytes: 1 << 30,
        cut_seq: 7,
        taken_at: "2026-11-20T00:00:00.000Z".to_owned(),
    }
}

/// As warm as was asked for; else nobody asked.
fn prepared(name: &str, wanted: &PrepareDocument) -> ExportDocument {
    ExportDocument {
        role: "prepared".to_owned(),
        warm: wanted.warm_bytes.map(|bytes_max| WarmDocument {
            state: WarmState::Stopped,
            bytes_max,
            bytes: bytes_max / 2,
            note: Some("the cache takes no more".to_owned()),
        }),
        ..export(name, 0)
    }
}

async fn shard(exports: Vec<ExportDocument>, mut requests: Receiver<Request>) {
    let find = |name: &str| exports.iter().find(|export| export.name == name).cloned();
    let missing = || ControlError::new(ControlErrorKind::NotFound, "no export of this name");
    while let Some(request) = requests.recv().await {
        let _sent = match request {
            Request::List(reply) => reply.send(Ok(exports.clone())).is_ok(),
            // Three pages of one.
            Request::ListStored(after, reply) => {
                let all = ["stored-a", "stored-b"].map(|name| export(name, 0));
                let mut all = [&exports[..], &all].concat();
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all.retain(|export| export.name > after);
                all.truncate(1);
                reply.send(Ok(all)).is_ok()
            }
            Request::Get(name, reply) | Request::Drain(name, reply) => {
                reply.send(find(&name).ok_or_else(missing)).is_ok()
            }
            Request::Put(name, wanted, reply) => {
                let mut made = export(&name, 0);
                made.size_bytes = glidefs::config::bytes_from_gib(wanted.size_gb);
                reply.send(Ok(made)).is_ok()
            }
            Request::Delete(name, _, reply) => {
                let mut refusal =
                    ControlError::new(ControlErrorKind::Conflict, "a client is connected");
                refusal.export = find(&name).map(Box::new);
                reply.send(Err(refusal)).is_ok()
            }
            Request::Purge(name, how, reply) => {
                let mut purge = operation(Some(&GcDocument::default()));
                "purge".clone_into(&mut purge.kind);
                (purge.total, purge.at) = (0, format!("{name} {how:?}"));
                reply.send(Ok(purge)).is_ok()
            }
            Request::Prepare(name, wanted, reply) => {
                reply.send(Ok(prepared(&name, &wanted))).is_ok()
            }
            Request::Promote(name, wanted, reply) => {
                let mut promoted = export(&name, 0);
                promoted.epoch = wanted.expected_epoch.map_or(1, |epoch| epoch + 1);
                reply.send(Ok(promoted)).is_ok()
            }
            Request::AcceptLoss(name, wanted, reply) => {
                let mut left = export(&name, 0);
                left.last_seq = wanted.kept_seq;
                reply.send(Ok(left)).is_ok()
            }
            Request::DrainAll(reply) => reply.send(Ok(exports.clone())).is_ok(),
            Request::Server(reply) => reply.send(Ok(server(&exports))).is_ok(),
            Request::Meters(reply) => {
                let meters = MetersDocument {
                    at_ms: 1,
                    server: server(&exports),
                    cache: CacheDocument::default(),
                    store: StoreUse::default(),
                    exports: exports.iter().cloned().map(meters_of).collect(),
                    exports_left_out: 0,
                };
                reply.send(Ok(meters)).is_ok()
            }
            copies => answer_copies(copies),
        };
    }
}

const KEYED: &str = "[cache]\ndir = \"cache\"\n[storage]\nurl = \"file://./store\"\n";

/// Writes a secret that nobody else can read.
fn secret(dir: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::write(&path, text).expect("writable");
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, mode).expect("ours");
}

fn keyed(dir: &Path, config: &str, password_file: &str) {
    let text = format!("{KEYED}encryption_password_file = \"{password_file}\"\n");
    std::fs::write(dir.join(config), text).expect("writable");
}

fn slots(output: &Output) -> Vec<Value> {
    assert_eq!(code(output), 0, "{}", stderr(output));
    let document: Value = serde_json::from_str(&stdout(output)).expect("JSON alone");
    document["slots"].as_array().expect("slots").clone()
}

#[test]
fn a_password_is_rotated_by_the_configuration_alone() {
    const OLD: &str = "old-and-known-7c1d";
    const NEW: &str = "new-and-hidden-91fe";
    let dir = folder();
    let dir = dir.path();
    secret(dir, "old", &format!("{OLD}\n"));
    secret(dir, "new", NEW);
    keyed(dir, "old.toml", "old");
    keyed(dir, "new.toml", "new");
    let early = glidefs(dir, &["key", "list", "-c", "old.toml"]);
    assert_eq!(code(&early), 1);
    assert!(stderr(&early).contains("never begun"), "{}", stderr(&early));
    begin(dir, "old.toml");

    let mut said = Vec::new();
    let mut key = |arguments: &[&str]| {
        let output = glidefs(dir, &[&["key"], arguments].concat());
        said.push(stdout(&output) + &stderr(&output));
        output
    };
    let listed = slots(&key(&["list", "-c", "old.toml", "--json"]));
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["in_use"], true);
    assert!(listed[0]["added_unix_ms"].is_u64());
    let none = key(&["rotate", "-c", "old.toml"]);
    assert_eq!(code(&none), 2, "no terminal, no variable, no file");

    let rotated = key(&["rotate", "-c", "old.toml", "--new-password-file", "new"]);
    assert_eq!(code(&rotated), 0, "{}", stderr(&rotated));
    assert!(stdout(&rotated).contains("glidefs key rotate --finish"));
    for config in ["old.toml", "new.toml"] {
        assert_eq!(code(&glidefs(dir, &["check", "-c", config])), 0, "{config}");
    }
    let early = key(&["rotate", "-c", "old.toml", "--finish"]);
    assert_eq!(code(&early), 1);
    assert!(
        stderr(&early).contains("not the newest"),
        "{}",
        stderr(&early)
    );
    let finished = slots(&key(&["rotate", "-c", "new.toml", "--finish", "--json"]));
    assert_eq!(finished.len(), 1);
    let id = finished[0]["id"].as_str().expect("an id").to_owned();
    let last = key(&["remove", &id, "-c", "new.toml", "--in-use"]);
    assert_eq!(code(&last), 1);
    assert!(stderr(&last).contains("the last one"));

    let refused = glidefs(dir, &["check", "-c", "old.toml"]);
    assert_eq!(code(&refused), 1);
    assert!(
        stdout(&refused).contains("removed by `glidefs key`"),
        "{}",
        stdout(&refused)
    );
    assert_eq!(code(&glidefs(dir, &["check", "-c", "new.toml"])), 0);
    let shown = slots(&key(&["list", "-c", "old.toml", "--json"]));
    assert_eq!(
        shown[0]["in_use"], false,
        "looking needs no password that fits"
    );
    // All that a server says, at its most talkative.
    let log = std::fs::read_to_string(dir.join("begin.log")).expect("written");
    assert!(log.len() > 100, "it says something: {log}");
    for text in said.into_iter().chain([log]) {
        assert!(!text.contains(OLD) && !text.contains(NEW), "{text}");
    }
}

#[test]
fn a_rotation_leaves_an_escrow_and_says_so() {
    let dir = folder();
    let dir = dir.path();
    for (file, password) in [("old", "old-1"), ("new", "new-2"), ("escrow", "escrow-3")] {
        secret(dir, file, password);
    }
    keyed(dir, "old.toml", "old");
    keyed(dir, "new.toml", "new");
    begin(dir, "old.toml");
    let key = |arguments: &[&str]| glidefs(dir, &[&["key"], arguments].concat());
    let rotate = |config, password| key(&["rotate", "-c", config, "--new-password-file", password]);

    // It would change nothing, and must not say that two passwords open now.
    let same = rotate("old.toml", "old");
    assert_eq!(code(&same), 1, "{}", stdout(&same));
    assert!(!stdout(&same).contains("Both passwords"));
    assert!(
        stderr(&same).contains("choose another"),
        "{}",
        stderr(&same)
    );

    assert_eq!(code(&rotate("old.toml", "new")), 0);
    // Younger than the rotation, and none of it.
    let added = ["add", "-c", "old.toml", "--new-password-file", "escrow"];
    assert_eq!(code(&key(&added)), 0);
    let listed = key(&["list", "-c", "old.toml"]);
    assert!(stdout(&listed).contains("TO BE REPLACED BY"));
    let finished = key(&["rotate", "-c", "new.toml", "--finish"]);
    assert_eq!(code(&finished), 0, "{}", stderr(&finished));
    let text = stdout(&finished);
    assert_eq!(text.matches("Removed slot ").count(), 1, "{text}");
    assert!(text.contains("none of this rotation's: 1"), "{text}");

    let again = key(&["rotate", "-c", "new.toml", "--finish", "--json"]);
    let stays = slots(&again);
    assert_eq!(stays.len(), 2);
    assert!(stays[0]["line"] != stays[0]["id"], "it replaced another");
    assert_eq!(stays[1]["line"], stays[1]["id"], "a line of its own");
    let document: Value = serde_json::from_str(&stdout(&again)).expect("JSON alone");
    assert_eq!(document["removed"], serde_json::json!([]));
    assert_eq!(document["old_keyring_noted"], true);
}

/// As if somebody had restored a backup of the store's folder.
#[test]
fn an_older_keyring_that_was_put_back_goes_on_by_the_id_that_the_error_names() {
    let dir = folder();
    let dir = dir.path();
    secret(dir, "old", "old-1");
    secret(dir, "new", "new-2");
    keyed(dir, "old.toml", "old");
    begin(dir, "old.toml");
    let key = |arguments: &[&str]| glidefs(dir, &[&["key"], arguments].concat());
    let keyring = dir.join("store/keyring");
    let older = std::fs::read(&keyring).expect("begun");
    let rotated = key(&["rotate", "-c", "old.toml", "--new-password-file", "new"]);
    assert_eq!(code(&rotated), 0, "{}", stderr(&rotated));
    let lost = std::fs::read(&keyring).expect("rotated");
    std::fs::write(&keyring, &older).expect("writable");

    let refused = key(&["list", "-c", "old.toml"]);
    assert_eq!(code(&refused), 1);
    let said = stderr(&refused);
    let mut words = said.split('`');
    let version = words.find_map(|word| word.strip_prefix("glidefs key accept-older "));
    let version = version.expect("it is named");
    let other = key(&["accept-older", "12ab", "-c", "old.toml"]);
    assert_eq!(code(&other), 1, "{}", stdout(&other));
    let accepted = key(&["accept-older", version, "-c", "old.toml"]);
    assert_eq!(code(&accepted), 0, "{}", stderr(&accepted));
    assert!(stdout(&accepted).contains("glidefs key rotate"));
    assert_eq!(slots(&key(&["list", "-c", "old.toml", "--json"])).len(), 1);
    let again = key(&["accept-older", version, "-c", "old.toml", "--json"]);
    assert_eq!(slots(&again).len(), 1);
    for old in [older, lost] {
        std::fs::write(&keyring, old).expect("writable");
        let refused = key(&["list", "-c", "old.toml"]);
        assert!(stderr(&refused).contains("is an older version"));
    }
}

/// A server that starts and stops, so that the prefix is begun.
fn begin(dir: &Path, config: &str) {
    let text = std::fs::read_to_string(dir.join(config)).expect("written");
    let socket =
        "[servers.nbd]\nunix_socket = \"nbd.sock\"\n[servers.api]\naddress = \"127.0.0.1:0\"\n";
    std::fs::write(dir.join("begin.toml"), format!("{text}{socket}")).expect("writable");
    let mut log = std::fs::OpenOptions::new();
    let log = log.create(true).append(true).open(dir.join("begin.log"));
    let log = log.expect("writable");
    let mut server = Command::new(env!("CARGO_BIN_EXE_glidefs"))
        .args(["run", "-c", "begin.toml"])
        .current_dir(dir)
        .env_clear()
        .env("RUST_LOG", "trace")
        .stdout(log.try_clone().expect("a file"))
        .stderr(log)
        .spawn()
        .expect("the binary starts");
    let keyring = dir.join("store/keyring");
    for _ in 0..3_000 {
        if keyring.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).expect("it runs");
    // Some kernels pipe dumps into a program whatever the limit: it is not dumpable either.
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).expect("ours");
    let ended = server.wait().expect("ours");
    assert!(ended.signal() == Some(6) && !ended.core_dumped(), "{ended}");
    assert!(keyring.exists(), "the server began the prefix");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "a core dump would hold keys");
}
