//! The tables of `docs/faults.md`.

use std::fmt::Write as _;
use std::time::Duration;

use super::case::{Case, Elsewhere, How, Trouble};
use super::play::{CatchUp, Seen};
use crate::names::{Dns, HOST};
use crate::s3::identity::Flaw;
use crate::s3::weather::{Fault, Meets, What};

const MB: f64 = 1e6;
const PAGES_OF_MIB: u64 = 256;

/// A case and what came of it.
#[derive(Debug)]
pub struct Measured {
    pub case: Case,
    pub outcome: Outcome,
}

/// How a case ended.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing was lost.
    Seen(Box<Seen>),
    /// This machine cannot play it, and why.
    NotPlayed(String),
    /// Why.
    Failed(String),
}

/// One row for each case.
pub fn table(rows: &[Measured]) -> String {
    let mut text = String::from(
        "| fault | how it was made | the client saw | the operator saw | caught up in | lost | in simulation |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let case = &row.case;
        let head = format!("{}, {} s", case.name, case.lasts.as_secs());
        let nothing = |what: &str, why: &str| {
            let why = why.replace(['|', '\n'], " ");
            [
                format!("**{what}**: {why}"),
                String::new(),
                String::new(),
                String::new(),
            ]
        };
        let [client, operator, catch_up, lost] = match &row.outcome {
            Outcome::Seen(seen) => [
                client(case, seen),
                operator(seen),
                caught_up(case, seen),
                format!("none of {} pages", seen.pages_compared),
            ],
            Outcome::NotPlayed(why) => nothing("NOT PLAYED", why),
            Outcome::Failed(why) => nothing("FAILED", why),
        };
        let made = made(case);
        let simulated = case.simulated;
        writeln!(
            text,
            "| {head} | {made} | {client} | {operator} | {catch_up} | {lost} | {simulated} |"
        )
        .expect("text can be written to");
    }
    text
}

fn made(case: &Case) -> String {
    let what = match case.how {
        How::Writing(trouble) => format!("under writes: {}", trouble_text(trouble)),
        How::Waking(trouble) => format!("while another node reads all: {}", trouble_text(trouble)),
        How::Outage(_) => trouble_text(Trouble::Outage),
        How::Backlog => format!(
            "{}, under writes of 64 KiB, each to another place",
            trouble_text(Trouble::Outage)
        ),
        How::Elsewhere(elsewhere) => format!(
            "kill -9 and a start with {}, then with the right endpoint",
            match elsewhere {
                Elsewhere::NoName => "`http://store.invalid:9000`",
                Elsewhere::NobodyListens => "a port where nobody listens",
                Elsewhere::NotTls => "`https://` before the plain endpoint",
                Elsewhere::Untrusted => "a TLS server whose certificate nobody signed",
            }
        ),
    };
    if case.is_outage() && !matches!(case.how, How::Waking(_)) {
        format!("{what}; {}", around(case))
    } else {
        what
    }
}

/// What an outage comes upon.
fn around(case: &Case) -> String {
    let mut parts = vec![rate(case.rate)];
    if !matches!(case.how, How::Backlog) {
        parts.push(format!("among {} MiB", case.pages / PAGES_OF_MIB));
    }
    parts.push(format!("cache of {} GB", case.cache_gb));
    if !case.distance.is_zero() {
        parts.push(format!("store {} ms away", case.distance.as_millis()));
    }
    parts.join(", ")
}

fn trouble_text(trouble: Trouble) -> String {
    match trouble {
        Trouble::Requests(fault) => fault_text(fault),
        Trouble::Outage => "503 to everything".to_owned(),
        Trouble::Expiry => "the session token expires by the endpoint's clock, which answers 400 ExpiredToken; at the end \
                            others are written into the files of keys"
            .to_owned(),
        Trouble::OtherSecret => "the endpoint has another secret for the key, finds the signatures wrong, and answers 403 \
                                 SignatureDoesNotMatch"
            .to_owned(),
        Trouble::Clock(ahead_s) => format!(
            "the endpoint's clock is {} minutes {} ours; it holds the date of each signature against it, and answers 403 \
             RequestTimeTooSkewed",
            ahead_s.abs() / 60,
            if ahead_s < 0 { "behind" } else { "ahead of" }
        ),
        Trouble::Certificate(flaw) => format!(
            "the endpoint, which has TLS, ends all connections and presents a certificate {}",
            match flaw {
                Flaw::Expired => "that was good until 2020",
                Flaw::Stranger => "of an authority that is not trusted",
                Flaw::OtherName => "for another host",
            }
        ),
        Trouble::Handshake => "the endpoint, which has TLS, ends all connections, and each new one in the middle of the \
                               handshake"
            .to_owned(),
        Trouble::Name(dns) => format!(
            "the endpoint's name (`{HOST}`) vanishes from the server's own `/etc/hosts`, {}, and all connections end",
            match dns {
                Dns::Absent => "and nobody else is asked",
                Dns::Silent => "the name server never answers",
            }
        ),
    }
}

fn rate(rate: u64) -> String {
    if rate == u64::MAX {
        "writes as fast as they go".to_owned()
    } else {
        format!("{rate} writes/s")
    }
}

fn fault_text(fault: Fault) -> String {
    let which = match fault.meets {
        Meets::All => "request",
        Meets::Writes => "PUT or DELETE",
        Meets::Reads => "GET or HEAD",
    };
    let often = match fault.every {
        1 => format!("every {which}"),
        2 => format!("every other {which}"),
        every => format!("one {which} of {every}"),
    };
    let what = match fault.what {
        What::Refused(it) => format!("is answered {} {} and does not happen", it.status, it.code),
        What::Denied(it) => format!("happens and is answered {} {}", it.status, it.code),
        What::Twice => "arrives twice, the second answer counts".to_owned(),
        What::Slow(by) => format!("waits {} ms", by.as_millis()),
        What::Silent => "is never answered".to_owned(),
        What::Closed { happened: false } => {
            "ends in a closed connection before it happens".to_owned()
        }
        What::Closed { happened: true } => "happens and ends in a closed connection".to_owned(),
        What::Torn => "breaks off in the middle of the body".to_owned(),
    };
    format!("{often} {what}")
}

fn client(case: &Case, seen: &Seen) -> String {
    if matches!(case.how, How::Waking(_)) {
        return format!(
            "every page, no I/O error, {} for all, longest wait {}",
            seconds(seen.reading),
            seconds(seen.longest_stall)
        );
    }
    let cut = match case.how {
        How::Outage(outage) if outage.killed => " but for the kill",
        How::Elsewhere(_) => " but for the kills",
        _ => "",
    };
    format!(
        "{} writes and {} flushes answered, no I/O error{cut}, longest wait {}",
        seen.answered_writes,
        seen.flushes,
        seconds(seen.longest_stall)
    )
}

fn operator(seen: &Seen) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (line, times) in &seen.lines {
        let often = if *times > 1 {
            format!(" ({times} times)")
        } else {
            String::new()
        };
        parts.push(format!("`{line}`{often}"));
    }
    if let Some(words) = seen.named {
        parts.push(format!("its error says `{words}`"));
    }
    if parts.is_empty() {
        parts.push("nothing in the log".to_owned());
    }
    let outcomes: Vec<String> = seen
        .outcomes
        .iter()
        .map(|(name, count)| format!("{count:.0} {name}"))
        .collect();
    if !outcomes.is_empty() {
        parts.push(format!("requests: {}", outcomes.join(", ")));
    }
    if seen.dirty_bytes > 0 {
        parts.push(format!(
            "{} MB dirty at the end",
            seen.dirty_bytes / 1_000_000
        ));
    }
    if seen.throttled_writes > 0.0 {
        parts.push(format!(
            "{:.0} writes throttled, {} in all",
            seen.throttled_writes,
            seconds(seen.throttled)
        ));
    }
    parts.join("; ").replace('|', "/")
}

fn caught_up(case: &Case, seen: &Seen) -> String {
    if matches!(case.how, How::Waking(_)) {
        return "nothing to catch up".to_owned();
    }
    let it = &seen.catch_up;
    if !case.is_outage() {
        return seconds(it.time);
    }
    let waited = it.waited.map(|waited| {
        let part = seconds(waited);
        format!(", of which {part} until the store was asked again")
    });
    let mut text = format!("{}{}", speed(it), waited.unwrap_or_default());
    if let Some(control) = &seen.control {
        // Not the times: the two may have had different amounts to bring, and one of them a wait before it.
        let asked = it.time.saturating_sub(it.waited.unwrap_or_default());
        let (once_asked, without) = (
            mb_per_second(it, asked),
            mb_per_second(control, control.time),
        );
        let (mb, time) = (control.bytes / MB, seconds(control.time));
        write!(
            text,
            "; {once_asked:.0} MB/s once it was asked, to {without:.0} MB/s without an outage (the same writes: {mb:.0} MB in {time})"
        )
        .expect("text can be written to");
    }
    text
}

fn speed(it: &CatchUp) -> String {
    let per_second = mb_per_second(it, it.time);
    let (time, mb) = (seconds(it.time), it.bytes / MB);
    format!("{time} ({mb:.0} MB, {per_second:.0} MB/s)")
}

/// In a part of its time.
fn mb_per_second(it: &CatchUp, time: Duration) -> f64 {
    it.bytes / MB / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_millis(100) {
        return format!("{} ms", time.as_millis());
    }
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::case::{cases, outages};
    use super::*;

    fn row(case: &Case, outcome: Outcome) -> String {
        let case = case.clone();
        let text = table(&[Measured { case, outcome }]);
        text.lines().last().expect("a row").to_owned()
    }

    /// A cell too many, or an end of line in one, would spoil the whole table.
    #[test]
    fn every_case_has_a_row_of_seven_cells() {
        let all = [cases(), outages(&[60, 600])].concat();
        for case in &all {
            for outcome in [
                Outcome::Seen(Box::default()),
                Outcome::NotPlayed("no | rights\nhere".to_owned()),
                Outcome::Failed("a page\nis lost".to_owned()),
            ] {
                let row = row(case, outcome);
                assert!(row.starts_with(&format!("| {}, ", case.name)), "{row}");
                assert_eq!(row.matches('|').count(), 8, "{row}");
            }
        }
    }

    #[test]
    fn a_backlog_is_told_beside_the_same_without_an_outage() {
        let mut cases = outages(&[60]).into_iter();
        let case = cases.find(|case| matches!(case.how, How::Backlog));
        let seen = Seen {
            catch_up: CatchUp {
                time: Duration::from_secs(20),
                bytes: 500.0 * MB,
                waited: Some(Duration::from_secs(10)),
            },
            // As it was measured once: less to bring, and no wait.
            control: Some(CatchUp {
                time: Duration::from_secs(2),
                bytes: 160.0 * MB,
                waited: None,
            }),
            throttled_writes: 3.0,
            throttled: Duration::from_secs(4),
            ..Seen::default()
        };
        let row = row(&case.expect("one"), Outcome::Seen(Box::new(seen)));
        for words in [
            "20.0 s (500 MB, 25 MB/s), of which 10.0 s until the store was asked again",
            "; 50 MB/s once it was asked, to 80 MB/s without an outage (the same writes: 160 MB in 2.0 s)",
            "3 writes throttled, 4.0 s in all",
            "store 30 ms away",
        ] {
            assert!(row.contains(words), "{words}: {row}");
        }
    }

    #[test]
    fn every_outage_of_the_issue_is_there() {
        let all = outages(&[60, 600]);
        for (seconds, words) in [
            (60, "outage"),
            (60, "outage, kill -9 in the middle"),
            (600, "outage"),
            (600, "outage, kill -9 in the middle"),
            (60, "outage, nothing is answered at all"),
            (60, "outage, reads of what no cache holds"),
        ] {
            let found = all
                .iter()
                .find(|case| case.name == words && case.lasts == Duration::from_secs(seconds));
            assert!(found.is_some(), "{words}, {seconds} s");
        }
    }
}
