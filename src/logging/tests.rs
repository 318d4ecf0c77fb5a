use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use regex::Regex;
use tracing::{debug, error, info, trace, warn};

use super::*;

const FORMATS: [Format; 3] = [Format::Klog, Format::Json, Format::Text];

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

/// What `events` write, with a clock that stands still unless `clock` moves it.
fn written(options: LogOptions, clock: &Arc<Mutex<Instant>>, events: impl FnOnce()) -> String {
    let sink = Sink::default();
    let writer = sink.clone();
    let clock = Arc::clone(clock);
    let subscriber = subscriber(options, move || writer.clone(), move || *clock.lock().unwrap());
    tracing::subscriber::with_default(subscriber, events);
    String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
}

fn logged_with(options: LogOptions, events: impl FnOnce()) -> Vec<String> {
    let clock = Arc::new(Mutex::new(Instant::now()));
    written(options, &clock, events).lines().map(str::to_owned).collect()
}

fn in_format(format: Format) -> LogOptions {
    LogOptions { format, ..LogOptions::default() }
}

fn logged(format: Format, events: impl FnOnce()) -> Vec<String> {
    logged_with(in_format(format), events)
}

#[test]
fn lines_have_klogs_shape() {
    let lines = logged(Format::Klog, || {
        info!(subnet = %"10.5.1.0-24", name = "a b", count = 3, "subnet {}", "leased");
        warn!("careful");
        error!(code = 1);
    });
    let head = r"\d{4} \d\d:\d\d:\d\d\.\d{6} [ \d]{7} tests\.rs:\d+\] ";
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
fn json_has_time_place_message_and_fields() {
    let line = line!() + 2;
    let lines = logged(Format::Json, || {
        warn!(subnet = %"10.5.1.0-24", count = 3, up = true, "say \"{}\"", "é");
    });
    assert_eq!(lines.len(), 1);
    let json: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    let time = Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$").unwrap();
    assert!(time.is_match(json["timestamp"].as_str().unwrap()), "{json}");
    assert_eq!(json["level"], "WARN");
    assert_eq!(json["target"], "flanneld::logging::tests");
    assert_eq!(json["filename"], file!());
    assert_eq!(json["line_number"], line);
    assert_eq!(json["message"], "say \"é\"");
    assert_eq!(json["subnet"], "10.5.1.0-24");
    assert_eq!(json["count"], 3);
    assert_eq!(json["up"], true);
}

#[test]
fn text_is_for_people() {
    let lines = logged(Format::Text, || info!(count = 3, "subnet leased"));
    let shape = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  INFO flanneld::logging::tests: subnet leased count=3$";
    assert!(Regex::new(shape).unwrap().is_match(&lines[0]), "{}", lines[0]);
    assert_eq!(lines.len(), 1);
}

/// The texts of events of all severities, of ours and others'.
fn texts(everywhere: i32, modules: &str) -> Vec<String> {
    let verbosity = Verbosity { everywhere, modules: modules.parse().unwrap() };
    let options = LogOptions { verbosity, ..LogOptions::default() };
    let lines = logged_with(options, || {
        error!("error");
        info!("info");
        debug!("debug");
        trace!("trace");
        info!(target: "h2::codec", "other info");
        warn!(target: "h2::codec", "other warning");
    });
    lines.iter().map(|line| line.split_once("] ").unwrap().1.to_owned()).collect()
}

#[test]
fn verbosity_sets_our_level_and_nobody_elses() {
    let texts = |everywhere| texts(everywhere, "");
    assert_eq!(texts(-1), ["error", "info", "other warning"]);
    assert_eq!(texts(0), ["error", "info", "other warning"]);
    assert_eq!(texts(1), ["error", "info", "debug", "other warning"]);
    assert_eq!(texts(4), ["error", "info", "debug", "other warning"]);
    assert_eq!(texts(5), ["error", "info", "debug", "trace", "other warning"]);
}

#[test]
fn modules_say_more_and_never_less() {
    assert_eq!(texts(0, "tests=1"), ["error", "info", "debug", "other warning"]);
    assert_eq!(texts(0, "te?t*=5"), ["error", "info", "debug", "trace", "other warning"]);
    assert_eq!(texts(1, "tests=0"), ["error", "info", "debug", "other warning"]);
    assert_eq!(texts(0, "daemon=5"), ["error", "info", "other warning"]);
    assert_eq!(texts(0, "tests=0,*=5"), ["error", "info", "other warning"]);
}

#[test]
fn an_event_is_one_line_whatever_it_says() {
    let event = || info!(key = %"x\nE0101 \u{1b}[31m\u{9b}1m\u{7f}", "a\r\nb ü");
    let lines = logged(Format::Klog, event);
    assert_eq!(lines.len(), 1);
    let end = r"] a\r\nb ü key=x\nE0101 \u{1b}[31m\u{9b}1m\u{7f}";
    assert!(lines[0].ends_with(end), "{}", lines[0]);

    let lines = logged(Format::Json, event);
    assert_eq!(lines.len(), 1);
    assert!(!lines[0].contains(char::is_control), "{:?}", lines[0]);
    let json: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(json["message"], "a\r\nb ü");
    assert_eq!(json["key"], "x\nE0101 \u{1b}[31m\u{9b}1m\u{7f}");

    let lines = logged(Format::Text, event);
    assert_eq!(lines.len(), 1);
    assert!(!lines[0].contains(char::is_control), "{:?}", lines[0]);
}

#[test]
fn a_place_that_repeats_itself_is_held_back_and_says_by_how_much() {
    for format in FORMATS {
        let clock = Arc::new(Mutex::new(Instant::now()));
        let text = written(in_format(format), &clock, || {
            let repeated = || warn!("again");
            (0..1000).for_each(|_| repeated());
            info!("from another place");
            *clock.lock().unwrap() += Duration::from_secs(1);
            (0..1000).for_each(|_| repeated());
        });
        let lines: Vec<&str> = text.lines().collect();
        let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
        assert_eq!(count("again"), 110, "{format:?}");
        assert_eq!(count("from another place"), 1, "{format:?}");
        let told = match format {
            Format::Json => r#""withheld":900}"#,
            _ => "again (900 such lines withheld)",
        };
        assert!(lines[101].ends_with(told), "{}", lines[101]);
        assert_eq!(count("withheld"), 1, "{format:?}");
    }
}

#[test]
fn who_asks_for_debug_events_gets_all() {
    let verbosity = Verbosity { everywhere: 1, ..Verbosity::default() };
    let options = LogOptions { verbosity, ..LogOptions::default() };
    assert_eq!(logged_with(options, || (0..1000).for_each(|_| debug!("again"))).len(), 1000);
}

#[test]
fn a_stack_trace_follows_the_place_that_is_asked_for() {
    for format in FORMATS {
        let line = line!() + 3;
        let backtrace_at = Some(format!("tests.rs:{line}").parse().unwrap());
        let lines = logged_with(LogOptions { backtrace_at, ..in_format(format) }, || {
            info!("here");
            info!("there");
        });
        let name = "a_stack_trace_follows_the_place_that_is_asked_for";
        if format == Format::Json {
            assert_eq!(lines.len(), 2);
            let json: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
            assert!(json["backtrace"].as_str().unwrap().contains(name), "{json}");
        } else {
            assert!(lines[0].ends_with("here"), "{}", lines[0]);
            assert!(lines.iter().any(|line| line.contains(name)), "{lines:?}");
        }
        assert!(lines.last().unwrap().contains("there"), "{lines:?}");
    }
}

proptest! {
    #[test]
    fn no_text_breaks_the_line(text: String) {
        for format in FORMATS {
            let lines = logged(format, || info!(key = %text, other = text, "{text}"));
            prop_assert_eq!(lines.len(), 1);
            prop_assert!(!lines[0].contains(char::is_control));
            if format == Format::Json {
                let json: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
                prop_assert_eq!(&json["message"], &text);
                prop_assert_eq!(&json["key"], &text);
                prop_assert_eq!(&json["other"], &text);
            }
        }
    }
}
