//! Forks of a volume that is written to, while the store comes and goes and the node dies in every way. Each that was
//! answered for holds exactly what the volume was at one moment between question and answer, and what was flushed to
//! it since; it is so before it is published, after every crash, and on another node in the end (rules 2, 20, 22).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use glidefs::control::ControlErrorKind;
use world::sim::{Crash, HostId, SimWorld};

use super::guest::{Load, Tolerance};
use super::node::{NAME, Node, socket};
use super::snapshots::READERS_AGE;
use super::stage::{ANSWER_MAX, PAGE, Stage, TRIES_MAX, TRY_PAUSE};
use crate::nbd_client::{ClientError, NbdClient, Options};
use crate::oracle::{Judge, Oracle};

/// Forks of one run.
const FORKS_MAX: usize = 5;

/// One that was answered for.
#[derive(Debug)]
struct Born {
    /// The parent when it was.
    model: Oracle,
    /// What was read first, with the writes that were answered since.
    content: Option<Vec<u8>>,
    /// A page that may be as it was, or this.
    maybe: Option<(usize, Vec<u8>)>,
}

/// All of them, by name.
#[derive(Debug, Default)]
struct Kin {
    born: RefCell<BTreeMap<String, Born>>,
    /// Names that were asked for. One whose answer was lost may be in the store, and its name is not used again: what is
    /// open before the store was asked could never be published under it.
    names: Cell<usize>,
}

type Family = Rc<Kin>;

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let host = stage.sim.host("a");
    let family = Family::default();
    let mut owed = None;
    for _ in 0..stage.between(2, 5) {
        owed = Box::pin(live(stage, host, &family, owed)).await?;
    }
    stage.calm();
    let node = stage.start_surely(host).await?;
    stage.judge(&node, owed.unwrap_or(Judge::Process)).await?;
    check_surely(stage, &node, &family).await?;
    all_published(stage, &node, &family).await?;
    check_surely(stage, &node, &family).await?;
    let heir = stage.finish(&node).await?;
    check_surely(stage, &heir, &family).await?;
    let names: Vec<String> = family.born.borrow().keys().cloned().collect();
    for name in &names {
        stage.audit(heir.host, name).await?;
    }
    if stage.one_in(2) {
        family.born.borrow_mut().clear();
        nothing_is_left(stage, &heir, family.names.get()).await?;
    }
    Ok(())
}

/// One life of the node; what the volume must show after it.
async fn live(
    stage: &Stage,
    host: HostId,
    family: &Family,
    owed: Option<Judge>,
) -> Result<Option<Judge>> {
    let how = [Crash::Process, Crash::Power][usize::from(stage.one_in(2))];
    let worse = |how| match (how, owed) {
        (Crash::Process, None | Some(Judge::Process)) => Some(Judge::Process),
        _ => Some(Judge::Power),
    };
    stage.sim.crash_after(host, stage.between(0, 20_000), how);
    stage.weather();
    let Some(node) = stage.start(host).await? else {
        return Ok(worse(how));
    };
    stage.sim.set_store_outage(None, false);
    if !stage.judge(&node, owed.unwrap_or(Judge::Process)).await? {
        return Ok(worse(how));
    }
    if !check(stage, &node, family).await? {
        return Ok(worse(how));
    }
    let node = Rc::new(node);
    stage.follow(&node);
    fork_on(stage, &node, family);
    let guest = stage.guest(&node, Load::drawn(&stage.sim, Tolerance::Reads));
    let end = stage.sim.now() + Duration::from_millis(stage.between(50, 8_000));
    while stage.sim.now() < end && node.is_alive() {
        stage.pause_ms(1, 400).await;
        guest.check()?;
        match stage.between(0, 7) {
            0 => stage.weather(),
            1 | 2 => stage.sim.set_store_outage(None, true),
            3 => stage.sim.set_store_outage(None, false),
            _ => {}
        }
    }
    let mut died = how;
    if node.is_alive() {
        if stage.one_in(2) {
            stage.sim.crash(host, how);
        } else {
            node.kill();
            guest.over(ANSWER_MAX).await?;
            stage.sim.kill(guest.pid);
            died = Crash::Process;
        }
    }
    stage.dismiss(&guest)?;
    // It was judged in this life.
    Ok(Some(match died {
        Crash::Process => Judge::Process,
        Crash::Power => Judge::Power,
    }))
}

/// Forks, and writes to forks, as long as the node lives.
fn fork_on(stage: &Stage, node: &Rc<Node>, family: &Family) {
    let (sim, model) = (stage.sim.clone(), Rc::clone(&stage.model));
    let (node, family) = (Rc::clone(node), Rc::clone(family));
    let number = Cell::new(0_u64);
    stage.sim.spawn(async move {
        while node.is_alive() {
            let pause = sim.chance(|chance| chance.between(1, 500));
            sim.sleep(Duration::from_millis(pause)).await;
            number.set(number.get() + 1);
            let known: Vec<String> = family.born.borrow().keys().cloned().collect();
            let count = known.len();
            if count < FORKS_MAX && sim.chance(|chance| chance.below(3)) == 0 {
                let name = format!("fork-{}", family.names.replace(family.names.get() + 1));
                let begun = model.borrow_mut().publish_begin();
                let made = node.fork(&name).await;
                sim.note(format_args!("forked {name}: {made:?}"));
                if made.is_ok() {
                    let born = Born {
                        model: model.borrow().of_copy(begun),
                        content: None,
                        maybe: None,
                    };
                    family.born.borrow_mut().insert(name, born);
                }
            } else if count > 0 {
                let name = &known[sim.chance(|chance| chance.index(count))];
                write_one(&sim, &node, &family, name, number.get()).await;
            }
        }
    });
}

/// Reads the fork for the first time, or writes a page of it durably.
async fn write_one(sim: &world::sim::Sim, node: &Node, family: &Family, name: &str, number: u64) {
    let known = {
        let family = family.born.borrow();
        let born = family.get(name);
        born.and_then(|born| Some((born.content.as_ref()?.len(), born.maybe.is_some())))
    };
    let Some((len, false)) = known else {
        return;
    };
    let page_bytes = usize::try_from(PAGE).expect("small");
    let page = sim.chance(|chance| chance.index(len / page_bytes));
    let stamp = number.to_le_bytes().map(|byte| byte ^ 0xa5);
    let bytes = stamp.repeat(page_bytes / stamp.len());
    if let Some(born) = family.born.borrow_mut().get_mut(name) {
        born.maybe = Some((page, bytes.clone()));
    }
    let (of, at) = (name.to_owned(), u64::try_from(page).expect("small") * PAGE);
    let call = sim.call(node.host, move |world| write_page(world, of, at, bytes));
    let pid = call.pid();
    let written = call.await;
    sim.kill(pid);
    sim.note(format_args!("{name}: page {page}: {written:?}"));
    if let Some(Ok(())) = written
        && let Some(born) = family.born.borrow_mut().get_mut(name)
    {
        settle(born, true);
    }
}

/// The page that was in doubt is this.
fn settle(born: &mut Born, is_new: bool) {
    if let (Some((page, bytes)), Some(content)) = (born.maybe.take(), &mut born.content)
        && is_new
    {
        let at = page * bytes.len();
        content[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

async fn write_page(
    world: SimWorld,
    name: String,
    at: u64,
    bytes: Vec<u8>,
) -> Result<(), ClientError> {
    let client = NbdClient::connect(&world, &socket(), &name, Options::default()).await?;
    client.write_fua(at, bytes).await
}

/// Reads them all. False if the node died meanwhile.
async fn check(stage: &Stage, node: &Node, family: &Family) -> Result<bool> {
    let names: Vec<String> = family.born.borrow().keys().cloned().collect();
    for name in names {
        let Some(content) = stage.look_at_other(node, &name).await? else {
            return Ok(false);
        };
        let mut all = family.born.borrow_mut();
        let born = all.get_mut(&name).context("it stays")?;
        let Some(was) = &born.content else {
            let verdict = born.model.check(&content, Judge::Store);
            verdict.map_err(|violation| anyhow!("{name}: {violation}"))?;
            born.content = Some(content);
            continue;
        };
        let mut with = was.clone();
        if let Some((page, bytes)) = &born.maybe {
            let at = page * bytes.len();
            with[at..at + bytes.len()].copy_from_slice(bytes);
        }
        ensure!(
            content == *was || content == with,
            "{name} is not what it was, and what was written to it"
        );
        let is_new = content == with;
        settle(born, is_new);
    }
    Ok(true)
}

async fn check_surely(stage: &Stage, node: &Node, family: &Family) -> Result<()> {
    let alive = check(stage, node, family).await?;
    ensure!(alive, "a host crashed that nobody touched");
    Ok(())
}

/// The store has them all, and all that was written to them.
async fn all_published(stage: &Stage, node: &Node, family: &Family) -> Result<()> {
    let names: Vec<String> = family.born.borrow().keys().cloned().collect();
    for name in names {
        let mut tries = 0;
        while let Err(error) = node.drain_of(&name).await {
            ensure!(tries < TRIES_MAX, "{name} is never published: {error}");
            tries += 1;
            stage.sim.sleep(TRY_PAUSE).await;
        }
    }
    Ok(())
}

/// All is purged: no snapshot, no pin, no object stays.
async fn nothing_is_left(stage: &Stage, node: &Node, forks: usize) -> Result<()> {
    let names = (0..forks).map(|number| format!("fork-{number}"));
    let names: Vec<String> = names.chain([NAME.to_owned()]).collect();
    for round in 0..2 {
        for name in &names {
            let mut tries = 0;
            loop {
                match node.purge(name).await {
                    Ok(done) if done.error.is_none() => break,
                    Err(error) if error.kind == ControlErrorKind::NotFound => break,
                    // The node that is lost had it open.
                    Err(error) if error.kind == ControlErrorKind::Conflict => {
                        drop(node.seize(name).await);
                    }
                    Ok(_) | Err(_) => {}
                }
                ensure!(tries < TRIES_MAX, "{name} is never purged");
                tries += 1;
                stage.sim.sleep(TRY_PAUSE).await;
            }
        }
        // Until the pins of readers that died are old.
        if round == 0 {
            stage.sim.sleep(READERS_AGE).await;
        }
    }
    let keys = stage.sim.keys().into_iter();
    let left = keys.filter(|key| key.starts_with("nbd/") && !key.ends_with("/root"));
    let left: Vec<String> = left.collect();
    ensure!(left.is_empty(), "all is purged, and there is {left:?}");
    Ok(())
}
