//! klog's shape of a line.
//!
//! ```text
//! I0629 14:28:35.866793    5522 main.rs:386] subnet leased subnet=10.5.1.0-24
//! ```
//!
//! Severity (`I`, `W`, `E`), month and day, time of day, thread id, place in the source, text, then
//! the event's fields. The time is UTC: the local one needs either unsafe code or one more crate.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::place::file_name;

/// klog's line (facts 1.1).
pub(super) struct Klog;

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            // klog knows nothing below: verbose messages are informational.
            _ => 'I',
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let thread = rustix::thread::gettid().as_raw_nonzero();
        write!(
            writer,
            "{severity}{} {thread:7} {}:{}]",
            stamp(now),
            file_name(metadata).unwrap_or("???"),
            metadata.line().unwrap_or(1)
        )?;
        let mut text = Fields { message: String::new(), others: String::new() };
        event.record(&mut text);
        writeln!(writer, " {}{}", text.message, text.others)
    }
}

/// `MMDD hh:mm:ss.uuuuuu` in UTC, of a time since the Unix epoch.
fn stamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (month, day) = month_and_day(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = since_epoch.subsec_micros();
    format!("{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}")
}

/// The month and the day of the month, from 1, of a day counted from 1970-01-01.
///
/// Years that start in March have their leap day at the end, which makes the months regular
/// (H. Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn month_and_day(days: u64) -> (u64, u64) {
    const DAYS_FROM_0000_03_01: u64 = 719_468;
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let day = (days + DAYS_FROM_0000_03_01) % DAYS_IN_400_YEARS;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    ((month + 2) % 12 + 1, day - (153 * month + 2) / 5 + 1)
}

/// The event's message and its other fields as ` key=value`.
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string fails only if the value's own formatting does: then it stays short.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => {
                self.others.push(' ');
                self.others.push_str(name);
                self.others.push('=');
                write!(self.others, "{value:?}")
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_utc() {
        // From `date -u -d @SECONDS '+%m%d %T'`.
        for (seconds, expected) in [
            (0, "0101 00:00:00.000000"),
            (951_782_399, "0228 23:59:59.000000"),
            (951_782_400, "0229 00:00:00.000000"),
            (951_868_800, "0301 00:00:00.000000"),
            (1_709_251_199, "0229 23:59:59.000000"),
            (1_735_689_599, "1231 23:59:59.000000"),
            (1_751_207_315, "0629 14:28:35.000000"),
            (4_107_542_400, "0301 00:00:00.000000"),
        ] {
            assert_eq!(stamp(Duration::from_secs(seconds)), expected, "{seconds}");
        }
        assert_eq!(stamp(Duration::from_micros(1_000_042)), "0101 00:00:01.000042");
    }

    #[test]
    fn dates_follow_each_other_for_800_years() {
        let (mut year, mut expected) = (1970, (1, 1));
        for days in 0..292_194 {
            assert_eq!(month_and_day(days), expected, "day {days} in {year}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match expected.0 {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match expected {
                (12, 31) => {
                    year += 1;
                    (1, 1)
                }
                (month, day) if day == last => (month + 1, 1),
                (month, day) => (month, day + 1),
            };
        }
    }
}
