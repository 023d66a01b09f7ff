//! A read-only export, of a snapshot or of a volume that another node owns, also one that is prepared: as long as somebody is connected, or may
//! be about to connect, its owner keeps what the export reads (`volume/reading.rs`).

use std::rc::Rc;
use std::time::Duration;

use world::World;

use super::site::Site;
use super::{Export, Role};
use crate::race::{First, race};
use crate::volume::{RENEW_AFTER, ReadPin, Volume};

/// From the open, or from the end of the last connection, until the export is closed.
const UNUSED_MAX: Duration = Duration::from_secs(60);
/// The same of one that is prepared: a guest's other half takes a while to start, or never comes.
const PREPARED_MAX: Duration = Duration::from_secs(600);

/// Closes the export, and lets its pin go, once nobody uses it.
pub(super) fn watch<W: World>(
    site: &Site<W>,
    export: &Rc<Export<W>>,
    volume: Volume<W>,
    mut pin: ReadPin<W>,
) {
    let (export, world) = (Rc::clone(export), site.world.clone());
    let (task, host) = (world.clone(), site.owner.host.clone());
    task.spawn(async move {
        let mut renew_at = world.now() + RENEW_AFTER;
        let unused_max = match export.role() {
            Role::Prepared => PREPARED_MAX,
            _ => UNUSED_MAX,
        };
        loop {
            let is_used = export.clients.count() > 0;
            // Clients that come and go do not put it off.
            let wake_at = if is_used {
                renew_at
            } else {
                world.now() + unused_max
            };
            let news = export.orders.news.notified();
            if export.role() == Role::Closed {
                break;
            }
            if let First::Left(()) = race(news, world.sleep_until(wake_at)).await {
                continue;
            }
            if is_used {
                renew_at = world.now() + RENEW_AFTER;
                let renewed = Box::pin(volume.renew_read_pin(&mut pin, &host)).await;
                if let Err(error) = renewed {
                    tracing::warn!(export = %export.name(), %error, "the pin of a reader is not renewed; tried again tomorrow, and it holds for a week");
                }
            } else if export.clients.count() == 0 {
                break;
            }
        }
        export.end(Role::Closed);
        if let Err(error) = pin.release().await {
            tracing::info!(export = %export.name(), %error, "the pin of a reader stays for a week");
        }
    });
}
