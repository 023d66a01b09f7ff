//! Every mistake is found, and every scene that takes seconds is explored to its end. `cargo model` does all.

use clap::ValueEnum;
use glidefs_model::check::{Bounds, explore};
use glidefs_model::{groups, joins, owners, space};

const BOUNDS: Bounds = Bounds {
    threads: 2,
    states_max: 20_000_000,
};
/// States from which on a scene is left to `cargo model`.
const SLOW: [&str; 0] = [];

#[test]
fn an_owner_is_never_in_doubt() {
    for scene in owners::scenes() {
        let seen = explore(("owners", scene.name, None), scene, &BOUNDS);
        assert!(seen.is_clean(), "{seen:#?}");
    }
}

#[test]
fn what_is_named_is_never_deleted() {
    for scene in space::scenes() {
        if SLOW.contains(&scene.name) {
            continue;
        }
        let seen = explore(("space", scene.name, None), scene, &BOUNDS);
        assert!(seen.is_clean(), "{seen:#?}");
    }
}

#[test]
fn a_group_is_seen_as_it_was_at_one_moment() {
    for scene in groups::scenes() {
        let seen = explore(("groups", scene.name, None), scene, &BOUNDS);
        assert!(seen.is_clean(), "{seen:#?}");
    }
}

#[test]
fn one_root_says_what_a_volume_is() {
    for scene in joins::scenes() {
        let seen = explore(("joins", scene.name, None), scene, &BOUNDS);
        assert!(seen.is_clean(), "{seen:#?}");
    }
}

#[test]
fn every_mistake_about_owners_is_found() {
    let scenes = owners::scenes();
    for mistake in owners::Mistake::value_variants() {
        let finders = scenes.iter().filter(|it| it.finds.contains(mistake));
        let found = finders.map(|scene| {
            let broken = scene.clone().with(*mistake);
            let name = ("owners", scene.name, Some(format!("{mistake:?}")));
            assert!(
                explore(name, broken, &BOUNDS).found().is_some(),
                "{mistake:?}"
            );
        });
        assert_ne!(found.count(), 0, "no scene looks for {mistake:?}");
    }
}

#[test]
fn every_mistake_about_space_is_found() {
    let scenes = space::scenes();
    for mistake in space::Mistake::value_variants() {
        let finders = scenes.iter().filter(|it| it.finds.contains(mistake));
        let found = finders.map(|scene| {
            let broken = scene.clone().with(*mistake);
            let name = ("space", scene.name, Some(format!("{mistake:?}")));
            assert!(
                explore(name, broken, &BOUNDS).found().is_some(),
                "{mistake:?}"
            );
        });
        assert_ne!(found.count(), 0, "no scene looks for {mistake:?}");
    }
}

#[test]
fn every_mistake_about_groups_is_found() {
    let scenes = groups::scenes();
    for mistake in groups::Mistake::value_variants() {
        let finders = scenes.iter().filter(|it| it.finds.contains(mistake));
        let found = finders.map(|scene| {
            let broken = scene.clone().with(*mistake);
            let name = ("groups", scene.name, Some(format!("{mistake:?}")));
            assert!(
                explore(name, broken, &BOUNDS).found().is_some(),
                "{mistake:?}"
            );
        });
        assert_ne!(found.count(), 0, "no scene looks for {mistake:?}");
    }
}

#[test]
fn every_mistake_about_joins_is_found() {
    let scenes = joins::scenes();
    for mistake in joins::Mistake::value_variants() {
        let finders = scenes.iter().filter(|it| it.finds.contains(mistake));
        let found = finders.map(|scene| {
            let broken = scene.clone().with(*mistake);
            let name = ("joins", scene.name, Some(format!("{mistake:?}")));
            assert!(
                explore(name, broken, &BOUNDS).found().is_some(),
                "{mistake:?}"
            );
        });
        assert_ne!(found.count(), 0, "no scene looks for {mistake:?}");
    }
}
