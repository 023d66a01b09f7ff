//! What `glidefs top` shows: two looks at the counters in, rows and totals out, sorted and filtered as
//! the keys say. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::control::{ExportMeters, MetersDocument};
use crate::meter::Latency;
use crate::meter::store::{ANSWERED, StoreRequests};

/// The document counts pages of so many bytes.
const PAGE_BYTES: u64 = 4096;
const READ_WRITE: &str = "read-write";
const CLOSED: &str = "closed";
/// Of a read-write export whose log has stopped: nothing is taken any more, and nothing published.
pub(super) const HALTED: &str = "halted";

/// What happened between two looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct View {
    /// Between the two; 0 if there was only one, so that nothing is known of rates.
    pub(super) interval_ms: u64,
    pub(super) totals: Totals,
    pub(super) exports: Vec<Row>,
}

/// Of one export.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) role: String,
    /// The role, or that the export is halted, which the role does not tell.
    pub(super) state: String,
    pub(super) clients: u32,
    /// Reads, writes, flushes, trims.
    pub(super) operations_per_second: u64,
    pub(super) read_bytes_per_second: u64,
    pub(super) written_bytes_per_second: u64,
    /// Of reads, writes and trims.
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
    pub(super) flush_p99_us: Option<u64>,
    /// Of 100 pages read, those that the cache held.
    pub(super) hit_percent: Option<u64>,
    pub(super) dirty_bytes: u64,
    pub(super) dirty_age_ms: u64,
    pub(super) sync_lag_ms: u64,
    pub(super) store_requests_per_minute: u64,
    pub(super) errors: Errors,
    /// Time that writes were held back, of all of them together.
    pub(super) throttled_ms_per_second: u64,
    pub(super) evicted_bytes_per_second: u64,
}

/// They are rare, and one would be gone from a rate with the next look: so all since the server started, and those
/// of them that came between the two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Errors {
    /// Requests of clients that were answered with an error.
    pub(super) io: u64,
    pub(super) new_io: u64,
    /// Attempts to sync that failed.
    pub(super) sync: u64,
    pub(super) new_sync: u64,
}

impl Errors {
    fn and(self, other: Self) -> Self {
        Self {
            io: self.io.saturating_add(other.io),
            new_io: self.new_io.saturating_add(other.new_io),
            sync: self.sync.saturating_add(other.sync),
            new_sync: self.new_sync.saturating_add(other.new_sync),
        }
    }

    /// Those that clients felt first.
    fn weight(self) -> (u64, u64, u64, u64) {
        (self.new_io, self.new_sync, self.io, self.sync)
    }
}

/// Of the cache and the store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Totals {
    pub(super) version: String,
    pub(super) exports: u64,
    pub(super) exports_left_out: u64,
    pub(super) clients: u64,
    pub(super) operations_per_second: u64,
    pub(super) cache_bytes: u64,
    pub(super) cache_used_bytes: u64,
    pub(super) dirty_bytes: u64,
    pub(super) writers_waiting: u64,
    /// How many exports are in which state; not those that are as they should be.
    pub(super) states: BTreeMap<String, u64>,
    pub(super) errors: Errors,
    pub(super) throttled_ms_per_second: u64,
    pub(super) throttled_writes_per_second: u64,
    pub(super) evicted_bytes_per_second: u64,
    pub(super) store_requests_per_minute: u64,
    /// Those that the store failed: `retry`, `unknown`, `refused`.
    pub(super) store_failures_per_minute: u64,
    /// Of requests that the store answered.
    pub(super) store_p99_us: Option<u64>,
    pub(super) sent_bytes_per_second: u64,
    pub(super) received_bytes_per_second: u64,
    /// Why the log stopped, if it did.
    pub(super) stopped: Option<String>,
}

/// By what rows are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Operations,
    Bytes,
    P99,
    Hits,
    Dirty,
    Lag,
    Requests,
    Errors,
    Throttled,
}

/// What a person has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
    /// Keys go into the filter.
    pub(super) is_typing: bool,
    /// Rows that are scrolled past.
    pub(super) skipped: usize,
}

/// A key, whatever terminal it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    Interrupt,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    Quit,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            sort: Sort::Operations,
            is_reversed: false,
            filter: String::new(),
            is_typing: false,
            skipped: 0,
        }
    }
}

impl Choice {
    pub(super) fn press(&mut self, key: Key) -> Then {
        match (key, self.is_typing) {
            (Key::Interrupt, _) | (Key::Char('q'), false) => return Then::Quit,
            (Key::Enter, _) => self.is_typing = false,
            (Key::Escape, _) => {
                self.is_typing = false;
                self.filter.clear();
            }
            (Key::Backspace, true) => {
                self.filter.pop();
            }
            (Key::Char(letter), true) => self.filter.push(letter),
            (Key::Char('/'), false) => self.is_typing = true,
            (Key::Up, _) | (Key::Char('k'), false) => {
                self.skipped = self.skipped.saturating_sub(1);
                return Then::GoOn;
            }
            (Key::Down, _) | (Key::Char('j'), false) => {
                self.skipped = self.skipped.saturating_add(1);
                return Then::GoOn;
            }
            (Key::Char('r'), false) => self.is_reversed = !self.is_reversed,
            (Key::Char(letter), false) => {
                if let Some((_, sort, _)) = SORTS.iter().find(|(it, _, _)| *it == letter) {
                    self.is_reversed = self.sort == *sort && !self.is_reversed;
                    self.sort = *sort;
                }
            }
            (Key::Backspace, false) => {}
        }
        // Another order or another filter: begin at the top.
        self.skipped = 0;
        Then::GoOn
    }

    /// The rows that are shown, in order; at least the last one stays in sight.
    pub(super) fn of<'a>(&mut self, rows: &'a [Row]) -> Vec<&'a Row> {
        let filter = self.filter.as_str();
        let mut chosen: Vec<&Row> = rows
            .iter()
            .filter(|row| row.name.contains(filter))
            .collect();
        chosen.sort_by(|a, b| {
            let order = self.sort.compare(a, b);
            let order = if self.is_reversed {
                order.reverse()
            } else {
                order
            };
            order.then_with(|| a.name.cmp(&b.name))
        });
        self.skipped = self.skipped.min(chosen.len().saturating_sub(1));
        chosen.split_off(self.skipped)
    }
}

/// The key, the order, and its name.
pub(super) const SORTS: [(char, Sort, &str); 10] = [
    ('n', Sort::Name, "name"),
    ('i', Sort::Operations, "iops"),
    ('b', Sort::Bytes, "bytes"),
    ('p', Sort::P99, "p99"),
    ('h', Sort::Hits, "hits"),
    ('d', Sort::Dirty, "dirty"),
    ('l', Sort::Lag, "lag"),
    ('s', Sort::Requests, "store"),
    ('e', Sort::Errors, "errors"),
    ('t', Sort::Throttled, "throttled"),
];

impl Sort {
    pub(super) fn name(self) -> &'static str {
        let found = SORTS.iter().find(|(_, sort, _)| *sort == self);
        found.map_or("", |(_, _, name)| name)
    }

    /// What needs a look first: the most, but the fewest hits.
    fn compare(self, a: &Row, b: &Row) -> Ordering {
        match self {
            Self::Name => a.name.cmp(&b.name),
            Self::Operations => b.operations_per_second.cmp(&a.operations_per_second),
            Self::Bytes => b.bytes_per_second().cmp(&a.bytes_per_second()),
            Self::P99 => b.p99_us.cmp(&a.p99_us),
            Self::Hits => {
                let hits = |row: &Row| row.hit_percent.unwrap_or(u64::MAX);
                hits(a).cmp(&hits(b))
            }
            Self::Dirty => b.dirty_bytes.cmp(&a.dirty_bytes),
            Self::Lag => b.sync_lag_ms.cmp(&a.sync_lag_ms),
            Self::Requests => b
                .store_requests_per_minute
                .cmp(&a.store_requests_per_minute),
            Self::Errors => b.errors.weight().cmp(&a.errors.weight()),
            Self::Throttled => b.throttled_ms_per_second.cmp(&a.throttled_ms_per_second),
        }
    }
}

impl Row {
    pub(super) fn bytes_per_second(&self) -> u64 {
        self.read_bytes_per_second
            .saturating_add(self.written_bytes_per_second)
    }
}

/// What happened from `before` to `now`. What is counted anew since (a restart) counts as nothing.
pub(super) fn view(before: Option<&MetersDocument>, now: &MetersDocument) -> View {
    let interval_ms = before.map_or(0, |before| now.at_ms.saturating_sub(before.at_ms));
    let exports: Vec<Row> = now
        .exports
        .iter()
        .map(|export| {
            let name = export.export.name.as_str();
            let exports = before.map_or(&[][..], |before| &before.exports);
            let earlier = exports.iter().find(|earlier| earlier.export.name == name);
            let mut row = row(earlier, export, interval_ms);
            if now.server.stopped.is_some() && row.role == READ_WRITE {
                HALTED.clone_into(&mut row.state);
            }
            row
        })
        .collect();
    View {
        interval_ms,
        totals: totals(before, now, &exports, interval_ms),
        exports,
    }
}

fn row(before: Option<&ExportMeters>, now: &ExportMeters, interval_ms: u64) -> Row {
    let export = &now.export;
    let then = before.unwrap_or(now);
    let (io, earlier) = (&export.io, &then.export.io);
    let rate = |now: u64, before: u64| per(1000, now, before, interval_ms);
    let operations =
        |io: &crate::control::IoDocument| io.reads + io.writes + io.flushes + io.zeroes;
    let latency = |of: fn(&ExportMeters) -> &Latency| difference(of(now), of(then));
    let moved = latency(|it| &it.latency.read)
        .and(&latency(|it| &it.latency.write))
        .and(&latency(|it| &it.latency.zero));
    let hits = io.hit_pages.saturating_sub(earlier.hit_pages);
    let pages = hits + io.miss_pages.saturating_sub(earlier.miss_pages);
    let asked = count(&now.store, |_| true);
    let asked_before = count(&then.store, |_| true);
    Row {
        name: export.name.clone(),
        role: export.role.clone(),
        state: export.role.clone(),
        clients: export.clients,
        operations_per_second: rate(operations(io), operations(earlier)),
        read_bytes_per_second: rate(io.read_bytes, earlier.read_bytes),
        written_bytes_per_second: rate(io.written_bytes, earlier.written_bytes),
        p50_us: micros(&moved, 500),
        p99_us: micros(&moved, 990),
        flush_p99_us: micros(&latency(|it| &it.latency.flush), 990),
        hit_percent: (hits * 100).checked_div(pages),
        dirty_bytes: export.dirty_bytes,
        dirty_age_ms: export.dirty_age_ms,
        sync_lag_ms: now.sync_lag_ms,
        store_requests_per_minute: per(60_000, asked, asked_before, interval_ms),
        errors: Errors {
            io: io.errors,
            new_io: io.errors.saturating_sub(earlier.errors),
            sync: io.sync_errors,
            new_sync: io.sync_errors.saturating_sub(earlier.sync_errors),
        },
        throttled_ms_per_second: rate(now.throttled_ms, then.throttled_ms),
        evicted_bytes_per_second: rate(now.evicted_pages, then.evicted_pages)
            .saturating_mul(PAGE_BYTES),
    }
}

fn totals(
    before: Option<&MetersDocument>,
    now: &MetersDocument,
    exports: &[Row],
    interval_ms: u64,
) -> Totals {
    let then = before.unwrap_or(now);
    let (store, earlier) = (&now.store, &then.store);
    let per_minute = |of: fn(&StoreRequests) -> bool| {
        let (now, before) = (count(&store.requests, of), count(&earlier.requests, of));
        per(60_000, now, before, interval_ms)
    };
    let rate = |now: u64, before: u64| per(1000, now, before, interval_ms);
    let sum = |of: fn(&Row) -> u64| exports.iter().map(of).fold(0, u64::saturating_add);
    let errors = exports.iter().map(|row| row.errors);
    Totals {
        version: now.server.version.clone(),
        exports: now.server.exports,
        exports_left_out: now.exports_left_out,
        clients: now.server.clients,
        operations_per_second: sum(|row| row.operations_per_second),
        cache_bytes: now.server.cache_bytes,
        cache_used_bytes: now.server.cache_used_bytes,
        dirty_bytes: now.server.dirty_bytes,
        writers_waiting: now.cache.writers_waiting,
        states: states(exports),
        errors: errors.fold(Errors::default(), Errors::and),
        throttled_ms_per_second: sum(|row| row.throttled_ms_per_second),
        throttled_writes_per_second: rate(now.cache.throttled_writes, then.cache.throttled_writes),
        evicted_bytes_per_second: sum(|row| row.evicted_bytes_per_second),
        store_requests_per_minute: per_minute(|_| true),
        store_failures_per_minute: per_minute(is_failure),
        store_p99_us: micros(&answered(before, now), 990),
        sent_bytes_per_second: rate(store.sent_bytes, earlier.sent_bytes),
        received_bytes_per_second: rate(store.received_bytes, earlier.received_bytes),
        stopped: now.server.stopped.clone(),
    }
}

fn states(exports: &[Row]) -> BTreeMap<String, u64> {
    let mut states = BTreeMap::new();
    for row in exports {
        if ![READ_WRITE, CLOSED].contains(&row.state.as_str()) {
            *states.entry(row.state.clone()).or_default() += 1;
        }
    }
    states
}

/// How long the store took for what it answered. What failed says nothing of that, whether it was quick or not.
fn answered(before: Option<&MetersDocument>, now: &MetersDocument) -> Latency {
    let earlier = before.map_or(&now.store, |before| &before.store);
    let mut latency = Latency::default();
    let rows = now.store.latency.iter();
    for row in rows.filter(|row| row.outcome == ANSWERED) {
        let mut rows = earlier.latency.iter();
        let then = rows.find(|it| it.kind == row.kind && it.outcome == row.outcome);
        // None was counted until then.
        let nothing = Latency::default();
        let then = then.map_or(&nothing, |then| &then.latency);
        latency = latency.and(&difference(&row.latency, then));
    }
    latency
}

/// Rounded to the nearest; 0 where there is no time between.
fn per(unit_ms: u64, now: u64, before: u64, interval_ms: u64) -> u64 {
    let more = u128::from(now.saturating_sub(before)) * u128::from(unit_ms);
    let rounded = (more + u128::from(interval_ms / 2)).checked_div(u128::from(interval_ms));
    u64::try_from(rounded.unwrap_or(0)).unwrap_or(u64::MAX)
}

fn difference(now: &Latency, before: &Latency) -> Latency {
    if now == before {
        return Latency::default();
    }
    now.since(before)
}

fn micros(latency: &Latency, per_mille: u64) -> Option<u64> {
    let found: Duration = latency.quantile(per_mille)?;
    Some(u64::try_from(found.as_micros()).unwrap_or(u64::MAX))
}

fn count(rows: &[StoreRequests], of: impl Fn(&StoreRequests) -> bool) -> u64 {
    let counted = rows.iter().filter(|row| of(row));
    counted.map(|row| row.count).sum()
}

fn is_failure(row: &StoreRequests) -> bool {
    ["retry", "unknown", "refused"].contains(&row.outcome.as_str())
}
