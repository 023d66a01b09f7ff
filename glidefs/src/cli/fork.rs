//! `glidefs fork`: the API from a shell, with no logic of its own.

use std::process::ExitCode;

use hyper::Method;

use super::client::{Client, Said, block_on, export_path};
use super::text::{bytes_text, table};
use super::{Failure, ForkArguments, output};
use crate::control::{ForkDocument, MakeForkDocument};

pub(super) fn run(arguments: ForkArguments) -> Result<ExitCode, Failure> {
    let ForkArguments {
        of,
        name,
        request_id,
        json,
    } = arguments;
    let (parent, snapshot) = match of.export.split_once('@') {
        Some((parent, snapshot)) => (parent.to_owned(), Some(snapshot.to_owned())),
        None => (of.export.clone(), None),
    };
    let wanted = MakeForkDocument {
        name,
        snapshot,
        request_id,
        wait: None,
    };
    let body = serde_json::to_string(&wanted).expect("our documents are JSON");
    let client = Client::new(&of.remote)?;
    let path = export_path(&parent, "/fork");
    let said: Said<ForkDocument> = block_on(client.change(Method::POST, &path, body))?;
    let fork = said.or_refused()?;
    if json {
        output::json(&fork);
    } else {
        output::line(fork_text(&fork));
    }
    Ok(ExitCode::SUCCESS)
}

fn fork_text(fork: &ForkDocument) -> String {
    let of = match &fork.snapshot {
        Some(snapshot) => format!("{}@{snapshot}", fork.parent),
        None => fork.parent.clone(),
    };
    let rows = [
        ["of".into(), of],
        ["size".into(), bytes_text(fork.size_bytes)],
        ["begins at".into(), format!("write {}", fork.cut_seq)],
    ];
    table(["fork", &fork.name], &rows)
}
