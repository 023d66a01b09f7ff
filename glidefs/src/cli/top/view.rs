//! Draws what `glidefs top` knows into whatever room there is. What a colour says, a text says too: some
//! terminals have none, and `NO_COLOR` switches it off.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};

use super::model::{Choice, HALTED, Row, SORTS, Totals, View};
use crate::cli::{bytes_text, duration_text};

const NAME_WIDTH_MIN: u16 = 8;
const NAME_WIDTH_MAX: u16 = 28;
/// Between two columns.
const GAP: u16 = 1;

/// A column: its title, its width, its text. Name comes first and is not among them.
pub(super) struct Column {
    pub(super) title: &'static str,
    width: u16,
    pub(super) text: fn(&Row) -> String,
}

/// The server, the store, what is not as it should be.
const HEAD_LINES: u16 = 3;

/// In the order in which they are given up, the last first, where there is no room. The state goes last: it is
/// what a person looks for.
pub(super) const COLUMNS: [Column; 15] = [
    column("STATE", 10, |row| row.state.clone()),
    column("IOPS", 7, |row| row.operations_per_second.to_string()),
    column("RATE/s", 8, |row| bytes_text(row.bytes_per_second())),
    column("P99", 7, |row| micros_text(row.p99_us)),
    column("DIRTY", 8, |row| bytes_text(row.dirty_bytes)),
    column("LAG", 7, |row| ms_text(row.sync_lag_ms)),
    column("ERRORS", 7, |row| {
        errors_text(row.errors.io, row.errors.new_io)
    }),
    column("THROT/s", 7, |row| ms_text(row.throttled_ms_per_second)),
    column("SYNCERR", 7, |row| {
        errors_text(row.errors.sync, row.errors.new_sync)
    }),
    column("P50", 7, |row| micros_text(row.p50_us)),
    column("HIT", 5, |row| {
        row.hit_percent
            .map_or("-".into(), |hits| format!("{hits}%"))
    }),
    column("AGE", 9, |row| ms_text(row.dirty_age_ms)),
    column("EVICT/s", 8, |row| bytes_text(row.evicted_bytes_per_second)),
    column("STORE/m", 7, |row| {
        row.store_requests_per_minute.to_string()
    }),
    column("CLIENTS", 7, |row| row.clients.to_string()),
];

const fn column(title: &'static str, width: u16, text: fn(&Row) -> String) -> Column {
    Column { title, width, text }
}

/// How many columns there is room for beside the name.
fn columns_in(width: u16) -> &'static [Column] {
    let mut left = width.saturating_sub(NAME_WIDTH_MIN);
    let mut count = 0;
    for column in &COLUMNS {
        let Some(rest) = left.checked_sub(column.width + GAP) else {
            break;
        };
        left = rest;
        count += 1;
    }
    &COLUMNS[..count]
}

/// The whole screen. `trouble` says why the numbers are old, if they are.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    view: Option<&View>,
    choice: &mut Choice,
    trouble: Option<&str>,
) {
    let areas = Layout::vertical([
        Constraint::Length(HEAD_LINES),
        Constraint::Min(1),
        Constraint::Length(1),
    ]);
    let [head, body, foot] = areas.areas(frame.area());
    if let Some(view) = view {
        let lines = head_lines(&view.totals, view.interval_ms);
        frame.render_widget(Paragraph::new(lines.map(Line::from).to_vec()), head);
        rows(frame, body, view, choice);
    }
    let (text, style) = match (trouble, view.and_then(|it| it.totals.stopped.as_deref())) {
        (Some(trouble), _) => (trouble.to_owned(), Style::new().fg(Color::Red)),
        (None, Some(stopped)) => {
            let text = format!("the cache log has stopped: {stopped}");
            (text, Style::new().fg(Color::Red))
        }
        (None, None) => (foot_text(choice), Style::new().add_modifier(Modifier::DIM)),
    };
    frame.render_widget(Paragraph::new(text).style(style), foot);
}

fn rows(frame: &mut Frame<'_>, area: Rect, view: &View, choice: &mut Choice) {
    let columns = columns_in(area.width);
    let shown = choice.of(&view.exports);
    let taken: u16 = columns.iter().map(|column| column.width + GAP).sum();
    let name_width = area.width.saturating_sub(taken).min(NAME_WIDTH_MAX);
    let widths = [name_width]
        .into_iter()
        .chain(columns.iter().map(|it| it.width));
    let header = ["EXPORT"]
        .into_iter()
        .chain(columns.iter().map(|it| it.title));
    let body = shown.into_iter().map(|row| {
        let cells = columns.iter().map(|column| (column.text)(row));
        let cells = [row.name.clone()].into_iter().chain(cells).map(Cell::from);
        TableRow::new(cells.collect::<Vec<_>>()).style(style_of(row))
    });
    let widths = widths.map(Constraint::Length);
    let table = Table::new(body, widths)
        .header(TableRow::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .column_spacing(GAP);
    frame.render_widget(table, area);
}

/// Red: a person must act. Yellow: the store is behind. Magenta and cyan: it is not ours to write, or not yet.
fn style_of(row: &Row) -> Style {
    let is_behind = row.sync_lag_ms > 0 || row.errors.new_sync > 0;
    let color = match row.state.as_str() {
        "fenced" | "damaged" | "vanished" | "unreadable" | HALTED => Color::Red,
        _ if row.errors.new_io > 0 => Color::Red,
        "read-only" => Color::Magenta,
        "prepared" => Color::Cyan,
        _ if is_behind || row.throttled_ms_per_second > 0 => Color::Yellow,
        _ => return Style::new(),
    };
    Style::new().fg(color)
}

pub(super) fn head_lines(totals: &Totals, interval_ms: u64) -> [String; 3] {
    let left_out = match totals.exports_left_out {
        0 => String::new(),
        count => format!(" ({count} not shown)"),
    };
    let waiting = match totals.writers_waiting {
        0 => String::new(),
        count => format!(", {count} writes wait"),
    };
    let span = duration_text(Duration::from_millis(interval_ms));
    [
        format!(
            "{} IOPS  cache {} of {}, {} dirty{waiting}  {} exports{left_out}, {} clients  glidefs {}, over {span}",
            totals.operations_per_second,
            bytes_text(totals.cache_used_bytes),
            bytes_text(totals.cache_bytes),
            bytes_text(totals.dirty_bytes),
            totals.exports,
            totals.clients,
            totals.version,
        ),
        format!(
            "store {}/min, {} failed/min, p99 {}, up {}/s, down {}/s",
            totals.store_requests_per_minute,
            totals.store_failures_per_minute,
            micros_text(totals.store_p99_us),
            bytes_text(totals.sent_bytes_per_second),
            bytes_text(totals.received_bytes_per_second),
        ),
        trouble_line(totals),
    ]
}

/// The states first: they are what a narrow screen must show.
fn trouble_line(totals: &Totals) -> String {
    let states = totals.states.iter();
    let states: Vec<String> = states
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let gap = if states.is_empty() { "" } else { "  " };
    let throttled = match totals.throttled_ms_per_second {
        0 => "0s".to_owned(),
        ms => ms_text(ms),
    };
    format!(
        "{}{gap}errors: {} I/O, {} sync  throttled {throttled}/s, {} writes/s  evicted {}/s",
        states.join(", "),
        errors_text(totals.errors.io, totals.errors.new_io),
        errors_text(totals.errors.sync, totals.errors.new_sync),
        totals.throttled_writes_per_second,
        bytes_text(totals.evicted_bytes_per_second),
    )
}

/// All, and those of them that are new.
fn errors_text(all: u64, new: u64) -> String {
    match new {
        0 => all.to_string(),
        new => format!("{all} +{new}"),
    }
}

fn foot_text(choice: &Choice) -> String {
    if choice.is_typing {
        return format!("/{}_  Enter: keep, Esc: all", choice.filter);
    }
    let keys = SORTS.map(|(key, _, name)| format!("{key} {name}"));
    let filter = match choice.filter.as_str() {
        "" => String::new(),
        filter => format!(" filter \"{filter}\" (Esc: all)"),
    };
    format!(
        "by {}{filter}  q quit  / filter  r reverse  {}",
        choice.sort.name(),
        keys.join("  ")
    )
}

/// `340us`, `1.2ms`, `15ms`, `2.1s`.
pub(super) fn micros_text(micros: Option<u64>) -> String {
    match micros {
        None => "-".to_owned(),
        Some(us @ 0..1000) => format!("{us}us"),
        Some(us @ 1000..10_000) => format!("{}.{}ms", us / 1000, us / 100 % 10),
        Some(us @ 10_000..1_000_000) => format!("{}ms", us / 1000),
        Some(us) => format!("{}.{}s", us / 1_000_000, us / 100_000 % 10),
    }
}

/// `-`, `340ms`, `12.3s`, then minutes, hours, days.
pub(super) fn ms_text(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 if ms == 0 => "-".to_owned(),
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}.{}s", ms / 100 % 10),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}
