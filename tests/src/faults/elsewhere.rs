//! Endpoints that are no store, for a server that is started with them.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use super::case::Elsewhere;
use crate::site::text;
use crate::tool;

/// An endpoint that is no store, as long as this lives.
pub(super) struct Wrong {
    pub(super) url: String,
    _tls: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Wrong {
    pub(super) fn make(elsewhere: Elsewhere, folder: &Path, right: &str) -> Result<Self> {
        let free = || -> Result<u16> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            Ok(listener.local_addr()?.port())
        };
        let url = match elsewhere {
            // A name of this domain never exists (RFC 6761).
            Elsewhere::NoName => "http://store.invalid:9000".to_owned(),
            Elsewhere::NobodyListens => format!("http://127.0.0.1:{}", free()?),
            Elsewhere::NotTls => format!("https://{right}"),
            Elsewhere::Untrusted => {
                let port = free()?;
                return Ok(Self {
                    url: format!("https://127.0.0.1:{port}"),
                    _tls: Some(self_signed(folder, port)?),
                });
            }
        };
        Ok(Self { url, _tls: None })
    }
}

/// A TLS server that vouches for itself.
#[expect(clippy::disallowed_methods, reason = "a tool is a real process")]
fn self_signed(folder: &Path, port: u16) -> Result<Process> {
    tool::must_be_here("openssl")?;
    let (key, certificate) = (folder.join("key.pem"), folder.join("cert.pem"));
    let arguments = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=127.0.0.1",
        "-keyout",
        text(&key),
        "-out",
        text(&certificate),
    ];
    tool::run("openssl", &arguments)?;
    let port = port.to_string();
    let server = std::process::Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-accept", &port])
        .args(["-key", text(&key), "-cert", text(&certificate)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting openssl s_server")?;
    Ok(Process(server))
}
