//! A read-only export, of a snapshot or of a volume that another node owns, also one that is prepared: as long as somebody is connected, or may
//! be about to connect, its owner keeps what the export reads (`volume/reading.rs`). Those of a group are read at one
//! moment, so they are closed together, once nobody uses any of them.

use std::rc::Rc;
use std::time::Duration;

use world::World;

use super::site::Site;
use super::{Export, Role};
use crate::race::{First, any, race};
use crate::volume::{Members, RENEW_AFTER, ReadPin, Volume, VolumeError};

/// From the open, or from the end of the last connection, until the export is closed.
const UNUSED_MAX: Duration = Duration::from_secs(60);
/// The same of one that is prepared: a guest's other half takes a while to start, or never comes.
const PREPARED_MAX: Duration = Duration::from_secs(600);

/// What is read.
#[derive(Debug)]
pub(super) enum Reading<W: World> {
    Volumes(Members<W>),
    /// A snapshot, of which a member of a group has its own.
    Snapshot(Volume<W>),
}

impl<W: World> Reading<W> {
    async fn renew(&self, pin: &mut ReadPin<W>, host: &str) -> Result<(), VolumeError> {
        match self {
            Self::Volumes(members) => Box::pin(members.renew_read_pin(pin, host)).await,
            Self::Snapshot(volume) => Box::pin(volume.renew_read_pin(pin, host)).await,
        }
    }
}

/// Closes the exports, and lets their pin go, once nobody uses them.
pub(super) fn watch<W: World>(
    site: &Site<W>,
    exports: &[Rc<Export<W>>],
    reading: Reading<W>,
    mut pin: ReadPin<W>,
) {
    let (exports, world) = (exports.to_vec(), site.world.clone());
    let (task, host) = (world.clone(), site.owner.host.clone());
    task.spawn(async move {
        let names: Vec<&str> = exports.iter().map(|it| it.name()).collect();
        let names = names.join(", ");
        let mut renew_at = world.now() + RENEW_AFTER;
        let is_prepared = exports.iter().any(|it| it.role() == Role::Prepared);
        let unused_max = match is_prepared {
            true => PREPARED_MAX,
            false => UNUSED_MAX,
        };
        let is_any_used = || exports.iter().any(|it| it.clients.count() > 0);
        loop {
            let is_used = is_any_used();
            // Clients that come and go do not put it off.
            let wake_at = if is_used {
                renew_at
            } else {
                world.now() + unused_max
            };
            let news = exports.iter().map(|it| it.orders.news.notified());
            let news = any(news.collect());
            if exports.iter().any(|it| it.role() == Role::Closed) {
                break;
            }
            if let First::Left(()) = race(news, world.sleep_until(wake_at)).await {
                continue;
            }
            if is_used {
                renew_at = world.now() + RENEW_AFTER;
                let renewed = Box::pin(reading.renew(&mut pin, &host)).await;
                if let Err(error) = renewed {
                    tracing::warn!(export = %names, %error, "the pin of a reader is not renewed; tried again tomorrow, and it holds for a week");
                }
            } else if !is_any_used() {
                break;
            }
        }
        for export in &exports {
            export.end(Role::Closed);
        }
        if let Err(error) = pin.release().await {
            tracing::info!(export = %names, %error, "the pin of a reader stays for a week");
        }
    });
}
