//! A slice of the crash points (`crashpoints` is the command for all of them): real work on each
//! filesystem is recorded, replayed, and judged at some of its flushes and between; and the lies that
//! are planted for the judge to find.

use anyhow::{Result, ensure};
use glidefs_tests::crashpoints::{
    self, Examine, Filesystem, Lab, Options, Plant, Reached, Recording, Scale, Tally, What,
    is_possible,
};

/// Every how many flushes there is a crash point, so that a slice ends in seconds.
const FLUSH_EVERY: u64 = 5;
const BETWEEN: u64 = 5;

fn options(plant: Option<Plant>) -> Options {
    Options {
        seed: 1,
        flush_every: FLUSH_EVERY,
        between: BETWEEN,
        plant,
    }
}

fn quiet() -> crashpoints::Progress {
    Box::new(|_tally| {})
}

fn slice(filesystem: Filesystem) -> Result<()> {
    if !is_possible(filesystem)? {
        return Ok(());
    }
    let recording = Recording::make(filesystem, Scale::SLICE)?;
    let tally = crashpoints::run(&recording, options(None), Examine::Images, quiet())?;
    ensure!(tally.failed == 0, "{}", tally.failures.join("\n"));
    ensure!(tally.images > 0 && tally.kills > 0, "{tally:?}");
    Ok(())
}

#[test]
fn ext4_is_whole_at_every_crash_point() -> Result<()> {
    slice(Filesystem::Ext4)
}

#[test]
fn xfs_is_whole_at_every_crash_point() -> Result<()> {
    slice(Filesystem::Xfs)
}

#[test]
fn btrfs_is_whole_at_every_crash_point() -> Result<()> {
    slice(Filesystem::Btrfs)
}

fn planted(plant: Plant) -> Result<Option<Tally>> {
    if !is_possible(Filesystem::Ext4)? {
        return Ok(None);
    }
    let recording = Recording::make(Filesystem::Ext4, Scale::SLICE)?;
    let lied = crashpoints::run(&recording, options(Some(plant)), Examine::Nothing, quiet());
    Ok(Some(lied?))
}

#[test]
fn a_write_that_is_only_answered_is_found() -> Result<()> {
    if let Some(tally) = planted(Plant::LostWrite)? {
        ensure!(tally.failed > 0, "nothing was found");
    }
    Ok(())
}

#[test]
fn flushes_that_are_only_answered_are_found() -> Result<()> {
    if let Some(tally) = planted(Plant::LostFlush)? {
        ensure!(tally.failed > 0, "nothing was found");
    }
    Ok(())
}

#[test]
fn a_content_without_what_was_synced_is_found() -> Result<()> {
    if !is_possible(Filesystem::Ext4)? {
        return Ok(());
    }
    let recording = Recording::make(Filesystem::Ext4, Scale::SLICE)?;
    let Recording { stream, owed, .. } = &recording;
    let mut lab = Lab::new(recording.filesystem, stream.size_bytes)?;
    let all = stream.asks.len();
    let everything = Reached::exactly(all);
    lab.judge(&stream.content_after(all), everything, owed)?;
    // Whoever takes a content for a later one misses what was synced in between.
    let is_late = |what: &What| matches!(what, What::Rows("rollback.db", rows) if *rows > 3);
    let synced = owed.iter().find(|owed| is_late(&owed.what));
    let from = synced.map_or(0, |owed| owed.from);
    let formatted = recording.formatted();
    ensure!(formatted < from && from < all, "{formatted} {from} {all}");
    let early = stream.content_after((formatted + from) / 2);
    let missed = lab.judge(&early, Reached::exactly(from), owed);
    ensure!(missed.is_err(), "it misses nothing");
    // And the filesystem's own tool sees a block that was lost.
    let mut damaged = stream.content_after(all);
    damaged.zero(4096, 4096);
    ensure!(
        lab.judge(&damaged, everything, &[]).is_err(),
        "group descriptors are gone and nobody says so"
    );
    Ok(())
}
