//! Volumes that are published together, with databases on them, through all that happens to nodes and stores: a record goes
//! to one member, and what it tells of to another only once it is answered. Whoever looks (a client behind a kill or a
//! power cut, the next owner, a reader elsewhere, a snapshot, a fork) sees one moment of all members: with each
//! write all that were answered before it was sent (rule 30). The judge sees one disk ([`super::disks`]).
//!
//! Meanwhile the group is taken from owners that live on, given up, restored, dissolved and formed again, and members of a
//! group that is forming are opened.

mod album;
mod desk;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use blockcache::Id;
use glidefs::control::{ExportDocument, ForkGroupDocument, FormGroupDocument, RestoreDocument};
use glidefs::volume::GroupFork;
use world::sim::{Crash, DiskFaults, Odds};

use super::guest::{Guest, Load, Tolerance};
use super::look::{Wanted, connect};
use super::migrate::surely;
use super::node::Node;
use super::stage::{ANSWER_MAX, PAGE, Stage, TRIES_MAX, TRY_PAUSE};
use crate::oracle::Judge;
use album::{Album, Kind};

/// Looks and forks take their time, in which a guest that never thinks would take millions of steps.
const THINK_US_MIN: u64 = 20_000;
/// Each look has a model of its own, which knows each sector of each write.
const WRITE_SECTORS_MAX: u64 = 40;
/// Copies of one run: each keeps a model.
const COPIES_MAX: usize = 6;
/// Starts of a node that may die in the middle.
const DEATHS_MAX: u32 = 3;
/// Groups that are begun until one is formed, though members of it are opened.
const FORMS_MAX: u32 = 40;
/// A node that holds writes nobody wants any more finds out within this.
const FENCED_MAX: Duration = Duration::from_secs(600);
/// A former that has not begun by then has failed.
const FORMING_MAX: Duration = Duration::from_secs(5);
/// Until a server has seen that its clients are gone.
const GONE: Duration = Duration::from_millis(200);
/// Looks for garbage of an owner that is none any more.
const SWEEPS: u32 = 4;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let mut operator = Box::pin(Operator::begin(stage)).await?;
    for _ in 0..stage.between(2, 3) {
        Box::pin(operator.chapter()).await?;
    }
    Box::pin(operator.end()).await
}

/// Who runs the group, and what he knows.
struct Operator<'a> {
    stage: &'a Stage,
    nodes: Vec<Rc<Node>>,
    /// Who owns the group: a place in `nodes`.
    at: usize,
    /// An owner of before, which may not be asked.
    away: Option<usize>,
    group: Id,
    album: Album,
}

impl<'a> Operator<'a> {
    async fn begin(stage: &'a Stage) -> Result<Self> {
        let mut nodes = Vec::new();
        for name in ["a", "b", "c"] {
            nodes.push(Rc::new(stage.start_surely(stage.sim.host(name)).await?));
        }
        let mut operator = Self {
            stage,
            nodes,
            at: 0,
            away: None,
            group: Id::default(),
            album: Album::default(),
        };
        // Made by the first who connects: volumes like any others.
        operator.judged(Judge::Process).await?;
        operator.give_up().await?;
        Box::pin(operator.form()).await?;
        operator.judged(Judge::Process).await?;
        Ok(operator)
    }

    fn owner(&self) -> &Rc<Node> {
        &self.nodes[self.at]
    }

    fn names(&self) -> &'a [String] {
        self.stage.disks.names()
    }

    /// A node that is neither the owner nor away.
    fn another(&self) -> usize {
        let all = 0..self.nodes.len();
        let others = all.filter(|number| *number != self.at && Some(*number) != self.away);
        let others: Vec<usize> = others.collect();
        others[self.stage.sim.chance(|chance| chance.index(others.len()))]
    }

    /// The owner lets a client write, and all that is owed is there.
    async fn judged(&self, owed: Judge) -> Result<()> {
        let is_alive = self.stage.judge(self.owner(), owed).await?;
        ensure!(is_alive, "a host crashed that nobody touched");
        Ok(())
    }

    async fn restart(&mut self, number: usize) -> Result<()> {
        let node = self.stage.start_surely(self.nodes[number].host).await?;
        self.nodes[number] = Rc::new(node);
        Ok(())
    }

    /// Databases work on one node, until something happens to it.
    async fn chapter(&mut self) -> Result<()> {
        let stage = self.stage;
        stage.follow(self.owner());
        let guest = stage.guest(self.owner(), load(stage));
        stage.weather();
        match stage.between(0, 6) {
            0 | 1 => Box::pin(self.dies(guest)).await,
            2 => Box::pin(self.is_lost(guest)).await,
            3 => Box::pin(self.is_seized(guest)).await,
            4 => Box::pin(self.fails(guest)).await,
            _ => Box::pin(self.hands_over(guest)).await,
        }
    }

    /// For a while, beside those who look and copy.
    async fn live(&mut self, guest: &Guest) -> Result<()> {
        let stage = self.stage;
        let end = stage.sim.now() + Duration::from_millis(stage.between(200, 5_000));
        while stage.sim.now() < end && self.owner().is_alive() {
            stage.pause_ms(1, 300).await;
            guest.check()?;
            match stage.between(0, 12) {
                0 => stage.weather(),
                1 => stage.sim.set_store_outage(None, true),
                2 | 3 => stage.sim.set_store_outage(None, false),
                4..=6 => Box::pin(self.look()).await?,
                7 => Box::pin(self.look_at_a_copy()).await?,
                8 => Box::pin(self.fork()).await?,
                9 => Box::pin(self.take_snapshot()).await?,
                10 => Box::pin(self.drop_snapshot()).await,
                _ => {}
            }
        }
        stage.sim.set_store_outage(None, false);
        guest.check()
    }

    /// Somebody reads the members on another node, one behind the other, while their owner goes on.
    async fn look(&self) -> Result<()> {
        let stage = self.stage;
        stage.sim.set_store_outage(None, false);
        let known = stage.model.borrow().published();
        let reader = Rc::clone(&self.nodes[self.another()]);
        let content = stage.look_at_all(&reader, self.names().to_vec()).await?;
        let content = content.context("a host crashed that nobody touched")?;
        let model = stage.model.borrow().of_copy(known);
        let verdict = model.check(&content, Judge::Store);
        verdict.map_err(|violation| anyhow!("read elsewhere: {violation}"))?;
        // Who comes next shall not join the view of this one.
        stage.sim.sleep(GONE).await;
        Ok(())
    }

    async fn look_at_a_copy(&mut self) -> Result<()> {
        let (stage, count) = (self.stage, self.album.len());
        if count == 0 {
            return Ok(());
        }
        stage.sim.set_store_outage(None, false);
        let reader = Rc::clone(&self.nodes[self.another()]);
        let index = stage.sim.chance(|chance| chance.index(count));
        self.album.check(stage, &reader, index).await
    }

    /// Of what is published, by a process beside the owner; or of what it is now, by the owner.
    async fn fork(&mut self) -> Result<()> {
        let stage = self.stage;
        if self.album.len() == COPIES_MAX {
            return Ok(());
        }
        stage.sim.set_store_outage(None, false);
        let name = self.album.new_name("fork");
        let pairs = self
            .names()
            .iter()
            .map(|of| (of.clone(), format!("{name}-{of}")));
        let pairs: Vec<(String, String)> = pairs.collect();
        let (is_made, begun) = match stage.one_in(2) {
            true => {
                let wanted = ForkGroupDocument {
                    name: name.clone(),
                    members: pairs.iter().cloned().collect(),
                    snapshot: None,
                    request_id: Some(name.clone()),
                };
                let begun = stage.model.borrow_mut().publish_begin();
                let group = self.group.to_string();
                let made = self.owner().fork_group(&group, wanted).await;
                stage.sim.note(format_args!("fork by its owner: {made:?}"));
                (made.is_ok(), begun)
            }
            false => {
                let id = desk::new_id(stage);
                let fork = GroupFork::new(self.group, None, &name, id, &pairs)?;
                let known = stage.model.borrow().published();
                (desk::fork(stage, fork).await?, known)
            }
        };
        if is_made {
            let model = stage.model.borrow().of_copy(begun);
            let names = pairs.into_iter().map(|(_, fork)| fork).collect();
            self.album.keep(Kind::Fork, name, names, model);
        }
        Ok(())
    }

    /// Of all members, asked of the owner.
    async fn take_snapshot(&mut self) -> Result<()> {
        let stage = self.stage;
        if self.album.len() == COPIES_MAX {
            return Ok(());
        }
        stage.sim.set_store_outage(None, false);
        let name = self.album.new_name("s");
        let begun = stage.model.borrow_mut().publish_begin();
        let group = self.group.to_string();
        let taken = self.owner().take_snapshot_of_group(&group, &name).await;
        stage.sim.note(format_args!("snapshot: {taken:?}"));
        if taken.is_ok() {
            let model = stage.model.borrow().of_copy(begun);
            let names = stage.disks.of_snapshot(&name);
            self.album.keep(Kind::Snapshot, name, names, model);
        }
        Ok(())
    }

    /// Of all members, whichever is asked.
    async fn drop_snapshot(&mut self) {
        let stage = self.stage;
        let Some(index) = self.album.any_snapshot(stage) else {
            return;
        };
        stage.sim.set_store_outage(None, false);
        let name = self.album.forget(index);
        let dropped = self.owner().delete_snapshot(&name).await;
        stage.sim.note(format_args!("no snapshot: {dropped:?}"));
    }

    /// The server is killed, or its host fails, and the same one goes on with its log.
    async fn dies(&mut self, guest: Guest) -> Result<()> {
        let (stage, host) = (self.stage, self.owner().host);
        let how = any_crash(stage);
        stage.sim.crash_after(host, stage.between(0, 30_000), how);
        self.live(&guest).await?;
        let mut owed = owed_after(how);
        if self.owner().is_alive() {
            if stage.one_in(2) {
                stage.sim.crash(host, how);
            } else {
                self.owner().kill();
                guest.over(ANSWER_MAX).await?;
                stage.sim.kill(guest.pid);
                owed = Judge::Process;
            }
        }
        stage.dismiss(&guest)?;
        stage.calm();
        self.reopen(owed).await
    }

    /// It may die again before it is judged. An export whose epoch the log holds opens also while the store is out.
    async fn reopen(&mut self, mut owed: Judge) -> Result<()> {
        let (stage, host) = (self.stage, self.owner().host);
        for _ in 0..DEATHS_MAX {
            let how = any_crash(stage);
            if stage.one_in(3) {
                stage.sim.crash_after(host, stage.between(0, 600), how);
            }
            let is_out = stage.one_in(4);
            stage.sim.set_store_outage(None, is_out);
            let started = stage.start(host).await?;
            if is_out && let Some(node) = &started {
                stage.opens(node).await?;
            }
            stage.sim.set_store_outage(None, false);
            if let Some(node) = started {
                self.nodes[self.at] = Rc::new(node);
                if stage.judge(self.owner(), owed).await? {
                    stage.calm();
                    return Ok(());
                }
            }
            if owed_after(how) == Judge::Power {
                owed = Judge::Power;
            }
        }
        stage.calm();
        self.restart(self.at).await?;
        self.judged(owed).await
    }

    /// The disk goes with the node, and the store is all there is.
    async fn is_lost(&mut self, guest: Guest) -> Result<()> {
        self.live(&guest).await?;
        let (stage, old) = (self.stage, self.at);
        let host = self.owner().host;
        stage.sim.crash(host, Crash::Power);
        stage.sim.wipe_disk(host);
        stage.dismiss(&guest)?;
        if stage.one_in(2) {
            stage.calm();
        }
        self.take().await?;
        self.judged(Judge::Store).await?;
        stage.calm();
        self.restart(old).await
    }

    /// Takes the group by force, wherever it is, to another node. Each member gets a new epoch, whichever was asked for.
    async fn take(&mut self) -> Result<()> {
        let stage = self.stage;
        self.at = self.another();
        stage.branch();
        let before = self.documents().await?;
        stage.take(self.owner()).await?;
        let after = self.documents().await?;
        for (before, after) in before.iter().zip(&after) {
            let (then, now) = (before.epoch, after.epoch);
            ensure!(
                now > then,
                "`{}` was at epoch {then}, is at {now}",
                before.name
            );
        }
        Ok(())
    }

    async fn documents(&self) -> Result<Vec<ExportDocument>> {
        let asked = async || self.owner().get_all(self.names()).await;
        surely(self.stage, "told", asked).await
    }

    /// Another node takes the group while its owner is frozen, cut off, or well; and the group may be another one when the
    /// owner of before is back.
    async fn is_seized(&mut self, guest: Guest) -> Result<()> {
        let (stage, old) = (self.stage, self.at);
        self.live(&guest).await?;
        guest.tolerate(Tolerance::Everything);
        let zombie = Rc::clone(self.owner());
        let absence = stage.between(0, 2);
        match absence {
            0 => stage.sim.pause(zombie.host),
            1 => stage.sim.set_store_outage(Some(zombie.host), true),
            _ => {}
        }
        stage.pause_ms(0, 2_000).await;
        self.take().await?;
        self.away = Some(old);
        // What it answers from here on is not part of the volumes.
        stage.estrange(&guest);
        self.judged(Judge::Store).await?;
        stage.follow(self.owner());
        let mut new = stage.guest(self.owner(), load(stage));
        if stage.one_in(2) {
            self.live(&new).await?;
            stage.rest(&new).await?;
            self.give_up().await?;
            let restored = match stage.one_in(3) {
                true => self.restore().await?,
                false => {
                    self.form_again().await?;
                    None
                }
            };
            self.open(restored).await?;
            stage.follow(self.owner());
            new = stage.guest(self.owner(), load(stage));
        }
        match absence {
            0 => stage.sim.resume(zombie.host),
            1 => stage.sim.set_store_outage(Some(zombie.host), false),
            _ => {}
        }
        self.sweeps(&zombie);
        self.live(&new).await?;
        stage.calm();
        guest.over(ANSWER_MAX).await?;
        self.is_fenced(&zombie).await?;
        stage.rest(&new).await?;
        stage.dismiss(&guest)?;
        self.comes_back(old).await
    }

    /// It takes what it finds for leavings of its own uploads, as far as its epoch says so.
    fn sweeps(&self, zombie: &Rc<Node>) {
        let (sim, zombie) = (self.stage.sim.clone(), Rc::clone(zombie));
        let disks = Rc::clone(&self.stage.disks);
        self.stage.sim.spawn(async move {
            for _ in 0..SWEEPS {
                for name in disks.names() {
                    let swept = zombie.gc_of(name, false).await;
                    sim.note(format_args!("{name} is swept: {}", outcome(&swept)));
                }
                sim.sleep(GONE).await;
            }
        });
    }

    /// All members of it, if one.
    async fn is_fenced(&self, zombie: &Node) -> Result<()> {
        let sim = &self.stage.sim;
        let end = sim.now() + FENCED_MAX;
        while zombie.is_alive() {
            let documents = zombie.get_all(self.names()).await?;
            let writes = |it: &&ExportDocument| it.role == "read-write";
            let writers: Vec<&ExportDocument> = documents.iter().filter(writes).collect();
            // With nothing unpublished it has no reason to look.
            if writers.iter().all(|it| it.dirty_bytes == 0) {
                return Ok(());
            }
            ensure!(sim.now() < end, "an owner of before writes on: {writers:?}");
            sim.sleep(TRY_PAUSE).await;
        }
        Ok(())
    }

    /// What it alone answered is not served, and is dropped.
    async fn comes_back(&mut self, old: usize) -> Result<()> {
        let stage = self.stage;
        stage.sim.crash(self.nodes[old].host, Crash::Process);
        self.restart(old).await?;
        stage.drain(self.owner()).await?;
        let again = Rc::clone(&self.nodes[old]);
        let is_alive = stage.judge_as_reader(&again, Judge::Store).await?;
        ensure!(is_alive, "a host crashed that nobody touched");
        for name in self.names() {
            surely(stage, "dropped", async || again.delete_of(name).await).await?;
        }
        self.away = None;
        Ok(())
    }

    /// The disk reports an error, which is final. What is lost of one member takes the others along.
    async fn fails(&mut self, guest: Guest) -> Result<()> {
        let (stage, host) = (self.stage, self.owner().host);
        self.live(&guest).await?;
        guest.tolerate(Tolerance::Everything);
        let odds = Odds::one_in(u32::try_from(stage.between(1, 5)).expect("small"));
        let faults = match stage.one_in(3) {
            true => DiskFaults {
                write_error: odds,
                ..DiskFaults::default()
            },
            false => DiskFaults {
                persist_error: odds,
                ..DiskFaults::default()
            },
        };
        stage.sim.set_disk_faults(host, faults);
        guest.over(ANSWER_MAX).await?;
        stage.dismiss(&guest)?;
        stage.sim.kill(guest.pid);
        stage.calm();
        self.owner().kill();
        self.restart(self.at).await?;
        let owed = self.accept_loss().await?;
        self.judged(owed).await
    }

    /// What is left once the operator has accepted what is lost: all that was flushed, or what is published of all.
    async fn accept_loss(&self) -> Result<Judge> {
        let (stage, node) = (self.stage, self.owner());
        let (mut owed, mut last) = (Judge::Power, String::new());
        for _ in 0..TRIES_MAX {
            let documents = self.documents().await?;
            let mut damaged = documents.iter();
            let damaged = damaged.find_map(|it| Some((&it.name, it.damage.as_ref()?.kept_seq)));
            let Some((name, kept)) = damaged else {
                return Ok(owed);
            };
            owed = Judge::Store;
            stage.judge_as_reader(node, owed).await?;
            stage.sim.sleep(GONE).await;
            match node.accept_loss_of(name, kept).await {
                Ok(_) => stage.sim.note("the operator accepts the loss"),
                Err(error) => last = error.to_string(),
            }
            stage.sim.sleep(TRY_PAUSE).await;
        }
        bail!("a loss cannot be accepted: {last}")
    }

    /// Nobody has it for a while, in which it may become what it was, or another group.
    async fn hands_over(&mut self, guest: Guest) -> Result<()> {
        let stage = self.stage;
        self.live(&guest).await?;
        if stage.one_in(2) {
            stage.calm();
        }
        stage.rest(&guest).await?;
        self.give_up().await?;
        let mut restored = None;
        match stage.between(0, 4) {
            0 | 1 => self.form_again().await?,
            2 => restored = self.restore().await?,
            3 => Box::pin(self.fork()).await?,
            _ => {}
        }
        self.at = self.any();
        self.open(restored).await
    }

    /// What was given up, and may have been restored since.
    async fn open(&mut self, restored: Option<usize>) -> Result<()> {
        let stage = self.stage;
        if let Some(index) = restored {
            let content = stage.look_at_all(self.owner(), self.names().to_vec());
            let content = content
                .await?
                .context("a host crashed that nobody touched")?;
            let survivors = self.album.judge(index, &content)?;
            stage.model.borrow_mut().reset_to(&survivors);
        }
        self.judged(Judge::Process).await
    }

    fn any(&self) -> usize {
        match self.stage.one_in(2) {
            true => self.at,
            false => self.another(),
        }
    }

    /// Whichever is asked for, all are drained and detached.
    async fn give_up(&self) -> Result<()> {
        let (stage, node) = (self.stage, self.owner());
        let begun = stage.model.borrow_mut().publish_begin();
        let mut names = self.names().to_vec();
        names.rotate_left(stage.disks.any(&stage.sim));
        for name in &names {
            surely(stage, "given up", async || node.give_up_of(name).await).await?;
        }
        stage.branch();
        stage.model.borrow_mut().publish_done(begun);
        Ok(())
    }

    /// Returns the snapshot that all members are now.
    async fn restore(&mut self) -> Result<Option<usize>> {
        let stage = self.stage;
        let Some(index) = self.album.any_snapshot(stage) else {
            return Ok(None);
        };
        let name = self.album.name(index).to_owned();
        if stage.one_in(2) {
            let wanted = RestoreDocument {
                snapshot: name.clone(),
                before: Some(self.album.new_name("before")),
                request_id: Some(self.album.new_name("r")),
            };
            let node = Rc::clone(&self.nodes[self.any()]);
            let done = node.restore_group(&self.group.to_string(), wanted).await;
            stage
                .sim
                .note(format_args!("restored by a node: {}", outcome(&done)));
            if done.is_ok() {
                return Ok(Some(index));
            }
        }
        let before = self.album.new_name("before");
        desk::restore(stage, self.group, &name, before).await?;
        Ok(Some(index))
    }

    /// Out of the group, and into another one. In between they are volumes like any others, and nothing dies.
    async fn form_again(&mut self) -> Result<()> {
        let stage = self.stage;
        if stage.one_in(2) {
            let node = Rc::clone(&self.nodes[self.any()]);
            let ended = node.end_group(&self.group.to_string()).await;
            stage
                .sim
                .note(format_args!("ended by a node: {}", outcome(&ended)));
        }
        // May be repeated, wherever that stopped.
        desk::dissolve(stage, self.group).await?;
        ensure!(desk::formed(stage).await?.is_none(), "dissolved, and there");
        if stage.one_in(2) {
            self.at = self.any();
            self.judged(Judge::Process).await?;
            let guest = stage.guest(self.owner(), load(stage));
            stage.pause_ms(50, 500).await;
            stage.rest(&guest).await?;
            self.give_up().await?;
        }
        Box::pin(self.form()).await
    }

    /// Into a group, whoever forms it.
    async fn form(&mut self) -> Result<()> {
        let stage = self.stage;
        for _ in 0..FORMS_MAX {
            if stage.one_in(3) {
                let wanted = FormGroupDocument {
                    name: "db".to_owned(),
                    members: self.names().to_vec(),
                    request_id: Some(self.album.new_name("r")),
                };
                let node = Rc::clone(&self.nodes[self.any()]);
                let formed = node.form_group(wanted).await;
                stage
                    .sim
                    .note(format_args!("formed by a node: {}", outcome(&formed)));
            } else {
                Box::pin(self.form_at_the_desk()).await?;
            }
            if let Some(id) = desk::formed(stage).await? {
                self.group = id;
                return Ok(());
            }
            stage.sim.sleep(TRY_PAUSE).await;
        }
        bail!("no group is ever formed")
    }

    /// While somebody opens a member of it, and those who form it stand still, or die.
    async fn form_at_the_desk(&mut self) -> Result<()> {
        let (stage, host) = (self.stage, desk::host(self.stage));
        let forming = desk::form(stage, desk::new_id(stage))?;
        let pid = forming.pid();
        if stage.one_in(2) {
            // Most of what can go wrong is between the first member that names the group and the group that is formed.
            let before = groups(stage);
            let end = stage.sim.now() + FORMING_MAX;
            while groups(stage) == before && stage.sim.now() < end {
                stage.sim.sleep(Duration::from_millis(1)).await;
            }
            stage.pause_ms(0, 150).await;
            if stage.one_in(2) {
                stage.sim.pause(host);
            }
            Box::pin(self.intrude()).await?;
            stage.sim.resume(host);
        } else if stage.one_in(4) {
            stage.pause_ms(0, 500).await;
            stage.sim.kill(pid);
        }
        let formed = forming.await;
        stage.sim.kill(pid);
        let formed = formed.as_ref().map(outcome);
        stage
            .sim
            .note(format_args!("formed at the desk: {formed:?}"));
        Ok(())
    }

    /// A client writes to one member, wherever that is by now, and all that a node has is given up again.
    async fn intrude(&mut self) -> Result<()> {
        let stage = self.stage;
        self.at = self.any();
        let member = stage.disks.any(&stage.sim);
        let page = stage.between(0, stage.disks.member_bytes() / PAGE - 1) * PAGE;
        let place = stage.disks.at(member, page);
        let (no, data) = stage.model.borrow_mut().submit_write(place, PAGE);
        let name = self.names()[member].clone();
        stage.sim.note(format_args!("{no} to {name} alone"));
        let call = stage.sim.call(self.owner().host, move |world| async move {
            let client = connect(&world, &name, Wanted::ReadWrite).await?;
            client.write_fua(page, data).await
        });
        let pid = call.pid();
        let written = call.await.context("a host crashed that nobody touched")?;
        stage.sim.kill(pid);
        written.context("a write to one member")?;
        stage.model.borrow_mut().answered_durable(no);
        self.give_up().await
    }

    /// Everything is in the store at the end, and each copy is what it was.
    async fn end(mut self) -> Result<()> {
        let stage = self.stage;
        stage.calm();
        let last = Rc::clone(self.owner());
        for node in self.nodes.iter().filter(|node| node.pid != last.pid) {
            node.kill();
        }
        let heir = stage.finish(&last).await?;
        self.album.check_all(stage, &heir).await?;
        for fork in self.album.fork_names() {
            stage.audit(heir.host, &fork).await?;
        }
        Ok(())
    }
}

/// Objects of groups in the store.
fn groups(stage: &Stage) -> usize {
    let keys = stage.sim.keys();
    keys.iter().filter(|key| key.starts_with("groups/")).count()
}

fn load(stage: &Stage) -> Load {
    let load = Load::drawn(&stage.sim, Tolerance::Reads);
    Load {
        think_us_max: load.think_us_max.max(THINK_US_MIN),
        write_sectors_max: load.write_sectors_max.min(WRITE_SECTORS_MAX),
        ..load
    }
}

/// For the trace: an error in full may come with a backtrace.
fn outcome<T>(done: &Result<T>) -> String {
    match done {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

fn any_crash(stage: &Stage) -> Crash {
    [Crash::Process, Crash::Power][usize::from(stage.one_in(2))]
}

fn owed_after(how: Crash) -> Judge {
    match how {
        Crash::Process => Judge::Process,
        Crash::Power => Judge::Power,
    }
}
