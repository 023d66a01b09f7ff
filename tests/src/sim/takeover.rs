//! Another node takes the volume by force while the first is frozen, or cut off from the store, and
//! the first comes back. From the takeover on nothing that the first one writes may be seen, its
//! clients get errors, and the second stays exact (promise 4). No clock takes part.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use world::sim::Crash;

use super::guest::{Load, Tolerance};
use super::stage::{ANSWER_MAX, Stage};
use crate::oracle::Judge;

/// How the first node is kept from noticing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// Frozen, with what it has in flight going on.
    Paused,
    /// It cannot reach the store, and goes on serving.
    CutOff,
    /// Nothing is wrong with it at all.
    None,
}

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let sim = &stage.sim;
    let (a, b) = (sim.host("a"), sim.host("b"));
    let first = Rc::new(stage.start_surely(a).await?);
    stage.judge(&first, Judge::Process).await?;
    stage.follow(&first);
    let old = stage.guest(&first, Load::drawn(sim, Tolerance::Everything));
    stage.weather();
    stage.pause_ms(5, 4_000).await;
    let second = stage.start_surely(b).await?;
    let absence =
        [Absence::Paused, Absence::CutOff, Absence::None][sim.chance(|chance| chance.index(3))];
    sim.note(format_args!("{absence:?}"));
    match absence {
        Absence::Paused => sim.pause(a),
        Absence::CutOff => sim.set_store_outage(Some(a), true),
        Absence::None => {}
    }
    stage.pause_ms(0, 3_000).await;
    stage.take(&second).await?;
    // What the first answers from here on is not part of the volume.
    stage.estrange(&old);
    let second = Rc::new(second);
    stage.judge(&second, Judge::Store).await?;
    stage.follow(&second);
    let new = stage.guest(&second, Load::drawn(sim, Tolerance::Reads));
    stage.pause_ms(0, 3_000).await;
    if absence == Absence::CutOff && stage.one_in(3) {
        // Not even a restart brings a lost epoch back for long.
        first.kill();
        stage.weather();
    }
    match absence {
        Absence::Paused => sim.resume(a),
        Absence::CutOff | Absence::None => {}
    }
    stage.pause_ms(0, 2_000).await;
    stage.calm();
    old.over(ANSWER_MAX).await?;
    let failed = old.state().failures.get() > 0 || !first.is_alive();
    ensure!(failed, "a guest of a fenced node ended without an error");
    fenced(stage, &first).await?;
    stage.pause_ms(0, 2_000).await;
    stage.rest(&new).await?;
    stage.dismiss(&old)?;
    // The first may come back with its log: it must not serve what it answered alone.
    sim.crash(a, Crash::Process);
    let again = stage.start_surely(a).await?;
    stage.drain(&second).await?;
    stage.judge_as_reader(&again, Judge::Store).await?;
    again.kill();
    stage.finish(&second).await.map(drop)
}

/// The first node knows by itself, sooner or later, that its epoch is over.
async fn fenced(stage: &Stage, first: &super::node::Node) -> Result<()> {
    if !first.is_alive() {
        return Ok(());
    }
    let end = stage.sim.now() + Duration::from_secs(300);
    loop {
        let document = first.get().await?;
        if document.role != "read-write" {
            return Ok(());
        }
        // With nothing unpublished it has no reason to look.
        if document.dirty_bytes == 0 {
            return Ok(());
        }
        ensure!(
            stage.sim.now() < end,
            "still read-write, with {} dirty bytes",
            document.dirty_bytes
        );
        stage.sim.sleep(Duration::from_secs(1)).await;
    }
}
