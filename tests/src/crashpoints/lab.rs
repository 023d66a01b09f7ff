//! Where a content becomes an image that the kernel mounts, and the filesystem's own tools, SQLite and
//! a comparison of files have their say. Only ever a copy: a mount replays the journal.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::filesystem::Filesystem;
use super::stream::{Content, Reached};
use super::work::{
    ENTRIES, ENTRY_BYTES, Mounted, Owed, PYTHON, SQLITE, VERSION, What, entry, file_bytes,
    file_path, version,
};
use crate::site::text;
use crate::tool;

/// In memory where there is such a folder: nothing here has to outlive anything.
const MEMORY: &str = "/dev/shm";

#[derive(Debug)]
pub struct Lab {
    filesystem: Filesystem,
    size_bytes: u64,
    folder: TempDir,
    images: u64,
}

impl Lab {
    pub fn new(filesystem: Filesystem, size_bytes: u64) -> Result<Self> {
        let folder = match Path::new(MEMORY).is_dir() {
            true => tempfile::tempdir_in(MEMORY)?,
            false => tempfile::tempdir()?,
        };
        Ok(Self {
            filesystem,
            size_bytes,
            folder,
            images: 0,
        })
    }

    /// Judges a content that has come so far.
    pub fn judge(&mut self, content: &Content, reached: Reached, owed: &[Owed]) -> Result<()> {
        self.images += 1;
        // A new name each time: the loop device of the last may not be gone yet.
        let image = self.folder.path().join(format!("image-{}", self.images));
        self.write(&image, content)?;
        let judged = self.judge_image(&image, reached, owed);
        std::fs::remove_file(&image)?;
        judged
    }

    #[expect(clippy::disallowed_types, reason = "tools work on real files")]
    fn write(&self, image: &Path, content: &Content) -> Result<()> {
        let mut file = std::fs::File::create(image)?;
        file.set_len(self.size_bytes)?;
        let mut next = 0;
        for (at, page) in content.pages() {
            if at != next {
                file.seek(SeekFrom::Start(at))?;
            }
            file.write_all(page)?;
            next = at + u64::try_from(page.len())?;
        }
        Ok(())
    }

    fn judge_image(&self, image: &Path, reached: Reached, owed: &[Owed]) -> Result<()> {
        let checked = self.filesystem.check_as_it_is(image);
        checked.context("before it is mounted")?;
        let root = self.folder.path().join("mounted");
        {
            let options = self.filesystem.mount_options();
            let mounted = Mounted::new(text(image), &root, options)?;
            let due = |owed: &&Owed| owed.from <= reached.whole && reached.touched() <= owed.until;
            for owed in owed.iter().filter(due) {
                let compared = compare(&mounted.folder, &owed.what);
                compared.with_context(|| format!("owed since request {}", owed.from))?;
            }
            databases(&mounted.folder, reached.whole, owed)?;
        }
        let checked = self.filesystem.check(image);
        checked.context("after its journal was replayed")
    }
}

#[expect(clippy::disallowed_methods, reason = "what is compared is real files")]
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn compare(root: &Path, what: &What) -> Result<()> {
    match what {
        What::File(number) => {
            let bytes = read(&root.join(file_path(*number)))?;
            ensure!(bytes == file_bytes(*number), "file {number} has changed");
        }
        What::Gone(number) => {
            let path: PathBuf = root.join(file_path(*number));
            ensure!(!path.exists(), "file {number} is back");
        }
        What::Entries(count) => {
            let bytes = read(&root.join(ENTRIES))?;
            ensure!(bytes.len() >= count * ENTRY_BYTES, "entries are missing");
            for (number, part) in bytes.chunks(ENTRY_BYTES).take(*count).enumerate() {
                ensure!(part == entry(number), "entry {number} has changed");
            }
        }
        What::Version(least) => {
            let bytes = read(&root.join(VERSION))?;
            let first = bytes.first_chunk().context("a version without a number")?;
            let number = u64::from_le_bytes(*first);
            ensure!(number >= *least, "version {number}, and {least} was synced");
            ensure!(bytes == version(number), "version {number} is not whole");
        }
        // Others see to these.
        What::Filesystem | What::Rows(..) => {}
    }
    Ok(())
}

/// Each database is sound, and has all rows that were committed.
fn databases(root: &Path, prefix: usize, owed: &[Owed]) -> Result<()> {
    for (name, _mode) in super::work::DATABASES {
        let path = root.join(name);
        let said = tool::run(PYTHON, &[SQLITE, "check", text(&path)])?;
        let rows: u64 = said.trim().parse()?;
        let due = owed.iter().filter(|owed| owed.from <= prefix);
        let due = due.filter_map(|owed| match owed.what {
            What::Rows(of, rows) if of == name => Some(rows),
            _ => None,
        });
        let least = due.max().unwrap_or(0);
        ensure!(rows >= least, "{name}: {rows} rows, and {least} committed");
    }
    Ok(())
}
