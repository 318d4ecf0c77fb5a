//! How long to wait before the next try, and how often to say why.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

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

/// The same complaint is worth a line again after this time.
const REPEAT: Duration = Duration::from_secs(60);

/// Lets a complaint through when its text changes, and once a minute while it stays.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    last: Option<(String, Instant)>,
}

impl Complaint {
    /// Is `reason` to be logged at `now`?
    pub(crate) fn is_due(&mut self, reason: &str, now: Instant) -> bool {
        let fresh = self.last.as_ref().is_none_or(|(said, at)| {
            said != reason || now.saturating_duration_since(*at) >= REPEAT
        });
        if fresh {
            self.last = Some((reason.to_owned(), now));
        }
        fresh
    }

    /// The trouble is over; `true` if there had been any.
    pub(crate) fn clear(&mut self) -> bool {
        self.last.take().is_some()
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
        assert!(complaint.is_due("no route", start));
        assert!(!complaint.is_due("no route", start + Duration::from_secs(59)));
        assert!(complaint.is_due("refused", start + Duration::from_secs(59)));
        assert!(complaint.is_due("refused", start + Duration::from_secs(119)));
        assert!(complaint.clear());
        assert!(!complaint.clear());
        assert!(complaint.is_due("refused", start + Duration::from_secs(120)));
    }
}
