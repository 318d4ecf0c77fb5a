//! The log: one line for each event on stderr, by default shaped like klog's so that what reads
//! flannel's log reads ours.
//!
//! Three rules hold in every format. An event is one line, whatever it says: control characters
//! from outside neither forge lines nor reach a terminal. No place in the source writes more than
//! ten lines a second for long: what is withheld is counted, and told with the next line from
//! there. Packets are never told of above trace.
#![forbid(unsafe_code)]

mod klog;
pub(crate) mod limit;
mod lines;
mod place;
mod verbosity;

use std::time::Instant;

use tracing::Subscriber;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use self::lines::Lines;
pub use self::place::{InvalidPlace, Place};
pub use self::verbosity::{InvalidModules, Modules, Verbosity};

/// The shape of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// klog's (flannel's).
    #[default]
    Klog,
    /// A JSON object.
    Json,
    /// Time, severity, module, text.
    Text,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// `--log-format`.
    pub format: Format,
    /// `-v` and `--vmodule`.
    pub verbosity: Verbosity,
    /// `--log_backtrace_at`: what is logged here is followed by a stack trace.
    pub backtrace_at: Option<Place>,
}

/// Starts logging to stderr for the whole process.
///
/// # Errors
///
/// If logging was started before.
pub fn init(options: LogOptions) -> Result<(), SetGlobalDefaultError> {
    tracing::subscriber::set_global_default(subscriber(options, std::io::stderr, Instant::now))
}

fn subscriber<W, C>(options: LogOptions, writer: W, clock: C) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    C: Fn() -> Instant + Send + Sync + 'static,
{
    let lines = Lines::new(options.format, options.backtrace_at, clock);
    let layer =
        tracing_subscriber::fmt::layer().event_format(lines).with_ansi(false).with_writer(writer);
    tracing_subscriber::registry().with(options.verbosity).with(layer)
}

#[cfg(test)]
mod tests;
