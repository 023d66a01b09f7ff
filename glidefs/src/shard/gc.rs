//! Giving space back when somebody asks for it, and showing how much that would be. What is worth it happens by
//! itself after each sync (`volume/tidy.rs`).

use std::rc::Rc;

use blockcache::Id;
use world::World;

use super::answer::{Answer, ids_of_request, open, refusal, volume_failure, wait_for};
use crate::control::{
    CollectedDocument, ControlError, ControlErrorKind, GcDocument, OperationDocument,
    OperationState,
};
use crate::export::open::Wish;
use crate::export::registry::{Registry, check_name};
use crate::export::{Export, Role};
use crate::volume::{
    Collected, Deletes, Flattened, KeptAll, Scope, Swept, Tidied, Volume, VolumeError,
};

/// Passes over one export: each but the last one moves as much as a pass may.
const PASSES_MAX: u32 = 1000;

/// Begins an operation. Asked again with the same request id, it is the same one.
pub(super) fn run<W: World>(
    registry: &Rc<Registry<W>>,
    wanted: &GcDocument,
) -> Answer<OperationDocument> {
    let site = registry.site();
    if wanted.flatten && (wanted.dry_run || wanted.export.is_none()) {
        let text =
            "`flatten` copies data, so it is asked for one export by name, and not as a dry run";
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    let names = match &wanted.export {
        Some(name) => {
            check_name(name).map_err(refusal)?;
            vec![name.clone()]
        }
        None => {
            let exports = registry.exports();
            let open = exports.iter().filter(|it| it.role() == Role::ReadWrite);
            open.map(|it| it.name().to_owned()).collect()
        }
    };
    let id = match &wanted.request_id {
        Some(request) => {
            let export = wanted.export.as_deref().unwrap_or("");
            let what = match (wanted.dry_run, wanted.flatten) {
                (true, _) => "dry",
                (false, true) => "flatten",
                (false, false) => "",
            };
            ids_of_request(&["gc", export, what], request)?[0]
        }
        None => Id(site.world.random_id()),
    };
    let id = id.to_string();
    if let Some(known) = site.operations.begun(&id) {
        return Ok(known);
    }
    let operation = OperationDocument {
        id: id.clone(),
        kind: "gc".to_owned(),
        state: OperationState::Running,
        dry_run: wanted.dry_run,
        done: 0,
        total: names.len() as u64,
        at: String::new(),
        started_at: site.world.unix_time().to_string(),
        ended_at: None,
        error: None,
        exports: Vec::new(),
    };
    site.operations.begin(operation.clone())?;
    let wish = GcWish {
        deletes: match wanted.dry_run {
            true => Deletes::Not,
            false => Deletes::Really,
        },
        flattens: wanted.flatten,
    };
    let registry = Rc::clone(registry);
    site.world.spawn(async move {
        let site = registry.site();
        let mut failure = None;
        for name in names {
            site.operations.at(&id, &name);
            match Box::pin(gc(&registry, &name, wish)).await {
                Ok(collected) => site.operations.collected(&id, collected),
                // The others are not to suffer from it.
                Err(error) => failure = Some(format!("`{name}`: {error}")),
            }
        }
        let now = site.world.unix_time().to_string();
        site.operations.end(&id, failure, now);
    });
    Ok(operation)
}

/// What is asked for of each export.
#[derive(Clone, Copy, Debug)]
struct GcWish {
    deletes: Deletes,
    flattens: bool,
}

async fn gc<W: World>(
    registry: &Registry<W>,
    name: &str,
    wish: GcWish,
) -> Answer<CollectedDocument> {
    let (door, export) = open(registry, name, Wish::default()).await?;
    // So that it does not detach in the middle, if nobody is connected.
    export.clients.hold();
    drop(door);
    let collected = Box::pin(gc_of(registry, &export, wish)).await;
    export.clients.release(registry.site().world.now());
    export.orders.wake.notify_one();
    collected
}

async fn gc_of<W: World>(
    registry: &Registry<W>,
    export: &Export<W>,
    wish: GcWish,
) -> Answer<CollectedDocument> {
    let GcWish { deletes, flattens } = wish;
    let Some(volume) = export.frames().volume() else {
        let text = "the store has not been reached since the start: try again when it answers";
        return Err(ControlError::new(ControlErrorKind::Unavailable, text));
    };
    let tidy = registry.site().config.sync.tidy.thorough();
    let owns = export.role() == Role::ReadWrite;
    let mut tidied = Tidied::default();
    let mut flattened = None;
    if owns && flattens {
        flattened = Some(Box::pin(flatten(registry, export, &volume)).await?);
    }
    if owns && deletes == Deletes::Really {
        volume.forget_pins();
        tidied = Box::pin(repack(registry, export, &volume)).await?;
    }
    let failed = |error: VolumeError| volume_failure(&error);
    let collected = match owns {
        true => Box::pin(volume.collect(&tidy, deletes))
            .await
            .map_err(failed)?,
        false => Collected::default(),
    };
    let swept = Box::pin(volume.sweep(Scope::All, deletes)).await;
    let swept = swept.map_err(failed)?;
    if deletes == Deletes::Really {
        export.count(|io| {
            io.collected_objects += collected.deleted_objects + swept.deleted_objects;
            io.collected_bytes += collected.deleted_bytes + swept.deleted_bytes;
        });
    }
    let held = flattened.as_ref().and_then(flat_note);
    let note = held.or_else(|| note(owns, &collected, &swept));
    let totals = volume.totals();
    let (before, repacked) = (tidied.collected, tidied.repacked);
    Ok(CollectedDocument {
        export: export.name().to_owned(),
        repacked_bytes: repacked.moved_bytes,
        flattened_bytes: flattened.map_or(0, |it| it.moved_bytes),
        deleted_objects: before.deleted_objects + collected.deleted_objects,
        deleted_bytes: before.deleted_bytes + collected.deleted_bytes,
        held_objects: collected.held_objects,
        held_bytes: collected.held_bytes,
        swept_objects: swept.deleted_objects,
        swept_bytes: swept.deleted_bytes,
        stored_bytes: totals.named_bytes + totals.dead_bytes,
        live_bytes: totals.live_bytes,
        note,
    })
}

fn note(owns: bool, collected: &Collected, swept: &Swept) -> Option<String> {
    if !owns && swept.kept_all.is_none() {
        return Some(
            "another node owns it: only what interrupted owners left was looked for".to_owned(),
        );
    }
    if let Some(pin) = &collected.blocked_by {
        return Some(format!(
            "nothing was deleted: `{pin}` holds everything until its fork is there, or known not to come; run this again"
        ));
    }
    swept.kept_all.map(|why| {
        match why {
            KeptAll::HasGaps => "nothing was swept: the export was restored over a map that could not be read, so what its snapshots need is not known",
            KeptAll::Deleted => "nothing was swept: the export was deleted; what nobody needs of it goes when it is purged",
        }
        .to_owned()
    })
}

/// Merges the map, and moves what is left of segments that are mostly dead, until there is nothing to gain.
async fn repack<W: World>(
    registry: &Registry<W>,
    export: &Export<W>,
    volume: &Volume<W>,
) -> Answer<Tidied> {
    let tidy = registry.site().config.sync.tidy.thorough();
    let mut all = Tidied::default();
    for _ in 0..PASSES_MAX {
        may_go_on(registry, export)?;
        publish_edits(export, volume).await?;
        let tidied = Box::pin(volume.tidy_in_turn(&tidy)).await;
        let tidied = tidied.map_err(|error| volume_failure(&error))?;
        crate::sync::count(export, &tidied);
        all.repacked.moved_bytes += tidied.repacked.moved_bytes;
        all.collected.deleted_objects += tidied.collected.deleted_objects;
        all.collected.deleted_bytes += tidied.collected.deleted_bytes;
        if !volume.has_edits() {
            return Ok(all);
        }
    }
    publish_edits(export, volume).await?;
    Ok(all)
}

/// Copies what the export shares with others, until it names none of them.
async fn flatten<W: World>(
    registry: &Registry<W>,
    export: &Export<W>,
    volume: &Volume<W>,
) -> Answer<Flattened> {
    let tidy = registry.site().config.sync.tidy.thorough();
    let mut moved_bytes = 0;
    loop {
        may_go_on(registry, export)?;
        let pass = Box::pin(volume.flatten(0, &tidy)).await;
        let pass = pass.map_err(|error| volume_failure(&error))?;
        moved_bytes += pass.moved_bytes;
        export.count(|io| io.flattened_bytes += pass.moved_bytes);
        if !pass.goes_on {
            return Ok(Flattened {
                moved_bytes,
                ..pass
            });
        }
        // Also where it would bring nothing: behind a restart a publish proves that the volume is ours still.
        carry(export).await?;
    }
}

/// Whoever wants to delete, restore or stop must not wait for hours.
fn may_go_on<W: World>(registry: &Registry<W>, export: &Export<W>) -> Answer<()> {
    let goes = export.role() == Role::ReadWrite && !export.orders.is_leaving();
    if goes && !registry.site().closing.get() {
        return Ok(());
    }
    let text = "the export is given up, and what was done so far stays; ask again once it is open";
    Err(ControlError::new(ControlErrorKind::Conflict, text))
}

fn flat_note(flattened: &Flattened) -> Option<String> {
    let needs = flattened.needs.join(", ");
    let by = flattened.held_by.as_ref()?;
    Some(format!(
        "it names nothing of {needs} any more, and still holds it for {by}; run this again once they are gone"
    ))
}

async fn publish_edits<W: World>(export: &Export<W>, volume: &Volume<W>) -> Answer<()> {
    match volume.has_edits() {
        true => carry(export).await,
        false => Ok(()),
    }
}

async fn carry<W: World>(export: &Export<W>) -> Answer<()> {
    let failures = export.orders.failures();
    export.orders.carry();
    let carried = wait_for(export, failures, || !export.orders.is_carrying()).await;
    carried.map_err(|why| {
        let text = format!("what was repacked is not published yet: {why}; run this again");
        ControlError::new(ControlErrorKind::Unavailable, text)
    })
}
