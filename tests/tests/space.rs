//! Large volumes, and what they take in a bucket, on real processes: short runs of what `space --real` and
//! `glidefs-bench-fleet` measure for long. No time decides here.

use std::time::Duration;

use anyhow::{Result, ensure};
use glidefs_tests::bucket::Place;
use glidefs_tests::s3::S3Server;
use glidefs_tests::{overwrites, sizes};

fn with_place<T>(play: impl FnOnce(&Place<'_>) -> Result<T>) -> Result<T> {
    let folder = tempfile::tempdir()?;
    let s3 = S3Server::start(&folder.path().join("objects"), 0)?;
    let endpoint = s3.url();
    play(&Place {
        folder: folder.path(),
        endpoint: &endpoint,
        prefix: "space",
    })
}

#[test]
fn random_overwrites_read_back_to_the_byte_on_this_node_and_from_the_store_alone() -> Result<()> {
    let plan = overwrites::Plan {
        size_mib: 8,
        bytes_per_second: 16 << 20,
        lasts: Duration::from_secs(2),
        sample_every: Duration::from_millis(500),
        seed: 7,
    };
    let mut told = 0;
    let found = with_place(|place| overwrites::play(place, &plan, |_point| told += 1))?;
    ensure!(found.pages_checked == 2 * (8 << 8), "{found:?}");
    ensure!(told == found.points.len(), "{told} points were told");
    // Behind a drain the bucket holds all that is live, which does not compress: else it is not seen whole.
    let ends = [found.points.first(), found.points.last()];
    for point in ends.into_iter().flatten() {
        ensure!(point.stored_bytes >= point.live_bytes, "{point:?}");
    }
    Ok(())
}

#[test]
fn an_export_grows_online_to_16_tib_and_what_is_trimmed_is_a_hole_and_leaves_the_bucket()
-> Result<()> {
    let found = with_place(|place| sizes::play(place, &sizes::Plan::GLANCE))?;
    let last = found.grown.last().map(|it| it.size_bytes);
    ensure!(last == Some(16 << 40), "{last:?}");
    // Each was checked where it was found: the end must have been reached.
    ensure!(found.trims.part.len() == 8 && found.trims.whole.len() == 1);
    ensure!(found.trims.whole_requests == 4097);
    Ok(())
}
