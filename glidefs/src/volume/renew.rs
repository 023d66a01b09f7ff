//! A new data key for one volume: from the next open on, everything new is sealed under it, and what
//! is there stays readable under the old one.
//!
//! An object's key follows from its epoch (`root.rs`), so a key begins with an epoch. It is raised here,
//! by the same compare-and-swap as by an opener, on a volume that nobody owns: whoever has it open
//! would be fenced. Deliberately absent: sealing old objects again.

use blockcache::{Epoch, Id};
use world::World;

use super::bucket::Bucket;
use super::keys::Secret;
use super::publish::Swapped;
use super::root::{DataKey, KEYS_MAX, Root, State};
use super::{RootView, Volume, VolumeError};

impl<W: World> Bucket<W> {
    /// Gives a detached volume a new data key. Refused while it is open.
    pub async fn renew_data_key(&self, name: &str) -> Result<RootView, VolumeError> {
        let volume: Volume<W> = self.open_volume(name).await?;
        let base = volume.stored();
        let Some(keys) = self.prefix_keys() else {
            return Err(VolumeError::Key(format!(
                "volume `{name}` has no data key: this prefix is not encrypted"
            )));
        };
        let mut secret = [0; 32];
        self.world().fill_random(&mut secret);
        let id = self.world().random_id();
        let key = DataKey {
            id,
            from_epoch: base.root.epoch + 1,
            wrapped: keys.wrap(base.root.volume, id, &Secret::new(secret)),
        };
        let root = renewed(&base.root, key, Id(self.world().random_id()))?;
        match volume.swap(&base, root).await? {
            Swapped::Landed(now) => Ok(now.root.view(&now.etag)),
            Swapped::Lost(now) => Err(in_use(&now.root)),
        }
    }
}

fn renewed(base: &Root, key: DataKey, nonce: Id) -> Result<Root, VolumeError> {
    if base.state != State::Detached {
        return Err(in_use(base));
    }
    let mut root = base.clone();
    let own = root
        .volumes
        .first_mut()
        .expect("a root names itself, it was checked");
    if own.keys.len() >= KEYS_MAX {
        return Err(VolumeError::Invalid(format!(
            "volume `{}` has {KEYS_MAX} data keys, which is the most: copy it into a new volume",
            base.name
        )));
    }
    own.keys.push(key);
    root.predecessor = Some(base.as_predecessor());
    root.epoch = key.from_epoch;
    root.nonce = nonce.0;
    Ok(root)
}

fn in_use(root: &Root) -> VolumeError {
    VolumeError::Owned {
        name: root.name.clone(),
        owner: format!(
            "{}: give it up first (`glidefs export delete {}` keeps the data), then try again",
            root.owner_text(),
            root.name
        ),
        epoch: Epoch(root.epoch),
    }
}
