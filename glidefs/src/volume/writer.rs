//! Writing runs: extents and carried leaves in order of address become leaves, parts, a run. Memory
//! is one leaf and one part.

use std::rc::Rc;

use blockcache::{Epoch, Id, PageRange};
use world::World;

use super::bucket::Bucket;
use super::codec::Compression;
use super::extent::{Extent, ObjectName};
use super::keys::Secret;
use super::leaf::{Directory, LeafBuilder, LeafRow, PART_LEAVES_MAX};
use super::ledger::{Entry, Tally};
use super::name::object_key;
use super::reader::Volumes;
use super::retry;
use super::runs::{Part, Run};
use super::sealed::{Kind, ObjectRef, Sealer};
use super::{Fresh, VolumeError};

/// A part is ended when it holds so many bytes of leaves.
const PART_BYTES: usize = 8 << 20;

/// What the objects of a volume are made with.
#[derive(Clone, Debug)]
pub(crate) struct Maker<W: World> {
    pub(crate) bucket: Bucket<W>,
    pub(crate) name: String,
    pub(crate) volume: Id,
    pub(crate) epoch: Epoch,
    pub(crate) volumes: Rc<Volumes>,
    pub(crate) fresh: Fresh,
    /// Of those, the names that this maker and its clones gave out: what goes if the work comes to nothing.
    pub(crate) made: Fresh,
}

impl<W: World> Maker<W> {
    /// A name that never was and never will be again (rule 12).
    pub(crate) fn fresh_name(&self) -> ObjectName {
        let id = self.bucket.world().random_id();
        let name = ObjectName {
            volume: self.volume,
            epoch: self.epoch,
            id: Id(id),
        };
        self.fresh.borrow_mut().insert(id, name);
        self.made.borrow_mut().insert(id, name);
        name
    }

    pub(crate) fn compression(&self) -> Compression {
        self.bucket.compression()
    }

    /// Asked for anew by each object: long work goes on over a change of the key.
    pub(crate) fn key(&self) -> Option<Secret> {
        self.volumes.writing_key(self.epoch)
    }

    /// Uploads a sealed object.
    pub(crate) async fn put(
        &self,
        kind: Kind,
        reference: &ObjectRef,
        body: bytes::Bytes,
    ) -> Result<(), VolumeError> {
        let name = reference.name();
        let key = object_key(&self.name, kind.folder(), name.epoch, name.id);
        let (world, store) = (self.bucket.world(), self.bucket.store());
        Ok(retry::create(world, store, &key, body).await?)
    }

    /// Uploads an object that is an index only.
    pub(crate) async fn put_index(
        &self,
        kind: Kind,
        index: Vec<u8>,
    ) -> Result<ObjectRef, VolumeError> {
        let (name, key, compression) = (self.fresh_name(), self.key(), self.compression());
        let sealed = self
            .bucket
            .world()
            .compute(move || Sealer::new(kind, name, key.as_ref(), compression).finish(&index));
        let (body, reference) = sealed.await;
        self.put(kind, &reference, body).await?;
        Ok(reference)
    }
}

/// What becomes of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zeros {
    /// They hide older extents.
    Keep,
    /// Nothing older is below them.
    Drop,
}

#[derive(Debug)]
pub(crate) struct RunWriter<W: World> {
    maker: Maker<W>,
    zeros: Zeros,
    /// The part in the making; absent only while a leaf of it is being compressed.
    sealer: Option<Sealer>,
    object: ObjectName,
    leaves: Directory,
    leaf: LeafBuilder,
    /// Not in the leaf yet: the next extent may continue it.
    last: Option<Extent>,
    parts: Vec<Part>,
    /// Of what was written so far, and carried over.
    tally: Tally,
}

/// A run that is in the store.
#[derive(Debug)]
pub(crate) struct Written {
    /// None: nothing was added.
    pub(crate) run: Option<Rc<Run>>,
    pub(crate) tally: Tally,
}

impl<W: World> RunWriter<W> {
    pub(crate) fn new(maker: Maker<W>, zeros: Zeros) -> Self {
        let object = maker.fresh_name();
        let tally = Tally::new(maker.volume);
        Self {
            tally,
            sealer: Some(sealer(&maker, object)),
            maker,
            zeros,
            object,
            leaves: Directory::default(),
            leaf: LeafBuilder::default(),
            last: None,
            parts: Vec::new(),
        }
    }

    /// Adds the next extent.
    pub(crate) async fn push(&mut self, extent: Extent) -> Result<(), VolumeError> {
        if self.zeros == Zeros::Drop && extent.spot.is_none() {
            return Ok(());
        }
        self.tally.counts.extent(&extent, 1);
        if let Some(joined) = self.last.as_ref().and_then(|last| last.join(&extent)) {
            self.last = Some(joined);
            return Ok(());
        }
        let Some(last) = self.last.replace(extent) else {
            return Ok(());
        };
        self.add(last).await
    }

    /// True if a leaf that starts there can be carried over without cutting another one short that
    /// the next extents would have filled.
    pub(crate) fn between_leaves(&self, start: u64) -> bool {
        let near = self.last.is_some_and(|last| {
            last.start() / super::leaf::SLOT_PAGES == start / super::leaf::SLOT_PAGES
        });
        !near && !self.leaf.same_slot(start)
    }

    /// Adds a leaf of an input as it is.
    pub(crate) async fn carry(&mut self, row: LeafRow) -> Result<(), VolumeError> {
        self.end_leaf().await?;
        self.tally.counts.add(&row.object, i64::from(row.stored));
        self.list(row).await
    }

    pub(crate) async fn finish(mut self, level: u8) -> Result<Written, VolumeError> {
        self.end_leaf().await?;
        self.end_part().await?;
        let id = self.maker.bucket.world().random_id();
        let (parts, tally) = (self.parts, self.tally);
        let run = (!parts.is_empty()).then(|| Rc::new(Run { id, level, parts }));
        Ok(Written { run, tally })
    }

    async fn add(&mut self, extent: Extent) -> Result<(), VolumeError> {
        if let Err(extent) = self.leaf.push(extent) {
            self.write_leaf().await?;
            let first = self.leaf.push(extent);
            assert!(first.is_ok(), "an empty leaf takes any extent");
        }
        Ok(())
    }

    async fn end_leaf(&mut self) -> Result<(), VolumeError> {
        if let Some(last) = self.last.take() {
            self.add(last).await?;
        }
        self.write_leaf().await
    }

    async fn write_leaf(&mut self) -> Result<(), VolumeError> {
        let Some(body) = self.leaf.take() else {
            return Ok(());
        };
        let mut sealer = self
            .sealer
            .take()
            .expect("only absent during this function");
        let (pages, entries, has_zeros) = (body.pages, body.entries, body.has_zeros);
        let plain = u32::try_from(body.bytes.len()).expect("a leaf is at most 128 KiB");
        let sealed = self.maker.bucket.world().compute(move || {
            let placed = sealer.push(pages, &body.bytes);
            (sealer, placed)
        });
        let (sealer, placed) = sealed.await;
        self.sealer = Some(sealer);
        let row = LeafRow {
            pages,
            object: self.object,
            number: placed.number,
            offset: placed.offset,
            stored: placed.stored,
            plain,
            entries,
            codec: placed.codec,
            has_zeros,
            hash: placed.short_hash(),
        };
        self.list(row).await
    }

    async fn list(&mut self, row: LeafRow) -> Result<(), VolumeError> {
        self.leaves.leaves.push(row);
        let bytes = self.sealer.as_ref().map_or(0, Sealer::len);
        if bytes >= PART_BYTES || self.leaves.leaves.len() == PART_LEAVES_MAX {
            self.end_part().await?;
        }
        Ok(())
    }

    async fn end_part(&mut self) -> Result<(), VolumeError> {
        let directory = std::mem::take(&mut self.leaves);
        let (Some(first), Some(last)) = (directory.leaves.first(), directory.leaves.last()) else {
            return Ok(());
        };
        let pages = PageRange::new(first.pages.start.0, last.pages.end.0);
        let rows = directory.leaves.iter();
        let entries = rows.clone().map(|row| u64::from(row.entries)).sum();
        let own = rows.filter(|row| row.object == self.object);
        let own: u64 = own.map(|row| u64::from(row.stored)).sum();
        let next = self.maker.fresh_name();
        let sealer = self.sealer.replace(sealer(&self.maker, next));
        self.object = next;
        let sealer = sealer.expect("absent only while a leaf is written");
        let sealed = self
            .maker
            .bucket
            .world()
            .compute(move || sealer.finish(&directory.encode()));
        let (body, reference) = sealed.await;
        self.maker.put(Kind::MapPart, &reference, body).await?;
        let whole = own + u64::from(reference.stored);
        self.tally.born.push(Entry {
            id: reference.id,
            kind: Kind::MapPart,
            epoch: reference.epoch,
            bytes: reference.bytes,
            birth: 0,
            whole,
            live: whole,
        });
        self.parts.push(Part {
            first: pages.start.0,
            end: pages.end.0,
            entries,
            directory: reference,
        });
        Ok(())
    }
}

fn sealer<W: World>(maker: &Maker<W>, object: ObjectName) -> Sealer {
    Sealer::new(
        Kind::MapPart,
        object,
        maker.key().as_ref(),
        maker.compression(),
    )
}
