//! The filesystems: how they are made, and by which of their own tools they are judged.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::site::text;
use crate::tool;

/// A filesystem of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filesystem {
    Ext4,
    Xfs,
    Btrfs,
}

const MIB: u64 = 1 << 20;

impl Filesystem {
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// About the smallest that its tools make.
    pub(super) fn size_bytes(self) -> u64 {
        match self {
            Self::Ext4 => 64 * MIB,
            Self::Xfs => 300 * MIB,
            Self::Btrfs => 128 * MIB,
        }
    }

    pub(super) fn mkfs(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
        }
    }

    /// The tools that making and judging it take.
    pub(super) fn tools(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["mkfs.ext4", "e2fsck"],
            Self::Xfs => &["mkfs.xfs", "xfs_repair"],
            Self::Btrfs => &["mkfs.btrfs", "btrfs"],
        }
    }

    pub(super) fn mount_options(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 | Self::Btrfs => &["-o", "loop"],
            // Copies of one filesystem come one after another.
            Self::Xfs => &["-o", "loop,nouuid"],
        }
    }

    /// The judgement of its own tool before anything is replayed; only copy-on-write has one to make.
    pub(super) fn check_as_it_is(self, image: &Path) -> Result<()> {
        match self {
            Self::Ext4 | Self::Xfs => Ok(()),
            Self::Btrfs => {
                // What the kernel remembers of an earlier copy stands in the way of an older one.
                tool::run("btrfs", &["device", "scan", "--forget"])?;
                self.check(image)
            }
        }
    }

    /// The judgement of its own tool once the journal was replayed.
    pub(super) fn check(self, image: &Path) -> Result<()> {
        let image = text(image);
        match self {
            Self::Ext4 => tool::run("e2fsck", &["-fn", image])?,
            Self::Xfs => tool::run("xfs_repair", &["-n", image])?,
            Self::Btrfs => tool::run("btrfs", &["check", "--readonly", image])?,
        };
        Ok(())
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
