//! Snapshots and forks, made and deleted by an operator, who changes the data key too, while guests write and the node
//! dies in every way. Each that was answered for is, on every node and for ever, one exact state: of a moment between question and
//! answer, or, of a fork of a snapshot, that of the snapshot (rules 20, 22).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use glidefs::control::ControlErrorKind;
use world::sim::Sim;

use super::guest::Model;
use super::node::{NAME, Node};
use super::stage::{Stage, TRIES_MAX, TRY_PAUSE};
use crate::oracle::{Judge, Oracle};

/// After which a reader's pin is that of a dead one.
pub(super) const READERS_AGE: Duration = Duration::from_secs(8 * 24 * 3600);
/// Names of forks.
const FORKS: u64 = 4;
/// After so many steps of the operator the volume gets a new data key, where it has any. Some runs reach their bound.
const RENEWS_EVERY: u64 = 8;

/// What the operator knows to be there, by the name to connect to.
#[derive(Debug, Default)]
pub(super) struct Album {
    taken: RefCell<BTreeMap<String, Taken>>,
    number: Cell<u64>,
}

#[derive(Clone, Debug)]
struct Taken {
    /// The model when it was answered for.
    model: Oracle,
    /// As it was read for the first time.
    content: Option<Vec<u8>>,
}

impl Album {
    /// Takes, forks and deletes as long as the node lives.
    pub(super) fn fill(self: &Rc<Self>, stage: &Stage, node: &Rc<Node>) {
        let (album, node) = (Rc::clone(self), Rc::clone(node));
        let (sim, model) = (stage.sim.clone(), Rc::clone(&stage.model));
        let is_sealed = stage.is_sealed();
        stage.sim.spawn(async move {
            while node.is_alive() {
                let pause = sim.chance(|chance| chance.between(1, 300));
                sim.sleep(Duration::from_millis(pause)).await;
                album.number.set(album.number.get() + 1);
                let number = album.number.get();
                sim.note(format_args!("the operator makes number {number}"));
                let name = match sim.chance(|chance| chance.below(15)) {
                    12 => album.take_of_fork(&sim, &node, number).await,
                    13 | 14 => album.flatten(&sim, &node).await,
                    10 | 11 => album.purge_one(&sim, &node).await,
                    8 | 9 => node.gc().await.ok().map(|_| "more space".to_owned()),
                    0 | 1 => album.drop_one(&sim, &node).await,
                    2 | 3 => album.fork(&model, &node, number).await,
                    4 => album.fork_of_snapshot(&sim, &node, number).await,
                    _ => album.take(&model, &node, number).await,
                };
                sim.note(format_args!("the operator has {name:?}"));
                // Told by the number and not drawn, as it is for sealed runs alone. Each is asked for twice.
                if is_sealed && number.is_multiple_of(RENEWS_EVERY) {
                    let request = format!("r-{}", number / (2 * RENEWS_EVERY));
                    let renewed = node.renew_data(&request).await;
                    sim.note(format_args!("the operator has {renewed:?}"));
                }
            }
        });
    }

    async fn take(&self, model: &Model, node: &Node, number: u64) -> Option<String> {
        let name = format!("s-{number}");
        let begun = model.borrow_mut().publish_begin();
        node.take_snapshot(&name).await.ok()?;
        Some(self.keep(format!("{NAME}@{name}"), model, begun))
    }

    /// A snapshot of a fork, in which nobody writes.
    async fn take_of_fork(&self, sim: &Sim, node: &Node, number: u64) -> Option<String> {
        let (fork, taken) = self.any_fork(sim)?;
        let name = format!("s-{number}");
        node.take_snapshot_of(&fork, &name).await.ok()?;
        // Deleted meanwhile, perhaps.
        let is_there = self.taken.borrow().contains_key(&fork);
        let name = format!("{fork}@{name}");
        if is_there {
            self.taken.borrow_mut().insert(name.clone(), taken);
        }
        Some(name)
    }

    async fn flatten(&self, sim: &Sim, node: &Node) -> Option<String> {
        let (fork, _) = self.any_fork(sim)?;
        let done = node.gc_of(&fork, true).await.ok()?;
        Some(format!("{fork} flat: {:?} {:?}", done.error, done.exports))
    }

    fn any_fork(&self, sim: &Sim) -> Option<(String, Taken)> {
        let taken = self.taken.borrow();
        let forks = taken.iter().filter(|(name, _)| !name.contains('@'));
        let all: Vec<(&String, &Taken)> = forks.collect();
        let index = (!all.is_empty()).then(|| sim.chance(|chance| chance.index(all.len())))?;
        all.get(index)
            .map(|(name, taken)| ((*name).clone(), (*taken).clone()))
    }

    async fn fork(&self, model: &Model, node: &Node, number: u64) -> Option<String> {
        let name = self.free(number)?;
        let begun = model.borrow_mut().publish_begin();
        node.fork_surely(None, &name).await.ok()?;
        Some(self.keep(name, model, begun))
    }

    fn keep(&self, name: String, model: &Model, begun: crate::oracle::Moment) -> String {
        let model = model.borrow().of_copy(begun);
        let content = None;
        let taken = Taken { model, content };
        self.taken.borrow_mut().insert(name.clone(), taken);
        name
    }

    async fn fork_of_snapshot(&self, sim: &Sim, node: &Node, number: u64) -> Option<String> {
        let (of, snapshot) = self.any_snapshot(sim)?;
        let taken = self.taken.borrow().get(&of).cloned()?;
        let name = self.free(number)?;
        node.fork_surely(Some(snapshot), &name).await.ok()?;
        self.taken.borrow_mut().insert(name.clone(), taken);
        Some(name)
    }

    /// A name for a fork. Names are few, so that they come again.
    fn free(&self, number: u64) -> Option<String> {
        let name = format!("fork-{}", number % FORKS);
        (!self.taken.borrow().contains_key(&name)).then_some(name)
    }

    async fn purge_one(&self, sim: &Sim, node: &Node) -> Option<String> {
        let name = format!("fork-{}", sim.chance(|chance| chance.below(FORKS)));
        // Whether it goes is unknown until it is answered.
        let snapshots = format!("{name}@");
        self.taken
            .borrow_mut()
            .retain(|of, _| *of != name && !of.starts_with(&snapshots));
        let done = node.purge(&name).await.ok()?;
        Some(format!("no {name}: {:?}", done.exports))
    }

    /// The volume goes, and its forks stay whole; then they go, and nothing is left.
    pub(super) async fn end(&self, stage: &Stage, node: &Node) -> Result<()> {
        // Somebody reads it elsewhere, and has the space looked at there while it is deleted.
        let elsewhere = Rc::new(stage.start_surely(stage.sim.host("c")).await?);
        let reader = stage.reader(&elsewhere, NAME).await;
        let sweeper = Rc::clone(&elsewhere);
        stage
            .sim
            .spawn(async move { while sweeper.gc().await.is_ok() {} });
        stage.pause_ms(0, 500).await;
        self.purge_surely(stage, node, NAME).await?;
        self.taken
            .borrow_mut()
            .retain(|name, _| !name.starts_with(&format!("{NAME}@")));
        self.check_surely(stage, node).await?;
        reader.into_iter().for_each(|pid| stage.sim.kill(pid));
        elsewhere.kill();
        for number in 0..FORKS {
            self.purge_surely(stage, node, &format!("fork-{number}"))
                .await?;
        }
        // Until the pins of readers that died are old. Then what landed late, and forks that were on their way.
        stage.sim.sleep(READERS_AGE).await;
        for number in 0..FORKS {
            self.purge_surely(stage, node, &format!("fork-{number}"))
                .await?;
        }
        self.purge_surely(stage, node, NAME).await?;
        let keys = stage.sim.keys().into_iter();
        let left = keys.filter(|key| key.starts_with("nbd/") && !key.ends_with("/root"));
        let left: Vec<String> = left.collect();
        ensure!(left.is_empty(), "all is purged, and there is {left:?}");
        Ok(())
    }

    async fn purge_surely(&self, stage: &Stage, node: &Node, name: &str) -> Result<()> {
        for _ in 0..TRIES_MAX {
            match node.purge(name).await {
                Ok(done) if done.error.is_none() => {
                    stage.sim.note(format_args!("purged: {:?}", done.exports));
                    return Ok(());
                }
                Err(error) if error.kind == ControlErrorKind::NotFound => return Ok(()),
                // A node that died had it open.
                Err(error) if error.kind == ControlErrorKind::Conflict => {
                    drop(node.seize(name).await);
                    stage.sim.sleep(TRY_PAUSE).await;
                }
                Ok(_) | Err(_) => stage.sim.sleep(TRY_PAUSE).await,
            }
        }
        Err(anyhow!("{name} is never purged"))
    }

    async fn drop_one(&self, sim: &Sim, node: &Node) -> Option<String> {
        let (name, snapshot) = self.any_snapshot(sim)?;
        // Whether it goes is unknown until it is answered, and after that it is gone.
        self.taken.borrow_mut().remove(&name);
        node.delete_snapshot(&snapshot).await.ok()?;
        Some(format!("no {name}"))
    }

    /// A snapshot: the name to connect to, and its own.
    fn any_snapshot(&self, sim: &Sim) -> Option<(String, String)> {
        let taken = self.taken.borrow();
        let parts = taken
            .keys()
            .filter_map(|name| Some((name, name.split_once('@')?)))
            .filter_map(|(name, (of, snapshot))| (of == NAME).then_some((name, snapshot)));
        let all: Vec<(String, String)> = parts.map(|(a, b)| (a.clone(), b.to_owned())).collect();
        let index = (!all.is_empty()).then(|| sim.chance(|chance| chance.index(all.len())))?;
        all.get(index).cloned()
    }

    /// Makes the volume one of them, while nothing happens to the node. The model goes on from there.
    pub(super) async fn restore(&self, stage: &Stage, node: &Node) -> Result<()> {
        let Some((name, snapshot)) = self.any_snapshot(&stage.sim) else {
            return Ok(());
        };
        let mut tries = 0;
        while let Err(error) = node.restore(&snapshot).await {
            // The server may not have seen yet that the last client is gone.
            ensure!(tries < TRIES_MAX, "{name} is not restored: {error}");
            tries += 1;
            stage.sim.sleep(TRY_PAUSE).await;
        }
        stage.sim.note(format_args!("restored {name}"));
        let content = stage.look_at_other(node, NAME).await?;
        let content = content.context("a host crashed that nobody touched")?;
        let taken = self.taken.borrow().get(&name).cloned();
        let taken = taken.context("the operator does nothing else meanwhile")?;
        let survivors = taken.model.check(&content, Judge::Store);
        let survivors = survivors.map_err(|violation| anyhow!("restored {name}: {violation}"))?;
        let same = taken.content.is_none_or(|first| first == content);
        ensure!(same, "restored {name}, and it is not what it was");
        stage.model.borrow_mut().reset_to(&survivors);
        Ok(())
    }

    /// Reads them all through a node. False if it died meanwhile.
    pub(super) async fn check(&self, stage: &Stage, node: &Node) -> Result<bool> {
        let names: Vec<String> = self.taken.borrow().keys().cloned().collect();
        for name in names {
            let Some(content) = stage.look_at_other(node, &name).await? else {
                return Ok(false);
            };
            let mut all = self.taken.borrow_mut();
            // Deleted while it was read.
            let Some(taken) = all.get_mut(&name) else {
                continue;
            };
            let verdict = taken.model.check(&content, Judge::Store);
            verdict.map_err(|violation| anyhow!("{name}: {violation}"))?;
            let first = taken.content.get_or_insert_with(|| content.clone());
            ensure!(*first == content, "{name} is not what it was");
        }
        Ok(true)
    }

    /// The same where nothing happens to the node.
    pub(super) async fn check_surely(&self, stage: &Stage, node: &Node) -> Result<()> {
        let alive = self.check(stage, node).await?;
        ensure!(alive, "a host crashed that nobody touched");
        let names: Vec<String> = self.taken.borrow().keys().cloned().collect();
        for fork in names.iter().filter(|name| !name.contains('@')) {
            stage.audit(node.host, fork).await?;
        }
        Ok(())
    }
}
