//! Real NBD clients against the real server, over unix socket and TCP, with a real S3 endpoint
//! and encryption behind it, and once with a folder.

use anyhow::{Context, Result, anyhow, ensure};
use glidefs_tests::server::{Server, wait_until};
use glidefs_tests::site::{Site, text};
use glidefs_tests::tool::{self, Background};

const MIB: usize = 1 << 20;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

#[test]
fn nbdinfo_sees_size_and_abilities() -> Result<()> {
    if !tool::are_here(&["nbdinfo"]) {
        return Ok(());
    }
    let site = Site::new()?;
    for uri in [site.server.unix_uri("info"), site.server.tcp_uri("info")] {
        let document: serde_json::Value =
            serde_json::from_str(&tool::run("nbdinfo", &["--json", &uri])?)?;
        ensure!(document["protocol"] == "newstyle-fixed", "{document}");
        let export = &document["exports"][0];
        ensure!(export["export-size"] == 1_u64 << 30, "{export}");
        for can in [
            "can_flush",
            "can_fua",
            "can_trim",
            "can_zero",
            "can_multi_conn",
            "can_df",
        ] {
            ensure!(export[can] == true, "{can}: {export}");
        }
        ensure!(export["is_read_only"] == false, "{export}");
        let contexts = export["contexts"].to_string();
        ensure!(contexts.contains("base:allocation"), "{export}");
    }
    // A fresh volume is one hole, and it is listed.
    let map = tool::run(
        "nbdinfo",
        &["--map", "--totals", &site.server.unix_uri("info")],
    )?;
    ensure!(map.contains("100.0%") && map.contains("hole,zero"), "{map}");
    let list = tool::run("nbdinfo", &["--list", &site.server.unix_uri("")])?;
    ensure!(list.contains("info"), "{list}");
    Ok(())
}

#[test]
fn nbdcopy_brings_back_what_it_took() -> Result<()> {
    if !tool::are_here(&["nbdcopy"]) {
        return Ok(());
    }
    let site = Site::with(|settings| settings.auto_create_size_gb = Some(0.125))?;
    let image = site.image("image", 96 * MIB)?;
    for (name, uri) in [
        ("copy-unix", site.server.unix_uri("copy-unix")),
        ("copy-tcp", site.server.tcp_uri("copy-tcp")),
    ] {
        tool::run(
            "nbdcopy",
            &["--flush", "--connections=4", text(&image), &uri],
        )?;
        let back = site.path(name);
        tool::run("nbdcopy", &[&uri, text(&back)])?;
        ensure!(is_same_start(&image, &back)?, "{name} came back changed");
    }
    Ok(())
}

#[test]
fn nbdcopy_works_on_a_folder_as_the_store() -> Result<()> {
    if !tool::are_here(&["nbdcopy"]) {
        return Ok(());
    }
    let mut site = Site::on_files()?;
    let image = site.image("image", 48 * MIB)?;
    tool::run("nbdcopy", &[text(&image), &site.server.unix_uri("filed")])?;
    site.server.drain("filed")?;
    let status = site.server.terminate()?;
    ensure!(status.success(), "SIGTERM: {status}");
    // Another node, which has the folder and nothing else.
    site.move_on()?;
    let back = site.path("back");
    tool::run("nbdcopy", &[&site.server.unix_uri("filed"), text(&back)])?;
    ensure!(
        is_same_start(&image, &back)?,
        "another node reads something else"
    );
    Ok(())
}

#[test]
fn qemu_img_converts_and_compares() -> Result<()> {
    if !tool::are_here(&["qemu-img"]) {
        return Ok(());
    }
    let site = Site::with(|settings| settings.auto_create_size_gb = Some(0.0625))?;
    let image = site.image("image", 64 * MIB)?;
    for uri in [
        site.server.unix_uri("qemu-unix"),
        site.server.tcp_uri("qemu-tcp"),
    ] {
        tool::run(
            "qemu-img",
            &[
                "convert",
                "-n",
                "-f",
                "raw",
                "-O",
                "raw",
                text(&image),
                &uri,
            ],
        )?;
        let compare = ["compare", "-f", "raw", "-F", "raw", text(&image), &uri];
        let said = tool::run("qemu-img", &compare)?;
        ensure!(said.contains("identical"), "{said}");
    }
    Ok(())
}

#[test]
fn fio_verifies_what_it_wrote() -> Result<()> {
    if !tool::are_here(&["fio"]) {
        return Ok(());
    }
    let site = Site::new()?;
    for uri in [
        site.server.unix_uri("fio-unix"),
        site.server.tcp_uri("fio-tcp"),
    ] {
        let uri = format!("--uri={uri}");
        let common = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--randseed=7",
            "--verify=crc32c",
        ];
        let random = [
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--iodepth=32",
            "--size=64m",
        ];
        let strict = [
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--fsync=64",
            "--minimal",
        ];
        tool::run("fio", &[common.as_slice(), &random, &strict].concat())?;
    }
    Ok(())
}

#[test]
fn libnbd_exercises_the_protocol_from_python() -> Result<()> {
    // The distribution's Python: its libnbd is not visible to others.
    const PYTHON: &str = "/usr/bin/python3";
    if !tool::are_here(&[PYTHON, "/usr/lib/python3/dist-packages/nbd.py"]) {
        return Ok(());
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/libnbd.py");
    let site = Site::new()?;
    for uri in [
        site.server.unix_uri("python-unix"),
        site.server.tcp_uri("python-tcp"),
    ] {
        tool::run(PYTHON, &[script, &uri]).with_context(|| site.server.log_tail())?;
    }
    Ok(())
}

#[test]
fn a_filesystem_lives_on_it() -> Result<()> {
    let tools = [
        "nbdfuse",
        "fusermount3",
        "losetup",
        "mkfs.ext4",
        "fsck.ext4",
        "/dev/fuse",
    ];
    if !tool::are_here(&tools) || !is_root()? {
        return Ok(());
    }
    let mut site = Site::new()?;
    let image = site.image("file", 16 * MIB)?;
    {
        let disk = Disk::attach(&site, "first")?;
        tool::run("mkfs.ext4", &["-q", "-F", &disk.device])?;
        let mounted = Mounted::new(&disk, &site.path("mounted"))?;
        let inside = mounted.folder.join("file");
        tool::run("cp", &[text(&image), text(&inside)])?;
        tool::run("sync", &["-f", text(&inside)])?;
    }
    // The filesystem outlives the process and the node's cache.
    site.server.drain("ext4")?;
    ensure!(
        site.server.terminate()?.success(),
        "SIGTERM drains and ends well"
    );
    site.move_on()?;
    let disk = Disk::attach(&site, "second")?;
    tool::run("fsck.ext4", &["-f", "-n", &disk.device])?;
    let mounted = Mounted::new(&disk, &site.path("mounted"))?;
    tool::run("cmp", &[text(&image), text(&mounted.folder.join("file"))])?;
    Ok(())
}

/// The bytes that the integrity logs of nbd's suite expect at least; a size that both servers take.
const TESTER_BYTES: u64 = 64 << 20;
/// Its requests are larger than 32 MiB, which qemu-nbd takes no more than we do.
const TOO_LARGE: &str = "integrityhuge";
/// When a tester counts as stuck: it hangs where a server owes it an answer.
const TESTER_SECONDS_MAX: &str = "60";

/// One mode of nbd's tester, as `tests/run/simple_test` of its source calls it.
struct Mode {
    name: &'static str,
    arguments: &'static [&'static str],
    /// A transaction log beside the tester.
    log: Option<&'static str>,
    /// So many at the same time on one export.
    testers: usize,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadWrite,
    /// A read-only export: the tester must be refused.
    ReadOnly,
}

const fn mode(name: &'static str, arguments: &'static [&'static str]) -> Mode {
    Mode {
        name,
        arguments,
        log: None,
        testers: 1,
        access: Access::ReadWrite,
    }
}

const fn integrity(
    name: &'static str,
    arguments: &'static [&'static str],
    log: &'static str,
) -> Mode {
    let log = Some(log);
    Mode {
        log,
        ..mode(name, arguments)
    }
}

/// Not the loose integrity test (`-l`): it has requests in flight that overlap, whose order the protocol
/// leaves to the server, and qemu-nbd itself fails it now and then.
const MODES: [Mode; 9] = [
    mode("read", &[]),
    mode("oversize", &["-o"]),
    mode("handshake", &["-h"]),
    mode("write", &["-w"]),
    mode("flush", &["-w", "-f"]),
    integrity("integrity", &["-i"], "integrity-test.tr"),
    integrity(TOO_LARGE, &["-i"], "integrityhuge-test.tr"),
    Mode {
        testers: 3,
        ..mode("multi", &["-w", "-f"])
    },
    Mode {
        access: Access::ReadOnly,
        ..mode("rowrite", &["-w", "-F"])
    },
];

/// nbd's own tester, on a fresh export of its own for each mode. What qemu-nbd passes must pass here.
#[test]
fn nbd_tester_passes_wherever_qemu_nbd_does() -> Result<()> {
    let Some(folder) = tester() else {
        return Ok(());
    };
    if !tool::are_here(&["qemu-nbd", "timeout"]) {
        return Ok(());
    }
    let site = Site::with(|settings| settings.auto_create_size_gb = Some(0.0625))?;
    // Another node: what the first one serves is read-only there.
    let mut other = site.settings.clone();
    other.cache_dir = site.path("cache-other");
    let other = Server::start(&site.path("node-other"), &other)?;
    for mode in &MODES {
        let theirs = QemuNbd::start(&site, mode)?;
        let expected = test(&folder, mode, &["-u", text(&theirs.socket)])?;
        if let Err(said) = expected {
            // A tester that fails everywhere would prove nothing.
            ensure!(
                mode.name == TOO_LARGE,
                "{}: qemu-nbd fails: {said}",
                mode.name
            );
            continue;
        }
        let server = match mode.access {
            Access::ReadWrite => &site.server,
            Access::ReadOnly => {
                // Now there is a volume, and the first node owns it.
                site.server.connect(mode.name)?.disconnect()?;
                &other
            }
        };
        // Several processes are one client only over TCP, by the address of their host.
        let (host, port) = (server.nbd.ip().to_string(), server.nbd.port().to_string());
        let to = match mode.testers {
            1 => ["-u", text(&server.socket)],
            _ => [host.as_str(), port.as_str()],
        };
        test(&folder, mode, &to)?.map_err(|said| {
            let log = server.log_tail();
            anyhow!("{}: qemu-nbd passes, and here: {said}\n{log}", mode.name)
        })?;
    }
    Ok(())
}

/// Where `scripts/nbd-tester` puts the tester; none, with a word, if it has not been built. Also in
/// CI: whether a mirror has the source package is not ours to say.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn tester() -> Option<std::path::PathBuf> {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("nbd-tester");
    if folder.join("nbd-tester-client").is_file() {
        return Some(folder);
    }
    eprintln!("skipped: scripts/nbd-tester has not built nbd-tester-client");
    None
}

/// Runs a mode to its end: what the testers said if one of them failed.
fn test(folder: &std::path::Path, mode: &Mode, to: &[&str]) -> Result<Result<(), String>> {
    let client = folder.join("nbd-tester-client");
    let mut arguments = vec![
        "NBD_TEST_SILENT=1",
        "timeout",
        TESTER_SECONDS_MAX,
        text(&client),
    ];
    arguments.extend(["-N", mode.name]);
    arguments.extend(mode.arguments);
    let log = mode.log.map(|log| folder.join(log));
    if let Some(log) = &log {
        arguments.extend(["-t", text(log)]);
    }
    arguments.extend(to);
    let run = || tool::output("env", &arguments);
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..mode.testers).map(|_| scope.spawn(run)).collect();
        let ended = running.into_iter().map(|it| it.join().expect("no panic"));
        ended.collect::<Result<_>>()
    })?;
    for output in outputs {
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Ok(Err(format!("{}: {said}", output.status)));
        }
    }
    Ok(Ok(()))
}

/// A fresh image behind qemu-nbd, on a socket of its own, under the name of the mode.
struct QemuNbd {
    socket: std::path::PathBuf,
    _process: Background,
}

impl QemuNbd {
    fn start(site: &Site, mode: &Mode) -> Result<Self> {
        let image = site.path(&format!("{}.raw", mode.name));
        tool::run("truncate", &["-s", &TESTER_BYTES.to_string(), text(&image)])?;
        let socket = site.path(&format!("{}.sock", mode.name));
        let arguments = [
            "--socket",
            text(&socket),
            "--export-name",
            mode.name,
            "--format",
            "raw",
            "--persistent",
            "--shared",
            "8",
            text(&image),
        ];
        let read_only = (mode.access == Access::ReadOnly).then_some("--read-only");
        let arguments: Vec<&str> = arguments.into_iter().chain(read_only).collect();
        let mut process = Background::start("qemu-nbd", &arguments, &[])?;
        let appears = wait_until(PATIENCE, || socket.exists() || !process.is_running());
        ensure!(appears && process.is_running(), "qemu-nbd does not start");
        Ok(Self {
            socket,
            _process: process,
        })
    }
}

/// The export as a loop device, through FUSE: no NBD in this kernel needed.
struct Disk {
    device: String,
    _fuse: Background,
}

impl Disk {
    fn attach(site: &Site, name: &str) -> Result<Self> {
        let folder = site.path(name);
        std::fs::create_dir(&folder)?;
        let arguments = [text(&folder), &site.server.unix_uri("ext4")];
        // A folder instead of a file: the disk appears in it as `nbd`.
        let fuse = Background::start("nbdfuse", &arguments, &["fusermount3", "-u", text(&folder)])?;
        let file = folder.join("nbd");
        let appears = wait_until(PATIENCE, || file.metadata().is_ok_and(|it| it.len() > 0));
        ensure!(appears, "nbdfuse shows no disk\n{}", site.server.log_tail());
        let device = tool::run("losetup", &["--find", "--show", text(&file)])?;
        Ok(Self {
            device: device.trim().to_owned(),
            _fuse: fuse,
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        tool::output("losetup", &["--detach", &self.device]).ok();
    }
}

struct Mounted {
    folder: std::path::PathBuf,
}

impl Mounted {
    fn new(disk: &Disk, folder: &std::path::Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        tool::run("mount", &[&disk.device, text(folder)])?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        tool::output("umount", &[text(&self.folder)]).ok();
    }
}

/// Mounting needs root; in CI that is a must like a tool.
fn is_root() -> Result<bool> {
    let is_root = tool::run("id", &["-u"])?.trim() == "0";
    ensure!(
        is_root || std::env::var_os("CI").is_none(),
        "CI must run this as root"
    );
    Ok(is_root)
}

/// Whether the longer file begins with the other and has only zeros after it.
#[expect(clippy::disallowed_methods, reason = "tools work on real files")]
fn is_same_start(image: &std::path::Path, longer: &std::path::Path) -> Result<bool> {
    let (image, longer) = (std::fs::read(image)?, std::fs::read(longer)?);
    ensure!(longer.len() >= image.len(), "only {} bytes", longer.len());
    let (start, rest) = longer.split_at(image.len());
    Ok(start == image && rest.iter().all(|byte| *byte == 0))
}
