//! What the pins of a volume hold (rule 20): listed by whoever collects its garbage, and cleaned up after those
//! that made forks and died.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blockcache::Id;
use world::store::Part;
use world::{Instant, StoreErrorKind, World};

use super::bucket::Bucket;
use super::name::VolumeName;
use super::pin::Pin;
use super::root::{Root, State, Stored};
use super::{VolumeError, retry};

/// With this begins what is no pin: see `put_marker`. Ids are hexadecimal, and sort before it.
const MARKER: &str = "~";
/// Names of forks that one list remembers, for people.
const SHOWN_MAX: usize = 8;
/// Pins in one answer of the store.
const PAGE: usize = 1000;

/// What was learned of a volume's pins, and stays true while they are there.
#[derive(Debug, Default)]
pub(crate) struct PinBook {
    /// Cuts by the keys of the pins that hold them.
    held: RefCell<BTreeMap<String, u64>>,
    /// Pins without a child, and when they were seen first.
    childless: RefCell<BTreeMap<String, Instant>>,
    /// The list before this one, for a build that breaks rule 20.
    #[cfg(feature = "planted")]
    pub(crate) before: RefCell<Option<Held>>,
}

impl PinBook {
    pub(crate) fn forget(&self) {
        self.held.borrow_mut().clear();
    }
}

/// What a list of the pins says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) cuts: BTreeSet<u64>,
    /// Those of readers.
    pub(crate) read_cuts: BTreeSet<u64>,
    /// Some of the forks that hold them.
    pub(crate) forks: BTreeSet<String>,
    /// Forks of another volume need what lies in this folder: it had the name, and its root was lost.
    pub(crate) has_strangers: bool,
    /// A pin of which nobody knows what it holds, or that holds nothing any more but may have been followed by
    /// another one that is not in the list.
    pub(crate) blocked_by: Option<String>,
}

impl Held {
    fn add(&mut self, cut: u64, fork: Option<String>) {
        self.cuts.insert(cut);
        if self.forks.len() < SHOWN_MAX {
            self.forks.extend(fork);
        }
    }
}

/// Whether a list of pins is cleaned up on the way: pins that hold nothing go, and children that do not come are
/// burned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cleans {
    /// Once nothing was seen of a child for so long (`Tidy::childless_wait`).
    AfterWait(Duration),
    /// The volume is a tombstone, so forks of it that are not there yet are given up at once. Not forks of its forks:
    /// those are given up where they have their first pin, if at all.
    Purged,
}

/// What one pin says.
enum Pinned {
    /// For this fork, as long as it is there.
    Cut(u64, String),
    /// Its child is not there yet, or it is a reader's, which may die.
    CutForNow(u64, Option<String>),
    /// For this fork of a volume that had the name before, and whose root was lost.
    Stranger(String),
    /// A reader died. Nobody makes a fork of what it read.
    Nothing,
    Unclear,
}

impl<W: World> Bucket<W> {
    /// Lists the pins of a volume, and reads what was not read before: two requests for each new pin.
    pub(crate) async fn held(
        &self,
        name: &VolumeName,
        volume: Id,
        book: &PinBook,
        cleans: Option<Cleans>,
    ) -> Result<Held, VolumeError> {
        let folder = format!("{}pins/", name.prefix());
        let marker = match cleans {
            Some(_) => Some(self.put_marker(&folder).await?),
            None => None,
        };
        let (mut held, mut after) = (Held::default(), None);
        let mut seen = BTreeSet::new();
        loop {
            let (world, store) = (self.world(), self.store());
            let page = retry::list(world, store, &folder, after.as_deref(), PAGE).await?;
            for listed in &page {
                seen.insert(listed.key.clone());
                if listed.key.starts_with(&format!("{folder}{MARKER}")) {
                    continue;
                }
                let cut = book.held.borrow().get(&listed.key).copied();
                if let Some(cut) = cut {
                    held.cuts.insert(cut);
                    continue;
                }
                let at = (name, volume);
                match Box::pin(self.pinned(&listed.key, at, book, cleans)).await? {
                    Pinned::Cut(cut, fork) => {
                        held.add(cut, Some(fork));
                        book.held.borrow_mut().insert(listed.key.clone(), cut);
                    }
                    Pinned::CutForNow(cut, fork) => {
                        held.read_cuts.extend(fork.is_none().then_some(cut));
                        held.add(cut, fork);
                    }
                    Pinned::Stranger(fork) => {
                        held.has_strangers = true;
                        held.add(0, Some(fork));
                    }
                    Pinned::Nothing => {}
                    Pinned::Unclear => held.blocked_by = Some(listed.key.clone()),
                }
            }
            after = page.last().map(|listed| listed.key.clone());
            if page.len() < PAGE {
                break;
            }
        }
        if let Some(marker) = marker {
            if !seen.contains(&marker) {
                held.blocked_by = Some(marker.clone());
            }
            let left = seen
                .iter()
                .filter(|key| key[folder.len()..].starts_with(MARKER));
            for key in left {
                retry::delete(self.world(), self.store(), key).await?;
            }
        }
        book.held.borrow_mut().retain(|key, _| seen.contains(key));
        book.childless
            .borrow_mut()
            .retain(|key, _| seen.contains(key));
        Ok(held)
    }

    /// A list that is old, or cut short, or the empty answer of something on the way, would cost a fork its data. So
    /// what was put right before must be in it; it sorts behind all pins.
    async fn put_marker(&self, folder: &str) -> Result<String, VolumeError> {
        let key = format!("{folder}{MARKER}{}", Id(self.world().random_id()));
        let body =
            bytes::Bytes::from_static(b"a list of pins that does not show this is not believed\n");
        retry::create(self.world(), self.store(), &key, body).await?;
        Ok(key)
    }

    /// What a pin holds.
    async fn pinned(
        &self,
        key: &str,
        (name, volume): (&VolumeName, Id),
        book: &PinBook,
        cleans: Option<Cleans>,
    ) -> Result<Pinned, VolumeError> {
        let object = match retry::get(self.world(), self.store(), key, Part::All).await {
            Ok(object) => object,
            // Removed meanwhile, perhaps after a fork of the child was made: the next list will tell.
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Pinned::Unclear),
            Err(error) => return Err(error.into()),
        };
        let pin = Pin::decode(key, &object.bytes, self.root_mac())?;
        if let (Some(reader), Some((_, cut))) = (&pin.reader, pin.cut) {
            if !reader.is_gone(self.world().unix_time()) {
                return Ok(Pinned::CutForNow(cut, None));
            }
            if cleans.is_some() {
                retry::delete(self.world(), self.store(), key).await?;
            }
            return Ok(Pinned::Nothing);
        }
        let child = VolumeName::parse(&pin.name)?;
        let root = self.read_root(&child).await?;
        let may_come = root.as_ref().is_none_or(|it| may_replace(&pin, &it.root));
        let Some(root) = root.as_ref().filter(|_| !may_come) else {
            if self.is_late(key, &pin, book, cleans) && self.is_still(name, volume).await? {
                Box::pin(self.burn(&child, Id(pin.child), root.as_ref())).await?;
            }
            let name = pin.name.clone();
            let cut = pin.cut.map(|(_, cut)| Pinned::CutForNow(cut, Some(name)));
            return Ok(cut.unwrap_or(Pinned::Unclear));
        };
        // Of a fork of a group that is not formed yet, or never will be.
        if root.root.state == State::Pending && root.root.volume == pin.child {
            if self.is_late(key, &pin, book, cleans) && self.is_still(name, volume).await? {
                tracing::warn!(export = %child, "whoever was making this fork of a group has died; the fork is given up, and its name may be used again");
                Box::pin(self.abandon(&child, root)).await?;
            }
            return Ok(match needs(&pin, &root.root, (name, volume)) {
                Needs::Cut(cut) => Pinned::CutForNow(cut, Some(pin.name)),
                Needs::Stranger => Pinned::Stranger(pin.name),
                Needs::Nothing | Needs::Unclear => Pinned::Unclear,
            });
        }
        match needs(&pin, &root.root, (name, volume)) {
            Needs::Cut(cut) => return Ok(Pinned::Cut(cut, pin.name)),
            Needs::Stranger => return Ok(Pinned::Stranger(pin.name)),
            // Else the folder is another volume's by now, and this may be the pin of a fork of that one.
            Needs::Nothing if cleans.is_some() && self.is_still(name, volume).await? => {
                retry::delete(self.world(), self.store(), key).await?;
            }
            Needs::Nothing | Needs::Unclear => {}
        }
        Ok(Pinned::Unclear)
    }

    /// Whether whoever was to make the child is taken for dead.
    fn is_late(&self, key: &str, pin: &Pin, book: &PinBook, cleans: Option<Cleans>) -> bool {
        let now = self.world().now();
        let first = {
            let mut childless = book.childless.borrow_mut();
            *childless.entry(key.to_owned()).or_insert(now)
        };
        match cleans {
            Some(Cleans::AfterWait(wait)) => now.since(first) >= wait,
            Some(Cleans::Purged) => pin.cut.is_none(),
            None => false,
        }
    }

    /// Puts a tombstone where a child's root may still land, or another version in the place of the one that it is to
    /// replace: nobody can create it any more.
    async fn burn(
        &self,
        name: &VolumeName,
        volume: Id,
        tomb: Option<&Stored>,
    ) -> Result<(), VolumeError> {
        tracing::warn!(export = %name, "whoever was making this fork has died; the fork is given up, and its name may be used again");
        if let Some(tomb) = tomb {
            // All else that it says is still needed.
            let root = self.after(&tomb.root);
            return Box::pin(self.swap(name, tomb, root)).await.map(drop);
        }
        let mut root = self.empty_root(name, volume, 0);
        root.state = State::Deleted;
        root.nonce = self.world().random_id();
        match self.create_root(name, root).await {
            // It was made at last, or something else was.
            Ok(_) | Err(VolumeError::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn is_still(&self, name: &VolumeName, volume: Id) -> Result<bool, VolumeError> {
        let stored = self.read_root(name).await?;
        Ok(stored.is_some_and(|stored| stored.root.volume == volume.0))
    }
}

/// Whether the pin's child is to take the place of this root, which is a tombstone, and still may.
fn may_replace(pin: &Pin, root: &Root) -> bool {
    root.state == State::Deleted && root.volume != pin.child && pin.over == Some(root.nonce)
}

/// What a child needs of the volume.
enum Needs {
    Cut(u64),
    /// What another volume has in the folder of this one. A purged one gives its name up only once nobody needs it, so
    /// its root was lost.
    Stranger,
    /// Nothing, and it never will again.
    Nothing,
    Unclear,
}

fn needs(pin: &Pin, child: &Root, (name, volume): (&VolumeName, Id)) -> Needs {
    // Of another child: a root is never absent again once it was there, and no version of it comes again, so the
    // pin's cannot come any more. A child that was deleted still needs what it names, for its own forks and readers:
    // who buries it removes the pin.
    let is_other = child.volume != pin.child;
    let mut named = child.volumes.iter();
    if is_other || named.all(|it| it.volume != volume.0) {
        let mut others = child.volumes.iter().skip(1);
        let is_here = !is_other && others.any(|it| it.name == name.as_str());
        return if is_here {
            Needs::Stranger
        } else {
            Needs::Nothing
        };
    }
    let parent = child.parent.as_ref();
    let parent = parent.filter(|parent| parent.volume == volume.0);
    let cut = pin.cut.map(|(_, cut)| cut);
    // A child that names the volume and not as its parent has a pin that says the cut.
    match cut.or(parent.map(|parent| parent.cut_seq)) {
        Some(cut) => Needs::Cut(cut),
        None => Needs::Unclear,
    }
}
