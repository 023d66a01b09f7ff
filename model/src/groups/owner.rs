//! Who has the group, or believes so: answers writes, cuts all members, uploads, publishes, keeps moments, gives it
//! up, and takes it from another.

use super::state::{Attempt, Content, How, MEMBERS, Member, Node, Part, Root, Set, State, union};
use super::{Actor, Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnerStep {
    /// A client's write to a member is answered.
    Write(usize),
    /// A cut is taken, and is durable here.
    Cut(Cut),
    /// The segment of a member.
    Upload(usize),
    Ask(Change, Outcome),
    /// An unclear answer, or a swap that failed: it reads the root.
    ReadBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Of all members at one moment: everything that was answered.
    All,
    /// The oldest write that is not published, in the order of all members; where a rule is broken, of each member.
    Oldest,
    /// Only where a rule is broken: of one member, now.
    Of(usize),
}

/// A change of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    Publish(Part),
    Snapshot(Part),
    DropSnapshot,
    Restore(Part),
    /// Everything is published, and nobody owns the group then.
    Detach,
    Open(Part),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Answered,
    /// It took effect, and the answer was lost.
    Lost,
    /// It is on its way, and nobody knows.
    Stuck,
}

impl Scene {
    pub(super) fn owner_may(&self, state: &State, number: usize) -> Vec<OwnerStep> {
        let node = &state.nodes[number];
        let mut steps = Vec::new();
        let Some(view) = node.view.filter(|_| node.is_owner()) else {
            self.opener_may(state, &mut steps);
            return steps;
        };
        // One that is a zombie is told by its next publish; until then it does what it likes.
        if !node.is_current || node.is_unclear {
            steps.push(OwnerStep::ReadBack);
        }
        let held = (0..MEMBERS).filter(|member| node.holds[*member]);
        if state.writes < self.writes {
            steps.extend(held.clone().map(OwnerStep::Write));
        }
        self.cut_may(state, node, &view, &mut steps);
        let uploads = held.filter(|member| self.must_upload(node, &view, *member));
        let room = |member: &usize| state.made[*member] < self.segments;
        steps.extend(uploads.filter(room).map(OwnerStep::Upload));
        if node.is_current && !node.is_unclear {
            for part in self.publish_may(node) {
                self.outcomes(state, part, &mut steps);
            }
            let changes = self.changes_may(state, node, &view);
            let asks = changes.into_iter();
            steps.extend(asks.map(|it| OwnerStep::Ask(it, Outcome::Answered)));
        }
        steps
    }

    fn opener_may(&self, state: &State, steps: &mut Vec<OwnerStep>) {
        let mut members = state.root.members.iter();
        let is_free = members.clone().all(|it| it.owner.is_none());
        let may = is_free && self.has(Actor::Moves) || self.has(Actor::Takeover);
        if !may || members.any(|it| it.epoch >= self.epochs) {
            return;
        }
        let parts = match self.is(Mistake::TakesOne) {
            true => vec![Part::One(0), Part::One(1)],
            false => vec![Part::All],
        };
        let asks = parts.into_iter().map(Change::Open);
        steps.extend(asks.map(|it| OwnerStep::Ask(it, Outcome::Answered)));
    }

    fn cut_may(&self, state: &State, node: &Node, view: &Root, steps: &mut Vec<OwnerStep>) {
        let left = node.log.without(union(&view.now()));
        if self.is(Mistake::CutsApart) {
            let missing = (0..MEMBERS).filter(|member| node.attempt.cut[*member].is_none());
            let begun = node.attempt != Attempt::default();
            let cuts = missing.filter(|_| begun || !left.is_empty());
            steps.extend(cuts.map(|member| OwnerStep::Cut(Cut::Of(member))));
            return;
        }
        if node.attempt != Attempt::default() || left.is_empty() {
            return;
        }
        steps.push(OwnerStep::Cut(Cut::All));
        let bounded = oldest(state, left, self.is(Mistake::BoundsApart));
        if self.has(Actor::BoundedCuts) && bounded != left {
            steps.push(OwnerStep::Cut(Cut::Oldest));
        }
    }

    /// A root must not name what is not there.
    fn must_upload(&self, node: &Node, view: &Root, member: usize) -> bool {
        let Attempt { cut, uploaded } = node.attempt;
        let writes = view.members[member].now.writes;
        let brings = cut[member].is_some_and(|it| it != writes);
        self.has(Actor::Space) && brings && uploaded[member].is_none()
    }

    /// What may be published of the cut, if it is taken and uploaded.
    pub(super) fn publish_may(&self, node: &Node) -> Vec<Part> {
        let Some(view) = node.view else {
            return Vec::new();
        };
        let mut held = (0..MEMBERS).filter(|member| node.holds[*member]);
        let is_ready = held.all(|member| {
            node.attempt.cut[member].is_some() && !self.must_upload(node, &view, member)
        });
        let parts = match self.is(Mistake::CommitsApart) {
            true => vec![Part::One(0), Part::One(1)],
            false => vec![Part::All],
        };
        let news = |part: &Part| {
            self.published(node, 0, *part)
                .is_some_and(|it| it.now() != view.now())
        };
        parts
            .into_iter()
            .filter(|it| is_ready && news(it))
            .collect()
    }

    fn outcomes(&self, state: &State, part: Part, steps: &mut Vec<OwnerStep>) {
        let ask = Change::Publish(part);
        steps.push(OwnerStep::Ask(ask, Outcome::Answered));
        if state.lates < self.lates {
            steps.push(OwnerStep::Ask(ask, Outcome::Lost));
            steps.push(OwnerStep::Ask(ask, Outcome::Stuck));
        }
    }

    fn changes_may(&self, state: &State, node: &Node, view: &Root) -> Vec<Change> {
        let mut changes = Vec::new();
        let apart = |mistake| match self.is(mistake) {
            true => vec![Part::One(0), Part::One(1)],
            false => vec![Part::All],
        };
        let is_drained = node.log == union(&view.now());
        if self.has(Actor::Snapshots) {
            let lacks = |part: &Part| {
                let mut members = part.members().map(|it| view.members[it]);
                members.all(|it| it.snapshot.is_none())
            };
            let worth = !union(&view.now()).is_empty();
            let parts = apart(Mistake::SnapshotsApart).into_iter();
            changes.extend(parts.filter(|it| worth && lacks(it)).map(Change::Snapshot));
            if view.members.iter().any(|it| it.snapshot.is_some()) {
                changes.push(Change::DropSnapshot);
            }
        }
        let room = view.members.iter().all(|it| it.epoch < self.epochs);
        if self.has(Actor::Restore) && is_drained && room && view.snapshot().is_some() {
            changes.extend(apart(Mistake::RestoresOne).into_iter().map(Change::Restore));
        }
        let is_half = state.of_member(node.log, 0) == view.members[0].now.writes;
        let leaves = is_drained || is_half && self.is(Mistake::DetachesHalf);
        if self.has(Actor::Moves) && leaves {
            changes.push(Change::Detach);
        }
        changes
    }

    pub(super) fn owner_does(
        &self,
        next: &mut State,
        number: usize,
        step: OwnerStep,
    ) -> Option<()> {
        match step {
            OwnerStep::Write(member) => writes(next, number, member)?,
            OwnerStep::Cut(cut) => self.cuts(next, number, cut)?,
            OwnerStep::Upload(member) => {
                let segment = next.made[member] * 2 + u8::try_from(member).ok()?;
                next.made[member] += 1;
                let node = &mut next.nodes[number];
                node.attempt.uploaded[member] = Some(segment);
                let segment = usize::from(segment);
                next.epochs[segment] = node.view?.members[member].epoch;
                next.segments = next.segments.with(Set::of(segment));
            }
            OwnerStep::Ask(Change::Publish(part), outcome) => {
                let root = self.published(&next.nodes[number], number, part)?;
                self.publishes(next, number, root, outcome);
            }
            OwnerStep::Ask(Change::Open(part), _) => self.opens(next, number, part)?,
            OwnerStep::Ask(change, _) => self.changes(next, number, change)?,
            OwnerStep::ReadBack => self.reads_back(next, number),
        }
        Some(())
    }

    fn cuts(&self, next: &mut State, number: usize, cut: Cut) -> Option<()> {
        let log = next.nodes[number].log;
        let published = union(&next.nodes[number].view?.now());
        let taken = match cut {
            Cut::All | Cut::Of(_) => log,
            Cut::Oldest => {
                let left = log.without(published);
                published.with(oldest(next, left, self.is(Mistake::BoundsApart)))
            }
        };
        let cuts = |member: &usize| match cut {
            Cut::All | Cut::Oldest => true,
            Cut::Of(only) => only == *member,
        };
        for member in (0..MEMBERS).filter(cuts) {
            let writes = next.of_member(taken, member);
            next.nodes[number].attempt.cut[member] = Some(writes);
        }
        // Rule 5: one flush of the one log.
        next.nodes[number].durable = log;
        Some(())
    }

    /// The root that the cut asks for.
    pub(super) fn published(&self, node: &Node, number: usize, part: Part) -> Option<Root> {
        let mut root = node.view?;
        for member in part.members().filter(|member| node.holds[*member]) {
            let Attempt { cut, uploaded } = node.attempt;
            let (writes, now) = (cut[member]?, root.members[member].now);
            if writes != now.writes {
                let cut = now.cut + 1;
                let segment = uploaded[member].filter(|_| self.has(Actor::Space));
                let next = Content {
                    cut,
                    writes,
                    segment,
                };
                root.turn_to(member, next);
            }
            root.members[member].owner = Some(u8::try_from(number).ok()?);
        }
        Some(root)
    }

    fn publishes(&self, next: &mut State, number: usize, root: Root, outcome: Outcome) {
        next.nodes[number].intents.insert(root);
        next.lates += u8::from(outcome != Outcome::Answered);
        next.nodes[number].is_unclear = outcome != Outcome::Answered;
        match outcome {
            Outcome::Answered => next.replace(Some(number), root, How::Published),
            Outcome::Lost => next.replace(None, root, How::Published),
            Outcome::Stuck => {
                next.late.insert(root);
            }
        }
    }

    fn changes(&self, next: &mut State, number: usize, change: Change) -> Option<()> {
        let mut root = next.nodes[number].view?;
        match change {
            Change::Snapshot(part) => {
                for member in part.members() {
                    let Member { snapshot, now, .. } = &mut root.members[member];
                    *snapshot = Some(*now);
                }
                next.replace(Some(number), root, How::Published);
            }
            Change::DropSnapshot => {
                root.members.iter_mut().for_each(|it| it.snapshot = None);
                next.replace(Some(number), root, How::Published);
            }
            Change::Restore(part) => {
                for member in part.members() {
                    let now = root.members[member].now;
                    let cut = now.cut + 1;
                    let kept = root.members[member].snapshot?;
                    root.members[member].snapshot = Some(now);
                    root.turn_to(member, Content { cut, ..kept });
                }
                root.members.iter_mut().for_each(|it| it.epoch += 1);
                // No log takes its records of before for those of the restored state.
                let log = union(&root.now());
                let node = &mut next.nodes[number];
                (node.log, node.durable) = (log, log);
                next.replace(Some(number), root, How::Restored);
            }
            Change::Detach => {
                root.members.iter_mut().for_each(|it| it.owner = None);
                next.replace(Some(number), root, How::Published);
                let log = next.nodes[number].log;
                next.nodes[number] = Node {
                    log,
                    ..Node::default()
                };
            }
            Change::Publish(_) | Change::Open(_) => return None,
        }
        Some(())
    }

    /// By force, or because nobody has it. All members by one swap, whichever was asked for.
    fn opens(&self, next: &mut State, number: usize, part: Part) -> Option<()> {
        let mut root = next.root;
        let mut holds = [false; MEMBERS];
        let mut log = Set::default();
        for member in part.members() {
            let raises = member == 0 || !self.is(Mistake::EpochOfOne);
            let taken = &mut root.members[member];
            taken.epoch += u8::from(raises);
            taken.owner = Some(u8::try_from(number).ok()?);
            holds[member] = true;
            log = log.with(taken.now.writes);
        }
        next.nodes[number] = Node {
            holds,
            log,
            durable: log,
            ..Node::default()
        };
        next.replace(Some(number), root, How::Opened);
        Some(())
    }

    /// Rule 13: a root that it intended is its own; any other is somebody else's.
    fn reads_back(&self, next: &mut State, number: usize) {
        let root = next.root;
        let node = &mut next.nodes[number];
        if node.intents.contains(&root) {
            let attempt = node.attempt;
            // Not proved by that: the next publish, on top of it, does.
            node.knows(root);
            if self.is(Mistake::KeepsOlderCut) {
                node.attempt = attempt;
            }
            return;
        }
        node.is_unclear = false;
        if node.is_current {
            // Nothing happened yet. It asks again.
            return;
        }
        if self.is(Mistake::TakesOne) {
            let view = node.view.unwrap_or(root);
            for (member, (known, there)) in view.members.iter().zip(&root.members).enumerate() {
                let same = known.epoch == there.epoch && known.owner == there.owner;
                node.holds[member] &= same;
            }
        }
        let goes_on = self.is(Mistake::TakesOne) && node.is_owner();
        if goes_on || self.is(Mistake::RepeatsBlindly) {
            node.view = Some(root);
            node.is_current = true;
            return;
        }
        *node = Node {
            log: node.log,
            ..Node::default()
        };
    }
}

fn writes(next: &mut State, number: usize, member: usize) -> Option<()> {
    let write = usize::from(next.writes);
    *next.before.get_mut(write)? = answered_before(next, number);
    if member > 0 {
        next.of_second = next.of_second.with(Set::of(write));
    }
    let log = &mut next.nodes[number].log;
    *log = log.with(Set::of(write));
    next.writes += 1;
    Some(())
}

/// What its client may have waited for: all that its owner shows, and, of a member that another node owns, what
/// that one shows.
fn answered_before(state: &State, number: usize) -> Set {
    let node = &state.nodes[number];
    let elsewhere = (0..MEMBERS).filter(|member| !node.holds[*member]);
    elsewhere.fold(node.log, |before, member| {
        let owner = state.root.members[member].owner;
        let owner = owner.map(|owner| &state.nodes[usize::from(owner)]);
        let log = owner.map_or(Set::default(), |it| it.log);
        before.with(state.of_member(log, member))
    })
}

/// The first write, or the first of each member.
fn oldest(state: &State, left: Set, each: bool) -> Set {
    let first = |writes: Set| writes.iter().next().map_or(Set::default(), Set::of);
    match each {
        false => first(left),
        true => {
            let members = (0..MEMBERS).map(|member| first(state.of_member(left, member)));
            members.fold(Set::default(), Set::with)
        }
    }
}
