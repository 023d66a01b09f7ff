//! The tables of `docs/faults.md`.

use std::fmt::Write as _;
use std::time::Duration;

use super::case::{Case, Elsewhere, How};
use super::play::Seen;
use crate::s3::weather::{Fault, Meets, What};

/// A case and what came of it.
#[derive(Debug)]
pub struct Measured {
    pub case: Case,
    /// Or why it failed.
    pub outcome: Result<Seen, String>,
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
        let (client, operator, catch_up, lost) = match &row.outcome {
            Ok(seen) => (
                client(case, seen),
                operator(seen),
                seconds(seen.catch_up),
                format!("none of {} pages", seen.pages_compared),
            ),
            Err(why) => (
                format!("**FAILED**: {why}"),
                String::new(),
                String::new(),
                String::new(),
            ),
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
    match case.how {
        How::Writing(fault) => format!("under writes: {}", fault_text(fault)),
        How::Waking(fault) => format!("while another node reads all: {}", fault_text(fault)),
        How::Outage(_) => format!(
            "503 to everything, {}, cache of {} GB",
            rate(case.rate),
            case.cache_gb
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
            "every page, no I/O error, {} for all",
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
    parts.join("; ").replace('|', "/")
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_millis(100) {
        return format!("{} ms", time.as_millis());
    }
    format!("{:.1} s", time.as_secs_f64())
}
