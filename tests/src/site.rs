//! One node and its store, ready to be connected to: what most tests begin with.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

use crate::s3::S3Server;
use crate::server::{Server, Settings, Store};

/// A store over HTTP and one server before it, with its own cache.
#[derive(Debug)]
pub struct Site {
    /// First, so that it stops before its store does.
    pub server: Server,
    pub s3: S3Server,
    pub settings: Settings,
    pub folder: TempDir,
    nodes: u32,
}

impl Site {
    /// S3 with a password, as in the quick start.
    pub fn new() -> Result<Self> {
        Self::with(|_settings| {})
    }

    /// The same, with the settings changed.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Result<Self> {
        Self::prepared(|_s3, settings| {
            change(settings);
            Ok(())
        })
    }

    /// The same, where the store has to be prepared as well: it runs by then, and no server does.
    pub fn prepared(change: impl FnOnce(&S3Server, &mut Settings) -> Result<()>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let s3 = S3Server::start(&folder.path().join("objects"), 0)?;
        let store = Store::S3 {
            endpoint: s3.url(),
            prefix: "vms".to_owned(),
        };
        let mut settings = Settings::new(store, &folder.path().join("cache-0"));
        change(&s3, &mut settings)?;
        let server = Server::start(&folder.path().join("node-0"), &settings)?;
        Ok(Self {
            server,
            s3,
            settings,
            folder,
            nodes: 1,
        })
    }

    /// A folder as the store, without HTTP between.
    pub fn on_files() -> Result<Self> {
        Self::with(|settings| {
            let store = settings.cache_dir.with_file_name("store");
            settings.store = Store::File(store);
        })
    }

    /// Starts the server again after it ended, on the same cache.
    pub fn restart(&mut self) -> Result<()> {
        self.server = Server::start(&self.node_dir(self.nodes - 1), &self.settings)?;
        Ok(())
    }

    /// Starts another node with an empty cache; the one before must have ended.
    pub fn move_on(&mut self) -> Result<()> {
        self.settings.cache_dir = self.folder.path().join(format!("cache-{}", self.nodes));
        self.server = Server::start(&self.node_dir(self.nodes), &self.settings)?;
        self.nodes += 1;
        Ok(())
    }

    fn node_dir(&self, node: u32) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    /// A file for a tool to work on.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a file of bytes that do not compress, with a hole in its second quarter.
    #[expect(clippy::disallowed_methods, reason = "tools work on real files")]
    pub fn image(&self, name: &str, bytes: usize) -> Result<PathBuf> {
        let mut filler = crate::pages::Filler::new(4711);
        let mut image = Vec::with_capacity(bytes);
        while image.len() < bytes {
            image.extend_from_slice(&filler.next_word().to_le_bytes());
        }
        image[bytes / 4..bytes / 2].fill(0);
        let path = self.path(name);
        std::fs::write(&path, image)?;
        Ok(path)
    }
}

/// Tools take text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
