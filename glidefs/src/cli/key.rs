//! `glidefs key`: the passwords of a prefix, by the configuration, with or without a running server.
//!
//! To change a password: `rotate`, roll the new one out node by node, `rotate --finish`. Until then
//! both open the prefix. Running servers hold the prefix key and notice neither. Passwords that `add`
//! added are none of a rotation's business: they stay.

use std::process::ExitCode;

use serde::Serialize;

use super::secret::new_password;
use super::text::table;
use super::{ConfigArgument, Failure, KeyCommand, NewSlot, output, setup};
use crate::config::{Config, Environment, Secret};
use crate::daemon::{self, KeyChanged, KeyWish, SlotView};

const ROTATED: &str = "\
Both passwords open this prefix now; running servers go on. Next:
  1. put the new password into the configuration of every node, and restart the nodes one by one
  2. then, with the new password in this configuration: glidefs key rotate --finish";
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
        KeyCommand::RenewData { name, config, json } => {
            let epoch = daemon::renew_data_key(&load(&config, environment)?, name.clone())?;
            if json {
                output::json(&serde_json::json!({ "name": name, "from_epoch": epoch }));
            } else {
                output::line(format!(
                    "{name} has a new data key: what is written from epoch {epoch} on is sealed under \
                     it, older data stays under the old one."
                ));
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
