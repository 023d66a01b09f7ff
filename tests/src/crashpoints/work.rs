//! The real work that is recorded: mkfs, mount, untar, files that are synced one by one, SQLite, removal
//! and trim, on a loop device over FUSE over NBD. Notes on the way from when on what must be there.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Scale;
use super::filesystem::Filesystem;
use super::record::{Progress, Recorder};
use super::stream::Stream;
use crate::pages::Filler;
use crate::server::wait_until;
use crate::site::text;
use crate::tool::{self, Background, Talk};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// The distribution's own: it is always there beside its libnbd.
pub(super) const PYTHON: &str = "/usr/bin/python3";
pub(super) const SQLITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/sqlite.py");
/// The files of the tree are spread over so many folders; the first is removed in the end.
const FOLDERS: u64 = 4;
const FILE_BYTES_MAX: u64 = 24_000;
/// Of one entry of the file that is only appended to, and of one version of the file that is replaced.
pub(super) const ENTRY_BYTES: usize = 700;
const VERSION_BYTES: u64 = 9_000;

/// From when on something must be there, and until when: counted in requests that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    pub from: usize,
    pub until: usize,
    pub what: What,
}

/// Something that must be there, by its path in the filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// There is a filesystem.
    Filesystem,
    /// The file of the tree with this number.
    File(u64),
    Gone(u64),
    /// The first so many entries of the file that is appended to.
    Entries(usize),
    /// This version of the file that is replaced, or a later one, whole.
    Version(u64),
    /// At least so many rows.
    Rows(&'static str, u64),
}

/// Databases, by the journal that they keep.
pub(super) const DATABASES: [(&str, &str); 2] = [("wal.db", "wal"), ("rollback.db", "delete")];

/// What was recorded.
#[derive(Debug)]
pub struct Recording {
    pub filesystem: Filesystem,
    pub stream: Stream,
    pub owed: Vec<Owed>,
}

impl Recording {
    /// Does the work on a fresh volume and records it.
    pub fn make(filesystem: Filesystem, scale: Scale) -> Result<Self> {
        let folder = TempDir::new()?;
        let recorder = Recorder::start(folder.path(), filesystem.size_bytes())?;
        let mut work = Work {
            folder: &folder,
            filesystem,
            scale,
            progress: &recorder.progress,
            owed: Vec::new(),
        };
        work.perform(&recorder.uri())
            .with_context(|| format!("the work on {filesystem}"))?;
        let owed = work.owed;
        Ok(Self {
            filesystem,
            stream: recorder.finish()?,
            owed,
        })
    }

    /// After how many requests there is a filesystem.
    pub fn formatted(&self) -> usize {
        let formatted = self.owed.iter().find(|owed| owed.what == What::Filesystem);
        formatted.map_or(usize::MAX, |owed| owed.from)
    }
}

struct Work<'a> {
    folder: &'a TempDir,
    filesystem: Filesystem,
    scale: Scale,
    progress: &'a Progress,
    owed: Vec<Owed>,
}

impl Work<'_> {
    fn perform(&mut self, uri: &str) -> Result<()> {
        let disk = Disk::attach(&self.path("fuse"), uri)?;
        let (mkfs, arguments) = self.filesystem.mkfs();
        tool::run(mkfs, &[arguments, &[&disk.device]].concat())?;
        tool::run("sync", &[&disk.device])?;
        self.owe(What::Filesystem);
        let root = self.path("mounted");
        {
            let mounted = Mounted::new(&disk.device, &root, &[])?;
            self.untar(&mounted.folder)?;
            self.append_and_replace(&mounted.folder)?;
            for (name, mode) in DATABASES {
                self.load(&mounted.folder, name, mode)?;
            }
            self.remove(&mounted.folder)?;
            self.append_and_replace_more(&mounted.folder)?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The kernel has just said that it is durable.
    fn owe(&mut self, what: What) {
        self.owed.push(Owed {
            from: self.progress.durable(),
            until: usize::MAX,
            what,
        });
    }

    fn untar(&mut self, root: &Path) -> Result<()> {
        let tree = self.path("source");
        for number in 0..self.scale.files {
            let path = tree.join(file_path(number));
            fs::create_dir_all(path.parent().context("files are in folders")?)?;
            write(&path, &file_bytes(number))?;
        }
        let tar = self.path("tree.tar");
        tool::run("tar", &["-C", text(&tree), "-cf", text(&tar), "."])?;
        tool::run("tar", &["-C", text(root), "-xf", text(&tar)])?;
        tool::run("sync", &["-f", text(root)])?;
        for number in 0..self.scale.files {
            self.owe(What::File(number));
        }
        Ok(())
    }

    fn append_and_replace(&mut self, root: &Path) -> Result<()> {
        self.append(root, 0, self.scale.entries)?;
        self.replace(root, 0, self.scale.versions)
    }

    /// Again, into the room that became free.
    fn append_and_replace_more(&mut self, root: &Path) -> Result<()> {
        self.append(root, self.scale.entries, self.scale.entries / 2)?;
        self.replace(root, self.scale.versions, self.scale.versions / 2)
    }

    fn append(&mut self, root: &Path, first: usize, count: usize) -> Result<()> {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(root.join(ENTRIES))?;
        sync_folder(root)?;
        for number in first..first + count {
            file.write_all(&entry(number))?;
            file.sync_data()?;
            self.owe(What::Entries(number + 1));
        }
        Ok(())
    }

    fn replace(&mut self, root: &Path, first: u64, count: u64) -> Result<()> {
        for number in first..first + count {
            let next = root.join("version.next");
            write(&next, &version(number))?;
            fs::OpenOptions::new().write(true).open(&next)?.sync_all()?;
            fs::rename(&next, root.join(VERSION))?;
            sync_folder(root)?;
            self.owe(What::Version(number));
        }
        Ok(())
    }

    fn load(&mut self, root: &Path, name: &'static str, mode: &str) -> Result<()> {
        let (path, commits) = (root.join(name), self.scale.commits.to_string());
        let mut python = Talk::start(PYTHON, &[SQLITE, "load", text(&path), mode, &commits])?;
        for _ in 0..self.scale.commits {
            python.go_on()?;
            let rows = python.hear()?.parse()?;
            self.owe(What::Rows(name, rows));
        }
        python.go_on()?;
        python.finish()
    }

    fn remove(&mut self, root: &Path) -> Result<()> {
        let begins = self.progress.came();
        let goes = |what: &What| matches!(what, What::File(number) if folder_of(*number) == 0);
        let mut gone = Vec::new();
        for owed in self.owed.iter_mut().filter(|owed| goes(&owed.what)) {
            owed.until = begins;
            if let What::File(number) = owed.what {
                gone.push(number);
            }
        }
        fs::remove_dir_all(root.join("folder-0"))?;
        tool::run("sync", &["-f", text(root)])?;
        for number in gone {
            self.owe(What::Gone(number));
        }
        tool::run("fstrim", &[text(root)])?;
        Ok(())
    }
}

pub(super) const ENTRIES: &str = "entries";
pub(super) const VERSION: &str = "version";

fn folder_of(number: u64) -> u64 {
    number % FOLDERS
}

pub(super) fn file_path(number: u64) -> PathBuf {
    let folder = folder_of(number);
    PathBuf::from(format!("folder-{folder}/sub-{}/file-{number}", number % 7))
}

/// Every third file compresses well.
pub(super) fn file_bytes(number: u64) -> Vec<u8> {
    let mut filler = Filler::new(number);
    let len = usize::try_from(1 + filler.below(FILE_BYTES_MAX)).expect("small");
    if number.is_multiple_of(3) {
        let line = format!("line of file {number}\n");
        return line.bytes().cycle().take(len).collect();
    }
    noise(&mut filler, len)
}

pub(super) fn entry(number: usize) -> Vec<u8> {
    let seed = u64::try_from(number).expect("small") + (1 << 32);
    noise(&mut Filler::new(seed), ENTRY_BYTES)
}

/// Versions say their number, so that a reader knows which one it has.
pub(super) fn version(number: u64) -> Vec<u8> {
    let mut filler = Filler::new(number + (2 << 32));
    let len = usize::try_from(100 + filler.below(VERSION_BYTES)).expect("small");
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(noise(&mut filler, len));
    bytes
}

fn noise(filler: &mut Filler, len: usize) -> Vec<u8> {
    let words = std::iter::repeat_with(|| filler.next_word().to_le_bytes());
    words.flatten().take(len).collect()
}

#[expect(clippy::disallowed_methods, reason = "the work is on real files")]
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = fs::OpenOptions::new().read(true).open(path)?;
    Ok(folder.sync_all()?)
}

/// An export as a loop device, through FUSE: no NBD in the kernel needed. Without the page cache
/// between, so that several requests are on their way together.
struct Disk {
    device: String,
    _fuse: Background,
}

impl Disk {
    fn attach(folder: &Path, uri: &str) -> Result<Self> {
        fs::create_dir(folder)?;
        let arguments = [text(folder), uri];
        let fuse = Background::start("nbdfuse", &arguments, &["fusermount3", "-u", text(folder)])?;
        let file = folder.join("nbd");
        let appears = wait_until(PATIENCE, || file.metadata().is_ok_and(|it| it.len() > 0));
        ensure!(appears, "nbdfuse shows no disk");
        let arguments = ["--direct-io=on", "--find", "--show", text(&file)];
        let device = tool::run("losetup", &arguments)?;
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

/// A mounted filesystem.
pub(super) struct Mounted {
    pub(super) folder: PathBuf,
}

impl Mounted {
    pub(super) fn new(device: &str, folder: &Path, options: &[&str]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        tool::run("mount", &[options, &[device, text(folder)]].concat())?;
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
