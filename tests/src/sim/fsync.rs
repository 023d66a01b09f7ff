//! The disk reports an error. From then on nothing is acknowledged any more, whatever is tried again
//! (promise 8); the next start has everything that was flushed before.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use world::World;
use world::sim::{DiskFaults, Odds};

use super::guest::{Load, Tolerance};
use super::node::{NAME, Node, socket};
use super::stage::{ANSWER_MAX, Stage, TRIES_MAX, TRY_PAUSE};
use crate::nbd_client::{ClientError, NbdClient, Options};
use crate::oracle::Judge;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let host = stage.sim.host("a");
    let mut owed = Judge::Process;
    for _ in 0..stage.between(1, 3) {
        let node = stage.start_surely(host).await?;
        accept_loss(stage, &node, owed).await?;
        stage.judge(&node, owed).await?;
        let node = Rc::new(node);
        stage.follow(&node);
        if stage.one_in(2) {
            stage.weather();
        }
        let guest = stage.guest(&node, Load::drawn(&stage.sim, Tolerance::Everything));
        stage.pause_ms(5, 3_000).await;
        let odds = Odds::one_in(u32::try_from(stage.between(1, 5)).expect("small"));
        let faults = match stage.between(0, 2) {
            0 => DiskFaults {
                write_error: odds,
                ..DiskFaults::default()
            },
            _ => DiskFaults {
                persist_error: odds,
                ..DiskFaults::default()
            },
        };
        stage.sim.set_disk_faults(host, faults);
        guest.over(ANSWER_MAX).await?;
        stage.dismiss(&guest)?;
        stage.sim.kill(guest.pid);
        if stage.one_in(2) {
            stage.calm();
        }
        final_error(stage, &node).await?;
        stage.calm();
        node.kill();
        owed = Judge::Power;
    }
    let node = stage.start_surely(host).await?;
    accept_loss(stage, &node, owed).await?;
    stage.judge(&node, owed).await?;
    stage.finish(&node).await.map(drop)
}

/// Where answered writes never reached the disk, what is left is a cut that holds all that was flushed,
/// nothing is taken, and no flush is answered well, before an operator has accepted the loss (rule 8).
async fn accept_loss(stage: &Stage, node: &Node, owed: Judge) -> Result<()> {
    let mut last = String::new();
    for _ in 0..TRIES_MAX {
        let Some(damage) = node.get().await.ok().and_then(|export| export.damage) else {
            return Ok(());
        };
        ensure!(owed == Judge::Power, "damage without a failed disk");
        if stage.judge_as_reader(node, owed).await? {
            shows_and_takes_nothing(stage, node).await?;
        }
        match node.accept_loss(damage.kept_seq).await {
            Ok(_) => {
                stage.sim.note("the operator accepts the loss");
                return Ok(());
            }
            Err(error) => last = error.to_string(),
        }
        stage.sim.sleep(TRY_PAUSE).await;
    }
    bail!("a loss cannot be accepted: {last}")
}

async fn shows_and_takes_nothing(stage: &Stage, node: &Node) -> Result<()> {
    let call = stage.sim.call(node.host, |world| async move {
        let client = NbdClient::connect(&world, &socket(), NAME, Options::default()).await;
        let Ok(client) = client else { return Ok(()) };
        for acknowledged in [client.flush().await, client.write(0, vec![1; 4096]).await] {
            if acknowledged.is_ok() {
                bail!("a damaged volume acknowledged a flush or a write");
            }
        }
        Ok(())
    });
    let pid = call.pid();
    let outcome = call.await.unwrap_or(Ok(()));
    stage.sim.kill(pid);
    outcome
}

/// No change is acknowledged once one has failed, to nobody.
async fn final_error(stage: &Stage, node: &Node) -> Result<()> {
    let stopped = node.server().await?.stopped;
    ensure!(stopped.is_some(), "a guest was failed and the log goes on");
    let (no, data) = stage.model.borrow_mut().submit_write(0, 4096);
    stage.sim.note(format_args!("{no} to a stopped log"));
    let call = stage.sim.call(node.host, move |world| async move {
        let client = NbdClient::connect(&world, &socket(), NAME, Options::default()).await;
        let Ok(client) = client else { return Ok(()) };
        for _ in 0..3 {
            for acknowledged in [
                client.flush().await,
                client.write_fua(0, data.clone()).await,
            ] {
                match acknowledged {
                    Ok(()) => bail!("a stopped log acknowledged a flush or a durable write"),
                    Err(ClientError::Failed { .. } | ClientError::Closed) => {}
                    Err(other) => bail!("a stopped log: {other}"),
                }
            }
            world.sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    });
    let pid = call.pid();
    let outcome = call.await.unwrap_or(Ok(()));
    stage.sim.kill(pid);
    outcome
}
