//! What the threads of the data path share, under stress: the published table and the counters.
//!
//! `scripts/sanitize.sh thread` runs this under ThreadSanitizer; decision 002 has the argument.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Barrier, Weak};
use std::thread;

use flanneld::dataplane::routes::{Route, Routes, RoutesReader, SharedRoutes};
use flanneld::dataplane::stats::{Counter, PeerStats};
use ipnet::Ipv4Net;

const READERS: usize = 4;
const SNAPSHOTS: u16 = 2000;

/// The snapshot with this number, of which every part tells the number; all its routes hold the one
/// `mark`.
fn snapshot(number: u16, mark: &Arc<PeerStats>) -> Routes {
    let overlay = Ipv4Net::new(Ipv4Addr::new(10, 5, 0, 0), 16).unwrap();
    let routes = (0..subnets(number)).map(|subnet| Route {
        subnet: Ipv4Net::new(Ipv4Addr::new(10, 5, subnet, 0), 24).unwrap(),
        endpoint: SocketAddrV4::new(address(number), number),
        stats: Arc::clone(mark),
    });
    Routes::build(overlay, Ipv4Net::from(address(number)), routes.collect())
}

fn subnets(number: u16) -> u8 {
    (number % 13) as u8 + 1
}

fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(number) + 1)
}

/// The snapshot's number. Panics if a part of it belongs to another.
fn number_of(routes: &Routes) -> u16 {
    let number = routes.get(0).unwrap().endpoint.port();
    assert_eq!(routes.own(), Ipv4Net::from(address(number)));
    assert!(routes.is_peer(address(number)));
    assert_eq!(routes.len(), usize::from(subnets(number)));
    for subnet in 0..=subnets(number) {
        let found = routes.lookup(Ipv4Addr::new(10, 5, subnet, 7)).map(u8::try_from);
        assert_eq!(found, (subnet < subnets(number)).then_some(Ok(subnet)));
    }
    for route in 0..u32::from(subnets(number)) {
        assert_eq!(routes.get(route).unwrap().endpoint, SocketAddrV4::new(address(number), number));
    }
    number
}

#[test]
fn readers_see_whole_snapshots_in_order_and_each_is_freed_once() {
    let first = Arc::default();
    let mut marks: Vec<Weak<PeerStats>> = vec![Arc::downgrade(&first)];
    let shared = SharedRoutes::new(snapshot(0, &first));
    drop(first);
    let start = Barrier::new(READERS + 1);
    thread::scope(|scope| {
        for mut reader in (0..READERS).map(|_| shared.reader()) {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                let mut last = 0;
                while last < SNAPSHOTS {
                    let number = number_of(reader.load());
                    assert!(number >= last, "{number} after {last}");
                    last = number;
                }
            });
        }
        start.wait();
        for number in 1..=SNAPSHOTS {
            let mark = Arc::default();
            marks.push(Arc::downgrade(&mark));
            shared.publish(snapshot(number, &mark));
            drop(mark);
            let held = marks.iter().map(Weak::strong_count).enumerate();
            let alive = held.filter(|(_, holders)| *holders > 0);
            let alive: Vec<_> = alive.map(|(number, _)| number).collect();
            // One each, and one more while a reader changes over.
            assert!(alive.len() <= 2 * READERS + 1, "after {number}: {alive:?}");
        }
    });
    shared.publish(snapshot(0, &Arc::default()));
    let alive = marks.iter().filter(|mark| mark.strong_count() > 0).count();
    assert_eq!(alive, 0, "nobody reads any more");
}

#[test]
fn a_reader_that_lets_go_last_frees_nothing() {
    let marks: [Arc<PeerStats>; 3] = std::array::from_fn(|_| Arc::default());
    let held = |number: usize| Arc::strong_count(&marks[number]) > 1;
    let shared = SharedRoutes::new(snapshot(0, &marks[0]));
    let mut readers: [RoutesReader; 2] = std::array::from_fn(|_| shared.reader());
    shared.publish(snapshot(1, &marks[1]));
    for reader in &mut readers {
        assert_eq!(number_of(reader.load()), 1);
        assert!(held(0), "freed by a reader");
    }
    shared.publish(snapshot(2, &marks[2]));
    assert!(!held(0), "not freed by the publisher");
    assert!(held(1) && held(2));
}

#[test]
fn counters_of_many_threads_lose_nothing() {
    const ADDITIONS: u64 = 200_000;
    let counter = Counter::default();
    let start = Barrier::new(READERS);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                start.wait();
                let mut before = 0;
                for _ in 0..ADDITIONS {
                    counter.add(3);
                    let now = counter.get();
                    assert!(now >= before + 3, "{now} after {before}");
                    before = now;
                }
            });
        }
    });
    assert_eq!(counter.get(), READERS as u64 * ADDITIONS * 3);
}
