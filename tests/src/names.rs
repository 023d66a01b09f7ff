//! Names that stop and begin to resolve under a process that runs: it is started in a mount namespace of its
//! own, where `/etc/hosts` and what says how names are looked for are files of ours.
//!
//! Nobody else sees them, and they are gone with the process. It takes the right to make such a namespace:
//! root's, or a user namespace's. Where neither can be had, [`NotHere`] says so.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::site::text;
use crate::tool::{self, NotHere};

/// No name server of the world knows it (RFC 6761).
pub const HOST: &str = "store.test";
const LOOPBACK: &str = "127.0.0.1";
/// Where a name server would listen that is asked. Any address of this net is the loopback.
const NAME_SERVER: &str = "127.53.0.1";
/// What the program is started by: its arguments are pairs of files, `--`, the program.
const SCRIPT: &str =
    "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\"; shift 2; done; shift; exec \"$@\"";

/// What is asked about a name that `/etc/hosts` does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dns {
    /// Nobody: it does not exist, which is known at once.
    Absent,
    /// A name server that never answers.
    Silent,
}

/// The files, and the name server.
#[derive(Debug)]
pub struct Names {
    /// What is laid over what.
    mounts: Vec<(PathBuf, &'static str)>,
    hosts: PathBuf,
    /// By which rights the namespace is made.
    unshare: Vec<&'static str>,
    /// Datagrams come here, and stay.
    _name_server: Option<UdpSocket>,
}

impl Names {
    /// [`HOST`] resolves to the loopback. The folder is made.
    #[expect(clippy::disallowed_methods, reason = "the resolver reads real files")]
    pub fn make(folder: &Path, dns: Dns) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let (sources, name_server) = match dns {
            Dns::Absent => ("hosts: files\n", None),
            Dns::Silent => ("hosts: files dns\n", Some(name_server()?)),
        };
        let mut files = vec![
            ("hosts", "/etc/hosts", String::new()),
            ("nsswitch.conf", "/etc/nsswitch.conf", sources.to_owned()),
        ];
        if name_server.is_some() {
            let asked = format!("nameserver {NAME_SERVER}\n");
            files.push(("resolv.conf", "/etc/resolv.conf", asked));
        }
        let mut mounts = Vec::new();
        for (name, over, words) in files {
            let path = folder.join(name);
            std::fs::write(&path, words).with_context(|| format!("writing {}", path.display()))?;
            mounts.push((path, over));
        }
        let mut names = Self {
            mounts,
            hosts: folder.join("hosts"),
            unshare: Vec::new(),
            _name_server: name_server,
        };
        names.know()?;
        names.find_rights()?;
        Ok(names)
    }

    /// [`HOST`] resolves from now on.
    pub fn know(&self) -> Result<()> {
        self.write(format!("{LOOPBACK} {HOST}\n"))
    }

    /// [`HOST`] does not resolve from now on.
    pub fn forget(&self) -> Result<()> {
        self.write(String::new())
    }

    #[expect(clippy::disallowed_methods, reason = "the resolver reads real files")]
    fn write(&self, line: String) -> Result<()> {
        // In place: another file of this name would not be the one that is laid over `/etc/hosts`.
        let written = std::fs::write(&self.hosts, line);
        written.with_context(|| format!("writing {}", self.hosts.display()))
    }

    /// What a program is started by, so that it sees them: in its process.
    pub fn wrapper(&self) -> Vec<String> {
        self.wrapper_by(&self.unshare)
    }

    fn wrapper_by(&self, unshare: &[&str]) -> Vec<String> {
        let mut words: Vec<&str> = unshare.to_vec();
        words.extend(["sh", "-ec", SCRIPT, "sh"]);
        for (file, over) in &self.mounts {
            words.push(text(file));
            words.push(over);
        }
        words.push("--");
        words.into_iter().map(str::to_owned).collect()
    }

    /// The address that a process which sees them is given for [`HOST`].
    pub fn look_up(&self) -> Result<String> {
        self.look_up_by(&self.unshare)
    }

    fn look_up_by(&self, unshare: &[&str]) -> Result<String> {
        let wrapper = self.wrapper_by(unshare);
        let (program, arguments) = wrapper.split_first().context("a program")?;
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(["getent", "ahostsv4", HOST]);
        let said = tool::run(program, &arguments)?;
        let first = said.split_whitespace().next();
        Ok(first.context("getent names no address")?.to_owned())
    }

    /// As root, or as the root of a user namespace: whichever sees the name.
    fn find_rights(&mut self) -> Result<()> {
        let mut refused = Vec::new();
        for unshare in [
            ["unshare", "--mount"].as_slice(),
            ["unshare", "--map-root-user", "--mount"].as_slice(),
        ] {
            match self.look_up_by(unshare) {
                Ok(address) if address == LOOPBACK => {
                    self.unshare = unshare.to_vec();
                    return Ok(());
                }
                Ok(address) => refused.push(format!("{HOST} is {address} there")),
                Err(error) => refused.push(format!("{error:#}").replace('\n', " ")),
            }
        }
        let why = refused.join("; ");
        Err(NotHere(format!(
            "no mount namespace with an /etc/hosts of its own: {why}"
        ))
        .into())
    }
}

fn name_server() -> Result<UdpSocket> {
    let refused = |error: std::io::Error| {
        NotHere(format!(
            "no socket for a name server at {NAME_SERVER}:53: {error}"
        ))
    };
    Ok(UdpSocket::bind((NAME_SERVER, 53)).map_err(refused)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_and_goes_for_who_sees_it_and_for_nobody_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = match Names::make(folder.path(), Dns::Absent) {
            Ok(names) => names,
            Err(error) if error.downcast_ref::<NotHere>().is_some() => {
                eprintln!("skipped: {error}");
                return;
            }
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(names.look_up().expect("it resolves"), LOOPBACK);
        names.forget().expect("written");
        names.look_up().expect_err("it does not resolve");
        names.know().expect("written");
        assert_eq!(names.look_up().expect("it resolves again"), LOOPBACK);
        let ours = std::fs::read_to_string("/etc/hosts").expect("it was laid over");
        assert!(!ours.contains(HOST), "others see it: {ours}");
    }
}
