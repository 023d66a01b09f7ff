//! The end of a shard that was stopped on purpose: what no client holds and the store has wholly is
//! given up, so that any other node may open it.
//!
//! The sync task of each export does it, in its own order ([`crate::sync`]): it looks once more that
//! nobody is connected and nothing is dirty, ends the right to write, and then detaches. A store that
//! asks to be left alone is, for a part of the time that there is. What does not get through stays
//! owned, as after a kill, and the next start of this cache goes on with it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use blockcache::LocalVolume;
use world::{Instant, World};

use crate::export::registry::Registry;
use crate::export::{Export, Role};
use crate::race::{join_all, race};
use crate::sync::ENDING_ASKED_MAX;

/// Detaches on their way to the store at a time; the next begins when one has ended.
const DETACHES_MAX: usize = 64;
/// Once no detach has got through for so long, those that are left stay owned.
const DETACH_WAIT_MAX: Duration = Duration::from_secs(10);
// A store that asks to be left alone is asked once more within it.
const _: () = assert!(ENDING_ASKED_MAX.as_secs() * 2 <= DETACH_WAIT_MAX.as_secs());

/// Gives up every export that may go. Returns when each has gone or has had its time: the names of
/// those whose detach is on its way, with an outcome that is not known.
pub(super) async fn leave_all<W: World>(registry: &Registry<W>) -> Vec<String> {
    let exports = registry.exports();
    let world = &registry.site().world;
    let next = Cell::new(0);
    // Each success gives the others their time anew: ten thousand exports take longer than ten.
    let give_up_at = Cell::new(world.now() + DETACH_WAIT_MAX);
    let worker = || async {
        while let Some(export) = exports.get(next.replace(next.get() + 1)) {
            if leave(world, export, &give_up_at).await == Role::Closed {
                give_up_at.set(world.now() + DETACH_WAIT_MAX);
            }
        }
    };
    let workers = DETACHES_MAX.min(exports.len());
    join_all((0..workers).map(|_| worker()).collect()).await;
    let unclear = exports.iter().filter(|e| e.role() == Role::Leaving);
    unclear.map(|export| export.name().to_owned()).collect()
}

/// Waits until the export has left, cannot leave, or the time is up: the role that it has then.
async fn leave<W: World>(world: &W, export: &Rc<Export<W>>, give_up_at: &Cell<Instant>) -> Role {
    export.orders.leave();
    loop {
        let news = export.orders.news.notified();
        let role = export.role();
        let is_held = export.is_used() || export.halted().is_some();
        if !matches!(role, Role::ReadWrite | Role::Leaving) || is_held {
            return role;
        }
        let until = give_up_at.get();
        if world.now() >= until {
            return role;
        }
        race(news, world.sleep_until(until)).await;
    }
}

/// Volumes that no other node can open without force: those that the log holds the epoch of, and
/// those whose detach may not have got through. Sorted.
pub(super) fn owned(volumes: Vec<LocalVolume>, mut unclear: Vec<String>) -> Vec<String> {
    // The log notes the end of the epoch before the store hears of it: while an intent is open, the
    // root may still name this node.
    let held = volumes
        .into_iter()
        .filter(|local| local.attached || !local.intents.is_empty());
    unclear.extend(held.map(|local| local.name));
    unclear.sort();
    unclear.dedup();
    unclear
}
