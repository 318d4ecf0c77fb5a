//! When a watch that broke begins anew.
//!
//! Each begins with a list of all leases, so that n hosts which lose the store together ask it for
//! n² leases. They come back over a time that grows with n: the store then lists about 670 times a
//! second (one per [`PER_LEASE`] and three quarters of it) however many hosts there are.
#![forbid(unsafe_code)]

use std::time::Duration;

use rand::rngs::StdRng;

use super::backoff::Backoff;

/// As upstream (facts 3.6).
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A watch that lived this long was a good one: the next try may come soon.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// There are about as many hosts as leases, and each may take this part of the time.
const PER_LEASE: Duration = Duration::from_millis(2);

/// Reached with 30,000 leases; whoever fills the store with more shall not stop the watches.
const SPREAD_MAX: Duration = Duration::from_secs(60);

/// Over how long a time the hosts come back that lost the store with so many leases together.
pub fn spread(leases: usize) -> Duration {
    PER_LEASE.saturating_mul(u32::try_from(leases).unwrap_or(u32::MAX)).min(SPREAD_MAX)
}

/// Makes the pauses between a watch's end and its next beginning.
#[derive(Debug)]
pub struct Reconnect {
    backoff: Backoff,
    rng: StdRng,
}

impl Reconnect {
    /// `rng` makes the jitter.
    pub fn new(rng: StdRng) -> Self {
        Self { backoff: Backoff::new(RETRY_MIN, RETRY_MAX), rng }
    }

    /// How long to wait after a watch that lived so long, nothing if it did not begin, and knew so
    /// many leases.
    pub fn pause(&mut self, lived: Duration, leases: usize) -> Duration {
        if lived >= GOOD_AFTER {
            self.backoff.reset();
        }
        self.backoff.next_below(spread(leases), &mut self.rng)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn reconnect(seed: u64) -> Reconnect {
        Reconnect::new(StdRng::seed_from_u64(seed))
    }

    #[test]
    fn few_hosts_come_back_at_once_and_many_one_after_the_other() {
        for seed in 0..100 {
            assert!(reconnect(seed).pause(GOOD_AFTER, 50) <= RETRY_MIN);
        }
        for leases in [1_000, 10_000] {
            let window = spread(leases);
            let mut pauses: Vec<Duration> =
                (0..leases as u64).map(|seed| reconnect(seed).pause(GOOD_AFTER, leases)).collect();
            pauses.sort();
            assert!(pauses[0] >= window / 4 && pauses[leases - 1] <= window);
            // Within each tenth of a second, of 67 on average.
            for start in 0..leases - 100 {
                let took = pauses[start + 100] - pauses[start];
                assert!(took >= Duration::from_millis(100), "{took:?} for 100 of {leases}");
            }
        }
    }

    #[test]
    fn the_pause_is_bounded_and_grows_while_nothing_comes_of_it() {
        let mut reconnect = reconnect(1);
        assert!(reconnect.pause(Duration::ZERO, usize::MAX) <= SPREAD_MAX);
        for _ in 0..10 {
            assert!(reconnect.pause(Duration::ZERO, 0) <= RETRY_MAX);
        }
        assert!(reconnect.pause(Duration::ZERO, 0) > RETRY_MAX / 4);
        assert!(reconnect.pause(GOOD_AFTER, 0) <= RETRY_MIN);
    }
}
