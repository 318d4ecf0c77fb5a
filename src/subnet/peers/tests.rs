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
fn nobody_gets_a_part_of_our_subnet() {
    let mut peers = Peers::new(own());
    for part in ["10.5.1.128-25", "10.5.1.0-26", "10.5.1.7-31", "10.5.1.0-24&fd00::-64"] {
        assert_eq!(peers.apply_now(WatchEvent::Put(lease(part, "10.4.7.24"))), [], "{part}");
    }
    let around = lease("10.5.0.0-23", "10.4.7.25");
    assert_eq!(peers.apply_now(WatchEvent::Put(around.clone())), [Change::Up(around)]);
}

#[test]
fn a_part_of_a_peers_subnet_counts_only_without_that_peer() {
    let mut peers = Peers::new(own());
    let part = lease("10.5.2.64-26", "10.4.7.66");
    let up = || Change::Up(part.clone());
    assert_eq!(peers.apply_now(WatchEvent::Put(part.clone())), [up()]);
    let down = Change::Down(part.subnet);
    assert_eq!(peers.apply_now(WatchEvent::Put(two())), [Change::Up(two()), down]);
    assert_eq!(subnets(&peers), ["10.5.2.0-24"]);
    // Neither written again nor listed it does.
    assert_eq!(peers.apply_now(WatchEvent::Put(part.clone())), []);
    assert_eq!(peers.apply_now(WatchEvent::Snapshot(vec![own(), two(), part.clone()])), []);
    let gone = [Change::Down(two().subnet), up()];
    assert_eq!(peers.apply_now(WatchEvent::Removed(two().subnet)), gone);
    assert_eq!(subnets(&peers), ["10.5.2.64-26"]);
    // And one within it is no part of a host's subnet: the longest prefix is the right one.
    let inner = lease("10.5.2.64-28", "10.4.7.67");
    assert_eq!(peers.apply_now(WatchEvent::Put(inner.clone())), [Change::Up(inner)]);
}
