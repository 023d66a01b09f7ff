//! After a start without the store: it is asked until it answers, and the log is believed only if the roots agree
//! (rule 14).

use blockcache::Epoch;
use world::World;

use super::{Syncer, Task};
use crate::export::Role;
use crate::export::decide::{Ours, Plan, Records, Seen, decide};
use crate::export::open::adopt;
use crate::export::shelf::{Asked, Trouble};
use crate::volume::{Members, Volume};

/// How often in all the store may answer with an unreadable root, before exports that were resumed
/// without asking it end: what they serve may be over since long (promise 7).
const UNREADABLE_ANSWERS_MAX: u32 = 3;

/// What the roots say of what was resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// They are what this log made of them: the store is read from now on.
    Ours,
    Fenced,
    /// Other volumes are published together than were resumed together. All are opened anew; the log keeps what they wrote.
    Regrouped,
}

impl<W: World> Syncer<W> {
    pub(super) async fn prove(&self) -> Task {
        let mut failures = 0;
        let mut unreadable = 0;
        loop {
            // With all that is published together with what was asked for, as of one moment.
            let Asked {
                seen,
                volume,
                trouble,
                retry_after,
            } = Box::pin(self.site.shelf.ask_all(self.export().name())).await;
            let task = match seen {
                // The password was changed elsewhere while the store was out of reach: guests go on as in the outage, and a
                // person puts it right.
                Seen::Unreadable(why) if trouble == Trouble::Keys => {
                    failures += 1;
                    self.say_unasked(trouble, &why);
                    self.back_off(failures, retry_after).await
                }
                // Once may be something on the way that answers in the store's place.
                Seen::Unreadable(why) => {
                    unreadable += 1;
                    tracing::error!(export = %self.names(), error = %why, "what the store holds of the volume cannot be read; restore the object that is named (docs/runbooks/volume-vanished.md)");
                    if unreadable == UNREADABLE_ANSWERS_MAX {
                        self.end(Role::Vanished);
                        return Task::Ends;
                    }
                    self.tell_failure(&why);
                    self.back_off(unreadable, retry_after).await
                }
                Seen::Unreachable(why) => {
                    failures += 1;
                    self.say_unasked(trouble, &why);
                    self.back_off(failures, retry_after).await
                }
                Seen::Absent => {
                    tracing::error!(export = %self.names(), "the volume is gone from the store; it is not created again (docs/runbooks/volume-vanished.md)");
                    self.end(Role::Vanished);
                    return Task::Ends;
                }
                Seen::Root(_) => {
                    let members = volume.expect("a root comes with its volume");
                    return self.proved(&members).await;
                }
            };
            if task == Task::Ends {
                return Task::Ends;
            }
        }
    }

    /// Once per outage to the log, and to those who wait.
    fn say_unasked(&self, trouble: Trouble, why: &str) {
        let (names, causes) = (self.names(), &self.export().causes);
        let now = self.site.world.now();
        match trouble {
            Trouble::Keys if causes.raise("sync fails", now) => {
                tracing::error!(export = %names, error = %why, "the store's keys cannot be opened; the volume is served from the cache, and nothing is published: give this node the current password, and start it again with two SIGTERMs (docs/runbooks/store-unavailable.md)");
            }
            Trouble::Refused if causes.raise("sync fails", now) => {
                tracing::error!(export = %names, error = %why, "the store refuses to be asked; the volume is served from the cache (docs/runbooks/store-unavailable.md)");
            }
            Trouble::Passing | Trouble::Content if causes.raise("sync", now) => {
                tracing::warn!(export = %names, error = %why, "the store cannot be asked; the volume is served from the cache");
            }
            Trouble::Keys | Trouble::Refused | Trouble::Passing | Trouble::Content => {}
        }
        self.tell_failure(why);
    }

    async fn proved(&self, members: &Members<W>) -> Task {
        match self.agree(members) {
            Proof::Ours => {
                self.recovered();
                // The roots may hold more than the log had noted: nothing may be left to
                // publish, and so nothing else would tell those who wait for a drain.
                for member in &self.members {
                    member.export.orders.news.notify_waiters();
                }
                Task::GoesOn
            }
            Proof::Fenced => {
                self.end(Role::Fenced);
                self.give_up_epochs().await;
                Task::Ends
            }
            Proof::Regrouped => {
                tracing::warn!(export = %self.names(), "in the store other volumes are published together with it than this node knew; it is closed, and opened with them");
                self.end(Role::Closed);
                // What was written to it in the outage must not wait for somebody who connects.
                for member in &self.members {
                    self.site.lineage.want(member.export.name());
                }
                Task::Ends
            }
        }
    }

    /// In one step: what counts as clean must be readable from the maps.
    fn agree(&self, members: &Members<W>) -> Proof {
        let (plans, epochs): (Vec<Plan>, Vec<Epoch>) = self.plans(members).unzip();
        let count = members.volumes().len();
        let is_whole = plans.len() == count && self.members.len() == count;
        let records = Records::Keep;
        let is_held = plans.iter().all(|plan| *plan == Plan::Resume { records });
        if is_whole && is_held && members.resume(&self.site.owner, &epochs).is_ok() {
            for volume in members.volumes() {
                self.adopt(volume);
            }
            return Proof::Ours;
        }
        // What an open would go on with, but for others that come with it, is opened anew. What somebody else has changed
        // since is over, and no start may go on with that.
        let may_go_on =
            |plan: &Plan| *plan == Plan::Resume { records } || *plan == Plan::Take { records };
        let is_alone = self.members.len() == 1 && count == 1;
        match !is_alone && !plans.is_empty() && plans.iter().all(may_go_on) {
            true => Proof::Regrouped,
            false => self.say_fenced(members),
        }
    }

    /// Of those that are here, in the store's order: what an open of each alone would mean, and the epoch that the log holds.
    fn plans(&self, members: &Members<W>) -> impl Iterator<Item = (Plan, Epoch)> {
        members.volumes().iter().filter_map(move |volume| {
            let root = volume.root();
            let member = self
                .members
                .iter()
                .find(|it| it.local.id() == root.volume)?;
            let state = member.state();
            let ours = Ours {
                cache: self.site.owner.cache,
                local: Some(&state),
                create_bytes: None,
                over_deleted: false,
            };
            let plan = decide(&Seen::Root(root), ours);
            Some((plan, state.epoch))
        })
    }

    fn adopt(&self, volume: &Volume<W>) {
        let root = volume.root();
        let mut members = self.members.iter();
        let Some(member) = members.find(|it| it.local.id() == root.volume) else {
            return;
        };
        member.export.frames().set_volume(volume.clone());
        adopt(&member.local, &member.state(), &root);
        let size_bytes = root.size_bytes.max(member.export.size_bytes());
        member.export.set_size(size_bytes);
    }

    fn say_fenced(&self, members: &Members<W>) -> Proof {
        let root = members.asked().root();
        tracing::error!(export = %self.names(), epoch = %self.lead().state().epoch, root_epoch = %root.epoch, dirty_bytes = self.dirty_bytes(), "fenced: somebody else changed the volume since; unpublished writes are kept in the log (docs/runbooks/export-fenced.md)");
        Proof::Fenced
    }
}
