//! What an operator sees of a real server: metrics that a scraper can read and that count what happened,
//! and a log that says a trouble once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use glidefs_tests::openmetrics::Exposition;
use glidefs_tests::pages::PAGE_BYTES;
use glidefs_tests::server::wait_until;
use glidefs_tests::site::Site;

const PAGES: u64 = 32;
const LABEL: &str = "export=\"seen\"";

fn scrape(site: &Site) -> Result<Exposition> {
    let response = site.server.ask("GET", "/metrics", None)?;
    ensure!(response.status == 200, "{}", response.body);
    Exposition::parse(&response.body)
}

fn write_all(site: &Site, number: u8) -> Result<()> {
    let mut client = site.server.connect("seen")?;
    for page in 0..PAGES {
        let at = page * u64::try_from(PAGE_BYTES)?;
        client.write(at, &[number; PAGE_BYTES])?;
    }
    client.flush()?;
    client.disconnect()
}

#[test]
fn a_scrape_of_a_real_server_is_legal_and_counts_what_happened() -> Result<()> {
    let mut site = Site::new()?;
    write_all(&site, 1)?;
    site.server.drain("seen")?;
    let first = scrape(&site)?;
    let of = |found: &Exposition, name: &str| -> Result<f64> {
        let name = format!("glidefs_export_{name}");
        found
            .value(&name, LABEL)
            .with_context(|| format!("no {name}"))
    };
    ensure!(of(&first, "writes_total")? == 32.0);
    ensure!(of(&first, "written_bytes_total")? == 32.0 * 4096.0);
    ensure!(of(&first, "flushes_total")? == 1.0);
    ensure!(of(&first, "dirty_bytes")? == 0.0 && of(&first, "sync_lag_seconds")? == 0.0);
    ensure!(of(&first, "published_seq")? == of(&first, "last_seq")?);
    ensure!(of(&first, "published_timestamp_seconds")? > 1.7e9);
    let count = "glidefs_export_request_duration_seconds_count";
    let writes = format!("{LABEL},operation=\"write\"");
    ensure!(first.value(count, &writes) == Some(32.0));
    ensure!(of(&first, "sync_duration_seconds_count")? >= 1.0);
    // What went into segments, and what came out: such pages compress.
    let (packed, uploaded) = (
        of(&first, "packed_bytes_total")?,
        of(&first, "uploaded_bytes_total")?,
    );
    ensure!(
        packed >= 32.0 * 4096.0 && uploaded > 0.0 && uploaded < packed,
        "{packed} {uploaded}"
    );
    ensure!(first.sum("glidefs_store_sent_bytes_total") >= uploaded);
    let replaced = "kind=\"replace\",outcome=\"ok\"";
    ensure!(first.value("glidefs_store_requests_total", replaced) >= Some(1.0));
    let times = "glidefs_store_request_duration_seconds_count";
    let answered = "kind=\"replace\",outcome=\"answered\"";
    ensure!(first.value(times, answered) >= Some(1.0));
    let own = first.sum("glidefs_export_store_requests_total");
    ensure!(own >= 2.0 && own <= first.sum("glidefs_store_requests_total"));

    // Idle costs nothing, and a restart begins at zero and stays legal.
    let requests = first.sum("glidefs_store_requests_total");
    let second = scrape(&site)?;
    ensure!(
        second.sum("glidefs_store_requests_total") == requests,
        "a scrape asks the store nothing"
    );
    ensure!(site.server.terminate()?.success());
    site.restart()?;
    let mut client = site.server.connect("seen")?;
    client.read(0, u32::try_from(PAGE_BYTES)?)?;
    client.disconnect()?;
    let third = scrape(&site)?;
    ensure!(of(&third, "writes_total")? == 0.0 && of(&third, "reads_total")? == 1.0);
    let hits = of(&third, "cache_hit_pages_total")? + of(&third, "cache_miss_pages_total")?;
    ensure!(hits == 1.0);
    Ok(())
}

/// What the endpoint counts on its side is the judge: nothing goes past the meter.
#[test]
fn every_request_that_arrives_at_the_store_is_counted() -> Result<()> {
    let site = Site::new()?;
    for number in 1..=3 {
        write_all(&site, number)?;
        site.server.drain("seen")?;
    }
    let listed = site.server.ask("GET", "/api/exports?stored=true", None)?;
    ensure!(listed.status == 200, "{}", listed.body);
    let counted = || -> Result<Vec<(f64, f64)>> {
        let (seen, arrived) = (scrape(&site)?, site.s3.counts.snapshot());
        let of = |kind: &str| seen.sum_of("glidefs_store_requests_total", kind);
        let arrived = |kind: &str| {
            arrived
                .get(kind)
                .map_or(0.0, |it| f64::from(u32::try_from(*it).unwrap_or(0)))
        };
        Ok(vec![
            (of("create") + of("replace"), arrived("put")),
            (of("get"), arrived("get")),
            (of("list"), arrived("list")),
        ])
    };
    // The map is tended behind the drain: wait for the end of that.
    let is_equal =
        || counted().is_ok_and(|pairs| pairs.iter().all(|(seen, arrived)| seen == arrived));
    ensure!(
        wait_until(Duration::from_secs(30), is_equal),
        "{:?}",
        counted()?
    );
    ensure!(
        counted()?.iter().all(|(seen, _)| *seen > 0.0),
        "{:?}",
        counted()?
    );
    Ok(())
}

#[test]
fn an_outage_is_counted_often_and_said_once() -> Result<()> {
    let site = Site::new()?;
    write_all(&site, 1)?;
    site.server.drain("seen")?;
    site.s3.faults.outage.store(true, Ordering::SeqCst);
    write_all(&site, 2)?;
    let failures = || -> f64 {
        let found = scrape(&site).ok();
        found.map_or(0.0, |found| found.sum("glidefs_export_sync_errors_total"))
    };
    ensure!(
        wait_until(Duration::from_secs(120), || failures() >= 3.0),
        "the sync does not fail"
    );
    let seen = scrape(&site)?;
    let lag = seen.value("glidefs_export_sync_lag_seconds", LABEL);
    ensure!(lag > Some(0.0), "{lag:?}");
    let failed = |outcome: &str| seen.sum_of("glidefs_store_requests_total", outcome);
    ensure!(failed("retry") + failed("unknown") >= 3.0);
    // How long each of them took is kept apart from how fast the store is.
    let times = "glidefs_store_request_duration_seconds_count";
    ensure!(seen.sum_of(times, "failed") == failed("retry") + failed("unknown"));
    site.s3.faults.outage.store(false, Ordering::SeqCst);
    site.server.drain("seen")?;
    let log = site.server.log();
    let times = |text: &str| log.matches(text).count();
    ensure!(times("the store does not take the sync") == 1, "{log}");
    ensure!(times("sync to the store works again") == 1, "{log}");
    ensure!(times("ERROR") == 0, "{log}");
    Ok(())
}

#[test]
fn a_client_that_is_refused_again_and_again_is_said_once() -> Result<()> {
    let site = Site::new()?;
    let holder = site.server.connect("seen")?;
    for _ in 0..20 {
        // Over TCP it is another client.
        let other = glidefs_tests::blocking_client::Client::connect(&site.server.tcp(), "seen");
        ensure!(other.is_err(), "two clients write one export");
    }
    holder.disconnect()?;
    let log = site.server.log();
    ensure!(log.matches("a client was refused").count() == 1, "{log}");
    Ok(())
}

#[test]
fn a_versioned_bucket_is_said_once_with_what_to_do() -> Result<()> {
    let mut site = Site::new()?;
    ensure!(!site.server.log().contains("versioned"));
    ensure!(site.server.terminate()?.success());
    site.s3.faults.versioned.store(true, Ordering::SeqCst);
    site.restart()?;
    write_all(&site, 1)?;
    site.server.drain("seen")?;
    let log = site.server.log();
    let warned: Vec<&str> = log.lines().filter(|l| l.contains("versioned")).collect();
    ensure!(warned.len() == 1 && warned[0].contains("WARN"), "{log}");
    ensure!(warned[0].contains("lifecycle rule"), "{log}");
    // The store's prefix, and never the whole bucket.
    ensure!(warned[0].contains(r#""Prefix":"vms/"#), "{log}");
    Ok(())
}
