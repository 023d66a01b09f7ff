//! The bucket, opened when the store first answers: a restart during an outage must not wait for
//! it (rule 14).

use std::cell::{Cell, RefCell};
use std::time::Duration;

use world::sync::Semaphore;
use world::{Instant, StoreError, StoreErrorKind, World};

use super::decide::Seen;
use crate::meter::store::StoreMeter;
use crate::volume::{Bucket, BucketConfig, Members, Metered, RootView, Volume, VolumeError};

/// The way to the store.
#[derive(Debug)]
pub struct Shelf<W: World> {
    world: W,
    store: Metered<W>,
    config: BucketConfig,
    bucket: RefCell<Option<Bucket<W>>>,
    /// One opens, the others wait for its outcome.
    opening: Semaphore,
    /// Our password opened nothing: when, and what was said.
    locked_out: RefCell<Option<(Instant, String)>>,
    /// How often the store failed on the way to a bucket, and how the last time.
    failures: Cell<u64>,
    failed: RefCell<Option<StoreError>>,
}

/// So long nobody tries the password again: it costs time and memory on purpose, and all exports would one after the other.
const LOCKED_OUT: Duration = Duration::from_secs(30);

/// What the store knows of a name: for a root, the volume opened at its cut, alone or with all that is published with it.
#[derive(Debug)]
pub(crate) struct Asked<T> {
    pub(crate) seen: Seen,
    pub(crate) volume: Option<T>,
    /// Where nothing was seen: why not.
    pub(crate) trouble: Trouble,
    /// And for how long the store asked to be left alone, if it did.
    pub(crate) retry_after: Option<Duration>,
}

/// What keeps a root from being seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Passing,
    /// The store does not let us: credentials, a clock.
    Refused,
    /// It is there, and our password does not open it.
    Keys,
    Content,
}

impl<W: World> Shelf<W> {
    pub fn new(world: W, store: W::Store, config: BucketConfig) -> Self {
        Self {
            store: Metered::new(world.clone(), store),
            world,
            config,
            bucket: RefCell::default(),
            opening: Semaphore::new(1),
            locked_out: RefCell::default(),
            failures: Cell::default(),
            failed: RefCell::default(),
        }
    }

    /// What was asked of the store since the start.
    pub(crate) fn meter(&self) -> &StoreMeter {
        self.store.meter()
    }

    /// The bucket; its keyring is read and its store is probed on the first call that succeeds.
    pub async fn bucket(&self) -> Result<Bucket<W>, VolumeError> {
        if let Some(bucket) = self.bucket.borrow().clone() {
            return Ok(bucket);
        }
        let before = self.failures.get();
        let _turn = self.opening.acquire().await.expect("never closed");
        if let Some(bucket) = self.bucket.borrow().clone() {
            return Ok(bucket);
        }
        // Somebody was told while we waited: behind each other all exports of a start would wait for hours.
        if let Some(error) = self.failed.borrow().clone()
            && self.failures.get() > before
        {
            return Err(error.into());
        }
        if let Some((at, why)) = &*self.locked_out.borrow()
            && self.world.now() - *at < LOCKED_OUT
        {
            return Err(VolumeError::Password(why.clone()));
        }
        let (world, store) = (self.world.clone(), self.store.clone());
        let opened = Box::pin(Bucket::open(world, store, self.config.clone())).await;
        if let Err(VolumeError::Password(why)) = &opened {
            *self.locked_out.borrow_mut() = Some((self.world.now(), why.clone()));
        }
        if let Err(VolumeError::Store(error)) = &opened {
            self.failures.set(self.failures.get() + 1);
            *self.failed.borrow_mut() = Some(error.clone());
        }
        let bucket = opened?;
        *self.bucket.borrow_mut() = Some(bucket.clone());
        Ok(bucket)
    }

    /// Reads a name's root and opens its volume for reading, without those that are published with it. Only "no such key"
    /// is absence (rule 16); any other failure means that nothing is known.
    pub(crate) async fn ask(&self, name: &str) -> Asked<Volume<W>> {
        let opening = async |bucket: Bucket<W>| Box::pin(bucket.open_volume(name)).await;
        Box::pin(self.ask_store(name, opening, Volume::root)).await
    }

    /// The same of the volume and all that are published with it, at one moment.
    pub(crate) async fn ask_all(&self, name: &str) -> Asked<Members<W>> {
        let opening = async |bucket: Bucket<W>| Box::pin(bucket.open_members(name)).await;
        let root = |members: &Members<W>| members.asked().root();
        Box::pin(self.ask_store(name, opening, root)).await
    }

    async fn ask_store<T>(
        &self,
        name: &str,
        opening: impl AsyncFn(Bucket<W>) -> Result<T, VolumeError>,
        root: impl Fn(&T) -> RootView,
    ) -> Asked<T> {
        match self.opened(name, opening).await {
            Ok(volume) => Asked {
                seen: volume
                    .as_ref()
                    .map_or(Seen::Absent, |it| Seen::Root(root(it))),
                volume,
                trouble: Trouble::Passing,
                retry_after: None,
            },
            Err(error) => Asked {
                trouble: match &error {
                    VolumeError::Store(error) if error.kind == StoreErrorKind::Refused => {
                        Trouble::Refused
                    }
                    VolumeError::Store(_) => Trouble::Passing,
                    VolumeError::Password(_) => Trouble::Keys,
                    _ => Trouble::Content,
                },
                retry_after: error.retry_after(),
                // An outage, or what was read: a node that goes on from its log while the root is
                // not readable would serve what a newer owner may have replaced.
                seen: match error {
                    VolumeError::Store(error) => Seen::Unreachable(error.to_string()),
                    error => Seen::Unreadable(error.to_string()),
                },
                volume: None,
            },
        }
    }

    /// None: it is absent.
    async fn opened<T>(
        &self,
        name: &str,
        opening: impl AsyncFn(Bucket<W>) -> Result<T, VolumeError>,
    ) -> Result<Option<T>, VolumeError> {
        let bucket = self.bucket().await?;
        match opening(bucket.clone()).await {
            Ok(opened) => Ok(Some(opened)),
            // Asked again by itself: what is missing may be some other object than the root.
            Err(error) if may_be_absent(&error) => match bucket.root(name).await? {
                None => Ok(None),
                Some(_) => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

fn may_be_absent(error: &VolumeError) -> bool {
    if let VolumeError::Store(error) = error {
        return error.kind == StoreErrorKind::NotFound;
    }
    matches!(error, VolumeError::Vanished { .. })
}
