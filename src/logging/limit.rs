//! Limits on how often something is said. Time comes in as an argument.

use std::fmt;
use std::time::{Duration, Instant};

/// Lines that one place in the source may write per second in the long run. What an operator must
/// see comes far more rarely; a log of ours cannot fill a disk within days.
pub(crate) const LINES_PER_SECOND: u32 = 10;

/// And at once: as many peers may appear together.
const LINES_AT_ONCE: u32 = 100;

/// At most one line in this time about what goes on and on.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Lets some lines pass at once and then one per interval; counts the others.
#[derive(Debug)]
pub(crate) struct LogGate {
    interval: Duration,
    /// How far the lines may be ahead of one per interval.
    slack: Duration,
    /// When the next line would come, were they evenly spaced.
    due: Option<Instant>,
    withheld: u64,
}

impl LogGate {
    fn new(interval: Duration, at_once: u32) -> Self {
        Self { interval, slack: interval * at_once.saturating_sub(1), due: None, withheld: 0 }
    }

    /// For a place in the source.
    pub(crate) fn of_place() -> Self {
        Self::new(Duration::from_secs(1) / LINES_PER_SECOND, LINES_AT_ONCE)
    }

    /// So many lines at once, then one per [`LOG_INTERVAL`].
    pub(crate) fn after(lines: u32) -> Self {
        Self::new(LOG_INTERVAL, lines)
    }

    /// Whether a line may be written now; if so, how many were withheld since the last one.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<Withheld> {
        let due = self.due.map_or(now, |due| due.max(now));
        if due.saturating_duration_since(now) > self.slack {
            self.withheld += 1;
            return None;
        }
        self.due = Some(due + self.interval);
        Some(Withheld(std::mem::take(&mut self.withheld)))
    }
}

impl Default for LogGate {
    /// One line per [`LOG_INTERVAL`].
    fn default() -> Self {
        Self::after(1)
    }
}

/// So many lines were withheld; shown as what is appended to the line that tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Withheld(pub(crate) u64);

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 such line withheld)"),
            count => write!(f, " ({count} such lines withheld)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_passes_once_a_minute_and_counts_the_rest() {
        let start = Instant::now();
        let mut gate = LogGate::default();
        assert_eq!(gate.pass(start), Some(Withheld(0)));
        assert_eq!(gate.pass(start + Duration::from_secs(1)), None);
        assert_eq!(gate.pass(start + Duration::from_secs(59)), None);
        assert_eq!(gate.pass(start + Duration::from_secs(60)), Some(Withheld(2)));
        assert_eq!(gate.pass(start + Duration::from_secs(61)), None);
    }

    #[test]
    fn a_place_has_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut gate = LogGate::of_place();
        let mut passed = |after_ms: u64, tries: u32| {
            let now = start + Duration::from_millis(after_ms);
            (0..tries).filter(|_| gate.pass(now).is_some()).count()
        };
        assert_eq!(passed(0, 1000), 100);
        assert_eq!(passed(99, 1000), 0);
        assert_eq!(passed(1000, 1000), 10);
        assert_eq!(passed(3_600_000, 1000), 100);
    }

    #[test]
    fn a_clock_that_steps_back_lets_nothing_more_pass() {
        let start = Instant::now() + LOG_INTERVAL;
        let mut gate = LogGate::default();
        assert_eq!(gate.pass(start), Some(Withheld(0)));
        assert_eq!(gate.pass(start - LOG_INTERVAL / 2), None);
    }

    #[test]
    fn nothing_withheld_is_nothing_to_tell() {
        assert_eq!(Withheld(0).to_string(), "");
        assert_eq!(Withheld(1).to_string(), " (1 such line withheld)");
        assert_eq!(Withheld(7).to_string(), " (7 such lines withheld)");
    }
}
