//! A map bounded by bytes that forgets what was not used for longest.

use std::collections::BTreeMap;
use std::fmt;

/// Least recently used goes first.
pub(crate) struct Lru<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Keys by when they were used last.
    order: BTreeMap<u64, K>,
    clock: u64,
    bytes: usize,
    bytes_max: usize,
}

struct Entry<V> {
    used: u64,
    bytes: usize,
    value: V,
}

impl<K: Ord + Copy, V: Clone> Lru<K, V> {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            bytes_max,
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&mut self, key: K) -> Option<V> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        self.order.remove(&entry.used);
        entry.used = self.clock;
        self.order.insert(self.clock, key);
        Some(entry.value.clone())
    }

    /// Keeps a value, unless it alone is more than may be kept.
    pub(crate) fn put(&mut self, key: K, value: V, bytes: usize) {
        self.remove(key);
        if bytes > self.bytes_max {
            return;
        }
        self.clock += 1;
        let used = self.clock;
        self.order.insert(used, key);
        self.entries.insert(key, Entry { used, bytes, value });
        self.bytes += bytes;
        while self.bytes > self.bytes_max {
            let (_, oldest) = self
                .order
                .first_key_value()
                .expect("bytes are held by entries");
            self.remove(*oldest);
        }
    }

    fn remove(&mut self, key: K) {
        if let Some(entry) = self.entries.remove(&key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

impl<K, V> fmt::Debug for Lru<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lru({} of {} bytes)", self.bytes, self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_holds() {
        let mut lru = Lru::new(10);
        lru.put(1, "a", 4);
        lru.put(2, "b", 4);
        assert_eq!(lru.get(1), Some("a"));
        lru.put(3, "c", 4);
        assert_eq!(
            (lru.get(1), lru.get(2), lru.get(3)),
            (Some("a"), None, Some("c"))
        );
        lru.put(4, "huge", 11);
        assert_eq!((lru.get(4), lru.bytes()), (None, 8));
        lru.put(3, "d", 10);
        assert_eq!((lru.get(1), lru.get(3), lru.bytes()), (None, Some("d"), 10));
    }
}
