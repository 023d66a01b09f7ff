//! The stores that are synced to, each a process of its own, so that its CPU time is nobody else's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use glidefs_tests::http;
use glidefs_tests::s3;
use glidefs_tests::server::{Store, built};
use glidefs_tests::site::text;
use glidefs_tests::tool::{self, Talk};

use crate::case::StoreKind;
use crate::lean::Identity;

const CONTROL_PATH: &str = "/test-control/faults";

/// One store, running.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) kind: StoreKind,
    folder: PathBuf,
    process: Option<Process>,
    certificate: Option<PathBuf>,
}

#[derive(Debug)]
struct Process {
    talk: Talk,
    address: SocketAddr,
}

/// How many requests of each kind it has answered.
pub(crate) type Counts = BTreeMap<String, u64>;

impl Endpoint {
    pub(crate) fn start(kind: StoreKind, folder: &Path) -> Result<Self> {
        let folder = folder.join(format!("store-{kind}").replace(' ', "-"));
        make(&folder)?;
        let own = std::env::current_exe()?;
        let (process, certificate) = match kind {
            StoreKind::File => (None, None),
            StoreKind::S3 => (Some(s3_endpoint(&folder)?), None),
            StoreKind::Lean => (Some(Process::start(text(&own), &["--endpoint"])?), None),
            StoreKind::LeanTls => {
                let identity = identity(&folder)?;
                let (certificate, key) = (text(&identity.certificate), text(&identity.key));
                let arguments = ["--endpoint", "--certificate", certificate, "--key", key];
                let process = Process::start(text(&own), &arguments)?;
                (Some(process), Some(identity.certificate))
            }
        };
        Ok(Self {
            kind,
            folder,
            process,
            certificate,
        })
    }

    /// As the server under test is to be told.
    pub(crate) fn store(&self, prefix: &str) -> Store {
        match self.url() {
            None => Store::File(self.folder.join(prefix)),
            Some(endpoint) => Store::S3 {
                endpoint,
                prefix: prefix.to_owned(),
            },
        }
    }

    /// None: a folder.
    pub(crate) fn url(&self) -> Option<String> {
        let address = self.process.as_ref()?.address;
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        Some(format!("{scheme}://{address}"))
    }

    /// Whom clients must trust, if it is not whom they trust anyway.
    pub(crate) fn certificate(&self) -> Option<&Path> {
        self.certificate.as_deref()
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn set_delay(&self, delay_ms: u64) -> Result<()> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        process.control("POST", &format!("?delay_ms={delay_ms}"))?;
        Ok(())
    }

    /// None of a folder: nobody counts there.
    pub(crate) fn counts(&self) -> Result<Option<Counts>> {
        let process = self.process.as_ref();
        process.map(|it| it.control("GET", "")).transpose()
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        match &self.process {
            None => Ok(0.0),
            Some(process) => glidefs_benches::process::cpu_seconds(process.talk.pid()),
        }
    }

    /// Removes what one run has stored, where it is a folder's.
    pub(crate) fn forget(&self, prefix: &str) -> Result<()> {
        for stored in [
            self.folder.join(prefix),
            self.folder.join(s3::BUCKET).join(prefix),
        ] {
            if stored.exists() {
                std::fs::remove_dir_all(&stored)?;
            }
        }
        Ok(())
    }
}

impl Process {
    fn start(tool: &str, arguments: &[&str]) -> Result<Self> {
        let mut talk = Talk::start(tool, arguments)?;
        let address = talk.hear()?.parse()?;
        Ok(Self { talk, address })
    }

    fn control(&self, method: &str, query: &str) -> Result<Counts> {
        let path = format!("{CONTROL_PATH}{query}");
        let answer = http::ask(self.address, method, &path, None)?;
        anyhow::ensure!(answer.status == 200, "{method} {path}: {}", answer.status);
        serde_json::from_str(&answer.body).context("counts of the endpoint")
    }
}

fn s3_endpoint(folder: &Path) -> Result<Process> {
    let mut talk = Talk::start(text(&built("s3server")?), &[text(folder)])?;
    let said: serde_json::Value = serde_json::from_str(&talk.hear()?)?;
    let url = said["endpoint"].as_str().context("its address")?;
    let address = url.trim_start_matches("http://").parse()?;
    Ok(Process { talk, address })
}

/// A certificate for the loopback, good for a day.
fn identity(folder: &Path) -> Result<Identity> {
    let identity = Identity {
        certificate: folder.join("certificate.pem"),
        key: folder.join("key.pem"),
    };
    let curve = "ec_paramgen_curve:prime256v1";
    tool::run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            curve,
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            text(&identity.key),
            "-out",
            text(&identity.certificate),
        ],
    )?;
    Ok(identity)
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}
