//! Names to exports: who may connect to what, and what the operator may change.
//!
//! Every change of what a name stands for happens behind the name's door, one at a time; of a group, behind the doors of
//! all its members. A connection to an export that is open passes without waiting for the store.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use world::sync::{OwnedSemaphorePermit, Semaphore};
use world::{Peer, World};

use super::clients::Sharing;
use super::connection::Connection;
use super::decide::{Plan, Seen};
use super::group::Door;
use super::open::{Opening, Purpose, Wish, refused};
use super::shelf::Asked;
use super::site::Site;
use super::{Export, Role, warm};
use crate::device::{Access, ConnectError, Exports, Look};
use crate::volume::{Members, RootView, Volume, VolumeName};

/// How often an open finds that a volume is published together with others than a moment ago.
const GROUPS_MAX: u32 = 8;

/// What there was under the name of another member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    IsFree,
    Waited,
}

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
    pub(crate) async fn door(&self, name: &str) -> Door {
        let permit = self.semaphore(name).acquire_owned().await;
        Door {
            permits: vec![permit.expect("never closed")],
            names: vec![name.to_owned()],
            together: vec![name.to_owned()],
        }
    }

    /// The same of several names, whatever they are to each other.
    pub(crate) async fn doors(&self, names: &[String]) -> Door {
        let mut door = Door::default();
        self.widen(&mut door, names).await;
        door.together.clear();
        door
    }

    /// The doors of all that are published together, beside those that are held. False if somebody was waited for: then
    /// whatever was known has to be looked at again.
    async fn widen(&self, door: &mut Door, names: &[String]) -> bool {
        door.together = names.to_vec();
        let lacking = names.iter().filter(|name| !door.names.contains(name));
        let lacking: Vec<String> = lacking.cloned().collect();
        let now = lacking.iter().map(|name| self.semaphore(name));
        let now: Result<Vec<OwnedSemaphorePermit>, _> =
            now.map(Semaphore::try_acquire_owned).collect();
        if let Ok(now) = now {
            door.permits.extend(now);
            door.names.extend(lacking);
            return true;
        }
        let mut all: BTreeSet<String> = std::mem::take(&mut door.names).into_iter().collect();
        all.extend(lacking);
        // None is held while another one is waited for but those before it, or two might wait for each other.
        door.permits.clear();
        for name in all {
            let permit = self.semaphore(&name).acquire_owned().await;
            door.permits.push(permit.expect("never closed"));
            door.names.push(name);
        }
        false
    }

    fn semaphore(&self, name: &str) -> Arc<Semaphore> {
        let mut doors = self.doors.borrow_mut();
        doors.retain(|_name, door| door.strong_count() > 0);
        let door = doors.get(name).and_then(Weak::upgrade);
        door.unwrap_or_else(|| {
            let door = Arc::new(Semaphore::new(1));
            doors.insert(name.to_owned(), Arc::downgrade(&door));
            door
        })
    }

    /// What the store says of a name, behind the doors of all that are published with it.
    pub(crate) async fn ask_behind_doors(
        &self,
        name: &str,
    ) -> Result<(Door, Asked<Volume<W>>), ConnectError> {
        let mut door = self.door(name).await;
        for _ in 0..GROUPS_MAX {
            let asked = Box::pin(self.site.shelf.ask(name)).await;
            let names = Box::pin(self.site.names_seen(name, &asked.seen)).await?;
            if self.widen(&mut door, &names).await {
                return Ok((door, asked));
            }
        }
        Err(regrouped(name))
    }

    /// The export behind a name, opened if it is not, with all that are published with it. The caller holds the door,
    /// which is widened for that, if need be.
    pub(crate) async fn opened(
        &self,
        door: &mut Door,
        name: &str,
        wish: Wish,
    ) -> Result<Rc<Export<W>>, ConnectError> {
        let mut asked = None;
        for _ in 0..GROUPS_MAX {
            let opening = self.open(&door.together, name, wish, asked.take());
            let opening = Box::pin(opening).await?;
            match opening {
                Opening::Opened(exports) => {
                    let first = exports.into_iter().next();
                    return Ok(first.expect("what was asked for is among them"));
                }
                Opening::Needs(names, seen) => {
                    asked = self.widen(door, &names).await.then_some(*seen);
                }
            }
        }
        Err(regrouped(name))
    }

    /// Of several that are opened the one that was asked for is the first.
    /// `together` are the names of all that are opened with it, as of the last look at it, which `asked` is, if it was just now.
    async fn open(
        &self,
        together: &[String],
        name: &str,
        wish: Wish,
        mut asked: Option<Asked<Members<W>>>,
    ) -> Result<Opening<W>, ConnectError> {
        let mut wish = Wish {
            prepared: wish.purpose == Purpose::Prepare,
            ..wish
        };
        if let Some(export) = self.get(name) {
            let is_open = match export.role() {
                Role::ReadWrite => true,
                Role::Prepared if wish.purpose == Purpose::Serve => true,
                // A read-only connection sees the cut that is current when it connects. But all members of a group are
                // shown at one moment for as long as somebody sees one of them: else two would see it torn.
                Role::ReadOnly => {
                    wish.purpose == Purpose::Serve && export.has_fellows() && export.is_used()
                }
                Role::Prepared => {
                    wish.prepared = true;
                    false
                }
                Role::Leaving => {
                    self.wait_left(&export).await;
                    false
                }
                Role::Damaged | Role::Closed => false,
                Role::Fenced => {
                    return Err(still_used(&export, "is fenced: another epoch of it exists"));
                }
                Role::Vanished => return Err(still_used(&export, "has vanished from the store")),
            };
            if is_open {
                return Ok(Opening::Opened(vec![export]));
            }
        }
        for other in together.iter().filter(|other| *other != name) {
            if self.make_way(other, wish).await? == Way::Waited {
                asked = None;
            }
        }
        let opened = Box::pin(self.site.open(name, wish, together, asked)).await;
        let opening = opened.inspect_err(|error| {
            if let (ConnectError::Unavailable(why), Some(held_back)) =
                (error, self.site.news("unavailable", name))
            {
                tracing::warn!(export = name, why, held_back, "the volume cannot be opened");
            }
        })?;
        Ok(match opening {
            Opening::Opened(exports) => Opening::Opened(vec![self.put_in_place(name, exports)]),
            needs @ Opening::Needs(..) => needs,
        })
    }

    /// What there is under the name of another member of the group is over, or can be replaced.
    async fn make_way(&self, other: &str, wish: Wish) -> Result<Way, ConnectError> {
        let Some(export) = self.get(other) else {
            return Ok(Way::IsFree);
        };
        match export.role() {
            Role::Prepared | Role::Damaged | Role::Closed => Ok(Way::IsFree),
            Role::Leaving => {
                self.wait_left(&export).await;
                Ok(Way::Waited)
            }
            Role::ReadOnly if wish.purpose == Purpose::Serve && export.is_used() => Err(
                still_used(&export, "is shown as it was before it came into this group"),
            ),
            Role::ReadOnly => Ok(Way::IsFree),
            // It was opened by itself, and what is in its group by now is somebody else's: it finds that out.
            Role::ReadWrite => {
                export.orders.carry();
                Err(ConnectError::Unavailable(format!(
                    "export `{other}`, of the same group, is open here by itself still; try again in a moment"
                )))
            }
            Role::Fenced => Err(still_used(&export, "is fenced: another epoch of it exists")),
            Role::Vanished => Err(still_used(&export, "has vanished from the store")),
        }
    }

    /// What was opened stands for its names from here on. The one of them that was asked for, or what was there already.
    fn put_in_place(&self, name: &str, exports: Vec<Rc<Export<W>>>) -> Rc<Export<W>> {
        let found = exports.iter().find(|export| export.name() == name);
        let asked = Rc::clone(found.expect("what was asked for is opened"));
        if let Some(before) = self.get(name) {
            let is_same = before.root().map(|r| r.etag) == asked.root().map(|r| r.etag);
            if is_same && before.role() == asked.role() && asked.role() != Role::ReadWrite {
                exports.iter().for_each(|export| export.end(Role::Closed));
                return before;
            }
        }
        if asked.role() == Role::ReadOnly && exports.iter().any(|it| self.is_shown(it)) {
            // For whoever wanted to know the newest of it. Who connects sees what others see.
            return asked;
        }
        for export in exports {
            let before = self.get(export.name());
            if let Some(before) = before.filter(|it| it.role() == Role::Prepared) {
                before.give_way(&export);
                if export.role() == Role::Prepared {
                    warm::go_on(&self.site, &before, &export);
                }
            }
            let name = export.name().to_owned();
            self.open.borrow_mut().insert(name, export);
        }
        asked
    }

    /// Somebody sees it, with the others of its group, as it was at another moment.
    fn is_shown(&self, export: &Export<W>) -> bool {
        let before = self.get(export.name());
        export.has_fellows() && before.is_some_and(|it| it.role() == Role::ReadOnly && it.is_used())
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

    /// Lets an export go whose task has ended, and those that were opened with it.
    pub(crate) fn remove(&self, name: &str) {
        let removed = self.open.borrow_mut().remove(name);
        let Some(removed) = removed else {
            return;
        };
        let fellows = removed.together();
        let mut open = self.open.borrow_mut();
        open.retain(|_name, export| !fellows.iter().any(|it| Rc::ptr_eq(it, export)));
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
        let mut door = self.door(name).await;
        if self.site.closing.get() {
            return Err(ConnectError::ShuttingDown);
        }
        let export = Box::pin(self.opened(&mut door, name, self.create_wish())).await?;
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
        let open = self.get(name);
        if let Some(view) = open.filter(|it| it.role() == Role::ReadOnly && it.has_fellows()) {
            // Whoever connects now sees that.
            return Ok(Look {
                size_bytes: view.size_bytes(),
                access: Access::ReadOnly,
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
        Role::ReadOnly | Role::Damaged | Role::Fenced | Role::Vanished => !export.is_used(),
    }
}

fn still_used<W: World>(export: &Rc<Export<W>>, what: &str) -> ConnectError {
    let (name, fellows) = (export.name(), export.together());
    let used = fellows.iter().filter(|it| it.clients.count() > 0);
    let used: Vec<String> = used
        .map(|it| match it.name() == name {
            true => format!("{} connections still hold it", it.clients.count()),
            false => format!("{} still hold `{}`", it.clients.count(), it.name()),
        })
        .collect();
    let used = used.join(", and ");
    ConnectError::Refused(format!(
        "export `{name}` {what}, and {used}; close them first"
    ))
}

fn regrouped(name: &str) -> ConnectError {
    ConnectError::Unavailable(format!(
        "`{name}` is published together with others each time it is looked at; try again"
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
