//! `glidefs key`: the passwords of a prefix, by the configuration, with or without a running server.
//!
//! To change a password: `rotate`, roll the new one out node by node, `rotate --finish`. Until then
//! both open the prefix. Running servers hold the prefix key and notice neither.

use std::process::ExitCode;

use serde::Serialize;

use super::secret::new_password;
use super::text::table;
use super::{ConfigArgument, Failure, KeyCommand, NewSlot, output, setup};
use crate::config::{Config, Environment};
use crate::daemon::{self, KeyChanged, KeyWish, SlotView};

const ROTATED: &str = "\
Both passwords open this prefix now; running servers go on. Next:
  1. put the new password into the configuration of every node, and restart the nodes one by one
  2. then, with the new password in this configuration: glidefs key rotate --finish";

#[derive(Debug, Serialize)]
struct Document {
    encrypted: bool,
    added: Option<String>,
    removed: Vec<String>,
    /// False: the keyring that was replaced could not be noted as such.
    old_keyring_noted: bool,
    slots: Vec<SlotDocument>,
}

#[derive(Debug, Serialize)]
struct SlotDocument {
    id: String,
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
        KeyCommand::Add(new) => add(&new, environment, ""),
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
        KeyCommand::Rotate { new, finish: false } => add(&new, environment, ROTATED),
        KeyCommand::Rotate { new, finish: true } => {
            let config = load(&new.config, environment)?;
            let changed = daemon::keys(&config, Some(KeyWish::KeepNewest))?;
            show(
                &changed,
                new.json,
                "The password of this configuration is the only one now.",
            )
        }
    }
}

fn load(argument: &ConfigArgument, environment: &Environment) -> Result<Config, Failure> {
    setup::load(argument.config.as_deref(), environment)
}

fn add(new: &NewSlot, environment: &Environment, next: &str) -> Result<ExitCode, Failure> {
    let config = load(&new.config, environment)?;
    let password = new_password(new.new_password_file.as_deref(), environment)?;
    let changed = daemon::keys(&config, Some(KeyWish::Add { password }))?;
    show(&changed, new.json, next)
}

fn show(changed: &KeyChanged, as_json: bool, next: &str) -> Result<ExitCode, Failure> {
    if !changed.is_guarded {
        output::notice(
            "The keys are changed, but the store failed before the old keyring was noted as replaced: \
             should somebody put it back, nothing will notice. Any later change of keys is noted again.",
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
            [slot.id.to_string(), added, in_use.to_owned()]
        })
        .collect();
    table(["SLOT", "ADDED", "OPENED"], &rows)
}

fn document(changed: &KeyChanged) -> Document {
    let slot_document = |slot: &SlotView| SlotDocument {
        id: slot.id.to_string(),
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
