//! What this node's log still holds of volumes that are not its own any more: answered writes that were never
//! published and never will be. Shown, and given out as they are; nothing is changed.

use blockcache::{Cut, CutContent, LocalVolume, Missing, PAGE_BYTES, PageRange};
use bytes::Bytes;
use world::World;

use super::answer::Answer;
use crate::control::{
    ControlError, ControlErrorKind, SalvageDocument, SalvageKind, SalvageRange, SalvageRanges,
};
use crate::export::Role;
use crate::export::frames::index;
use crate::export::registry::Registry;

/// Ranges in one answer. Who wants more asks again, from where it ends.
const RANGES_MAX: usize = 4096;
/// Bytes in one answer.
pub(crate) const SALVAGE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn list<W: World>(registry: &Registry<W>) -> Vec<SalvageDocument> {
    let volumes = registry.site().cache.volumes().into_iter();
    let lost = volumes.filter(|local| is_salvage(registry, local));
    lost.map(|local| document(&local)).collect()
}

/// Which bytes there are, in order, from `from` on.
pub(super) async fn ranges<W: World>(
    registry: &Registry<W>,
    id: &str,
    from: u64,
) -> Answer<SalvageRanges> {
    let (local, cut) = opened(registry, id).await?;
    let mut ranges = Vec::new();
    let mut next = None;
    let ends_after = |pages: PageRange| pages.end.byte() > from;
    for extent in cut.extents.iter().filter(|it| ends_after(it.pages)) {
        if ranges.len() >= RANGES_MAX {
            next = Some(extent.pages.start.byte());
            break;
        }
        match extent.content {
            CutContent::Data => join(&mut ranges, range(extent.pages, SalvageKind::Data)),
            CutContent::Zero => join(&mut ranges, range(extent.pages, SalvageKind::Zero)),
            // Parts of pages: what else is in them only the store knows.
            CutContent::Partial => {
                let (_, missing) = read(&cut, extent.pages).await?;
                let patches = missing.iter().flat_map(|it| &it.patches);
                let parts = patches.map(|patch| SalvageRange {
                    at: patch.at,
                    len: u64::try_from(patch.bytes.len()).expect("usize fits u64"),
                    kind: SalvageKind::Data,
                });
                parts.for_each(|part| join(&mut ranges, part));
            }
        }
    }
    Ok(SalvageRanges {
        salvage: document(&local),
        ranges,
        next,
    })
}

/// The bytes of a part of the volume as the log has them; zeros where it has none.
pub(super) async fn data<W: World>(
    registry: &Registry<W>,
    id: &str,
    at: u64,
    len: u64,
) -> Answer<Bytes> {
    let (local, cut) = opened(registry, id).await?;
    let end = at.checked_add(len).filter(|end| *end <= local.size_bytes);
    if len == 0 || len > SALVAGE_BYTES_MAX || end.is_none() {
        let size = local.size_bytes;
        let text = format!(
            "`at={at}&len={len}`: at most {SALVAGE_BYTES_MAX} bytes at a time, within the {size} bytes of the volume"
        );
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    let pages = PageRange::touched_by(at, len);
    let (mut bytes, missing) = read(&cut, pages).await?;
    crate::export::apply_patches(&missing, pages, &mut bytes);
    let skip = index(at - pages.start.byte());
    Ok(Bytes::from(bytes).slice(skip..skip + index(len)))
}

async fn opened<W: World>(registry: &Registry<W>, id: &str) -> Answer<(LocalVolume, Cut<W>)> {
    let cache = &registry.site().cache;
    let mut volumes = cache.volumes().into_iter();
    let local = volumes.find(|it| it.id.to_string() == id && is_salvage(registry, it));
    let absent = || {
        let text =
            format!("the log holds no salvage `{id}`; `glidefs salvage list` shows what it holds");
        ControlError::new(ControlErrorKind::NotFound, text)
    };
    let local = local.ok_or_else(absent)?;
    let held = cache.volume(local.id).ok_or_else(absent)?;
    let last = local.kept.min(local.last);
    let cut = held.cut_again(last).await.map_err(failed)?;
    Ok((local, cut))
}

/// Nobody here will ever publish it.
pub(super) fn is_salvage<W: World>(registry: &Registry<W>, local: &LocalVolume) -> bool {
    let export = registry.get(&local.name);
    let serves = export.is_some_and(|it| matches!(it.role(), Role::ReadWrite | Role::Leaving));
    local.last > local.published && !local.attached && !serves
}

async fn read<W: World>(cut: &Cut<W>, pages: PageRange) -> Answer<(Vec<u8>, Vec<Missing>)> {
    let mut bytes = vec![0; index(pages.pages() * PAGE_BYTES)];
    let missing = cut.read(pages, &mut bytes).await.map_err(failed)?;
    Ok((bytes, missing))
}

/// What continues the last range belongs to it.
fn join(ranges: &mut Vec<SalvageRange>, next: SalvageRange) {
    match ranges.last_mut() {
        Some(last) if last.kind == next.kind && last.at + last.len == next.at => {
            last.len += next.len;
        }
        Some(_) | None => ranges.push(next),
    }
}

fn range(pages: PageRange, kind: SalvageKind) -> SalvageRange {
    SalvageRange {
        at: pages.start.byte(),
        len: pages.bytes(),
        kind,
    }
}

fn document(local: &LocalVolume) -> SalvageDocument {
    SalvageDocument {
        id: local.id.to_string(),
        export: local.name.clone(),
        size_bytes: local.size_bytes,
        epoch: local.epoch.0,
        first_seq: local.published.0 + 1,
        last_seq: local.kept.min(local.last).0,
        dirty_bytes: local.dirty_bytes,
        damage: local.damage.clone(),
    }
}

fn failed(error: blockcache::CacheError) -> ControlError {
    ControlError::new(ControlErrorKind::Failed, error.to_string())
}
