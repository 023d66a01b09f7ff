//! Attacks on everything that a volume has in the store: each object that a cold read or the collector needs is
//! flipped, cut, taken away, replaced by noise, by another object of its kind (of the same volume, of
//! another one, of another epoch, of another prefix), or by what it was before. Cold reads are those of the volume, of a
//! snapshot of it, and of a fork, which reads its parent's objects.
//!
//! What must come of it is known before each case: an error that names what is wrong, or exactly the
//! right data where the bytes are such that nobody reads (the trailer of an object is for people; frames that nothing names any
//! more; and of a part of the map that a later one took leaves from, the other leaves). Other data is never right. Of what only the collector reads: nothing that anybody needs is deleted. A pin that does not say what it holds
//! stops all of it, by name; a part of the ledger that is lost keeps what it listed, and everything else goes on.
//!
//! What no reader can know is not among the cases: a fresh node that is given an older root serves that older cut, whole
//! (docs/encryption.md).

mod prefix;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use blockcache::{Id, PageRange};
use bytes::Bytes;
use glidefs::volume::{
    Bucket, Deletes, KeptAll, Metered, Publish, Scope, Source, Tidied, Tidy, Volume, VolumeError,
};
use world::World;
use world::sim::{Corruption, HostId, Sim, SimWorld};

use prefix::{
    Built, Earlier, KEPT, NAME, NEXT_PASSWORD, OTHER, Prefix, READERS, Reader, Sight, config, data,
    owner, prefix, publish,
};

const PAGE: usize = 4096;
/// Nobody reads it.
const TRAILER_BYTES: usize = 128;
/// Where a trailer says of what kind the object is.
const TRAILER_KIND: usize = 10;
/// Where it says where the index begins, in 4 bytes.
const TRAILER_INDEX: usize = 56;

/// Whether the prefix has a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    Sealed,
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Keyring,
    Root,
    Segment,
    MapPart,
    MapIndex,
    Ledger,
    Pin,
}

const KINDS: [Kind; 7] = [
    Kind::Keyring,
    Kind::Root,
    Kind::Segment,
    Kind::MapPart,
    Kind::MapIndex,
    Kind::Ledger,
    Kind::Pin,
];

/// Who reads the object, and so meets the attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Reader(Reader),
    /// And whoever publishes, which keeps the ledger.
    Collector,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reader(reader) => write!(f, "{reader:?}"),
            Self::Collector => f.write_str("Collector"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attack {
    Flip,
    FlipUnread,
    Cut,
    Noise,
    Gone,
    SwapWithin,
    SwapEpoch,
    SwapVolume,
    SwapPrefix,
    RollBack,
}

const ATTACKS: [Attack; 10] = [
    Attack::Flip,
    Attack::FlipUnread,
    Attack::Cut,
    Attack::Noise,
    Attack::Gone,
    Attack::SwapWithin,
    Attack::SwapEpoch,
    Attack::SwapVolume,
    Attack::SwapPrefix,
    Attack::RollBack,
];

/// How often what happened, for one kind of object, one reader and one attack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// An error that names it.
    pub named: u64,
    /// The right data, where nobody reads what was changed.
    pub unread: u64,
    /// It was noticed, nothing was deleted by it, and everybody reads the right data.
    pub kept: u64,
}

/// How one case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Named,
    Unread,
    Kept,
}

/// The outcome of all cases. There is no place for other data or an error without a name in it: those
/// end the run.
#[derive(Debug, Default)]
pub struct Report(BTreeMap<(Guard, Kind, By, Attack), Tally>);

impl Report {
    pub fn total(&self) -> Tally {
        let add = |sum: Tally, one: &Tally| Tally {
            named: sum.named + one.named,
            unread: sum.unread + one.unread,
            kept: sum.kept + one.kept,
        };
        self.0.values().fold(Tally::default(), add)
    }

    /// Kinds of objects that were attacked, for each guard.
    pub fn kinds(&self) -> usize {
        let mut kinds: Vec<_> = self
            .0
            .keys()
            .map(|(guard, kind, ..)| (guard, kind))
            .collect();
        kinds.dedup();
        kinds.len()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| prefix | object | read by | attack | detected and named | nobody reads it, right data | nothing deleted, right data |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for ((guard, kind, by, attack), tally) in &self.0 {
            let Tally {
                named,
                unread,
                kept,
            } = tally;
            writeln!(
                f,
                "| {guard:?} | {kind:?} | {by} | {attack:?} | {named} | {unread} | {kept} |"
            )?;
        }
        let Tally {
            named,
            unread,
            kept,
        } = self.total();
        write!(f, "| | | | all | {named} | {unread} | {kept} |")
    }
}

/// Runs so many cases, half of them on a sealed prefix. Fails at the first that is not as it must be.
pub fn run(seed: u64, cases: u64) -> Result<Report> {
    let mut report = Report::default();
    for guard in [Guard::Sealed, Guard::Plain] {
        let stage = Stage::new(seed, guard)?;
        for case in 0..cases.div_ceil(2) {
            let attack = ATTACKS[usize::try_from(case).context("small")? % ATTACKS.len()];
            stage
                .attack(attack, &mut report)
                .with_context(|| format!("{guard:?}, seed {seed}, case {case}, {attack:?}"))?;
        }
    }
    Ok(report)
}

/// An object that somebody needs.
struct Live {
    kind: Kind,
    key: String,
    by: By,
    /// Bytes from which he takes something, in order.
    trusted: Vec<Range<usize>>,
    /// But not from all of them: a part of the map that is known by some of its leaves alone, which a later part took over.
    has_holes: bool,
}

/// A prefix with two volumes, and one more prefix like it.
struct Stage {
    sim: Sim,
    host: HostId,
    seed: u64,
    guard: Guard,
    live: Vec<Live>,
    sound: BTreeMap<String, Bytes>,
    other_prefix: BTreeMap<String, Bytes>,
    earlier: Earlier,
    sights: Vec<Sight>,
    holder: Volume<SimWorld>,
}

/// What a node that collects and sweeps came to.
#[derive(Debug)]
struct Cleaned {
    first: Tidied,
    kept_all: Option<KeptAll>,
}

impl Stage {
    fn new(seed: u64, guard: Guard) -> Result<Self> {
        let Prefix { sim, host, built } = prefix(seed, guard)?;
        let Built {
            earlier,
            sights,
            pin,
            holder,
        } = built;
        let other_prefix = prefix(seed + 1_000_003, guard)?.sim.objects();
        let sound = sim.objects();
        let mut stage = Self {
            sim,
            host,
            seed,
            guard,
            live: Vec::new(),
            sound,
            other_prefix,
            earlier,
            sights,
            holder,
        };
        stage.check_sound()?;
        stage.live = stage.find_live(pin)?;
        Ok(stage)
    }

    /// Everybody reads what he must, also behind the collector, which has something to do.
    fn check_sound(&self) -> Result<()> {
        self.check_whole(&READERS)?;
        let cleaned = self.clean()?.context("the volume is not sound")?;
        let collected = &cleaned.first.collected;
        ensure!(
            collected.deleted_objects > 0 && collected.held_objects > 0,
            "there is nothing to delete, or nothing to hold: {cleaned:?}"
        );
        ensure!(cleaned.kept_all.is_none(), "{cleaned:?}");
        self.check_whole(&READERS)?;
        self.sim.restore_objects(&self.sound);
        Ok(())
    }

    /// What cold reads and the collector cannot do without, and the keyring.
    fn find_live(&self, pin: String) -> Result<Vec<Live>> {
        let volume = By::Reader(Reader::Volume);
        let whole = |kind, key: String, by| Live {
            kind,
            trusted: std::iter::once(0..self.sound[&key].len()).collect(),
            key,
            by,
            has_holes: false,
        };
        let mut live = vec![
            whole(Kind::Keyring, "keyring".to_owned(), volume),
            whole(Kind::Pin, pin, By::Collector),
        ];
        let own = format!("nbd/{NAME}/");
        for (key, bytes) in self.sound.iter().filter(|(key, _)| key.starts_with(&own)) {
            let kind = kind_of(key, bytes)?;
            let candidates: Vec<By> = match kind {
                Kind::Keyring | Kind::Pin => Vec::new(),
                Kind::Root => vec![volume],
                Kind::Ledger => vec![By::Collector],
                Kind::Segment | Kind::MapPart | Kind::MapIndex => READERS.map(By::Reader).to_vec(),
            };
            for by in candidates {
                self.sim.delete_object(key);
                let is_needed = self.misses(by)?;
                self.restore(key, by);
                if is_needed {
                    let (trusted, is_whole) = self.trusted(key, bytes, by)?;
                    live.push(Live {
                        kind,
                        key: key.clone(),
                        by,
                        trusted,
                        has_holes: kind == Kind::MapPart && !is_whole,
                    });
                }
            }
        }
        Ok(live)
    }

    /// Whether he notices what was done.
    fn misses(&self, by: By) -> Result<bool> {
        Ok(match by {
            By::Reader(reader) => self.read(reader)?.is_err(),
            By::Collector => self.clean()?.is_ok_and(|it| it.kept_all.is_some()),
        })
    }

    /// Bytes from which a reader takes something: not the trailer, not the index of a segment
    /// whose frames are in the map by now, and not frames that nothing names any more. And whether he takes the index.
    fn trusted(&self, key: &str, bytes: &[u8], by: By) -> Result<(Vec<Range<usize>>, bool)> {
        let first = |len: usize| std::iter::once(0..len).collect();
        if key.ends_with("/root") {
            return Ok((first(bytes.len()), true));
        }
        let trailer = bytes.len() - TRAILER_BYTES;
        let index = bytes[trailer + TRAILER_INDEX..]
            .first_chunk()
            .context("a trailer")?;
        let index = usize::try_from(u32::from_le_bytes(*index))?;
        let at = u64::try_from(index)?;
        self.sim.corrupt(key, &Corruption::FlipBit { at, bit: 0 });
        let is_read = self.misses(by)?;
        self.restore(key, by);
        let frames = match by {
            By::Reader(reader) if key.contains("/seg/") => self.frames(reader, key)?,
            By::Reader(_) | By::Collector => first(index),
        };
        let index = is_read.then_some(index..trailer);
        Ok((frames.into_iter().chain(index).collect(), is_read))
    }

    /// One case: draws an object, attacks it, lets whoever needs it read, puts it back.
    fn attack(&self, attack: Attack, report: &mut Report) -> Result<()> {
        let kind = KINDS[self.draw(KINDS.len())];
        let of_kind: Vec<&Live> = self.live.iter().filter(|live| live.kind == kind).collect();
        ensure!(!of_kind.is_empty(), "no live object of kind {kind:?}");
        let live = of_kind[self.draw(of_kind.len())];
        let Some(how) = self.how(attack, live) else {
            return Ok(());
        };
        self.damage(attack, &live.key, how)?;
        let came = match live.by {
            By::Reader(reader) => self.met_by_reader(reader, attack, live)?,
            By::Collector => self.met_by_collector(attack, live)?,
        };
        self.restore(&live.key, live.by);
        let case = (self.guard, kind, live.by, attack);
        let tally = report.0.entry(case).or_default();
        match came {
            Came::Named => tally.named += 1,
            Came::Unread => tally.unread += 1,
            Came::Kept => tally.kept += 1,
        }
        Ok(())
    }

    fn damage(&self, attack: Attack, key: &str, how: Option<Corruption>) -> Result<()> {
        match (attack, how) {
            // Written over, not decayed: under a version of its own.
            (Attack::RollBack, Some(Corruption::Replace(old))) => {
                let mut objects = self.sound.clone();
                objects.insert(key.to_owned(), old);
                self.sim.restore_objects(&objects);
            }
            (_, Some(how)) => ensure!(self.sim.corrupt(key, &how), "`{key}` is not there"),
            (_, None) => ensure!(self.sim.delete_object(key), "`{key}` is not there"),
        }
        Ok(())
    }

    fn met_by_reader(&self, reader: Reader, attack: Attack, live: &Live) -> Result<Came> {
        let (kind, key) = (live.kind, live.key.as_str());
        let outcome = if (kind, attack) == (Kind::Root, Attack::RollBack) {
            self.publish_more()?
        } else {
            self.read(reader)?
        };
        let error = match outcome {
            Ok(bytes) => {
                ensure!(
                    bytes == self.sight(reader).expected,
                    "{key}: OTHER DATA WAS SERVED"
                );
                let may_miss = live.has_holes && matches!(attack, Attack::Flip | Attack::Cut);
                ensure!(
                    attack == Attack::FlipUnread || may_miss,
                    "{key}: not detected"
                );
                return Ok(Came::Unread);
            }
            Err(error) => error,
        };
        let text = error.to_string();
        // A keyring of another prefix opens with the same password; what it does not fit is
        // the root. A foreign root names segments that are not there.
        let named = match (kind, attack) {
            (Kind::Keyring, Attack::RollBack) => text.contains("an older version"),
            (Kind::Keyring, Attack::SwapPrefix) => text.contains("keyring"),
            (Kind::Root, Attack::SwapPrefix) => text.contains(&format!("nbd/{NAME}/")),
            (Kind::Root, Attack::Gone) => text.contains(&format!("`{NAME}`")),
            (Kind::Keyring, _) => text.contains("keyring") || text.contains("password"),
            _ => text.contains(key),
        };
        ensure!(named, "{key}: an error that does not name it: {text}");
        ensure!(
            attack != Attack::FlipUnread,
            "{key}: nobody reads it: {text}"
        );
        Ok(Came::Named)
    }

    fn met_by_collector(&self, attack: Attack, live: &Live) -> Result<Came> {
        let (kind, key) = (live.kind, live.key.as_str());
        match self.clean()? {
            Err(error) => {
                let mut others = self.sound.keys().filter(|other| *other != key);
                let gone = others.find(|other| self.sim.object(other).is_none());
                ensure!(gone.is_none(), "{key}: {gone:?} was deleted all the same");
                let text = error.to_string();
                ensure!(
                    text.contains(key),
                    "{key}: an error that does not name it: {text}"
                );
                ensure!(kind == Kind::Pin, "{key}: nothing goes on: {text}");
                Ok(Came::Named)
            }
            // Whoever deletes a pin deletes what only the fork needs. It is not served something else.
            Ok(_) if (kind, attack) == (Kind::Pin, Attack::Gone) => {
                self.check_whole(&[Reader::Volume, Reader::Snapshot])?;
                let text = match self.read(Reader::Fork)? {
                    Ok(_) => bail!("{key}: the fork had nothing that it alone needs"),
                    Err(error) => error.to_string(),
                };
                let named = text.contains(&format!("nbd/{NAME}/"));
                ensure!(named, "{key}: an error that names nothing: {text}");
                Ok(Came::Named)
            }
            Ok(cleaned) => {
                self.check_whole(&READERS)?;
                let is_unread = attack == Attack::FlipUnread;
                match (kind, cleaned.kept_all) {
                    (Kind::Ledger, None) if is_unread => Ok(Came::Unread),
                    (Kind::Ledger, Some(KeptAll::HasGaps)) if !is_unread => Ok(Came::Kept),
                    _ => bail!("{key}: not as it must be noticed: {cleaned:?}"),
                }
            }
        }
    }

    /// What is done to the object; outer none: the attack does not exist for it. Inner none: deleted.
    fn how(&self, attack: Attack, live: &Live) -> Option<Option<Corruption>> {
        let Live {
            kind, key, trusted, ..
        } = live;
        let kind = *kind;
        let good = &self.sound[key];
        let changes = matches!(kind, Kind::Keyring | Kind::Root);
        // All of it is read, and its name has no epoch.
        let is_letter = changes || kind == Kind::Pin;
        let flip = |at: usize| {
            Some(Some(Corruption::FlipBit {
                at: u64::try_from(at).expect("small"),
                bit: u8::try_from(self.draw(8)).expect("a bit"),
            }))
        };
        let plain_keyring = kind == Kind::Keyring && self.guard == Guard::Plain;
        match attack {
            Attack::Flip => flip(self.draw_in(trusted)),
            Attack::FlipUnread if is_letter => None,
            Attack::FlipUnread => flip(self.draw_in(&between(trusted, good.len()))),
            Attack::Cut => {
                let end = trusted.last().map_or(0, |last| last.end);
                let len = u64::try_from(self.draw(end)).expect("small");
                Some(Some(Corruption::Truncate { len }))
            }
            Attack::Noise => {
                let mut noise = vec![0; good.len()];
                self.sim.chance(|chance| chance.fill(&mut noise));
                Some(Some(Corruption::Replace(noise.into())))
            }
            // Holds nothing but an id: it is made again, and one is as good as another.
            Attack::Gone | Attack::SwapPrefix if plain_keyring => None,
            Attack::Gone => Some(None),
            Attack::SwapWithin => self.pick(&self.sound, kind, NAME, |other| other != key),
            Attack::SwapEpoch => {
                let epoch = |key: &str| {
                    key.rsplit('/')
                        .next()
                        .and_then(|it| it.get(..16).map(str::to_owned))
                };
                let own = epoch(key);
                self.pick(&self.sound, kind, NAME, |other| {
                    !is_letter && epoch(other) != own
                })
            }
            Attack::SwapVolume => self.pick(&self.sound, kind, OTHER, |_| true),
            Attack::SwapPrefix => self.pick(&self.other_prefix, kind, NAME, |_| true),
            Attack::RollBack if plain_keyring || !changes => None,
            Attack::RollBack => {
                let versions = &self.earlier[key];
                let old = versions[self.draw(versions.len())].clone();
                Some(Some(Corruption::Replace(old)))
            }
        }
    }

    /// Another object of the kind.
    fn pick(
        &self,
        from: &BTreeMap<String, Bytes>,
        kind: Kind,
        volume: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Option<Corruption>> {
        let own = format!("nbd/{volume}/");
        let candidates: Vec<&Bytes> = from
            .iter()
            .filter(|(key, bytes)| {
                let belongs = key.starts_with(&own) || (volume == NAME && *key == "keyring");
                belongs && fits(key) && kind_of(key, bytes).is_ok_and(|other| other == kind)
            })
            .map(|(_, bytes)| bytes)
            .collect();
        if candidates.is_empty() {
            return None;
        }
        let bytes = candidates[self.draw(candidates.len())].clone();
        Some(Some(Corruption::Replace(bytes)))
    }

    /// A place in one of the ranges.
    fn draw_in(&self, ranges: &[Range<usize>]) -> usize {
        let mut at = self.draw(ranges.iter().map(Range::len).sum());
        for range in ranges {
            if at < range.len() {
                return range.start + at;
            }
            at -= range.len();
        }
        unreachable!("it was drawn below the sum")
    }

    /// Where the frames of a segment are that a reader reads.
    fn frames(&self, reader: Reader, key: &str) -> Result<Vec<Range<usize>>> {
        let config = config(self.guard, NEXT_PASSWORD);
        let (pages, store) = (self.sight(reader).pages.clone(), self.sim.store(self.host));
        let (key, mut found) = (key.to_owned(), Vec::new());
        let looked = in_process(&self.sim, self.host, move |world| async move {
            let store = Metered::new(world.clone(), store);
            let bucket = Box::pin(Bucket::open(world, store, config)).await?;
            let volume = Box::pin(reader.open(&bucket)).await?;
            for range in pages {
                for (_, source) in volume.lookup(range).await? {
                    match source {
                        Source::Frame { frame, .. }
                            if key.ends_with(&frame.segment.to_string()) =>
                        {
                            let at = |at: u64| usize::try_from(at).expect("small");
                            found.push(at(frame.bytes.start)..at(frame.bytes.end));
                        }
                        _ => {}
                    }
                }
            }
            Ok(found)
        })?;
        let mut found = looked?;
        found.sort_by_key(|range| range.start);
        found.dedup();
        Ok(found)
    }

    fn sight(&self, reader: Reader) -> &Sight {
        let found = self.sights.iter().find(|sight| sight.reader == reader);
        found.expect("each reader has one")
    }

    fn check_whole(&self, readers: &[Reader]) -> Result<()> {
        for &reader in readers {
            let bytes = self.read(reader)?;
            let bytes = bytes.with_context(|| format!("{reader:?} is not whole"))?;
            let right = bytes == self.sight(reader).expected;
            ensure!(right, "OTHER DATA WAS SERVED to {reader:?}");
        }
        Ok(())
    }

    /// A node that knows nothing reads everything.
    fn read(&self, reader: Reader) -> Result<Result<Vec<u8>, VolumeError>> {
        let config = config(self.guard, NEXT_PASSWORD);
        let (pages, store) = (self.sight(reader).pages.clone(), self.sim.store(self.host));
        in_process(&self.sim, self.host, move |world| async move {
            let store = Metered::new(world.clone(), store);
            let bucket = Box::pin(Bucket::open(world, store, config)).await?;
            let volume = Box::pin(reader.open(&bucket)).await?;
            read_all(&volume, &pages).await
        })
    }

    /// A node takes the volume over, writes, collects and sweeps: whatever reads pins and the ledger.
    fn clean(&self) -> Result<Result<Cleaned, VolumeError>> {
        let config = config(self.guard, NEXT_PASSWORD);
        let (seed, store) = (self.seed, self.sim.store(self.host));
        in_process(&self.sim, self.host, move |world| async move {
            let store = Metered::new(world.clone(), store);
            let bucket = Box::pin(Bucket::open(world.clone(), store, config)).await?;
            let volume = Box::pin(bucket.open_volume(NAME)).await?;
            let (nonce, epoch) = (Id(world.random_id()), volume.root().epoch);
            Box::pin(volume.take(&owner(), nonce, Some(epoch))).await?;
            // The same again: what the ledger's object lists is counted by that.
            let frames = vec![data(KEPT, seed, NAME)];
            let segment = Box::pin(volume.upload(frames)).await?;
            publish(&world, &volume, vec![segment], Vec::new()).await?;
            let thorough = Tidy::default().thorough();
            let first = Box::pin(volume.tidy(&thorough)).await?;
            publish(&world, &volume, Vec::new(), Vec::new()).await?;
            Box::pin(volume.tidy(&thorough)).await?;
            publish(&world, &volume, Vec::new(), Vec::new()).await?;
            let swept = Box::pin(volume.sweep(Scope::All, Deletes::Really)).await?;
            let kept_all = swept.kept_all;
            Ok::<_, VolumeError>(Cleaned { first, kept_all })
        })
    }

    /// The owner, who saw the newer root, publishes.
    fn publish_more(&self) -> Result<Result<Vec<u8>, VolumeError>> {
        let holder = self.holder.clone();
        let published = self.sim.run(async move {
            let change = Publish {
                nonce: Id([0xaa; 16]),
                ours: Vec::new(),
                cut: holder.root().cut.next(),
                segments: Vec::new(),
                size_bytes: None,
                state: None,
                snapshots: Vec::new(),
                data_key: None,
            };
            let published = Box::pin(holder.publish(&change)).await;
            published.map(|_published| Vec::new())
        })?;
        Ok(published)
    }

    /// Puts the object back, and whatever he changed who met the attack.
    fn restore(&self, key: &str, by: By) {
        let good = Corruption::Replace(self.sound[key].clone());
        let changes = key == "keyring" || key.ends_with("/root") || by == By::Collector;
        if changes || !self.sim.corrupt(key, &good) {
            self.sim.restore_objects(&self.sound);
        }
    }

    fn draw(&self, below: usize) -> usize {
        self.sim.chance(|chance| chance.index(below))
    }
}

/// What lies before, between and behind the ranges.
fn between(ranges: &[Range<usize>], end: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain([end]);
    let gaps = starts.zip(ends).map(|(start, end)| start..end);
    gaps.filter(|gap| !gap.is_empty()).collect()
}

async fn read_all(volume: &Volume<SimWorld>, ranges: &[PageRange]) -> Result<Vec<u8>, VolumeError> {
    let mut out = Vec::new();
    for range in ranges {
        for (pages, source) in Box::pin(volume.lookup(*range)).await? {
            let bytes = usize::try_from(pages.bytes()).expect("small");
            match source {
                Source::Zero => out.resize(out.len() + bytes, 0),
                Source::Frame { frame, skip } => {
                    let content = Box::pin(volume.fetch(&frame)).await?;
                    let from = usize::try_from(skip).expect("small") * PAGE;
                    out.extend_from_slice(&content[from..from + bytes]);
                }
            }
        }
    }
    Ok(out)
}

fn in_process<T, F>(
    sim: &Sim,
    host: HostId,
    main: impl FnOnce(SimWorld) -> F,
) -> Result<Result<T, VolumeError>>
where
    T: 'static,
    F: Future<Output = Result<T, VolumeError>> + 'static,
{
    let call = sim.call(host, main);
    let pid = call.pid();
    let outcome = sim.run(call)?;
    sim.kill(pid);
    outcome.context("the host stays up")
}

fn kind_of(key: &str, bytes: &[u8]) -> Result<Kind> {
    if key == "keyring" {
        return Ok(Kind::Keyring);
    }
    if key.ends_with("/root") {
        return Ok(Kind::Root);
    }
    if key.contains("/pins/") {
        return Ok(Kind::Pin);
    }
    let at = bytes
        .len()
        .checked_sub(TRAILER_BYTES)
        .map(|trailer| trailer + TRAILER_KIND);
    match at.and_then(|at| bytes.get(at)) {
        Some(1) => Ok(Kind::Segment),
        Some(2) => Ok(Kind::MapPart),
        Some(3) => Ok(Kind::MapIndex),
        Some(4) => Ok(Kind::Ledger),
        _ => bail!("`{key}` has no trailer"),
    }
}
