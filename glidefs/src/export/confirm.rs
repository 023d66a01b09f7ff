//! Whether what this node believes to own is still its own: asked before it says so to somebody who is about to let a
//! guest run here, or to let its other half.
//!
//! ```text
//! GET root: the last that this log made? -> yes, it is the owner
//!                 | no, or not known to be
//!                 '-> its sync task publishes what is there: it lands, or the export is fenced or vanished
//! ```
//!
//! A root is not judged here beyond that: only the sync task ends an export, in its own order, so that nothing of it is
//! left to note the end of an epoch when a later one has begun.

use world::World;

use super::decide::owns;
use super::site::Site;
use super::{Export, Role};
use crate::device::ConnectError;
use crate::volume::VolumeError;

/// Returns once the role of an export that is `ReadWrite` says what is true: it still is, or was ended. An error where
/// nobody can tell now.
pub(crate) async fn confirm<W: World>(
    site: &Site<W>,
    export: &Export<W>,
) -> Result<(), ConnectError> {
    if export.is_pending_fork() {
        // The store knows nothing of it yet.
        return Ok(());
    }
    let name = export.name();
    let unclear = |why: String| {
        ConnectError::Unavailable(format!(
            "whether `{name}` is still owned here is not known now: {why}"
        ))
    };
    let failed = |error: VolumeError| unclear(error.to_string());
    let bucket = site.shelf.bucket().await.map_err(failed)?;
    let root = Box::pin(bucket.root(name)).await.map_err(failed)?;
    // Behind the answer: whatever was published until then is noted, or durably intended. One that was published right
    // after it may hide it, which costs a publish more.
    let local = export.local_state();
    let is_owner = root.zip(local);
    if is_owner.is_some_and(|(root, local)| owns(&root, &local, site.owner.cache)) {
        return Ok(());
    }
    let failures = export.orders.failures();
    export.orders.carry();
    loop {
        let news = export.orders.news.notified();
        if export.role() != Role::ReadWrite || !export.orders.is_carrying() {
            return Ok(());
        }
        if let Some(why) = export.halted() {
            return Err(unclear(why));
        }
        if export.orders.failures() > failures {
            return Err(unclear(export.orders.last_failure()));
        }
        news.await;
    }
}
