//! The object store of a simulated world: one for all hosts, always right, seldom on time.
//!
//! A request takes effect at one moment, wholly, and its answer takes another while. What may go
//! wrong, by the seed:
//!
//! - It never arrives: `Retry`, no effect. So does all that meets an outage, or for a write also
//!   `Unknown`, as nobody can tell the two apart who waited in vain.
//! - It is turned away as too much: `Retry`. Some stores say when to come again, and an honest caller keeps it.
//! - It is turned away as not allowed (a token that ran out, a clock that is off): `Refused`.
//! - A write is told that its condition failed, and nothing was done and nobody else was there.
//! - It takes effect and the answer is lost: `Unknown` for writes and deletions.
//! - It is late: the caller hears `Unknown`, and long afterwards it takes effect after all, even if
//!   the process is dead by then.
//! - Somebody on the way repeats it: it takes effect, and what the caller hears is the answer to the
//!   second copy, which for a conditional write is "condition failed".
//! - The process dies in between: what is on its way arrives or not.
//!
//! Conditions are exact, lists show every write that took effect, and an etag is never used twice.

mod objects;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

pub(super) use objects::Objects;
pub use objects::StoreStats;
use objects::{Answer, Refusal, Request, What};

use super::{Chance, HostId, Odds, Sim, SimWorld, Spread};
use crate::store::{Part, RETRY_AFTER_MAX};
use crate::sync::oneshot;
use crate::{ETag, Listed, Object, Store, StoreError, StoreErrorKind};

/// How often requests fail. All off at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFaults {
    /// Fails without effect.
    pub lost_request: Odds,
    /// Is turned away without effect: too many requests.
    pub throttled: Odds,
    /// Is turned away like that, by a store that says for how long it is to be left alone.
    pub asks_to_wait: Odds,
    /// Is turned away without effect: credentials, a clock that is off.
    pub refused: Odds,
    /// A write is turned away without effect, and with the words for a failed condition.
    pub false_conflict: Odds,
    /// Takes effect, and nobody hears of it.
    pub lost_answer: Odds,
    /// A write takes effect long after its caller was told that the outcome is unknown.
    pub late: Odds,
    /// Takes effect, and is then answered as if it had come a second time.
    pub repeated: Odds,
}

/// How long a late request takes.
const LATE: Spread = Spread::micros(50_000, 30_000_000);
/// How long it takes to notice that the store cannot be reached.
const OUTAGE: Spread = Spread::micros(1_000, 2_000_000);

/// How long a store asks to be left alone, in whole seconds as they say it: mostly so short that the request is
/// repeated where it was made, now and then so long that whoever made it hears of it.
const ASKS_LONG_ONE_IN: u64 = 8;
const ASKS_SHORT_S_MAX: u64 = 2;
const ASKS_LONG_S_MAX: u64 = RETRY_AFTER_MAX.as_secs();

/// How to damage an object.
#[derive(Clone, Debug)]
pub enum Corruption {
    /// One bit of one byte.
    FlipBit {
        at: u64,
        bit: u8,
    },
    Truncate {
        len: u64,
    },
    /// Other bytes altogether, under the same etag.
    Replace(Bytes),
    /// The bytes of that other object.
    CopyOf(String),
}

/// What becomes of a request, decided when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    LostRequest,
    Throttled,
    AsksToWait(Duration),
    Refused,
    FalseConflict,
    LostAnswer,
    Late,
    Repeated,
}

impl StoreFaults {
    fn fate(self, request: &Request, chance: &mut Chance) -> Fate {
        if chance.hit(self.lost_request) {
            Fate::LostRequest
        } else if chance.hit(self.throttled) {
            Fate::Throttled
        } else if chance.hit(self.asks_to_wait) {
            Fate::AsksToWait(asked(chance))
        } else if chance.hit(self.refused) {
            Fate::Refused
        } else if request.has_condition() && chance.hit(self.false_conflict) {
            Fate::FalseConflict
        } else if chance.hit(self.lost_answer) {
            Fate::LostAnswer
        } else if request.unclear() == StoreErrorKind::Unknown && chance.hit(self.late) {
            Fate::Late
        } else if chance.hit(self.repeated) {
            Fate::Repeated
        } else {
            Fate::Answered
        }
    }
}

fn asked(chance: &mut Chance) -> Duration {
    let longest = if chance.one_in(ASKS_LONG_ONE_IN) {
        ASKS_LONG_S_MAX
    } else {
        ASKS_SHORT_S_MAX
    };
    Duration::from_secs(chance.between(1, longest))
}

/// The object store as one process, or the scenario, reaches it.
#[derive(Clone)]
pub struct SimStore {
    sim: Sim,
    host: HostId,
    /// None: of the host itself, whoever runs there.
    world: Option<SimWorld>,
}

impl SimStore {
    pub(super) fn of_process(world: &SimWorld) -> Self {
        Self {
            sim: world.sim.clone(),
            host: world.host(),
            world: Some(world.clone()),
        }
    }

    fn is_alive(&self) -> bool {
        self.world.as_ref().is_none_or(SimWorld::is_alive)
    }

    async fn ask(&self, key: &str, what: What) -> Result<Answer, StoreError> {
        if !self.is_alive() {
            std::future::pending::<()>().await;
        }
        self.sim.begin(self.host);
        let request = Request {
            key: key.to_owned(),
            what,
        };
        let (sender, receiver) = oneshot::channel();
        self.send(request, sender);
        match receiver.await {
            Ok(answer) => answer,
            // The process died, and the request with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets the request go its way, which it does whether or not its caller waits.
    fn send(&self, request: Request, reply: Reply) {
        let sim = &self.sim;
        let there = sim.delay(|delays| delays.store);
        if sim.store_is_out(self.host) {
            return self.fail(OUTAGE, &request, self.outage_refusal(&request), reply);
        }
        let faults = sim.shared.store.borrow().faults;
        let fate = sim.chance(|chance| faults.fate(&request, chance));
        let unclear = Refusal(request.unclear(), "the answer was lost");
        match fate {
            Fate::Answered => self.arrive(there, request, 1, Some(reply)),
            Fate::Repeated => self.arrive(there, request, 2, Some(reply)),
            Fate::LostRequest => {
                let refusal = Refusal(StoreErrorKind::Retry, "the request was lost");
                self.fail(sim.shared.config.delays.store, &request, refusal, reply);
            }
            Fate::Throttled => {
                let refusal = Refusal(StoreErrorKind::Retry, "503 slow down");
                self.fail(sim.shared.config.delays.store, &request, refusal, reply);
            }
            Fate::AsksToWait(asked) => self.ask_to_wait(asked, &request, reply),
            Fate::Refused => {
                let refusal = Refusal(StoreErrorKind::Refused, "the token has expired");
                self.fail(sim.shared.config.delays.store, &request, refusal, reply);
            }
            Fate::FalseConflict => {
                let refusal = Refusal(StoreErrorKind::Conflict, "409 for no reason");
                self.fail(sim.shared.config.delays.store, &request, refusal, reply);
            }
            Fate::LostAnswer => {
                let hears = there + sim.delay(|delays| delays.store);
                self.fail_after(hears, &request, unclear, reply);
                self.arrive(there, request, 1, None);
            }
            Fate::Late => {
                let late = there + sim.chance(|chance| chance.delay(LATE));
                self.fail_after(there, &request, unclear, reply);
                self.arrive(late, request, 1, None);
            }
        }
    }

    fn ask_to_wait(&self, asked: Duration, request: &Request, reply: Reply) {
        let refusal = Refusal(StoreErrorKind::Retry, "503 slow down, and come again later");
        let error = StoreError {
            retry_after: Some(asked),
            ..request.failed(&refusal)
        };
        let sim = &self.sim;
        sim.shared.store.borrow_mut().stats.asked_to_wait = Some(asked);
        let after = sim.delay(|delays| delays.store);
        self.tell_after(after, error, reply);
    }

    fn outage_refusal(&self, request: &Request) -> Refusal {
        let unclear = self.sim.chance(|chance| chance.one_in(2));
        if unclear {
            Refusal(request.unclear(), "no answer from the store")
        } else {
            Refusal(StoreErrorKind::Retry, "the store cannot be reached")
        }
    }

    fn fail(&self, spread: Spread, request: &Request, refusal: Refusal, reply: Reply) {
        let after = self.sim.chance(|chance| chance.delay(spread));
        self.fail_after(after, request, refusal, reply);
    }

    fn fail_after(&self, after: Duration, request: &Request, refusal: Refusal, reply: Reply) {
        self.tell_after(after, request.failed(&refusal), reply);
    }

    fn tell_after(&self, after: Duration, error: StoreError, reply: Reply) {
        let label = self.label();
        self.sim.later(after, move |sim| {
            sim.trace_line(&label, format_args!("{error}"));
            drop(reply.send(Err(error)));
        });
    }

    /// The request reaches the store after `there`, so many times in a row, and the last answer, if any
    /// is to come, the caller.
    fn arrive(&self, there: Duration, request: Request, times: u32, reply: Option<Reply>) {
        let store = self.clone();
        self.sim.later(there, move |sim| {
            if !store.is_alive() && sim.chance(|chance| chance.one_in(2)) {
                sim.trace_line(
                    &store.label(),
                    format_args!("{request} died with its process"),
                );
                return;
            }
            for _ in 1..times {
                drop(sim.shared.store.borrow_mut().apply(&request));
            }
            let outcome = sim.shared.store.borrow_mut().apply(&request);
            let outcome = outcome.map_err(|refusal| request.failed(&refusal));
            let told = outcome
                .as_ref()
                .map_or_else(|error| error.kind.to_string(), Answer::told);
            sim.trace_line(&store.label(), format_args!("{request}: {told}"));
            if let Some(reply) = reply {
                let back = sim.delay(|delays| delays.store);
                sim.later(back, move |_| drop(reply.send(outcome)));
            }
        });
    }

    fn label(&self) -> String {
        match &self.world {
            Some(world) => world.process.label.clone(),
            None => self.sim.host_name(self.host),
        }
    }
}

type Reply = oneshot::Sender<Result<Answer, StoreError>>;

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStore({})", self.label())
    }
}

impl Store for SimStore {
    async fn get(&self, key: &str, part: Part) -> Result<Object, StoreError> {
        match self.ask(key, What::Get(part)).await? {
            Answer::Object(object) => Ok(object),
            _ => unreachable!("a get is answered by an object"),
        }
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<ETag, StoreError> {
        self.ask(key, What::Create(body)).await.map(Answer::written)
    }

    async fn replace(&self, key: &str, seen: &ETag, body: Bytes) -> Result<ETag, StoreError> {
        let what = What::Replace(seen.clone(), body);
        self.ask(key, what).await.map(Answer::written)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let after = after.map(str::to_owned);
        match self.ask(prefix, What::List { after, count_max }).await? {
            Answer::Listed(rows) => Ok(rows),
            _ => unreachable!("a list is answered by rows"),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.ask(key, What::Delete).await.map(|_| ())
    }
}

/// What the scenario does to the store.
impl Sim {
    /// The store as seen from a host, for the driver: it lives when processes die.
    pub fn store(&self, host: HostId) -> SimStore {
        SimStore {
            sim: self.clone(),
            host,
            world: None,
        }
    }

    pub fn set_store_faults(&self, faults: StoreFaults) {
        self.shared.store.borrow_mut().faults = faults;
    }

    /// Begins or ends an outage for one host, or with `None` for all. What is on its way arrives.
    pub fn set_store_outage(&self, host: Option<HostId>, outage: bool) {
        self.note(format_args!("store outage of {host:?}: {outage}"));
        match host {
            Some(host) => self.with_host(host, |host| host.store_outage = outage),
            None => self.shared.store.borrow_mut().outage = outage,
        }
    }

    fn store_is_out(&self, host: HostId) -> bool {
        self.shared.store.borrow().outage || self.with_host(host, |host| host.store_outage)
    }

    pub fn store_stats(&self) -> StoreStats {
        self.shared.store.borrow().stats
    }

    /// The keys of all objects, in order.
    pub fn keys(&self) -> Vec<String> {
        self.shared.store.borrow().entries.keys().cloned().collect()
    }

    pub fn object(&self, key: &str) -> Option<Bytes> {
        let objects = self.shared.store.borrow();
        objects.entries.get(key).map(|entry| entry.bytes.clone())
    }

    /// All objects as they are now.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let objects = self.shared.store.borrow();
        let entries = objects.entries.iter();
        entries
            .map(|(key, entry)| (key.clone(), entry.bytes.clone()))
            .collect()
    }

    /// Puts all objects back as they were, under new etags: a bucket restored from a backup.
    pub fn restore_objects(&self, saved: &BTreeMap<String, Bytes>) {
        self.note("restores the object store");
        let mut objects = self.shared.store.borrow_mut();
        objects.entries.clear();
        for (key, bytes) in saved {
            objects.put(key, bytes);
        }
    }

    /// Damages an object behind everybody's back: its etag stays. False if there is none.
    pub fn corrupt(&self, key: &str, how: &Corruption) -> bool {
        self.note(format_args!("corrupts `{key}`"));
        let source = match how {
            Corruption::CopyOf(other) => self.object(other),
            _ => None,
        };
        let mut objects = self.shared.store.borrow_mut();
        let Some(entry) = objects.entries.get_mut(key) else {
            return false;
        };
        let index = |at: u64| usize::try_from(at).expect("an offset in memory");
        match how {
            Corruption::FlipBit { at, bit } => {
                let mut bytes = entry.bytes.to_vec();
                bytes[index(*at)] ^= 1 << bit;
                entry.bytes = bytes.into();
            }
            Corruption::Truncate { len } => entry.bytes.truncate(index(*len)),
            Corruption::Replace(bytes) => entry.bytes = bytes.clone(),
            Corruption::CopyOf(_) => {
                let Some(bytes) = source else { return false };
                entry.bytes = bytes;
            }
        }
        true
    }

    /// Deletes an object behind everybody's back. False if there is none.
    pub fn delete_object(&self, key: &str) -> bool {
        self.note(format_args!("deletes `{key}`"));
        self.shared.store.borrow_mut().entries.remove(key).is_some()
    }
}
