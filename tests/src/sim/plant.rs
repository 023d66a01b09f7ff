//! How a rule that is to be broken ([`Plant`]) is broken in the config of a node.

use glidefs::shard::ShardConfig;

use super::Plant;

/// How much too long [`Plant::Late`] waits.
#[cfg(feature = "planted")]
const LATE_TIMES: u32 = 10;

#[cfg(feature = "planted")]
pub(super) fn plant(plant: Option<Plant>, config: &mut ShardConfig) {
    use blockcache::Planted;
    if plant == Some(Plant::Late) {
        config.exports.sync.delay *= LATE_TIMES;
    }
    config.cache.planted = match plant {
        Some(Plant::Rule1) => Some(Planted::EvictionOrder),
        Some(Plant::Rule2) => Some(Planted::SupersededIsFree),
        Some(Plant::Rule4) => Some(Planted::LifeStays),
        Some(Plant::Rule22Fork) => Some(Planted::ForkCutPassed),
        Some(Plant::Rule2Fork) => Some(Planted::ForkReadsIndex),
        Some(Plant::CutsApart) => Some(Planted::CutsApart),
        Some(Plant::BoundsApart) => Some(Planted::BoundsApart),
        _ => None,
    };
    config.exports.trust_any_nonce = plant == Some(Plant::Rule11);
    config.exports.forgets_intents = plant == Some(Plant::Rule13Intent);
    config.exports.takes_unasked = plant == Some(Plant::Rule15);
    config.exports.snapshots_of_any_cut = plant == Some(Plant::Rule22);
    config.exports.keeps_rewritten = plant == Some(Plant::Rule2Kept);
    config.exports.forks_of_any_cut = plant == Some(Plant::Rule22Fork);
    config.bucket.planted = match plant {
        Some(Plant::Rule13Conflict) => Some(glidefs::volume::Planted::OwnConflict),
        Some(Plant::Rule20Flat) => Some(glidefs::volume::Planted::FlattenBlind),
        Some(Plant::Rule20List) => Some(glidefs::volume::Planted::ListBeforePublish),
        Some(Plant::Rule20Pin) => Some(glidefs::volume::Planted::PinAfterRoot),
        Some(Plant::Rule20Purge) => Some(glidefs::volume::Planted::PurgeHeld),
        Some(Plant::Rule21) => Some(glidefs::volume::Planted::SweepByAge),
        Some(Plant::Rule21Tombstone) => Some(glidefs::volume::Planted::SweepTombstone),
        Some(Plant::ReadsApart) => Some(glidefs::volume::Planted::ReadsApart),
        Some(Plant::EpochOfOne) => Some(glidefs::volume::Planted::EpochOfOne),
        Some(Plant::OpensForming) => Some(glidefs::volume::Planted::OpensForming),
        _ => None,
    };
}

#[cfg(not(feature = "planted"))]
pub(super) fn plant(plant: Option<Plant>, _config: &mut ShardConfig) {
    assert!(plant.is_none(), "built without the feature `planted`");
}
