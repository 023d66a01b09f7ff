//! `glidefs top`: what the exports of a running server do now. `model` decides what is shown, `view`
//! draws it; here are the terminal, the clock and the server.
//!
//! A server that does not answer is said so on the screen and asked again; the numbers stay.

mod model;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::client::{Client, block_on};
use super::{Failure, Remote, output};
use crate::control::MetersDocument;
use model::{Choice, Key, Then, View};

const METERS: &str = "/api/metrics";
/// Between two looks, at the least and at the most.
const EVERY_MIN_MS: u64 = 100;
const EVERY_MAX_MS: u64 = 3_600_000;
/// No key is heard while the server is asked, so it is not asked for longer.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(2);

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Live,
    Table,
    Json,
}

pub(super) fn run(remote: &Remote, every_ms: u64, shown: Shown) -> Result<ExitCode, Failure> {
    let client = Client::new(remote)?;
    let every = Duration::from_millis(every_ms.clamp(EVERY_MIN_MS, EVERY_MAX_MS));
    match shown {
        Shown::Live => live(&client, every)?,
        Shown::Table => output::line(table(&once(&client, every)?)),
        Shown::Json => output::json(&once(&client, every)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn look(client: &Client<'_>) -> Result<MetersDocument, Failure> {
    block_on(async {
        client
            .look_within(LOOK_WAIT_MAX, METERS)
            .await?
            .or_refused()
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "edge: a command line waits in real time"
)]
fn once(client: &Client<'_>, every: Duration) -> Result<View, Failure> {
    let before = look(client)?;
    std::thread::sleep(every);
    Ok(model::view(Some(&before), &look(client)?))
}

/// For scripts and mails: all columns, sorted by name.
fn table(view: &View) -> String {
    let lines = view::head_lines(&view.totals, view.interval_ms).join("\n");
    let head: [&str; view::COLUMNS.len() + 1] = std::array::from_fn(|index| match index {
        0 => "EXPORT",
        _ => view::COLUMNS[index - 1].title,
    });
    let cells = |row: &model::Row| {
        std::array::from_fn(|index| match index {
            0 => row.name.clone(),
            _ => (view::COLUMNS[index - 1].text)(row),
        })
    };
    let rows: Vec<[String; view::COLUMNS.len() + 1]> = view.exports.iter().map(cells).collect();
    format!("{lines}\n{}", super::text::table(head, &rows))
}

fn live(client: &Client<'_>, every: Duration) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let text = "`top` needs a terminal; `--once` prints a table, `--json` a document";
        return Err(Failure::unusable(text));
    }
    let broken = |error: io::Error| Failure::unusable(format!("the terminal: {error}"));
    let mut terminal = ratatui::try_init().map_err(broken)?;
    let shown = watch(&mut terminal, client, every);
    ratatui::try_restore().map_err(broken)?;
    shown.map_err(broken)
}

/// What was seen last.
#[derive(Debug, Default)]
struct Seen {
    last: Option<MetersDocument>,
    view: Option<View>,
    trouble: Option<String>,
}

impl Seen {
    fn take(&mut self, looked: Result<MetersDocument, Failure>) {
        match looked {
            Ok(now) => {
                self.view = Some(model::view(self.last.as_ref(), &now));
                self.last = Some(now);
                self.trouble = None;
            }
            Err(failure) => self.trouble = Some(format!("trying again: {failure}")),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "edge: a screen is refreshed in real time"
)]
fn watch(terminal: &mut DefaultTerminal, client: &Client<'_>, every: Duration) -> io::Result<()> {
    let (mut seen, mut choice) = (Seen::default(), Choice::default());
    loop {
        seen.take(look(client));
        let until = std::time::Instant::now() + every;
        loop {
            terminal.draw(|frame| {
                let trouble = seen.trouble.as_deref();
                view::draw(frame, seen.view.as_ref(), &mut choice, trouble);
            })?;
            let left = until.saturating_duration_since(std::time::Instant::now());
            if !event::poll(left)? {
                break;
            }
            // Another size of the terminal is an event without a key: it is drawn again.
            if let Event::Key(pressed) = event::read()?
                && let Some(key) = key_of(pressed)
                && choice.press(key) == Then::Quit
            {
                return Ok(());
            }
        }
    }
}

fn key_of(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let is_control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    match pressed.code {
        KeyCode::Char('c') if is_control => Some(Key::Interrupt),
        KeyCode::Char(letter) => Some(Key::Char(letter)),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Backspace => Some(Key::Backspace),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        _ => None,
    }
}
