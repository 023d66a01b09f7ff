//! `glidefs run` as a process: start, serve, signals, restart.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start the real process and move real folders"
)]

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

const PAGE: usize = 4096;
/// Starts that are hung up on at different moments of their first millisecond.
const EARLY_STARTS: u32 = 20;

#[test]
fn what_was_written_is_drained_by_sigterm_and_there_after_a_restart() {
    let dir = folder(60_000);
    let server = Server::start(dir.path());
    let mut client = Nbd::connect(dir.path(), "vm-a");
    assert_eq!(client.size, 1 << 30);
    client.write(8192, &[7; PAGE]);
    client.flush();
    assert_eq!(server.status(), 1, "the store does not have it yet");
    assert_eq!(server.stop(&[Signal::TERM]), Some(0));

    // The store alone holds it.
    std::fs::remove_dir_all(dir.path().join("cache")).expect("a cache");
    let server = Server::start(dir.path());
    // Another cache, and so another owner: the old one gave the volume up when it was stopped.
    let mut client = Nbd::connect(dir.path(), "vm-a");
    assert!(!client.is_read_only, "it is owned here");
    assert_eq!(client.read(8192), [7; PAGE]);
    assert_eq!(client.read(0), [0; PAGE]);
    drop(client);
    assert_eq!(server.status(), 0);
    assert_eq!(server.stop(&[Signal::INT]), Some(0));
}

#[test]
fn what_sigterm_drained_is_read_and_written_on_another_node_at_once() {
    let (a, b) = (folder(60_000), folder(60_000));
    let config = std::fs::read_to_string(a.path().join("glidefs.toml")).expect("a configuration");
    std::fs::write(b.path().join("glidefs.toml"), config).expect("writable");
    let node_a = Server::start(a.path());
    let mut client = Nbd::connect(a.path(), "vm-m");
    client.write(4096, &[3; PAGE]);
    // Neither flushed nor disconnected: the signal sends the client away.
    assert_eq!(node_a.stop(&[Signal::TERM]), Some(0));
    let node_b = Server::start(b.path());
    let mut client = Nbd::connect(b.path(), "vm-m");
    assert!(!client.is_read_only);
    assert_eq!(client.read(4096), [3; PAGE]);
    client.write(8192, &[4; PAGE]);
    drop(client);
    assert_eq!(node_b.stop(&[Signal::TERM]), Some(0));
    // And back, where the cache was warm and has become stale.
    let _node_a = Server::start(a.path());
    let mut client = Nbd::connect(a.path(), "vm-m");
    assert!(!client.is_read_only);
    assert_eq!(client.read(4096), [3; PAGE]);
    assert_eq!(client.read(8192), [4; PAGE]);
}

#[test]
fn a_second_signal_stops_at_once_and_loses_nothing_that_was_answered() {
    let dir = folder(60_000);
    let server = Server::start(dir.path());
    let mut client = Nbd::connect(dir.path(), "vm-b");
    client.write(0, &[9; PAGE]);
    // No store to drain to: without the second signal this would go on for ever.
    let (store, away) = (dir.path().join("store"), dir.path().join("away"));
    std::fs::rename(&store, &away).expect("a store");
    assert_eq!(server.stop(&[Signal::TERM, Signal::TERM]), Some(143));

    std::fs::rename(&away, &store).expect("back again");
    let server = Server::start(dir.path());
    let mut client = Nbd::connect(dir.path(), "vm-b");
    assert_eq!(client.read(0), [9; PAGE]);
    assert_eq!(server.stop(&[Signal::TERM]), Some(0));
}

#[test]
fn a_kill_loses_nothing_that_was_answered_and_a_start_right_behind_it_succeeds() {
    let dir = folder(60_000);
    for round in 1..=5_u8 {
        let server = Server::start(dir.path());
        let mut client = Nbd::connect(dir.path(), "vm-c");
        for before in 1..round {
            assert_eq!(client.read(u64::from(before) * 4096), [before; PAGE]);
        }
        client.write(u64::from(round) * 4096, &[round; PAGE]);
        // SIGKILL; the kernel may still hold the old cache when the next one starts.
        drop(server);
    }
}

#[test]
fn a_port_that_is_taken_names_its_key_and_exits_2() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address));
    let (_listener, address) = taken.expect("bound");
    for (key, section) in [
        ("servers.api.address", "[servers.api]"),
        ("servers.nbd.address", "[servers.nbd]"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let mut text = String::from("[cache]\ndir = \"c\"\n[storage]\nurl = \"file://./s\"\n");
        if section == "[servers.nbd]" {
            text.push_str("[servers.api]\naddress = \"127.0.0.1:0\"\n");
        } else {
            text.push_str("[servers.nbd]\nunix_socket = \"sock\"\n");
        }
        text.push_str(&format!("{section}\naddress = \"{address}\"\n"));
        std::fs::write(dir.path().join("glidefs.toml"), text).expect("writable");
        let output = command(dir.path(), &["run"]).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{key}: {said}");
        assert!(
            said.contains(&format!("`{key}`")) && said.contains("use"),
            "{said}"
        );
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named_with_its_key() {
    let dir = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink("/not/mounted", dir.path().join("ssd")).expect("linked");
    for (cache, store, key) in [("ssd/c", "s", "cache.dir"), ("c", "ssd/s", "storage.url")] {
        let text = format!(
            "[cache]\ndir = \"{cache}\"\n[storage]\nurl = \"file://./{store}\"\n\
             [servers.api]\naddress = \"127.0.0.1:0\"\n\
             [servers.nbd]\nunix_socket = \"sock\"\n"
        );
        std::fs::write(dir.path().join("glidefs.toml"), text).expect("writable");
        let output = command(dir.path(), &["run"]).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{key}: {said}");
        assert!(said.contains(&format!("`{key}`")), "{said}");
    }
}

#[test]
fn a_service_manager_is_told_when_exports_are_served() {
    let dir = folder(1000);
    let manager = UnixDatagram::bind(dir.path().join("notify")).expect("bound");
    let server = Server::start(dir.path());
    let mut text = [0; 64];
    let len = manager.recv(&mut text).expect("told");
    assert!(text[..len].starts_with(b"READY=1\n"));
    assert_eq!(server.stop(&[Signal::TERM]), Some(0));
    let len = manager.recv(&mut text).expect("told again");
    assert!(text[..len].starts_with(b"STOPPING=1\n"));
}

/// As service managers and terminals that close send it.
#[test]
fn sighup_ends_nothing_and_says_what_a_restart_would_change() {
    let dir = folder(60_000);
    let manager = UnixDatagram::bind(dir.path().join("notify")).expect("bound");
    let told = |words: &[u8]| {
        let mut text = [0; 64];
        let len = manager.recv(&mut text).expect("told");
        assert!(text[..len].starts_with(words), "{:?}", &text[..len]);
    };
    let mut server = Server::start(dir.path());
    told(b"READY=1\n");
    let mut client = Nbd::connect(dir.path(), "vm-h");
    client.write(0, &[5; PAGE]);
    let path = dir.path().join("glidefs.toml");
    let config = std::fs::read_to_string(&path).expect("a configuration");
    let broken = config.replace("sync_delay_ms", "sync_delay_hours");
    let changed = config
        .replace("sync_delay_ms = 60000", "sync_delay_ms = 5\nshared = true")
        .replace("${PASSWORD}", "another battery");
    let keys = "storage.encryption_password, servers.nbd.sync_delay_ms, servers.nbd.shared";
    for (text, level, says) in [
        (Some(&config), "INFO", "this server runs with"),
        (Some(&changed), "INFO", keys),
        (Some(&broken), "WARN", "`servers.nbd.sync_delay_hours`"),
        // A start would use the embedded default.
        (None, "INFO", "cache.dir"),
        (Some(&config), "INFO", "this server runs with"),
    ] {
        match text {
            Some(text) => std::fs::write(&path, text).expect("writable"),
            None => std::fs::remove_file(&path).expect("removed"),
        }
        let line = server.answer(Signal::HUP, "SIGHUP");
        assert!(line.contains(level) && line.contains(says), "{line}");
        let restart = line.contains("needs a restart") || level == "WARN";
        assert!(restart && !line.contains("battery"), "{line}");
        told(b"RELOADING=1\nMONOTONIC_USEC=");
        told(b"READY=1\n");
        assert_eq!(client.read(0), [5; PAGE], "it serves on");
    }
    assert_eq!(server.stop(&[Signal::TERM]), Some(0));
    told(b"STOPPING=1\n");
}

/// Whoever asks for a reload does not know how far the start is. The configuration is a pipe here: a start waits in it
/// until the test gives it one, so that no machine is too fast or too slow for what is asked.
#[test]
fn sighup_ends_no_start_however_early_it_comes() {
    let dir = folder(60_000);
    let config = std::fs::read(dir.path().join("glidefs.toml")).expect("a configuration");
    let path = dir.path().join("held.toml");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).expect("a pipe");
    for _ in 0..EARLY_STARTS {
        let mut child = spawn(dir.path(), &["run", "-c", "held.toml"]);
        let pipe = hang_up_until_it_reads(&mut child, &path);
        let sent = rustix::io::write(&pipe, b"nonsense\n").expect("it reads");
        assert_eq!(sent, b"nonsense\n".len());
        drop(pipe);
        let output = child.wait_with_output().expect("a child");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{:?}: {said}", output.status);
    }
    let mut child = spawn(dir.path(), &["run", "-c", "held.toml"]);
    let pipe = hang_up_until_it_reads(&mut child, &path);
    let sent = rustix::io::write(&pipe, &config).expect("it reads");
    assert_eq!(sent, config.len());
    // The answer to what was sent looks again: it must not wait in the pipe.
    std::fs::rename(dir.path().join("glidefs.toml"), &path).expect("renamed");
    drop(pipe);
    let mut server = Server::of(dir.path(), child);
    let line = server.said("SIGHUP");
    assert!(line.contains("this server runs with"), "{line}");
    assert_eq!(server.stop(&[Signal::TERM]), Some(0));
}

/// From the first moment that the process minds them, and again when it is known to wait for what it reads at `path`.
fn hang_up_until_it_reads(child: &mut Child, path: &Path) -> OwnedFd {
    let pid = Pid::from_child(child);
    let pipe = loop {
        if minds_hangups(child) {
            kill_process(pid, Signal::HUP).expect("it runs");
        }
        let ended = child.try_wait().expect("a child");
        assert!(ended.is_none(), "it ended before it read: {ended:?}");
        // No such device: nobody has opened it to read.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(pipe) => break pipe,
            Err(Errno::NXIO) => std::thread::yield_now(),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    };
    for _ in 0..3 {
        kill_process(pid, Signal::HUP).expect("it is there, if only as what it left");
    }
    pipe
}

/// Whether SIGHUP is caught or ignored by now, as the kernel tells. Before `main` nobody can have said so.
fn minds_hangups(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    let status = status.expect("the kernel knows a child that was not waited for");
    let masks = status.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigCgt:");
        mask.or_else(|| line.strip_prefix("SigIgn:"))
    });
    let mut masks = masks.map(|mask| u64::from_str_radix(mask.trim(), 16).expect("a mask"));
    // Signals are counted from 1, and it is the first.
    masks.any(|mask| mask & 1 == 1)
}

#[test]
fn a_data_key_is_renewed_by_the_server_that_has_the_export_open_or_without_one() {
    let dir = folder(60_000);
    let path = dir.path();
    let server = Server::start(path);
    let mut client = Nbd::connect(path, "vm-k");
    client.write(0, &[1; PAGE]);
    // The port that it got.
    let config = std::fs::read_to_string(path.join("glidefs.toml")).expect("a configuration");
    let address = server.api.strip_prefix("http://").expect("a URL");
    let config = config.replace("127.0.0.1:0", address);
    std::fs::write(path.join("here.toml"), config).expect("writable");

    let opened = renew_data(path, &["vm-k", "-c", "here.toml", "--request-id", "r"]);
    let opened = opened.expect("renewed");
    assert_eq!(
        (&opened["keys"], &opened["from_epoch"]),
        (&2.into(), &1.into())
    );
    let again = renew_data(path, &["vm-k", "-c", "here.toml", "--request-id", "r"]);
    assert_eq!(again.expect("there"), opened);
    client.write(8192, &[2; PAGE]);
    assert_eq!(client.read(0), [1; PAGE], "nobody was sent away");
    // Where no server answers, who has it is named.
    let elsewhere = renew_data(path, &["vm-k", "-c", "glidefs.toml"]);
    let (code, said) = elsewhere.expect_err("it is open");
    assert_eq!(code, 1, "{said}");
    for words in ["is owned by host", "run this on that node"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(server.stop(&[Signal::TERM]), Some(0));

    let closed = renew_data(path, &["vm-k", "-c", "glidefs.toml"]).expect("renewed");
    assert_eq!(
        (&closed["keys"], &closed["from_epoch"]),
        (&3.into(), &2.into())
    );
    let there = renew_data(path, &["vm-k", "-c", "glidefs.toml", "--request-id", "r"]);
    assert_eq!(there.expect("there")["id"], opened["id"]);
    let (code, said) = renew_data(path, &["vm-x"]).expect_err("nothing of this name");
    assert!(
        code == 1 && said.contains("there is no volume `vm-x`"),
        "{said}"
    );
    // The store alone holds it.
    std::fs::remove_dir_all(path.join("cache")).expect("a cache");
    let _server = Server::start(path);
    let mut client = Nbd::connect(path, "vm-k");
    assert_eq!((client.read(0), client.read(8192)), ([1; PAGE], [2; PAGE]));
}

/// The document, or the exit code and what was said.
fn renew_data(dir: &Path, arguments: &[&str]) -> Result<serde_json::Value, (i32, String)> {
    let arguments = [&["key", "renew-data", "--json"], arguments].concat();
    let output = command(dir, &arguments).output().expect("it starts");
    let code = output.status.code().expect("it exits by itself");
    if code != 0 {
        return Err((code, String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON alone"))
}

/// A folder with a configuration of its own in it.
fn folder(sync_delay_ms: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let text = format!(
        "[cache]\ndir = \"cache\"\ndisk_size_gb = 0.25\n\
         [storage]\nurl = \"file://{}/store\"\nencryption_password = \"${{PASSWORD}}\"\n\
         [servers.nbd]\nunix_socket = \"sock\"\nauto_create_size_gb = 1\n\
         sync_delay_ms = {sync_delay_ms}\n\
         [servers.api]\naddress = \"127.0.0.1:0\"\n",
        dir.path().display()
    );
    std::fs::write(dir.path().join("glidefs.toml"), text).expect("writable");
    dir
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glidefs"));
    command
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .env("PASSWORD", "correct horse")
        .env("NOTIFY_SOCKET", dir.join("notify"));
    command
}

fn spawn(dir: &Path, arguments: &[&str]) -> Child {
    let mut command = command(dir, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it starts")
}

/// A running server; killed if a test fails.
struct Server<'a> {
    dir: &'a Path,
    child: Child,
    api: String,
    log: Lines<BufReader<ChildStderr>>,
}

impl<'a> Server<'a> {
    /// Returns once it has said how to connect.
    fn start(dir: &'a Path) -> Self {
        Self::of(dir, spawn(dir, &["run"]))
    }

    /// The same with a process that was started.
    fn of(dir: &'a Path, mut child: Child) -> Self {
        let stdout = child.stdout.take().expect("piped");
        let address = BufReader::new(stdout).lines().find_map(|line| {
            let line = line.expect("text");
            let url = line.trim().strip_prefix("API")?.trim();
            Some(url.strip_suffix("/api/exports")?.to_owned())
        });
        let mut stderr = child.stderr.take().expect("piped");
        let Some(api) = address else {
            let mut said = String::new();
            stderr.read_to_string(&mut said).expect("text");
            panic!("it did not start: {said}");
        };
        Self {
            dir,
            child,
            api,
            log: BufReader::new(stderr).lines(),
        }
    }

    /// Sends a signal, and waits for the line that answers it.
    fn answer(&mut self, signal: Signal, words: &str) -> String {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
        self.said(words)
    }

    /// The next line of the log that has the words.
    fn said(&mut self, words: &str) -> String {
        let mut lines = self.log.by_ref().map(|line| line.expect("text"));
        let found = lines.find(|line| line.contains(words));
        found.expect("it ended without a word of it")
    }

    fn glidefs(&self, arguments: &[&str]) -> ExitStatus {
        let mut command = command(self.dir, arguments);
        command.stdout(Stdio::null());
        command.status().expect("it starts")
    }

    fn status(&self) -> i32 {
        let status = self.glidefs(&["status", "--api", &self.api]);
        status.code().expect("it exits by itself")
    }

    /// Sends the signals one after another, each once the one before has been heard.
    fn stop(mut self, signals: &[Signal]) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        for signal in signals {
            kill_process(pid, *signal).expect("it runs");
            let heard = self.log.find(|line| {
                let line = line.as_ref().expect("text");
                line.contains("draining to the store") || line.contains("stopping at once")
            });
            assert!(heard.is_some(), "the signal was not heard");
        }
        // Read on, so that it never waits for room in the pipe.
        self.log.by_ref().for_each(drop);
        self.child.wait().expect("a child").code()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // Does nothing to one that has ended.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// As little of NBD as the tests need.
struct Nbd {
    stream: UnixStream,
    size: u64,
    is_read_only: bool,
    cookie: u64,
}

impl Nbd {
    fn connect(dir: &Path, name: &str) -> Self {
        let mut stream = UnixStream::connect(dir.join("sock")).expect("it listens");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME.
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend(u32::try_from(name.len()).expect("short").to_be_bytes());
        hello.extend(name.as_bytes());
        stream.write_all(&hello).expect("it reads");
        let mut export = [0; 10];
        stream.read_exact(&mut export).expect("the export opens");
        let (size, flags) = export.split_at(8);
        Self {
            stream,
            size: u64::from_be_bytes(size.try_into().expect("eight bytes")),
            is_read_only: flags[1] & 2 != 0,
            cookie: 0,
        }
    }

    fn write(&mut self, at: u64, data: &[u8; PAGE]) {
        self.request(1, at, PAGE, data);
    }

    fn flush(&mut self) {
        self.request(3, 0, 0, &[]);
    }

    fn read(&mut self, at: u64) -> [u8; PAGE] {
        self.request(0, at, PAGE, &[]);
        let mut data = [0; PAGE];
        self.stream.read_exact(&mut data).expect("the data");
        data
    }

    fn request(&mut self, kind: u16, at: u64, len: usize, payload: &[u8]) {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0_u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(u32::try_from(len).expect("a page").to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request).expect("it reads");
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).expect("an answer");
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(reply[4..8], [0; 4], "an error");
        assert_eq!(reply[8..], self.cookie.to_be_bytes());
    }
}
