//! Answers of the store get lost, of every kind of request; guests come and go, so that exports
//! drain, detach and are opened again, here and on another node; servers are killed in between.
//! Nothing that was answered is ever missing, whichever node is asked (rules 13, 15).

use std::rc::Rc;

use anyhow::Result;
use world::sim::{Odds, StoreFaults};

use super::guest::{Load, Tolerance};
use super::stage::{ANSWER_MAX, Stage};
use crate::oracle::Judge;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let hosts = [stage.sim.host("a"), stage.sim.host("b")];
    let mut nodes = Vec::new();
    for host in hosts {
        nodes.push(Rc::new(stage.start_surely(host).await?));
    }
    let mut number = 0;
    for _ in 0..stage.between(2, 6) {
        faults(stage);
        // Read-only at first, if the other node has not let go yet.
        stage.judge(&nodes[number], Judge::Process).await?;
        let load = Load::drawn(&stage.sim, Tolerance::Reads);
        let guest = stage.guest(&nodes[number], load);
        stage.pause_ms(5, 2_500).await;
        if stage.one_in(3) {
            nodes[number].kill();
            guest.over(ANSWER_MAX).await?;
            stage.sim.kill(guest.pid);
            stage.dismiss(&guest)?;
            nodes[number] = Rc::new(stage.start_surely(hosts[number]).await?);
        } else {
            stage.rest(&guest).await?;
        }
        // Sometimes back within the grace time, sometimes while the detach is on its way.
        stage.pause_ms(0, 6_000).await;
        if stage.one_in(4) {
            nodes[number].kill();
            nodes[number] = Rc::new(stage.start_surely(hosts[number]).await?);
        }
        if stage.one_in(2) {
            number = 1 - number;
        }
    }
    stage.calm();
    stage.judge(&nodes[number], Judge::Process).await?;
    let other = Rc::clone(&nodes[1 - number]);
    let last = Rc::clone(&nodes[number]);
    other.kill();
    stage.finish(&last).await.map(drop)
}

fn faults(stage: &Stage) {
    let odds = |stage: &Stage| Odds::one_in(u32::try_from(stage.between(3, 12)).expect("small"));
    let faults = StoreFaults {
        lost_answer: odds(stage),
        late: Odds::one_in(30),
        ..StoreFaults::default()
    };
    stage.sim.set_store_faults(faults);
}
