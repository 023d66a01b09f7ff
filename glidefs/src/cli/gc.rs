//! `glidefs gc …`: giving space in the store back, from a shell. What is worth it happens by itself.

use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::client::{Client, Said, block_on, operation_path, within};
use super::text::{bytes_text, table};
use super::{Failure, GcCommand, output};
use crate::control::{CollectedDocument, GcDocument, OperationDocument, OperationState};

/// Between two looks at an operation.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) fn run(command: GcCommand) -> Result<ExitCode, Failure> {
    match command {
        GcCommand::Run {
            export,
            remote,
            dry_run,
            no_wait,
            request_id,
            json,
        } => {
            let client = Client::new(&remote)?;
            let wanted = GcDocument {
                export,
                dry_run,
                request_id,
            };
            let operation = block_on(begun(&client, &wanted, no_wait))?;
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

async fn begun(
    client: &Client<'_>,
    wanted: &GcDocument,
    no_wait: bool,
) -> Result<OperationDocument, Failure> {
    let body = serde_json::to_string(wanted).expect("our documents are JSON");
    let said: Said<OperationDocument> = client.change(Method::POST, "/api/gc", body).await?;
    let mut operation = said.or_refused()?;
    if no_wait {
        return Ok(operation);
    }
    let bar = progress(operation.total);
    while operation.state == OperationState::Running {
        bar.set_position(operation.done);
        bar.set_message(operation.at.clone());
        // Nothing else runs meanwhile: it waits for time alone.
        within(LOOK_EVERY, std::future::pending::<()>()).await;
        let said: Said<OperationDocument> = client.look(&operation_path(&operation.id)).await?;
        operation = said.or_refused()?;
    }
    bar.finish_and_clear();
    Ok(operation)
}

fn progress(exports: u64) -> ProgressBar {
    let target = if output::is_watched() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{spinner} {pos} of {len} exports, {elapsed}: {msg}");
    let style = style.expect("a template of known fields");
    let bar = ProgressBar::with_draw_target(Some(exports), target).with_style(style);
    bar.enable_steady_tick(LOOK_EVERY);
    bar
}

fn show(operation: &OperationDocument, json: bool) -> Result<ExitCode, Failure> {
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
        return format!(
            "running: {} of {} exports; `glidefs gc show {}` shows how far it is",
            operation.done, operation.total, operation.id
        );
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
            "EXPORT", "REPACKED", deleted, "HELD", "SWEPT", "STORED", "LIVE",
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

fn row(it: &CollectedDocument) -> [String; 7] {
    [
        it.export.clone(),
        bytes_text(it.repacked_bytes),
        bytes_text(it.deleted_bytes),
        bytes_text(it.held_bytes),
        bytes_text(it.swept_bytes),
        bytes_text(it.stored_bytes),
        bytes_text(it.live_bytes),
    ]
}
