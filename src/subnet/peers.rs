//! The peers' leases: from the store's snapshots and events to what changed for the routes.
//!
//! Pure. The whole table is kept, our own entry included, and only what is *seen* through our own
//! lease is reported: so nothing is lost when our own lease moves, and a second snapshot cannot
//! report our own subnet as a peer's (facts 3.6).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::lease::{Lease, Subnet};
use super::once::{Once, Seen};
use super::reconnect;
use super::store::{WatchEvent, same_holder};

/// A peer that is missing from a snapshot keeps its route for this long, and for as long as the hosts
/// take to come back one after the other ([`reconnect::spread`]). A store that was emptied, or
/// restored from an old backup, is filled again by the daemons themselves: within their watches'
/// longest back-off of five seconds and a time-out or two. A host that is really gone loses
/// nothing by it.
pub const GRACE: Duration = Duration::from_secs(30);

/// What changed for the routes.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A peer is new, or publishes something else than before.
    Up(Lease),
    /// A peer is gone.
    Down(Subnet),
}

/// All leases of the network, seen from one host.
#[derive(Debug)]
pub struct Peers {
    own: Lease,
    table: BTreeMap<Subnet, Lease>,
    /// Peers that the last snapshot did not have, and when they are given up.
    missing: BTreeMap<Subnet, Instant>,
    told: Once<Subnet>,
}

impl Peers {
    /// No peers yet; `own` is this host's lease.
    pub fn new(own: Lease) -> Self {
        Self { own, table: BTreeMap::new(), missing: BTreeMap::new(), told: Once::new() }
    }

    /// The peers' leases, in the order of their subnets.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.table.values().filter(|lease| is_peer(&self.own, lease))
    }

    /// Takes over what the store reports. A renewal that changes nothing gives no change; what a
    /// snapshot lacks is given up by [`Peers::expire`] only, what the store reports as removed at
    /// once.
    pub fn apply(&mut self, event: WatchEvent, now: Instant) -> Vec<Change> {
        match event {
            WatchEvent::Put(lease) => self.put(lease),
            WatchEvent::Removed(subnet) => self.remove(&subnet).into_iter().collect(),
            WatchEvent::Snapshot(leases) => {
                let next: BTreeMap<_, _> = leases.into_iter().map(|l| (l.subnet, l)).collect();
                let deadline = now + self.grace();
                for known in self.table.keys().filter(|known| !next.contains_key(known)) {
                    self.missing.entry(*known).or_insert(deadline);
                }
                next.into_values().flat_map(|lease| self.put(lease)).collect()
            }
        }
    }

    fn grace(&self) -> Duration {
        GRACE + reconnect::spread(self.table.len())
    }

    /// When [`Peers::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.missing.values().min().copied()
    }

    /// Gives up the peers that have been missing for too long.
    pub fn expire(&mut self, now: Instant) -> Vec<Change> {
        let due: Vec<Subnet> = self
            .missing
            .iter()
            .filter(|&(_, &deadline)| deadline <= now)
            .map(|(&subnet, _)| subnet)
            .collect();
        due.iter().filter_map(|subnet| self.remove(subnet)).collect()
    }

    /// Our own lease moved, or publishes something else: what that changes for the routes.
    pub fn set_own(&mut self, own: Lease) -> Vec<Change> {
        let before = std::mem::replace(&mut self.own, own);
        let mut changes = Vec::new();
        for lease in self.table.values() {
            match (is_peer(&before, lease), is_peer(&self.own, lease)) {
                (true, false) => changes.push(Change::Down(lease.subnet)),
                (false, true) => changes.push(Change::Up(lease.clone())),
                _ => {}
            }
        }
        changes
    }

    fn put(&mut self, lease: Lease) -> Vec<Change> {
        let seen = is_peer(&self.own, &lease);
        self.tell_conflict(&lease, seen);
        self.missing.remove(&lease.subnet);
        // Addresses that somebody leases now are not kept for whoever is missing.
        let stale: Vec<Subnet> =
            self.missing.keys().filter(|old| old.overlaps(&lease.subnet)).copied().collect();
        let mut changes: Vec<Change> =
            stale.iter().filter_map(|subnet| self.remove(subnet)).collect();
        let before = self.table.insert(lease.subnet, lease.clone());
        let before = before.filter(|before| is_peer(&self.own, before));
        changes.extend(match before {
            Some(before) if seen => (before.attrs != lease.attrs).then_some(Change::Up(lease)),
            Some(before) => Some(Change::Down(before.subnet)),
            None => seen.then_some(Change::Up(lease)),
        });
        changes
    }

    fn remove(&mut self, subnet: &Subnet) -> Option<Change> {
        self.told.forget(subnet);
        self.missing.remove(subnet);
        let before = self.table.remove(subnet)?;
        is_peer(&self.own, &before).then_some(Change::Down(before.subnet))
    }

    /// Says once what an operator must know: two hosts claim one thing.
    fn tell_conflict(&mut self, lease: &Lease, seen: bool) {
        if lease.subnet == self.own.subnet {
            return;
        }
        let (subnet, ip, own) = (lease.subnet, lease.attrs.public_ip, self.own.subnet);
        if same_holder(&lease.attrs, &self.own.attrs) {
            if let Seen::First = self.told.see(subnet) {
                tracing::warn!(
                    "lease {subnet} carries our own public address {ip}, while ours is {own}: no \
                     route is set to it; if another host has this address, give it its own by \
                     --public-ip; if it was ours before, it ends by itself"
                );
            }
        } else if subnet.overlaps(&own) {
            if let Seen::First = self.told.see(subnet) {
                let what = if seen { "the longer prefix wins there" } else { "it is ignored" };
                tracing::warn!(
                    "lease {subnet} of {ip} overlaps our own {own}: {what}; delete one of the two"
                );
            }
        } else {
            self.told.forget(&subnet);
        }
    }
}

/// Is this a lease to send packets to? Not our own subnet, nor one that would lead back to us.
///
/// A key that differs from ours only by its IPv6 part claims the very same IPv4 addresses: our own
/// claim stands, or our pods would lose theirs.
fn is_peer(own: &Lease, lease: &Lease) -> bool {
    lease.subnet != own.subnet
        && !(lease.subnet.v4 == own.subnet.v4 && own.subnet.v4.prefix_len() > 0)
        && !same_holder(&lease.attrs, &own.attrs)
}

#[cfg(test)]
mod tests {
    use super::super::lease::{Expiry, LeaseAttrs};
    use super::*;

    fn lease(subnet: &str, ip: &str) -> Lease {
        Lease {
            subnet: subnet.parse().unwrap(),
            attrs: LeaseAttrs::udp(ip.parse().unwrap()),
            expiry: Expiry::Unknown,
        }
    }

    impl Peers {
        fn apply_now(&mut self, event: WatchEvent) -> Vec<Change> {
            self.apply(event, Instant::now())
        }
    }

    fn own() -> Lease {
        lease("10.5.1.0-24", "10.4.7.21")
    }

    fn two() -> Lease {
        lease("10.5.2.0-24", "10.4.7.22")
    }

    fn three() -> Lease {
        lease("10.5.3.0-24", "10.4.7.23")
    }

    fn subnets(peers: &Peers) -> Vec<String> {
        peers.leases().map(|l| l.subnet.to_string()).collect()
    }

    #[test]
    fn a_snapshot_is_a_diff_and_our_own_subnet_is_never_in_it() {
        let mut peers = Peers::new(own());
        let all = WatchEvent::Snapshot(vec![own(), two(), three()]);
        assert_eq!(peers.apply_now(all.clone()), [Change::Up(two()), Change::Up(three())]);
        assert_eq!(peers.apply_now(all), []);
        let moved = lease("10.5.2.0-24", "10.4.7.99");
        assert_eq!(peers.apply_now(WatchEvent::Snapshot(vec![moved.clone()])), [Change::Up(moved)]);
        assert_eq!(subnets(&peers), ["10.5.2.0-24", "10.5.3.0-24"]);
    }

    #[test]
    fn who_is_missing_from_a_snapshot_is_given_up_after_a_while() {
        let (mut peers, start) = (Peers::new(own()), Instant::now());
        let all = WatchEvent::Snapshot(vec![own(), two(), three()]);
        peers.apply(all, start);
        assert_eq!(peers.next_expiry(), None);
        let grace = GRACE + reconnect::spread(3);
        // An emptied store: nobody is given up yet, and who comes back was never away.
        assert_eq!(peers.apply(WatchEvent::Snapshot(vec![]), start), []);
        assert_eq!(peers.apply(WatchEvent::Put(two()), start + GRACE / 2), []);
        // A second empty snapshot does not prolong it.
        let again = WatchEvent::Snapshot(vec![two()]);
        assert_eq!(peers.apply(again, start + GRACE / 2), []);
        assert_eq!(peers.next_expiry(), Some(start + grace));
        assert_eq!(peers.expire(start + grace - Duration::from_nanos(1)), []);
        assert_eq!(peers.expire(start + grace), [Change::Down(three().subnet)]);
        assert_eq!(peers.next_expiry(), None);
        assert_eq!(subnets(&peers), ["10.5.2.0-24"]);
    }

    #[test]
    fn addresses_that_are_leased_anew_are_not_kept_for_the_missing() {
        let (mut peers, start) = (Peers::new(own()), Instant::now());
        peers.apply(WatchEvent::Put(two()), start);
        peers.apply(WatchEvent::Snapshot(vec![]), start);
        let wider = lease("10.5.2.0-23", "10.4.7.30");
        let changes = peers.apply(WatchEvent::Put(wider.clone()), start);
        assert_eq!(changes, [Change::Down(two().subnet), Change::Up(wider)]);
        assert_eq!(peers.next_expiry(), None);
    }

    #[test]
    fn events_change_one_peer_and_renewals_change_nothing() {
        let mut peers = Peers::new(own());
        assert_eq!(peers.apply_now(WatchEvent::Put(own())), []);
        assert_eq!(peers.apply_now(WatchEvent::Put(two())), [Change::Up(two())]);
        let renewed = Lease { expiry: Expiry::Permanent, ..two() };
        assert_eq!(peers.apply_now(WatchEvent::Put(renewed)), []);
        let moved = lease("10.5.2.0-24", "10.4.7.99");
        assert_eq!(peers.apply_now(WatchEvent::Put(moved.clone())), [Change::Up(moved)]);
        assert_eq!(peers.apply_now(WatchEvent::Removed(three().subnet)), []);
        assert_eq!(peers.apply_now(WatchEvent::Removed(own().subnet)), []);
        let down = [Change::Down(two().subnet)];
        assert_eq!(peers.apply_now(WatchEvent::Removed(two().subnet)), down);
    }

    #[test]
    fn a_subnet_that_another_host_took_from_us_becomes_a_peer_when_we_move() {
        let mut peers = Peers::new(own());
        peers.apply_now(WatchEvent::Snapshot(vec![own(), two(), three()]));
        let thief = lease("10.5.1.0-24", "10.4.7.66");
        assert_eq!(peers.apply_now(WatchEvent::Put(thief.clone())), []);
        let moved = lease("10.5.9.0-24", "10.4.7.21");
        assert_eq!(peers.set_own(moved.clone()), [Change::Up(thief)]);
        assert_eq!(peers.apply_now(WatchEvent::Put(moved)), []);
        assert_eq!(subnets(&peers), ["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"]);
    }

    #[test]
    fn moving_onto_a_subnet_ends_the_peer_that_had_it() {
        let mut peers = Peers::new(own());
        peers.apply_now(WatchEvent::Snapshot(vec![own(), two()]));
        let changes = peers.set_own(lease("10.5.2.0-24", "10.4.7.21"));
        assert_eq!(changes, [Change::Down(two().subnet)]);
        assert_eq!(peers.leases().count(), 0, "our own old lease leads back to us");
    }

    #[test]
    fn a_lease_with_our_own_address_leads_nowhere() {
        let mut peers = Peers::new(own());
        assert_eq!(peers.apply_now(WatchEvent::Put(lease("10.5.7.0-24", "10.4.7.21"))), []);
        let known = lease("10.5.8.0-24", "10.4.7.28");
        peers.apply_now(WatchEvent::Put(known.clone()));
        let ours = lease("10.5.8.0-24", "10.4.7.21");
        assert_eq!(peers.apply_now(WatchEvent::Put(ours)), [Change::Down(known.subnet)]);
    }

    #[test]
    fn a_lease_within_ours_is_a_peer_but_one_with_our_very_addresses_is_not() {
        let mut peers = Peers::new(own());
        let inside = lease("10.5.1.128-25", "10.4.7.24");
        assert_eq!(peers.apply_now(WatchEvent::Put(inside.clone())), [Change::Up(inside)]);
        let dual = lease("10.5.1.0-24&fd00::-64", "10.4.7.25");
        assert_eq!(peers.apply_now(WatchEvent::Put(dual)), []);
    }
}
