//! From an event to its line: held to the limit, formatted, escaped.

use std::backtrace::Backtrace;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{self, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::klog::Klog;
use super::limit::{LogGate, Withheld};
use super::{Format, Place};

/// What writes the lines.
pub(super) struct Lines<C> {
    shape: Shape,
    backtrace_at: Option<Place>,
    clock: C,
    /// One for each place in the source that wrote something.
    gates: Mutex<HashMap<Identifier, LogGate>>,
}

enum Shape {
    Klog,
    Json(format::Format<Json>),
    Text(format::Format<Full>),
}

impl<C: Fn() -> Instant> Lines<C> {
    pub(super) fn new(shape: Format, backtrace_at: Option<Place>, clock: C) -> Self {
        let shape = match shape {
            Format::Klog => Shape::Klog,
            Format::Json => Shape::Json(
                format::json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_file(true)
                    .with_line_number(true),
            ),
            Format::Text => Shape::Text(format::format()),
        };
        Self { shape, backtrace_at, clock, gates: Mutex::default() }
    }

    /// Whether the event may be written, and how many from the same place were not. Who asks for
    /// debug or trace events gets all of them.
    fn pass(&self, metadata: &Metadata<'static>) -> Option<Withheld> {
        if *metadata.level() > Level::INFO {
            return Some(Withheld::default());
        }
        // A gate is whole whoever panicked.
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(metadata.callsite()).or_insert_with(LogGate::of_place);
        gate.pass((self.clock)())
    }
}

impl<S, N, C> FormatEvent<S, N> for Lines<C>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
    C: Fn() -> Instant,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let Some(withheld) = self.pass(metadata) else { return Ok(()) };
        let mut line = String::new();
        let whole = Writer::new(&mut line);
        match &self.shape {
            Shape::Klog => Klog.format_event(context, whole, event)?,
            Shape::Json(json) => json.format_event(context, whole, event)?,
            Shape::Text(text) => text.format_event(context, whole, event)?,
        }
        let line = line.strip_suffix('\n').unwrap_or(&line);
        let at = self.backtrace_at.as_ref().filter(|place| place.is_of(metadata));
        let backtrace = at.map(|_| Backtrace::force_capture().to_string());
        match self.shape {
            Shape::Json(_) => {
                // What is left of control characters stands inside of strings.
                let escape = |c, line: &mut Writer<'_>| write!(line, "\\u{:04x}", u32::from(c));
                one_line(line.strip_suffix('}').unwrap_or(line), &mut writer, escape)?;
                if withheld.0 > 0 {
                    write!(writer, ",\"withheld\":{}", withheld.0)?;
                }
                if let Some(backtrace) = backtrace {
                    write!(writer, ",\"backtrace\":{}", serde_json::Value::from(backtrace))?;
                }
                writeln!(writer, "}}")
            }
            Shape::Klog | Shape::Text(_) => {
                let escape =
                    |c: char, line: &mut Writer<'_>| write!(line, "{}", c.escape_default());
                one_line(line, &mut writer, escape)?;
                writeln!(writer, "{withheld}")?;
                // Symbols and paths of our own: the one thing that has lines, as klog's.
                backtrace.map_or(Ok(()), |backtrace| writer.write_str(&backtrace))
            }
        }
    }
}

/// Escapes control characters: what comes from outside must not forge lines of the log, nor talk
/// to the terminal.
fn one_line<'w>(
    text: &str,
    writer: &mut Writer<'w>,
    escape: impl Fn(char, &mut Writer<'w>) -> fmt::Result,
) -> fmt::Result {
    let mut rest = text;
    while let Some(at) = rest.find(char::is_control) {
        let (before, from) = rest.split_at(at);
        writer.write_str(before)?;
        let mut chars = from.chars();
        if let Some(c) = chars.next() {
            escape(c, writer)?;
        }
        rest = chars.as_str();
    }
    writer.write_str(rest)
}
