//! Keys of an S3 store that are renewed while the process runs: read again now and then, and taken over when they are
//! others. Keys of a role last for hours only.
//!
//! Promises:
//! - A request is signed with keys that were read at most [`LOOK_EVERY`] before, and the time that one look takes; or with
//!   the last good ones, where they cannot be read: a file that is being replaced stops nobody.
//! - One request looks, on a thread for what may block; others go on with what is known meanwhile.
//!
//! Keys that belong together and are read from several files may be read half renewed. Requests that are signed with such
//! ones are refused, and the next look cures it; who asks waits for longer than that before he gives up.
//!
//! Deliberately absent: watching the files. A look costs little beside the requests between two of them, and it sees also
//! what a mount or a link has changed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use super::StoreConfig;
use crate::Instant;
use crate::linux::shard;
use crate::sync::watch;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// The keys of an S3 store.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreKeys {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

impl fmt::Debug for StoreKeys {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreKeys")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Reads the keys that are current now; or says what is wrong and what to do. May block.
pub type ReadKeys = Arc<dyn Fn() -> Result<StoreKeys, String> + Send + Sync>;

/// Keys that are looked for again while they are used.
pub(super) struct RenewedKeys {
    read: ReadKeys,
    known: watch::Sender<Known>,
    /// When the next look is due, in nanoseconds of the clock of shards.
    due: AtomicU64,
}

/// What the last look found.
struct Known {
    keys: Arc<AwsCredential>,
    /// Why the keys could not be read, if they could not: it has been said.
    trouble: Option<String>,
}

impl RenewedKeys {
    /// None where the keys stay what they are.
    pub(super) fn of(config: &StoreConfig) -> Option<Self> {
        let read = config.read_keys.clone()?;
        let first = StoreKeys {
            access_key_id: config.access_key_id.clone()?,
            secret_access_key: config.secret_access_key.clone()?,
            session_token: config.session_token.clone(),
        };
        Some(Self::new(first, read, shard::now()))
    }

    /// `first` was read a moment ago.
    fn new(first: StoreKeys, read: ReadKeys, now: Instant) -> Self {
        let (known, _) = watch::channel(Known {
            keys: Arc::new(credential(first)),
            trouble: None,
        });
        Self {
            read,
            known,
            due: AtomicU64::new((now + LOOK_EVERY).as_nanos()),
        }
    }

    /// The keys to sign with.
    #[expect(
        clippy::disallowed_methods,
        reason = "edge: the library's own runtime waits"
    )]
    async fn at(&self, now: Instant) -> Arc<AwsCredential> {
        if self.takes_a_look(now) {
            let read = Arc::clone(&self.read);
            let looking = tokio::task::spawn_blocking(move || read());
            // A file on a mount that hangs must not take one request after the other with it.
            let found = match tokio::time::timeout(LOOK_MAX, looking).await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => Err(format!("they were not read to the end: {error}")),
                Err(_) => Err(format!(
                    "reading them took more than {} s",
                    LOOK_MAX.as_secs()
                )),
            };
            self.take_over(found);
        }
        Arc::clone(&self.known.borrow().keys)
    }

    /// Whether a look is due, and no other request takes it.
    fn takes_a_look(&self, now: Instant) -> bool {
        let due = self.due.load(Ordering::Relaxed);
        if now.as_nanos() < due {
            return false;
        }
        let (next, order) = ((now + LOOK_EVERY).as_nanos(), Ordering::Relaxed);
        let taken = self.due.compare_exchange(due, next, order, order);
        taken.is_ok()
    }

    fn take_over(&self, found: Result<StoreKeys, String>) {
        self.known.send_modify(|known| match found {
            Ok(keys) => {
                let keys = credential(keys);
                if known.trouble.take().is_some() {
                    tracing::info!("the keys of the store can be read again");
                }
                if *known.keys != keys {
                    tracing::info!("the keys of the store were renewed");
                    known.keys = Arc::new(keys);
                }
            }
            Err(trouble) => {
                if known.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(trouble, "the keys of the store cannot be read again; the last good ones are used until they can (docs/runbooks/store-unavailable.md)");
                }
                known.trouble = Some(trouble);
            }
        });
    }
}

fn credential(keys: StoreKeys) -> AwsCredential {
    AwsCredential {
        key_id: keys.access_key_id,
        secret_key: keys.secret_access_key,
        token: keys.session_token,
    }
}

impl CredentialProvider for RenewedKeys {
    type Credential = AwsCredential;

    /// Written as the macro of `async_trait` would write it, which nothing else here needs.
    fn get_credential<'a, 'b>(
        &'a self,
    ) -> Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move { Ok(self.at(shard::now()).await) })
    }
}

impl fmt::Debug for RenewedKeys {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RenewedKeys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &str) -> StoreKeys {
        StoreKeys {
            access_key_id: "AK".to_owned(),
            secret_access_key: secret.to_owned(),
            session_token: Some(format!("token of {secret}")),
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever renews keys is another process"
    )]
    fn renewed_keys_are_used_soon_and_while_none_can_be_read_the_last_good_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        std::fs::write(&path, "one").expect("written");
        let reads = Arc::new(AtomicU64::new(0));
        let read: ReadKeys = {
            let (path, reads) = (path.clone(), Arc::clone(&reads));
            Arc::new(move || {
                reads.fetch_add(1, Ordering::Relaxed);
                let secret = std::fs::read_to_string(&path);
                let secret = secret.map_err(|error| format!("{}: {error}", path.display()))?;
                Ok(keys(&secret))
            })
        };
        let renewed = RenewedKeys::new(keys("one"), read, at(0));
        let edge = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let edge = edge.expect("a runtime");
        let used = |seconds| {
            let used = edge.block_on(renewed.at(at(seconds)));
            assert_eq!(
                used.token,
                Some(format!("token of {}", used.secret_key)),
                "they belong together"
            );
            used.secret_key.clone()
        };
        let trouble = || renewed.known.borrow().trouble.clone();

        std::fs::write(&path, "two").expect("written");
        assert_eq!(used(4), "one", "no look is due");
        assert_eq!(reads.load(Ordering::Relaxed), 0);
        assert_eq!(used(5), "two");
        assert_eq!(used(6), "two");
        assert_eq!(reads.load(Ordering::Relaxed), 1);

        std::fs::remove_file(&path).expect("removed");
        assert_eq!(used(10), "two", "the last good ones");
        let said = trouble().expect("it is known");
        assert!(said.contains(&*path.to_string_lossy()), "{said}");
        std::fs::write(&path, "three").expect("written");
        assert_eq!(used(14), "two");
        assert_eq!(used(15), "three");
        assert_eq!(trouble(), None);
    }

    #[test]
    fn keys_are_in_no_debug_text() {
        let read: ReadKeys = Arc::new(|| Ok(keys("hidden")));
        let renewed = RenewedKeys::new(keys("hidden"), read, at(0));
        let mut config = StoreConfig::new("s3://bucket");
        config.secret_access_key = Some("hidden".to_owned());
        let shown = format!("{renewed:?} {:?} {config:?}", keys("hidden"));
        assert!(!shown.contains("hidden"), "{shown}");
    }
}
