//! Changes of the password slots beside everything else, with a store that takes its time.

use glidefs::volume::{
    Bucket, BucketConfig, Compression, InUse, KeyChange, KeyringCost, Keyslots, Metered,
};
use world::sim::{Sim, SimConfig, SimStore, SimWorld};
use zeroize::Zeroizing;

fn text(password: &str) -> Zeroizing<String> {
    Zeroizing::new(password.to_owned())
}

/// Between the two reads of a start the keyring may be replaced, and what it has read is then noted as
/// old.
#[test]
fn a_start_beside_a_change_of_keys_is_no_false_alarm() {
    for seed in 0..20 {
        let sim = Sim::new(seed, SimConfig::default());
        let host = sim.host("node");
        let (world, store) = (sim.process(host), sim.store(host));
        let work = starts_beside_changes(sim.clone(), world, store);
        sim.run(work).expect("it ends");
    }
}

async fn starts_beside_changes(sim: Sim, world: SimWorld, store: SimStore) {
    open(&world, &store).await;
    let ended = std::rc::Rc::new(std::cell::Cell::new(false));
    let tell = std::rc::Rc::clone(&ended);
    let (operator, his_store) = (world.clone(), store.clone());
    sim.spawn(async move {
        for number in 0..10 {
            let password = text(&format!("{number}"));
            let add = KeyChange::Add { password };
            let change = |change| {
                Keyslots::change(
                    &operator,
                    &his_store,
                    text("first"),
                    change,
                    KeyringCost::LEAST,
                )
            };
            let added = change(add).await.expect("added").added.expect("a slot");
            let slot = added.id.to_string();
            let in_use = InUse::Keep;
            change(KeyChange::Remove { slot, in_use })
                .await
                .expect("removed");
        }
        tell.set(true);
    });
    while !ended.get() {
        open(&world, &store).await;
    }
}

async fn open(world: &SimWorld, store: &SimStore) {
    let config = BucketConfig {
        password: Some("first".to_owned()),
        cost: KeyringCost::LEAST,
        ..BucketConfig::new(Compression::None)
    };
    let store = Metered::new(world.clone(), store.clone());
    let opened = Bucket::open(world.clone(), store, config).await;
    opened.expect("the keyring is sound");
}
