//! Read pins: who reads a snapshot, or a volume that another node owns, sees one cut, and says so in the volume's
//! folder, so that the owner keeps what that cut needs (rule 23), also when the snapshot is deleted.
//!
//! ```text
//! read the root, load the map -> put a pin of its cut -> read the root again: does it still name that content?
//! ```
//!
//! Only what a root still named behind the pin is held by it. A reader that dies leaves its pin; it is taken
//! away when it is old, which costs a reader that lives an error at most, and never data.

use std::time::Duration;

use bytes::Bytes;
use world::{UnixTime, World};

use super::bucket::{Bucket, vanished};
use super::pin::{Pin, Reader};
use super::root::Content;
use super::{Volume, VolumeError, retry};

/// A pin that is older is that of a reader that died.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Before a reader renews its own.
pub(crate) const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A pin that holds the cut that a volume handle reads.
#[derive(Debug)]
pub(crate) struct ReadPin<W: World> {
    bucket: Bucket<W>,
    key: String,
    /// The one that it took the place of. It goes at the next renewal, for a list of many pages that is read right
    /// now may show neither the new one nor an old one that is gone.
    before: Option<String>,
}

impl<W: World> Volume<W> {
    /// Holds what this handle reads. None if the root names something else by now, and what it no longer names may
    /// be gone: then open the volume, or the snapshot, again.
    pub(crate) async fn pin_to_read(&self, host: &str) -> Result<Option<ReadPin<W>>, VolumeError> {
        let pin = self.put_read_pin(host).await?;
        let (bucket, name) = (&self.inner.bucket, &self.inner.name);
        let now = bucket.read_root(name).await?;
        let now = now.ok_or_else(|| vanished(name))?.root;
        let is_held = {
            let seen = &self.inner.state.borrow().stored.root;
            let mut contents = now.snapshots.iter().map(|it| &it.content);
            let is_seen = |it: &Content| it.map == seen.content.map && it.tail == seen.content.tail;
            let is_named = is_seen(&now.content) || contents.any(is_seen);
            now.volume == seen.volume && is_named
        };
        if is_held {
            return Ok(Some(pin));
        }
        pin.release().await?;
        Ok(None)
    }

    /// Another pin in its place, of which the age begins anew. What it holds is held by the old one until then.
    pub(crate) async fn renew_read_pin(
        &self,
        pin: &mut ReadPin<W>,
        host: &str,
    ) -> Result<(), VolumeError> {
        let new = self.put_read_pin(host).await?;
        let (bucket, oldest) = (&new.bucket, pin.before.take());
        if let Some(oldest) = oldest {
            retry::delete(bucket.world(), bucket.store(), &oldest).await?;
        }
        let before = std::mem::replace(&mut pin.key, new.key);
        pin.before = Some(before);
        Ok(())
    }

    async fn put_read_pin(&self, host: &str) -> Result<ReadPin<W>, VolumeError> {
        let bucket = self.inner.bucket.clone();
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
        Ok(ReadPin {
            bucket,
            key,
            before: None,
        })
    }
}

impl<W: World> ReadPin<W> {
    /// Nobody reads by it any more.
    pub(crate) async fn release(self) -> Result<(), VolumeError> {
        let bucket = &self.bucket;
        for key in self.before.iter().chain([&self.key]) {
            retry::delete(bucket.world(), bucket.store(), key).await?;
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
