//! What is asked of the store for a group, by a process of its own: it may stand still, or die, between any two of its
//! requests, and what it has sent may land late.

use anyhow::{Context, Result, bail};
use blockcache::Id;
use glidefs::volume::{
    Bucket, Form, GroupFork, GroupState, GroupView, Metered, Restore, VolumeError,
};
use world::sim::{Call, HostId, SimWorld};

use super::super::stage::{Stage, TRIES_MAX, TRY_PAUSE};

/// Nobody else works there.
pub(super) fn host(stage: &Stage) -> HostId {
    stage.sim.host("desk")
}

pub(super) fn new_id(stage: &Stage) -> Id {
    let mut id = [0; 16];
    stage.sim.chance(|chance| chance.fill(&mut id));
    Id(id)
}

/// Begins it. Whoever waits for the answer ends the process then.
pub(super) fn ask<T, F>(
    stage: &Stage,
    act: impl FnOnce(Bucket<SimWorld>) -> F + 'static,
) -> Call<Result<T>>
where
    T: 'static,
    F: Future<Output = Result<T, VolumeError>> + 'static,
{
    let host = host(stage);
    let config = stage.config(host).bucket;
    stage.sim.call(host, move |world| async move {
        let store = Metered::new(world.clone(), world.store());
        let bucket = Bucket::open(world, store, config).await?;
        Ok(act(bucket).await?)
    })
}

/// Asks once, and waits for the answer.
async fn told<T, F>(
    stage: &Stage,
    act: impl FnOnce(Bucket<SimWorld>) -> F + 'static,
) -> Result<Result<T>>
where
    T: 'static,
    F: Future<Output = Result<T, VolumeError>> + 'static,
{
    let call = ask(stage, act);
    let pid = call.pid();
    let answer = call.await;
    stage.sim.kill(pid);
    answer.context("a process died that nobody touched")
}

/// Asks until it is granted: each of these may be repeated.
async fn surely<T, F>(
    stage: &Stage,
    what: &str,
    act: impl Fn(Bucket<SimWorld>) -> F + Clone + 'static,
) -> Result<T>
where
    T: 'static,
    F: Future<Output = Result<T, VolumeError>> + 'static,
{
    let mut last = String::new();
    for _ in 0..TRIES_MAX {
        match told(stage, act.clone()).await? {
            Ok(answer) => return Ok(answer),
            Err(error) => last = format!("{error:#}"),
        }
        stage.sim.sleep(TRY_PAUSE).await;
    }
    bail!("never {what}: {last}")
}

/// Begins to put the members into a group.
pub(super) fn form(stage: &Stage, request: Id) -> Result<Call<Result<GroupView>>> {
    let mut names = stage.disks.names().to_vec();
    names.rotate_left(stage.disks.any(&stage.sim));
    let form = Form::new("db", request, &names)?;
    let forming = move |bucket: Bucket<SimWorld>| async move { Box::pin(bucket.form(&form)).await };
    Ok(ask(stage, forming))
}

/// The group that the members are in. One that is in it, and one that is read later and is not, would be half a group.
pub(super) async fn formed(stage: &Stage) -> Result<Option<Id>> {
    for name in stage.disks.names() {
        let Some(first) = group_of(stage, name).await? else {
            continue;
        };
        for other in stage.disks.names() {
            let now = group_of(stage, other).await?;
            let (now, then) = (now.map(|it| it.id), Some(first.id));
            if now != then {
                bail!("`{name}` is in group {then:?}, and `{other}` in {now:?}");
            }
        }
        return Ok(Some(first.id));
    }
    Ok(None)
}

async fn group_of(stage: &Stage, name: &str) -> Result<Option<GroupView>> {
    let name = name.to_owned();
    let looked = move |bucket: Bucket<SimWorld>| {
        let name = name.clone();
        async move { Box::pin(bucket.group_of(&name)).await }
    };
    surely(stage, "looked at", looked).await
}

pub(super) async fn dissolve(stage: &Stage, id: Id) -> Result<()> {
    let dissolved =
        move |bucket: Bucket<SimWorld>| async move { Box::pin(bucket.dissolve(id)).await };
    let left = surely(stage, "dissolved", dissolved).await?;
    match left.map(|group| group.state) {
        None | Some(GroupState::Dissolved) => Ok(()),
        Some(other) => bail!("dissolved, it is {other:?}"),
    }
}

/// False: it may be there or not.
pub(super) async fn fork(stage: &Stage, fork: GroupFork) -> Result<bool> {
    for _ in 0..stage.between(1, 4) {
        let fork = fork.clone();
        let forking =
            move |bucket: Bucket<SimWorld>| async move { Box::pin(bucket.fork_group(&fork)).await };
        match told(stage, forking).await? {
            Ok(group) => {
                stage.sim.note(format_args!("forked: {}", group.id));
                return Ok(true);
            }
            Err(error) => stage.sim.note(format_args!("no fork: {error:#}")),
        }
    }
    Ok(false)
}

/// All members become what they were.
pub(super) async fn restore(stage: &Stage, id: Id, snapshot: &str, before: String) -> Result<()> {
    let wanted = Restore {
        snapshot: snapshot.to_owned(),
        id: new_id(stage),
        before,
    };
    let restored = move |bucket: Bucket<SimWorld>| {
        let wanted = wanted.clone();
        async move { Box::pin(bucket.restore_group(id, &wanted)).await }
    };
    surely(stage, "restored", restored).await.map(drop)
}
