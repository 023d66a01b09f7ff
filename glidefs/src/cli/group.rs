//! `glidefs group …`: the API from a shell, with no logic of its own.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{Client, Said, block_on, escaped, export_path};
use super::text::{bytes_text, table};
use super::{Failure, GroupCommand, OfGroup, Remote, gc, operation, output};
use crate::control::{
    ExportDocument, ForkGroupDocument, FormGroupDocument, GroupDocument, GroupSnapshotDocument,
    OperationDocument, RestoreDocument, TakeSnapshotDocument,
};

/// Pages of a list of groups.
const PAGES_MAX: u32 = 1000;

pub(super) fn run(command: GroupCommand) -> Result<ExitCode, Failure> {
    match command {
        GroupCommand::Make {
            group,
            members,
            no_wait,
            request_id,
        } => make(&group, members, request_id, no_wait),
        GroupCommand::Show { group } => {
            let client = Client::new(&group.remote)?;
            let said: Said<GroupDocument> = block_on(client.look(&path(&group.group, "")))?;
            tell(group.json, &said.or_refused()?, group_text);
            Ok(ExitCode::SUCCESS)
        }
        GroupCommand::List { remote, json } => list(&remote, json),
        GroupCommand::Snapshot {
            group,
            name,
            list,
            request_id,
        } => match list {
            true => list_snapshots(&group),
            false => take_snapshot(&group, TakeSnapshotDocument { name, request_id }),
        },
        GroupCommand::Restore {
            group,
            name,
            before,
            no_wait,
            request_id,
        } => {
            let wanted = RestoreDocument {
                snapshot: name.clone(),
                before,
                request_id,
            };
            let path = path(&group.group, "/restore");
            let path = (Method::POST, path.as_str());
            let done = format!("all of {0} is now what {0}@{name} is", group.group);
            finish(&group, path, body(&wanted), no_wait, &done)
        }
        GroupCommand::Fork {
            group,
            name,
            members,
            request_id,
        } => fork(&group, name, &members, request_id),
        GroupCommand::End {
            group,
            no_wait,
            request_id,
        } => {
            let id = request_id.map(|id| format!("?request_id={}", escaped(&id)));
            let path = path(&group.group, &id.unwrap_or_default());
            let done = format!("{} is ended: its members are in no group", group.group);
            let path = (Method::DELETE, path.as_str());
            finish(&group, path, String::new(), no_wait, &done)
        }
    }
}

/// The path of a group, whatever is in its name.
fn path(group: &str, verb: &str) -> String {
    format!("/api/groups/{}{verb}", escaped(group))
}

fn body(wanted: &impl Serialize) -> String {
    serde_json::to_string(wanted).expect("our documents are JSON")
}

/// As JSON, or as a person reads it.
fn tell<T: Serialize>(json: bool, document: &T, text: impl FnOnce(&T) -> String) {
    if json {
        output::json(document);
    } else {
        output::line(text(document));
    }
}

/// Asks for an operation, and says how it ended.
fn finish(
    group: &OfGroup,
    path: (Method, &str),
    body: String,
    no_wait: bool,
    done: &str,
) -> Result<ExitCode, Failure> {
    let client = Client::new(&group.remote)?;
    let operation = block_on(operation::run(&client, path, body, !no_wait))?;
    if no_wait || group.json {
        return gc::show(&operation, group.json);
    }
    or_failed(&operation)?;
    output::line(done);
    Ok(ExitCode::SUCCESS)
}

fn or_failed(operation: &OperationDocument) -> Result<(), Failure> {
    match &operation.error {
        Some(error) => Err(Failure::refused(error.clone())),
        None => Ok(()),
    }
}

fn make(
    group: &OfGroup,
    members: Vec<String>,
    request_id: Option<String>,
    no_wait: bool,
) -> Result<ExitCode, Failure> {
    let first = members.first().cloned().unwrap_or_default();
    let wanted = FormGroupDocument {
        name: group.group.clone(),
        members,
        request_id,
    };
    let client = Client::new(&group.remote)?;
    let asked = (Method::POST, "/api/groups");
    let operation = block_on(operation::run(&client, asked, body(&wanted), !no_wait))?;
    if no_wait {
        return gc::show(&operation, group.json);
    }
    or_failed(&operation)?;
    // By its id: there may be another one of the name.
    let said: Said<ExportDocument> = block_on(client.look(&export_path(&first, "")))?;
    let id = said.or_refused()?.group.map(|it| it.id);
    let which = id.unwrap_or_else(|| group.group.clone());
    let said: Said<GroupDocument> = block_on(client.look(&path(&which, "")))?;
    tell(group.json, &said.or_refused()?, group_text);
    Ok(ExitCode::SUCCESS)
}

/// Page by page, until one is empty.
fn list(remote: &Remote, json: bool) -> Result<ExitCode, Failure> {
    let client = Client::new(remote)?;
    let groups = block_on(list_all(&client))?;
    tell(json, &groups, |it| list_text(it));
    Ok(ExitCode::SUCCESS)
}

async fn list_all(client: &Client<'_>) -> Result<Vec<GroupDocument>, Failure> {
    let mut groups: Vec<GroupDocument> = Vec::new();
    for _page in 0..PAGES_MAX {
        let after = groups.last().map_or("", |group| group.id.as_str());
        let path = format!("/api/groups?after={}", escaped(after));
        let said: Said<Vec<GroupDocument>> = client.look(&path).await?;
        let page = said.or_refused()?;
        if page.is_empty() {
            // What was given up is of no use to anybody.
            groups.retain(|group| group.state != "given-up");
            groups.sort_by(|a, b| a.name.cmp(&b.name));
            return Ok(groups);
        }
        groups.extend(page);
    }
    Err(Failure::refused(format!(
        "the list does not end: {} groups and more; ask the API page by page (docs/http-api.md)",
        groups.len()
    )))
}

fn list_snapshots(group: &OfGroup) -> Result<ExitCode, Failure> {
    let path = path(&group.group, "/snapshots");
    let snapshots: Vec<GroupSnapshotDocument> = look(&group.remote, &path)?;
    tell(group.json, &snapshots, |it| snapshots_text(it));
    Ok(ExitCode::SUCCESS)
}

fn take_snapshot(group: &OfGroup, wanted: TakeSnapshotDocument) -> Result<ExitCode, Failure> {
    let path = path(&group.group, "/snapshots");
    let taken: GroupSnapshotDocument = ask(&group.remote, &path, body(&wanted))?;
    tell(group.json, &taken, snapshot_text);
    Ok(ExitCode::SUCCESS)
}

fn fork(
    group: &OfGroup,
    name: String,
    members: &[String],
    request_id: Option<String>,
) -> Result<ExitCode, Failure> {
    let forks = forks_of(members)?;
    let (which, snapshot) = match group.group.split_once('@') {
        Some((which, snapshot)) => (which, Some(snapshot.to_owned())),
        None => (group.group.as_str(), None),
    };
    let wanted = ForkGroupDocument {
        name,
        members: forks,
        snapshot,
        request_id,
    };
    let forked: GroupDocument = ask(&group.remote, &path(which, "/fork"), body(&wanted))?;
    tell(group.json, &forked, group_text);
    Ok(ExitCode::SUCCESS)
}

/// The name for the fork of each member.
fn forks_of(members: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut forks = BTreeMap::new();
    for member in members {
        let (of, to) = member.split_once('=').ok_or_else(|| {
            Failure::unusable(format!(
                "`{member}`: write MEMBER=FORK, the name of a member and that of its fork"
            ))
        })?;
        if let Some(other) = forks.insert(of.to_owned(), to.to_owned()) {
            return Err(Failure::unusable(format!(
                "`{member}`: member `{of}` has a fork `{other}` already; name each member once"
            )));
        }
    }
    Ok(forks)
}

fn look<T: DeserializeOwned>(remote: &Remote, path: &str) -> Result<T, Failure> {
    let client = Client::new(remote)?;
    let said: Said<T> = block_on(client.look(path))?;
    said.or_refused()
}

fn ask<T: DeserializeOwned>(remote: &Remote, path: &str, body: String) -> Result<T, Failure> {
    let client = Client::new(remote)?;
    let said: Said<T> = block_on(client.change(Method::POST, path, body))?;
    said.or_refused()
}

fn list_text(groups: &[GroupDocument]) -> String {
    let rows: Vec<_> = groups
        .iter()
        .map(|it| {
            let members = it.members.iter().map(|member| member.name.as_str());
            let members = members.collect::<Vec<_>>().join(", ");
            [it.name.clone(), it.id.clone(), it.state.clone(), members]
        })
        .collect();
    table(["NAME", "ID", "STATE", "MEMBERS"], &rows)
}

fn group_text(group: &GroupDocument) -> String {
    let head = [
        ["id".into(), group.id.clone()],
        ["state".into(), group.state.clone()],
    ];
    let rows: Vec<_> = group
        .members
        .iter()
        .map(|it| {
            [
                it.name.clone(),
                bytes_text(it.size_bytes),
                it.role.clone(),
                it.clients.to_string(),
                bytes_text(it.dirty_bytes),
                format!("{} of {}", it.published_seq, it.last_seq),
                it.owner.clone(),
            ]
        })
        .collect();
    let columns = [
        "MEMBER",
        "SIZE",
        "ROLE",
        "CLIENTS",
        "DIRTY",
        "PUBLISHED",
        "OWNER",
    ];
    let head = table(["group", &group.name], &head);
    format!("{head}\n\n{}", table(columns, &rows))
}

fn snapshots_text(snapshots: &[GroupSnapshotDocument]) -> String {
    let rows: Vec<_> = snapshots
        .iter()
        .map(|it| [it.name.clone(), it.taken_at.clone(), writes_text(it)])
        .collect();
    table(["NAME", "TAKEN", "WRITES"], &rows)
}

fn snapshot_text(snapshot: &GroupSnapshotDocument) -> String {
    let connect = snapshot.members.iter();
    let connect = connect.map(|it| format!("{}@{}", it.export, it.name));
    let rows = [
        ["taken".into(), snapshot.taken_at.clone()],
        ["holds all up to".into(), writes_text(snapshot)],
        ["connect to".into(), connect.collect::<Vec<_>>().join(", ")],
    ];
    let name = format!("{}@{}", snapshot.group, snapshot.name);
    table(["snapshot", &name], &rows)
}

fn writes_text(snapshot: &GroupSnapshotDocument) -> String {
    let writes = snapshot.members.iter();
    let writes = writes.map(|it| format!("{} of {}", it.cut_seq, it.export));
    writes.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        assert_eq!(path("db", "/fork"), "/api/groups/db/fork");
        assert_eq!(path("../x y", ""), "/api/groups/..%2Fx%20y");
    }

    #[test]
    fn each_member_has_one_fork() {
        let forks = |members: &[&str]| {
            let members: Vec<String> = members.iter().map(|it| (*it).to_owned()).collect();
            forks_of(&members)
        };
        let both = forks(&["log=log2", "data=data2"]).expect("one of each");
        let both: Vec<(&str, &str)> = both.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(both, [("data", "data2"), ("log", "log2")]);
        for bad in [&["log"][..], &["log=x", "log=y"], &["log=x", "log=x"]] {
            assert!(forks(bad).is_err(), "{bad:?}");
        }
    }
}
