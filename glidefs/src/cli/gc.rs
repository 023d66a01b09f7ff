//! `glidefs gc …`: giving space in the store back, from a shell. What is worth it happens by itself.

use std::process::ExitCode;

use hyper::Method;

use super::client::{Client, Said, block_on, operation_path};
use super::text::{bytes_text, table};
use super::{Failure, GcCommand, operation, output};
use crate::control::{CollectedDocument, GcDocument, OperationDocument, OperationState};

pub(super) fn run(command: GcCommand) -> Result<ExitCode, Failure> {
    match command {
        GcCommand::Run {
            export,
            remote,
            dry_run,
            flatten,
            no_wait,
            request_id,
            json,
        } => {
            let client = Client::new(&remote)?;
            let wanted = GcDocument {
                export,
                dry_run,
                flatten,
                request_id,
            };
            let body = serde_json::to_string(&wanted).expect("our documents are JSON");
            let path = (Method::POST, "/api/gc");
            let operation = block_on(operation::run(&client, path, body, !no_wait))?;
            show(&operation, json)
        }
        GcCommand::Show { id, remote, json } => {
            let client = Client::new(&remote)?;
            let said: Said<OperationDocument> = block_on(client.look(&operation_path(&id)))?;
            show(&said.or_refused()?, json)
        }
        GcCommand::List { remote, json } => {
            let client = Client::new(&remote)?;
            let said: Said<Vec<OperationDocument>> = block_on(client.look("/api/operations"))?;
            let all = said.or_refused()?;
            if json {
                output::json(&all);
            } else {
                output::line(list_text(&all));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(super) fn show(operation: &OperationDocument, json: bool) -> Result<ExitCode, Failure> {
    if json {
        output::json(operation);
    } else {
        output::line(text(operation));
    }
    match &operation.error {
        Some(error) => Err(Failure::refused(error.clone())),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn list_text(all: &[OperationDocument]) -> String {
    let rows: Vec<_> = all
        .iter()
        .map(|it| {
            let state = state_text(it).to_owned();
            [it.id.clone(), it.kind.clone(), state, it.started_at.clone()]
        })
        .collect();
    table(["OPERATION", "KIND", "STATE", "STARTED"], &rows)
}

fn state_text(operation: &OperationDocument) -> &'static str {
    match operation.state {
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Failed => "failed",
    }
}

fn text(operation: &OperationDocument) -> String {
    if operation.state == OperationState::Running {
        let done = match operation.total {
            0 => format!("{} objects deleted", operation.done),
            total => format!("{} of {total} exports", operation.done),
        };
        return format!(
            "running: {done}; `glidefs gc show {}` shows how far it is",
            operation.id
        );
    }
    if operation.exports.is_empty() && operation.kind != "gc" {
        return format!("{}: {}", operation.kind, state_text(operation));
    }
    if operation.exports.is_empty() {
        return "no export is open here for writing: name one, or run it where it is open"
            .to_owned();
    }
    let rows: Vec<_> = operation.exports.iter().map(row).collect();
    let deleted = if operation.dry_run {
        "DELETABLE"
    } else {
        "DELETED"
    };
    let mut text = table(
        [
            "EXPORT",
            "REPACKED",
            "FLATTENED",
            deleted,
            "HELD",
            "SWEPT",
            "STORED",
            "LIVE",
        ],
        &rows,
    );
    for it in &operation.exports {
        if let Some(note) = &it.note {
            text.push_str(&format!("\n{}: {note}", it.export));
        }
    }
    text
}

fn row(it: &CollectedDocument) -> [String; 8] {
    [
        it.export.clone(),
        bytes_text(it.repacked_bytes),
        bytes_text(it.flattened_bytes),
        bytes_text(it.deleted_bytes),
        bytes_text(it.held_bytes),
        bytes_text(it.swept_bytes),
        bytes_text(it.stored_bytes),
        bytes_text(it.live_bytes),
    ]
}
