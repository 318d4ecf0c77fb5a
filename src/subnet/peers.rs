//! The peers' leases: from the store's snapshots and events to what changed for the routes.
//!
//! Pure. The whole table is kept, our own entry included, and only what is *seen* through our own
//! lease is reported: so nothing is lost when our own lease moves, and a second snapshot cannot
//! report our own subnet as a peer's (facts 3.6).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

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
        self.table.values().filter(|lease| self.sees(lease))
    }

    /// Takes over what the store reports. A renewal that changes nothing gives no change; what a
    /// snapshot lacks is given up by [`Peers::expire`] only, what the store reports as removed at
    /// once.
    pub fn apply(&mut self, event: WatchEvent, now: Instant) -> Vec<Change> {
        match event {
            WatchEvent::Put(lease) => self.put(lease),
            WatchEvent::Removed(subnet) => self.remove(&subnet),
            WatchEvent::Config => Vec::new(),
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
        due.iter().flat_map(|subnet| self.remove(subnet)).collect()
    }

    /// Our own lease moved, or publishes something else: what that changes for the routes.
    pub fn set_own(&mut self, own: Lease) -> Vec<Change> {
        let before = std::mem::replace(&mut self.own, own);
        let mut changes = Vec::new();
        for lease in self.table.values() {
            match (is_peer(&before, &self.table, lease), self.sees(lease)) {
                (true, false) => changes.push(Change::Down(lease.subnet)),
                (false, true) => changes.push(Change::Up(lease.clone())),
                _ => {}
            }
        }
        changes
    }

    fn put(&mut self, lease: Lease) -> Vec<Change> {
        let subnet = lease.subnet;
        self.missing.remove(&subnet);
        // Addresses that somebody leases now are not kept for whoever is missing.
        let stale: Vec<Subnet> =
            self.missing.keys().filter(|old| old.overlaps(&subnet)).copied().collect();
        let mut changes: Vec<Change> =
            stale.iter().flat_map(|subnet| self.remove(subnet)).collect();
        let seen = self.sees(&lease);
        self.tell_conflict(&lease, seen);
        let parts = self.seen_inside(&subnet);
        let before = self.table.get(&subnet).filter(|before| self.sees(before)).cloned();
        self.table.insert(subnet, lease.clone());
        changes.extend(match before {
            Some(before) if seen => (before.attrs != lease.attrs).then_some(Change::Up(lease)),
            Some(before) => Some(Change::Down(before.subnet)),
            None => seen.then_some(Change::Up(lease)),
        });
        for part in parts {
            if !self.sees(&part) {
                self.tell_conflict(&part, false);
                changes.push(Change::Down(part.subnet));
            }
        }
        changes
    }

    fn remove(&mut self, subnet: &Subnet) -> Vec<Change> {
        self.told.forget(subnet);
        self.missing.remove(subnet);
        let parts = self.seen_inside(subnet);
        let was_seen = self.table.get(subnet).is_some_and(|lease| self.sees(lease));
        self.table.remove(subnet);
        let mut changes: Vec<Change> =
            was_seen.then_some(Change::Down(*subnet)).into_iter().collect();
        let free = self.seen_inside(subnet).into_iter().filter(|part| !parts.contains(part));
        changes.extend(free.map(Change::Up));
        changes
    }

    fn sees(&self, lease: &Lease) -> bool {
        is_peer(&self.own, &self.table, lease)
    }

    /// The peers whose subnets are parts of `subnet`, if that is of the length that hosts lease.
    fn seen_inside(&self, subnet: &Subnet) -> Vec<Lease> {
        let whole = subnet.v4.trunc();
        if whole.prefix_len() != self.own.subnet.v4.prefix_len() {
            return Vec::new();
        }
        self.table
            .range(Subnet { v4: whole, v6: None }..)
            .take_while(|(part, _)| whole.contains(&part.v4.addr()))
            .filter(|(part, lease)| part.v4.prefix_len() > whole.prefix_len() && self.sees(lease))
            .map(|(_, lease)| lease.clone())
            .collect()
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
        } else if let Some(whole) = whole(&self.own, &self.table, &subnet) {
            let (whole, holder) = (whole.subnet, whole.attrs.public_ip);
            if let Seen::First = self.told.see(subnet) {
                tracing::warn!(
                    "lease {subnet} of {ip} lies inside {whole} of {holder}: it is ignored; \
                     delete one of the two"
                );
            }
        } else {
            self.told.forget(&subnet);
        }
    }
}

/// Is this a lease to send packets to? Not our own subnet or a part of it, nor one that would lead
/// back to us, nor a part of another host's subnet.
///
/// A key that differs from ours only by its IPv6 part claims the very same IPv4 addresses: our own
/// claim stands, or our pods would lose theirs.
fn is_peer(own: &Lease, table: &BTreeMap<Subnet, Lease>, lease: &Lease) -> bool {
    let ours = own.subnet.v4;
    lease.subnet != own.subnet
        && !(ours.contains(&lease.subnet.v4) && ours.prefix_len() > 0)
        && !same_holder(&lease.attrs, &own.attrs)
        && whole(own, table, &lease.subnet).is_none()
}

/// The lease that `subnet` is a part of, if it is of the length that this network's hosts lease:
/// our own. No daemon makes a lease inside of another one, so such a key is a mistake, and must not
/// take pods' addresses away; a lease that spans hosts' subnets yields to them by its shorter prefix.
fn whole<'t>(
    own: &Lease,
    table: &'t BTreeMap<Subnet, Lease>,
    subnet: &Subnet,
) -> Option<&'t Lease> {
    let length = own.subnet.v4.prefix_len();
    if subnet.v4.prefix_len() <= length || length == 0 {
        return None;
    }
    let v4 = Ipv4Net::new_assert(subnet.v4.addr(), length).trunc();
    let (_, lease) = table.range(Subnet { v4, v6: None }..).next()?;
    (lease.subnet.v4 == v4).then_some(lease)
}

#[cfg(test)]
mod tests;
