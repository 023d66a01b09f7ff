//! A slice of the attacks on stored objects; more: `cargo run -p glidefs-tests --bin corrupt`.

use glidefs_tests::corrupt;

const CASES: u64 = 3_000;

#[test]
fn every_attack_on_every_kind_of_object_is_detected_and_named() {
    let report = corrupt::run(1, CASES).unwrap_or_else(|error| panic!("{error:#}"));
    let total = report.total();
    assert_eq!(report.kinds(), 14, "{report}");
    assert!(total.named > CASES / 2, "{report}");
    assert!(total.unread > 0, "trailers were attacked too\n{report}");
    assert!(total.kept > 0, "and what the collector goes by\n{report}");
}
