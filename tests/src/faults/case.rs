//! Which faults there are, how each is made here, and what of the simulation is the same.

use std::time::Duration;

use crate::s3::weather::{Fault, Meets, Refusal, What};

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub how: How,
    /// The same in simulation.
    pub simulated: &'static str,
    /// How long the fault lasts.
    pub lasts: Duration,
    /// Writes in a second, at most.
    pub rate: u64,
    /// Size of the cache.
    pub cache_gb: f64,
}

/// How it is made.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// While the volume is written.
    Writing(Fault),
    /// While another node, whose cache is empty, reads the volume.
    Waking(Fault),
    /// The server is killed, and started again with another endpoint before the same cache.
    Elsewhere(Elsewhere),
    Outage(Outage),
}

/// An endpoint that is no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// Its name does not resolve.
    NoName,
    NobodyListens,
    /// It does not speak TLS.
    NotTls,
    /// It speaks TLS, with a certificate that nobody has signed.
    Untrusted,
}

/// The endpoint answers everything with 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// kill -9 in the middle, and a start on the same cache.
    pub killed: bool,
}

/// So that a case is over in seconds.
const SHORT: Duration = Duration::from_secs(5);
/// A request is given up after 30 s.
const BEHIND_A_TIMEOUT: Duration = Duration::from_secs(40);
const RATE: u64 = 1_000;
const SLOW: &str = "latencies of `StoreFaults`, `late`";

fn each(meets: Meets, what: What) -> Fault {
    one_in(1, meets, what)
}

fn one_in(every: u64, meets: Meets, what: What) -> Fault {
    Fault { meets, every, what }
}

fn case(name: &'static str, how: How, simulated: &'static str) -> Case {
    Case {
        name,
        how,
        simulated,
        lasts: SHORT,
        rate: RATE,
        cache_gb: 1.0,
    }
}

/// Everything but the outages.
pub fn cases() -> Vec<Case> {
    [
        answers(),
        connections(),
        conflicts(),
        refusals(),
        nowhere(),
        reads(),
    ]
    .concat()
}

fn writing(name: &'static str, fault: Fault, simulated: &'static str) -> Case {
    case(name, How::Writing(fault), simulated)
}

/// It does not happen, and this is the answer.
fn refused(status: u16, code: &'static str) -> What {
    What::Refused(Refusal { status, code })
}

/// It happens, and this is the answer.
fn denied(status: u16, code: &'static str) -> What {
    What::Denied(Refusal { status, code })
}

fn answers() -> Vec<Case> {
    let (storm, behind) = ("`throttled`, outage", "`lost_answer`, `late`");
    let before = one_in(2, Meets::All, refused(500, "InternalError"));
    let after = one_in(2, Meets::Writes, denied(500, "InternalError"));
    let proxy = one_in(2, Meets::Writes, denied(502, "BadGateway"));
    let late = one_in(2, Meets::All, refused(400, "RequestTimeout"));
    vec![
        writing("500 before the effect", before, "`lost_request`"),
        writing("500 after the effect", after, behind),
        writing(
            "503 storm",
            each(Meets::All, refused(503, "SlowDown")),
            storm,
        ),
        writing(
            "429 storm",
            each(Meets::All, refused(429, "TooManyRequests")),
            storm,
        ),
        writing("502 of a proxy, after the effect", proxy, behind),
        writing("400 RequestTimeout", late, "`lost_request`"),
    ]
}

fn connections() -> Vec<Case> {
    let slow = each(Meets::All, What::Slow(Duration::from_secs(1)));
    let silent = one_in(3, Meets::All, What::Silent);
    let closed = |happened| one_in(2, Meets::All, What::Closed { happened });
    let mut hangs = writing("no answer (timeout)", silent, "`late`");
    hangs.lasts = BEHIND_A_TIMEOUT;
    vec![
        writing("answers a second late", slow, SLOW),
        hangs,
        writing("closed before the effect", closed(false), "`lost_request`"),
        writing(
            "closed after the effect",
            closed(true),
            "`lost_answer`, `late`",
        ),
    ]
}

/// 409 and 412 of every origin (protocol rule 13).
fn conflicts() -> Vec<Case> {
    let writes = |what| one_in(2, Meets::Writes, what);
    let (busy, own) = (
        "`throttled`, `false_conflict`",
        "`repeated`, `false_conflict`; planted: `rule13-conflict`",
    );
    let (race, failed) = ("ConditionalRequestConflict", "PreconditionFailed");
    let mine = "412 to an own PUT that happened";
    let twice = each(Meets::Writes, What::Twice);
    vec![
        writing(
            "409 ConditionalRequestConflict",
            writes(refused(409, race)),
            busy,
        ),
        writing(
            "409 OperationAborted",
            writes(refused(409, "OperationAborted")),
            busy,
        ),
        writing("409 after the effect", writes(denied(409, race)), own),
        writing("412 of nobody's doing", writes(refused(412, failed)), own),
        writing(mine, writes(denied(412, failed)), own),
        writing("each request twice on the way", twice, own),
    ]
}

/// What a person must see to.
fn refusals() -> Vec<Case> {
    let answered =
        |name, status, code| writing(name, each(Meets::All, refused(status, code)), "`refused`");
    vec![
        answered("expired credentials", 400, "ExpiredToken"),
        answered("wrong key", 403, "SignatureDoesNotMatch"),
        answered("clock skew", 403, "RequestTimeTooSkewed"),
        answered("404 of a proxy", 404, "NotHere"),
    ]
}

fn nowhere() -> Vec<Case> {
    let to = |name, where_to| {
        let simulated = "outage: `Retry` and `Unknown`";
        case(name, How::Elsewhere(where_to), simulated)
    };
    vec![
        to("name does not resolve", Elsewhere::NoName),
        to("connection refused", Elsewhere::NobodyListens),
        to("endpoint without TLS", Elsewhere::NotTls),
        to("certificate not trusted", Elsewhere::Untrusted),
    ]
}

fn reads() -> Vec<Case> {
    let waking = |name, fault, simulated| case(name, How::Waking(fault), simulated);
    let lost = "`lost_answer` of reads";
    let closed = What::Closed { happened: true };
    let slow = each(Meets::Reads, What::Slow(Duration::from_millis(300)));
    let busy = one_in(2, Meets::Reads, refused(503, "SlowDown"));
    let expired = each(Meets::Reads, refused(400, "ExpiredToken"));
    vec![
        waking(
            "truncated bodies",
            one_in(2, Meets::Reads, What::Torn),
            lost,
        ),
        waking("reads closed", one_in(2, Meets::Reads, closed), lost),
        waking("503 to reads", busy, "`throttled`"),
        waking("slow reads", slow, SLOW),
        waking("reads with expired credentials", expired, "`refused`"),
    ]
}

/// Outages of so many seconds each.
pub fn outages(seconds: &[u64]) -> Vec<Case> {
    let mut cases = Vec::new();
    for seconds in seconds {
        for killed in [false, true] {
            let name = if killed {
                "outage, kill -9 in the middle"
            } else {
                "outage"
            };
            let mut outage = case(
                name,
                How::Outage(Outage { killed }),
                "scenario `weather`: outages and kills",
            );
            outage.lasts = Duration::from_secs(*seconds);
            outage.rate = 300;
            outage.cache_gb = 4.0;
            cases.push(outage);
        }
    }
    if let Some(seconds) = seconds.first() {
        // Writers without a limit before a small cache: the dirty bound is met.
        let mut full = case(
            "outage, writers faster than the bound",
            How::Outage(Outage { killed: false }),
            "scenario `weather`",
        );
        full.lasts = Duration::from_secs(*seconds);
        full.rate = u64::MAX;
        cases.push(full);
        let silent = How::Writing(each(Meets::All, What::Silent));
        let mut silent = case("outage, nothing is answered at all", silent, "`late`");
        silent.lasts = Duration::from_secs(*seconds);
        silent.rate = 300;
        silent.cache_gb = 4.0;
        cases.push(silent);
        let reads = each(Meets::Reads, refused(503, "SlowDown"));
        let waking = How::Waking(reads);
        let mut reads = case("outage, reads of what no cache holds", waking, "outage");
        reads.lasts = Duration::from_secs(*seconds);
        cases.push(reads);
    }
    cases
}
