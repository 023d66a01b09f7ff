//! Answers to the operator's requests, each in a task of its own.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use world::World;
use world::sync::Semaphore;

use blockcache::{Epoch, Id, Seq};

use crate::control::{
    ControlError, ControlErrorKind, ExportDocument, OperationDocument, PromoteDocument,
    PutDocument, Reply, Request, ServerDocument,
};
use crate::device::ConnectError;
use crate::export::confirm::confirm;
use crate::export::decide::Seen;
use crate::export::document::{cut_text, of_export, of_parts, owner_text};
use crate::export::frames::is_temporary;
use crate::export::group::{self, Door};
use crate::export::open::{Floor, Purpose, Wish};
use crate::export::registry::{Registry, check_name};
use crate::export::{Export, Role};
use crate::shard::loss::accept_loss;
use crate::shard::meters::meters;
use crate::shard::stored::list_stored;
use crate::shard::{delete, forks, gc, groups, prepare, purge, renew, restore, salvage, snapshots};
use crate::volume::VolumeError;

/// Requests being answered at a time; more wait in the queue.
const ANSWERS_MAX: usize = 32;
const GIB: f64 = 1_073_741_824.0;
/// Volumes are whole pages.
const PAGE: u64 = blockcache::PAGE_BYTES;
/// The largest volume that can be asked for: 2^53 bytes, up to which a float counts exactly.
const VOLUME_BYTES_MAX: f64 = 9_007_199_254_740_992.0;

pub(super) type Answer<T> = Result<T, ControlError>;

#[derive(Debug)]
pub(super) struct Answers<W: World> {
    registry: Rc<Registry<W>>,
    slots: Arc<Semaphore>,
}

impl<W: World> Answers<W> {
    pub(super) fn new(registry: Rc<Registry<W>>) -> Self {
        Self {
            registry,
            slots: Arc::new(Semaphore::new(ANSWERS_MAX)),
        }
    }

    /// Returns once the answer is on its way; waits while too many others are.
    pub(super) async fn answer(&self, request: Request) {
        let slots = Arc::clone(&self.slots);
        let slot = slots.acquire_owned().await.expect("never closed");
        let registry = Rc::clone(&self.registry);
        self.registry.site().world.spawn(async move {
            Box::pin(perform(&registry, request)).await;
            drop(slot);
        });
    }
}

async fn perform<W: World>(registry: &Rc<Registry<W>>, request: Request) {
    match request {
        Request::List(reply) => send(reply, Ok(list(registry))),
        Request::ListStored(after, reply) => {
            send(reply, list_stored(registry, list(registry), &after).await);
        }
        Request::Get(name, reply) => send(reply, get(registry, &name).await),
        Request::Put(name, wanted, reply) => send(reply, put(registry, &name, &wanted).await),
        Request::Delete(name, how, reply) => send(reply, delete::run(registry, &name, &how).await),
        Request::Purge(name, how, reply) => send(reply, purge::run(registry, &name, &how).await),
        Request::AcceptLoss(name, wanted, reply) => {
            send(reply, accept_loss(registry, &name, &wanted).await);
        }
        Request::Drain(name, reply) => send(reply, drain(registry, &name).await),
        Request::Prepare(name, wanted, reply) => {
            send(reply, prepare::run(registry, &name, &wanted).await);
        }
        Request::Promote(name, how, reply) => send(reply, promote(registry, &name, &how).await),
        Request::Snapshots(name, reply) => send(reply, snapshots::list(registry, &name).await),
        Request::Snapshot(name, snapshot, reply) => {
            send(reply, snapshots::get(registry, &name, &snapshot).await);
        }
        Request::TakeSnapshot(name, wanted, reply) => {
            send(reply, snapshots::take(registry, &name, wanted).await);
        }
        Request::DeleteSnapshot(name, snapshot, reply) => {
            send(reply, snapshots::delete(registry, &name, &snapshot).await);
        }
        Request::RenewData(name, wanted, reply) => {
            send(reply, renew::run(registry, &name, wanted).await);
        }
        Request::PruneSnapshots(name, how, reply) => {
            send(reply, snapshots::prune(registry, &name, how).await);
        }
        Request::Restore(name, wanted, reply) => {
            send(reply, restore::restore(registry, &name, wanted).await);
        }
        Request::Forks(name, after, reply) => {
            send(reply, forks::list(registry, &name, &after).await);
        }
        Request::Fork(name, wanted, reply) => {
            send(reply, forks::fork(registry, &name, &wanted).await);
        }
        Request::Salvage(reply) => send(reply, Ok(salvage::list(registry))),
        Request::SalvageRanges(id, from, reply) => {
            send(reply, salvage::ranges(registry, &id, from).await);
        }
        Request::SalvageData(id, at, len, reply) => {
            send(reply, salvage::data(registry, &id, at, len).await);
        }
        Request::Gc(wanted, reply) => send(reply, gc::run(registry, &wanted)),
        Request::Operations(reply) => send(reply, Ok(registry.site().operations.all())),
        Request::Operation(id, reply) => send(reply, operation(registry, &id)),
        Request::DrainAll(reply) => send(reply, Ok(drain_all(registry).await)),
        Request::Server(reply) => send(reply, Ok(server(registry))),
        Request::Meters(reply) => send(reply, Ok(meters(registry))),
        Request::Group(request) => Box::pin(groups::perform(registry, request)).await,
    }
}

fn operation<W: World>(registry: &Registry<W>, id: &str) -> Answer<OperationDocument> {
    let found = registry.site().operations.get(id);
    found.ok_or_else(|| {
        let id: String = id.chars().take(64).collect();
        let text = format!(
            "operation `{}` is not known: it ended long ago, or before the last restart",
            id.escape_debug()
        );
        ControlError::new(ControlErrorKind::NotFound, text)
    })
}

pub(super) fn send<T>(reply: Reply<T>, answer: Answer<T>) {
    // Who asked may have gone; that changes nothing here.
    drop(reply.send(answer));
}

/// Open exports, and volumes that the log knows. Not the whole store: metrics call this.
pub(super) fn list<W: World>(registry: &Registry<W>) -> Vec<ExportDocument> {
    let exports = registry.exports();
    let mut documents: Vec<ExportDocument> = exports.iter().map(|e| of_export(e)).collect();
    let mut known: BTreeSet<String> = documents.iter().map(|d| d.name.clone()).collect();
    for local in registry.site().cache.volumes() {
        if known.insert(local.name.clone()) {
            let mut document = of_parts(&local.name, Some(&local), None);
            let meter = registry.site().meters.known(&local.name);
            document.io = meter.map(|meter| meter.io.get()).unwrap_or_default();
            documents.push(document);
        }
    }
    documents.sort_by(|a, b| a.name.cmp(&b.name));
    documents
}

async fn get<W: World>(registry: &Registry<W>, name: &str) -> Answer<ExportDocument> {
    check_name(name).map_err(refusal)?;
    if let Some(export) = registry.get(name) {
        return Ok(of_export(&export));
    }
    let seen = registry.site().shelf.ask(name).await.seen;
    closed(registry, name, &seen)
}

/// A volume that is not open here.
pub(super) fn closed<W: World>(
    registry: &Registry<W>,
    name: &str,
    seen: &Seen,
) -> Answer<ExportDocument> {
    let root = match seen {
        Seen::Root(root) => Some(root),
        Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_) => None,
    };
    let local = registry.site().local_volume(name, root);
    match (seen, root, local) {
        (_, None, None) => match seen {
            Seen::Unreachable(why) => Err(unavailable(format!("the store cannot be asked: {why}"))),
            Seen::Unreadable(why) => Err(unavailable(format!("the volume cannot be read: {why}"))),
            Seen::Absent | Seen::Root(_) => Err(ControlError::new(
                ControlErrorKind::NotFound,
                format!("no export `{name}`"),
            )),
        },
        (_, root, local) => Ok(of_parts(name, local.as_ref(), root)),
    }
}

async fn put<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: &PutDocument,
) -> Answer<ExportDocument> {
    let size_bytes = bytes_from_gib(wanted.size_gb)?;
    let wish = Wish {
        create_bytes: Some(size_bytes),
        over_deleted: true,
        ..Wish::default()
    };
    let (_door, export) = open(registry, name, wish).await?;
    if let Some(why) = export.halted().filter(|_| export.role() == Role::Damaged) {
        return Err(conflict(&export, &format!("is read-only: {why}")));
    }
    if export.role() != Role::ReadWrite {
        return Err(conflict(
            &export,
            "is owned by another node; promote it here first",
        ));
    }
    if size_bytes < export.size_bytes() {
        let text = "is larger than that already, and a volume never shrinks";
        let mut error = conflict(&export, text);
        error.kind = ControlErrorKind::Invalid;
        return Err(error);
    }
    grow(&export, size_bytes).await.map_err(unavailable)?;
    Ok(of_export(&export))
}

/// Returns once the size is published.
async fn grow<W: World>(export: &Export<W>, size_bytes: u64) -> Result<(), String> {
    if size_bytes == export.size_bytes() {
        return Ok(());
    }
    let failures = export.orders.failures();
    export.orders.grow(size_bytes);
    wait_for(export, failures, || export.size_bytes() >= size_bytes).await
}

/// Waits for the sync task; an error once an attempt failed or the task ended.
pub(super) async fn wait_for<W: World>(
    export: &Export<W>,
    failures: u64,
    done: impl Fn() -> bool,
) -> Result<(), String> {
    loop {
        let news = export.orders.news.notified();
        if done() {
            return Ok(());
        }
        if let Some(why) = export.halted() {
            return Err(why);
        }
        if export.orders.failures() > failures {
            return Err(export.orders.last_failure());
        }
        news.await;
    }
}

/// Drains and detaches now, with all that were opened together with it.
pub(super) async fn leave<W: World>(registry: &Registry<W>, export: &Rc<Export<W>>) -> Answer<()> {
    if registry.site().closing.get() {
        return Err(unavailable("the server is shutting down".to_owned()));
    }
    check_unused(export)?;
    let together = export.together();
    if let Some(fork) = together.iter().find_map(|it| forks::damaged(registry, it)) {
        let text = format!(
            "cannot be given up: writes to its fork `{fork}`, which is not in the store yet, are missing in this node's cache; accept their loss (`POST /api/exports/{fork}/accept-loss`), or drop the fork (`DELETE /api/exports/{fork}?accept_loss=true`)"
        );
        return Err(conflict(export, &text));
    }
    let drained = group::drain(&together).await;
    drained.map_err(unavailable)?;
    let failures = export.orders.failures();
    export.orders.leave();
    let left = wait_for(export, failures, || export.role() == Role::Closed);
    left.await.map_err(unavailable)
}

/// Refused while somebody is connected to it, or to one that was opened together with it, with the numbers of all.
pub(super) fn check_unused<W: World>(export: &Rc<Export<W>>) -> Answer<()> {
    if !export.is_used() {
        return Ok(());
    }
    if export.clients.count() > 0 {
        return Err(conflict(export, "has clients; disconnect them first"));
    }
    let all = export.together();
    let used = all.iter().filter(|it| it.clients.count() > 0);
    let used: Vec<String> = used
        .map(|it| format!("`{}` ({})", it.name(), it.clients.count()))
        .collect();
    let text = format!(
        "is given up together with all of its group, of which others have clients: {}; disconnect them first",
        used.join(", ")
    );
    Err(conflict(export, &text))
}

/// Returns when everything that was answered before the call is in the store: of a group, by any member of it.
pub(super) async fn drain<W: World>(registry: &Registry<W>, name: &str) -> Answer<ExportDocument> {
    check_name(name).map_err(refusal)?;
    let held = || {
        registry
            .site()
            .local_volume(name, None)
            .is_some_and(|l| l.attached)
    };
    if registry.get(name).is_none() && !held() {
        // Nothing of it is here that the store does not have.
        return get(registry, name).await;
    }
    let (door, export) = open(registry, name, Wish::default()).await?;
    // Others may connect meanwhile.
    drop(door);
    let drained = group::drain(&export.together()).await;
    drained.map_err(|why| ControlError {
        kind: ControlErrorKind::Unavailable,
        message: format!("not drained, retrying: {why}"),
        export: Some(Box::new(of_export(&export))),
        members: members(&export),
    })?;
    Ok(of_export(&export))
}

async fn promote<W: World>(
    registry: &Registry<W>,
    name: &str,
    how: &PromoteDocument,
) -> Answer<ExportDocument> {
    let expected = how.expected_epoch.map(Epoch);
    if how.force && expected.is_none() {
        let text = "`force` needs `expected_epoch`: the epoch that you want to end";
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    let wish = Wish {
        force: expected.filter(|_epoch| how.force),
        floor: Floor {
            epoch: Epoch(how.min_epoch.unwrap_or(0)),
            seq: Seq(how.min_seq.unwrap_or(0)),
        },
        purpose: Purpose::Promote,
        ..Wish::default()
    };
    let (_door, export) = open(registry, name, wish).await?;
    // It may have been open here before anybody asked for a floor.
    let root = export.root().map(|root| (root.epoch, root.cut));
    let local = export.local_state();
    let known = root.or_else(|| local.map(|local| (local.epoch, local.published)));
    if let Some((epoch, cut)) = known {
        wish.floor.check(name, epoch, cut).map_err(refusal)?;
    }
    if export.role() == Role::ReadWrite {
        return Ok(of_export(&export));
    }
    let root = export.root().expect("a read-only export has a root");
    let owner = owner_text(root.owner.as_ref());
    let cut = cut_text(&root, registry.site().world.unix_time());
    let epoch = root.epoch;
    Err(conflict(
        &export,
        &format!(
            "is owned by {owner} at epoch {epoch} and not detached. The store holds everything up to {cut}; how much that node holds beyond it is not known here (the dirty bytes shown are those of this node), and it is lost to the volume if you go on with {{\"force\": true, \"expected_epoch\": {epoch}}}"
        ),
    ))
}

pub(super) async fn open<W: World>(
    registry: &Registry<W>,
    name: &str,
    wish: Wish,
) -> Answer<(Door, Rc<Export<W>>)> {
    check_name(name).map_err(refusal)?;
    // Who is told "read-write" lets a guest run here. In front of the door: clients that come back to an export that is
    // open must not wait for the store behind it.
    let owned = registry
        .get(name)
        .filter(|it| wish.purpose != Purpose::Serve && it.role() == Role::ReadWrite);
    if let Some(export) = owned {
        let confirmed = Box::pin(confirm(registry.site(), &export)).await;
        confirmed.map_err(refusal)?;
    }
    let mut door = registry.door(name).await;
    if registry.site().closing.get() {
        return Err(refusal(ConnectError::ShuttingDown));
    }
    let export = Box::pin(registry.opened(&mut door, name, wish)).await;
    Ok((door, export.map_err(refusal)?))
}

/// Returns when everything that was answered before the call is in the store, however long that
/// takes; what can never be published (fenced, stopped), or not before a person has acted, is not waited for.
pub(super) async fn drain_all<W: World>(registry: &Registry<W>) -> Vec<ExportDocument> {
    let exports = registry.exports();
    for export in &exports {
        if let Some(local) = export.local_state() {
            export.orders.drain(local.last);
        }
    }
    for export in &exports {
        // Each turn of the loop is one failed attempt, which the sync task spaces out. A fork whose parent does not come
        // back before somebody has acted is here at the next start as it is now.
        let is_hopeless = || export.halted().is_some() || export.orders.is_stuck();
        while export.drain().await.is_err() && !is_hopeless() {}
    }
    exports.iter().map(|export| of_export(export)).collect()
}

pub(super) fn server<W: World>(registry: &Registry<W>) -> ServerDocument {
    let (exports, usage) = (registry.exports(), registry.site().cache.stats());
    ServerDocument {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cache_id: registry.site().cache.id().to_string(),
        cache_bytes: usage.size_bytes,
        cache_used_bytes: usage.used_bytes,
        dirty_bytes: usage.dirty_bytes,
        exports: u64::try_from(exports.len()).expect("usize fits u64"),
        clients: exports.iter().map(|e| u64::from(e.clients.count())).sum(),
        stopped: usage.stopped,
    }
}

/// GiB as a person writes them to whole pages.
fn bytes_from_gib(gib: f64) -> Answer<u64> {
    let bytes = (gib * GIB).ceil();
    if !(1.0..=VOLUME_BYTES_MAX).contains(&bytes) {
        let text = format!("`size_gb` must be more than 0 and at most 8388608 (8 PiB), not {gib}");
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number between 1 and 2^53, checked above"
    )]
    let bytes = bytes as u64;
    Ok(bytes.next_multiple_of(PAGE))
}

pub(super) fn conflict<W: World>(export: &Rc<Export<W>>, what: &str) -> ControlError {
    ControlError {
        kind: ControlErrorKind::Conflict,
        message: format!("export `{}` {what}", export.name()),
        export: Some(Box::new(of_export(export))),
        members: members(export),
    }
}

/// The numbers of all that were opened together with an export; of one alone its own are enough.
fn members<W: World>(export: &Rc<Export<W>>) -> Vec<ExportDocument> {
    match export.has_fellows() {
        true => export.together().iter().map(|it| of_export(it)).collect(),
        false => Vec::new(),
    }
}

/// What a request makes gets ids that follow from all that it asks for, so that the same request makes the same
/// thing, and no other request does: not even one that carries the same text by mistake.
pub(super) fn ids_of_request(asked: &[&str], request: &str) -> Answer<[Id; 2]> {
    if request.is_empty() {
        let text = "`request_id` is empty: leave it out, or give each request a text of its own";
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    let mut hasher = blake3::Hasher::new_derive_key("glidefs 1 ids of a request");
    for part in asked.iter().chain([&request]) {
        hasher.update(
            &u64::try_from(part.len())
                .expect("usize fits u64")
                .to_le_bytes(),
        );
        hasher.update(part.as_bytes());
    }
    let hash = hasher.finalize();
    let (first, second) = hash.as_bytes().split_at(16);
    let half = |bytes: &[u8]| Id(*bytes.first_chunk().expect("16 of 32"));
    Ok([half(first), half(second)])
}

/// Of a change of the store that was asked for with a request id.
pub(super) fn volume_failure(error: &VolumeError) -> ControlError {
    let kind = match error {
        VolumeError::Vanished { .. } => ControlErrorKind::NotFound,
        VolumeError::Invalid(_)
        | VolumeError::Changed { .. }
        | VolumeError::Exists { .. }
        | VolumeError::Needed { .. }
        | VolumeError::Owned { .. } => ControlErrorKind::Conflict,
        error if is_temporary(error) => {
            let text = format!("not done yet: {error}; ask again with the same `request_id`");
            return unavailable(text);
        }
        _ => ControlErrorKind::Failed,
    };
    ControlError::new(kind, error.to_string())
}

pub(super) fn unavailable(why: String) -> ControlError {
    ControlError::new(ControlErrorKind::Unavailable, why)
}

pub(super) fn refusal(error: ConnectError) -> ControlError {
    let kind = match error {
        ConnectError::Unknown(_) => ControlErrorKind::NotFound,
        ConnectError::Invalid(_) => ControlErrorKind::Invalid,
        ConnectError::Refused(_) => ControlErrorKind::Conflict,
        ConnectError::Unavailable(_) | ConnectError::ShuttingDown => ControlErrorKind::Unavailable,
    };
    ControlError::new(kind, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_has_the_same_ids_and_no_other_has() {
        let ids = |asked: &[&str], request| ids_of_request(asked, request).expect("a text");
        assert_eq!(ids(&["fork", "a"], "r"), ids(&["fork", "a"], "r"));
        for (asked, request) in [
            (&["fork", "b"][..], "r"),
            (&["take", "a"], "r"),
            (&["forka"], "r"),
            (&["fork", "a"], "s"),
        ] {
            assert_ne!(ids(&["fork", "a"], "r"), ids(asked, request), "{asked:?}");
        }
        assert!(ids_of_request(&["fork", "a"], "").is_err());
    }

    #[test]
    fn sizes_are_whole_pages_of_gib() {
        assert_eq!(bytes_from_gib(1.0), Ok(1 << 30));
        assert_eq!(bytes_from_gib(0.000_001), Ok(4096));
        assert_eq!(bytes_from_gib(500.0), Ok(500 << 30));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e30] {
            let error = bytes_from_gib(bad).expect_err("refused");
            assert_eq!(error.kind, ControlErrorKind::Invalid);
        }
    }
}
