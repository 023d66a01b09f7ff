//! Volumes that are published together, by real processes.

use glidefs_tests::databases;
use glidefs_tests::s3::S3Server;
use glidefs_tests::server::Store;

/// Promises 1 to 4 of a group (rule 30).
#[test]
fn a_database_on_two_disks_is_one_moment_after_kills_lost_nodes_and_on_forks() {
    let folder = tempfile::tempdir().expect("a folder");
    let s3 = S3Server::start(&folder.path().join("objects"), 0).expect("a store");
    let store = Store::S3 {
        endpoint: s3.url(),
        prefix: "databases".to_owned(),
    };
    let told = databases::play(folder.path(), &store, 7);
    let told = told.unwrap_or_else(|error| panic!("{error:#}"));
    assert!(told.answered_writes > told.not_taken, "{told:?}");
}
