//! What can go wrong in the cache, by what the caller must do.

use std::path::PathBuf;

use world::DiskError;

/// An error of the cache.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// A write or fsync failed before: nothing more is accepted (promise 8). Reads go on.
    #[error(
        "the cache log stopped after a failed write or fsync ({0}); replace the disk or free it, then restart"
    )]
    Stopped(DiskError),
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another process has this folder open.
    #[error("cache folder {} is in use by another process; give each server its own `cache.dir`", .0.display())]
    InUse(PathBuf),
    /// The file is not ours, or of a later version.
    #[error("{}: {what}", path.display())]
    Foreign { path: PathBuf, what: String },
    /// Bytes on the SSD are not what was written there.
    #[error("cache log damaged at byte {at}: {what}")]
    Damaged { at: u64, what: &'static str },
    /// The log knows too many volumes.
    #[error("the cache log knows {0} volumes already; delete exports that are not used")]
    TooManyVolumes(usize),
    /// The volume is not in the log.
    #[error("volume {0} is not in the cache log")]
    UnknownVolume(crate::Id),
    /// The log notes so many forks of one volume that are not done in the store.
    #[error(
        "{0} forks of the volume wait for the store already; ask again when some are published"
    )]
    TooManyForks(usize),
    /// A new volume cannot have the id of one that is there.
    #[error("volume {0} is in the cache log already")]
    KnownVolume(crate::Id),
    /// See [`crate::CacheVolume::fence`].
    #[error("the volume is fenced: another epoch of it exists")]
    Fenced,
    /// Unpublished records are gone: nothing is written until the loss is accepted.
    #[error(
        "volume `{name}`: {what}; its unpublished writes in the cache log are damaged, and it stays closed until the loss is accepted (docs/runbooks/fsync-failed.md)"
    )]
    VolumeDamaged { name: String, what: String },
    /// A loss that nobody has seen is not accepted.
    #[error("the loss of volume `{name}` is not accepted: {why}")]
    LossRefused { name: String, why: String },
    /// The cache is too small for what it must hold.
    #[error(
        "cache of {have} bytes is too small: at least {need} bytes are needed (`cache.disk_size_gb`)"
    )]
    TooSmall { have: u64, need: u64 },
}
