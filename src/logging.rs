//! The log: one line for each event on stderr, shaped like klog's so that what reads flannel's log
//! reads ours.
//!
//! ```text
//! I0629 14:28:35.866793    5522 main.rs:386] subnet leased subnet=10.5.1.0-24
//! ```
//!
//! Severity (`I`, `W`, `E`), month and day, time of day, thread id, place in the source, text, then
//! the event's fields. The time is UTC: the local one needs either unsafe code or one more crate.
#![forbid(unsafe_code)]

use std::fmt::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// Starts logging to stderr for the whole process.
///
/// `verbosity` is the value of `-v`: up to 0 the normal log, 1 to 4 also debug events, from 5 on
/// also trace events. Other crates (h2, tonic, hyper…) only ever log warnings and errors.
///
/// # Errors
///
/// If logging was started before.
pub fn init(verbosity: i32) -> Result<(), SetGlobalDefaultError> {
    tracing::subscriber::set_global_default(subscriber(verbosity, std::io::stderr))
}

fn subscriber<W>(verbosity: i32, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = match verbosity {
        ..=0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        5.. => LevelFilter::TRACE,
    };
    let filter =
        Targets::new().with_default(LevelFilter::WARN).with_target(env!("CARGO_CRATE_NAME"), level);
    let lines = tracing_subscriber::fmt::layer().event_format(Klog).with_writer(writer);
    tracing_subscriber::registry().with(filter).with(lines)
}

/// klog's line (facts 1.1).
struct Klog;

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
        let file = metadata.file().and_then(|file| Path::new(file).file_name()?.to_str());
        write!(
            writer,
            "{severity}{} {thread:7} {}:{}]",
            stamp(now),
            file.unwrap_or("???"),
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

/// The event's message and its other fields as ` key=value`, all on one line.
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string fails only if the value's own formatting does: then it stays short.
        let _ = match field.name() {
            "message" => write!(OneLine(&mut self.message), "{value:?}"),
            name => {
                self.others.push(' ');
                self.others.push_str(name);
                self.others.push('=');
                write!(OneLine(&mut self.others), "{value:?}")
            }
        };
    }
}

/// Escapes control characters: what comes from outside must not forge lines of the log, nor talk to
/// the terminal.
struct OneLine<'a>(&'a mut String);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                c if c.is_control() => self.0.extend(c.escape_default()),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use regex::Regex;
    use tracing::{debug, error, info, trace, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(verbosity: i32, events: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(verbosity, move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_have_klogs_shape() {
        let lines = logged(0, || {
            info!(subnet = %"10.5.1.0-24", name = "a b", count = 3, "subnet {}", "leased");
            warn!("careful");
            error!(code = 1);
        });
        let head = r"\d{4} \d\d:\d\d:\d\d\.\d{6} [ \d]{7} logging\.rs:\d+\] ";
        for (line, severity, text) in [
            (&lines[0], 'I', r#"subnet leased subnet=10.5.1.0-24 name="a b" count=3"#),
            (&lines[1], 'W', "careful"),
            (&lines[2], 'E', " code=1"),
        ] {
            let shape = format!("^{severity}{head}{}$", regex::escape(text));
            assert!(Regex::new(&shape).unwrap().is_match(line), "{line}");
        }
        assert_eq!(lines.len(), 3);
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        assert_eq!(lines[0].split_whitespace().nth(2), Some(thread.as_str()));
    }

    #[test]
    fn verbosity_sets_our_level_and_nobody_elses() {
        let texts = |verbosity| {
            logged(verbosity, || {
                error!("error");
                info!("info");
                debug!("debug");
                trace!("trace");
                info!(target: "h2::codec", "other info");
                warn!(target: "h2::codec", "other warning");
            })
            .into_iter()
            .map(|line| line.split_once("] ").unwrap().1.to_owned())
            .collect::<Vec<_>>()
        };
        assert_eq!(texts(-1), ["error", "info", "other warning"]);
        assert_eq!(texts(0), ["error", "info", "other warning"]);
        assert_eq!(texts(1), ["error", "info", "debug", "other warning"]);
        assert_eq!(texts(4), ["error", "info", "debug", "other warning"]);
        assert_eq!(texts(5), ["error", "info", "debug", "trace", "other warning"]);
    }

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let lines = logged(0, || info!(key = %"x\nE0101 \u{1b}[31m", "a\r\nb ü"));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with(r"] a\r\nb ü key=x\nE0101 \u{1b}[31m"), "{}", lines[0]);
    }

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

    proptest! {
        #[test]
        fn no_text_breaks_the_line(text: String) {
            let lines = logged(0, || info!(key = %text, "{text}"));
            prop_assert_eq!(lines.len(), 1);
        }
    }
}
