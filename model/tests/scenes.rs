//! Every mistake is found, and every scene that takes seconds is explored to its end. `cargo model` does all.

use clap::ValueEnum;
use glidefs_model::check::{Bounds, Scene, explore};
use glidefs_model::{groups, joins, owners, space};

const BOUNDS: Bounds = Bounds {
    threads: 2,
    states_max: 20_000_000,
};
/// States from which on a scene is left to `cargo model`.
const SLOW: [&str; 0] = [];

fn holds<S: Scene>() {
    for scene in S::all() {
        if SLOW.contains(&scene.name()) {
            continue;
        }
        let seen = explore(scene, &BOUNDS);
        assert!(seen.is_clean(), "{seen:#?}");
    }
}

fn finds_every_mistake<S: Scene>() {
    let scenes = S::all();
    for mistake in S::Mistake::value_variants() {
        let finders = scenes.iter().filter(|it| it.finds().contains(mistake));
        let found = finders.map(|scene| {
            let broken = scene.clone().with(*mistake);
            assert!(explore(broken, &BOUNDS).found().is_some(), "{mistake:?}");
        });
        assert_ne!(found.count(), 0, "no scene looks for {mistake:?}");
    }
}

#[test]
fn an_owner_is_never_in_doubt() {
    holds::<owners::Scene>();
}

#[test]
fn what_is_named_is_never_deleted() {
    holds::<space::Scene>();
}

#[test]
fn a_group_is_seen_as_it_was_at_one_moment() {
    holds::<groups::Scene>();
}

#[test]
fn one_root_says_what_a_volume_is() {
    holds::<joins::Scene>();
}

#[test]
fn every_mistake_about_owners_is_found() {
    finds_every_mistake::<owners::Scene>();
}

#[test]
fn every_mistake_about_space_is_found() {
    finds_every_mistake::<space::Scene>();
}

#[test]
fn every_mistake_about_groups_is_found() {
    finds_every_mistake::<groups::Scene>();
}

#[test]
fn every_mistake_about_joins_is_found() {
    finds_every_mistake::<joins::Scene>();
}
