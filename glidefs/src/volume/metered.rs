//! The store with every request counted: by kind, outcome and latency, and for the volume whose object
//! it is about. Adds nothing else: what the store answers is what the caller gets.

use std::rc::Rc;

use bytes::Bytes;
use world::store::Part;
use world::{ETag, Listed, Object, Store, StoreError, World};

use super::name::VOLUMES;
use crate::meter::store::{Done, Kind, Outcome, StoreMeter};

/// A store and what is counted of it. A cheap handle.
#[derive(Clone, Debug)]
pub struct Metered<W: World> {
    world: W,
    store: W::Store,
    meter: Rc<StoreMeter>,
}

/// One request.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    kind: Kind,
    key: &'a str,
    sent_bytes: usize,
}

fn asked(kind: Kind, key: &str, sent_bytes: usize) -> Asked<'_> {
    Asked {
        kind,
        key,
        sent_bytes,
    }
}

impl<W: World> Metered<W> {
    pub fn new(world: W, store: W::Store) -> Self {
        Self {
            world,
            store,
            meter: Rc::default(),
        }
    }

    pub(crate) fn meter(&self) -> &StoreMeter {
        &self.meter
    }

    async fn count<T>(
        &self,
        asked: Asked<'_>,
        request: impl Future<Output = Result<T, StoreError>>,
        received_bytes: impl FnOnce(&T) -> usize,
    ) -> Result<T, StoreError> {
        let call = self.meter.call(asked.kind, volume_of(asked.key));
        let started = self.world.now();
        let answer = request.await;
        let (outcome, sent, received) = match &answer {
            Ok(found) => (Outcome::Ok, asked.sent_bytes, received_bytes(found)),
            Err(error) => (Outcome::Error(error.kind), 0, 0),
        };
        let bytes = |count| u64::try_from(count).expect("usize fits u64");
        call.ends(Done {
            outcome,
            took: self.world.now() - started,
            sent_bytes: bytes(sent),
            received_bytes: bytes(received),
        });
        answer
    }
}

impl<W: World> Store for Metered<W> {
    async fn get(&self, key: &str, part: Part) -> Result<Object, StoreError> {
        let request = self.store.get(key, part);
        let len = |object: &Object| object.bytes.len();
        self.count(asked(Kind::Get, key, 0), request, len).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<ETag, StoreError> {
        let len = body.len();
        let request = self.store.create(key, body);
        let asked = asked(Kind::Create, key, len);
        self.count(asked, request, |_| 0).await
    }

    async fn replace(&self, key: &str, seen: &ETag, body: Bytes) -> Result<ETag, StoreError> {
        let len = body.len();
        let request = self.store.replace(key, seen, body);
        let asked = asked(Kind::Replace, key, len);
        self.count(asked, request, |_| 0).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let request = self.store.list(prefix, after, count_max);
        let asked = asked(Kind::List, prefix, 0);
        self.count(asked, request, |_| 0).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let request = self.store.delete(key);
        let asked = asked(Kind::Delete, key, 0);
        self.count(asked, request, |()| 0).await
    }

    fn keeps_versions(&self) -> bool {
        self.store.keeps_versions()
    }
}

/// The volume that an object belongs to; none for those of the prefix.
fn volume_of(key: &str) -> Option<&str> {
    let (name, _) = key.strip_prefix(VOLUMES)?.split_once('/')?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_belongs_to_the_volume_that_its_key_names() {
        assert_eq!(volume_of("nbd/vm-a/root"), Some("vm-a"));
        assert_eq!(volume_of("nbd/vm-a/seg/1-2"), Some("vm-a"));
        assert_eq!(volume_of("nbd/vm-a/"), Some("vm-a"));
        for other in ["keyring", "nbd/", "probe/00", "nbd/vm-a"] {
            assert_eq!(volume_of(other), None, "{other}");
        }
    }
}
