//! Names to exports: who may connect to what, and what the operator may change.
//!
//! Every change of what a name stands for happens behind the name's door, one at a time. A
//! connection to an export that is open passes without waiting for the store.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use world::sync::{OwnedSemaphorePermit, Semaphore};
use world::{Peer, World};

use super::clients::Sharing;
use super::connection::Connection;
use super::decide::{Plan, Seen};
use super::open::{Purpose, Wish, refused};
use super::site::Site;
use super::{Export, Role, warm};
use crate::device::{Access, ConnectError, Exports, Look};
use crate::volume::{RootView, VolumeName};

/// The exports of one shard.
#[derive(Debug)]
pub struct Registry<W: World> {
    site: Rc<Site<W>>,
    open: RefCell<BTreeMap<String, Rc<Export<W>>>>,
    doors: RefCell<BTreeMap<String, Weak<Semaphore>>>,
}

impl<W: World> Registry<W> {
    pub(crate) fn new(site: Rc<Site<W>>) -> Self {
        Self {
            site,
            open: RefCell::default(),
            doors: RefCell::default(),
        }
    }

    pub(crate) fn site(&self) -> &Rc<Site<W>> {
        &self.site
    }

    /// Open exports, by name. What has ended and has no client any more is let go.
    pub(crate) fn exports(&self) -> Vec<Rc<Export<W>>> {
        let mut open = self.open.borrow_mut();
        open.retain(|_name, export| !is_over(export));
        open.values().map(Rc::clone).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Rc<Export<W>>> {
        let mut open = self.open.borrow_mut();
        if open.get(name).is_some_and(|export| is_over(export)) {
            open.remove(name);
        }
        open.get(name).cloned()
    }

    /// One change of a name at a time. Held over the whole change.
    pub(crate) async fn door(&self, name: &str) -> OwnedSemaphorePermit {
        let door = {
            let mut doors = self.doors.borrow_mut();
            doors.retain(|_name, door| door.strong_count() > 0);
            let door = doors.get(name).and_then(Weak::upgrade);
            door.unwrap_or_else(|| {
                let door = Arc::new(Semaphore::new(1));
                doors.insert(name.to_owned(), Arc::downgrade(&door));
                door
            })
        };
        door.acquire_owned().await.expect("never closed")
    }

    /// The export behind a name, opened if it is not. The caller holds the door.
    pub(crate) async fn opened(
        &self,
        name: &str,
        wish: Wish,
    ) -> Result<Rc<Export<W>>, ConnectError> {
        let mut wish = Wish {
            prepared: wish.purpose == Purpose::Prepare,
            ..wish
        };
        if let Some(export) = self.get(name) {
            match export.role() {
                Role::ReadWrite => return Ok(export),
                Role::Prepared if wish.purpose == Purpose::Serve => return Ok(export),
                Role::Prepared => wish.prepared = true,
                Role::Leaving => self.wait_left(&export).await,
                // A read-only connection sees the cut that is current when it connects.
                Role::ReadOnly | Role::Damaged | Role::Closed => {}
                Role::Fenced => {
                    return Err(still_used(&export, "is fenced: another epoch of it exists"));
                }
                Role::Vanished => return Err(still_used(&export, "has vanished from the store")),
            }
        }
        let export = self.site.open(name, wish).await.inspect_err(|error| {
            if let (ConnectError::Unavailable(why), Some(held_back)) =
                (error, self.site.news("unavailable", name))
            {
                tracing::warn!(export = name, why, held_back, "the volume cannot be opened");
            }
        })?;
        if let Some(before) = self.get(name) {
            let is_same = before.root().map(|r| r.etag) == export.root().map(|r| r.etag);
            if is_same && before.role() == export.role() && export.role() != Role::ReadWrite {
                export.end(Role::Closed);
                return Ok(before);
            }
            if before.role() == Role::Prepared {
                before.give_way(&export);
                if export.role() == Role::Prepared {
                    warm::go_on(&self.site, &before, &export);
                }
            }
        }
        self.open
            .borrow_mut()
            .insert(name.to_owned(), Rc::clone(&export));
        Ok(export)
    }

    /// A snapshot as an export, read-only for ever. One that is open is shared.
    async fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Rc<Export<W>>, ConnectError> {
        let name = format!("{volume}@{snapshot}");
        let _door = self.door(&name).await;
        if self.site.closing.get() {
            return Err(ConnectError::ShuttingDown);
        }
        // Asked each time: it may have been deleted, or another may have the name now.
        let opened = Box::pin(self.site.open_snapshot(volume, snapshot)).await?;
        let position = |root: RootView| (root.volume, root.cut_epoch, root.cut, root.cut_time);
        if let Some(before) = self.get(&name)
            && before.root().map(position) == Some(position(opened.root()))
        {
            return Ok(before);
        }
        let export = Box::pin(self.site.snapshot_export(&name, opened)).await?;
        self.open.borrow_mut().insert(name, Rc::clone(&export));
        Ok(export)
    }

    /// Lets an export go whose task has ended.
    pub(crate) fn remove(&self, name: &str) {
        self.open.borrow_mut().remove(name);
    }

    /// A detach is on its way: it ends, or is given up at its next failure.
    pub(crate) async fn wait_left(&self, export: &Export<W>) {
        export.orders.stay();
        loop {
            let news = export.orders.news.notified();
            if export.role() != Role::Leaving {
                return;
            }
            news.await;
        }
    }

    fn admit(&self, export: Rc<Export<W>>, peer: &Peer) -> Result<Rc<Connection<W>>, ConnectError> {
        let one = self.site.config.sharing == Sharing::OneClient;
        if let (true, Access::ReadWrite, Some(other)) = (
            one,
            Connection::access_to(&export),
            export.clients.other_than(peer),
        ) {
            return Err(ConnectError::Refused(format!(
                "export `{}` is in use by {other}; two clients would destroy each other's filesystem (set `shared = true` under [servers.nbd] if yours is made for that)",
                export.name()
            )));
        }
        Ok(Rc::new(Connection::new(export, peer)))
    }

    fn create_wish(&self) -> Wish {
        Wish {
            create_bytes: self.site.config.create_bytes,
            ..Wish::default()
        }
    }
}

impl<W: World> Exports for Registry<W> {
    type Device = Connection<W>;

    async fn connect(&self, name: &str, peer: &Peer) -> Result<Rc<Connection<W>>, ConnectError> {
        if let Some((volume, snapshot)) = name.split_once('@') {
            let export = Box::pin(self.snapshot(volume, snapshot)).await?;
            return self.admit(export, peer);
        }
        check_name(name)?;
        let _door = self.door(name).await;
        if self.site.closing.get() {
            return Err(ConnectError::ShuttingDown);
        }
        let export = Box::pin(self.opened(name, self.create_wish())).await?;
        // No wait between: the sync task looks at the number of clients before it leaves.
        self.admit(export, peer)
    }

    async fn look(&self, name: &str) -> Result<Look, ConnectError> {
        if let Some((volume, snapshot)) = name.split_once('@') {
            let opened = Box::pin(self.site.open_snapshot(volume, snapshot)).await?;
            return Ok(Look {
                size_bytes: opened.root().size_bytes,
                access: Access::ReadOnly,
            });
        }
        check_name(name)?;
        let open = self.get(name);
        if let Some(export) = open.filter(|e| Connection::access_to(e) == Access::ReadWrite) {
            return Ok(Look {
                size_bytes: export.size_bytes(),
                access: Access::ReadWrite,
            });
        }
        let seen = Box::pin(self.site.shelf.ask(name)).await.seen;
        let local_bytes = self.site.local_volume(name, None).map(|l| l.size_bytes);
        let (size_bytes, access) = match (self.site.plan(name, self.create_wish(), &seen), seen) {
            (Plan::Refuse(refusal), _) => return Err(refused(name, refusal)),
            (Plan::Create { size_bytes }, _) => (size_bytes, Access::ReadWrite),
            (Plan::ReadOnly | Plan::Damaged { .. }, Seen::Root(root)) => {
                (root.size_bytes, Access::ReadOnly)
            }
            (_, Seen::Root(root)) => (root.size_bytes, Access::ReadWrite),
            (_, Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_)) => {
                let size = local_bytes.expect("only a known volume resumes unasked");
                (size, Access::ReadWrite)
            }
        };
        Ok(Look { size_bytes, access })
    }

    async fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.open.borrow().keys().cloned().collect();
        names.extend(self.site.cache.volumes().into_iter().map(|l| l.name));
        // Best effort: a store that is down must not keep what is here from being listed.
        if let Ok(bucket) = self.site.shelf.bucket().await
            && let Ok(stored) = Box::pin(bucket.names()).await
        {
            names.extend(stored);
        }
        names.sort();
        names.dedup();
        names
    }
}

fn is_over<W: World>(export: &Export<W>) -> bool {
    match export.role() {
        // One that was prepared is closed by the task that holds its pin.
        Role::ReadWrite | Role::Leaving | Role::Prepared => false,
        Role::Closed => true,
        Role::ReadOnly | Role::Damaged | Role::Fenced | Role::Vanished => {
            export.clients.count() == 0
        }
    }
}

fn still_used<W: World>(export: &Export<W>, what: &str) -> ConnectError {
    ConnectError::Refused(format!(
        "export `{}` {what}, and {} connections still hold it; close them first",
        export.name(),
        export.clients.count()
    ))
}

/// Rule 16. `@` is kept for snapshots.
pub(crate) fn check_name(name: &str) -> Result<(), ConnectError> {
    if name.contains('@') {
        let text = format!(
            "`{name}`: a snapshot can be connected to and nothing else; ask for the volume before the `@`"
        );
        return Err(ConnectError::Invalid(text));
    }
    if name.is_empty() {
        let text = "an export name is needed: there is no default export";
        return Err(ConnectError::Invalid(text.to_owned()));
    }
    match VolumeName::parse(name) {
        Ok(_name) => Ok(()),
        Err(error) => Err(ConnectError::Invalid(error.to_string())),
    }
}
