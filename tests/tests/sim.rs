//! A slice of the simulation: some seeds of every scenario, the same trace twice, the seeds that
//! once found a bug, and the bugs that are planted to be found. Long runs: `cargo sim --seeds N`.

use glidefs_tests::sim::{Run, Scenario};

/// Seeds of each scenario in this slice.
const SEEDS: u64 = 40;
/// Lines of the trace that a failure prints.
const LINES: usize = 150;
/// More than any run has.
const LINES_OF_ALL: usize = 1_000_000;

fn must_pass(scenario: Scenario, seed: u64) {
    let run = Run {
        scenario,
        seed,
        plant: None,
    };
    if let Err(failed) = run.perform(LINES) {
        panic!("{}\n{failed}", failed.trace);
    }
}

fn slice(scenario: Scenario) {
    for seed in 0..SEEDS {
        must_pass(scenario, seed);
    }
}

#[test]
fn kills_and_power_cuts_lose_nothing_that_was_answered_or_flushed() {
    slice(Scenario::Crash);
}

#[test]
fn a_cache_that_recycles_its_chunks_all_the_time_brings_nothing_old_back() {
    slice(Scenario::Evict);
}

#[test]
fn a_lost_node_leaves_an_exact_cut_no_older_than_the_last_published() {
    slice(Scenario::Loss);
}

#[test]
fn snapshots_are_exact_and_stay_what_they_were() {
    slice(Scenario::Snapshots);
}

#[test]
fn forks_of_a_live_volume_are_exact_before_and_after_they_are_published() {
    slice(Scenario::LiveFork);
}

#[test]
fn members_of_a_group_are_one_moment_whoever_looks_and_whatever_dies() {
    slice(Scenario::Group);
}

#[test]
fn of_two_owners_one_is_fenced_and_nothing_of_it_is_seen() {
    slice(Scenario::Takeover);
}

#[test]
fn a_guest_that_moves_loses_nothing_and_is_let_in_by_one_node_at_a_time() {
    slice(Scenario::Migrate);
}

#[test]
fn old_and_copied_cache_folders_never_mix_two_times() {
    slice(Scenario::Copies);
}

#[test]
fn lost_answers_and_moves_between_nodes_lose_nothing() {
    slice(Scenario::Answers);
}

#[test]
fn damaged_objects_are_errors_and_never_data() {
    slice(Scenario::Damage);
}

#[test]
fn a_failed_fsync_is_final_and_what_was_flushed_before_is_there() {
    slice(Scenario::Fsync);
}

#[test]
fn the_store_is_no_older_than_the_delay_and_one_sync_while_it_carries_the_load() {
    slice(Scenario::Age);
}

#[test]
fn a_store_at_its_worst_loses_nothing_and_fences_nobody() {
    slice(Scenario::Weather);
}

/// Or the code that keeps the wait is in no run.
#[test]
fn some_stores_of_the_slice_ask_to_be_left_alone() {
    for scenario in [Scenario::Weather, Scenario::Crash, Scenario::Migrate] {
        let is_asked = (0..SEEDS).any(|seed| {
            let run = Run {
                scenario,
                seed,
                plant: None,
            };
            let passed = run.perform(LINES_OF_ALL);
            let passed = passed.unwrap_or_else(|failed| panic!("{failed}"));
            passed.trace.contains("come again later")
        });
        assert!(is_asked, "{scenario}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_of_the_whole_system() {
    for scenario in Scenario::ALL {
        let hash = |seed| {
            let run = Run {
                scenario,
                seed,
                plant: None,
            };
            let passed = run.perform(0).unwrap_or_else(|failed| panic!("{failed}"));
            (passed.trace_hash, passed.steps, passed.answers)
        };
        assert_eq!(hash(3), hash(3), "{scenario}");
        assert_ne!(hash(3), hash(4), "{scenario}");
    }
}

#[test]
fn seeds_that_once_found_a_bug_pass() {
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds.txt");
    let list = std::fs::read_to_string(list).expect("the list of seeds is in the source tree");
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let scenario = words.next().and_then(Scenario::named);
        let seed = words.next().and_then(|word| word.parse().ok());
        let (Some(scenario), Some(seed)) = (scenario, seed) else {
            panic!("not a scenario and a seed: {line}");
        };
        must_pass(scenario, seed);
    }
}

/// Without these nobody would know whether the judge sees anything.
#[cfg(feature = "planted")]
mod planted {
    use glidefs_tests::sim::{Plant, Run, Scenario};

    fn found(plant: Plant, scenario: Scenario, seeds_max: u64) {
        let found = (0..seeds_max).find_map(|seed| {
            let run = Run {
                scenario,
                seed,
                plant: Some(plant),
            };
            run.perform(0).err()
        });
        assert!(
            found.is_some(),
            "{plant:?} is not found in {seeds_max} seeds"
        );
    }

    #[test]
    fn eviction_out_of_log_order_is_found() {
        found(Plant::Rule1, Scenario::Evict, 20);
    }

    #[test]
    fn a_superseded_record_that_counts_as_free_is_found() {
        found(Plant::Rule2, Scenario::Evict, 400);
    }

    #[test]
    fn a_life_that_is_not_renewed_is_found() {
        found(Plant::Rule4, Scenario::Evict, 20);
    }

    #[test]
    fn records_that_count_whoever_published_are_found() {
        found(Plant::Rule11, Scenario::Copies, 200);
    }

    #[test]
    fn an_own_conflict_that_is_taken_for_a_fence_is_found() {
        found(Plant::Rule13Conflict, Scenario::Weather, 20);
    }

    #[test]
    fn an_own_write_that_is_taken_for_a_strangers_is_found() {
        found(Plant::Rule13Intent, Scenario::Weather, 400);
    }

    #[test]
    fn a_collector_that_lists_pins_too_early_is_found() {
        found(Plant::Rule20List, Scenario::Snapshots, 60);
    }

    #[test]
    fn a_fork_that_is_pinned_too_late_is_found() {
        found(Plant::Rule20Pin, Scenario::Snapshots, 60);
    }

    #[test]
    fn a_sweep_of_what_is_under_way_is_found() {
        found(Plant::Rule21, Scenario::Snapshots, 20);
    }

    #[test]
    fn a_purge_under_a_fork_is_found() {
        found(Plant::Rule20Purge, Scenario::Snapshots, 60);
    }

    #[test]
    fn a_sweep_of_a_tombstone_is_found() {
        found(Plant::Rule21Tombstone, Scenario::Snapshots, 60);
    }

    #[test]
    fn a_snapshot_of_an_older_cut_is_found() {
        found(Plant::Rule22, Scenario::Snapshots, 40);
    }

    #[test]
    fn a_parent_that_publishes_behind_a_fork_is_found() {
        found(Plant::Rule22Fork, Scenario::LiveFork, 60);
    }

    #[test]
    fn a_fork_that_reads_what_its_parent_is_now_is_found() {
        found(Plant::Rule2Fork, Scenario::LiveFork, 60);
    }

    #[test]
    fn a_promotion_that_asks_nobody_is_found() {
        found(Plant::Rule15, Scenario::Migrate, 40);
    }

    #[test]
    fn a_flat_fork_that_lets_go_of_what_snapshots_need_is_found() {
        found(Plant::Rule20Flat, Scenario::Snapshots, 400);
    }

    #[test]
    fn a_newer_cut_that_takes_what_an_older_one_uploaded_is_found() {
        found(Plant::Rule2Kept, Scenario::Weather, 300);
    }

    #[test]
    fn members_that_are_cut_one_after_the_other_are_found() {
        found(Plant::CutsApart, Scenario::Group, 40);
    }

    #[test]
    fn a_bound_of_each_member_by_itself_is_found() {
        found(Plant::BoundsApart, Scenario::Group, 60);
    }

    #[test]
    fn a_reader_of_two_moments_is_found() {
        found(Plant::ReadsApart, Scenario::Group, 60);
    }

    #[test]
    fn a_take_that_raises_one_epoch_is_found() {
        found(Plant::EpochOfOne, Scenario::Group, 40);
    }

    #[test]
    fn an_open_that_does_not_give_a_forming_group_up_is_found() {
        found(Plant::OpensForming, Scenario::Group, 120);
    }

    #[test]
    fn a_sync_that_waits_ten_times_the_delay_is_found() {
        found(Plant::Late, Scenario::Age, 10);
    }
}
