//! Groups, as an operator asks for them (`docs/decisions/0019-groups.md`): formed, ended, restored, forked, shown.
//!
//! A group is formed and ended, and restored, while nobody has its members open, so those that this node has are drained
//! and given up first: that takes as long as a drain does, so it is an operation. What is refused at once is an answer.

use std::rc::Rc;

use blockcache::Id;
use world::World;

use super::answer::{
    Answer, check_unused, conflict, drain, ids_of_request, leave, refusal, send, unavailable,
    volume_failure,
};
use super::forks::parsed;
use super::restore::{before_name, held};
use super::snapshots;
use crate::control::{
    ControlError, ControlErrorKind, EndGroupQuery, ExportDocument, ForkGroupDocument,
    FormGroupDocument, GroupDocument, GroupRequest, GroupSnapshotDocument, OperationDocument,
    OperationState, RestoreDocument, SnapshotDocument, TakeSnapshotDocument,
};
use crate::device::ConnectError;
use crate::export::Role;
use crate::export::document::{of_export, of_parts};
use crate::export::group::Door;
use crate::export::registry::{Registry, check_name};
use crate::volume::{
    Bucket, Form, GroupFork, GroupState, GroupView, MemberView, Restore, VolumeError, is_of_fork,
};

/// Groups in one answer. Who wants more asks again, from the last id on.
const PAGE_MAX: usize = 200;
/// Pages that are looked through for a name.
const PAGES_MAX: usize = 100;
/// Groups that are looked at before another one is made. Where there are more, a name may be given twice: it is for people,
/// and nothing holds it; and who makes a group must not wait for all others to be read.
const NAMESAKES_MAX: usize = 32;
/// Of operations.
const FORM: &str = "group-form";
const END: &str = "group-end";
const RESTORE: &str = "group-restore";

pub(super) async fn perform<W: World>(registry: &Rc<Registry<W>>, request: GroupRequest) {
    match request {
        GroupRequest::List(after, reply) => {
            send(reply, Box::pin(list(registry, &after)).await);
        }
        GroupRequest::Get(which, reply) => {
            send(reply, Box::pin(get(registry, &which)).await);
        }
        GroupRequest::Form(wanted, reply) => {
            send(reply, Box::pin(form(registry, wanted)).await);
        }
        GroupRequest::End(which, how, reply) => {
            send(reply, Box::pin(end(registry, &which, &how)).await);
        }
        GroupRequest::Fork(which, wanted, reply) => {
            send(reply, Box::pin(fork(registry, &which, &wanted)).await);
        }
        GroupRequest::Snapshots(which, reply) => {
            send(reply, Box::pin(list_snapshots(registry, &which)).await);
        }
        GroupRequest::TakeSnapshot(which, wanted, reply) => {
            send(
                reply,
                Box::pin(take_snapshot(registry, &which, wanted)).await,
            );
        }
        GroupRequest::Restore(which, wanted, reply) => {
            send(reply, Box::pin(restore(registry, &which, wanted)).await);
        }
    }
}

/// Groups of the prefix, a page at a time, by id. For people: it costs a LIST and a GET for each.
async fn list<W: World>(registry: &Registry<W>, after: &str) -> Answer<Vec<GroupDocument>> {
    let after = match after {
        "" => None,
        id => Some(parsed(id).ok_or_else(|| {
            let text = format!("`after={id}`: not the id of a group, which is 32 hex digits");
            ControlError::new(ControlErrorKind::Invalid, text)
        })?),
    };
    let bucket = bucket(registry).await?;
    let page = Box::pin(bucket.groups_after(after, PAGE_MAX)).await;
    let page = page.map_err(|error| volume_failure(&error))?;
    Ok(page.iter().map(|view| document(registry, view)).collect())
}

async fn get<W: World>(registry: &Registry<W>, which: &str) -> Answer<GroupDocument> {
    let bucket = bucket(registry).await?;
    let view = Box::pin(find(&bucket, which)).await?;
    Ok(document(registry, &view))
}

async fn bucket<W: World>(registry: &Registry<W>) -> Answer<Bucket<W>> {
    let bucket = registry.site().shelf.bucket().await;
    bucket.map_err(|error| volume_failure(&error))
}

/// The group of an id, which costs one GET; or that of a name, for which all are looked through.
async fn find<W: World>(bucket: &Bucket<W>, which: &str) -> Answer<GroupView> {
    check_name(which).map_err(refusal)?;
    if let Some(id) = parsed(which) {
        let found = Box::pin(bucket.group(id)).await;
        if let Some(found) = found.map_err(|error| volume_failure(&error))? {
            return Ok(found);
        }
    }
    let named = Box::pin(named(bucket, which)).await?;
    let (living, over): (Vec<GroupView>, Vec<GroupView>) = named.into_iter().partition(lives);
    // One that is over, and was not tidied up after: who asks by its name means it, unless there is another one.
    let mut named = match living.is_empty() {
        true => over,
        false => living,
    };
    match (named.pop(), named.as_slice()) {
        (None, _) => Err(ControlError::new(
            ControlErrorKind::NotFound,
            format!("no group `{which}`; `GET /api/groups` lists them"),
        )),
        (Some(only), []) => Ok(only),
        (Some(last), others) => {
            let ids = others.iter().chain([&last]).map(|it| it.id.to_string());
            let ids: Vec<String> = ids.collect();
            let text = format!(
                "several groups are called `{which}`: say which by its id, one of {}",
                ids.join(", ")
            );
            Err(ControlError::new(ControlErrorKind::Conflict, text))
        }
    }
}

fn lives(view: &GroupView) -> bool {
    matches!(view.state, GroupState::Forming | GroupState::Formed)
}

/// Those of a name that were not given up before they were formed.
async fn named<W: World>(bucket: &Bucket<W>, name: &str) -> Answer<Vec<GroupView>> {
    let mut found = Vec::new();
    let mut after = None;
    for _ in 0..PAGES_MAX {
        let page = Box::pin(bucket.groups_after(after, PAGE_MAX)).await;
        let page = page.map_err(|error| volume_failure(&error))?;
        let Some(last) = page.last() else {
            return Ok(found);
        };
        after = Some(last.id);
        let is_named = |it: &GroupView| it.name == name && it.state != GroupState::GivenUp;
        found.extend(page.into_iter().filter(is_named));
    }
    Err(ControlError::new(
        ControlErrorKind::Conflict,
        format!(
            "there are more than {} groups: say which by its id, not by its name",
            PAGES_MAX * PAGE_MAX
        ),
    ))
}

/// Whether a name is free, as far as a short look tells: see [`NAMESAKES_MAX`]. `are_meant` are those that may have it. A look
/// that fails is nothing to wait for.
async fn check_free<W: World>(
    bucket: &Bucket<W>,
    name: &str,
    are_meant: impl Fn(&GroupView) -> bool,
) -> Answer<()> {
    let looked = Box::pin(bucket.groups_after(None, NAMESAKES_MAX)).await;
    let mut others = looked.unwrap_or_default().into_iter();
    let other = others.find(|it| it.name == name && lives(it) && !are_meant(it));
    let Some(other) = other else {
        return Ok(());
    };
    let text = format!(
        "a group `{name}` ({}) exists already: choose another name",
        other.id
    );
    Err(ControlError::new(ControlErrorKind::Conflict, text))
}

fn document<W: World>(registry: &Registry<W>, view: &GroupView) -> GroupDocument {
    let members = view.members.iter().map(|it| member(registry, it));
    GroupDocument {
        id: view.id.to_string(),
        name: view.name.clone(),
        state: match view.state {
            GroupState::Forming => "forming",
            GroupState::Formed => "formed",
            GroupState::Dissolved => "dissolved",
            GroupState::GivenUp => "given-up",
        }
        .to_owned(),
        members: members.collect(),
    }
}

/// As it is open here, or as the group has it.
fn member<W: World>(registry: &Registry<W>, view: &MemberView) -> ExportDocument {
    let volume = view.volume.to_string();
    let open = registry.get(&view.name).map(|export| of_export(&export));
    if let Some(open) = open.filter(|open| open.volume == volume) {
        return open;
    }
    let local = registry.site().local_volume(&view.name, view.root.as_ref());
    let local = local.filter(|local| local.id == view.volume);
    ExportDocument {
        volume,
        ..of_parts(&view.name, local.as_ref(), view.root.as_ref())
    }
}

fn names(view: &GroupView) -> Vec<String> {
    view.members.iter().map(|it| it.name.clone()).collect()
}

fn invalid(error: &VolumeError) -> ControlError {
    ControlError::new(ControlErrorKind::Invalid, error.to_string())
}

/// An operation that was asked for, and the id of the request in the store.
struct Asked {
    operation: OperationDocument,
    request: Id,
}

/// Err: it was begun before, and this is how far it is.
fn asked<W: World>(
    registry: &Registry<W>,
    kind: &str,
    (asked, request): (&[&str], Option<&String>),
    members: usize,
) -> Answer<Result<Asked, OperationDocument>> {
    let site = registry.site();
    let [id, request] = match request {
        Some(request) => ids_of_request(&[&[kind][..], asked].concat(), request)?,
        None => [Id(site.world.random_id()), Id(site.world.random_id())],
    };
    let id = id.to_string();
    if let Some(known) = site.operations.begun(&id) {
        return Ok(Err(known));
    }
    let operation = OperationDocument {
        id,
        kind: kind.to_owned(),
        state: OperationState::Running,
        dry_run: false,
        done: 0,
        // And the change itself.
        total: u64::try_from(members).unwrap_or(u64::MAX).saturating_add(1),
        at: String::new(),
        started_at: site.world.unix_time().to_string(),
        ended_at: None,
        error: None,
        exports: Vec::new(),
    };
    Ok(Ok(Asked { operation, request }))
}

/// Gives up what this node has of the members, and does with them what is to be done, as an operation.
fn begin<W: World, F>(
    registry: &Rc<Registry<W>>,
    operation: OperationDocument,
    members: Members,
    change: impl FnOnce(Bucket<W>) -> F + 'static,
) -> Answer<OperationDocument>
where
    F: Future<Output = Result<(), VolumeError>> + 'static,
{
    let site = registry.site();
    site.operations.begin(operation.clone())?;
    let (registry, id) = (Rc::clone(registry), operation.id.clone());
    site.world.spawn(async move {
        let done = async {
            // Held to the end: nobody opens one of them in between.
            let _door = Box::pin(give_up(&registry, &id, &members)).await?;
            let bucket = bucket(&registry).await?;
            let changed = Box::pin(change(bucket)).await;
            changed.map_err(|error| volume_failure(&error))
        };
        let done: Answer<()> = Box::pin(done).await;
        let operations = &registry.site().operations;
        if done.is_ok() {
            operations.passed(&id);
        }
        let now = registry.site().world.unix_time().to_string();
        operations.end(&id, done.err().map(|error| error.message), now);
    });
    Ok(operation)
}

/// Whose members an operation is about.
struct Members {
    names: Vec<String>,
    /// They must not be in a group.
    are_free: bool,
}

async fn give_up<W: World>(
    registry: &Registry<W>,
    operation: &str,
    members: &Members,
) -> Answer<Door> {
    let mut door = registry.doors(&members.names).await;
    if registry.site().closing.get() {
        return Err(refusal(ConnectError::ShuttingDown));
    }
    let operations = &registry.site().operations;
    for name in &members.names {
        operations.at(operation, name);
        if let Some(export) = held(registry, &mut door, name).await? {
            let group = export.root().and_then(|root| root.group);
            if let Some(group) = group.filter(|_| members.are_free) {
                let text = format!("is a member of group `{}` already", group.name);
                return Err(conflict(&export, &text));
            }
            leave(registry, &export).await?;
            registry.remove(name);
        }
        operations.passed(operation);
    }
    Ok(door)
}

/// What keeps a member from being given up is said at once.
fn check_members<W: World>(registry: &Registry<W>, names: &[String]) -> Answer<()> {
    for name in names {
        let Some(export) = registry.get(name) else {
            continue;
        };
        check_unused(&export)?;
        if export.role() == Role::ReadOnly {
            return Err(conflict(&export, "is owned by another node: ask that one"));
        }
    }
    Ok(())
}

/// Of exports that nobody is connected to.
async fn form<W: World>(
    registry: &Rc<Registry<W>>,
    wanted: FormGroupDocument,
) -> Answer<OperationDocument> {
    let FormGroupDocument {
        name,
        members,
        request_id,
    } = wanted;
    check_name(&name).map_err(refusal)?;
    for member in &members {
        check_name(member).map_err(refusal)?;
    }
    let mut all = vec![name.as_str()];
    all.extend(members.iter().map(String::as_str));
    let all = (&all[..], request_id.as_ref());
    let asked = asked(registry, FORM, all, members.len())?;
    let asked = match asked {
        Ok(asked) => asked,
        Err(known) => return Ok(known),
    };
    let form = Form::new(&name, asked.request, &members).map_err(|error| invalid(&error))?;
    let bucket = bucket(registry).await?;
    if Box::pin(is_formed(&bucket, &name, &members)).await? {
        // By an earlier request, whose answer was lost, or before a restart. Its members may be in use.
        return done(registry, asked.operation);
    }
    Box::pin(check_free(&bucket, &name, |it| names(it) == members)).await?;
    check_members(registry, &members)?;
    let members = Members {
        names: members,
        are_free: true,
    };
    begin(
        registry,
        asked.operation,
        members,
        move |bucket| async move {
            let formed = Box::pin(bucket.form(&form)).await?;
            tracing::info!(group = %formed.name, id = %formed.id, members = %names(&formed).join(", "), "formed");
            Ok::<(), VolumeError>(())
        },
    )
}

/// Whether they are this very group. An error if one of them is not there, or in another one.
async fn is_formed<W: World>(bucket: &Bucket<W>, name: &str, members: &[String]) -> Answer<bool> {
    for member in members {
        let there = match Box::pin(bucket.group_of(member)).await {
            Ok(there) => there,
            Err(VolumeError::Vanished { .. }) => {
                let text = format!("no export `{member}` in the store");
                return Err(ControlError::new(ControlErrorKind::NotFound, text));
            }
            Err(error) => return Err(volume_failure(&error)),
        };
        let Some(there) = there else {
            continue;
        };
        if there.name == name && names(&there) == members {
            return Ok(true);
        }
        let text = format!(
            "`{member}` is a member of group `{}` already ({}, with {}): end that first",
            there.name,
            there.id,
            names(&there).join(", ")
        );
        return Err(ControlError::new(ControlErrorKind::Conflict, text));
    }
    Ok(false)
}

/// It was done before.
fn done<W: World>(
    registry: &Registry<W>,
    operation: OperationDocument,
) -> Answer<OperationDocument> {
    let site = registry.site();
    let done = OperationDocument {
        state: OperationState::Done,
        done: operation.total,
        ended_at: Some(site.world.unix_time().to_string()),
        ..operation
    };
    site.operations.begin(done.clone())?;
    Ok(done)
}

/// Plain exports of its members, that begin as they were in it.
async fn end<W: World>(
    registry: &Rc<Registry<W>>,
    which: &str,
    how: &EndGroupQuery,
) -> Answer<OperationDocument> {
    // Also if it is gone by now.
    let all = [which];
    let all = (&all[..], how.request_id.as_ref());
    let Asked { operation, .. } = match asked(registry, END, all, 0)? {
        Ok(asked) => asked,
        Err(known) => return Ok(known),
    };
    let bucket = bucket(registry).await?;
    let view = Box::pin(find(&bucket, which)).await?;
    let names = match view.state {
        GroupState::Formed => names(&view),
        // Nobody has opened it, and whoever opens a member of it ends it.
        GroupState::Forming | GroupState::Dissolved | GroupState::GivenUp => Vec::new(),
    };
    check_members(registry, &names)?;
    let id = view.id;
    let operation = OperationDocument {
        total: operation.total + u64::try_from(names.len()).unwrap_or(0),
        ..operation
    };
    let members = Members {
        names,
        are_free: false,
    };
    begin(registry, operation, members, move |bucket| async move {
        Box::pin(bucket.dissolve(id)).await?;
        tracing::info!(group = %view.name, %id, "ended: its members are in no group any more");
        Ok::<(), VolumeError>(())
    })
}

/// All members, to a snapshot of the group. What they were until now is kept as another one.
async fn restore<W: World>(
    registry: &Rc<Registry<W>>,
    which: &str,
    wanted: RestoreDocument,
) -> Answer<OperationDocument> {
    check_name(&wanted.snapshot).map_err(refusal)?;
    let bucket = bucket(registry).await?;
    let view = Box::pin(find_formed(&bucket, which)).await?;
    let id = view.id.to_string();
    let chosen = wanted.before.clone().unwrap_or_default();
    let request = wanted.request_id.as_ref();
    let all = [id.as_str(), &wanted.snapshot, &chosen];
    let all = (&all[..], request);
    let asked = asked(registry, RESTORE, all, view.members.len())?;
    let asked = match asked {
        Ok(asked) => asked,
        Err(known) => return Ok(known),
    };
    if request.is_some() && Box::pin(is_restored(&bucket, &view, asked.request)).await {
        return done(registry, asked.operation);
    }
    let names = names(&view);
    check_members(registry, &names)?;
    let restore = Restore {
        before: before_name(&registry.site().world, wanted.before)?,
        snapshot: wanted.snapshot,
        id: asked.request,
    };
    let members = Members {
        names,
        are_free: false,
    };
    begin(
        registry,
        asked.operation,
        members,
        move |bucket| async move {
            let restored = Box::pin(bucket.restore_group(view.id, &restore)).await?;
            tracing::info!(group = %restored.name, snapshot = restore.snapshot, before = restore.before, "restored");
            Ok::<(), VolumeError>(())
        },
    )
}

/// Before a restart, or at another node: the snapshot that keeps what was replaced has the request's id. Where what is
/// there cannot be read nobody knows; then it is done again, which does nothing if it was.
async fn is_restored<W: World>(bucket: &Bucket<W>, view: &GroupView, request: Id) -> bool {
    let Some(first) = view.members.first() else {
        return false;
    };
    let opened = Box::pin(bucket.open_members(&first.name)).await;
    opened.is_ok_and(|members| {
        let mut volumes = members.volumes().iter();
        volumes.all(|volume| volume.snapshots().iter().any(|it| it.id == request))
    })
}

async fn find_formed<W: World>(bucket: &Bucket<W>, which: &str) -> Answer<GroupView> {
    let view = Box::pin(find(bucket, which)).await?;
    if view.state == GroupState::Formed {
        return Ok(view);
    }
    Err(not_formed(&view))
}

fn not_formed(view: &GroupView) -> ControlError {
    let text = format!(
        "group `{}` ({}) is not formed (any more): its members are exports in no group",
        view.name, view.id
    );
    ControlError::new(ControlErrorKind::Conflict, text)
}

/// The group as it is at one moment between question and answer, where this node has it; else as it was published last.
async fn fork<W: World>(
    registry: &Registry<W>,
    which: &str,
    wanted: &ForkGroupDocument,
) -> Answer<GroupDocument> {
    check_name(&wanted.name).map_err(refusal)?;
    if let Some(snapshot) = &wanted.snapshot {
        check_name(snapshot).map_err(refusal)?;
    }
    let bucket = bucket(registry).await?;
    let id = match &wanted.request_id {
        Some(request) => fork_id(wanted, request)?,
        None => Id(registry.site().world.random_id()),
    };
    let failed = |error: VolumeError| volume_failure(&error);
    let made = Box::pin(bucket.group(id)).await.map_err(failed)?;
    if let Some(made) = made.filter(|it| it.state == GroupState::Formed) {
        // Also if the group that it is of is over by now.
        return Ok(document(registry, &made));
    }
    let view = Box::pin(find_formed(&bucket, which)).await?;
    let pairs = wanted.members.iter();
    let pairs: Vec<(String, String)> = pairs.map(|(of, to)| (of.clone(), to.clone())).collect();
    let snapshot = wanted.snapshot.as_deref();
    let fork = GroupFork::new(view.id, snapshot, &wanted.name, id, &pairs);
    let fork = fork.map_err(|error| invalid(&error))?;
    check_fork(registry, &view, wanted)?;
    Box::pin(check_free(&bucket, &wanted.name, |it| it.id == id)).await?;
    if snapshot.is_none() {
        drain_here(registry, &view).await?;
    }
    let forked = Box::pin(bucket.fork_group(&fork)).await.map_err(failed)?;
    tracing::info!(group = %view.name, fork = %forked.name, id = %forked.id, "forked");
    Ok(document(registry, &forked))
}

/// It follows from the names of the members, and not from the group that they are in: that may be over when the request comes
/// again. No two groups have the same members.
fn fork_id(wanted: &ForkGroupDocument, request: &str) -> Answer<Id> {
    let snapshot = wanted.snapshot.as_deref().unwrap_or_default();
    let mut all = vec!["group-fork", snapshot, &wanted.name];
    for (of, to) in &wanted.members {
        all.extend([of.as_str(), to.as_str()]);
    }
    let [id, _] = ids_of_request(&all, request)?;
    Ok(id)
}

/// Each member has a name for its fork, which nothing here has.
fn check_fork<W: World>(
    registry: &Registry<W>,
    view: &GroupView,
    wanted: &ForkGroupDocument,
) -> Answer<()> {
    let mut members = names(view);
    members.sort();
    if !members.iter().eq(wanted.members.keys()) {
        let text = format!(
            "group `{}` has the members {}: `members` needs one name for the fork of each, and no other",
            view.name,
            members.join(", ")
        );
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    // What is only here would hide the fork from who connects here.
    let known = registry.site().cache.volumes();
    let mut stays = known
        .iter()
        .filter(|local| local.attached || local.last > local.published);
    let names: Vec<&String> = wanted.members.values().collect();
    if let Some(taken) = stays.find(|local| names.contains(&&local.name)) {
        let text = format!(
            "an export `{}` exists already; choose another name for the fork",
            taken.name
        );
        return Err(ControlError::new(ControlErrorKind::Conflict, text));
    }
    Ok(())
}

/// Where this node has it. A reader must not become the owner by this.
async fn drain_here<W: World>(registry: &Registry<W>, view: &GroupView) -> Answer<()> {
    let owns = |it: &MemberView| {
        let open = registry.get(&it.name);
        let held = registry.site().local_volume(&it.name, it.root.as_ref());
        open.is_some_and(|it| matches!(it.role(), Role::ReadWrite | Role::Leaving))
            || held.is_some_and(|local| local.attached && local.id == it.volume)
    };
    match view.members.iter().find(|it| owns(it)) {
        Some(member) => Box::pin(drain(registry, &member.name)).await.map(drop),
        None => Ok(()),
    }
}

/// Returns once the root of the group lists it, of all members at one moment between question and answer.
async fn take_snapshot<W: World>(
    registry: &Registry<W>,
    which: &str,
    wanted: TakeSnapshotDocument,
) -> Answer<GroupSnapshotDocument> {
    let bucket = bucket(registry).await?;
    let view = Box::pin(find(&bucket, which)).await?;
    let first = view.members.first().map(|it| it.name.clone());
    let first = first.unwrap_or_default();
    if view.state != GroupState::Formed {
        // It may have been taken before that, and the answer be lost.
        let taken = Box::pin(taken_before(registry, &view, &first, &wanted)).await?;
        return taken.ok_or_else(|| not_formed(&view));
    }
    // Of a member it is one of all.
    let taken = Box::pin(snapshots::take(registry, &first, wanted)).await?;
    let listed = Box::pin(listed_as(registry, &view, &taken.id)).await?;
    listed.ok_or_else(|| {
        let text = format!(
            "`{}@{}` is taken, and group `{}` was ended just then: its members have it",
            first, taken.name, view.name
        );
        unavailable(text)
    })
}

/// What an earlier call of the same request has taken of a group that is over by now.
async fn taken_before<W: World>(
    registry: &Registry<W>,
    view: &GroupView,
    first: &str,
    wanted: &TakeSnapshotDocument,
) -> Answer<Option<GroupSnapshotDocument>> {
    let Some(request) = &wanted.request_id else {
        return Ok(None);
    };
    let id = snapshots::id_of_request(first, wanted.name.as_deref(), request)?;
    Box::pin(listed_as(registry, view, &id.to_string())).await
}

async fn listed_as<W: World>(
    registry: &Registry<W>,
    view: &GroupView,
    id: &str,
) -> Answer<Option<GroupSnapshotDocument>> {
    let listed = Box::pin(listed(registry, view)).await?;
    Ok(listed.into_iter().find(|it| it.id == id))
}

/// Those that all members have of one moment, oldest first.
async fn list_snapshots<W: World>(
    registry: &Registry<W>,
    which: &str,
) -> Answer<Vec<GroupSnapshotDocument>> {
    let bucket = bucket(registry).await?;
    let view = Box::pin(find_formed(&bucket, which)).await?;
    Box::pin(listed(registry, &view)).await
}

async fn listed<W: World>(
    registry: &Registry<W>,
    view: &GroupView,
) -> Answer<Vec<GroupSnapshotDocument>> {
    let mut all: Vec<Vec<SnapshotDocument>> = Vec::with_capacity(view.members.len());
    for name in names(view) {
        let known = snapshots::known(registry, &name).await?;
        let asked_for = known.iter().filter(|it| !is_of_fork(&it.name));
        let documents = asked_for.map(|it| snapshots::document(&name, it));
        all.push(documents.collect());
    }
    let Some(first) = all.first() else {
        return Ok(Vec::new());
    };
    let of_all = first.iter().filter_map(|one| {
        let each = all.iter().map(|known| {
            let mut known = known.iter();
            known.find(|it| it.id == one.id).cloned()
        });
        let members: Vec<SnapshotDocument> = each.collect::<Option<_>>()?;
        Some(GroupSnapshotDocument {
            group: view.name.clone(),
            name: one.name.clone(),
            id: one.id.clone(),
            taken_at: one.taken_at.clone(),
            members,
        })
    });
    Ok(of_all.collect())
}
