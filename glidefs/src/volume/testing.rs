//! A world for the unit tests of volumes: an object store in memory that counts, fails and lies on
//! demand; time that passes when somebody sleeps; chance from a counter. No disk, no sockets.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use world::exec::{Executor, yield_now};
use world::store::Part;
use world::{
    Address, Buf, DiskError, ETag, File, Instant, Listed, Listener, Object, OpenMode, Peer, Store,
    StoreError, StoreErrorKind, Stream, UnixTime, World,
};

#[derive(Clone, Debug)]
pub(crate) struct TestWorld(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    executor: Executor,
    nanos: Cell<u64>,
    chance: RefCell<blake3::OutputReader>,
}

impl TestWorld {
    pub(crate) fn new(seed: u64) -> Self {
        let chance = blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof();
        Self(Rc::new(Inner {
            executor: Executor::new(|| ()),
            nanos: Cell::new(0),
            chance: RefCell::new(chance),
        }))
    }

    /// Runs until the future is done; panics if it waits for something that never comes.
    pub(crate) fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.0.executor.spawn(async move {
            let value = work.await;
            *slot.borrow_mut() = Some(value);
        });
        while self.0.executor.run_next() {}
        result.take().expect("the future waits for ever")
    }
}

impl World for TestWorld {
    type File = None;
    type Stream = None;
    type Listener = None;
    type Store = TestStore;

    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.nanos.get())
    }

    fn unix_time(&self) -> UnixTime {
        UnixTime(1_700_000_000_000 + self.0.nanos.get() / 1_000_000)
    }

    async fn sleep_until(&self, deadline: Instant) {
        self.0
            .nanos
            .set(self.0.nanos.get().max(deadline.as_nanos()));
        yield_now().await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.0.chance.borrow_mut().fill(bytes);
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        yield_now()
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        yield_now().await;
        work()
    }

    async fn open(&self, _path: &Path, _mode: OpenMode) -> Result<None, DiskError> {
        unreachable!("volumes use no disk")
    }

    async fn listen(&self, _at: &Address) -> io::Result<None> {
        unreachable!("volumes use no sockets")
    }

    async fn connect(&self, _to: &Address) -> io::Result<None> {
        unreachable!("volumes use no sockets")
    }
}

/// There is no file, stream or listener in this world.
#[derive(Clone, Copy, Debug)]
pub(crate) enum None {}

impl File for None {
    async fn read_at(&self, _at: u64, _buf: Buf) -> (Buf, Result<(), DiskError>) {
        match *self {}
    }
    fn read_now(&self, _at: u64, _into: &mut [u8]) -> bool {
        match *self {}
    }
    async fn write_at(&self, _at: u64, _buf: Buf) -> (Buf, Result<(), DiskError>) {
        match *self {}
    }
    async fn persist(&self) -> Result<(), DiskError> {
        match *self {}
    }
    async fn size(&self) -> Result<u64, DiskError> {
        match *self {}
    }
    async fn grow(&self, _to: u64) -> Result<(), DiskError> {
        match *self {}
    }
    async fn forget_cached(&self) -> Result<(), DiskError> {
        match *self {}
    }
    async fn read_device_at(&self, _at: u64, _buf: Buf) -> (Buf, Result<(), DiskError>) {
        match *self {}
    }
}

impl Listener for None {
    type Stream = Self;
    async fn accept(&self) -> io::Result<Self> {
        match *self {}
    }
    fn address(&self) -> Address {
        match *self {}
    }
}

impl Stream for None {
    async fn read_now(&self, _into: &mut Vec<u8>) -> io::Result<Option<usize>> {
        match *self {}
    }
    async fn readable(&self) -> io::Result<()> {
        match *self {}
    }
    async fn write_all(&self, _parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        match *self {}
    }
    fn shutdown(&self) {
        match *self {}
    }
    fn peer(&self) -> Peer {
        match *self {}
    }
}

/// What the next request of a kind meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It has no effect, and fails so.
    Before(StoreErrorKind),
    /// The same as a temporary failure, and the store asks to be left alone for so long.
    Asks(Duration),
    /// It takes effect, and fails so.
    After(StoreErrorKind),
    /// It fails so, and takes effect right before the next request of the kind.
    Late(StoreErrorKind),
}

/// Requests of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) gets: usize,
    pub(crate) puts: usize,
    pub(crate) lists: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct TestStore(Rc<RefCell<Objects>>);

/// What somebody else makes of an object.
type Change = fn(&[u8]) -> Vec<u8>;

#[derive(Debug, Default)]
struct Objects {
    objects: BTreeMap<String, (Bytes, u64)>,
    versions: u64,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    late: Option<(String, Option<ETag>, Bytes)>,
    counts: Counts,
    flaw: Option<Flaw>,
    versioned: bool,
    meanwhile: Option<Change>,
}

/// What a store that will not do gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Any put succeeds.
    IgnoresConditions,
    /// A create is exact; a replace is not.
    IgnoresIfMatch,
    /// A replace is exact where there is something, and else a create.
    CreatesAbsent,
    /// A replace is told that its condition failed, whatever it says.
    RefusesIfMatch,
    /// Who reads is told other versions than who writes.
    RenamesVersions,
    /// Lists show nothing.
    ListsLate,
    /// Reads show the first version of an object.
    ReadsLate,
    /// A read of a part returns the whole object.
    IgnoresRanges,
    /// No flaw: a part that the object does not have in full is refused, as S3 does.
    RefusesBeyond,
}

impl TestStore {
    pub(crate) fn with(flaw: Flaw) -> Self {
        let store = Self::default();
        store.0.borrow_mut().flaw = Some(flaw);
        store
    }

    /// From here on.
    pub(crate) fn flawed(&self, flaw: Flaw) {
        self.0.borrow_mut().flaw = Some(flaw);
    }

    pub(crate) fn sound(&self) {
        self.0.borrow_mut().flaw = None;
    }

    pub(crate) fn versioned() -> Self {
        let store = Self::default();
        store.0.borrow_mut().versioned = true;
        store
    }

    pub(crate) fn fail(&self, operation: &'static str, faults: impl IntoIterator<Item = Fault>) {
        let mut inner = self.0.borrow_mut();
        inner.faults.entry(operation).or_default().extend(faults);
    }

    /// The first requests of the kind go well.
    pub(crate) fn fail_after(
        &self,
        operation: &'static str,
        good: usize,
        faults: impl IntoIterator<Item = Fault>,
    ) {
        self.fail(operation, std::iter::repeat_n(Fault::None, good));
        self.fail(operation, faults);
    }

    /// What the next change puts that fails after it took effect, somebody else changes before it is looked at.
    pub(crate) fn meanwhile(&self, change: Change) {
        self.0.borrow_mut().meanwhile = Some(change);
    }

    pub(crate) fn heal(&self) {
        self.0.borrow_mut().faults.clear();
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.borrow().counts
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.0.borrow().objects.keys().cloned().collect()
    }

    pub(crate) fn object(&self, key: &str) -> Bytes {
        self.0.borrow().objects[key].0.clone()
    }

    /// Puts bytes there, past all conditions.
    pub(crate) fn set(&self, key: &str, body: Bytes) {
        self.0.borrow_mut().put(key, body);
    }

    pub(crate) fn remove(&self, key: &str) {
        self.0.borrow_mut().objects.remove(key);
    }

    async fn change(
        &self,
        operation: &'static str,
        key: &str,
        seen: Option<&ETag>,
        body: Bytes,
    ) -> Result<ETag, StoreError> {
        yield_now().await;
        let mut inner = self.0.borrow_mut();
        inner.counts.puts += 1;
        if let Some((key, seen, body)) = inner.late.take() {
            drop(inner.change(operation, &key, seen.as_ref(), body));
        }
        let fault = inner
            .faults
            .get_mut(operation)
            .and_then(VecDeque::pop_front);
        match fault {
            None | Some(Fault::None) => inner.change(operation, key, seen, body),
            Some(Fault::Before(kind)) => Err(error(operation, key, kind)),
            Some(Fault::Asks(wait)) => Err(asks(operation, key, wait)),
            Some(Fault::After(kind)) => {
                drop(inner.change(operation, key, seen, body.clone()));
                if let Some(meanwhile) = inner.meanwhile.take() {
                    inner.put(key, meanwhile(&body).into());
                }
                Err(error(operation, key, kind))
            }
            Some(Fault::Late(kind)) => {
                inner.late = Some((key.to_owned(), seen.cloned(), body));
                Err(error(operation, key, kind))
            }
        }
    }

    fn read_fault(&self, operation: &'static str, key: &str) -> Result<(), StoreError> {
        let mut inner = self.0.borrow_mut();
        match inner
            .faults
            .get_mut(operation)
            .and_then(VecDeque::pop_front)
        {
            Some(Fault::Before(kind) | Fault::After(kind) | Fault::Late(kind)) => {
                Err(error(operation, key, kind))
            }
            Some(Fault::Asks(wait)) => Err(asks(operation, key, wait)),
            None | Some(Fault::None) => Ok(()),
        }
    }
}

impl Objects {
    fn put(&mut self, key: &str, body: Bytes) -> ETag {
        self.versions += 1;
        self.objects.insert(key.to_owned(), (body, self.versions));
        ETag(self.versions.to_string())
    }

    fn change(
        &mut self,
        operation: &'static str,
        key: &str,
        seen: Option<&ETag>,
        body: Bytes,
    ) -> Result<ETag, StoreError> {
        let there = self
            .objects
            .get(key)
            .map(|(_, version)| ETag(version.to_string()));
        let careless = match self.flaw {
            Some(Flaw::IgnoresConditions) => true,
            Some(Flaw::IgnoresIfMatch) => seen.is_some(),
            Some(Flaw::CreatesAbsent) => seen.is_some() && there.is_none(),
            _ => false,
        };
        if self.flaw == Some(Flaw::RefusesIfMatch) && seen.is_some() {
            return Err(error(operation, key, StoreErrorKind::Conflict));
        }
        if self.flaw == Some(Flaw::ReadsLate) && seen.is_some() && there.as_ref() == seen {
            // It says so, and goes on showing the old one; its version is another.
            let old = self.objects[key].0.clone();
            return Ok(self.put(key, old));
        }
        if careless || there.as_ref() == seen {
            return Ok(self.put(key, body));
        }
        let gone = seen.is_some() && there.is_none();
        let kind = if gone {
            StoreErrorKind::NotFound
        } else {
            StoreErrorKind::Conflict
        };
        Err(error(operation, key, kind))
    }
}

fn error(operation: &'static str, key: &str, kind: StoreErrorKind) -> StoreError {
    StoreError {
        operation,
        key: key.to_owned(),
        kind,
        message: "by the test".to_owned(),
        retry_after: None,
    }
}

fn asks(operation: &'static str, key: &str, wait: Duration) -> StoreError {
    StoreError {
        retry_after: Some(wait),
        ..error(operation, key, StoreErrorKind::Retry)
    }
}

impl Store for TestStore {
    async fn get(&self, key: &str, part: Part) -> Result<Object, StoreError> {
        yield_now().await;
        self.0.borrow_mut().counts.gets += 1;
        self.read_fault("get", key)?;
        let inner = self.0.borrow();
        let there = inner.objects.get(key);
        let (body, version) = there.ok_or_else(|| error("get", key, StoreErrorKind::NotFound))?;
        let len = body.len();
        let at = |at: u64| usize::try_from(at).unwrap_or(len).min(len);
        if inner.flaw == Some(Flaw::RefusesBeyond)
            && let Part::Range(range) = &part
            && range.end > len as u64
        {
            return Err(error("get", key, StoreErrorKind::Refused));
        }
        let part = match inner.flaw {
            Some(Flaw::IgnoresRanges) => Part::All,
            _ => part,
        };
        let bytes = match part {
            Part::All => body.clone(),
            Part::Range(range) => body.slice(at(range.start)..at(range.end)),
            Part::Suffix(suffix) => body.slice(len - at(suffix)..),
        };
        let renamed = inner.flaw == Some(Flaw::RenamesVersions);
        Ok(Object {
            bytes,
            etag: ETag(format!("{}{version}", if renamed { "W/" } else { "" })),
            size: len as u64,
        })
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<ETag, StoreError> {
        self.change("create", key, Default::default(), body).await
    }

    async fn replace(&self, key: &str, seen: &ETag, body: Bytes) -> Result<ETag, StoreError> {
        self.change("replace", key, Some(seen), body).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        yield_now().await;
        self.0.borrow_mut().counts.lists += 1;
        self.read_fault("list", prefix)?;
        let inner = self.0.borrow();
        let keys = inner.objects.iter().filter(|(key, _)| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
        });
        let count_max = match inner.flaw {
            Some(Flaw::ListsLate) => 0,
            _ => count_max,
        };
        let rows = keys.take(count_max).map(|(key, (body, _))| Listed {
            key: key.clone(),
            size: body.len() as u64,
        });
        Ok(rows.collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        yield_now().await;
        self.0.borrow_mut().objects.remove(key);
        Ok(())
    }

    fn keeps_versions(&self) -> bool {
        self.0.borrow().versioned
    }
}
