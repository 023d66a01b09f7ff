//! Copies of a group, snapshots and forks, as the operator knows them: each is one moment of all members, and stays what
//! it was (rules 20, 22, 30).

use anyhow::{Context, Result, anyhow, ensure};

use super::super::node::Node;
use super::super::stage::Stage;
use crate::oracle::{Judge, Oracle, Survivors};

#[derive(Debug, Default)]
pub(super) struct Album {
    copies: Vec<Taken>,
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Snapshot,
    Fork,
}

#[derive(Debug)]
struct Taken {
    kind: Kind,
    /// Of a snapshot. Of a fork that of its group.
    name: String,
    /// Under which clients find the members.
    names: Vec<String>,
    /// The group when it was answered for.
    model: Oracle,
    /// As it was read for the first time.
    content: Option<Vec<u8>>,
}

impl Album {
    /// A name that was never asked for before: what became of it may be unknown.
    pub(super) fn new_name(&mut self, what: &str) -> String {
        self.number += 1;
        format!("{what}-{}", self.number)
    }

    pub(super) fn keep(&mut self, kind: Kind, name: String, names: Vec<String>, model: Oracle) {
        self.copies.push(Taken {
            kind,
            name,
            names,
            model,
            content: None,
        });
    }

    pub(super) fn len(&self) -> usize {
        self.copies.len()
    }

    pub(super) fn any_snapshot(&self, stage: &Stage) -> Option<usize> {
        let all = self.copies.iter().enumerate();
        let snapshots = all.filter(|(_, copy)| copy.kind == Kind::Snapshot);
        let snapshots: Vec<usize> = snapshots.map(|(index, _)| index).collect();
        if snapshots.is_empty() {
            return None;
        }
        let index = stage.sim.chance(|chance| chance.index(snapshots.len()));
        Some(snapshots[index])
    }

    /// From here on nobody knows whether it is there. Returns its name.
    pub(super) fn forget(&mut self, index: usize) -> String {
        self.copies.remove(index).name
    }

    pub(super) fn name(&self, index: usize) -> &str {
        &self.copies[index].name
    }

    /// Names of volumes that are members of forks.
    pub(super) fn fork_names(&self) -> Vec<String> {
        let forks = self.copies.iter().filter(|copy| copy.kind == Kind::Fork);
        forks.flat_map(|copy| copy.names.clone()).collect()
    }

    /// Reads one of them through a node.
    pub(super) async fn check(&mut self, stage: &Stage, node: &Node, index: usize) -> Result<()> {
        let names = self.copies[index].names.clone();
        let content = stage.look_at_all(node, names).await?;
        let content = content.context("a host crashed that nobody touched")?;
        self.judge(index, &content).map(drop)
    }

    pub(super) async fn check_all(&mut self, stage: &Stage, node: &Node) -> Result<()> {
        for index in 0..self.copies.len() {
            self.check(stage, node, index).await?;
        }
        Ok(())
    }

    /// What is said to be this copy, or to begin as it, is that.
    pub(super) fn judge(&mut self, index: usize, content: &[u8]) -> Result<Survivors> {
        let copy = &mut self.copies[index];
        let verdict = copy.model.check(content, Judge::Store);
        let survivors = verdict.map_err(|violation| anyhow!("{}: {violation}", copy.name))?;
        let first = copy.content.get_or_insert_with(|| content.to_vec());
        ensure!(*first == content, "{} is not what it was", copy.name);
        Ok(survivors)
    }
}
