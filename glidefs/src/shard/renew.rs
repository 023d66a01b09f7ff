//! A new data key for a volume, as an operator asks for it: its owner publishes it, whoever is connected.

use blockcache::Id;
use world::World;

use super::answer::{Answer, conflict, ids_of_request, unavailable, volume_failure, wait_for};
use super::snapshots::{given_up, writable};
use crate::control::{ControlError, DataKeyDocument, RenewDataDocument};
use crate::export::document::of_export;
use crate::export::registry::Registry;
use crate::volume::{DataKeyView, Renewal, VolumeError};

/// Returns once the root in the store lists the key. What is sealed from there on is sealed under it.
pub(super) async fn run<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: RenewDataDocument,
) -> Answer<DataKeyDocument> {
    let request = match &wanted.request_id {
        Some(request) => request_of(name, request)?,
        None => Id(registry.site().world.random_id()),
    };
    let export = writable(registry, name, "give it a new data key while it is open").await?;
    let is_other = |volume: &String| of_export(&export).volume != *volume;
    if wanted.volume.as_ref().is_some_and(is_other) {
        let text = "is another volume than the one that is asked for: somebody deleted that one, or this \
                    server has another store";
        return Err(conflict(&export, text));
    }
    let volume = export.frames().volume().ok_or_else(given_up)?;
    let failed = |error: VolumeError| volume_failure(&error);
    let key = match volume.new_data_key(request).map_err(failed)? {
        Renewal::Done(there) => return Ok(document(name, there)),
        Renewal::New(key) => key,
    };
    let failures = export.orders.failures();
    if !export.orders.renew(key.clone()) {
        return Err(unavailable(format!(
            "`{name}` is given a new data key just now, as another request has asked for; ask again if it must have \
             one more"
        )));
    }
    if let Err(why) = wait_for(&export, failures, || !export.orders.renews(&key)).await {
        // Nobody waits for it any more. A publish on its way may carry it all the same, so the answer is "unknown".
        export.orders.renewed(&key);
        return Err(unavailable(format!(
            "the new data key may not be in the store: {why}; ask again with the same `request_id`"
        )));
    }
    // Also why not: the list of keys may be full by now.
    match volume.new_data_key(request).map_err(failed)? {
        Renewal::Done(there) => {
            tracing::info!(export = name, key = %there.id, "has a new data key, as was asked for");
            Ok(document(name, there))
        }
        Renewal::New(_) => Err(given_up()),
    }
}

/// From which the key's id follows, so that the same request finds it.
pub(crate) fn request_of(name: &str, request: &str) -> Result<Id, ControlError> {
    let [id, _] = ids_of_request(&["renew-data", name], request)?;
    Ok(id)
}

pub(crate) fn document(name: &str, key: DataKeyView) -> DataKeyDocument {
    DataKeyDocument {
        name: name.to_owned(),
        id: key.id.to_string(),
        from_epoch: key.from_epoch.0,
        keys: key.keys,
        left: key.left,
    }
}
