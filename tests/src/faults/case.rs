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

fn refusal(status: u16, code: &'static str) -> Refusal {
    Refusal { status, code }
}

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
    let writing = |name, fault, simulated| case(name, How::Writing(fault), simulated);
    let waking = |name, fault, simulated| case(name, How::Waking(fault), simulated);
    let elsewhere = |name, how| case(name, How::Elsewhere(how), "outage: `Retry` and `Unknown`");
    let slow = "latencies of `StoreFaults`, `late`";
    let lost = "`lost_request`";
    let behind = "`lost_answer`, `late`";
    let own = "`repeated`; planted: `rule13-conflict`";
    let conflict = "`throttled`, `repeated`";
    let person = "refusals: `glidefs/src/volume/tests/outcomes.rs`";
    let mut hangs = writing(
        "no answer (timeout)",
        one_in(3, Meets::All, What::Silent),
        "`late`",
    );
    hangs.lasts = BEHIND_A_TIMEOUT;
    let refused = |status, code| What::Refused(refusal(status, code));
    let denied = |status, code| What::Denied(refusal(status, code));
    vec![
        writing(
            "500 before the effect",
            one_in(2, Meets::All, refused(500, "InternalError")),
            lost,
        ),
        writing(
            "500 after the effect",
            one_in(2, Meets::Writes, denied(500, "InternalError")),
            behind,
        ),
        writing(
            "503 storm",
            each(Meets::All, refused(503, "SlowDown")),
            "`throttled`, outage",
        ),
        writing(
            "429 storm",
            each(Meets::All, refused(429, "TooManyRequests")),
            "`throttled`, outage",
        ),
        writing(
            "502 of a proxy, after the effect",
            one_in(2, Meets::Writes, denied(502, "BadGateway")),
            behind,
        ),
        writing(
            "400 RequestTimeout",
            one_in(2, Meets::All, refused(400, "RequestTimeout")),
            lost,
        ),
        writing(
            "answers a second late",
            each(Meets::All, What::Slow(Duration::from_secs(1))),
            slow,
        ),
        hangs,
        writing(
            "closed before the effect",
            one_in(2, Meets::All, What::Closed { happened: false }),
            lost,
        ),
        writing(
            "closed after the effect",
            one_in(2, Meets::All, What::Closed { happened: true }),
            behind,
        ),
        writing(
            "409 ConditionalRequestConflict",
            one_in(2, Meets::Writes, refused(409, "ConditionalRequestConflict")),
            conflict,
        ),
        writing(
            "409 OperationAborted",
            one_in(2, Meets::Writes, refused(409, "OperationAborted")),
            conflict,
        ),
        writing(
            "409 after the effect",
            one_in(2, Meets::Writes, denied(409, "ConditionalRequestConflict")),
            own,
        ),
        writing(
            "412 of nobody's doing",
            one_in(2, Meets::Writes, refused(412, "PreconditionFailed")),
            own,
        ),
        writing(
            "412 to an own PUT that happened",
            one_in(2, Meets::Writes, denied(412, "PreconditionFailed")),
            own,
        ),
        writing(
            "each request twice on the way",
            each(Meets::Writes, What::Twice),
            own,
        ),
        writing(
            "expired credentials",
            each(Meets::All, refused(400, "ExpiredToken")),
            person,
        ),
        writing(
            "wrong key",
            each(Meets::All, refused(403, "SignatureDoesNotMatch")),
            person,
        ),
        writing(
            "clock skew",
            each(Meets::All, refused(403, "RequestTimeTooSkewed")),
            person,
        ),
        writing(
            "404 of a proxy",
            each(Meets::All, refused(404, "NotHere")),
            "`glidefs/src/volume/tests/outcomes.rs`",
        ),
        elsewhere("name does not resolve", Elsewhere::NoName),
        elsewhere("connection refused", Elsewhere::NobodyListens),
        elsewhere("endpoint without TLS", Elsewhere::NotTls),
        elsewhere("certificate not trusted", Elsewhere::Untrusted),
        waking(
            "truncated bodies",
            one_in(2, Meets::Reads, What::Torn),
            "`lost_answer` of reads",
        ),
        waking(
            "reads closed",
            one_in(2, Meets::Reads, What::Closed { happened: true }),
            "`lost_answer` of reads",
        ),
        waking(
            "503 to reads",
            one_in(2, Meets::Reads, refused(503, "SlowDown")),
            "`throttled`",
        ),
        waking(
            "slow reads",
            each(Meets::Reads, What::Slow(Duration::from_millis(300))),
            slow,
        ),
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
    }
    cases
}
