//! What goes wrong and comes right under a server that runs: how it is begun, how it is ended, and what is to be
//! seen at that moment.
//!
//! It ends by itself, from a thread of its own: who waits for the store cannot end it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;

use super::case::Trouble;
use super::play::EXPORT;
use crate::http;
use crate::load::{Moment, now};
use crate::names::{HOST, Names};
use crate::openmetrics::Exposition;
use crate::s3::clock::Clock;
use crate::s3::door::Door;
use crate::s3::identity::Identities;
use crate::s3::keys::Keys;
use crate::s3::weather::Weather;
use crate::s3::{Counts, Faults, S3Server};
use crate::server::{Settings, Store};

/// How long it is watched whether the server asks the store again: longer than any pause between two attempts.
const ASKS_AGAIN_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Until it is said that it has: the store may have had everything a moment after.
const SAID_WAIT_MAX: Duration = Duration::from_secs(1);

/// A trouble, and what makes it. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    trouble: Trouble,
    weather: Arc<Weather>,
    faults: Arc<Faults>,
    clock: Arc<Clock>,
    keys: watch::Sender<Keys>,
    door: watch::Sender<Door>,
    props: Arc<Props>,
}

/// What a trouble needs beside the endpoint.
#[derive(Debug, Default)]
struct Props {
    /// How connections come in while all is well, and while it is not.
    doors: Option<(Door, Door)>,
    names: Option<Names>,
    /// Where the keys are that are renewed.
    keys_dir: Option<PathBuf>,
}

impl Switch {
    /// Prepares the endpoint, and the settings of the servers that are to meet the trouble. All is well at first.
    pub(super) fn new(trouble: Trouble, s3: &S3Server, settings: &mut Settings) -> Result<Self> {
        let mut props = Props::default();
        match trouble {
            Trouble::Requests(_) | Trouble::Outage | Trouble::OtherSecret | Trouble::Clock(_) => {}
            Trouble::Expiry => {
                let folder = settings.cache_dir.with_file_name("keys");
                let first = token("first-token");
                first.write(&folder)?;
                s3.keys.send_replace(first);
                settings.keys_dir = Some(folder.clone());
                props.keys_dir = Some(folder);
            }
            Trouble::Certificate(_) | Trouble::Handshake => {
                let made = Identities::make(&settings.cache_dir.with_file_name("tls"))?;
                let (good, bad) = (made.door(None)?, bad_door(trouble, &made)?);
                s3.door.send_replace(good.clone());
                props.doors = Some((good, bad));
                let trusted = made.authority().display().to_string();
                settings
                    .environment
                    .push(("SSL_CERT_FILE".to_owned(), trusted));
                settings.store = store(format!("https://{}", s3.address));
            }
            Trouble::Name(dns) => {
                let names = Names::make(&settings.cache_dir.with_file_name("names"), dns)?;
                settings.wrapper = names.wrapper();
                // A proxy would look the name up in place of the server.
                for name in ["NO_PROXY", "no_proxy"] {
                    settings.environment.push((name.to_owned(), "*".to_owned()));
                }
                settings.store = store(format!("http://{HOST}:{}", s3.address.port()));
                props.names = Some(names);
            }
        }
        Ok(Self {
            trouble,
            weather: Arc::clone(&s3.weather),
            faults: Arc::clone(&s3.faults),
            clock: Arc::clone(&s3.clock),
            keys: s3.keys.clone(),
            door: s3.door.clone(),
            props: Arc::new(props),
        })
    }

    pub(super) fn begin(&self) -> Result<()> {
        match self.trouble {
            Trouble::Requests(fault) => self.weather.set(Some(fault)),
            Trouble::Outage => self.faults.outage.store(true, Ordering::SeqCst),
            Trouble::Expiry => {
                let now = self.clock.seconds();
                self.keys.send_modify(|keys| keys.expires_at = Some(now));
            }
            Trouble::OtherSecret => {
                let change = |keys: &mut Keys| keys.secret_key = "another-secret-key".to_owned();
                self.keys.send_modify(change);
            }
            Trouble::Clock(ahead_s) => self.clock.set_ahead(ahead_s),
            Trouble::Certificate(_) | Trouble::Handshake => {
                let (_, bad) = self.doors()?;
                self.door.send_replace(bad.clone());
            }
            Trouble::Name(_) => {
                self.names()?.forget()?;
                // The same door: what was connected while the name was known ends.
                self.door.send_modify(|_| {});
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        match self.trouble {
            Trouble::Requests(_) => self.weather.set(None),
            Trouble::Outage => self.faults.outage.store(false, Ordering::SeqCst),
            Trouble::Expiry => {
                let renewed = token("renewed-token");
                self.keys.send_replace(renewed.clone());
                let folder = self.props.keys_dir.as_ref();
                renewed.write(folder.context("a folder of keys")?)?;
            }
            Trouble::OtherSecret => {
                self.keys.send_replace(Keys::default());
            }
            Trouble::Clock(_) => self.clock.set_ahead(0),
            Trouble::Certificate(_) | Trouble::Handshake => {
                let (good, _) = self.doors()?;
                self.door.send_replace(good.clone());
            }
            Trouble::Name(_) => self.names()?.know()?,
        }
        Ok(())
    }

    fn doors(&self) -> Result<&(Door, Door)> {
        self.props.doors.as_ref().context("doors with TLS")
    }

    fn names(&self) -> Result<&Names> {
        self.props.names.as_ref().context("names of its own")
    }
}

fn token(token: &str) -> Keys {
    Keys {
        token: Some(token.to_owned()),
        ..Keys::default()
    }
}

fn bad_door(trouble: Trouble, made: &Identities) -> Result<Door> {
    match trouble {
        Trouble::Certificate(flaw) => made.door(Some(flaw)),
        _ => Ok(Door::Slammed),
    }
}

fn store(endpoint: String) -> Store {
    Store::S3 {
        endpoint,
        prefix: "vms".to_owned(),
    }
}

/// Who looks at a server and its store when a trouble ends.
#[derive(Clone, Debug)]
pub(super) struct Onlooker {
    pub(super) api: SocketAddr,
    pub(super) counts: Arc<Counts>,
}

/// What the server says of itself at one moment.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) dirty_bytes: u64,
    numbers: Exposition,
}

impl Onlooker {
    pub(super) fn look(&self) -> Result<Look> {
        let path = format!("/api/exports/{EXPORT}");
        let document = http::ask(self.api, "GET", &path, None)?;
        let dirty_bytes = match document.status {
            200 => document.json()?["dirty_bytes"].as_u64(),
            // A node that has not heard of the volume has nothing of it.
            404 => Some(0),
            status => bail!("GET {path}: {status} {}", document.body),
        };
        let dirty_bytes = dirty_bytes.context("dirty_bytes")?;
        let numbers = http::ask(self.api, "GET", "/metrics", None)?;
        Ok(Look {
            dirty_bytes,
            numbers: Exposition::parse(&numbers.body)?,
        })
    }
}

impl Look {
    /// Bytes that are in the store, before compression; what was sent twice counts twice.
    pub(super) fn packed_bytes(&self) -> f64 {
        self.numbers.sum("glidefs_export_packed_bytes_total")
    }

    pub(super) fn throttled_writes(&self) -> f64 {
        self.numbers.sum("glidefs_export_throttled_writes_total")
    }

    pub(super) fn throttled_seconds(&self) -> f64 {
        self.numbers.sum("glidefs_export_throttled_seconds_total")
    }

    /// Requests to the store that ended so.
    pub(super) fn requests(&self, outcome: &str) -> f64 {
        self.numbers.sum_of("glidefs_store_requests_total", outcome)
    }
}

/// A trouble that lasts for a while.
#[derive(Debug)]
pub(super) struct Spell {
    pub(super) is_over: Arc<AtomicBool>,
    ended: Receiver<Result<(Moment, Look)>>,
    asked_again: Receiver<Duration>,
}

/// The end of a trouble.
#[derive(Debug)]
pub(super) struct End {
    pub(super) at: Moment,
    /// A moment before.
    pub(super) look: Look,
    /// How long after it the server asked the store again, once it has.
    asked_again: Option<Receiver<Duration>>,
}

impl Spell {
    /// Begins now.
    pub(super) fn begin(switch: Switch, lasts: Duration, onlooker: Onlooker) -> Result<Self> {
        switch.begin()?;
        Ok(Self::ending(switch, lasts, onlooker))
    }

    /// Has begun, and ends after so long.
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends while everybody else waits for it"
    )]
    pub(super) fn ending(switch: Switch, lasts: Duration, onlooker: Onlooker) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (say_end, ended) = sync_channel(1);
        let (say_asked, asked_again) = sync_channel(1);
        let over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            std::thread::sleep(lasts);
            // It ends whatever was seen, or everybody would wait for the store for ever.
            let seen = onlooker.look();
            let before = onlooker.counts.requests();
            let done = switch.end();
            let at = now();
            let end = done.and(seen).map(|look| (at, look));
            say_end.send(end).ok();
            over.store(true, Ordering::SeqCst);
            watch_store(&onlooker.counts, before, at, &say_asked);
        });
        Self {
            is_over,
            ended,
            asked_again,
        }
    }

    /// Waits for it.
    pub(super) fn end(self) -> Result<End> {
        let (at, look) = self.ended.recv().context("the fault was never ended")??;
        Ok(End {
            at,
            look,
            asked_again: Some(self.asked_again),
        })
    }
}

/// Says when the store is asked again.
#[expect(
    clippy::disallowed_methods,
    reason = "the server asks in real time, and tells nobody"
)]
fn watch_store(counts: &Counts, before: u64, since: Moment, asked: &SyncSender<Duration>) {
    while since.elapsed() < ASKS_AGAIN_MAX {
        if counts.requests() > before {
            asked.send(since.elapsed()).ok();
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

impl End {
    /// A trouble that was ended by the one who says so: nobody watches.
    pub(super) fn now(look: Look) -> Self {
        Self {
            at: now(),
            look,
            asked_again: None,
        }
    }

    /// None: that is not known, or it never did.
    pub(super) fn asked_again(&self) -> Option<Duration> {
        let said = self.asked_again.as_ref()?;
        said.recv_timeout(SAID_WAIT_MAX).ok()
    }
}
