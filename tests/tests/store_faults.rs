//! The real server while its real store misbehaves.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use glidefs_tests::pages::{PAGE_BYTES, Stamp};
use glidefs_tests::s3::keys::Keys;
use glidefs_tests::server::wait_until;
use glidefs_tests::site::Site;

const VOLUME: u64 = 5;
const PAGES: u64 = 64;

fn write_all(site: &Site, export: &str, number: u64) -> Result<()> {
    let mut client = site.server.connect(export)?;
    for page in 0..PAGES {
        let stamp = Stamp::new(VOLUME, page, number);
        client.write(stamp.offset(), &stamp.bytes())?;
    }
    client.flush()?;
    client.disconnect()
}

fn check_all(site: &Site, export: &str, number: u64) -> Result<()> {
    let mut client = site.server.connect(export)?;
    for page in 0..PAGES {
        let at = Stamp::new(VOLUME, page, 0).offset();
        let bytes = client.read(at, u32::try_from(PAGE_BYTES)?)?;
        let found = Stamp::number_in(VOLUME, page, &bytes)?;
        ensure!(
            found == number,
            "page {page} holds write {found}, not {number}"
        );
    }
    client.disconnect()
}

/// Protocol rules 10 and 14: an outage stops no writer, a restart in it none either, and it heals by itself.
#[test]
fn an_outage_of_the_store_stops_nobody_and_heals() -> Result<()> {
    let mut site = Site::new()?;
    write_all(&site, "outage", 1)?;
    site.server.drain("outage")?;
    site.s3.faults.outage.store(true, Ordering::SeqCst);
    write_all(&site, "outage", 2)?;
    site.server.kill()?;
    site.restart()?;
    check_all(&site, "outage", 2)?;
    write_all(&site, "outage", 3)?;
    site.s3.faults.outage.store(false, Ordering::SeqCst);
    let document = site.server.drain("outage")?;
    ensure!(document["dirty_bytes"] == 0, "{document}");
    ensure!(
        site.server.terminate()?.success(),
        "SIGTERM drains and ends well"
    );
    site.move_on()?;
    check_all(&site, "outage", 3)
}

/// Protocol rule 13: answers that are lost after their effect neither fence the writer nor lose a cut.
#[test]
fn lost_answers_of_the_store_fence_nobody() -> Result<()> {
    let mut site = Site::new()?;
    for round in 1..=6 {
        site.s3.faults.lost_answers.store(1, Ordering::SeqCst);
        write_all(&site, "lost", round)?;
        let document = site.server.drain("lost")?;
        ensure!(document["role"] == "read-write", "{document}");
    }
    ensure!(
        site.server.terminate()?.success(),
        "SIGTERM drains and ends well"
    );
    site.move_on()?;
    check_all(&site, "lost", 6)
}

/// Errors and delays at every other request slow the sync, and change nothing that is read.
#[test]
fn a_flaky_store_is_only_slow() -> Result<()> {
    let mut site = Site::new()?;
    site.s3.faults.before_every.store(3, Ordering::SeqCst);
    site.s3.faults.after_every.store(7, Ordering::SeqCst);
    site.s3.faults.delay_ms.store(5, Ordering::SeqCst);
    for round in 1..=4 {
        write_all(&site, "flaky", round)?;
        site.server.drain("flaky")?;
    }
    site.server.kill()?;
    site.restart()?;
    check_all(&site, "flaky", 4)?;
    site.s3.faults.before_every.store(0, Ordering::SeqCst);
    site.s3.faults.after_every.store(0, Ordering::SeqCst);
    ensure!(
        site.server.terminate()?.success(),
        "SIGTERM drains and ends well"
    );
    site.move_on()?;
    check_all(&site, "flaky", 4)
}

/// Two servers could own one volume, or a lost one be made anew, or nothing be published, ever: nothing is served before
/// such a store, whatever it holds.
#[test]
fn a_store_that_ignores_conditions_is_refused_by_name() -> Result<()> {
    let mut site = Site::new()?;
    write_all(&site, "vm", 1)?;
    ensure!(site.server.terminate()?.success(), "all is in the store");
    for (fault, words) in [
        ("careless", "`If-None-Match: *`"),
        ("creates_absent", "though there is none to match"),
        ("refuses_if_match", "`If-Match` that it gave for the object"),
    ] {
        ensure!(site.s3.faults.set(fault, 1), "no fault {fault}");
        let refused = match site.restart() {
            Ok(()) => anyhow::bail!("{fault}: it serves"),
            Err(refused) => refused.to_string(),
        };
        for words in ["ended at start", words, "use a store that honours it"] {
            ensure!(refused.contains(words), "{fault}: {words}: {refused}");
        }
        ensure!(site.s3.faults.set(fault, 0), "no fault {fault}");
    }
    site.restart()?;
    check_all(&site, "vm", 1)
}

/// Keys of a role last for hours: whoever renews them writes files, and nobody restarts anything.
#[test]
fn renewed_keys_are_used_without_a_restart() -> Result<()> {
    let first = Keys {
        token: Some("first-token".to_owned()),
        ..Keys::default()
    };
    let mut site = Site::with(|settings| {
        let folder = settings.cache_dir.with_file_name("keys");
        first.write(&folder).expect("written");
        settings.keys_dir = Some(folder);
    })?;
    site.s3.keys.send_replace(first);
    write_all(&site, "role", 1)?;
    site.server.drain("role")?;

    let renewed = Keys {
        access_key: "renewed-id".to_owned(),
        secret_key: "renewed-secret".to_owned(),
        token: Some("renewed-token".to_owned()),
        expires_at: None,
    };
    site.s3.keys.send_replace(renewed.clone());
    write_all(&site, "role", 2)?;
    let is_refused = || site.server.log().contains("the sync fails");
    ensure!(
        wait_until(Duration::from_secs(60), is_refused),
        "old keys are taken\n{}",
        site.server.log_tail()
    );
    renewed.write(&site.path("keys"))?;
    // The files are looked at every few seconds, and a drain that meets a refusal says so at once.
    let is_drained = || site.server.drain("role").is_ok();
    ensure!(
        wait_until(Duration::from_secs(60), is_drained),
        "new keys are not taken\n{}",
        site.server.log_tail()
    );
    let log = site.server.log();
    ensure!(log.contains("the keys of the store were renewed"), "{log}");
    for secret in ["renewed-secret", "renewed-token", "first-token"] {
        ensure!(!log.contains(secret), "{secret} is in the log");
    }
    ensure!(
        site.server.terminate()?.success(),
        "SIGTERM drains and ends well"
    );
    site.move_on()?;
    check_all(&site, "role", 2)
}

/// Promise 7: a volume that vanished from the store is not invented anew.
#[test]
fn a_vanished_root_is_an_error() -> Result<()> {
    let mut site = Site::new()?;
    write_all(&site, "vanished", 1)?;
    ensure!(
        site.server.terminate()?.success(),
        "SIGTERM drains and ends well"
    );
    let bucket = site.path("objects").join(glidefs_tests::s3::BUCKET);
    remove_root(&bucket.join("vms/nbd/vanished/root"))?;
    site.move_on()?;
    let refused = site.server.connect("vanished");
    ensure!(
        refused.is_err(),
        "an empty volume took the place of a lost one"
    );
    Ok(())
}

fn remove_root(path: &std::path::Path) -> Result<()> {
    ensure!(path.exists(), "no root at {}", path.display());
    Ok(std::fs::remove_file(path)?)
}
