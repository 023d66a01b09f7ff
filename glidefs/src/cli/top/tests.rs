use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::*;
use crate::control::testing;

/// Two looks with a second between: vm-a is busy, vm-b idle, vm-c was opened between them.
fn looks() -> (MetersDocument, MetersDocument) {
    let before = testing::meters(1000, vec![testing::export("vm-a"), testing::export("vm-b")]);
    let mut busy = testing::export("vm-a");
    busy.export.io.reads += 100;
    busy.export.io.writes += 50;
    busy.export.io.read_bytes += 409_600;
    busy.export.io.written_bytes += 204_800;
    busy.export.io.hit_pages += 75;
    busy.export.io.miss_pages += 25;
    busy.export.dirty_bytes = 3 << 20;
    (busy.export.io.errors, busy.export.io.sync_errors) = (2, 1);
    busy.throttled_ms += 250;
    busy.evicted_pages += 512;
    busy.latency.read = testing::latency(104);
    busy.store = vec![testing::requests("create", "ok", 4)];
    let mut idle = testing::export("vm-b");
    (
        idle.sync_lag_ms,
        idle.export.dirty_bytes,
        idle.export.dirty_age_ms,
    ) = (0, 0, 0);
    let mut now = testing::meters(2000, vec![busy, idle, testing::export("vm-c")]);
    now.store.requests = vec![
        testing::requests("create", "ok", 4),
        testing::requests("get", "retry", 2),
    ];
    now.cache.throttled_writes = 9;
    (before, now)
}

fn view_of_looks() -> View {
    let (before, now) = looks();
    model::view(Some(&before), &now)
}

#[test]
fn rates_are_what_happened_between_two_looks() {
    let view = view_of_looks();
    let busy = &view.exports[0];
    assert_eq!((view.interval_ms, busy.operations_per_second), (1000, 150));
    assert_eq!(busy.read_bytes_per_second, 409_600);
    assert_eq!(busy.written_bytes_per_second, 204_800);
    assert_eq!(busy.hit_percent, Some(75));
    assert_eq!(busy.store_requests_per_minute, 120);
    assert!((100..=200).contains(&busy.p99_us.expect("100 reads")));
    assert_eq!(busy.flush_p99_us, None, "no flush between the two");
    assert_eq!(busy.throttled_ms_per_second, 250);
    assert_eq!(busy.evicted_bytes_per_second, 2 << 20);
    let errors = model::Errors {
        io: 2,
        new_io: 2,
        sync: 1,
        new_sync: 1,
    };
    assert_eq!(busy.errors, errors);
    for idle in &view.exports[1..] {
        assert_eq!(idle.operations_per_second, 0, "{}", idle.name);
        assert_eq!((idle.p50_us, idle.hit_percent), (None, None));
    }
    let totals = &view.totals;
    assert_eq!(totals.operations_per_second, 150);
    assert_eq!(totals.store_requests_per_minute, 180);
    assert_eq!(totals.store_failures_per_minute, 60);
    assert_eq!(
        (totals.errors, totals.throttled_ms_per_second),
        (errors, 250)
    );
    assert_eq!(totals.throttled_writes_per_second, 9);
    assert_eq!(totals.evicted_bytes_per_second, 2 << 20);
    assert!(totals.states.is_empty(), "all are as they should be");
}

/// A storm of quick failures is no fast store.
#[test]
fn the_store_is_as_fast_as_what_it_answers() {
    let (before, mut now) = looks();
    let p99 = |now: &MetersDocument| model::view(Some(&before), now).totals.store_p99_us;
    now.store.latency[1].latency = testing::latency(1000);
    assert_eq!(now.store.latency[1].outcome, "failed");
    assert_eq!(p99(&now), None);
    now.store.latency[0].latency = testing::latency(4);
    assert!((100..=200).contains(&p99(&now).expect("two more were answered")));
}

#[test]
fn a_first_look_and_a_restarted_server_invent_no_rates() {
    let (before, now) = looks();
    let first = model::view(None, &now);
    assert_eq!(
        (first.interval_ms, first.totals.operations_per_second),
        (0, 0)
    );
    assert_eq!(first.exports[0].p99_us, None);
    assert_eq!(first.exports[0].errors.new_io, 0);
    assert_eq!(first.exports[0].errors.io, 2, "since the server started");
    // Counters begin anew: less than before.
    let restarted = model::view(Some(&now), &before);
    assert_eq!(restarted.totals.operations_per_second, 0);
    assert_eq!(restarted.totals.store_requests_per_minute, 0);
    assert_eq!(restarted.totals.errors, model::Errors::default());
    // Nothing at all.
    let empty = testing::meters(1, Vec::new());
    assert_eq!(model::view(Some(&empty), &empty).exports, []);
}

fn names(choice: &mut Choice, view: &View) -> Vec<String> {
    let rows = choice.of(&view.exports).into_iter();
    rows.map(|row| row.name.clone()).collect()
}

#[test]
fn keys_sort_filter_scroll_and_quit() {
    let view = view_of_looks();
    let mut choice = Choice::default();
    assert_eq!(names(&mut choice, &view), ["vm-a", "vm-b", "vm-c"]);
    choice.press(Key::Char('l'));
    assert_eq!(names(&mut choice, &view), ["vm-a", "vm-c", "vm-b"]);
    choice.press(Key::Char('l'));
    assert_eq!(names(&mut choice, &view), ["vm-b", "vm-a", "vm-c"]);
    for key in ['e', 't'] {
        choice.press(Key::Char(key));
        assert_eq!(names(&mut choice, &view), ["vm-a", "vm-b", "vm-c"], "{key}");
    }
    choice.press(Key::Char('n'));
    choice.press(Key::Down);
    assert_eq!(names(&mut choice, &view), ["vm-b", "vm-c"]);
    for _ in 0..9 {
        choice.press(Key::Down);
    }
    assert_eq!(
        names(&mut choice, &view),
        ["vm-c"],
        "the last stays in sight"
    );
    choice.press(Key::Up);
    assert_eq!(names(&mut choice, &view), ["vm-b", "vm-c"]);
    for key in [
        Key::Char('/'),
        Key::Char('q'),
        Key::Backspace,
        Key::Char('b'),
    ] {
        assert_eq!(choice.press(key), Then::GoOn, "q is a letter of the filter");
    }
    assert_eq!(names(&mut choice, &view), ["vm-b"]);
    choice.press(Key::Escape);
    assert_eq!(names(&mut choice, &view).len(), 3);
    assert_eq!(choice.press(Key::Char('q')), Then::Quit);
    assert_eq!(choice.press(Key::Interrupt), Then::Quit);
    for (key, sort, _) in model::SORTS {
        choice.press(Key::Char(key));
        assert_eq!(choice.sort, sort);
        assert_eq!(names(&mut choice, &view).len(), 3);
    }
}

/// The screen as lines, without what is empty at their ends.
fn screen(width: u16, height: u16, seen: &Seen, choice: &mut Choice) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("no real terminal");
    terminal
        .draw(|frame| view::draw(frame, seen.view.as_ref(), choice, seen.trouble.as_deref()))
        .expect("it cannot fail");
    let buffer = terminal.backend().buffer();
    let line = |y| -> String { (0..width).map(|x| buffer[(x, y)].symbol()).collect() };
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}

fn seen() -> Seen {
    Seen {
        last: None,
        view: Some(view_of_looks()),
        trouble: None,
    }
}

#[test]
fn a_wide_screen_shows_everything() {
    let lines = screen(160, 8, &seen(), &mut Choice::default());
    let expected = [
        "150 IOPS  cache 1 GiB of 16 GiB, 3 MiB dirty  3 exports, 6 clients  glidefs 0.1.0, over 1.0 s",
        "store 180/min, 60 failed/min, p99 -, up 0 B/s, down 0 B/s",
        "errors: 2 +2 I/O, 1 +1 sync  throttled 250ms/s, 9 writes/s  evicted 2 MiB/s",
        "EXPORT                       STATE      IOPS    RATE/s   P99     DIRTY    LAG     ERRORS  THROT/s SYNCERR P50     HIT   AGE       EVICT/s  STORE/m CLIENTS",
        "vm-a                         read-write 150     600 KiB  199us   3 MiB    500ms   2 +2    250ms   1 +1    150us   75%   1.5s      2 MiB    120     2",
        "vm-b                         read-write 0       0 B      -       0 B      -       0       -       0       -       -     -         0 B      0       2",
        "vm-c                         read-write 0       0 B      -       4 KiB    500ms   0       -       0       -       -     1.5s      0 B      0       2",
        "by iops  q quit  / filter  r reverse  n name  i iops  b bytes  p p99  h hits  d dirty  l lag  s store  e errors  t throttled",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_narrow_screen_gives_up_what_matters_least() {
    let lines = screen(80, 7, &seen(), &mut Choice::default());
    let titles: Vec<&str> = lines[3].split_whitespace().collect();
    let expected = [
        "EXPORT", "STATE", "IOPS", "RATE/s", "P99", "DIRTY", "LAG", "ERRORS", "THROT/s",
    ];
    assert_eq!(titles, expected);
    let lines = screen(40, 7, &seen(), &mut Choice::default());
    assert_eq!(lines[3], "EXPORT       STATE      IOPS    RATE/s");
    assert_eq!(lines[4], "vm-a         read-write 150     600 KiB");
    let lines = screen(19, 7, &seen(), &mut Choice::default());
    assert_eq!(lines[4], "vm-a     read-write", "the state goes last");
    for (width, height) in [(8, 4), (1, 1), (0, 0), (300, 2)] {
        // No panic, whatever the room.
        screen(width, height, &seen(), &mut Choice::default());
    }
}

#[test]
fn a_server_that_is_away_is_said_and_the_numbers_stay() {
    let (before, now) = looks();
    let mut seen = Seen::default();
    seen.take(Err(Failure::unusable("cannot reach the API")));
    let lines = screen(60, 6, &seen, &mut Choice::default());
    assert_eq!(lines[5], "trying again: cannot reach the API");
    seen.take(Ok(before));
    seen.take(Err(Failure::unusable("cannot reach the API")));
    let lines = screen(60, 7, &seen, &mut Choice::default());
    assert!(lines[4].starts_with("vm-a"), "{lines:?}");
    assert_eq!(lines[6], "trying again: cannot reach the API");
    seen.take(Ok(now));
    let lines = screen(60, 7, &seen, &mut Choice::default());
    assert!(lines[6].starts_with("by iops"), "{lines:?}");
    assert!(
        lines[4].starts_with("vm-a") && lines[4].contains("150"),
        "{lines:?}"
    );
}

/// Exports in these roles, by name in this order, and whether the log has stopped.
fn in_roles(roles: &[&str], stopped: Option<&str>) -> Seen {
    let exports = roles.iter().enumerate().map(|(number, role)| {
        let mut export = testing::export(&format!("vm-{number}"));
        export.export.role = (*role).into();
        (export.sync_lag_ms, export.export.dirty_age_ms) = (0, 0);
        export
    });
    let mut now = testing::meters(1000, exports.collect());
    now.server.stopped = stopped.map(Into::into);
    let mut seen = Seen::default();
    seen.take(Ok(now));
    seen
}

/// The colour of the first letter of each line.
fn colors(height: u16, seen: &Seen) -> Vec<Color> {
    let mut terminal = Terminal::new(TestBackend::new(80, height)).expect("no real terminal");
    let mut choice = Choice::default();
    terminal
        .draw(|frame| view::draw(frame, seen.view.as_ref(), &mut choice, None))
        .expect("it cannot fail");
    let buffer = terminal.backend().buffer();
    (0..height).map(|y| buffer[(0, y)].fg).collect()
}

#[test]
fn what_a_person_must_act_on_is_red() {
    let seen = in_roles(&["fenced", "closed", "damaged"], Some("fsync failed"));
    let found = colors(8, &seen).into_iter();
    let red: Vec<bool> = found.map(|it| it == Color::Red).collect();
    assert_eq!(red[4..], [true, false, true, true], "the last is the foot");
    let (_, now) = looks();
    let mut seen = Seen::default();
    seen.take(Ok(looks().0));
    seen.take(Ok(now));
    assert_eq!(colors(8, &seen)[4], Color::Red, "clients get errors");
}

#[test]
fn a_state_is_said_in_words_and_in_a_colour_on_any_screen() {
    let roles = ["read-write", "read-only", "prepared", "fenced"];
    let seen = in_roles(&roles, None);
    for width in [30, 160] {
        let lines = screen(width, 9, &seen, &mut Choice::default());
        for (line, role) in lines[4..8].iter().zip(roles) {
            assert!(line.contains(role), "{line}");
        }
        let head = "1 fenced, 1 prepared, 1 read-only";
        assert!(
            head.starts_with(&lines[2]) || lines[2].starts_with(head),
            "{lines:?}"
        );
    }
    let expected = [Color::Reset, Color::Magenta, Color::Cyan, Color::Red];
    assert_eq!(colors(9, &seen)[4..8], expected);

    // The role goes on being what it was; the log takes nothing more.
    let seen = in_roles(&roles, Some("fsync failed"));
    let lines = screen(160, 9, &seen, &mut Choice::default());
    assert!(lines[4].contains("halted"), "{lines:?}");
    assert!(lines[2].starts_with("1 fenced, 1 halted, 1 prepared, 1 read-only"));
    let view = seen.view.as_ref().expect("seen");
    let states: Vec<&str> = view.exports.iter().map(|row| row.state.as_str()).collect();
    assert_eq!(states, ["halted", "read-only", "prepared", "fenced"]);
    assert_eq!(view.exports[0].role, "read-write");
    assert_eq!(colors(9, &seen)[4], Color::Red);
    let text = table(view);
    assert!(
        text.contains("halted") && text.contains("prepared"),
        "{text}"
    );
}

#[test]
fn one_table_has_every_column() {
    let text = table(&view_of_looks());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 7);
    assert!(lines[3].starts_with("EXPORT") && lines[3].ends_with("CLIENTS"));
    assert!(lines[4].starts_with("vm-a") && lines[4].contains("75%"));
}

#[test]
fn times_are_short() {
    for (us, text) in [
        (0, "0us"),
        (999, "999us"),
        (1_250, "1.2ms"),
        (15_999, "15ms"),
        (2_100_000, "2.1s"),
    ] {
        assert_eq!(view::micros_text(Some(us)), text);
    }
    for (ms, text) in [
        (0, "-"),
        (340, "340ms"),
        (12_345, "12.3s"),
        (310_000, "5m10s"),
        (10_920_000, "3h2m"),
        (349_200_000, "4d1h"),
    ] {
        assert_eq!(view::ms_text(ms), text);
    }
}
