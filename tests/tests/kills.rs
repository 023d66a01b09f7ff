//! A slice of the kill rounds; `cargo run -p glidefs-tests --bin kill -- --rounds 50` runs more.

use glidefs_tests::kill::{Load, Rounds};
use glidefs_tests::moves;
use glidefs_tests::s3::S3Server;
use glidefs_tests::server::Store;

const LOAD: Load = Load {
    seed: 7,
    answers_min: 100,
    answers_max: 4000,
};

fn rounds(folder: &tempfile::TempDir) -> Rounds {
    Rounds::new(folder.path(), LOAD).expect("a store to run against")
}

/// Promises 1 and 2.
#[test]
fn nothing_answered_is_lost_by_kill_9() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rounds = rounds(&folder);
    rounds
        .restart(3)
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(rounds.tally.answered_writes > 0 && rounds.tally.flushes > 0);
    assert_eq!(rounds.tally.lost_with_node, 0);
}

/// Promise 3.
#[test]
fn a_lost_node_leaves_an_exact_cut_and_a_drained_one_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rounds = rounds(&folder);
    rounds
        .lose_node(2)
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(rounds.tally.pages_checked > 0);
}

/// Rules 13 and 15, and what a fenced log still holds.
#[test]
fn a_volume_moves_between_two_nodes_and_what_a_fenced_one_holds_is_all_that_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let s3 = S3Server::start(&folder.path().join("objects"), 0).expect("a store");
    let store = Store::S3 {
        endpoint: s3.url(),
        prefix: "moves".to_owned(),
    };
    let told = moves::play(folder.path(), &store, 7).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(told.answered_writes > 0);
    assert!(told.salvaged > 0 || told.not_taken == 0, "{told:?}");
}
