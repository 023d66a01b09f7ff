//! `glidefs key`: the passwords of a prefix, by the configuration, with or without a running server.
//!
//! To change a password: `rotate`, roll the new one out node by node, `rotate --finish`. Until then
//! both open the prefix. Running servers hold the prefix key and notice neither. Passwords that `add`
//! added are none of a rotation's business: they stay.
//!
//! A data key of an export that is open is its owner's to change: then the server of the configuration is asked.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;

use super::client::{Client, block_on, export_path, within};
use super::secret::new_password;
use super::text::table;
use super::{ConfigArgument, Failure, KeyCommand, NewSlot, Remote, output, setup};
use crate::config::{Config, Environment, Secret};
use crate::control::{DataKeyDocument, RenewDataDocument};
use crate::daemon::{self, KeyChanged, KeyWish, Renewed, SlotView};

const ROTATED: &str = "\
Both passwords open this prefix now; running servers go on. Next:
  1. put the new password into the configuration of every node, and restart the nodes one by one
  2. then, with the new password in this configuration: glidefs key rotate --finish";
const ACCEPTED: &str = "\
This keyring is the newest now. Passwords that were removed since it was made open the prefix again:
change them with `glidefs key rotate`, and remove their slots.";
/// Between two words to whoever waits for a server.
const WORD_EVERY: Duration = Duration::from_secs(2);
/// Digits of a slot's id where another column has the whole of it.
const SLOT_ID_SHOWN: usize = 16;

#[derive(Debug, Serialize)]
struct Document {
    encrypted: bool,
    added: Option<String>,
    removed: Vec<String>,
    /// False: the keyring that this one replaced could not be noted as such.
    old_keyring_noted: bool,
    /// Afterwards: what stays.
    slots: Vec<SlotDocument>,
}

#[derive(Debug, Serialize)]
struct SlotDocument {
    id: String,
    /// The same for slots that rotations replace one by another: of these `rotate --finish` leaves the newest.
    line: String,
    /// None: the id does not tell.
    added_unix_ms: Option<u64>,
    in_use: bool,
    argon2id_memory_kib: u32,
    argon2id_passes: u32,
    argon2id_lanes: u32,
}

pub(super) fn run(command: KeyCommand, environment: &Environment) -> Result<ExitCode, Failure> {
    match command {
        KeyCommand::List { config, json } => {
            let found = daemon::keys(&load(&config, environment)?, None)?;
            show(&found, json, "")
        }
        KeyCommand::Add(new) => {
            let wish = |password| KeyWish::Add { password };
            with_password(&new, environment, wish, "")
        }
        KeyCommand::Remove {
            slot,
            config,
            in_use,
            json,
        } => {
            let wish = KeyWish::Remove { slot, in_use };
            let changed = daemon::keys(&load(&config, environment)?, Some(wish))?;
            show(
                &changed,
                json,
                "Running servers go on; a start with that password is refused.",
            )
        }
        KeyCommand::AcceptOlder { id, config, json } => {
            let wish = KeyWish::AcceptOlder { version: id };
            let changed = daemon::keys(&load(&config, environment)?, Some(wish))?;
            // No slot is another one by it, and it is not for nothing all the same.
            let was_change = false;
            let accepted = KeyChanged {
                was_change,
                ..changed
            };
            show(&accepted, json, ACCEPTED)
        }
        KeyCommand::RenewData {
            name,
            config,
            request_id,
            json,
        } => {
            let config = load(&config, environment)?;
            let key = renew_data(&config, &name, request_id)?;
            if json {
                output::json(&key);
            } else {
                output::line(data_key_text(&key));
            }
            Ok(ExitCode::SUCCESS)
        }
        KeyCommand::Rotate { new, finish: false } => {
            let wish = |password| KeyWish::Rotate { password };
            with_password(&new, environment, wish, ROTATED)
        }
        KeyCommand::Rotate { new, finish: true } => {
            let config = load(&new.config, environment)?;
            let changed = daemon::keys(&config, Some(KeyWish::Finish))?;
            show(&changed, new.json, &finished_text(&changed))
        }
    }
}

/// Nobody who has the export open is asked to give it up: its owner does it then.
fn renew_data(
    config: &Config,
    name: &str,
    request_id: Option<String>,
) -> Result<DataKeyDocument, Failure> {
    match daemon::renew_data_key(config, name.to_owned(), request_id.as_deref())? {
        Renewed::Done(key) => Ok(key),
        Renewed::Open { volume, why } => {
            let wanted = RenewDataDocument { request_id, volume };
            ask_owner(config, name, &wanted, &why)
        }
    }
}

/// Asks the server of this configuration, which is the owner or says who is.
fn ask_owner(
    config: &Config,
    name: &str,
    wanted: &RenewDataDocument,
    why: &str,
) -> Result<DataKeyDocument, Failure> {
    let remote = remote(config);
    let client = Client::new(&remote)?;
    let path = export_path(name, "/renew-data");
    let body = serde_json::to_string(wanted).expect("our documents are JSON");
    let asking = async {
        let mut answer = pin!(client.change::<DataKeyDocument>(Method::POST, &path, body));
        loop {
            if let Some(said) = within(WORD_EVERY, answer.as_mut()).await {
                return said;
            }
            output::notice("Still waiting for the next publish …");
        }
    };
    let said = block_on(asking).map_err(|failure| {
        Failure::refused(format!(
            "{why}. While it is open, the server that has it gives it the new data key: run this on that node, with its \
             configuration ({})",
            failure.message
        ))
    })?;
    said.or_refused()
}

/// The API of a server that runs with this configuration on this machine.
fn remote(config: &Config) -> Remote {
    let mut address = config.api.address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let token = config.api.token.as_ref();
    Remote {
        api: format!("http://{address}"),
        token: token.map(|token| token.reveal().to_owned()),
    }
}

fn data_key_text(key: &DataKeyDocument) -> String {
    let DataKeyDocument {
        name,
        id,
        from_epoch,
        keys,
        left,
    } = key;
    format!(
        "{name} has a new data key, {id}: what is uploaded from now on (epoch {from_epoch}) is sealed under it, older \
         data stays under the old ones. It has {keys}, and can be given {left} more."
    )
}

fn load(argument: &ConfigArgument, environment: &Environment) -> Result<Config, Failure> {
    setup::load(argument.config.as_deref(), environment)
}

fn with_password(
    new: &NewSlot,
    environment: &Environment,
    wish: impl FnOnce(Secret) -> KeyWish,
    next: &str,
) -> Result<ExitCode, Failure> {
    let config = load(&new.config, environment)?;
    let password = new_password(new.new_password_file.as_deref(), environment)?;
    let changed = daemon::keys(&config, Some(wish(password)))?;
    show(&changed, new.json, next)
}

/// What stays, so that nobody takes the rotation for the end of all other passwords.
fn finished_text(changed: &KeyChanged) -> String {
    let others = changed.slots.iter().map(|slot| slot.id);
    let others = others.filter(|id| Some(*id) != changed.in_use).count();
    if others == 0 {
        return "The password of this configuration is the only one now.".to_owned();
    }
    format!(
        "Other passwords open this prefix too, and are none of this rotation's: {others}, as shown. To \
         remove one: glidefs key remove SLOT"
    )
}

fn show(changed: &KeyChanged, as_json: bool, next: &str) -> Result<ExitCode, Failure> {
    if !changed.is_guarded {
        output::notice(
            "The keys are as shown, but the store failed when the keyring before them was to be noted as \
             replaced: should somebody put that one back now, nothing would notice. The next start of a \
             server or `glidefs key` notes it.",
        );
    }
    if as_json {
        output::json(&document(changed));
        return Ok(ExitCode::SUCCESS);
    }
    for slot in &changed.removed {
        output::line(format!("Removed slot {}.", slot.id));
    }
    if let Some(slot) = &changed.added {
        output::line(format!("Added slot {}.", slot.id));
    }
    output::line(slots_text(changed));
    if changed.was_change && changed.added.is_none() && changed.removed.is_empty() {
        output::line("Nothing had to be changed.");
    }
    if !next.is_empty() {
        output::line(next);
    }
    Ok(ExitCode::SUCCESS)
}

fn slots_text(changed: &KeyChanged) -> String {
    if changed.slots.is_empty() {
        return "This prefix is not encrypted: it has no slots, and cannot get any.".to_owned();
    }
    let rows: Vec<_> = changed
        .slots
        .iter()
        .map(|slot| {
            let in_use = if changed.in_use == Some(slot.id) {
                "by this configuration"
            } else {
                ""
            };
            let added = slot.date().unwrap_or_else(|| "unknown".to_owned());
            let id = slot.id.to_string();
            [id, added, in_use.to_owned(), replaced_by(changed, slot)]
        })
        .collect();
    table(["SLOT", "ADDED", "OPENED", "TO BE REPLACED BY"], &rows)
}

/// The beginning of the id of the slot for which `rotate --finish` will remove this one; empty: for none.
fn replaced_by(changed: &KeyChanged, slot: &SlotView) -> String {
    let of_line = |other: &&SlotView| other.line == slot.line;
    let newest = changed.slots.iter().rfind(of_line);
    let newest = newest.filter(|newest| newest.id != slot.id);
    let id = newest.map(|newest| newest.id.to_string());
    id.unwrap_or_default().chars().take(SLOT_ID_SHOWN).collect()
}

fn document(changed: &KeyChanged) -> Document {
    let slot_document = |slot: &SlotView| SlotDocument {
        id: slot.id.to_string(),
        line: slot.line.to_string(),
        added_unix_ms: slot.added.map(|added| added.0),
        in_use: changed.in_use == Some(slot.id),
        argon2id_memory_kib: slot.memory_kib,
        argon2id_passes: slot.passes,
        argon2id_lanes: slot.lanes,
    };
    Document {
        encrypted: !changed.slots.is_empty(),
        added: changed.added.map(|slot| slot.id.to_string()),
        removed: changed
            .removed
            .iter()
            .map(|slot| slot.id.to_string())
            .collect(),
        old_keyring_noted: changed.is_guarded,
        slots: changed.slots.iter().map(slot_document).collect(),
    }
}
