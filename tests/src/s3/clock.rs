//! The clock of the endpoint, which may be wrong: what it thinks of the date that a request is signed with.

use std::sync::atomic::{AtomicI64, Ordering};

/// S3 takes what was signed within so much of its own clock, before or after.
const SKEW_SECONDS_MAX: i64 = 15 * 60;
const SECONDS_OF_DAY: i64 = 24 * 60 * 60;
/// From the first of March of the year 0 to the first of January 1970.
const DAYS_BEFORE_1970: i64 = 719_468;
const DAYS_OF_400_YEARS: i64 = 146_097;

/// The clock of this machine, and by how much the endpoint's is ahead of it.
#[derive(Debug, Default)]
pub struct Clock {
    ahead_s: AtomicI64,
}

impl Clock {
    /// From now on; below 0 it is behind, and at 0 right.
    pub fn set_ahead(&self, seconds: i64) {
        self.ahead_s.store(seconds, Ordering::SeqCst);
    }

    /// Seconds since 1970.
    #[expect(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "the endpoint is another machine, with a clock of its own"
    )]
    pub fn seconds(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let right = since.map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
        right.saturating_add(self.ahead_s.load(Ordering::SeqCst))
    }

    /// Whether a request that was signed with this date (`x-amz-date`) may be taken now.
    pub(super) fn takes(&self, date: &str) -> bool {
        is_near(date, self.seconds())
    }
}

fn is_near(date: &str, now: i64) -> bool {
    seconds_of(date).is_some_and(|signed| (now - signed).abs() <= SKEW_SECONDS_MAX)
}

/// Seconds since 1970 of a date as signatures have it: `20130524T000000Z`.
fn seconds_of(date: &str) -> Option<i64> {
    let (day, time) = date.strip_suffix('Z')?.split_once('T')?;
    let (year, month, day) = (number(day, 0, 4)?, number(day, 4, 2)?, number(day, 6, 2)?);
    let (hour, minute, second) = (
        number(time, 0, 2)?,
        number(time, 2, 2)?,
        number(time, 4, 2)?,
    );
    let is_legal = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        // A leap second is legal.
        && second <= 60;
    let of_day = (hour * 60 + minute) * 60 + second;
    is_legal.then(|| days_since_1970(year, month, day) * SECONDS_OF_DAY + of_day)
}

fn number(text: &str, at: usize, digits: usize) -> Option<i64> {
    let digits = text.get(at..at + digits)?;
    let is_number = digits.bytes().all(|it| it.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// Years begin in March here, so that the day that comes every four years is the last of one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let month = (month + 9) % 12;
    let of_year = (153 * month + 2) / 5 + day - 1;
    let of_era = year * 365 + year / 4 - year / 100 + of_year;
    era * DAYS_OF_400_YEARS + of_era - DAYS_BEFORE_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_signatures_are_read() {
        for (date, seconds) in [
            ("19700101T000000Z", 0),
            ("20130524T000000Z", 1_369_353_600),
            ("20240229T235959Z", 1_709_251_199),
            ("20240301T000000Z", 1_709_251_200),
            ("21000228T000000Z", 4_107_456_000),
            ("21000301T000000Z", 4_107_542_400),
        ] {
            assert_eq!(seconds_of(date), Some(seconds), "{date}");
        }
        for nonsense in [
            "",
            "20130524",
            "20130524T000000",
            "2013-5-24T000000Z",
            "20131324T000000Z",
            "20130524T2400Z",
            "+0130524T000000Z",
        ] {
            assert_eq!(seconds_of(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_quarter_of_an_hour_is_near_and_a_second_more_is_not() {
        let now = 1_369_353_600 + SKEW_SECONDS_MAX;
        assert!(is_near("20130524T000000Z", now));
        assert!(!is_near("20130524T000000Z", now + 1));
        assert!(is_near("20130524T003000Z", now));
        assert!(!is_near("20130524T003001Z", now));
        assert!(!is_near("no date", now));
    }

    #[test]
    fn a_clock_that_is_ahead_is_ahead() {
        let clock = Clock::default();
        let right = clock.seconds();
        clock.set_ahead(10_000);
        assert!(clock.seconds() >= right + 10_000);
        clock.set_ahead(-10_000);
        assert!(clock.seconds() < right);
    }
}
