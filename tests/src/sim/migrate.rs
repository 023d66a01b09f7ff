//! A running guest moves from node to node, as a live migration does it: the target is prepared and the guest's other
//! half connects there, the source is drained in rounds, the guest pauses, the last drain, the promotion, and the guest
//! goes on over the connection that was there before. Either end may die on the way, the move may be given up and begun
//! anew, the source may detach instead, or be lost or cut off and the volume be taken by force.
//!
//! - What the half reads before the promotion is one cut, no older than what was known to be published when the
//!   target was prepared (rule 23); its writes wait, and one whose client is gone by then never lands.
//! - Behind the promotion everything that was answered at either end is there; after a loss, what was published.
//! - An open volume is not taken without force. The source answers a flush well behind a finished hand-over, and not
//!   once it knows that it answered a write too many (rule 15); nothing it writes behind the promotion is ever seen.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use glidefs::control::{ControlError, ControlErrorKind, ExportDocument, PromoteDocument};
use world::sim::Crash;
use world::sync::oneshot;
use world::sync::oneshot::error::TryRecvError;

use super::guest::{Guest, Load, Tolerance};
use super::look::read_range;
use super::node::Node;
use super::stage::{ANSWER_MAX, PAGE, Stage, TRIES_MAX, TRY_PAUSE};
use crate::nbd_client::ClientError;
use crate::oracle::{Judge, Oracle};

/// Moves may last minutes in bad weather; a guest that never thinks would take millions of steps.
const THINK_US_MIN: u64 = 20_000;
/// A node that holds writes nobody wants any more finds out within this.
const FENCED_MAX: Duration = Duration::from_secs(600);
const NO_CONNECTION: &str = "the other half has no connection, and its server lives";

/// A write on its way through an export that is prepared.
type Ahead = oneshot::Receiver<Result<(), ClientError>>;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let mut mover = Mover::begin(stage).await?;
    for _ in 0..stage.between(1, 4) {
        Box::pin(mover.travel()).await?;
    }
    stage.calm();
    stage.rest(&mover.guest).await?;
    let last = Rc::clone(mover.source());
    for node in mover.nodes.iter().filter(|node| node.pid != last.pid) {
        node.kill();
    }
    stage.finish(&last).await.map(drop)
}

/// Who moves the guest, and what he knows.
struct Mover<'a> {
    stage: &'a Stage,
    nodes: Vec<Rc<Node>>,
    /// Where the guest runs, and where it goes: places in `nodes`.
    at: usize,
    to: usize,
    guest: Guest,
    /// Its other half, connected to the target and paused.
    half: Option<Guest>,
    /// The model of what the target was prepared with.
    shown: Option<Oracle>,
}

impl<'a> Mover<'a> {
    async fn begin(stage: &'a Stage) -> Result<Self> {
        let mut nodes = Vec::new();
        let count = usize::try_from(stage.between(2, 3)).expect("small");
        for name in ["a", "b", "c"].into_iter().take(count) {
            nodes.push(Rc::new(stage.start_surely(stage.sim.host(name)).await?));
        }
        stage.judge(&nodes[0], Judge::Process).await?;
        stage.follow(&nodes[0]);
        Ok(Self {
            guest: stage.guest(&nodes[0], load(stage)),
            stage,
            nodes,
            at: 0,
            to: 1,
            half: None,
            shown: None,
        })
    }

    fn source(&self) -> &Rc<Node> {
        &self.nodes[self.at]
    }

    fn target(&self) -> &Rc<Node> {
        &self.nodes[self.to]
    }

    fn half(&self) -> Result<&Guest> {
        self.half.as_ref().context("the guest has no other half")
    }

    /// From one node to another.
    async fn travel(&mut self) -> Result<()> {
        let (stage, count) = (self.stage, self.nodes.len());
        let step = 1 + stage.sim.chance(|chance| chance.index(count - 1));
        self.to = (self.at + step) % count;
        stage.weather();
        stage.pause_ms(5, 1_500).await;
        Box::pin(self.prepare()).await?;
        Box::pin(self.join()).await?;
        for _ in 0..stage.between(0, 4) {
            Box::pin(self.round()).await?;
        }
        let is_clean = if stage.one_in(3) {
            Box::pin(self.seize()).await?
        } else {
            Box::pin(self.hand_over()).await?
        };
        let old = std::mem::replace(&mut self.at, self.to);
        if !self.nodes[old].is_alive() {
            self.restart(old).await?;
        }
        // Otherwise it may go on in the belief that the volume is its own, until it comes back.
        if !is_clean || stage.one_in(2) {
            self.retire(old).await?;
        }
        Ok(())
    }

    /// Once more: then the target moves on.
    async fn prepare(&mut self) -> Result<()> {
        let (stage, target) = (self.stage, Rc::clone(self.target()));
        let known = stage.model.borrow().published();
        let export = surely(stage, "prepared", async || target.prepare().await).await?;
        // Also where it had the volume before, and had not found out that this is over.
        ensure!(export.role == "prepared", "prepared, it is {}", export.role);
        self.shown = Some(stage.model.borrow().of_copy(known));
        Ok(())
    }

    /// The other half connects, is told that it may write, and looks at its disk.
    async fn join(&mut self) -> Result<()> {
        let half = self.stage.guest(self.target(), load(self.stage));
        half.pause();
        half.quiet(ANSWER_MAX).await?;
        ensure!(!half.is_over(), NO_CONNECTION);
        self.half = Some(half);
        self.look().await
    }

    /// What the half is shown is one cut, and does not move by itself.
    async fn look(&self) -> Result<()> {
        let (stage, half) = (self.stage, self.half()?);
        let mut seen = Vec::new();
        for number in 0..stage.between(1, 4) {
            // Block 0 first, as firmware and QEMU do.
            let page = match number {
                0 => 0,
                _ => stage.between(0, stage.settings.volume_bytes / PAGE - 1),
            };
            let bytes = read(half, page * PAGE, PAGE).await?;
            seen.push((page, bytes.context(NO_CONNECTION)?));
        }
        let content = content(stage, half).await?.context(NO_CONNECTION)?;
        for (page, bytes) in seen {
            let at = usize::try_from(page * PAGE).expect("small");
            let same = content[at..at + bytes.len()] == bytes[..];
            ensure!(same, "page {page} changed, and nobody prepared again");
        }
        let shown = self.shown.as_ref().context("nothing is prepared")?;
        let verdict = shown.check(&content, Judge::Store);
        verdict.map_err(|violation| anyhow!("what is prepared: {violation}"))?;
        let flushed = half.ask(|client| async move { client.flush().await }).await;
        let is_flushed = matches!(flushed, Some(Ok(())));
        ensure!(is_flushed, "a flush of what is prepared: {flushed:?}");
        Ok(())
    }

    /// Something happens while the guest runs on at the source.
    async fn round(&mut self) -> Result<()> {
        let stage = self.stage;
        match stage.between(0, 9) {
            0 | 1 => stage.drain(self.source()).await?,
            2..=4 => {
                self.prepare().await?;
                self.look().await?;
            }
            5 => self.restart_target().await?,
            6 => self.restart_source().await?,
            7 => self.begin_anew().await?,
            8 => {
                stage.sim.set_store_outage(None, true);
                stage.pause_ms(0, 2_000).await;
                stage.sim.set_store_outage(None, false);
            }
            _ => stage.weather(),
        }
        stage.pause_ms(0, 800).await;
        self.guest.check()?;
        self.half()?.check()
    }

    /// What is prepared is not remembered.
    async fn restart_target(&mut self) -> Result<()> {
        self.target().kill();
        self.part()?;
        self.restart(self.to).await?;
        if let Ok(export) = self.target().get().await {
            ensure!(export.role != "prepared", "prepared over a restart");
        }
        // The kill may have cost it the note of its own last publish: then it holds what looks unpublished.
        self.retire(self.to).await?;
        self.prepare().await?;
        self.join().await
    }

    /// The target goes on, and the guest goes on with a new process.
    async fn restart_source(&mut self) -> Result<()> {
        let (stage, source) = (self.stage, Rc::clone(self.source()));
        let (crash, owed) = [
            (None, Judge::Process),
            (Some(Crash::Process), Judge::Process),
            (Some(Crash::Power), Judge::Power),
        ][stage.sim.chance(|chance| chance.index(3))];
        if let Some(how) = crash {
            stage.sim.crash(source.host, how);
        } else {
            source.kill();
            self.guest.over(ANSWER_MAX).await?;
            stage.sim.kill(self.guest.pid);
        }
        stage.dismiss(&self.guest)?;
        self.restart(self.at).await?;
        self.guest = self.judged(self.at, owed).await?;
        stage.follow(self.source());
        Ok(())
    }

    /// Given up while a write waits. The guest does not notice, and the write never lands.
    async fn begin_anew(&mut self) -> Result<()> {
        let (at, data) = strange(self.stage);
        let half = self.half()?;
        let mut ahead = half.send(move |client| async move { client.write(at, data).await });
        self.stage.pause_ms(0, 1_000).await;
        check_waits(&mut ahead)?;
        self.part()?;
        self.retire(self.to).await?;
        self.prepare().await?;
        self.join().await
    }

    /// The way of `docs/http-api.md`, with the connection to the source open to the end; or the guest leaves the
    /// source, which gives the volume up, and no force is needed. True if the source is left with nothing.
    async fn hand_over(&mut self) -> Result<bool> {
        let stage = self.stage;
        let mut ahead = self.write_ahead()?;
        stage.pause_ms(0, 1_500).await;
        if stage.one_in(2) {
            self.is_refused().await?;
        }
        let drained = self.last_drain().await?;
        let detached = stage.one_in(3);
        if detached {
            let source = self.source();
            stage.rest(&self.guest).await?;
            surely(stage, "given up", async || source.give_up().await).await?;
        }
        if stage.one_in(2) {
            self.prepare().await?;
            self.look().await?;
        }
        ahead.iter_mut().try_for_each(check_waits)?;
        if stage.one_in(6) {
            self.source().kill();
        }
        let how = PromoteDocument {
            force: !detached,
            expected_epoch: (!detached).then_some(drained.epoch),
            min_seq: Some(drained.published_seq),
            ..PromoteDocument::default()
        };
        Box::pin(self.arrive(&how, drained.epoch, ahead)).await?;
        let old = self.change_over()?;
        if detached {
            return Ok(self.source().is_alive());
        }
        self.leave_behind(&old).await
    }

    /// The source dies, is cut off, or is well and not asked: what it had not published may be lost.
    async fn seize(&mut self) -> Result<bool> {
        let (stage, host) = (self.stage, self.source().host);
        self.guest.tolerate(Tolerance::Everything);
        let how = stage.between(0, 3);
        match how {
            0 => self.source().kill(),
            1 => stage.sim.crash(host, Crash::Power),
            2 => stage.sim.set_store_outage(Some(host), true),
            _ => {}
        }
        stage.pause_ms(0, 3_000).await;
        stage.take(self.target()).await?;
        // What the source answers from here on is not part of the volume.
        stage.estrange(&self.guest);
        let content = content(stage, self.half()?).await?;
        stage.judge_content(&content.context(NO_CONNECTION)?, Judge::Store)?;
        let old = self.change_over()?;
        stage.pause_ms(0, 2_000).await;
        stage.sim.set_store_outage(Some(host), false);
        if how == 1 {
            stage.dismiss(&old)?;
        } else {
            stage.rest(&old).await?;
        }
        Ok(false)
    }

    /// Writes that wait for the promotion. The model hears of their answers at that very moment.
    fn write_ahead(&self) -> Result<Vec<Ahead>> {
        let (stage, half) = (self.stage, self.half()?);
        let mut ahead = Vec::new();
        for _ in 0..stage.between(0, 3) {
            let (at, len) = range(stage);
            let (no, data) = stage.model.borrow_mut().submit_write(at, len);
            stage.sim.note(format_args!("{no} {at}+{len} is to wait"));
            let model = Rc::clone(&stage.model);
            ahead.push(half.send(move |client| async move {
                let written = client.write(at, data).await;
                if written.is_ok() {
                    model.borrow_mut().answered(no);
                }
                written
            }));
        }
        Ok(ahead)
    }

    /// It has an owner, and stays prepared.
    async fn is_refused(&self) -> Result<()> {
        let taken = self.target().promote_as(PromoteDocument::default()).await;
        let Err(error) = taken else {
            bail!("an open volume was taken without force");
        };
        let kinds = [ControlErrorKind::Conflict, ControlErrorKind::Unavailable];
        ensure!(kinds.contains(&error.kind), "{:?}: {error}", error.kind);
        Ok(())
    }

    /// The guest pauses, and all that it was told is in the store.
    async fn last_drain(&self) -> Result<ExportDocument> {
        self.guest.pause();
        self.guest.quiet(ANSWER_MAX).await?;
        self.stage.drain(self.source()).await?;
        // What it says from here on of its own is not of the volume that the target may have by then.
        self.stage.branch();
        let drained = self.source().get().await?;
        let is_all = drained.role == "read-write" && drained.published_seq == drained.last_seq;
        ensure!(is_all, "drained, and it says {drained:?}");
        Ok(drained)
    }

    /// The target becomes the owner, whatever becomes of it on the way, and has everything.
    async fn arrive(
        &mut self,
        how: &PromoteDocument,
        after: u64,
        mut ahead: Vec<Ahead>,
    ) -> Result<()> {
        let (stage, host) = (self.stage, self.target().host);
        let (crash, judge) = match stage.one_in(2) {
            true => (Crash::Power, Judge::Power),
            false => (Crash::Process, Judge::Process),
        };
        if stage.one_in(4) {
            let fuse = stage.between(0, 300);
            stage.sim.crash_after(host, fuse, crash);
        }
        let mut owed = Judge::Process;
        loop {
            let is_promoted = self.promote(how, after).await?;
            stage.sim.crash_after(host, u64::MAX, crash);
            if is_promoted && self.has_everything(&mut ahead, owed).await? {
                return Ok(());
            }
            ensure!(!self.target().is_alive(), NO_CONNECTION);
            (owed, ahead) = (judge, Vec::new());
            self.part()?;
            self.restart(self.to).await?;
        }
    }

    /// Asks until it is granted: a promotion may be repeated. False if the target died.
    async fn promote(&self, how: &PromoteDocument, after: u64) -> Result<bool> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            match self.target().promote_as(how.clone()).await {
                Ok(export) => {
                    let is_owner = export.role == "read-write" && export.epoch > after;
                    ensure!(is_owner, "promoted behind epoch {after}: {export:?}");
                    return Ok(true);
                }
                Err(_) if !self.target().is_alive() => return Ok(false),
                Err(error) => last = error.to_string(),
            }
            // As in `restart_target`: what it held from an earlier time looks unpublished since it died.
            if self.half.is_none() && last.contains("accept their loss") {
                self.retire(self.to).await?;
            }
            self.stage.sim.sleep(TRY_PAUSE).await;
        }
        bail!("never promoted: {last}")
    }

    /// What waited was carried out, and all that was answered at either end is there. False if the target died.
    async fn has_everything(&mut self, ahead: &mut Vec<Ahead>, owed: Judge) -> Result<bool> {
        if self.half.is_none() {
            // It died, and so did the connection from before the promotion.
            let half = self.judged(self.to, owed).await?;
            half.pause();
            self.half = Some(half);
            return Ok(true);
        }
        let half = self.half()?;
        for sent in ahead.drain(..) {
            match sent.await {
                Ok(Ok(())) => {}
                Err(_) | Ok(Err(ClientError::Closed | ClientError::Io(_))) => return Ok(false),
                Ok(Err(error)) => bail!("a write that waited for the promotion: {error}"),
            }
        }
        let Some(content) = content(self.stage, half).await? else {
            return Ok(false);
        };
        self.stage.judge_content(&content, owed)?;
        Ok(true)
    }

    /// From here on the guest runs at the target. Returns what is left of it at the source.
    fn change_over(&mut self) -> Result<Guest> {
        let half = self.half.take().context("the guest has no other half")?;
        self.stage.follow(self.target());
        half.resume();
        Ok(std::mem::replace(&mut self.guest, half))
    }

    /// QEMU flushes the old side behind the switch. A guest that writes there harms nobody but itself. True if nothing is
    /// left there.
    async fn leave_behind(&self, old: &Guest) -> Result<bool> {
        let stage = self.stage;
        stage.pause_ms(0, 2_000).await;
        let mut is_clean = self.source().is_alive();
        if is_clean {
            let flushed = old.ask(|client| async move { client.flush().await }).await;
            let is_flushed = matches!(flushed, Some(Ok(())));
            ensure!(is_flushed, "a flush behind the hand-over: {flushed:?}");
            is_clean = stage.one_in(2);
            if !is_clean {
                self.stray(old).await?;
            }
        }
        stage.rest(old).await?;
        Ok(is_clean)
    }

    /// A write at the source behind the promotion fails, or else a flush does once the source knows.
    async fn stray(&self, old: &Guest) -> Result<()> {
        let sim = &self.stage.sim;
        let (at, data) = strange(self.stage);
        let written = old.ask(move |client| async move { client.write(at, data).await });
        match written.await {
            Some(Ok(())) => {}
            Some(Err(ClientError::Failed { .. })) => return Ok(()),
            other => bail!("a write behind the hand-over: {other:?}"),
        }
        let end = sim.now() + FENCED_MAX;
        while self.source().get().await?.role == "read-write" {
            ensure!(sim.now() < end, "the source never finds out");
            sim.sleep(TRY_PAUSE).await;
        }
        let flushed = old.ask(|client| async move { client.flush().await }).await;
        let is_refused = matches!(flushed, Some(Err(ClientError::Failed { .. })));
        ensure!(is_refused, "a flush of what is lost: {flushed:?}");
        Ok(())
    }

    /// The other half goes, without a word.
    fn part(&mut self) -> Result<()> {
        let Some(half) = self.half.take() else {
            return Ok(());
        };
        self.stage.sim.kill(half.pid);
        self.stage.dismiss(&half)
    }

    async fn restart(&mut self, number: usize) -> Result<()> {
        let node = self.stage.start_surely(self.nodes[number].host).await?;
        self.nodes[number] = Rc::new(node);
        Ok(())
    }

    /// A new process of the guest, at a node that owns the volume and whose content is judged first.
    async fn judged(&self, number: usize, owed: Judge) -> Result<Guest> {
        let (stage, node) = (self.stage, &self.nodes[number]);
        let is_alive = stage.judge(node, owed).await?;
        ensure!(is_alive, "a host crashed that nobody touched");
        Ok(stage.guest(node, load(stage)))
    }

    /// Closes what a node has open, and drops what it holds: it is not part of the volume.
    async fn retire(&self, number: usize) -> Result<()> {
        let node = &self.nodes[number];
        let closed = surely(self.stage, "closed", async || node.delete().await);
        closed.await.map(drop)
    }
}

/// Asks until it is granted: each step of a move may be repeated.
pub(super) async fn surely<T>(
    stage: &Stage,
    what: &str,
    ask: impl AsyncFn() -> Result<T, ControlError>,
) -> Result<T> {
    let mut last = String::new();
    for _ in 0..TRIES_MAX {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error.to_string(),
        }
        stage.sim.sleep(TRY_PAUSE).await;
    }
    bail!("never {what}: {last}")
}

fn load(stage: &Stage) -> Load {
    let load = Load::drawn(&stage.sim, Tolerance::Reads);
    Load {
        think_us_max: load.think_us_max.max(THINK_US_MIN),
        ..load
    }
}

fn check_waits(ahead: &mut Ahead) -> Result<()> {
    match ahead.try_recv() {
        Err(TryRecvError::Empty) => Ok(()),
        Err(TryRecvError::Closed) => bail!(NO_CONNECTION),
        Ok(answer) => bail!("a write did not wait for the promotion: {answer:?}"),
    }
}

/// A page, or a few.
fn range(stage: &Stage) -> (u64, u64) {
    let pages = stage.settings.volume_bytes / PAGE;
    let first = stage.between(0, pages - 1);
    let count = stage.between(1, 4).min(pages - first);
    (first * PAGE, count * PAGE)
}

/// A write that must never be seen: the model knows its bytes as foreign.
fn strange(stage: &Stage) -> (u64, Bytes) {
    let (at, len) = range(stage);
    let mut stranger = Oracle::new(!stage.sim.seed(), stage.settings.volume_bytes);
    (at, stranger.submit_write(at, len).1)
}

/// The whole content, over the connection that the guest has. None if it has none any more.
async fn content(stage: &Stage, guest: &Guest) -> Result<Option<Vec<u8>>> {
    read(guest, 0, stage.settings.volume_bytes).await
}

/// With the patience of an operator, while the store does not give it.
async fn read(guest: &Guest, at: u64, len: u64) -> Result<Option<Vec<u8>>> {
    let world = guest.world.clone();
    let bytes = guest.ask(move |client| async move { read_range(&world, &client, at, len).await });
    match bytes.await {
        Some(Ok(bytes)) => Ok(Some(bytes)),
        None | Some(Err(ClientError::Closed | ClientError::Io(_))) => Ok(None),
        Some(Err(error)) => bail!("a read of {at}+{len}: {error}"),
    }
}
