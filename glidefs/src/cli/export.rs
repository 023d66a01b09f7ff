//! `glidefs export …`: the API from a shell, with no logic of its own.

use std::process::ExitCode;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Serialize;

use super::client::{Client, Said, block_on, escaped, export_path, stored_path};
use super::text::{bytes_text, duration_text, table};
use super::{ExportCommand, Failure, Named, gc, operation, output};
use crate::control::{
    AcceptLossDocument, DeleteQuery, ExportDocument, PrepareDocument, PromoteDocument, PutDocument,
    WarmDocument, WarmState,
};

/// Pages of a list of everything.
const PAGES_MAX: u32 = 1000;

pub(super) fn run(command: ExportCommand) -> Result<ExitCode, Failure> {
    match command {
        ExportCommand::List { remote, all, json } => {
            let client = Client::new(&remote)?;
            let exports = if all {
                block_on(list_all(&client))?
            } else {
                let said: Said<Vec<ExportDocument>> = block_on(client.look("/api/exports"))?;
                said.or_refused()?
            };
            if json {
                output::json(&exports);
            } else {
                output::line(list_text(&exports));
            }
        }
        ExportCommand::Get(named) => {
            let client = Client::new(&named.remote)?;
            let said = block_on(client.look(&export_path(&named.name, "")))?;
            show(&named, &said.or_refused()?);
        }
        ExportCommand::Forks { of, json } => return super::fork::tree(&of, json),
        ExportCommand::Drain(named) => change(&named, Method::POST, "/drain", String::new())?,
        ExportCommand::Delete {
            named,
            accept_loss,
            purge,
            no_wait,
            request_id,
            volume,
        } => {
            let how = DeleteQuery {
                accept_loss,
                purge,
                request_id,
                volume,
            };
            return delete(&named, &how, !no_wait);
        }
        ExportCommand::AcceptLoss { named, kept_seq } => {
            let wanted = AcceptLossDocument { kept_seq };
            change(&named, Method::POST, "/accept-loss", json(&wanted))?;
        }
        ExportCommand::Prepare { named, warm_bytes } => prepare(&named, warm_bytes)?,
        ExportCommand::Promote {
            named,
            force,
            expected_epoch,
            min_epoch,
            min_seq,
        } => {
            let wanted = PromoteDocument {
                force,
                expected_epoch,
                min_epoch,
                min_seq,
            };
            change(&named, Method::POST, "/promote", json(&wanted))?;
        }
        ExportCommand::Grow { named, size_gb } => {
            if find(&named)?.is_none() {
                return Err(Failure::refused(format!(
                    "there is no export `{}` to grow; `glidefs export create` makes one",
                    named.name
                )));
            }
            change(&named, Method::PUT, "", json(&PutDocument { size_gb }))?;
        }
        ExportCommand::Create { named, size_gb } => create(&named, size_gb)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Page by page, until one is empty.
async fn list_all(client: &Client<'_>) -> Result<Vec<ExportDocument>, Failure> {
    let mut exports: Vec<ExportDocument> = Vec::new();
    for _page in 0..PAGES_MAX {
        let after = exports.last().map(|export| export.name.as_str());
        let said: Said<Vec<ExportDocument>> = client.look(&stored_path(after)).await?;
        let page = said.or_refused()?;
        if page.is_empty() {
            exports.retain(|export| export.role != "deleted");
            exports.sort_by(|a, b| a.name.cmp(&b.name));
            return Ok(exports);
        }
        exports.extend(page);
    }
    Err(Failure::refused(format!(
        "the list does not end: {} exports and more; ask the API page by page \
         (docs/http-api.md)",
        exports.len()
    )))
}

fn prepare(named: &Named, warm_bytes: Option<u64>) -> Result<(), Failure> {
    let wanted = PrepareDocument { warm_bytes };
    change(named, Method::POST, "/prepare", json(&wanted))
}

fn create(named: &Named, size_gb: f64) -> Result<(), Failure> {
    // The name of one that was purged is free.
    if let Some(found) = find(named)?.filter(|found| found.role != "deleted") {
        return Err(Failure::refused(format!(
            "export `{}` exists already, with {}; `glidefs export grow` changes its size",
            found.name,
            bytes_text(found.size_bytes)
        )));
    }
    change(named, Method::PUT, "", json(&PutDocument { size_gb }))
}

fn delete(named: &Named, how: &DeleteQuery, waits: bool) -> Result<ExitCode, Failure> {
    let query = delete_query(how);
    if how.purge {
        let client = Client::new(&named.remote)?;
        let path = export_path(&named.name, &query);
        let path = (Method::DELETE, path.as_str());
        let purged = operation::run(&client, path, String::new(), waits);
        return gc::show(&block_on(purged)?, named.json);
    }
    change(named, Method::DELETE, &query, String::new())?;
    Ok(ExitCode::SUCCESS)
}

fn delete_query(how: &DeleteQuery) -> String {
    let mut query = format!("?accept_loss={}&purge={}", how.accept_loss, how.purge);
    for (key, value) in [("request_id", &how.request_id), ("volume", &how.volume)] {
        if let Some(value) = value {
            query.push_str(&format!("&{key}={}", escaped(value)));
        }
    }
    query
}

/// What goes along with a request.
fn json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("our documents are JSON")
}

fn change(named: &Named, method: Method, verb: &str, body: String) -> Result<(), Failure> {
    let client = Client::new(&named.remote)?;
    let path = export_path(&named.name, verb);
    let said = block_on(client.change(method, &path, body))?;
    show(named, &said.or_refused()?);
    Ok(())
}

/// The export, if the server knows it.
fn find(named: &Named) -> Result<Option<ExportDocument>, Failure> {
    let client = Client::new(&named.remote)?;
    match block_on(client.look(&export_path(&named.name, "")))? {
        Said::Yes(export) => Ok(Some(export)),
        Said::No(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
        Said::No(refusal) => Err(refusal.into_failure()),
    }
}

fn show(named: &Named, export: &ExportDocument) {
    if named.json {
        output::json(export);
    } else {
        output::line(export_text(export));
    }
}

fn list_text(exports: &[ExportDocument]) -> String {
    let rows: Vec<_> = exports
        .iter()
        .map(|export| {
            [
                export.name.clone(),
                bytes_text(export.size_bytes),
                export.role.clone(),
                export.clients.to_string(),
                dirty_text(export),
                listed_group_text(export),
                export.owner.clone(),
            ]
        })
        .collect();
    let columns = ["NAME", "SIZE", "ROLE", "CLIENTS", "DIRTY", "GROUP", "OWNER"];
    table(columns, &rows)
}

/// Of an export that is closed here the store alone knows its group, which a list does not ask.
fn listed_group_text(export: &ExportDocument) -> String {
    match export.role.as_str() {
        "closed" if export.group.is_none() => "not known".to_owned(),
        _ => group_text(export),
    }
}

fn group_text(export: &ExportDocument) -> String {
    let group = export.group.as_ref();
    group.map_or_else(|| "none".to_owned(), |group| group.name.clone())
}

fn export_text(export: &ExportDocument) -> String {
    let mut rows = vec![
        ["size".into(), bytes_text(export.size_bytes)],
        ["role".into(), export.role.clone()],
        ["owner".into(), export.owner.clone()],
        ["epoch".into(), export.epoch.to_string()],
        [
            "fork of".into(),
            export.parent.clone().unwrap_or_else(|| "nothing".into()),
        ],
        ["group".into(), group_text(export)],
        ["clients".into(), export.clients.to_string()],
        ["dirty".into(), dirty_text(export)],
        [
            "in the store".into(),
            format!(
                "write {} of {}, published {}",
                export.published_seq,
                export.last_seq,
                if export.published_at.is_empty() {
                    "never"
                } else {
                    &export.published_at
                }
            ),
        ],
    ];
    if let Some(warm) = &export.warm {
        rows.push(["warm".into(), warm_text(warm)]);
    }
    if let Some(damage) = &export.damage {
        rows.push(["damage".into(), damage.what.clone()]);
        let left = format!("writes up to {}", damage.kept_seq);
        rows.push(["left of it".into(), left]);
    }
    table(["export", &export.name], &rows)
}

fn warm_text(warm: &WarmDocument) -> String {
    let bytes = bytes_text(warm.bytes);
    let text = match warm.state {
        WarmState::Running => format!("{bytes} of {} so far", bytes_text(warm.bytes_max)),
        WarmState::Done => bytes,
        WarmState::Stopped => format!("{bytes} of {}", bytes_text(warm.bytes_max)),
    };
    match &warm.note {
        Some(note) => format!("{text}: {note}"),
        None => text,
    }
}

fn dirty_text(export: &ExportDocument) -> String {
    if export.dirty_bytes == 0 {
        return "nothing".into();
    }
    let age = duration_text(Duration::from_millis(export.dirty_age_ms));
    format!("{} for {age}", bytes_text(export.dirty_bytes))
}
