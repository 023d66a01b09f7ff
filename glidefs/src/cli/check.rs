//! `glidefs check`: would this configuration serve now? Looks at the machine, the cache, the
//! addresses and the object store as a start would, and begins nothing: no cache, no keyring. What a
//! running server holds is in use, and so not free for a start.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Access, FsWord, StatVfs, access, statfs, statvfs};
use serde::Serialize;

use super::output;
use super::text::{bytes_text, table};
use crate::config::Config;

/// Protocol rule 9: no memory tail exists in this version.
const ANSWER_MODE: &str =
    "answers wait for the kernel's page cache; no memory tail in this version";
/// Less free space than this is no cache.
const FREE_BYTES_MIN: u64 = 256 << 20;
const TMPFS_MAGIC: FsWord = 0x0102_1994;

/// How one check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It serves, but somebody should know.
    Warning,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    check: &'static str,
    verdict: Verdict,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Row>,
}

pub(super) fn run(config: &Config, as_json: bool) -> ExitCode {
    let mut checks = vec![row("configuration", Verdict::Ok, config.origin.clone())];
    for warning in config.warnings() {
        checks.push(row("configuration", Verdict::Warning, warning));
    }
    checks.extend(cache_rows(config));
    checks.push(row("answers", Verdict::Ok, ANSWER_MODE));
    if let Some(socket) = &config.nbd.unix_socket {
        checks.push(folder_row(
            "unix socket",
            "servers.nbd.unix_socket",
            parent(socket),
        ));
    }
    for finding in crate::daemon::probe(config) {
        checks.push(match finding.outcome {
            Ok(detail) => row(finding.check, Verdict::Ok, detail),
            Err(detail) => row(finding.check, Verdict::Failed, detail),
        });
    }
    let report = Report {
        ok: checks.iter().all(|row| row.verdict < Verdict::Failed),
        checks,
    };
    if as_json {
        output::json(&report);
    } else {
        output::line(report.text());
    }
    ExitCode::from(u8::from(!report.ok))
}

impl Report {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .checks
            .iter()
            .map(|row| {
                let verdict = match row.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Warning => "WARNING",
                    Verdict::Failed => "FAILED",
                };
                [row.check.to_owned(), verdict.to_owned(), row.detail.clone()]
            })
            .collect();
        table(["CHECK", "RESULT", "DETAIL"], &rows)
    }
}

fn row(check: &'static str, verdict: Verdict, detail: impl Into<String>) -> Row {
    Row {
        check,
        verdict,
        detail: detail.into(),
    }
}

fn cache_rows(config: &Config) -> Vec<Row> {
    let dir = &config.cache.dir;
    let folder = folder_row("cache folder", "cache.dir", dir);
    if folder.verdict == Verdict::Failed {
        return vec![folder];
    }
    let mut rows = vec![folder];
    let existing = nearest_existing(dir);
    match statvfs(&existing) {
        Ok(space) => rows.push(space_row(config.cache.size_bytes, kept_bytes(dir), &space)),
        Err(error) => rows.push(row(
            "cache space",
            Verdict::Failed,
            format!(
                "cannot ask for free space of {}: {error}",
                existing.display()
            ),
        )),
    }
    if statfs(&existing).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC) {
        rows.push(row(
            "cache folder",
            Verdict::Warning,
            "it is in memory (tmpfs): a flush does not survive power loss there",
        ));
    }
    rows
}

/// Whether the folder can be written, or made.
fn folder_row(check: &'static str, key: &str, dir: &Path) -> Row {
    let existing = nearest_existing(dir);
    if !existing.is_dir() {
        let detail = format!("`{key}`: {} is no folder", existing.display());
        return row(check, Verdict::Failed, detail);
    }
    if let Some(link) = dangling(dir) {
        let detail = format!(
            "`{key}`: {} is a link to something that is not there: mount or make it, or choose another",
            link.display()
        );
        return row(check, Verdict::Failed, detail);
    }
    if let Err(error) = access(&existing, Access::WRITE_OK | Access::EXEC_OK) {
        return row(
            check,
            Verdict::Failed,
            format!(
                "`{key}`: cannot write to {}: {error}; give this user the right or choose another",
                existing.display()
            ),
        );
    }
    let made = if existing == dir {
        ""
    } else {
        " (will be made)"
    };
    row(check, Verdict::Ok, format!("{}{made}", dir.display()))
}

fn space_row(wanted: u64, kept: u64, space: &StatVfs) -> Row {
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let to_grow = wanted.saturating_sub(kept);
    let detail = format!(
        "{} free, {} kept, may grow to {}",
        bytes_text(free),
        bytes_text(kept),
        bytes_text(wanted)
    );
    if free >= to_grow {
        return row("cache space", Verdict::Ok, detail);
    }
    if kept + free < FREE_BYTES_MIN {
        return row(
            "cache space",
            Verdict::Failed,
            format!("{detail}; free at least {}", bytes_text(FREE_BYTES_MIN)),
        );
    }
    row(
        "cache space",
        Verdict::Warning,
        format!(
            "{detail}; the disk will be full before the cache is (writers then wait for the \
             store): lower `cache.disk_size_gb` or free space"
        ),
    )
}

/// Bytes of the files that are in the cache folder already.
fn kept_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

/// The link to nowhere that keeps `path` from being made, if there is one.
fn dangling(path: &Path) -> Option<&Path> {
    let link = path.ancestors().take_while(|it| !it.exists()).last()?;
    link.is_symlink().then_some(link)
}

fn nearest_existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|it| it.exists());
    match found {
        Some(found) if !found.as_os_str().is_empty() => found.to_owned(),
        // A relative path of which nothing exists: the working directory does.
        _ => PathBuf::from("."),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn config(dir: &Path) -> Config {
        let text = format!(
            "[cache]\ndir = \"{}\"\n[storage]\nurl = \"memory://\"\n",
            dir.display()
        );
        Config::parse("t", &text, &Environment::default()).expect("legal")
    }

    #[test]
    fn a_folder_that_can_be_made_is_fine_and_is_not_made() {
        let temp = tempfile::tempdir().expect("a folder");
        let dir = temp.path().join("a/b");
        let rows = cache_rows(&config(&dir));
        assert_eq!(rows[0].verdict, Verdict::Ok);
        assert!(rows[0].detail.ends_with("(will be made)"));
        assert!(!dir.exists());
    }

    #[test]
    fn a_file_where_a_folder_should_be_fails() {
        let temp = tempfile::NamedTempFile::new().expect("a file");
        let rows = cache_rows(&config(temp.path()));
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].verdict, Verdict::Failed);
        assert!(rows[0].detail.contains("`cache.dir`"));
    }

    #[test]
    fn a_link_to_nowhere_on_the_way_fails() {
        let temp = tempfile::tempdir().expect("a folder");
        let ssd = temp.path().join("ssd");
        std::os::unix::fs::symlink("/not/mounted", &ssd).expect("linked");
        let rows = cache_rows(&config(&ssd.join("cache")));
        assert_eq!(rows[0].verdict, Verdict::Failed);
        assert!(rows[0].detail.contains("ssd is a link"), "{rows:?}");
    }

    #[test]
    fn space_is_counted_with_what_the_cache_has_already() {
        let mut space = statvfs("/").expect("every machine has a root");
        (space.f_bavail, space.f_frsize) = (1 << 20, 4096); // 4 GiB
        assert_eq!(space_row(4 << 30, 0, &space).verdict, Verdict::Ok);
        assert_eq!(space_row(8 << 30, 4 << 30, &space).verdict, Verdict::Ok);
        assert_eq!(space_row(8 << 30, 0, &space).verdict, Verdict::Warning);
        space.f_bavail = 1;
        assert_eq!(space_row(8 << 30, 0, &space).verdict, Verdict::Failed);
    }
}
