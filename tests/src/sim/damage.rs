//! An object of the store is damaged, swapped, cut short, replaced by noise or gone. What is read
//! from then on is right, or an error; never other data (promise 5). With the object back, all is
//! there again.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use world::sim::{Corruption, Crash};

use super::guest::{Load, Tolerance};
use super::node::{NAME, Node};
use super::stage::Stage;
use crate::oracle::Judge;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let a = stage.sim.host("a");
    let node = Rc::new(stage.start_surely(a).await?);
    stage.judge(&node, Judge::Process).await?;
    for _ in 0..stage.between(1, 3) {
        let guest = stage.guest(&node, Load::drawn(&stage.sim, Tolerance::Nothing));
        stage.pause_ms(5, 2_000).await;
        stage.rest(&guest).await?;
    }
    stage.drain(&node).await?;
    if stage.one_in(4) {
        return rolled_back(stage, &node).await;
    }
    node.kill();
    let sound = stage.sim.objects();
    let damaged = damage(stage)?;
    let b = stage.start_surely(stage.sim.host("b")).await?;
    match stage.try_take(&b, 3).await {
        Ok(()) => stage.check_pages(&b).await?,
        Err(why) => {
            let named = why.contains(&damaged) || why.contains(NAME);
            ensure!(named, "an error that does not name `{damaged}`: {why}");
        }
    }
    stage.sim.crash(b.host, Crash::Process);
    // The objects as they were, but for a root that the new owner has changed.
    let root = format!("nbd/{NAME}/root");
    let taken = stage.sim.object(&root);
    stage.sim.restore_objects(&sound);
    if let Some(taken) = taken.filter(|_| damaged != root) {
        stage.sim.corrupt(&root, &Corruption::Replace(taken));
    }
    let c = stage.start_surely(stage.sim.host("c")).await?;
    stage.take(&c).await?;
    stage.judge(&c, Judge::Store).await?;
    stage.finish(&c).await.map(drop)
}

/// Damages one object of the volume; returns its key.
fn damage(stage: &Stage) -> Result<String> {
    let sim = &stage.sim;
    let keys: Vec<String> = sim.keys();
    let of_volume: Vec<&String> = keys
        .iter()
        .filter(|key| key.starts_with("nbd/vm/"))
        .collect();
    ensure!(!of_volume.is_empty(), "a drained volume without objects");
    let pick = |keys: &[&String]| keys[sim.chance(|chance| chance.index(keys.len()))].clone();
    let key = pick(&of_volume);
    let len = sim.object(&key).map_or(0, |object| object.len());
    let len = u64::try_from(len).expect("small");
    let how = match stage.between(0, 5) {
        0..=2 => Corruption::FlipBit {
            at: stage.between(0, len.saturating_sub(1)),
            bit: u8::try_from(stage.between(0, 7)).expect("a bit"),
        },
        3 => Corruption::Truncate {
            len: stage.between(0, len.saturating_sub(1)),
        },
        4 => {
            let mut noise = vec![0; usize::try_from(len).expect("small")];
            sim.chance(|chance| chance.fill(&mut noise));
            Corruption::Replace(Bytes::from(noise))
        }
        _ => Corruption::CopyOf(pick(&of_volume)),
    };
    if stage.one_in(8) {
        sim.note(format_args!("{key} is deleted"));
        sim.delete_object(&key);
    } else {
        sim.note(format_args!("{key}: {how:?}"));
        sim.corrupt(&key, &how);
    }
    Ok(key)
}

/// A root that was current once. The node that saw newer must not serve it (rule 24).
async fn rolled_back(stage: &Stage, node: &Rc<Node>) -> Result<()> {
    let root = format!("nbd/{NAME}/root");
    let old = stage
        .sim
        .object(&root)
        .context("a drained volume has a root")?;
    let load = Load {
        zeros: 0,
        flushes: 5,
        reads: 5,
        ..Load::drawn(&stage.sim, Tolerance::Nothing)
    };
    let guest = stage.guest(node, load);
    stage.pause_ms(50, 500).await;
    stage.rest(&guest).await?;
    let changed = guest.state().changes.get() > 0;
    stage.drain(node).await?;
    // Soon the log knows that it was published; until then it has only the intent.
    stage.pause_ms(100, 300).await;
    let new = stage
        .sim
        .object(&root)
        .context("a drained volume has a root")?;
    node.kill();
    stage.sim.corrupt(&root, &Corruption::Replace(old.clone()));
    let again = stage.start_surely(node.host).await?;
    if changed && old != new {
        stage.refuses(&again, &root).await?;
    }
    again.kill();
    stage.sim.corrupt(&root, &Corruption::Replace(new));
    let again = stage.start_surely(node.host).await?;
    stage.settle(&again).await?;
    stage.judge(&again, Judge::Process).await?;
    stage.finish(&again).await.map(drop)
}
