//! Requests to the object store: how many of which kind, how they ended, how long they took.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use world::StoreErrorKind;

use super::{Histogram, Latency};

/// Volumes whose requests are counted apart; those of more go into the sum alone.
const VOLUMES_MAX: usize = 4096;

/// What was asked of the store. Stores bill by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    Create,
    Replace,
    List,
    Delete,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Error(StoreErrorKind),
    /// Nobody waited for the answer any more.
    Abandoned,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Get, "get"),
    (Kind::Create, "create"),
    (Kind::Replace, "replace"),
    (Kind::List, "list"),
    (Kind::Delete, "delete"),
];
const OUTCOMES: [(Outcome, &str); 8] = [
    (Outcome::Ok, "ok"),
    (Outcome::Error(StoreErrorKind::NotFound), "not_found"),
    (Outcome::Error(StoreErrorKind::Conflict), "conflict"),
    (Outcome::Error(StoreErrorKind::Retry), "retry"),
    (Outcome::Error(StoreErrorKind::Unknown), "unknown"),
    (Outcome::Error(StoreErrorKind::Refused), "refused"),
    (Outcome::Error(StoreErrorKind::Unsupported), "unsupported"),
    (Outcome::Abandoned, "abandoned"),
];

/// What came of a request, as coarse as its latency is told: a storm of 503s, each of them quick, must not look like a
/// fast store, nor a silence of half a minute like a slow one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The store did what was asked, or said why that cannot be: no such key, a condition that does not hold.
    Answered,
    /// It does not let us, or cannot do such things.
    Refused,
    /// It failed, or nobody knows.
    Failed,
}

const ENDINGS: [(Ending, &str); 3] = [
    (Ending::Answered, ANSWERED),
    (Ending::Refused, "refused"),
    (Ending::Failed, "failed"),
];
/// The outcome of a [`StoreLatency`] that tells how fast the store is.
pub const ANSWERED: &str = "answered";

type Counts = [[u64; OUTCOMES.len()]; KINDS.len()];
type Latencies = [[Histogram; ENDINGS.len()]; KINDS.len()];

/// Counts all requests of one shard.
#[derive(Debug, Default)]
pub struct StoreMeter {
    counts: RefCell<Counts>,
    by_volume: RefCell<BTreeMap<String, Counts>>,
    latency: Latencies,
    in_flight: Cell<u64>,
    sent_bytes: Cell<u64>,
    received_bytes: Cell<u64>,
}

/// One request on its way. Counted when it is dropped, so that none escapes.
#[derive(Debug)]
pub struct Call<'a> {
    meter: &'a StoreMeter,
    kind: Kind,
    volume: Option<String>,
    outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub outcome: Outcome,
    pub took: Duration,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl StoreMeter {
    /// A request begins; of the volume whose object it is about, if it is one's.
    pub fn call(&self, kind: Kind, volume: Option<&str>) -> Call<'_> {
        self.in_flight.set(self.in_flight.get() + 1);
        Call {
            meter: self,
            kind,
            volume: volume.map(str::to_owned),
            outcome: Outcome::Abandoned,
        }
    }

    /// All that was counted.
    pub fn snapshot(&self) -> StoreUse {
        StoreUse {
            requests: rows(&self.counts.borrow()),
            latency: latencies(&self.latency),
            in_flight: self.in_flight.get(),
            sent_bytes: self.sent_bytes.get(),
            received_bytes: self.received_bytes.get(),
        }
    }

    /// Those for the objects of one volume.
    pub fn of_volume(&self, name: &str) -> Vec<StoreRequests> {
        let volumes = self.by_volume.borrow();
        volumes.get(name).map(rows).unwrap_or_default()
    }

    fn add(&self, volume: Option<String>, kind: Kind, outcome: Outcome) {
        let (row, column) = place(kind, outcome);
        self.counts.borrow_mut()[row][column] += 1;
        let mut volumes = self.by_volume.borrow_mut();
        let has_room = volumes.len() < VOLUMES_MAX;
        if let Some(name) = volume.filter(|name| has_room || volumes.contains_key(name)) {
            volumes.entry(name).or_default()[row][column] += 1;
        }
    }
}

impl Call<'_> {
    /// The answer is here.
    pub fn ends(mut self, done: Done) {
        self.outcome = done.outcome;
        let (row, _) = place(self.kind, done.outcome);
        let ending = done.outcome.ending();
        let endings = ENDINGS.iter().zip(&self.meter.latency[row]);
        let counted = endings.filter(|((it, _), _)| Some(*it) == ending);
        counted.for_each(|(_, histogram)| histogram.record(done.took));
        let add = |to: &Cell<u64>, bytes| to.set(to.get().saturating_add(bytes));
        add(&self.meter.sent_bytes, done.sent_bytes);
        add(&self.meter.received_bytes, done.received_bytes);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.meter.in_flight.set(self.meter.in_flight.get() - 1);
        self.meter.add(self.volume.take(), self.kind, self.outcome);
    }
}

fn place(kind: Kind, outcome: Outcome) -> (usize, usize) {
    let row = KINDS.iter().position(|(it, _)| *it == kind);
    let column = OUTCOMES.iter().position(|(it, _)| *it == outcome);
    (
        row.expect("every kind is in the table"),
        column.expect("every outcome is in the table"),
    )
}

impl Outcome {
    /// None where nobody knows how long it would have taken.
    fn ending(self) -> Option<Ending> {
        match self {
            Self::Ok | Self::Error(StoreErrorKind::NotFound | StoreErrorKind::Conflict) => {
                Some(Ending::Answered)
            }
            Self::Error(StoreErrorKind::Refused | StoreErrorKind::Unsupported) => {
                Some(Ending::Refused)
            }
            Self::Error(StoreErrorKind::Retry | StoreErrorKind::Unknown) => Some(Ending::Failed),
            Self::Abandoned => None,
        }
    }
}

/// Those that occurred.
fn latencies(latencies: &Latencies) -> Vec<StoreLatency> {
    let mut rows = Vec::new();
    for ((_, kind), of_kind) in KINDS.iter().zip(latencies) {
        for ((_, outcome), histogram) in ENDINGS.iter().zip(of_kind) {
            let latency = histogram.latency();
            if latency.count() > 0 {
                rows.push(StoreLatency {
                    kind: (*kind).to_owned(),
                    outcome: (*outcome).to_owned(),
                    latency,
                });
            }
        }
    }
    rows
}

fn rows(counts: &Counts) -> Vec<StoreRequests> {
    let mut rows = Vec::new();
    for ((_, kind), of_kind) in KINDS.iter().zip(counts) {
        for ((_, outcome), count) in OUTCOMES.iter().zip(of_kind) {
            if *count > 0 {
                rows.push(StoreRequests {
                    kind: (*kind).to_owned(),
                    outcome: (*outcome).to_owned(),
                    count: *count,
                });
            }
        }
    }
    rows
}

/// All that was asked of the store, at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct StoreUse {
    /// Those that occurred.
    pub requests: Vec<StoreRequests>,
    /// The same.
    pub latency: Vec<StoreLatency>,
    pub in_flight: u64,
    /// Bodies, of requests that succeeded.
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// Requests of one kind with one outcome.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct StoreRequests {
    /// `get`, `create`, `replace`, `list`, `delete`.
    pub kind: String,
    /// `ok`, `not_found`, `conflict`, `retry`, `unknown`, `refused`, `unsupported`, `abandoned`.
    pub outcome: String,
    pub count: u64,
}

/// From requests of one kind to what came of them; not of those that were abandoned.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct StoreLatency {
    pub kind: String,
    /// `answered` (`ok`, `not_found` and `conflict` of the counts), `refused` (and `unsupported`), `failed` (`retry`, `unknown`).
    #[serde(default)]
    pub outcome: String,
    pub latency: Latency,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str, outcome: &str, count: u64) -> StoreRequests {
        StoreRequests {
            kind: kind.to_owned(),
            outcome: outcome.to_owned(),
            count,
        }
    }

    fn done(outcome: Outcome) -> Done {
        Done {
            outcome,
            took: Duration::from_millis(3),
            sent_bytes: 10,
            received_bytes: 20,
        }
    }

    #[test]
    fn requests_are_counted_by_kind_outcome_and_volume() {
        let meter = StoreMeter::default();
        let unclear = Outcome::Error(StoreErrorKind::Unknown);
        meter.call(Kind::Get, Some("a")).ends(done(Outcome::Ok));
        meter.call(Kind::Replace, Some("a")).ends(done(unclear));
        meter.call(Kind::List, None).ends(done(Outcome::Ok));
        let open = meter.call(Kind::Get, Some("b"));
        assert_eq!(meter.snapshot().in_flight, 1);
        drop(open);
        let all = meter.snapshot();
        let expected = [
            row("get", "ok", 1),
            row("get", "abandoned", 1),
            row("replace", "unknown", 1),
            row("list", "ok", 1),
        ];
        assert_eq!(all.requests, expected);
        let of_a = [row("get", "ok", 1), row("replace", "unknown", 1)];
        assert_eq!(meter.of_volume("a"), of_a);
        assert_eq!(meter.of_volume("b"), [row("get", "abandoned", 1)]);
        assert_eq!(meter.of_volume("c"), []);
        assert_eq!(
            (all.in_flight, all.sent_bytes, all.received_bytes),
            (0, 30, 60)
        );
    }

    #[test]
    fn latencies_are_kept_apart_by_what_came_of_the_request() {
        use StoreErrorKind::{Conflict, NotFound, Refused, Retry, Unknown, Unsupported};
        let meter = StoreMeter::default();
        let ends = |kind, outcome, ms| {
            let took = Duration::from_millis(ms);
            let done = Done {
                took,
                ..done(outcome)
            };
            meter.call(kind, None).ends(done);
        };
        for outcome in [
            Outcome::Ok,
            Outcome::Error(NotFound),
            Outcome::Error(Conflict),
        ] {
            ends(Kind::Get, outcome, 400);
        }
        for quick in [Retry, Unknown] {
            ends(Kind::Get, Outcome::Error(quick), 1);
        }
        for denied in [Refused, Unsupported] {
            ends(Kind::Get, Outcome::Error(denied), 20);
        }
        ends(Kind::List, Outcome::Error(Retry), 30_000);
        drop(meter.call(Kind::Delete, None));
        let found = meter.snapshot().latency;
        let rows: Vec<(&str, &str, u64, u64)> = found
            .iter()
            .map(|it| {
                let ms = it.latency.sum_ns / 1_000_000;
                (
                    it.kind.as_str(),
                    it.outcome.as_str(),
                    it.latency.count(),
                    ms,
                )
            })
            .collect();
        let expected = [
            ("get", "answered", 3, 1200),
            ("get", "refused", 2, 40),
            ("get", "failed", 2, 2),
            ("list", "failed", 1, 30_000),
        ];
        assert_eq!(rows, expected, "what was abandoned has no latency");
    }

    #[test]
    fn volumes_beyond_the_bound_are_counted_in_the_sum_alone() {
        let meter = StoreMeter::default();
        for number in 0..=VOLUMES_MAX {
            let name = number.to_string();
            meter.call(Kind::Get, Some(&name)).ends(done(Outcome::Ok));
        }
        let last = VOLUMES_MAX.to_string();
        assert_eq!(meter.of_volume("0"), [row("get", "ok", 1)]);
        assert_eq!(meter.of_volume(&last), []);
        let sum = u64::try_from(VOLUMES_MAX).expect("small") + 1;
        assert_eq!(meter.snapshot().requests, [row("get", "ok", sum)]);
    }
}
