//! Where a fork reads that is open here and not in the store: its parent's cut, and what the parent had published
//! below it (rules 2, 22).
//!
//! ```text
//! Unknown ── the parent is open here for writing ─► Cut ── its root has a snapshot of the cut ─► Stored
//!    |  ▲-- that export ended, or the log forgot the cut --'                                        |
//!    '-- the store has the fork itself: no base any more <-----------------------------------------'
//! ```
//!
//! While it is `Cut`, the parent publishes nothing behind the cut, so that its map is that of the cut or of one
//! before, and the cut's pages go on top of either. What is read while that ends is read again. That holds for one
//! export of the parent: once it has ended, the next one may be made of something else, so nothing is read through it any more.
//!
//! A cut that is held keeps the log from being reused. It is let go whenever its parent cannot publish it, and while a
//! writer of any export waits for the room; until that has passed, reads that need it wait, as for the store.
//!
//! Absent: who takes these steps ([`crate::sync`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};

use blockcache::{CacheError, Cut, ForkBase, Id, PageRange};
use world::World;
use world::sync::Notify;

use super::frames::{Frames, ReadError, place};
use super::{Export, Role, apply_patches};
use crate::volume::Volume;

/// What a fork is made of, for reading.
#[derive(Debug)]
pub(crate) struct Base<W: World> {
    /// The fork's volume.
    pub(crate) child: Id,
    pub(crate) of: ForkBase,
    below: RefCell<Below<W>>,
    /// How often `below` changed.
    version: Cell<u64>,
}

#[derive(Debug)]
enum Below<W: World> {
    /// The parent is not open here, or not yet.
    Unknown,
    Cut {
        /// None until it is read. What it holds can neither go nor be moved, nor can what is behind it in the log: so
        /// it is let go whenever its parent cannot publish it.
        cut: Option<Rc<Cut<W>>>,
        parent: Rc<Export<W>>,
    },
    /// The parent as it was published at the cut.
    Stored(Volume<W>),
}

impl<W: World> Clone for Below<W> {
    fn clone(&self) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            Self::Cut { cut, parent } => Self::Cut {
                cut: cut.clone(),
                parent: Rc::clone(parent),
            },
            Self::Stored(volume) => Self::Stored(volume.clone()),
        }
    }
}

impl<W: World> Base<W> {
    pub(crate) fn new(child: Id, of: ForkBase) -> Rc<Self> {
        Rc::new(Self {
            child,
            of,
            below: RefCell::new(Below::Unknown),
            version: Cell::new(0),
        })
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.get()
    }

    fn set(&self, below: Below<W>) {
        self.below.replace(below);
        self.version.set(self.version.get() + 1);
    }

    /// The parent is open here for writing: its cut is in what it has not published.
    pub(crate) fn find(&self, parent: &Rc<Export<W>>) {
        let is_stored = matches!(*self.below.borrow(), Below::Stored(_));
        if !is_stored && !self.is_read_from(parent) && self.may_read(parent) {
            let parent = Rc::clone(parent);
            self.set(Below::Cut { cut: None, parent });
        }
    }

    fn is_read_from(&self, parent: &Rc<Export<W>>) -> bool {
        let below = self.below.borrow();
        matches!(&*below, Below::Cut { parent: known, .. } if Rc::ptr_eq(known, parent))
    }

    /// The export of the parent goes on, and its log has the cut still.
    fn may_read(&self, parent: &Export<W>) -> bool {
        let is_open = matches!(parent.role(), Role::ReadWrite | Role::Leaving);
        let local = parent.local().filter(|_| is_open);
        local.is_some_and(|local| local.holds_cut_of(self.child))
    }

    /// The export of the parent is over, or what the cut is made of was dropped.
    fn part(&self, parent: &Rc<Export<W>>) {
        if self.is_read_from(parent) {
            self.set(Below::Unknown);
        }
    }

    /// Nothing is held for it until it is read again.
    pub(crate) fn let_go(&self) {
        if let Below::Cut { cut, .. } = &mut *self.below.borrow_mut() {
            cut.take();
        }
    }

    /// The cut, taken again where it was let go. None if it was published meanwhile, or others need the room.
    async fn cut(&self, parent: &Rc<Export<W>>) -> Result<Option<Rc<Cut<W>>>, CacheError> {
        let Some(local) = parent.local() else {
            return Ok(None);
        };
        // Who reads steadily would take it again at once, and writers of others would wait for ever.
        if local.wants_cuts() {
            self.let_go();
            return Ok(None);
        }
        if let Below::Cut { cut: Some(cut), .. } = &*self.below.borrow() {
            return Ok(Some(Rc::clone(cut)));
        }
        let taken = Rc::new(local.cut_for_fork(self.of.cut).await?);
        Ok(match &mut *self.below.borrow_mut() {
            Below::Cut { cut, parent: now } if Rc::ptr_eq(now, parent) => {
                Some(Rc::clone(cut.get_or_insert(taken)))
            }
            _ => None,
        })
    }

    /// As [`Frames::read`], of the parent at the cut. `own` are the frames of the fork.
    pub(crate) async fn read(
        &self,
        own: &Rc<Frames<W>>,
        wanted: &[PageRange],
        whole: PageRange,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let below = self.below.borrow().clone();
        let parent = match below {
            Below::Unknown => return Err(ReadError::NotYet),
            Below::Stored(volume) => return own.read_of(&volume, wanted, whole, out).await,
            Below::Cut { cut, parent } => {
                // What is kept here would be held for as long as the store takes.
                drop(cut);
                parent
            }
        };
        if !self.may_read(&parent) {
            self.part(&parent);
            return Err(ReadError::NotYet);
        }
        let read = Box::pin(self.read_cut(&parent, wanted, whole, out)).await;
        // It ended meanwhile: what was read or failed is read again from what takes its place.
        if !self.may_read(&parent) {
            self.part(&parent);
        }
        read
    }

    async fn read_cut(
        &self,
        parent: &Rc<Export<W>>,
        wanted: &[PageRange],
        whole: PageRange,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let cut = self.cut(parent).await?.ok_or(ReadError::NotYet)?;
        let mut missing = Vec::new();
        for pages in wanted {
            let part = &mut out[place(whole, *pages)];
            missing.extend(cut.read_all(*pages, part).await?);
        }
        // The store may take minutes, and what the cut holds keeps the log from being reused.
        drop(cut);
        if missing.is_empty() {
            return Ok(());
        }
        let absent: Vec<PageRange> = missing.iter().map(|it| it.pages).collect();
        Box::pin(parent.frames().read(&absent, whole, out)).await?;
        apply_patches(&missing, whole, out);
        Ok(())
    }
}

/// Forks that were asked for and went to the store, of which this process remembers the ids; the oldest are forgotten.
const SENT_KEPT_MAX: usize = 4096;

/// Who is open here for writing, and what is made of it that is not in the store.
#[derive(Debug)]
pub(crate) struct Lineage<W: World> {
    writers: RefCell<BTreeMap<Id, Weak<Export<W>>>>,
    bases: RefCell<BTreeMap<Id, Weak<Base<W>>>>,
    /// Oldest first.
    sent: RefCell<VecDeque<Id>>,
    /// Names of parents that are not open here, and that forks wait for: until somebody has tried to open them.
    wanted: RefCell<BTreeSet<String>>,
    /// Those of them that nobody tries to open so far.
    unheard: RefCell<VecDeque<String>>,
    /// To who opens them.
    pub(crate) wants: Notify,
    /// A volume was opened for writing, published for a fork, failed, or ended.
    pub(crate) news: Notify,
}

impl<W: World> Default for Lineage<W> {
    fn default() -> Self {
        Self {
            writers: RefCell::default(),
            bases: RefCell::default(),
            sent: RefCell::default(),
            wanted: RefCell::default(),
            unheard: RefCell::default(),
            wants: Notify::new(),
            news: Notify::new(),
        }
    }
}

impl<W: World> Lineage<W> {
    pub(crate) fn opened(&self, volume: Id, export: &Rc<Export<W>>) {
        let mut writers = self.writers.borrow_mut();
        writers.retain(|_, known| known.strong_count() > 0);
        writers.insert(volume, Rc::downgrade(export));
        drop(writers);
        self.news.notify_waiters();
    }

    /// The export that publishes a volume.
    pub(crate) fn writer(&self, volume: Id) -> Option<Rc<Export<W>>> {
        let found = self.writers.borrow().get(&volume).and_then(Weak::upgrade);
        found.filter(|export| matches!(export.role(), Role::ReadWrite | Role::Leaving))
    }

    /// The store may hear of a fork with this id: one that is begun in the log under the same could never be published.
    pub(crate) fn sent(&self, fork: Id) {
        let mut sent = self.sent.borrow_mut();
        if sent.contains(&fork) {
            return;
        }
        if sent.len() == SENT_KEPT_MAX {
            sent.pop_front();
        }
        sent.push_back(fork);
    }

    pub(crate) fn was_sent(&self, fork: Id) -> bool {
        self.sent.borrow().contains(&fork)
    }

    /// A fork waits for its parent, which is to be opened; or one was closed, to be opened with others. While somebody tries
    /// to, asking again changes nothing.
    pub(crate) fn want(&self, parent: &str) {
        if self.wanted.borrow_mut().insert(parent.to_owned()) {
            self.unheard.borrow_mut().push_back(parent.to_owned());
            self.wants.notify_one();
        }
    }

    /// One that is to be opened now.
    pub(crate) fn take_wanted(&self) -> Option<String> {
        self.unheard.borrow_mut().pop_front()
    }

    /// It is open, or cannot be opened now.
    pub(crate) fn settled(&self, parent: &str) {
        self.wanted.borrow_mut().remove(parent);
    }

    /// A fork ended, was published, or was dropped: who publishes its parent need not wait for it any more.
    pub(crate) fn left(&self, of: &ForkBase) {
        if let Some(parent) = self.writer(of.parent) {
            parent.orders.wake.notify_one();
        }
        self.news.notify_waiters();
    }

    pub(crate) fn add(&self, base: &Rc<Base<W>>) {
        let mut bases = self.bases.borrow_mut();
        bases.retain(|_, known| known.strong_count() > 0);
        bases.insert(base.child, Rc::downgrade(base));
    }

    /// The volume was published at exactly the cuts of these forks. To be called in the same step that installs the
    /// map: what is read later through the parent's frames is not of the cut any more.
    pub(crate) fn published(&self, children: &[Id], volume: &Volume<W>) {
        let bases = self.bases.borrow();
        let open = children
            .iter()
            .filter_map(|child| bases.get(child)?.upgrade());
        let mut frozen = None;
        for base in open {
            let stored = frozen.get_or_insert_with(|| volume.frozen());
            base.set(Below::Stored(stored.clone()));
        }
    }
}
