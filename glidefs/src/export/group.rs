//! Exports that are opened together: one of a volume that is in no group, or those of all members of one (rule 30).
//!
//! ```text
//! a name -> its door -> the store says who is published with it -> the doors of all of them -> opened by one take, or
//!                                                                                              read by one look
//! ```
//!
//! Promises: whoever opens one opens all, or none; all are given up together, which none is while somebody is connected
//! to one of them; where another node owns them, all show one moment for as long as somebody reads one of them.
//!
//! Absent: what a group is in the store (`volume/group.rs`), and how it is published (`sync.rs`).

use std::cell::OnceCell;
use std::rc::{Rc, Weak};

use blockcache::LocalVolume;
use world::World;
use world::sync::OwnedSemaphorePermit;

use super::Export;
use super::decide::Seen;
use super::site::Site;
use crate::device::ConnectError;
use crate::volume::{GroupState, Members, Volume};

/// The exports that one was opened together with, itself among them; empty of one that is in no group.
#[derive(Debug)]
pub(crate) struct Fellows<W: World>(OnceCell<Rc<[Weak<Export<W>>]>>);

impl<W: World> Default for Fellows<W> {
    fn default() -> Self {
        Self(OnceCell::new())
    }
}

/// From here on they know each other.
pub(super) fn bind<W: World>(exports: &[Rc<Export<W>>]) {
    if exports.len() == 1 {
        return;
    }
    let all: Rc<[Weak<Export<W>>]> = exports.iter().map(Rc::downgrade).collect();
    for export in exports {
        let set = export.fellows.0.set(Rc::clone(&all));
        assert!(set.is_ok(), "`{}` is opened once", export.name());
    }
}

impl<W: World> Export<W> {
    /// All that were opened together with it, itself among them.
    pub(crate) fn together(self: &Rc<Self>) -> Vec<Rc<Self>> {
        match self.fellows.0.get() {
            Some(all) => all.iter().filter_map(Weak::upgrade).collect(),
            None => vec![Rc::clone(self)],
        }
    }

    /// Others were opened with it.
    pub(crate) fn has_fellows(&self) -> bool {
        self.fellows.0.get().is_some()
    }

    /// Somebody is connected to it, or to one that was opened with it.
    pub(crate) fn is_used(&self) -> bool {
        let is_used = |it: &Weak<Self>| it.upgrade().is_some_and(|it| it.clients.count() > 0);
        match self.fellows.0.get() {
            Some(all) => all.iter().any(is_used),
            None => self.clients.count() > 0,
        }
    }
}

/// Waits until everything that was answered before by any of them is in the store. An error once an attempt fails; the
/// attempts go on.
pub(crate) async fn drain<W: World>(exports: &[Rc<Export<W>>]) -> Result<(), String> {
    // Of all of them as of now, and not of each as of when its turn comes.
    for export in exports {
        if let Some(local) = export.local_state() {
            export.orders.drain(local.last);
        }
    }
    for export in exports {
        export.drain().await?;
    }
    Ok(())
}

/// The doors of names, all held: nothing that these names stand for changes meanwhile but by whoever has this.
#[derive(Debug, Default)]
pub(crate) struct Door {
    pub(super) names: Vec<String>,
    pub(super) permits: Vec<OwnedSemaphorePermit>,
    /// Those of them that are published together, as of the last look.
    pub(super) together: Vec<String>,
}

impl Door {
    pub(crate) fn together(&self) -> &[String] {
        &self.together
    }
}

impl<W: World> Site<W> {
    /// The names of what is published together with a volume, itself among them, as the log knows it. Only what this node
    /// may go on with: the others are opened by whoever has them.
    pub(super) fn known_together(&self, local: &LocalVolume) -> Vec<LocalVolume> {
        let ids = self.cache.together_with(local.id).into_iter();
        let known = ids.filter_map(|id| self.cache.volume(id)?.state());
        known.filter(|it| it.attached).collect()
    }

    /// The same as names, of what was opened or could not be.
    pub(super) fn names_of(
        &self,
        name: &str,
        seen: &Seen,
        members: Option<&Members<W>>,
    ) -> Vec<String> {
        if let Some(members) = members {
            return names(members.volumes());
        }
        match (seen, self.local_volume(name, None)) {
            (Seen::Unreachable(_), Some(local)) if local.attached => {
                let known = self.known_together(&local).into_iter();
                known.map(|it| it.name).collect()
            }
            _ => vec![name.to_owned()],
        }
    }

    /// The same where one of them alone was looked at.
    pub(super) async fn names_seen(
        &self,
        name: &str,
        seen: &Seen,
    ) -> Result<Vec<String>, ConnectError> {
        let group = match seen {
            Seen::Root(root) => root.group.as_ref(),
            Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_) => None,
        };
        let Some(group) = group else {
            return Ok(self.names_of(name, seen, None));
        };
        let unavailable = |why: String| {
            ConnectError::Unavailable(format!(
                "who is in group `{}` with `{name}` is not known now: {why}",
                group.name
            ))
        };
        let bucket = self.shelf.bucket().await;
        let bucket = bucket.map_err(|error| unavailable(error.to_string()))?;
        let found = Box::pin(bucket.group(group.id)).await;
        let found = found.map_err(|error| unavailable(error.to_string()))?;
        let formed = found.filter(|it| it.state == GroupState::Formed);
        let formed = formed.ok_or_else(|| unavailable("it was dissolved just then".to_owned()))?;
        Ok(formed.members.into_iter().map(|it| it.name).collect())
    }
}

fn names<W: World>(volumes: &[Volume<W>]) -> Vec<String> {
    let names = volumes.iter().map(|volume| volume.root().name);
    names.collect()
}
