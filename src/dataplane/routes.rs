//! The subnet table: longest prefix match, read without a lock, published whole.
//!
//! [`Routes`] is an immutable snapshot. The control plane builds one off-thread and publishes it
//! behind an atomic pointer ([`SharedRoutes`]); a data-path thread revalidates its copy once per
//! batch ([`RoutesReader`]) and then reads plain memory.
//!
//! The prefixes are flattened into disjoint address intervals, so "longest prefix" is decided when
//! the table is built. Over the overlay network lies an array of slots, one per subnet of the most
//! common length: a slot that one interval covers answers in one memory access, a slot with finer
//! subnets in it points at its few intervals, and addresses outside the overlay network (hand-made
//! keys) take a binary search over all intervals.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Cache};
use ipnet::Ipv4Net;

use super::stats::PeerStats;

/// At most this many slots, 4 bytes each: 1 MiB, about a core's L2 cache.
const MAX_SLOT_BITS: u32 = 18;

/// In a slot: the low bits name an entry of `Table::mixed`, not a peer.
const MIXED: u32 = 1 << 31;

/// In a slot or an interval: nobody owns these addresses.
const NOBODY: u32 = MIXED - 1;

/// Where one subnet's traffic goes.
#[derive(Clone, Debug)]
pub struct Route {
    /// The peer's subnet.
    pub subnet: Ipv4Net,
    /// Where its daemon listens.
    pub endpoint: SocketAddrV4,
    /// The peer's counters; they outlive the table.
    pub stats: Arc<PeerStats>,
}

/// One snapshot of who owns what.
#[derive(Debug)]
pub struct Routes {
    overlay: Ipv4Net,
    own: Ipv4Net,
    routes: Box<[Route]>,
    table: Table,
    /// The peers' addresses, sorted, each once, with the index of a route to each.
    peers: Box<[(u32, u32)]>,
}

impl Routes {
    /// Builds a snapshot. Of two routes to the same subnet the later one wins.
    ///
    /// `overlay` is the whole network, `own` the subnet that this host leases.
    #[must_use]
    pub fn build(overlay: Ipv4Net, own: Ipv4Net, routes: Vec<Route>) -> Routes {
        let table = Table::build(overlay, routes.iter().map(|route| route.subnet));
        let addresses = routes.iter().map(|route| u32::from(*route.endpoint.ip()));
        let mut peers: Vec<(u32, u32)> = addresses.zip(0..).collect();
        peers.sort_unstable();
        peers.dedup_by_key(|&mut (address, _)| address);
        Routes {
            overlay: overlay.trunc(),
            own: own.trunc(),
            routes: routes.into(),
            table,
            peers: peers.into(),
        }
    }

    /// The index of the route with the longest prefix that contains `address`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, address: Ipv4Addr) -> Option<u32> {
        self.table.lookup(u32::from(address))
    }

    /// The route that [`Routes::lookup`] found.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Route> {
        self.routes.get(index as usize)
    }

    /// Whether a peer has this public address.
    #[inline]
    #[must_use]
    pub fn is_peer(&self, address: Ipv4Addr) -> bool {
        self.find_peer(address).is_some()
    }

    /// A route to the peer that has this public address.
    #[must_use]
    pub fn route_to_peer(&self, address: Ipv4Addr) -> Option<&Route> {
        self.get(self.find_peer(address)?)
    }

    #[inline]
    fn find_peer(&self, address: Ipv4Addr) -> Option<u32> {
        let address = u32::from(address);
        let found = self.peers.binary_search_by_key(&address, |&(address, _)| address).ok()?;
        Some(self.peers[found].1)
    }

    /// The whole overlay network.
    #[inline]
    #[must_use]
    pub fn overlay(&self) -> Ipv4Net {
        self.overlay
    }

    /// The subnet that this host leases.
    #[inline]
    #[must_use]
    pub fn own(&self) -> Ipv4Net {
        self.own
    }

    /// How many routes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there is no route at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

/// The flattened prefixes.
#[derive(Debug)]
struct Table {
    /// The first address that the slots cover.
    window_start: u32,
    /// An address's slot is its distance from `window_start`, shifted by this.
    slot_shift: u32,
    slots: Box<[u32]>,
    /// For each slot with finer subnets in it: its intervals, first and one past the last.
    mixed: Box<[(u32, u32)]>,
    /// The first address of each interval, ascending from 0; together they cover all addresses.
    starts: Box<[u32]>,
    /// The route of each interval.
    owners: Box<[u32]>,
}

impl Table {
    fn build(overlay: Ipv4Net, subnets: impl Iterator<Item = Ipv4Net>) -> Table {
        let subnets: Vec<Ipv4Net> = subnets.map(|subnet| subnet.trunc()).collect();
        let (starts, owners) = flatten(&subnets);

        let overlay_bits = u32::from(32 - overlay.prefix_len());
        let slot_shift = u32::from(32 - most_common_length(&subnets, overlay))
            .clamp(overlay_bits.saturating_sub(MAX_SLOT_BITS), overlay_bits);
        let window_start = u32::from(overlay.network());
        let slot_count = 1_u64 << (overlay_bits - slot_shift);

        let mut slots = Vec::with_capacity(slot_count as usize);
        let mut mixed = Vec::new();
        // Slots and intervals both ascend: one walk over both.
        let mut first = 0;
        for slot in 0..slot_count {
            let slot_start = window_start + ((slot << slot_shift) as u32);
            let slot_end = slot_start + ((1_u64 << slot_shift) - 1) as u32;
            while starts.get(first + 1).is_some_and(|&start| start <= slot_start) {
                first += 1;
            }
            let mut past = first + 1;
            while starts.get(past).is_some_and(|&start| start <= slot_end) {
                past += 1;
            }
            slots.push(if past - first == 1 {
                owners[first]
            } else {
                mixed.push((first as u32, past as u32));
                MIXED | (mixed.len() - 1) as u32
            });
        }
        Table {
            window_start,
            slot_shift,
            slots: slots.into(),
            mixed: mixed.into(),
            starts: starts.into(),
            owners: owners.into(),
        }
    }

    #[inline]
    fn lookup(&self, address: u32) -> Option<u32> {
        let distance = u64::from(address.wrapping_sub(self.window_start));
        // A window of all addresses has a shift of at least 14, so this never shifts by 32.
        let slot = self.slots.get((distance >> self.slot_shift) as usize);
        let owner = match slot {
            Some(&owner) if owner & MIXED == 0 => owner,
            Some(&entry) => {
                let &(first, past) = self.mixed.get((entry & !MIXED) as usize)?;
                self.search(address, first as usize, past as usize)
            }
            None => self.search(address, 0, self.starts.len()),
        };
        (owner != NOBODY).then_some(owner)
    }

    fn search(&self, address: u32, first: usize, past: usize) -> u32 {
        let after = self.starts[first..past].partition_point(|&start| start <= address);
        self.owners[first + after - 1]
    }
}

/// The prefix length that most subnets have; the slots answer those directly.
fn most_common_length(subnets: &[Ipv4Net], overlay: Ipv4Net) -> u8 {
    let mut counts = [0_u32; 33];
    for subnet in subnets {
        counts[usize::from(subnet.prefix_len())] += 1;
    }
    (overlay.prefix_len()..=32)
        .max_by_key(|&length| (counts[usize::from(length)], std::cmp::Reverse(length)))
        .unwrap_or(overlay.prefix_len())
}

/// Turns nested prefixes into disjoint intervals, each owned by the longest prefix over it.
fn flatten(subnets: &[Ipv4Net]) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..subnets.len() as u32).collect();
    // Outer before inner, and of two equal subnets the earlier first, so that the later wins.
    order.sort_unstable_by_key(|&i| {
        let subnet = subnets[i as usize];
        (u32::from(subnet.network()), subnet.prefix_len(), i)
    });

    let mut intervals = Intervals::default();
    // The prefixes that are open at the current address, outermost first: (last address, route).
    let mut open: Vec<(u32, u32)> = Vec::new();
    intervals.begin(0, NOBODY);
    for route in order {
        let subnet = subnets[route as usize];
        let (start, end) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
        close_until(&mut intervals, &mut open, start);
        intervals.begin(start, route);
        open.push((end, route));
    }
    close_until(&mut intervals, &mut open, u32::MAX);
    (intervals.starts, intervals.owners)
}

/// Ends the open prefixes whose last address lies before `next`.
fn close_until(intervals: &mut Intervals, open: &mut Vec<(u32, u32)>, next: u32) {
    while let Some(&(end, _)) = open.last()
        && end < next
    {
        open.pop();
        let outer = open.last().map_or(NOBODY, |&(_, route)| route);
        intervals.begin(end + 1, outer);
    }
}

#[derive(Default)]
struct Intervals {
    starts: Vec<u32>,
    owners: Vec<u32>,
}

impl Intervals {
    /// From `start` on, `owner` holds; an interval that would be empty is replaced.
    fn begin(&mut self, start: u32, owner: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.owners.pop();
        }
        if self.owners.last() != Some(&owner) {
            self.starts.push(start);
            self.owners.push(owner);
        }
    }
}

/// The published snapshot; cloning shares it.
#[derive(Clone, Debug)]
pub struct SharedRoutes {
    current: Arc<ArcSwap<Routes>>,
    /// Former snapshots that a reader may still hold. Whoever lets go last frees a snapshot, a
    /// quarter of a millisecond for 10,000 routes: that must not be a data-path thread.
    retired: Arc<Mutex<Vec<Arc<Routes>>>>,
}

impl SharedRoutes {
    /// Starts with this snapshot.
    #[must_use]
    pub fn new(routes: Routes) -> SharedRoutes {
        SharedRoutes { current: Arc::new(ArcSwap::from_pointee(routes)), retired: Arc::default() }
    }

    /// Replaces the snapshot; every thread sees it from its next batch on.
    pub fn publish(&self, routes: Routes) {
        let old = self.current.swap(Arc::new(routes));
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(old);
        // Nobody can get hold of a former snapshot any more, so a count of one stays one.
        retired.retain(|routes| Arc::strong_count(routes) > 1);
    }

    /// A handle for one data-path thread.
    #[must_use]
    pub fn reader(&self) -> RoutesReader {
        RoutesReader(Cache::new(Arc::clone(&self.current)))
    }
}

/// One thread's view of the published snapshot.
#[derive(Debug)]
pub struct RoutesReader(Cache<Arc<ArcSwap<Routes>>, Arc<Routes>>);

impl RoutesReader {
    /// The current snapshot: one atomic load, unless a new one was published.
    #[inline]
    pub fn load(&mut self) -> &Arc<Routes> {
        self.0.load()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn routes(overlay: &str, subnets: &[Ipv4Net]) -> Routes {
        let routes = subnets
            .iter()
            .enumerate()
            .map(|(i, &subnet)| Route {
                subnet,
                endpoint: SocketAddrV4::new(Ipv4Addr::from(i as u32 + 1), 8285),
                stats: Arc::default(),
            })
            .collect();
        Routes::build(net(overlay), net("10.5.1.0/24"), routes)
    }

    /// The rule itself: of all prefixes that contain the address the longest, of equals the last.
    fn longest_prefix(subnets: &[Ipv4Net], address: Ipv4Addr) -> Option<u32> {
        (0..subnets.len())
            .filter(|&i| subnets[i].contains(&address))
            .max_by_key(|&i| (subnets[i].prefix_len(), i))
            .map(|i| i as u32)
    }

    #[test]
    fn an_empty_table_knows_nobody() {
        let table = routes("10.5.0.0/16", &[]);
        assert_eq!(table.lookup(Ipv4Addr::new(10, 5, 3, 1)), None);
        assert_eq!(table.lookup(Ipv4Addr::UNSPECIFIED), None);
        assert_eq!(table.lookup(Ipv4Addr::BROADCAST), None);
    }

    #[test]
    fn one_length_is_answered_by_the_slots_alone() {
        let subnets: Vec<Ipv4Net> = (0..=255).map(|i| net(&format!("10.5.{i}.0/24"))).collect();
        let table = routes("10.5.0.0/16", &subnets);
        assert!(table.table.mixed.is_empty());
        assert_eq!(table.table.slots.len(), 256);
        assert_eq!(table.lookup(Ipv4Addr::new(10, 5, 7, 200)), Some(7));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 6, 0, 0)), None);
        assert_eq!(table.lookup(Ipv4Addr::new(10, 4, 255, 255)), None);
    }

    #[test]
    fn the_longest_prefix_wins_and_outer_ones_fill_the_gaps() {
        let subnets =
            ["10.5.0.0/16", "10.5.1.0/24", "10.5.1.128/25", "10.5.1.130/32", "192.168.7.0/24"]
                .map(net);
        let table = routes("10.5.0.0/16", &subnets);
        for (address, route) in [
            ("10.5.0.1", Some(0)),
            ("10.5.1.1", Some(1)),
            ("10.5.1.129", Some(2)),
            ("10.5.1.130", Some(3)),
            ("10.5.1.131", Some(2)),
            ("10.5.2.0", Some(0)),
            ("192.168.7.9", Some(4)),
            ("192.168.8.0", None),
        ] {
            assert_eq!(table.lookup(address.parse().unwrap()), route, "{address}");
        }
    }

    #[test]
    fn the_later_of_two_equal_subnets_wins() {
        let table = routes("10.5.0.0/16", &[net("10.5.1.0/24"), net("10.5.1.0/24")]);
        assert_eq!(table.lookup(Ipv4Addr::new(10, 5, 1, 1)), Some(1));
    }

    #[test]
    fn the_edges_of_the_address_space_are_safe() {
        let subnets = ["0.0.0.0/0", "255.255.255.255/32", "0.0.0.0/32"].map(net);
        for overlay in ["0.0.0.0/0", "0.0.0.0/1", "255.255.255.255/32", "10.0.0.0/8"] {
            let table = routes(overlay, &subnets);
            assert_eq!(table.lookup(Ipv4Addr::UNSPECIFIED), Some(2), "{overlay}");
            assert_eq!(table.lookup(Ipv4Addr::BROADCAST), Some(1), "{overlay}");
            assert_eq!(table.lookup(Ipv4Addr::new(10, 0, 0, 1)), Some(0), "{overlay}");
        }
    }

    #[test]
    fn a_hundred_thousand_subnets_stay_small_and_exact() {
        let subnets: Vec<Ipv4Net> = (0..100_000_u32)
            .map(|i| Ipv4Net::new(Ipv4Addr::from(0x0A00_0000 + (i << 7)), 25).unwrap())
            .collect();
        let table = routes("10.0.0.0/8", &subnets);
        assert!(table.table.slots.len() <= 1 << MAX_SLOT_BITS);
        assert_eq!(table.lookup(Ipv4Addr::from(0x0A00_0000 + (99_999 << 7) + 5)), Some(99_999));
        assert_eq!(table.lookup(Ipv4Addr::from(0x0A00_0000 + (100_000 << 7))), None);
    }

    #[test]
    fn a_reader_sees_a_new_snapshot_at_its_next_load() {
        let shared = SharedRoutes::new(routes("10.5.0.0/16", &[]));
        let mut reader = shared.reader();
        assert!(reader.load().is_empty());
        shared.publish(routes("10.5.0.0/16", &[net("10.5.2.0/24")]));
        assert_eq!(reader.load().len(), 1);
        assert!(reader.load().is_peer(Ipv4Addr::from(1)));
        assert!(!reader.load().is_peer(Ipv4Addr::from(2)));
    }

    #[test]
    fn a_peer_is_found_by_its_address() {
        let subnets = [net("10.5.3.0/24"), net("10.5.2.0/24"), net("10.5.1.0/24")];
        let mut routes: Vec<Route> = routes("10.5.0.0/16", &subnets).routes.into();
        // A host may have several subnets.
        routes.swap(0, 2);
        routes[1].endpoint = routes[0].endpoint;
        let table = Routes::build(net("10.5.0.0/16"), net("10.5.9.0/24"), routes);
        let subnet = |peer: u32| Some(table.route_to_peer(Ipv4Addr::from(peer))?.subnet);
        assert_eq!([1, 2, 3].map(subnet), [Some(subnets[0]), None, Some(subnets[2])]);
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_rule(
            prefixes in prop::collection::vec((any::<u16>(), any::<bool>(), 8_u8..=32), 0..40),
            probes in prop::collection::vec((any::<u16>(), any::<bool>()), 0..60),
            overlay_length in 8_u8..=24,
        ) {
            // Half of everything inside 10.5.0.0/16, half just outside, so that they meet.
            let place = |low: u16, inside: bool| {
                Ipv4Addr::from(if inside { 0x0A05_0000 } else { 0x0A06_0000 } | u32::from(low))
            };
            let subnets: Vec<Ipv4Net> = prefixes
                .iter()
                .map(|&(low, inside, length)| Ipv4Net::new(place(low, inside), length).unwrap().trunc())
                .collect();
            let table = routes(&format!("10.5.0.0/{overlay_length}"), &subnets);
            let edges = subnets.iter().flat_map(|s| [s.network(), s.broadcast()]);
            for address in probes.iter().map(|&(low, inside)| place(low, inside)).chain(edges) {
                prop_assert_eq!(table.lookup(address), longest_prefix(&subnets, address));
            }
        }
    }
}
