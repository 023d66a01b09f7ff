//! `glidefs snapshot …`: the API from a shell, with no logic of its own.

use std::process::ExitCode;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{Client, Said, block_on, export_path, snapshot_path};
use super::text::{bytes_text, table};
use super::{Failure, Remote, SnapshotCommand, output};
use crate::control::{ExportDocument, RestoreDocument, SnapshotDocument, TakeSnapshotDocument};

pub(super) fn run(command: SnapshotCommand) -> Result<ExitCode, Failure> {
    match command {
        SnapshotCommand::List { of, json } => {
            let path = export_path(&of.export, "/snapshots");
            let snapshots: Vec<SnapshotDocument> = look(&of.remote, &path)?;
            tell(json, &snapshots, |it| list_text(it));
        }
        SnapshotCommand::Take {
            of,
            name,
            request_id,
            json,
        } => {
            let wanted = TakeSnapshotDocument { name, request_id };
            let path = export_path(&of.export, "/snapshots");
            let taken = ask(&of.remote, Method::POST, &path, body(&wanted))?;
            tell(json, &taken, snapshot_text);
        }
        SnapshotCommand::Get { of, name, json } => {
            let found = look(&of.remote, &snapshot_path(&of.export, &name))?;
            tell(json, &found, snapshot_text);
        }
        SnapshotCommand::Restore {
            of,
            name,
            before,
            request_id,
            json,
        } => {
            let snapshot = name.clone();
            let wanted = RestoreDocument {
                snapshot,
                before,
                request_id,
            };
            let path = export_path(&of.export, "/restore");
            let restored = ask(&of.remote, Method::POST, &path, body(&wanted))?;
            tell(json, &restored, |it: &ExportDocument| {
                format!("{0} is now what {0}@{name} is", it.name)
            });
        }
        SnapshotCommand::Prune {
            of,
            keep,
            older_than_s,
            json,
        } => {
            let path = prune_path(&of.export, keep, older_than_s);
            let gone: Vec<SnapshotDocument> =
                ask(&of.remote, Method::DELETE, &path, String::new())?;
            tell(json, &gone, |it| gone_text(it));
        }
        SnapshotCommand::Delete { of, name, json } => {
            let path = snapshot_path(&of.export, &name);
            let gone = ask(&of.remote, Method::DELETE, &path, String::new())?;
            tell(json, &gone, |it: &SnapshotDocument| {
                format!("{}@{} is deleted", it.export, it.name)
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn prune_path(export: &str, keep: Option<usize>, older_than_s: Option<u64>) -> String {
    let keep = keep.map(|keep| format!("keep={keep}"));
    let age = older_than_s.map(|age| format!("older_than_s={age}"));
    let query: Vec<String> = keep.into_iter().chain(age).collect();
    export_path(export, &format!("/snapshots?{}", query.join("&")))
}

fn body(wanted: &impl Serialize) -> String {
    serde_json::to_string(wanted).expect("our documents are JSON")
}

fn look<T: DeserializeOwned>(remote: &Remote, path: &str) -> Result<T, Failure> {
    let client = Client::new(remote)?;
    let said: Said<T> = block_on(client.look(path))?;
    said.or_refused()
}

fn ask<T: DeserializeOwned>(
    remote: &Remote,
    method: Method,
    path: &str,
    body: String,
) -> Result<T, Failure> {
    let client = Client::new(remote)?;
    block_on(client.change(method, path, body))?.or_refused()
}

/// As JSON, or as a person reads it.
fn tell<T: Serialize>(json: bool, document: &T, text: impl FnOnce(&T) -> String) {
    if json {
        output::json(document);
    } else {
        output::line(text(document));
    }
}

fn gone_text(gone: &[SnapshotDocument]) -> String {
    match gone {
        [] => "nothing to delete".to_owned(),
        gone => format!("{}\n{} deleted", list_text(gone), gone.len()),
    }
}

fn list_text(snapshots: &[SnapshotDocument]) -> String {
    let rows: Vec<_> = snapshots
        .iter()
        .map(|it| {
            [
                it.name.clone(),
                bytes_text(it.size_bytes),
                it.taken_at.clone(),
                it.cut_seq.to_string(),
            ]
        })
        .collect();
    table(["NAME", "SIZE", "TAKEN", "WRITE"], &rows)
}

fn snapshot_text(snapshot: &SnapshotDocument) -> String {
    let name = format!("{}@{}", snapshot.export, snapshot.name);
    let rows = [
        ["size".into(), bytes_text(snapshot.size_bytes)],
        ["taken".into(), snapshot.taken_at.clone()],
        [
            "holds".into(),
            format!("all up to write {}", snapshot.cut_seq),
        ],
        ["connect to".into(), name.clone()],
    ];
    table(["snapshot", &name], &rows)
}
