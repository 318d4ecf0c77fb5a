//! How long to wait before the next try, and how often to say why.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use crate::logging::limit::{LOG_INTERVAL, Withheld};

/// Doubling delays with jitter, between two bounds.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    pub(crate) const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, ceiling: min }
    }

    /// The next delay: anywhere in the upper three quarters below the ceiling, so that hosts that
    /// failed together do not come back together, and never close to nothing.
    pub(crate) fn next(&mut self, rng: &mut impl Rng) -> Duration {
        self.next_below(Duration::ZERO, rng)
    }

    /// The same below `ceiling` if that is higher than our own.
    pub(crate) fn next_below(&mut self, ceiling: Duration, rng: &mut impl Rng) -> Duration {
        let delay = self.ceiling.max(ceiling).mul_f64(rng.random_range(0.25..1.0));
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        delay
    }

    pub(crate) fn reset(&mut self) {
        self.ceiling = self.min;
    }
}

/// So many texts of one trouble are told at once: a connection may fail in several ways in turn.
const MAX_TOLD: usize = 4;

/// Lets a complaint through when its text is a new one, and once a minute while it stays.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    /// What was told in the last minute.
    told: Vec<(String, Instant)>,
    withheld: u64,
}

impl Complaint {
    /// Whether `reason` is to be logged at `now`; if so, how many were not since the last one.
    pub(crate) fn due(&mut self, reason: &str, now: Instant) -> Option<Withheld> {
        self.told.retain(|(_, at)| now.saturating_duration_since(*at) < LOG_INTERVAL);
        if self.told.len() == MAX_TOLD || self.told.iter().any(|(told, _)| told == reason) {
            self.withheld += 1;
            return None;
        }
        self.told.push((reason.to_owned(), now));
        Some(Withheld(std::mem::take(&mut self.withheld)))
    }

    /// The trouble is over; `true` if there had been any.
    pub(crate) fn clear(&mut self) -> bool {
        self.withheld = 0;
        !std::mem::take(&mut self.told).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_anew() {
        let mut rng = StdRng::seed_from_u64(1);
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        let mut ceiling = min;
        for _ in 0..20 {
            let delay = backoff.next(&mut rng);
            assert!(delay >= ceiling / 4 && delay <= ceiling, "{delay:?} of {ceiling:?}");
            ceiling = (ceiling * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= min);
    }

    #[test]
    fn a_complaint_is_repeated_once_a_minute_or_when_it_changes() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        let mut due = |reason, seconds| complaint.due(reason, start + Duration::from_secs(seconds));
        assert_eq!(due("no route", 0), Some(Withheld(0)));
        assert_eq!(due("no route", 1), None);
        assert_eq!(due("no route", 59), None);
        assert_eq!(due("refused", 59), Some(Withheld(2)));
        assert_eq!(due("refused", 118), None);
        assert_eq!(due("refused", 119), Some(Withheld(1)));
        assert!(complaint.clear());
        assert!(!complaint.clear());
        assert_eq!(complaint.due("refused", start + Duration::from_secs(120)), Some(Withheld(0)));
    }

    #[test]
    fn a_trouble_of_many_texts_is_told_a_few_times_a_minute() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        let mut told = |texts: u64, seconds: std::ops::Range<u64>| {
            let due = |second: &u64| {
                let reason = format!("reason {}", second % texts);
                complaint.due(&reason, start + Duration::from_secs(*second)).is_some()
            };
            seconds.filter(due).count()
        };
        assert_eq!(told(2, 0..60), 2);
        assert_eq!(told(2, 60..120), 2);
        assert_eq!(told(1000, 120..240), 2 * MAX_TOLD);
    }
}
