//! Where volumes live: the URL of a store, parsed once.

use std::fmt;
use std::path::{Path, PathBuf};

/// A store and the prefix in it. The text form is what the store's client is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    kind: StoreKind,
    /// Bucket or container; empty for `file` and `memory`.
    bucket: String,
    /// Inside the bucket, without slashes around it; for `file` the folder.
    path: String,
}

/// Which kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    S3,
    File,
    Memory,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl StoreUrl {
    /// Reads `s3://bucket/prefix`, `file:///folder`, `memory://`, `gs://…` or `az://…`; the error
    /// says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("is no URL".into());
        };
        let kind = match scheme {
            "s3" => StoreKind::S3,
            "file" => StoreKind::File,
            "memory" => StoreKind::Memory,
            "gs" => StoreKind::Gcs,
            "az" => StoreKind::Azure,
            _ => {
                return Err(
                    "has a scheme that glidefs does not know (s3, file, memory, gs, az)".into(),
                );
            }
        };
        // A `?` or `@` here is mostly a password or an option that would end up in a bucket's name.
        if kind != StoreKind::File && rest.contains(['?', '#', '@', ' ']) {
            return Err("has a part behind `?`, `#` or before `@` that means nothing here".into());
        }
        match kind {
            StoreKind::File => Self::parse_file(rest),
            StoreKind::Memory => Ok(Self {
                kind,
                bucket: String::new(),
                path: rest.trim_matches('/').to_owned(),
            }),
            StoreKind::S3 | StoreKind::Gcs | StoreKind::Azure => Self::parse_bucket(kind, rest),
        }
    }

    /// The store in a folder of this machine.
    pub fn of_folder(folder: &Path) -> Self {
        Self {
            kind: StoreKind::File,
            bucket: String::new(),
            path: folder.display().to_string(),
        }
    }

    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Bucket or container; empty for `file` and `memory`.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix in the bucket, without slashes around it.
    pub fn prefix(&self) -> &str {
        if self.kind == StoreKind::File {
            ""
        } else {
            &self.path
        }
    }

    /// The folder of a `file://` store.
    pub fn folder(&self) -> Option<PathBuf> {
        (self.kind == StoreKind::File).then(|| PathBuf::from(&self.path))
    }

    /// Data leaves this machine.
    pub fn is_remote(&self) -> bool {
        matches!(self.kind, StoreKind::S3 | StoreKind::Gcs | StoreKind::Azure)
    }

    fn parse_file(rest: &str) -> Result<Self, String> {
        // `file://folder` would name a host: take the two forms that mean one thing.
        let relative = rest.starts_with("./") || rest.starts_with("../");
        if !rest.starts_with('/') && !relative {
            return Err("is a file URL without an absolute path (three slashes)".into());
        }
        Ok(Self::of_folder(Path::new(rest)))
    }

    fn parse_bucket(kind: StoreKind, rest: &str) -> Result<Self, String> {
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        if bucket.is_empty() {
            return Err("names no bucket".into());
        }
        let broken = !path.is_empty()
            && path
                .split('/')
                .any(|part| part.is_empty() || part == "." || part == "..");
        if broken {
            return Err("has an empty, `.` or `..` part in its prefix".into());
        }
        Ok(Self {
            kind,
            bucket: bucket.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl StoreKind {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::File => "file",
            Self::Memory => "memory",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.kind.scheme(), self.bucket)?;
        match (self.bucket.is_empty(), self.path.is_empty()) {
            (true, _) => write!(f, "{}", self.path),
            (false, true) => Ok(()),
            (false, false) => write!(f, "/{}", self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_and_print_as_they_were() {
        for (text, bucket, prefix) in [
            ("s3://my-bucket/vms", "my-bucket", "vms"),
            ("s3://my-bucket", "my-bucket", ""),
            ("gs://b/x/y", "b", "x/y"),
            ("az://container/z", "container", "z"),
            ("file:///var/lib/glidefs", "", ""),
            ("file://./data", "", ""),
            ("memory://", "", ""),
        ] {
            let url = StoreUrl::parse(text).expect(text);
            assert_eq!(url.to_string(), text);
            assert_eq!((url.bucket(), url.prefix()), (bucket, prefix), "{text}");
        }
        let url = StoreUrl::parse("s3://b/vms/").expect("a slash at the end is harmless");
        assert_eq!(url.to_string(), "s3://b/vms");
        let folder = StoreUrl::parse("file:///data").expect("absolute").folder();
        assert_eq!(folder, Some(PathBuf::from("/data")));
    }

    #[test]
    fn what_is_no_store_is_refused() {
        for (text, wrong) in [
            ("my-bucket", "no URL"),
            ("http://x/y", "scheme"),
            ("s3://", "no bucket"),
            ("s3:///x", "no bucket"),
            ("s3://b/x//y", "empty"),
            ("s3://b/../x", "`..`"),
            ("s3://key:secret@b/x", "`@`"),
            ("s3://b/x?region=y", "`?`"),
            ("file://data", "three slashes"),
        ] {
            let said = StoreUrl::parse(text).expect_err(text);
            assert!(said.contains(wrong), "{text}: {said}");
        }
    }
}
