//! Snapshots taken and deleted by an operator while guests write and the node dies in every way. Each that
//! was answered for is, on every node and for ever, one exact state of a moment between question and answer
//! (rule 22).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::node::Node;
use super::stage::Stage;
use crate::oracle::{Judge, Oracle};

/// What the operator knows to be there.
#[derive(Debug, Default)]
pub(super) struct Album {
    taken: RefCell<BTreeMap<String, Taken>>,
    number: Cell<u64>,
}

#[derive(Debug)]
struct Taken {
    /// The model when it was answered for.
    model: Oracle,
    /// As it was read for the first time.
    content: Option<Vec<u8>>,
}

impl Album {
    /// Takes and deletes snapshots as long as the node lives.
    pub(super) fn fill(self: &Rc<Self>, stage: &Stage, node: &Rc<Node>) {
        let (album, node) = (Rc::clone(self), Rc::clone(node));
        let (sim, model) = (stage.sim.clone(), Rc::clone(&stage.model));
        stage.sim.spawn(async move {
            while node.is_alive() {
                let pause = sim.chance(|chance| chance.between(1, 300));
                sim.sleep(Duration::from_millis(pause)).await;
                let drops = sim.chance(|chance| chance.one_in(4));
                if drops && let Some(name) = album.any(|len| sim.chance(|c| c.index(len))) {
                    // Whether it goes is unknown until it is answered, and after that it is gone.
                    album.taken.borrow_mut().remove(&name);
                    let gone = node.delete_snapshot(&name).await.is_ok();
                    sim.note(format_args!("snapshot {name} deleted: {gone}"));
                    continue;
                }
                album.number.set(album.number.get() + 1);
                let name = format!("s-{}", album.number.get());
                let begun = model.borrow_mut().publish_begin();
                let taken = node.take_snapshot(&name).await;
                sim.note(format_args!("snapshot {name}: {taken:?}"));
                if taken.is_ok() {
                    let mut model = model.borrow().clone();
                    model.publish_done(begun);
                    let content = None;
                    album
                        .taken
                        .borrow_mut()
                        .insert(name, Taken { model, content });
                }
            }
        });
    }

    /// Reads them all through a node. False if it died meanwhile.
    pub(super) async fn check(&self, stage: &Stage, node: &Node) -> Result<bool> {
        let names: Vec<String> = self.taken.borrow().keys().cloned().collect();
        for name in names {
            let Some(content) = stage.look_at_snapshot(node, &name).await? else {
                return Ok(false);
            };
            let mut all = self.taken.borrow_mut();
            // Deleted while it was read.
            let Some(taken) = all.get_mut(&name) else {
                continue;
            };
            let verdict = taken.model.check(&content, Judge::Store);
            verdict.map_err(|violation| anyhow!("snapshot {name}: {violation}"))?;
            let first = taken.content.get_or_insert_with(|| content.clone());
            ensure!(*first == content, "snapshot {name} is not what it was");
        }
        Ok(true)
    }

    /// The same where nothing happens to the node.
    pub(super) async fn check_surely(&self, stage: &Stage, node: &Node) -> Result<()> {
        let alive = self.check(stage, node).await?;
        alive
            .then_some(())
            .context("a host crashed that nobody touched")
    }

    fn any(&self, index: impl FnOnce(usize) -> usize) -> Option<String> {
        let taken = self.taken.borrow();
        let len = taken.len();
        (len > 0)
            .then(|| taken.keys().nth(index(len)).cloned())
            .flatten()
    }
}
