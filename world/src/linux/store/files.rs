//! A folder as an object store: an object is a file, `/` in a key is a folder.
//!
//! Promises, also between processes that share the folder:
//! - An object appears and changes whole or not at all, and is durable when the call returns.
//! - Of several creates, or several replaces of one version, exactly one wins.
//! - Files hold the object's bytes and nothing else: the folder may be copied to a real store.
//!
//! The ETag is the file's modification time to the nanosecond and its size. The time is set here,
//! and by every replace to a later one than before, so that a version never comes back. A file
//! touched by hand is another version.
//!
//! Deliberately absent: removal of empty folders (a create in another process may be about to use
//! them), keys that are both object and folder.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat, Timespec};
use rustix::io::Errno;

use super::failure::Failure;
use crate::linux::disk::{create_folder, folder_of, persist_folder, pwrite_all};
use crate::linux::fill_random;
use crate::store::{ETag, Listed, Object, Part, StoreErrorKind};

/// Where files are written before they become objects. Its presence also shows that the store is
/// there: an unmounted disk leaves an empty folder, in which nothing is "not found".
const STAGING: &str = ".staging";
const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    staging: PathBuf,
    /// Set once the disk has refused to keep a name: from then on nothing is answered, reads
    /// included. A reader would find the name in memory and take it for durable.
    failed: OnceLock<String>,
}

impl Files {
    /// Opens a folder, and creates it where it is missing.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        // Absolute: a later change of the working directory must not move the store.
        let root = std::path::absolute(root)?;
        let files = Self {
            staging: root.join(STAGING),
            root,
            failed: OnceLock::new(),
        };
        create_folder(&files.staging)?;
        // A writer that died may have left names that only memory holds. Whoever reads them from here
        // on takes them for stored.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::syncfs(rustix::fs::open(&files.root, flags, Mode::empty())?)?;
        files.sweep_staging()?;
        Ok(files)
    }

    /// Removes what writers that died have left. A living one holds a lock on its file, and until it
    /// does, one on the folder.
    fn sweep_staging(&self) -> io::Result<()> {
        let _nobody_begins = lock_folder(&self.staging, FlockOperation::LockExclusive)?;
        for entry in std::fs::read_dir(&self.staging)? {
            let path = entry?.path();
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let Ok(fd) = rustix::fs::open(&path, flags, Mode::empty()) else {
                continue;
            };
            if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _removed = rustix::fs::unlink(&path);
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &str, part: &Part) -> Result<Object, Failure> {
        let path = self.path(key)?;
        let found = open_object(&path).map_err(|errno| self.failure(errno))?;
        let (start, end) = match *part {
            Part::All => (0, found.size),
            Part::Range(ref range) => (range.start, range.end.max(range.start)),
            Part::Suffix(len) => (found.size.saturating_sub(len), found.size),
        };
        if end > found.size {
            let why = format!("{start}..{end} asked of an object of {} bytes", found.size);
            return Err(Failure::new(StoreErrorKind::Refused, why));
        }
        let bytes = read_range(&found.fd, start, end).map_err(|errno| self.failure(errno))?;
        Ok(Object {
            bytes,
            etag: found.etag,
            size: found.size,
        })
    }

    pub(super) fn create(&self, key: &str, body: &Bytes) -> Result<ETag, Failure> {
        let path = self.path(key)?;
        self.check_present()?;
        create_folder(folder_of(&path)).map_err(|errno| match errno {
            // The disk tells once: the next attempt would find the folder and be told that all is well.
            Errno::IO => self.not_kept(folder_of(&path), errno),
            _ => self.failure(errno),
        })?;
        let staged = self.stage(body, i64::MIN)?;
        // Fails if the name is taken: the one step in which creates race.
        match rustix::fs::link(&staged.path, &path) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(Failure::new(
                    StoreErrorKind::Conflict,
                    "the object exists already",
                ));
            }
            Err(errno) => return Err(self.unclear(errno)),
        }
        self.persist_name(&path)?;
        Ok(staged.etag.clone())
    }

    pub(super) fn replace(&self, key: &str, seen: &ETag, body: &Bytes) -> Result<ETag, Failure> {
        let path = self.path(key)?;
        let _locked = lock_folder(folder_of(&path), FlockOperation::LockExclusive)
            .map_err(|errno| self.failure(errno))?;
        let found = open_object(&path).map_err(|errno| self.failure(errno))?;
        if found.etag != *seen {
            let why = format!("the object is at version {}, not {seen}", found.etag);
            return Err(Failure::new(StoreErrorKind::Conflict, why));
        }
        let staged = self.stage(body, found.modified)?;
        rustix::fs::rename(&staged.path, &path).map_err(|errno| self.unclear(errno))?;
        self.persist_name(&path)?;
        Ok(staged.etag.clone())
    }

    pub(super) fn delete(&self, key: &str) -> Result<(), Failure> {
        let path = self.path(key)?;
        let gone = |failure: Failure| match failure.kind {
            StoreErrorKind::NotFound => Ok(()),
            _ => Err(failure),
        };
        // Against a replace that has just looked at the object.
        let _locked = match lock_folder(folder_of(&path), FlockOperation::LockExclusive) {
            Ok(locked) => locked,
            Err(errno) => return gone(self.failure(errno)),
        };
        match rustix::fs::unlink(&path) {
            Ok(()) => self.persist_name(&path),
            Err(errno) => gone(self.failure(errno)),
        }
    }

    pub(super) fn list(
        &self,
        prefix: &str,
        after: &str,
        count_max: usize,
    ) -> Result<Vec<Listed>, Failure> {
        self.check_present()?;
        let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        // Refuses prefixes that lead out of the store.
        if !folder.is_empty() {
            self.path(folder.trim_end_matches('/'))?;
        }
        let mut walk = Walk {
            root: &self.root,
            prefix,
            after,
            count_max,
            listed: Vec::new(),
        };
        match walk.folder(folder) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(walk.listed),
            Err(errno) => Err(self.failure(errno)),
        }
    }

    /// Writes a body durably under a passing name, with a version later than `modified_before`.
    fn stage(&self, body: &Bytes, modified_before: i64) -> Result<Staged, Failure> {
        let mut id = [0; 16];
        fill_random(&mut id);
        let name = format!("{:032x}", u128::from_be_bytes(id));
        let path = self.staging.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let fd = self
            .begin(&path, flags, mode)
            .map_err(|errno| self.failure(errno))?;
        let mut staged = Staged {
            fd,
            path,
            etag: ETag(String::new()),
        };
        staged
            .fill(body, modified_before)
            .map_err(|errno| self.failure(errno))?;
        Ok(staged)
    }

    /// Creates a staged file and shows others that its writer lives, with no sweep in between.
    fn begin(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let _no_sweep = lock_folder(&self.staging, FlockOperation::LockShared)?;
        let fd = rustix::fs::open(path, flags, mode)?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        Ok(fd)
    }

    /// The folder holds the name of what was created, replaced or removed, also after a power cut.
    fn persist_name(&self, path: &Path) -> Result<(), Failure> {
        let folder = folder_of(path);
        persist_folder(folder).map_err(|errno| self.not_kept(folder, errno))
    }

    /// From here on nothing is answered.
    fn not_kept(&self, folder: &Path, errno: Errno) -> Failure {
        let why = format!(
            "the disk did not keep a change of {} ({errno}): what was stored may be gone after a power \
             cut; check the disk, then restart",
            folder.display()
        );
        tracing::error!("{why}");
        self.failed.get_or_init(|| why.clone());
        Failure::new(StoreErrorKind::Unknown, why)
    }

    fn check_sound(&self) -> Result<(), Failure> {
        match self.failed.get() {
            None => Ok(()),
            Some(why) => Err(Failure::new(StoreErrorKind::Refused, why.clone())),
        }
    }

    fn path(&self, key: &str) -> Result<PathBuf, Failure> {
        self.check_sound()?;
        let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part == STAGING;
        if key.split('/').any(bad) || key.contains('\0') {
            let why = "a key consists of names, with single slashes in between";
            return Err(Failure::new(StoreErrorKind::Refused, why));
        }
        Ok(self.root.join(key))
    }

    fn check_present(&self) -> Result<(), Failure> {
        self.check_sound()?;
        match rustix::fs::stat(&self.staging) {
            Ok(_) => Ok(()),
            Err(errno) => {
                let why = format!(
                    "the store's folder {} is not there ({errno}); is its disk mounted?",
                    self.root.display()
                );
                Err(Failure::new(StoreErrorKind::Refused, why))
            }
        }
    }

    /// A failure before anything has changed.
    fn failure(&self, errno: Errno) -> Failure {
        let kind = match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::ISDIR => {
                if let Err(failure) = self.check_present() {
                    return failure;
                }
                StoreErrorKind::NotFound
            }
            Errno::OPNOTSUPP => StoreErrorKind::Unsupported,
            Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NAMETOOLONG | Errno::INVAL => {
                StoreErrorKind::Refused
            }
            // Disk full, too many open files, a failing disk: it may pass.
            _ => StoreErrorKind::Retry,
        };
        Failure::new(kind, errno.to_string())
    }

    /// A failure while or after the change was made.
    fn unclear(&self, errno: Errno) -> Failure {
        let failure = self.failure(errno);
        match failure.kind {
            StoreErrorKind::Refused | StoreErrorKind::Unsupported => failure,
            _ => Failure {
                kind: StoreErrorKind::Unknown,
                ..failure
            },
        }
    }
}

/// A body on disk that is no object yet. The passing name goes away when dropped.
#[derive(Debug)]
struct Staged {
    fd: OwnedFd,
    path: PathBuf,
    etag: ETag,
}

impl Staged {
    fn fill(&mut self, body: &Bytes, modified_before: i64) -> Result<(), Errno> {
        pwrite_all(&self.fd, 0, body)?;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let now = nanos(now.tv_sec, now.tv_nsec);
        let modified = now.max(modified_before.saturating_add(1));
        let time = Timespec {
            tv_sec: modified.div_euclid(NANOS_PER_SECOND),
            tv_nsec: modified.rem_euclid(NANOS_PER_SECOND),
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&self.fd, &times)?;
        rustix::fs::fsync(&self.fd)?;
        let stat = rustix::fs::fstat(&self.fd)?;
        if modified_nanos(&stat) != modified {
            // The file system rounds times: two versions could look alike.
            return Err(Errno::OPNOTSUPP);
        }
        self.etag = etag_of(&stat);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename it is gone already; else the next start sweeps what stays.
        let _removed = rustix::fs::unlink(&self.path);
    }
}

/// An object's file, opened: it stays this version whatever happens to its name.
struct Found {
    fd: OwnedFd,
    size: u64,
    modified: i64,
    etag: ETag,
}

fn open_object(path: &Path) -> Result<Found, Errno> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ISDIR);
    }
    Ok(Found {
        fd,
        size: size_of_file(&stat),
        modified: modified_nanos(&stat),
        etag: etag_of(&stat),
    })
}

fn read_range(fd: &OwnedFd, start: u64, end: u64) -> Result<Bytes, Errno> {
    let len = usize::try_from(end - start).map_err(|_too_long| Errno::NOMEM)?;
    let mut bytes = vec![0; len];
    let (mut at, mut rest) = (start, &mut bytes[..]);
    while !rest.is_empty() {
        match rustix::io::pread(fd, &mut *rest, at) {
            // Shorter than it was a moment ago: somebody cuts objects by hand.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                at += u64::try_from(count).unwrap_or(0);
                rest = &mut rest[count..];
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(Bytes::from(bytes))
}

/// Exclusive for whoever looks at an object of the folder in order to change it. Ends with the process.
fn lock_folder(folder: &Path, how: FlockOperation) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(folder, flags, Mode::empty())?;
    loop {
        match rustix::fs::flock(&fd, how) {
            Err(Errno::INTR) => {}
            other => return other.map(|()| fd),
        }
    }
}

fn etag_of(stat: &Stat) -> ETag {
    let (modified, size) = (modified_nanos(stat), size_of_file(stat));
    ETag(format!("{modified:x}-{size:x}"))
}

fn modified_nanos(stat: &Stat) -> i64 {
    nanos(
        stat.st_mtime,
        i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
}

fn nanos(seconds: i64, nanos: i64) -> i64 {
    seconds
        .saturating_mul(NANOS_PER_SECOND)
        .saturating_add(nanos)
}

fn size_of_file(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// A listing in the order of whole keys.
struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: &'a str,
    count_max: usize,
    listed: Vec<Listed>,
}

impl Walk<'_> {
    /// `folder` is empty or ends with a slash.
    fn folder(&mut self, folder: &str) -> Result<(), Errno> {
        for name in self.names(folder)? {
            if self.listed.len() >= self.count_max {
                return Ok(());
            }
            let key = format!("{folder}{name}");
            if key.ends_with('/') {
                let wanted = key.starts_with(self.prefix) || self.prefix.starts_with(&key);
                let passed = key.as_str() < self.after && !self.after.starts_with(&key);
                if wanted && !passed {
                    self.folder(&key)?;
                }
            } else if key.starts_with(self.prefix) && key.as_str() > self.after {
                let path = self.root.join(&key);
                match rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => self.listed.push(Listed {
                        key,
                        size: size_of_file(&stat),
                    }),
                    // Deleted since.
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    /// The names in a folder, those of folders with a slash: so sorted, a walk meets all keys in
    /// their order (`a-b` comes before `a/b`).
    fn names(&self, folder: &str) -> Result<Vec<String>, Errno> {
        let read = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.join(folder)).map_err(read)? {
            let entry = entry.map_err(read)?;
            // A key is text; other names are none of ours.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let kind = entry.file_type().map_err(read)?;
            if kind.is_dir() && name != STAGING {
                names.push(format!("{name}/"));
            } else if kind.is_file() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

#[cfg(test)]
mod tests;
