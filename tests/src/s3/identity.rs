//! Certificates for the endpoint: a good one, and one for each thing that can be wrong with it.
//!
//! `openssl ca` signs them, because it alone takes dates of the past in every version.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::door::Door;
use crate::site::text;
use crate::tool;

/// What is wrong with the certificate that a TLS endpoint presents, and with nothing else of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It was good until years ago.
    Expired,
    /// An authority has signed it that the client does not know.
    Stranger,
    /// It is for another host.
    OtherName,
}

/// One key with its certificates, and the authority that vouches for them, as PEM files in a folder.
#[derive(Debug)]
pub struct Identities {
    folder: PathBuf,
}

const GOOD: &str = "good";
const OURS: &str = "ours";
const STRANGER: &str = "stranger";

impl Identities {
    /// Makes them for the loopback, good for two days. The folder is made.
    #[expect(clippy::disallowed_methods, reason = "openssl works on real files")]
    pub fn make(folder: &Path) -> Result<Self> {
        tool::must_be_here("openssl")?;
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let made = Self {
            folder: folder.to_owned(),
        };
        let write = |name: &str, words: String| {
            let path = folder.join(name);
            std::fs::write(&path, words).with_context(|| format!("writing {}", path.display()))
        };
        write("openssl.cnf", settings(folder))?;
        write("index.txt", String::new())?;
        for authority in [OURS, STRANGER] {
            made.new_key(
                authority,
                &["-x509", "-days", "2", "-extensions", "authority"],
            )?;
        }
        made.new_key("leaf", &[])?;
        made.sign(GOOD, OURS, "right", &[])?;
        made.sign(Flaw::Stranger.name(), STRANGER, "right", &[])?;
        made.sign(Flaw::OtherName.name(), OURS, "other", &[])?;
        let past = [
            "-startdate",
            "20200101000000Z",
            "-enddate",
            "20200201000000Z",
        ];
        made.sign(Flaw::Expired.name(), OURS, "right", &past)?;
        Ok(made)
    }

    /// Whom clients must trust.
    pub fn authority(&self) -> PathBuf {
        self.file(OURS, "pem")
    }

    /// An endpoint that presents the good certificate, or one with a flaw.
    pub fn door(&self, flaw: Option<Flaw>) -> Result<Door> {
        let name = flaw.map_or(GOOD, Flaw::name);
        Door::tls(&self.file(name, "pem"), &self.file("leaf", "key"))
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{name}.{kind}"))
    }

    /// A key, and a request for a certificate or one that vouches for itself.
    fn new_key(&self, name: &str, more: &[&str]) -> Result<()> {
        let (config, key) = (self.file("openssl", "cnf"), self.file(name, "key"));
        let (out, subject) = (self.file(name, "pem"), format!("/CN={name}"));
        let curve = "ec_paramgen_curve:prime256v1";
        let mut words = vec!["req", "-config", text(&config), "-nodes", "-newkey", "ec"];
        words.extend(["-pkeyopt", curve, "-subj", subject.as_str()]);
        words.extend(["-keyout", text(&key), "-out", text(&out)]);
        words.extend(more);
        tool::run("openssl", &words).map(drop)
    }

    fn sign(&self, name: &str, authority: &str, extensions: &str, more: &[&str]) -> Result<()> {
        let (config, request) = (self.file("openssl", "cnf"), self.file("leaf", "pem"));
        let (certificate, key) = (self.file(authority, "pem"), self.file(authority, "key"));
        let out = self.file(name, "pem");
        let mut words = vec!["ca", "-batch", "-notext", "-config", text(&config)];
        words.extend(["-cert", text(&certificate), "-keyfile", text(&key)]);
        words.extend(["-in", text(&request), "-out", text(&out)]);
        words.extend(["-extensions", extensions]);
        words.extend(more);
        tool::run("openssl", &words).map(drop)
    }
}

impl Flaw {
    /// Its files are called so.
    fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Stranger => "of-a-stranger",
            Self::OtherName => "of-another-name",
        }
    }
}

fn settings(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "[req]\ndistinguished_name = name\nprompt = no\n\
         [name]\nCN = glidefs test\n\
         [authority]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign\n\
         [right]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = IP:127.0.0.1,DNS:localhost\n\
         [other]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = DNS:elsewhere.test\n\
         [ca]\ndefault_ca = book\n\
         [book]\ndatabase = {folder}/index.txt\nnew_certs_dir = {folder}\nrand_serial = yes\n\
         unique_subject = no\ndefault_md = sha256\ndefault_days = 2\npolicy = any\n\
         [any]\ncommonName = supplied\n"
    )
}
