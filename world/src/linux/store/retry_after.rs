//! `Retry-After`: for how long a store asks to be left alone.
//!
//! The library drops the headers of an answer that says no. So the client below it is wrapped, and an answer that names a
//! wait becomes an error of the library's client, which its own errors carry to us; every other answer goes through as it is.
//!
//! A date is compared with the `Date` of the same answer, that is by the store's own clock: wall time of this machine
//! decides nothing. One without the other says nothing.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, HeaderMap};

use crate::store::RETRY_AFTER_MAX;

/// Answers that may name a wait: too many requests, and not available now.
const STATUSES: [u16; 2] = [429, 503];

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// An answer that names a wait.
#[derive(Debug, thiserror::Error)]
#[error("Server returned non-2xx status code: {status}, and asks to wait {} s: {body}", wait.as_secs())]
pub(super) struct Told {
    pub(super) status: u16,
    pub(super) wait: Duration,
    body: String,
}

/// Makes the library's own client, wrapped.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Wrapped(client)))
    }
}

#[derive(Debug)]
struct Wrapped(HttpClient);

impl HttpService for Wrapped {
    /// Written as the macro of `async_trait` would write it, which nothing else here needs.
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.0.execute(request).await?;
            let status = answer.status().as_u16();
            let Some(wait) = wait_of(status, answer.headers()) else {
                return Ok(answer);
            };
            let body = answer.into_body().bytes().await?;
            let body = String::from_utf8_lossy(&body).into_owned();
            // Of this kind nothing is repeated by the library, whatever it is set to.
            let told = Told { status, wait, body };
            Err(HttpError::new(HttpErrorKind::Unknown, told))
        })
    }
}

/// For how long an answer asks to be left alone; none if it does not.
fn wait_of(status: u16, headers: &HeaderMap) -> Option<Duration> {
    if !STATUSES.contains(&status) {
        return None;
    }
    let asked = header(headers, "retry-after")?;
    let is_number = !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = if is_number {
        // Beyond 64 bits it is too long as well.
        asked.parse().unwrap_or(u64::MAX)
    } else {
        let now = unix_seconds(header(headers, "date")?)?;
        unix_seconds(asked)?.saturating_sub(now)
    };
    (seconds > 0).then(|| Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    Some(headers.get(name)?.to_str().ok()?.trim())
}

/// Of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form in which servers may write dates (RFC 9110, 5.6.7). By Howard Hinnant's
/// `days_from_civil`.
fn unix_seconds(date: &str) -> Option<u64> {
    let parts: Vec<&str> = date.split([' ', ':']).collect();
    let &[_, day, month, year, hour, minute, second, "GMT"] = parts.as_slice() else {
        return None;
    };
    let number = |text: &str, most: u64| text.parse::<u64>().ok().filter(|it| *it <= most);
    let (day, year) = (number(day, 31)?, number(year, 9999)?);
    let month = MONTHS.iter().position(|name| *name == month)?;
    let month = u64::try_from(month).ok()? + 1;
    // Years begin with March here, so that a leap day is the last of one.
    let (year, month_index) = if month > 2 {
        (year, month - 3)
    } else {
        (year.checked_sub(1)?, month + 9)
    };
    let day_of_year = (153 * month_index + 2) / 5 + day.checked_sub(1)?;
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    let (hour, minute) = (number(hour, 23)?, number(minute, 59)?);
    // 60 is a leap second.
    let second = number(second, 60)?;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use object_store::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_str(value).expect("a header's value");
            headers.insert(*name, value);
        }
        headers
    }

    fn seconds(status: u16, pairs: &[(&'static str, &str)]) -> Option<u64> {
        wait_of(status, &headers(pairs)).map(|wait| wait.as_secs())
    }

    #[test]
    fn a_wait_in_seconds_is_taken_up_to_the_bound() {
        for (text, wait) in [
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("59", Some(59)),
            ("60", Some(60)),
            ("3600", Some(60)),
            ("99999999999999999999999999", Some(60)),
            ("0", None),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            for status in STATUSES {
                assert_eq!(seconds(status, &[("retry-after", text)]), wait, "{text:?}");
            }
        }
        assert_eq!(seconds(503, &[]), None);
        for other in [200, 301, 404, 500, 502] {
            assert_eq!(seconds(other, &[("retry-after", "7")]), None, "{other}");
        }
    }

    #[test]
    fn a_date_is_as_far_away_as_the_store_s_own_clock_says() {
        let now = ("date", "Tue, 31 Dec 2030 23:59:50 GMT");
        let asked = |date| seconds(503, &[now, ("retry-after", date)]);
        assert_eq!(asked("Wed, 01 Jan 2031 00:00:05 GMT"), Some(15));
        assert_eq!(asked("Wed, 01 Jan 2031 10:00:05 GMT"), Some(60));
        assert_eq!(asked("Tue, 31 Dec 2030 23:59:50 GMT"), None, "it is over");
        assert_eq!(asked("Tue, 31 Dec 2030 23:00:00 GMT"), None, "it is over");
        let date = ("retry-after", "Wed, 01 Jan 2031 00:00:05 GMT");
        assert_eq!(seconds(503, &[date]), None, "nobody says what time it is");
        assert_eq!(seconds(503, &[date, ("date", "yesterday")]), None);
    }

    #[test]
    fn dates_are_read_as_they_are_written_and_nothing_else_is() {
        for (date, unix) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Tue, 29 Feb 2000 12:34:56 GMT", 951_827_696),
            ("Fri, 20 Nov 2026 00:00:00 GMT", 1_795_132_800),
        ] {
            assert_eq!(unix_seconds(date), Some(unix), "{date}");
        }
        for bad in [
            "",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nev 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 0000 08:49:37 GMT",
            "Sun, 06 Jan 0000 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37:00 GMT",
        ] {
            assert_eq!(unix_seconds(bad), None, "{bad:?}");
        }
    }
}
