//! The password slots of a prefix, and the data key of an export that nobody has open, from the configuration alone: no
//! cache, no address, no server.

use std::pin::Pin;
use std::time::Duration;

use blockcache::Id;
use world::World;
use world::linux::{LinuxStore, LinuxWorld};
use zeroize::Zeroizing;

use super::shard_thread::{linux, ring_text};
use super::{EDGE_END_WAIT_MAX, edge, settings};
use crate::cli::{Failure, output};
use crate::config::{Config, Secret, StoreKind};
use crate::control::DataKeyDocument;
use crate::shard::renew;
pub(crate) use crate::volume::SlotView;
use crate::volume::{Bucket, InUse, KeyChange, KeyringCost, Keyslots, Metered, VolumeError};

/// Between two words to whoever waits.
const WORD_EVERY: Duration = Duration::from_secs(2);

/// What an operator wants of the slots.
#[derive(Debug)]
pub(crate) enum KeyWish {
    Add { password: Secret },
    Rotate { password: Secret },
    Remove { slot: String, in_use: bool },
    Finish,
    AcceptOlder { version: String },
}

/// How far a new data key came without its export's owner.
#[derive(Debug)]
pub(crate) enum Renewed {
    /// Nobody had the export open.
    Done(DataKeyDocument),
    /// It is open: its owner alone can do it.
    Open {
        /// Its volume's id.
        volume: Option<String>,
        /// Who has it, for people.
        why: String,
    },
}

/// The slots, and what became of them.
#[derive(Debug)]
pub(crate) struct KeyChanged {
    /// Something was wished for, not only looked at.
    pub(crate) was_change: bool,
    pub(crate) added: Option<SlotView>,
    pub(crate) removed: Vec<SlotView>,
    /// Afterwards, oldest first.
    pub(crate) slots: Vec<SlotView>,
    /// The one that the configuration's password opens.
    pub(crate) in_use: Option<Id>,
    /// False: the keyring that this one replaced could not be noted as such.
    pub(crate) is_guarded: bool,
}

/// Looks at the slots, or changes them.
pub(crate) fn keys(config: &Config, wish: Option<KeyWish>) -> Result<KeyChanged, Failure> {
    let password = config.storage.password.as_ref();
    if wish.is_some() && password.is_none() {
        return Err(Failure::unusable(
            "`storage.encryption_password` is not set: a password that opens the prefix is needed to \
             change its slots; where volumes are not encrypted there are none",
        ));
    }
    let password = password.map(|secret| Zeroizing::new(secret.reveal().to_owned()));
    with_store(config, |world, store| {
        Box::pin(perform(world, store, password, wish))
    })
}

/// Gives an export that nobody has open a new data key.
pub(crate) fn renew_data_key(
    config: &Config,
    export: String,
    request_id: Option<&str>,
) -> Result<Renewed, Failure> {
    let bucket = settings::bucket(config);
    let request = request_id.map(|request| renew::request_of(&export, request));
    let request = request
        .transpose()
        .map_err(|error| Failure::unusable(error.to_string()))?;
    with_store(config, move |world, store| {
        Box::pin(async move {
            let request = request.unwrap_or_else(|| Id(world.random_id()));
            let renewing = async {
                // Opening begins a prefix where none is: not for a mistyped URL.
                Keyslots::read(&world, &store, None).await?;
                let store = Metered::new(world.clone(), store);
                let bucket = Bucket::open(world, store, bucket).await?;
                let why = match bucket.renew_data_key(&export, request).await {
                    Ok(key) => return Ok(Renewed::Done(renew::document(&export, key))),
                    Err(error @ VolumeError::Owned { .. }) => error.to_string(),
                    Err(error) => return Err(error),
                };
                let root = bucket.root(&export).await?;
                let volume = root.map(|root| root.volume.to_string());
                Ok(Renewed::Open { volume, why })
            };
            Box::pin(renewing).await.map_err(refused)
        })
    })
}

type Work<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

/// Opens the store, on a thread of its own kind, and says that it is still at work now and then.
fn with_store<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce(LinuxWorld, LinuxStore) -> Work<T> + Send + 'static,
) -> Result<T, Failure> {
    if config.storage.url.kind() == StoreKind::Memory {
        return Err(Failure::unusable(
            "`storage.url` = memory://: it is inside of the server's process, and has no keys to change",
        ));
    }
    let runtime = edge()?;
    let (config, handle) = (settings::store(config), runtime.handle().clone());
    let body = |world: LinuxWorld| {
        Box::pin(async move {
            let store = LinuxStore::open(&config, handle)
                .map_err(|error| Failure::unusable(format!("`storage.url`: {error}")))?;
            let waiting = world.clone();
            world.spawn(async move {
                // Ends with the process: all retries are bounded.
                loop {
                    waiting.sleep(WORD_EVERY).await;
                    output::notice("Still working on the keys …");
                }
            });
            work(world, store).await
        })
    };
    let outcome = match world::linux::run(linux(runtime.handle().clone()), body) {
        Ok(outcome) => outcome,
        Err(error) => Err(Failure::refused(ring_text(&error))),
    };
    runtime.shutdown_timeout(EDGE_END_WAIT_MAX);
    outcome
}

async fn perform(
    world: LinuxWorld,
    store: LinuxStore,
    password: Option<Zeroizing<String>>,
    wish: Option<KeyWish>,
) -> Result<KeyChanged, Failure> {
    let Some(wish) = wish else {
        let found = Keyslots::read(&world, &store, password).await;
        let found = found.map_err(refused)?;
        return Ok(KeyChanged {
            was_change: false,
            added: None,
            removed: Vec::new(),
            slots: found.slots,
            in_use: found.in_use,
            is_guarded: found.is_guarded,
        });
    };
    let password = password.expect("asked for above");
    let cost = KeyringCost::default();
    let change = Keyslots::change(&world, &store, password, wish.into(), cost);
    let changed = Box::pin(change).await.map_err(refused)?;
    Ok(KeyChanged {
        was_change: true,
        added: changed.added,
        removed: changed.removed,
        slots: changed.now.slots,
        in_use: changed.now.in_use,
        is_guarded: changed.now.is_guarded,
    })
}

fn refused(error: VolumeError) -> Failure {
    Failure::refused(error.to_string())
}

impl From<KeyWish> for KeyChange {
    fn from(wish: KeyWish) -> Self {
        let text = |password: Secret| Zeroizing::new(password.reveal().to_owned());
        match wish {
            KeyWish::Add { password } => Self::Add {
                password: text(password),
            },
            KeyWish::Rotate { password } => Self::Rotate {
                password: text(password),
            },
            KeyWish::Remove { slot, in_use } => Self::Remove {
                slot,
                in_use: if in_use { InUse::Remove } else { InUse::Keep },
            },
            KeyWish::Finish => Self::Finish,
            KeyWish::AcceptOlder { version } => Self::AcceptOlder { version },
        }
    }
}
