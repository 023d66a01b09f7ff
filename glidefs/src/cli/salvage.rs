//! `glidefs salvage …`: what a server's log still holds of volumes that are not its own any more.
#![expect(
    clippy::disallowed_types,
    reason = "edge: a command writes the file that it was told to write"
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::client::{Client, Said, block_on, salvage_path};
use super::text::{bytes_text, table};
use super::{Failure, SalvageCommand, output};
use crate::control::{SalvageDocument, SalvageKind, SalvageRange, SalvageRanges};

/// Bytes that are asked for at a time: what the API gives.
const PIECE_BYTES: u64 = 1 << 20;

pub(super) fn run(command: SalvageCommand) -> Result<ExitCode, Failure> {
    match command {
        SalvageCommand::List { remote, json } => {
            let client = Client::new(&remote)?;
            let said: Said<Vec<SalvageDocument>> = block_on(client.look("/api/salvage"))?;
            let found = said.or_refused()?;
            if json {
                output::json(&found);
            } else if found.is_empty() {
                output::line("nothing: all that was answered here is published, or still to be");
            } else {
                output::line(list_text(&found));
            }
        }
        SalvageCommand::Show { remote, id, json } => {
            let client = Client::new(&remote)?;
            let all = block_on(all_ranges(&client, &id))?;
            if json {
                output::json(&all);
            } else {
                output::line(show_text(&all));
            }
        }
        SalvageCommand::Export {
            remote,
            id,
            to,
            json,
        } => {
            let client = Client::new(&remote)?;
            let all = block_on(export(&client, &id, &to))?;
            if json {
                output::json(&all);
            } else {
                output::line(export_text(&all, &to));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Page by page.
async fn all_ranges(client: &Client<'_>, id: &str) -> Result<SalvageRanges, Failure> {
    let mut from = 0;
    let mut ranges = Vec::new();
    loop {
        let path = salvage_path(id, &format!("?from={from}"));
        let said: Said<SalvageRanges> = client.look(&path).await?;
        let page = said.or_refused()?;
        ranges.extend(page.ranges);
        match page.next {
            // Forward only, whatever a server says.
            Some(next) if next > from => from = next,
            Some(_) | None => {
                let (salvage, next) = (page.salvage, None);
                return Ok(SalvageRanges {
                    salvage,
                    ranges,
                    next,
                });
            }
        }
    }
}

/// Writes an image of the volume that has the salvaged bytes in their places and nothing else, and beside it
/// which those are.
async fn export(client: &Client<'_>, id: &str, to: &Path) -> Result<SalvageRanges, Failure> {
    let all = all_ranges(client, id).await?;
    let image = create(to)?;
    let list = list_path(to);
    let listing = create(&list)?;
    let failed = |error: std::io::Error| Failure::refused(format!("{}: {error}", to.display()));
    image.set_len(all.salvage.size_bytes).map_err(failed)?;
    let data = || all.ranges.iter().filter(|it| it.kind == SalvageKind::Data);
    let bar = progress(data().map(|it| it.len).sum());
    for range in data() {
        for piece in pieces(range) {
            let path = salvage_path(id, &format!("/data?at={}&len={}", piece.at, piece.len));
            let bytes = client.bytes(&path).await?;
            if u64::try_from(bytes.len()) != Ok(piece.len) {
                let text = format!(
                    "the server gave {} bytes where {} were asked for",
                    bytes.len(),
                    piece.len
                );
                return Err(Failure::refused(text));
            }
            image.write_all_at(&bytes, piece.at).map_err(failed)?;
            bar.inc(piece.len);
        }
    }
    bar.finish_and_clear();
    let text = serde_json::to_vec_pretty(&all).expect("our documents are JSON");
    let written = listing
        .write_all_at(&text, 0)
        .and_then(|()| listing.sync_all());
    written.map_err(|error| Failure::refused(format!("{}: {error}", list.display())))?;
    image.sync_all().map_err(failed)?;
    Ok(all)
}

fn pieces(range: &SalvageRange) -> impl Iterator<Item = SalvageRange> {
    let end = range.at + range.len;
    let starts = (range.at..end).step_by(usize::try_from(PIECE_BYTES).expect("1 MiB"));
    starts.map(move |at| SalvageRange {
        at,
        len: PIECE_BYTES.min(end - at),
        kind: SalvageKind::Data,
    })
}

/// Never over something that is there.
fn create(path: &Path) -> Result<File, Failure> {
    let mut how = OpenOptions::new();
    let made = how.write(true).create_new(true).open(path);
    made.map_err(|error| Failure::unusable(format!("{}: {error}", path.display())))
}

fn list_path(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".json");
    PathBuf::from(path)
}

fn progress(bytes: u64) -> ProgressBar {
    let target = if output::is_watched() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {eta} left");
    let style = style.expect("a template of known fields");
    ProgressBar::with_draw_target(Some(bytes), target).with_style(style)
}

fn list_text(found: &[SalvageDocument]) -> String {
    let rows: Vec<_> = found
        .iter()
        .map(|it| {
            [
                it.id.clone(),
                it.export.clone(),
                it.epoch.to_string(),
                format!("{} to {}", it.first_seq, it.last_seq),
                bytes_text(it.dirty_bytes),
            ]
        })
        .collect();
    table(["ID", "EXPORT", "EPOCH", "WRITES", "BYTES"], &rows)
}

fn show_text(all: &SalvageRanges) -> String {
    let rows: Vec<_> = all
        .ranges
        .iter()
        .map(|it| {
            let kind = match it.kind {
                SalvageKind::Data => "data",
                SalvageKind::Zero => "zeros",
            };
            [it.at.to_string(), it.len.to_string(), kind.to_owned()]
        })
        .collect();
    let head = list_text(std::slice::from_ref(&all.salvage));
    format!("{head}\n\n{}", table(["AT", "BYTES", "WHAT"], &rows))
}

fn export_text(all: &SalvageRanges, to: &Path) -> String {
    format!(
        "{}: an image of {} with the unpublished writes {} to {} in their places, and zeros elsewhere\n{}: which bytes those are",
        to.display(),
        all.salvage.export,
        all.salvage.first_seq,
        all.salvage.last_seq,
        list_path(to).display()
    )
}
