//! Which faults there are, how each is made here, and what of the simulation is the same.

use std::time::Duration;

use crate::names::Dns;
use crate::s3::identity::Flaw;
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
    /// Size of the volume, and how many of its pages are written.
    pub volume_gb: f64,
    pub pages: u64,
    /// Each request to the store takes so much longer, from before the fault until the store has everything.
    pub distance: Duration,
}

impl Case {
    /// Whether much is behind when it ends, and how much is of interest.
    pub fn is_outage(&self) -> bool {
        matches!(self.how, How::Outage(_) | How::Backlog) || !self.distance.is_zero()
    }
}

/// How it is made.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// While the volume is written.
    Writing(Trouble),
    /// While another node, whose cache is empty, reads the volume.
    Waking(Trouble),
    /// The server is killed, and started again with another endpoint before the same cache.
    Elsewhere(Elsewhere),
    Outage(Outage),
    /// An outage under large writes to ever new places, until the bound of what may be dirty is met and beyond.
    /// The same writes go to the store without an outage then, for comparison.
    Backlog,
}

impl How {
    /// What goes wrong and comes right under the running server.
    pub fn trouble(self) -> Option<Trouble> {
        match self {
            Self::Writing(trouble) | Self::Waking(trouble) => Some(trouble),
            Self::Outage(_) | Self::Backlog => Some(Trouble::Outage),
            Self::Elsewhere(_) => None,
        }
    }
}

/// What is wrong from one moment to another, while the server runs on.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// With single requests.
    Requests(Fault),
    /// Everything is answered 503.
    Outage,
    /// The session token of the server's keys expires. Whoever renews keys writes others into their files at the end.
    Expiry,
    /// The endpoint has another secret for the server's key.
    OtherSecret,
    /// The endpoint's clock is ahead by so many seconds, or behind.
    Clock(i64),
    /// The endpoint, which has TLS, presents a certificate with a flaw.
    Certificate(Flaw),
    /// The endpoint, which has TLS, closes each connection in the middle of the handshake.
    Handshake,
    /// The name of the endpoint does not resolve.
    Name(Dns),
}

impl Trouble {
    /// Words that the log has while this goes on, and not otherwise: so it was no other fault. None: nothing
    /// tells them apart.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Self::Requests(_) | Self::Outage | Self::Name(Dns::Silent) => None,
            Self::Expiry => Some("ExpiredToken"),
            Self::OtherSecret => Some("SignatureDoesNotMatch"),
            Self::Clock(_) => Some("RequestTimeTooSkewed"),
            Self::Certificate(Flaw::Expired) => Some("certificate expired"),
            Self::Certificate(Flaw::Stranger) => Some("UnknownIssuer"),
            Self::Certificate(Flaw::OtherName) => Some("certificate not valid for name"),
            Self::Handshake => Some("handshake eof"),
            Self::Name(Dns::Absent) => Some("failed to lookup address information"),
        }
    }
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
/// A look-up that nobody answers takes 10 s, and the client waits 5 s for a connection.
const BEHIND_A_LOOK_UP: Duration = Duration::from_secs(12);
const RATE: u64 = 1_000;
/// 32 MiB.
const PAGES: u64 = 8192;
/// Outages come where much is written, to a store that is some way off.
const OUTAGE_RATE: u64 = 300;
/// 512 MiB.
const OUTAGE_PAGES: u64 = 131_072;
const OUTAGE_DISTANCE: Duration = Duration::from_millis(30);
const OUTAGE_CACHE_GB: f64 = 4.0;
/// One volume may have 3/8 of a cache dirty: 576 MiB, of which large writes are 542.
const BACKLOG_CACHE_GB: f64 = 1.5;
/// More than that, so that no place is written twice.
const BACKLOG_PAGES: u64 = 262_144;
/// S3 takes a quarter of an hour.
const SKEW_SECONDS: i64 = 20 * 60;
const NOWHERE: &str = "outage: `Retry` and `Unknown`";
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
        volume_gb: 0.125,
        pages: PAGES,
        distance: Duration::ZERO,
    }
}

/// Everything but the outages.
pub fn cases() -> Vec<Case> {
    [
        answers(),
        connections(),
        conflicts(),
        refusals(),
        tls(),
        names(),
        nowhere(),
        reads(),
    ]
    .concat()
}

fn writing(name: &'static str, fault: Fault, simulated: &'static str) -> Case {
    under(name, Trouble::Requests(fault), simulated)
}

fn under(name: &'static str, trouble: Trouble, simulated: &'static str) -> Case {
    case(name, How::Writing(trouble), simulated)
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
    let refusing = |name, trouble| under(name, trouble, "`refused`");
    let page = each(Meets::All, refused(404, "NotHere"));
    vec![
        refusing("expired credentials", Trouble::Expiry),
        refusing("wrong key", Trouble::OtherSecret),
        refusing("clock skew, ours is behind", Trouble::Clock(SKEW_SECONDS)),
        refusing("clock skew, ours is ahead", Trouble::Clock(-SKEW_SECONDS)),
        refusing("404 of a proxy", Trouble::Requests(page)),
    ]
}

fn tls() -> Vec<Case> {
    let flawed = |name, flaw| under(name, Trouble::Certificate(flaw), NOWHERE);
    vec![
        flawed("certificate expired", Flaw::Expired),
        flawed("certificate of another authority", Flaw::Stranger),
        flawed("certificate of another name", Flaw::OtherName),
        under("TLS handshake breaks off", Trouble::Handshake, NOWHERE),
    ]
}

fn names() -> Vec<Case> {
    let mut silent = under("name server is silent", Trouble::Name(Dns::Silent), NOWHERE);
    silent.lasts = BEHIND_A_LOOK_UP;
    vec![
        under("name vanishes", Trouble::Name(Dns::Absent), NOWHERE),
        silent,
    ]
}

fn nowhere() -> Vec<Case> {
    let to = |name, where_to| case(name, How::Elsewhere(where_to), NOWHERE);
    vec![
        to("name does not resolve", Elsewhere::NoName),
        to("connection refused", Elsewhere::NobodyListens),
        to("endpoint without TLS", Elsewhere::NotTls),
        to("certificate not trusted", Elsewhere::Untrusted),
    ]
}

fn reads() -> Vec<Case> {
    let waking = |name, fault, simulated| {
        let trouble = Trouble::Requests(fault);
        case(name, How::Waking(trouble), simulated)
    };
    let lost = "`lost_answer` of reads";
    let closed = What::Closed { happened: true };
    let slow = each(Meets::Reads, What::Slow(Duration::from_millis(300)));
    let busy = one_in(2, Meets::Reads, refused(503, "SlowDown"));
    let expired = How::Waking(Trouble::Expiry);
    vec![
        waking(
            "truncated bodies",
            one_in(2, Meets::Reads, What::Torn),
            lost,
        ),
        waking("reads closed", one_in(2, Meets::Reads, closed), lost),
        waking("503 to reads", busy, "`throttled`"),
        waking("slow reads", slow, SLOW),
        case("reads with expired credentials", expired, "`refused`"),
    ]
}

/// Outages of so many seconds each; what does not depend on their length comes with the first alone.
pub fn outages(seconds: &[u64]) -> Vec<Case> {
    let lasting = |lasts: u64, how: fn() -> Vec<Case>| {
        let mut cases = how();
        for case in &mut cases {
            case.lasts = Duration::from_secs(lasts);
        }
        cases
    };
    let long = seconds.iter().map(|lasts| lasting(*lasts, long_outages));
    let other = seconds.first().map(|lasts| lasting(*lasts, other_outages));
    long.chain(other).flatten().collect()
}

fn outage(name: &'static str, how: How, simulated: &'static str) -> Case {
    Case {
        rate: OUTAGE_RATE,
        cache_gb: OUTAGE_CACHE_GB,
        volume_gb: 1.0,
        pages: OUTAGE_PAGES,
        distance: OUTAGE_DISTANCE,
        ..case(name, how, simulated)
    }
}

fn long_outages() -> Vec<Case> {
    let named = |name, killed| {
        let how = How::Outage(Outage { killed });
        outage(name, how, "scenario `weather`: outages and kills")
    };
    vec![
        named("outage", false),
        named("outage, kill -9 in the middle", true),
    ]
}

fn other_outages() -> Vec<Case> {
    let weather = "scenario `weather`";
    let silent = Trouble::Requests(each(Meets::All, What::Silent));
    let no_reads = Trouble::Requests(each(Meets::Reads, refused(503, "SlowDown")));
    // Writers without a limit before a small cache: the dirty bound is met.
    let full = Case {
        rate: u64::MAX,
        ..case(
            "outage, writers faster than the bound",
            How::Outage(Outage { killed: false }),
            weather,
        )
    };
    let backlog = Case {
        rate: u64::MAX,
        cache_gb: BACKLOG_CACHE_GB,
        pages: BACKLOG_PAGES,
        ..outage("outage, half a gigabyte behind", How::Backlog, weather)
    };
    vec![
        full,
        backlog,
        outage(
            "outage, nothing is answered at all",
            How::Writing(silent),
            "`late`",
        ),
        case(
            "outage, reads of what no cache holds",
            How::Waking(no_reads),
            "outage",
        ),
    ]
}
