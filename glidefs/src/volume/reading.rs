//! Read pins: who reads a snapshot, or a volume that another node owns, sees one cut, and says so in the volume's
//! folder, so that the owner keeps what that cut needs (rule 23), also when the snapshot is deleted.
//!
//! ```text
//! read the root, load the map -> put a pin of its cut -> read the root again: does it still name that content?
//! ```
//!
//! Of a group that is all members at one moment: a pin in each folder, and one look at the group behind all of them
//! (`docs/model.md`, mistakes `reads-apart`, `reader-trusts-first-look`).
//!
//! Only what a root still named behind the pin is held by it. A reader that dies leaves its pin; it is taken
//! away when it is old, which costs a reader that lives an error at most, and never data.

use std::time::Duration;

use bytes::Bytes;
use world::{UnixTime, World};

use super::bucket::Bucket;
use super::pin::{Pin, Reader};
use super::root::{Content, Root};
use super::{Members, Volume, VolumeError, VolumeName, retry};

/// A pin that is older is that of a reader that died.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Before a reader renews its own.
pub(crate) const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Pins that hold what handles of volumes read.
#[derive(Debug)]
pub(crate) struct ReadPin<W: World> {
    bucket: Bucket<W>,
    held: Vec<Held>,
}

/// One pin.
#[derive(Debug)]
struct Held {
    key: String,
    /// The one that it took the place of. It goes at the next renewal, for a list of many pages that is read right
    /// now may show neither the new one nor an old one that is gone.
    before: Option<String>,
}

impl<W: World> Volume<W> {
    /// Holds what this handle reads. None if the root names something else by now, and what it no longer names may
    /// be gone: then open the volume, or the snapshot, again.
    pub(crate) async fn pin_to_read(&self, host: &str) -> Result<Option<ReadPin<W>>, VolumeError> {
        Box::pin(self.alone().pin_to_read(host)).await
    }

    /// Another pin in its place, of which the age begins anew. What it holds is held by the old one until then.
    pub(crate) async fn renew_read_pin(
        &self,
        pin: &mut ReadPin<W>,
        host: &str,
    ) -> Result<(), VolumeError> {
        Box::pin(self.alone().renew_read_pin(pin, host)).await
    }

    /// Whether what this handle reads is held by a pin that was there before `now` was read.
    fn is_held(&self, now: &Root) -> bool {
        let seen = &self.inner.state.borrow().stored.root;
        let mut contents = now.snapshots.iter().map(|it| &it.content);
        let is_seen = |it: &Content| it.map == seen.content.map && it.tail == seen.content.tail;
        let is_named = is_seen(&now.content) || contents.any(is_seen);
        now.volume == seen.volume && is_named
    }

    async fn put_read_pin(&self, host: &str) -> Result<String, VolumeError> {
        let bucket = &self.inner.bucket;
        let content = {
            let state = self.inner.state.borrow();
            let content = &state.stored.root.content;
            (content.cut_epoch, content.cut_seq)
        };
        let pin = Pin {
            child: bucket.world().random_id(),
            name: self.inner.name.to_string(),
            cut: Some(content),
            over: None,
            reader: Some(Reader::new(host, bucket.world().unix_time().0)),
        };
        let key = pin.key(self.inner.name.as_str());
        let body = Bytes::from(pin.encode(bucket.root_mac()));
        retry::create(bucket.world(), bucket.store(), &key, body).await?;
        Ok(key)
    }
}

impl<W: World> Members<W> {
    /// Holds what these handles read: a pin in the folder of each, and one more look at all of them. None if that shows
    /// something else.
    pub(crate) async fn pin_to_read(&self, host: &str) -> Result<Option<ReadPin<W>>, VolumeError> {
        let bucket = self.asked().inner.bucket.clone();
        let mut held = Vec::with_capacity(self.volumes().len());
        for volume in self.volumes() {
            let key = volume.put_read_pin(host).await?;
            held.push(Held { key, before: None });
        }
        let names: Vec<VolumeName> = {
            let names = self.volumes().iter().map(|it| it.inner.name.clone());
            names.collect()
        };
        let now = Box::pin(bucket.read_roots(&names)).await?;
        #[cfg(feature = "planted")]
        let is_blind = names.len() > 1 && bucket.is_planted(super::Planted::ReadsApart);
        #[cfg(not(feature = "planted"))]
        let is_blind = false;
        let pin = ReadPin { bucket, held };
        let mut both = self.volumes().iter().zip(&now);
        if is_blind || both.all(|(volume, now)| volume.is_held(&now.root)) {
            return Ok(Some(pin));
        }
        pin.release().await?;
        Ok(None)
    }

    /// Others in the place of all pins.
    pub(crate) async fn renew_read_pin(
        &self,
        pin: &mut ReadPin<W>,
        host: &str,
    ) -> Result<(), VolumeError> {
        for (volume, held) in self.volumes().iter().zip(&mut pin.held) {
            let new = volume.put_read_pin(host).await?;
            if let Some(oldest) = held.before.take() {
                let bucket = &pin.bucket;
                retry::delete(bucket.world(), bucket.store(), &oldest).await?;
            }
            held.before = Some(std::mem::replace(&mut held.key, new));
        }
        Ok(())
    }
}

impl<W: World> ReadPin<W> {
    /// Nobody reads by it any more.
    pub(crate) async fn release(self) -> Result<(), VolumeError> {
        let bucket = &self.bucket;
        for held in &self.held {
            for key in held.before.iter().chain([&held.key]) {
                retry::delete(bucket.world(), bucket.store(), key).await?;
            }
        }
        Ok(())
    }
}

impl Reader {
    /// By the clock of who asks. Both are wrong by less than days.
    pub(crate) fn is_gone(&self, now: UnixTime) -> bool {
        let age = Duration::from_millis(now.0.saturating_sub(self.since_ms));
        age > AGE_MAX
    }
}
