//! Directories and leaves of maps in memory: one bounded cache for all volumes of a shard, where
//! misses for the same node join.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use blockcache::Id;
use bytes::Bytes;
use world::World;
use world::sync::Semaphore;

use super::VolumeError;
use super::leaf::{Directory, Leaf, LeafRow};
use super::lru::Lru;
use super::reader::Reader;
use super::runs::Part;
use super::sealed::{INDEX_FRAME, Kind};

/// Memory for directories and leaves, per shard. Beyond it, the least recently used are read again.
pub(crate) const NODES_BYTES_MAX: usize = 24 << 20;

/// A node by what refers to it: object, frame, and the hash that its bytes must have.
type Key = (Id, u32, [u8; 16]);

#[derive(Clone, Debug)]
enum Node {
    Directory(Rc<Directory>),
    Leaf(Rc<Leaf>),
}

#[derive(Debug)]
pub(crate) struct Nodes {
    kept: RefCell<Lru<Key, Node>>,
    /// Being read. Whoever else wants one waits until the semaphore is closed.
    flights: RefCell<BTreeMap<Key, Rc<Semaphore>>>,
}

impl Nodes {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            kept: RefCell::new(Lru::new(bytes_max)),
            flights: RefCell::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.kept.borrow().bytes()
    }

    pub(crate) async fn directory<W: World>(
        &self,
        reader: &Reader<W>,
        part: &Part,
    ) -> Result<Rc<Directory>, VolumeError> {
        let reference = &part.directory;
        let key = (Id(reference.id), INDEX_FRAME, short(&reference.hash));
        let _landing = match self.seen(key).await {
            Ok(Node::Directory(directory)) => return Ok(directory),
            Ok(Node::Leaf(_)) => unreachable!("leaves have other frame numbers"),
            Err(landing) => landing,
        };
        let bytes = reader.index(Kind::MapPart, reference).await?;
        let directory = Directory::parse(part.pages(), &bytes)
            .map_err(|what| reader.damaged(Kind::MapPart, reference.name(), what))?;
        let directory = Rc::new(directory);
        let node = Node::Directory(Rc::clone(&directory));
        self.kept.borrow_mut().put(key, node, directory.bytes());
        Ok(directory)
    }

    pub(crate) async fn leaf<W: World>(
        &self,
        reader: &Reader<W>,
        row: &LeafRow,
    ) -> Result<Rc<Leaf>, VolumeError> {
        let key = (row.object.id, row.number, row.hash);
        let _landing = match self.seen(key).await {
            Ok(Node::Leaf(leaf)) => return Ok(leaf),
            Ok(Node::Directory(_)) => unreachable!("directories have their own frame number"),
            Err(landing) => landing,
        };
        let leaf = Rc::new(read_leaf(reader, row).await?);
        let node = Node::Leaf(Rc::clone(&leaf));
        self.kept.borrow_mut().put(key, node, leaf.bytes());
        Ok(leaf)
    }

    /// The node if it is here, or once somebody else has read it; else the right to read it. After
    /// one wait in vain (an error, or it did not fit) everybody reads for himself: a queue of
    /// failing reads one after another would take for ever.
    async fn seen(&self, key: Key) -> Result<Node, Option<Landing<'_>>> {
        if let Some(node) = self.kept.borrow_mut().get(key) {
            return Ok(node);
        }
        let flight = self.flights.borrow().get(&key).cloned();
        let Some(flight) = flight else {
            let flight = Rc::new(Semaphore::new(0));
            self.flights.borrow_mut().insert(key, flight);
            return Err(Some(Landing { nodes: self, key }));
        };
        // It has no permits: this returns when it is closed.
        drop(flight.acquire().await);
        self.kept.borrow_mut().get(key).ok_or(None)
    }
}

/// Ends a flight also when its future is dropped half-way.
#[derive(Debug)]
struct Landing<'a> {
    nodes: &'a Nodes,
    key: Key,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if let Some(flight) = self.nodes.flights.borrow_mut().remove(&self.key) {
            flight.close();
        }
    }
}

/// Reads a leaf past the cache.
async fn read_leaf<W: World>(reader: &Reader<W>, row: &LeafRow) -> Result<Leaf, VolumeError> {
    let stored = row.offset..row.offset + row.stored;
    let bytes = reader.stored(Kind::MapPart, row.object, stored).await?;
    open_leaf(reader, row, bytes).await
}

/// A leaf of which the stored bytes are here.
pub(crate) async fn open_leaf<W: World>(
    reader: &Reader<W>,
    row: &LeafRow,
    stored: Bytes,
) -> Result<Leaf, VolumeError> {
    let kind = Kind::MapPart;
    let bytes = reader.open(row.target(), stored).await?;
    let leaf = Leaf::parse(row.pages, &bytes);
    let leaf = leaf.map_err(|what| reader.damaged(kind, row.object, what))?;
    if u32::try_from(leaf.len()) == Ok(row.entries) {
        Ok(leaf)
    } else {
        let what = "a leaf has not as many entries as its directory says";
        Err(reader.damaged(kind, row.object, what))
    }
}

fn short(hash: &[u8; 32]) -> [u8; 16] {
    *hash.first_chunk().expect("16 of 32")
}
