//! Where a fork reads that is open here and not in the store: its parent's cut, and what the parent had published
//! below it (rules 2, 22).
//!
//! ```text
//! Unknown ── the parent is open here for writing ─► Cut ── its root has a snapshot of the cut ─► Stored
//!    '-- the store has the fork itself: no base any more <-----------------------------------------'
//! ```
//!
//! While it is `Cut`, the parent publishes nothing behind the cut, so that its map is that of the cut or of one
//! before, and the cut's pages go on top of either. What is read while that ends is read again.
//!
//! Absent: who takes these steps ([`crate::sync`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
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
        let is_noted = parent.local_state().is_some_and(|state| {
            let mut forks = state.forks.iter();
            forks.any(|fork| fork.child == self.child && !fork.is_carried)
        });
        let is_unknown = matches!(*self.below.borrow(), Below::Unknown);
        if is_unknown && is_noted {
            let parent = Rc::clone(parent);
            self.set(Below::Cut { cut: None, parent });
        }
    }

    /// Nothing is held for it until it is read again.
    pub(crate) fn let_go(&self) {
        if let Below::Cut { cut, .. } = &mut *self.below.borrow_mut() {
            cut.take();
        }
    }

    /// The cut, taken again where it was let go. None if it was published meanwhile.
    async fn cut(&self, parent: &Export<W>) -> Result<Option<Rc<Cut<W>>>, CacheError> {
        if let Below::Cut { cut: Some(cut), .. } = &*self.below.borrow() {
            return Ok(Some(Rc::clone(cut)));
        }
        let Some(local) = parent.local() else {
            return Ok(None);
        };
        let taken = Rc::new(local.cut_for_fork(self.of.cut).await?);
        Ok(match &mut *self.below.borrow_mut() {
            Below::Cut { cut, .. } => Some(Rc::clone(cut.get_or_insert(taken))),
            Below::Unknown | Below::Stored(_) => None,
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
            Below::Cut { parent, .. } => parent,
        };
        let cut = self.cut(&parent).await?.ok_or(ReadError::NotYet)?;
        let mut missing = Vec::new();
        for pages in wanted {
            let part = &mut out[place(whole, *pages)];
            missing.extend(cut.read_all(*pages, part).await?);
        }
        if missing.is_empty() {
            return Ok(());
        }
        let absent: Vec<PageRange> = missing.iter().map(|it| it.pages).collect();
        Box::pin(parent.frames().read(&absent, whole, out)).await?;
        apply_patches(&missing, whole, out);
        Ok(())
    }
}

/// Who is open here for writing, and what is made of it that is not in the store.
#[derive(Debug)]
pub(crate) struct Lineage<W: World> {
    writers: RefCell<BTreeMap<Id, Weak<Export<W>>>>,
    bases: RefCell<BTreeMap<Id, Weak<Base<W>>>>,
    /// A volume was opened for writing, published for a fork, failed, or ended.
    pub(crate) news: Notify,
}

impl<W: World> Default for Lineage<W> {
    fn default() -> Self {
        Self {
            writers: RefCell::default(),
            bases: RefCell::default(),
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
