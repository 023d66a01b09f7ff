//! A TOML text that is asked for its keys, and afterwards says which keys nobody asked for.
//!
//! The keys that exist are exactly those that the reader asks for, so that the list of known keys,
//! the defaults and the suggestions cannot drift apart.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::environment::Environment;
use super::error::{ConfigError, Problem};
use super::expand::expand;
use super::secret::Secret;

/// Below this likeness (0 to 1) a suggestion confuses more than it helps.
const LIKENESS_MIN: f64 = 0.6;

/// The text, what was asked of it, and what was wrong.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a str,
    text: &'a str,
    environment: &'a Environment,
    table: DeTable<'a>,
    asked: BTreeSet<&'static str>,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

/// A secret, and the file that it was read from, if it was.
#[derive(Debug)]
pub(super) struct FoundSecret {
    pub(super) secret: Secret,
    pub(super) file: Option<PathBuf>,
}

impl<'a> Source<'a> {
    pub(super) fn parse(
        file: &'a str,
        text: &'a str,
        environment: &'a Environment,
    ) -> Result<Self, ConfigError> {
        let mut source = Self {
            file,
            text,
            environment,
            table: DeTable::new(),
            asked: BTreeSet::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        };
        match DeTable::parse(text) {
            Ok(table) => {
                source.table = table.into_inner();
                Ok(source)
            }
            Err(error) => {
                // Not the error's own text: it quotes the line, which may hold a password.
                source.report(
                    error.span(),
                    "",
                    format!("not TOML: {}", error.message().replace('\n', ", ")),
                    "correct this line",
                );
                Err(ConfigError {
                    problems: source.problems,
                })
            }
        }
    }

    /// A string with its variables filled in.
    pub(super) fn string(&mut self, key: &'static str) -> Option<String> {
        let environment = self.environment;
        let value = self.value(key)?;
        let span = value.span();
        let expanded = value
            .get_ref()
            .as_str()
            .map(|text| expand(text, environment));
        match expanded {
            Some(Ok(text)) => Some(text),
            Some(Err(error)) => {
                self.report(Some(span), key, error.wrong, error.remedy);
                None
            }
            None => {
                self.mistyped(key, span, "text", "write it in double quotes");
                None
            }
        }
    }

    /// A string that nobody may see; an empty one is a mistake.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<Secret> {
        let text = self.string(key)?;
        if text.is_empty() {
            self.problem(
                key,
                "is empty",
                "remove the key, or give it a value, best as \"${VARIABLE}\"",
            );
            return None;
        }
        Some(Secret::new(text))
    }

    /// A secret in the text, or in a file that the text names under `file_key`; never both.
    pub(super) fn secret_or_file(
        &mut self,
        key: &'static str,
        file_key: &'static str,
    ) -> Option<Secret> {
        Some(self.found_secret(key, file_key)?.secret)
    }

    /// The same, with the file.
    pub(super) fn found_secret(
        &mut self,
        key: &'static str,
        file_key: &'static str,
    ) -> Option<FoundSecret> {
        let found = self.secret_in_file(file_key);
        if self.has(key) && self.has(file_key) {
            let remedy = "keep the one that is meant";
            self.problem(file_key, format!("stands beside `{key}`"), remedy);
        }
        if self.has(file_key) {
            // Asked for, so that it is known.
            let _ignored = self.value(key);
            return found;
        }
        let secret = self.secret(key)?;
        Some(FoundSecret { secret, file: None })
    }

    /// A secret in a file that the text names.
    pub(super) fn secret_in_file(&mut self, file_key: &'static str) -> Option<FoundSecret> {
        let path = self.string(file_key)?;
        match self.environment.secret_file(Path::new(&path)) {
            Ok(file) => {
                if file.is_public {
                    self.notes.push(format!(
                        "`{file_key}`: every user of this machine can read {path}; take that right \
                         away, as in chmod 600"
                    ));
                }
                Some(FoundSecret {
                    secret: file.secret,
                    file: Some(PathBuf::from(path)),
                })
            }
            Err((wrong, remedy)) => {
                self.problem(file_key, wrong, remedy);
                None
            }
        }
    }

    /// What works but deserves a thought.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let span = value.span();
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.mistyped(key, span, "true or false", "write it without quotes");
        }
        found
    }

    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let span = value.span();
        let number = value.get_ref().as_integer().map(|digits| {
            // Beyond 64 bits it is out of range, whatever the range is.
            i128::from_str_radix(digits.as_str(), digits.radix()).unwrap_or(i128::MAX)
        });
        let Some(number) = number else {
            self.mistyped(key, span, "a whole number", "write digits without quotes");
            return None;
        };
        let found = u64::try_from(number).ok().filter(|n| range.contains(n));
        if found.is_none() {
            self.out_of_range(key, range.start(), range.end());
        }
        found
    }

    /// A number that may have a fraction; whole ones need no `.0`.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.value(key)?;
        let span = value.span();
        let number = match value.get_ref() {
            DeValue::Float(digits) => digits.as_str().parse::<f64>().ok(),
            DeValue::Integer(digits) if digits.radix() == 10 => digits.as_str().parse::<f64>().ok(),
            _ => None,
        };
        let Some(number) = number else {
            self.mistyped(key, span, "a number", "write digits without quotes");
            return None;
        };
        // Not a number is in no range.
        if !range.contains(&number) {
            self.out_of_range(key, range.start(), range.end());
            return None;
        }
        Some(number)
    }

    /// Notes that a key's value is wrong (or that it is missing).
    pub(super) fn problem(
        &mut self,
        key: &str,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let span = self.lookup(key).map(Spanned::span);
        self.report(span, key, wrong.into(), remedy);
    }

    /// Whether the key is in the text.
    pub(super) fn has(&self, key: &str) -> bool {
        self.lookup(key).is_some()
    }

    /// Every key that was asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> Vec<&'static str> {
        self.asked.iter().copied().collect()
    }

    /// All problems, with the keys that nobody asked for among them; none means that all is well.
    pub(super) fn finish(mut self) -> Result<(), ConfigError> {
        let mut unknown = Vec::new();
        collect_unknown(&self.table, "", &self.asked, &mut unknown);
        for (key, span) in unknown {
            let remedy = self.suggestion(&key);
            self.report(Some(span), &key, "unknown key".into(), remedy);
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        self.problems
            .sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        Err(ConfigError {
            problems: self.problems,
        })
    }

    fn value(&mut self, key: &'static str) -> Option<&Spanned<DeValue<'a>>> {
        self.asked.insert(key);
        self.lookup(key)
    }

    fn lookup(&self, key: &str) -> Option<&Spanned<DeValue<'a>>> {
        let mut parts = key.split('.');
        let mut value = self.table.get(parts.next()?)?;
        for part in parts {
            value = value.get_ref().as_table()?.get(part)?;
        }
        Some(value)
    }

    fn mistyped(&mut self, key: &str, span: Range<usize>, wanted: &str, remedy: &str) {
        self.report(Some(span), key, format!("must be {wanted}"), remedy);
    }

    fn out_of_range(
        &mut self,
        key: &str,
        least: &impl std::fmt::Display,
        most: &impl std::fmt::Display,
    ) {
        self.problem(
            key,
            "is out of range",
            format!("give a value from {least} to {most}"),
        );
    }

    fn report(
        &mut self,
        span: Option<Range<usize>>,
        key: &str,
        wrong: String,
        remedy: impl Into<String>,
    ) {
        let line = span.and_then(|span| {
            let before = self.text.as_bytes().get(..span.start)?;
            Some(1 + before.iter().filter(|byte| **byte == b'\n').count())
        });
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            wrong,
            remedy: remedy.into(),
        });
    }

    fn suggestion(&self, key: &str) -> String {
        let sections = self
            .asked
            .iter()
            .flat_map(|known| known.match_indices('.').map(|(end, _)| &known[..end]));
        let best = self
            .asked
            .iter()
            .copied()
            .chain(sections)
            .map(|known| (likeness(key, known), known))
            .max_by(|(left, _), (right, _)| left.total_cmp(right));
        match best {
            Some((score, known)) if score >= LIKENESS_MIN => format!("did you mean `{known}`?"),
            _ => "remove it; `glidefs init` writes a file with every key explained".into(),
        }
    }
}

/// How alike two dotted keys are: the right word in the wrong section counts almost fully.
fn likeness(key: &str, known: &str) -> f64 {
    let split = |key: &'_ str| -> (String, String) {
        let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
        (section.to_owned(), last.to_owned())
    };
    let ((section, last), (known_section, known_last)) = (split(key), split(known));
    if last == known_last {
        return 0.95;
    }
    let whole = strsim::normalized_damerau_levenshtein(key, known) * 0.9;
    if section == known_section {
        return whole.max(strsim::normalized_damerau_levenshtein(&last, &known_last));
    }
    whole
}

fn collect_unknown(
    table: &DeTable<'_>,
    path: &str,
    asked: &BTreeSet<&'static str>,
    unknown: &mut Vec<(String, Range<usize>)>,
) {
    for (name, value) in table {
        let key = if path.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{path}.{}", name.get_ref())
        };
        if asked.contains(key.as_str()) {
            continue;
        }
        let section = format!("{key}.");
        let is_section = asked.iter().any(|known| known.starts_with(&section));
        match value.get_ref().as_table() {
            Some(inner) if is_section => collect_unknown(inner, &key, asked, unknown),
            _ => unknown.push((key, name.span())),
        }
    }
}
