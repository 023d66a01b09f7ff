//! A new data key for one volume: what is sealed from then on is sealed under it, and what is there stays
//! readable under the old ones.
//!
//! ```text
//! open:      the owner's next publish lists it      -> seals from there on, within the epoch
//! detached:  whoever is asked swaps the root        -> seals from the next open on
//! ```
//!
//! A key is listed with the epoch in which it began. An object is of one that began in the object's epoch, or of the
//! one before them: a reader tries them, the newest first, and there is hardly ever more than one (decision 0018).
//! A key is used only once a root in the store lists it, and roots keep all that they list: so whoever
//! reads a root that names an object has its key, also a fork, which takes the list over.
//!
//! Deliberately absent: sealing old objects again.

use blockcache::{Epoch, Id};
use world::World;

use super::bucket::Bucket;
use super::home::Swapped;
use super::keys::{Secret, Wrapped};
use super::restore::{in_use, outrun};
use super::root::{DataKey, KEYS_MAX, Root, State};
use super::{Volume, VolumeError, VolumeName, VolumeState};

/// Bytes at the beginning of a key's id that follow from the request that it was made for, so that a repeated one finds
/// it. The others are random: the same request may make two keys, of which one is listed, and no id may wrap both.
const REQUEST_BYTES: usize = 8;

/// A data key that no root lists yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDataKey {
    id: [u8; 16],
    wrapped: Wrapped,
}

/// A data key that the root lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataKeyView {
    pub id: Id,
    /// The epoch in which it began to seal.
    pub from_epoch: Epoch,
    /// All that are listed, and how many more can be.
    pub keys: usize,
    pub left: usize,
}

/// What there is to do for a new data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing: an earlier call of the same request did it.
    Done(DataKeyView),
    /// To be carried by a publish.
    New(NewDataKey),
}

impl NewDataKey {
    /// Whether both were made for the same request.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        request_of(&self.id) == request_of(&other.id)
    }
}

impl<W: World> Volume<W> {
    /// Makes a data key, unless the same request has brought one already. It seals nothing before a publish has
    /// listed it.
    pub fn new_data_key(&self, request: Id) -> Result<Renewal, VolumeError> {
        let state = self.inner.state.borrow();
        self.inner.bucket.new_data_key(&state.stored.root, request)
    }
}

impl<W: World> Bucket<W> {
    /// Gives a detached volume a new data key. Refused while it is open: then its owner alone can.
    ///
    /// The epoch is raised, as by all else that changes a root which nobody owns: so no log takes it for its own.
    pub async fn renew_data_key(
        &self,
        name: &str,
        request: Id,
    ) -> Result<DataKeyView, VolumeError> {
        let name = VolumeName::parse(name)?;
        let Some(base) = self.read_root(&name).await? else {
            return Err(VolumeError::Invalid(format!(
                "there is no volume `{name}` in this prefix: check the name, and `storage.url`"
            )));
        };
        let key = match self.new_data_key(&base.root, request)? {
            Renewal::Done(there) => return Ok(there),
            Renewal::New(key) => key,
        };
        let root = renewed(&base.root, &key, Id(self.world().random_id()))?;
        let now = match Box::pin(self.swap(&name, &base, root)).await? {
            Swapped::Landed(now) | Swapped::Lost(now) => now,
        };
        match listed(&now.root, &key.id) {
            Some(there) => Ok(there),
            None => Err(outrun(&now.root)),
        }
    }

    fn new_data_key(&self, root: &Root, request: Id) -> Result<Renewal, VolumeError> {
        let Some(keys) = self.prefix_keys() else {
            return Err(VolumeError::Invalid(format!(
                "volume `{}` has no data key: this prefix is not encrypted",
                root.name
            )));
        };
        if let Some(there) = listed(root, &request.0) {
            return Ok(Renewal::Done(there));
        }
        let own = root.volumes.first().map_or(0, |own| own.keys.len());
        if own >= KEYS_MAX {
            return Err(VolumeError::Invalid(format!(
                "volume `{0}` has {KEYS_MAX} data keys, which is the most. A fork begins with one: make a fork \
                 (`glidefs fork {0} NEW`), let it copy what it shares (`glidefs gc run NEW --flatten`), and go on \
                 with that",
                root.name
            )));
        }
        let mut secret = [0; 32];
        self.world().fill_random(&mut secret);
        let mut id = request.0;
        self.world().fill_random(&mut id[REQUEST_BYTES..]);
        Ok(Renewal::New(NewDataKey {
            id,
            wrapped: keys.wrap(root.volume, id, &Secret::new(secret)),
        }))
    }
}

/// Lists the key, which seals in this epoch from here on. Without effect where one of the same request is listed, or
/// the list is full: whoever asked looks for it.
pub(crate) fn add(root: &mut Root, key: &NewDataKey) {
    let is_there = listed(root, &key.id).is_some();
    let from_epoch = root.epoch;
    let Some(own) = root.volumes.first_mut() else {
        return;
    };
    // A plain volume stays plain.
    if is_there || own.keys.is_empty() || own.keys.len() >= KEYS_MAX {
        return;
    }
    own.keys.push(DataKey {
        id: key.id,
        from_epoch,
        wrapped: key.wrapped,
    });
}

fn request_of(id: &[u8; 16]) -> Option<&[u8; REQUEST_BYTES]> {
    id.first_chunk()
}

/// The volume's own key that was made for a request.
fn listed(root: &Root, request: &[u8; 16]) -> Option<DataKeyView> {
    let keys = &root.volumes.first()?.keys;
    let found = keys
        .iter()
        .find(|key| request_of(&key.id) == request_of(request))?;
    Some(DataKeyView {
        id: Id(found.id),
        from_epoch: Epoch(found.from_epoch),
        keys: keys.len(),
        left: KEYS_MAX.saturating_sub(keys.len()),
    })
}

fn renewed(base: &Root, key: &NewDataKey, nonce: Id) -> Result<Root, VolumeError> {
    match base.state {
        State::Detached => {}
        State::Open => return Err(in_use(base)),
        State::Pending | State::Suspended | State::Deleted => {
            let state = VolumeState::from(base.state);
            return Err(VolumeError::Invalid(format!(
                "volume `{}` cannot be given a new data key: it is {state:?}",
                base.name
            )));
        }
    }
    let mut root = base.clone();
    root.predecessor = Some(base.as_predecessor());
    root.epoch += 1;
    root.nonce = nonce.0;
    add(&mut root, key);
    Ok(root)
}
