//! A real Linux kernel in QEMU, for tests of what a guest sees of its disk.
//!
//! A guest boots a stock kernel from memory, without a disk of its own, and does what the test says:
//! [`Guest::run`] takes a shell script and returns what it printed. It meets the server either as the
//! kernel's NBD client does, over TCP at [`SERVER`], or through disks whose NBD client is QEMU.
//! Which server that is, the harness decides at every new connection ([`Guest::dial`]), so that servers
//! may be killed, restarted and changed below a guest that runs.
//!
//! In its folder are `console.log` (the kernel's), `talk.log` (all that was asked and answered), `dial.log` (of its
//! connections) and `qemu.log`; their ends are part of every failure's message. Dropping a guest ends its QEMU; so does the end of the test.
//!
//! No right is needed, no KVM and no network; what must be installed is in [`TOOLS`], and the kernel
//! comes from `scripts/guest-kernel`. Everything waits with a bound, and no bound decides a test that could pass.

pub mod archive;
pub mod image;
pub mod machine;
pub mod modules;
pub mod netlink;
pub mod talk;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub use image::{Contents, Kernel};
pub use machine::{Disk, SERVER, SERVER_PORT};
pub use talk::Answer;

use crate::blocking_client::Address;
use crate::server::wait_until;
use machine::Machine;

/// What the machine that runs a guest must have; [`crate::tool::are_here`] asks for them.
pub const TOOLS: [&str; 6] = [
    "qemu-system-x86_64",
    "setpriv",
    "socat",
    "busybox",
    "ldd",
    "strip",
];
/// On a busy machine a boot in software takes its time.
const BOOT_WAIT_MAX: Duration = Duration::from_secs(240);
/// For one script. A test that needs longer says several.
const RUN_WAIT_MAX: Duration = Duration::from_secs(240);
/// QEMU connects before it starts the machine.
const QEMU_WAIT_MAX: Duration = Duration::from_secs(60);
/// So many bytes of each log go into a failure's message.
const LOG_TAIL_BYTES: usize = 3000;
/// A script that prints more than this has gone wild.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const READ_BYTES: usize = 4096;

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    folder: PathBuf,
    line: UnixStream,
    /// What arrived and belongs to no answer yet.
    received: Vec<u8>,
    commands: u64,
}

impl Guest {
    /// Boots, and waits until the guest listens to scripts. What it needs is put into `folder`, whose path
    /// must be short: it holds a unix socket.
    pub fn boot(
        folder: &Path,
        kernel: &Kernel,
        contents: &Contents,
        disks: &[Disk],
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let initramfs = folder.join("initramfs");
        write(&initramfs, &contents.pack(kernel)?)?;
        let dial = folder.join("dial");
        write(&dial, dial_script(folder).as_bytes())?;
        std::fs::set_permissions(&dial, PermissionsExt::from_mode(0o755))?;
        let line = folder.join("line.sock");
        let listener = UnixListener::bind(&line)?;
        let machine = Machine {
            kernel: &kernel.vmlinuz(),
            initramfs: &initramfs,
            console: &folder.join("console.log"),
            line: &line,
            dial: &dial,
            disks,
        };
        let mut qemu = start_qemu(folder, &machine)?;
        let line = match accept(&listener, &mut qemu) {
            Ok(line) => line,
            Err(error) => {
                qemu.kill().ok();
                qemu.wait().ok();
                return Err(error.context(tail(&folder.join("qemu.log"))));
            }
        };
        let mut guest = Self {
            qemu,
            folder: folder.to_owned(),
            line,
            received: Vec::new(),
            commands: 0,
        };
        guest.take_answer(talk::UP, BOOT_WAIT_MAX)?;
        Ok(guest)
    }

    /// Where the guest's next connection to [`SERVER`] goes; those that are open stay where they are.
    pub fn dial(&self, address: &Address) -> Result<()> {
        let target = match address {
            Address::Unix(path) => format!("UNIX-CONNECT:{}", path.display()),
            Address::Tcp(address) => format!("TCP:{address}"),
        };
        // By renaming: whoever reads meanwhile sees one or the other.
        let part = self.folder.join("target.part");
        write(&part, target.as_bytes())?;
        std::fs::rename(part, self.folder.join("target"))?;
        Ok(())
    }

    /// Runs a shell script to its end and returns what it printed; an exit code is an error.
    ///
    /// A part of it that is to run on in the background must print into a file, since the line belongs to one
    /// script at a time: `sh -c '...' >/run/load.log 2>&1 &`.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let answer = self.try_run(script)?;
        ensure!(
            answer.code == 0,
            "in the guest, {script:?} ended with {}: {}\n{}",
            answer.code,
            answer.output,
            self.logs()
        );
        Ok(answer.output)
    }

    /// Runs a shell script to its end, however it ends.
    pub fn try_run(&mut self, script: &str) -> Result<Answer> {
        self.commands += 1;
        let number = self.commands;
        self.note(&format!("{number}> {script}"));
        self.line.write_all(&talk::command(number, script))?;
        let answer = self
            .take_answer(number, RUN_WAIT_MAX)
            .with_context(|| format!("running in the guest: {script:?}"))?;
        self.note(&format!("{number}= {}: {}", answer.code, answer.output));
        Ok(answer)
    }

    /// Requests that the kernel gave up, as it told them in its log.
    pub fn complaints(&mut self) -> Result<Vec<String>> {
        let log = self.run("dmesg")?;
        let complaints = talk::complaints(&log);
        Ok(complaints.into_iter().map(str::to_owned).collect())
    }

    fn take_answer(&mut self, number: u64, wait_max: Duration) -> Result<Answer> {
        let mut outcome = Ok(None);
        wait_until(wait_max, || {
            outcome = self
                .receive()
                .and_then(|()| talk::answer(&self.received, number));
            !matches!(outcome, Ok(None))
        });
        let answer = match outcome {
            Ok(Some(answer)) => answer,
            Ok(None) => bail!(
                "the guest has not answered after {wait_max:?}, but said {:?}\n{}",
                String::from_utf8_lossy(&self.received),
                self.logs()
            ),
            Err(error) => return Err(error.context(self.logs())),
        };
        // One command at a time: nothing of the next answer can be here.
        self.received.clear();
        Ok(answer)
    }

    /// Takes what has arrived, without waiting.
    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; READ_BYTES];
        loop {
            match self.line.read(&mut buffer) {
                Ok(0) => bail!("the guest has ended: {:?}", self.qemu.try_wait()),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            ensure!(
                self.received.len() <= ANSWER_BYTES_MAX,
                "a script in the guest prints without end"
            );
        }
    }

    /// The ends of what the kernel, the scripts and QEMU said.
    pub fn logs(&self) -> String {
        let logs = ["console.log", "talk.log", "dial.log", "qemu.log"];
        logs.map(|name| tail(&self.folder.join(name))).join("\n")
    }

    /// For the person who looks at a failure; a log that cannot be written fails no test.
    fn note(&self, text: &str) {
        let path = self.folder.join("talk.log");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        file.and_then(|mut file| writeln!(file, "{text}")).ok();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Already dead is fine; both calls then only reap.
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}

/// Connects a guest's new connection to where `target` says at that moment. What socat says must not
/// reach the guest, which would take it for an answer of the server.
fn dial_script(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "#!/bin/sh\nexec socat -b131072 STDIO \"$(cat '{folder}/target')\" 2>>'{folder}/dial.log'\n"
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test starts real processes on real files"
)]
fn start_qemu(folder: &Path, machine: &Machine<'_>) -> Result<Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("qemu.log"))?;
    // A test that is killed has no time to end its QEMU: the kernel does it.
    std::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(machine.arguments())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting qemu-system-x86_64")
}

/// QEMU's end of the second serial port.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let mut accepted = None;
    wait_until(QEMU_WAIT_MAX, || {
        accepted = listener.accept().ok();
        accepted.is_some() || qemu.try_wait().is_ok_and(|it| it.is_some())
    });
    let (line, _) = accepted.context("QEMU does not start")?;
    line.set_nonblocking(true)?;
    Ok(line)
}

#[expect(clippy::disallowed_methods, reason = "QEMU reads real files")]
fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "the log is a real file")]
fn tail(path: &Path) -> String {
    let log = std::fs::read(path).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "--- the guest's {name} ---\n{}",
        String::from_utf8_lossy(tail)
    )
}
