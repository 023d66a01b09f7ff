use std::time::Duration;

use blockcache::{Epoch, Intent, Seq};
use world::{ETag, UnixTime};

use super::*;
use crate::volume::Owner;

const HERE: Id = Id([1; 16]);
const ELSEWHERE: Id = Id([2; 16]);
const VOLUME: Id = Id([3; 16]);
const KNOWN: Id = Id([4; 16]);
const INTENDED: Id = Id([5; 16]);
const FOREIGN: Id = Id([6; 16]);

fn root(owner: Id, state: VolumeState, nonce: Id) -> RootView {
    RootView {
        volume: VOLUME,
        name: "vm".to_owned(),
        size_bytes: 1 << 30,
        epoch: Epoch(7),
        state,
        owner: Some(Owner {
            cache: owner,
            host: "node".to_owned(),
        }),
        generation: 0,
        parent: None,
        cut: Seq(100),
        cut_epoch: Epoch(7),
        cut_time: UnixTime(0),
        nonce,
        etag: ETag("e".to_owned()),
        group: None,
    }
}

fn local() -> LocalVolume {
    LocalVolume {
        id: VOLUME,
        name: "vm".to_owned(),
        size_bytes: 1 << 30,
        epoch: Epoch(7),
        attached: true,
        nonce: KNOWN,
        published: Seq(90),
        last: Seq(120),
        intents: vec![Intent {
            nonce: INTENDED,
            cut: Seq(100),
            replaces: ETag("d".to_owned()),
        }],
        dirty_bytes: 4096,
        dirty_age: Duration::from_secs(1),
        damage: None,
        kept: Seq(120),
        forks: Vec::new(),
        base: None,
    }
}

fn open(seen: Seen, local: Option<&LocalVolume>) -> Plan {
    let ours = Ours {
        cache: HERE,
        local,
        create_bytes: Some(4096),
        over_deleted: false,
    };
    decide(&seen, ours)
}

#[test]
fn a_deleted_volume_makes_room_only_for_who_asks_for_a_new_one() {
    let seen = Seen::Root(root(HERE, VolumeState::Deleted, KNOWN));
    assert_eq!(open(seen.clone(), None), Plan::Refuse(Refusal::Deleted));
    let mut ours = Ours {
        cache: HERE,
        local: None,
        create_bytes: Some(4096),
        over_deleted: true,
    };
    assert_eq!(decide(&seen, ours), Plan::Create { size_bytes: 4096 });
    ours.create_bytes = None;
    assert_eq!(decide(&seen, ours), Plan::Refuse(Refusal::Deleted));
}

#[test]
fn an_epoch_that_the_log_holds_is_resumed_after_known_and_after_intended_publishes() {
    for nonce in [KNOWN, INTENDED] {
        let seen = Seen::Root(root(HERE, VolumeState::Open, nonce));
        let records = Records::Keep;
        assert_eq!(open(seen, Some(&local())), Plan::Resume { records });
    }
}

#[test]
fn unpublished_records_become_salvage_once_somebody_else_published() {
    let salvage = Plan::Refuse(Refusal::Salvage(4096));
    let seen = Seen::Root(root(ELSEWHERE, VolumeState::Detached, FOREIGN));
    assert_eq!(open(seen, Some(&local())), salvage);
    // An old copy of our own folder: the owner is "us", the nonce is not known here.
    let seen = Seen::Root(root(HERE, VolumeState::Open, FOREIGN));
    assert_eq!(open(seen, Some(&local())), salvage);
    // Reading needs nothing of the log.
    let seen = Seen::Root(root(ELSEWHERE, VolumeState::Open, FOREIGN));
    assert_eq!(open(seen, Some(&local())), Plan::ReadOnly);
}

#[test]
fn clean_records_are_dropped_once_somebody_else_published() {
    let clean = LocalVolume {
        last: Seq(90),
        dirty_bytes: 0,
        ..local()
    };
    let seen = Seen::Root(root(ELSEWHERE, VolumeState::Detached, FOREIGN));
    let records = Records::Drop;
    assert_eq!(open(seen, Some(&clean)), Plan::Take { records });
}

#[test]
fn a_cache_that_detached_finds_its_records_warm() {
    let left = LocalVolume {
        attached: false,
        published: Seq(90),
        last: Seq(100),
        dirty_bytes: 0,
        ..local()
    };
    let seen = Seen::Root(root(HERE, VolumeState::Detached, INTENDED));
    let records = Records::Keep;
    assert_eq!(open(seen, Some(&left)), Plan::Take { records });
    // The detach did not land, yet: the epoch is raised, so that it never will.
    let seen = Seen::Root(root(HERE, VolumeState::Open, KNOWN));
    assert_eq!(open(seen, Some(&left)), Plan::Take { records });
}

#[test]
fn a_store_ahead_of_the_disk_makes_the_log_stale() {
    let behind = LocalVolume {
        last: Seq(99),
        ..local()
    };
    let seen = Seen::Root(root(HERE, VolumeState::Open, INTENDED));
    let records = Records::Drop;
    assert_eq!(open(seen, Some(&behind)), Plan::Resume { records });
}

#[test]
fn a_root_older_than_one_seen_before_is_refused_whoever_owns_it() {
    let ahead = LocalVolume {
        published: Seq(101),
        ..local()
    };
    let later = LocalVolume {
        epoch: Epoch(8),
        ..local()
    };
    for owner in [HERE, ELSEWHERE] {
        for (log, seen) in [(&ahead, Seq(101)), (&later, Seq(90))] {
            let root = Seen::Root(root(owner, VolumeState::Open, KNOWN));
            let refusal = Refusal::RolledBack {
                cut: Seq(100),
                seen,
            };
            assert_eq!(open(root, Some(log)), Plan::Refuse(refusal));
        }
    }
}

#[test]
fn an_outage_resumes_held_epochs_only() {
    let down = Seen::Unreachable("no route".to_owned());
    assert_eq!(open(down.clone(), Some(&local())), Plan::ResumeUnasked);
    let left = LocalVolume {
        attached: false,
        ..local()
    };
    let refusal = Plan::Refuse(Refusal::Unavailable("no route".to_owned()));
    assert_eq!(open(down.clone(), Some(&left)), refusal);
    // Above all: nothing is created while the store cannot say that nothing is there.
    assert_eq!(open(down, None), refusal);
}

#[test]
fn an_absent_root_is_created_only_if_nobody_knew_it() {
    assert_eq!(open(Seen::Absent, None), Plan::Create { size_bytes: 4096 });
    let vanished = Plan::Refuse(Refusal::Vanished);
    assert_eq!(open(Seen::Absent, Some(&local())), vanished);
    let ours = Ours {
        cache: HERE,
        local: None,
        create_bytes: None,
        over_deleted: false,
    };
    assert_eq!(decide(&Seen::Absent, ours), Plan::Refuse(Refusal::Unknown));
}

#[test]
fn another_nodes_volume_is_read_only_for_a_fresh_node() {
    let seen = Seen::Root(root(ELSEWHERE, VolumeState::Open, FOREIGN));
    let records = Records::Keep;
    assert_eq!(open(seen, None), Plan::ReadOnly);
    let seen = Seen::Root(root(ELSEWHERE, VolumeState::Detached, FOREIGN));
    assert_eq!(open(seen, None), Plan::Take { records });
    let seen = Seen::Root(root(HERE, VolumeState::Open, FOREIGN));
    assert_eq!(open(seen, None), Plan::Take { records });
}

#[test]
fn states_of_later_versions_are_refused() {
    for (state, refusal) in [
        (VolumeState::Deleted, Refusal::Deleted),
        (VolumeState::Pending, Refusal::NotInThisVersion),
        (VolumeState::Suspended, Refusal::NotInThisVersion),
    ] {
        let seen = Seen::Root(root(HERE, state, KNOWN));
        assert_eq!(open(seen, Some(&local())), Plan::Refuse(refusal));
    }
}

#[test]
fn a_damaged_log_opens_nothing_for_writing() {
    let damaged = LocalVolume {
        damage: Some("hole at 95".to_owned()),
        ..local()
    };
    let refusal = Plan::Refuse(Refusal::Damaged("hole at 95".to_owned()));
    let ours = || root(HERE, VolumeState::Open, KNOWN);
    let shown = |records| Plan::Damaged { records };
    let open_with = |root, kept| {
        let kept = Seq(kept);
        let damaged = LocalVolume {
            kept,
            ..damaged.clone()
        };
        open(Seen::Root(root), Some(&damaged))
    };
    assert_eq!(open_with(ours(), ours().cut.0), shown(Records::Keep));
    // The store has what is missing here, and what is left is older than that.
    assert_eq!(open_with(ours(), ours().cut.0 - 1), shown(Records::Drop));
    let strange = root(HERE, VolumeState::Open, FOREIGN);
    assert_eq!(open_with(strange, 120), refusal);
    let down = Seen::Unreachable("no route".to_owned());
    assert_eq!(open(down, Some(&damaged)), refusal);
}

#[test]
fn a_volume_is_given_up_by_the_log_that_made_its_last_change_and_by_no_copy_of_it() {
    let claimed = |owner, state, nonce, local: LocalVolume| {
        claim(Some(&root(owner, state, nonce)), &[local], HERE)
    };
    let left = LocalVolume {
        attached: false,
        ..local()
    };
    for nonce in [KNOWN, INTENDED] {
        // Also after a detach that did not get through.
        for local in [local(), left.clone()] {
            assert_eq!(claimed(HERE, VolumeState::Open, nonce, local), Claim::Ours);
        }
    }
    for local in [local(), left.clone()] {
        let found = claimed(HERE, VolumeState::Open, FOREIGN, local.clone());
        assert_eq!(found, Claim::Copied);
        let found = claimed(ELSEWHERE, VolumeState::Open, FOREIGN, local.clone());
        assert_eq!(found, Claim::Nothing);
        let found = claimed(ELSEWHERE, VolumeState::Detached, FOREIGN, local);
        assert_eq!(found, Claim::Nothing);
    }
    let there = root(HERE, VolumeState::Open, FOREIGN);
    assert_eq!(claim(Some(&there), &[], HERE), Claim::Copied);
    // Nobody can ask: as the log says.
    assert_eq!(claim(None, &[local()], HERE), Claim::Ours);
    assert_eq!(claim(None, &[left], HERE), Claim::Nothing);
}

#[test]
fn an_owner_knows_the_root_that_it_made_and_no_other() {
    let owned = |root: RootView, local: &LocalVolume| owns(&root, local, HERE);
    for nonce in [KNOWN, INTENDED] {
        assert!(owned(root(HERE, VolumeState::Open, nonce), &local()));
    }
    assert!(!owned(root(HERE, VolumeState::Open, FOREIGN), &local()));
    assert!(!owned(root(HERE, VolumeState::Detached, KNOWN), &local()));
    assert!(!owned(root(ELSEWHERE, VolumeState::Open, KNOWN), &local()));
    let earlier = LocalVolume {
        epoch: Epoch(6),
        ..local()
    };
    assert!(!owned(root(HERE, VolumeState::Open, KNOWN), &earlier));
}

#[test]
fn volumes_that_are_published_together_are_opened_as_the_one_that_can_least() {
    let (keep, drop) = (Records::Keep, Records::Drop);
    let resume = |records| Plan::Resume { records };
    let take = |records| Plan::Take { records };
    let joined = |plans: &[Plan]| join(plans.to_vec());
    assert_eq!(joined(&[resume(drop)]), Ok((Joint::Resume, vec![drop])));
    let all = joined(&[resume(keep), take(drop)]);
    assert_eq!(all, Ok((Joint::Take, vec![keep, drop])));
    let damaged = Plan::Damaged { records: drop };
    let all = joined(&[take(keep), damaged, resume(keep)]);
    assert_eq!(all, Ok((Joint::Damaged, vec![keep, drop, keep])));
    let all = joined(&[Plan::ReadOnly, Plan::ReadOnly]);
    assert_eq!(all, Ok((Joint::ReadOnly, vec![keep, keep])));
    // Writes of one that nobody will publish: those of the other must not be published without them.
    let salvage = Plan::Refuse(Refusal::Salvage(4096));
    let unfit = Unfit {
        number: 1,
        refusal: Refusal::Salvage(4096),
    };
    assert_eq!(joined(&[resume(keep), salvage]), Err(unfit));
    let in_the_way = joined(&[take(keep), Plan::ResumeUnasked]);
    assert_eq!(in_the_way.expect_err("not opened").number, 1);
}
