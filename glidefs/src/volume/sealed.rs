//! The container of every immutable object: frames back to back, an index frame, a trailer.
//!
//! A frame is compressed where that pays, then sealed if the volume has a key. Who refers to a
//! frame names its place, lengths, codec and the first half of the BLAKE3 of its stored bytes; who
//! refers to an index names the whole hash. So all of it is hash-chained from the root, and with a
//! password a frame opens only as what it was sealed as: kind, volume, epoch, object, number, pages.
//!
//! An object id is sealed once: [`Sealer::finish`] consumes. Deliberately absent: reading an object
//! without a reference to it. The trailer is for people and repair tools, and for a sweep that asks whose an object is
//! to which nothing refers ([`volume_of`]); nothing that is read depends on it.

use blockcache::{Id, PageRange};
use bytes::Bytes;

use super::codec::{self, Compression, Packer};
use super::extent::ObjectName;
use super::keys::{SealingKey, Secret, TAG_BYTES};

pub(crate) const FORMAT: u16 = 1;
pub(crate) const MAGIC: [u8; 8] = *b"GLIDEOBJ";
pub(crate) const TRAILER_BYTES: usize = 128;
/// Of the hash at its end.
const TRAILER_CHECK_BYTES: usize = 24;
/// The number of the index frame, which is never that of another frame.
pub(crate) const INDEX_FRAME: u32 = u32::MAX;
/// A decoded index is never larger; the writers' own limits lie far below.
pub(crate) const INDEX_BYTES_MAX: u32 = 32 << 20;
/// Offsets in an object are 32 bits with room to spare.
pub(crate) const OBJECT_BYTES_MAX: usize = 1 << 30;

const OBJECT_KEY: &[u8] = b"glidefs 1 object key";

/// What an object is; part of what its frames are bound to.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub(crate) enum Kind {
    Segment = 1,
    MapPart = 2,
    MapIndex = 3,
    Ledger = 4,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Segment => 1,
            Self::MapPart => 2,
            Self::MapIndex => 3,
            Self::Ledger => 4,
        }
    }

    /// The folder of such objects under the volume.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Segment => "seg",
            Self::MapPart | Self::MapIndex | Self::Ledger => "map",
        }
    }
}

/// A reference to a whole object by its index. Lives in roots and map indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ObjectRef {
    pub(crate) volume: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) id: [u8; 16],
    /// Bytes of the whole object.
    pub(crate) bytes: u64,
    /// The index frame.
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) plain: u32,
    pub(crate) codec: u8,
    pub(crate) hash: [u8; 32],
}

impl ObjectRef {
    pub(crate) fn name(&self) -> ObjectName {
        ObjectName {
            volume: Id(self.volume),
            epoch: blockcache::Epoch(self.epoch),
            id: Id(self.id),
        }
    }

    /// What a reference must satisfy before anything is read or allocated by it.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let end = u64::from(self.offset) + u64::from(self.stored);
        let stored_max = u64::from(self.plain) + TAG_BYTES as u64;
        if self.plain > INDEX_BYTES_MAX || self.stored == 0 || u64::from(self.stored) > stored_max {
            return Err("a reference to an index has impossible lengths");
        }
        if end > self.bytes || self.bytes > OBJECT_BYTES_MAX as u64 {
            return Err("a reference to an index lies outside of its object");
        }
        Ok(())
    }

    /// The index frame.
    pub(crate) fn target(&self, kind: Kind) -> Target {
        Target {
            kind,
            object: self.name(),
            offset: self.offset,
            stored: self.stored,
            frame: Frame {
                number: INDEX_FRAME,
                pages: PageRange::new(0, 0),
                codec: self.codec,
                plain: self.plain,
            },
            hash: Hash::Whole(self.hash),
        }
    }
}

/// A frame and all that its bytes are checked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) object: ObjectName,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) frame: Frame,
    pub(crate) hash: Hash,
}

/// BLAKE3 of stored bytes, as far as a reference holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Half([u8; 16]),
    Whole([u8; 32]),
}

impl Hash {
    fn fits(&self, bytes: &[u8]) -> bool {
        let hash = blake3::hash(bytes);
        match self {
            Self::Half(half) => hash.as_bytes().starts_with(half),
            Self::Whole(whole) => hash.as_bytes() == whole,
        }
    }
}

/// What is known of a frame by whoever refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) number: u32,
    pub(crate) pages: PageRange,
    pub(crate) codec: u8,
    pub(crate) plain: u32,
}

/// Where a frame was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) number: u32,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) codec: u8,
    pub(crate) hash: [u8; 32],
}

impl Placed {
    pub(crate) fn short_hash(&self) -> [u8; 16] {
        *self.hash.first_chunk().expect("16 of 32")
    }
}

/// One object in the making.
#[derive(Debug)]
pub(crate) struct Sealer {
    kind: Kind,
    name: ObjectName,
    key: Option<SealingKey>,
    /// Boxed: writers of the map carry a sealer through all that they await.
    packer: Box<Packer>,
    bytes: Vec<u8>,
    frames: u32,
}

impl Sealer {
    /// `key` is the volume's data key of now, if it has one. The id in `name` must be fresh.
    pub(crate) fn new(
        kind: Kind,
        name: ObjectName,
        key: Option<&Secret>,
        compression: Compression,
    ) -> Self {
        Self {
            kind,
            name,
            key: key.map(|key| object_key(key, name.id)),
            packer: Box::new(Packer::new(compression)),
            bytes: Vec::new(),
            frames: 0,
        }
    }

    /// Makes room for so many bytes more, where it is known beforehand: an object that grows bit by bit
    /// is copied as often, and keeps up to twice its memory until it is uploaded.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve_exact(bytes);
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the next frame.
    pub(crate) fn push(&mut self, pages: PageRange, plain: &[u8]) -> Placed {
        let number = self.frames;
        assert!(number < INDEX_FRAME, "an object holds fewer frames");
        self.frames += 1;
        self.put(number, pages, plain)
    }

    /// Appends index and trailer: the object's bytes, and how to refer to it.
    pub(crate) fn finish(mut self, index: &[u8]) -> (Bytes, ObjectRef) {
        let plain = length(index.len());
        assert!(plain <= INDEX_BYTES_MAX, "the writers bound their indexes");
        let placed = self.put(INDEX_FRAME, PageRange::new(0, 0), index);
        self.trailer(placed, plain);
        let reference = ObjectRef {
            volume: self.name.volume.0,
            epoch: self.name.epoch.0,
            id: self.name.id.0,
            bytes: self.bytes.len() as u64,
            offset: placed.offset,
            stored: placed.stored,
            plain,
            codec: placed.codec,
            hash: placed.hash,
        };
        (Bytes::from(self.bytes), reference)
    }

    fn put(&mut self, number: u32, pages: PageRange, plain: &[u8]) -> Placed {
        // Packed, sealed and hashed where it stays.
        let start = self.bytes.len();
        let codec = self.packer.append(plain, &mut self.bytes);
        if let Some(key) = &self.key {
            let frame = Frame {
                number,
                pages,
                codec,
                plain: length(plain.len()),
            };
            let about = about(self.kind, self.name, &frame);
            let tag = key.seal(number, &about, &mut self.bytes[start..]);
            self.bytes.extend_from_slice(&tag);
        }
        let stored = &self.bytes[start..];
        let placed = Placed {
            number,
            offset: length(start),
            stored: length(stored.len()),
            codec,
            hash: *blake3::hash(stored).as_bytes(),
        };
        assert!(
            self.bytes.len() <= OBJECT_BYTES_MAX,
            "the writers bound their objects"
        );
        placed
    }

    fn trailer(&mut self, index: Placed, plain: u32) {
        let start = self.bytes.len();
        let out = &mut self.bytes;
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[self.kind.byte(), index.codec]);
        out.extend_from_slice(&self.frames.to_le_bytes());
        out.extend_from_slice(&self.name.volume.0);
        out.extend_from_slice(&self.name.id.0);
        out.extend_from_slice(&self.name.epoch.0.to_le_bytes());
        out.extend_from_slice(&index.offset.to_le_bytes());
        out.extend_from_slice(&index.stored.to_le_bytes());
        out.extend_from_slice(&plain.to_le_bytes());
        out.extend_from_slice(&[u8::from(self.key.is_some()), 0, 0, 0]);
        out.extend_from_slice(&index.hash);
        let hash = blake3::hash(&out[start..]);
        out.extend_from_slice(&hash.as_bytes()[..TRAILER_CHECK_BYTES]);
        assert_eq!(
            out.len() - start,
            TRAILER_BYTES,
            "the trailer has a fixed size"
        );
    }
}

/// Which volume an object says that it is of, by its last bytes. For who decides about an object that nothing refers to;
/// a reader believes none of it.
pub(crate) fn volume_of(end: &[u8]) -> Option<Id> {
    let trailer = end.last_chunk::<TRAILER_BYTES>()?;
    let (said, check) = trailer.split_at(TRAILER_BYTES - TRAILER_CHECK_BYTES);
    let is_whole = blake3::hash(said).as_bytes().starts_with(check);
    let volume = *said[16..].first_chunk().expect("within the trailer");
    (is_whole && said.starts_with(&MAGIC)).then_some(Id(volume))
}

/// Checks, opens and decodes a frame that one of these keys has sealed; where there are none, it is plain. That its
/// bytes are the right ones is known before any key is tried, so that a second key is met by what the first did not seal,
/// and not by damage.
pub(crate) fn open(
    target: &Target,
    keys: &[Secret],
    stored: &[u8],
) -> Result<Vec<u8>, &'static str> {
    if !target.hash.fits(stored) {
        return Err("its bytes are not those that were referred to (hash)");
    }
    let frame = &target.frame;
    let plain_len = usize::try_from(frame.plain).map_err(|_wide| "its length is impossible")?;
    if keys.is_empty() {
        return codec::decompress(frame.codec, stored, plain_len);
    }
    let about = about(target.kind, target.object, frame);
    for key in keys {
        // Opened in place, and nobody says what is left there by a key that does not fit.
        let mut opened = stored.to_vec();
        let key = object_key(key, target.object.id);
        if let Some(packed) = key.open(frame.number, &about, &mut opened) {
            return codec::decompress(frame.codec, packed, plain_len);
        }
    }
    Err("it was not sealed as what it is referred to (key or position)")
}

fn object_key(data_key: &Secret, id: Id) -> SealingKey {
    data_key.derive(&id.0, OBJECT_KEY).sealing()
}

/// The associated data: everything that a frame is bound to.
fn about(kind: Kind, name: ObjectName, frame: &Frame) -> [u8; 68] {
    let mut out = [0; 68];
    out[..2].copy_from_slice(&FORMAT.to_le_bytes());
    out[2] = kind.byte();
    out[3] = frame.codec;
    out[4..8].copy_from_slice(&frame.number.to_le_bytes());
    out[8..16].copy_from_slice(&name.epoch.0.to_le_bytes());
    out[16..32].copy_from_slice(&name.volume.0);
    out[32..48].copy_from_slice(&name.id.0);
    out[48..56].copy_from_slice(&frame.pages.start.0.to_le_bytes());
    out[56..64].copy_from_slice(&frame.pages.end.0.to_le_bytes());
    out[64..].copy_from_slice(&frame.plain.to_le_bytes());
    out
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("objects are below 1 GiB")
}
