//! Kills and power cuts at random operations, under load and a bad store; also while starting. As
//! [`Scenario::Weather`] the store is worse, outages last for minutes, and nobody else is there who
//! could fence the node.
//!
//! After a kill every answered write is there, after a power cut everything that was flushed, and
//! in both cases what is there is one cut (promises 1, 2). An export whose epoch the log holds opens
//! also while the store is out (rule 14).

use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use world::sim::{Crash, HostId, Odds, StoreFaults};

use super::Scenario;
use super::guest::{Guest, Load, Tolerance};
use super::node::Node;
use super::snapshots::Album;
use super::stage::{ANSWER_MAX, Stage};
use crate::oracle::Judge;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let host = stage.sim.host("a");
    let mut lives = Lives {
        stage,
        host,
        owed: None,
        held: false,
        album: Rc::default(),
    };
    for _ in 0..stage.between(2, 5) {
        lives.live().await?;
    }
    stage.calm();
    let node = stage.start_surely(host).await?;
    stage
        .judge(&node, lives.owed.unwrap_or(Judge::Process))
        .await?;
    lives.album.check_surely(stage, &node).await?;
    if stage.run.scenario == Scenario::Snapshots && stage.one_in(2) {
        lives.album.restore(stage, &node).await?;
        let guest = stage.guest(&node, Load::drawn(&stage.sim, Tolerance::Nothing));
        stage.pause_ms(50, 2_000).await;
        stage.rest(&guest).await?;
    }
    let heir = stage.finish(&node).await?;
    lives.album.check_surely(stage, &heir).await?;
    if stage.run.scenario == Scenario::Snapshots && stage.one_in(2) {
        lives.album.end(stage, &heir).await?;
    }
    Ok(())
}

struct Lives<'a> {
    stage: &'a Stage,
    host: HostId,
    /// What the content must show; several crashes may have come since it was last judged.
    owed: Option<Judge>,
    /// A client was served: the log holds the epoch.
    held: bool,
    /// As [`Scenario::Snapshots`].
    album: Rc<Album>,
}

impl Lives<'_> {
    async fn live(&mut self) -> Result<()> {
        let stage = self.stage;
        let sim = &stage.sim;
        let how = if stage.one_in(2) {
            Crash::Power
        } else {
            Crash::Process
        };
        let early = stage.one_in(4);
        let longest = match stage.run.scenario {
            // Long enough for some to be taken.
            Scenario::Snapshots => 30_000,
            _ => 4_000,
        };
        let fuse = stage.between(0, if early { 150 } else { longest });
        sim.crash_after(self.host, fuse, how);
        self.change_weather();
        if self.held && stage.one_in(4) {
            sim.set_store_outage(None, true);
        }
        let Some(node) = stage.start(self.host).await? else {
            self.owe(how);
            return Ok(());
        };
        if self.held {
            stage.opens(&node).await?;
        }
        sim.set_store_outage(None, false);
        let owed = self.owed.unwrap_or(Judge::Process);
        if !stage.judge(&node, owed).await? {
            self.owe(how);
            return Ok(());
        }
        (self.owed, self.held) = (None, true);
        if !self.album.check(stage, &node).await? {
            self.owe(how);
            return Ok(());
        }
        let node = Rc::new(node);
        stage.follow(&node);
        if stage.run.scenario == Scenario::Snapshots {
            self.album.fill(stage, &node);
        }
        let guest = stage.guest(&node, Load::drawn(sim, Tolerance::Reads));
        let how = Box::pin(self.end(&node, &guest, how)).await?;
        self.owe(how);
        stage.dismiss(&guest)
    }

    /// Lets things happen until the server is down; returns how it went down.
    async fn end(&self, node: &Node, guest: &Guest, how: Crash) -> Result<Crash> {
        let stage = self.stage;
        let end = if self.is_storm() && stage.one_in(4) {
            stage.between(8_000, 90_000)
        } else {
            stage.between(50, 8_000)
        };
        let end = stage.sim.now() + Duration::from_millis(end);
        while stage.sim.now() < end && node.is_alive() {
            let longest = if self.is_storm() && stage.one_in(8) {
                60_000
            } else {
                400
            };
            stage.pause_ms(1, longest).await;
            guest.check()?;
            if self.is_storm() {
                stage.owns(node).await?;
            }
            match stage.between(0, 9) {
                0 => self.change_weather(),
                1 => stage.sim.set_store_outage(None, true),
                2 | 3 => stage.sim.set_store_outage(None, false),
                _ => {}
            }
        }
        if !node.is_alive() {
            return Ok(how);
        }
        if self.is_storm() && stage.one_in(2) {
            // What it sends now lands when its successor is at work, and it never learns of it.
            stage.sim.set_store_faults(StoreFaults {
                late: Odds::one_in(2),
                ..StoreFaults::default()
            });
            stage.pause_ms(50, 2_000).await;
            stage.sim.set_store_outage(None, true);
            stage.pause_ms(0, 1_000).await;
            if !node.is_alive() {
                return Ok(how);
            }
        }
        if stage.one_in(2) {
            stage.sim.crash(self.host, how);
            return Ok(how);
        }
        node.kill();
        guest.over(ANSWER_MAX).await?;
        stage.sim.kill(guest.pid);
        Ok(Crash::Process)
    }

    fn is_storm(&self) -> bool {
        self.stage.run.scenario == Scenario::Weather
    }

    fn change_weather(&self) {
        if self.is_storm() {
            self.stage.storm(self.held);
        } else {
            self.stage.weather();
        }
    }

    fn owe(&mut self, how: Crash) {
        self.owed = match (how, self.owed) {
            (Crash::Process, None | Some(Judge::Process)) => Some(Judge::Process),
            _ => Some(Judge::Power),
        };
    }
}
