//! Forks: a volume that begins with all that another one holds, and copies nothing (rule 20).
//!
//! ```text
//! pin in the parent's folder -> read the parent's root -> create the child's root
//!                                     | its map names further volumes
//!                                     '-> a pin in each, then read the parent's root again
//! ```
//!
//! In this order, so that whoever collects the parent's garbage either sees the pin, or has deleted it
//! before the root was read, which does not name it then. A fork of a fork reads the root again, for between
//! the first look and its pins the parent may have been deleted or flattened. Why each step is needed is in
//! `docs/model.md`: `pin-after-root`, `pin-only-child`, `trusts-first-look`.

use std::cell::Cell;
use std::collections::BTreeSet;

use blockcache::Id;
use bytes::Bytes;
use world::store::Part;
use world::{StoreErrorKind, World};

use super::bucket::{Bucket, exists, vanished};
use super::name::VolumeName;
use super::pin::Pin;
use super::retry;
use super::root::{Content, NamedVolume, Parent, Root, RootOwner, State, Stored, VOLUMES_MAX};
use super::snapshots::fork_snapshot;
use super::{Owner, RootView, VolumeError};

/// A fork as its parent's folder has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkView {
    pub id: Id,
    pub name: String,
    /// It is not a fork of a fork.
    pub is_direct: bool,
    /// Why nothing but its id is known: its pin cannot be read. It may be a reader's.
    pub error: Option<String>,
}

/// A fork to be made. May be tried again as it is: it is made once.
#[derive(Clone, Debug)]
pub struct Fork {
    pub(super) parent: VolumeName,
    snapshot: Option<String>,
    pub(super) child: VolumeName,
    /// The child's volume.
    pub(super) id: Id,
    /// Of the child's first root.
    nonce: Id,
    /// The nonce of the tombstone that the child takes the place of.
    over: Option<Id>,
    /// The same, whatever it takes the place of.
    request: Id,
    /// It is open already, by this one. None: whoever opens it first owns it.
    owner: Option<Owner>,
}

/// What became of a fork that is open already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Born {
    /// Its root is there, or was: whoever made it looks at it.
    Made,
    /// The root of its parent is not there: deleted by accident, or for a moment alone. Nothing is known by one answer.
    Orphan,
    /// It can never be: why.
    Never(String),
}

impl Fork {
    /// `id` and `nonce` are random, or follow from the request, so that a repeated one is the same.
    pub fn new(
        parent: &str,
        snapshot: Option<String>,
        child: &str,
        id: Id,
        nonce: Id,
    ) -> Result<Self, VolumeError> {
        let (parent, child) = (VolumeName::parse(parent)?, VolumeName::parse(child)?);
        if parent == child {
            let text = format!("volume `{parent}` cannot become a fork of itself");
            return Err(VolumeError::Invalid(text));
        }
        Ok(Self {
            parent,
            snapshot,
            child,
            id,
            nonce,
            over: None,
            request: id,
            owner: None,
        })
    }

    /// A fork that is open already, of the snapshot that its parent's owner has published for it.
    pub(crate) fn live(parent: &str, child: &str, id: Id, nonce: Id) -> Result<Self, VolumeError> {
        Self::new(parent, Some(fork_snapshot(id)), child, id, nonce)
    }

    /// The same fork in the place of a tombstone. With ids of its own: an id is used for one state of the child's
    /// name alone, so once that is over, nothing that is late can bring it back, and its pin may go.
    pub(super) fn over(&self, tomb: Id) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("glidefs 1 ids of a fork over a tombstone");
        for id in [self.id, self.nonce, tomb] {
            hasher.update(&id.0);
        }
        let hash = hasher.finalize();
        let (id, nonce) = hash.as_bytes().split_at(16);
        let half = |bytes: &[u8]| Id(*bytes.first_chunk().expect("16 of 32"));
        Self {
            id: half(id),
            nonce: half(nonce),
            over: Some(tomb),
            ..self.clone()
        }
    }

    /// Other volumes of which the child will need something: those that the parent's map names, or that a snapshot of it
    /// may name.
    pub(super) fn needs<'a>(&self, parent: &'a Root) -> impl Iterator<Item = &'a NamedVolume> {
        let live = self.snapshot.is_none();
        let others = parent.volumes.get(1..).unwrap_or_default().iter();
        others.filter(move |it| !live || it.unnamed_from.is_none())
    }

    /// Whether this root is of the fork, whatever it took the place of.
    pub(super) fn is_of(&self, root: &Root) -> bool {
        let mut request = root.parent.iter().map(|parent| parent.request);
        request.any(|request| request == self.request.0)
    }

    pub(super) fn pin(&self, cut: Option<(u64, u64)>) -> Pin {
        Pin {
            child: self.id.0,
            name: self.child.to_string(),
            cut,
            over: self.over.map(|nonce| nonce.0),
            reader: None,
        }
    }
}

impl<W: World> Bucket<W> {
    /// Makes the fork of what the parent's root names now: three requests, whatever the size, and a few more
    /// for each further volume that the parent is made of itself. The child is detached: whoever opens it first
    /// owns it. Nobody looks whether its folder is empty (`docs/decisions/0022-names-of-forks.md`).
    ///
    /// After an error the pin stays, for a repeated or delayed request of the same fork may have gone further: it
    /// may be removed only once nobody can create the child any more. Until then it keeps garbage, no more.
    ///
    /// Where a volume of the child's name was deleted, and nobody needs it any more, the child takes its place, by a
    /// few requests more.
    pub async fn fork(&self, fork: &Fork) -> Result<RootView, VolumeError> {
        let there = match Box::pin(self.fork_as(fork, None)).await {
            Ok(child) if child.root.state != State::Deleted => return Ok(child.view()),
            Ok(burned) => burned,
            Err(VolumeError::Exists { .. }) => {
                let there = self.read_root(&fork.child).await?;
                there.ok_or_else(|| vanished(&fork.child))?
            }
            Err(error) => return Err(error),
        };
        // No child of this id comes any more, so what was to hold its data may go. Not that of one which was deleted and is
        // read still: who buries it removes the pin.
        let mut named = there.root.volumes.iter();
        let is_ours = there.root.volume == fork.id.0;
        if is_ours && named.any(|it| it.name == fork.parent.as_str()) {
            Box::pin(self.bury(fork.child.as_str(), &|_| {})).await?;
        } else {
            let key = fork.pin(None).key(fork.parent.as_str());
            retry::delete(self.world(), self.store(), &key).await?;
        }
        let is_same = fork.is_of(&there.root);
        match there.root.state {
            State::Deleted if is_same || there.root.volume == fork.id.0 => {
                Err(VolumeError::Invalid(format!(
                    "volume `{}` was deleted after this fork had begun: fork again, with a new request id",
                    fork.child
                )))
            }
            State::Deleted => {
                let tomb = Box::pin(self.vacant(&fork.child)).await?;
                let again = fork.over(Id(tomb.root.nonce));
                let child = Box::pin(self.fork_as(&again, Some(tomb))).await?;
                Ok(child.view())
            }
            _ if is_same => Ok(there.view()),
            _ => Err(exists(&fork.child)),
        }
    }

    /// The child, if an earlier request of the same fork made it. It may have been opened and written since.
    pub async fn made(&self, fork: &Fork) -> Result<Option<RootView>, VolumeError> {
        let there = self.read_root(&fork.child).await?;
        let made = there.filter(|it| it.root.state != State::Deleted && fork.is_of(&it.root));
        Ok(made.map(|it| it.view()))
    }

    /// Makes a fork that its owner has open already: from the first moment on nobody else can take it without force.
    /// May be repeated as it is, also after a restart.
    ///
    /// `begun` is what the first try found under the name: nothing, or the tombstone with this nonce. An id is good for
    /// one state of the name alone, or what is late of an earlier state could take its pin away.
    pub(crate) async fn bear(
        &self,
        fork: &Fork,
        owner: &Owner,
        begun: &Cell<Option<Option<Id>>>,
    ) -> Result<Born, VolumeError> {
        let fork = Fork {
            owner: Some(owner.clone()),
            ..fork.clone()
        };
        let never = |why: String| Ok(Born::Never(why));
        let there = self.read_root(&fork.child).await?;
        let tomb = match there {
            None => None,
            Some(there) if there.root.volume == fork.id.0 => return Ok(born(&there)),
            Some(there) if there.root.state == State::Deleted => Some(there),
            Some(_) => return never(format!("another volume has the name `{}` now", fork.child)),
        };
        let parent = match self.forkable(&fork).await {
            Ok(parent) => parent,
            Err(VolumeError::Vanished { .. }) => return Ok(Born::Orphan),
            Err(VolumeError::Invalid(_)) => {
                return never(format!("its parent `{}` is deleted", fork.parent));
            }
            Err(error) => return Err(error),
        };
        let mut listed = parent.root.snapshots.iter();
        if !listed.any(|it| it.id == fork.id.0) {
            return never(format!(
                "its parent `{}` has no snapshot of its cut (any more)",
                fork.parent
            ));
        }
        let over = tomb.map(|tomb| Id(tomb.root.nonce));
        if begun.get().is_some_and(|begun| begun != over) {
            return never(format!("the name `{}` was used in between", fork.child));
        }
        begun.set(Some(over));
        match Box::pin(self.bear_over(&fork, over)).await {
            Ok(there) => Ok(born(&there)),
            Err(VolumeError::Vanished { .. }) => Ok(Born::Orphan),
            // Its name is not free, or nothing can be made of its parent: the store says the same for ever.
            Err(error @ (VolumeError::Needed { .. } | VolumeError::Invalid(_))) => {
                never(error.to_string())
            }
            Err(VolumeError::Exists { .. }) => {
                // Nobody can create the child any more, so its pin holds nothing.
                let key = fork.pin(None).key(fork.parent.as_str());
                retry::delete(self.world(), self.store(), &key).await?;
                never(format!("another volume has the name `{}` now", fork.child))
            }
            Err(error) => Err(error),
        }
    }

    /// In the place of the tombstone with this nonce, or where there must be nothing.
    async fn bear_over(&self, fork: &Fork, over: Option<Id>) -> Result<Stored, VolumeError> {
        if over.is_none() {
            return Box::pin(self.fork_as(fork, None)).await;
        }
        let vacant = Box::pin(self.vacant(&fork.child)).await?;
        if over != Some(Id(vacant.root.nonce)) {
            return Err(changed(fork));
        }
        let fork = Fork {
            over,
            ..fork.clone()
        };
        Box::pin(self.fork_as(&fork, Some(vacant))).await
    }

    /// One try, in the place of `tomb` or where there must be nothing.
    async fn fork_as(&self, fork: &Fork, tomb: Option<Stored>) -> Result<Stored, VolumeError> {
        self.check_parent(fork).await?;
        #[cfg(feature = "planted")]
        let early = if self.is_planted(super::Planted::PinAfterRoot) {
            let early = Box::pin(self.forkable(fork)).await?;
            // Long enough for the owner to publish and collect; a process may be paused anywhere.
            let mut chance = [0; 1];
            self.world().fill_random(&mut chance);
            let pause = std::time::Duration::from_millis(20) * u32::from(chance[0]);
            self.world().sleep(pause).await;
            Some(early)
        } else {
            None
        };
        self.put_pin(fork.parent.as_str(), &fork.pin(None)).await?;
        let first = self.forkable(fork).await?;
        #[cfg(feature = "planted")]
        let first = early.unwrap_or(first);
        let pinned: BTreeSet<[u8; 16]> = fork.needs(&first.root).map(|it| it.volume).collect();
        let stored = if pinned.is_empty() {
            first
        } else {
            let found = Box::pin(self.pin_ancestors(fork, &first.root)).await;
            let again = self.forkable(fork).await?;
            let is_same = again.root.volume == first.root.volume;
            let needed: Vec<_> = fork.needs(&again.root).map(|it| it.volume).collect();
            let is_known = is_same && needed.iter().all(|it| pinned.contains(it));
            let is_less = needed.len() < pinned.len();
            match found {
                Ok(()) if is_known => {}
                // It may have been let go just then.
                Err(error) if is_known && !is_less => return Err(error),
                _ => return Err(changed(fork)),
            }
            again
        };
        let root = self.forked(fork, &stored.root)?;
        match tomb {
            None => Box::pin(self.create_root(&fork.child, root)).await,
            Some(tomb) => {
                let root = root.over(&tomb.root);
                Box::pin(self.reuse(&fork.child, &tomb, root)).await
            }
        }
    }

    /// Forks that were made of a volume, by the ids behind `after`, at most so many. For people: it costs a LIST
    /// and a GET for each. A pin that cannot be read hides no other one; it keeps the collector from deleting anything.
    pub async fn forks_after(
        &self,
        parent: &str,
        after: Option<Id>,
        count_max: usize,
    ) -> Result<Vec<ForkView>, VolumeError> {
        let parent = VolumeName::parse(parent)?;
        let folder = format!("{}pins/", parent.prefix());
        let mut after = after.map(|id| format!("{folder}{id}"));
        let mut forks = Vec::new();
        while forks.len() < count_max
            && let Some(key) = self.first_key(&folder, after.as_deref()).await?
        {
            if key[folder.len()..].starts_with('~') {
                // A collector's, and behind all pins.
                break;
            }
            let object = retry::get(self.world(), self.store(), &key, Part::All).await;
            match object {
                Ok(object) => {
                    let pin = Pin::decode(&key, &object.bytes, self.root_mac());
                    forks.extend(pinned_fork(&key[folder.len()..], pin));
                }
                // Removed meanwhile.
                Err(error) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            after = Some(key);
        }
        Ok(forks)
    }

    /// So that no pins lie where no volume is. One that was read before is not looked for again.
    async fn check_parent(&self, fork: &Fork) -> Result<(), VolumeError> {
        if self.has_seen(&fork.parent) {
            return Ok(());
        }
        self.forkable(fork).await.map(drop)
    }

    /// The parent's root, if a fork may be made of it.
    async fn forkable(&self, fork: &Fork) -> Result<Stored, VolumeError> {
        let stored = self.read_root(&fork.parent).await?;
        let stored = stored.ok_or_else(|| vanished(&fork.parent))?;
        match stored.root.state {
            State::Open | State::Detached => {
                self.saw(&fork.parent);
                Ok(stored)
            }
            State::Pending | State::Suspended | State::Deleted => {
                let state = super::VolumeState::from(stored.root.state);
                let text = format!("volume `{}` cannot be forked: it is {state:?}", fork.parent);
                Err(VolumeError::Invalid(text))
            }
        }
    }

    /// Pins what the parent's map names of others, at the cuts at which the parent, or its parents, came from them.
    pub(super) async fn pin_ancestors(&self, fork: &Fork, root: &Root) -> Result<(), VolumeError> {
        let parent = root.parent.as_ref();
        for named in fork.needs(root) {
            let cut = match parent.filter(|parent| parent.volume == named.volume) {
                Some(parent) => (parent.cut_epoch, parent.cut_seq),
                None => self.pinned_cut(named, root).await?,
            };
            self.put_pin(&named.name, &fork.pin(Some(cut))).await?;
        }
        Ok(())
    }

    /// What the parent's own pin in an older volume says.
    async fn pinned_cut(
        &self,
        named: &NamedVolume,
        root: &Root,
    ) -> Result<(u64, u64), VolumeError> {
        let wanted = Pin {
            child: root.volume,
            name: root.name.clone(),
            cut: None,
            over: None,
            reader: None,
        };
        let key = wanted.key(&named.name);
        let missing = || VolumeError::damaged(&key, "it is missing, though a fork needs it");
        let object = match retry::get(self.world(), self.store(), &key, Part::All).await {
            Ok(object) => object,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(error.into()),
        };
        let pin = Pin::decode(&key, &object.bytes, self.root_mac())?;
        pin.cut
            .ok_or_else(|| VolumeError::damaged(&key, "it does not say which cut it holds"))
    }

    pub(super) async fn put_pin(&self, of: &str, pin: &Pin) -> Result<(), VolumeError> {
        let body = Bytes::from(pin.encode(self.root_mac()));
        let key = pin.key(of);
        Ok(retry::create(self.world(), self.store(), &key, body).await?)
    }

    /// The child's first root.
    pub(super) fn forked(&self, fork: &Fork, parent: &Root) -> Result<Root, VolumeError> {
        let (size_bytes, content, snapshot) = source(fork, parent)?;
        if parent.volumes.len() == VOLUMES_MAX {
            return Err(VolumeError::Invalid(format!(
                "volume `{}` is made of {VOLUMES_MAX} volumes, which is the most: copy it into a new one",
                fork.parent
            )));
        }
        let mut root = self.empty_root(&fork.child, fork.id, size_bytes);
        // What of them the child's map names is not known: it may begin with a snapshot of long ago.
        let named = parent.volumes.iter().take(1).chain(fork.needs(parent));
        let named = named.map(|named| NamedVolume {
            unnamed_from: None,
            ..named.clone()
        });
        root.volumes.extend(named);
        root.parent = Some(Parent {
            volume: parent.volume,
            name: parent.name.clone(),
            snapshot,
            cut_epoch: content.cut_epoch,
            cut_seq: content.cut_seq,
            request: fork.request.0,
        });
        root.content = Content {
            cut_epoch: root.epoch,
            ..content
        };
        root.state = State::Detached;
        if let Some(owner) = &fork.owner {
            root.owner = Some(RootOwner::new(owner));
            root.state = State::Open;
        }
        root.nonce = fork.nonce.0;
        Ok(root)
    }
}

/// What a pin of this name says of a fork. None: it is a reader's, or what is there is no pin.
fn pinned_fork(name: &str, pin: Result<Pin, VolumeError>) -> Option<ForkView> {
    match pin {
        Ok(pin) => {
            let fork = ForkView {
                id: Id(pin.child),
                name: pin.name,
                is_direct: pin.cut.is_none(),
                error: None,
            };
            pin.reader.is_none().then_some(fork)
        }
        Err(error) => Some(ForkView {
            id: id_of(name)?,
            name: String::new(),
            is_direct: false,
            error: Some(error.to_string()),
        }),
    }
}

/// As ids are written in keys.
fn id_of(name: &str) -> Option<Id> {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_id = name.len() == 32 && name.bytes().all(is_digit);
    let number = u128::from_str_radix(name, 16).ok().filter(|_| is_id)?;
    Some(Id(number.to_be_bytes()))
}

fn born(there: &Stored) -> Born {
    match there.root.state {
        State::Deleted => Born::Never(format!("it was deleted as `{}`", there.root.name)),
        _ => Born::Made,
    }
}

pub(super) fn changed(fork: &Fork) -> VolumeError {
    let name = fork.parent.to_string();
    VolumeError::Changed { name }
}

/// Size and content with which the child begins, and the snapshot that they are of.
fn source(fork: &Fork, parent: &Root) -> Result<(u64, Content, Option<[u8; 16]>), VolumeError> {
    let Some(snapshot) = &fork.snapshot else {
        return Ok((parent.size_bytes, parent.content.clone(), None));
    };
    let found = parent.snapshots.iter().find(|it| it.name == *snapshot);
    let found = found.ok_or_else(|| {
        let text = format!("volume `{}` has no snapshot `{snapshot}`", fork.parent);
        VolumeError::Invalid(text)
    })?;
    Ok((found.size_bytes, found.content.clone(), Some(found.id)))
}
