//! Exports as the operator sees them. Pure but for the look at the state.

use std::time::Duration;

use blockcache::LocalVolume;
use world::{UnixTime, World};

use super::{Export, Role};
use crate::control::{DamageDocument, ExportDocument, GroupNameDocument, IoDocument};
use crate::volume::{Owner, RootView, VolumeState};

/// What an open export shows.
pub(crate) fn of_export<W: World>(export: &Export<W>) -> ExportDocument {
    let (local, root) = (export.local_state(), export.root());
    let mut document = of_parts(export.name(), local.as_ref(), root.as_ref());
    role_name(export.role()).clone_into(&mut document.role);
    document.size_bytes = export.size_bytes();
    document.clients = export.clients.count();
    document.warm = export.warm.document();
    document.published = !export.is_pending_fork();
    document.io = export.meter().io.get();
    if let Some(volume) = export.frames().volume() {
        let totals = volume.totals();
        document.stored_bytes = totals.named_bytes + totals.dead_bytes;
        document.dead_bytes = totals.dead_bytes;
    }
    document
}

/// What is known of a volume that is not open here.
pub(crate) fn of_parts(
    name: &str,
    local: Option<&LocalVolume>,
    root: Option<&RootView>,
) -> ExportDocument {
    let epoch = root.map(|r| r.epoch).max(local.map(|l| l.epoch));
    let published = root.map(|r| r.cut).max(local.map(|l| l.published));
    let last = local.map(|l| l.last).max(published);
    let volume = root.map(|r| r.volume).or(local.map(|l| l.id));
    ExportDocument {
        name: name.to_owned(),
        volume: volume.map_or_else(String::new, |id| id.to_string()),
        size_bytes: root
            .map(|r| r.size_bytes)
            .or(local.map(|l| l.size_bytes))
            .unwrap_or(0),
        role: match root.map(|r| r.state) {
            Some(VolumeState::Deleted) => "deleted",
            _ => "closed",
        }
        .to_owned(),
        epoch: epoch.unwrap_or_default().0,
        owner: root.map_or_else(String::new, |r| owner_text(r.owner.as_ref())),
        parent: root.and_then(|r| r.parent.clone()).or_else(|| {
            let base = local.and_then(|local| local.base.as_ref());
            base.map(|base| base.name.clone())
        }),
        group: root
            .and_then(|r| r.group.as_ref())
            .map(|group| GroupNameDocument {
                id: group.id.to_string(),
                name: group.name.clone(),
            }),
        published: local.is_none_or(|local| local.base.is_none()),
        clients: 0,
        dirty_bytes: local.map_or(0, |l| l.dirty_bytes),
        dirty_age_ms: local.map_or(0, |l| millis(l.dirty_age)),
        published_seq: published.unwrap_or_default().0,
        published_at: root.map_or_else(String::new, |r| r.cut_time.to_string()),
        last_seq: last.unwrap_or_default().0,
        stored_bytes: 0,
        dead_bytes: 0,
        damage: local.and_then(damage_of),
        warm: None,
        io: IoDocument::default(),
    }
}

pub(crate) fn owner_text(owner: Option<&Owner>) -> String {
    match owner {
        Some(owner) => format!("{} (cache {})", owner.host, owner.cache),
        None => "nobody".to_owned(),
    }
}

/// When the store's cut was published, and how long ago by the clock of this node.
pub(crate) fn cut_text(root: &RootView, now: UnixTime) -> String {
    let age = Duration::from_millis(now.0.saturating_sub(root.cut_time.0));
    format!(
        "write {} ({}, {} s ago)",
        root.cut,
        root.cut_time,
        age.as_secs()
    )
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn damage_of(local: &LocalVolume) -> Option<DamageDocument> {
    local.damage.as_ref().map(|what| DamageDocument {
        what: what.clone(),
        kept_seq: local.kept.0,
    })
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::ReadWrite | Role::Leaving => "read-write",
        Role::ReadOnly => "read-only",
        Role::Prepared => "prepared",
        Role::Damaged => "damaged",
        Role::Fenced => "fenced",
        Role::Vanished => "vanished",
        Role::Closed => "closed",
    }
}
