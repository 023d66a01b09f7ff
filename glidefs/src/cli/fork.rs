//! `glidefs fork`: the API from a shell, with no logic of its own.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hyper::Method;
use serde::Serialize;

use super::client::{Client, Said, block_on, export_path};
use super::text::{bytes_text, table};
use super::{Failure, ForkArguments, Of, output};
use crate::control::{ForkDocument, ForkWait, ForkedDocument, MakeForkDocument};

/// Exports in one tree.
const TREE_MAX: usize = 10_000;

pub(super) fn run(arguments: ForkArguments) -> Result<ExitCode, Failure> {
    let ForkArguments {
        of,
        name,
        request_id,
        live,
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
        wait: live.then_some(ForkWait::Local),
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

/// The tree of forks below an export, as far as the store knows them.
pub(super) fn tree(of: &Of, json: bool) -> Result<ExitCode, Failure> {
    let client = Client::new(&of.remote)?;
    let tree = block_on(grown(&client, &of.export))?;
    if json {
        output::json(&tree);
    } else {
        output::line(tree_text(&tree));
    }
    Ok(ExitCode::SUCCESS)
}

/// An export with the forks that were made of it.
#[derive(Debug, Default, Serialize)]
struct Tree {
    /// Empty of a fork that cannot be read.
    name: String,
    /// Of such a fork: its id, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    forks: Vec<Tree>,
}

/// The direct forks of one export.
#[derive(Debug, Default)]
struct Forks {
    names: Vec<String>,
    /// Direct or not: that is not known.
    unreadable: Vec<ForkedDocument>,
}

/// Asks for the direct forks of each, one after another.
async fn grown(client: &Client<'_>, root: &str) -> Result<Tree, Failure> {
    let mut children: BTreeMap<String, Forks> = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(name) = left.pop() {
        let forks = direct_forks(client, &name).await?;
        left.extend(
            forks
                .names
                .iter()
                .filter(|it| !children.contains_key(*it))
                .cloned(),
        );
        children.insert(name, forks);
        if children.len() > TREE_MAX {
            return Err(Failure::refused(format!(
                "the tree below `{root}` has more than {TREE_MAX} exports; ask the API for a part of it \
                 (docs/http-api.md)"
            )));
        }
    }
    Ok(plant(root, &mut children))
}

async fn direct_forks(client: &Client<'_>, name: &str) -> Result<Forks, Failure> {
    let mut forks: Vec<ForkedDocument> = Vec::new();
    loop {
        let after = forks.last().map_or("", |fork| fork.id.as_str());
        let path = export_path(name, &format!("/forks?after={after}"));
        let said: Said<Vec<ForkedDocument>> = client.look(&path).await?;
        let page = said.or_refused()?;
        if page.is_empty() || forks.len() > TREE_MAX {
            let (unreadable, known): (Vec<_>, Vec<_>) =
                forks.into_iter().partition(|fork| fork.error.is_some());
            let direct = known.into_iter().filter(|fork| fork.direct);
            let mut names: Vec<String> = direct.map(|fork| fork.name).collect();
            names.sort();
            names.dedup();
            return Ok(Forks { names, unreadable });
        }
        forks.extend(page);
    }
}

/// Each export stands in it once.
fn plant(name: &str, children: &mut BTreeMap<String, Forks>) -> Tree {
    let Forks { names, unreadable } = children.remove(name).unwrap_or_default();
    let mut forks: Vec<Tree> = names.iter().map(|fork| plant(fork, children)).collect();
    forks.extend(unreadable.into_iter().map(|fork| Tree {
        id: Some(fork.id),
        error: fork.error,
        ..Tree::default()
    }));
    Tree {
        name: name.to_owned(),
        forks,
        ..Tree::default()
    }
}

fn tree_text(tree: &Tree) -> String {
    let mut lines = vec![tree.name.clone()];
    draw(&tree.forks, "", &mut lines);
    lines.join("\n")
}

fn draw(forks: &[Tree], before: &str, lines: &mut Vec<String>) {
    for (number, fork) in forks.iter().enumerate() {
        let is_last = number + 1 == forks.len();
        let (branch, below) = if is_last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        let text = match (&fork.id, &fork.error) {
            (Some(id), Some(error)) => format!("{id}: cannot be read: {error}"),
            _ => fork.name.clone(),
        };
        lines.push(format!("{before}{branch}{text}"));
        draw(&fork.forks, &format!("{before}{below}"), lines);
    }
}

fn fork_text(fork: &ForkDocument) -> String {
    let of = match &fork.snapshot {
        Some(snapshot) => format!("{}@{snapshot}", fork.parent),
        None => fork.parent.clone(),
    };
    let in_store = match fork.published {
        true => "yes",
        false => "not yet; this server has it",
    };
    let rows = [
        ["of".into(), of],
        ["size".into(), bytes_text(fork.size_bytes)],
        ["begins at".into(), format!("write {}", fork.cut_seq)],
        ["in the store".into(), in_store.into()],
    ];
    table(["fork", &fork.name], &rows)
}
