//! Numbers and tables for people.

use std::time::Duration;

/// `1.5 GiB`, `12 KiB`, `7 B`: three digits at most where they say enough.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut shift = 10;
    while unit + 1 < UNITS.len() && (bytes >> shift) >= 1024 {
        unit += 1;
        shift += 10;
    }
    // Tenths, rounded down: never say more than there is.
    let tenths = (u128::from(bytes) * 10) >> shift;
    if tenths >= 100 || tenths.is_multiple_of(10) {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// `340 ms`, `12.3 s`, `5 min 10 s`, `3 h 2 min`, `4 d 1 h`.
pub(crate) fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}.{} s", duration.subsec_millis() / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Columns as wide as they need to be, two spaces between.
pub(super) fn table<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> String {
    let mut widths = head.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head = head.map(str::to_owned);
    for (index, row) in std::iter::once(&head).chain(rows).enumerate() {
        if index > 0 {
            text.push('\n');
        }
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            let pad = width + 2 - cell.chars().count();
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short_and_never_exaggerated() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023 KiB"),
            (500 << 30, "500 GiB"),
            (u64::MAX, "15 EiB"),
        ] {
            let shown = bytes_text(bytes);
            assert!(
                shown == text || shown.starts_with("15.9"),
                "{bytes}: {shown}"
            );
        }
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (12_345, "12.3 s"),
            (310_000, "5 min 10 s"),
            (10_920_000, "3 h 2 min"),
            (349_200_000, "4 d 1 h"),
        ] {
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn tables_align() {
        let rows = [
            ["vm".into(), "1 B".into()],
            ["vm-alice".into(), "2 B".into()],
        ];
        assert_eq!(
            table(["NAME", "SIZE"], &rows),
            "NAME      SIZE\nvm        1 B\nvm-alice  2 B"
        );
    }
}
