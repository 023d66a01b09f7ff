//! The prefix in the object store: its keyring, its list of volumes, and where volumes begin.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use blockcache::Id;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use world::store::Part;
use world::{Store, StoreError, StoreErrorKind, World};
use zeroize::Zeroizing;

use super::codec::Compression;
use super::extent::Extent;
use super::group::GROUPS;
use super::keyring::{Fresh, Keyring, KeyringCost, PrefixKeys, slot_id};
use super::keys::Secret;
use super::ledger::Ledger;
use super::lookup::READS_MAX;
use super::metered::Metered;
use super::name::{KEYRING, VOLUMES, VolumeName};
use super::nodes::{NODES_BYTES_MAX, Nodes};
use super::reader::{Reader, Volumes};
use super::root::{Content, DataKey, NamedVolume, Root, RootOwner, State, Stored, TailSegment};
use super::runs::{Map, MapIndex};
use super::sealed::{Kind, ObjectRef};
use super::tail::Tail;
use super::{
    Owner, RootView, Volume, VolumeError, envelope, probe, replaced, retry, root, segment,
};

/// Volumes that [`Bucket::names`] lists at most: it is for people.
const NAMES_MAX: usize = 100_000;
/// What we advise to keep old versions for: time to bring back what a person deleted by mistake.
const OLD_VERSION_DAYS: u32 = 7;
/// Volumes that are remembered as parents. At the bound all are forgotten.
const PARENTS_MAX: usize = 1024;

/// The prefix in the object store: the keyring and all volumes. A cheap handle; one per shard.
#[derive(Clone, Debug)]
pub struct Bucket<W: World> {
    world: W,
    store: Metered<W>,
    shared: Rc<Shared>,
}

/// How frames are stored.
#[derive(Clone)]
pub struct BucketConfig {
    pub compression: Compression,
    /// Set: everything is sealed under the keyring. Not set: hash-chained.
    pub password: Option<String>,
    /// Of stretching the password, if this node begins the prefix.
    pub cost: KeyringCost,
    /// Where the prefix begins in its bucket, without slashes around it: for what a person is told to set there.
    pub place: String,
    /// A rule broken on purpose, for the simulation to find.
    #[cfg(feature = "planted")]
    pub planted: Option<super::Planted>,
}

impl BucketConfig {
    /// Without a password, at the shipped cost.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            password: None,
            cost: KeyringCost::default(),
            place: String::new(),
            #[cfg(feature = "planted")]
            planted: None,
        }
    }
}

impl std::fmt::Debug for BucketConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketConfig")
            .field("compression", &self.compression)
            .field("encrypted", &self.password.is_some())
            .finish()
    }
}

/// What a look at a prefix found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    pub prefix: Prefix,
    /// The store keeps what is replaced or deleted: [`versions_hint`].
    pub keeps_versions: bool,
}

/// What to do about a store that keeps old versions, for the prefix that begins at `place` in its bucket: the rules
/// themselves, so that nobody has to look for them. They are about that prefix alone: without one, only about what volumes
/// and groups hold, as the bucket may be somebody else's too.
pub fn versions_hint(place: &str) -> String {
    let folders = match place {
        "" => vec![VOLUMES.to_owned(), GROUPS.to_owned()],
        place => vec![format!("{place}/")],
    };
    let rules = folders.iter().map(|folder| {
        let rule = serde_json::json!({
            "Status": "Enabled",
            "Filter": { "Prefix": folder },
            "NoncurrentVersionExpiration": { "NoncurrentDays": OLD_VERSION_DAYS },
            "Expiration": { "ExpiredObjectDeleteMarker": true },
            "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": 1 },
        });
        rule.to_string()
    });
    let rules: Vec<String> = rules.collect();
    let what = match rules.len() {
        1 => "this lifecycle rule",
        _ => "each of these lifecycle rules",
    };
    format!(
        "old versions of replaced and deleted objects stay and are paid for; add {what} \
         to those of the bucket (a put replaces them all, so get, add, put): {} \
         (docs/runbooks/bill-too-high.md)",
        rules.join(" ")
    )
}

/// How far a prefix has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Its keyring is there, and opens.
    Begun,
    /// It has no keyring: the first start makes one, encrypted or plain for good.
    New,
}

#[derive(Debug)]
struct Shared {
    compression: Compression,
    keys: Option<PrefixKeys>,
    nodes: Nodes,
    /// Volumes that were forked, so that the next fork need not look whether they are there.
    parents: RefCell<BTreeSet<VolumeName>>,
    #[cfg(feature = "planted")]
    planted: Option<super::Planted>,
}

/// A volume's name, as a LIST found it.
#[derive(Clone, Debug)]
pub struct FoundName {
    pub name: VolumeName,
    /// A root is all that there is: it is a new volume, or was purged.
    pub is_bare: bool,
}

/// A root with the map that it names, as far as an open reads it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) stored: Stored,
    pub(crate) volumes: Rc<Volumes>,
    pub(crate) map: Map,
    pub(crate) tail: Tail,
}

impl<W: World> Bucket<W> {
    /// Checks that the store can do what is asked of it, then reads or creates the keyring.
    pub async fn open(
        world: W,
        store: Metered<W>,
        config: BucketConfig,
    ) -> Result<Self, VolumeError> {
        if probe::probe(&world, &store).await?.keeps_versions {
            tracing::warn!("the bucket is versioned: {}", versions_hint(&config.place));
        }
        let password = config.password.map(Zeroizing::new);
        let keys = open_keyring(&world, &store, password, config.cost).await?;
        let shared = Rc::new(Shared {
            compression: config.compression,
            keys,
            nodes: Nodes::new(NODES_BYTES_MAX),
            parents: RefCell::default(),
            #[cfg(feature = "planted")]
            planted: config.planted,
        });
        Ok(Self {
            world,
            store,
            shared,
        })
    }

    /// Whether [`Bucket::open`] would succeed. Begins nothing: a new prefix stays without a keyring,
    /// so that whether it is encrypted is decided by its first start.
    pub async fn look(
        world: &W,
        store: &impl Store,
        password: Option<String>,
    ) -> Result<Looked, VolumeError> {
        let keeps_versions = probe::probe(world, store).await?.keeps_versions;
        let prefix = Self::look_at_prefix(world, store, password).await?;
        Ok(Looked {
            prefix,
            keeps_versions,
        })
    }

    async fn look_at_prefix(
        world: &W,
        store: &impl Store,
        password: Option<String>,
    ) -> Result<Prefix, VolumeError> {
        if let Some((keyring, _)) = replaced::read(world, store).await? {
            unlock(world, keyring, password.map(Zeroizing::new)).await?;
            return Ok(Prefix::Begun);
        }
        if let Some(found) = first_key(world, store, VOLUMES, None).await? {
            adopt_plain(world, store, &found, password.is_some()).await?;
        }
        Ok(Prefix::New)
    }

    /// The same prefix with another bound on the map's nodes in memory, so that a test reaches it.
    #[cfg(test)]
    pub(crate) fn with_nodes_bytes(mut self, bytes_max: usize) -> Self {
        self.shared = Rc::new(Shared {
            compression: self.shared.compression,
            keys: self.shared.keys.clone(),
            nodes: Nodes::new(bytes_max),
            parents: RefCell::default(),
            #[cfg(feature = "planted")]
            planted: self.shared.planted,
        });
        self
    }

    pub(crate) fn world(&self) -> &W {
        &self.world
    }

    pub(crate) fn store(&self) -> &Metered<W> {
        &self.store
    }

    pub(crate) fn compression(&self) -> Compression {
        self.shared.compression
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.shared.nodes
    }

    #[cfg(feature = "planted")]
    pub(crate) fn is_planted(&self, rule: super::Planted) -> bool {
        self.shared.planted == Some(rule)
    }

    pub(crate) fn prefix_keys(&self) -> Option<&PrefixKeys> {
        self.shared.keys.as_ref()
    }

    /// It was read here before, as a parent.
    pub(crate) fn has_seen(&self, parent: &VolumeName) -> bool {
        self.shared.parents.borrow().contains(parent)
    }

    pub(crate) fn saw(&self, parent: &VolumeName) {
        let mut parents = self.shared.parents.borrow_mut();
        if parents.len() == PARENTS_MAX {
            parents.clear();
        }
        parents.insert(parent.clone());
    }

    pub(crate) fn root_mac(&self) -> Option<&Secret> {
        Some(&self.shared.keys.as_ref()?.root_mac)
    }

    /// Reads and checks a volume's root; none if the store says that there is no such key.
    pub async fn root(&self, name: &str) -> Result<Option<RootView>, VolumeError> {
        let stored = self.read_root(&VolumeName::parse(name)?).await?;
        Ok(stored.map(|stored| stored.root.view(&stored.etag)))
    }

    /// Names of all volumes, in order, without those that were purged. One LIST of one key for each: it hops from
    /// volume to volume past all their objects; and a GET for each that holds nothing. For people, never steady state.
    pub async fn names(&self) -> Result<Vec<String>, VolumeError> {
        let mut names = Vec::new();
        for found in self.names_after("", NAMES_MAX).await? {
            let is_purged = found.is_bare && self.is_deleted(&found.name).await;
            names.extend((!is_purged).then(|| found.name.to_string()));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The first names behind `after`, at most `count_max`, in the order of their keys; those of volumes that were
    /// purged among them.
    pub async fn names_after(
        &self,
        after: &str,
        count_max: usize,
    ) -> Result<Vec<FoundName>, VolumeError> {
        let mut names = Vec::new();
        // No key that we make has a `~`, and all that we make sort before it.
        let past = |name: &str| format!("{VOLUMES}{name}/~");
        let mut after = (!after.is_empty()).then(|| past(after));
        while names.len() < count_max {
            let keys = retry::list(&self.world, &self.store, VOLUMES, after.as_deref(), 2).await?;
            let mut keys = keys.into_iter().map(|listed| listed.key);
            let Some(key) = keys.next() else {
                break;
            };
            let name = key.strip_prefix(VOLUMES).unwrap_or(&key);
            let name = name.split('/').next().unwrap_or(name);
            if let Ok(volume) = VolumeName::parse(name) {
                let next = keys.next();
                let has_more = next.is_some_and(|next| next.starts_with(&volume.prefix()));
                names.push(FoundName {
                    is_bare: key == volume.root_key() && !has_more,
                    name: volume,
                });
            }
            after = Some(past(name).max(key));
        }
        Ok(names)
    }

    /// One that cannot be read is not hidden.
    async fn is_deleted(&self, name: &VolumeName) -> bool {
        let stored = self.read_root(name).await;
        stored.is_ok_and(|it| it.is_some_and(|it| it.root.state == State::Deleted))
    }

    pub(crate) async fn first_key(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Option<String>, VolumeError> {
        first_key(&self.world, &self.store, prefix, after).await
    }

    /// Creates a volume (rule 16: nothing may be there, or a tombstone that nobody needs) open for `owner`. `nonce` is
    /// that of the root; the intent is durable before the call. May be repeated with the same nonce.
    pub async fn create(
        &self,
        name: &str,
        size_bytes: u64,
        owner: &Owner,
        nonce: Id,
    ) -> Result<Volume<W>, VolumeError> {
        let name = VolumeName::parse(name)?;
        check_size(size_bytes)?;
        let stored = match self.first_key(&name.prefix(), None).await? {
            None => {
                let root = self.first_root(&name, size_bytes, owner, nonce);
                let stored = Box::pin(self.create_root(&name, root)).await?;
                // It landed, its answer was lost, and somebody has taken it over since: not ours any more.
                if stored.root.nonce != nonce.0 {
                    return Err(exists(&name));
                }
                stored
            }
            Some(found) => match Box::pin(self.read_root(&name)).await? {
                // An earlier call of ours landed, and its answer was lost.
                Some(stored) if stored.root.nonce == nonce.0 => stored,
                Some(stored) if stored.root.state == State::Deleted => {
                    let tomb = Box::pin(self.vacant(&name)).await?;
                    let root = self.first_root(&name, size_bytes, owner, nonce);
                    let root = root.over(&tomb.root);
                    Box::pin(self.reuse(&name, &tomb, root)).await?
                }
                Some(_) => return Err(exists(&name)),
                None => {
                    return Err(VolumeError::Invalid(format!(
                        "volume `{name}` has no root, but `{found}` is there: a volume was lost \
                         or half deleted; restore `{}`, or delete everything under `{}`",
                        name.root_key(),
                        name.prefix()
                    )));
                }
            },
        };
        let loaded = Box::pin(self.load(stored)).await?;
        Ok(Volume::new(self.clone(), name, loaded, super::Hold::Held))
    }

    /// Puts a volume's first root where none may be. One with the same nonce, or the same id, is an earlier call's.
    pub(crate) async fn create_root(
        &self,
        name: &VolumeName,
        root: Root,
    ) -> Result<Stored, VolumeError> {
        let (nonce, volume) = (root.nonce, root.volume);
        let body = Bytes::from(root.encode(self.root_mac()));
        let key = name.root_key();
        let mut attempt = 0;
        loop {
            let error = match self.store.create(&key, body.clone()).await {
                Ok(etag) => return Ok(Stored::own(root, etag)),
                Err(error) => error,
            };
            let unclear = matches!(
                error.kind,
                StoreErrorKind::Conflict | StoreErrorKind::Unknown
            );
            if unclear && let Some(stored) = self.read_root(name).await? {
                return if stored.root.nonce == nonce || stored.root.volume == volume {
                    Ok(stored)
                } else {
                    Err(exists(name))
                };
            }
            let repeat = unclear || error.kind == StoreErrorKind::Retry;
            if !repeat || retry::is_last(&error, attempt) {
                return Err(error.into());
            }
            retry::back_off(&self.world, attempt, error.retry_after).await;
            attempt += 1;
        }
    }

    fn first_root(&self, name: &VolumeName, size_bytes: u64, owner: &Owner, nonce: Id) -> Root {
        let root = self.empty_root(name, Id(self.world.random_id()), size_bytes);
        Root {
            owner: Some(RootOwner::new(owner)),
            state: State::Open,
            nonce: nonce.0,
            ..root
        }
    }

    /// Nobody's, with a data key of its own, holding nothing.
    pub(crate) fn empty_root(&self, name: &VolumeName, volume: Id, size_bytes: u64) -> Root {
        let volume = volume.0;
        let epoch = 1;
        let keys = self.shared.keys.as_ref().map(|keys| {
            let mut data_key = [0; 32];
            self.world.fill_random(&mut data_key);
            let id = self.world.random_id();
            let wrapped = keys.wrap(volume, id, &Secret::new(data_key));
            DataKey {
                id,
                from_epoch: epoch,
                wrapped,
            }
        });
        Root {
            volume,
            name: name.to_string(),
            size_bytes,
            epoch,
            generation: 0,
            owner: None,
            state: State::Detached,
            nonce: [0; 16],
            predecessor: None,
            content: Content {
                cut_epoch: epoch,
                cut_seq: 0,
                cut_time_ms: self.world.unix_time().0,
                map: None,
                tail: Vec::new(),
            },
            volumes: vec![NamedVolume {
                volume,
                name: name.to_string(),
                keys: keys.into_iter().collect(),
                unnamed_from: None,
            }],
            snapshots: Vec::new(),
            parent: None,
            boot: None,
            group: None,
            suspend: None,
        }
    }

    /// Opens a volume for reading at its current cut: reads root, then map index and tail in
    /// parallel. Takes nothing.
    pub async fn open_volume(&self, name: &str) -> Result<Volume<W>, VolumeError> {
        let name = VolumeName::parse(name)?;
        let stored = self.read_root(&name).await?;
        let stored = stored.ok_or_else(|| vanished(&name))?;
        Box::pin(self.opened(name, stored)).await
    }

    /// A volume of which the root was read.
    pub(super) async fn opened(
        &self,
        name: VolumeName,
        stored: Stored,
    ) -> Result<Volume<W>, VolumeError> {
        let loaded = Box::pin(self.load(stored)).await?;
        Ok(Volume::new(self.clone(), name, loaded, super::Hold::Free))
    }

    pub(crate) async fn load(&self, stored: Stored) -> Result<Loaded, VolumeError> {
        let volumes = Rc::new(Volumes::new(&stored.root, self.shared.keys.as_ref())?);
        let reader = Reader {
            bucket: self.clone(),
            volumes: Rc::clone(&volumes),
        };
        let content = &stored.root.content;
        let (map, tail) = futures_util::future::try_join(
            load_map(&reader, content.map.as_ref()),
            load_tail(&reader, &content.tail),
        )
        .await?;
        Ok(Loaded {
            stored,
            volumes,
            map,
            tail,
        })
    }
}

pub(crate) async fn load_map<W: World>(
    reader: &Reader<W>,
    map: Option<&ObjectRef>,
) -> Result<Map, VolumeError> {
    let Some(map) = map else {
        return Ok(Map::default());
    };
    let bytes = reader.index(Kind::MapIndex, map).await?;
    let index =
        MapIndex::parse(&bytes).map_err(|what| reader.damaged(Kind::MapIndex, map.name(), what))?;
    let is_own = map.volume == reader.volumes.own().0;
    Ok(Map {
        birth: index.birth,
        runs: index.runs.into_iter().map(Rc::new).collect(),
        ledger: Rc::new(if is_own {
            index.ledger
        } else {
            Ledger::default()
        }),
        forgotten: Rc::default(),
        named: Rc::default(),
    })
}

/// The tail of a root: some indexes at a time, each dropped once it is merged with the others.
async fn load_tail<W: World>(
    reader: &Reader<W>,
    tail: &[TailSegment],
) -> Result<Tail, VolumeError> {
    let reads = tail.iter().map(|segment| async move {
        let extents = load_segment(reader, &segment.object).await?;
        Ok::<_, VolumeError>((*segment, extents))
    });
    let mut reads = futures_util::stream::iter(reads).buffered(READS_MAX);
    let mut tail = Tail::default();
    while let Some((segment, extents)) = reads.try_next().await? {
        tail.push(segment, &extents);
    }
    Ok(tail)
}

/// What a segment holds, from its index.
pub(crate) async fn load_segment<W: World>(
    reader: &Reader<W>,
    reference: &ObjectRef,
) -> Result<Vec<Extent>, VolumeError> {
    let bytes = reader.index(Kind::Segment, reference).await?;
    segment::parse(reference.name(), &bytes)
        .map_err(|what| reader.damaged(Kind::Segment, reference.name(), what))
}

async fn open_keyring<W: World>(
    world: &W,
    store: &impl Store,
    password: Option<Zeroizing<String>>,
    cost: KeyringCost,
) -> Result<Option<PrefixKeys>, VolumeError> {
    for attempt in 0..retry::ATTEMPTS_MAX {
        if let Some((keyring, _)) = replaced::read(world, store).await? {
            let keys = unlock(world, keyring.clone(), password).await?;
            // No reason not to start: all that is lost until then is that the old one, put back, would be noticed.
            if let Err(error) = replaced::catch_up(world, store, &keyring).await {
                tracing::warn!(%error, "the keyring that `glidefs key` has replaced is not noted as replaced, and cannot be now; the next start tries again");
            }
            return Ok(keys);
        }
        if let Begun::Ours(keys) = begin_prefix(world, store, password.clone(), cost).await? {
            return Ok(keys);
        }
        // Another server was faster, or the store says "exists already" for reasons of its own.
        if attempt > 0 {
            retry::back_off(world, attempt, None).await;
        }
    }
    Err(VolumeError::Store(StoreError {
        operation: "create",
        key: KEYRING.to_owned(),
        kind: StoreErrorKind::Retry,
        message: "the store says again and again that it exists, and does not have it".to_owned(),
        retry_after: None,
    }))
}

async fn unlock<W: World>(
    world: &W,
    keyring: Keyring,
    password: Option<Zeroizing<String>>,
) -> Result<Option<PrefixKeys>, VolumeError> {
    let unlocking = world.compute(move || keyring.unlock(password.as_ref().map(|it| it.as_str())));
    unlocking.await
}

enum Begun {
    Ours(Option<PrefixKeys>),
    Theirs,
}

async fn begin_prefix<W: World>(
    world: &W,
    store: &impl Store,
    password: Option<Zeroizing<String>>,
    cost: KeyringCost,
) -> Result<Begun, VolumeError> {
    if let Some(found) = first_key(world, store, VOLUMES, None).await? {
        adopt_plain(world, store, &found, password.is_some()).await?;
    }
    let mut key = [0; 32];
    world.fill_random(&mut key);
    let fresh = Fresh {
        prefix: world.random_id(),
        slot: slot_id(world.random_id(), world.unix_time()),
        salt: world.random_id(),
        key: Secret::new(key),
    };
    let made = world.compute(move || {
        let (keyring, keys) = Keyring::new(&fresh, password.as_ref().map(|it| it.as_str()), cost);
        (Bytes::from(keyring.encode()), keys)
    });
    let (body, keys) = made.await;
    let mut attempt = 0;
    loop {
        match store.create(KEYRING, body.clone()).await {
            Ok(_) => return Ok(Begun::Ours(keys)),
            Err(error) if error.kind == StoreErrorKind::Conflict => return Ok(Begun::Theirs),
            Err(error) if retry::may_repeat(&error, attempt) => {
                retry::back_off(world, attempt, error.retry_after).await;
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Volumes without a keyring: it was lost. A plain one holds no secret and is made again; an
/// encrypted one cannot be.
async fn adopt_plain<W: World>(
    world: &W,
    store: &impl Store,
    found: &str,
    encrypt: bool,
) -> Result<(), VolumeError> {
    let lost = |why: &str| {
        Err(VolumeError::Key(format!(
            "object `{KEYRING}` is missing, but `{found}` is there: {why}; restore `{KEYRING}` \
             from a copy or an older version"
        )))
    };
    if encrypt {
        return lost("a new keyring could not open what is there");
    }
    let name = found.strip_prefix(VOLUMES).unwrap_or(found);
    let root = format!("{VOLUMES}{}/root", name.split('/').next().unwrap_or(name));
    let object = match retry::get(world, store, &root, Part::All).await {
        Ok(object) => object,
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            return lost("and its volume has no root to tell whether it is encrypted");
        }
        Err(error) => return Err(error.into()),
    };
    match root::ENVELOPE.check_of(&root, &object.bytes)? {
        envelope::Check::Hash => Ok(()),
        envelope::Check::Mac => lost("its volume is encrypted"),
    }
}

async fn first_key<W: World>(
    world: &W,
    store: &impl Store,
    prefix: &str,
    after: Option<&str>,
) -> Result<Option<String>, VolumeError> {
    let mut attempt = 0;
    loop {
        match store.list(prefix, after, 1).await {
            Ok(listed) => return Ok(listed.into_iter().next().map(|row| row.key)),
            Err(error) if retry::may_repeat(&error, attempt) => {
                retry::back_off(world, attempt, error.retry_after).await;
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub(crate) fn check_size(size_bytes: u64) -> Result<(), VolumeError> {
    let pages = size_bytes.div_ceil(blockcache::PAGE_BYTES);
    let whole = size_bytes.is_multiple_of(blockcache::SECTOR_BYTES);
    if size_bytes > 0 && whole && pages <= super::extent::VOLUME_PAGES_MAX {
        return Ok(());
    }
    let text = format!("a volume cannot have {size_bytes} bytes");
    Err(VolumeError::Invalid(text))
}

pub(crate) fn vanished(name: &VolumeName) -> VolumeError {
    VolumeError::Vanished {
        name: name.to_string(),
        key: name.root_key(),
    }
}

pub(super) fn exists(name: &VolumeName) -> VolumeError {
    VolumeError::Exists {
        name: name.to_string(),
    }
}
