//! The servers that are compared. Each serves one region on a unix socket of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use glidefs_tests::s3::S3Server;
use glidefs_tests::server::{Server, Settings, Store, wait_until};
use glidefs_tests::site::text;
use glidefs_tests::tool::Background;

const EXPORT: &str = "bench";
const START_WAIT_MAX: Duration = Duration::from_secs(20);

/// A server under load.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) uri: String,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Control(Background),
    Glidefs {
        server: Box<Server>,
        /// Serves as long as it lives; dropped after the server.
        _store: S3Server,
    },
}

impl Target {
    /// The protocol alone: memory to memory.
    pub(crate) fn nbdkit_memory(folder: &Path, region_mib: u64) -> Result<Self> {
        let size = format!("{region_mib}M");
        Self::control(folder, NBDKIT_MEMORY, &|socket| {
            nbdkit(socket, &["memory", &size])
        })
    }

    /// A file through the page cache.
    pub(crate) fn nbdkit_file(folder: &Path, region_mib: u64) -> Result<Self> {
        let file = sparse_file(folder, "nbdkit.raw", region_mib)?;
        Self::control(folder, NBDKIT_FILE, &|socket| {
            nbdkit(socket, &["file", &file])
        })
    }

    /// A file without the page cache.
    pub(crate) fn qemu_nbd(folder: &Path, region_mib: u64) -> Result<Self> {
        let file = sparse_file(folder, "qemu.raw", region_mib)?;
        Self::control(folder, "qemu-nbd cache=none", &|socket| {
            let words = [
                "-t",
                "-f",
                "raw",
                "--cache=none",
                "-x",
                EXPORT,
                "-k",
                socket,
                &file,
            ];
            Background::start("qemu-nbd", &words, &[])
        })
    }

    fn control(
        folder: &Path,
        name: &'static str,
        start: &dyn Fn(&str) -> Result<Background>,
    ) -> Result<Self> {
        let socket = folder.join(format!("{}.sock", name.replace([' ', '='], "-")));
        let mut process = start(text(&socket))?;
        let is_up = wait_until(START_WAIT_MAX, || socket.exists() || !process.is_running());
        ensure!(is_up && process.is_running(), "{name} does not start");
        Ok(Self {
            name,
            uri: format!("nbd+unix:///{EXPORT}?socket={}", socket.display()),
            process: Process::Control(process),
        })
    }

    /// The real binary, encrypted, before an S3 endpoint on the loopback.
    pub(crate) fn glidefs(folder: &Path, region_mib: u64, cache_gb: f64) -> Result<Self> {
        let s3 = S3Server::start(&folder.join("objects"), 0)?;
        let store = Store::S3 {
            endpoint: s3.url(),
            prefix: "bench".to_owned(),
        };
        let mut settings = Settings::new(store, &folder.join("cache"));
        settings.disk_size_gb = cache_gb;
        settings.auto_create_size_gb = Some(f64::from(u32::try_from(region_mib)?) / 1024.0);
        settings.sync_delay_ms = 8000;
        let server = Server::start(&folder.join("node"), &settings)?;
        Ok(Self {
            name: GLIDEFS,
            uri: server.unix_uri(EXPORT),
            process: Process::Glidefs {
                server: Box::new(server),
                _store: s3,
            },
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Control(process) => process.pid(),
            Process::Glidefs { server, .. } => server.pid(),
        }
    }

    /// Finishes what the last workload left to the background, so that the next target runs alone.
    pub(crate) fn settle(&mut self) -> Result<()> {
        match &self.process {
            Process::Control(_) => Ok(()),
            Process::Glidefs { server, .. } => server.drain(EXPORT).map(drop),
        }
    }

    /// Of a server that has a cache of its own.
    pub(crate) fn cache_used_bytes(&self) -> Result<Option<u64>> {
        match &self.process {
            Process::Control(_) => Ok(None),
            Process::Glidefs { server, .. } => {
                let bytes = server.numbers()?["cache_used_bytes"].as_u64();
                Ok(Some(bytes.context("the server tells its numbers")?))
            }
        }
    }

    pub(crate) fn log(&self) -> String {
        match &self.process {
            Process::Control(_) => String::new(),
            Process::Glidefs { server, .. } => server.log_tail(),
        }
    }
}

pub(crate) const NBDKIT_MEMORY: &str = "nbdkit memory";
pub(crate) const NBDKIT_FILE: &str = "nbdkit file";
pub(crate) const GLIDEFS: &str = "glidefs";

/// In the foreground: its process id is the server's.
fn nbdkit(socket: &str, plugin: &[&str]) -> Result<Background> {
    let words = [&["--foreground", "--unix", socket], plugin].concat();
    Background::start("nbdkit", &words, &[])
}

#[expect(clippy::disallowed_types, reason = "the controls serve real files")]
fn sparse_file(folder: &Path, name: &str, region_mib: u64) -> Result<String> {
    let path = folder.join(name);
    std::fs::File::create(&path)?.set_len(region_mib << 20)?;
    Ok(text(&path).to_owned())
}
