//! When a watch that broke begins anew.
#![forbid(unsafe_code)]

use std::time::Duration;

use rand::rngs::StdRng;

use super::backoff::Backoff;

/// As upstream (facts 3.6).
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A watch that lived this long was a good one: the next try may come soon.
const GOOD_AFTER: Duration = Duration::from_secs(10);

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

    /// How long to wait after a watch that lived so long.
    pub fn pause(&mut self, lived: Duration) -> Duration {
        if lived >= GOOD_AFTER {
            self.backoff.reset();
        }
        self.backoff.next(&mut self.rng)
    }
}
