//! Preparing an export for a promotion to come: the other end of a live migration. It is announced writable, at the
//! newest published cut, its writes wait, and what was written last is brought into the cache meanwhile.
//!
//! It is not remembered over a restart (`docs/decisions/0021-prepared-exports.md`).

use world::World;

use super::answer::{Answer, conflict, open};
use crate::control::{ExportDocument, PrepareDocument};
use crate::export::Role;
use crate::export::document::of_export;
use crate::export::open::{Purpose, Wish};
use crate::export::registry::Registry;
use crate::export::warm;

/// Returns at once; of a volume that this node owns already nothing has to be prepared, and the store was asked whether
/// it still does.
pub(super) async fn run<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: &PrepareDocument,
) -> Answer<ExportDocument> {
    let wish = Wish {
        purpose: Purpose::Prepare,
        ..Wish::default()
    };
    let (_door, export) = open(registry, name, wish).await?;
    match export.role() {
        Role::Prepared => {
            let bytes = wanted.warm_bytes.unwrap_or(warm::BYTES_DEFAULT);
            warm::start(registry.site(), &export, bytes);
            Ok(of_export(&export))
        }
        Role::ReadWrite => Ok(of_export(&export)),
        _ => Err(conflict(
            &export,
            "cannot be prepared: unpublished writes of it are missing here; look at it, then accept the loss",
        )),
    }
}
