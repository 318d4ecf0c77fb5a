//! Limits on what the data path says to the network. Time comes in as an argument.
#![forbid(unsafe_code)]

use std::time::Instant;

/// ICMP errors that one thread sends per second, and at once: a tenth and the burst of the
/// kernel's own limit (`net.ipv4.icmp_msgs_per_sec`, `icmp_msgs_burst`), since the kernel's holds
/// for a whole host.
pub const ICMP_PER_SECOND: u32 = 100;
/// See [`ICMP_PER_SECOND`].
pub const ICMP_BURST: u32 = 50;

/// A token bucket.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u32,
    burst: f64,
    tokens: f64,
    refilled: Instant,
}

impl RateLimit {
    /// A full bucket of `burst` tokens that refills with `per_second`.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> RateLimit {
        let burst = f64::from(burst);
        RateLimit { per_second, burst, tokens: burst, refilled: now }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let elapsed_s = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + elapsed_s * f64::from(self.per_second)).min(self.burst);
        self.refilled = now;
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut limit = RateLimit::new(10, 3, start);
        assert_eq!((0..9).filter(|_| limit.take(start)).count(), 3);
        let later = start + Duration::from_millis(250);
        assert_eq!((0..9).filter(|_| limit.take(later)).count(), 2);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..9).filter(|_| limit.take(much_later)).count(), 3);
    }

    #[test]
    fn a_clock_that_steps_back_grants_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut limit = RateLimit::new(10, 1, start);
        assert!(limit.take(start));
        assert!(!limit.take(start - Duration::from_secs(5)));
    }
}
