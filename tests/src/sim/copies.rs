//! Cache folders that come from the past, or exist twice. What they hold unpublished counts only if
//! nobody has published since; otherwise the store's state does, and an operator accepts the loss
//! (rule 11). Whoever wins, the volume stays one exact cut.

use std::rc::Rc;

use anyhow::Result;
use world::sim::{Crash, DiskImage};

use super::guest::{Load, Tolerance};
use super::node::Node;
use super::stage::Stage;
use crate::oracle::Judge;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let a = stage.sim.host("a");
    let node = Rc::new(stage.start_surely(a).await?);
    stage.judge(&node, Judge::Process).await?;
    stage.follow(&node);
    let guest = stage.guest(&node, Load::drawn(&stage.sim, Tolerance::Everything));
    stage.weather();
    stage.pause_ms(5, 3_000).await;
    if stage.one_in(3) {
        stage.sim.set_store_outage(None, true);
        stage.pause_ms(5, 1_000).await;
    }
    let image = stage.sim.save_disk(a);
    stage.sim.note("the disk of a is saved");
    match stage.between(0, 2) {
        0 => {
            // The node goes on, and publishes more.
            stage.pause_ms(0, 3_000).await;
            stage.sim.set_store_outage(None, false);
            stage.pause_ms(0, 3_000).await;
            stage.sim.crash(a, Crash::Process);
            stage.dismiss(&guest)?;
        }
        1 => {
            stage.sim.crash(a, Crash::Process);
            stage.dismiss(&guest)?;
            elsewhere(stage).await?;
        }
        _ => return twice(stage, &node, &guest, &image).await,
    }
    stage.sim.restore_disk(a, &image);
    stage.calm();
    stage.branch();
    let node = stage.start_surely(a).await?;
    stage.settle(&node).await?;
    stage.judge(&node, Judge::Store).await?;
    onwards(stage, &node).await
}

/// Another node takes the volume and publishes.
async fn elsewhere(stage: &Stage) -> Result<()> {
    stage.sim.set_store_outage(None, false);
    stage.branch();
    let b = stage.start_surely(stage.sim.host("b")).await?;
    stage.take(&b).await?;
    stage.judge(&b, Judge::Store).await?;
    let b = Rc::new(b);
    stage.follow(&b);
    let guest = stage.guest(&b, Load::drawn(&stage.sim, Tolerance::Reads));
    stage.pause_ms(5, 4_000).await;
    stage.rest(&guest).await?;
    if stage.one_in(2) {
        stage.drain(&b).await?;
    }
    b.kill();
    Ok(())
}

/// A copy of the folder is started beside the original. Nobody writes there, but it may publish
/// what it holds, and fence the original.
async fn twice(
    stage: &Stage,
    node: &Node,
    guest: &super::guest::Guest,
    image: &DiskImage,
) -> Result<()> {
    let (a, c) = (node.host, stage.sim.host("c"));
    stage.sim.restore_disk(c, image);
    let copy = stage.start_surely(c).await?;
    stage.pause_ms(0, 2_000).await;
    stage.sim.set_store_outage(None, false);
    stage.pause_ms(0, 4_000).await;
    stage.sim.crash(a, Crash::Process);
    stage.dismiss(guest)?;
    copy.kill();
    stage.calm();
    stage.branch();
    let host = if stage.one_in(2) { a } else { c };
    let node = stage.start_surely(host).await?;
    stage.settle(&node).await?;
    stage.judge(&node, Judge::Store).await?;
    onwards(stage, &node).await
}

async fn onwards(stage: &Stage, node: &Node) -> Result<()> {
    let guest = stage.guest(node, Load::drawn(&stage.sim, Tolerance::Nothing));
    stage.pause_ms(5, 2_000).await;
    stage.rest(&guest).await?;
    stage.finish(node).await.map(drop)
}
