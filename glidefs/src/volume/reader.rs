//! Reading by reference: a range of an object, checked, opened, decoded. An error names the object.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use blockcache::{Epoch, Id};
use bytes::Bytes;
use world::store::Part;
use world::{Store, StoreError, StoreErrorKind, World};

use super::bucket::Bucket;
use super::extent::ObjectName;
use super::keyring::PrefixKeys;
use super::keys::Secret;
use super::name::{VOLUMES, object_key};
use super::root::{NamedVolume, Root};
use super::sealed::{self, Kind, ObjectRef, Target};
use super::{VolumeError, retry};

/// What is wrong with an object that was cut.
const TOO_SHORT: &str = "it ends before a frame that it should hold";

/// The volumes that a map names, with their keys: from the root. Shared by all who read or seal for one
/// handle, so that a new data key is known to work that has begun before it.
#[derive(Debug)]
pub(crate) struct Volumes(Vec<Named>);

#[derive(Debug)]
struct Named {
    volume: Id,
    name: String,
    /// As the root lists them. Grows, for the volume itself.
    keys: RefCell<Vec<OpenKey>>,
}

#[derive(Debug)]
struct OpenKey {
    id: [u8; 16],
    from_epoch: u64,
    secret: Secret,
}

/// An object as a reader needs it.
#[derive(Debug)]
pub(crate) struct Address {
    pub(crate) key: String,
    /// Of which one has sealed it; none in a plain prefix.
    data_keys: Vec<Secret>,
}

impl Volumes {
    pub(crate) fn new(root: &Root, keys: Option<&PrefixKeys>) -> Result<Self, VolumeError> {
        let named = root.volumes.iter().map(|named| {
            Ok(Named {
                volume: Id(named.volume),
                name: named.name.clone(),
                keys: RefCell::new(opened(root, named, keys)?),
            })
        });
        named.collect::<Result<_, _>>().map(Self)
    }

    /// Takes the volume's own keys from a newer root of it, which is in the store: the newest seals from here on.
    pub(crate) fn learn(&self, root: &Root, keys: Option<&PrefixKeys>) -> Result<(), VolumeError> {
        let (Some(own), Some(named)) = (self.0.first(), root.volumes.first()) else {
            return Ok(());
        };
        let is_known = {
            let known = own.keys.borrow();
            let listed = named.keys.iter().map(|key| key.id);
            known.iter().map(|key| key.id).eq(listed)
        };
        if !is_known {
            own.keys.replace(opened(root, named, keys)?);
        }
        Ok(())
    }

    /// The volume whose root this is.
    pub(crate) fn own(&self) -> Id {
        self.0.first().expect("a root names itself").volume
    }

    fn root_key(&self) -> String {
        let own = self.0.first().expect("a root names itself");
        format!("{VOLUMES}{}/root", own.name)
    }

    /// The volume's place in the root's list.
    pub(crate) fn number(&self, volume: Id) -> Option<u16> {
        let place = self.0.iter().position(|named| named.volume == volume)?;
        u16::try_from(place).ok()
    }

    pub(crate) fn id(&self, number: u16) -> Option<Id> {
        Some(self.0.get(usize::from(number))?.volume)
    }

    /// The key under which the volume itself seals now.
    pub(crate) fn writing_key(&self, epoch: Epoch) -> Option<Secret> {
        self.0.first()?.keys(epoch).into_iter().next()
    }

    pub(crate) fn address(&self, kind: Kind, object: ObjectName) -> Result<Address, VolumeError> {
        let number = self.number(object.volume).ok_or_else(|| {
            let own = self.0.first().map_or("", |own| own.name.as_str());
            let what = format!(
                "its map names a volume {} that it does not list",
                object.volume
            );
            VolumeError::damaged(&format!("nbd/{own}/root"), what)
        })?;
        let named = &self.0[usize::from(number)];
        Ok(Address {
            key: object_key(&named.name, kind.folder(), object.epoch, object.id),
            data_keys: named.keys(object.epoch),
        })
    }
}

impl Named {
    /// Keys that may have sealed an object of this epoch, the newest first: those that were new in it, and the one
    /// with which it began.
    fn keys(&self, epoch: Epoch) -> Vec<Secret> {
        let keys = self.keys.borrow();
        let begun = keys.iter().rev();
        let begun = begun.skip_while(|key| key.from_epoch > epoch.0);
        let mut found = Vec::new();
        for key in begun {
            found.push(key.secret.clone());
            if key.from_epoch < epoch.0 {
                break;
            }
        }
        if found.is_empty() {
            found.extend(keys.first().map(|key| key.secret.clone()));
        }
        found
    }
}

/// The data keys of a volume that a root names.
fn opened(
    root: &Root,
    named: &NamedVolume,
    keys: Option<&PrefixKeys>,
) -> Result<Vec<OpenKey>, VolumeError> {
    let open = named.keys.iter().map(|key| {
        let keys = keys.expect("a root with data keys was authenticated by the prefix key");
        let secret = keys.unwrap(named.volume, key.id, &key.wrapped);
        let secret = secret.ok_or_else(|| {
            let what = format!("data key {} does not open", Id(key.id));
            VolumeError::damaged(&format!("nbd/{}/root", root.name), what)
        })?;
        Ok(OpenKey {
            id: key.id,
            from_epoch: key.from_epoch,
            secret,
        })
    });
    open.collect()
}

/// Reads objects of some volumes.
#[derive(Clone, Debug)]
pub(crate) struct Reader<W: World> {
    pub(crate) bucket: Bucket<W>,
    pub(crate) volumes: Rc<Volumes>,
}

impl<W: World> Reader<W> {
    /// A frame's plain bytes.
    pub(crate) async fn frame(&self, target: Target) -> Result<Vec<u8>, VolumeError> {
        let stored = target.offset..target.offset + target.stored;
        let got = self.stored(target.kind, target.object, stored).await?;
        self.open(target, got).await
    }

    /// A range of an object's bytes, as they are in the store.
    pub(crate) async fn stored(
        &self,
        kind: Kind,
        object: ObjectName,
        range: Range<u32>,
    ) -> Result<Bytes, VolumeError> {
        let key = self.volumes.address(kind, object)?.key;
        let part = Part::Range(u64::from(range.start)..u64::from(range.end));
        let (world, store) = (self.bucket.world(), self.bucket.store());
        let got = match retry::get(world, store, &key, part).await {
            Ok(got) => got.bytes,
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                let root = self.volumes.root_key();
                return Err(VolumeError::Missing { key, root });
            }
            Err(error) if error.kind == StoreErrorKind::Refused => {
                return Err(self.refused(error, u64::from(range.end)).await);
            }
            Err(error) => return Err(error.into()),
        };
        if u32::try_from(got.len()) == Ok(range.end - range.start) {
            Ok(got)
        } else {
            Err(VolumeError::damaged(&key, TOO_SHORT))
        }
    }

    /// Why a part that ends there is refused. Stores say the same of what we may not read and of what the object does not
    /// have; the size tells which. One that was cut short is damaged, and nobody's credentials help.
    async fn refused(&self, error: StoreError, end: u64) -> VolumeError {
        match self.bucket.store().get(&error.key, Part::Range(0..0)).await {
            Ok(object) if object.size < end => VolumeError::damaged(&error.key, TOO_SHORT),
            _ => error.into(),
        }
    }

    /// Checks, opens and decodes a frame of which the stored bytes are here.
    pub(crate) async fn open(&self, target: Target, stored: Bytes) -> Result<Vec<u8>, VolumeError> {
        let Address { key, data_keys } = self.volumes.address(target.kind, target.object)?;
        let opening = move || sealed::open(&target, &data_keys, &stored);
        let opened = self.bucket.world().compute(opening).await;
        opened.map_err(|what| VolumeError::damaged(&key, what))
    }

    /// The plain bytes of an object's index.
    pub(crate) async fn index(
        &self,
        kind: Kind,
        reference: &ObjectRef,
    ) -> Result<Vec<u8>, VolumeError> {
        self.frame(reference.target(kind)).await
    }

    /// An error about an object's content.
    pub(crate) fn damaged(&self, kind: Kind, object: ObjectName, what: &str) -> VolumeError {
        match self.volumes.address(kind, object) {
            Ok(address) => VolumeError::damaged(&address.key, what),
            Err(error) => error,
        }
    }
}
