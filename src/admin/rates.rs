//! Speeds and last sights, made of counters that are looked at once a second. Pure.
//!
//! The data path only counts. That a peer was seen is read off its counter of received packets: so
//! "last seen" is exact to a second, and costs a packet nothing.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use crate::backend::view::View;

/// Time between two looks.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// What was found by the last look.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// When it was.
    at: Option<Instant>,
    /// All that is sent to peers.
    pub(super) egress: Speed,
    /// All that is received from peers.
    pub(super) ingress: Speed,
    peers: HashMap<Ipv4Addr, PeerRates>,
}

/// One peer's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeerRates {
    /// Sent to it.
    pub(super) egress: Speed,
    /// Received from it.
    pub(super) ingress: Speed,
    packets_received: u64,
    /// When a packet of it was last found to have come.
    pub(super) last_seen: Option<SystemTime>,
}

/// A counter of bytes, and how fast it grows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speed {
    bytes: u64,
    /// Over the last period.
    pub(super) bits_per_second: u64,
}

impl Speed {
    fn look(&mut self, bytes: u64, elapsed: Option<Duration>) {
        let new_bits = bytes.saturating_sub(self.bytes) as f64 * 8.0;
        self.bits_per_second =
            elapsed.map_or(0, |elapsed| (new_bits / elapsed.as_secs_f64()) as u64);
        self.bytes = bytes;
    }
}

impl Rates {
    /// Looks at all counters; `now` and `wall` are the same moment.
    pub(super) fn look(&mut self, view: &View, now: Instant, wall: SystemTime) {
        let elapsed = self.at.map(|at| now.saturating_duration_since(at)).filter(|e| !e.is_zero());
        self.at = Some(now);
        self.egress.look(view.stats.egress.bytes.get(), elapsed);
        self.ingress.look(view.stats.ingress.bytes.get(), elapsed);
        self.peers.retain(|ip, _| view.peers.contains_key(ip));
        for entry in &view.peers {
            let (ip, stats) = entry.pair();
            // A peer that is new since the last look began at nothing.
            let peer = self.peers.entry(*ip).or_default();
            peer.egress.look(stats.egress.bytes.get(), elapsed);
            peer.ingress.look(stats.ingress.bytes.get(), elapsed);
            let received = stats.ingress.packets.get();
            if received != peer.packets_received {
                peer.packets_received = received;
                peer.last_seen = Some(wall);
            }
        }
    }

    /// What was found of a peer.
    pub(super) fn of(&self, peer: Ipv4Addr) -> PeerRates {
        self.peers.get(&peer).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_and_sights_follow_the_counters() {
        let (view, mut rates) = (View::default(), Rates::default());
        let (start, epoch) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let at = |seconds| (start + PERIOD * seconds, epoch + PERIOD * seconds);
        let mut look = |seconds| {
            let (now, wall) = at(seconds);
            rates.look(&view, now, wall);
            let peer = rates.of(Ipv4Addr::new(10, 4, 7, 22));
            (rates.egress.bits_per_second, peer.ingress.bits_per_second, peer.last_seen)
        };
        assert_eq!(look(0), (0, 0, None));
        let peer = std::sync::Arc::clone(&view.peers.entry([10, 4, 7, 22].into()).or_default());
        view.stats.egress.bytes.add(1000);
        assert_eq!(look(1), (8000, 0, None), "sending to a peer is not seeing it");
        peer.ingress.packets.add(1);
        peer.ingress.bytes.add(500);
        assert_eq!(look(3), (0, 2000, Some(at(3).1)), "over two seconds");
        assert_eq!(look(4), (0, 0, Some(at(3).1)));
        view.peers.clear();
        assert_eq!(look(5), (0, 0, None), "a peer that is gone is forgotten");
    }
}
