//! A few kinds of bad weather on real processes; `cargo faults` has them all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use glidefs_tests::faults::{Seen, cases, outages, play};

/// Of each case so long.
const SHORT: Duration = Duration::from_secs(2);

fn short(name: &str) -> Result<Seen> {
    let all = cases().into_iter().chain(outages(&[2]));
    let mut case = all
        .into_iter()
        .find(|case| case.name == name)
        .with_context(|| format!("no case {name}"))?;
    case.lasts = SHORT;
    let seen = play(&case).with_context(|| name.to_owned())?;
    ensure!(seen.pages_compared > 0, "{name}: nothing was compared");
    Ok(seen)
}

fn says(seen: &Seen, words: &str) -> bool {
    seen.lines.iter().any(|(line, _)| line.contains(words))
}

#[test]
fn answers_that_lie_lose_nothing_and_worry_nobody() -> Result<()> {
    for name in ["500 after the effect", "412 to an own PUT that happened"] {
        let seen = short(name)?;
        ensure!(seen.hit > 0, "{name}: no request met it");
        ensure!(!says(&seen, "ERROR"), "{name}: {seen:?}");
    }
    Ok(())
}

#[test]
fn bodies_that_break_off_are_read_again() -> Result<()> {
    let seen = short("truncated bodies")?;
    ensure!(
        seen.hit > 0 && seen.outcomes.contains_key("retry"),
        "{seen:?}"
    );
    Ok(())
}

/// A guest's filesystem does not survive an input/output error; credentials are renewed in a moment.
#[test]
fn reads_wait_while_credentials_are_renewed() -> Result<()> {
    let seen = short("reads with expired credentials")?;
    ensure!(
        seen.hit > 0 && seen.outcomes.contains_key("refused"),
        "{seen:?}"
    );
    Ok(())
}

#[test]
fn credentials_that_end_are_said_once_with_what_to_do() -> Result<()> {
    let seen = short("expired credentials")?;
    let errors: Vec<_> = seen
        .lines
        .iter()
        .filter(|(line, _)| line.starts_with("ERROR"))
        .collect();
    ensure!(errors.len() == 1 && errors[0].1 == 1, "{seen:?}");
    ensure!(
        says(&seen, "docs/runbooks") && says(&seen, "works again"),
        "{seen:?}"
    );
    Ok(())
}

#[test]
fn a_certificate_that_nobody_signed_stops_no_writer() -> Result<()> {
    let seen = short("certificate not trusted")?;
    ensure!(seen.answered_writes > 0, "{seen:?}");
    ensure!(seen.lines.iter().all(|(_, times)| *times == 1), "{seen:?}");
    Ok(())
}

#[test]
fn a_kill_in_an_outage_is_caught_up_behind_it() -> Result<()> {
    let seen = short("outage, kill -9 in the middle")?;
    ensure!(seen.answered_writes > 0 && seen.dirty_bytes > 0, "{seen:?}");
    Ok(())
}
