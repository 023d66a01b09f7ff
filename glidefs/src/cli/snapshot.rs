//! `glidefs snapshot …`: the API from a shell, with no logic of its own.

use std::process::ExitCode;

use hyper::Method;

use super::client::{Client, Said, block_on, export_path, snapshot_path};
use super::text::{bytes_text, table};
use super::{Failure, Remote, SnapshotCommand, output};
use crate::control::{SnapshotDocument, TakeSnapshotDocument};

pub(super) fn run(command: SnapshotCommand) -> Result<ExitCode, Failure> {
    match command {
        SnapshotCommand::List { of, json } => {
            let path = export_path(&of.export, "/snapshots");
            let client = Client::new(&of.remote)?;
            let said: Said<Vec<SnapshotDocument>> = block_on(client.look(&path))?;
            let snapshots = said.or_refused()?;
            if json {
                output::json(&snapshots);
            } else {
                output::line(list_text(&snapshots));
            }
        }
        SnapshotCommand::Take {
            of,
            name,
            request_id,
            json,
        } => {
            let wanted = TakeSnapshotDocument { name, request_id };
            let body = serde_json::to_string(&wanted).expect("our documents are JSON");
            let path = export_path(&of.export, "/snapshots");
            show(&ask(&of.remote, Method::POST, &path, body)?, json);
        }
        SnapshotCommand::Get { of, name, json } => {
            let client = Client::new(&of.remote)?;
            let said = block_on(client.look(&snapshot_path(&of.export, &name)))?;
            show(&said.or_refused()?, json);
        }
        SnapshotCommand::Delete { of, name, json } => {
            let path = snapshot_path(&of.export, &name);
            let gone = ask(&of.remote, Method::DELETE, &path, String::new())?;
            if json {
                output::json(&gone);
            } else {
                output::line(format!("{}@{} is deleted", gone.export, gone.name));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(
    remote: &Remote,
    method: Method,
    path: &str,
    body: String,
) -> Result<SnapshotDocument, Failure> {
    let client = Client::new(remote)?;
    block_on(client.change(method, path, body))?.or_refused()
}

fn show(snapshot: &SnapshotDocument, json: bool) {
    if json {
        output::json(snapshot);
    } else {
        output::line(snapshot_text(snapshot));
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
