//! The node dies with its disk. What the store holds must be one exact cut, no older than what was
//! last known to be published (promise 3), and the next node goes on from it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use world::sim::Crash;

use super::guest::{Load, Tolerance};
use super::node::Node;
use super::stage::Stage;
use crate::oracle::Judge;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let node = lose_nodes(stage, async |node| {
        stage.follow(&node);
        let guest = stage.guest(&node, Load::drawn(&stage.sim, Tolerance::Reads));
        let end = stage.sim.now() + Duration::from_millis(stage.between(50, 10_000));
        while stage.sim.now() < end {
            stage.pause_ms(1, 500).await;
            guest.check()?;
            match stage.between(0, 9) {
                0 => stage.weather(),
                1 => stage.sim.set_store_outage(None, true),
                2 | 3 => stage.sim.set_store_outage(None, false),
                _ => {}
            }
        }
        stage.sim.crash(node.host, Crash::Power);
        stage.sim.wipe_disk(node.host);
        stage.dismiss(&guest)?;
        // What is on its way may arrive while the next node opens.
        stage.sim.set_store_outage(None, false);
        if stage.one_in(2) {
            stage.calm();
        }
        Ok(())
    });
    let node = node.await?;
    let guest = stage.guest(&node, Load::drawn(&stage.sim, Tolerance::Nothing));
    stage.pause_ms(10, 2_000).await;
    stage.rest(&guest).await?;
    stage.finish(&node).await.map(drop)
}

/// One node after another takes the volume and judges what the store holds; each is lost with its disk
/// at the end of `life`. Returns the last one, which is not.
pub(super) async fn lose_nodes(
    stage: &Stage,
    life: impl AsyncFn(Rc<Node>) -> Result<()>,
) -> Result<Node> {
    let hosts = ["a", "b", "c"].map(|name| stage.sim.host(name));
    let rounds = stage.between(1, 3);
    let mut number = 0;
    for round in 0..rounds {
        let node = stage.start_surely(hosts[number]).await?;
        if round > 0 {
            stage.take(&node).await?;
        }
        stage.judge(&node, Judge::Store).await?;
        life(Rc::new(node)).await?;
        // The same machine with a new disk, or another one.
        number = usize::try_from(stage.between(0, 2)).expect("small");
    }
    stage.calm();
    let node = stage.start_surely(hosts[number]).await?;
    stage.take(&node).await?;
    stage.judge(&node, Judge::Store).await?;
    Ok(node)
}
