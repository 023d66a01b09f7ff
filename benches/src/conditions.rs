//! Where and when figures were measured: without that they mean nothing.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::process;

/// The machine, what was asked of it, and what else it did.
#[derive(Debug, Serialize)]
pub struct Conditions {
    machine: String,
    conditions: String,
    load_before: String,
    load_after: String,
}

impl Conditions {
    /// Of a measurement that begins now.
    pub fn begin(conditions: impl Into<String>) -> Result<Self> {
        Ok(Self {
            machine: process::machine()?,
            conditions: conditions.into(),
            load_before: process::load_average()?,
            load_after: String::new(),
        })
    }

    /// It is over.
    pub fn end(&mut self) -> Result<()> {
        self.load_after = process::load_average()?;
        Ok(())
    }
}

impl fmt::Display for Conditions {
    /// The head of a report, as Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (&self.load_before, &self.load_after);
        writeln!(f, "Machine: {}.", self.machine)?;
        writeln!(f, "Conditions: {}.", self.conditions)?;
        writeln!(f, "Load average: {before} before, {after} after.")
    }
}
