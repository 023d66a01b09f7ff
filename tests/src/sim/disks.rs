//! The exports that a run is about: one, or the members of a group, which the judge sees as one disk
//! ([`crate::oracle::Windows`]).

use std::ops::Range;

use world::sim::Sim;

use super::node::NAME;
use crate::oracle::{Oracle, Windows};

/// Members of a group here.
const MEMBERS: Range<usize> = 2..5;

#[derive(Debug)]
pub(super) struct Disks {
    /// The first is the log of the databases on them.
    names: Vec<String>,
    windows: Windows,
    /// Of each.
    member_bytes: u64,
}

impl Disks {
    pub(super) fn one(bytes: u64) -> Self {
        Self::new(vec![NAME.to_owned()], bytes)
    }

    /// Members of a group.
    pub(super) fn drawn(sim: &Sim, bytes: u64) -> Self {
        let count = MEMBERS.start + sim.chance(|chance| chance.index(MEMBERS.len()));
        let data = (1..count).map(|number| format!("data-{number}"));
        Self::new(
            std::iter::once(NAME.to_owned()).chain(data).collect(),
            bytes,
        )
    }

    fn new(names: Vec<String>, member_bytes: u64) -> Self {
        Self {
            windows: Windows::new(vec![member_bytes; names.len()]),
            names,
            member_bytes,
        }
    }

    pub(super) fn oracle(&self, id: u64) -> Oracle {
        self.windows.oracle(id)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn is_group(&self) -> bool {
        self.names.len() > 1
    }

    pub(super) fn member_bytes(&self) -> u64 {
        self.member_bytes
    }

    /// One of them. What a seed decides for runs with a single export does not change by it.
    pub(super) fn any(&self, sim: &Sim) -> usize {
        match self.is_group() {
            true => sim.chance(|chance| chance.index(self.names.len())),
            false => 0,
        }
    }

    pub(super) fn any_name(&self, sim: &Sim) -> String {
        self.names[self.any(sim)].clone()
    }

    /// Where a byte of a member is in the eyes of the judge.
    pub(super) fn at(&self, member: usize, at: u64) -> u64 {
        self.windows.at(member, at)
    }

    pub(super) fn window(&self, member: usize) -> Range<u64> {
        self.windows.window(member)
    }

    /// The member that this byte is of, and where it is there.
    pub(super) fn place(&self, at: u64) -> (usize, u64) {
        self.windows.place(at)
    }

    /// The names under which a client finds a snapshot of all.
    pub(super) fn of_snapshot(&self, snapshot: &str) -> Vec<String> {
        let names = self.names.iter();
        names.map(|name| format!("{name}@{snapshot}")).collect()
    }
}
