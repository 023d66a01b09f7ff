//! Into a group and out of it (rule 30): volumes that nobody owns, all at once. Each object says which other one to ask,
//! so a process may stop between any two steps, or be slow.
//!
//! ```text
//! create the group, forming -> each member's root names it, and says what it said -> the group is formed of that
//! the group is dissolved, with all contents -> each member's root says its own again -> the group is deleted
//! ```
//!
//! In this order: formed of roots that were read before they named it, a group would hold what an owner has replaced
//! since (`docs/model.md`, mistake `commits-first`). Whoever wants to open a member meanwhile gives the group up
//! ([`Bucket::swap`] does). One that was given up is never deleted, for whoever was forming it may name it yet
//! (`deletes-given-up`); one that was formed is, once no root names it (`deletes-early`). So a member is told only at the
//! epoch that the group's id is made of: two calls of one request may form the same group, and one of them may be slow
//! until that is formed, dissolved and deleted; what it tells a member then, nobody could open (`tells-what-is-over`). Such
//! a call may also create the group again, forming, and does so in bytes that no other one has sent (`creates-alike`).

use std::collections::BTreeSet;
use std::rc::Rc;

use blockcache::Id;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use world::{Store, StoreErrorKind, World};

use super::bucket::{Bucket, vanished};
use super::group::{
    self, GROUP_MEMBERS_MAX, GROUP_MEMBERS_MIN, GROUPS, Group, GroupState, GroupView, Member,
    Phase, StoredGroup,
};
use super::home::{SwappedGroup, SwappedOwn};
use super::name::VolumeName;
use super::restore::in_use;
use super::root::{GroupRef, Home, Root, State, Stored};
use super::{VolumeError, VolumeState, retry};

/// Members whose roots are read at a time.
const READS_MAX: usize = 8;
/// Groups that one call tries to form: what an earlier one began, and another, if a member was changed since.
const ROUNDS_MAX: usize = 2;
/// Keys of groups in one answer of the store.
const PAGE: usize = 1000;

/// Volumes that are to be a group. May be tried again as it is: it is done once.
#[derive(Clone, Debug)]
pub struct Form {
    name: VolumeName,
    request: Id,
    members: Vec<VolumeName>,
}

impl Form {
    /// `request` is random, or follows from what was asked, so that a repeated one is the same.
    pub fn new(name: &str, request: Id, members: &[String]) -> Result<Self, VolumeError> {
        let name = VolumeName::parse(name)?;
        let members = members.iter().map(|it| VolumeName::parse(it));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        check_members(&name, &members)?;
        Ok(Self {
            name,
            request,
            members,
        })
    }

    /// Of the group. No epoch of a volume comes again, so the id does not either: a request that is repeated after the
    /// group was dissolved must not bring back what is being deleted. `epochs` are of before the group. The first half
    /// tells the request alone.
    fn id(&self, stored: &[Stored], epochs: &[u64]) -> Id {
        let mut hasher = blake3::Hasher::new_derive_key("glidefs 1 id of a group");
        hasher.update(&self.request.0);
        for (it, epoch) in stored.iter().zip(epochs) {
            hasher.update(&it.root.volume);
            hasher.update(&epoch.to_le_bytes());
        }
        let hash = hasher.finalize();
        let rest: [u8; 8] = *hash.as_bytes().first_chunk().expect("8 of 32");
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(self.first_half().into_iter().chain(rest)) {
            *to = from;
        }
        Id(id)
    }

    fn first_half(&self) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new_derive_key("glidefs 1 first half of a group's id");
        hasher.update(&self.request.0);
        *hasher.finalize().as_bytes().first_chunk().expect("8 of 32")
    }

    /// By a call of this request.
    fn is_begun(&self, group: &Group) -> bool {
        group.id.starts_with(&self.first_half()) && self.is_of(group)
    }

    fn is_of(&self, group: &Group) -> bool {
        let members = group.members.iter().map(|it| it.name.as_str());
        group.name == self.name.as_str() && members.eq(self.members.iter().map(VolumeName::as_str))
    }
}

/// If it is done.
fn formed(form: &Form, stored: &[Stored]) -> Option<GroupView> {
    let Home::Group(group) = &stored.first()?.home else {
        return None;
    };
    form.is_of(&group.group).then(|| group.view())
}

/// They are so many as a group may have, and different ones.
pub(super) fn check_members(name: &VolumeName, members: &[VolumeName]) -> Result<(), VolumeError> {
    let count = members.iter().collect::<BTreeSet<_>>().len();
    if count != members.len() {
        return Err(VolumeError::Invalid(format!(
            "group `{name}` would have a volume twice: name each once"
        )));
    }
    if !(GROUP_MEMBERS_MIN..=GROUP_MEMBERS_MAX).contains(&count) {
        return Err(VolumeError::Invalid(format!(
            "group `{name}` would have {count} volumes: a group has {GROUP_MEMBERS_MIN} to {GROUP_MEMBERS_MAX}"
        )));
    }
    Ok(())
}

impl<W: World> Bucket<W> {
    /// Makes a group of detached volumes. May be repeated as it is. What cannot be done is given up at once, so that the
    /// members are as they were; after an error of the store it may be tried again.
    pub async fn form(&self, form: &Form) -> Result<GroupView, VolumeError> {
        for _ in 0..ROUNDS_MAX {
            let reads = form.members.iter().map(|name| async move {
                let stored = self.read_root(name).await?;
                stored.ok_or_else(|| vanished(name))
            });
            let reads = futures_util::stream::iter(reads).buffered(READS_MAX);
            let stored: Vec<Stored> = Box::pin(reads.try_collect()).await?;
            if let Some(done) = formed(form, &stored) {
                return Ok(done);
            }
            let forming = Box::pin(self.forming(form, &stored)).await?;
            match forming.group.phase {
                Phase::Formed => return Ok(forming.view()),
                Phase::Dissolved => return Err(over(&forming.group)),
                Phase::Forming => {}
            }
            let id = Id(forming.group.id);
            let epochs = epochs_before(&stored, id);
            if form.id(&stored, &epochs) == id {
                return Box::pin(self.finish(&forming, &epochs)).await;
            }
            // An earlier call began it, and a member that it had not told has changed since.
            Box::pin(self.give_up(id)).await?;
        }
        Err(VolumeError::Invalid(format!(
            "the volumes of group `{}` are changed by others all the time: form it once nobody opens them",
            form.name
        )))
    }

    /// Each member names the group, and it is formed of what they say.
    async fn finish(
        &self,
        forming: &Rc<StoredGroup>,
        epochs: &[u64],
    ) -> Result<GroupView, VolumeError> {
        let id = Id(forming.group.id);
        match Box::pin(self.tell_all(forming, epochs)).await {
            Ok(roots) => Box::pin(self.commit(forming, &roots)).await,
            // What became of it is not known: the next try goes on.
            Err(error @ VolumeError::Store(_)) => Err(error),
            Err(error) => match Box::pin(self.give_up(id)).await? {
                // By another call of the same request.
                Some(GroupState::Formed) => {
                    let now = self.read_group(id).await?;
                    now.map(|now| now.view()).ok_or(error)
                }
                Some(GroupState::Forming | GroupState::Dissolved | GroupState::GivenUp) | None => {
                    Err(error)
                }
            },
        }
    }

    /// The group that is to be formed: that of an earlier call, which some of its members may name already, or a new one.
    async fn forming(
        &self,
        form: &Form,
        stored: &[Stored],
    ) -> Result<Rc<StoredGroup>, VolumeError> {
        let mut named = stored.iter().filter_map(|it| match it.home {
            Home::Forming(group) => Some(group),
            Home::Own | Home::Group(_) => None,
        });
        let group = match named.next() {
            Some(id) => self.read_group(id).await?,
            None => None,
        };
        if let Some(ours) = group.filter(|it| form.is_begun(&it.group)) {
            return Ok(ours);
        }
        stored.iter().try_for_each(check_free)?;
        let members = stored.iter().map(|it| Member {
            volume: it.root.volume,
            name: it.root.name.clone(),
            root: None,
        });
        let epochs: Vec<u64> = stored.iter().map(|it| it.root.epoch).collect();
        let group = Group {
            id: form.id(stored, &epochs).0,
            name: form.name.to_string(),
            // Each attempt to create it has its own.
            nonce: [0; 16],
            phase: Phase::Forming,
            members: members.collect(),
        };
        let roots: Vec<Root> = stored.iter().map(|it| it.root.clone()).collect();
        check_room(&group.with(&roots, group.nonce))?;
        Box::pin(self.create_group(group)).await
    }

    /// Puts the root of a group, which is forming, where none is. An earlier or another call of the same request may have
    /// been faster: then that one counts.
    ///
    /// Each attempt sends another nonce: one that lands late, once the group is over and deleted, puts the same id there
    /// again. With the bytes of before, and so the ETag, a commit that lands late as well would form it of what is over.
    pub(super) async fn create_group(&self, group: Group) -> Result<Rc<StoredGroup>, VolumeError> {
        let id = Id(group.id);
        let key = group::key(id);
        let mut attempt = 0;
        loop {
            let sent = Group {
                nonce: self.world().random_id(),
                ..group.clone()
            };
            let body = Bytes::from(sent.encode(self.root_mac())?);
            let Err(error) = self.store().create(&key, body).await else {
                break;
            };
            let is_conflict = error.kind == StoreErrorKind::Conflict;
            if is_conflict && let Some(there) = self.read_group(id).await? {
                return Ok(there);
            }
            // Some stores answer so for reasons of their own.
            let is_passing = is_conflict && !retry::is_last(&error, attempt);
            if !is_passing && !retry::may_repeat(&error, attempt) {
                return Err(error.into());
            }
            retry::back_off(self.world(), attempt, error.retry_after).await;
            attempt += 1;
        }
        let there = self.read_group(id).await?;
        there.ok_or_else(|| gone(id, &group.name))
    }

    /// Each member's root names the group from here on. What they say. `epochs` are those of before.
    pub(super) async fn tell_all(
        &self,
        forming: &StoredGroup,
        epochs: &[u64],
    ) -> Result<Vec<Root>, VolumeError> {
        let mut told = Vec::with_capacity(forming.group.members.len());
        for (member, epoch) in forming.group.members.iter().zip(epochs) {
            told.push(Box::pin(self.tell(member, *epoch, forming)).await?);
        }
        Ok(told)
    }

    /// It goes on saying what it said, with the nonce of its last publish: caches that know that stay good (rule 11).
    async fn tell(
        &self,
        member: &Member,
        epoch: u64,
        forming: &StoredGroup,
    ) -> Result<Root, VolumeError> {
        let name = VolumeName::parse(&member.name)?;
        let base = self.read_root(&name).await?;
        let base = base.ok_or_else(|| vanished(&name))?;
        if base.root.volume != member.volume {
            return Err(VolumeError::Invalid(format!(
                "volume `{name}` is another one by now than when group `{}` was begun: form another group",
                forming.group.name
            )));
        }
        let id = forming.group.id;
        if base.home == Home::Forming(Id(id)) {
            // By an earlier call.
            return Ok(base.root);
        }
        check_free(&base)?;
        // It may have been in this very group, which is over and deleted.
        if base.root.epoch != epoch {
            return Err(changed(&name));
        }
        let next = Root {
            group: Some(forming.group.reference()),
            ..later(&base.root)
        };
        let is_told = |now: &Root| does_name(now, id);
        let swapped = self.swap_own(&name, &base.etag, &next, is_told);
        match Box::pin(swapped).await? {
            SwappedOwn::Landed => Ok(Root {
                group: None,
                ..next
            }),
            SwappedOwn::Lost(now) if now.state == State::Open => Err(in_use(&now)),
            SwappedOwn::Lost(_) => Err(changed(&name)),
        }
    }

    /// Forms a group of what the roots of its members say, which name it.
    pub(super) async fn commit(
        &self,
        forming: &Rc<StoredGroup>,
        roots: &[Root],
    ) -> Result<GroupView, VolumeError> {
        let nonce = Id(self.world().random_id());
        let next = forming.group.turned(Phase::Formed, nonce);
        let next = next.with(roots, nonce.0);
        let name = &forming.group.name;
        let lost = || gone(Id(forming.group.id), name);
        let now = match Box::pin(self.swap_group(forming, next)).await? {
            SwappedGroup::Landed(now) => now,
            SwappedGroup::Lost(now) => now.ok_or_else(lost)?,
        };
        match now.group.phase {
            Phase::Formed => Ok(now.view()),
            Phase::Forming | Phase::Dissolved => Err(over(&now.group)),
        }
    }

    /// Makes plain volumes of the members of a group that nobody has open. May be repeated, and goes on where it stopped;
    /// a group that is not there is dissolved. One that is forming, or was given up, is tidied up after.
    pub async fn dissolve(&self, id: Id) -> Result<Option<GroupView>, VolumeError> {
        let Some(base) = self.read_group(id).await? else {
            return Ok(None);
        };
        let dissolved = match base.group.phase {
            Phase::Dissolved => base,
            Phase::Formed | Phase::Forming => {
                let mut roots = base.group.roots();
                if let Some(root) = roots.find(|root| root.state == State::Open) {
                    return Err(in_use(root));
                }
                let nonce = Id(self.world().random_id());
                let next = base.group.turned(Phase::Dissolved, nonce);
                match Box::pin(self.swap_group(&base, next)).await? {
                    SwappedGroup::Landed(now) => now,
                    SwappedGroup::Lost(None) => return Ok(None),
                    SwappedGroup::Lost(Some(now)) if now.group.phase == Phase::Dissolved => now,
                    SwappedGroup::Lost(Some(now)) => {
                        let open = now.group.roots().find(|root| root.state == State::Open);
                        return Err(match open {
                            Some(root) => in_use(root),
                            None => VolumeError::Invalid(format!(
                                "group `{}` was changed by somebody else just then: try again",
                                now.group.name
                            )),
                        });
                    }
                }
            }
        };
        let mut left = 0;
        for member in &dissolved.group.members {
            let is_out = Box::pin(self.let_out(member, id)).await?;
            left += usize::from(!is_out);
        }
        if dissolved.group.counts() && left == 0 {
            let key = group::key(id);
            retry::delete(self.world(), self.store(), &key).await?;
        }
        Ok(Some(dissolved.view()))
    }

    /// A member of a group that is over says its own again. False: nobody can tell whether it names the group.
    async fn let_out(&self, member: &Member, id: Id) -> Result<bool, VolumeError> {
        let name = VolumeName::parse(&member.name)?;
        let Some((own, etag)) = self.read_own(&name).await? else {
            return Ok(false);
        };
        if !does_name(&own, id.0) {
            return Ok(true);
        }
        let Some(now) = self.read_root(&name).await? else {
            return Ok(false);
        };
        if now.root.state == State::Pending {
            Box::pin(self.abandon(&name, &now)).await?;
            return Ok(true);
        }
        if now.etag != etag || now.home != Home::Own {
            // Somebody opened it, or has put it into another group.
            return Ok(true);
        }
        let next = later(&now.root);
        let is_out = |now: &Root| !does_name(now, id.0);
        let swapped = self.swap_own(&name, &etag, &next, is_out);
        match Box::pin(swapped).await? {
            SwappedOwn::Landed => Ok(true),
            SwappedOwn::Lost(now) => Ok(!does_name(&now, id.0)),
        }
    }

    /// The group that a volume is a member of; none if it is in none that is formed.
    pub async fn group_of(&self, name: &str) -> Result<Option<GroupView>, VolumeError> {
        let name = VolumeName::parse(name)?;
        let stored = self.read_root(&name).await?;
        let stored = stored.ok_or_else(|| vanished(&name))?;
        Ok(match stored.home {
            Home::Group(group) => Some(group.view()),
            Home::Own | Home::Forming(_) => None,
        })
    }

    /// A group by its id. None: there is no such object.
    pub async fn group(&self, id: Id) -> Result<Option<GroupView>, VolumeError> {
        let group = self.read_group(id).await?;
        Ok(group.map(|group| group.view()))
    }

    /// Groups by the ids behind `after`, at most so many; those that are forming or over among them. For people: it costs
    /// a LIST and a GET for each.
    pub async fn groups_after(
        &self,
        after: Option<Id>,
        count_max: usize,
    ) -> Result<Vec<GroupView>, VolumeError> {
        let mut after = after.map(group::key);
        let mut groups = Vec::new();
        while groups.len() < count_max {
            let page = PAGE.min(count_max - groups.len());
            let (world, store) = (self.world(), self.store());
            let listed = retry::list(world, store, GROUPS, after.as_deref(), page).await?;
            let ids = listed.iter().filter_map(|it| id_of(&it.key));
            let reads = ids.map(|id| self.read_group(id));
            let mut reads = futures_util::stream::iter(reads).buffered(READS_MAX);
            while let Some(group) = reads.try_next().await? {
                groups.extend(group.map(|group| group.view()));
            }
            if listed.len() < page {
                break;
            }
            after = listed.last().map(|it| it.key.clone());
        }
        Ok(groups)
    }
}

/// As ids are written in keys.
fn id_of(key: &str) -> Option<Id> {
    let digits = key.strip_prefix(GROUPS)?;
    let number = u128::from_str_radix(digits, 16).ok()?;
    let id = Id(number.to_be_bytes());
    (group::key(id) == key).then_some(id)
}

fn does_name(root: &Root, group: [u8; 16]) -> bool {
    let named = root.group.as_ref();
    named.is_some_and(|GroupRef { id, .. }| *id == group)
}

/// The epochs of volumes, of those that name the group already as before that.
fn epochs_before(stored: &[Stored], group: Id) -> Vec<u64> {
    let before = stored.iter().map(|it| match it.home {
        // As `later` counts.
        Home::Forming(named) if named == group => it.root.epoch.saturating_sub(1),
        Home::Own | Home::Forming(_) | Home::Group(_) => it.root.epoch,
    });
    before.collect()
}

/// The same volume, said in another place. Its nonce stays, for nothing was published.
fn later(root: &Root) -> Root {
    Root {
        predecessor: Some(root.as_predecessor()),
        epoch: root.epoch + 1,
        ..root.clone()
    }
}

/// Nobody has it open, and it is in no other group.
fn check_free(stored: &Stored) -> Result<(), VolumeError> {
    let root = &stored.root;
    let name = &root.name;
    let invalid = |text: String| Err(VolumeError::Invalid(text));
    match &stored.home {
        Home::Own => {}
        Home::Forming(group) => {
            return invalid(format!(
                "volume `{name}` is being put into group {group}: wait for that, or open it, which gives that up"
            ));
        }
        Home::Group(group) => {
            return invalid(format!(
                "volume `{name}` is a member of group `{}` already: dissolve that first",
                group.group.name
            ));
        }
    }
    match root.state {
        State::Detached => Ok(()),
        State::Open => Err(in_use(root)),
        State::Pending | State::Suspended | State::Deleted => {
            let state = VolumeState::from(root.state);
            invalid(format!(
                "volume `{name}` cannot become a member of a group: it is {state:?}"
            ))
        }
    }
}

pub(super) fn check_room(group: &Group) -> Result<(), VolumeError> {
    if group.has_room() {
        return Ok(());
    }
    Err(VolumeError::Invalid(format!(
        "the root of group `{}` would have more than {} bytes: delete snapshots of {} first",
        group.name,
        group::GROWTH_BYTES_MAX,
        group.names()
    )))
}

/// It will never be formed again.
pub(super) fn over(group: &Group) -> VolumeError {
    VolumeError::Invalid(format!(
        "group `{}` ({}) was given up or dissolved: somebody opened or changed one of {} meanwhile; try again with a new \
         request id",
        group.name,
        Id(group.id),
        group.names()
    ))
}

fn changed(name: &VolumeName) -> VolumeError {
    VolumeError::Invalid(format!(
        "volume `{name}` was changed by somebody else just then: form the group again, with a new request id"
    ))
}

fn gone(id: Id, name: &str) -> VolumeError {
    VolumeError::Vanished {
        name: name.to_owned(),
        key: group::key(id),
    }
}
