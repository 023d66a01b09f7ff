//! Attacks on everything that a volume has in the store: each object that a cold read needs is
//! flipped, cut, taken away, replaced by noise, by another object of its kind (of the same volume, of
//! another one, of another epoch, of another prefix), or by what it was before.
//!
//! What must come of it is known before each case: an error that names what is wrong, or exactly the
//! right data where the bytes are such that nobody reads (the trailer of an object is for people).
//! Other data is never right. What no reader can know is not among the cases: a fresh node that is
//! given an older root serves that older cut, whole (docs/encryption.md).

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use blockcache::{Id, PageRange};
use bytes::Bytes;
use glidefs::volume::{
    Bucket, BucketConfig, Compression, FrameContent, InUse, KeyChange, KeyringCost, Keyslots,
    Metered, Owner, PlainFrame, Publish, Source, Volume, VolumeError,
};
use world::World;
use world::sim::{Corruption, HostId, Sim, SimConfig, SimWorld};
use zeroize::Zeroizing;

const NAME: &str = "vm";
const OTHER: &str = "other";
const PASSWORD: &str = "correct horse";
const NEXT_PASSWORD: &str = "battery staple";
const PAGE: usize = 4096;
/// Nobody reads it.
const TRAILER_BYTES: usize = 128;
/// Where a trailer says of what kind the object is.
const TRAILER_KIND: usize = 10;
/// Where it says where the index begins, in 4 bytes.
const TRAILER_INDEX: usize = 56;
/// So many publishes make a tail that is folded into a run of the map.
const PUBLISHES_PER_FOLD: u64 = 34;
const FOLDS: u64 = 2;
const SIZE_BYTES: u64 = 1 << 30;

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

/// How often what happened, for one kind of object and one attack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// An error that names it.
    pub named: u64,
    /// The right data, where nobody reads what was changed.
    pub unread: u64,
}

/// The outcome of all cases. There is no place for other data or an error without a name in it: those
/// end the run.
#[derive(Debug, Default)]
pub struct Report(BTreeMap<(Guard, Kind, Attack), Tally>);

impl Report {
    pub fn total(&self) -> Tally {
        let add = |sum: Tally, one: &Tally| Tally {
            named: sum.named + one.named,
            unread: sum.unread + one.unread,
        };
        self.0.values().fold(Tally::default(), add)
    }

    /// Kinds of objects that were attacked, for each guard.
    pub fn kinds(&self) -> usize {
        let mut kinds: Vec<_> = self
            .0
            .keys()
            .map(|(guard, kind, _)| (guard, kind))
            .collect();
        kinds.dedup();
        kinds.len()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| prefix | object | attack | detected and named | nobody reads it, right data |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        for ((guard, kind, attack), tally) in &self.0 {
            writeln!(
                f,
                "| {guard:?} | {kind:?} | {attack:?} | {} | {} |",
                tally.named, tally.unread
            )?;
        }
        let Tally { named, unread } = self.total();
        write!(f, "| | | all | {named} | {unread} |")
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

/// An object that a cold read needs.
struct Live {
    kind: Kind,
    key: String,
    trusted: usize,
}

/// A prefix with two volumes, and one more prefix like it.
struct Stage {
    sim: Sim,
    host: HostId,
    guard: Guard,
    /// Objects that a cold read of the volume needs.
    live: Vec<Live>,
    sound: BTreeMap<String, Bytes>,
    other_prefix: BTreeMap<String, Bytes>,
    earlier: Earlier,
    expected: Vec<u8>,
    pages: u64,
    /// The handle that published last.
    holder: Volume<SimWorld>,
}

/// What root and keyring were before their last changes.
type Earlier = BTreeMap<String, Vec<Bytes>>;

struct Prefix {
    sim: Sim,
    host: HostId,
    earlier: Earlier,
    pages: u64,
    holder: Volume<SimWorld>,
}

impl Stage {
    fn new(seed: u64, guard: Guard) -> Result<Self> {
        let Prefix {
            sim,
            host,
            earlier,
            pages,
            holder,
        } = prefix(seed, guard)?;
        let other_prefix = prefix(seed + 1_000_003, guard)?.sim.objects();
        let sound = sim.objects();
        let mut stage = Self {
            sim,
            host,
            guard,
            live: Vec::new(),
            sound,
            other_prefix,
            earlier,
            expected: (0..pages)
                .flat_map(|number| page(number, seed, NAME))
                .collect(),
            pages,
            holder,
        };
        let bytes = stage.read()?.context("the volume is not sound")?;
        ensure!(bytes == stage.expected, "the volume is not sound");
        stage.live = stage.find_live()?;
        Ok(stage)
    }

    /// What a cold read cannot do without, and the keyring.
    fn find_live(&self) -> Result<Vec<Live>> {
        let keyring = Live {
            kind: Kind::Keyring,
            key: "keyring".to_owned(),
            trusted: self.sound["keyring"].len(),
        };
        let mut live = vec![keyring];
        let own = format!("nbd/{NAME}/");
        for (key, bytes) in self.sound.iter().filter(|(key, _)| key.starts_with(&own)) {
            self.sim.delete_object(key);
            let is_needed = self.read()?.is_err();
            self.restore(key);
            if is_needed {
                live.push(Live {
                    kind: kind_of(key, bytes)?,
                    key: key.clone(),
                    trusted: self.trusted(key, bytes)?,
                });
            }
        }
        Ok(live)
    }

    /// Bytes from which a reader takes something: not the trailer, and not the index of a segment
    /// whose frames are in the map by now.
    fn trusted(&self, key: &str, bytes: &[u8]) -> Result<usize> {
        if key.ends_with("/root") {
            return Ok(bytes.len());
        }
        let trailer = bytes.len() - TRAILER_BYTES;
        let index = bytes[trailer + TRAILER_INDEX..]
            .first_chunk()
            .context("a trailer")?;
        let index = usize::try_from(u32::from_le_bytes(*index))?;
        let at = u64::try_from(index)?;
        self.sim.corrupt(key, &Corruption::FlipBit { at, bit: 0 });
        let is_read = self.read()?.is_err();
        self.restore(key);
        Ok(if is_read { trailer } else { index })
    }

    /// One case: draws an object, attacks it, reads, puts it back.
    fn attack(&self, attack: Attack, report: &mut Report) -> Result<()> {
        let kinds = [
            Kind::Keyring,
            Kind::Root,
            Kind::Segment,
            Kind::MapPart,
            Kind::MapIndex,
        ];
        let kind = kinds[self.draw(kinds.len())];
        let of_kind: Vec<&Live> = self.live.iter().filter(|live| live.kind == kind).collect();
        ensure!(!of_kind.is_empty(), "no live object of kind {kind:?}");
        let live = of_kind[self.draw(of_kind.len())];
        let key = live.key.as_str();
        let Some(how) = self.how(attack, live) else {
            return Ok(());
        };
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
        let tally = report.0.entry((self.guard, kind, attack)).or_default();
        let outcome = if (kind, attack) == (Kind::Root, Attack::RollBack) {
            self.publish_more()?
        } else {
            self.read()?
        };
        match outcome {
            Ok(bytes) => {
                ensure!(bytes == self.expected, "{key}: OTHER DATA WAS SERVED");
                ensure!(attack == Attack::FlipUnread, "{key}: not detected");
                tally.unread += 1;
            }
            Err(error) => {
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
                tally.named += 1;
            }
        }
        self.restore(key);
        Ok(())
    }

    /// What is done to the object; outer none: the attack does not exist for it. Inner none: deleted.
    fn how(&self, attack: Attack, live: &Live) -> Option<Option<Corruption>> {
        let Live { kind, key, trusted } = live;
        let (kind, trusted) = (*kind, *trusted);
        let good = &self.sound[key];
        let mutable = matches!(kind, Kind::Keyring | Kind::Root);
        let flip = |at: usize| {
            Some(Some(Corruption::FlipBit {
                at: u64::try_from(at).expect("small"),
                bit: u8::try_from(self.draw(8)).expect("a bit"),
            }))
        };
        let plain_keyring = kind == Kind::Keyring && self.guard == Guard::Plain;
        match attack {
            Attack::Flip => flip(self.draw(trusted)),
            Attack::FlipUnread if mutable => None,
            Attack::FlipUnread => flip(trusted + self.draw(good.len() - trusted)),
            Attack::Cut => Some(Some(Corruption::Truncate {
                len: u64::try_from(self.draw(trusted)).expect("small"),
            })),
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
                    !mutable && epoch(other) != own
                })
            }
            Attack::SwapVolume => self.pick(&self.sound, kind, OTHER, |_| true),
            Attack::SwapPrefix => self.pick(&self.other_prefix, kind, NAME, |_| true),
            Attack::RollBack if plain_keyring || !mutable => None,
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

    /// A node that knows nothing reads everything.
    fn read(&self) -> Result<Result<Vec<u8>, VolumeError>> {
        let (pages, config) = (self.pages, config(self.guard, NEXT_PASSWORD));
        let store = self.sim.store(self.host);
        in_process(&self.sim, self.host, move |world| async move {
            let store = Metered::new(world.clone(), store);
            let bucket = Bucket::open(world, store, config).await?;
            let volume = bucket.open_volume(NAME).await?;
            read_all(&volume, pages).await
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
            };
            holder.publish(&change).await.map(|_published| Vec::new())
        })?;
        Ok(published)
    }

    fn restore(&self, key: &str) {
        let good = Corruption::Replace(self.sound[key].clone());
        if key == "keyring" || key.ends_with("/root") || !self.sim.corrupt(key, &good) {
            self.sim.restore_objects(&self.sound);
        }
    }

    fn draw(&self, below: usize) -> usize {
        self.sim.chance(|chance| chance.index(below))
    }
}

/// Makes a prefix: two volumes with segments of three epochs, runs of the map, a tail; and, if it is
/// sealed, a password that was changed on the way.
fn prefix(seed: u64, guard: Guard) -> Result<Prefix> {
    let sim = Sim::new(seed, SimConfig::default());
    let host = sim.host("node");
    let world = sim.process(host);
    let store = sim.store(host);
    let building = build(sim.clone(), world, store, guard);
    let (earlier, pages, holder) = sim.run(building)??;
    Ok(Prefix {
        sim,
        host,
        earlier,
        pages,
        holder,
    })
}

async fn build(
    sim: Sim,
    world: SimWorld,
    store: <SimWorld as World>::Store,
    guard: Guard,
) -> Result<(Earlier, u64, Volume<SimWorld>)> {
    let metered = Metered::new(world.clone(), store.clone());
    let bucket = Bucket::open(world.clone(), metered, config(guard, PASSWORD)).await?;
    let owner = Owner {
        cache: Id([1; 16]),
        host: "node".to_owned(),
    };
    let mut pages = 0;
    let mut volumes = Vec::new();
    for name in [OTHER, NAME] {
        let volume = bucket
            .create(name, SIZE_BYTES, &owner, Id(world.random_id()))
            .await?;
        pages = 0;
        for _ in 0..FOLDS {
            for _ in 0..PUBLISHES_PER_FOLD {
                sync(&sim, &world, &volume, &mut pages).await?;
            }
            Box::pin(volume.compact_map()).await?;
            let epoch = volume.root().epoch;
            volume
                .take(&owner, Id(world.random_id()), Some(epoch))
                .await?;
            sync(&sim, &world, &volume, &mut pages).await?;
        }
        volumes.push(volume);
    }
    let mut earlier = Earlier::new();
    remember(&sim, &mut earlier, |key| {
        key == "keyring" || key.ends_with("/root")
    });
    let volume = volumes.pop().context("two were made")?;
    sync(&sim, &world, &volume, &mut pages).await?;
    if guard == Guard::Sealed {
        let password = |text: &str| Zeroizing::new(text.to_owned());
        let add = KeyChange::Add {
            password: password(NEXT_PASSWORD),
        };
        let cost = KeyringCost::LEAST;
        let added = Keyslots::change(&world, &store, password(PASSWORD), add, cost).await?;
        // It opens with either password, so that only its age can give it away.
        remember(&sim, &mut earlier, |key| key == "keyring");
        let old = added.now.in_use.context("it was opened")?;
        let remove = KeyChange::Remove {
            slot: old.to_string(),
            in_use: InUse::Keep,
        };
        Keyslots::change(&world, &store, password(NEXT_PASSWORD), remove, cost).await?;
    }
    Ok((earlier, pages, volume))
}

fn remember(sim: &Sim, earlier: &mut Earlier, is_wanted: impl Fn(&str) -> bool) {
    let objects = sim.objects().into_iter();
    for (key, bytes) in objects.filter(|(key, _)| is_wanted(key)) {
        earlier.entry(key).or_default().push(bytes);
    }
}

/// Two new pages as the next cut. No page is written twice, so that every stored frame is read.
async fn sync(
    sim: &Sim,
    world: &SimWorld,
    volume: &Volume<SimWorld>,
    pages: &mut u64,
) -> Result<()> {
    let (seed, name) = (sim.seed(), volume.root().name);
    let frame = |start: u64| PlainFrame {
        pages: PageRange::new(start, start + 1),
        content: FrameContent::Data(page(start, seed, &name).into()),
    };
    let segment = volume
        .upload(vec![frame(*pages), frame(*pages + 1)])
        .await?;
    *pages += 2;
    let change = Publish {
        nonce: Id(world.random_id()),
        ours: Vec::new(),
        cut: volume.root().cut.next(),
        segments: vec![segment],
        size_bytes: None,
        state: None,
        snapshots: Vec::new(),
    };
    let published = volume.publish(&change).await?;
    volume.install(published);
    Ok(())
}

async fn read_all(volume: &Volume<SimWorld>, pages: u64) -> Result<Vec<u8>, VolumeError> {
    let mut out = Vec::new();
    for (range, source) in volume.lookup(PageRange::new(0, pages)).await? {
        let bytes = usize::try_from(range.bytes()).expect("small");
        match source {
            Source::Zero => out.resize(out.len() + bytes, 0),
            Source::Frame { frame, skip } => {
                let content = volume.fetch(&frame).await?;
                let from = usize::try_from(skip).expect("small") * PAGE;
                out.extend_from_slice(&content[from..from + bytes]);
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

fn config(guard: Guard, password: &str) -> BucketConfig {
    BucketConfig {
        password: (guard == Guard::Sealed).then(|| password.to_owned()),
        cost: KeyringCost::LEAST,
        ..BucketConfig::new(Compression::Lz4)
    }
}

fn kind_of(key: &str, bytes: &[u8]) -> Result<Kind> {
    if key == "keyring" {
        return Ok(Kind::Keyring);
    }
    if key.ends_with("/root") {
        return Ok(Kind::Root);
    }
    let at = bytes
        .len()
        .checked_sub(TRAILER_BYTES)
        .map(|trailer| trailer + TRAILER_KIND);
    match at.and_then(|at| bytes.get(at)) {
        Some(1) => Ok(Kind::Segment),
        Some(2) => Ok(Kind::MapPart),
        Some(3) => Ok(Kind::MapIndex),
        _ => bail!("`{key}` has no trailer"),
    }
}

/// Half of it compresses, half does not. No two prefixes or volumes hold the same.
fn page(number: u64, seed: u64, volume: &str) -> Vec<u8> {
    let mut page = vec![7; PAGE];
    let volume: u64 = volume.bytes().map(u64::from).sum();
    let mixed = number ^ (seed << 20) ^ (volume << 44);
    let mut state = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in &mut page[..PAGE / 2] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
    page
}
